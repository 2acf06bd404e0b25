//! The resources of the REST API: `spec` is what the client wants, `status` what the daemon sees.
//!
//! These types are at once the wire format (JSON, snake_case), the stored intent and what the
//! controller plans from: there is no second copy. `spec`s refuse unknown fields, so that a field
//! of a later version is never ignored in silence; `status`es may grow.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::types::{Bitrate, Id, IpPrefix, MacAddr, MacPrefix, Priority, Vid};

/// A resource with its identity. `revision` grows with every change of the spec, over all
/// resources of the daemon, and never repeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Resource<Spec, Status> {
    /// The client's name for it.
    pub id: Id,
    /// The revision of the store in which the spec changed last; 0 for what was only discovered.
    pub revision: u64,
    /// What is wanted.
    pub spec: Spec,
    /// What is.
    pub status: Status,
}

/// The body of a PUT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Desired<Spec> {
    /// What is wanted.
    pub spec: Spec,
}

/// The answer to a list request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct List<Item> {
    /// The items, in order of id.
    pub items: Vec<Item>,
    /// Where there is more than was asked for: what to send as `after` to get it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Id>,
}

/// What a teardown has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TornDown {
    /// Flows that were taken away.
    pub removed: usize,
    /// Netdevs that had some.
    pub netdevs: usize,
    /// Filters of other owners, left where they are.
    pub foreign: usize,
    /// Netdevs whose `hw-tc-offload` the daemon had switched on, and that is off again.
    pub offload: usize,
    /// What could not be taken away, with the netdev and the kernel's words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<String>,
}

// ---------------------------------------------------------------- networks

/// One L2 segment, as the client and the daemon see it.
pub type Network = Resource<NetworkSpec, NetworkStatus>;

/// One L2 segment. MAC addresses are unique within a network, not across networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// How the network looks on the wire.
    pub kind: NetworkKind,
    /// The adapter it lives on; every adapter where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<Id>,
    /// Addresses that no guest may take, the gateway's for example.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub reserved_macs: Vec<MacAddr>,
    /// Where a frame to an unknown unicast address goes.
    #[serde(default)]
    pub unknown_unicast: UnknownUnicast,
    /// Which ports frames to a group go to.
    #[serde(default, skip_serializing_if = "Multicast::is_flood")]
    pub multicast: Multicast,
    /// Names and values to find it by (`?label=`). The daemon makes nothing of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// How a network looks on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkKind {
    /// Untagged on the uplink.
    Flat,
    /// Tagged on the uplink.
    Vlan(VlanTag),
    /// Never on the uplink: local ports only.
    Isolated,
}

/// A VLAN tag on the uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VlanTag {
    /// The VLAN identifier.
    pub vid: Vid,
    /// The tag protocol.
    #[serde(default)]
    pub proto: VlanProto,
}

/// The protocol of a VLAN tag.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    ToSchema,
)]
pub enum VlanProto {
    /// IEEE 802.1Q, ethertype 0x8100.
    #[default]
    #[serde(rename = "802.1q")]
    Dot1Q,
    /// IEEE 802.1ad service tag, ethertype 0x88a8.
    #[serde(rename = "802.1ad")]
    Dot1Ad,
}

/// What happens to unicast frames whose destination is no local port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnknownUnicast {
    /// To the uplink (in an isolated network, which has none: dropped).
    #[default]
    Uplink,
    /// Dropped.
    Drop,
}

/// Which ports frames to a group go to, on adapters with representors; broadcast goes to all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Multicast {
    /// All.
    #[default]
    Flood,
    /// Those whose guests have asked for the group, and those of which it is not known what they
    /// ask for, or that ask for all or for more than 32, or for whose groups the network has no room
    /// (256 groups of all guests together, first come first). The uplink gets them as well.
    Declared,
}

impl Multicast {
    /// Whether it is what stands for nothing said.
    fn is_flood(&self) -> bool {
        *self == Multicast::Flood
    }
}

/// What a network is at the moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkStatus {
    /// The ports attached to it.
    pub ports: Vec<Id>,
    /// What holds and what does not.
    pub conditions: Vec<Condition>,
}

// ---------------------------------------------------------------- ports

/// The permission of one VF, as the client and the daemon see it.
pub type Port = Resource<PortSpec, PortStatus>;

