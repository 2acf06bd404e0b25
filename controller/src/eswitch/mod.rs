//! What changes the host besides flows: representors made ready, VF settings written.
//!
//! In: netdevs and VFs by interface index, and what they should become. Out: the kernel's answer to
//! each setting, with its errno and its own words. devlink and ethtool are spoken here and nowhere
//! else. Nothing here decides what a setting should be, and nothing here retries.

pub(crate) mod devlink;
mod ethtool;
pub(crate) mod netlink;
pub mod vdpa;

use std::{fmt, future::Future};

use api::{
    resources::{VfLinkState, VlanProto},
    types::MacAddr,
};
use genetlink::GenetlinkHandle;
use netlink_packet_core::NetlinkMessage;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage, AddressProtocol},
    link::{
        self as wire, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage,
        LinkVfInfo, VfInfo, VfInfoLinkState, VfInfoMac, VfInfoSpoofCheck, VfInfoTrust, VfVlanInfo,
        VlanProtocol,
    },
};
use netlink_sys::AsyncSocket;
use nix::errno::Errno;
use rtnetlink::LinkUnspec;
use tc_flows::Ifindex;

use self::netlink::{Answer, flag};
use crate::world::NetdevView;

/// The kernel said no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {message} (errno {errno})")]
pub struct KernelRefusal {
    /// The error number, positive.
    pub errno: i32,
    /// The kernel's own words (extended acknowledgement); the error number's text where it gave
    /// none.
    pub message: String,
    /// What was asked of it.
    pub what: String,
}

impl KernelRefusal {
    /// Whether no answer came, so that the outcome is unknown.
    pub fn is_lost(&self) -> bool {
        [Errno::EPIPE, Errno::ETIMEDOUT, Errno::ENOBUFS, Errno::EPROTO]
            .contains(&Errno::from_raw(self.errno))
    }
}

/// Why the host cannot be looked at or changed at all.
#[derive(Debug, thiserror::Error)]
pub enum EswitchError {
    /// A netlink socket could not be opened or set up.
    #[error("{what}: {source}")]
    Socket {
        /// What was being done.
        what: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The kernel refused a request.
    #[error(transparent)]
    Refused(#[from] KernelRefusal),
    /// An adapter's configuration cannot be used; says what would be right.
    #[error("{0}")]
    Configuration(String),
}

/// Settings of a VF that should change; what is absent stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VfChange {
    /// Administrative MAC address (`IFLA_VF_MAC`).
    pub mac: Option<MacAddr>,
    /// Port VLAN (`IFLA_VF_VLAN_LIST`).
    pub vlan: Option<VfVlan>,
    /// Source MAC check (`IFLA_VF_SPOOFCHK`).
    pub spoof_check: Option<bool>,
    /// Link state (`IFLA_VF_LINK_STATE`).
    pub link_state: Option<VfLinkState>,
    /// Whether the VF may ask for every frame (`IFLA_VF_TRUST`).
    pub trust: Option<bool>,
}

/// The port VLAN of a VF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VfVlan {
    /// VLAN id; 0 for none.
    pub vid: u16,
    /// Priority, 0 to 7.
    pub qos: u8,
    /// Tag protocol.
    pub proto: VlanProto,
}

/// A kind of VF setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VfSetting {
    /// Administrative MAC address.
    Mac,
    /// Port VLAN.
    Vlan,
    /// Source MAC check.
    SpoofCheck,
    /// Link state.
    LinkState,
    /// Whether the VF may ask for every frame.
    Trust,
}

impl fmt::Display for VfSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            VfSetting::Mac => "MAC address",
            VfSetting::Vlan => "VLAN",
            VfSetting::SpoofCheck => "spoof check",
            VfSetting::LinkState => "link state",
            VfSetting::Trust => "trust",
        })
    }
}

/// The connections through which the host is changed. A clone shares them.
///
/// They live on a thread of their own, since the kernel works inside the sender's system call; the
/// thread ends with the last clone. The sockets belong to the network namespace of the thread that
/// calls [`EswitchHandle::open`].
#[derive(Debug, Clone)]
pub struct EswitchHandle {
    route: rtnetlink::Handle,
    generic: GenetlinkHandle,
}

impl EswitchHandle {
    /// Opens the connections.
    ///
    /// # Errors
    /// When a netlink socket or the thread cannot be had.
    pub fn open() -> Result<EswitchHandle, EswitchError> {
        netlink::on_own_thread("eswitch", || {
            let (route_work, route) = route_connection()?;
            let (generic_work, generic) = generic_connection()?;
            let work = async {
                tokio::join!(route_work, generic_work);
            };
            Ok((work, EswitchHandle { route, generic }))
        })
    }

