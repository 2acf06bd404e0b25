//! Attributes by name: where in a request the kernel's objection points.
//!
//! In goes a request as it was sent and the place that an extended ack names, as an offset or as
//! a missing number; out goes a path of attribute names. Only for people: nothing decides by it.
//!
//! Sources: `enum nlmsgerr_attrs` in include/uapi/linux/netlink.h; the names of rtnetlink.h,
//! pkt_cls.h and tc_act/*.h beside it.

use super::action::TCA_ACT_KIND;
use super::read::{find, text, u16_at};
use super::{NLA_F_NESTED, NLA_TYPE_MASK, NLATTR, NLMSGHDR, TCMSG};

/// What an extended ack points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The attribute whose header stands here, from the request's first byte.
    At(u32),
    /// An attribute of this number that is not there: in the nest whose header stands at an
    /// offset, or on the outermost level.
    Missing { kind: u32, nest: Option<u32> },
}

/// The names of one level of attributes.
struct Names {
    prefix: &'static str,
    from_1: &'static [&'static str],
}

impl Names {
    fn of(&self, kind: u16) -> String {
        match usize::from(kind).checked_sub(1).and_then(|at| self.from_1.get(at)) {
            Some(name) => format!("{}{name}", self.prefix),
            None => format!("{}{kind}", self.prefix),
        }
    }
}

