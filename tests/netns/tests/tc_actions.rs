//! tc-flows' actions against a real kernel: each form of each, alone and in random combination,
//! and what rules stand in: shared blocks, both kinds of qdisc, chains with templates.
//!
//! Two judges. iproute2's `tc` says what a rule means: it must take what a rule prints, and show
//! ours and its own alike. The kernel's dump of what `tc` installed says what the bytes are: it
//! must read as the rule, and the rule be encoded as the same attributes, byte for byte, their
//! order and what the kernel adds aside.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeMap;
use std::fmt;
use std::num::{NonZeroU8, NonZeroU32};

use eswitchd_netns_tests::{
    PATIENCE, Random, add, chain, dumped, encoded, find, ifindex, mac, prio, shown_by_tc, tlvs,
    u32_at, v4, v6, veth,
};
use lab::net::{self, Capture, Netns};
use tc_flows::{
    Action, ActionExtra, BlockId, ChainId, Checksums, Control, Ct, CtCommit, CtHelper, CtNat,
    Decoded, Direction, Erspan, ErspanHwid, EtherType, GeneveTlv, GeneveTlvs, Handle, Hook,
    HookQdisc, HwStats, Ifindex, Kernel, Mac, Match, Mode, Mpls, MplsLabel, MplsModify, MplsPush,
    MplsTc, Munge, Nat, NatAddresses, NatEnd, NetlinkKernel, Offload, Op, Outcome, Owner,
    PacketType, Pedit, PeditField, Police, PoliceIndex, Rule, Sample, SkbEdit, SkbField, Template,
    TunnelData, TunnelKey, UserCookie, VlanId, VlanPrio, VlanTpid, VxlanGbp, decode,
};

const OWNER: Owner = Owner(*b"test");

// ---------------------------------------------------------------- the rooms

fn block(number: u32) -> BlockId {
    BlockId::new(number).unwrap()
}

// ---------------------------------------------------------------- bytes

/// An attribute, with those inside it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tree {
    Bytes(Vec<u8>),
    Nest(Vec<(u16, Tree)>),
}

/// The actions of a message, each as its kind and its attributes in order of their numbers,
/// without what the kernel adds.
fn actions(message: &[u8]) -> Vec<(String, Vec<(u16, Tree)>)> {
    // TCA_OPTIONS, TCA_FLOWER_ACT
    let options = find(&message[36..], 2).unwrap();
    tlvs(find(options, 3).unwrap())
        .into_iter()
        .enumerate()
        .map(|(at, (order, action))| {
            assert_eq!(usize::from(order), at + 1);
            let kind = find(action, 1).unwrap().split(|byte| *byte == 0).next().unwrap();
            let kind = String::from_utf8(kind.to_vec()).unwrap();
            let mut attributes = Vec::new();
            for (attr, value) in tlvs(action) {
                match attr {
                    2 => attributes.push((attr, Tree::Nest(options_of(&kind, value)))),
                    // The first one's cookie is the owner's.
                    6 if at == 0 => {}
                    // Flags, without those that a rule hands on to its actions.
                    7 => {
                        let flags = u32_at(value, 0) & 1;
                        if flags != 0 {
                            attributes.push((attr, Tree::Bytes(flags.to_ne_bytes().into())));
                        }
                    }
                    6 | 8 => attributes.push((attr, Tree::Bytes(value.to_vec()))),
                    // Kind; index, statistics, padding, used statistics, count in hardware.
                    1 | 3 | 4 | 5 | 9 | 10 => {}
                    other => panic!("attribute {other} of an action"),
                }
            }
            attributes.sort();
            (kind, attributes)
        })
        .collect()
}

fn options_of(kind: &str, options: &[u8]) -> Vec<(u16, Tree)> {
    // Times, padding, and the numbers of the parameters.
    let (added, parms): (&[u16], u16) = match kind {
        "gact" => (&[1, 4], 2),
        "mirred" => (&[1, 3], 2),
        "vlan" => (&[1, 5], 2),
        "tunnel_key" => (&[1, 8], 2),
        "ct" => (&[2, 15], 1),
        // And the tables of rates, which go in only.
        "police" => (&[6, 7, 2, 3], 1),
        "pedit" => (&[1, 3], 4),
        "csum" | "nat" => (&[2, 3], 1),
        "skbedit" => (&[1, 6], 2),
        "sample" => (&[1, 6], 2),
        "mpls" => (&[1, 3], 2),
        other => panic!("action {other}"),
    };
    let mut attributes = Vec::new();
    for (attr, value) in tlvs(options) {
        let tree = match (kind, attr) {
            _ if added.contains(&attr) => continue,
            ("police", 1) => {
                let mut police = value.to_vec();
                police[..4].fill(0); // index
                for ratespec in [20, 32] {
                    police[ratespec] = 0; // cell size
                    police[ratespec + 4..ratespec + 6].fill(0); // cell alignment
                    if u32_at(value, ratespec + 8) == 0 {
                        police[ratespec..ratespec + 12].fill(0);
                    }
                }
                police[44..].fill(0); // counts of references, capabilities
                Tree::Bytes(police)
            }
            // What a label that is not pushed nor popped has no use for.
            ("mpls", 4) if matches!(u32_at(find(options, 2).unwrap(), 20), 3 | 4) => continue,
            _ if attr == parms => {
                let mut parms = value.to_vec();
                parms[..4].fill(0); // index
                parms[12..20].fill(0); // counts of references
                Tree::Bytes(parms)
            }
            // The family by which a helper for both was asked for: 0 is what the kernel shows.
            ("ct", 17) => continue,
            // Options of a tunnel; Geneve's stand each in a nest, or all in one.
            ("tunnel_key", 11) => Tree::Nest(
                tlvs(value)
                    .into_iter()
                    .flat_map(|(kind, option)| {
                        let inner = tlvs(option).into_iter();
                        inner.map(move |(attr, value)| (kind << 8 | attr, value.to_vec()))
                    })
                    .map(|(attr, value)| (attr, Tree::Bytes(value)))
                    .collect(),
            ),
            ("pedit", 5) => Tree::Nest(
                tlvs(value)
                    .into_iter()
                    .map(|(attr, key)| {
                        let inner = tlvs(key).into_iter();
                        let inner = inner.map(|(attr, value)| (attr, Tree::Bytes(value.to_vec())));
                        (attr, Tree::Nest(inner.collect()))
                    })
                    .collect(),
            ),
            _ => Tree::Bytes(value.to_vec()),
        };
        attributes.push((attr, tree));
    }
    attributes.sort();
    attributes
}

