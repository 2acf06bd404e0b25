//! Values that resources are made of: MAC addresses, prefixes of them, VLAN ids, resource ids.
//!
//! In: text from JSON. Out: checked values. A value of one of these types is valid wherever it is
//! seen; nothing downstream checks again.

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why a text is not one of this module's values. The message names the text and what would do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(String);

/// A MAC address, written as `02:aa:bb:cc:00:01`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}$", example = "02:aa:bb:cc:00:01")]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Whether a station may send from this address: neither a group address nor all zero.
    pub fn is_station(&self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads `count` colon-separated hexadecimal bytes; `None` when the text has another form.
fn hex_bytes(text: &str) -> Option<Vec<u8>> {
    text.split(':')
        .map(|part| match part.len() {
            2 if part.bytes().all(|b| b.is_ascii_hexdigit()) => u8::from_str_radix(part, 16).ok(),
            _ => None,
        })
        .collect()
}

impl FromStr for MacAddr {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        hex_bytes(text).and_then(|bytes| bytes.try_into().ok()).map(MacAddr).ok_or_else(|| {
            InvalidValue(format!(
                "`{text}` is not a MAC address: write six hexadecimal bytes as in 02:aa:bb:cc:00:01"
            ))
        })
    }
}

impl TryFrom<String> for MacAddr {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

/// The first one to six bytes of a MAC address, written as `02:aa:bb`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){0,5}$", example = "02:aa:bb")]
pub struct MacPrefix(Vec<u8>);

impl MacPrefix {
    /// Whether `mac` begins with this prefix.
    pub fn contains(&self, mac: MacAddr) -> bool {
        mac.0.starts_with(&self.0)
    }

    /// Whether any address that begins with this prefix can be a station's.
    pub fn has_stations(&self) -> bool {
        self.0.first().is_none_or(|first| first & 1 == 0) && self.0 != [0; 6]
    }
}

impl TryFrom<String> for MacPrefix {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        hex_bytes(&text).filter(|bytes| bytes.len() <= 6).map(MacPrefix).ok_or_else(|| {
            InvalidValue(format!(
                "`{text}` is not a MAC prefix: write one to six hexadecimal bytes as in 02:aa:bb"
            ))
        })
    }
}

impl From<MacPrefix> for String {
    fn from(prefix: MacPrefix) -> Self {
        prefix.0.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":")
    }
}

/// An IP address, written as `192.0.2.1`, or all that begin alike, as `192.0.2.0/24`, in IPv4 or
/// IPv6.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "192.0.2.0/24")]
pub struct IpPrefix((IpAddr, u8));

impl IpPrefix {
    /// One address.
    pub const fn host(addr: IpAddr) -> IpPrefix {
        IpPrefix((addr, IpPrefix::bits(addr)))
    }

    /// The first address.
    pub const fn addr(self) -> IpAddr {
        self.0.0
    }

    /// How many bits count.
    pub const fn prefix_len(self) -> u8 {
        self.0.1
    }

    const fn bits(addr: IpAddr) -> u8 {
        if addr.is_ipv4() { 32 } else { 128 }
    }

    /// Whether all addresses of the other are among its own.
    pub fn covers(self, other: IpPrefix) -> bool {
        let same_bits = match (self.0.0, other.0.0) {
            (IpAddr::V4(one), IpAddr::V4(other)) => {
                (one.to_bits() ^ other.to_bits()).leading_zeros()
            }
            (IpAddr::V6(one), IpAddr::V6(other)) => {
                (one.to_bits() ^ other.to_bits()).leading_zeros()
            }
            _ => return false,
        };
        self.0.1 <= other.0.1 && same_bits >= u32::from(self.0.1)
    }

    /// Whether the address is among its own.
    pub fn contains(self, addr: IpAddr) -> bool {
        self.covers(IpPrefix::host(addr))
    }
}

impl FromStr for IpPrefix {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            InvalidValue(format!(
                "`{text}` is not an IP address or prefix: write it as 192.0.2.1 or 2001:db8::/64, \
                 with no bit set behind the prefix"
            ))
        };
        let (addr, len) = match text.split_once('/') {
            Some((addr, len)) => (addr, Some(len)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| wrong())?;
        let most = IpPrefix::bits(addr);
        let len: u8 = match len {
            Some(len) => len.parse().ok().filter(|len| *len <= most).ok_or_else(wrong)?,
            None => most,
        };
        let behind = match addr {
            IpAddr::V4(addr) => addr.to_bits().checked_shl(len.into()).unwrap_or(0) != 0,
            IpAddr::V6(addr) => addr.to_bits().checked_shl(len.into()).unwrap_or(0) != 0,
        };
        if behind { Err(wrong()) } else { Ok(IpPrefix((addr, len))) }
    }
}

