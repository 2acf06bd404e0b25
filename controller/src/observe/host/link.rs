//! Netdevs and the VF settings of PFs, read over rtnetlink.
//!
//! In: `RTM_NEWLINK` messages. Out: [`Link`]s and [`VfTable`]s. Formats are those of
//! `include/uapi/linux/if_link.h`. Decoded here rather than with netlink-packet-route 0.34, which
//! reads a spoof check that the driver does not tell (all ones) as "off", and drops a whole message
//! for one attribute of an unexpected length. A malformed message decodes to one with less in it.

use std::collections::BTreeMap;

use api::{
    resources::{VfLinkState, VfSettings, VlanProto},
    types::{Bitrate, MacAddr, Priority},
};
use netlink_packet_core::{
    Emitable, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_proto::ConnectionHandle;
use netlink_sys::{AsyncSocket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use tc_flows::{Counters, Ifindex};

use crate::{
    eswitch::{
        EswitchError, KernelRefusal,
        devlink::DevlinkName,
        netlink::{self, Answer, attributes, flag, text, u16_at, u32_at, u64_at},
    },
    world::NetdevView,
};

/// `RTM_GETLINK` of `include/uapi/linux/rtnetlink.h`.
const RTM_GETLINK: u16 = 18;
/// `sizeof(struct ifinfomsg)`.
const HEADER: usize = 16;
/// `RTM_GETSTATS` of `include/uapi/linux/rtnetlink.h`.
const RTM_GETSTATS: u16 = 94;
/// `sizeof(struct if_stats_msg)`: family, padding, interface index, and which groups are asked for.
const STATS_HEADER: usize = 12;
/// `IFLA_STATS_LINK_OFFLOAD_XSTATS`, a group of statistics and its attribute.
const STATS_LINK_OFFLOAD_XSTATS: u16 = 4;
/// `IFLA_OFFLOAD_XSTATS_CPU_HIT` within it: a `struct rtnl_link_stats64`.
const OFFLOAD_XSTATS_CPU_HIT: u16 = 1;
/// How often an interrupted dump is begun anew before it is taken as it is: the notification of
/// what interrupted it leads to another look anyway.
const DUMP_ATTEMPTS: usize = 3;

/// `IFLA_*`.
mod attribute {
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const IFNAME: u16 = 3;
    pub(super) const MTU: u16 = 4;
    pub(super) const NUM_VF: u16 = 21;
    pub(super) const VFINFO_LIST: u16 = 22;
    pub(super) const STATS64: u16 = 23;
    pub(super) const PHYS_SWITCH_ID: u16 = 36;
    pub(super) const PARENT_DEV_NAME: u16 = 56;
    pub(super) const PARENT_DEV_BUS_NAME: u16 = 57;
}
/// `IFLA_VF_*`.
mod vf_attribute {
    pub(super) const INFO: u16 = 1;
    pub(super) const MAC: u16 = 1;
    pub(super) const VLAN: u16 = 2;
    pub(super) const TX_RATE: u16 = 3;
    pub(super) const SPOOFCHK: u16 = 4;
    pub(super) const LINK_STATE: u16 = 5;
    pub(super) const RATE: u16 = 6;
    pub(super) const TRUST: u16 = 9;
    pub(super) const VLAN_LIST: u16 = 12;
    /// `IFLA_VF_VLAN_INFO`, inside the list.
    pub(super) const VLAN_INFO: u16 = 1;
}
/// `ETH_P_8021AD`.
const ETH_P_8021AD: u16 = 0x88a8;

/// A netdev.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    /// Its interface index.
    pub(super) ifindex: Ifindex,
    /// Its name.
    pub(super) name: String,
    /// Its own address.
    pub(super) mac: Option<MacAddr>,
    /// What it carries at most, without Ethernet header and tags.
    pub(super) mtu: Option<u32>,
    /// The id of the switch it is a port of, in hexadecimal.
    pub(super) switch_id: Option<String>,
    /// The device it belongs to.
    pub(super) parent: Option<DevlinkName>,
}

impl Link {
    pub(super) fn view(&self) -> NetdevView {
        NetdevView { ifindex: self.ifindex, name: self.name.clone(), mac: self.mac }
    }

    /// Reads an `RTM_NEWLINK`; `None` where it has no index or name.
    fn decode(bytes: &[u8]) -> Option<Link> {
        let ifindex = Ifindex::new(u32_at(bytes, 4)?)?;
        let (mut name, mut mac, mut mtu, mut switch_id) = (None, None, None, None);
        let (mut bus, mut device) = (None, None);
        for (kind, value) in attributes(bytes.get(HEADER..)?) {
            match kind {
                attribute::IFNAME => name = Some(text(value)),
                attribute::ADDRESS => mac = value.try_into().ok().map(MacAddr),
                attribute::MTU => mtu = u32_at(value, 0),
                attribute::PHYS_SWITCH_ID => switch_id = Some(hexadecimal(value)),
                attribute::PARENT_DEV_NAME => device = Some(text(value)),
                attribute::PARENT_DEV_BUS_NAME => bus = Some(text(value)),
                _ => {}
            }
        }
        Some(Link {
            ifindex,
            name: name?,
            mac: mac.filter(|mac| mac.0 != [0; 6]),
            mtu,
            switch_id: switch_id.filter(|id| !id.is_empty()),
            parent: bus.zip(device).map(|(bus, device)| DevlinkName { bus, device }),
        })
    }
}

/// What a netdev has counted since it is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// What came in at it.
    pub(crate) received: Counters,
    /// What went out.
    pub(crate) sent: Counters,
}