/// What the attributes of a region are.
#[derive(Clone, Copy)]
enum Level {
    Named(&'static Names),
    /// Numbered entries, which hold attributes of that level.
    List(&'static Names),
    Unknown,
}

impl Level {
    fn name(self, kind: u16) -> String {
        match self {
            Level::Named(names) => names.of(kind),
            Level::List(_) | Level::Unknown => kind.to_string(),
        }
    }

    /// What an attribute of this level holds, `region` being all of the level.
    fn inside(self, kind: u16, region: &[u8]) -> Level {
        let names = match self {
            Level::List(names) => return Level::Named(names),
            Level::Unknown => return Level::Unknown,
            Level::Named(names) => names,
        };
        match names.of(kind).as_str() {
            "TCA_OPTIONS" => Level::Named(&FLOWER),
            "TCA_FLOWER_ACT" => Level::List(&ACT),
            "TCA_FLOWER_KEY_ENC_OPTS" | "TCA_FLOWER_KEY_ENC_OPTS_MASK" => Level::Named(&ENC_OPTS),
            "TCA_FLOWER_KEY_ENC_OPTS_GENEVE" => Level::Named(&ENC_GENEVE),
            "TCA_FLOWER_KEY_ENC_OPTS_VXLAN" => Level::Named(&ENC_VXLAN),
            "TCA_FLOWER_KEY_ENC_OPTS_ERSPAN" => Level::Named(&ENC_ERSPAN),
            "TCA_FLOWER_KEY_ENC_OPTS_GTP" => Level::Named(&ENC_GTP),
            "TCA_FLOWER_KEY_ENC_OPTS_PFCP" => Level::Named(&ENC_PFCP),
            "TCA_FLOWER_KEY_MPLS_OPTS" => Level::Named(&MPLS_OPTS),
            "TCA_FLOWER_KEY_MPLS_OPTS_LSE" => Level::Named(&MPLS_LSE),
            "TCA_FLOWER_KEY_CFM" => Level::Named(&CFM),
            "TCA_ACT_OPTIONS" => find(region, TCA_ACT_KIND)
                .and_then(|kind| options_of(&text(kind)))
                .map_or(Level::Unknown, Level::Named),
            _ => Level::Unknown,
        }
    }
}

/// The options of an action of this kind.
fn options_of(action: &str) -> Option<&'static Names> {
    match action {
        "gact" => Some(&GACT),
        "mirred" => Some(&MIRRED),
        "vlan" => Some(&VLAN),
        "tunnel_key" => Some(&TUNNEL_KEY),
        "ct" => Some(&CT),
        "police" => Some(&POLICE),
        "pedit" => Some(&PEDIT),
        "csum" => Some(&CSUM),
        "skbedit" => Some(&SKBEDIT),
        "sample" => Some(&SAMPLE),
        "mpls" => Some(&MPLS),
        _ => None,
    }
}

/// The path of what an objection to this filter request points at, from the outermost attribute
/// in; nothing where it points at none.
pub(crate) fn attribute_path(request: &[u8], place: Place) -> Option<String> {
    match place {
        Place::At(offset) => Some(path_to(request, offset)?.0.join("/")),
        Place::Missing { kind, nest } => {
            let kind = u16::try_from(kind).ok()?;
            let (mut path, level) = match nest {
                Some(nest) => path_to(request, nest)?,
                None => (Vec::new(), Level::Named(&TC)),
            };
            path.push(level.name(kind));
            Some(format!("{} (missing)", path.join("/")))
        }
    }
}

/// The names down to the attribute that stands at `offset` or holds it, and what it holds.
fn path_to(request: &[u8], offset: u32) -> Option<(Vec<String>, Level)> {
    let offset = usize::try_from(offset).ok()?;
    let mut path = Vec::new();
    let mut level = Level::Named(&TC);
    let (mut at, mut end) = (NLMSGHDR + TCMSG, request.len());
    let mut region = request.get(at..)?;
    while at < end {
        let len = usize::from(u16_at(request, at)?);
        let header = u16_at(request, at + 2)?;
        let kind = header & NLA_TYPE_MASK;
        let payload = request.get(at + NLATTR..at + len)?;
        if offset < at || offset >= at + len {
            at += len.next_multiple_of(4);
            continue;
        }
        path.push(level.name(kind));
        level = level.inside(kind, region);
        let nested = header & NLA_F_NESTED != 0;
        if offset == at || !nested {
            return Some((path, level));
        }
        (region, end) = (payload, at + len);
        at += NLATTR;
    }
    if path.is_empty() { None } else { Some((path, level)) }
}

/// rtnetlink.h.
const TC: Names = Names {
    prefix: "TCA_",
    from_1: &[
        "KIND",
        "OPTIONS",
        "STATS",
        "XSTATS",
        "RATE",
        "FCNT",
        "STATS2",
        "STAB",
        "PAD",
        "DUMP_INVISIBLE",
        "CHAIN",
        "HW_OFFLOAD",
        "INGRESS_BLOCK",
        "EGRESS_BLOCK",
        "DUMP_FLAGS",
        "EXT_WARN_MSG",
    ],
};
/// pkt_cls.h, to the end of flower's, actions' common ones and the policer's.
const FLOWER: Names = Names {
    prefix: "TCA_FLOWER_",
    from_1: &[
        "CLASSID",
        "INDEV",
        "ACT",
        "KEY_ETH_DST",
        "KEY_ETH_DST_MASK",
        "KEY_ETH_SRC",
        "KEY_ETH_SRC_MASK",
        "KEY_ETH_TYPE",
        "KEY_IP_PROTO",
        "KEY_IPV4_SRC",
        "KEY_IPV4_SRC_MASK",
        "KEY_IPV4_DST",
        "KEY_IPV4_DST_MASK",
        "KEY_IPV6_SRC",
        "KEY_IPV6_SRC_MASK",
        "KEY_IPV6_DST",
        "KEY_IPV6_DST_MASK",
        "KEY_TCP_SRC",
        "KEY_TCP_DST",
        "KEY_UDP_SRC",
        "KEY_UDP_DST",
        "FLAGS",
        "KEY_VLAN_ID",
        "KEY_VLAN_PRIO",
        "KEY_VLAN_ETH_TYPE",
        "KEY_ENC_KEY_ID",
        "KEY_ENC_IPV4_SRC",
        "KEY_ENC_IPV4_SRC_MASK",
        "KEY_ENC_IPV4_DST",
        "KEY_ENC_IPV4_DST_MASK",
        "KEY_ENC_IPV6_SRC",
        "KEY_ENC_IPV6_SRC_MASK",
        "KEY_ENC_IPV6_DST",
        "KEY_ENC_IPV6_DST_MASK",
        "KEY_TCP_SRC_MASK",
        "KEY_TCP_DST_MASK",
        "KEY_UDP_SRC_MASK",
        "KEY_UDP_DST_MASK",
        "KEY_SCTP_SRC_MASK",
        "KEY_SCTP_DST_MASK",
        "KEY_SCTP_SRC",
        "KEY_SCTP_DST",
        "KEY_ENC_UDP_SRC_PORT",
        "KEY_ENC_UDP_SRC_PORT_MASK",
        "KEY_ENC_UDP_DST_PORT",
        "KEY_ENC_UDP_DST_PORT_MASK",
        "KEY_FLAGS",
        "KEY_FLAGS_MASK",
        "KEY_ICMPV4_CODE",
        "KEY_ICMPV4_CODE_MASK",
        "KEY_ICMPV4_TYPE",
        "KEY_ICMPV4_TYPE_MASK",
        "KEY_ICMPV6_CODE",
        "KEY_ICMPV6_CODE_MASK",
        "KEY_ICMPV6_TYPE",
        "KEY_ICMPV6_TYPE_MASK",
        "KEY_ARP_SIP",
        "KEY_ARP_SIP_MASK",
        "KEY_ARP_TIP",
        "KEY_ARP_TIP_MASK",
        "KEY_ARP_OP",
        "KEY_ARP_OP_MASK",
        "KEY_ARP_SHA",
        "KEY_ARP_SHA_MASK",
        "KEY_ARP_THA",
        "KEY_ARP_THA_MASK",
        "KEY_MPLS_TTL",
        "KEY_MPLS_BOS",
        "KEY_MPLS_TC",
        "KEY_MPLS_LABEL",
        "KEY_TCP_FLAGS",
        "KEY_TCP_FLAGS_MASK",
        "KEY_IP_TOS",
        "KEY_IP_TOS_MASK",
        "KEY_IP_TTL",
        "KEY_IP_TTL_MASK",
        "KEY_CVLAN_ID",
        "KEY_CVLAN_PRIO",
        "KEY_CVLAN_ETH_TYPE",
        "KEY_ENC_IP_TOS",
        "KEY_ENC_IP_TOS_MASK",
        "KEY_ENC_IP_TTL",
        "KEY_ENC_IP_TTL_MASK",
        "KEY_ENC_OPTS",
        "KEY_ENC_OPTS_MASK",
        "IN_HW_COUNT",
        "KEY_PORT_SRC_MIN",
        "KEY_PORT_SRC_MAX",
        "KEY_PORT_DST_MIN",
        "KEY_PORT_DST_MAX",
        "KEY_CT_STATE",
        "KEY_CT_STATE_MASK",
        "KEY_CT_ZONE",
        "KEY_CT_ZONE_MASK",
        "KEY_CT_MARK",
        "KEY_CT_MARK_MASK",
        "KEY_CT_LABELS",
        "KEY_CT_LABELS_MASK",
        "KEY_MPLS_OPTS",
        "KEY_HASH",
        "KEY_HASH_MASK",
        "KEY_NUM_OF_VLANS",
        "KEY_PPPOE_SID",
        "KEY_PPP_PROTO",
        "KEY_L2TPV3_SID",
        "L2_MISS",
        "KEY_CFM",
        "KEY_SPI",
        "KEY_SPI_MASK",
        "KEY_ENC_FLAGS",
        "KEY_ENC_FLAGS_MASK",
    ],
};
const ENC_OPTS: Names = Names {
    prefix: "TCA_FLOWER_KEY_ENC_OPTS_",
    from_1: &["GENEVE", "VXLAN", "ERSPAN", "GTP", "PFCP"],
};
const ENC_GENEVE: Names =
    Names { prefix: "TCA_FLOWER_KEY_ENC_OPT_GENEVE_", from_1: &["CLASS", "TYPE", "DATA"] };
const ENC_VXLAN: Names = Names { prefix: "TCA_FLOWER_KEY_ENC_OPT_VXLAN_", from_1: &["GBP"] };
const ENC_ERSPAN: Names =
    Names { prefix: "TCA_FLOWER_KEY_ENC_OPT_ERSPAN_", from_1: &["VER", "INDEX", "DIR", "HWID"] };
const ENC_GTP: Names =
    Names { prefix: "TCA_FLOWER_KEY_ENC_OPT_GTP_", from_1: &["PDU_TYPE", "QFI"] };
const ENC_PFCP: Names = Names { prefix: "TCA_FLOWER_KEY_ENC_OPT_PFCP_", from_1: &["TYPE", "SEID"] };
const MPLS_OPTS: Names = Names { prefix: "TCA_FLOWER_KEY_MPLS_OPTS_", from_1: &["LSE"] };
const MPLS_LSE: Names = Names {
    prefix: "TCA_FLOWER_KEY_MPLS_OPT_LSE_",
    from_1: &["DEPTH", "TTL", "BOS", "TC", "LABEL"],
};
const CFM: Names = Names { prefix: "TCA_FLOWER_KEY_CFM_", from_1: &["MD_LEVEL", "OPCODE"] };
const ACT: Names = Names {
    prefix: "TCA_ACT_",
    from_1: &[
        "KIND",
        "OPTIONS",
        "INDEX",
        "STATS",
        "PAD",
        "COOKIE",
        "FLAGS",
        "HW_STATS",
        "USED_HW_STATS",
        "IN_HW_COUNT",
    ],
};
const POLICE: Names = Names {
    prefix: "TCA_POLICE_",
    from_1: &[
        "TBF",
        "RATE",
        "PEAKRATE",
        "AVRATE",
        "RESULT",
        "TM",
        "PAD",
        "RATE64",
        "PEAKRATE64",
        "PKTRATE64",
        "PKTBURST64",
    ],
};
/// tc_act/*.h.
const GACT: Names = Names { prefix: "TCA_GACT_", from_1: &["TM", "PARMS", "PROB", "PAD"] };
const MIRRED: Names = Names { prefix: "TCA_MIRRED_", from_1: &["TM", "PARMS", "PAD", "BLOCKID"] };
const VLAN: Names = Names {
    prefix: "TCA_VLAN_",
    from_1: &[
        "TM",
        "PARMS",
        "PUSH_VLAN_ID",
        "PUSH_VLAN_PROTOCOL",
        "PAD",
        "PUSH_VLAN_PRIORITY",
        "PUSH_ETH_DST",
        "PUSH_ETH_SRC",
    ],
};
const TUNNEL_KEY: Names = Names {
    prefix: "TCA_TUNNEL_KEY_",
    from_1: &[
        "TM",
        "PARMS",
        "ENC_IPV4_SRC",
        "ENC_IPV4_DST",
        "ENC_IPV6_SRC",
        "ENC_IPV6_DST",
        "ENC_KEY_ID",
        "PAD",
        "ENC_DST_PORT",
        "NO_CSUM",
        "ENC_OPTS",
        "ENC_TOS",
        "ENC_TTL",
        "NO_FRAG",
    ],
};
const CT: Names = Names {
    prefix: "TCA_CT_",
    from_1: &[
        "PARMS",
        "TM",
        "ACTION",
        "ZONE",
        "MARK",
        "MARK_MASK",
        "LABELS",
        "LABELS_MASK",
        "NAT_IPV4_MIN",
        "NAT_IPV4_MAX",
        "NAT_IPV6_MIN",
        "NAT_IPV6_MAX",
        "NAT_PORT_MIN",
        "NAT_PORT_MAX",
        "PAD",
        "HELPER_NAME",
        "HELPER_FAMILY",
        "HELPER_PROTO",
    ],
};
const PEDIT: Names = Names {
    prefix: "TCA_PEDIT_",
    from_1: &["TM", "PARMS", "PAD", "PARMS_EX", "KEYS_EX", "KEY_EX"],
};
const CSUM: Names = Names { prefix: "TCA_CSUM_", from_1: &["PARMS", "TM", "PAD"] };
const SKBEDIT: Names = Names {
    prefix: "TCA_SKBEDIT_",
    from_1: &[
        "TM",
        "PARMS",
        "PRIORITY",
        "QUEUE_MAPPING",
        "MARK",
        "PAD",
        "PTYPE",
        "MASK",
        "FLAGS",
        "QUEUE_MAPPING_MAX",
    ],
};
const SAMPLE: Names = Names {
    prefix: "TCA_SAMPLE_",
    from_1: &["TM", "PARMS", "RATE", "TRUNC_SIZE", "PSAMPLE_GROUP", "PAD"],
};
const MPLS: Names = Names {
    prefix: "TCA_MPLS_",
    from_1: &["TM", "PARMS", "PAD", "PROTO", "LABEL", "TC", "TTL", "BOS"],
};

#[cfg(test)]
mod tests {
    use super::super::{Ask, Writer};
    use super::*;
    use crate::action::Action;
    use crate::arbitrary::{hook, mac, prio, vid};
    use crate::diff::Op;
    use crate::ident::{ChainId, Handle, VlanTpid};
    use crate::key::{KeyId, Match};
    use crate::rule::{Owner, Rule};