// ---------------------------------------------------------------- every form of every action

/// An action, what else is said of it, and the table's line that it counts for.
#[derive(Clone, Debug)]
struct Form {
    line: &'static str,
    action: Action,
    extra: ActionExtra,
}

fn form(line: &'static str, action: impl Into<Action>) -> Form {
    Form { line, action: action.into(), extra: ActionExtra::NONE }
}

struct World {
    to: Ifindex,
    other: Ifindex,
    direction: Direction,
}

fn tunnels() -> Vec<TunnelKey> {
    let four = || TunnelKey::v4(v4(1), v4(2));
    let six = || TunnelKey::v6(v6(1), v6(2));
    let tlv = |class, kind, data: &[u8]| GeneveTlv::new(class, kind, data).unwrap();
    let geneve = |tlvs: Vec<GeneveTlv>| TunnelData::Geneve(GeneveTlvs::new(tlvs).unwrap());
    vec![
        four(),
        four().id(0),
        four().id(u32::MAX).dst_port(4789).tos(0x10).ttl(64).no_csum().no_frag(),
        six().id(77).dst_port(6081),
        six().no_csum(),
        six().no_frag().ttl(255).tos(255),
        four().id(5).options(geneve(vec![tlv(0x0102, 0x80, &[1, 2, 3, 4])])),
        four().id(5).dst_port(6081).options(geneve(vec![
            tlv(0xffff, 0, &[0; 8]),
            tlv(0, 255, &[0xab; 12]),
            tlv(0x0108, 0x42, &[1, 2, 3, 4]),
        ])),
        four().options(geneve(vec![tlv(1, 2, &[0x5a; 124])])),
        four().id(6).options(TunnelData::Vxlan(VxlanGbp::new(0x48_1234).unwrap())),
        six().id(7).options(TunnelData::Vxlan(VxlanGbp::new(0).unwrap())),
        four().id(8).options(TunnelData::Erspan(Erspan::V1 { index: 0x0001_0203 })),
        four().id(8).options(TunnelData::Erspan(Erspan::V2 {
            egress: true,
            hwid: ErspanHwid::new(63).unwrap(),
        })),
        six().id(9).options(TunnelData::Erspan(Erspan::V2 {
            egress: false,
            hwid: ErspanHwid::new(0).unwrap(),
        })),
    ]
}

fn connections() -> Vec<Ct> {
    let commit = CtCommit::new;
    let nat = |end, addresses| CtNat::new(end, addresses).unwrap();
    let label = *b"0123456789abcdef";
    let half = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
    let ftp = CtHelper::new(false, false, "ftp").unwrap();
    let tftp = CtHelper::new(true, true, "tftp").unwrap();
    let source4 = nat(NatEnd::Src, NatAddresses::V4(v4(10), v4(20)));
    let destination6 = nat(NatEnd::Dst, NatAddresses::V6(v6(1), v6(9)));
    vec![
        Ct::Clear,
        Ct::Track { zone: 0, nat: false },
        Ct::Track { zone: u16::MAX, nat: false },
        Ct::Track { zone: 7, nat: true },
        Ct::Commit(commit(0)),
        Ct::Commit(commit(9).force()),
        Ct::Commit(commit(1).mark(0x1234_5678, u32::MAX)),
        Ct::Commit(commit(1).mark(0xff, 0x0f)),
        Ct::Commit(commit(2).label(label, [0xff; 16])),
        Ct::Commit(commit(2).label(label, half)),
        Ct::Commit(commit(3).nat(source4)),
        Ct::Commit(commit(3).nat(source4.ports(1024, 65535).unwrap())),
        Ct::Commit(commit(3).nat(nat(NatEnd::Dst, NatAddresses::V4(v4(3), v4(3))))),
        Ct::Commit(commit(4).force().nat(destination6)),
        Ct::Commit(commit(4).nat(destination6.ports(80, 80).unwrap())),
        Ct::Commit(commit(5).nat(nat(NatEnd::Src, NatAddresses::V6(v6(1), v6(1))))),
        Ct::Commit(commit(6).helper(ftp)),
        Ct::Commit(commit(6).helper(tftp).mark(1, 1).label([1; 16], [1; 16]).force()),
    ]
}

