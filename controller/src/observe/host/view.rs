//! From what the kernel told to how an adapter looks.
//!
//! In: one configured adapter and the [`Facts`] of one look. Out: its [`AdapterView`]. Pure: no
//! I/O. What is missing becomes a problem with a remedy, never a guess.

use std::collections::BTreeMap;

use api::resources::EswitchMode;
use tc_flows::Ifindex;

use super::{
    link::{Link, LinkTable, VfTable},
    pattern,
};
use crate::{
    config::AdapterConfig,
    eswitch::{
        EswitchError, KernelRefusal,
        devlink::{DevlinkMode, DevlinkName, DevlinkPort, Flavour},
    },
    world::{AdapterView, NetdevView, VfView},
};

/// A configured adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Adapter {
    /// A NIC.
    Nic(Nic),
    /// Plain netdevs.
    Software(Software),
}

/// A configured NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Nic {
    /// Its device.
    pub(super) device: DevlinkName,
    /// The uplink that the configuration names.
    pub(super) uplink: Option<String>,
}

/// A configured software adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Software {
    /// `soft-NAME`.
    handle: String,
    /// The uplink that the configuration names.
    uplink: Option<String>,
    /// The representors' names.
    patterns: Vec<String>,
}

impl TryFrom<&AdapterConfig> for Adapter {
    type Error = EswitchError;

    fn try_from(config: &AdapterConfig) -> Result<Self, Self::Error> {
        let invalid = EswitchError::Configuration;
        match (&config.handle, &config.software) {
            (Some(handle), None) => Ok(Adapter::Nic(Nic {
                device: handle.parse().map_err(invalid)?,
                uplink: config.uplink.clone(),
            })),
            (None, Some(name)) => Ok(Adapter::Software(Software {
                handle: format!("soft-{name}"),
                uplink: config.uplink.clone(),
                patterns: config.representors.clone(),
            })),
            _ => Err(invalid("an adapter needs exactly one of `handle` and `software`".into())),
        }
    }
}

/// What devlink says about a device's eswitch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Eswitch {
    /// There is no such devlink device in our network namespace.
    Absent,
    /// The device has no eswitch to configure.
    Fixed,
    /// The mode it is in.
    Mode(DevlinkMode),
    /// The kernel would not tell.
    Refused(KernelRefusal),
}

/// What one look found.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    /// The netdevs of our network namespace.
    pub(super) links: LinkTable,
    /// The devlink ports.
    pub(super) ports: Vec<DevlinkPort>,
    /// The eswitches, by device.
    pub(super) eswitches: BTreeMap<DevlinkName, Eswitch>,
    /// The kernel drivers' names, by device.
    pub(super) drivers: BTreeMap<DevlinkName, String>,
    /// The VFs of PFs in legacy mode.
    pub(super) vfs: BTreeMap<Ifindex, Result<VfTable, KernelRefusal>>,
}

impl Facts {
    fn netdev_of(&self, port: &DevlinkPort) -> Option<&Link> {
        self.links.by_index(port.ifindex?)
    }

    /// A device's ports to the wire that have a netdev, in order of their numbers.
    fn physical_ports(&self, device: &DevlinkName) -> Vec<&Link> {
        let mut ports: Vec<&DevlinkPort> = self
            .ports
            .iter()
            .filter(|port| port.device == *device && port.flavour == Some(Flavour::Physical))
            .collect();
        ports.sort_by_key(|port| (port.number, port.index));
        ports.into_iter().filter_map(|port| self.netdev_of(port)).collect()
    }
}

impl Nic {
    /// The PF's netdev, where the NIC is in legacy mode and has one: a port to the wire, or, where
    /// devlink knows none, a netdev of the device.
    pub(super) fn legacy_pf<'a>(&'a self, facts: &'a Facts) -> Option<&'a Link> {
        match facts.eswitches.get(&self.device) {
            None | Some(Eswitch::Absent | Eswitch::Fixed | Eswitch::Mode(DevlinkMode::Legacy)) => {}
            Some(Eswitch::Mode(_) | Eswitch::Refused(_)) => return None,
        }
        let mut candidates = facts.physical_ports(&self.device);
        if candidates.is_empty() {
            candidates = facts.links.of_device(&self.device).collect();
        }
        self.choose(&candidates)
    }

