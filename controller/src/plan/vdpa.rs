//! Beside the programs: the vDPA devices of adapters whose configuration says `vdpa = "manage"`.
//!
//! In: what can make devices where ([`VdpaView`](crate::world::VdpaView)), and the ports whose
//! places are named beforehand: by the port's own `function`, or by its guest's `backings`. A QEMU
//! needs its device before it starts, so whatever was only found is too late here. Out: the devices
//! that there should be, each under a name that says whose it is: of all others nothing is said, and
//! so they are left alone.

use std::collections::BTreeMap;

use api::{
    resources::{Backing, PortFunction},
    types::{Id, MacAddr},
};

use super::{Finding, PortPlan};
use crate::{
    eswitch::vdpa::{ManagementName, NewVdpaDevice},
    intent::Intent,
    world::{AdapterView, VdpaView},
};

/// What the names of our devices begin with.
const OURS: &str = "eswd-";

/// The vDPA devices that an adapter should have, by place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VdpaProgram {
    /// The devices.
    pub devices: BTreeMap<String, VdpaWanted>,
}

/// A vDPA device that is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VdpaWanted {
    /// The port that is the reason for it.
    pub port: Id,
    /// What is to make it.
    pub management: ManagementName,
    /// Its address: the port's first; the guest's own choice where it has none.
    pub mac: Option<MacAddr>,
}

impl VdpaWanted {
    /// How it is made, under our name for this place.
    pub fn device(&self, place: &str, adapter: &Id) -> NewVdpaDevice {
        NewVdpaDevice {
            name: device_name(place, adapter),
            management: self.management.clone(),
            mac: self.mac,
            mtu: None,
        }
    }
}

/// The place of a VF.
pub fn vf_place(index: u16) -> String {
    format!("vf{index}")
}

/// Our name for the vDPA device of a place, `eswd-vf3@pci-0000:03:00.0`. An adapter's id has no `@`.
pub fn device_name(place: &str, adapter: &Id) -> String {
    format!("{OURS}{place}@{adapter}")
}

/// Whether a vDPA device of this name may be one of ours.
pub fn is_ours(name: &str) -> bool {
    name.starts_with(OURS)
}

/// The place that a vDPA device of this name is for, where it is one of ours for this adapter.
pub fn place_of<'n>(name: &'n str, adapter: &str) -> Option<&'n str> {
    let (place, of) = name.strip_prefix(OURS)?.rsplit_once('@')?;
    (of == adapter && !place.is_empty()).then_some(place)
}

/// Plans the vDPA devices of one adapter, where they are ours to manage. What becomes of each port's
/// is noted in `ports`.
pub fn program(
    adapter_id: &Id,
    adapter: &AdapterView,
    intent: &Intent,
    ports: &mut BTreeMap<Id, PortPlan>,
) -> Option<VdpaProgram> {
    // A PF without a netdev of its own, as virtio's, has no mode; its VFs make devices all the same.
    let is_there = |view: &&VdpaView| adapter.mode.is_some() || !view.managements.is_empty();
    let view = adapter.vdpa.as_ref().filter(is_there)?;
    let mut in_order: Vec<_> = intent.ports.iter().collect();
    in_order.sort_by_key(|(id, port)| (port.created, *id));
    let mut program = VdpaProgram::default();
    for (id, port) in in_order {
        let Some(place) = named_place(adapter_id, adapter, intent, &port.spec.function) else {
            continue;
        };
        let outcome = match (program.devices.get(&place), view.managements.get(&place)) {
            (Some(first), _) => Err(Finding::new(
                "PlaceTaken",
                format!("port `{}`, which was created first, has it; delete one", first.port),
            )),
            (None, None) => Err(Finding::new(
                "VdpaManagementMissing",
                format!(
                    "nothing makes vDPA devices for {place} of adapter `{adapter_id}` (`vdpa \
                     mgmtdev show`); load the VF's vDPA driver (mlx5_vdpa, vp_vdpa), correct \
                     `vdpa_management`, or run the daemon in the initial network namespace"
                ),
            )),
            (None, Some(management)) => {
                let wanted = VdpaWanted {
                    port: id.clone(),
                    management: management.clone(),
                    mac: port.spec.macs.first().copied(),
                };
                program.devices.insert(place.clone(), wanted);
                Ok(place)
            }
        };
        if let Some(plan) = ports.get_mut(id) {
            plan.vdpa = Some((adapter_id.clone(), outcome));
        }
    }
    Some(program)
}