impl Traffic {
    /// Reads the `struct rtnl_link_stats64` of an `RTM_NEWLINK`.
    fn decode(bytes: &[u8]) -> Option<(Ifindex, Traffic)> {
        let ifindex = Ifindex::new(u32_at(bytes, 4)?)?;
        let (_, stats) =
            attributes(bytes.get(HEADER..)?).find(|(kind, _)| *kind == attribute::STATS64)?;
        Some((ifindex, Traffic::of(stats)?))
    }

    /// Reads an `RTM_NEWSTATS`: what of the netdev's traffic went through the host's CPU; nothing
    /// where its driver does not tell.
    fn decode_software(bytes: &[u8]) -> Option<(Ifindex, Traffic)> {
        let ifindex = Ifindex::new(u32_at(bytes, 4)?)?;
        let within = |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted);
        let (_, offload) = within(bytes.get(STATS_HEADER..)?, STATS_LINK_OFFLOAD_XSTATS)?;
        let (_, stats) = within(offload, OFFLOAD_XSTATS_CPU_HIT)?;
        Some((ifindex, Traffic::of(stats)?))
    }

    /// Reads a `struct rtnl_link_stats64`: packets in and out, bytes in and out, and more.
    fn of(stats: &[u8]) -> Option<Traffic> {
        let counters = |packets: usize, bytes: usize| {
            Some(Counters {
                packets: u64_at(stats, 8 * packets)?,
                bytes: u64_at(stats, 8 * bytes)?,
            })
        };
        Some(Traffic { received: counters(0, 2)?, sent: counters(1, 3)? })
    }
}

/// The netdevs of our network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LinkTable {
    links: BTreeMap<Ifindex, Link>,
}

impl LinkTable {
    /// The netdev with this index.
    pub(super) fn by_index(&self, ifindex: u32) -> Option<&Link> {
        self.links.get(&Ifindex::new(ifindex)?)
    }

    /// The netdev of this name.
    pub(super) fn by_name(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// The netdevs of a device, in order of their indexes.
    pub(super) fn of_device<'a>(
        &'a self,
        device: &'a DevlinkName,
    ) -> impl Iterator<Item = &'a Link> {
        self.links.values().filter(move |link| link.parent.as_ref() == Some(device))
    }

    /// All netdevs, in order of their indexes.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }
}

impl FromIterator<Link> for LinkTable {
    fn from_iter<I: IntoIterator<Item = Link>>(links: I) -> Self {
        LinkTable { links: links.into_iter().map(|link| (link.ifindex, link)).collect() }
    }
}

