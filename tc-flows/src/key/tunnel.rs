//! Keys of the tunnel that a packet came out of: what its decapsulation left in the packet's
//! metadata (`struct ip_tunnel_info`).
//!
//! In come addresses, numbers and options, out goes a [`Tunnel`] for [`crate::Match::tunnel`].
//!
//! Sources: `TCA_FLOWER_KEY_ENC_*` in include/uapi/linux/pkt_cls.h, `fl_set_enc_opt` and its kin in
//! net/sched/cls_flower.c.

use super::value::IpPrefix;
use super::{Fields, KeyId};

/// Flags of a tunnel header (`TCA_FLOWER_KEY_FLAGS_TUNNEL_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelFlags(u32);

impl TunnelFlags {
    /// No flag.
    pub const NONE: TunnelFlags = TunnelFlags(0);
    /// The outer UDP header has a checksum, or the GRE header.
    pub const CSUM: TunnelFlags = TunnelFlags(1 << 2);
    /// The outer IP header forbids fragments.
    pub const DONT_FRAGMENT: TunnelFlags = TunnelFlags(1 << 3);
    /// An operations, administration and management frame.
    pub const OAM: TunnelFlags = TunnelFlags(1 << 4);
    /// Critical options are present.
    pub const CRIT_OPT: TunnelFlags = TunnelFlags(1 << 5);

    /// Those of either.
    #[must_use]
    pub const fn and(self, other: TunnelFlags) -> TunnelFlags {
        TunnelFlags(self.0 | other.0)
    }

    /// The bits, as the kernel numbers them.
    pub const fn bits(self) -> u32 {
        self.0
    }
}

/// One option of a Geneve header (RFC 8926), with the bits of it that count.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GeneveOption {
    /// Class, type, length in words, data; as in the packet.
    value: Vec<u8>,
    mask: Vec<u8>,
}

impl GeneveOption {
    /// This class, type and data, or `None` where the data is not 4, 8, … 124 bytes long (flower
    /// takes no option without data, and `geneve_opt_policy` ends at 127).
    pub fn new(class: u16, kind: u8, data: &[u8]) -> Option<GeneveOption> {
        GeneveOption::masked(
            (class, u16::MAX),
            (kind, u8::MAX),
            data,
            &[u8::MAX; 124][..data.len().min(124)],
        )
    }

    /// Options whose class and type (value and mask each) and data are these in the bits that
    /// count, or `None` where the data is not 4, 8, … 124 bytes long and its mask as long.
    pub fn masked(
        class: (u16, u16),
        kind: (u8, u8),
        data: &[u8],
        data_mask: &[u8],
    ) -> Option<GeneveOption> {
        let words = data.len() / 4;
        if words * 4 != data.len() || !(1..=31).contains(&words) || data_mask.len() != data.len() {
            return None;
        }
        let option = |class: u16, kind: u8, data: &[u8]| {
            let [high, low] = class.to_be_bytes();
            let mut bytes = vec![high, low, kind, words as u8];
            bytes.extend_from_slice(data);
            bytes
        };
        Some(GeneveOption {
            value: option(class.0, kind.0, data),
            mask: option(class.1, kind.1, data_mask),
        })
    }
}

/// `TCA_FLOWER_KEY_ENC_OPTS_*`.
pub(crate) const GENEVE: u8 = 1;
pub(crate) const VXLAN: u8 = 2;
pub(crate) const ERSPAN: u8 = 3;
pub(crate) const GTP: u8 = 4;
pub(crate) const PFCP: u8 = 5;

/// `VXLAN_GBP_MASK` in include/net/vxlan.h: don't learn, policy applied, and 16 bits of policy.
pub(crate) const VXLAN_GBP_MASK: u32 = 0x48_ffff;

/// Most bytes of tunnel options that flower looks at (`FLOW_DIS_TUN_OPTS_MAX`,
/// include/net/flow_dissector.h).
pub(crate) const OPTIONS_MAX: usize = 255;

/// Options of one kind of tunnel, with the bits of them that count.
///
/// The kernel compares them as bytes from the first option on: Geneve options must stand in the
/// packet in this order, with none before them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelOptions {
    value: Vec<u8>,
    mask: Vec<u8>,
}

impl TunnelOptions {
    /// The kind of the options stands before them, and as its own mask: so options of two kinds
    /// never have equal masks.
    fn of(kind: u8, value: &[u8], mask: &[u8]) -> TunnelOptions {
        let behind_kind = |bytes: &[u8]| [&[kind], bytes].concat();
        TunnelOptions { value: behind_kind(value), mask: behind_kind(mask) }
    }

    /// These Geneve options from the first on, or `None` where there is none, or more than 255
    /// bytes of them.
    pub fn geneve(options: &[GeneveOption]) -> Option<TunnelOptions> {
        let value: Vec<u8> = options.iter().flat_map(|option| option.value.clone()).collect();
        let mask: Vec<u8> = options.iter().flat_map(|option| option.mask.clone()).collect();
        // One byte less, for the kind that stands before them.
        (1..OPTIONS_MAX).contains(&value.len()).then(|| TunnelOptions::of(GENEVE, &value, &mask))
    }

    /// VXLAN with this group policy, in the bits of `mask` that flower looks at: bits 0 to 15
    /// policy, 19 policy applied, 22 don't learn.
    pub fn vxlan_gbp(gbp: u32, mask: u32) -> TunnelOptions {
        let mask = mask & VXLAN_GBP_MASK;
        TunnelOptions::of(VXLAN, &gbp.to_be_bytes(), &mask.to_be_bytes())
    }

