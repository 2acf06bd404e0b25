//! NVIDIA ConnectX in switchdev mode: what mlx5 refuses, and how it executes a rule. Paths are
//! below drivers/net/ethernet/mellanox/mlx5/core.
//!
//! In come rules and frames, out go the driver's words or what hardware does. One thing to know: a
//! rule becomes at most two flow table entries. The receivers before the *last* change of tags get
//! the frame as it came, all others get it after all changes, whatever the order in the rule
//! (`split_count` in en/tc/act/vlan.c; `mlx5_eswitch_add_fwd_rule` and
//! `mlx5_eswitch_add_offloaded_rule` in eswitch_offloads.c).

use super::{Eswitch, Side, refused};
use crate::action::{Action, Control, PoliceLimit};
use crate::frame::{Frame, Tag};
use crate::ident::{ChainId, Ifindex, VlanId, VlanTpid};
use crate::key::KeyId;
use crate::rule::Rule;
use crate::walk::{Chains, GOTOS_MAX, Handover, Step, Unmodelled, Walk, Why};

/// `FDB_TC_MAX_CHAIN` in fs_core.h.
const CHAIN_MAX: u32 = 3;
/// `FDB_TC_MAX_PRIO` in fs_core.h.
const PRIO_MAX: u16 = 16;
/// `MLX5_MAX_FLOW_FWD_VPORTS` in eswitch.h.
const RECEIVERS_MAX: usize = 32;
/// `MLX5_FS_VLAN_DEPTH` in include/linux/mlx5/fs.h.
const TAGS_MAX: usize = 2;

/// A ConnectX-5 or later, whose firmware has what the driver asks for but where named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mlx5 {
    /// Its interfaces.
    pub eswitch: Eswitch,
    /// Firmware capability `ignore_flow_level`: chains and prios without end, and gotos
    /// downwards.
    pub ignore_flow_level: bool,
    /// Firmware capability `outer_second_vid`: matches on the second tag.
    pub outer_second_vid: bool,
}

impl Mlx5 {
    /// One without either of the two capabilities: what it takes, every one takes.
    pub const fn new(eswitch: Eswitch) -> Mlx5 {
        Mlx5 { eswitch, ignore_flow_level: false, outer_second_vid: false }
    }

    /// In the order in which `__mlx5e_add_fdb_flow` in en_tc.c looks: keys, actions, place.
    pub(super) fn accepts(&self, rule: &Rule) -> Result<(), String> {
        let Some(side) = self.eswitch.ingress_side(rule.hook()) else {
            return refused("");
        };
        self.keys(rule)?;
        Entries::of(rule, Some((self, side)))?;
        // mlx5e_tc_add_fdb_flow in en_tc.c, with the ranges of lib/fs_chains.c.
        if !self.ignore_flow_level && rule.chain().get() > CHAIN_MAX {
            return refused("mlx5_core: Requested chain is out of supported range");
        }
        if !self.ignore_flow_level && rule.prio().get() > PRIO_MAX {
            return refused("mlx5_core: Requested priority is out of supported range");
        }
        Ok(())
    }

    /// `__parse_cls_flower` in en_tc.c.
    fn keys(&self, rule: &Rule) -> Result<(), String> {
        let fields = rule.id().matching().fields();
        let any = |of: &dyn Fn(KeyId) -> bool| fields.iter().any(|field| of(field.id));
        if any(&|id| !is_known(id)) {
            return refused("mlx5_core: Unsupported key");
        }
        if any(&|id| id == KeyId::L2Miss) {
            return refused("mlx5_core: Can't match on \"l2_miss\"");
        }
        // flower sets the kind of the second tag where it knows it (`is_vlan_key` in
        // net/sched/cls_flower.c), and with it FLOW_DISSECTOR_KEY_CVLAN.
        if super::has_second_tag(rule.id().matching()) && !self.outer_second_vid {
            return refused("mlx5_core: Matching on CVLAN is not supported");
        }
        if let Some(flags) = fields.get(KeyId::IpFlags).map(|field| field.mask.last().copied())
            && flags.is_some_and(|flags| flags & !IS_FRAGMENT != 0)
        {
            let flags = flags.unwrap_or_default();
            return Err(format!("mlx5_core: Unsupported match on control.flags {flags:#x}"));
        }
        if any(&|id| matches!(id, KeyId::SctpSrc | KeyId::SctpDst)) {
            return refused("mlx5_core: Only UDP and TCP transports are supported for L4 matching");
        }
        if any(&|id| (KeyId::MplsLse1..=KeyId::MplsLse7).contains(&id)) {
            return refused("mlx5_core: Matching on MPLS is supported only for MPLS over UDP");
        }
        Ok(())
    }

