//! devlink: eswitches, ports and rate objects, over generic netlink.
//!
//! In: devlink handles, and what is to be set. Out: modes, ports with what they stand for, rates. Formats and numbers are
//! those of `include/uapi/linux/devlink.h` and of `Documentation/netlink/specs/devlink.yaml` in the
//! kernel's source. Nothing here decides what should be. A malformed message decodes to one with less in
//! it; it never panics.

use std::{fmt, str::FromStr, time::Duration};

use genetlink::GenetlinkHandle;
use netlink_packet_core::{DecodeError, Emitable, ParseableParametrized};
use netlink_packet_generic::{GenlFamily, GenlHeader};
use nix::errno::Errno;

use super::{
    KernelRefusal,
    netlink::{
        Answer, attributes, flag, generic_refusal, generic_request, generic_request_within, put,
        put_text, text, u16_at, u32_at, u64_at,
    },
};
use crate::world::{LeafRate, RateView};

/// `DEVLINK_GENL_VERSION`.
const VERSION: u8 = 1;
/// `DEVLINK_GENL_MCGRP_CONFIG_NAME`.
const CONFIG_GROUP: &str = "config";
/// How often an interrupted dump is begun anew before it is taken as it is: the notification of
/// what interrupted it leads to another look anyway.
const DUMP_ATTEMPTS: usize = 3;
/// How long a driver may take for another mode: it takes its netdevs down and loads firmware.
const MODE_PATIENCE: Duration = Duration::from_secs(120);

/// `enum devlink_command`.
mod command {
    pub(super) const PORT_GET: u8 = 5;
    pub(super) const ESWITCH_GET: u8 = 29;
    pub(super) const ESWITCH_SET: u8 = 30;
    pub(super) const RATE_GET: u8 = 74;
    pub(super) const RATE_SET: u8 = 75;
}

/// `enum devlink_attr`.
mod attribute {
    pub(super) const BUS_NAME: u16 = 1;
    pub(super) const DEV_NAME: u16 = 2;
    pub(super) const PORT_INDEX: u16 = 3;
    pub(super) const PORT_NETDEV_IFINDEX: u16 = 6;
    pub(super) const PORT_NETDEV_NAME: u16 = 7;
    pub(super) const ESWITCH_MODE: u16 = 25;
    pub(super) const ESWITCH_INLINE_MODE: u16 = 26;
    pub(super) const ESWITCH_ENCAP_MODE: u16 = 62;
    pub(super) const PORT_FLAVOUR: u16 = 77;
    pub(super) const PORT_NUMBER: u16 = 78;
    pub(super) const PORT_PCI_PF_NUMBER: u16 = 127;
    pub(super) const PORT_PCI_VF_NUMBER: u16 = 128;
    pub(super) const PORT_EXTERNAL: u16 = 149;
    pub(super) const PORT_CONTROLLER_NUMBER: u16 = 150;
    pub(super) const RATE_TX_SHARE: u16 = 166;
    pub(super) const RATE_TX_MAX: u16 = 167;
    pub(super) const RATE_NODE_NAME: u16 = 168;
    pub(super) const RATE_PARENT_NODE_NAME: u16 = 169;
}

/// The name of a devlink device: bus and device, written `pci/0000:03:00.0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct DevlinkName {
    /// The bus, `pci` for example.
    pub(crate) bus: String,
    /// The device's name on it.
    pub(crate) device: String,
}

impl DevlinkName {
    /// The number of a PCI function, the digit behind the dot.
    pub(crate) fn pci_function(&self) -> Option<u16> {
        let (_, function) = self.device.rsplit_once('.').filter(|_| self.bus == "pci")?;
        function.parse().ok()
    }
}

impl fmt::Display for DevlinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.bus, self.device)
    }
}

impl FromStr for DevlinkName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((bus, device)) if !bus.is_empty() && !device.is_empty() => {
                Ok(DevlinkName { bus: bus.into(), device: device.into() })
            }
            _ => Err(format!(
                "`{text}` is not a devlink handle; write BUS/DEVICE as `devlink dev` prints it"
            )),
        }
    }
}