/// The VFs of a PF.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct VfTable {
    /// How many there are.
    pub(super) count: u32,
    /// The settings of those that the kernel told.
    pub(super) settings: BTreeMap<u16, VfSettings>,
}

impl VfTable {
    /// Reads an `RTM_NEWLINK` that answers a request with `RTEXT_FILTER_VF`.
    fn decode(bytes: &[u8]) -> VfTable {
        let mut table = VfTable::default();
        for (kind, value) in attributes(bytes.get(HEADER..).unwrap_or_default()) {
            match kind {
                attribute::NUM_VF => table.count = u32_at(value, 0).unwrap_or(0),
                attribute::VFINFO_LIST => {
                    table.settings = attributes(value)
                        .filter(|(kind, _)| *kind == vf_attribute::INFO)
                        .filter_map(|(_, info)| vf_settings(info))
                        .collect();
                }
                _ => {}
            }
        }
        table
    }
}

/// Reads one `IFLA_VF_INFO`. Each value begins with the VF's number.
///
/// The kernel reports link state "auto" also for drivers that have no link state
/// (`rtnl_fill_vfinfo` in `net/core/rtnetlink.c`): the two cannot be told apart here.
fn vf_settings(info: &[u8]) -> Option<(u16, VfSettings)> {
    let mut vf = None;
    let mut settings = VfSettings {
        mac: MacAddr([0; 6]),
        vlan: 0,
        vlan_proto: VlanProto::Dot1Q,
        vlan_priority: Priority::default(),
        tx_max: None,
        tx_min: None,
        spoof_check: None,
        link_state: None,
        trust: None,
    };
    for (kind, value) in attributes(info) {
        match kind {
            vf_attribute::MAC => {
                vf = u32_at(value, 0).and_then(|number| u16::try_from(number).ok());
                settings.mac = MacAddr(value.get(4..10)?.try_into().ok()?);
            }
            vf_attribute::VLAN => {
                settings.vlan = vlan_id(value)?;
                settings.vlan_priority = vlan_priority(value);
            }
            vf_attribute::VLAN_LIST => {
                let first = attributes(value).find(|(kind, _)| *kind == vf_attribute::VLAN_INFO);
                if let Some((_, tag)) = first {
                    settings.vlan = vlan_id(tag)?;
                    settings.vlan_priority = vlan_priority(tag);
                    settings.vlan_proto = match u16_at(tag, 12).map(u16::from_be) {
                        Some(ETH_P_8021AD) => VlanProto::Dot1Ad,
                        _ => VlanProto::Dot1Q,
                    };
                }
            }
            // The kernel writes this one first, and on kernels of before 3.16 there is no other.
            vf_attribute::TX_RATE => settings.tx_max = mbit(value, 4),
            vf_attribute::RATE => {
                (settings.tx_min, settings.tx_max) = (mbit(value, 4), mbit(value, 8));
            }
            // All ones: the driver does not say.
            vf_attribute::SPOOFCHK => settings.spoof_check = switch(value),
            vf_attribute::TRUST => settings.trust = switch(value),
            vf_attribute::LINK_STATE => {
                settings.link_state = match u32_at(value, 4) {
                    Some(0) => Some(VfLinkState::Auto),
                    Some(1) => Some(VfLinkState::Enable),
                    Some(2) => Some(VfLinkState::Disable),
                    _ => None,
                };
            }
            _ => {}
        }
    }
    Some((vf?, settings))
}

/// What is on or off; none where the driver does not say.
fn switch(value: &[u8]) -> Option<bool> {
    u32_at(value, 4).filter(|on| *on != u32::MAX).map(|on| on != 0)
}

/// The VLAN id in an `ifla_vf_vlan` or `ifla_vf_vlan_info`.
fn vlan_id(value: &[u8]) -> Option<u16> {
    u32_at(value, 4).and_then(|vid| u16::try_from(vid).ok())
}

