//! Whether the packet walk tells the truth: random rule sets and random frames, on veth pairs of a
//! real kernel, and what leaves where, byte for byte.
//!
//! The seed is printed; `TC_FLOWS_SEED` sets it.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use eswitchd_netns_tests::{
    AD, PATIENCE, Q, Random, chain,
    frames::{bytes, number},
    ifindex, mac, prio, v4, v6, veth, vid,
};
use lab::net::{self, Capture, Netns};
use tc_flows::{
    Action, ArpMatch, Body, CfmLevel, CfmMatch, ChainId, Checksums, Control, Ct, CtFlags, CtState,
    Direction, EtherType, Fragment, Frame, Handle, Hook, Ifindex, Ipv4Match, Ipv4Prefix, Ipv6Match,
    Ipv6Prefix, Kernel, Layer4, LinkName, Mac, Match, Mode, MplsDepth, MplsEntry, MplsLabel,
    MplsMatch, MplsStack, MplsTc, Munge, Nat, NetlinkKernel, Op, Owner, Payload, Pedit, PeditField,
    Police, PortRange, Ports, PppoeMatch, Rule, RuleSet, Sample, SkbEdit, SkbField, Spi, Step, Tag,
    TagMatch, Tcp, Tunnel, TunnelFlags, TunnelKey, Unmodelled, VlanId, VlanPrio, VlanTpid, walk,
};

const OWNER: Owner = Owner(*b"test");

// ---------------------------------------------------------------- the rooms

// ---------------------------------------------------------------- random rules and frames

const OPAQUE: EtherType = match EtherType::new(0x88b5) {
    Some(ethertype) => ethertype,
    None => EtherType::ARP,
};
const UNICAST: [Mac; 3] = [mac(1), mac(2), mac(3)];
const GROUPS: [Mac; 2] = [Mac([0x33, 0x33, 0, 0, 0, 1]), Mac([0xff; 6])];
const CHAINS: u32 = 4;
const LINK_CONTROL: u16 = 0xc021;
const IP_CONTROL: u16 = 0x8021;

fn some_vid(random: &mut Random) -> VlanId {
    vid(random.pick(&[0, 1, 2, 3]))
}

fn some_tpid(random: &mut Random) -> VlanTpid {
    random.pick(&[Q, Q, AD])
}

fn some_pcp(random: &mut Random) -> VlanPrio {
    VlanPrio::new(random.pick(&[0, 3, 5])).unwrap()
}

fn some_port(random: &mut Random) -> u16 {
    random.pick(&[67, 68, 1000])
}

fn some_layer4(random: &mut Random) -> Layer4 {
    let (src, dst) = (some_port(random), some_port(random));
    match random.below(8) {
        0 | 1 => Layer4::Udp { src, dst },
        2 => Layer4::Tcp { src, dst, flags: random.pick(&[2, 0x10, 0x12, 0x100]) },
        3 => Layer4::Sctp { src, dst },
        4 => Layer4::Icmp { kind: random.pick(&[134, 135]), code: random.pick(&[0, 1]) },
        5 => Layer4::Esp { spi: random.pick(&[1, 0x1234_5678]) },
        6 => Layer4::L2tpv3 { session: random.pick(&[7, 8]) },
        _ => Layer4::Other(89),
    }
}

fn some_fragment(random: &mut Random) -> Fragment {
    random.pick(&[Fragment::No, Fragment::No, Fragment::No, Fragment::First, Fragment::Later])
}

fn some_v4(random: &mut Random) -> std::net::Ipv4Addr {
    [192, 0, 2, random.pick(&[1, 2])].into()
}

fn some_v6(random: &mut Random) -> std::net::Ipv6Addr {
    [0x2001, 0xdb8, 0, 0, 0, 0, 0, random.pick(&[1, 2])].into()
}

