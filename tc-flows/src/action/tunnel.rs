//! How a tunnel interface shall wrap a frame (`tunnel_key set`).
//!
//! Sources: net/sched/act_tunnel_key.c, include/uapi/linux/tc_act/tc_tunnel_key.h.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::fmt_hex;
use crate::rule::Fnv1a;

/// How a frame shall be wrapped by the tunnel interface that it leaves through.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelKey {
    pub(crate) ends: TunnelEnds,
    pub(crate) id: Option<u32>,
    pub(crate) dst_port: u16,
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) csum: bool,
    pub(crate) no_frag: bool,
    pub(crate) options: TunnelData,
}

/// Both ends of a tunnel, of one address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TunnelEnds {
    /// Over IPv4.
    V4 {
        /// The outer source address.
        src: Ipv4Addr,
        /// The outer destination address.
        dst: Ipv4Addr,
    },
    /// Over IPv6.
    V6 {
        /// The outer source address.
        src: Ipv6Addr,
        /// The outer destination address.
        dst: Ipv6Addr,
    },
}

/// What a tunnel header carries besides its identifier.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TunnelData {
    /// Nothing.
    #[default]
    None,
    /// Geneve options, in this order.
    Geneve(GeneveTlvs),
    /// VXLAN's group policy.
    Vxlan(VxlanGbp),
    /// ERSPAN's header.
    Erspan(Erspan),
}

/// One Geneve option (RFC 8926, section 3.5).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GeneveTlv {
    pub(crate) class: u16,
    pub(crate) kind: u8,
    pub(crate) data: Box<[u8]>,
}

impl GeneveTlv {
    /// The option, or `None` where its data are not 4 to 124 bytes in whole words
    /// (`tunnel_key_copy_geneve_opt`, net/sched/act_tunnel_key.c).
    pub fn new(class: u16, kind: u8, data: &[u8]) -> Option<GeneveTlv> {
        let fits = (4..=124).contains(&data.len()) && data.len().is_multiple_of(4);
        fits.then(|| GeneveTlv { class, kind, data: data.into() })
    }
}

/// One or more Geneve options.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GeneveTlvs(pub(crate) Box<[GeneveTlv]>);

impl GeneveTlvs {
    /// The options, or `None` where there is none, or where they need more than the 255 bytes that
    /// the kernel keeps (`IP_TUNNEL_OPTS_MAX`, include/net/ip_tunnels.h).
    pub fn new(options: impl Into<Box<[GeneveTlv]>>) -> Option<GeneveTlvs> {
        let options = options.into();
        let bytes: usize = options.iter().map(|option| 4 + option.data.len()).sum();
        (1..=255).contains(&bytes).then_some(GeneveTlvs(options))
    }
}

/// VXLAN group based policy: group, and the bits "don't learn" and "policy applied".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VxlanGbp(u32);

impl VxlanGbp {
    /// `VXLAN_GBP_MASK` of include/net/vxlan.h.
    const MASK: u32 = 1 << 22 | 1 << 19 | 0xffff;

    /// The policy, or `None` where other bits are set.
    pub const fn new(gbp: u32) -> Option<VxlanGbp> {
        if gbp & !VxlanGbp::MASK == 0 { Some(VxlanGbp(gbp)) } else { None }
    }

    /// The bits.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// What an ERSPAN header carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Erspan {
    /// Version 1 (type II).
    V1 {
        /// Port index.
        index: u32,
    },
    /// Version 2 (type III).
    V2 {
        /// Whether the mirrored frame was sent rather than received.
        egress: bool,
        /// Hardware identifier.
        hwid: ErspanHwid,
    },
}

/// An ERSPAN hardware identifier: 6 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ErspanHwid(u8);