/// `enum devlink_eswitch_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DevlinkMode {
    /// `DEVLINK_ESWITCH_MODE_LEGACY`.
    Legacy,
    /// `DEVLINK_ESWITCH_MODE_SWITCHDEV`.
    Switchdev,
    /// One that this version does not know.
    Other(u16),
}

impl From<u16> for DevlinkMode {
    fn from(mode: u16) -> Self {
        match mode {
            0 => DevlinkMode::Legacy,
            1 => DevlinkMode::Switchdev,
            other => DevlinkMode::Other(other),
        }
    }
}

impl From<DevlinkMode> for u16 {
    fn from(mode: DevlinkMode) -> Self {
        match mode {
            DevlinkMode::Legacy => 0,
            DevlinkMode::Switchdev => 1,
            DevlinkMode::Other(other) => other,
        }
    }
}

/// What there is to know of a device's eswitch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DevlinkEswitch {
    /// Its mode.
    pub(crate) mode: DevlinkMode,
    /// How much of a frame a VF must hand over inline (`enum devlink_eswitch_inline_mode`).
    pub(crate) inline_mode: Option<&'static str>,
    /// Whether it can put frames into tunnels (`enum devlink_eswitch_encap_mode`).
    pub(crate) encap: Option<bool>,
}

/// `enum devlink_eswitch_inline_mode` as `devlink` prints it.
fn inline_mode(mode: u8) -> Option<&'static str> {
    ["none", "link", "network", "transport"].get(usize::from(mode)).copied()
}

/// A rate object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DevlinkRate {
    /// The device.
    pub(crate) device: DevlinkName,
    /// Of which port or group it is.
    pub(crate) of: RateOf,
    /// What it keeps to, and the group that it belongs to.
    pub(crate) view: RateView,
}

/// What a rate object is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RateOf {
    /// The port of this index.
    Leaf(u32),
    /// The group of this name.
    Node(String),
}

/// What a devlink port stands for (`enum devlink_port_flavour`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// The wire.
    Physical,
    /// A PF, seen from the eswitch.
    PciPf,
    /// A VF, seen from the eswitch.
    PciVf,
    /// Any other.
    Other(u16),
}

impl From<u16> for Flavour {
    fn from(flavour: u16) -> Self {
        match flavour {
            0 => Flavour::Physical,
            3 => Flavour::PciPf,
            4 => Flavour::PciVf,
            other => Flavour::Other(other),
        }
    }
}

/// A port of a devlink device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DevlinkPort {
    /// The device.
    pub(crate) device: DevlinkName,
    /// The port's index on it.
    pub(crate) index: u32,
    /// What it stands for; absent where the driver does not say.
    pub(crate) flavour: Option<Flavour>,
    /// Number of a physical port.
    pub(crate) number: Option<u32>,
    /// The PF's number, where it stands for a PF or VF.
    pub(crate) pf: Option<u16>,
    /// The VF's number, where it stands for one.
    pub(crate) vf: Option<u16>,
    /// The controller; 0 is this host's own.
    pub(crate) controller: u32,
    /// Whether it stands for a function of another host (a DPU's view of its server).
    pub(crate) external: bool,
    /// Interface index of its netdev; absent where there is none in our network namespace.
    pub(crate) ifindex: Option<u32>,
    /// Name of its netdev, as it was then.
    pub(crate) netdev: Option<String>,
}

/// A devlink message: what we ask, or what an answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DevlinkMessage {
    /// A request about a device, or about all.
    Ask {
        /// `enum devlink_command`.
        command: u8,
        /// The device; all of them (in a dump) where absent.
        device: Option<DevlinkName>,
        /// What is to be set.
        set: Set,
    },
    /// An answer or a notification.
    Told {
        /// `enum devlink_command`.
        command: u8,
        /// The attributes that we know.
        content: Box<Content>,
    },
}

/// Rates to be set, in bytes per second. A driver may know one of them only, and refuses a message
/// that names the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RateChange {
    /// At most.
    tx_max: Option<u64>,
    /// At least.
    tx_share: Option<u64>,
}

impl RateChange {
    /// What makes these rates of those.
    pub(crate) fn between(has: LeafRate, wanted: LeafRate) -> RateChange {
        let differs = |has: u64, wanted: u64| (has != wanted).then_some(wanted);
        RateChange {
            tx_max: differs(has.tx_max, wanted.tx_max),
            tx_share: differs(has.tx_share, wanted.tx_share),
        }
    }
}

