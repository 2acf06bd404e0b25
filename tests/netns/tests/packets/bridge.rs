//! The same topology as a VLAN-filtering bridge of the kernel: a second witness that owes nothing to
//! this project.
//!
//! In: a topology that a bridge can say ([`Breadth::Bridge`](crate::topology::Breadth)). Out: its
//! ends, and what such a bridge does otherwise by its nature. Source addresses are checked by it,
//! too: its ports are `locked`, and the forwarding table is written by hand.

use api::resources::{AdminState, Allowance, NetworkKind, Promiscuous};
use eswitchd_netns_tests::{Q, ends::Ends};
use lab::net::Netns;
use tc_flows::{Body, Frame, Layer4, VlanTpid};
use tempfile::TempDir;

use crate::{
    rig::{Run, batch, quiet, up},
    topology::{Topology, WIRE, inner_vid, is_link_local},
};

/// A bridge.
pub(crate) struct Bridge {
    pub(crate) ends: Run,
    _folder: TempDir,
}

fn on(is_so: bool) -> &'static str {
    if is_so { "on" } else { "off" }
}

impl Bridge {
    pub(crate) fn new(topology: &Topology) -> Bridge {
        let folder = tempfile::tempdir().unwrap();
        let room = Netns::named("witness").unwrap();
        quiet(&room);
        let mut links = vec![(WIRE, "wire".to_owned())];
        let mut ip = vec![
            "link add witness type bridge vlan_filtering 1 vlan_default_pvid 0 mcast_snooping 0"
                .to_owned(),
            "link set witness addrgenmode none up".to_owned(),
            "link add wup type veth peer name wire netns witness".to_owned(),
            "link set wup addrgenmode none master witness up".to_owned(),
        ];
        let mut bridge = vec!["link set dev wup learning off".to_owned()];
        for (id, network) in &topology.intent.networks {
            let vid = inner_vid(id);
            match network.spec.kind {
                NetworkKind::Flat => {
                    bridge.push(format!("vlan add dev wup vid {vid} pvid untagged"));
                }
                NetworkKind::Vlan(_) => bridge.push(format!("vlan add dev wup vid {vid}")),
                NetworkKind::Isolated => {}
            }
        }
        for port in 1..=topology.ports {
            let spec = topology.spec(port);
            links.push((port, format!("vm{port}")));
            ip.push(format!("link add w{port} type veth peer name vm{port} netns witness"));
            if spec.admin_state == AdminState::Down {
                continue;
            }
            ip.push(format!("link set w{port} addrgenmode none master witness up"));
            let (flood, isolated) = (on(spec.promiscuous == Promiscuous::Allow), on(spec.isolated));
            bridge.push(format!(
                "link set dev w{port} learning off locked on flood {flood} isolated {isolated}"
            ));
            for attachment in &spec.attachments {
                let vid = inner_vid(&attachment.network);
                let tagging = if attachment.tag.is_none() { " pvid untagged" } else { "" };
                bridge.push(format!("vlan add dev w{port} vid {vid}{tagging}"));
                for mac in &spec.macs {
                    bridge.push(format!("fdb add {mac} dev w{port} master static vlan {vid}"));
                }
            }
        }
        batch("ip", folder.path(), &ip);
        batch("bridge", folder.path(), &bridge);
        up(&room, folder.path(), &links);
        let ends = Run { ends: Ends::of(&room, &links, &[], folder.path()) };
        Bridge { ends, _folder: folder }
    }
}

/// What such a bridge does otherwise by its nature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Difference {
    /// It lets one group of IEEE 802.1D through where it runs no spanning tree, and lets link-local
    /// groups from the uplink to nobody.
    LinkLocalGroup,
    /// It lets a second tag pass below the first.
    SecondTag,
    /// It takes a frame with an 802.1ad tag for an untagged one.
    ProviderTag,
    /// It takes the tag by which it calls a network from those who send without one, too.
    OwnTag,
    /// It knows nothing of router advertisements and DHCP.
    Guard,
}

impl Difference {
    /// The difference that may show in what becomes of this frame.
    pub(crate) fn of(topology: &Topology, from: u32, frame: &Frame) -> Option<Difference> {
        if is_link_local(frame.dst) {
            return Some(Difference::LinkLocalGroup);
        }
        match frame.tags.as_slice() {
            [_, _, ..] => return Some(Difference::SecondTag),
            [tag] if tag.tpid == VlanTpid::Dot1Ad => return Some(Difference::ProviderTag),
            [tag] if tag.tpid == Q => {
                let calls = |network| inner_vid(network) == tag.vid.get();
                let untagged_here =
                    match from {
                        WIRE => topology.intent.networks.iter().any(|(id, network)| {
                            network.spec.kind == NetworkKind::Flat && calls(id)
                        }),
                        port => {
                            let attachments = &topology.spec(port).attachments;
                            attachments.iter().any(|a| a.tag.is_none() && calls(&a.network))
                        }
                    };
                if untagged_here {
                    return Some(Difference::OwnTag);
                }
            }
            _ => {}
        }
        let needs = match frame.body {
            Body::Ipv4 { layer4: Layer4::Udp { src: 67, .. }, .. }
            | Body::Ipv6 { layer4: Layer4::Udp { src: 547, .. }, .. } => Allowance::DhcpServer,
            Body::Ipv6 { layer4: Layer4::Icmp { kind: 134, .. }, .. } => {
                Allowance::RouterAdvertisements
            }
            _ => return None,
        };
        let guarded = from != WIRE && !topology.spec(from).allow.contains(&needs);
        guarded.then_some(Difference::Guard)
    }
}