impl ErspanHwid {
    /// The identifier, or `None` above 63.
    pub const fn new(hwid: u8) -> Option<ErspanHwid> {
        if hwid < 64 { Some(ErspanHwid(hwid)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl TunnelKey {
    /// A header between these ends, with a checksum and without identifier, port and options.
    pub const fn new(ends: TunnelEnds) -> TunnelKey {
        TunnelKey {
            ends,
            id: None,
            dst_port: 0,
            tos: 0,
            ttl: 0,
            csum: true,
            no_frag: false,
            options: TunnelData::None,
        }
    }

    /// Over IPv4.
    pub const fn v4(src: Ipv4Addr, dst: Ipv4Addr) -> TunnelKey {
        TunnelKey::new(TunnelEnds::V4 { src, dst })
    }

    /// Over IPv6.
    pub const fn v6(src: Ipv6Addr, dst: Ipv6Addr) -> TunnelKey {
        TunnelKey::new(TunnelEnds::V6 { src, dst })
    }

    /// With this identifier (VNI, GRE key).
    #[must_use]
    pub fn id(self, id: u32) -> TunnelKey {
        TunnelKey { id: Some(id), ..self }
    }

    /// To this UDP port; 0 is the tunnel interface's own.
    #[must_use]
    pub fn dst_port(self, dst_port: u16) -> TunnelKey {
        TunnelKey { dst_port, ..self }
    }

    /// With this type of service; 0 is the tunnel interface's own.
    #[must_use]
    pub fn tos(self, tos: u8) -> TunnelKey {
        TunnelKey { tos, ..self }
    }

    /// With this time to live; 0 is the tunnel interface's own.
    #[must_use]
    pub fn ttl(self, ttl: u8) -> TunnelKey {
        TunnelKey { ttl, ..self }
    }

    /// Without an outer checksum.
    #[must_use]
    pub fn no_csum(self) -> TunnelKey {
        TunnelKey { csum: false, ..self }
    }

    /// Never fragmented on the way.
    #[must_use]
    pub fn no_frag(self) -> TunnelKey {
        TunnelKey { no_frag: true, ..self }
    }

    /// With these options.
    #[must_use]
    pub fn options(self, options: TunnelData) -> TunnelKey {
        TunnelKey { options, ..self }
    }

    pub(super) fn digest(&self, into: &mut Fnv1a) {
        let mut address = |address: IpAddr| match address {
            IpAddr::V4(address) => into.write(&address.octets()),
            IpAddr::V6(address) => into.write(&address.octets()),
        };
        let (family, src, dst) = match self.ends {
            TunnelEnds::V4 { src, dst } => (4, IpAddr::from(src), IpAddr::from(dst)),
            TunnelEnds::V6 { src, dst } => (6, IpAddr::from(src), IpAddr::from(dst)),
        };
        address(src);
        address(dst);
        into.write(&[family, u8::from(self.id.is_some())]);
        into.write(&self.id.unwrap_or(0).to_be_bytes());
        into.write(&self.dst_port.to_be_bytes());
        into.write(&[self.tos, self.ttl, u8::from(self.csum), u8::from(self.no_frag)]);
        match &self.options {
            TunnelData::None => into.write(&[0]),
            TunnelData::Geneve(options) => {
                into.write(&[1, options.0.len() as u8]);
                for option in &options.0 {
                    into.write(&option.class.to_be_bytes());
                    into.write(&[option.kind, option.data.len() as u8]);
                    into.write(&option.data);
                }
            }
            TunnelData::Vxlan(gbp) => {
                into.write(&[2]);
                into.write(&gbp.0.to_be_bytes());
            }
            TunnelData::Erspan(Erspan::V1 { index }) => {
                into.write(&[3]);
                into.write(&index.to_be_bytes());
            }
            TunnelData::Erspan(Erspan::V2 { egress, hwid }) => {
                into.write(&[4, u8::from(*egress), hwid.0]);
            }
        }
    }
}

impl fmt::Display for TunnelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ends {
            TunnelEnds::V4 { src, dst } => write!(f, "src_ip {src} dst_ip {dst}")?,
            TunnelEnds::V6 { src, dst } => write!(f, "src_ip {src} dst_ip {dst}")?,
        }
        if let Some(id) = self.id {
            write!(f, " id {id}")?;
        }
        for (name, number) in [
            ("dst_port", self.dst_port),
            ("tos", u16::from(self.tos)),
            ("ttl", u16::from(self.ttl)),
        ] {
            if number != 0 {
                write!(f, " {name} {number}")?;
            }
        }
        match &self.options {
            TunnelData::None => {}
            TunnelData::Geneve(options) => {
                for (at, option) in options.0.iter().enumerate() {
                    f.write_str(if at == 0 { " geneve_opts " } else { "," })?;
                    write!(f, "{:04x}:{:02x}:", option.class, option.kind)?;
                    fmt_hex(&option.data, f)?;
                }
            }
            TunnelData::Vxlan(gbp) => write!(f, " vxlan_opts {}", gbp.0)?,
            TunnelData::Erspan(Erspan::V1 { index }) => {
                write!(f, " erspan_opts 1:{index}:0:0")?;
            }
            TunnelData::Erspan(Erspan::V2 { egress, hwid }) => {
                write!(f, " erspan_opts 2:0:{}:{}", u8::from(*egress), hwid.0)?;
            }
        }
        f.write_str(if self.csum { " csum" } else { " nocsum" })?;
        f.write_str(if self.no_frag { " nofrag" } else { "" })
    }
}
