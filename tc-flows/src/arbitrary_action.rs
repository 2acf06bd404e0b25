//! Random actions of every kind, for this crate's property tests.

use std::num::{NonZeroU8, NonZeroU32};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::action::{
    Action, Checksums, Control, Ct, CtCommit, CtHelper, CtNat, Erspan, ErspanHwid, GeneveTlv,
    GeneveTlvs, Mpls, MplsModify, MplsPush, Munge, Nat, NatAddresses, NatEnd, PacketType, Pedit,
    PeditField, Police, PoliceIndex, Sample, SkbEdit, SkbField, TunnelData, TunnelKey, VxlanGbp,
};
use crate::arbitrary::{chain, ifindex, vid};
use crate::ident::{BlockId, Direction, EtherType, Mac, VlanTpid};
use crate::key::{MplsLabel, MplsTc, VlanPrio};
use crate::rule::{ActionExtra, HwStats, UserCookie};

fn macs() -> impl Strategy<Value = Mac> {
    any::<[u8; 6]>().prop_map(Mac)
}

fn directions() -> impl Strategy<Value = Direction> {
    select(vec![Direction::Ingress, Direction::Egress])
}

fn tunnel_data() -> BoxedStrategy<TunnelData> {
    let tlv = (any::<u16>(), any::<u8>(), vec(any::<[u8; 4]>(), 1..8))
        .prop_map(|(class, kind, data)| GeneveTlv::new(class, kind, &data.concat()).unwrap());
    prop_oneof![
        Just(TunnelData::None),
        vec(tlv, 1..4).prop_map(|tlvs| TunnelData::Geneve(GeneveTlvs::new(tlvs).unwrap())),
        (0u32..0x1_0000).prop_map(|gbp| TunnelData::Vxlan(VxlanGbp::new(gbp | 1 << 19).unwrap())),
        any::<u32>().prop_map(|index| TunnelData::Erspan(Erspan::V1 { index })),
        (any::<bool>(), 0u8..64).prop_map(|(egress, hwid)| {
            TunnelData::Erspan(Erspan::V2 { egress, hwid: ErspanHwid::new(hwid).unwrap() })
        }),
    ]
    .boxed()
}

fn tunnels() -> BoxedStrategy<TunnelKey> {
    let ends = prop_oneof![
        any::<[u32; 2]>().prop_map(|[src, dst]| TunnelKey::v4(src.into(), dst.into())),
        any::<[u128; 2]>().prop_map(|[src, dst]| TunnelKey::v6(src.into(), dst.into())),
    ];
    (ends, option::of(any::<u32>()), any::<(u16, u8, u8, bool, bool)>(), tunnel_data())
        .prop_map(|(mut key, id, (port, tos, ttl, no_csum, no_frag), data)| {
            if let Some(id) = id {
                key = key.id(id);
            }
            if no_csum {
                key = key.no_csum();
            }
            if no_frag {
                key = key.no_frag();
            }
            key.dst_port(port).tos(tos).ttl(ttl).options(data)
        })
        .boxed()
}

fn translations() -> impl Strategy<Value = CtNat> {
    let addresses = prop_oneof![
        any::<[u32; 2]>().prop_map(|[a, b]| NatAddresses::V4(a.min(b).into(), a.max(b).into())),
        any::<[u128; 2]>().prop_map(|[a, b]| NatAddresses::V6(a.min(b).into(), a.max(b).into())),
    ];
    (select(vec![NatEnd::Src, NatEnd::Dst]), addresses, option::of(any::<[u16; 2]>())).prop_map(
        |(end, addresses, ports)| {
            let nat = CtNat::new(end, addresses).unwrap();
            ports.map_or(nat, |[a, b]| nat.ports(a.min(b), a.max(b)).unwrap())
        },
    )
}

fn connections() -> BoxedStrategy<Ct> {
    let helper = (any::<(bool, bool)>(), "[a-z]{1,15}")
        .prop_map(|((ipv6, udp), name)| CtHelper::new(ipv6, udp, &name).unwrap());
    let commit = (
        any::<(u16, bool)>(),
        option::of(any::<[u32; 2]>()),
        option::of(any::<[[u8; 16]; 2]>()),
        option::of(translations()),
        option::of(helper),
    )
        .prop_map(|((zone, force), mark, label, nat, helper)| {
            let mut commit = CtCommit::new(zone);
            if force {
                commit = commit.force();
            }
            if let Some([mark, mask]) = mark {
                commit = commit.mark(mark, mask);
            }
            if let Some([label, mask]) = label {
                commit = commit.label(label, mask);
            }
            if let Some(nat) = nat {
                commit = commit.nat(nat);
            }
            if let Some(helper) = helper {
                commit = commit.helper(helper);
            }
            Ct::Commit(commit)
        });
    prop_oneof![
        Just(Ct::Clear),
        any::<(u16, bool)>().prop_map(|(zone, nat)| Ct::Track { zone, nat }),
        commit,
    ]
    .boxed()
}

