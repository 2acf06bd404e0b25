//! Intel E800 in switchdev mode: what ice refuses, and how it executes a rule. Paths are below
//! drivers/net/ethernet/intel/ice.
//!
//! In come rules and frames, out go the driver's words or what hardware does. Three things to
//! know: all rules have one and the same priority in hardware (`rule_info.priority = 7` in
//! `ice_eswitch_add_tc_fltr`, ice_tc_lib.c); at a representor nobody asks for the chain
//! (`ice_repr_setup_tc_cls_flower` in ice_repr.c), so that a rule of any chain meets every frame;
//! and of several actions only the last is carried out (each overwrites `fltr->action` in
//! `ice_eswitch_tc_parse_action`).
//!
//! Not here: that two rules with the same keys at one source become one with two receivers, or are
//! refused as existing (`ice_add_adv_rule` in ice_switch.c), and how many rules fit.

use super::{Eswitch, Side, refused};
use crate::action::Action;
use crate::frame::Frame;
use crate::ident::{ChainId, Direction, VlanTpid};
use crate::key::{Field, KeyId, Match};
use crate::rule::Rule;
use crate::walk::{Chains, Handover, Sight, Step, Unmodelled, Walk, Why, sight};

/// `ETH_P_LLDP`.
const LLDP: u16 = 0x88cc;

/// An E810 or E830.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ice {
    /// Its interfaces.
    pub eswitch: Eswitch,
    /// Whether its package is in double VLAN mode (`ice_is_dvm_ena`): matches on the second tag.
    pub double_vlan: bool,
}

impl Ice {
    /// One in single VLAN mode.
    pub const fn new(eswitch: Eswitch) -> Ice {
        Ice { eswitch, double_vlan: false }
    }

    /// In the order of `ice_add_tc_fltr` in ice_tc_lib.c: keys, actions, the switch's own limits.
    pub(super) fn accepts(&self, rule: &Rule) -> Result<(), String> {
        let Some(side) = rule.hook().ifindex().and_then(|here| self.eswitch.side(here)) else {
            return refused("");
        };
        let ingress = rule.hook().direction() == Some(Direction::Ingress);
        match side {
            // ice_setup_tc_cls_flower in ice_main.c.
            Side::Uplink if rule.chain() != ChainId::ZERO => return refused(""),
            Side::Representor if !ingress => return refused(""),
            Side::Uplink | Side::Representor => {}
        }
        self.keys(rule, ingress)?;
        for action in rule.actions() {
            self.action(side, ingress, action)?;
        }
        // ice_add_adv_rule in ice_switch.c wants something to look up.
        if looked_up(rule.id().matching()).fields().bytes().is_empty()
            && payload_ethertype(rule.id().matching()).is_none()
            && VlanTpid::from_ethertype(rule.id().matching().protocol()).is_none()
        {
            return refused("ice: Unable to add filter due to error");
        }
        Ok(())
    }

    /// `ice_parse_cls_flower`.
    fn keys(&self, rule: &Rule, ingress: bool) -> Result<(), String> {
        let matching = rule.id().matching();
        if matching.fields().iter().any(|field| !is_known(field.id)) {
            return refused("ice: Unsupported key used");
        }
        if !ingress && payload_ethertype(matching) != Some(LLDP) {
            return refused("ice: Non-LLDP filtering is not supported on egress in switchdev mode");
        }
        if matching.fields().iter().any(|field| is_tunnel(field.id)) {
            return refused("ice: Tunnel key used, but device isn't a tunnel");
        }
        if super::has_second_tag(matching) && !self.double_vlan {
            return refused("ice: Double VLAN mode is not enabled");
        }
        if let Some(field) = matching.fields().get(KeyId::IpFlags) {
            let flags = field.mask.last().copied().unwrap_or_default();
            return Err(format!("ice: Unsupported match on control.flags {flags:#x}"));
        }
        let addresses = [KeyId::Ipv6Src, KeyId::Ipv6Dst].map(|id| matching.fields().get(id));
        if addresses.iter().flatten().any(|field| is_loopback(field.value)) {
            return refused("ice: Bad IPv6, addr is LOOPBACK");
        }
        if matching.fields().iter().any(|field| matches!(field.id, KeyId::SctpSrc | KeyId::SctpDst))
        {
            return refused("ice: Only UDP and TCP transport are supported");
        }
        Ok(())
    }