impl TryFrom<String> for IpPrefix {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<IpPrefix> for String {
    fn from(prefix: IpPrefix) -> Self {
        prefix.to_string()
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.1 == IpPrefix::bits(self.0.0) {
            true => write!(f, "{}", self.0.0),
            false => write!(f, "{}/{}", self.0.0, self.0.1),
        }
    }
}

impl fmt::Debug for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An IEEE 802.1Q VLAN identifier that a network can own: 1 to 4094.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(try_from = "u16", into = "u16")]
#[schema(value_type = u16, minimum = 1, maximum = 4094, example = 100)]
pub struct Vid(u16);

impl Vid {
    /// The identifier as a number, 1 to 4094.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for Vid {
    type Error = InvalidValue;

    fn try_from(vid: u16) -> Result<Self, Self::Error> {
        match vid {
            1..=4094 => Ok(Vid(vid)),
            _ => Err(InvalidValue(format!("{vid} is not a VLAN id: use 1 to 4094"))),
        }
    }
}

impl From<Vid> for u16 {
    fn from(vid: Vid) -> Self {
        vid.0
    }
}

impl fmt::Display for Vid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// An IEEE 802.1Q priority (PCP): 0 to 7.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(try_from = "u8", into = "u8")]
#[schema(value_type = u8, minimum = 0, maximum = 7, example = 5)]
pub struct Priority(u8);

impl Priority {
    /// The priority as a number, 0 to 7.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for Priority {
    type Error = InvalidValue;

    fn try_from(priority: u8) -> Result<Self, Self::Error> {
        match priority {
            0..=7 => Ok(Priority(priority)),
            _ => Err(InvalidValue(format!("{priority} is not a VLAN priority: use 0 to 7"))),
        }
    }
}

impl From<Priority> for u8 {
    fn from(priority: Priority) -> Self {
        priority.0
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A rate in bits per second, headers included: 1 Mbit/s to 1 Tbit/s. NICs count whole Mbit/s:
/// what lies between two of them is rounded up.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(try_from = "u64", into = "u64")]
#[schema(value_type = u64, minimum = 1_000_000, maximum = 1_000_000_000_000_u64, example = 500_000_000)]
pub struct Bitrate(u64);

const MBIT: u64 = 1_000_000;

impl Bitrate {
    /// Bits per second.
    pub fn get(self) -> u64 {
        self.0
    }

    /// In Mbit/s, rounded up, as rtnetlink has it (`struct ifla_vf_rate`).
    pub fn mbit(self) -> u32 {
        u32::try_from(self.0.div_ceil(MBIT)).unwrap_or(u32::MAX)
    }

    /// So many Mbit/s; none where that is 0 (no limit), or no rate.
    pub fn from_mbit(mbit: u32) -> Option<Bitrate> {
        Bitrate::try_from(u64::from(mbit) * MBIT).ok()
    }
}

impl TryFrom<u64> for Bitrate {
    type Error = InvalidValue;

    fn try_from(bits: u64) -> Result<Self, Self::Error> {
        match bits {
            1_000_000..=1_000_000_000_000 => Ok(Bitrate(bits)),
            _ => Err(InvalidValue(format!(
                "{bits} bit/s is not a rate of a NIC: use 1000000 to 1000000000000"
            ))),
        }
    }
}

impl From<Bitrate> for u64 {
    fn from(rate: Bitrate) -> Self {
        rate.0
    }
}

impl fmt::Display for Bitrate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} Mbit/s", self.0.div_ceil(MBIT))
    }
}

/// The client's own name for a resource: 1 to 128 of `A-Z a-z 0-9 . _ : -`, not starting with a dot.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^[A-Za-z0-9_:-][A-Za-z0-9._:-]{0,127}$", example = "web-1")]
pub struct Id(Arc<str>);

