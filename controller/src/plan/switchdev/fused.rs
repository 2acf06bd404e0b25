//! Rules for hardware without chains: known unicast, from chain 0 straight to its receiver.
//!
//! In: a [`Segment`] and which [`Part`] of it. Out: rules for hardware only, beside the program that
//! software runs. Each takes only frames that this program delivers to the same receiver as they
//! are, whatever else is in them: so it asks for the ethertype inside the tag, since tags and
//! ethertypes are what the other rules of chain 0 ask for, and is there only where no guard of the
//! network's chain asks for more. What needs a tag change, and what has no one receiver, is left to
//! software.

use std::net::IpAddr;

use api::types::MacAddr;
use tc_flows::{
    Action, EtherType, Hook, Ipv4Match, Ipv4Prefix, Ipv6Match, Ipv6Prefix, Match, Offload, Payload,
    VlanTpid,
};

use super::{
    Purpose,
    rules::{Entrance, Rules, wire},
    segment::{Allowed, Member, Part, Segment, Tag},
};

/// Prios of fused rules: those of one prio have one ethertype. Odd, since no trap stands where
/// there are no chains.
mod prio {
    pub(super) const IPV4: u16 = 1;
    pub(super) const IPV6: u16 = 3;
    pub(super) const ARP: u16 = 5;
    pub(super) const TAGGED: u16 = 7;
    pub(super) const SERVICE_TAGGED: u16 = 9;
}

impl Segment {
    /// The fused rules of a part of this segment.
    pub(super) fn fused(
        &self,
        part: &Part,
        entrances: &[(Entrance, Option<&Member>)],
        out: &mut Rules,
    ) {
        if !self.chainless {
            return;
        }
        for (entrance, sender) in entrances {
            let all = sender.is_some_and(|sender| part.addresses(&sender.port));
            let receivers = self.members.iter().filter(|receiver| {
                (all || part.addresses(&receiver.port))
                    && receiver.tag == entrance.tag
                    && Hook::ingress(receiver.ifindex) != entrance.hook
                    && !(entrance.isolated && receiver.isolated)
            });
            for receiver in receivers {
                self.fused_to(receiver, *entrance, *sender, out);
            }
        }
    }

    fn fused_to(
        &self,
        receiver: &Member,
        Entrance { hook, tag, .. }: Entrance,
        sender: Option<&Member>,
        out: &mut Rules,
    ) {
        let sources: Vec<Option<MacAddr>> = match sender {
            Some(sender) => sender.macs.iter().copied().map(Some).collect(),
            None => vec![None],
        };
        let one = |mac: &&MacAddr| !self.shared.contains(*mac);
        for mac in receiver.macs.iter().filter(one) {
            let why = self.why(Purpose::FusedUnicast(*mac), Some(&receiver.port));
            for source in &sources {
                for payload in unguarded(sender, *source) {
                    let (prio, matched) = within(tag, payload);
                    let matched = matched.dst(wire(*mac));
                    let matched = match source {
                        Some(source) => matched.src(wire(*source)),
                        None => matched,
                    };
                    let actions = [Action::Redirect(receiver.ifindex)];
                    out.add_for(Offload::SkipSw, hook, 0, prio, matched, actions, &why);
                }
            }
        }
    }
}

/// What may come from this address whatever is in it: of a guest (`None`: the wire) only what no
/// guard looks into.
fn unguarded(sender: Option<&Member>, source: Option<MacAddr>) -> Vec<Payload> {
    let allows = |allowed| sender.is_none_or(|sender| sender.allow.contains(&allowed));
    let ipv4 = allows(Allowed::DhcpServer);
    let ipv6 = ipv4 && allows(Allowed::Router);
    let checked = sender.and_then(|sender| sender.sources.as_deref()).zip(source);
    let Some((sources, source)) = checked else {
        let all = [(EtherType::IPV4, ipv4), (EtherType::IPV6, ipv6), (EtherType::ARP, true)];
        return all.into_iter().filter(|(_, may)| *may).map(|(kind, _)| kind.into()).collect();
    };
    let payload = |address: IpAddr, length: u8| -> Option<Payload> {
        match address {
            // ice does not look at an IPv4 address of zero, whatever its mask.
            IpAddr::V4(address) if ipv4 && !(address.is_unspecified() && length > 0) => {
                Some(Ipv4Match::any().src_in(Ipv4Prefix::new(address, length)?).into())
            }
            IpAddr::V6(address) if ipv6 => {
                Some(Ipv6Match::any().src_in(Ipv6Prefix::new(address, length)?).into())
            }
            _ => None,
        }
    };
    let prefixes = sources.prefixes(source).into_iter();
    prefixes.filter_map(|prefix| payload(prefix.addr(), prefix.prefix_len())).collect()
}

/// The payload in this tag, and the prio of such rules.
fn within(tag: Tag, payload: Payload) -> (u16, Match) {
    match tag {
        Some((tpid, vid)) => {
            let prio = match tpid {
                VlanTpid::Dot1Q => prio::TAGGED,
                VlanTpid::Dot1Ad => prio::SERVICE_TAGGED,
            };
            (prio, Match::vlan_with(tpid, vid, payload))
        }
        None => {
            let matched = Match::ethertype(payload);
            let prio = match EtherType::new(matched.protocol()) {
                Some(EtherType::IPV4) => prio::IPV4,
                Some(EtherType::IPV6) => prio::IPV6,
                _ => prio::ARP,
            };
            (prio, matched)
        }
    }
}
