//! ethtool: whether a netdev offloads TC, and switching that on, over generic netlink.
//!
//! In: interface indexes. Out: what the device can and does. Formats and numbers are those of
//! `include/uapi/linux/ethtool_netlink.h` and `Documentation/networking/ethtool-netlink.rst` in the
//! kernel's source. Only `hw-tc-offload` is ever touched.

use genetlink::GenetlinkHandle;
use netlink_packet_core::{DecodeError, Emitable, ParseableParametrized};
use netlink_packet_generic::{GenlFamily, GenlHeader};
use nix::errno::Errno;
use tc_flows::Ifindex;

use super::{
    KernelRefusal,
    netlink::{attributes, flag, generic_request, lost, put, put_nested, put_text, text},
};

/// `ETHTOOL_GENL_VERSION`.
const VERSION: u8 = 1;
/// The feature's name in `net/ethtool/common.c`.
const HW_TC_OFFLOAD: &str = "hw-tc-offload";

/// `ETHTOOL_MSG_FEATURES_GET`.
const FEATURES_GET: u8 = 11;
/// `ETHTOOL_MSG_FEATURES_SET`.
const FEATURES_SET: u8 = 12;

/// `ETHTOOL_A_FEATURES_*`.
mod features {
    pub(super) const HEADER: u16 = 1;
    pub(super) const HW: u16 = 2;
    pub(super) const WANTED: u16 = 3;
    pub(super) const ACTIVE: u16 = 4;
    pub(super) const NOCHANGE: u16 = 5;
}
/// `ETHTOOL_A_HEADER_DEV_INDEX`.
const HEADER_DEV_INDEX: u16 = 1;
/// `ETHTOOL_A_BITSET_*`.
mod bitset {
    pub(super) const NOMASK: u16 = 1;
    pub(super) const BITS: u16 = 3;
    pub(super) const BIT: u16 = 1;
    pub(super) const BIT_NAME: u16 = 2;
    pub(super) const BIT_VALUE: u16 = 3;
}

/// What a netdev can and does about TC offload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TcOffload {
    /// Whether it can be switched.
    pub(crate) changeable: bool,
    /// Whether it is on.
    pub(crate) active: bool,
}

/// An ethtool features message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FeaturesMessage {
    /// Reads the features.
    Get(Ifindex),
    /// Switches TC offload.
    Set(Ifindex, bool),
    /// An answer's `hw-tc-offload`.
    Told(TcOffload),
}

impl GenlFamily for FeaturesMessage {
    fn family_name() -> &'static str {
        "ethtool"
    }

    fn command(&self) -> u8 {
        match self {
            FeaturesMessage::Set(..) => FEATURES_SET,
            FeaturesMessage::Get(_) | FeaturesMessage::Told(_) => FEATURES_GET,
        }
    }

    fn version(&self) -> u8 {
        VERSION
    }
}

impl FeaturesMessage {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let FeaturesMessage::Get(netdev) | FeaturesMessage::Set(netdev, _) = self {
            put_nested(&mut bytes, features::HEADER, |header| {
                put(header, HEADER_DEV_INDEX, &netdev.get().to_ne_bytes());
            });
        }
        if let FeaturesMessage::Set(_, on) = self {
            put_nested(&mut bytes, features::WANTED, |set| {
                put_nested(set, bitset::BITS, |bits| {
                    put_nested(bits, bitset::BIT, |bit| {
                        put_text(bit, bitset::BIT_NAME, HW_TC_OFFLOAD);
                        if *on {
                            put(bit, bitset::BIT_VALUE, &[]);
                        }
                    });
                });
            });
        }
        bytes
    }
}