    /// `ice_eswitch_tc_parse_action`.
    fn action(&self, from: Side, ingress: bool, action: &Action) -> Result<(), String> {
        let supported = match action {
            // ice_tc_setup_drop_action: at a representor a rule for what it receives is an
            // *egress* rule of the switch, and those do not drop.
            Action::Drop => from == Side::Uplink,
            // ice_tc_setup_action: between representors, and between them and the uplink.
            Action::Redirect(to) | Action::Mirror(to) => {
                let to = self.eswitch.side(*to);
                ingress
                    && matches!(
                        (from, to),
                        (Side::Representor, Some(_)) | (Side::Uplink, Some(Side::Representor))
                    )
            }
            // `act->dev` is none.
            Action::RedirectBlock { .. } | Action::MirrorBlock { .. } => return refused(""),
            _ => return refused("ice: Unsupported action in switchdev mode"),
        };
        if supported {
            Ok(())
        } else {
            refused("ice: The action is not supported for this netdevice")
        }
    }
}

/// Whether the key is in `used_keys` of `ice_parse_cls_flower`.
const fn is_known(id: KeyId) -> bool {
    matches!(
        id,
        KeyId::EthDst
            | KeyId::EthSrc
            | KeyId::VlanId
            | KeyId::VlanPrio
            | KeyId::VlanEthType
            | KeyId::CvlanId
            | KeyId::CvlanPrio
            | KeyId::CvlanEthType
            | KeyId::PppoeSid
            | KeyId::PppProto
            | KeyId::IpProto
            | KeyId::IpTos
            | KeyId::IpTtl
            | KeyId::IpFlags
            | KeyId::Ipv4Src
            | KeyId::Ipv4Dst
            | KeyId::Ipv6Src
            | KeyId::Ipv6Dst
            | KeyId::TcpSrc
            | KeyId::TcpDst
            | KeyId::UdpSrc
            | KeyId::UdpDst
            | KeyId::SctpSrc
            | KeyId::SctpDst
            | KeyId::L2tpv3Sid
    ) || is_tunnel(id)
}

const fn is_tunnel(id: KeyId) -> bool {
    matches!(
        id,
        KeyId::EncKey
            | KeyId::EncIpv4Src
            | KeyId::EncIpv4Dst
            | KeyId::EncIpv6Src
            | KeyId::EncIpv6Dst
            | KeyId::EncUdpSrc
            | KeyId::EncUdpDst
            | KeyId::EncTos
            | KeyId::EncTtl
            | KeyId::EncFlags
            | KeyId::EncOpts
    )
}

fn number(field: &Field<'_>) -> u16 {
    field.value.iter().fold(0, |sum, byte| sum << 8 | u16::from(*byte))
}

fn is_loopback(address: &[u8]) -> bool {
    address.split_last().is_some_and(|(last, rest)| *last == 1 && rest.iter().all(|b| *b == 0))
}

/// The ethertype that flower looks for behind the tags that it knows, where it does.
fn payload_ethertype(matching: &Match) -> Option<u16> {
    let ethertype = match matching.fields().get(KeyId::VlanEthType) {
        Some(field) => number(&field),
        None => matching.protocol(),
    };
    let is_payload =
        ethertype != crate::ident::ETH_P_ALL && VlanTpid::from_ethertype(ethertype).is_none();
    is_payload.then_some(ethertype)
}

/// What is left of a match in hardware (`ice_parse_cls_flower`, `ice_tc_set_ipv4`,
/// `ice_tc_set_port`, `ice_tc_fill_rules`): Ethernet addresses, IPv4 addresses and ports whose
/// *value* is zero are not looked at, whatever their mask, and the IP protocol only where a port
/// is.
fn looked_up(matching: &Match) -> Match {
    let has_port = matching.fields().iter().any(|field| is_port(field.id) && number(&field) != 0);
    let mut fields = matching.fields().clone();
    for field in matching.fields().iter() {
        let is_zero = field.value.iter().all(|byte| *byte == 0);
        let unseen = match field.id {
            KeyId::IpProto => !has_port,
            KeyId::EthDst | KeyId::EthSrc | KeyId::Ipv4Src | KeyId::Ipv4Dst => is_zero,
            id if is_port(id) => is_zero,
            _ => false,
        };
        if unseen {
            fields =
                fields.with(field.id, field.value, &[0; crate::key::KEY_MAX][..field.mask.len()]);
        }
    }
    Match::from_parts(matching.protocol(), fields)
}