    pub(super) fn execute(&self, held: &Chains<'_>, frame: &Frame) -> (Walk, Option<Handover>) {
        let mut walk = Walk::default();
        let mut frame = frame.clone();
        let mut chain = ChainId::ZERO;
        for _ in 0..=GOTOS_MAX {
            let found = match held.find(chain, None, &frame) {
                Ok(found) => found,
                Err(unmodelled) => {
                    walk.unmodelled = Some(unmodelled);
                    return (walk, None);
                }
            };
            let Some(rule) = found else {
                walk.trace.push(Step::NoMatch(chain));
                // The miss rule of each chain writes its number, and mlx5e_tc_update_skb gives it
                // to tc: mlx5_chains_add_miss_rule in lib/fs_chains.c.
                return (walk, Some(Handover { why: Why::Miss(chain), chain, frame }));
            };
            walk.trace.push(Step::Matched(rule.clone()));
            let entries = match Entries::of(rule, None) {
                Ok(entries) => entries,
                Err(_) => {
                    walk.unmodelled = Some(Unmodelled::Hardware("a rule that mlx5 refuses"));
                    return (walk, None);
                }
            };
            if let Some(action) = rule.actions().iter().find(|action| !is_executed(rule, action)) {
                walk.unmodelled = Some(Unmodelled::Action(action.clone()));
                return (walk, None);
            }
            let Some(changed) = entries.tags.applied(&frame) else {
                walk.unmodelled = Some(Unmodelled::Hardware(
                    "in which order one flow table entry of mlx5 makes several changes of tags",
                ));
                return (walk, None);
            };
            walk.trace.extend(rule.actions().iter().cloned().map(Step::Did));
            let before = entries.receivers[..entries.split].iter();
            walk.deliveries.extend(before.map(|to| (*to, frame.clone())));
            // esw_setup_dests in eswitch_offloads.c: an entry that accepts has no receivers.
            if !matches!(entries.end, End::Accept) {
                let after = entries.receivers[entries.split..].iter();
                walk.deliveries.extend(after.map(|to| (*to, changed.clone())));
            }
            // Both go to the slow path's table without a chain to restore: the receive path of the
            // representor, and from there tc, from chain 0.
            let slow = |why| Handover { why, chain: ChainId::ZERO, frame: changed.clone() };
            match entries.end {
                End::Accept => return (walk, Some(slow(Why::Pass))),
                End::Trap => return (walk, Some(slow(Why::Trap))),
                End::Drop => {
                    walk.dropped = true;
                    return (walk, None);
                }
                End::Forwarded => return (walk, None),
                End::Goto(ChainId::ZERO) => {
                    // `if (attr->dest_chain)` in esw_setup_dests: 0 is none.
                    walk.unmodelled = Some(Unmodelled::Hardware(
                        "an entry of mlx5 that forwards and has no destination",
                    ));
                    return (walk, None);
                }
                End::Goto(next) => chain = next,
            }
            frame = changed;
        }
        walk.unmodelled = Some(Unmodelled::Hardware("how many tables of mlx5 a frame may pass"));
        (walk, None)
    }
}

/// `FLOW_DIS_IS_FRAGMENT`.
const IS_FRAGMENT: u8 = 1;

/// Whether the key is in `used_keys` of `__parse_cls_flower`.
const fn is_known(id: KeyId) -> bool {
    !matches!(
        id,
        KeyId::NumOfVlans
            | KeyId::PppoeSid
            | KeyId::PppProto
            | KeyId::PortSrcRange
            | KeyId::PortDstRange
            | KeyId::L2tpv3Sid
            | KeyId::Spi
            | KeyId::ArpOp
            | KeyId::ArpSip
            | KeyId::ArpTip
            | KeyId::ArpSha
            | KeyId::ArpTha
            | KeyId::Cfm
            | KeyId::Hash
    )
}