/// Policers after which the next action can run.
fn policers() -> BoxedStrategy<Police> {
    let limit = prop_oneof![
        (1u64..1 << 34, 1u64..1 << 20)
            .prop_filter_map("too slow", |(rate, burst)| { Police::bytes(rate, burst) }),
        (1u64..1 << 34, 1u64..1 << 20).prop_filter_map("too slow", |(rate, burst)| {
            Police::bytes(rate, burst)?.peak(2 * rate)
        }),
        (1u64..1 << 34, 1u64..1 << 20)
            .prop_filter_map("too slow", |(rate, burst)| { Police::packets(rate, burst) }),
        (1u32..).prop_map(|mtu| Police::size(mtu).unwrap()),
    ];
    let controls = || {
        prop_oneof![
            select(vec![Control::Pass, Control::Drop, Control::Pipe, Control::Continue]),
            (0u32..1 << 28).prop_map(|to| Control::Goto(chain(to))),
        ]
    };
    (limit, option::of(256u32..), controls(), controls())
        .prop_map(|(mut police, mtu, exceed, conform)| {
            if let Some(mtu) = mtu {
                police = police.mtu(mtu).unwrap();
            }
            match police.exceed(Control::Pipe).conform(conform) {
                Some(police) if exceed == Control::Pipe => police,
                // One of both goes on.
                _ => police.exceed(exceed),
            }
        })
        .boxed()
}

fn munges() -> impl Strategy<Value = Munge> {
    let field = (select(PeditField::ALL.to_vec()), any::<(u32, u32, bool)>()).prop_map(
        |(field, (value, mask, add))| {
            let all = field.place().mask;
            let mask = if mask & all == 0 { all } else { mask & all };
            let munge = if add { Munge::add_masked } else { Munge::set_masked };
            munge(field, value & mask, mask).unwrap()
        },
    );
    prop_oneof![
        1 => macs().prop_map(Munge::eth_dst),
        1 => macs().prop_map(Munge::eth_src),
        1 => any::<u128>().prop_map(|address| Munge::ipv6_src(address.into())),
        1 => any::<u128>().prop_map(|address| Munge::ipv6_dst(address.into())),
        4 => field,
    ]
}

fn skb_edits() -> impl Strategy<Value = SkbEdit> {
    let field = prop_oneof![
        any::<u32>().prop_map(SkbField::Priority),
        any::<u32>().prop_map(SkbField::Mark),
        any::<[u32; 2]>().prop_map(|[mark, mask]| SkbField::MarkMasked { mark, mask }),
        any::<u16>().prop_map(SkbField::Queue),
        select(PacketType::ALL.to_vec()).prop_map(SkbField::PacketType),
        Just(SkbField::InheritDsfield),
    ];
    vec(field, 1..4).prop_map(|fields| {
        let first = SkbEdit::new(fields[0]);
        fields[1..].iter().fold(first, |edit, field| edit.and(*field))
    })
}

fn labels() -> BoxedStrategy<Mpls> {
    let label = || (4u32..1 << 20).prop_map(|label| MplsLabel::new(label).unwrap());
    let class = || option::of((0u8..8).prop_map(|class| MplsTc::new(class).unwrap()));
    let ttl = || (1u8..).prop_map(|ttl| NonZeroU8::new(ttl).unwrap());
    let push = || {
        (label(), ttl(), class(), option::of(any::<bool>()), any::<bool>()).prop_map(
            |(label, ttl, class, bottom, multicast)| MplsPush {
                class,
                bottom,
                multicast,
                ..MplsPush::new(label, ttl).unwrap()
            },
        )
    };
    prop_oneof![
        Just(Mpls::Pop(EtherType::IPV6)),
        push().prop_map(Mpls::Push),
        push().prop_map(Mpls::MacPush),
        (option::of(label()), class(), option::of(ttl()), option::of(any::<bool>())).prop_map(
            |(label, class, ttl, bottom)| Mpls::Modify(MplsModify { label, class, ttl, bottom })
        ),
        Just(Mpls::DecTtl),
    ]
    .boxed()
}