impl Id {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Id {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
        if (1..=128).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('.') {
            Ok(Id(text.into()))
        } else {
            Err(InvalidValue(format!(
                "`{text}` is not an id: use 1 to 128 letters, digits or . _ : - and no leading dot"
            )))
        }
    }
}

impl FromStr for Id {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.to_owned().try_into()
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::borrow::Borrow<str> for Id {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_address_reads_back_what_it_prints() {
        let mac: MacAddr = "02:AA:bb:cc:00:01".parse().unwrap();
        assert_eq!(mac.to_string(), "02:aa:bb:cc:00:01");
        assert_eq!(mac.to_string().parse(), Ok(mac));
    }

    #[test]
    fn a_mac_address_of_another_form_is_refused_with_a_remedy() {
        for text in
            ["", "02:aa:bb:cc:00", "02:aa:bb:cc:00:01:02", "02-aa-bb-cc-00-01", "+2:aa:bb:cc:00:01"]
        {
            let error = text.parse::<MacAddr>().unwrap_err().to_string();
            assert!(error.contains("02:aa:bb:cc:00:01"), "{text}: {error}");
        }
    }

    #[test]
    fn group_and_zero_addresses_are_no_stations() {
        assert!(!MacAddr([1, 0, 0x5e, 0, 0, 1]).is_station());
        assert!(!MacAddr([0; 6]).is_station());
        assert!(MacAddr([2, 0, 0, 0, 0, 1]).is_station());
    }

    #[test]
    fn a_prefix_contains_the_addresses_that_begin_with_it() {
        let prefix = MacPrefix::try_from("02:aa".to_owned()).unwrap();
        assert!(prefix.contains(MacAddr([2, 0xaa, 0, 0, 0, 1])));
        assert!(!prefix.contains(MacAddr([2, 0xab, 0, 0, 0, 1])));
    }

    #[test]
    fn an_ip_prefix_reads_back_what_it_prints_and_has_no_bits_behind_it() {
        for text in ["192.0.2.1", "192.0.2.0/24", "0.0.0.0/0", "2001:db8::1", "2001:db8::/64"] {
            assert_eq!(text.parse::<IpPrefix>().unwrap().to_string(), text);
        }
        for bad in ["", "192.0.2.1/24", "192.0.2.0/33", "192.0.2", "2001:db8::1/64", "::/129", "/8"]
        {
            let error = bad.parse::<IpPrefix>().unwrap_err().to_string();
            assert!(error.contains("192.0.2.1"), "{bad}: {error}");
        }
        let prefix = |text: &str| text.parse::<IpPrefix>().unwrap();
        assert!(prefix("192.0.2.0/24").covers(prefix("192.0.2.128/25")));
        assert!(!prefix("192.0.2.0/25").covers(prefix("192.0.2.128")));
        assert!(!prefix("0.0.0.0/0").covers(prefix("::1")) && prefix("::/0").covers(prefix("::1")));
    }

    #[test]
    fn vlan_ids_outside_1_to_4094_are_refused() {
        assert!(Vid::try_from(0).is_err() && Vid::try_from(4095).is_err());
        assert!(Vid::try_from(1).is_ok() && Vid::try_from(4094).is_ok());
    }

    #[test]
    fn priorities_above_7_are_refused() {
        assert!(Priority::try_from(8).is_err() && Priority::try_from(7).is_ok());
    }

    #[test]
    fn rates_are_what_a_nic_can_count_and_rounded_up_to_mbit() {
        for bad in [0, 999_999, 1_000_000_000_001] {
            assert!(Bitrate::try_from(bad).is_err(), "{bad}");
        }
        let mbit = |bits: u64| Bitrate::try_from(bits).unwrap().mbit();
        assert_eq!((mbit(1_000_000), mbit(1_000_001), mbit(2_500_000_000)), (1, 2, 2500));
        assert_eq!(Bitrate::from_mbit(0), None);
        assert_eq!(Bitrate::from_mbit(25).map(Bitrate::get), Some(25_000_000));
    }

    #[test]
    fn ids_are_safe_in_urls_and_file_names() {
        for good in ["vm1", "pci-0000:03:00.0", "a_b.c"] {
            assert!(good.parse::<Id>().is_ok(), "{good}");
        }
        for bad in ["", "..", ".hidden", "a/b", "a b", "é", &"x".repeat(129)] {
            assert!(bad.parse::<Id>().is_err(), "{bad}");
        }
    }
}
