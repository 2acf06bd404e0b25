//! Actions as netlink attributes, and back.
//!
//! In goes one [`Action`], out comes the content of its place in `TCA_FLOWER_ACT`; in comes such
//! content from a kernel, out goes the action, or nothing where this crate has no counterpart.
//!
//! Sources: `TCA_ACT_*`, `TC_ACT_*`, `tc_gen` and `tc_police` in include/uapi/linux/pkt_cls.h; the
//! headers of include/uapi/linux/tc_act/; `tcf_*_init` and `tcf_*_dump` in net/sched/act_*.c.

use std::num::{NonZeroU8, NonZeroU32, NonZeroU64};

use super::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, Writer, attrs, find, u16_at, u32_at,
};
use crate::action::{
    Action, Checksums, Control, Ct, CtCommit, CtHelper, CtNat, Erspan, ErspanHwid, GeneveTlv,
    GeneveTlvs, Mpls, MplsModify, MplsPush, Munge, Nat, NatAddresses, NatEnd, PEDIT_WORDS_MAX,
    PacketType, Pedit, PeditField, PeditHeader, PeditWord, Police, PoliceIndex, PoliceLimit,
    Sample, SkbEdit, SkbField, TunnelData, TunnelEnds, TunnelKey, VxlanGbp,
};
use crate::ident::{BlockId, ChainId, Direction, EtherType, Ifindex, Mac, VlanId, VlanTpid};
use crate::key::{
    ETH_P_MPLS_MC, ETH_P_MPLS_UC, IPPROTO_TCP, IPPROTO_UDP, MplsLabel, MplsTc, VlanPrio,
};
use crate::rule::{ActionExtra, HwStats, Offload, UserCookie};

pub(super) const TCA_ACT_KIND: u16 = 1;
pub(super) const TCA_ACT_OPTIONS: u16 = 2;
pub(super) const TCA_ACT_COOKIE: u16 = 6;
const TCA_ACT_FLAGS: u16 = 7;
const TCA_ACT_HW_STATS: u16 = 8;

const TCA_ACT_FLAGS_NO_PERCPU_STATS: u32 = 1;
const TCA_ACT_FLAGS_SKIP_SW: u32 = 1 << 2;
const TCA_ACT_HW_STATS_IMMEDIATE: u32 = 1;
const TCA_ACT_HW_STATS_DELAYED: u32 = 2;
const TCA_ACT_HW_STATS_ANY: u32 = 3;

/// `TCA_GACT_PARMS`, `TCA_MIRRED_PARMS`, `TCA_VLAN_PARMS`, `TCA_TUNNEL_KEY_PARMS`,
/// `TCA_SKBEDIT_PARMS`, `TCA_SAMPLE_PARMS` and `TCA_MPLS_PARMS` are one number.
const PARMS: u16 = 2;
/// And so are `TCA_CT_PARMS`, `TCA_CSUM_PARMS`, `TCA_NAT_PARMS` and `TCA_POLICE_TBF`.
const PARMS_FIRST: u16 = 1;

const TCA_GACT_PROB: u16 = 3;

const TCA_MIRRED_BLOCKID: u16 = 4;
const TCA_EGRESS_REDIR: u32 = 1;
const TCA_EGRESS_MIRROR: u32 = 2;
const TCA_INGRESS_REDIR: u32 = 3;
const TCA_INGRESS_MIRROR: u32 = 4;

const TCA_VLAN_PUSH_VLAN_ID: u16 = 3;
const TCA_VLAN_PUSH_VLAN_PROTOCOL: u16 = 4;
const TCA_VLAN_PUSH_VLAN_PRIORITY: u16 = 6;
const TCA_VLAN_PUSH_ETH_DST: u16 = 7;
const TCA_VLAN_PUSH_ETH_SRC: u16 = 8;
const TCA_VLAN_ACT_POP: u32 = 1;
const TCA_VLAN_ACT_PUSH: u32 = 2;
const TCA_VLAN_ACT_MODIFY: u32 = 3;
const TCA_VLAN_ACT_POP_ETH: u32 = 4;
const TCA_VLAN_ACT_PUSH_ETH: u32 = 5;

const TCA_TUNNEL_KEY_ENC_IPV4_SRC: u16 = 3;
const TCA_TUNNEL_KEY_ENC_IPV4_DST: u16 = 4;
const TCA_TUNNEL_KEY_ENC_IPV6_SRC: u16 = 5;
const TCA_TUNNEL_KEY_ENC_IPV6_DST: u16 = 6;
const TCA_TUNNEL_KEY_ENC_KEY_ID: u16 = 7;
const TCA_TUNNEL_KEY_ENC_DST_PORT: u16 = 9;
const TCA_TUNNEL_KEY_NO_CSUM: u16 = 10;
const TCA_TUNNEL_KEY_ENC_OPTS: u16 = 11;
const TCA_TUNNEL_KEY_ENC_TOS: u16 = 12;
const TCA_TUNNEL_KEY_ENC_TTL: u16 = 13;
const TCA_TUNNEL_KEY_NO_FRAG: u16 = 14;
const TCA_TUNNEL_KEY_ACT_SET: u32 = 1;
const TCA_TUNNEL_KEY_ACT_RELEASE: u32 = 2;
const ENC_OPTS_GENEVE: u16 = 1;
const ENC_OPTS_VXLAN: u16 = 2;
const ENC_OPTS_ERSPAN: u16 = 3;
const GENEVE_CLASS: u16 = 1;
const GENEVE_TYPE: u16 = 2;
const GENEVE_DATA: u16 = 3;
const VXLAN_GBP: u16 = 1;
const ERSPAN_VER: u16 = 1;
const ERSPAN_INDEX: u16 = 2;
const ERSPAN_DIR: u16 = 3;
const ERSPAN_HWID: u16 = 4;

const TCA_CT_ACTION: u16 = 3;
const TCA_CT_ZONE: u16 = 4;
const TCA_CT_MARK: u16 = 5;
const TCA_CT_MARK_MASK: u16 = 6;
const TCA_CT_LABELS: u16 = 7;
const TCA_CT_LABELS_MASK: u16 = 8;
const TCA_CT_NAT_IPV4_MIN: u16 = 9;
const TCA_CT_NAT_IPV4_MAX: u16 = 10;
const TCA_CT_NAT_IPV6_MIN: u16 = 11;
const TCA_CT_NAT_IPV6_MAX: u16 = 12;
const TCA_CT_NAT_PORT_MIN: u16 = 13;
const TCA_CT_NAT_PORT_MAX: u16 = 14;
const TCA_CT_HELPER_NAME: u16 = 16;
const TCA_CT_HELPER_FAMILY: u16 = 17;
const TCA_CT_HELPER_PROTO: u16 = 18;
const TCA_CT_ACT_COMMIT: u16 = 1;
const TCA_CT_ACT_FORCE: u16 = 1 << 1;
const TCA_CT_ACT_CLEAR: u16 = 1 << 2;
const TCA_CT_ACT_NAT: u16 = 1 << 3;
const TCA_CT_ACT_NAT_SRC: u16 = 1 << 4;
const TCA_CT_ACT_NAT_DST: u16 = 1 << 5;
const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

const TCA_POLICE_RATE: u16 = 2;
const TCA_POLICE_PEAKRATE: u16 = 3;
const TCA_POLICE_AVRATE: u16 = 4;
const TCA_POLICE_RESULT: u16 = 5;
const TCA_POLICE_RATE64: u16 = 8;
const TCA_POLICE_PEAKRATE64: u16 = 9;
const TCA_POLICE_PKTRATE64: u16 = 10;
const TCA_POLICE_PKTBURST64: u16 = 11;

/// `struct tc_police`: index, action, limit, burst, mtu, two `tc_ratespec`, refcnt, bindcnt, capab.
const TC_POLICE: usize = 56;
const POLICE_ACTION: usize = 4;
const POLICE_BURST: usize = 12;
const POLICE_MTU: usize = 16;
const POLICE_RATE: usize = 20;
const POLICE_PEAKRATE: usize = 32;
/// `struct tc_ratespec`: `cell_log`, link layer, overhead, `cell_align`, mpu, rate.
const RATESPEC_RATE: usize = 8;
const TC_LINKLAYER_ETHERNET: u8 = 1;
const TC_LINKLAYER_MASK: u8 = 0x0f;
/// The kernel computes no longer with it, but wants it between 1 and 31.
const CELL_LOG: u8 = 3;
/// The times that frames of some lengths take, which the kernel wants and, being told the link
/// layer, does not read (`qdisc_get_rtab`, net/sched/sch_api.c).
static RATE_TABLE: [u8; 1024] = [0; 1024];