/// What a request sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Set {
    /// Nothing.
    Nothing,
    /// An eswitch's mode.
    Mode(DevlinkMode),
    /// Rates of the port of this index.
    Rate(u32, RateChange),
}

/// The attributes of a devlink message that we know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Content {
    bus: Option<String>,
    device: Option<String>,
    port_index: Option<u32>,
    ifindex: Option<u32>,
    netdev: Option<String>,
    eswitch_mode: Option<u16>,
    inline_mode: Option<u8>,
    encap_mode: Option<u8>,
    rate: LeafRate,
    rate_node: Option<String>,
    rate_parent: Option<String>,
    flavour: Option<u16>,
    number: Option<u32>,
    pf: Option<u16>,
    vf: Option<u16>,
    external: Option<u8>,
    controller: Option<u32>,
}

impl Content {
    fn decode(bytes: &[u8]) -> Content {
        let mut content = Content::default();
        for (kind, value) in attributes(bytes) {
            match kind {
                attribute::BUS_NAME => content.bus = Some(text(value)),
                attribute::DEV_NAME => content.device = Some(text(value)),
                attribute::PORT_INDEX => content.port_index = u32_at(value, 0),
                attribute::PORT_NETDEV_IFINDEX => content.ifindex = u32_at(value, 0),
                attribute::PORT_NETDEV_NAME => content.netdev = Some(text(value)),
                attribute::ESWITCH_MODE => content.eswitch_mode = u16_at(value, 0),
                attribute::ESWITCH_INLINE_MODE => content.inline_mode = value.first().copied(),
                attribute::ESWITCH_ENCAP_MODE => content.encap_mode = value.first().copied(),
                attribute::RATE_TX_SHARE => {
                    content.rate.tx_share = u64_at(value, 0).unwrap_or_default();
                }
                attribute::RATE_TX_MAX => {
                    content.rate.tx_max = u64_at(value, 0).unwrap_or_default();
                }
                attribute::RATE_NODE_NAME => content.rate_node = Some(text(value)),
                attribute::RATE_PARENT_NODE_NAME => content.rate_parent = Some(text(value)),
                attribute::PORT_FLAVOUR => content.flavour = u16_at(value, 0),
                attribute::PORT_NUMBER => content.number = u32_at(value, 0),
                attribute::PORT_PCI_PF_NUMBER => content.pf = u16_at(value, 0),
                attribute::PORT_PCI_VF_NUMBER => content.vf = u16_at(value, 0),
                attribute::PORT_EXTERNAL => content.external = value.first().copied(),
                attribute::PORT_CONTROLLER_NUMBER => content.controller = u32_at(value, 0),
                _ => {}
            }
        }
        content
    }

    fn name(&self) -> Option<DevlinkName> {
        Some(DevlinkName { bus: self.bus.clone()?, device: self.device.clone()? })
    }

    fn eswitch(&self) -> Option<DevlinkEswitch> {
        Some(DevlinkEswitch {
            mode: self.eswitch_mode?.into(),
            inline_mode: self.inline_mode.and_then(inline_mode),
            encap: self.encap_mode.map(|mode| mode != 0),
        })
    }

    fn rate(&self) -> Option<DevlinkRate> {
        let of = match (&self.rate_node, self.port_index) {
            (Some(name), _) => RateOf::Node(name.clone()),
            (None, Some(port)) => RateOf::Leaf(port),
            (None, None) => return None,
        };
        let view = RateView { rate: self.rate, parent: self.rate_parent.clone() };
        Some(DevlinkRate { device: self.name()?, of, view })
    }

    fn port(&self) -> Option<DevlinkPort> {
        Some(DevlinkPort {
            device: self.name()?,
            index: self.port_index?,
            flavour: self.flavour.map(Flavour::from),
            number: self.number,
            pf: self.pf,
            vf: self.vf,
            controller: self.controller.unwrap_or(0),
            external: self.external.is_some_and(|external| external != 0),
            ifindex: self.ifindex.filter(|index| *index != 0),
            netdev: self.netdev.clone(),
        })
    }
}

