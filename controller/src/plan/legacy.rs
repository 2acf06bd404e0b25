//! Third stage, for adapters in legacy mode: the settings of each VF on its PF.
//!
//! The NIC itself switches by MAC and VLAN; what it cannot be told becomes a finding of the port.
//! A VF without a port has its link disabled and nothing else set, so that the next tenant
//! inherits nothing.

use std::collections::BTreeMap;

use api::{
    resources::{AdminState, NetworkKind, PortSpec, Promiscuous, VfLinkState, VlanProto},
    types::{Bitrate, Id, MacAddr, Priority},
};

use super::{
    Finding, PortPlan,
    switchdev::{network_missing, qinq_without_vlan},
};
use crate::{
    intent::Intent,
    world::{AdapterView, NetdevView},
};

/// What every VF of an adapter should be set to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyProgram {
    /// The netdev on which the settings are made.
    pub pf: Option<NetdevView>,
    /// The settings by VF index.
    pub vfs: BTreeMap<u16, VfProgram>,
}

/// What one VF should be set to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VfProgram {
    /// The port that is the reason for it; none where the VF is nobody's.
    pub port: Option<Id>,
    /// Administrative MAC address; zero where the VF is nobody's.
    pub mac: MacAddr,
    /// Port VLAN; 0 for none.
    pub vlan: u16,
    /// Its protocol.
    pub vlan_proto: VlanProto,
    /// Priority in it.
    pub vlan_priority: Priority,
    /// The most that the VF may send.
    pub tx_max: Option<Bitrate>,
    /// What it may send at least.
    pub tx_min: Option<Bitrate>,
    /// Source address check.
    pub spoof_check: bool,
    /// Link state.
    pub link_state: VfLinkState,
    /// Whether the VF may ask the NIC for every frame.
    pub trust: bool,
}

impl VfProgram {
    /// What a VF without a port is set to.
    fn released() -> Self {
        VfProgram {
            port: None,
            mac: MacAddr([0; 6]),
            vlan: 0,
            vlan_proto: VlanProto::Dot1Q,
            vlan_priority: Priority::default(),
            tx_max: None,
            tx_min: None,
            spoof_check: true,
            link_state: VfLinkState::Disable,
            trust: false,
        }
    }
}

/// Plans the VF settings of one adapter. Wishes that legacy mode cannot fulfil are added to `ports`.
pub fn program(
    adapter_id: &Id,
    adapter: &AdapterView,
    intent: &Intent,
    ports: &mut BTreeMap<Id, PortPlan>,
) -> LegacyProgram {
    let mut vfs: BTreeMap<u16, VfProgram> =
        adapter.vfs.keys().map(|index| (*index, VfProgram::released())).collect();
    for (id, plan) in ports.iter_mut() {
        let Ok(place) = &plan.place else { continue };
        let (Some(index), Some(port)) = (place.vf, intent.ports.get(id)) else { continue };
        if place.adapter != *adapter_id {
            continue;
        }
        let mut settings = VfProgram {
            port: Some(id.clone()),
            mac: plan.macs.first().copied().unwrap_or(MacAddr([0; 6])),
            link_state: VfLinkState::Auto,
            // By the permission, not by what the guest asks for now: some drivers reset a running
            // VF whenever this is written.
            trust: port.spec.promiscuous == Promiscuous::Allow,
            tx_max: port.spec.qos.and_then(|qos| qos.tx_max),
            tx_min: port.spec.qos.and_then(|qos| qos.tx_min),
            ..VfProgram::released()
        };
        // A VF that is trusted may set further addresses by itself.
        if plan.macs.len() > 1 && !settings.trust {
            plan.unmet.push(Finding::new(
                "OneMacOnly",
                format!(
                    "in legacy mode a VF has one address, {}, unless it is trusted: allow it more \
                     with promiscuous: allow, or use switchdev mode",
                    settings.mac
                ),
            ));
        }
        match attachment(adapter_id, intent, &port.spec.attachments) {
            Ok(tag) => {
                (settings.vlan, settings.vlan_proto) = (tag.vid, tag.proto);
                settings.vlan_priority = tag.priority;
                plan.unmet.extend(tag.unmet);
            }
            Err(finding) => {
                plan.unmet.push(finding);
                settings.link_state = VfLinkState::Disable;
            }
        }
        if port.spec.qos.is_some_and(|qos| qos.flood_limit.is_some()) {
            plan.unmet.push(Finding::new(
                "FloodLimitUnsupported",
                "in legacy mode the NIC keeps no `flood_limit`; leave it out",
            ));
        }
        if port.spec.qos.is_some_and(|qos| qos.rx_max.is_some()) {
            plan.unmet.push(receive_rate_unsupported());
        }
        if let Some(finding) = beyond_legacy(&port.spec) {
            plan.unmet.push(finding);
            settings.link_state = VfLinkState::Disable;
        }
        if port.spec.admin_state == AdminState::Down || plan.macs.is_empty() {
            settings.link_state = VfLinkState::Disable;
        }
        vfs.insert(index, settings);
    }
    LegacyProgram { pf: adapter.pf.clone(), vfs }
}