/// Policers after which the next action runs.
fn policers() -> Vec<Police> {
    let bytes = |rate, burst| Police::bytes(rate, burst).unwrap();
    let packets = |rate, burst| Police::packets(rate, burst).unwrap();
    let slow = bytes(125_000, 10_000);
    vec![
        slow,
        bytes(1, 1),
        bytes(1_000_000, 65_537),
        bytes(12_500_000_000, 16_777_216),
        bytes(u64::from(u32::MAX), 5_000_000),
        bytes(4_294_967_296, 5_000_001),
        bytes(123_456_789, 7_777_777),
        slow.mtu(1500).unwrap(),
        slow.mtu(256).unwrap(),
        slow.mtu(1500).unwrap().peak(250_000).unwrap(),
        slow.peak(12_500_000_000).unwrap(),
        packets(1, 1),
        packets(1_000, 100),
        packets(14_880_952, 32_000),
        packets(100, 10).mtu(9000).unwrap(),
        Police::size(1500).unwrap(),
        Police::size(64).unwrap(),
        slow.exceed(Control::Pass),
        slow.exceed(Control::Continue),
        slow.exceed(Control::Goto(chain(5))),
        slow.exceed(Control::Pipe),
        packets(5, 5).exceed(Control::Pipe).conform(Control::Pass).unwrap(),
        slow.exceed(Control::Pipe).conform(Control::Drop).unwrap(),
        slow.exceed(Control::Pipe).conform(Control::Continue).unwrap(),
    ]
}

fn edits() -> Vec<Vec<Munge>> {
    let set = |field, value| Munge::set(field, value).unwrap();
    let add = |field, value| Munge::add(field, value).unwrap();
    use PeditField::{
        EthType, Ipv4Dst, Ipv4Protocol, Ipv4Src, Ipv4Tos, Ipv4Ttl, Ipv6FlowLabel, Ipv6HopLimit,
        Ipv6NextHeader, Ipv6PayloadLen, Ipv6TrafficClass, TcpDst, TcpFlags, TcpSrc, UdpDst, UdpSrc,
    };
    let all = [
        (EthType, 0xffff),
        (Ipv4Src, u32::MAX),
        (Ipv4Dst, u32::MAX),
        (Ipv4Tos, 0xff),
        (Ipv4Ttl, 0xff),
        (Ipv4Protocol, 0xff),
        (Ipv6TrafficClass, 0xff),
        (Ipv6FlowLabel, 0xf_ffff),
        (Ipv6PayloadLen, 0xffff),
        (Ipv6NextHeader, 0xff),
        (Ipv6HopLimit, 0xff),
        (TcpSrc, 0xffff),
        (TcpDst, 0xffff),
        (TcpFlags, 0xff),
        (UdpSrc, 0xffff),
        (UdpDst, 0xffff),
    ];
    let mut edits = Vec::new();
    for (field, bits) in all {
        let some = 0x1234_5678 & bits;
        edits.push(vec![set(field, some)]);
        edits.push(vec![add(field, bits)]);
        let mask = 0x0f0f_0ff0 & bits;
        edits.push(vec![Munge::set_masked(field, some & mask, mask).unwrap()]);
        edits.push(vec![Munge::add_masked(field, 0x10, 0x30).unwrap()]);
    }
    edits.push(vec![Munge::eth_dst(mac(1))]);
    edits.push(vec![Munge::eth_src(mac(2)), Munge::eth_dst(Mac([0xff; 6]))]);
    edits.push(vec![Munge::ipv6_src(v6(3))]);
    edits.push(vec![Munge::ipv6_dst(v6(4)), add(Ipv6HopLimit, 255)]);
    // A router's work.
    edits.push(vec![
        Munge::eth_src(mac(3)),
        Munge::eth_dst(mac(4)),
        add(Ipv4Ttl, 0xff),
        set(Ipv4Dst, v4(9).to_bits()),
        set(TcpDst, 8080),
    ]);
    edits.push(vec![Munge::ipv6_src(v6(5)); 32]);
    edits
}

fn labels() -> Vec<Mpls> {
    let label = |number| MplsLabel::new(number).unwrap();
    let ttl = |number| NonZeroU8::new(number).unwrap();
    let class = |number| MplsTc::new(number).unwrap();
    let push = |number, hops| MplsPush::new(label(number), ttl(hops)).unwrap();
    let modify = MplsModify::new;
    vec![
        Mpls::Pop(EtherType::IPV4),
        Mpls::Pop(EtherType::new(0x8847).unwrap()),
        Mpls::Push(push(0, 1)),
        Mpls::Push(push(0xf_ffff, 255).class(class(7)).bottom(true)),
        Mpls::Push(push(16, 64).multicast().bottom(false).class(class(0))),
        Mpls::MacPush(push(100, 64)),
        Mpls::MacPush(push(100, 3).multicast().bottom(true)),
        Mpls::Modify(modify()),
        Mpls::Modify(modify().label(label(17)).unwrap()),
        Mpls::Modify(modify().class(class(3)).ttl(ttl(9)).bottom(true)),
        Mpls::Modify(modify().label(label(18)).unwrap().class(class(0)).bottom(false)),
        Mpls::DecTtl,
    ]
}