    /// The candidate that the configuration names, else the first.
    fn choose<'a>(&self, candidates: &[&'a Link]) -> Option<&'a Link> {
        let named = candidates.iter().find(|link| self.uplink.as_ref() == Some(&link.name));
        named.or(candidates.first()).copied()
    }

    fn view(&self, facts: &Facts) -> AdapterView {
        let mut view = AdapterView {
            handle: self.device.to_string(),
            driver: facts.drivers.get(&self.device).cloned(),
            ..AdapterView::default()
        };
        match facts.eswitches.get(&self.device) {
            Some(Eswitch::Mode(DevlinkMode::Switchdev)) => self.fill_switchdev(facts, &mut view),
            Some(Eswitch::Mode(DevlinkMode::Other(mode))) => view.problems.push(format!(
                "{} is in eswitch mode {mode}, which this version does not know; set it with \
                 `devlink dev eswitch set {} mode switchdev` (or legacy)",
                self.device, self.device
            )),
            Some(Eswitch::Refused(refusal)) => view.problems.push(refusal.to_string()),
            Some(Eswitch::Mode(DevlinkMode::Legacy)) => {
                view.mode = Some(EswitchMode::Legacy);
                self.fill_legacy(facts, &mut view);
            }
            Some(Eswitch::Absent | Eswitch::Fixed) | None => {
                self.fill_legacy(facts, &mut view);
                view.mode = view.pf.as_ref().map(|_| EswitchMode::Legacy);
            }
        }
        view
    }

    fn fill_switchdev(&self, facts: &Facts, view: &mut AdapterView) {
        view.mode = Some(EswitchMode::Switchdev);
        let uplink = self.switchdev_uplink(facts, &mut view.problems);
        view.switch_id = uplink.and_then(|link| link.switch_id.clone());
        view.uplink = uplink.map(Link::view);
        for port in self.vf_ports(facts, &mut view.problems) {
            let Some(vf) = port.vf else { continue };
            let representor = facts.netdev_of(port).map(Link::view);
            view.vfs.insert(vf, VfView { representor, settings: None });
        }
    }

    fn switchdev_uplink<'a>(
        &self,
        facts: &'a Facts,
        problems: &mut Vec<String>,
    ) -> Option<&'a Link> {
        if let Some(name) = &self.uplink {
            let named = facts.links.by_name(name);
            if named.is_none() {
                problems.push(format!(
                    "the uplink `{name}` is not there; correct `uplink` in the configuration, or \
                     leave it out to take the physical port's netdev"
                ));
            }
            return named;
        }
        let ports = facts.physical_ports(&self.device);
        match ports.as_slice() {
            [] => problems.push(format!(
                "{} has no physical port with a netdev in this network namespace; name one with \
                 `uplink` in the configuration, or move it here",
                self.device
            )),
            [_] => {}
            [first, ..] => problems.push(format!(
                "{} has {} physical ports; {} is taken, name another with `uplink` in the \
                 configuration",
                self.device,
                ports.len(),
                first.name
            )),
        }
        ports.first().copied()
    }

    /// The ports that stand for this host's VFs of this PF.
    fn vf_ports<'a>(
        &self,
        facts: &'a Facts,
        problems: &mut Vec<String>,
    ) -> impl Iterator<Item = &'a DevlinkPort> {
        let local = |port: &&DevlinkPort| {
            port.device == self.device
                && port.flavour == Some(Flavour::PciVf)
                && port.controller == 0
                && !port.external
        };
        let mut ports: Vec<&DevlinkPort> = facts.ports.iter().filter(local).collect();
        let first_pf = ports.first().and_then(|port| port.pf);
        if ports.iter().any(|port| port.pf != first_pf) {
            // One devlink device for several PFs: the handle's function says which.
            let own = self.device.pci_function().or(first_pf);
            let others = ports.iter().filter(|port| port.pf != own).count();
            problems.push(format!(
                "{others} VF representors of {} belong to other PFs than {}; they are left alone: \
                 name the other PF's own handle in the configuration",
                self.device,
                own.map_or("its own".into(), |pf| format!("PF {pf}")),
            ));
            ports.retain(|port| port.pf == own);
        }
        ports.into_iter()
    }

    fn fill_legacy(&self, facts: &Facts, view: &mut AdapterView) {
        let Some(pf) = self.legacy_pf(facts) else {
            view.problems.push(self.absence(facts));
            return;
        };
        view.pf = Some(pf.view());
        match facts.vfs.get(&pf.ifindex) {
            Some(Ok(table)) => {
                if table.count as usize != table.settings.len() {
                    view.problems.push(format!(
                        "{} has {} VFs but the kernel told the settings of {}; use fewer VFs \
                         (an rtnetlink message holds about 330)",
                        pf.name,
                        table.count,
                        table.settings.len()
                    ));
                }
                view.vfs.extend(table.settings.iter().map(|(vf, settings)| {
                    (*vf, VfView { representor: None, settings: Some(settings.clone()) })
                }));
            }
            Some(Err(refusal)) => view.problems.push(refusal.to_string()),
            None => {}
        }
    }

    /// Why there is no PF netdev, and what to do.
    fn absence(&self, facts: &Facts) -> String {
        let device = &self.device;
        match (facts.drivers.get(device), facts.eswitches.get(device)) {
            (Some(driver), _) => format!(
                "{device} is there, with driver {driver}, but has no netdev in this network \
                 namespace; move it here, or give the device a driver that makes one"
            ),
            (None, Some(Eswitch::Mode(_) | Eswitch::Fixed)) => format!(
                "{device} has no netdev in this network namespace; move it here with \
                 `devlink dev reload {device} netns`, or run eswitchd there"
            ),
            (None, _) => format!(
                "{device} is not there: no devlink device and no netdev of that name; load its \
                 driver, or correct `handle` in the configuration"
            ),
        }
    }
}