    /// ERSPAN version 1 (type II) with this index, in the bits of `mask`.
    pub fn erspan_v1(index: u32, mask: u32) -> TunnelOptions {
        let [a, b, c, d] = index.to_be_bytes();
        let [e, f, g, h] = mask.to_be_bytes();
        TunnelOptions::of(ERSPAN, &[1, a, b, c, d], &[1, e, f, g, h])
    }

    /// ERSPAN version 2 (type III) with this direction (0 ingress, 1 egress; one bit) and hardware
    /// identifier (6 bits), value and mask each.
    pub fn erspan_v2(direction: (u8, u8), hwid: (u8, u8)) -> TunnelOptions {
        let mask = [2, direction.1 & 1, hwid.1 & 0x3f];
        TunnelOptions::of(ERSPAN, &[2, direction.0, hwid.0], &mask)
    }

    /// GTP with this PDU type and QoS flow identifier in its extension header (3GPP TS 38.415),
    /// value and mask each.
    pub fn gtp(pdu_type: (u8, u8), qfi: (u8, u8)) -> TunnelOptions {
        TunnelOptions::of(GTP, &[pdu_type.0, qfi.0], &[pdu_type.1, qfi.1])
    }

    /// PFCP (3GPP TS 29.244) of this type (0 node, 1 session) and session endpoint identifier,
    /// value and mask each.
    pub fn pfcp(kind: (u8, u8), seid: (u64, u64)) -> TunnelOptions {
        let option = |kind: u8, seid: u64| [&[kind], &seid.to_be_bytes()[..]].concat();
        TunnelOptions::of(PFCP, &option(kind.0, seid.0), &option(kind.1, seid.1))
    }
}

/// The tunnel that a packet came out of.
#[derive(Clone, Debug)]
pub struct Tunnel(Fields);

impl Tunnel {
    /// Every packet, out of a tunnel or not, until a key is named.
    pub const fn any() -> Tunnel {
        Tunnel(Fields::none())
    }

    /// This tunnel key only: VNI of VXLAN and Geneve, key of GRE, TEID of GTP.
    #[must_use]
    pub fn key_id(self, id: u32) -> Tunnel {
        Tunnel(self.0.with_exact(KeyId::EncKey, &id.to_be_bytes()))
    }

    /// These outer source addresses. Replaces outer addresses of the other family.
    #[must_use]
    pub fn src(self, addr: impl Into<IpPrefix>) -> Tunnel {
        self.addr(addr.into(), KeyId::EncIpv4Src, KeyId::EncIpv6Src)
    }

    /// These outer destination addresses. Replaces outer addresses of the other family.
    #[must_use]
    pub fn dst(self, addr: impl Into<IpPrefix>) -> Tunnel {
        self.addr(addr.into(), KeyId::EncIpv4Dst, KeyId::EncIpv6Dst)
    }

    fn addr(self, addr: IpPrefix, v4: KeyId, v6: KeyId) -> Tunnel {
        Tunnel(match addr {
            IpPrefix::V4(prefix) => self
                .0
                .without(|id| matches!(id, KeyId::EncIpv6Src | KeyId::EncIpv6Dst))
                .with(v4, &prefix.addr().octets(), &prefix.mask().octets()),
            IpPrefix::V6(prefix) => self
                .0
                .without(|id| matches!(id, KeyId::EncIpv4Src | KeyId::EncIpv4Dst))
                .with(v6, &prefix.addr().octets(), &prefix.mask().octets()),
        })
    }

    /// This outer UDP source port, in the bits of `mask`. (`tc` has no word for it.)
    #[must_use]
    pub fn src_port(self, port: u16, mask: u16) -> Tunnel {
        Tunnel(self.0.with(KeyId::EncUdpSrc, &port.to_be_bytes(), &mask.to_be_bytes()))
    }

    /// This outer UDP destination port only.
    #[must_use]
    pub fn dst_port(self, port: u16) -> Tunnel {
        self.dst_port_masked(port, u16::MAX)
    }

    /// Outer UDP destination ports that equal `port` in the bits of `mask`. (`tc` shows such a
    /// mask and reads none.)
    #[must_use]
    pub fn dst_port_masked(self, port: u16, mask: u16) -> Tunnel {
        Tunnel(self.0.with(KeyId::EncUdpDst, &port.to_be_bytes(), &mask.to_be_bytes()))
    }

    /// This outer type of service, in the bits of `mask`.
    #[must_use]
    pub fn tos(self, tos: u8, mask: u8) -> Tunnel {
        Tunnel(self.0.with(KeyId::EncTos, &[tos], &[mask]))
    }

    /// This outer time to live, in the bits of `mask`.
    #[must_use]
    pub fn ttl(self, ttl: u8, mask: u8) -> Tunnel {
        Tunnel(self.0.with(KeyId::EncTtl, &[ttl], &[mask]))
    }

    /// All of the flags in `set` and none of those in `clear`; one named by both must be set.
    #[must_use]
    pub fn flags(self, set: TunnelFlags, clear: TunnelFlags) -> Tunnel {
        let mask = set.and(clear);
        Tunnel(self.0.with(KeyId::EncFlags, &set.0.to_be_bytes(), &mask.0.to_be_bytes()))
    }

    /// These options.
    #[must_use]
    pub fn options(self, options: &TunnelOptions) -> Tunnel {
        Tunnel(self.0.with(KeyId::EncOpts, &options.value, &options.mask))
    }

    pub(super) fn is_key(id: KeyId) -> bool {
        (KeyId::EncKey..=KeyId::EncOpts).contains(&id)
    }

    pub(super) const fn fields(&self) -> &Fields {
        &self.0
    }
}