const TCA_PEDIT_PARMS_EX: u16 = 4;
const TCA_PEDIT_KEYS_EX: u16 = 5;
const TCA_PEDIT_KEY_EX: u16 = 6;
const TCA_PEDIT_KEY_EX_HTYPE: u16 = 1;
const TCA_PEDIT_KEY_EX_CMD: u16 = 2;
/// `struct tc_pedit_sel`: `tc_gen`, number of keys, flags, and two bytes to the next word.
const TC_PEDIT_SEL: usize = TC_GEN + 4;
/// `struct tc_pedit_key`: mask, value, offset, at, offmask, shift.
const TC_PEDIT_KEY: usize = 24;

const TCA_SKBEDIT_PRIORITY: u16 = 3;
const TCA_SKBEDIT_QUEUE_MAPPING: u16 = 4;
const TCA_SKBEDIT_MARK: u16 = 5;
const TCA_SKBEDIT_PTYPE: u16 = 7;
const TCA_SKBEDIT_MASK: u16 = 8;
const TCA_SKBEDIT_FLAGS: u16 = 9;
const SKBEDIT_F_INHERITDSFIELD: u64 = 0x20;

const TCA_SAMPLE_RATE: u16 = 3;
const TCA_SAMPLE_TRUNC_SIZE: u16 = 4;
const TCA_SAMPLE_PSAMPLE_GROUP: u16 = 5;

const TCA_MPLS_PROTO: u16 = 4;
const TCA_MPLS_LABEL: u16 = 5;
const TCA_MPLS_TC: u16 = 6;
const TCA_MPLS_TTL: u16 = 7;
const TCA_MPLS_BOS: u16 = 8;
const TCA_MPLS_ACT_POP: u32 = 1;
const TCA_MPLS_ACT_PUSH: u32 = 2;
const TCA_MPLS_ACT_MODIFY: u32 = 3;
const TCA_MPLS_ACT_DEC_TTL: u32 = 4;
const TCA_MPLS_ACT_MAC_PUSH: u32 = 5;

const TCA_NAT_FLAG_EGRESS: u32 = 1;

/// `tc_gen`: index, capab, action, refcnt, bindcnt.
const TC_GEN: usize = 20;

const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_OK: u32 = 0;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_PIPE: u32 = 3;
const TC_ACT_STOLEN: u32 = 4;
const TC_ACT_TRAP: u32 = 8;
const TC_ACT_JUMP: u32 = 1 << 28;
const TC_ACT_GOTO_CHAIN: u32 = 2 << 28;
const TC_ACT_EXT_VAL_MASK: u32 = (1 << 28) - 1;

// ---------------------------------------------------------------- writing

/// `struct tcamsg`, all zero, in messages about actions by themselves.
const TCAMSG: [u8; 4] = [0; 4];
const RTM_NEWACTION: u16 = 48;
const RTM_DELACTION: u16 = 49;
const TCA_ACT_TAB: u16 = 1;
const TCA_ACT_INDEX: u16 = 3;
const TCA_ACT_FLAGS_SKIP_HW: u32 = 1 << 1;

