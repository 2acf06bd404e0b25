//! The reference: a small L2 switch that knows MAC tables and VLAN rules and nothing of tc.
//!
//! In: what is wanted, and what stands for each port. Out: what becomes of a frame. It is what the
//! planner's program is held against by a walk (`controller/tests/switch.rs`), and by real frames
//! (`tests/netns/tests/packets.rs`); so nothing of the planner may be used here.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use api::{
    resources::{
        AdminState, Allowance, Multicast, NetworkKind, NetworkSpec, PortSpec, Promiscuous,
        UnknownUnicast, VlanProto,
    },
    types::{Id, IpPrefix, MacAddr, Vid},
};
use controller::{
    config::UplinkUse,
    intent::{Intent, Stored},
};
use tc_flows::{Body, Frame, Layer4, Mac, Tag as FrameTag, VlanId, VlanTpid};

/// RFC 4291, appendix A.
pub(crate) fn eui64(Mac([a, b, c, d, e, f]): Mac) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// What becomes of a frame: copies by interface, and what the host gets.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Fate {
    /// Each with the interface that it leaves by.
    pub(crate) copies: BTreeSet<(u32, Frame)>,
    /// The frame as the host gets it.
    pub(crate) to_host: Option<Frame>,
}

/// The reference: an L2 switch with MAC tables and VLANs.
pub(crate) struct Reference<'a> {
    intent: &'a Intent,
    members: BTreeMap<Id, Member>,
    uplink: Uplink,
    /// The networks that work: those with a member, and of two that look alike on the uplink the one
    /// that came first.
    segments: Vec<Segment<'a>>,
}

/// The uplink.
#[derive(Clone, Copy)]
pub(crate) struct Uplink {
    /// Its interface.
    pub(crate) interface: u32,
    /// Its own address.
    pub(crate) mac: MacAddr,
    /// Whether it is the host's, too.
    pub(crate) is_for: UplinkUse,
}

/// A network with the ports that are attached to it and pass frames.
struct Segment<'a> {
    network: &'a NetworkSpec,
    attached: Vec<(&'a Id, Tag)>,
}

/// What stands for a port: its interface, and the addresses that it has.
pub(crate) struct Member {
    pub(crate) interface: u32,
    pub(crate) macs: BTreeSet<MacAddr>,
    /// The groups that its guest asks for, where that is known.
    pub(crate) groups: Option<BTreeSet<MacAddr>>,
}

/// What a frame has outside; none where it is untagged.
pub(crate) type Tag = Option<(VlanTpid, VlanId)>;

fn vlan(vid: Vid) -> VlanId {
    VlanId::new(vid.get()).unwrap()
}

/// The copy that leaves with this tag, of a frame whose own tag is stripped.
fn copy(stripped: &Frame, tag: Tag) -> Frame {
    let mut frame = stripped.clone();
    frame.tags.splice(0..0, tag.map(|(tpid, vid)| FrameTag::new(tpid, vid)));
    frame
}

impl Segment<'_> {
    fn uplink_tag(&self) -> Option<Tag> {
        match self.network.kind {
            NetworkKind::Flat => Some(None),
            NetworkKind::Isolated => None,
            NetworkKind::Vlan(tag) => {
                let tpid = match tag.proto {
                    VlanProto::Dot1Q => VlanTpid::Dot1Q,
                    VlanProto::Dot1Ad => VlanTpid::Dot1Ad,
                };
                Some(Some((tpid, vlan(tag.vid))))
            }
        }
    }
}