    /// Makes a representor ready to carry flows: no IPv6 address of its own (the host would talk on
    /// it otherwise), TC offload on where the device can, link up. Promiscuous mode is not touched.
    /// Not for an uplink, which may carry the host's own IPv6: see [`Self::prepare_uplink`].
    ///
    /// # Errors
    /// The first step that the kernel refused; the steps before it are done.
    pub async fn prepare_representor(&self, netdev: &NetdevView) -> Result<(), KernelRefusal> {
        self.keep_ipv6_off(netdev).await?;
        self.switch_tc_offload_on(netdev).await?;
        let message = LinkUnspec::new_with_index(netdev.ifindex.get()).up().build();
        self.set_link(&format!("set {} up", netdev.name), message).await
    }

    /// Switches TC offload on where the device can: flows installed before that miss the hardware.
    /// This is all that an uplink needs; its addresses and its link state are the host's.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn switch_tc_offload_on(&self, netdev: &NetdevView) -> Result<(), KernelRefusal> {
        ethtool::switch_tc_offload_on(&self.generic, netdev.ifindex).await.map_err(|refusal| {
            KernelRefusal { what: format!("{} of {}", refusal.what, netdev.name), ..refusal }
        })
    }

    /// Writes settings of VF number `vf` of the PF `pf`, each in a message of its own, so that one
    /// refusal does not hide the rest. Answers in the order MAC, VLAN, spoof check, link state,
    /// trust, for those that `change` names.
    ///
    /// A driver may accept a setting and ignore it: what is in force is what the next snapshot of
    /// `observe::host` shows.
    pub async fn set_vf(
        &self,
        pf: Ifindex,
        vf: u16,
        change: &VfChange,
    ) -> Vec<(VfSetting, Result<(), KernelRefusal>)> {
        let mut answers = Vec::new();
        for (setting, info) in vf_infos(vf, change) {
            let what = format!("set the {setting} of VF {vf}");
            let list = LinkAttribute::VfInfoList(vec![LinkVfInfo(vec![info])]);
            let message = LinkUnspec::new_with_index(pf.get()).append_extra_attribute(list).build();
            answers.push((setting, self.set_link(&what, message).await));
        }
        answers
    }

    /// Sees to it that the netdev never makes itself an IPv6 address, and takes away one that it
    /// made when it came up earlier. A netdev without IPv6 needs nothing.
    async fn keep_ipv6_off(&self, netdev: &NetdevView) -> Result<(), KernelRefusal> {
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let message = LinkUnspec::new_with_index(netdev.ifindex.get())
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
                mode,
            ])]))
            .build();
        let what = format!("set addr_gen_mode none on {}", netdev.name);
        match self.set_link(&what, message).await {
            Err(refusal) if refusal.errno == Errno::EAFNOSUPPORT as i32 => return Ok(()),
            other => other?,
        }
        let what = format!("read the IPv6 addresses of {}", netdev.name);
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet6;
        message.header.index = netdev.ifindex.get();
        let dump = flag::REQUEST | flag::DUMP;
        let answer = self.ask(&what, RouteNetlinkMessage::GetAddress(message), dump).await?;
        for reply in answer.messages {
            let RouteNetlinkMessage::NewAddress(address) = reply else { continue };
            let made_by_kernel = AddressAttribute::Protocol(AddressProtocol::LinkLocal);
            if address.header.index == netdev.ifindex.get()
                && address.attributes.contains(&made_by_kernel)
            {
                let what = format!("take the link-local address off {}", netdev.name);
                let ask = RouteNetlinkMessage::DelAddress(address);
                self.ask(&what, ask, flag::REQUEST | flag::ACK).await?;
            }
        }
        Ok(())
    }

    async fn set_link(&self, what: &str, message: LinkMessage) -> Result<(), KernelRefusal> {
        let ask = RouteNetlinkMessage::SetLink(message);
        self.ask(what, ask, flag::REQUEST | flag::ACK).await.map(drop)
    }

    async fn ask(
        &self,
        what: &str,
        ask: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Answer<RouteNetlinkMessage>, KernelRefusal> {
        let mut request = NetlinkMessage::from(ask);
        request.header.flags = flags;
        let replies = self
            .route
            .clone()
            .request(request)
            .map_err(|error| netlink::lost(what, Errno::EPIPE, &error.to_string()))?;
        netlink::answer(what, replies).await
    }
}