/// The permission of one VF to take part in networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// The VF that the port is for.
    pub function: PortFunction,
    /// The networks it takes part in: at most one untagged, each other with its own guest tag.
    #[schema(max_items = 64)]
    pub attachments: Vec<Attachment>,
    /// Addresses that the VF may always send from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub macs: Vec<MacAddr>,
    /// Addresses of the guest's own choosing; none where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_macs: Option<GuestMacs>,
    /// The IP addresses that the VF may send from, in IPv4, IPv6 and as the sender in ARP; any, and
    /// any ethertype, where empty. Beside them it may use its address' IPv6 link-local one, look for
    /// duplicates from `::`, ask DHCP servers and send ARP probes from 0.0.0.0, and RARP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub ips: Vec<IpPrefix>,
    /// Pairs of addresses that it may send from besides. Ports may share the MAC address of a pair:
    /// what is sent to it goes to each of them, and to where unknown unicast goes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub allowed_address_pairs: Vec<AddressPair>,
    /// With `ips`, ethertypes other than those of IP, ARP and RARP that it may send.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 16)]
    pub ethertypes: Vec<u16>,
    /// What is dropped unless it stands here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 3)]
    pub allow: Vec<Allowance>,
    /// Whether it is kept from other isolated ports, and may talk to all else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub isolated: bool,
    /// Whether the VF may receive more than what is sent to it.
    #[serde(default)]
    pub promiscuous: Promiscuous,
    /// How fast the VF may be; not limited where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qos: Option<Qos>,
    /// The largest packet that the guest is to send and receive, in bytes without Ethernet header
    /// and tags, 68 to 65535. Whether the port's path carries it is checked; nothing is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 68)]
    pub mtu: Option<u16>,
    /// `down` passes nothing and keeps the port.
    #[serde(default)]
    pub admin_state: AdminState,
    /// Names and values to find it by (`?label=`). The daemon makes nothing of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl PortSpec {
    /// A port of which nothing more is said.
    pub fn new(function: PortFunction, attachments: Vec<Attachment>) -> PortSpec {
        PortSpec {
            function,
            attachments,
            macs: Vec::new(),
            guest_macs: None,
            ips: Vec::new(),
            allowed_address_pairs: Vec::new(),
            ethertypes: Vec::new(),
            allow: Vec::new(),
            isolated: false,
            promiscuous: Promiscuous::default(),
            qos: None,
            mtu: None,
            admin_state: AdminState::default(),
            labels: BTreeMap::new(),
        }
    }
}

/// The VF that a port is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PortFunction {
    /// A function of a guest, by its device id in QEMU; the daemon finds what it stands on.
    GuestVf {
        /// The guest.
        guest: Id,
        /// The device id, as in `-device virtio-net-pci,id=vf0`.
        #[schema(pattern = "^[A-Za-z][A-Za-z0-9._-]{0,127}$")]
        device: String,
    },
    /// A VF of an adapter.
    Vf {
        /// The adapter.
        adapter: Id,
        /// The VF's index, from 0.
        #[schema(maximum = 65535)]
        index: u16,
    },
    /// A representor of a software adapter.
    Netdev {
        /// The adapter.
        adapter: Id,
        /// The representor's name.
        #[schema(min_length = 1, max_length = 15)]
        name: String,
    },
}

/// One network that a port takes part in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// The network.
    pub network: Id,
    /// The 802.1Q tag under which the guest sends and receives; untagged where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Vid>,
    /// The 802.1Q priority that the VF's frames get in the network's VLAN on the wire; 0 where
    /// absent. Only in VLAN networks, and where the adapter can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// Whether a tag of the guest's own stays in its frames, inside the network's (QinQ): what the
    /// guest sends untagged or with one 802.1Q tag is carried as it is. Only untagged, as the port's
    /// only attachment, and not in flat networks.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub qinq: bool,
}

/// Addresses that a VF may send from besides its own, as in Neutron.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddressPair {
    /// The MAC address; the port's own ones where absent. It is then one of the port's addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// The IP addresses.
    pub ip: IpPrefix,
}

/// What a guest must not send unless its port allows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Allowance {
    /// IPv6 router advertisements.
    RouterAdvertisements,
    /// What DHCP servers send, for IPv4 and IPv6.
    DhcpServer,
    /// Untagged frames to 01:80:c2:00:00:00 to 0f: spanning tree, LACP, LLDP, flow control.
    LinkLocalGroups,
}