impl Writer<'_> {
    /// The request for a policer by itself, in the place of one that is there.
    pub(crate) fn set_police(
        &mut self,
        index: PoliceIndex,
        police: &Police,
        offload: Offload,
        seq: u32,
    ) {
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.begin(RTM_NEWACTION, flags, seq);
        self.put(&TCAMSG);
        let table = self.nest(TCA_ACT_TAB);
        let action = self.nest(1);
        self.police(police, index.get());
        let flags = match offload {
            Offload::Auto => 0,
            Offload::SkipHw => TCA_ACT_FLAGS_SKIP_HW,
            Offload::SkipSw => TCA_ACT_FLAGS_SKIP_SW,
        };
        if flags != 0 {
            self.bitfield(TCA_ACT_FLAGS, flags, flags);
        }
        self.end_nest(action);
        self.end_nest(table);
        self.end();
    }

    /// The request that a policer by itself be gone.
    pub(crate) fn delete_police(&mut self, index: PoliceIndex, seq: u32) {
        self.begin(RTM_DELACTION, NLM_F_REQUEST | NLM_F_ACK, seq);
        self.put(&TCAMSG);
        let table = self.nest(TCA_ACT_TAB);
        let action = self.nest(1);
        self.attr_str(TCA_ACT_KIND, b"police");
        self.attr(TCA_ACT_INDEX, &index.get().to_ne_bytes());
        self.end_nest(action);
        self.end_nest(table);
        self.end();
    }

    /// What stands in an action's place, its cookie and flags aside.
    pub(super) fn action(&mut self, action: &Action) {
        match action {
            Action::Drop => self.gact(TC_ACT_SHOT),
            Action::Pass => self.gact(TC_ACT_OK),
            Action::Trap => self.gact(TC_ACT_TRAP),
            Action::Goto(chain) => self.gact(TC_ACT_GOTO_CHAIN | chain.get()),
            Action::Continue => self.gact(TC_ACT_UNSPEC),
            Action::Pipe => self.gact(TC_ACT_PIPE),
            Action::Jump(to) => self.gact(TC_ACT_JUMP | u32::from(*to)),
            Action::Mirror(to) => self.mirred(TCA_EGRESS_MIRROR, Ok(*to)),
            Action::Redirect(to) => self.mirred(TCA_EGRESS_REDIR, Ok(*to)),
            Action::MirrorIngress(to) => self.mirred(TCA_INGRESS_MIRROR, Ok(*to)),
            Action::RedirectIngress(to) => self.mirred(TCA_INGRESS_REDIR, Ok(*to)),
            Action::MirrorBlock { direction: Direction::Egress, block } => {
                self.mirred(TCA_EGRESS_MIRROR, Err(*block));
            }
            Action::MirrorBlock { direction: Direction::Ingress, block } => {
                self.mirred(TCA_INGRESS_MIRROR, Err(*block));
            }
            Action::RedirectBlock { direction: Direction::Egress, block } => {
                self.mirred(TCA_EGRESS_REDIR, Err(*block));
            }
            Action::RedirectBlock { direction: Direction::Ingress, block } => {
                self.mirred(TCA_INGRESS_REDIR, Err(*block));
            }
            Action::VlanPush { tpid, vid } => {
                self.vlan_tag(TCA_VLAN_ACT_PUSH, *tpid, *vid, Some(0));
            }
            Action::VlanPushPrio { tpid, vid, prio } => {
                self.vlan_tag(TCA_VLAN_ACT_PUSH, *tpid, *vid, Some(prio.get()));
            }
            Action::VlanModify { tpid, vid } => {
                self.vlan_tag(TCA_VLAN_ACT_MODIFY, *tpid, *vid, None);
            }
            Action::VlanModifyPrio { tpid, vid, prio } => {
                self.vlan_tag(TCA_VLAN_ACT_MODIFY, *tpid, *vid, Some(prio.get()));
            }
            Action::VlanPop => self.only(b"vlan", TCA_VLAN_ACT_POP),
            Action::EthPop => self.only(b"vlan", TCA_VLAN_ACT_POP_ETH),
            Action::EthPush { dst, src } => {
                let options = self.options(b"vlan");
                self.attr(PARMS, &tc_gen_and(TC_ACT_PIPE, TCA_VLAN_ACT_PUSH_ETH));
                self.attr(TCA_VLAN_PUSH_ETH_DST, &dst.0);
                self.attr(TCA_VLAN_PUSH_ETH_SRC, &src.0);
                self.end_nest(options);
            }
            Action::TunnelSet(key) => self.tunnel_key(key),
            Action::TunnelRelease => self.only(b"tunnel_key", TCA_TUNNEL_KEY_ACT_RELEASE),
            Action::Ct(ct) => self.ct(ct),
            Action::Police(police) => self.police(police, 0),
            Action::SharedPolice(index) => self.shared_police(*index),
            Action::Pedit(pedit) => self.pedit(pedit),
            Action::Csum(of) => {
                let options = self.options(b"csum");
                self.attr(PARMS_FIRST, &tc_gen_and(TC_ACT_PIPE, u32::from(of.bits())));
                self.end_nest(options);
            }
            Action::SkbEdit(edit) => self.skbedit(edit),
            Action::Sample(sample) => {
                let options = self.options(b"sample");
                self.attr(PARMS, &tc_gen(TC_ACT_PIPE));
                self.attr(TCA_SAMPLE_RATE, &sample.rate.get().to_ne_bytes());
                self.attr(TCA_SAMPLE_PSAMPLE_GROUP, &sample.group.to_ne_bytes());
                if let Some(bytes) = sample.truncated {
                    self.attr(TCA_SAMPLE_TRUNC_SIZE, &bytes.get().to_ne_bytes());
                }
                self.end_nest(options);
            }
            Action::Mpls(mpls) => self.mpls(mpls),
            Action::Nat(nat) => {
                let options = self.options(b"nat");
                let mut parms = [0; TC_GEN + 16];
                parms[..TC_GEN].copy_from_slice(&tc_gen(TC_ACT_PIPE));
                parms[TC_GEN..TC_GEN + 4].copy_from_slice(&nat.old.octets());
                parms[TC_GEN + 4..TC_GEN + 8].copy_from_slice(&nat.new.octets());
                parms[TC_GEN + 8..TC_GEN + 12].copy_from_slice(&nat.mask().to_be_bytes());
                let flags = match nat.direction {
                    Direction::Ingress => 0,
                    Direction::Egress => TCA_NAT_FLAG_EGRESS,
                };
                parms[TC_GEN + 12..].copy_from_slice(&flags.to_ne_bytes());
                self.attr(PARMS_FIRST, &parms);
                self.end_nest(options);
            }
        }
    }

    /// What is said of an action besides what it does, and that it runs in hardware only.
    pub(super) fn extra(&mut self, extra: &ActionExtra, hardware_only: bool) {
        if let Some(cookie) = &extra.cookie {
            self.attr(TCA_ACT_COOKIE, cookie.bytes());
        }
        if let Some(stats) = extra.hw_stats {
            let stats = match stats {
                HwStats::Immediate => TCA_ACT_HW_STATS_IMMEDIATE,
                HwStats::Delayed => TCA_ACT_HW_STATS_DELAYED,
                HwStats::Disabled => 0,
            };
            self.bitfield(TCA_ACT_HW_STATS, stats, TCA_ACT_HW_STATS_ANY);
        }
        let mut flags = 0;
        if extra.no_percpu {
            flags |= TCA_ACT_FLAGS_NO_PERCPU_STATS;
        }
        if hardware_only {
            flags |= TCA_ACT_FLAGS_SKIP_SW;
        }
        if flags != 0 {
            self.bitfield(TCA_ACT_FLAGS, flags, flags);
        }
    }

    /// `struct nla_bitfield32`.
    fn bitfield(&mut self, kind: u16, value: u32, selector: u32) {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&value.to_ne_bytes());
        bytes[4..].copy_from_slice(&selector.to_ne_bytes());
        self.attr(kind, &bytes);
    }

    fn options(&mut self, kind: &[u8]) -> usize {
        self.attr_str(TCA_ACT_KIND, kind);
        self.nest(TCA_ACT_OPTIONS)
    }

    fn gact(&mut self, control: u32) {
        let options = self.options(b"gact");
        self.attr(PARMS, &tc_gen(control));
        self.end_nest(options);
    }

    /// An action of which there is nothing to say but its kind and sub-kind.
    fn only(&mut self, kind: &[u8], which: u32) {
        let options = self.options(kind);
        self.attr(PARMS, &tc_gen_and(TC_ACT_PIPE, which));
        self.end_nest(options);
    }

    fn mirred(&mut self, eaction: u32, to: Result<Ifindex, BlockId>) {
        let control = match eaction {
            TCA_EGRESS_MIRROR | TCA_INGRESS_MIRROR => TC_ACT_PIPE,
            _ => TC_ACT_STOLEN,
        };
        let options = self.options(b"mirred");
        let mut parms = [0; TC_GEN + 8];
        parms[..TC_GEN + 4].copy_from_slice(&tc_gen_and(control, eaction));
        let ifindex = to.map_or(0, Ifindex::get);
        parms[TC_GEN + 4..].copy_from_slice(&ifindex.to_ne_bytes());
        self.attr(PARMS, &parms);
        if let Err(block) = to {
            self.attr(TCA_MIRRED_BLOCKID, &block.get().to_ne_bytes());
        }
        self.end_nest(options);
    }

    fn vlan_tag(&mut self, v_action: u32, tpid: VlanTpid, vid: VlanId, prio: Option<u8>) {
        let options = self.options(b"vlan");
        self.attr(PARMS, &tc_gen_and(TC_ACT_PIPE, v_action));
        self.attr(TCA_VLAN_PUSH_VLAN_ID, &vid.get().to_ne_bytes());
        self.attr(TCA_VLAN_PUSH_VLAN_PROTOCOL, &tpid.ethertype().to_be_bytes());
        if let Some(prio) = prio {
            self.attr(TCA_VLAN_PUSH_VLAN_PRIORITY, &[prio]);
        }
        self.end_nest(options);
    }

    fn tunnel_key(&mut self, key: &TunnelKey) {
        let options = self.options(b"tunnel_key");
        self.attr(PARMS, &tc_gen_and(TC_ACT_PIPE, TCA_TUNNEL_KEY_ACT_SET));
        if let Some(id) = key.id {
            self.attr(TCA_TUNNEL_KEY_ENC_KEY_ID, &id.to_be_bytes());
        }
        match key.ends {
            TunnelEnds::V4 { src, dst } => {
                self.attr(TCA_TUNNEL_KEY_ENC_IPV4_SRC, &src.octets());
                self.attr(TCA_TUNNEL_KEY_ENC_IPV4_DST, &dst.octets());
            }
            TunnelEnds::V6 { src, dst } => {
                self.attr(TCA_TUNNEL_KEY_ENC_IPV6_SRC, &src.octets());
                self.attr(TCA_TUNNEL_KEY_ENC_IPV6_DST, &dst.octets());
            }
        }
        if key.dst_port != 0 {
            self.attr(TCA_TUNNEL_KEY_ENC_DST_PORT, &key.dst_port.to_be_bytes());
        }
        self.attr(TCA_TUNNEL_KEY_NO_CSUM, &[u8::from(!key.csum)]);
        if key.no_frag {
            self.attr(TCA_TUNNEL_KEY_NO_FRAG, &[]);
        }
        if key.options != TunnelData::None {
            let opts = self.nest(TCA_TUNNEL_KEY_ENC_OPTS);
            self.tunnel_data(&key.options);
            self.end_nest(opts);
        }
        if key.tos != 0 {
            self.attr(TCA_TUNNEL_KEY_ENC_TOS, &[key.tos]);
        }
        if key.ttl != 0 {
            self.attr(TCA_TUNNEL_KEY_ENC_TTL, &[key.ttl]);
        }
        self.end_nest(options);
    }

    fn tunnel_data(&mut self, options: &TunnelData) {
        match options {
            TunnelData::None => {}
            TunnelData::Geneve(options) => {
                for option in &options.0 {
                    let nest = self.nest(ENC_OPTS_GENEVE);
                    self.attr(GENEVE_CLASS, &option.class.to_be_bytes());
                    self.attr(GENEVE_TYPE, &[option.kind]);
                    self.attr(GENEVE_DATA, &option.data);
                    self.end_nest(nest);
                }
            }
            TunnelData::Vxlan(gbp) => {
                let nest = self.nest(ENC_OPTS_VXLAN);
                self.attr(VXLAN_GBP, &gbp.get().to_ne_bytes());
                self.end_nest(nest);
            }
            TunnelData::Erspan(erspan) => {
                let nest = self.nest(ENC_OPTS_ERSPAN);
                match erspan {
                    Erspan::V1 { index } => {
                        self.attr(ERSPAN_VER, &[1]);
                        self.attr(ERSPAN_INDEX, &index.to_be_bytes());
                    }
                    Erspan::V2 { egress, hwid } => {
                        self.attr(ERSPAN_VER, &[2]);
                        self.attr(ERSPAN_DIR, &[u8::from(*egress)]);
                        self.attr(ERSPAN_HWID, &[hwid.get()]);
                    }
                }
                self.end_nest(nest);
            }
        }
    }

    fn ct(&mut self, ct: &Ct) {
        let options = self.options(b"ct");
        self.attr(PARMS_FIRST, &tc_gen(TC_ACT_PIPE));
        match ct {
            Ct::Clear => self.attr(TCA_CT_ACTION, &TCA_CT_ACT_CLEAR.to_ne_bytes()),
            Ct::Track { zone, nat } => {
                let action = if *nat { TCA_CT_ACT_NAT } else { 0 };
                self.attr(TCA_CT_ACTION, &action.to_ne_bytes());
                self.attr(TCA_CT_ZONE, &zone.to_ne_bytes());
            }
            Ct::Commit(commit) => self.ct_commit(commit),
        }
        self.end_nest(options);
    }

    fn ct_commit(&mut self, commit: &CtCommit) {
        let mut action = TCA_CT_ACT_COMMIT;
        if commit.force {
            action |= TCA_CT_ACT_FORCE;
        }
        match commit.nat.map(|nat| nat.end) {
            None => {}
            Some(NatEnd::Src) => action |= TCA_CT_ACT_NAT | TCA_CT_ACT_NAT_SRC,
            Some(NatEnd::Dst) => action |= TCA_CT_ACT_NAT | TCA_CT_ACT_NAT_DST,
        }
        self.attr(TCA_CT_ACTION, &action.to_ne_bytes());
        self.attr(TCA_CT_ZONE, &commit.zone.to_ne_bytes());
        if let Some((mark, mask)) = commit.mark {
            self.attr(TCA_CT_MARK, &mark.to_ne_bytes());
            self.attr(TCA_CT_MARK_MASK, &mask.get().to_ne_bytes());
        }
        if let Some((label, mask)) = &commit.label {
            self.attr(TCA_CT_LABELS, label);
            self.attr(TCA_CT_LABELS_MASK, mask);
        }
        if let Some(nat) = commit.nat {
            match nat.addresses {
                NatAddresses::V4(first, last) => {
                    self.attr(TCA_CT_NAT_IPV4_MIN, &first.octets());
                    self.attr(TCA_CT_NAT_IPV4_MAX, &last.octets());
                }
                NatAddresses::V6(first, last) => {
                    self.attr(TCA_CT_NAT_IPV6_MIN, &first.octets());
                    self.attr(TCA_CT_NAT_IPV6_MAX, &last.octets());
                }
            }
            if let Some((first, last)) = nat.ports {
                self.attr(TCA_CT_NAT_PORT_MIN, &first.to_be_bytes());
                self.attr(TCA_CT_NAT_PORT_MAX, &last.to_be_bytes());
            }
        }
        if let Some(helper) = &commit.helper {
            self.attr_str(TCA_CT_HELPER_NAME, helper.name());
            self.attr(TCA_CT_HELPER_FAMILY, &[if helper.ipv6 { AF_INET6 } else { AF_INET }]);
            self.attr(TCA_CT_HELPER_PROTO, &[if helper.udp { IPPROTO_UDP } else { IPPROTO_TCP }]);
        }
    }

    /// A policer; index 0 is one that the kernel chooses.
    pub(super) fn police(&mut self, police: &Police, index: u32) {
        let options = self.options(b"police");
        let mut parms = [0; TC_POLICE];
        parms[..4].copy_from_slice(&index.to_ne_bytes());
        parms[POLICE_ACTION..][..4].copy_from_slice(&control(police.exceed).to_ne_bytes());
        parms[POLICE_MTU..][..4].copy_from_slice(&police.mtu.to_ne_bytes());
        let narrow = |rate: NonZeroU64| u32::try_from(rate.get()).unwrap_or(u32::MAX);
        let mut ratespec = |at: usize, rate: NonZeroU64| {
            parms[at] = CELL_LOG;
            parms[at + 1] = TC_LINKLAYER_ETHERNET;
            parms[at + RATESPEC_RATE..][..4].copy_from_slice(&narrow(rate).to_ne_bytes());
        };
        if let PoliceLimit::Bytes { rate, burst, peak } = police.limit {
            ratespec(POLICE_RATE, rate);
            if let Some(peak) = peak {
                ratespec(POLICE_PEAKRATE, peak);
            }
            parms[POLICE_BURST..][..4].copy_from_slice(&burst.to_ne_bytes());
        }
        self.attr(PARMS_FIRST, &parms);
        match police.limit {
            PoliceLimit::Bytes { rate, peak, .. } => {
                self.police_rate(TCA_POLICE_RATE, TCA_POLICE_RATE64, rate);
                if let Some(peak) = peak {
                    self.police_rate(TCA_POLICE_PEAKRATE, TCA_POLICE_PEAKRATE64, peak);
                }
            }
            PoliceLimit::Packets { rate, burst } => {
                self.attr(TCA_POLICE_PKTRATE64, &rate.get().to_ne_bytes());
                self.attr(TCA_POLICE_PKTBURST64, &u64::from(burst).to_ne_bytes());
            }
            PoliceLimit::Size => {}
        }
        self.police_result(control(police.conform));
        self.end_nest(options);
    }

    fn police_rate(&mut self, table: u16, rate64: u16, rate: NonZeroU64) {
        self.attr(table, &RATE_TABLE);
        if u32::try_from(rate.get()).is_err() {
            self.attr(rate64, &rate.get().to_ne_bytes());
        }
    }

    fn police_result(&mut self, conform: u32) {
        if conform != TC_ACT_OK {
            self.attr(TCA_POLICE_RESULT, &conform.to_ne_bytes());
        }
    }

    /// A policer that exists. Of one that does not, the kernel would make one without any limit
    /// (`tcf_police_init`); the rate without a burst makes it refuse instead.
    fn shared_police(&mut self, index: PoliceIndex) {
        let options = self.options(b"police");
        let mut parms = [0; TC_POLICE];
        parms[..4].copy_from_slice(&index.get().to_ne_bytes());
        parms[POLICE_ACTION..][..4].copy_from_slice(&TC_ACT_SHOT.to_ne_bytes());
        self.attr(PARMS_FIRST, &parms);
        self.attr(TCA_POLICE_PKTRATE64, &1u64.to_ne_bytes());
        self.police_result(TC_ACT_PIPE);
        self.end_nest(options);
    }

    fn pedit(&mut self, pedit: &Pedit) {
        let options = self.options(b"pedit");
        let words = || pedit.munges.iter().flat_map(Munge::words);
        let parms = self.nest(TCA_PEDIT_PARMS_EX);
        // Not a nest, but of a length that is known only afterwards.
        self.buf[parms + 2..parms + 4].copy_from_slice(&TCA_PEDIT_PARMS_EX.to_ne_bytes());
        self.put(&tc_gen(TC_ACT_PIPE));
        self.put(&[words().count() as u8, 0, 0, 0]);
        for word in words() {
            self.put(&word.mask.to_be_bytes());
            self.put(&word.value.to_be_bytes());
            self.put(&word.offset.to_ne_bytes());
            self.put(&[0; 12]);
        }
        self.end_nest(parms);
        let keys = self.nest(TCA_PEDIT_KEYS_EX);
        for word in words() {
            let key = self.nest(TCA_PEDIT_KEY_EX);
            self.attr(TCA_PEDIT_KEY_EX_HTYPE, &(word.header as u16).to_ne_bytes());
            self.attr(TCA_PEDIT_KEY_EX_CMD, &u16::from(word.add).to_ne_bytes());
            self.end_nest(key);
        }
        self.end_nest(keys);
        self.end_nest(options);
    }

    fn skbedit(&mut self, edit: &SkbEdit) {
        let options = self.options(b"skbedit");
        self.attr(PARMS, &tc_gen(TC_ACT_PIPE));
        if let Some(queue) = edit.queue {
            self.attr(TCA_SKBEDIT_QUEUE_MAPPING, &queue.to_ne_bytes());
        }
        if let Some(priority) = edit.priority {
            self.attr(TCA_SKBEDIT_PRIORITY, &priority.to_ne_bytes());
        }
        if let Some((mark, mask)) = edit.mark {
            self.attr(TCA_SKBEDIT_MARK, &mark.to_ne_bytes());
            if let Some(mask) = mask {
                self.attr(TCA_SKBEDIT_MASK, &mask.to_ne_bytes());
            }
        }
        if let Some(to) = edit.packet_type {
            self.attr(TCA_SKBEDIT_PTYPE, &(to as u16).to_ne_bytes());
        }
        if edit.inherit_dsfield {
            self.attr(TCA_SKBEDIT_FLAGS, &SKBEDIT_F_INHERITDSFIELD.to_ne_bytes());
        }
        self.end_nest(options);
    }

    fn mpls(&mut self, mpls: &Mpls) {
        let (action, proto, fields) = match mpls {
            Mpls::Pop(ethertype) => (TCA_MPLS_ACT_POP, Some(ethertype.get()), MplsModify::new()),
            Mpls::Push(push) | Mpls::MacPush(push) => {
                let MplsPush { label, ttl, class, bottom, multicast } = *push;
                let which = match mpls {
                    Mpls::Push(_) => TCA_MPLS_ACT_PUSH,
                    _ => TCA_MPLS_ACT_MAC_PUSH,
                };
                let proto = if multicast { ETH_P_MPLS_MC } else { ETH_P_MPLS_UC };
                let fields = MplsModify { label: Some(label), class, ttl: Some(ttl), bottom };
                (which, Some(proto), fields)
            }
            Mpls::Modify(fields) => (TCA_MPLS_ACT_MODIFY, None, *fields),
            Mpls::DecTtl => (TCA_MPLS_ACT_DEC_TTL, None, MplsModify::new()),
        };
        let options = self.options(b"mpls");
        self.attr(PARMS, &tc_gen_and(TC_ACT_PIPE, action));
        if let Some(proto) = proto {
            self.attr(TCA_MPLS_PROTO, &proto.to_be_bytes());
        }
        if let Some(label) = fields.label {
            self.attr(TCA_MPLS_LABEL, &label.get().to_ne_bytes());
        }
        if let Some(class) = fields.class {
            self.attr(TCA_MPLS_TC, &[class.get()]);
        }
        if let Some(ttl) = fields.ttl {
            self.attr(TCA_MPLS_TTL, &[ttl.get()]);
        }
        if let Some(bottom) = fields.bottom {
            self.attr(TCA_MPLS_BOS, &[u8::from(bottom)]);
        }
        self.end_nest(options);
    }
}

