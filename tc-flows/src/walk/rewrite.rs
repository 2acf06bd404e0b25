//! What an action makes of the frame itself.
//!
//! In come an action and a frame, which is changed as the kernel changes it; out goes whether it
//! goes on. What leads frames elsewhere or ends a rule is not decided here.

use std::net::Ipv6Addr;
use std::sync::Arc;

use super::Unmodelled;
use crate::action::{Action, Ct, MungeKind, Nat, Pedit, PeditField, PeditHeader};
use crate::frame::{Body, Fragment, Frame, Layer4, Tag};
use crate::ident::Direction;

/// How a frame goes on after it was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rewritten {
    On,
    /// The action could not be done, and the frame is dropped.
    Dropped,
    /// It goes on, but how it looks then cannot be told.
    Unknown(Unmodelled),
}

/// A frame in the hands of a rule.
pub(super) struct Passing {
    pub(super) frame: Frame,
    /// It lost its Ethernet header and has no other yet.
    pub(super) headless: bool,
}

impl Passing {
    /// What `action` makes of it. Actions that only lead frames somewhere change nothing.
    pub(super) fn rewrite(&mut self, action: &Action) -> Rewritten {
        let unknown = || Rewritten::Unknown(Unmodelled::Action(action.clone()));
        match action {
            // `skb_eth_pop` and `skb_eth_push` in net/core/skbuff.c.
            Action::EthPush { dst, src } if self.headless => {
                (self.frame.dst, self.frame.src) = (*dst, *src);
                self.headless = false;
                return Rewritten::On;
            }
            Action::EthPush { .. } => return Rewritten::Dropped,
            _ if self.headless => return unknown(),
            Action::EthPop if !self.frame.tags.is_empty() => return Rewritten::Dropped,
            Action::EthPop => {
                self.headless = true;
                return Rewritten::On;
            }
            _ => {}
        }
        let frame = &mut self.frame;
        match action {
            Action::VlanPush { tpid, vid } => frame.tags.insert(0, Tag::new(*tpid, *vid)),
            Action::VlanPushPrio { tpid, vid, prio } => {
                frame.tags.insert(0, Tag { tpid: *tpid, vid: *vid, pcp: prio.get() });
            }
            Action::VlanPop => drop(frame.tags.splice(..frame.tags.len().min(1), [])),
            Action::VlanModify { tpid, vid } => {
                if let Some(outer) = frame.tags.first_mut() {
                    *outer = Tag { tpid: *tpid, vid: *vid, pcp: outer.pcp };
                }
            }
            Action::VlanModifyPrio { tpid, vid, prio } => {
                if let Some(outer) = frame.tags.first_mut() {
                    *outer = Tag { tpid: *tpid, vid: *vid, pcp: prio.get() };
                }
            }
            Action::Nat(nat) if !translate(nat, frame) => return unknown(),
            Action::Pedit(pedit) if !edit(pedit, frame) => return unknown(),
            // `nf_reset_ct` and no other trace; what looks a connection up is another matter.
            Action::Ct(ct) if **ct != Ct::Clear => return unknown(),
            // `tunnel_key_act` in net/sched/act_tunnel_key.c.
            Action::TunnelSet(key) => frame.tunnel = Some(Arc::clone(key)),
            Action::TunnelRelease => frame.tunnel = None,
            Action::Mpls(_) => return unknown(),
            // Checksums and what the kernel notes beside a frame are nothing that a key or a
            // receiver sees.
            _ => {}
        }
        Rewritten::On
    }
}

/// Where the network header starts is where an IP header is read and written, and that is a second
/// tag where there is one (the outer is in the skb's metadata).
fn has_network_header(frame: &Frame) -> bool {
    frame.tags.len() <= 1
}

/// `tcf_nat_act` in net/sched/act_nat.c takes whatever it finds for an IPv4 header.
fn translate(nat: &Nat, frame: &mut Frame) -> bool {
    let in_place = has_network_header(frame);
    let Body::Ipv4 { src, dst, .. } = &mut frame.body else { return false };
    let address = match nat.direction {
        Direction::Egress => src,
        Direction::Ingress => dst,
    };
    let (mask, before) = (nat.mask(), address.to_bits());
    if (before ^ nat.old.to_bits()) & mask == 0 {
        *address = (nat.new.to_bits() & mask | before & !mask).into();
    }
    in_place
}