/// How fast a VF may be. In legacy mode the NIC keeps the rates of what it sends (`IFLA_VF_RATE`); in
/// switchdev mode devlink rate objects do, where the driver has them; on software adapters policers
/// keep `tx_max` and `rx_max`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Qos {
    /// What it may send at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_max: Option<Bitrate>,
    /// What it may send at least, while others want to send; not above `tx_max`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_min: Option<Bitrate>,
    /// What it may receive at most; on software adapters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_max: Option<Bitrate>,
    /// Broadcast and multicast frames a second that it may send into a network at most, 1 to
    /// 1,000,000; on software adapters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub flood_limit: Option<u32>,
}

/// How far a guest may choose its own addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GuestMacs {
    /// At most so many at a time, 1 to 64.
    #[schema(minimum = 1, maximum = 64)]
    pub max: u16,
    /// Only addresses that begin with one of these; any where empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub allow: Vec<MacPrefix>,
}

/// Whether a VF may receive more than what is sent to it: on adapters with representors, frames to
/// addresses that no port of its networks has, as a switch floods them (never what is sent to
/// another port); in legacy mode, whatever the NIC gives to a VF that it trusts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Promiscuous {
    /// It may not. A guest that asks for it keeps what it had, and its port says so.
    #[default]
    Deny,
    /// It may: while the guest asks for it, and always where it cannot be seen what a guest asks
    /// for.
    Allow,
}

/// Whether a port passes frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdminState {
    /// As its attachments say.
    #[default]
    Up,
    /// Nothing.
    Down,
}

/// What a port is at the moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortStatus {
    /// What holds and what does not: `Bound`, `Programmed`, `Offloaded`, `Conflict`, `Quarantined`;
    /// `SourcesChecked` with `ips`, `PathMtu` with `mtu`, `VdpaDevice` where the daemon is to make
    /// one.
    pub conditions: Vec<Condition>,
    /// The adapter that it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<Id>,
    /// The VF's index on that adapter, where it is a VF.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vf: Option<u16>,
    /// The representor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub representor: Option<Netdev>,
    /// What the netdevs on its path carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<PathMtu>,
    /// The addresses that it may send from now.
    pub macs: Vec<MacAddr>,
    /// What the guest asked for and does not get.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedMac>,
    /// Whether it receives more than what is sent to it.
    #[serde(default)]
    pub promiscuous: bool,
    /// The vDPA device that the daemon made for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vdpa_device: Option<String>,
    /// Flows that this port is the reason for.
    pub flows: FlowCounts,
    /// Microseconds from the last guest event that changed this port to its flows' acknowledgement
    /// by the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_to_programmed_us: Option<u64>,
    /// How many guest events have changed this port's program since the daemon started.
    pub events_programmed: u64,
    /// What its VF has sent and received, on adapters with representors, once that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistics: Option<PortStatistics>,
}

/// MTUs on a port's path, without Ethernet header and tags.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PathMtu {
    /// Of its representor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub representor: Option<u32>,
    /// Of the adapter's uplink; in legacy mode of the PF.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<u32>,
}

/// What a port's VF has sent and received, as the metrics have it: since its representor is there,
/// and, where it has got others, in all. Frames that were dropped are among those that were sent,
/// but for those that were to be received (`rx_rate`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortStatistics {
    /// How long ago it was read, in milliseconds. Asking for the port has it read again, where that
    /// is more than ten seconds ago, for who asks next.
    pub age_ms: u64,
    /// What the VF has received.
    pub received: FrameCounts,
    /// What it has sent.
    pub sent: FrameCounts,
    /// What of both went through the host's CPU, where the NIC's driver tells that; the rest was
    /// switched in hardware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub software: Option<PortTraffic>,
    /// What was dropped, by reason, as `eswitchd_port_dropped_packets_total` has it; nothing
    /// stands for none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dropped: BTreeMap<String, FrameCounts>,
}

/// What a port's VF has received and sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortTraffic {
    /// What it has received.
    pub received: FrameCounts,
    /// What it has sent.
    pub sent: FrameCounts,
}

/// Frames, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FrameCounts {
    /// Frames.
    pub packets: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// An address that a guest asked for and does not get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RefusedMac {
    /// The address.
    pub mac: MacAddr,
    /// Why not.
    pub reason: String,
}

/// A netdev of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Netdev {
    /// Its name.
    pub name: String,
    /// Its interface index.
    pub ifindex: u32,
}

/// Flows by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowCounts {
    /// In the adapter's hardware.
    pub in_hw: u64,
    /// Installed, in software only.
    pub not_in_hw: u64,
    /// Refused by the kernel.
    pub refused: u64,
    /// Wanted, and not answered by the kernel yet.
    pub pending: u64,
}