impl GenlFamily for DevlinkMessage {
    fn family_name() -> &'static str {
        "devlink"
    }

    fn command(&self) -> u8 {
        match self {
            DevlinkMessage::Ask { command, .. } | DevlinkMessage::Told { command, .. } => *command,
        }
    }

    fn version(&self) -> u8 {
        VERSION
    }
}

impl DevlinkMessage {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let DevlinkMessage::Ask { device, set, .. } = self else { return bytes };
        if let Some(device) = device {
            put_text(&mut bytes, attribute::BUS_NAME, &device.bus);
            put_text(&mut bytes, attribute::DEV_NAME, &device.device);
        }
        match set {
            Set::Nothing => {}
            Set::Mode(mode) => {
                put(&mut bytes, attribute::ESWITCH_MODE, &u16::from(*mode).to_ne_bytes());
            }
            Set::Rate(port, RateChange { tx_max, tx_share }) => {
                put(&mut bytes, attribute::PORT_INDEX, &port.to_ne_bytes());
                for (kind, rate) in
                    [(attribute::RATE_TX_SHARE, tx_share), (attribute::RATE_TX_MAX, tx_max)]
                {
                    if let Some(rate) = rate {
                        put(&mut bytes, kind, &rate.to_ne_bytes());
                    }
                }
            }
        }
        bytes
    }
}

impl Emitable for DevlinkMessage {
    fn buffer_len(&self) -> usize {
        self.encode().len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        let bytes = self.encode();
        buffer[..bytes.len()].copy_from_slice(&bytes);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for DevlinkMessage {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        Ok(DevlinkMessage::Told { command: header.cmd, content: Box::new(Content::decode(bytes)) })
    }
}

/// The devlink side of the kernel.
#[derive(Debug, Clone)]
pub(crate) struct Devlink {
    handle: GenetlinkHandle,
}

impl Devlink {
    pub(crate) fn new(handle: GenetlinkHandle) -> Devlink {
        Devlink { handle }
    }

    /// The multicast group of configuration changes; `None` where this kernel has no devlink.
    pub(crate) async fn config_group(&self) -> Result<Option<u32>, KernelRefusal> {
        match self.handle.resolve_family::<DevlinkMessage>().await {
            Ok(family) => Ok(family.multicast_groups.get(CONFIG_GROUP).copied()),
            Err(error) => match generic_refusal("resolve devlink", error) {
                absent if absent.errno == Errno::ENOENT as i32 => Ok(None),
                refusal => Err(refusal),
            },
        }
    }

    /// A device's eswitch; `None` where it has none to configure.
    ///
    /// # Errors
    /// `ENODEV` where there is no such devlink device in our network namespace, `ENOENT` where the
    /// kernel has no devlink.
    pub(crate) async fn eswitch(
        &self,
        device: &DevlinkName,
    ) -> Result<Option<DevlinkEswitch>, KernelRefusal> {
        let what = format!("read the eswitch mode of {device}");
        let ask = DevlinkMessage::Ask {
            command: command::ESWITCH_GET,
            device: Some(device.clone()),
            set: Set::Nothing,
        };
        match self.ask(&what, ask, flag::REQUEST).await {
            Ok(answer) => Ok(answer.messages.iter().find_map(Content::eswitch)),
            Err(refusal) if refusal.errno == Errno::EOPNOTSUPP as i32 => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    /// Sets the mode of a device's eswitch. A driver may take a minute for it.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(crate) async fn set_eswitch_mode(
        &self,
        device: &DevlinkName,
        mode: DevlinkMode,
    ) -> Result<(), KernelRefusal> {
        let what = format!("set the eswitch mode of {device}");
        let ask = DevlinkMessage::Ask {
            command: command::ESWITCH_SET,
            device: Some(device.clone()),
            set: Set::Mode(mode),
        };
        let flags = flag::REQUEST | flag::ACK;
        let answer = generic_request_within(MODE_PATIENCE, &self.handle, &what, ask, flags);
        answer.await.map(drop)
    }

    /// Sets the rates of a port.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(crate) async fn set_rate(
        &self,
        device: &DevlinkName,
        port: u32,
        change: RateChange,
    ) -> Result<(), KernelRefusal> {
        let what = format!("set the rate of {device}/{port}");
        let ask = DevlinkMessage::Ask {
            command: command::RATE_SET,
            device: Some(device.clone()),
            set: Set::Rate(port, change),
        };
        self.ask(&what, ask, flag::REQUEST | flag::ACK).await.map(drop)
    }

