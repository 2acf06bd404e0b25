//! What changes the host besides flows: representors made ready, VF settings and rates written, modes
//! and numbers of VFs changed.
//!
//! In: netdevs and VFs by interface index, and what they should become. Out: the kernel's answer to
//! each setting, with its errno and its own words. devlink and ethtool are spoken here and nowhere
//! else. Nothing here decides what a setting should be, and nothing here retries.

pub(crate) mod devlink;
mod ethtool;
pub(crate) mod netlink;
pub(crate) mod sriov;
mod switched;
pub mod vdpa;

use std::{
    fmt,
    future::Future,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

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
        LinkVfInfo, VfInfo, VfInfoLinkState, VfInfoMac, VfInfoRate, VfInfoSpoofCheck, VfInfoTrust,
        VfInfoTxRate, VfVlanInfo, VlanProtocol,
    },
};
use netlink_sys::AsyncSocket;
use nix::errno::Errno;
use rtnetlink::LinkUnspec;
use tc_flows::Ifindex;

use self::{
    devlink::Devlink,
    netlink::{Answer, flag},
    switched::Switched,
};
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
    /// Rates (`IFLA_VF_RATE`, or the older `IFLA_VF_TX_RATE`).
    pub rate: Option<VfRate>,
    /// Source MAC check (`IFLA_VF_SPOOFCHK`).
    pub spoof_check: Option<bool>,
    /// Link state (`IFLA_VF_LINK_STATE`).
    pub link_state: Option<VfLinkState>,
    /// Whether the VF may ask for every frame (`IFLA_VF_TRUST`).
    pub trust: Option<bool>,
}

impl VfChange {
    /// The settings that it names, in the order in which they are written: a link goes down before
    /// anything else, and comes up after everything else, so that no frame passes in between.
    pub fn settings(&self) -> Vec<VfSetting> {
        let down = self.link_state == Some(VfLinkState::Disable);
        [
            (VfSetting::LinkState, down),
            (VfSetting::Mac, self.mac.is_some()),
            (VfSetting::Vlan, self.vlan.is_some()),
            (VfSetting::SpoofCheck, self.spoof_check.is_some()),
            (VfSetting::Trust, self.trust.is_some()),
            (VfSetting::Rate, self.rate.is_some()),
            (VfSetting::LinkState, self.link_state.is_some() && !down),
        ]
        .into_iter()
        .filter_map(|(setting, named)| named.then_some(setting))
        .collect()
    }
}