fn some_body(random: &mut Random, src: Mac) -> Body {
    match random.below(12) {
        0 | 1 => Body::Opaque,
        2..=4 => Body::Ipv4 {
            src: some_v4(random),
            dst: some_v4(random),
            tos: random.pick(&[0, 0x10]),
            ttl: random.pick(&[1, 64]),
            layer4: some_layer4(random),
            fragment: some_fragment(random),
        },
        5..=7 => Body::Ipv6 {
            src: some_v6(random),
            dst: some_v6(random),
            tos: random.pick(&[0, 0x10]),
            ttl: random.pick(&[1, 64]),
            layer4: some_layer4(random),
            fragment: some_fragment(random),
        },
        8 => {
            let entries = [(16, 0, 64), (17, 3, 64), (16, 0, 1)];
            Body::Mpls(MplsStack::new(&entries[..1 + random.below(3)]).unwrap())
        }
        9 => Body::Pppoe {
            session: random.pick(&[1, 2]),
            proto: random.pick(&[LINK_CONTROL, IP_CONTROL]),
        },
        10 => Body::Cfm { level: random.pick(&[0, 5]), opcode: random.pick(&[1, 3]) },
        _ => Body::Arp {
            op: random.pick(&[1, 2, 2, 3]),
            sha: src,
            sip: some_v4(random),
            tha: random.pick(&UNICAST),
            tip: some_v4(random),
        },
    }
}

fn some_frame(random: &mut Random) -> Frame {
    let all = [UNICAST.as_slice(), GROUPS.as_slice()].concat();
    let mut frame = Frame::opaque(random.pick(&all), random.pick(&UNICAST), OPAQUE);
    let body = some_body(random, frame.src);
    frame = frame.with_body(body);
    if matches!(body, Body::Arp { .. }) && random.chance(4) {
        frame.ethertype = EtherType::RARP.get();
    }
    for _ in 0..random.pick(&[0, 0, 1, 1, 1, 2, 3]) {
        let (tpid, vid) = (some_tpid(random), some_vid(random));
        frame = frame.within(Tag { tpid, vid, pcp: some_pcp(random).get() });
    }
    frame.indev = LinkName::new("in");
    frame
}

fn some_ports(random: &mut Random) -> Ports {
    match random.below(5) {
        0 => Ports::any(),
        1 => Ports::any().dst(68),
        2 => Ports::any().src(67),
        3 => Ports::any().dst_range(PortRange::new(60, 67).unwrap()),
        _ => Ports::any().src_range(PortRange::new(68, 2000).unwrap()).dst(68),
    }
}

fn some_ipv4(random: &mut Random) -> Ipv4Match {
    let it = Ipv4Match::any();
    let it = match random.below(5) {
        0 => it.src(some_v4(random)),
        1 => it.dst_in(Ipv4Prefix::new(some_v4(random), 24).unwrap()).tos(16, 16),
        2 => it.fragment(random.chance(2)),
        3 => it.fragment(true).first_fragment(random.chance(2)),
        _ => it,
    };
    match random.below(8) {
        0 => it.ttl(64).udp(some_ports(random)),
        1 => it.tcp(Tcp::from(some_ports(random)).flags(2, 2)),
        2 => it.icmp(134, random.pick(&[0, 1])),
        3 => it.sctp(some_ports(random)),
        4 => it.esp(Spi::new(1).unwrap()),
        5 => it.l2tpv3(random.pick(&[7, 8])),
        6 => it.proto(89),
        _ => it,
    }
}

fn some_ipv6(random: &mut Random) -> Ipv6Match {
    let it = Ipv6Match::any();
    let it = match random.below(5) {
        0 => it.dst(some_v6(random)),
        1 => it.tos(16, 16),
        2 => it.fragment(random.chance(2)),
        3 => it.first_fragment(random.chance(2)),
        _ => it,
    };
    match random.below(7) {
        0 => it.udp(some_ports(random)),
        1 => it.tcp(some_ports(random)),
        2 | 3 => it.icmp_type(random.pick(&[134, 135])),
        4 => it.esp(Spi::masked(0x1234_0000, 0xffff_0000).unwrap()),
        5 => it.l2tpv3(7),
        _ => it,
    }
}

fn some_payload(random: &mut Random) -> Payload {
    match random.below(13) {
        0 | 1 => OPAQUE.into(),
        2 => EtherType::IPV4.into(),
        3 => EtherType::IPV6.into(),
        4..=6 => some_ipv4(random).into(),
        7 | 8 => some_ipv6(random).into(),
        9 => {
            let label = MplsEntry::any().label(MplsLabel::new(16).unwrap());
            let entry = match random.below(3) {
                0 => label.bos(random.chance(2)),
                1 => label.tc(MplsTc::new(0).unwrap()).ttl(64),
                _ => label,
            };
            let depth = MplsDepth::new(random.pick(&[1, 3])).unwrap();
            MplsMatch::unicast().entry(depth, entry).into()
        }
        10 => match random.below(3) {
            0 => PppoeMatch::any().into(),
            1 => PppoeMatch::any().session(1).into(),
            _ => PppoeMatch::any().session(2).proto(LINK_CONTROL).into(),
        },
        11 => match random.below(3) {
            0 => CfmMatch::any().level(CfmLevel::new(5).unwrap()).into(),
            1 => CfmMatch::any().opcode(1).into(),
            _ => CfmMatch::any().level(CfmLevel::new(0).unwrap()).opcode(3).into(),
        },
        _ => {
            let it = if random.chance(3) { ArpMatch::rarp() } else { ArpMatch::any() };
            match random.below(3) {
                0 => it.op(random.pick(&[1, 2])).into(),
                1 => it.sip(some_v4(random)).into(),
                _ => it.sip(some_v4(random)).tha(random.pick(&UNICAST)).into(),
            }
        }
    }
}

