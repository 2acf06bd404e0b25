//! vDPA devices: what differs between those that bear our names and those that there should be.
//!
//! Pure. A device whose address is another than it should be is removed first: what it was given
//! stays with it for its life. Devices of other names are not looked at.

use api::types::Id;

use crate::{
    eswitch::vdpa::NewVdpaDevice,
    plan::vdpa::{VdpaProgram, device_name},
    world::VdpaView,
};

/// What is to be done to one vDPA device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VdpaChange {
    /// Make it.
    Create(NewVdpaDevice),
    /// Remove the one of this name, if nobody uses it.
    Delete(String),
}

impl VdpaChange {
    /// The device's name.
    pub fn name(&self) -> &str {
        match self {
            VdpaChange::Create(device) => &device.name,
            VdpaChange::Delete(name) => name,
        }
    }
}

/// What is to be done, in order of place, at most one thing for each.
pub fn changes(adapter: &Id, has: &VdpaView, wanted: &VdpaProgram) -> Vec<VdpaChange> {
    let mut changes = Vec::new();
    for (place, device) in &has.devices {
        let right = wanted
            .devices
            .get(place)
            .is_some_and(|wanted| wanted.mac.is_none() || wanted.mac == device.mac);
        if !right {
            changes.push(VdpaChange::Delete(device_name(place, adapter)));
        }
    }
    for (place, device) in &wanted.devices {
        if !has.devices.contains_key(place) {
            changes.push(VdpaChange::Create(device.device(place, adapter)));
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use api::types::MacAddr;

    use super::*;
    use crate::{eswitch::vdpa::ManagementName, plan::vdpa::VdpaWanted, world::VdpaDeviceView};

    fn id(text: &str) -> Id {
        text.parse().unwrap()
    }

    fn view(devices: &[(&str, Option<u8>)]) -> VdpaView {
        let device = |(place, mac): &(&str, Option<u8>)| {
            let mac = mac.map(|last| MacAddr([2, 0, 0, 0, 0, last]));
            ((*place).to_owned(), VdpaDeviceView { mac })
        };
        VdpaView { devices: devices.iter().map(device).collect(), ..VdpaView::default() }
    }

    fn wanted(devices: &[(&str, Option<u8>)]) -> VdpaProgram {
        let device = |(place, mac): &(&str, Option<u8>)| {
            let wanted = VdpaWanted {
                port: id("p"),
                management: ManagementName { bus: None, device: "sim".into() },
                mac: mac.map(|last| MacAddr([2, 0, 0, 0, 0, last])),
            };
            ((*place).to_owned(), wanted)
        };
        VdpaProgram { devices: devices.iter().map(device).collect() }
    }

    fn told(has: &[(&str, Option<u8>)], wants: &[(&str, Option<u8>)]) -> Vec<String> {
        let describe = |change: VdpaChange| match change {
            VdpaChange::Create(device) => format!("+{}", device.name),
            VdpaChange::Delete(name) => format!("-{name}"),
        };
        changes(&id("nic"), &view(has), &wanted(wants)).into_iter().map(describe).collect()
    }

    #[test]
    fn what_is_there_and_right_is_left() {
        assert!(
            told(&[("vf0", Some(1)), ("vf1", Some(2))], &[("vf0", Some(1)), ("vf1", None)])
                .is_empty()
        );
    }

    #[test]
    fn what_lacks_is_made_and_what_nobody_wants_removed() {
        assert_eq!(told(&[("vf0", None)], &[("vf1", Some(1))]), ["-eswd-vf0@nic", "+eswd-vf1@nic"]);
    }

    #[test]
    fn a_device_with_another_address_is_removed_before_it_is_made_anew() {
        let (old, new) = ([("vf0", Some(1))], [("vf0", Some(2))]);
        assert_eq!(told(&old, &new), ["-eswd-vf0@nic"]);
        assert_eq!(told(&[], &new), ["+eswd-vf0@nic"]);
    }
}