/// `tcf_pedit_act` in net/sched/act_pedit.c: a header that is not there ends the action, and the
/// frame goes on.
fn edit(pedit: &Pedit, frame: &mut Frame) -> bool {
    for munge in &pedit.munges {
        let done = match munge.0 {
            MungeKind::EthDst(mac) => {
                frame.dst = mac;
                Edited::Done
            }
            MungeKind::EthSrc(mac) => {
                frame.src = mac;
                Edited::Done
            }
            MungeKind::Ipv6Src(to) => edit_ipv6(frame, |src, _| *src = to),
            MungeKind::Ipv6Dst(to) => edit_ipv6(frame, |_, dst| *dst = to),
            MungeKind::Field { field, add, value, mask } => {
                edit_field(frame, field, |before| written(field, before, add, value, mask))
            }
        };
        match done {
            Edited::Done => {}
            Edited::NoHeader => return true,
            Edited::Unknown => return false,
        }
    }
    true
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Edited {
    Done,
    NoHeader,
    Unknown,
}

fn edit_ipv6(frame: &mut Frame, write: impl Fn(&mut Ipv6Addr, &mut Ipv6Addr)) -> Edited {
    let in_place = has_network_header(frame);
    match &mut frame.body {
        Body::Ipv6 { src, dst, .. } if in_place => {
            write(src, dst);
            Edited::Done
        }
        // Whatever stands there is written over.
        _ => Edited::Unknown,
    }
}

/// The field's number after it was set or added to. The kernel adds words as its processor reads
/// them, with the bytes of the packet in the wrong order on a little-endian one: a carry goes to
/// the byte behind.
fn written(field: PeditField, before: u32, add: bool, value: u32, mask: u32) -> u32 {
    let shift = field.place().shift;
    let word = |number: u32| u32::from_ne_bytes((number << shift).to_be_bytes());
    let (current, value, mask) = (word(before), word(value), word(mask));
    let value = if add { current.wrapping_add(value) & mask } else { value };
    let after = current & !mask ^ value;
    u32::from_be_bytes(after.to_ne_bytes()) >> shift & field.place().mask
}

fn edit_field(frame: &mut Frame, field: PeditField, write: impl Fn(u32) -> u32) -> Edited {
    let in_place = has_network_header(frame);
    let byte = |at: &mut u8| *at = write(u32::from(*at)) as u8;
    let port = |at: &mut u16| *at = write(u32::from(*at)) as u16;
    match (field, &mut frame.body) {
        (PeditField::Ipv4Src, Body::Ipv4 { src, .. }) if in_place => {
            *src = write(src.to_bits()).into();
        }
        (PeditField::Ipv4Dst, Body::Ipv4 { dst, .. }) if in_place => {
            *dst = write(dst.to_bits()).into();
        }
        (PeditField::Ipv4Tos, Body::Ipv4 { tos, .. })
        | (PeditField::Ipv6TrafficClass, Body::Ipv6 { tos, .. })
            if in_place =>
        {
            byte(tos);
        }
        (PeditField::Ipv4Ttl, Body::Ipv4 { ttl, .. })
        | (PeditField::Ipv6HopLimit, Body::Ipv6 { ttl, .. })
            if in_place =>
        {
            byte(ttl);
        }
        // No key sees them.
        (PeditField::Ipv6FlowLabel | PeditField::Ipv6PayloadLen, Body::Ipv6 { .. }) if in_place => {
        }
        (
            PeditField::TcpSrc
            | PeditField::TcpDst
            | PeditField::TcpFlags
            | PeditField::UdpSrc
            | PeditField::UdpDst,
            body,
        ) => {
            // `pedit_l4_skb_offset` asks for `skb->protocol`.
            let v4 = matches!(body, Body::Ipv4 { .. });
            let (Body::Ipv4 { layer4, fragment, .. } | Body::Ipv6 { layer4, fragment, .. }) = body
            else {
                return Edited::NoHeader;
            };
            if !in_place || v4 && *fragment == Fragment::Later {
                return Edited::NoHeader;
            }
            if !v4 && (*fragment != Fragment::No || matches!(layer4, Layer4::Ah { .. })) {
                return Edited::Unknown;
            }
            let tcp = field.place().header == PeditHeader::Tcp;
            match (field, layer4) {
                (PeditField::TcpSrc, Layer4::Tcp { src, .. })
                | (PeditField::UdpSrc, Layer4::Udp { src, .. }) => port(src),
                (PeditField::TcpDst, Layer4::Tcp { dst, .. })
                | (PeditField::UdpDst, Layer4::Udp { dst, .. }) => port(dst),
                (_, Layer4::Tcp { flags, .. }) if tcp => {
                    *flags = *flags & 0xf00 | write(u32::from(*flags & 0xff)) as u16;
                }
                _ => return Edited::NoHeader,
            }
        }
        _ => return Edited::Unknown,
    }
    Edited::Done
}