fn marks(direction: Direction) -> Vec<SkbEdit> {
    let one = SkbEdit::new;
    let mut edits = vec![
        one(SkbField::Priority(0)),
        one(SkbField::Priority(0x0001_00af)),
        one(SkbField::Mark(0)),
        one(SkbField::Mark(u32::MAX)),
        one(SkbField::MarkMasked { mark: 0x12, mask: 0xf0 }),
        one(SkbField::MarkMasked { mark: 7, mask: u32::MAX }),
        one(SkbField::InheritDsfield),
        one(SkbField::PacketType(PacketType::Broadcast))
            .and(SkbField::Mark(1))
            .and(SkbField::Priority(0xffff_fffe)),
    ];
    edits.extend(
        [PacketType::Host, PacketType::Multicast, PacketType::OtherHost]
            .map(|to| one(SkbField::PacketType(to))),
    );
    // On its way in a frame has no queue to leave by.
    if direction == Direction::Egress {
        edits.push(one(SkbField::Queue(0)));
        edits.push(one(SkbField::Queue(u16::MAX)).and(SkbField::InheritDsfield));
    }
    edits
}

/// Every form after which the next action runs.
fn steps(world: &World) -> Vec<Form> {
    let vid = |number| VlanId::new(number).unwrap();
    let pcp = |number| VlanPrio::new(number).unwrap();
    let (q, ad) = (VlanTpid::Dot1Q, VlanTpid::Dot1Ad);
    let both = [Direction::Ingress, Direction::Egress];
    let mut forms = vec![
        form("gact pipe", Action::Pipe),
        form("mirred egress mirror", Action::Mirror(world.to)),
        form("mirred ingress mirror", Action::MirrorIngress(world.to)),
        form("vlan pop", Action::VlanPop),
        form("vlan pop_eth", Action::EthPop),
        form("vlan push_eth", Action::EthPush { dst: mac(1), src: Mac([0xff; 6]) }),
        form("tunnel_key unset", Action::TunnelRelease),
    ];
    for (tpid, number) in [(q, 0), (q, 4094), (ad, 100)] {
        let vid = vid(number);
        forms.push(form("vlan push", Action::VlanPush { tpid, vid }));
        forms.push(form("vlan modify", Action::VlanModify { tpid, vid }));
        for prio in [0, 1, 7].map(pcp) {
            forms.push(form("vlan push", Action::VlanPushPrio { tpid, vid, prio }));
            forms.push(form("vlan modify", Action::VlanModifyPrio { tpid, vid, prio }));
        }
    }
    for direction in both {
        for number in [1, 22, u32::MAX] {
            let to = Action::MirrorBlock { direction, block: block(number) };
            forms.push(form("mirred mirror blockid", to));
        }
        for (old, prefix, new) in [(v4(0), 24, v4(7)), (v4(9), 32, v4(8)), (v4(0), 0, v4(0))] {
            let nat = Nat::new(direction, old, prefix, new).unwrap();
            forms.push(form("nat", Action::Nat(nat)));
        }
    }
    forms.extend(tunnels().into_iter().map(|key| form("tunnel_key set", key)));
    forms.extend(connections().into_iter().map(|ct| {
        let line = match ct {
            Ct::Clear => "ct clear",
            Ct::Track { .. } => "ct",
            Ct::Commit(_) => "ct commit",
        };
        form(line, ct)
    }));
    forms.extend(policers().into_iter().map(|police| form("police", police)));
    forms.extend(edits().into_iter().map(|edit| form("pedit ex", Pedit::new(edit).unwrap())));
    let one = [
        Checksums::IPV4,
        Checksums::ICMP,
        Checksums::IGMP,
        Checksums::TCP,
        Checksums::UDP,
        Checksums::UDPLITE,
        Checksums::SCTP,
    ];
    forms.extend(one.map(|of| form("csum", Action::Csum(of))));
    let all = one.into_iter().reduce(Checksums::and).unwrap();
    forms.push(form("csum", Action::Csum(all)));
    forms.push(form("csum", Action::Csum(Checksums::IPV4.and(Checksums::TCP))));
    forms.extend(marks(world.direction).into_iter().map(|edit| form("skbedit", edit)));
    let rate = |number| NonZeroU32::new(number).unwrap();
    forms.push(form("sample", Action::Sample(Sample::new(rate(1), 0))));
    forms.push(form("sample", Action::Sample(Sample::new(rate(u32::MAX), u32::MAX))));
    let short = Sample::new(rate(100), 5).truncated(rate(128));
    forms.push(form("sample", Action::Sample(short)));
    forms.extend(labels().into_iter().map(|mpls| form("mpls", mpls)));
    forms
}