fn tc_gen(control: u32) -> [u8; TC_GEN] {
    let mut parms = [0; TC_GEN];
    parms[8..12].copy_from_slice(&control.to_ne_bytes());
    parms
}

/// `tc_gen` and the number that most kinds have behind it.
fn tc_gen_and(control: u32, number: u32) -> [u8; TC_GEN + 4] {
    let mut parms = [0; TC_GEN + 4];
    parms[..TC_GEN].copy_from_slice(&tc_gen(control));
    parms[TC_GEN..].copy_from_slice(&number.to_ne_bytes());
    parms
}

const fn control(control: Control) -> u32 {
    match control {
        Control::Pass => TC_ACT_OK,
        Control::Drop => TC_ACT_SHOT,
        Control::Pipe => TC_ACT_PIPE,
        Control::Continue => TC_ACT_UNSPEC,
        Control::Jump(to) => TC_ACT_JUMP | to as u32,
        Control::Goto(chain) => TC_ACT_GOTO_CHAIN | chain.get(),
    }
}

// ---------------------------------------------------------------- reading

/// The action that stands in one place of the list.
pub(super) fn read_action(action: &[u8]) -> Option<Action> {
    let kind = find(action, TCA_ACT_KIND)?;
    let options = find(action, TCA_ACT_OPTIONS)?;
    match kind.split(|byte| *byte == 0).next()? {
        b"gact" => read_gact(options),
        b"mirred" => read_mirred(options),
        b"vlan" => read_vlan(options),
        b"tunnel_key" => read_tunnel_key(options),
        b"ct" => read_ct(options).map(Action::from),
        b"police" => read_police(options),
        b"pedit" => read_pedit(options).map(Action::from),
        b"csum" => {
            let of = piped(find(options, PARMS_FIRST)?)?;
            Checksums::from_bits(u8::try_from(of).ok()?).map(Action::Csum)
        }
        b"skbedit" => read_skbedit(options).map(Action::from),
        b"sample" => read_sample(options).map(Action::Sample),
        b"mpls" => read_mpls(options).map(Action::from),
        b"nat" => read_nat(find(options, PARMS_FIRST)?).map(Action::Nat),
        _ => None,
    }
}