fn some_tag(random: &mut Random) -> TagMatch {
    let tag = TagMatch::any(some_tpid(random));
    match random.below(5) {
        0 => tag,
        1 => tag.prio(some_pcp(random)),
        2 => tag.vid(some_vid(random)).prio(some_pcp(random)),
        _ => tag.vid(some_vid(random)),
    }
}

fn some_match(random: &mut Random) -> Match {
    let mut matching = match random.below(14) {
        0..=3 => Match::any(),
        4..=6 => Match::in_tag(some_tag(random)),
        7 => Match::in_tags(some_tag(random), some_tag(random)),
        8 => Match::in_tags_with(some_tag(random), some_tag(random), some_payload(random)),
        9 | 10 => Match::in_tag_with(some_tag(random), some_payload(random)),
        _ => Match::ethertype(some_payload(random)),
    };
    if random.chance(3) {
        let mask = random.pick(&[Mac::EXACT, Mac([0, 0, 0, 0, 0, 2])]);
        matching = matching.src_masked(random.pick(&UNICAST), mask);
    }
    if random.chance(4) {
        let multicast = Mac([1, 0, 0, 0, 0, 0]);
        let mask = random.pick(&[Mac::EXACT, Mac::EXACT, multicast]);
        matching = matching.dst_masked(random.pick(&[mac(1), mac(2), GROUPS[0], GROUPS[1]]), mask);
    }
    if random.chance(6) {
        matching = matching.clone().num_of_vlans(random.below(4) as u8).unwrap_or(matching);
    }
    // What a frame at ingress never has, and the interface that it always has.
    match random.below(24) {
        0 => matching.l2_miss(random.chance(2)),
        1 => matching.ct_state(CtState::new(CtFlags::NONE, CtFlags::TRACKED).unwrap()),
        2 => matching.ct_state(CtState::new(CtFlags::TRACKED, CtFlags::NONE).unwrap()),
        3 => matching.ct_mark(1, 3),
        4 | 7 | 8 => matching.tunnel(&some_tunnel(random)),
        5 | 6 => matching.indev(LinkName::new(random.pick(&["in", "source"])).unwrap()),
        _ => matching,
    }
}

/// A field that a frame with this match has where it is looked for.
/// What a match can ask of a tunnel, about the ends and numbers of [`some_tunnel_key`].
fn some_tunnel(random: &mut Random) -> Tunnel {
    match random.below(9) {
        0 | 1 => Tunnel::any().key_id(random.pick(&[0, 5, 6])),
        2 => Tunnel::any().src(Ipv4Prefix::new(v4(1), 32).unwrap()),
        3 => Tunnel::any().dst(Ipv4Prefix::new(v4(0), 24).unwrap()),
        4 => Tunnel::any().dst(Ipv6Prefix::new(v6(2), 128).unwrap()),
        5 => Tunnel::any().dst_port(random.pick(&[0, 4789])),
        6 => Tunnel::any().tos(random.pick(&[0, 8]), 0xff),
        7 => Tunnel::any().ttl(random.pick(&[0, 64]), 0xff),
        _ => {
            let (set, clear) = random.pick(&[
                (TunnelFlags::CSUM, TunnelFlags::NONE),
                (TunnelFlags::NONE, TunnelFlags::CSUM),
            ]);
            Tunnel::any().flags(set, clear)
        }
    }
}

fn some_tunnel_key(random: &mut Random) -> TunnelKey {
    let mut key = match random.chance(3) {
        true => TunnelKey::v6(v6(1), v6(2)),
        false => TunnelKey::v4(v4(random.pick(&[1, 3])), v4(2)),
    };
    if random.chance(2) {
        key = key.id(random.pick(&[5, 6]));
    }
    if random.chance(2) {
        key = key.dst_port(4789);
    }
    if random.chance(3) {
        key = key.tos(8).ttl(64);
    }
    if random.chance(3) { key.no_csum() } else { key }
}