/// What a rule becomes: `struct mlx5_flow_attr` and `struct mlx5_esw_flow_attr`.
#[derive(Debug)]
struct Entries {
    receivers: Vec<Ifindex>,
    /// How many of them stand before the last change of tags (`split_count`).
    split: usize,
    tags: TagChanges,
    /// It rewrites headers in other ways (`MLX5_FLOW_CONTEXT_ACTION_MOD_HDR` by pedit).
    rewrites: bool,
    end: End,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Drop,
    Accept,
    Trap,
    Goto(ChainId),
    Forwarded,
}

/// The tag changes of one flow table entry: `MLX5_FLOW_CONTEXT_ACTION_VLAN_POP`, `_PUSH` and
/// `_MOD_HDR`. Hardware takes tags off, then rewrites, then puts tags on
/// (`dr_ste_v1_set_actions_rx` in steering/sws/dr_ste_v1.c).
#[derive(Debug, Default)]
struct TagChanges {
    /// `total_vlan`.
    asked: usize,
    pop: bool,
    pop_2: bool,
    /// The identifier of the outer tag is rewritten; kind and priority stay.
    rewrite: Option<VlanId>,
    pushes: Vec<Tag>,
    /// The rule asks for another order than the entry's.
    disordered: bool,
}

impl TagChanges {
    /// The frame afterwards; `None` where the driver's source does not tell.
    fn applied(&self, frame: &Frame) -> Option<Frame> {
        if self.disordered {
            return None;
        }
        let mut frame = frame.clone();
        let pops = usize::from(self.pop) + usize::from(self.pop_2);
        frame.tags.drain(..pops.min(frame.tags.len()));
        if let (Some(vid), Some(outer)) = (self.rewrite, frame.tags.first_mut()) {
            outer.vid = vid;
        }
        for tag in &self.pushes {
            frame = frame.within(*tag);
        }
        Some(frame)
    }

    /// The place among two of a push or pop: `parse_tc_vlan_action` in en/tc/act/vlan.c.
    fn place(&mut self) -> Result<usize, String> {
        if self.asked >= TAGS_MAX {
            return refused("mlx5_core: Total vlans used is greater than supported");
        }
        self.asked += 1;
        Ok(self.asked - 1)
    }

    fn pop(&mut self) -> Result<(), String> {
        let place = self.place()?;
        self.disordered |= place > 0 && !self.pop || self.rewrite.is_some();
        *(if place == 0 { &mut self.pop } else { &mut self.pop_2 }) = true;
        Ok(())
    }

    /// `tc_act_parse_vlan`: a push after a pop rewrites the tag instead.
    fn push(&mut self, rule: &Rule, tag: Tag) -> Result<(), String> {
        if self.pop {
            self.pop = false;
            return self.rewrite(rule, tag.vid, tag.pcp);
        }
        let place = self.place()?;
        self.disordered |= place != self.pushes.len();
        self.pushes.push(tag);
        Ok(())
    }

    /// `mlx5e_tc_act_vlan_add_rewrite_action` in en/tc/act/vlan_mangle.c.
    fn rewrite(&mut self, rule: &Rule, vid: VlanId, pcp: u8) -> Result<(), String> {
        if rule.id().matching().protocol() != VlanTpid::Dot1Q.ethertype() {
            return refused("mlx5_core: VLAN rewrite action must have VLAN protocol match");
        }
        if pcp != matched_pcp(rule) {
            return refused("mlx5_core: Changing VLAN prio is not supported");
        }
        self.disordered |=
            self.rewrite.is_some() || self.pop || self.pop_2 || !self.pushes.is_empty();
        self.rewrite = Some(vid);
        Ok(())
    }
}

/// The priority that the rule matches, 0 where it matches none.
fn matched_pcp(rule: &Rule) -> u8 {
    let prio = rule.id().matching().fields().get(KeyId::VlanPrio);
    prio.and_then(|field| field.value.first().copied()).unwrap_or(0)
}