/// The port VLAN of a VF.
struct PortVlan {
    /// 0 for an untagged network.
    vid: u16,
    proto: VlanProto,
    priority: Priority,
    /// What cannot be had, and lets no frame through that should not pass.
    unmet: Option<Finding>,
}

/// The port VLAN that stands for a port's attachments.
fn attachment(
    adapter_id: &Id,
    intent: &Intent,
    attachments: &[api::resources::Attachment],
) -> Result<PortVlan, Finding> {
    let [only] = attachments else {
        return Err(Finding::new(
            "OneNetworkOnly",
            "in legacy mode a port takes part in exactly one network, untagged; its link is \
             disabled",
        ));
    };
    if only.tag.is_some() {
        return Err(Finding::new(
            "TrunkUnsupported",
            "in legacy mode the NIC does not isolate guest tags; attach the network untagged, or \
             use switchdev mode; the link is disabled",
        ));
    }
    let network =
        intent.networks.get(&only.network).ok_or_else(|| network_missing(&only.network))?;
    if network.spec.adapter.as_ref().is_some_and(|bound_to| bound_to != adapter_id) {
        return Err(Finding::new(
            "NetworkElsewhere",
            format!("network `{}` is for another adapter; the link is disabled", only.network),
        ));
    }
    if let Some(finding) = qinq_without_vlan(intent, only) {
        return Err(finding);
    }
    match network.spec.kind {
        NetworkKind::Flat => Ok(PortVlan {
            vid: 0,
            proto: VlanProto::Dot1Q,
            priority: Priority::default(),
            unmet: only.priority.map(|_| priority_needs_vlan(&only.network)),
        }),
        NetworkKind::Vlan(tag) => Ok(PortVlan {
            vid: tag.vid.get(),
            proto: tag.proto,
            priority: only.priority.unwrap_or_default(),
            unmet: (only.qinq && tag.proto == VlanProto::Dot1Q).then(qinq_unsupported),
        }),
        NetworkKind::Isolated => Err(Finding::new(
            "IsolationUnsupported",
            "in legacy mode the NIC cannot keep a network off the wire; use a VLAN of its own, or \
             switchdev mode; the link is disabled",
        )),
    }
}

/// With a port VLAN of 802.1Q a NIC drops what a guest has tagged.
fn qinq_unsupported() -> Finding {
    Finding::new(
        "QinqUnsupported",
        "in legacy mode the guest's own tags pass only inside a network's 802.1ad tag; use a \
         network with `proto: 802.1ad`, or switchdev mode",
    )
}

/// What a NIC does not keep guests from in legacy mode.
fn beyond_legacy(spec: &PortSpec) -> Option<Finding> {
    let (reason, what) = if !spec.ips.is_empty() {
        ("IpsUnsupported", "check IP addresses (`ips`)")
    } else if spec.isolated {
        ("PortIsolationUnsupported", "keep ports from each other (`isolated`)")
    } else {
        return None;
    };
    let message =
        format!("in legacy mode the NIC cannot {what}; use switchdev mode; the link is disabled");
    Some(Finding::new(reason, message))
}

/// No NIC is told what its VFs may receive.
pub(super) fn receive_rate_unsupported() -> Finding {
    Finding::new(
        "ReceiveRateUnsupported",
        "only software adapters keep an `rx_max`: a NIC limits what its VFs send; leave it out, or \
         limit who sends to the port",
    )
}

/// A frame without a tag has no priority.
pub(super) fn priority_needs_vlan(network: &Id) -> Finding {
    Finding::new(
        "PriorityNeedsVlan",
        format!(
            "network `{network}` is untagged on the wire, and a frame without a tag has no \
             priority: leave `priority` out, or use a VLAN network"
        ),
    )
}