    /// The ports of all devices of our network namespace.
    pub(crate) async fn ports(&self) -> Result<Vec<DevlinkPort>, KernelRefusal> {
        self.dump("read the devlink ports", command::PORT_GET, Content::port).await
    }

    /// The rate objects of all devices of our network namespace; none on a kernel without them.
    pub(crate) async fn rates(&self) -> Result<Vec<DevlinkRate>, KernelRefusal> {
        match self.dump("read the devlink rates", command::RATE_GET, Content::rate).await {
            Err(refusal) if refusal.errno == Errno::EOPNOTSUPP as i32 => Ok(Vec::new()),
            read => read,
        }
    }

    async fn dump<T>(
        &self,
        what: &str,
        command: u8,
        read: impl Fn(&Content) -> Option<T>,
    ) -> Result<Vec<T>, KernelRefusal> {
        let mut attempts = 1;
        loop {
            let ask = DevlinkMessage::Ask { command, device: None, set: Set::Nothing };
            let answer = self.ask(what, ask, flag::REQUEST | flag::DUMP).await?;
            if answer.interrupted && attempts < DUMP_ATTEMPTS {
                attempts += 1;
                continue;
            }
            return Ok(answer.messages.iter().filter_map(&read).collect());
        }
    }

    async fn ask(
        &self,
        what: &str,
        ask: DevlinkMessage,
        flags: u16,
    ) -> Result<Answer<Content>, KernelRefusal> {
        let answer = generic_request(&self.handle, what, ask, flags).await?;
        let messages = answer
            .messages
            .into_iter()
            .filter_map(|message| match message {
                DevlinkMessage::Told { content, .. } => Some(*content),
                DevlinkMessage::Ask { .. } => None,
            })
            .collect();
        Ok(Answer { messages, interrupted: answer.interrupted })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::eswitch::netlink::recorded;

    fn name() -> DevlinkName {
        "netdevsim/netdevsim10".parse().unwrap()
    }

    #[test]
    fn a_handle_reads_back_what_it_prints_and_knows_its_pci_function() {
        assert_eq!(name().to_string(), "netdevsim/netdevsim10");
        assert_eq!(name().pci_function(), None);
        let pci: DevlinkName = "pci/0000:03:00.1".parse().unwrap();
        assert_eq!(pci.pci_function(), Some(1));
        assert!("netdevsim10".parse::<DevlinkName>().is_err());
    }

    #[test]
    fn a_request_names_the_device_by_bus_and_name() {
        let ask = DevlinkMessage::Ask {
            command: command::ESWITCH_GET,
            device: Some(name()),
            set: Set::Nothing,
        };
        let mut bytes = vec![0; ask.buffer_len()];
        ask.emit(&mut bytes);
        let expected: &[u8] = b"\x0e\0\x01\0netdevsim\0\0\0\x10\0\x02\0netdevsim10\0";
        assert_eq!(bytes, expected);
        assert_eq!(ask.command(), 29);
    }

    /// The attributes behind the device's name.
    fn set(command: u8, set: Set) -> Vec<u8> {
        let ask = DevlinkMessage::Ask { command, device: Some(name()), set };
        let named = DevlinkMessage::Ask { command, device: Some(name()), set: Set::Nothing };
        ask.encode().split_off(named.encode().len())
    }

    #[test]
    fn a_mode_is_set_as_devlink_sets_it() {
        let bytes = set(command::ESWITCH_SET, Set::Mode(DevlinkMode::Switchdev));
        assert_eq!(bytes, b"\x06\0\x19\0\x01\0\0\0");
    }

    #[test]
    fn rates_are_set_in_bytes_per_second_and_read_back() {
        let rate = LeafRate { tx_max: 62_500_000, tx_share: 1_250_000 };
        let change = RateChange::between(LeafRate::default(), rate);
        let bytes = set(command::RATE_SET, Set::Rate(129, change));
        let expected =
            recorded("0800030081000000 0c00a600d012130000000000 0c00a700a0acb90300000000");
        assert_eq!(bytes, expected);
        let faster = LeafRate { tx_max: 1, ..rate };
        let bytes_of_one = set(command::RATE_SET, Set::Rate(1, RateChange::between(rate, faster)));
        assert_eq!(bytes_of_one, recorded("0800030001000000 0c00a7000100000000000000"));
        let mut told_bytes = Vec::new();
        put_text(&mut told_bytes, attribute::BUS_NAME, "netdevsim");
        put_text(&mut told_bytes, attribute::DEV_NAME, "netdevsim10");
        told_bytes.extend(bytes);
        put_text(&mut told_bytes, attribute::RATE_PARENT_NODE_NAME, "group");
        let expected = DevlinkRate {
            device: name(),
            of: RateOf::Leaf(129),
            view: RateView { rate, parent: Some("group".into()) },
        };
        assert_eq!(told(command::RATE_GET, &told_bytes).rate(), Some(expected));
    }

    #[test]
    fn inline_and_encap_mode_are_read_where_a_driver_has_them() {
        let mut bytes = Vec::new();
        put(&mut bytes, attribute::ESWITCH_MODE, &1_u16.to_ne_bytes());
        put(&mut bytes, attribute::ESWITCH_INLINE_MODE, &[3]);
        put(&mut bytes, attribute::ESWITCH_ENCAP_MODE, &[1]);
        let expected = DevlinkEswitch {
            mode: DevlinkMode::Switchdev,
            inline_mode: Some("transport"),
            encap: Some(true),
        };
        assert_eq!(told(command::ESWITCH_GET, &bytes).eswitch(), Some(expected));
    }

    fn told(command: u8, bytes: &[u8]) -> Content {
        let header = GenlHeader { cmd: command, version: VERSION };
        match DevlinkMessage::parse_with_param(bytes, header).unwrap() {
            DevlinkMessage::Told { content, .. } => *content,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn modes_are_read_from_what_linux_7_3_says_of_a_netdevsim() {
        let answer = |mode: &str| {
            recorded(&format!(
                "0e0001006e657464657673696d000000100002006e657464657673696d3130000800b80000000000\
                 06001900{mode}0000"
            ))
        };
        for (bytes, mode) in
            [(answer("0000"), DevlinkMode::Legacy), (answer("0100"), DevlinkMode::Switchdev)]
        {
            let content = told(command::ESWITCH_GET, &bytes);
            assert_eq!(content.name(), Some(name()));
            let expected = DevlinkEswitch { mode, inline_mode: None, encap: None };
            assert_eq!(content.eswitch(), Some(expected));
        }
    }

    #[test]
    fn ports_are_read_from_what_linux_7_3_says_of_a_netdevsim() {
        let physical = recorded(
            "0e0001006e657464657673696d000000100002006e657464657673696d3130000800b80000000000080003\
             000000000006000400020000000800060004000000090007006574683100000000050094000000000006004d\
             000000000008004e0001000000",
        );
        assert_eq!(
            told(command::PORT_GET, &physical).port(),
            Some(DevlinkPort {
                device: name(),
                index: 0,
                flavour: Some(Flavour::Physical),
                number: Some(1),
                pf: None,
                vf: None,
                controller: 0,
                external: false,
                ifindex: Some(4),
                netdev: Some("eth1".into()),
            })
        );
        let vf1 = recorded(
            "0e0001006e657464657673696d000000100002006e657464657673696d3130000800b80000000000080003\
             008100000006000400020000000800060006000000090007006574683300000000050094000000000006004d\
             0004000000080096000000000006007f000000000006008000010000000500950000000000",
        );
        assert_eq!(
            told(command::PORT_GET, &vf1).port(),
            Some(DevlinkPort {
                device: name(),
                index: 129,
                flavour: Some(Flavour::PciVf),
                number: None,
                pf: Some(0),
                vf: Some(1),
                controller: 0,
                external: false,
                ifindex: Some(6),
                netdev: Some("eth3".into()),
            })
        );
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_a_panic(
            command: u8,
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let content = told(command, &bytes);
            let _ = (content.port(), content.eswitch(), content.rate());
        }
    }
}