/// The priority in an `ifla_vf_vlan` or `ifla_vf_vlan_info`.
fn vlan_priority(value: &[u8]) -> Priority {
    let priority = u32_at(value, 8).and_then(|priority| u8::try_from(priority).ok());
    priority.and_then(|priority| Priority::try_from(priority).ok()).unwrap_or_default()
}

/// The rate at this place, in Mbit/s; none where it is 0.
fn mbit(value: &[u8], at: usize) -> Option<Bitrate> {
    u32_at(value, at).and_then(Bitrate::from_mbit)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An rtnetlink message as bytes: header of its family and attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RouteBytes {
    kind: u16,
    bytes: Vec<u8>,
}

impl NetlinkSerializable for RouteBytes {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.bytes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..self.bytes.len()].copy_from_slice(&self.bytes);
    }
}

impl NetlinkDeserializable for RouteBytes {
    type Error = std::convert::Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        Ok(RouteBytes { kind: header.message_type, bytes: payload.to_vec() })
    }
}

/// Reads netdevs.
#[derive(Debug, Clone)]
pub(super) struct Links {
    handle: ConnectionHandle<RouteBytes>,
}

impl Links {
    /// Opens a connection; what drives it must be polled.
    pub(super) fn open() -> Result<(impl Future<Output = ()>, Links), EswitchError> {
        let failed =
            |source| EswitchError::Socket { what: "cannot open an rtnetlink socket", source };
        let (mut connection, handle, _) =
            netlink_proto::new_connection::<RouteBytes>(NETLINK_ROUTE).map_err(failed)?;
        let socket = connection.socket_mut().socket_mut();
        socket.set_ext_ack(true).map_err(failed)?;
        socket.set_cap_ack(true).map_err(failed)?;
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        Ok((connection, Links { handle }))
    }

    /// All netdevs of our network namespace.
    pub(super) async fn table(&self) -> Result<LinkTable, KernelRefusal> {
        let mut attempts = 1;
        loop {
            let flags = flag::REQUEST | flag::DUMP;
            let answer = self.ask("read the netdevs", LinkMessage::default(), &[], flags).await?;
            if answer.interrupted && attempts < DUMP_ATTEMPTS {
                attempts += 1;
                continue;
            }
            return Ok(answer.messages.iter().filter_map(|m| Link::decode(&m.bytes)).collect());
        }
    }

    /// What each netdev has counted.
    pub(super) async fn traffic(&self) -> Result<BTreeMap<Ifindex, Traffic>, KernelRefusal> {
        let (what, flags) = ("read the netdevs' counters", flag::REQUEST | flag::DUMP);
        let answer = self.ask_with(what, LinkMessage::default(), Vec::new(), flags).await?;
        Ok(answer.messages.iter().filter_map(|m| Traffic::decode(&m.bytes)).collect())
    }

    /// What one has counted.
    pub(super) async fn traffic_of(
        &self,
        netdev: Ifindex,
    ) -> Result<BTreeMap<Ifindex, Traffic>, KernelRefusal> {
        let mut message = LinkMessage::default();
        message.header.index = netdev.get();
        let what = "read a netdev's counters";
        let answer = self.ask_with(what, message, Vec::new(), flag::REQUEST).await?;
        Ok(answer.messages.iter().filter_map(|m| Traffic::decode(&m.bytes)).collect())
    }

    /// What of that went through the host's CPU, of the netdevs whose driver tells.
    pub(super) async fn software(&self) -> Result<BTreeMap<Ifindex, Traffic>, KernelRefusal> {
        let mut bytes = vec![0; STATS_HEADER];
        // `IFLA_STATS_FILTER_BIT`.
        let groups = 1_u32 << (STATS_LINK_OFFLOAD_XSTATS - 1);
        bytes[8..].copy_from_slice(&groups.to_ne_bytes());
        let (what, flags) = ("read the netdevs' software counters", flag::REQUEST | flag::DUMP);
        let answer = self.request(what, RTM_GETSTATS, bytes, flags).await?;
        Ok(answer.messages.iter().filter_map(|m| Traffic::decode_software(&m.bytes)).collect())
    }