    fn request() -> Vec<u8> {
        let matching = Match::vlan(VlanTpid::Dot1Q, vid(100)).src(mac(1));
        let actions = [Action::VlanPop, Action::Drop];
        let rule = Rule::new(hook(), ChainId::ZERO, prio(10), matching, actions).unwrap();
        let op = Op::Add { rule, handle: Handle(1) };
        let mut buf = Vec::new();
        Writer::new(&mut buf).op(&op, Owner(*b"test"), 5, Ask { ack: true, told: false });
        buf
    }

    /// Offset of the first attribute with this header and these first bytes.
    fn offset(request: &[u8], len: u16, kind: u16, begins: &[u8]) -> u32 {
        let header = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
        let wanted = [&header, begins].concat();
        request.windows(wanted.len()).position(|window| window == wanted).unwrap() as u32
    }

    #[test]
    fn an_offset_is_named_from_the_outermost_attribute_in() {
        let request = request();
        let named = |offset| attribute_path(&request, Place::At(offset));
        let vlan_id = offset(&request, 6, 23, &100u16.to_ne_bytes());
        assert_eq!(named(vlan_id).unwrap(), "TCA_OPTIONS/TCA_FLOWER_KEY_VLAN_ID");
        assert_eq!(named(NLMSGHDR as u32 + 20).unwrap(), "TCA_KIND");
        let gact = offset(&request, 9, 1, b"gact") + 12 + 4;
        assert_eq!(
            named(gact).unwrap(),
            "TCA_OPTIONS/TCA_FLOWER_ACT/2/TCA_ACT_OPTIONS/TCA_GACT_PARMS"
        );
        let vlan = offset(&request, 9, 1, b"vlan") + 12;
        assert_eq!(named(vlan).unwrap(), "TCA_OPTIONS/TCA_FLOWER_ACT/1/TCA_ACT_OPTIONS");
    }