/// The settings that a change names, as rtnetlink takes them.
fn vf_infos(vf: u16, change: &VfChange) -> Vec<(VfSetting, VfInfo)> {
    let id = u32::from(vf);
    let mac = change.mac.map(|mac| VfInfo::Mac(VfInfoMac::new(id, &mac.0)));
    let vlan = change.vlan.map(|vlan| {
        let proto = match vlan.proto {
            VlanProto::Dot1Q => VlanProtocol::Ieee8021Q,
            VlanProto::Dot1Ad => VlanProtocol::Ieee8021Ad,
        };
        let info = VfVlanInfo::new(id, u32::from(vlan.vid), u32::from(vlan.qos), proto);
        VfInfo::VlanList(vec![wire::VfVlan::Info(info)])
    });
    let spoof_check =
        change.spoof_check.map(|on| VfInfo::SpoofCheck(VfInfoSpoofCheck::new(id, on)));
    let link_state = change.link_state.map(|state| {
        let state = match state {
            VfLinkState::Auto => wire::VfLinkState::Auto,
            VfLinkState::Enable => wire::VfLinkState::Enable,
            VfLinkState::Disable => wire::VfLinkState::Disable,
        };
        VfInfo::LinkState(VfInfoLinkState::new(id, state))
    });
    let trust = change.trust.map(|on| VfInfo::Trust(VfInfoTrust::new(id, on)));
    [
        (VfSetting::Mac, mac),
        (VfSetting::Vlan, vlan),
        (VfSetting::SpoofCheck, spoof_check),
        (VfSetting::LinkState, link_state),
        (VfSetting::Trust, trust),
    ]
    .into_iter()
    .filter_map(|(setting, info)| Some((setting, info?)))
    .collect()
}

/// An rtnetlink connection that tells the kernel's words, and what drives it.
fn route_connection() -> Result<(impl Future<Output = ()>, rtnetlink::Handle), EswitchError> {
    let failed = |source| EswitchError::Socket { what: "cannot open an rtnetlink socket", source };
    // Strict checking makes the kernel filter a dump by what the request names.
    let (mut connection, handle, _) =
        rtnetlink::new_connection_with_strict_check().map_err(failed)?;
    let socket = connection.socket_mut().socket_mut();
    socket.set_ext_ack(true).map_err(failed)?;
    socket.set_cap_ack(true).map_err(failed)?;
    connection.set_forward_ack(true);
    connection.set_forward_done(true);
    Ok((connection, handle))
}

/// A generic netlink connection that tells the kernel's words, and what drives it.
pub(crate) fn generic_connection()
-> Result<(impl Future<Output = ()>, GenetlinkHandle), EswitchError> {
    let failed =
        |source| EswitchError::Socket { what: "cannot open a generic netlink socket", source };
    let (mut connection, handle, _) = genetlink::new_connection().map_err(failed)?;
    let socket = connection.socket_mut().socket_mut();
    socket.set_ext_ack(true).map_err(failed)?;
    socket.set_cap_ack(true).map_err(failed)?;
    connection.set_forward_ack(true);
    connection.set_forward_done(true);
    Ok((connection, handle))
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;

    use super::*;
    use crate::eswitch::netlink::recorded;

    fn encoded(change: &VfChange) -> Vec<(VfSetting, Vec<u8>)> {
        let encode = |(setting, info)| {
            let list = LinkVfInfo(vec![info]);
            let mut bytes = vec![0; list.buffer_len()];
            list.emit(&mut bytes);
            (setting, bytes)
        };
        vf_infos(1, change).into_iter().map(encode).collect()
    }

    #[test]
    fn each_setting_is_written_as_iproute2_writes_it_in_a_list_of_its_own() {
        let change = VfChange {
            mac: Some(MacAddr([2, 0xaa, 0, 0, 0, 1])),
            vlan: Some(VfVlan { vid: 200, qos: 3, proto: VlanProto::Dot1Ad }),
            spoof_check: Some(true),
            link_state: Some(VfLinkState::Disable),
            trust: Some(true),
        };
        let mac = format!("2c000100280001000100000002aa00000001{}", "00".repeat(26));
        let vlan = "1c00010018000c001400010001000000c80000000300000088a80000";
        assert_eq!(
            encoded(&change),
            [
                (VfSetting::Mac, recorded(&mac)),
                (VfSetting::Vlan, recorded(vlan)),
                (VfSetting::SpoofCheck, recorded("100001000c0004000100000001000000")),
                (VfSetting::LinkState, recorded("100001000c0005000100000002000000")),
                (VfSetting::Trust, recorded("100001000c0009000100000001000000")),
            ]
        );
    }

    #[test]
    fn what_a_change_does_not_name_is_not_written() {
        assert!(encoded(&VfChange::default()).is_empty());
        let change = VfChange { spoof_check: Some(false), ..VfChange::default() };
        let off = recorded("100001000c0004000100000000000000");
        assert_eq!(encoded(&change), [(VfSetting::SpoofCheck, off)]);
    }
}