impl Emitable for FeaturesMessage {
    fn buffer_len(&self) -> usize {
        self.encode().len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        let bytes = self.encode();
        buffer[..bytes.len()].copy_from_slice(&bytes);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for FeaturesMessage {
    fn parse_with_param(bytes: &[u8], _: GenlHeader) -> Result<Self, DecodeError> {
        let mut fixed = false;
        let mut offload = TcOffload::default();
        for (kind, value) in attributes(bytes) {
            match kind {
                features::HW => offload.changeable = is_set(value),
                features::ACTIVE => offload.active = is_set(value),
                features::NOCHANGE => fixed = is_set(value),
                _ => {}
            }
        }
        offload.changeable &= !fixed;
        Ok(FeaturesMessage::Told(offload))
    }
}

/// Whether `hw-tc-offload` is set in a bit-by-bit bit set. In a set without a mask only the bits
/// that are set are listed; in one with a mask each listed bit says its value.
fn is_set(set: &[u8]) -> bool {
    let plain = attributes(set).any(|(kind, _)| kind == bitset::NOMASK);
    attributes(set)
        .filter(|(kind, _)| *kind == bitset::BITS)
        .flat_map(|(_, bits)| attributes(bits))
        .filter(|(kind, _)| *kind == bitset::BIT)
        .any(|(_, bit)| {
            let named = |(kind, name)| kind == bitset::BIT_NAME && text(name) == HW_TC_OFFLOAD;
            let valued = |(kind, _)| kind == bitset::BIT_VALUE;
            attributes(bit).any(named) && (plain || attributes(bit).any(valued))
        })
}

/// What the device can and does about TC offload.
pub(crate) async fn tc_offload(
    handle: &GenetlinkHandle,
    netdev: Ifindex,
) -> Result<TcOffload, KernelRefusal> {
    let what = "read the device's features";
    let answer = generic_request(handle, what, FeaturesMessage::Get(netdev), flag::REQUEST).await?;
    answer
        .messages
        .into_iter()
        .find_map(|message| match message {
            FeaturesMessage::Told(offload) => Some(offload),
            _ => None,
        })
        .ok_or_else(|| lost(what, Errno::EPROTO, "an answer without features"))
}

/// Switches TC offload on or off, where the device can.
///
/// # Errors
/// The kernel's refusal; `EOPNOTSUPP` where the driver took the request and did nothing.
pub(crate) async fn switch_tc_offload(
    handle: &GenetlinkHandle,
    netdev: Ifindex,
    on: bool,
) -> Result<(), KernelRefusal> {
    let what = if on { "switch hw-tc-offload on" } else { "switch hw-tc-offload off" };
    let set = FeaturesMessage::Set(netdev, on);
    generic_request(handle, what, set, flag::REQUEST | flag::ACK).await?;
    if tc_offload(handle, netdev).await?.active == on {
        Ok(())
    } else {
        Err(lost(what, Errno::EOPNOTSUPP, "the driver took the request and left it as it was"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::eswitch::netlink::recorded;

    fn read(bytes: &[u8]) -> TcOffload {
        let header = GenlHeader { cmd: FEATURES_GET, version: VERSION };
        match FeaturesMessage::parse_with_param(bytes, header).unwrap() {
            FeaturesMessage::Told(offload) => offload,
            other => panic!("{other:?}"),
        }
    }

    fn set(bytes: &mut Vec<u8>, kind: u16, plain: bool, bits: &[(&str, bool)]) {
        put_nested(bytes, kind, |set| {
            if plain {
                put(set, bitset::NOMASK, &[]);
            }
            put_nested(set, bitset::BITS, |list| {
                for (name, value) in bits {
                    put_nested(list, bitset::BIT, |bit| {
                        put_text(bit, bitset::BIT_NAME, name);
                        if *value {
                            put(bit, bitset::BIT_VALUE, &[]);
                        }
                    });
                }
            });
        });
    }

    #[test]
    fn a_bit_in_a_masked_set_counts_only_with_its_value_and_in_a_plain_set_always() {
        for (value, plain, expected) in
            [(true, false, true), (false, false, false), (false, true, true)]
        {
            let mut bytes = Vec::new();
            let bits = [("tx-checksum-ipv4", true), (HW_TC_OFFLOAD, value)];
            set(&mut bytes, features::HW, plain, &bits);
            assert_eq!(read(&bytes), TcOffload { changeable: expected, active: false });
        }
    }

    #[test]
    fn a_feature_that_the_kernel_never_changes_is_not_changeable() {
        let mut bytes = Vec::new();
        set(&mut bytes, features::HW, false, &[(HW_TC_OFFLOAD, true)]);
        set(&mut bytes, features::ACTIVE, true, &[(HW_TC_OFFLOAD, false)]);
        set(&mut bytes, features::NOCHANGE, true, &[(HW_TC_OFFLOAD, false)]);
        assert_eq!(read(&bytes), TcOffload { changeable: false, active: true });
    }

    #[test]
    fn switching_on_names_one_feature_and_its_value() {
        let message = FeaturesMessage::Set(Ifindex::new(7).unwrap(), true);
        let bytes = message.encode();
        let (kind, wanted) = attributes(&bytes).nth(1).unwrap();
        assert_eq!(kind, features::WANTED);
        assert!(is_set(wanted));
        assert!(!is_set(
            attributes(&FeaturesMessage::Set(Ifindex::new(7).unwrap(), false).encode())
                .nth(1)
                .unwrap()
                .1
        ));
    }

    #[test]
    fn tc_offload_is_read_from_what_linux_7_3_says_of_a_netdevsim() {
        let off = recorded(include_str!("recorded/netdevsim-features-off.hex"));
        assert_eq!(read(&off), TcOffload { changeable: true, active: false });
        let on = recorded(include_str!("recorded/netdevsim-features-on.hex"));
        assert_eq!(read(&on), TcOffload { changeable: true, active: true });
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            read(&bytes);
        }
    }
}
