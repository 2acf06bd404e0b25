//! vDPA management: which devices can make vDPA devices, which there are, and what they were given,
//! over generic netlink (family `vdpa`).
//!
//! In: names of management devices and vDPA devices. Out: inventories and configurations, and
//! devices made or removed. Formats and numbers are those of `include/uapi/linux/vdpa.h`. The family
//! exists in the initial network namespace only and sends no notifications. A malformed message
//! decodes to one with less in it; it never panics. Nothing here decides what there should be.

use std::{fmt, fs, path::Path};

use api::types::MacAddr;
use genetlink::GenetlinkHandle;
use netlink_packet_core::{DecodeError, Emitable, ParseableParametrized};
use netlink_packet_generic::{GenlFamily, GenlHeader};
use nix::errno::Errno;

use super::{
    EswitchError, KernelRefusal, generic_connection,
    netlink::{
        self, Answer, attributes, flag, generic_request, put, put_text, text, u16_at, u32_at,
    },
};

/// `VDPA_GENL_VERSION`.
const VERSION: u8 = 1;

/// The class of network devices (`VIRTIO_ID_NET` in `include/uapi/linux/virtio_ids.h`).
const NETWORK: u32 = 1;

/// `VIRTIO_NET_F_CTRL_RX` of `include/uapi/linux/virtio_net.h`.
const CTRL_RX: u32 = 18;

/// Where the kernel shows vDPA devices.
const DEVICES: &str = "/sys/bus/vdpa/devices";

/// `enum vdpa_command`.
mod command {
    pub(super) const MGMTDEV_GET: u8 = 2;
    pub(super) const DEV_NEW: u8 = 3;
    pub(super) const DEV_DEL: u8 = 4;
    pub(super) const DEV_GET: u8 = 5;
    pub(super) const DEV_CONFIG_GET: u8 = 6;
}

/// `enum vdpa_attr`.
mod attribute {
    pub(super) const MGMTDEV_BUS_NAME: u16 = 1;
    pub(super) const MGMTDEV_DEV_NAME: u16 = 2;
    pub(super) const MGMTDEV_SUPPORTED_CLASSES: u16 = 3;
    pub(super) const DEV_NAME: u16 = 4;
    pub(super) const DEV_ID: u16 = 5;
    pub(super) const DEV_MAX_VQS: u16 = 7;
    pub(super) const DEV_NET_CFG_MACADDR: u16 = 10;
    pub(super) const DEV_NET_STATUS: u16 = 11;
    pub(super) const DEV_NET_CFG_MTU: u16 = 13;
    pub(super) const DEV_NEGOTIATED_FEATURES: u16 = 14;
    pub(super) const DEV_SUPPORTED_FEATURES: u16 = 16;
    pub(super) const DEV_FEATURES: u16 = 20;
}

/// A device that makes vDPA devices, printed as `pci/0000:03:00.2` or `vdpasim_net`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ManagementName {
    /// The bus; absent for simulated devices.
    pub bus: Option<String>,
    /// The device's name on it.
    pub device: String,
}

impl std::str::FromStr for ManagementName {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.split_once('/') {
            Some((bus, device)) => {
                ManagementName { bus: Some(bus.to_owned()), device: device.to_owned() }
            }
            None => ManagementName { bus: None, device: text.to_owned() },
        })
    }
}

impl fmt::Display for ManagementName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(bus) = &self.bus {
            write!(f, "{bus}/")?;
        }
        f.write_str(&self.device)
    }
}

/// A device that makes vDPA devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Management {
    /// Its name.
    pub name: ManagementName,
    /// Whether it makes network devices.
    pub network: bool,
    /// The virtio features that it offers, by bit; 0 where it does not say.
    pub features: u64,
}

/// A vDPA device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VdpaDevice {
    /// Its name on the vDPA bus.
    pub name: String,
    /// What made it.
    pub management: ManagementName,
    /// Whether it is a network device.
    pub network: bool,
    /// Its virtqueues, at most.
    pub max_vqs: Option<u32>,
}

/// What a vDPA network device was given, and what its driver has taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VdpaConfig {
    /// Its address; absent where it has none of its own.
    pub mac: Option<MacAddr>,
    /// Its MTU.
    pub mtu: Option<u16>,
    /// Whether its link is up; absent where it does not say.
    pub link_up: Option<bool>,
    /// The virtio features that it offers, by bit.
    pub features: Option<u64>,
    /// The virtio features that its driver has taken; absent until one has.
    pub negotiated: Option<u64>,
}