    /// The VFs of a PF and their settings.
    pub(super) async fn vfs(&self, pf: &Link) -> Result<VfTable, KernelRefusal> {
        let mut message = LinkMessage::default();
        message.header.index = pf.ifindex.get();
        let what = format!("read the VF settings of {}", pf.name);
        let answer = self.ask(&what, message, &[LinkExtentMask::Vf], flag::REQUEST).await?;
        Ok(answer.messages.first().map(|m| VfTable::decode(&m.bytes)).unwrap_or_default())
    }

    /// Asks without statistics, which make most of a link's message.
    async fn ask(
        &self,
        what: &str,
        message: LinkMessage,
        extent: &[LinkExtentMask],
        flags: u16,
    ) -> Result<Answer<RouteBytes>, KernelRefusal> {
        let extent = [extent, &[LinkExtentMask::SkipStats]].concat();
        self.ask_with(what, message, extent, flags).await
    }

    async fn ask_with(
        &self,
        what: &str,
        mut message: LinkMessage,
        extent: Vec<LinkExtentMask>,
        flags: u16,
    ) -> Result<Answer<RouteBytes>, KernelRefusal> {
        message.attributes.push(LinkAttribute::ExtMask(extent));
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        self.request(what, RTM_GETLINK, bytes, flags).await
    }