fn some_munge(random: &mut Random, ethertype: u16) -> Munge {
    let field = |field, value, add| {
        if add { Munge::add(field, value).unwrap() } else { Munge::set(field, value).unwrap() }
    };
    let add = random.chance(2);
    match (ethertype, random.below(7)) {
        (_, 0) => Munge::eth_dst(random.pick(&UNICAST)),
        (_, 1) => Munge::eth_src(random.pick(&UNICAST)),
        (_, 2) => field(PeditField::UdpDst, 68, false),
        (_, 3) => field(PeditField::TcpSrc, 0x01ff, add),
        (0x0800, 4) => field(PeditField::Ipv4Ttl, 63, add),
        (0x0800, 5) => field(PeditField::Ipv4Tos, 0x10, add),
        (0x0800, _) => field(PeditField::Ipv4Dst, 0xc000_0201, false),
        (0x86dd, 4) => field(PeditField::Ipv6HopLimit, 64, add),
        (0x86dd, 5) => field(PeditField::Ipv6TrafficClass, 0x18, add),
        (0x86dd, _) => Munge::ipv6_src(some_v6(random)),
        _ => Munge::eth_dst(random.pick(&GROUPS)),
    }
}

fn some_step(random: &mut Random, ethertype: u16, to: &[Ifindex], inside: Ifindex) -> Action {
    let (tpid, vid) = (some_tpid(random), some_vid(random));
    match random.below(20) {
        0..=4 => Action::Mirror(random.pick(to)),
        5 | 6 => Action::VlanPush { tpid, vid },
        7 => Action::VlanPushPrio { tpid, vid, prio: some_pcp(random) },
        8 | 9 => Action::VlanPop,
        10 => Action::VlanModify { tpid, vid },
        11 => Action::VlanModifyPrio { tpid, vid, prio: some_pcp(random) },
        12 | 13 => {
            let munges: Vec<Munge> =
                (0..1 + random.below(2)).map(|_| some_munge(random, ethertype)).collect();
            Pedit::new(munges).unwrap().into()
        }
        14 => Action::MirrorIngress(inside),
        15 if ethertype == 0x0800 => {
            let direction = random.pick(&[Direction::Ingress, Direction::Egress]);
            let old = [192, 0, 2, 0].into();
            Action::Nat(Nat::new(direction, old, 24, [198, 51, 100, 0].into()).unwrap())
        }
        15 => Action::Pipe,
        16 => Police::bytes(1_000_000_000, 1_000_000).unwrap().into(),
        17 => match random.below(8) {
            0 => SkbEdit::new(SkbField::Mark(7)).into(),
            1 => Action::Csum(Checksums::IPV4),
            2 => Action::TunnelRelease,
            3 => Action::Sample(Sample::new(NonZeroU32::MAX, 1)),
            _ => some_tunnel_key(random).into(),
        },
        18 => Ct::Clear.into(),
        _ if random.chance(2) => Action::EthPop,
        _ => Action::EthPush { dst: mac(1), src: mac(2) },
    }
}

fn some_end(random: &mut Random, at: u32, to: &[Ifindex], inside: Ifindex) -> Action {
    match random.below(11) {
        0 => Action::Drop,
        1 => Action::Pass,
        2 => Action::Trap,
        3 | 4 => Action::Redirect(random.pick(to)),
        5 => Action::RedirectIngress(inside),
        6 => Action::Continue,
        // Now and then a loop, which the limit on gotos ends.
        _ if random.chance(20) => Action::Goto(chain(random.below(CHAINS as usize) as u32)),
        _ => Action::Goto(chain((at + 1 + random.below(2) as u32).min(CHAINS))),
    }
}

fn some_actions(
    random: &mut Random,
    at: u32,
    ethertype: u16,
    to: &[Ifindex],
    inside: Ifindex,
) -> Vec<Action> {
    let steps = random.below(4);
    let mut actions: Vec<Action> =
        (0..steps).map(|_| some_step(random, ethertype, to, inside)).collect();
    if random.chance(8) {
        // A policer that every frame conforms to: over the actions before the end, or to an end of
        // its own.
        let over = Control::Jump(actions.len() as u8 + 1);
        let conform = random.pick(&[over, over, Control::Pass, Control::Drop, Control::Continue]);
        let police = Police::bytes(1_000_000_000, 1_000_000).unwrap().exceed(Control::Pipe);
        actions.insert(0, police.conform(conform).unwrap().into());
    } else if random.chance(8) {
        // Where the jump leads over nothing, every action is still reached.
        actions.push(Action::Jump(actions.len() as u8 + 1));
    }
    actions.push(some_end(random, at, to, inside));
    actions
}

