//! Third stage, for adapters in legacy mode: the settings of each VF on its PF.
//!
//! The NIC itself switches by MAC and VLAN; what it cannot be told becomes a finding of the port.
//! A VF without a port has its link disabled and nothing else set, so that the next tenant
//! inherits nothing.

use std::collections::BTreeMap;

use api::{
    resources::{AdminState, NetworkKind, Promiscuous, VfLinkState, VlanProto},
    types::{Id, MacAddr},
};

use super::{Finding, PortPlan, switchdev::network_missing};
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
            ..VfProgram::released()
        };
        if plan.macs.len() > 1 {
            plan.unmet.push(Finding::new(
                "OneMacOnly",
                format!(
                    "in legacy mode a VF has one address: {} is set, the others not",
                    settings.mac
                ),
            ));
        }
        match attachment(adapter_id, intent, &port.spec.attachments) {
            Ok((vlan, proto)) => (settings.vlan, settings.vlan_proto) = (vlan, proto),
            Err(finding) => {
                plan.unmet.push(finding);
                settings.link_state = VfLinkState::Disable;
            }
        }
        if port.spec.admin_state == AdminState::Down || plan.macs.is_empty() {
            settings.link_state = VfLinkState::Disable;
        }
        vfs.insert(index, settings);
    }
    LegacyProgram { pf: adapter.pf.clone(), vfs }
}

/// The port VLAN that stands for a port's attachments; 0 for an untagged network.
fn attachment(
    adapter_id: &Id,
    intent: &Intent,
    attachments: &[api::resources::Attachment],
) -> Result<(u16, VlanProto), Finding> {
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
    match network.spec.kind {
        NetworkKind::Flat => Ok((0, VlanProto::Dot1Q)),
        NetworkKind::Vlan(tag) => Ok((tag.vid.get(), tag.proto)),
        NetworkKind::Isolated => Err(Finding::new(
            "IsolationUnsupported",
            "in legacy mode the NIC cannot keep a network off the wire; use a VLAN of its own, or \
             switchdev mode; the link is disabled",
        )),
    }
}