/// The rates of a VF, of what it sends (`struct ifla_vf_rate`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VfRate {
    /// At most, in Mbit/s; 0 for no limit.
    pub max_mbit: u32,
    /// At least, in Mbit/s; 0 for no promise.
    pub min_mbit: u32,
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
    /// Rates.
    Rate,
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
            VfSetting::Rate => "rate",
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
    switched: Option<Switched>,
    /// Whether one of them has ended.
    ended: Arc<AtomicBool>,
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
            let ended = Arc::new(AtomicBool::new(false));
            let handle =
                EswitchHandle { route, generic, switched: None, ended: Arc::clone(&ended) };
            let work = async move {
                tokio::select! {
                    () = route_work => {}
                    () = generic_work => {}
                }
                ended.store(true, Ordering::Relaxed);
            };
            Ok((work, handle))
        })
    }

    /// New connections, where one of these has ended: its socket broke.
    ///
    /// # Errors
    /// As [`EswitchHandle::open`].
    pub fn opened_anew(&self) -> Result<Option<EswitchHandle>, EswitchError> {
        if !self.ended.load(Ordering::Relaxed) {
            return Ok(None);
        }
        Ok(Some(EswitchHandle { switched: self.switched.clone(), ..EswitchHandle::open()? }))
    }

    /// The same, with a folder in which it notes which netdevs' TC offload it switches on.
    pub fn noting_in(self, folder: PathBuf) -> EswitchHandle {
        EswitchHandle { switched: Some(Switched::in_folder(folder)), ..self }
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
        let of = |refusal: KernelRefusal| KernelRefusal {
            what: format!("{} of {}", refusal.what, netdev.name),
            ..refusal
        };
        let before = ethtool::tc_offload(&self.generic, netdev.ifindex).await.map_err(of)?;
        if before.active || !before.changeable {
            return Ok(());
        }
        if let Some(switched) = &self.switched
            && let Err(error) = switched.note(netdev)
        {
            tracing::warn!(netdev = netdev.name, %error, "a teardown will leave hw-tc-offload on");
        }
        ethtool::switch_tc_offload(&self.generic, netdev.ifindex, true).await.map_err(of)
    }

    /// Switches TC offload off again where [`Self::switch_tc_offload_on`] has switched it on. Says
    /// how many netdevs that were, and what could not be put back.
    pub async fn put_tc_offload_back(&self) -> (usize, Vec<String>) {
        let (mut put_back, mut left) = (0, Vec::new());
        let Some(switched) = &self.switched else { return (put_back, left) };
        let noted = switched.all().unwrap_or_else(|error| {
            left.push(format!("hw-tc-offload: {error}"));
            Vec::new()
        });
        for (name, ifindex) in noted {
            let is = std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex"));
            let is = is.ok().and_then(|text| Ifindex::new(text.trim().parse().ok()?));
            let done = match ifindex.filter(|ifindex| Some(*ifindex) == is) {
                Some(ifindex) => {
                    ethtool::switch_tc_offload(&self.generic, ifindex, false).await.map(|()| 1)
                }
                // It went, and took its switch along.
                None => Ok(0),
            };
            match done {
                Ok(count) => {
                    put_back += count;
                    let forgotten = switched.forget(&name);
                    left.extend(forgotten.err().map(|error| format!("{name}: {error}")));
                }
                Err(refusal) => left.push(format!("{name}: {refusal}")),
            }
        }
        (put_back, left)
    }

    /// The devlink side.
    pub(crate) fn devlink(&self) -> Devlink {
        Devlink::new(self.generic.clone())
    }

    /// Writes settings of VF number `vf` of the PF `pf`, each in a message of its own, so that one
    /// refusal does not hide the rest. Answers in the order of [`VfChange::settings`].
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
        for setting in change.settings() {
            let Some(info) = vf_info(vf, change, setting) else { continue };
            let what = format!("set the {setting} of VF {vf}");
            let mut answer = self.set_vf_info(&what, pf, info).await;
            // A kernel of before 3.16 knows only the older attribute, which has no minimum.
            if let (Some(old), Err(refusal)) = (old_rate(vf, change, setting), &answer)
                && [Errno::EINVAL, Errno::EOPNOTSUPP].contains(&Errno::from_raw(refusal.errno))
                && self.set_vf_info(&what, pf, old).await.is_ok()
            {
                answer = Ok(());
            }
            answers.push((setting, answer));
        }
        answers
    }

    async fn set_vf_info(
        &self,
        what: &str,
        pf: Ifindex,
        info: VfInfo,
    ) -> Result<(), KernelRefusal> {
        let list = LinkAttribute::VfInfoList(vec![LinkVfInfo(vec![info])]);
        let message = LinkUnspec::new_with_index(pf.get()).append_extra_attribute(list).build();
        self.set_link(what, message).await
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

/// A setting that a change names, as rtnetlink takes it.
fn vf_info(vf: u16, change: &VfChange, setting: VfSetting) -> Option<VfInfo> {
    let id = u32::from(vf);
    Some(match setting {
        VfSetting::Mac => VfInfo::Mac(VfInfoMac::new(id, &change.mac?.0)),
        VfSetting::Vlan => {
            let vlan = change.vlan?;
            let proto = match vlan.proto {
                VlanProto::Dot1Q => VlanProtocol::Ieee8021Q,
                VlanProto::Dot1Ad => VlanProtocol::Ieee8021Ad,
            };
            let info = VfVlanInfo::new(id, u32::from(vlan.vid), u32::from(vlan.qos), proto);
            VfInfo::VlanList(vec![wire::VfVlan::Info(info)])
        }
        VfSetting::Rate => {
            let VfRate { max_mbit, min_mbit } = change.rate?;
            VfInfo::Rate(VfInfoRate::new(id, min_mbit, max_mbit))
        }
        VfSetting::SpoofCheck => VfInfo::SpoofCheck(VfInfoSpoofCheck::new(id, change.spoof_check?)),
        VfSetting::LinkState => {
            let state = match change.link_state? {
                VfLinkState::Auto => wire::VfLinkState::Auto,
                VfLinkState::Enable => wire::VfLinkState::Enable,
                VfLinkState::Disable => wire::VfLinkState::Disable,
            };
            VfInfo::LinkState(VfInfoLinkState::new(id, state))
        }
        VfSetting::Trust => VfInfo::Trust(VfInfoTrust::new(id, change.trust?)),
    })
}

/// The rate as the older attribute has it, where that can say it.
fn old_rate(vf: u16, change: &VfChange, setting: VfSetting) -> Option<VfInfo> {
    let rate = change.rate.filter(|rate| setting == VfSetting::Rate && rate.min_mbit == 0)?;
    Some(VfInfo::TxRate(VfInfoTxRate::new(u32::from(vf), rate.max_mbit)))
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

    fn bytes(info: VfInfo) -> Vec<u8> {
        let list = LinkVfInfo(vec![info]);
        let mut bytes = vec![0; list.buffer_len()];
        list.emit(&mut bytes);
        bytes
    }

    fn encoded(change: &VfChange) -> Vec<(VfSetting, Vec<u8>)> {
        let encode = |setting| Some((setting, bytes(vf_info(1, change, setting)?)));
        change.settings().into_iter().filter_map(encode).collect()
    }

    #[test]
    fn each_setting_is_written_as_iproute2_writes_it_in_a_list_of_its_own() {
        let change = VfChange {
            mac: Some(MacAddr([2, 0xaa, 0, 0, 0, 1])),
            vlan: Some(VfVlan { vid: 200, qos: 3, proto: VlanProto::Dot1Ad }),
            rate: Some(VfRate { max_mbit: 500, min_mbit: 10 }),
            spoof_check: Some(true),
            link_state: Some(VfLinkState::Disable),
            trust: Some(true),
        };
        let mac = format!("2c000100280001000100000002aa00000001{}", "00".repeat(26));
        let vlan = "1c00010018000c001400010001000000c80000000300000088a80000";
        assert_eq!(
            encoded(&change),
            [
                (VfSetting::LinkState, recorded("100001000c0005000100000002000000")),
                (VfSetting::Mac, recorded(&mac)),
                (VfSetting::Vlan, recorded(vlan)),
                (VfSetting::SpoofCheck, recorded("100001000c0004000100000001000000")),
                (VfSetting::Trust, recorded("100001000c0009000100000001000000")),
                (VfSetting::Rate, recorded("1400010010000600010000000a000000f4010000")),
            ]
        );
        let old = old_rate(1, &change, VfSetting::Rate);
        assert_eq!(old, None, "the older attribute has no minimum");
    }

    #[test]
    fn the_older_rate_attribute_says_a_maximum() {
        let rate = Some(VfRate { max_mbit: 500, min_mbit: 0 });
        let change = VfChange { rate, ..VfChange::default() };
        let old = old_rate(1, &change, VfSetting::Rate).map(bytes);
        assert_eq!(old, Some(recorded("100001000c00030001000000f4010000")));
        assert_eq!(old_rate(1, &change, VfSetting::Mac), None);
    }

    #[test]
    fn a_link_goes_down_first_and_comes_up_last() {
        let change = |link_state| VfChange {
            mac: Some(MacAddr([0; 6])),
            link_state: Some(link_state),
            ..VfChange::default()
        };
        assert_eq!(change(VfLinkState::Disable).settings(), [VfSetting::LinkState, VfSetting::Mac]);
        for up in [VfLinkState::Auto, VfLinkState::Enable] {
            assert_eq!(change(up).settings(), [VfSetting::Mac, VfSetting::LinkState]);
        }
    }

    #[test]
    fn what_a_change_does_not_name_is_not_written() {
        assert!(encoded(&VfChange::default()).is_empty());
        let change = VfChange { spoof_check: Some(false), ..VfChange::default() };
        let off = recorded("100001000c0004000100000000000000");
        assert_eq!(encoded(&change), [(VfSetting::SpoofCheck, off)]);
    }
}