#[cfg(test)]
mod tests {
    use api::resources::{EswitchMode, NetworkSpec, PortSpec};
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        intent::{Change, Claims},
        plan::{self, Program},
        world::{VfView, World},
    };

    fn id(text: &str) -> Id {
        text.parse().unwrap()
    }

    /// What VF 0 of two is set to, with this port on it, and what of the port's spec cannot be had.
    fn planned(port: Value) -> (VfProgram, Vec<&'static str>) {
        let vf = VfView::default();
        let adapter = AdapterView {
            handle: "a/b".into(),
            mode: Some(EswitchMode::Legacy),
            vfs: [(0, vf.clone()), (1, vf)].into(),
            ..AdapterView::default()
        };
        let world = World { adapters: [(id("a-b"), adapter)].into(), ..World::default() };
        let mut intent = Intent::default();
        for (name, kind) in [
            ("flat", json!("flat")),
            ("blue", json!({"vlan": {"vid": 100, "proto": "802.1ad"}})),
            ("island", json!("isolated")),
            ("red", json!({"vlan": {"vid": 200}})),
        ] {
            let spec: NetworkSpec = serde_json::from_value(json!({"kind": kind})).unwrap();
            intent.apply(Change::Network(id(name), Some(spec)));
        }
        let mut spec = json!({
            "function": {"vf": {"adapter": "a-b", "index": 0}},
            "attachments": [{"network": "blue"}],
            "macs": ["02:00:00:00:00:01"],
        });
        spec.as_object_mut().unwrap().extend(port.as_object().unwrap().clone());
        let spec: PortSpec = serde_json::from_value(spec).unwrap();
        intent.apply(Change::Port(id("p"), Some(spec)));
        let plan = plan::plan(&world, &intent, &Claims::default(), &Default::default());
        let Program::VfSettings(program) = &plan.programs[&id("a-b")] else { panic!("flows") };
        assert_eq!(program.vfs[&1], VfProgram::released(), "nobody's");
        let unmet = plan.ports[&id("p")].unmet.iter().map(|finding| finding.reason).collect();
        (program.vfs[&0].clone(), unmet)
    }

    #[test]
    fn a_port_is_address_vlan_priority_rates_spoof_check_and_link() {
        let (vf, unmet) = planned(json!({
            "attachments": [{"network": "blue", "priority": 5}],
            "qos": {"tx_max": 500_000_000, "tx_min": 10_000_000},
        }));
        let expected = VfProgram {
            port: Some(id("p")),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            vlan: 100,
            vlan_proto: VlanProto::Dot1Ad,
            vlan_priority: Priority::try_from(5).unwrap(),
            tx_max: Bitrate::from_mbit(500),
            tx_min: Bitrate::from_mbit(10),
            spoof_check: true,
            link_state: VfLinkState::Auto,
            trust: false,
        };
        assert_eq!((vf, unmet), (expected, vec![]));
    }

    #[test]
    fn what_would_let_frames_through_disables_the_link() {
        for (port, reason) in [
            (json!({"attachments": [{"network": "island"}]}), "IsolationUnsupported"),
            (json!({"attachments": [{"network": "blue", "tag": 7}]}), "TrunkUnsupported"),
            (json!({"attachments": [{"network": "none"}]}), "NetworkMissing"),
            (json!({"attachments": []}), "OneNetworkOnly"),
            (json!({"attachments": [{"network": "flat", "qinq": true}]}), "QinqNeedsVlan"),
        ] {
            let (vf, unmet) = planned(port);
            assert_eq!((vf.link_state, &unmet[..]), (VfLinkState::Disable, &[reason][..]));
        }
        let (vf, _) = planned(json!({"admin_state": "down"}));
        assert_eq!(vf.link_state, VfLinkState::Disable);
    }

    #[test]
    fn a_priority_without_a_vlan_is_told_and_harms_nobody() {
        let (vf, unmet) = planned(json!({"attachments": [{"network": "flat", "priority": 5}]}));
        assert_eq!(unmet, ["PriorityNeedsVlan"]);
        assert_eq!((vf.vlan_priority, vf.link_state), (Priority::default(), VfLinkState::Auto));
    }

    #[test]
    fn a_guests_own_tags_need_a_service_tag_around_them() {
        let on = |network: &str| {
            let (vf, unmet) = planned(json!({"attachments": [{"network": network, "qinq": true}]}));
            assert_eq!(vf.link_state, VfLinkState::Auto);
            unmet
        };
        assert_eq!(on("blue"), Vec::<&str>::new());
        assert_eq!(on("red"), ["QinqUnsupported"]);
    }

    #[test]
    fn a_limit_of_what_is_received_is_told_and_harms_nobody() {
        let (vf, unmet) = planned(json!({"qos": {"rx_max": 9_500_000}}));
        assert_eq!((vf.link_state, unmet), (VfLinkState::Auto, vec!["ReceiveRateUnsupported"]));
    }

    #[test]
    fn a_second_address_needs_trust() {
        let macs = json!(["02:00:00:00:00:01", "02:00:00:00:00:02"]);
        let (vf, unmet) = planned(json!({"macs": macs}));
        assert_eq!((vf.trust, &unmet[..]), (false, &["OneMacOnly"][..]));
        let (vf, unmet) = planned(json!({"macs": macs, "promiscuous": "allow"}));
        assert_eq!((vf.trust, unmet), (true, vec![]));
    }
}