/// Every form that ends a rule.
fn ends(world: &World) -> Vec<Form> {
    let slow = Police::bytes(125_000, 10_000).unwrap();
    let mut forms = vec![
        form("gact drop", Action::Drop),
        form("gact pass", Action::Pass),
        form("gact trap", Action::Trap),
        form("gact continue", Action::Continue),
        form("gact goto chain", Action::Goto(chain(3))),
        form("gact goto chain", Action::Goto(chain((1 << 28) - 1))),
        form("mirred egress redirect", Action::Redirect(world.other)),
        form("mirred ingress redirect", Action::RedirectIngress(world.other)),
        form("police", slow.conform(Control::Pass).unwrap()),
        form("police", slow.exceed(Control::Goto(chain(4))).conform(Control::Drop).unwrap()),
        form("police", slow.exceed(Control::Continue).conform(Control::Continue).unwrap()),
    ];
    for direction in [Direction::Ingress, Direction::Egress] {
        let to = Action::RedirectBlock { direction, block: block(33) };
        forms.push(form("mirred redirect blockid", to));
    }
    forms
}

/// What else can be said of an action. (`tc` hands a cookie on to every later action of the rule:
/// in these tests only the last has one.)
fn extras() -> Vec<ActionExtra> {
    let none = ActionExtra::NONE;
    [HwStats::Immediate, HwStats::Delayed, HwStats::Disabled]
        .map(|stats| ActionExtra { hw_stats: Some(stats), ..none })
        .into_iter()
        .flat_map(|extra| [extra, ActionExtra { no_percpu: true, ..extra }])
        .chain([none, none, none, ActionExtra { no_percpu: true, ..none }])
        .collect()
}

fn cookies() -> Vec<UserCookie> {
    [&[0][..], &[0xde, 0xad, 0xbe, 0xef], &[0xff; 16]].map(|of| UserCookie::new(of).unwrap()).into()
}

/// A rule as a list of forms, at a place of its own.
#[derive(Clone, Debug)]
struct Case {
    forms: Vec<Form>,
    prio: u16,
}

impl Case {
    fn at(&self, hook: Hook) -> Rule {
        let actions: Vec<Action> = self.forms.iter().map(|form| form.action.clone()).collect();
        let place = prio(self.prio);
        let mut rule = Rule::new(hook, ChainId::ZERO, place, Match::any(), actions).unwrap();
        for (position, form) in self.forms.iter().enumerate() {
            rule = rule.with_extra(position, form.extra).unwrap();
        }
        rule
    }
}

/// Each form alone, that is with an end where it has none itself.
fn alone(world: &World) -> Vec<Vec<Form>> {
    let drop = || form("gact drop", Action::Drop);
    let mut lists: Vec<Vec<Form>> = Vec::new();
    lists.extend(steps(world).into_iter().map(|step| vec![step, drop()]));
    lists.extend(ends(world).into_iter().map(|end| vec![end]));
    let jump = Form { line: "gact jump", ..form("", Action::Jump(2)) };
    let police = Police::packets(9, 9).unwrap().exceed(Control::Jump(2));
    lists.push(vec![form("gact pipe", Action::Pipe), jump, drop()]);
    lists.push(vec![form("police", police), form("vlan pop", Action::VlanPop), drop()]);
    let police = Police::packets(9, 9).unwrap().exceed(Control::Pipe);
    let police = police.conform(Control::Jump(2)).unwrap();
    lists.push(vec![form("police", police), drop(), form("gact pass", Action::Pass)]);
    for extra in extras() {
        let line = "hw_stats, no_percpu";
        let said = |action| Form { line, extra, ..form(line, action) };
        lists.push(vec![said(Action::VlanPop), said(Action::Mirror(world.to)), said(Action::Drop)]);
    }
    for cookie in cookies() {
        let extra = ActionExtra { cookie: Some(cookie), ..ActionExtra::NONE };
        lists.push(vec![
            form("gact pipe", Action::Pipe),
            Form { line: "cookie", extra, ..form("", Action::Drop) },
        ]);
    }
    lists
}

fn combined(random: &mut Random, world: &World, count: usize) -> Vec<Vec<Form>> {
    let (mut steps, ends, extras, cookies) = (steps(world), ends(world), extras(), cookies());
    // Of a rule with helpers of both families a dump does not tell which is which.
    steps.retain(|step| !step.action.to_string().contains("helper ipv6"));
    (0..count)
        .map(|_| {
            let mut list: Vec<Form> = (0..random.below(6)).map(|_| random.pick(&steps)).collect();
            list.push(random.pick(&ends));
            for form in &mut list {
                form.extra = random.pick(&extras);
            }
            if list.len() > 1 && random.below(3) == 0 {
                list.last_mut().unwrap().extra.cookie = Some(random.pick(&cookies));
            }
            list
        })
        .collect()
}