/// What else is said of the action in one place of the list; the first one's cookie is the owner's.
pub(super) fn read_extra(action: &[u8], first: bool) -> Option<ActionExtra> {
    let mut extra = ActionExtra::NONE;
    for (attr, value) in attrs(action) {
        match attr {
            TCA_ACT_COOKIE if !first => extra.cookie = Some(UserCookie::new(value)?),
            TCA_ACT_HW_STATS => {
                extra.hw_stats = match u32_at(value, 0)? & TCA_ACT_HW_STATS_ANY {
                    0 => Some(HwStats::Disabled),
                    TCA_ACT_HW_STATS_IMMEDIATE => Some(HwStats::Immediate),
                    TCA_ACT_HW_STATS_DELAYED => Some(HwStats::Delayed),
                    _ => None,
                };
            }
            TCA_ACT_FLAGS => {
                extra.no_percpu = u32_at(value, 0)? & TCA_ACT_FLAGS_NO_PERCPU_STATS != 0;
            }
            _ => {}
        }
    }
    Some(extra)
}

/// The number behind `tc_gen` of an action that goes on with the next one.
fn piped(parms: &[u8]) -> Option<u32> {
    (u32_at(parms, 8)? == TC_ACT_PIPE).then_some(())?;
    u32_at(parms, TC_GEN)
}

fn read_control(control: u32) -> Option<Control> {
    match control {
        TC_ACT_OK => Some(Control::Pass),
        TC_ACT_SHOT => Some(Control::Drop),
        TC_ACT_PIPE => Some(Control::Pipe),
        TC_ACT_UNSPEC => Some(Control::Continue),
        extended => match extended & !TC_ACT_EXT_VAL_MASK {
            TC_ACT_JUMP => u8::try_from(extended & TC_ACT_EXT_VAL_MASK).ok().map(Control::Jump),
            TC_ACT_GOTO_CHAIN => ChainId::new(extended & TC_ACT_EXT_VAL_MASK).map(Control::Goto),
            _ => None,
        },
    }
}

fn read_gact(options: &[u8]) -> Option<Action> {
    if find(options, TCA_GACT_PROB).is_some() {
        return None;
    }
    let control = u32_at(find(options, PARMS)?, 8)?;
    if control == TC_ACT_TRAP {
        return Some(Action::Trap);
    }
    Some(match read_control(control)? {
        Control::Pass => Action::Pass,
        Control::Drop => Action::Drop,
        Control::Pipe => Action::Pipe,
        Control::Continue => Action::Continue,
        Control::Jump(to) => Action::Jump(to),
        Control::Goto(chain) => Action::Goto(chain),
    })
}

fn read_mirred(options: &[u8]) -> Option<Action> {
    let parms = find(options, PARMS)?;
    let block = match find(options, TCA_MIRRED_BLOCKID) {
        Some(block) => Some(BlockId::new(u32_at(block, 0)?)?),
        None => None,
    };
    let to = u32_at(parms, TC_GEN + 4)?;
    let eaction = u32_at(parms, TC_GEN)?;
    let direction = match eaction {
        TCA_EGRESS_MIRROR | TCA_EGRESS_REDIR => Direction::Egress,
        _ => Direction::Ingress,
    };
    let action = match (u32_at(parms, 8)?, eaction, block) {
        (TC_ACT_PIPE, TCA_EGRESS_MIRROR | TCA_INGRESS_MIRROR, Some(block)) => {
            Action::MirrorBlock { direction, block }
        }
        (TC_ACT_STOLEN, TCA_EGRESS_REDIR | TCA_INGRESS_REDIR, Some(block)) => {
            Action::RedirectBlock { direction, block }
        }
        (TC_ACT_PIPE, TCA_EGRESS_MIRROR, None) => Action::Mirror(Ifindex::new(to)?),
        (TC_ACT_PIPE, TCA_INGRESS_MIRROR, None) => Action::MirrorIngress(Ifindex::new(to)?),
        (TC_ACT_STOLEN, TCA_EGRESS_REDIR, None) => Action::Redirect(Ifindex::new(to)?),
        (TC_ACT_STOLEN, TCA_INGRESS_REDIR, None) => Action::RedirectIngress(Ifindex::new(to)?),
        _ => return None,
    };
    Some(action)
}

fn read_vlan(options: &[u8]) -> Option<Action> {
    let prio = match find(options, TCA_VLAN_PUSH_VLAN_PRIORITY) {
        Some(prio) => Some(VlanPrio::new(*prio.first()?)?),
        None => None,
    };
    let tag = || {
        let vid = VlanId::new(u16_at(find(options, TCA_VLAN_PUSH_VLAN_ID)?, 0)?)?;
        let tpid = be16(find(options, TCA_VLAN_PUSH_VLAN_PROTOCOL)?)?;
        Some((VlanTpid::from_ethertype(tpid)?, vid))
    };
    let mac = |attr| Some(Mac(find(options, attr)?.try_into().ok()?));
    match piped(find(options, PARMS)?)? {
        TCA_VLAN_ACT_POP => Some(Action::VlanPop),
        TCA_VLAN_ACT_POP_ETH => Some(Action::EthPop),
        TCA_VLAN_ACT_PUSH_ETH => Some(Action::EthPush {
            dst: mac(TCA_VLAN_PUSH_ETH_DST)?,
            src: mac(TCA_VLAN_PUSH_ETH_SRC)?,
        }),
        TCA_VLAN_ACT_PUSH => tag().map(|(tpid, vid)| match prio {
            Some(prio) if prio.get() != 0 => Action::VlanPushPrio { tpid, vid, prio },
            _ => Action::VlanPush { tpid, vid },
        }),
        TCA_VLAN_ACT_MODIFY => tag().map(|(tpid, vid)| match prio {
            None => Action::VlanModify { tpid, vid },
            Some(prio) => Action::VlanModifyPrio { tpid, vid, prio },
        }),
        _ => None,
    }
}