// ---------------------------------------------------------------- guests

/// A VM, as the client and the daemon see it.
pub type Guest = Resource<GuestSpec, GuestStatus>;

/// A VM, reached through its QMP socket. A guest whose socket is in the configured folder needs no
/// PUT: it appears under its socket's file name without `.sock`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GuestSpec {
    /// Its QMP socket, an absolute path; `<folder>/<id>.sock` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^/", max_length = 107)]
    pub qmp: Option<String>,
    /// What its devices stand on, by device id, where the platform knows it: this is taken instead
    /// of what QEMU's command line claims.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub backings: BTreeMap<String, Backing>,
    /// Names and values to find it by (`?label=`). The daemon makes nothing of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// What a guest's device stands on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Backing {
    /// A VF of an adapter.
    Vf {
        /// The adapter.
        adapter: Id,
        /// The VF's index, from 0.
        #[schema(maximum = 65535)]
        index: u16,
    },
    /// A netdev, such as a tap.
    Netdev {
        /// Its name.
        #[schema(min_length = 1, max_length = 15)]
        name: String,
    },
}

/// What a guest is at the moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestStatus {
    /// What holds and what does not: `Connected`, `Trusted`.
    pub conditions: Vec<Condition>,
    /// Process id of its QEMU, from the socket's peer credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// QEMU's version, as it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<String>,
    /// QEMU's run state: `running`, `paused`, `inmigrate` and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_state: Option<String>,
    /// How often it did more than its budgets allow since the daemon started: such events are
    /// answered later, or cost it its connection.
    #[serde(default)]
    pub overruns: u64,
    /// Its emulated PFs and VFs.
    pub functions: Vec<GuestFunction>,
}

/// An emulated PF or a VF of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestFunction {
    /// Device id in QEMU.
    pub device: String,
    /// The device id of its PF, where it is a VF.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pf: Option<String>,
    /// Its index among the VFs of its PF, where it is a VF.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u16>,
    /// Where it is on the guest's PCI: bus, slot and function, `01:00.1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci: Option<String>,
    /// Whether the guest has enabled it: its BARs have addresses.
    pub enabled: bool,
    /// The address in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Further unicast addresses that the guest listens to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unicast: Vec<MacAddr>,
    /// Whether the guest listens to more of them than its device holds, so that none is listed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unicast_overflow: bool,
    /// Group addresses that the guest listens to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub multicast: Vec<MacAddr>,
    /// Whether the guest listens to more of them than its device holds, so that none is listed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub multicast_overflow: bool,
    /// Whether it asks for all multicast.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all_multicast: bool,
    /// VLANs that the guest listens to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vlans: Vec<u16>,
    /// Whether it asks for every frame. Meaningless before `filter_known`.
    pub promiscuous: bool,
    /// Whether a driver has set the receive filter, so that the fields above are a request.
    pub filter_known: bool,
    /// How much of what the guest does can be seen.
    #[serde(default)]
    pub visibility: Visibility,
    /// What it stands on, as far as it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing: Option<Backing>,
    /// How the backing was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing_source: Option<BackingSource>,
    /// Whether the kernel confirms that the guest's QEMU holds the backing.
    #[serde(default)]
    pub backing_confirmed: bool,
    /// Why the backing is not known or not believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing_problem: Option<String>,
    /// The port that gives it its permission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Id>,
}

/// How much of what a guest does to a function can be seen from the host. Where it is little, the
/// platform supplies the addresses in the port's `macs`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Visibility {
    /// Whether QEMU sees what the guest's driver sends on the control queue: MACs, VLANs, modes.
    pub control_queue: ControlQueue,
    /// Whether the guest's driver sets receive modes at all (`VIRTIO_NET_F_CTRL_RX`).
    pub rx_mode: RxMode,
    /// Where its address is known from.
    pub mac: MacSource,
}

/// Who serves a function's control queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ControlQueue {
    /// QEMU does, itself or as a shadow between the guest and the device: changes are seen.
    Seen,
    /// The device does: changes are not seen. Start QEMU with `x-svq=on`, or supply MACs.
    Hidden,
    /// Not known.
    #[default]
    Unknown,
}

/// Whether a driver has taken the means to set receive modes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RxMode {
    /// It has: promiscuous mode and the tables are its requests.
    Negotiated,
    /// It has not, or the device does not offer it: it receives everything and never says what it
    /// wants.
    NotNegotiated,
    /// No driver is attached, or it has not used it yet.
    #[default]
    Unknown,
}