/// How often each line of the table went how far.
#[derive(Default)]
struct Table(BTreeMap<&'static str, [usize; 4]>);

impl Table {
    fn count(&mut self, case: &Case, column: usize) {
        for form in &case.forms {
            self.0.entry(form.line).or_default()[column] += 1;
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:26} {:>6} {:>8} {:>12} {:>8}",
            "action", "forms", "encoded", "shown by tc", "decoded"
        )?;
        for (line, [forms, encoded, shown, decoded]) in &self.0 {
            writeln!(f, "{line:26} {forms:>6} {encoded:>8} {shown:>12} {decoded:>8}")?;
        }
        Ok(())
    }
}

/// Holds these rules against both judges.
fn compare(lists: Vec<Vec<Form>>, direction: Direction, table: &mut Table) {
    let hook = |link| match direction {
        Direction::Ingress => Hook::ingress(ifindex(link)),
        Direction::Egress => Hook::egress(ifindex(link)),
    };
    let (ours, theirs) = (hook("ours"), hook("tcs"));
    let mut kernel = NetlinkKernel::open(OWNER).unwrap();
    kernel.ensure_hook(ours).unwrap();
    let mut wrong = Vec::new();
    let cases: Vec<Case> = (1..).zip(lists).map(|(prio, forms)| Case { forms, prio }).collect();

    let mut given: Vec<&Case> = Vec::new();
    for case in &cases {
        table.count(case, 0);
        match net::tc(&format!("filter add dev tcs {}", case.at(theirs))) {
            Ok(_) => given.push(case),
            Err(error) => wrong.push(format!("tc does not take it: {error}")),
        }
    }
    let ops: Vec<Op> =
        given.iter().map(|case| Op::Add { rule: case.at(ours), handle: Handle(1) }).collect();
    for (op, outcome) in ops.iter().zip(kernel.apply(&ops, Mode::Fast)) {
        if !outcome.is_done() {
            wrong.push(format!("{op:?}: {outcome:?}"));
        }
    }
    let place = |link| format!("dev {link} {direction}");
    let (shown_ours, shown_theirs) = (shown_by_tc(&place("ours")), shown_by_tc(&place("tcs")));
    let (our_bytes, their_bytes) = (dumped(ours), dumped(theirs));
    let own = kernel.dump(ours).unwrap();
    assert_eq!((own.unreadable_own.len(), own.foreign.len()), (0, 0), "{own:?}");
    let own: BTreeMap<u16, Rule> =
        own.own.into_iter().map(|own| (own.rule.prio().get(), own.rule)).collect();

    for case in given {
        let rule = case.at(theirs);
        let at = (0, u64::from(case.prio));
        if shown_ours.get(&at) == shown_theirs.get(&at) && shown_ours.contains_key(&at) {
            table.count(case, 2);
        } else {
            wrong.push(format!(
                "{rule}\nours: {:#?}\ntc's: {:#?}",
                shown_ours.get(&at),
                shown_theirs.get(&at)
            ));
        }
        let (Some(our_bytes), Some(their_bytes)) =
            (our_bytes.get(&case.prio), their_bytes.get(&case.prio))
        else {
            wrong.push(format!("{rule} is not in the dump"));
            continue;
        };
        let expected = actions(their_bytes);
        if actions(our_bytes) == expected && actions(&encoded(&rule, OWNER)) == expected {
            table.count(case, 1);
        } else {
            let encoded = actions(&encoded(&rule, OWNER));
            wrong.push(format!(
                "{rule}\nencoded: {encoded:?}\ndumped: {:?}\ntc's: {expected:?}",
                actions(our_bytes)
            ));
        }
        let decoded = decode(their_bytes);
        // Without our cookie nothing tells by which family a helper for both was asked for.
        let is_it = |decoded: &Decoded| {
            decoded.rule == rule
                || decoded.rule.to_string().replace("helper ipv4-", "helper ipv6-")
                    == rule.to_string()
        };
        if decoded.as_ref().is_some_and(is_it) && own.get(&case.prio) == Some(&case.at(ours)) {
            table.count(case, 3);
        } else {
            wrong.push(format!("{rule}\nis read as {decoded:?} from {expected:?}"));
        }
    }
    // The next set begins with nothing.
    let gone: Vec<Op> =
        ops.iter().map(|op| Op::Delete { id: op.id().clone(), handle: Handle(1) }).collect();
    kernel.apply(&gone, Mode::Fast);
    net::tc(&format!("filter del dev tcs {direction}")).unwrap();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n\n"));
}

fn room() -> Netns {
    for module in ["nf_conntrack_ftp", "nf_conntrack_tftp"] {
        net::modprobe(module).unwrap();
    }
    let room = Netns::enter().unwrap();
    for link in ["ours", "tcs", "out", "out2"] {
        veth(link, &format!("{link}-peer"));
    }
    net::tc("qdisc add dev tcs clsact").unwrap();
    room
}

fn world(direction: Direction) -> World {
    World { to: ifindex("out"), other: ifindex("out2"), direction }
}

#[test]
fn every_form_of_every_action_is_to_the_kernel_and_to_tc_what_it_is_to_us() {
    let _room = room();
    let mut table = Table::default();
    for direction in [Direction::Ingress, Direction::Egress] {
        compare(alone(&world(direction)), direction, &mut table);
    }
    println!("{table}");
    for (line, counts) in &table.0 {
        assert!(counts.iter().all(|count| *count == counts[0]), "{line}: {counts:?}");
    }
}