impl Software {
    fn view(&self, facts: &Facts) -> AdapterView {
        let uplink = self.uplink.as_ref().and_then(|name| facts.links.by_name(name));
        let problems = match (&self.uplink, uplink) {
            (Some(name), None) => vec![format!(
                "the uplink `{name}` is not there; create it, or correct `uplink` in the \
                 configuration"
            )],
            _ => Vec::new(),
        };
        let is_representor = |link: &&Link| {
            self.uplink.as_ref() != Some(&link.name)
                && self.patterns.iter().any(|pattern| pattern::matches(pattern, &link.name))
        };
        let representors: BTreeMap<String, NetdevView> = facts
            .links
            .iter()
            .filter(is_representor)
            .map(|link| (link.name.clone(), link.view()))
            .collect();
        AdapterView {
            handle: self.handle.clone(),
            mode: Some(EswitchMode::Software),
            uplink: uplink.map(Link::view),
            representors,
            problems,
            ..AdapterView::default()
        }
    }
}

impl Adapter {
    /// How it looks.
    pub(super) fn view(&self, facts: &Facts) -> AdapterView {
        match self {
            Adapter::Nic(nic) => nic.view(facts),
            Adapter::Software(software) => software.view(facts),
        }
    }

    /// The NIC that it is.
    pub(super) fn nic(&self) -> Option<&Nic> {
        match self {
            Adapter::Nic(nic) => Some(nic),
            Adapter::Software(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use api::{
        resources::{VfSettings, VlanProto},
        types::MacAddr,
    };

    use super::*;

    const DEVICE: &str = "pci/0000:03:00.1";

    fn device() -> DevlinkName {
        DEVICE.parse().unwrap()
    }

    fn link(ifindex: u32, name: &str) -> Link {
        Link {
            ifindex: Ifindex::new(ifindex).unwrap(),
            name: name.into(),
            mac: Some(MacAddr([2, 0, 0, 0, 0, ifindex as u8])),
            switch_id: Some("abcd".into()),
            parent: None,
        }
    }

    fn port(index: u32, flavour: Flavour, ifindex: u32) -> DevlinkPort {
        DevlinkPort {
            device: device(),
            index,
            flavour: Some(flavour),
            number: (flavour == Flavour::Physical).then_some(index),
            pf: None,
            vf: None,
            controller: 0,
            external: false,
            ifindex: Some(ifindex),
            netdev: None,
        }
    }

    fn vf_port(pf: u16, vf: u16, ifindex: u32) -> DevlinkPort {
        let index = 100 * u32::from(pf) + u32::from(vf);
        DevlinkPort { pf: Some(pf), vf: Some(vf), ..port(index, Flavour::PciVf, ifindex) }
    }

    fn settings(vid: u16) -> VfSettings {
        VfSettings {
            mac: MacAddr([2, 0, 0, 0, 1, 0]),
            vlan: vid,
            vlan_proto: VlanProto::Dot1Q,
            spoof_check: Some(true),
            link_state: None,
            trust: None,
        }
    }

    fn nic(uplink: Option<&str>) -> Nic {
        Nic { device: device(), uplink: uplink.map(str::to_owned) }
    }

    /// A NIC in switchdev mode with two VFs.
    fn switchdev() -> Facts {
        Facts {
            links: [link(2, "p0"), link(3, "rep0"), link(4, "rep1"), link(9, "bond0")]
                .into_iter()
                .collect(),
            ports: vec![port(0, Flavour::Physical, 2), vf_port(1, 0, 3), vf_port(1, 1, 4)],
            eswitches: [(device(), Eswitch::Mode(DevlinkMode::Switchdev))].into(),
            drivers: [(device(), "mlx5_core".to_owned())].into(),
            vfs: BTreeMap::new(),
        }
    }

    fn representor_names(view: &AdapterView) -> Vec<(u16, Option<&str>)> {
        view.vfs
            .iter()
            .map(|(vf, view)| (*vf, view.representor.as_ref().map(|rep| rep.name.as_str())))
            .collect()
    }

    #[test]
    fn in_switchdev_mode_ports_say_who_is_uplink_and_whose_representor_a_netdev_is() {
        let view = nic(None).view(&switchdev());
        assert_eq!(view.mode, Some(EswitchMode::Switchdev));
        assert_eq!(view.driver.as_deref(), Some("mlx5_core"));
        assert_eq!(view.uplink.as_ref().unwrap().name, "p0");
        assert_eq!(view.switch_id.as_deref(), Some("abcd"));
        assert_eq!(representor_names(&view), [(0, Some("rep0")), (1, Some("rep1"))]);
        assert!(view.problems.is_empty() && view.pf.is_none());
    }

    #[test]
    fn vfs_of_another_hosts_controller_are_not_ours() {
        let mut facts = switchdev();
        facts.ports.push(DevlinkPort { controller: 1, external: true, ..vf_port(1, 0, 9) });
        let view = nic(None).view(&facts);
        assert_eq!(representor_names(&view), [(0, Some("rep0")), (1, Some("rep1"))]);
    }

    #[test]
    fn where_one_device_holds_several_pfs_the_handles_function_says_which_is_meant() {
        let mut facts = switchdev();
        facts.ports.insert(0, vf_port(0, 0, 9));
        let view = nic(None).view(&facts);
        assert_eq!(representor_names(&view), [(0, Some("rep0")), (1, Some("rep1"))]);
        assert!(view.problems[0].contains("1 VF representors"), "{:?}", view.problems);
    }

    #[test]
    fn a_port_whose_netdev_is_not_here_leaves_its_vf_without_a_representor() {
        let mut facts = switchdev();
        facts.ports[2].ifindex = None;
        let view = nic(None).view(&facts);
        assert_eq!(representor_names(&view), [(0, Some("rep0")), (1, None)]);
    }

    #[test]
    fn the_uplink_that_the_configuration_names_wins_and_must_be_there() {
        let view = nic(Some("bond0")).view(&switchdev());
        assert_eq!(view.uplink.unwrap().name, "bond0");
        let view = nic(Some("bond7")).view(&switchdev());
        assert_eq!(view.uplink, None);
        assert!(view.problems[0].contains("`bond7` is not there; correct"), "{:?}", view.problems);
    }

    #[test]
    fn of_several_physical_ports_the_lowest_is_taken_and_that_is_said() {
        let mut facts = switchdev();
        facts.ports.insert(0, port(1, Flavour::Physical, 9));
        let view = nic(None).view(&facts);
        assert_eq!(view.uplink.unwrap().name, "p0");
        assert!(view.problems[0].contains("name another with `uplink`"), "{:?}", view.problems);
    }

    #[test]
    fn in_legacy_mode_the_physical_ports_netdev_carries_the_vf_settings() {
        let mut facts = switchdev();
        facts.eswitches.insert(device(), Eswitch::Mode(DevlinkMode::Legacy));
        let table = VfTable { count: 2, settings: [(0, settings(5)), (1, settings(0))].into() };
        facts.vfs.insert(Ifindex::new(2).unwrap(), Ok(table));
        let view = nic(None).view(&facts);
        assert_eq!(view.mode, Some(EswitchMode::Legacy));
        assert_eq!(view.pf.as_ref().unwrap().name, "p0");
        assert_eq!(view.uplink, None);
        assert_eq!(view.vfs[&0], VfView { representor: None, settings: Some(settings(5)) });
        assert!(view.problems.is_empty(), "{:?}", view.problems);
    }

    #[test]
    fn a_nic_that_devlink_does_not_know_is_legacy_on_the_devices_own_netdev() {
        let pf = Link { parent: Some(device()), ..link(5, "ens1") };
        for eswitch in [Eswitch::Absent, Eswitch::Fixed] {
            let facts = Facts {
                links: [link(4, "other"), pf.clone()].into_iter().collect(),
                eswitches: [(device(), eswitch)].into(),
                ..Facts::default()
            };
            assert_eq!(nic(None).legacy_pf(&facts), Some(&pf));
            let view = nic(None).view(&facts);
            assert_eq!(view.mode, Some(EswitchMode::Legacy));
            assert_eq!(view.pf.unwrap().name, "ens1");
        }
    }

    #[test]
    fn vfs_that_the_kernel_does_not_tell_are_a_problem() {
        let mut facts = switchdev();
        facts.eswitches.insert(device(), Eswitch::Mode(DevlinkMode::Legacy));
        let table = VfTable { count: 250, settings: [(0, settings(0))].into() };
        facts.vfs.insert(Ifindex::new(2).unwrap(), Ok(table));
        let view = nic(None).view(&facts);
        assert!(view.problems[0].contains("250 VFs"), "{:?}", view.problems);
    }

    #[test]
    fn what_the_kernel_refuses_is_told_in_its_own_words() {
        let refusal = KernelRefusal {
            errno: 1,
            message: "not for you".into(),
            what: "read the eswitch mode".into(),
        };
        let mut facts = switchdev();
        facts.eswitches.insert(device(), Eswitch::Refused(refusal.clone()));
        let view = nic(None).view(&facts);
        assert_eq!((view.mode, view.pf, view.vfs.len()), (None, None, 0));
        assert_eq!(view.problems, [refusal.to_string()]);
    }

    #[test]
    fn absence_has_a_remedy_that_fits_its_reason() {
        let absent = |facts: &Facts| nic(None).view(facts).problems.join("");
        let nothing = Facts::default();
        assert!(absent(&nothing).contains("load its driver, or correct `handle`"));
        let bound =
            Facts { drivers: [(device(), "vfio-pci".to_owned())].into(), ..Facts::default() };
        assert!(absent(&bound).contains("with driver vfio-pci"));
        assert_eq!(nic(None).view(&bound).mode, None);
    }

    #[test]
    fn a_software_adapter_takes_its_netdevs_by_name_but_never_its_uplink() {
        let adapter = Software {
            handle: "soft-lab".into(),
            uplink: Some("tap-up".into()),
            patterns: vec!["tap*".into(), "one".into()],
        };
        let facts = Facts {
            links: [link(2, "tap0"), link(3, "tap-up"), link(4, "one"), link(5, "oneself")]
                .into_iter()
                .collect(),
            ..Facts::default()
        };
        let view = adapter.view(&facts);
        assert_eq!(view.uplink.as_ref().unwrap().name, "tap-up");
        let names: Vec<&str> = view.representors.keys().map(String::as_str).collect();
        assert_eq!(names, ["one", "tap0"]);
        assert_eq!((view.handle.as_str(), view.mode), ("soft-lab", Some(EswitchMode::Software)));
        assert!(view.problems.is_empty());
    }
}
