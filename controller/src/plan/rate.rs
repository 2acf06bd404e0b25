//! Third stage, for adapters with representors: what their VFs may send, kept by devlink rate objects.
//!
//! In: ports that stand on the adapter, and its rate objects. Out: what the object of each VF is set
//! to, and findings where there is none. The object of a VF without a port limits nothing, so that
//! the next tenant inherits nothing; groups and who belongs to them are left alone. A rate that
//! cannot be kept lets no frame through that should not pass.

use std::collections::BTreeMap;

use api::{
    resources::{EswitchMode, NetworkKind, PortSpec, Qos},
    types::{Bitrate, Id},
};

use super::{
    Finding, PortPlan,
    legacy::{priority_needs_vlan, receive_rate_unsupported},
};
use crate::{
    intent::Intent,
    world::{AdapterView, LeafRate},
};

/// Bytes per second in a Mbit/s: devlink counts bytes, and drivers take whole Mbit/s only
/// (`nsim_rate_bytes_to_units`, `esw_qos_devlink_rate_to_mbps` in mlx5's `esw/qos.c`).
const MBIT_BYTES: u64 = 125_000;

/// What the rate object of each VF should be set to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RateProgram {
    /// By VF.
    pub leaves: BTreeMap<u16, LeafRate>,
}

/// Plans the rates of an adapter, from nothing; none where it has no rate objects.
pub(super) fn program(
    id: &Id,
    adapter: &AdapterView,
    intent: &Intent,
    ports: &BTreeMap<Id, PortPlan>,
) -> Option<RateProgram> {
    let leaves = &adapter.eswitch.as_ref()?.leaves;
    if adapter.mode != Some(EswitchMode::Switchdev) || leaves.is_empty() {
        return None;
    }
    let mut program =
        RateProgram { leaves: leaves.keys().map(|vf| (*vf, LeafRate::default())).collect() };
    program.take(id, intent, ports.iter());
    Some(program)
}

impl RateProgram {
    /// Frees the places where these ports stood.
    pub(super) fn release<'p>(&mut self, id: &Id, ports: impl Iterator<Item = &'p PortPlan>) {
        for plan in ports {
            if let Some(leaf) = self.leaf(id, plan) {
                *leaf = LeafRate::default();
            }
        }
    }

    /// Gives these ports their rates where they stand.
    pub(super) fn take<'p>(
        &mut self,
        id: &Id,
        intent: &Intent,
        ports: impl Iterator<Item = (&'p Id, &'p PortPlan)>,
    ) {
        for (port, plan) in ports {
            if let (Some(leaf), Some(stored)) = (self.leaf(id, plan), intent.ports.get(port)) {
                *leaf = leaf_rate(stored.spec.qos.unwrap_or_default());
            }
        }
    }

    fn leaf(&mut self, id: &Id, plan: &PortPlan) -> Option<&mut LeafRate> {
        let place = plan.place.as_ref().ok().filter(|place| place.adapter == *id)?;
        self.leaves.get_mut(&place.vf?)
    }
}

fn leaf_rate(qos: Qos) -> LeafRate {
    let bytes = |rate: Option<Bitrate>| rate.map_or(0, |rate| u64::from(rate.mbit()) * MBIT_BYTES);
    LeafRate { tx_max: bytes(qos.tx_max), tx_share: bytes(qos.tx_min) }
}

