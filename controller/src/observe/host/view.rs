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
                         (an rtnetlink message holds about 200)",
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