    #[test]
    fn what_is_missing_is_named_with_the_nest_that_lacks_it() {
        let request = request();
        let missing = |kind, nest| attribute_path(&request, Place::Missing { kind, nest });
        assert_eq!(missing(1, None).unwrap(), "TCA_KIND (missing)");
        let options = (NLMSGHDR + TCMSG + 20) as u32;
        assert_eq!(
            missing(9, Some(options)).unwrap(),
            "TCA_OPTIONS/TCA_FLOWER_KEY_IP_PROTO (missing)"
        );
        assert_eq!(missing(500, None).unwrap(), "TCA_500 (missing)");
    }

    #[test]
    fn an_offset_outside_the_attributes_has_no_name() {
        let request = request();
        for offset in [0, 20, 35, request.len() as u32, u32::MAX] {
            assert_eq!(attribute_path(&request, Place::At(offset)), None, "{offset}");
        }
        assert_eq!(attribute_path(&[], Place::At(40)), None);
    }

    #[test]
    fn a_mask_is_named_after_its_key() {
        for spec in KeyId::ALL.map(KeyId::spec).iter().filter(|spec| spec.mask != 0) {
            assert_eq!(FLOWER.of(spec.mask), format!("{}_MASK", FLOWER.of(spec.value)));
        }
    }
}