impl VdpaConfig {
    /// Whether its driver has taken the means to set receive modes.
    pub fn sets_rx_modes(&self) -> Option<bool> {
        self.negotiated.map(|features| features >> CTRL_RX & 1 == 1)
    }
}

/// A vDPA device that is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVdpaDevice {
    /// Its name on the vDPA bus.
    pub name: String,
    /// What is to make it.
    pub management: ManagementName,
    /// Its address; some devices take none (`vp_vdpa` for one) and refuse one.
    pub mac: Option<MacAddr>,
    /// Its MTU.
    pub mtu: Option<u16>,
}

/// A message of the family: what we ask, or what an answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum VdpaMessage {
    Ask { command: u8, attributes: Vec<u8> },
    Told { content: Box<Content> },
}

/// The attributes that we know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Content {
    bus: Option<String>,
    management: Option<String>,
    classes: Option<u64>,
    name: Option<String>,
    id: Option<u32>,
    max_vqs: Option<u32>,
    mac: Option<MacAddr>,
    status: Option<u16>,
    mtu: Option<u16>,
    negotiated: Option<u64>,
    supported: Option<u64>,
    features: Option<u64>,
}

fn u64_at(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?))
}

impl Content {
    fn decode(bytes: &[u8]) -> Content {
        let mut content = Content::default();
        for (kind, value) in attributes(bytes) {
            match kind {
                attribute::MGMTDEV_BUS_NAME => content.bus = Some(text(value)),
                attribute::MGMTDEV_DEV_NAME => content.management = Some(text(value)),
                attribute::MGMTDEV_SUPPORTED_CLASSES => content.classes = u64_at(value),
                attribute::DEV_NAME => content.name = Some(text(value)),
                attribute::DEV_ID => content.id = u32_at(value, 0),
                attribute::DEV_MAX_VQS => content.max_vqs = u32_at(value, 0),
                attribute::DEV_NET_CFG_MACADDR => {
                    content.mac = value.try_into().ok().map(MacAddr);
                }
                attribute::DEV_NET_STATUS => content.status = u16_at(value, 0),
                attribute::DEV_NET_CFG_MTU => content.mtu = u16_at(value, 0),
                attribute::DEV_NEGOTIATED_FEATURES => content.negotiated = u64_at(value),
                attribute::DEV_SUPPORTED_FEATURES => content.supported = u64_at(value),
                attribute::DEV_FEATURES => content.features = u64_at(value),
                _ => {}
            }
        }
        content
    }

    fn management_name(&self) -> Option<ManagementName> {
        Some(ManagementName { bus: self.bus.clone(), device: self.management.clone()? })
    }

    fn management(&self) -> Option<Management> {
        Some(Management {
            name: self.management_name()?,
            network: self.classes? >> NETWORK & 1 == 1,
            features: self.supported.unwrap_or(0),
        })
    }

    fn device(&self) -> Option<VdpaDevice> {
        Some(VdpaDevice {
            name: self.name.clone()?,
            management: self.management_name()?,
            network: self.id == Some(NETWORK),
            max_vqs: self.max_vqs,
        })
    }

    fn config(&self) -> VdpaConfig {
        VdpaConfig {
            mac: self.mac.filter(MacAddr::is_station),
            mtu: self.mtu,
            // `VIRTIO_NET_S_LINK_UP` is bit 0.
            link_up: self.status.map(|status| status & 1 == 1),
            features: self.features,
            negotiated: self.negotiated,
        }
    }
}

impl GenlFamily for VdpaMessage {
    fn family_name() -> &'static str {
        "vdpa"
    }

    fn command(&self) -> u8 {
        match self {
            VdpaMessage::Ask { command, .. } => *command,
            VdpaMessage::Told { .. } => 0,
        }
    }

    fn version(&self) -> u8 {
        VERSION
    }
}

impl VdpaMessage {
    fn bytes(&self) -> &[u8] {
        match self {
            VdpaMessage::Ask { attributes, .. } => attributes,
            VdpaMessage::Told { .. } => &[],
        }
    }
}