fn steps() -> BoxedStrategy<Action> {
    let to = || (1u32..100).prop_map(ifindex);
    let block = || (1u32..).prop_map(|block| BlockId::new(block).unwrap());
    let tag = || (select(vec![VlanTpid::Dot1Q, VlanTpid::Dot1Ad]), (0u16..4095).prop_map(vid));
    let pcp = |from: u8| (from..8).prop_map(|prio| VlanPrio::new(prio).unwrap());
    let rate = || (1u32..).prop_map(|number| NonZeroU32::new(number).unwrap());
    prop_oneof![
        prop_oneof![
            to().prop_map(Action::Mirror),
            to().prop_map(Action::MirrorIngress),
            (directions(), block())
                .prop_map(|(direction, block)| Action::MirrorBlock { direction, block }),
            tag().prop_map(|(tpid, vid)| Action::VlanPush { tpid, vid }),
            tag().prop_map(|(tpid, vid)| Action::VlanModify { tpid, vid }),
            (tag(), pcp(1)).prop_map(|((tpid, vid), prio)| Action::VlanPushPrio {
                tpid,
                vid,
                prio
            }),
            (tag(), pcp(0)).prop_map(|((tpid, vid), prio)| Action::VlanModifyPrio {
                tpid,
                vid,
                prio
            }),
            select(vec![Action::Pipe, Action::VlanPop, Action::EthPop, Action::TunnelRelease]),
            (macs(), macs()).prop_map(|(dst, src)| Action::EthPush { dst, src }),
        ]
        .boxed(),
        tunnels().prop_map(Action::from),
        connections().prop_map(Action::from),
        policers().prop_map(Action::from),
        (PoliceIndex::FIRST..)
            .prop_map(|index| Action::SharedPolice(PoliceIndex::new(index).unwrap())),
        vec(munges(), 1..6).prop_map(|munges| Pedit::new(munges).unwrap().into()),
        (1u8..128).prop_map(|bits| Action::Csum(Checksums::from_bits(bits).unwrap())),
        skb_edits().prop_map(Action::from),
        (rate(), any::<u32>(), option::of(rate())).prop_map(|(rate, group, bytes)| {
            let sample = Sample::new(rate, group);
            Action::Sample(bytes.map_or(sample, |bytes| sample.truncated(bytes)))
        }),
        labels().prop_map(Action::from),
        (directions(), any::<[u32; 2]>(), 0u8..=32).prop_map(|(direction, [old, new], prefix)| {
            Action::Nat(Nat::new(direction, old.into(), prefix, new.into()).unwrap())
        }),
    ]
    .boxed()
}

fn ends() -> BoxedStrategy<Action> {
    let to = || (1u32..100).prop_map(ifindex);
    prop_oneof![
        select(vec![Action::Drop, Action::Pass, Action::Trap, Action::Continue]),
        (0u32..1 << 28).prop_map(|to| Action::Goto(chain(to))),
        to().prop_map(Action::Redirect),
        to().prop_map(Action::RedirectIngress),
        directions().prop_map(|direction| Action::RedirectBlock {
            direction,
            block: BlockId::new(3).unwrap()
        }),
    ]
    .boxed()
}

fn extras() -> BoxedStrategy<ActionExtra> {
    let cookie = vec(any::<u8>(), 1..=16).prop_map(|bytes| UserCookie::new(&bytes).unwrap());
    let stats = select(vec![HwStats::Immediate, HwStats::Delayed, HwStats::Disabled]);
    let extra = (option::of(cookie), option::of(stats), any::<bool>())
        .prop_map(|(cookie, hw_stats, no_percpu)| ActionExtra { cookie, hw_stats, no_percpu });
    prop_oneof![3 => Just(ActionExtra::NONE), 1 => extra].boxed()
}

/// Lists that a rule can have, with what else is said of each action.
pub(crate) fn rich_actions() -> BoxedStrategy<Vec<(Action, ActionExtra)>> {
    let steps = steps().prop_filter("ends the rule", Action::continues);
    (vec((steps, extras()), 0..6), (ends(), extras()))
        .prop_map(|(mut list, end)| {
            list.push(end);
            for (at, (action, extra)) in list.iter_mut().enumerate() {
                if at == 0 {
                    extra.cookie = None;
                }
                if matches!(action, Action::SharedPolice(_)) {
                    *extra = ActionExtra::NONE;
                    if at == 0 {
                        *action = Action::Pipe;
                    }
                }
            }
            list
        })
        .boxed()
}
