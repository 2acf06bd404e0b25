//! Rates and priorities on adapters with representors: what of them a port does not get.
//!
//! In: a port's spec. Out: findings. No frame passes that should not.

use api::resources::{NetworkKind, PortSpec};

use super::{Finding, legacy::priority_needs_vlan};
use crate::intent::Intent;

/// What of a port's rates and priorities cannot be had.
pub(super) fn unmet(intent: &Intent, spec: &PortSpec) -> impl Iterator<Item = Finding> {
    let limited = spec.qos.is_some_and(|qos| qos.tx_max.is_some() || qos.tx_min.is_some());
    let rate = limited.then(|| {
        Finding::new(
            "RateUnsupported",
            "nothing on this adapter keeps rates; use an adapter in legacy mode",
        )
    });
    priority(intent, spec).into_iter().chain(rate)
}

fn priority(intent: &Intent, port: &PortSpec) -> Option<Finding> {
    let attachment =
        port.attachments.iter().find(|a| a.priority.is_some_and(|priority| priority.get() > 0))?;
    let network = intent.networks.get(&attachment.network)?;
    Some(match network.spec.kind {
        NetworkKind::Vlan(_) => Finding::new(
            "PriorityUnsupported",
            "frames leave with priority 0: VLAN priorities are for adapters in legacy mode",
        ),
        NetworkKind::Flat | NetworkKind::Isolated => priority_needs_vlan(&attachment.network),
    })
}