impl Emitable for VdpaMessage {
    fn buffer_len(&self) -> usize {
        self.bytes().len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        let bytes = self.bytes();
        buffer[..bytes.len()].copy_from_slice(bytes);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for VdpaMessage {
    fn parse_with_param(bytes: &[u8], _: GenlHeader) -> Result<Self, DecodeError> {
        Ok(VdpaMessage::Told { content: Box::new(Content::decode(bytes)) })
    }
}

/// The attributes of a request to make a device.
fn new_device(device: &NewVdpaDevice) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(bus) = &device.management.bus {
        put_text(&mut bytes, attribute::MGMTDEV_BUS_NAME, bus);
    }
    put_text(&mut bytes, attribute::MGMTDEV_DEV_NAME, &device.management.device);
    put_text(&mut bytes, attribute::DEV_NAME, &device.name);
    if let Some(mac) = &device.mac {
        put(&mut bytes, attribute::DEV_NET_CFG_MACADDR, &mac.0);
    }
    if let Some(mtu) = device.mtu {
        put(&mut bytes, attribute::DEV_NET_CFG_MTU, &mtu.to_ne_bytes());
    }
    bytes
}

fn device_name(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_text(&mut bytes, attribute::DEV_NAME, name);
    bytes
}

/// The vDPA side of the kernel. A clone shares the connection, which lives on a thread of its own
/// and belongs to the network namespace of the thread that opened it.
#[derive(Debug, Clone)]
pub struct Vdpa {
    handle: GenetlinkHandle,
}

impl Vdpa {
    /// Opens a connection. Needs no vDPA in the kernel.
    ///
    /// # Errors
    /// When the socket or the thread cannot be had.
    pub fn open() -> Result<Vdpa, EswitchError> {
        netlink::on_own_thread("vdpa", || {
            let (work, handle) = generic_connection()?;
            Ok((work, Vdpa { handle }))
        })
    }

    /// The devices that make vDPA devices; none where this kernel, or this network namespace, has
    /// no vDPA.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn managements(&self) -> Result<Vec<Management>, KernelRefusal> {
        let what = "list vDPA management devices";
        self.dump(what, command::MGMTDEV_GET, Content::management).await
    }

    /// The vDPA devices; none where this kernel, or this network namespace, has no vDPA.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn devices(&self) -> Result<Vec<VdpaDevice>, KernelRefusal> {
        self.dump("list vDPA devices", command::DEV_GET, Content::device).await
    }

    /// What a vDPA network device was given, and what its driver has taken.
    ///
    /// # Errors
    /// The kernel's refusal: `ENODEV` where there is no such device, `EOPNOTSUPP` where it is of a
    /// class without a configuration.
    pub async fn config(&self, device: &str) -> Result<VdpaConfig, KernelRefusal> {
        let what = format!("read the configuration of vDPA device {device}");
        let answer =
            self.ask(&what, command::DEV_CONFIG_GET, device_name(device), flag::REQUEST).await?;
        Ok(answer.messages.first().map(Content::config).unwrap_or_default())
    }

    /// Makes a vDPA device.
    ///
    /// # Errors
    /// The kernel's refusal: `EEXIST` where there is one of that name, `EOPNOTSUPP` where the
    /// management device does not take what it is to be given.
    pub async fn create(&self, device: &NewVdpaDevice) -> Result<(), KernelRefusal> {
        let what = format!("make vDPA device {} on {}", device.name, device.management);
        self.ask(&what, command::DEV_NEW, new_device(device), flag::REQUEST | flag::ACK)
            .await
            .map(drop)
    }

    /// Removes a vDPA device, from under whoever uses it.
    ///
    /// # Errors
    /// The kernel's refusal: `ENODEV` where there is none of that name.
    pub async fn delete(&self, device: &str) -> Result<(), KernelRefusal> {
        let what = format!("remove vDPA device {device}");
        self.ask(&what, command::DEV_DEL, device_name(device), flag::REQUEST | flag::ACK)
            .await
            .map(drop)
    }

    /// Removes a vDPA device that nobody uses. While a process holds its character device the kernel
    /// would wait for that process, with the whole family locked (`vhost_vdpa_remove` in
    /// `drivers/vhost/vdpa.c`).
    ///
    /// # Errors
    /// `EBUSY` where a process uses it; else as [`Self::delete`].
    pub async fn delete_unused(&self, device: &str) -> Result<(), KernelRefusal> {
        let name = device.to_owned();
        let opened = tokio::task::spawn_blocking(move || try_character_device(&name)).await;
        if let Ok(Err(error)) = opened
            && error.raw_os_error() == Some(Errno::EBUSY as i32)
        {
            return Err(KernelRefusal {
                errno: Errno::EBUSY as i32,
                message: Errno::EBUSY.desc().to_owned(),
                what: format!("remove vDPA device {device}, which a process uses"),
            });
        }
        self.delete(device).await
    }

    async fn dump<T>(
        &self,
        what: &str,
        command: u8,
        read: impl Fn(&Content) -> Option<T>,
    ) -> Result<Vec<T>, KernelRefusal> {
        match self.ask(what, command, Vec::new(), flag::REQUEST | flag::DUMP).await {
            Ok(answer) => Ok(answer.messages.iter().filter_map(read).collect()),
            // The family is not there.
            Err(refusal) if refusal.errno == Errno::ENOENT as i32 => Ok(Vec::new()),
            Err(refusal) => Err(refusal),
        }
    }

    async fn ask(
        &self,
        what: &str,
        command: u8,
        attributes: Vec<u8>,
        flags: u16,
    ) -> Result<Answer<Content>, KernelRefusal> {
        let ask = VdpaMessage::Ask { command, attributes };
        let answer = generic_request(&self.handle, what, ask, flags).await?;
        let messages = answer
            .messages
            .into_iter()
            .filter_map(|message| match message {
                VdpaMessage::Told { content } => Some(*content),
                VdpaMessage::Ask { .. } => None,
            })
            .collect();
        Ok(Answer { messages, interrupted: answer.interrupted })
    }
}