/// Where on this adapter a port is said to be before its guest is there.
fn named_place(
    adapter_id: &Id,
    adapter: &AdapterView,
    intent: &Intent,
    function: &PortFunction,
) -> Option<String> {
    match function {
        PortFunction::Vf { adapter, index } => (adapter == adapter_id).then(|| vf_place(*index)),
        PortFunction::Netdev { adapter, name } => (adapter == adapter_id).then(|| name.clone()),
        PortFunction::GuestVf { guest, device } => {
            match intent.guests.get(guest)?.spec.backings.get(device)? {
                Backing::Vf { adapter, index } => (adapter == adapter_id).then(|| vf_place(*index)),
                Backing::Netdev { name } => {
                    adapter.representors.contains_key(name).then(|| name.clone())
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use api::resources::{EswitchMode, GuestSpec, PortSpec};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{
        intent::{Change, Claims},
        plan::{Plan, plan},
        world::World,
    };

    const NIC: &str = "pci-0000:03:00.0";

    fn id(text: &str) -> Id {
        text.parse().unwrap()
    }

    fn management(vf: u16) -> ManagementName {
        ManagementName { bus: Some("pci".into()), device: format!("0000:03:00.{}", vf + 2) }
    }

    /// A NIC whose first two VFs can have vDPA devices.
    fn world(managed: bool) -> World {
        let managements = (0..2).map(|vf| (vf_place(vf), management(vf))).collect();
        let adapter = AdapterView {
            handle: "pci/0000:03:00.0".into(),
            mode: Some(EswitchMode::Switchdev),
            vdpa: managed.then_some(VdpaView { managements, devices: BTreeMap::new() }),
            ..AdapterView::default()
        };
        World { adapters: [(id(NIC), adapter)].into(), ..World::default() }
    }

    fn with_ports(world: &World, ports: &[(&str, serde_json::Value)]) -> Plan {
        let mut intent = Intent::default();
        let guest: GuestSpec = serde_json::from_value(json!({
            "backings": {"vf0": {"vf": {"adapter": NIC, "index": 1}}},
        }))
        .unwrap();
        intent.apply(Change::Guest(id("vm1"), Some(guest)));
        for (name, function) in ports {
            let spec: PortSpec = serde_json::from_value(json!({
                "function": function,
                "attachments": [],
                "macs": ["02:00:00:00:00:01", "02:00:00:00:00:02"],
            }))
            .unwrap();
            intent.apply(Change::Port(id(name), Some(spec)));
        }
        plan(world, &intent, &Claims::default(), &BTreeMap::new())
    }

    fn vf(index: u16) -> serde_json::Value {
        json!({"vf": {"adapter": NIC, "index": index}})
    }

    #[test]
    fn a_vf_that_a_port_or_its_guest_names_gets_a_device_with_the_ports_first_address() {
        let guest_vf = json!({"guest_vf": {"guest": "vm1", "device": "vf0"}});
        let plan = with_ports(&world(true), &[("a", vf(0)), ("b", guest_vf)]);
        let program = &plan.vdpa[&id(NIC)];
        let found: Vec<_> = program
            .devices
            .iter()
            .map(|(place, wanted)| (place.as_str(), wanted.port.as_str(), &wanted.management))
            .collect();
        assert_eq!(found, [("vf0", "a", &management(0)), ("vf1", "b", &management(1))]);
        let device = program.devices["vf0"].device("vf0", &id(NIC));
        assert_eq!(device.name, "eswd-vf0@pci-0000:03:00.0");
        assert_eq!(device.mac, Some(MacAddr([2, 0, 0, 0, 0, 1])));
    }

    #[test]
    fn a_guest_whose_backing_was_only_found_gets_none() {
        let unnamed = json!({"guest_vf": {"guest": "vm1", "device": "vf1"}});
        let plan = with_ports(&world(true), &[("a", unnamed)]);
        assert!(plan.vdpa[&id(NIC)].devices.is_empty() && plan.ports[&id("a")].vdpa.is_none());
    }

    #[test]
    fn without_a_management_device_or_on_a_place_that_is_taken_the_port_says_so() {
        let plan = with_ports(&world(true), &[("a", vf(0)), ("b", vf(0)), ("c", vf(7))]);
        let reason = |port: &str| match &plan.ports[&id(port)].vdpa {
            Some((_, Err(finding))) => finding.reason,
            Some((_, Ok(_))) => "wanted",
            None => "none",
        };
        assert_eq!(["a", "b", "c"].map(reason), ["wanted", "PlaceTaken", "VdpaManagementMissing"]);
    }

    #[test]
    fn a_pf_that_has_no_mode_has_devices_where_its_vfs_make_them_and_else_nothing_is_said_of_it() {
        let mut world = world(true);
        let adapter = world.adapters.get_mut(&id(NIC)).unwrap();
        adapter.mode = None;
        let plan = with_ports(&world, &[("a", vf(0))]);
        assert!(plan.vdpa[&id(NIC)].devices.contains_key("vf0"));

        let adapter = world.adapters.get_mut(&id(NIC)).unwrap();
        adapter.vdpa.as_mut().unwrap().managements.clear();
        let plan = with_ports(&world, &[("a", vf(0))]);
        assert!(plan.vdpa.is_empty() && plan.ports[&id("a")].vdpa.is_none());
    }

    #[test]
    fn where_the_configuration_does_not_say_manage_nothing_is_planned() {
        let plan = with_ports(&world(false), &[("a", vf(0))]);
        assert!(plan.vdpa.is_empty() && plan.ports[&id("a")].vdpa.is_none());
    }

    proptest! {
        #[test]
        fn a_name_of_ours_leads_back_to_its_place_and_no_other_adapter(
            place in "[a-z0-9.@-]{1,15}",
            adapter in "[A-Za-z0-9_:-][A-Za-z0-9._:-]{0,20}",
            other in "[A-Za-z0-9_:-][A-Za-z0-9._:-]{0,20}",
        ) {
            let name = device_name(&place, &id(&adapter));
            prop_assert_eq!(place_of(&name, &adapter), Some(place.as_str()));
            prop_assert!(other == adapter || place_of(&name, &other).is_none());
        }

        #[test]
        fn no_name_without_our_beginning_is_ours(name in "[a-z0-9@.-]{0,30}") {
            prop_assume!(!name.starts_with("eswd-"));
            prop_assert_eq!(place_of(&name, "soft-lab"), None);
        }
    }
}