const fn is_port(id: KeyId) -> bool {
    matches!(id, KeyId::TcpSrc | KeyId::TcpDst | KeyId::UdpSrc | KeyId::UdpDst)
}

/// One flat table in no order.
pub(super) fn execute(held: &Chains<'_>, frame: &Frame) -> (Walk, Option<Handover>) {
    let mut walk = Walk::default();
    let mut taking =
        held.all().filter(|rule| sight(&looked_up(rule.id().matching()), frame) == Sight::Takes);
    let Some(rule) = taking.next() else {
        walk.trace.push(Step::NoMatch(ChainId::ZERO));
        let why = Why::Miss(ChainId::ZERO);
        // Nothing tells tc about chains: no TC_SKB_EXT anywhere in the driver.
        return (walk, Some(Handover { why, chain: ChainId::ZERO, frame: frame.clone() }));
    };
    let last = |rule: &Rule| rule.actions().last().cloned();
    if taking.any(|other| last(other) != last(rule)) {
        walk.unmodelled = Some(Unmodelled::Hardware(
            "which of several rules takes a frame in ice, where all have one priority",
        ));
        return (walk, None);
    }
    walk.trace.push(Step::Matched(rule.clone()));
    let Some(action) = last(rule) else { return (walk, None) };
    walk.trace.push(Step::Did(action.to_owned()));
    match action {
        Action::Drop => walk.dropped = true,
        Action::Redirect(to) => walk.deliveries.push((to, frame.clone())),
        other => walk.unmodelled = Some(Unmodelled::Action(other)),
    }
    (walk, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::{chain, hook, ifindex, mac, prio, vid};
    use crate::frame::{Body, Layer4};
    use crate::ident::{EtherType, Hook, Ifindex, Mac};
    use crate::key::{Ipv4Match, Ipv6Match, Ports};
    use crate::profile::Profile;
    use crate::walk::{TwoStageWalk, walk_two_stage};

    const UPLINK: u32 = 1;
    const A: u32 = 11;
    const B: u32 = 12;

    fn ice() -> Ice {
        Ice::new(Eswitch::new(ifindex(UPLINK), [ifindex(7), ifindex(A), ifindex(B)]))
    }

    fn at(hook: Hook, at: u32, matching: Match, actions: &[Action]) -> Rule {
        Rule::new(hook, chain(at), prio(1), matching, actions).unwrap()
    }

    fn source() -> Match {
        Match::any().src(mac(1))
    }

    fn redirect(to: u32) -> Action {
        Action::Redirect(ifindex(to))
    }

    fn frame() -> Frame {
        let udp = Layer4::Udp { src: 1, dst: 2 };
        Frame::opaque(mac(2), mac(1), EtherType::ARP).with_body(Body::ipv4(
            [192, 0, 2, 1].into(),
            [192, 0, 2, 2].into(),
            udp,
        ))
    }

    fn meet(rules: &[Rule], frame: &Frame) -> TwoStageWalk {
        walk_two_stage(rules, |_| true, &Profile::Ice(ice()), rules[0].hook(), frame)
    }

    fn leaves_through(rules: &[Rule]) -> Vec<Ifindex> {
        let walk = meet(rules, &frame());
        assert_eq!(walk.hardware.unmodelled, None);
        walk.hardware.deliveries.iter().map(|(to, _)| *to).collect()
    }

    #[test]
    fn refusals_are_in_the_drivers_words() {
        type Case = (Hook, Match, Vec<Action>, Result<(), &'static str>);
        let unsupported = Err("Unsupported action in switchdev mode");
        let not_here = Err("The action is not supported for this netdevice");
        let here = hook();
        let uplink = Hook::ingress(ifindex(UPLINK));
        let icmp = Match::ethertype(Ipv4Match::any().icmp(8, 0));
        let sctp = Match::ethertype(Ipv4Match::any().sctp(Ports::any().dst(1)));
        let loopback = Match::ethertype(Ipv6Match::any().src("::1".parse().unwrap()));
        let double = Match::double_tagged(VlanTpid::Dot1Q, None, VlanTpid::Dot1Q);
        let drop = Action::Drop;
        let mirror = Action::Mirror(ifindex(B));
        let cases: [Case; 18] = [
            (here, source(), vec![redirect(A)], Ok(())),
            (here, source(), vec![redirect(UPLINK)], Ok(())),
            (here, source(), vec![mirror, redirect(A)], Ok(())),
            (here, source(), vec![drop.to_owned()], not_here),
            (uplink, source(), vec![drop.to_owned()], Ok(())),
            (uplink, source(), vec![redirect(A)], Ok(())),
            (uplink, source(), vec![redirect(UPLINK)], not_here),
            (here, source(), vec![redirect(99)], not_here),
            (here, source(), vec![Action::VlanPop, redirect(A)], unsupported),
            (here, source(), vec![Action::Goto(chain(1))], unsupported),
            (here, source(), vec![Action::Trap], unsupported),
            (here, source(), vec![Action::Pass], unsupported),
            (here, icmp, vec![redirect(A)], Err("Unsupported key used")),
            (here, sctp, vec![redirect(A)], Err("Only UDP and TCP transport are supported")),
            (here, loopback, vec![redirect(A)], Err("Bad IPv6, addr is LOOPBACK")),
            (here, double, vec![redirect(A)], Err("Double VLAN mode is not enabled")),
            (here, Match::any(), vec![redirect(A)], Err("Unable to add filter due to error")),
            (
                Hook::egress(ifindex(UPLINK)),
                source(),
                vec![drop],
                Err("Non-LLDP filtering is not supported on egress in switchdev mode"),
            ),
        ];
        for (hook, matching, actions, expected) in cases {
            let rule = at(hook, 0, matching, &actions);
            let expected = expected.map_err(|words| format!("ice: {words}"));
            assert_eq!(ice().accepts(&rule), expected, "{rule:?}");
        }
        for elsewhere in [Hook::egress(ifindex(A)), Hook::ingress(ifindex(99))] {
            let rule = at(elsewhere, 0, source(), &[Action::Drop]);
            assert_eq!(ice().accepts(&rule), Err(String::new()));
        }
    }

    #[test]
    fn of_several_actions_the_last_is_carried_out() {
        let mirror = Action::Mirror(ifindex(B));
        assert_eq!(
            leaves_through(&[at(hook(), 0, source(), &[mirror, redirect(A)])]),
            [ifindex(A)]
        );
    }

    #[test]
    fn at_a_representor_a_rule_of_any_chain_meets_every_frame() {
        let rule = at(hook(), 5, source(), &[redirect(A)]);
        assert_eq!(ice().accepts(&rule), Ok(()));
        assert_eq!(leaves_through(&[rule]), [ifindex(A)]);
        let uplink = Hook::ingress(ifindex(UPLINK));
        assert_eq!(ice().accepts(&at(uplink, 5, source(), &[redirect(A)])), Err(String::new()));
    }

    #[test]
    fn which_of_two_rules_decides_is_not_guessed_at_unless_they_agree() {
        let to = |matching, to| at(hook(), 0, matching, &[redirect(to)]);
        let other = Match::any().dst(mac(2));
        let walk = meet(&[to(source(), A), to(other.clone(), B)], &frame());
        assert!(matches!(walk.hardware.unmodelled, Some(Unmodelled::Hardware(_))));
        assert_eq!(leaves_through(&[to(source(), A), to(other, A)]), [ifindex(A)]);
    }

    #[test]
    fn keys_that_the_driver_does_not_pass_on_match_everything() {
        let takes =
            |matching| leaves_through(&[at(hook(), 0, matching, &[redirect(A)])]).len() == 1;
        // An IP protocol without a port.
        assert!(takes(Match::ethertype(Ipv4Match::any().proto(47))));
        assert!(!takes(Match::ethertype(Ipv4Match::any().tcp(Ports::any().dst(2)))));
        assert!(takes(Match::ethertype(Ipv4Match::any().udp(Ports::any().dst(2)))));
        // A value of zero.
        let unicast = Match::any().src(mac(1)).dst_masked(Mac([0; 6]), Mac([1, 0, 0, 0, 0, 0]));
        let broadcast = Frame { dst: Mac([0xff; 6]), ..frame() };
        let rule = at(hook(), 0, unicast, &[redirect(A)]);
        assert_eq!(meet(&[rule], &broadcast).hardware.deliveries.len(), 1);
        assert!(takes(Match::ethertype(Ipv4Match::any().udp(Ports::any().dst(0)))));
        // The others count.
        assert!(!takes(Match::vlan(VlanTpid::Dot1Q, vid(1)).src(mac(1))));
        assert!(!takes(Match::any().src(mac(3))));
    }
}
