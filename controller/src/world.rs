//! What is there: adapters and guests as the observers saw them last.
//!
//! In: whole snapshots from `observe/` (never "do this", always "this is how it looks now").
//! Out: what `plan/` reads. Nothing here does I/O, and nothing here is believed merely because a
//! guest or a QEMU said it: a [`GuestFunction`] carries requests, not permissions.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Instant};

use api::{
    resources::{BackingSource, EswitchMode, VfSettings, Visibility},
    types::{Id, MacAddr},
};
use serde::{Deserialize, Serialize};
use tc_flows::Ifindex;

use crate::{capability::Capabilities, eswitch::vdpa::ManagementName};

/// Everything that the observers have seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct World {
    /// The host's adapters, by URL-safe id.
    pub adapters: BTreeMap<Id, AdapterView>,
    /// The guests, by id.
    pub guests: BTreeMap<Id, GuestView>,
}

/// A netdev of the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetdevView {
    /// Its interface index; a netdev that comes back has another.
    pub ifindex: Ifindex,
    /// Its name.
    pub name: String,
    /// Its own address; absent for devices without one.
    pub mac: Option<MacAddr>,
}

/// One eswitch of the host, configured and, where `mode` is there, present.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdapterView {
    /// The devlink handle, `netdevsim/netdevsim10`, or `soft-NAME`.
    pub handle: String,
    /// The kernel driver's name.
    pub driver: Option<String>,
    /// Its mode; absent while the adapter is not there.
    pub mode: Option<EswitchMode>,
    /// The id that its representors share, in hexadecimal.
    pub switch_id: Option<String>,
    /// The uplink in switchdev and software mode.
    pub uplink: Option<NetdevView>,
    /// The PF's netdev in legacy mode, on which VF settings are made.
    pub pf: Option<NetdevView>,
    /// Its VFs by index.
    pub vfs: BTreeMap<u16, VfView>,
    /// The representors of a software adapter, by name.
    pub representors: BTreeMap<String, NetdevView>,
    /// The MTUs of those netdevs.
    pub mtus: BTreeMap<Ifindex, u32>,
    /// Its vDPA devices, where the configuration says that they are ours to manage.
    pub vdpa: Option<VdpaView>,
    /// What devlink says of the eswitch besides its mode, where there is one to configure.
    pub eswitch: Option<EswitchView>,
    /// What its hardware takes, once it was asked: in switchdev mode.
    pub capabilities: Option<Arc<Capabilities>>,
    /// What could not be read, in the kernel's words.
    pub problems: Vec<String>,
}

impl AdapterView {
    /// The representors of whatever kind.
    pub fn all_representors(&self) -> impl Iterator<Item = &NetdevView> {
        let of_vfs = self.vfs.values().filter_map(|vf| vf.representor.as_ref());
        self.representors.values().chain(of_vfs)
    }
}

/// What devlink says of an eswitch besides its mode.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EswitchView {
    /// How much of a frame a VF must hand over inline.
    pub inline_mode: Option<&'static str>,
    /// Whether it can put frames into tunnels.
    pub encap: Option<bool>,
    /// Rates of VFs, by VF: the devlink port's index, and what it keeps to.
    pub leaves: BTreeMap<u16, (u32, RateView)>,
    /// Rates of groups, by name.
    pub nodes: BTreeMap<String, RateView>,
}

/// A devlink rate object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RateView {
    /// What it keeps to.
    pub rate: LeafRate,
    /// The group that it belongs to.
    pub parent: Option<String>,
}

/// Rates as devlink has them, in bytes per second; 0 for none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeafRate {
    /// At most.
    pub tx_max: u64,
    /// At least.
    pub tx_share: u64,
}

/// The vDPA side of an adapter, by place: `vf3` for a VF, the representor's name on a software
/// adapter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VdpaView {
    /// What can make a device there.
    pub managements: BTreeMap<String, ManagementName>,
    /// The devices there that bear our names.
    pub devices: BTreeMap<String, VdpaDeviceView>,
}

/// A vDPA device of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VdpaDeviceView {
    /// The address that it was given.
    pub mac: Option<MacAddr>,
}

/// A VF as the host sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VfView {
    /// Its representor, in switchdev mode.
    pub representor: Option<NetdevView>,
    /// Its settings on the PF, in legacy mode.
    pub settings: Option<VfSettings>,
    /// The host's driver of it, where the adapter's eswitch is ours to manage.
    pub driver: Option<String>,
}

