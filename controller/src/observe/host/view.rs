//! From what the kernel told to how an adapter looks.
//!
//! In: one configured adapter and the [`Facts`] of one look. Out: its [`AdapterView`]. Pure: no
//! I/O. What is missing becomes a problem with a remedy, never a guess.

use std::collections::{BTreeMap, BTreeSet};

use api::{resources::EswitchMode, types::MacAddr};
use tc_flows::Ifindex;

use super::{
    link::{Link, LinkTable, VfTable},
    pattern,
};
use crate::{
    config::{AdapterConfig, VdpaUse},
    eswitch::{
        EswitchError, KernelRefusal,
        devlink::{
            DevlinkEswitch, DevlinkMode, DevlinkName, DevlinkPort, DevlinkRate, Flavour, RateOf,
        },
        vdpa::ManagementName,
    },
    plan::vdpa::{place_of, vf_place},
    world::{AdapterView, EswitchView, NetdevView, VdpaDeviceView, VdpaView, VfView},
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
    /// Whether its vDPA devices are ours to manage.
    pub(super) manages_vdpa: bool,
    /// Whether its mode and number of VFs are.
    pub(super) manages_eswitch: bool,
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
    /// What makes vDPA devices for them, where those are ours to manage.
    vdpa_management: Option<ManagementName>,
}

impl TryFrom<&AdapterConfig> for Adapter {
    type Error = EswitchError;