/// Where a function's address is known from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MacSource {
    /// The receive filter, as the guest's driver sets it.
    RxFilter,
    /// The vDPA device's configuration, looked at every few seconds: what the device was given, or
    /// what the guest changed on devices that show it there.
    VdpaConfig,
    /// Nothing.
    #[default]
    None,
}

/// How the backing of a guest's function was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BackingSource {
    /// The guest's `spec.backings` names it.
    Platform,
    /// `ifname=` of QEMU's command line.
    TapName,
    /// `fd=` or `fds=` of QEMU's command line.
    TapDescriptor,
    /// It is the only tap of this QEMU that nothing else on its command line names.
    OnlyTap,
    /// `vhostdev=` of QEMU's command line.
    VdpaPath,
    /// `vhostfd=` of QEMU's command line.
    VdpaDescriptor,
    /// It is the only vDPA device of this QEMU, handed over in a set of descriptors.
    VdpaSet,
}

// ---------------------------------------------------------------- adapters

/// One eswitch of the host. Found, not made: it has no spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Adapter {
    /// Its handle in a form safe in URLs: `pci-0000:03:00.0`, `netdevsim-netdevsim10`, `soft-lab`.
    pub id: Id,
    /// Its devlink handle, `pci/0000:03:00.0`, or `soft-NAME`.
    pub handle: String,
    /// The kernel driver's name, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Its mode; absent while it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<EswitchMode>,
    /// The switch id that its representors share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch_id: Option<String>,
    /// The uplink: representor of the physical port, or the netdev named in the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<Netdev>,
    /// Its VFs, or the representors of a software adapter.
    pub vfs: Vec<AdapterVf>,
    /// Its flows by state.
    pub flows: FlowCounts,
    /// Filters of other owners on its hooks: reported, never touched.
    pub foreign_filters: u64,
    /// What devlink says of its eswitch, where the driver has one to configure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eswitch: Option<EswitchSettings>,
    /// What its hardware takes, once its driver was asked: in switchdev mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offload: Option<AdapterOffload>,
    /// What holds and what does not: `Present`, `Healthy`, and `Eswitch` where another shape was
    /// asked for.
    pub conditions: Vec<Condition>,
}

/// What an adapter's hardware takes: its driver's profile, which a probe can only narrow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AdapterOffload {
    /// The profile: `mlx5`, `ice`, or `generic` for drivers of which nothing is known.
    pub profile: String,
    /// What a rule can need of hardware.
    pub capabilities: Vec<OffloadCapability>,
    /// How much of it.
    pub ceilings: OffloadCeilings,
}

/// Something that a rule can need of hardware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OffloadCapability {
    /// What: `redirect`, `tag_push` and so on.
    pub name: String,
    /// Whether the hardware does it.
    pub available: bool,
    /// Where that is known from.
    pub source: CapabilitySource,
    /// The driver's own words, where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Where a capability is known from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CapabilitySource {
    /// The driver's source.
    Profile,
    /// The driver's answer to a rule that needs it.
    Probe,
}

/// The most that hardware and kernel take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OffloadCeilings {
    /// Actions in one rule.
    pub actions: u32,
    /// Gotos that one frame takes.
    pub gotos: u32,
    /// The highest chain.
    pub chain: u32,
    /// The highest prio.
    pub prio: u32,
}

/// What devlink says of an eswitch besides its mode (`include/uapi/linux/devlink.h`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EswitchSettings {
    /// How much of a frame a VF must hand over inline: `none`, `link`, `network` or `transport`;
    /// absent where the driver does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline_mode: Option<String>,
    /// Whether it can put frames into tunnels; absent where the driver does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encap: Option<bool>,
    /// Its rate objects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rates: Vec<RateObject>,
}

/// A devlink rate object: of a VF, or of a group of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RateObject {
    /// The VF that it is of (a leaf).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vf: Option<u16>,
    /// Its name, where it is of a group (a node).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// At most, in bits per second; 0 for no limit.
    pub tx_max: u64,
    /// At least, in bits per second; 0 for no promise.
    pub tx_share: u64,
    /// The group that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
}

/// What an eswitch should become: `PUT /v1/adapters/{id}/eswitch`. What is absent stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EswitchSpec {
    /// The mode: `legacy` or `switchdev`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<EswitchMode>,
    /// How many VFs there are to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 65535)]
    pub num_vfs: Option<u16>,
}