/// The actions that are neither verdicts, mirred nor tags: whether one rewrites headers, by the
/// files of en/tc/act/ and the table `tc_acts_fdb` in act.c. `rewritten`: an earlier one does.
fn other_action(action: &Action, rewritten: bool) -> Result<bool, String> {
    match action {
        Action::RedirectIngress(_) => {
            refused("mlx5_core: redirect to ingress is supported only for OVS internal ports")
        }
        // `act->dev` is none: tc_act_can_offload_mirred.
        Action::MirrorBlock { .. } | Action::RedirectBlock { .. } => refused(""),
        // parse_tc_vlan_action without L3_TO_L2_DECAP.
        Action::EthPush { .. } => refused(""),
        Action::EthPop => refused("mlx5_core: vlan pop eth is supported only with mpls push"),
        Action::Police(police) => {
            let known = |control: Control| !matches!(control, Control::Continue | Control::Goto(_));
            if !known(police.exceed) || !known(police.conform) {
                return refused(
                    "mlx5_core: Offload not supported when conform-exceed action is not pipe, \
                     ok, jump or drop",
                );
            }
            if matches!(police.limit, PoliceLimit::Bytes { peak: Some(_), .. }) {
                return refused(
                    "mlx5_core: Offload not supported when peakrate/avrate/overhead is \
                     configured",
                );
            }
            Ok(false)
        }
        Action::Csum(_) if !rewritten => {
            refused("mlx5_core: TC csum action is only offloaded with pedit")
        }
        Action::Pedit(_) => Ok(true),
        Action::SharedPolice(_)
        | Action::Csum(_)
        | Action::Ct(_)
        | Action::TunnelSet(_)
        | Action::TunnelRelease
        | Action::Sample(_) => Ok(false),
        Action::Mpls(_) => refused("mlx5_core: mpls is supported only through a bareudp device"),
        _ => refused("mlx5_core: Not implemented offload action"),
    }
}

/// Whether this profile says what hardware does at this action. Header rewriting, tunnels,
/// connection tracking and sampling are beyond it, and so is a policer behind other actions, for
/// which the driver makes further tables.
fn is_executed(rule: &Rule, action: &Action) -> bool {
    match action {
        Action::Police(police) => {
            police.conform == Control::Pipe && rule.actions().first() == Some(action)
        }
        Action::SharedPolice(_) => rule.actions().first() == Some(action),
        Action::Pedit(_)
        | Action::Csum(_)
        | Action::Ct(_)
        | Action::TunnelSet(_)
        | Action::TunnelRelease
        | Action::Sample(_) => false,
        _ => true,
    }
}

impl Entries {
    /// What the rule becomes, with the checks of `parse_tc_actions` in en_tc.c where there is a
    /// switch to check against.
    fn of(rule: &Rule, within: Option<(&Mlx5, Side)>) -> Result<Entries, String> {
        let mut entries = Entries {
            receivers: Vec::new(),
            split: 0,
            tags: TagChanges::default(),
            rewrites: false,
            end: End::Forwarded,
        };
        for action in rule.actions() {
            match action {
                Action::Drop => entries.end = End::Drop,
                Action::Pass => entries.end = End::Accept,
                Action::Trap => entries.end = End::Trap,
                Action::Goto(chain) => {
                    if let Some((mlx5, _)) = within {
                        mlx5.goto(rule.chain(), *chain)?;
                    }
                    entries.end = End::Goto(*chain);
                }
                Action::Mirror(to) | Action::Redirect(to) => {
                    if let Some((mlx5, side)) = within {
                        entries.receiver(rule, mlx5, side, *to)?;
                    }
                    entries.receivers.push(*to);
                }
                Action::VlanPop => {
                    entries.tags.pop()?;
                    entries.split = entries.receivers.len();
                }
                Action::VlanPush { tpid, vid } => {
                    entries.tags.push(rule, Tag::new(*tpid, *vid))?;
                    entries.split = entries.receivers.len();
                }
                Action::VlanPushPrio { tpid, vid, prio } => {
                    let tag = Tag { tpid: *tpid, vid: *vid, pcp: prio.get() };
                    entries.tags.push(rule, tag)?;
                    entries.split = entries.receivers.len();
                }
                // Without a priority to write, `act->vlan.prio` is 0.
                Action::VlanModify { vid, .. } => {
                    entries.tags.rewrite(rule, *vid, 0)?;
                    entries.split = entries.receivers.len();
                }
                Action::VlanModifyPrio { vid, prio, .. } => {
                    entries.tags.rewrite(rule, *vid, prio.get())?;
                    entries.split = entries.receivers.len();
                }
                other => entries.rewrites |= other_action(other, entries.rewrites)?,
            }
        }
        if let Some((mlx5, _)) = within {
            entries.together(mlx5)?;
        }
        Ok(entries)
    }