#[test]
fn actions_in_random_combination_are_too() {
    const RULES: usize = 150;
    let _room = room();
    let mut random = Random::seeded();
    let mut table = Table::default();
    for direction in [Direction::Ingress, Direction::Egress] {
        let lists = combined(&mut random, &world(direction), RULES);
        compare(lists, direction, &mut table);
    }
    println!("{table}");
}

// ---------------------------------------------------------------- shared policers

fn rule(hook: Hook, at: u16, list: &[Action]) -> Rule {
    Rule::new(hook, ChainId::ZERO, prio(at), Match::any(), list).unwrap()
}

#[test]
fn rules_share_a_policer_and_know_it_again_and_none_is_made_by_naming_it() {
    let _room = room();
    let hook = Hook::ingress(ifindex("ours"));
    let mut kernel = NetlinkKernel::open(OWNER).unwrap();
    kernel.ensure_hook(hook).unwrap();
    let index = PoliceIndex::new(PoliceIndex::FIRST + 7).unwrap();
    let named = |at| rule(hook, at, &[Action::Pipe, Action::SharedPolice(index), Action::Drop]);
    let (one, other) = (named(1), named(2));
    let refused = kernel.apply(&[add(one.clone(), 1)], Mode::Fast);
    assert!(matches!(refused[..], [Outcome::Refused { errno: 22, .. }]), "{refused:?}");

    let slow = Police::bytes(125_000, 10_000).unwrap();
    kernel.set_shared_police(index, slow, Offload::Auto).unwrap();
    for outcome in kernel.apply(&[add(one.clone(), 1), add(other.clone(), 1)], Mode::Told) {
        assert!(outcome.is_done(), "{outcome:?}");
    }
    let own = |kernel: &mut NetlinkKernel| -> Vec<Rule> {
        kernel.dump(hook).unwrap().own.into_iter().map(|own| own.rule).collect()
    };
    assert_eq!(own(&mut kernel), [one.clone(), other.clone()]);
    let bound = |expected: &str| {
        let shown = net::tc_json(&format!("actions get action police index {}", index.get()));
        let shown = shown.unwrap().to_string();
        assert!(shown.contains(expected), "{shown}");
    };
    bound("\"bind\":2");
    // As the rules that name it in `tc`'s words.
    net::tc(&format!("filter add dev tcs {one}")).unwrap();
    bound("\"bind\":3");
    let theirs = dumped(Hook::ingress(ifindex("tcs")));
    assert_eq!(
        decode(&theirs[&1]).unwrap().rule,
        rule(Hook::ingress(ifindex("tcs")), 1, one.actions())
    );

    // Changed for all, and in the way of none.
    let fast = Police::packets(5_000, 500).unwrap().exceed(Control::Continue);
    kernel.set_shared_police(index, fast, Offload::Auto).unwrap();
    bound("\"pkts_rate\":5000");
    assert_eq!(own(&mut kernel), [one.clone(), other.clone()]);
    assert!(kernel.delete_shared_police(index).is_err());
    net::tc("filter del dev tcs ingress").unwrap();
    let gone = [one, other].map(|rule| Op::Delete { id: rule.id().clone(), handle: Handle(1) });
    assert_eq!(kernel.apply(&gone, Mode::Fast), [Outcome::Deleted, Outcome::Deleted]);
    // The kernel lets go of it a little later.
    net::wait_for("the policer to be free", PATIENCE, || kernel.delete_shared_police(index).ok())
        .unwrap();
    assert!(kernel.delete_shared_police(index).is_err());
}

// ---------------------------------------------------------------- qdiscs and blocks

#[test]
fn rules_of_a_shared_block_stand_once_for_all_its_interfaces() {
    let _room = room();
    let mut kernel = NetlinkKernel::open(OWNER).unwrap();
    let shared = block(22);
    let clsact = HookQdisc::Clsact { ingress: Some(shared), egress: Some(block(23)) };
    let ours = kernel.add_qdisc(ifindex("ours"), clsact).unwrap();
    let ingress = HookQdisc::Ingress { block: Some(shared) };
    let out = kernel.add_qdisc(ifindex("out"), ingress).unwrap();
    let shown = net::tc("qdisc show").unwrap();
    assert!(shown.contains("ingress_block 22 egress_block 23"), "{shown}");
    assert!(shown.contains("qdisc ingress ffff: dev out"), "{shown}");

    let hook = Hook::block(shared);
    let drop = rule(hook, 1, &[Action::Mirror(ifindex("out2")), Action::Drop]);
    assert_eq!(drop.to_string().split(' ').take(2).collect::<Vec<_>>(), ["block", "22"]);
    kernel.ensure_hook(hook).unwrap();
    assert!(kernel.apply(&[add(drop.clone(), 1)], Mode::Told)[0].is_done());
    let own: Vec<Rule> = kernel.dump(hook).unwrap().own.into_iter().map(|own| own.rule).collect();
    assert_eq!(own, std::slice::from_ref(&drop));
    assert_eq!(decode(&dumped(hook)[&1]).unwrap().rule, drop);

    // `tc` puts the same there by the same words, and shows it alike.
    net::tc("qdisc add dev out2 ingress_block 24 clsact").unwrap();
    let theirs = Hook::block(block(24));
    net::tc(&format!("filter add {}", rule(theirs, 1, drop.actions()))).unwrap();
    assert_eq!(shown_by_tc("block 22"), shown_by_tc("block 24"));
    assert_eq!(shown_by_tc("block 22").len(), 1);

    // What a frame into either interface meets.
    for (link, from) in [("ours", "ours-peer"), ("out", "out-peer")] {
        let capture = Capture::start("out2-peer").unwrap();
        let sent =
            net::frame("02:00:00:00:00:02", "02:00:00:00:00:01", &[], 0x88b5, link.as_bytes());
        net::send_frame(from, &sent).unwrap();
        capture.wait_for(PATIENCE, |frame| frame.starts_with(&sent)).unwrap();
    }

    let gone = Op::Delete { id: drop.id().clone(), handle: Handle(1) };
    assert_eq!(kernel.apply(&[gone], Mode::Fast), [Outcome::Deleted]);
    assert_eq!(kernel.dump(hook).unwrap().own, []);
    kernel.delete_qdisc(ours).unwrap();
    kernel.delete_qdisc(out).unwrap();
    assert!(!net::tc("qdisc show").unwrap().contains("block 22"));
}