/// Opens a vDPA device's character device, where it has one: only one process may have it open.
fn try_character_device(name: &str) -> std::io::Result<()> {
    for entry in fs::read_dir(Path::new(DEVICES).join(name))?.flatten() {
        let node = entry.file_name();
        if node.to_string_lossy().starts_with("vhost-vdpa-") {
            fs::File::options().read(true).write(true).open(Path::new("/dev").join(node))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(attributes: &[(u16, &[u8])]) -> Content {
        let mut bytes = Vec::new();
        for (kind, value) in attributes {
            put(&mut bytes, *kind, value);
        }
        Content::decode(&bytes)
    }

    #[test]
    fn a_management_device_says_whether_it_makes_network_devices() {
        let of = |classes: u64| {
            message(&[
                (attribute::MGMTDEV_BUS_NAME, b"pci\0"),
                (attribute::MGMTDEV_DEV_NAME, b"0000:03:00.2\0"),
                (attribute::MGMTDEV_SUPPORTED_CLASSES, &classes.to_ne_bytes()),
                (attribute::DEV_SUPPORTED_FEATURES, &7u64.to_ne_bytes()),
            ])
            .management()
            .unwrap()
        };
        assert_eq!(of(1 << 1).name.to_string(), "pci/0000:03:00.2");
        assert!(of(1 << 1).network && !of(1 << 2).network);
        assert_eq!(of(2).features, 7);
        assert_eq!(message(&[(attribute::MGMTDEV_DEV_NAME, b"x\0")]).management(), None);
    }

    #[test]
    fn a_configuration_tells_what_was_given_apart_from_what_the_driver_has_taken() {
        let mac = [2, 0xaa, 0, 0, 0, 1];
        let config = message(&[
            (attribute::DEV_NET_CFG_MACADDR, &mac),
            (attribute::DEV_NET_CFG_MTU, &1500u16.to_ne_bytes()),
            (attribute::DEV_NET_STATUS, &1u16.to_ne_bytes()),
            (attribute::DEV_FEATURES, &(1u64 << 18).to_ne_bytes()),
        ])
        .config();
        assert_eq!((config.mac, config.mtu), (Some(MacAddr(mac)), Some(1500)));
        assert_eq!((config.link_up, config.sets_rx_modes()), (Some(true), None));
        let taken = |features: u64| {
            let value = features.to_ne_bytes();
            message(&[(attribute::DEV_NEGOTIATED_FEATURES, &value)]).config().sets_rx_modes()
        };
        assert_eq!((taken(1 << 18), taken(1 << 17)), (Some(true), Some(false)));
        let zero = message(&[(attribute::DEV_NET_CFG_MACADDR, &[0; 6])]).config();
        assert_eq!(zero.mac, None, "no address of its own");
    }

    #[test]
    fn a_request_to_make_a_device_names_its_management_device_and_what_it_is_given() {
        let mut device = NewVdpaDevice {
            name: "v0".into(),
            management: ManagementName { bus: None, device: "sim".into() },
            mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
            mtu: None,
        };
        let expected: &[u8] =
            b"\x08\0\x02\0sim\0\x07\0\x04\0v0\0\0\x0a\0\x0a\0\x02\0\0\0\0\x01\0\0";
        assert_eq!(new_device(&device), expected);
        device.management.bus = Some("pci".into());
        device.mac = None;
        assert_eq!(new_device(&device)[..8], *b"\x08\0\x01\0pci\0");
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let content = Content::decode(&bytes);
            let _ = (content.management(), content.device(), content.config());
        }
    }
}