fn some_rules(random: &mut Random, hook: Hook, to: &[Ifindex], inside: Ifindex) -> RuleSet {
    let mut set = RuleSet::new();
    for _ in 0..40 {
        let at = random.below(CHAINS as usize) as u32;
        let at_prio = prio(1 + random.below(8) as u16);
        let matching = some_match(random);
        let actions = some_actions(random, at, matching.protocol(), to, inside);
        let rule = Rule::new(hook, chain(at), at_prio, matching, actions).unwrap();
        // Whatever can stand together does.
        let _ = set.insert(rule);
    }
    if random.chance(3) {
        put_into_tunnels(random, hook, to, &mut set);
    }
    set
}

/// Behind all other rules: what they leave is put into tunnels, and asked for that in two chains.
fn put_into_tunnels(random: &mut Random, hook: Hook, to: &[Ifindex], set: &mut RuleSet) {
    for (at_prio, src) in (20..).zip(UNICAST) {
        let actions = [some_tunnel_key(random).into(), Action::Goto(chain(1))];
        let matching = Match::any().src(src);
        set.insert(Rule::new(hook, ChainId::ZERO, prio(at_prio), matching, actions).unwrap())
            .unwrap();
    }
    for at in 1..=2 {
        for at_prio in 20..30 {
            let matching = Match::any().tunnel(&some_tunnel(random));
            let on = Action::Goto(chain(at + 1));
            let actions = match random.below(5) {
                0 => vec![Action::TunnelRelease, on],
                1 => vec![some_tunnel_key(random).into(), on],
                2 => vec![Action::Drop],
                _ => vec![Action::Redirect(random.pick(to))],
            };
            set.insert(Rule::new(hook, chain(at), prio(at_prio), matching, actions).unwrap())
                .unwrap();
        }
    }
}

// ---------------------------------------------------------------- bytes

/// The frame without the IPv4 and transport checksums: some actions write them, and a frame of the
/// walk has none.
fn without_checksums(mut bytes: Vec<u8>) -> Vec<u8> {
    let ethertype = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let mut at = 12;
    while matches!(ethertype(&bytes, at), 0x8100 | 0x88a8) {
        at += 4;
    }
    if ethertype(&bytes, at) == EtherType::IPV4.get() {
        let header = at + 2;
        bytes[header + 10..header + 12].fill(0);
        let check = match bytes[header + 9] {
            6 => Some(16),
            17 => Some(6),
            _ => None,
        };
        if let Some(check) = check {
            bytes[header + 20 + check..header + 20 + check + 2].fill(0);
        }
    }
    bytes
}

/// What came out where, by the number of the frame that went in.
type Deliveries = BTreeMap<u32, BTreeMap<&'static str, Vec<Vec<u8>>>>;

// ---------------------------------------------------------------- the walk tells the truth