#[test]
fn only_the_qdisc_that_was_made_is_taken_away() {
    let _room = room();
    let mut kernel = NetlinkKernel::open(OWNER).unwrap();
    let clsact = HookQdisc::Clsact { ingress: None, egress: None };
    // It has one, of somebody else.
    let refused = kernel.add_qdisc(ifindex("tcs"), clsact).unwrap_err();
    assert!(matches!(refused, tc_flows::Error::Refused { errno: 17, .. }), "{refused:?}");
    let own = kernel.add_qdisc(ifindex("ours"), HookQdisc::Ingress { block: None }).unwrap();
    let hook = Hook::ingress(ifindex("ours"));
    let drop = rule(hook, 1, &[Action::Drop]);
    assert!(kernel.apply(&[add(drop.clone(), 1)], Mode::Fast)[0].is_done());
    assert_eq!(decode(&dumped(hook)[&1]).unwrap().rule, drop);
    kernel.delete_qdisc(own).unwrap();
    assert!(!kernel.dump(hook).unwrap().hook_present);
    assert!(net::tc("qdisc show dev tcs").unwrap().contains("clsact"));
}

// ---------------------------------------------------------------- chains

#[test]
fn a_chain_with_a_template_takes_what_is_within_it_and_goes_when_it_is_empty() {
    let _room = room();
    let hook = Hook::ingress(ifindex("ours"));
    let mut kernel = NetlinkKernel::open(OWNER).unwrap();
    kernel.ensure_hook(hook).unwrap();
    let template = Match::any().dst(Mac([0xff; 6]));
    kernel.add_chain(hook, chain(7), Some(&template)).unwrap();
    kernel.add_chain(hook, chain(8), None).unwrap();
    assert!(kernel.add_chain(hook, chain(8), None).is_err());
    net::tc(&format!("chain add dev tcs ingress chain 7 protocol all flower {template}")).unwrap();
    let shown = |link: &str| {
        let mut chains = net::tc_json(&format!("chain show dev {link} ingress")).unwrap();
        let chains = chains.as_array_mut().unwrap();
        chains.retain(|shown| shown["chain"] == 7);
        for shown in chains.iter_mut() {
            shown.as_object_mut().unwrap().remove("parent");
        }
        chains.clone()
    };
    assert_eq!(shown("ours"), shown("tcs"));
    assert_eq!(shown("ours").len(), 1);
    let mut chains = kernel.chains(hook).unwrap();
    chains.sort_by_key(|chain| chain.id);
    let [seven, eight] = &chains[..] else { panic!("{chains:?}") };
    assert_eq!((seven.id, &seven.template), (chain(7), &Template::Keys(template)));
    assert_eq!((eight.id, &eight.template), (chain(8), &Template::None));

    let at = |matching| Rule::new(hook, chain(7), prio(1), matching, [Action::Drop]).unwrap();
    let within = at(Match::any().dst_masked(mac(1), Mac([1, 0, 0, 0, 0, 1])));
    let beyond = at(Match::any().src(mac(1)));
    assert!(kernel.apply(&[add(within.clone(), 1)], Mode::Fast)[0].is_done());
    let gone = Op::Delete { id: within.id().clone(), handle: Handle(1) };
    assert!(!kernel.delete_chain(hook, chain(7)).unwrap());
    assert_eq!(kernel.apply(&[gone], Mode::Fast), [Outcome::Deleted]);
    let refused = kernel.apply(&[add(beyond.clone(), 1)], Mode::Fast);
    assert!(matches!(refused[..], [Outcome::Refused { errno: 22, .. }]), "{refused:?}");
    assert!(kernel.delete_chain(hook, chain(7)).unwrap());
    assert!(kernel.delete_chain(hook, chain(8)).unwrap());
    assert_eq!(kernel.chains(hook).unwrap(), []);
}