    /// `tc_act_can_offload_mirred` and `parse_mirred` in en/tc/act/mirred.c.
    fn receiver(&self, rule: &Rule, mlx5: &Mlx5, from: Side, to: Ifindex) -> Result<(), String> {
        if self.receivers.len() >= RECEIVERS_MAX {
            return refused("mlx5_core: can't support more output ports, can't offload forwarding");
        }
        let Some(side) = mlx5.eswitch.side(to) else {
            return refused(
                "mlx5_core: devices are not on same switch HW, can't offload forwarding",
            );
        };
        // Counted anew after each change of tags (`if_count = 0`).
        if self.receivers[self.split..].contains(&to) {
            return refused("mlx5_core: can't duplicate output to same device");
        }
        if from == Side::Uplink && side == Side::Uplink {
            return refused("mlx5_core: devices are both uplink, can't offload forwarding");
        }
        if rule.hook().ifindex() == Some(to) {
            return refused("mlx5_core: can't forward from a VF to itself");
        }
        Ok(())
    }

    /// `verify_attr_actions` in en_tc.c and the check of header rewriting in
    /// `mlx5_eswitch_add_offloaded_rule` in eswitch_offloads.c.
    fn together(&self, mlx5: &Mlx5) -> Result<(), String> {
        if matches!(self.end, End::Drop) {
            if !self.receivers.is_empty() {
                return refused("mlx5_core: Rule cannot support forward+drop action");
            }
            if self.tags.rewrite.is_some() || self.rewrites {
                return refused("mlx5_core: Drop with modify header action is not supported");
            }
        }
        // With receivers before the split, those behind it stand in a table of their own
        // (extra_split_attr_dests_needed in en_tc.c).
        if (self.tags.rewrite.is_some() || self.rewrites) && self.split == 0 {
            let to_uplink = self.receivers.contains(&mlx5.eswitch.uplink);
            let to_functions = self.receivers.iter().any(|to| *to != mlx5.eswitch.uplink);
            if to_uplink && to_functions {
                // Only the kernel's log says "Header rewrite with forwarding to both internal and
                // external dests is not allowed".
                return refused("");
            }
        }
        Ok(())
    }
}