fn be16(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn u64_of(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
}

/// An address of 4 or 16 bytes.
fn array<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

fn read_tunnel_key(options: &[u8]) -> Option<Action> {
    match piped(find(options, PARMS)?)? {
        TCA_TUNNEL_KEY_ACT_RELEASE => return Some(Action::TunnelRelease),
        TCA_TUNNEL_KEY_ACT_SET => {}
        _ => return None,
    }
    let mut key = TunnelKey::new(TunnelEnds::V4 { src: [0; 4].into(), dst: [0; 4].into() });
    let (mut v4, mut v6) = ([None; 2], [None; 2]);
    for (attr, value) in attrs(options) {
        match attr {
            TCA_TUNNEL_KEY_ENC_IPV4_SRC => v4[0] = Some(array::<4>(value)?),
            TCA_TUNNEL_KEY_ENC_IPV4_DST => v4[1] = Some(array::<4>(value)?),
            TCA_TUNNEL_KEY_ENC_IPV6_SRC => v6[0] = Some(array::<16>(value)?),
            TCA_TUNNEL_KEY_ENC_IPV6_DST => v6[1] = Some(array::<16>(value)?),
            TCA_TUNNEL_KEY_ENC_KEY_ID => key.id = Some(be32(value)?),
            TCA_TUNNEL_KEY_ENC_DST_PORT => key.dst_port = be16(value)?,
            TCA_TUNNEL_KEY_NO_CSUM => key.csum = *value.first()? == 0,
            TCA_TUNNEL_KEY_NO_FRAG => key.no_frag = true,
            TCA_TUNNEL_KEY_ENC_OPTS => key.options = read_tunnel_options(value)?,
            TCA_TUNNEL_KEY_ENC_TOS => key.tos = *value.first()?,
            TCA_TUNNEL_KEY_ENC_TTL => key.ttl = *value.first()?,
            _ => {}
        }
    }
    key.ends = match (v4, v6) {
        ([Some(src), Some(dst)], _) => TunnelEnds::V4 { src: src.into(), dst: dst.into() },
        (_, [Some(src), Some(dst)]) => TunnelEnds::V6 { src: src.into(), dst: dst.into() },
        _ => return None,
    };
    Some(key.into())
}

/// Geneve options come one in a nest, or all in one.
fn read_tunnel_options(options: &[u8]) -> Option<TunnelData> {
    let mut geneve = Vec::new();
    for (kind, nest) in attrs(options) {
        match kind {
            ENC_OPTS_GENEVE => {
                let (mut class, mut of) = (None, None);
                for (attr, value) in attrs(nest) {
                    match attr {
                        GENEVE_CLASS => class = be16(value),
                        GENEVE_TYPE => of = value.first().copied(),
                        GENEVE_DATA => {
                            geneve.push(GeneveTlv::new(class.take()?, of.take()?, value)?);
                        }
                        _ => {}
                    }
                }
            }
            ENC_OPTS_VXLAN => {
                let gbp = u32_at(find(nest, VXLAN_GBP)?, 0)?;
                return VxlanGbp::new(gbp).map(TunnelData::Vxlan);
            }
            ENC_OPTS_ERSPAN => return read_erspan(nest).map(TunnelData::Erspan),
            _ => {}
        }
    }
    GeneveTlvs::new(geneve).map(TunnelData::Geneve)
}

fn read_erspan(nest: &[u8]) -> Option<Erspan> {
    match *find(nest, ERSPAN_VER)?.first()? {
        1 => Some(Erspan::V1 { index: be32(find(nest, ERSPAN_INDEX)?)? }),
        2 => {
            let hwid = ErspanHwid::new(*find(nest, ERSPAN_HWID)?.first()?)?;
            match *find(nest, ERSPAN_DIR)?.first()? {
                0 => Some(Erspan::V2 { egress: false, hwid }),
                1 => Some(Erspan::V2 { egress: true, hwid }),
                _ => None,
            }
        }
        _ => None,
    }
}

fn read_ct(options: &[u8]) -> Option<Ct> {
    (u32_at(find(options, PARMS_FIRST)?, 8)? == TC_ACT_PIPE).then_some(())?;
    let action = u16_at(find(options, TCA_CT_ACTION)?, 0)?;
    if action == TCA_CT_ACT_CLEAR {
        return Some(Ct::Clear);
    }
    let number = |attr| find(options, attr).map(|value| u32_at(value, 0));
    let mut commit = CtCommit::new(match find(options, TCA_CT_ZONE) {
        Some(zone) => u16_at(zone, 0)?,
        None => 0,
    });
    if let Some(mark) = number(TCA_CT_MARK) {
        commit = commit.mark(mark?, number(TCA_CT_MARK_MASK).unwrap_or(Some(u32::MAX))?);
    }
    if let Some(label) = find(options, TCA_CT_LABELS) {
        let mask = find(options, TCA_CT_LABELS_MASK).map_or(Some([0xff; 16]), array);
        commit = commit.label(array(label)?, mask?);
    }
    if let Some(name) = find(options, TCA_CT_HELPER_NAME) {
        let name = std::str::from_utf8(name.split(|byte| *byte == 0).next()?).ok()?;
        let ipv6 = match *find(options, TCA_CT_HELPER_FAMILY)?.first()? {
            // One helper serves both families, and the kernel no longer knows for which it was
            // asked for.
            AF_UNSPEC | AF_INET => false,
            AF_INET6 => true,
            _ => return None,
        };
        let udp = match *find(options, TCA_CT_HELPER_PROTO)?.first()? {
            IPPROTO_TCP => false,
            IPPROTO_UDP => true,
            _ => return None,
        };
        commit = commit.helper(CtHelper::new(ipv6, udp, name)?);
    }
    match action & !TCA_CT_ACT_FORCE {
        0 | TCA_CT_ACT_NAT if action & TCA_CT_ACT_FORCE == 0 => {
            let nat = action == TCA_CT_ACT_NAT;
            let plain = commit == CtCommit::new(commit.zone);
            return plain.then_some(Ct::Track { zone: commit.zone, nat });
        }
        TCA_CT_ACT_COMMIT => {}
        with_nat
            if with_nat & !(TCA_CT_ACT_NAT_SRC | TCA_CT_ACT_NAT_DST)
                == TCA_CT_ACT_COMMIT | TCA_CT_ACT_NAT =>
        {
            let end = match with_nat & (TCA_CT_ACT_NAT_SRC | TCA_CT_ACT_NAT_DST) {
                TCA_CT_ACT_NAT_SRC => NatEnd::Src,
                TCA_CT_ACT_NAT_DST => NatEnd::Dst,
                _ => return None,
            };
            commit = commit.nat(read_ct_nat(options, end)?);
        }
        _ => return None,
    }
    if action & TCA_CT_ACT_FORCE != 0 {
        commit = commit.force();
    }
    Some(Ct::Commit(commit))
}

fn read_ct_nat(options: &[u8], end: NatEnd) -> Option<CtNat> {
    let addresses = if let Some(first) = find(options, TCA_CT_NAT_IPV4_MIN) {
        let last = find(options, TCA_CT_NAT_IPV4_MAX).unwrap_or(first);
        NatAddresses::V4(array::<4>(first)?.into(), array::<4>(last)?.into())
    } else {
        let first = find(options, TCA_CT_NAT_IPV6_MIN)?;
        let last = find(options, TCA_CT_NAT_IPV6_MAX).unwrap_or(first);
        NatAddresses::V6(array::<16>(first)?.into(), array::<16>(last)?.into())
    };
    let nat = CtNat::new(end, addresses)?;
    match find(options, TCA_CT_NAT_PORT_MIN) {
        None => Some(nat),
        Some(first) => {
            let last = find(options, TCA_CT_NAT_PORT_MAX).unwrap_or(first);
            nat.ports(be16(first)?, be16(last)?)
        }
    }
}

fn read_police(options: &[u8]) -> Option<Action> {
    let parms = find(options, PARMS_FIRST)?;
    if parms.len() < TC_POLICE || find(options, TCA_POLICE_AVRATE).is_some() {
        return None;
    }
    let conform = match find(options, TCA_POLICE_RESULT) {
        Some(result) => read_control(u32_at(result, 0)?)?,
        None => Control::Pass,
    };
    let exceed = read_control(u32_at(parms, POLICE_ACTION)?)?;
    if let Some(index) = PoliceIndex::new(u32_at(parms, 0)?) {
        let usual = (exceed, conform) == (Control::Drop, Control::Pipe);
        return usual.then_some(Action::SharedPolice(index));
    }
    let wide = |attr| find(options, attr).map(u64_of);
    // Nothing where there is no rate, and an inner nothing for one of a kind that is not ours.
    let rate = |at: usize, rate64| -> Option<Option<NonZeroU64>> {
        let narrow = u32_at(parms, at + RATESPEC_RATE)?;
        let rate = match wide(rate64) {
            Some(rate) => rate?,
            None => u64::from(narrow),
        };
        let plain = parms[at + 1] & TC_LINKLAYER_MASK == TC_LINKLAYER_ETHERNET
            && u16_at(parms, at + 2)? == 0
            && u16_at(parms, at + 6)? == 0;
        match NonZeroU64::new(rate) {
            Some(rate) if plain => Some(Some(rate)),
            Some(_) => None,
            None => Some(None),
        }
    };
    let peak = rate(POLICE_PEAKRATE, TCA_POLICE_PEAKRATE64)?;
    let limit = match (rate(POLICE_RATE, TCA_POLICE_RATE64)?, wide(TCA_POLICE_PKTRATE64)) {
        (Some(rate), None) => {
            PoliceLimit::Bytes { rate, burst: u32_at(parms, POLICE_BURST)?, peak }
        }
        (None, Some(rate)) => {
            let burst = u32::try_from(wide(TCA_POLICE_PKTBURST64)??).ok()?;
            PoliceLimit::Packets { rate: NonZeroU64::new(rate?)?, burst }
        }
        (None, None) => PoliceLimit::Size,
        (Some(_), Some(_)) => return None,
    };
    let police = Police::from_parts(limit, u32_at(parms, POLICE_MTU)?, exceed)?;
    police.conform(conform).map(Action::from)
}

fn read_pedit(options: &[u8]) -> Option<Pedit> {
    let parms = find(options, TCA_PEDIT_PARMS_EX)?;
    (u32_at(parms, 8)? == TC_ACT_PIPE).then_some(())?;
    let count = usize::from(*parms.get(TC_GEN)?);
    let mut kinds = attrs(find(options, TCA_PEDIT_KEYS_EX)?);
    let mut words = Vec::with_capacity(count.min(PEDIT_WORDS_MAX));
    for at in 0..count {
        let key = parms.get(TC_PEDIT_SEL + at * TC_PEDIT_KEY..)?.get(..TC_PEDIT_KEY)?;
        let (_, kind) = kinds.next().filter(|(attr, _)| *attr == TCA_PEDIT_KEY_EX)?;
        if key[12..] != [0; 12] {
            return None;
        }
        let header = match u16_at(find(kind, TCA_PEDIT_KEY_EX_HTYPE)?, 0)? {
            1 => PeditHeader::Eth,
            2 => PeditHeader::Ip4,
            3 => PeditHeader::Ip6,
            4 => PeditHeader::Tcp,
            5 => PeditHeader::Udp,
            _ => return None,
        };
        let add = match u16_at(find(kind, TCA_PEDIT_KEY_EX_CMD)?, 0)? {
            0 => false,
            1 => true,
            _ => return None,
        };
        let (mask, value) = (be32(key)?, be32(&key[4..])?);
        words.push(PeditWord { header, add, offset: u32_at(key, 8)?, value, mask });
    }
    let mut munges = Vec::new();
    let mut rest = words.as_slice();
    while let Some(first) = rest.first() {
        let munge = read_wide_munge(rest).or_else(|| read_munge(first))?;
        rest = rest.get(munge.words().count()..)?;
        munges.push(munge);
    }
    Pedit::new(munges)
}

/// An address of more than one word, where the words begin with all of it.
fn read_wide_munge(words: &[PeditWord]) -> Option<Munge> {
    let value = |at: usize| words.get(at).map(|word| word.value.to_be_bytes());
    let first = words.first()?;
    let munge = match (first.header, first.offset) {
        (PeditHeader::Eth, 0) => {
            let ([a, b, c, d], [e, f, ..]) = (value(0)?, value(1)?);
            Munge::eth_dst(Mac([a, b, c, d, e, f]))
        }
        (PeditHeader::Eth, 4) => {
            let ([.., a, b], [c, d, e, f]) = (value(0)?, value(1)?);
            Munge::eth_src(Mac([a, b, c, d, e, f]))
        }
        (PeditHeader::Ip6, 8 | 24) => {
            let mut address = [0; 16];
            for (at, word) in address.chunks_exact_mut(4).enumerate() {
                word.copy_from_slice(&value(at)?);
            }
            match first.offset {
                8 => Munge::ipv6_src(address.into()),
                _ => Munge::ipv6_dst(address.into()),
            }
        }
        _ => return None,
    };
    let all = munge.words().zip(words).all(|(ours, theirs)| ours == *theirs);
    all.then_some(munge)
}

/// The field of which a word rewrites nothing beyond.
fn read_munge(word: &PeditWord) -> Option<Munge> {
    PeditField::ALL.into_iter().find_map(|field| {
        let place = field.place();
        if (place.header, place.offset) != (word.header, word.offset) {
            return None;
        }
        let (value, mask) = (word.value >> place.shift, !word.mask >> place.shift);
        let munge = match word.add {
            false => Munge::set_masked(field, value, mask)?,
            true => Munge::add_masked(field, value, mask)?,
        };
        // Bits below the field.
        munge.words().eq([*word]).then_some(munge)
    })
}

fn read_skbedit(options: &[u8]) -> Option<SkbEdit> {
    (u32_at(find(options, PARMS)?, 8)? == TC_ACT_PIPE).then_some(())?;
    let mut edit: Option<SkbEdit> = None;
    let mut and = |field| {
        edit = Some(match edit {
            Some(edit) => edit.and(field),
            None => SkbEdit::new(field),
        });
    };
    let mask = find(options, TCA_SKBEDIT_MASK);
    for (attr, value) in attrs(options) {
        match attr {
            TCA_SKBEDIT_PRIORITY => and(SkbField::Priority(u32_at(value, 0)?)),
            TCA_SKBEDIT_QUEUE_MAPPING => and(SkbField::Queue(u16_at(value, 0)?)),
            TCA_SKBEDIT_MARK => {
                let mark = u32_at(value, 0)?;
                and(match mask {
                    Some(mask) => SkbField::MarkMasked { mark, mask: u32_at(mask, 0)? },
                    None => SkbField::Mark(mark),
                });
            }
            TCA_SKBEDIT_PTYPE => {
                let to = u16_at(value, 0)?;
                and(SkbField::PacketType(*PacketType::ALL.get(usize::from(to))?));
            }
            TCA_SKBEDIT_FLAGS => match u64_of(value)? {
                0 => {}
                SKBEDIT_F_INHERITDSFIELD => and(SkbField::InheritDsfield),
                _ => return None,
            },
            _ => {}
        }
    }
    edit
}

fn read_sample(options: &[u8]) -> Option<Sample> {
    (u32_at(find(options, PARMS)?, 8)? == TC_ACT_PIPE).then_some(())?;
    let number = |attr| find(options, attr).map(|value| u32_at(value, 0));
    let rate = NonZeroU32::new(number(TCA_SAMPLE_RATE)??)?;
    let sample = Sample::new(rate, number(TCA_SAMPLE_PSAMPLE_GROUP)??);
    match number(TCA_SAMPLE_TRUNC_SIZE) {
        None => Some(sample),
        Some(bytes) => NonZeroU32::new(bytes?).map(|bytes| sample.truncated(bytes)),
    }
}

fn read_mpls(options: &[u8]) -> Option<Mpls> {
    let mut fields = MplsModify::new();
    let mut proto = None;
    for (attr, value) in attrs(options) {
        match attr {
            TCA_MPLS_PROTO => proto = Some(be16(value)?),
            TCA_MPLS_LABEL => fields = fields.label(MplsLabel::new(u32_at(value, 0)?)?)?,
            TCA_MPLS_TC => fields.class = Some(MplsTc::new(*value.first()?)?),
            TCA_MPLS_TTL => fields.ttl = Some(NonZeroU8::new(*value.first()?)?),
            TCA_MPLS_BOS => match value.first()? {
                0 => fields.bottom = Some(false),
                1 => fields.bottom = Some(true),
                _ => return None,
            },
            _ => {}
        }
    }
    let push = || {
        let multicast = match proto? {
            ETH_P_MPLS_UC => false,
            ETH_P_MPLS_MC => true,
            _ => return None,
        };
        let MplsModify { label, class, ttl, bottom } = fields;
        Some(MplsPush { label: label?, ttl: ttl?, class, bottom, multicast })
    };
    match piped(find(options, PARMS)?)? {
        TCA_MPLS_ACT_POP => EtherType::new(proto?).map(Mpls::Pop),
        TCA_MPLS_ACT_PUSH => push().map(Mpls::Push),
        TCA_MPLS_ACT_MAC_PUSH => push().map(Mpls::MacPush),
        TCA_MPLS_ACT_MODIFY => Some(Mpls::Modify(fields)),
        TCA_MPLS_ACT_DEC_TTL => Some(Mpls::DecTtl),
        _ => None,
    }
}

fn read_nat(parms: &[u8]) -> Option<Nat> {
    (u32_at(parms, 8)? == TC_ACT_PIPE).then_some(())?;
    let address = |at: usize| parms.get(at..at + 4).and_then(array::<4>);
    let mask = be32(parms.get(TC_GEN + 8..)?)?;
    let prefix = mask.leading_ones();
    let direction = match u32_at(parms, TC_GEN + 12)? {
        0 => Direction::Ingress,
        TCA_NAT_FLAG_EGRESS => Direction::Egress,
        _ => return None,
    };
    let (old, new) = (address(TC_GEN)?.into(), address(TC_GEN + 4)?.into());
    Nat::new(direction, old, prefix as u8, new).filter(|nat| nat.mask() == mask)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use netlink_packet_core::{Emitable, NlaBuffer, Parseable};
    use netlink_packet_route::tc::{
        TcAction, TcActionAttribute, TcActionMirrorOption, TcActionNatOption, TcActionOption,
        TcActionTunnelKeyOption, TcActionType, TcMirrorActionType, TcNatFlags,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::arbitrary::{chain, hook, ifindex, matches, prio};
    use crate::arbitrary_action::rich_actions;
    use crate::diff::Op;
    use crate::encoded::{decode, encode};
    use crate::ident::Handle;
    use crate::kernel::Mode;
    use crate::rule::{Owner, Rule};

    const OWNER: Owner = Owner(*b"test");

    fn written(rule: &Rule) -> Vec<u8> {
        let mut bytes = Vec::new();
        let op = Op::Add { rule: rule.clone(), handle: Handle(5) };
        encode(&[op], OWNER, Mode::Fast, 1, &mut bytes);
        bytes
    }

    fn rules() -> BoxedStrategy<Rule> {
        let offloads = prop::sample::select(vec![Offload::Auto, Offload::SkipHw, Offload::SkipSw]);
        (matches(), rich_actions(), offloads)
            .prop_map(|(matching, list, offload)| {
                let actions: Vec<Action> = list.iter().map(|(action, _)| action.clone()).collect();
                let rule = Rule::new(hook(), chain(2), prio(3), matching, actions).unwrap();
                let said = list.into_iter().enumerate();
                said.fold(rule.with_offload(offload), |rule, (at, (_, extra))| {
                    rule.with_extra(at, extra).unwrap()
                })
            })
            .boxed()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn every_action_reads_back_as_what_was_written(rule in rules()) {
            let decoded = decode(&written(&rule)).unwrap();
            prop_assert_eq!(&decoded.rule, &rule);
            prop_assert_eq!(decoded.handle, Handle(5));
            prop_assert_eq!(decoded.cookie, Some(rule.cookie(OWNER)));
        }

        #[test]
        fn a_damaged_action_never_panics_nor_passes_for_another_under_its_cookie(
            rule in rules(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let mut bytes = written(&rule);
            // From the options on: the cookie does not cover the rule's place.
            let first = 56;
            let at = first + at.index(bytes.len() - first);
            bytes[at] = byte;
            if let Some(decoded) = decode(&bytes)
                && decoded.cookie == Some(decoded.rule.cookie(OWNER))
            {
                prop_assert_eq!(decoded.rule, rule);
            }
        }

        #[test]
        fn the_digest_tells_actions_apart(one in rich_actions(), other in rich_actions()) {
            let rule = |list: &[(Action, ActionExtra)]| {
                let actions: Vec<Action> = list.iter().map(|(action, _)| action.clone()).collect();
                let any = crate::key::Match::any();
                let rule = Rule::new(hook(), chain(2), prio(3), any, actions).unwrap();
                list.iter().enumerate().fold(rule, |rule, (at, (_, extra))| {
                    rule.with_extra(at, *extra).unwrap()
                })
            };
            let (one, other) = (rule(&one), rule(&other));
            prop_assert_eq!(one == other, one.cookie(OWNER) == other.cookie(OWNER));
            prop_assert_eq!(one == other, one.to_string() == other.to_string());
        }
    }

    /// Options of the action as netlink-packet-route reads them, having written them again.
    fn by_the_crate(action: &Action) -> Vec<TcActionOption> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        let nest = writer.nest(1);
        writer.action(action);
        writer.end_nest(nest);
        let read = TcAction::parse(&NlaBuffer::new(&bytes)).unwrap();
        let mut again = vec![0; read.buffer_len()];
        read.emit(&mut again);
        // The crate does not mark the outer nest, which only the list's order names.
        assert_eq!(&again[4..], &bytes[4..], "{action}");
        let options = read.attributes.into_iter().find_map(|attribute| match attribute {
            TcActionAttribute::Options(options) => Some(options),
            _ => None,
        });
        options.unwrap()
    }

    #[test]
    fn mirred_is_to_netlink_packet_route_what_it_is_to_us() {
        use TcMirrorActionType::{EgressMirror, EgressRedir, IngressMirror, IngressRedir};
        let to = ifindex(7);
        for (action, control, which) in [
            (Action::Mirror(to), TcActionType::Pipe, EgressMirror),
            (Action::Redirect(to), TcActionType::Stolen, EgressRedir),
            (Action::MirrorIngress(to), TcActionType::Pipe, IngressMirror),
            (Action::RedirectIngress(to), TcActionType::Stolen, IngressRedir),
        ] {
            let options = by_the_crate(&action);
            let [TcActionOption::Mirror(TcActionMirrorOption::Parms(parms))] = &options[..] else {
                panic!("{options:?}");
            };
            assert_eq!((parms.generic.action, parms.eaction, parms.ifindex), (control, which, 7));
        }
    }

    #[test]
    fn nat_is_to_netlink_packet_route_what_it_is_to_us() {
        let (old, new) = (Ipv4Addr::new(192, 0, 2, 0), Ipv4Addr::new(198, 51, 100, 0));
        let nat = Nat::new(Direction::Egress, old, 24, new).unwrap();
        let options = by_the_crate(&Action::Nat(nat));
        let [TcActionOption::Nat(TcActionNatOption::Parms(parms))] = &options[..] else {
            panic!("{options:?}");
        };
        assert_eq!((parms.old_addr, parms.new_addr), (old, new));
        assert_eq!(parms.mask, Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(parms.flags, TcNatFlags::Egress);
        assert_eq!(parms.generic.action, TcActionType::Pipe);
    }

    #[test]
    fn tunnel_key_is_to_netlink_packet_route_what_it_is_to_us() {
        use TcActionTunnelKeyOption::{
            EncDstPort, EncIpv4Dst, EncIpv4Src, EncIpv6Dst, EncIpv6Src, EncKeyId, EncTos, EncTtl,
            NoCsum,
        };
        let (src4, dst4) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
        let src6: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let dst6: Ipv6Addr = "2001:db8::2".parse().unwrap();
        let four = TunnelKey::v4(src4, dst4).id(77).dst_port(4789).tos(16).ttl(64);
        let six = TunnelKey::v6(src6, dst6).no_csum();
        let expected = [
            (
                four,
                vec![
                    EncKeyId(77),
                    EncIpv4Src(src4),
                    EncIpv4Dst(dst4),
                    EncDstPort(4789),
                    NoCsum(false),
                    EncTos(16),
                    EncTtl(64),
                ],
            ),
            (six, vec![EncIpv6Src(src6), EncIpv6Dst(dst6), NoCsum(true)]),
        ];
        for (key, expected) in expected {
            let options = by_the_crate(&key.into());
            let rest: Vec<TcActionOption> =
                expected.into_iter().map(TcActionOption::TunnelKey).collect();
            assert_eq!(options[1..], rest);
        }
    }

    #[test]
    fn random_bytes_are_no_action_and_no_panic() {
        let runner = &mut proptest::test_runner::TestRunner::default();
        let bytes = prop::collection::vec(any::<u8>(), 0..200);
        let kinds = ["police", "pedit", "ct", "tunnel_key", "mpls", "skbedit", "sample", "nat"];
        runner
            .run(&(prop::sample::select(kinds.to_vec()), bytes), |(kind, options)| {
                let mut action = Vec::new();
                let mut writer = Writer::new(&mut action);
                writer.attr_str(TCA_ACT_KIND, kind.as_bytes());
                writer.attr(TCA_ACT_OPTIONS, &options);
                read_action(&action);
                read_extra(&options, false);
                Ok(())
            })
            .unwrap();
    }
}