/// A guest, as its QMP socket and the host's kernel show it. What was seen last is stored, so that
/// a daemon that restarts plans for its guests before it has found them again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestView {
    /// The state of the connection.
    #[serde(skip)]
    pub connection: Connection,
    /// Process id of the QEMU, from the socket's peer credentials.
    pub pid: Option<u32>,
    /// QEMU's version, as it says.
    pub qemu: Option<String>,
    /// QEMU's run state, `running`, `paused`, `inmigrate` and so on.
    pub run_state: Option<String>,
    /// Emulated PFs and their VFs, by device id.
    pub functions: BTreeMap<String, GuestFunction>,
}

/// The state of a guest's QMP connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Connection {
    /// Not connected yet.
    #[default]
    Connecting,
    /// Connected, inventory complete.
    Connected,
    /// The socket failed but QEMU is still there (or may be): what was seen last still stands.
    Interrupted {
        /// What went wrong, for people.
        reason: String,
    },
    /// The peer does not behave as QEMU does. What was seen last still stands, nothing new is taken.
    Misbehaving {
        /// What it did.
        reason: String,
    },
    /// QEMU is gone: the guest has no functions any more.
    Gone,
}

/// An emulated PF or a VF of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestFunction {
    /// Device id of the PF, where this is a VF.
    pub pf: Option<String>,
    /// Its index among that PF's VFs.
    #[serde(default)]
    pub index: Option<u16>,
    /// Where the guest sees it.
    #[serde(default)]
    pub pci: Option<PciAddress>,
    /// Whether the guest has enabled it: its BARs have addresses.
    pub enabled: bool,
    /// What the guest asks to receive; absent until a driver has set it.
    pub filter: Option<RxFilter>,
    /// What it stands on.
    pub backing: BackingView,
    /// How that was found.
    #[serde(default)]
    pub source: Option<BackingSource>,
    /// How much of what the guest does to it can be seen.
    #[serde(default)]
    pub visibility: Visibility,
}

/// A place on a guest's PCI, shown as `01:00.1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PciAddress {
    /// The bus, as the guest has numbered it.
    pub bus: u8,
    /// The slot, 0 to 31.
    pub slot: u8,
    /// The function, 0 to 7.
    pub function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{:x}", self.bus, self.slot, self.function)
    }
}

/// What a guest's driver asks to receive, from `query-rx-filter` (`qapi/net.json` of QEMU).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RxFilter {
    /// The address in force.
    pub main_mac: MacAddr,
    /// Further unicast addresses; empty when the table overflowed.
    pub unicast: Vec<MacAddr>,
    /// Whether the unicast table overflowed, so that `unicast` says nothing.
    pub unicast_overflow: bool,
    /// Group addresses; empty when that table overflowed.
    #[serde(default)]
    pub multicast: Vec<MacAddr>,
    /// Whether the multicast table overflowed, so that `multicast` says nothing.
    #[serde(default)]
    pub multicast_overflow: bool,
    /// Whether it asks for all multicast.
    #[serde(default)]
    pub all_multicast: bool,
    /// VLANs it listens to, 0 for priority tags among them; empty, too, where it filters none out.
    pub vlans: Vec<u16>,
    /// Whether it asks for every frame.
    pub promiscuous: bool,
}

/// What a guest's function stands on, and whether that is believed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum BackingView {
    /// A netdev of the host; the kernel confirms that this QEMU holds it.
    Netdev {
        /// Its name.
        name: String,
    },
    /// A VF of a device; the kernel confirms that this QEMU holds its vDPA device.
    Vf {
        /// Devlink-style handle of the PF, `pci/0000:03:00.0`.
        handle: String,
        /// The VF's index.
        index: u16,
    },
    /// Another process holds what this QEMU claims or holds: it is not this guest's.
    Contested {
        /// Who holds what, and what to do about it.
        reason: String,
    },
    /// A kind of backend that stands on nothing in an eswitch: vhost-user and others.
    Unsupported {
        /// The kind, and what to do about it.
        reason: String,
    },
    /// Not known or not believed.
    Unknown {
        /// Why, and what to do about it.
        reason: String,
    },
}

impl BackingView {
    /// Whether it is something in an eswitch, known and believed.
    pub fn is_known(&self) -> bool {
        matches!(self, Self::Netdev { .. } | Self::Vf { .. })
    }
}

/// Why an observer looked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cause {
    /// When the first event that this look answers was read off its socket; absent when the look
    /// came by itself.
    pub event_read: Option<Instant>,
}