#[test]
fn the_walk_delivers_what_the_kernel_delivers() {
    const SETS: usize = 44;
    const FRAMES: usize = 50;
    // Which frame leaves through which of them.
    const OUT: [&str; 3] = ["out0", "out1", "out2"];
    let mut random = Random::seeded();

    let _room = Netns::enter().unwrap();
    veth("in", "source");
    for (out, far) in OUT.iter().zip(["far0", "far1", "far2"]) {
        veth(out, far);
    }
    // What an interface is given as received ends there.
    veth("inside", "farinside");
    // What reaches the host reaches a bridge that floods it, tags and all, to one more pair.
    veth("host", "farhost");
    net::ip("link add bridge type bridge mcast_snooping 0").unwrap();
    net::ip("link set bridge addrgenmode none up").unwrap();
    for link in ["in", "host"] {
        net::ip(&format!("link set {link} master bridge")).unwrap();
        net::ip(&format!("link set {link} type bridge_slave learning off")).unwrap();
    }
    let hook = Hook::ingress(ifindex("in"));
    let mut kernel = NetlinkKernel::open(OWNER).unwrap();
    kernel.ensure_hook(hook).unwrap();
    let to: Vec<Ifindex> = OUT.iter().map(|out| ifindex(out)).collect();
    let name = |to_: Ifindex| OUT[to.iter().position(|index| *index == to_).unwrap()];
    let captures: Vec<(&'static str, Capture)> = [
        ("out0", "far0"),
        ("out1", "far1"),
        ("out2", "far2"),
        ("host", "farhost"),
        ("inside", "inside"),
    ]
    .map(|(at, far)| (at, Capture::start(far).unwrap()))
    .into();
    let inside = ifindex("inside");

    // A sentinel goes everywhere, behind the frames under test.
    let sentinel_rules = {
        let mut actions: Vec<Action> = to.iter().copied().map(Action::Mirror).collect();
        actions.push(Action::MirrorIngress(inside));
        actions.push(Action::Pass);
        let rule = Rule::new(hook, chain(0), prio(100), Match::any(), actions).unwrap();
        let mut set = RuleSet::new();
        set.insert(rule).unwrap();
        set
    };
    let mut installed: Vec<Op> = Vec::new();
    let mut change = |wanted: &RuleSet| {
        let deletes =
            installed.drain(..).map(|op| Op::Delete { id: op.id().clone(), handle: op.handle() });
        let mut ops: Vec<Op> = deletes.collect();
        for (rule, handle) in wanted.iter().zip(1..) {
            let add = Op::Add { rule: rule.clone(), handle: Handle(handle) };
            installed.push(add.clone());
            ops.push(add);
        }
        for (op, outcome) in ops.iter().zip(kernel.apply(&ops, Mode::Fast)) {
            assert!(outcome.is_done(), "{op:?}: {outcome:?}");
        }
    };

    let mut next = 0;
    let (mut delivered, mut to_host, mut dropped, mut gotos) = (0, 0, 0, 0);
    let mut compared = 0;
    let mut left_out: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..SETS {
        let rules = some_rules(&mut random, hook, &to, inside);
        change(&rules);
        let mut expected = Deliveries::new();
        let mut sent = BTreeMap::new();
        for _ in 0..FRAMES {
            let frame = some_frame(&mut random);
            next += 1;
            net::send_frame("source", &bytes(&frame, next)).unwrap();
            let told = walk(&rules, hook, &frame);
            if let Some(unmodelled) = &told.unmodelled {
                let what = match unmodelled {
                    Unmodelled::Action(action) => action.to_string(),
                    other => format!("{other:?}"),
                };
                *left_out.entry(what).or_default() += 1;
                continue;
            }
            compared += 1;
            let at = expected.entry(next).or_default();
            for (to, frame) in &told.deliveries {
                at.entry(name(*to)).or_default().push(without_checksums(bytes(frame, next)));
            }
            for (_, frame) in &told.received {
                at.entry("inside").or_default().push(without_checksums(bytes(frame, next)));
            }
            if let Some(frame) = &told.to_host {
                at.entry("host").or_default().push(without_checksums(bytes(frame, next)));
            }
            delivered += told.deliveries.len();
            to_host += usize::from(told.to_host.is_some());
            dropped += usize::from(told.dropped);
            gotos +=
                told.trace.iter().filter(|step| matches!(step, Step::Did(Action::Goto(_)))).count();
            sent.insert(next, (frame, told));
        }
        change(&sentinel_rules);
        next += 1;
        let sentinel = bytes(&Frame::opaque(mac(2), mac(1), OPAQUE), next);
        net::send_frame("source", &sentinel).unwrap();
        let mut got = Deliveries::new();
        for at in expected.keys() {
            got.insert(*at, BTreeMap::new());
        }
        for (at, capture) in &captures {
            capture.wait_for(PATIENCE, |frame| frame == sentinel).unwrap();
            for frame in capture.frames() {
                let Some(number) = number(&frame).filter(|number| *number != next) else {
                    continue;
                };
                got.entry(number)
                    .or_default()
                    .entry(at)
                    .or_default()
                    .push(without_checksums(frame));
            }
            capture.clear();
        }
        for (number, (frame, told)) in &sent {
            assert_eq!(
                got[number],
                expected[number],
                "{frame:?}\nwalk: {:#?}\nrules: {:#?}",
                told.trace,
                rules.iter().map(ToString::to_string).collect::<Vec<_>>(),
            );
        }
    }
    println!(
        "{compared} pairs of rule set and frame: {delivered} deliveries, {to_host} to the host, \
         {dropped} dropped, {gotos} gotos; not to be told: {left_out:?}",
    );
    assert!(compared >= 2_000, "{compared}");
    // A generator under which nothing happens would prove nothing.
    for count in [delivered, to_host, dropped, gotos] {
        assert!(count > SETS * FRAMES / 20, "of a kind too little happened");
    }
}