    fn try_from(config: &AdapterConfig) -> Result<Self, Self::Error> {
        let invalid = EswitchError::Configuration;
        match (&config.handle, &config.software) {
            (Some(handle), None) => Ok(Adapter::Nic(Nic {
                device: handle.parse().map_err(invalid)?,
                uplink: config.uplink.clone(),
                manages_vdpa: config.vdpa == VdpaUse::Manage,
                manages_eswitch: config.manage_eswitch,
            })),
            (None, Some(name)) => Ok(Adapter::Software(Software {
                handle: format!("soft-{name}"),
                uplink: config.uplink.clone(),
                patterns: config.representors.clone(),
                vdpa_management: config
                    .vdpa_management
                    .as_ref()
                    .filter(|_| config.vdpa == VdpaUse::Manage)
                    .and_then(|name| name.parse().ok()),
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
    /// What it is set to.
    There(DevlinkEswitch),
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
    /// The drivers of VFs, of NICs whose eswitch is ours to manage.
    pub(super) vf_drivers: BTreeMap<DevlinkName, BTreeMap<u16, String>>,
    /// The devlink rate objects.
    pub(super) rates: Vec<DevlinkRate>,
    /// The PCI addresses of VFs, by device and index.
    pub(super) vf_addresses: BTreeMap<DevlinkName, BTreeMap<u16, String>>,
    /// What makes vDPA network devices.
    pub(super) vdpa_managements: BTreeSet<ManagementName>,
    /// The vDPA devices by name, with their addresses.
    pub(super) vdpa_devices: BTreeMap<String, Option<MacAddr>>,
    /// Why the vDPA devices are not known.
    pub(super) vdpa_refusal: Option<KernelRefusal>,
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

    /// The vDPA side of the adapter of this handle, of which these places could have a device.
    fn vdpa(
        &self,
        handle: &str,
        places: impl Iterator<Item = (String, ManagementName)>,
        problems: &mut Vec<String>,
    ) -> VdpaView {
        problems.extend(self.vdpa_refusal.as_ref().map(ToString::to_string));
        let adapter = handle.replacen('/', "-", 1);
        let device = |(name, mac): (&String, &Option<MacAddr>)| {
            Some((place_of(name, &adapter)?.to_owned(), VdpaDeviceView { mac: *mac }))
        };
        VdpaView {
            managements: places.filter(|(_, name)| self.vdpa_managements.contains(name)).collect(),
            devices: self.vdpa_devices.iter().filter_map(device).collect(),
        }
    }
}

impl Nic {
    /// The vDPA side, where it is ours to manage and could be read.
    fn vdpa(&self, facts: &Facts, problems: &mut Vec<String>) -> Option<VdpaView> {
        if !self.manages_vdpa {
            return None;
        }
        let bus = &self.device.bus;
        let addresses = facts.vf_addresses.get(&self.device).into_iter().flatten();
        let places = addresses.map(|(index, address)| {
            let name = ManagementName { bus: Some(bus.clone()), device: address.clone() };
            (vf_place(*index), name)
        });
        let view = facts.vdpa(&self.device.to_string(), places, problems);
        facts.vdpa_refusal.is_none().then_some(view)
    }

    /// The PF's netdev, where the NIC is in legacy mode and has one: a port to the wire, or, where
    /// devlink knows none, a netdev of the device.
    pub(super) fn legacy_pf<'a>(&'a self, facts: &'a Facts) -> Option<&'a Link> {
        match facts.eswitches.get(&self.device) {
            None | Some(Eswitch::Absent | Eswitch::Fixed) => {}
            Some(Eswitch::There(eswitch)) if eswitch.mode == DevlinkMode::Legacy => {}
            Some(Eswitch::There(_) | Eswitch::Refused(_)) => return None,
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
            Some(Eswitch::There(eswitch)) => {
                view.eswitch = Some(self.eswitch(facts, eswitch));
                self.fill_mode(facts, eswitch.mode, &mut view);
            }
            Some(Eswitch::Refused(refusal)) => view.problems.push(refusal.to_string()),
            Some(Eswitch::Absent | Eswitch::Fixed) | None => {
                self.fill_legacy(facts, &mut view);
                view.mode = view.pf.as_ref().map(|_| EswitchMode::Legacy);
            }
        }
        for (index, driver) in facts.vf_drivers.get(&self.device).into_iter().flatten() {
            if let Some(vf) = view.vfs.get_mut(index) {
                vf.driver = Some(driver.clone());
            }
        }
        view.vdpa = self.vdpa(facts, &mut view.problems);
        view
    }

    fn fill_mode(&self, facts: &Facts, mode: DevlinkMode, view: &mut AdapterView) {
        match mode {
            DevlinkMode::Switchdev => self.fill_switchdev(facts, view),
            DevlinkMode::Legacy => {
                view.mode = Some(EswitchMode::Legacy);
                self.fill_legacy(facts, view);
            }
            DevlinkMode::Other(mode) => view.problems.push(format!(
                "{} is in eswitch mode {mode}, which this version does not know; set it with \
                 `devlink dev eswitch set {} mode switchdev` (or legacy)",
                self.device, self.device
            )),
        }
    }

    /// What devlink says of the eswitch, with the rates of this PF's VFs.
    fn eswitch(&self, facts: &Facts, eswitch: &DevlinkEswitch) -> EswitchView {
        let mut view = EswitchView {
            inline_mode: eswitch.inline_mode,
            encap: eswitch.encap,
            ..EswitchView::default()
        };
        let vfs: BTreeMap<u32, u16> = self
            .vf_ports(facts, &mut Vec::new())
            .filter_map(|port| Some((port.index, port.vf?)))
            .collect();
        for rate in facts.rates.iter().filter(|rate| rate.device == self.device) {
            match &rate.of {
                RateOf::Node(name) => {
                    view.nodes.insert(name.clone(), rate.view.clone());
                }
                RateOf::Leaf(port) => {
                    let vf = vfs.get(port).map(|vf| (*vf, (*port, rate.view.clone())));
                    view.leaves.extend(vf);
                }
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
            view.vfs.insert(vf, VfView { representor, ..VfView::default() });
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
                    (*vf, VfView { settings: Some(settings.clone()), ..VfView::default() })
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
            (None, Some(Eswitch::There(_) | Eswitch::Fixed)) => format!(
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
        let mut problems = match (&self.uplink, uplink) {
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
        let vdpa = self.vdpa_management.as_ref().map(|management| {
            let places = representors.keys().map(|name| (name.clone(), management.clone()));
            facts.vdpa(&self.handle, places, &mut problems)
        });
        AdapterView {
            handle: self.handle.clone(),
            mode: Some(EswitchMode::Software),
            vdpa: vdpa.filter(|_| facts.vdpa_refusal.is_none()),
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
        let mut view = match self {
            Adapter::Nic(nic) => nic.view(facts),
            Adapter::Software(software) => software.view(facts),
        };
        let netdevs = view.all_representors().chain(&view.uplink).chain(&view.pf);
        let mtu = |netdev: &NetdevView| {
            Some((netdev.ifindex, facts.links.by_index(netdev.ifindex.get())?.mtu?))
        };
        view.mtus = netdevs.filter_map(mtu).collect();
        view
    }

    /// Whether its vDPA devices are ours to manage.
    pub(super) fn manages_vdpa(&self) -> bool {
        match self {
            Adapter::Nic(nic) => nic.manages_vdpa,
            Adapter::Software(software) => software.vdpa_management.is_some(),
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
    use crate::world::{LeafRate, RateView};

    const DEVICE: &str = "pci/0000:03:00.1";

    fn device() -> DevlinkName {
        DEVICE.parse().unwrap()
    }

    fn link(ifindex: u32, name: &str) -> Link {
        Link {
            ifindex: Ifindex::new(ifindex).unwrap(),
            name: name.into(),
            mac: Some(MacAddr([2, 0, 0, 0, 0, ifindex as u8])),
            mtu: Some(1500 + ifindex),
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
            vlan_priority: Default::default(),
            tx_max: None,
            tx_min: None,
            spoof_check: Some(true),
            link_state: None,
            trust: None,
        }
    }

    fn nic(uplink: Option<&str>) -> Nic {
        Nic {
            device: device(),
            uplink: uplink.map(str::to_owned),
            manages_vdpa: false,
            manages_eswitch: false,
        }
    }

    fn at(mode: DevlinkMode) -> DevlinkEswitch {
        DevlinkEswitch { mode, inline_mode: None, encap: None }
    }

    /// A NIC in switchdev mode with two VFs.
    fn switchdev() -> Facts {
        Facts {
            links: [link(2, "p0"), link(3, "rep0"), link(4, "rep1"), link(9, "bond0")]
                .into_iter()
                .collect(),
            ports: vec![port(0, Flavour::Physical, 2), vf_port(1, 0, 3), vf_port(1, 1, 4)],
            eswitches: [(device(), Eswitch::There(at(DevlinkMode::Switchdev)))].into(),
            drivers: [(device(), "mlx5_core".to_owned())].into(),
            ..Facts::default()
        }
    }

    fn representor_names(view: &AdapterView) -> Vec<(u16, Option<&str>)> {
        view.vfs
            .iter()
            .map(|(vf, view)| (*vf, view.representor.as_ref().map(|rep| rep.name.as_str())))
            .collect()
    }

    #[test]
    fn the_mtus_of_an_adapters_own_netdevs_are_known() {
        let view = Adapter::Nic(nic(None)).view(&switchdev());
        let mtus: Vec<(u32, u32)> = view.mtus.iter().map(|(i, mtu)| (i.get(), *mtu)).collect();
        assert_eq!(mtus, [(2, 1502), (3, 1503), (4, 1504)]);
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
    fn an_eswitch_has_its_settings_and_the_rates_of_its_own_vfs() {
        let mut facts = switchdev();
        let eswitch = DevlinkEswitch {
            inline_mode: Some("link"),
            encap: Some(true),
            ..at(DevlinkMode::Switchdev)
        };
        facts.eswitches.insert(device(), Eswitch::There(eswitch));
        let view = |tx_max| RateView {
            rate: LeafRate { tx_max, tx_share: 0 },
            parent: Some("group".into()),
        };
        let rate = |device: &str, of, tx_max| DevlinkRate {
            device: device.parse().unwrap(),
            of,
            view: view(tx_max),
        };
        facts.rates = vec![
            rate(DEVICE, RateOf::Leaf(101), 7),
            rate(DEVICE, RateOf::Node("group".into()), 8),
            rate(DEVICE, RateOf::Leaf(0), 9),
            rate("pci/0000:99:00.0", RateOf::Leaf(100), 10),
        ];
        let expected = EswitchView {
            inline_mode: Some("link"),
            encap: Some(true),
            leaves: [(1, (101, view(7)))].into(),
            nodes: [("group".to_owned(), view(8))].into(),
        };
        assert_eq!(nic(None).view(&facts).eswitch, Some(expected));
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
        facts.eswitches.insert(device(), Eswitch::There(at(DevlinkMode::Legacy)));
        let table = VfTable { count: 2, settings: [(0, settings(5)), (1, settings(0))].into() };
        facts.vfs.insert(Ifindex::new(2).unwrap(), Ok(table));
        let view = nic(None).view(&facts);
        assert_eq!(view.mode, Some(EswitchMode::Legacy));
        assert_eq!(view.pf.as_ref().unwrap().name, "p0");
        assert_eq!(view.uplink, None);
        let expected = VfView { settings: Some(settings(5)), ..VfView::default() };
        assert_eq!(view.vfs[&0], expected);
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
        facts.eswitches.insert(device(), Eswitch::There(at(DevlinkMode::Legacy)));
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
            vdpa_management: None,
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

    fn management(name: &str) -> ManagementName {
        name.parse().unwrap()
    }

    /// Two VFs, of which the kernel lists the first as a maker of vDPA devices, and devices of all
    /// kinds of names.
    fn with_vdpa() -> Facts {
        let mac = Some(MacAddr([2, 0, 0, 0, 0, 7]));
        let addresses = [(0, "0000:03:00.2".to_owned()), (1, "0000:03:00.3".to_owned())];
        Facts {
            vf_addresses: [(device(), addresses.into())].into(),
            vdpa_managements: [management("pci/0000:03:00.2"), management("vdpasim_net")].into(),
            vdpa_devices: [
                ("eswd-vf0@pci-0000:03:00.1", mac),
                ("eswd-vf1@pci-0000:03:00.0", None),
                ("eswd-tap0@soft-lab", None),
                ("somebody's", None),
            ]
            .map(|(name, mac)| (name.to_owned(), mac))
            .into(),
            links: [link(2, "tap0"), link(3, "tap1")].into_iter().collect(),
            ..switchdev()
        }
    }

    #[test]
    fn the_vdpa_devices_of_a_nic_are_those_of_its_own_name_and_its_vfs_make_them() {
        let managing = Nic { manages_vdpa: true, ..nic(None) };
        let view = managing.view(&with_vdpa()).vdpa.unwrap();
        let makers = [("vf0".to_owned(), management("pci/0000:03:00.2"))];
        assert_eq!(view.managements, makers.into());
        let mac = Some(MacAddr([2, 0, 0, 0, 0, 7]));
        assert_eq!(view.devices, [("vf0".to_owned(), VdpaDeviceView { mac })].into());
        assert_eq!(nic(None).view(&with_vdpa()).vdpa, None, "left to others");
    }

    #[test]
    fn a_software_adapters_vdpa_devices_are_made_by_what_the_configuration_names() {
        let adapter = Software {
            handle: "soft-lab".into(),
            uplink: None,
            patterns: vec!["tap*".into()],
            vdpa_management: Some(management("vdpasim_net")),
        };
        let view = adapter.view(&with_vdpa()).vdpa.unwrap();
        assert_eq!(view.managements.len(), 2);
        assert_eq!(view.devices.keys().collect::<Vec<_>>(), ["tap0"]);
        let refusal = KernelRefusal { errno: 1, message: "no".into(), what: "list".into() };
        let refused = adapter.view(&Facts { vdpa_refusal: Some(refusal), ..with_vdpa() });
        assert!(refused.vdpa.is_none() && refused.problems[0].contains("list"), "nothing is done");
    }
}