impl<'a> Reference<'a> {
    /// The switch for what is wanted, where these stand for the ports.
    pub(crate) fn new(
        intent: &'a Intent,
        members: BTreeMap<Id, Member>,
        uplink: Uplink,
    ) -> Reference<'a> {
        let mut networks: Vec<_> = intent.networks.iter().collect();
        networks.sort_by_key(|(_, network)| network.number);
        let passes = |(id, port): &(&Id, &Stored<PortSpec>)| {
            port.spec.admin_state == AdminState::Up && !members[*id].macs.is_empty()
        };
        let mut segments: Vec<Segment<'_>> = Vec::new();
        let mut seen = BTreeSet::new();
        for (id, network) in networks {
            let attached = intent.ports.iter().filter(passes).flat_map(|(port, stored)| {
                // Untagged on the wire, a guest's own tags would name networks there.
                let flat = network.spec.kind == NetworkKind::Flat;
                let mine = stored.spec.attachments.iter();
                let mine = mine.filter(move |a| a.network == *id && !(a.qinq && flat));
                mine.map(move |a| (port, a.tag.map(|vid| (VlanTpid::Dot1Q, vlan(vid)))))
            });
            let segment = Segment { network: &network.spec, attached: attached.collect() };
            if !segment.attached.is_empty()
                && segment.uplink_tag().is_none_or(|tag| seen.insert(tag))
            {
                segments.push(segment);
            }
        }
        Reference { intent, members, uplink, segments }
    }

    fn interface(&self, port: &Id) -> u32 {
        self.members[port].interface
    }

    fn owns(&self, port: &Id, mac: Mac) -> bool {
        self.members[port].macs.contains(&MacAddr(mac.0))
    }

    fn promiscuous(&self, port: &Id) -> bool {
        self.intent.ports[port].spec.promiscuous == Promiscuous::Allow
    }

    /// Whether a frame to a group is for this port.
    fn hears(&self, segment: &Segment<'_>, port: &Id, group: Mac) -> bool {
        let groups = self.members[port].groups.as_ref();
        segment.network.multicast == Multicast::Flood
            || group == Mac([0xff; 6])
            || groups.is_none_or(|groups| groups.contains(&MacAddr(group.0)))
    }

    /// Whether ports have it only as one of their pairs: then others may have it, too.
    fn shared(&self, segment: &Segment<'_>, mac: Mac) -> bool {
        segment.attached.iter().any(|(port, _)| {
            let own = &self.intent.ports[*port].spec.macs;
            self.owns(port, mac) && !own.contains(&MacAddr(mac.0))
        })
    }

    fn knows(&self, segment: &Segment<'_>, mac: Mac) -> bool {
        segment.attached.iter().any(|(port, _)| self.owns(port, mac))
    }

    /// Whether the addresses inside are the port's.
    fn may_send(&self, port: &Id, frame: &Frame) -> bool {
        let spec = &self.intent.ports[port].spec;
        if spec.ips.is_empty() {
            return true;
        }
        let from = MacAddr(frame.src.0);
        let of_pairs = |named: Option<MacAddr>| {
            spec.allowed_address_pairs.iter().filter(move |p| p.mac == named).map(|p| p.ip)
        };
        let mut ips: Vec<IpPrefix> = of_pairs(Some(from)).collect();
        if spec.macs.contains(&from) || ips.is_empty() {
            ips.extend(spec.ips.iter().copied().chain(of_pairs(None)));
        }
        let has = |ip: IpAddr| ips.iter().any(|own| own.contains(ip));
        match frame.body {
            Body::Ipv4 { src, layer4, .. } => {
                let asks = layer4 == Layer4::Udp { src: 68, dst: 67 };
                has(src.into()) || src.is_unspecified() && asks
            }
            Body::Ipv6 { src, layer4, .. } => {
                let looks = matches!(layer4, Layer4::Icmp { kind: 135, .. });
                has(src.into()) || src == eui64(frame.src) || src.is_unspecified() && looks
            }
            Body::Arp { op, sha, sip, .. } => {
                let probes = sip.is_unspecified() && op == 1;
                op <= 2 && sha == frame.src && (has(sip.into()) || probes)
            }
            _ => frame.ethertype == 0x8035 || spec.ethertypes.contains(&frame.ethertype),
        }
    }

    /// What becomes of a frame that comes in here.
    pub(crate) fn fate_from_port(&self, port: &Id, frame: &Frame) -> Fate {
        let mut fate = Fate::default();
        let link_local = frame.dst.0[..5] == [1, 0x80, 0xc2, 0, 0] && frame.dst.0[5] < 0x10;
        let allows = |what| self.intent.ports[port].spec.allow.contains(&what);
        let keeps = self.intent.ports[port].spec.attachments.iter().any(|a| a.qinq);
        let mut stripped = Frame { tags: Vec::new(), ..frame.clone() };
        let tag = match frame.tags.as_slice() {
            [] => None,
            [tag] if tag.tpid == VlanTpid::Dot1Q && keeps => {
                stripped = frame.clone();
                None
            }
            [tag] if tag.tpid == VlanTpid::Dot1Q => {
                (tag.vid.get() != 0).then_some((VlanTpid::Dot1Q, tag.vid))
            }
            _ => return fate,
        };
        let found = self.segments.iter().find(|segment| segment.attached.contains(&(port, tag)));
        let Some(segment) = found else { return fate };
        if link_local
            && !(allows(Allowance::LinkLocalGroups) && tag.is_none() && stripped.tags.is_empty())
        {
            return fate;
        }
        let unchecked = link_local && frame.tags.is_empty();
        if !self.owns(port, frame.src) || !(unchecked || self.may_send(port, frame)) {
            return fate;
        }
        let from = |what| match (what, frame.body) {
            (Allowance::DhcpServer, Body::Ipv4 { layer4: Layer4::Udp { src, .. }, .. }) => {
                src == 67
            }
            (Allowance::DhcpServer, Body::Ipv6 { layer4: Layer4::Udp { src, .. }, .. }) => {
                src == 547
            }
            (
                Allowance::RouterAdvertisements,
                Body::Ipv6 { layer4: Layer4::Icmp { kind, .. }, .. },
            ) => kind == 134,
            _ => false,
        };
        let guarded = [Allowance::DhcpServer, Allowance::RouterAdvertisements];
        if guarded.into_iter().any(|what| from(what) && !allows(what)) {
            return fate;
        }
        let isolated = |port: &Id| self.intent.ports[port].spec.isolated;
        let unknown_out = segment.network.unknown_unicast == UnknownUnicast::Uplink;
        let group = frame.dst.0[0] & 1 == 1;
        let known = self.knows(segment, frame.dst);
        for (other, tag) in segment.attached.iter().filter(|(id, _)| *id != port) {
            if isolated(port) && isolated(other) {
                continue;
            }
            let owns = self.owns(other, frame.dst);
            let hears = group && self.hears(segment, other, frame.dst);
            if hears || owns || !group && !known && self.promiscuous(other) {
                fate.copies.insert((self.interface(other), copy(&stripped, *tag)));
            }
        }
        if let Some(tag) = segment.uplink_tag()
            && (group || unknown_out && (!known || self.shared(segment, frame.dst)))
        {
            fate.copies.insert((self.uplink.interface, copy(&stripped, tag)));
        }
        fate
    }

    /// What becomes of a frame that comes in here.
    pub(crate) fn fate_from_uplink(&self, frame: &Frame) -> Fate {
        let to_host = || Fate { to_host: Some(frame.clone()), ..Fate::default() };
        let on_uplink =
            |tag: Tag| self.segments.iter().find(|segment| segment.uplink_tag() == Some(tag));
        let shared = self.uplink.is_for == UplinkUse::Shared;
        let any = self.segments.iter().any(|segment| segment.uplink_tag().is_some());
        if shared && any && frame.dst.0 == self.uplink.mac.0 {
            return to_host();
        }
        let owned = frame.tags.first().and_then(|tag| on_uplink(Some((tag.tpid, tag.vid))));
        let (segment, stripped) = match (owned, frame.tags.as_slice()) {
            (Some(segment), [_, inner @ ..]) => {
                (segment, Frame { tags: inner.to_vec(), ..frame.clone() })
            }
            (_, []) => match on_uplink(None) {
                Some(segment) => (segment, frame.clone()),
                None => return to_host(),
            },
            (_, [tag]) if tag.tpid == VlanTpid::Dot1Q && tag.vid.get() == 0 => {
                match on_uplink(None) {
                    Some(segment) => (segment, Frame { tags: Vec::new(), ..frame.clone() }),
                    None => return to_host(),
                }
            }
            _ => return to_host(),
        };
        let mut fate = Fate::default();
        let group = frame.dst.0[0] & 1 == 1;
        let known = self.knows(segment, frame.dst);
        for (port, tag) in &segment.attached {
            let owns = self.owns(port, frame.dst);
            let hears = group && self.hears(segment, port, frame.dst);
            if hears || owns || !group && !known && self.promiscuous(port) {
                fate.copies.insert((self.interface(port), copy(&stripped, *tag)));
            }
        }
        if shared && segment.uplink_tag() == Some(None) && (group || !known) {
            fate.to_host = Some(stripped);
        }
        fate
    }
}