    async fn request(
        &self,
        what: &str,
        kind: u16,
        bytes: Vec<u8>,
        flags: u16,
    ) -> Result<Answer<RouteBytes>, KernelRefusal> {
        let payload = NetlinkPayload::InnerMessage(RouteBytes { kind, bytes });
        let mut request = NetlinkMessage::new(NetlinkHeader::default(), payload);
        request.header.flags = flags;
        let replies = self
            .handle
            .request(request, SocketAddr::new(0, 0))
            .map_err(|error| netlink::lost(what, Errno::EPIPE, &error.to_string()))?;
        netlink::answer(what, replies).await
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{
        self as wire, LinkVfInfo, VfInfo, VfInfoLinkState, VfInfoMac, VfInfoRate, VfInfoSpoofCheck,
        VfInfoTrust, VfInfoTxRate, VfInfoVlan, VfVlan, VfVlanInfo, VlanProtocol,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::eswitch::netlink::{put, put_nested, recorded};

    /// An `RTM_NEWSTATS` as `rtnl_fill_statsinfo` of `net/core/rtnetlink.c` writes it: the header, and
    /// what `content` puts into the group of offload statistics.
    fn stats_message(ifindex: u32, content: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = vec![0; STATS_HEADER];
        bytes[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        bytes[8..].copy_from_slice(&8_u32.to_ne_bytes());
        put_nested(&mut bytes, STATS_LINK_OFFLOAD_XSTATS, content);
        bytes
    }

    /// A `struct rtnl_link_stats64` with these first members.
    fn stats64(first: [u64; 4]) -> Vec<u8> {
        let all = first.into_iter().chain([77; 21]);
        all.flat_map(u64::to_ne_bytes).collect()
    }

    #[test]
    fn the_share_of_software_is_read_where_a_driver_tells_it() {
        /// `IFLA_OFFLOAD_XSTATS_HW_S_INFO`, which newer kernels tell of every netdev.
        const HW_S_INFO: u16 = 2;
        let told = stats_message(14, |group| {
            put(group, OFFLOAD_XSTATS_CPU_HIT, &stats64([1, 2, 60, 3000]));
            put_nested(group, HW_S_INFO, |info| put(info, 3, &[0; 8]));
        });
        let received = Counters { packets: 1, bytes: 60 };
        let sent = Counters { packets: 2, bytes: 3000 };
        let expected = (Ifindex::new(14).unwrap(), Traffic { received, sent });
        assert_eq!(Traffic::decode_software(&told), Some(expected));

        let silent = stats_message(14, |group| {
            put_nested(group, HW_S_INFO, |info| put(info, 3, &[0; 8]));
        });
        assert_eq!(Traffic::decode_software(&silent), None);
        let short = stats_message(14, |group| put(group, OFFLOAD_XSTATS_CPU_HIT, &[0; 24]));
        assert_eq!(Traffic::decode_software(&short), None);
        for cut in 0..told.len() {
            // A message that is not whole is none, or says the same.
            if let Some(read) = Traffic::decode_software(&told[..cut]) {
                assert_eq!(read, expected, "cut at {cut}");
            }
        }
    }

    /// The bytes of a link message with these attributes.
    fn message(ifindex: u32, attributes: Vec<LinkAttribute>) -> Vec<u8> {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        message.attributes = attributes;
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    fn vf(number: u32, settings: Vec<VfInfo>) -> LinkVfInfo {
        let mac = VfInfo::Mac(VfInfoMac::new(number, &[2, 0xaa, 0, 0, 0, number as u8]));
        LinkVfInfo([vec![mac], settings].concat())
    }

    #[test]
    fn a_netdev_has_its_index_name_address_mtu_switch_and_device() {
        let bytes = message(
            7,
            vec![
                LinkAttribute::IfName("enp3s0f0np0".into()),
                LinkAttribute::Address(vec![2, 0, 0, 0, 0, 9]),
                LinkAttribute::Mtu(9000),
                LinkAttribute::Other(netlink_packet_core::DefaultNla::new(
                    attribute::PHYS_SWITCH_ID,
                    vec![0x1e, 0x0f, 0xa4],
                )),
                LinkAttribute::ParentDevName("0000:03:00.0".into()),
                LinkAttribute::ParentDevBusName("pci".into()),
                LinkAttribute::Other(netlink_packet_core::DefaultNla::new(999, vec![1])),
            ],
        );
        assert_eq!(
            Link::decode(&bytes),
            Some(Link {
                ifindex: Ifindex::new(7).unwrap(),
                name: "enp3s0f0np0".into(),
                mac: Some(MacAddr([2, 0, 0, 0, 0, 9])),
                mtu: Some(9000),
                switch_id: Some("1e0fa4".into()),
                parent: Some("pci/0000:03:00.0".parse().unwrap()),
            })
        );
    }

    #[test]
    fn a_netdev_without_an_ethernet_address_has_none() {
        for address in [vec![], vec![0; 6], vec![1; 20]] {
            let bytes = message(
                1,
                vec![LinkAttribute::IfName("x".into()), LinkAttribute::Address(address)],
            );
            assert_eq!(Link::decode(&bytes).unwrap().mac, None);
        }
    }

    #[test]
    fn vf_settings_are_read_as_the_packet_crate_writes_them() {
        let list = vec![
            vf(
                0,
                vec![
                    VfInfo::Vlan(VfInfoVlan::new(0, 200, 3)),
                    VfInfo::VlanList(vec![VfVlan::Info(VfVlanInfo::new(
                        0,
                        200,
                        3,
                        VlanProtocol::Ieee8021Ad,
                    ))]),
                    VfInfo::TxRate(VfInfoTxRate::new(0, 500)),
                    VfInfo::Rate(VfInfoRate::new(0, 10, 500)),
                    VfInfo::SpoofCheck(VfInfoSpoofCheck::new(0, true)),
                    VfInfo::LinkState(VfInfoLinkState::new(0, wire::VfLinkState::Disable)),
                    VfInfo::Trust(VfInfoTrust::new(0, true)),
                ],
            ),
            vf(
                1,
                vec![
                    VfInfo::Vlan(VfInfoVlan::new(1, 5, 0)),
                    VfInfo::TxRate(VfInfoTxRate::new(1, 7)),
                ],
            ),
        ];
        let bytes = message(3, vec![LinkAttribute::NumVf(2), LinkAttribute::VfInfoList(list)]);
        let table = VfTable::decode(&bytes);
        assert_eq!(table.count, 2);
        assert_eq!(
            table.settings[&0],
            VfSettings {
                mac: MacAddr([2, 0xaa, 0, 0, 0, 0]),
                vlan: 200,
                vlan_proto: VlanProto::Dot1Ad,
                vlan_priority: Priority::try_from(3).unwrap(),
                tx_max: Bitrate::from_mbit(500),
                tx_min: Bitrate::from_mbit(10),
                spoof_check: Some(true),
                link_state: Some(VfLinkState::Disable),
                trust: Some(true),
            }
        );
        assert_eq!(
            table.settings[&1],
            VfSettings {
                mac: MacAddr([2, 0xaa, 0, 0, 0, 1]),
                vlan: 5,
                vlan_proto: VlanProto::Dot1Q,
                vlan_priority: Priority::default(),
                tx_max: Bitrate::from_mbit(7),
                tx_min: None,
                spoof_check: None,
                link_state: None,
                trust: None,
            }
        );
    }

    #[test]
    fn vf_settings_are_read_from_what_linux_7_3_says_of_a_netdevsim() {
        let bytes = recorded(include_str!("recorded/netdevsim-pf.hex"));
        let link = Link::decode(&bytes).unwrap();
        assert_eq!(link.name, "eth1");
        assert_eq!(link.parent, Some("netdevsim/netdevsim10".parse().unwrap()));
        assert_eq!(link.switch_id.map(|id| id.len()), Some(64));
        let settings = |mac, vlan, vlan_proto, priority, on, link_state| VfSettings {
            mac: MacAddr(mac),
            vlan,
            vlan_proto,
            vlan_priority: Priority::try_from(priority).unwrap(),
            tx_max: None,
            tx_min: None,
            spoof_check: Some(on),
            link_state: Some(link_state),
            trust: Some(false),
        };
        let mac = [2, 0xaa, 0, 0, 0, 1];
        assert_eq!(
            VfTable::decode(&bytes),
            VfTable {
                count: 2,
                settings: [
                    (0, settings([0; 6], 0, VlanProto::Dot1Q, 0, false, VfLinkState::Auto)),
                    (1, settings(mac, 200, VlanProto::Dot1Ad, 3, true, VfLinkState::Disable)),
                ]
                .into(),
            }
        );
    }

    #[test]
    fn vf_settings_are_read_from_what_linux_7_3_says_of_an_igb() {
        let bytes = recorded(include_str!("recorded/igb-pf.hex"));
        let link = Link::decode(&bytes).unwrap();
        assert_eq!(link.parent, Some("pci/0000:01:00.0".parse().unwrap()));
        assert_eq!(link.switch_id, None);
        let table = VfTable::decode(&bytes);
        let vlans: Vec<_> =
            table.settings.values().map(|vf| (vf.vlan, vf.vlan_proto, vf.spoof_check)).collect();
        let tagged = VlanProto::Dot1Q;
        assert_eq!(vlans, [(0, tagged, Some(true)), (5, tagged, Some(true))]);
    }

    #[test]
    fn a_spoof_check_of_all_ones_means_that_the_driver_does_not_say() {
        let mut info = Vec::new();
        let mac: Vec<u8> = [4_u32.to_ne_bytes().to_vec(), vec![0; 32]].concat();
        netlink::put(&mut info, vf_attribute::MAC, &mac);
        let spoof_check = [4_u32.to_ne_bytes(), u32::MAX.to_ne_bytes()].concat();
        netlink::put(&mut info, vf_attribute::SPOOFCHK, &spoof_check);
        let (number, settings) = vf_settings(&info).unwrap();
        assert_eq!((number, settings.spoof_check), (4, None));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let _ = Link::decode(&bytes);
            let _ = VfTable::decode(&bytes);
            let _ = vf_settings(&bytes);
        }

        #[test]
        fn a_message_cut_short_decodes_to_less(cut in 0_usize..200) {
            let list = vec![vf(0, vec![VfInfo::Vlan(VfInfoVlan::new(0, 200, 3))])];
            let bytes = message(3, vec![
                LinkAttribute::IfName("p".into()),
                LinkAttribute::NumVf(1),
                LinkAttribute::VfInfoList(list),
            ]);
            let cut = &bytes[..cut.min(bytes.len())];
            let _ = Link::decode(cut);
            prop_assert!(VfTable::decode(cut).settings.len() <= 1);
        }
    }
}