/// Mode and number of VFs of an eswitch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EswitchShape {
    /// The mode.
    pub mode: EswitchMode,
    /// How many VFs there are.
    pub num_vfs: u16,
}

impl std::fmt::Display for EswitchShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mode = match self.mode {
            EswitchMode::Legacy => "legacy",
            EswitchMode::Switchdev => "switchdev",
            EswitchMode::Software => "software",
        };
        write!(f, "{mode} with {} VFs", self.num_vfs)
    }
}

/// What another shape of an eswitch means: the answer to `PUT /v1/adapters/{id}/eswitch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EswitchChange {
    /// How it is.
    pub now: EswitchShape,
    /// How it would be.
    pub then: EswitchShape,
    /// The way there, step by step; empty where there is nothing to do. With the first step every
    /// VF is gone until the last.
    pub steps: Vec<String>,
    /// What ports would lose for good.
    pub ports: Vec<PortLoss>,
    /// Who uses the VFs.
    pub in_use: Vec<String>,
    /// Why it is refused, in a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Whether it was begun; the adapter's condition `Eswitch` says how it goes on.
    pub started: bool,
}

/// What a port would lose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortLoss {
    /// The port.
    pub port: Id,
    /// Each loss, a sentence.
    pub loses: Vec<String>,
}

/// The mode of an eswitch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EswitchMode {
    /// Per-VF settings on the PF; the NIC switches by MAC and VLAN.
    Legacy,
    /// A representor for each VF; flows decide.
    Switchdev,
    /// Plain netdevs as representors; flows in the kernel decide.
    Software,
}

/// A VF of an adapter, or a representor of a software adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AdapterVf {
    /// The VF's index; absent on a software adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u16>,
    /// The representor, in switchdev and software mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub representor: Option<Netdev>,
    /// The host's driver of the VF, where the daemon looks at it (`manage_eswitch`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The settings in force, in legacy mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<VfSettings>,
    /// The port that is bound to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Id>,
}

/// Settings of a VF on its PF in legacy mode, as the kernel reports them
/// (`IFLA_VFINFO_LIST`, `include/uapi/linux/if_link.h`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VfSettings {
    /// Administrative MAC address.
    pub mac: MacAddr,
    /// Port VLAN; 0 where there is none.
    pub vlan: u16,
    /// Protocol of the port VLAN.
    pub vlan_proto: VlanProto,
    /// Priority in the port VLAN.
    #[serde(default)]
    pub vlan_priority: Priority,
    /// The most that the VF may send; absent where that is not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_max: Option<Bitrate>,
    /// What it may send at least; absent where it is promised nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_min: Option<Bitrate>,
    /// Source MAC check; absent where the driver does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spoof_check: Option<bool>,
    /// Link state; absent where the driver does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_state: Option<VfLinkState>,
    /// Whether the VF may ask for every frame; absent where the driver does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<bool>,
}

/// Administrative link state of a VF (`IFLA_VF_LINK_STATE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VfLinkState {
    /// Follows the physical port.
    Auto,
    /// Always up.
    Enable,
    /// Always down.
    Disable,
}

// ---------------------------------------------------------------- flows

/// One tc-flower rule that the daemon wants or has installed. Read only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Flow {
    /// The adapter.
    pub adapter: Id,
    /// The netdev on whose ingress hook it is.
    pub netdev: String,
    /// What it is there for, in a few words: `admission of 02:… `, `flood`, `default drop`.
    pub purpose: String,
    /// The port that is the reason for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Id>,
    /// The network that is the reason for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Id>,
    /// The rule in tc's syntax: it can be pasted after `tc filter add dev NETDEV`.
    pub tc: String,
    /// What has become of it.
    pub state: FlowState,
    /// The kernel's own words, where it refused the rule or its offload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What has become of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FlowState {
    /// In the adapter's hardware.
    InHw,
    /// Installed, in software only.
    NotInHw,
    /// Refused by the kernel.
    Refused,
    /// Wanted, and not answered by the kernel yet.
    Pending,
}

// ---------------------------------------------------------------- conditions

/// One statement about a resource, in the manner of Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Condition {
    /// What the statement is about: `Bound`, `Programmed`, `Offloaded`, `Conflict`, `Quarantined`.
    pub r#type: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// One word for programs.
    pub reason: String,
    /// A sentence for people, with the kernel's own words where it has any.
    pub message: String,
    /// When `status` changed last, RFC 3339.
    pub last_transition: String,
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// It holds in part: `Offloaded` with some flows in software.
    Partial,
    /// Not known.
    Unknown,
}