/// What of a port's rates and priorities cannot be had on this adapter.
pub(super) fn unmet(
    intent: &Intent,
    spec: &PortSpec,
    adapter: &AdapterView,
    vf: Option<u16>,
) -> impl Iterator<Item = Finding> {
    let qos = spec.qos.unwrap_or_default();
    let leaves = adapter.eswitch.as_ref().map(|eswitch| &eswitch.leaves);
    let kept = vf.is_some_and(|vf| leaves.is_some_and(|leaves| leaves.contains_key(&vf)));
    // There policers keep what can be kept by dropping.
    let policed = adapter.mode == Some(EswitchMode::Software);
    let lost = !kept && (qos.tx_min.is_some() || qos.tx_max.is_some() && !policed);
    let rate = lost.then(|| {
        Finding::new(
            "RateUnsupported",
            "nothing on this adapter keeps such rates: it has no devlink rate objects (a software \
             adapter keeps `tx_max` only); use an adapter that has, or legacy mode",
        )
    });
    let storm = (qos.flood_limit.is_some() && !policed).then(|| {
        Finding::new(
            "FloodLimitUnsupported",
            "only software adapters keep a `flood_limit`; leave it out",
        )
    });
    let received = (qos.rx_max.is_some() && !policed).then(receive_rate_unsupported);
    priority(intent, spec).into_iter().chain(rate).chain(received).chain(storm)
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        intent::{Change, Claims},
        plan,
        world::{EswitchView, NetdevView, RateView, VfView, World},
    };

    fn id(text: &str) -> Id {
        text.parse().unwrap()
    }

    /// The rates of two VFs in switchdev mode, the first with this port, and what it does not get.
    fn planned(objects: bool, port: Value) -> (Option<RateProgram>, Vec<&'static str>) {
        let vf = |number: u32| {
            let ifindex = tc_flows::Ifindex::new(number + 1).unwrap();
            let netdev = NetdevView { ifindex, name: format!("rep{number}"), mac: None };
            VfView { representor: Some(netdev), ..VfView::default() }
        };
        let leaves = (0..2).map(|vf| (vf, (100 + u32::from(vf), RateView::default())));
        let leaves = leaves.filter(|_| objects).collect();
        let adapter = AdapterView {
            handle: "a/b".into(),
            mode: Some(EswitchMode::Switchdev),
            vfs: [(0, vf(0)), (1, vf(1))].into(),
            eswitch: Some(EswitchView { leaves, ..EswitchView::default() }),
            ..AdapterView::default()
        };
        let world = World { adapters: [(id("a-b"), adapter)].into(), ..World::default() };
        let mut intent = Intent::default();
        for (name, kind) in [("flat", json!("flat")), ("blue", json!({"vlan": {"vid": 100}}))] {
            let spec = serde_json::from_value(json!({"kind": kind})).unwrap();
            intent.apply(Change::Network(id(name), Some(spec)));
        }
        let mut spec = json!({
            "function": {"vf": {"adapter": "a-b", "index": 0}},
            "attachments": [{"network": "blue"}],
            "macs": ["02:00:00:00:00:01"],
        });
        spec.as_object_mut().unwrap().extend(port.as_object().unwrap().clone());
        intent.apply(Change::Port(id("p"), Some(serde_json::from_value(spec).unwrap())));
        let plan = plan::plan(&world, &intent, &Claims::default(), &Default::default());
        let unmet = plan.ports[&id("p")].unmet.iter().map(|finding| finding.reason).collect();
        (plan.rates.get(&id("a-b")).cloned(), unmet)
    }

    #[test]
    fn a_ports_rates_are_its_vfs_rate_object_and_others_limit_nothing() {
        let qos = json!({"qos": {"tx_max": 9_500_000, "tx_min": 2_000_000}});
        let limited = LeafRate { tx_max: 10 * 125_000, tx_share: 2 * 125_000 };
        let expected = RateProgram { leaves: [(0, limited), (1, LeafRate::default())].into() };
        assert_eq!(planned(true, qos), (Some(expected), vec![]));
        let none = [(0, LeafRate::default()), (1, LeafRate::default())];
        assert_eq!(planned(true, json!({})).0, Some(RateProgram { leaves: none.into() }));
    }

    #[test]
    fn without_rate_objects_a_rate_is_a_finding() {
        let qos = json!({"qos": {"tx_max": 9_500_000}});
        assert_eq!(planned(false, qos), (None, vec!["RateUnsupported"]));
        assert_eq!(planned(false, json!({"qos": {}})), (None, vec![]));
    }

    #[test]
    fn a_limit_of_what_is_received_is_a_finding() {
        for objects in [true, false] {
            let qos = json!({"qos": {"rx_max": 9_500_000}});
            assert_eq!(planned(objects, qos).1, ["ReceiveRateUnsupported"]);
        }
    }

    #[test]
    fn a_priority_is_a_finding() {
        let on = |network: &str| {
            planned(true, json!({"attachments": [{"network": network, "priority": 5}]})).1
        };
        assert_eq!(on("blue"), ["PriorityUnsupported"]);
        assert_eq!(on("flat"), ["PriorityNeedsVlan"]);
    }
}