impl Mlx5 {
    /// `validate_goto_chain` in en/tc/act/goto.c.
    fn goto(&self, from: ChainId, to: ChainId) -> Result<(), String> {
        if self.ignore_flow_level {
            return Ok(());
        }
        if to <= from {
            return refused("mlx5_core: Goto lower numbered chain isn't supported");
        }
        if to.get() > CHAIN_MAX {
            return refused("mlx5_core: Requested destination chain is out of supported range");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::{chain, hook, ifindex, mac, prio, vid};
    use crate::ident::{EtherType, Hook};
    use crate::key::{ArpMatch, Ipv4Match, Match, Ports};
    use crate::profile::Profile;
    use crate::walk::{TwoStageWalk, walk_two_stage};

    const Q: VlanTpid = VlanTpid::Dot1Q;
    const UPLINK: u32 = 1;
    const A: u32 = 11;
    const B: u32 = 12;

    fn mlx5() -> Mlx5 {
        let representors = [ifindex(7)].into_iter().chain((11..60).map(ifindex));
        Mlx5::new(Eswitch::new(ifindex(UPLINK), representors))
    }

    fn rule(matching: Match, actions: &[Action]) -> Rule {
        Rule::new(hook(), chain(0), prio(1), matching, actions).unwrap()
    }

    fn mirror(to: u32) -> Action {
        Action::Mirror(ifindex(to))
    }

    fn redirect(to: u32) -> Action {
        Action::Redirect(ifindex(to))
    }

    fn push(number: u16) -> Action {
        Action::VlanPush { tpid: Q, vid: vid(number) }
    }

    fn frame() -> Frame {
        Frame::opaque(mac(2), mac(1), EtherType::ARP)
    }

    fn tagged(number: u16) -> Frame {
        frame().tagged(Q, vid(number))
    }

    fn meet(matching: Match, actions: &[Action], frame: &Frame) -> TwoStageWalk {
        let rules = [rule(matching, actions)];
        walk_two_stage(&rules, |_| true, &Profile::Mlx5(mlx5()), hook(), frame)
    }

    #[test]
    fn refusals_are_in_the_drivers_words() {
        let modify = |number| Action::VlanModify { tpid: Q, vid: vid(number) };
        let any = Match::any;
        let sctp = Match::ethertype(Ipv4Match::any().sctp(Ports::any().dst(1)));
        let many: Vec<Action> = (11..42).map(mirror).chain([redirect(42)]).collect();
        let cases: [(Match, &[Action], Result<(), &str>); 18] = [
            (any(), &[redirect(A)], Ok(())),
            (any(), &[mirror(A), push(5), mirror(A), redirect(UPLINK)], Ok(())),
            (Match::vlan(Q, vid(1)), &[Action::VlanPop, push(2), redirect(A)], Ok(())),
            (any(), &many, Ok(())),
            (Match::ethertype(ArpMatch::any().op(1)), &[Action::Drop], Err("Unsupported key")),
            (
                Match::double_tagged(Q, None, Q),
                &[Action::Drop],
                Err("Matching on CVLAN is not supported"),
            ),
            (
                sctp,
                &[Action::Drop],
                Err("Only UDP and TCP transports are supported for L4 matching"),
            ),
            (
                any(),
                &[redirect(99)],
                Err("devices are not on same switch HW, can't offload forwarding"),
            ),
            (any(), &[redirect(7)], Err("can't forward from a VF to itself")),
            (any(), &[mirror(A), redirect(A)], Err("can't duplicate output to same device")),
            (any(), &[mirror(A), Action::Drop], Err("Rule cannot support forward+drop action")),
            (
                Match::vlan(Q, vid(1)),
                &[modify(2), Action::Drop],
                Err("Drop with modify header action is not supported"),
            ),
            (
                any(),
                &[modify(2), redirect(A)],
                Err("VLAN rewrite action must have VLAN protocol match"),
            ),
            (
                any(),
                &[push(1), push(2), push(3), redirect(A)],
                Err("Total vlans used is greater than supported"),
            ),
            (
                any(),
                &[Action::Goto(ChainId::ZERO)],
                Err("Goto lower numbered chain isn't supported"),
            ),
            (
                any(),
                &[Action::Goto(chain(4))],
                Err("Requested destination chain is out of supported range"),
            ),
            (Match::vlan(Q, vid(1)), &[modify(2), mirror(A), redirect(UPLINK)], Err("")),
            (Match::vlan(Q, vid(1)), &[modify(2), mirror(A), redirect(B)], Ok(())),
        ];
        for (matching, actions, expected) in cases {
            let rule = rule(matching, actions);
            let words = |words: &str| {
                if words.is_empty() { String::new() } else { format!("mlx5_core: {words}") }
            };
            assert_eq!(mlx5().accepts(&rule), expected.map_err(words), "{rule}");
        }
    }

    #[test]
    fn chains_and_prios_end_unless_the_firmware_ignores_levels() {
        let at = |at, at_prio| {
            Rule::new(hook(), chain(at), prio(at_prio), Match::any(), [Action::Drop]).unwrap()
        };
        let chains = "mlx5_core: Requested chain is out of supported range";
        let prios = "mlx5_core: Requested priority is out of supported range";
        assert_eq!(mlx5().accepts(&at(3, 16)), Ok(()));
        assert_eq!(mlx5().accepts(&at(4, 1)), Err(chains.into()));
        assert_eq!(mlx5().accepts(&at(0, 17)), Err(prios.into()));
        let newer = Mlx5 { ignore_flow_level: true, ..mlx5() };
        assert_eq!(newer.accepts(&at(1 << 20, 40_000)), Ok(()));
        assert_eq!(newer.accepts(&rule(Match::any(), &[Action::Goto(ChainId::ZERO)])), Ok(()));
    }

    #[test]
    fn it_takes_ingress_rules_of_its_own_interfaces_and_forwards_no_uplink_to_the_uplink() {
        let at = |hook, action: Action| {
            Rule::new(hook, chain(0), prio(1), Match::any(), [action]).unwrap()
        };
        let uplink = Hook::ingress(ifindex(UPLINK));
        assert_eq!(mlx5().accepts(&at(uplink, redirect(A))), Ok(()));
        assert_eq!(
            mlx5().accepts(&at(uplink, redirect(UPLINK))),
            Err("mlx5_core: devices are both uplink, can't offload forwarding".into())
        );
        for elsewhere in [Hook::egress(ifindex(A)), Hook::ingress(ifindex(99))] {
            assert_eq!(mlx5().accepts(&at(elsewhere, Action::Drop)), Err(String::new()));
        }
    }

    #[test]
    fn receivers_before_the_last_change_of_tags_get_the_frame_as_it_came() {
        let walk = meet(Match::any(), &[push(5), mirror(A), push(6), redirect(B)], &frame());
        let twice = tagged(5).tagged(Q, vid(6));
        assert_eq!(walk.hardware.deliveries, [(ifindex(A), frame()), (ifindex(B), twice)]);
        let walk = meet(Match::any(), &[push(5), mirror(A), redirect(B)], &frame());
        assert_eq!(walk.hardware.deliveries, [(ifindex(A), tagged(5)), (ifindex(B), tagged(5))]);
    }

    #[test]
    fn a_pop_and_a_push_become_a_new_identifier_in_the_old_tag() {
        let before = frame().within(Tag { tpid: Q, vid: vid(1), pcp: 6 });
        let ad = Action::VlanPush { tpid: VlanTpid::Dot1Ad, vid: vid(2) };
        let walk = meet(Match::vlan(Q, vid(1)), &[Action::VlanPop, ad, redirect(A)], &before);
        let after = frame().within(Tag { tpid: Q, vid: vid(2), pcp: 6 });
        assert_eq!(walk.hardware.deliveries, [(ifindex(A), after)]);
    }

    #[test]
    fn an_order_of_changes_that_one_entry_cannot_have_is_not_guessed_at() {
        let actions = [push(5), Action::VlanPop, redirect(A)];
        let walk = meet(Match::any(), &actions, &frame());
        assert_eq!(mlx5().accepts(&rule(Match::any(), &actions)), Ok(()));
        assert!(matches!(walk.hardware.unmodelled, Some(Unmodelled::Hardware(_))));
        assert_eq!(walk.hardware.deliveries, []);
    }

    #[test]
    fn a_pass_leaves_the_copies_to_software_which_starts_over() {
        let walk = meet(Match::any(), &[mirror(A), Action::Pass], &frame());
        assert_eq!(walk.hardware.deliveries, []);
        assert_eq!(walk.deliveries().count(), 1);
        // Unless a change of tags split the rule: then both send one.
        let walk = meet(Match::any(), &[mirror(A), push(5), Action::Pass], &frame());
        assert_eq!(walk.together().deliveries, [(ifindex(A), frame()), (ifindex(A), tagged(5))]);
    }

    #[test]
    fn copies_before_a_goto_are_sent_and_the_chain_sees_the_frame_after_all_changes() {
        let rules = [
            rule(Match::any(), &[mirror(A), push(5), Action::Goto(chain(1))]),
            Rule::new(hook(), chain(1), prio(1), Match::vlan(Q, vid(5)), [redirect(B)]).unwrap(),
        ];
        let profile = Profile::Mlx5(mlx5());
        let walk = walk_two_stage(&rules, |_| true, &profile, hook(), &frame());
        assert_eq!(walk.hardware.deliveries, [(ifindex(A), frame()), (ifindex(B), tagged(5))]);
        assert_eq!(walk.software, None);
    }
}
