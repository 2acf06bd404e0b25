//! The switchdev program is a complete L2 switch: for random intents and frames, a walk through
//! the planned rules delivers exactly what a reference switch delivers, tags included.
//!
//! The reference knows MAC tables and VLAN rules and nothing of tc. A case is one frame that comes in
//! somewhere while one intent holds: 10,000 intents with ten frames each, for software alone and once
//! more for hardware that refuses rules. What fails is shrunk, and printed with its seed.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod reference;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use api::{
    resources::{
        AddressPair, AdminState, Allowance, Attachment, ControlQueue, EswitchMode, Multicast,
        NetworkKind, NetworkSpec, PortFunction, PortSpec, Promiscuous, Qos, UnknownUnicast,
        Visibility, VlanProto, VlanTag,
    },
    types::{Bitrate, Id, IpPrefix, MacAddr, Vid},
};
use controller::{
    capability::{Capabilities, Ceilings, KERNEL},
    config::UplinkUse,
    intent::{Change, Claims, Intent},
    plan::{
        PortPlan, Program, plan,
        switchdev::{Answer, FlowProgram, Hardware, Purpose},
    },
    world::{
        AdapterView, BackingView, Connection, GuestFunction, GuestView, NetdevView, RxFilter, World,
    },
};
use proptest::prelude::*;
use reference::{Fate, Member, Reference, Uplink, eui64};
use tc_flows::{
    Body, Eswitch, EtherType, Frame, Hook, Ice, Ifindex, Layer4, Mac, Mlx5, Offload, Profile, Rule,
    RuleId, Tag as FrameTag, VlanId, VlanTpid, Walk, walk, walk_two_stage,
};

const UPLINK: u32 = 1000;
const UPLINK_MAC: [u8; 6] = [2, 0xff, 0, 0, 0, 1];

fn id(text: String) -> Id {
    text.parse().unwrap()
}

fn adapter_id() -> Id {
    id("soft-lab".into())
}

fn netdev(ifindex: u32, name: String, mac: [u8; 6]) -> NetdevView {
    NetdevView { ifindex: Ifindex::new(ifindex).unwrap(), name, mac: Some(MacAddr(mac)) }
}

/// A host with `ports` representors, numbered from 1, and an uplink.
fn world(ports: usize) -> World {
    let representors = (1..=ports as u32)
        .map(|n| (format!("rep{n}"), netdev(n, format!("rep{n}"), [2, 0xfe, 0, 0, 0, n as u8])))
        .collect();
    let adapter = AdapterView {
        handle: "soft-lab".into(),
        mode: Some(EswitchMode::Software),
        uplink: Some(netdev(UPLINK, "up0".into(), UPLINK_MAC)),
        representors,
        ..AdapterView::default()
    };
    World { adapters: BTreeMap::from([(adapter_id(), adapter)]), ..World::default() }
}

/// The same host with a NIC of this profile's driver in the place of the software adapter.
fn world_on(profile: &Profile, ports: usize) -> World {
    let mut world = world(ports);
    for adapter in world.adapters.values_mut() {
        adapter.mode = Some(EswitchMode::Switchdev);
        let driver = match profile {
            Profile::Mlx5(_) => "mlx5_core",
            Profile::Ice(_) => "ice",
            _ => "netdevsim",
        };
        adapter.driver = Some(driver.to_owned());
    }
    world
}

const DEVICE: &str = "vf0";

fn guest_id(port: usize) -> Id {
    id(format!("vm{port}"))
}

/// A group for which guests may ask.
fn group(n: u16) -> MacAddr {
    let [high, low] = n.to_be_bytes();
    MacAddr([1, 0, 0x5e, 0, high, low])
}

/// The same host with a guest for each port of which it can be seen what it asks for.
fn with_guests(mut world: World, ports: &[PortSketch]) -> World {
    for (number, (_, macs, _, _, permits)) in ports.iter().enumerate() {
        let Some((groups, all)) = &permits.asks else { continue };
        let filter = RxFilter {
            main_mac: macs.iter().min().copied().map(mac).unwrap(),
            unicast: Vec::new(),
            unicast_overflow: false,
            multicast: groups.iter().copied().map(group).collect(),
            multicast_overflow: false,
            all_multicast: *all,
            vlans: Vec::new(),
            promiscuous: false,
        };
        let function = GuestFunction {
            pf: None,
            index: None,
            pci: None,
            enabled: true,
            filter: Some(filter),
            backing: BackingView::Netdev { name: format!("rep{}", number + 1) },
            source: None,
            visibility: Visibility { control_queue: ControlQueue::Seen, ..Visibility::default() },
        };
        let guest = GuestView {
            connection: Connection::Connected,
            functions: [(DEVICE.to_owned(), function)].into(),
            ..GuestView::default()
        };
        world.guests.insert(guest_id(number), guest);
    }
    world
}

/// What it can be seen that a port's guest asks for.
fn asked_groups(world: &World, intent: &Intent, port: &Id) -> Option<BTreeSet<MacAddr>> {
    let PortFunction::GuestVf { guest, device } = &intent.ports[port].spec.function else {
        return None;
    };
    let filter = world.guests[guest].functions[device].filter.as_ref()?;
    (!filter.all_multicast).then(|| filter.multicast.iter().copied().collect())
}

fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

fn kinds() -> impl Strategy<Value = NetworkKind> {
    let vlan = |proto| {
        (1u16..5).prop_map(move |vid| {
            NetworkKind::Vlan(VlanTag { vid: Vid::try_from(vid).unwrap(), proto })
        })
    };
    prop_oneof![
        2 => Just(NetworkKind::Flat),
        4 => vlan(VlanProto::Dot1Q),
        1 => vlan(VlanProto::Dot1Ad),
        1 => Just(NetworkKind::Isolated),
    ]
}

fn network(kind: NetworkKind, unknown_unicast: UnknownUnicast) -> NetworkSpec {
    NetworkSpec {
        kind,
        adapter: None,
        reserved_macs: Vec::new(),
        unknown_unicast,
        multicast: Multicast::Flood,
        labels: Default::default(),
    }
}

fn networks() -> impl Strategy<Value = NetworkSpec> {
    let unknown = prop_oneof![Just(UnknownUnicast::Drop), Just(UnknownUnicast::Uplink)];
    let multicast = prop_oneof![Just(Multicast::Flood), Just(Multicast::Declared)];
    (kinds(), unknown, multicast)
        .prop_map(|(kind, unknown, multicast)| NetworkSpec { multicast, ..network(kind, unknown) })
}

/// A port's attachments as (network number, guest tag), its addresses, whether it is up, whether it
/// is promiscuous, and what it may send and asks for.
type PortSketch = (Vec<(usize, Option<u16>)>, Vec<u8>, bool, bool, Permits);

/// What a port may send, and what its guest asks for.
#[derive(Debug, Clone, Default)]
struct Permits {
    /// Groups, and whether it asks for all; none where that cannot be seen.
    asks: Option<(Vec<u16>, bool)>,
    ips: Vec<IpPrefix>,
    pairs: Vec<AddressPair>,
    ethertypes: Vec<u16>,
    allow: Vec<Allowance>,
    isolated: bool,
    qinq: bool,
}

/// Addresses and prefixes that contain each other, and those that mean something by themselves.
const IPS: [&str; 10] = [
    "192.0.2.1",
    "192.0.2.2",
    "192.0.2.0/30",
    "0.0.0.0/0",
    "198.51.100.7",
    "2001:db8::1",
    "2001:db8::/64",
    "fe80::/10",
    "::/0",
    "2001:db8::2",
];

fn permits() -> impl Strategy<Value = Permits> {
    let ip = || prop::sample::select(&IPS[..]).prop_map(|text| text.parse().unwrap());
    let pair = (prop::option::of((1u8..40).prop_map(mac)), ip())
        .prop_map(|(mac, ip)| AddressPair { mac, ip });
    let ips = prop_oneof![2 => Just(Vec::new()), 3 => prop::collection::vec(ip(), 1..4)];
    let allow = prop::sample::subsequence(
        vec![Allowance::RouterAdvertisements, Allowance::DhcpServer, Allowance::LinkLocalGroups],
        0..=3,
    );
    let ethertypes = prop::sample::subsequence(vec![0x88b5, 0x88b6, 0x88cc], 0..=2);
    let pairs = prop::collection::vec(pair, 0..2);
    let (isolated, qinq) = (prop::bool::weighted(0.3), prop::bool::weighted(0.3));
    let groups = prop::collection::vec(0u16..4, 0..4);
    let asks = prop::option::of((groups, prop::bool::weighted(0.2)));
    (ips, pairs, ethertypes, allow, isolated, qinq, asks).prop_map(
        |(ips, pairs, ethertypes, allow, isolated, qinq, asks)| Permits {
            asks,
            ips,
            pairs,
            ethertypes,
            allow,
            isolated,
            qinq,
        },
    )
}

fn ports(networks: usize, most: usize) -> impl Strategy<Value = Vec<PortSketch>> {
    let attachments =
        prop::collection::vec((0..networks, prop::option::weighted(0.4, 1u16..6)), 0..4);
    let macs = prop::collection::vec(1u8..40, 1..3);
    let (up, promiscuous) = (prop::bool::weighted(0.9), prop::bool::weighted(0.2));
    prop::collection::vec((attachments, macs, up, promiscuous, permits()), 1..=most)
}

fn port(
    number: usize,
    attachments: Vec<Attachment>,
    macs: Vec<MacAddr>,
    up: bool,
    promiscuous: bool,
    permits: Permits,
) -> Change {
    let name = format!("rep{}", number + 1);
    let asks = permits.asks.is_some();
    let spec = PortSpec {
        function: match asks {
            true => PortFunction::GuestVf { guest: guest_id(number), device: DEVICE.to_owned() },
            false => PortFunction::Netdev { adapter: adapter_id(), name },
        },
        attachments,
        macs,
        guest_macs: None,
        ips: permits.ips,
        allowed_address_pairs: permits.pairs,
        ethertypes: permits.ethertypes,
        allow: permits.allow,
        isolated: permits.isolated,
        // Where it is seen what the guest asks for, it asks for no more than groups.
        promiscuous: match promiscuous && !asks {
            true => Promiscuous::Allow,
            false => Promiscuous::Deny,
        },
        // A walk finds every frame within its rate.
        qos: Some(Qos {
            tx_max: Bitrate::from_mbit(number as u32 % 3),
            tx_min: None,
            rx_max: Bitrate::from_mbit(number as u32 % 2),
            flood_limit: number.is_multiple_of(2).then_some(100),
        }),
        mtu: None,
        admin_state: if up { AdminState::Up } else { AdminState::Down },
        labels: Default::default(),
    };
    Change::Port(id(format!("port{number}")), Some(spec))
}

fn intent(networks: Vec<NetworkSpec>, ports: Vec<PortSketch>) -> Intent {
    let mut intent = Intent::default();
    for (n, spec) in networks.into_iter().enumerate() {
        intent.apply(Change::Network(id(format!("net{n}")), Some(spec)));
    }
    for (n, (sketch, macs, up, promiscuous, permits)) in ports.into_iter().enumerate() {
        let mut attachments: Vec<Attachment> = Vec::new();
        for (network, tag) in sketch {
            let network = id(format!("net{network}"));
            let tag = tag.map(|tag| Vid::try_from(tag).unwrap());
            if attachments.iter().all(|a| a.network != network && a.tag != tag) {
                attachments.push(Attachment { network, tag, priority: None, qinq: false });
            }
        }
        if let [Attachment { tag: None, qinq, .. }] = attachments.as_mut_slice() {
            *qinq = permits.qinq;
        }
        let macs: BTreeSet<MacAddr> = macs.into_iter().map(mac).collect();
        intent.apply(port(n, attachments, macs.into_iter().collect(), up, promiscuous, permits));
    }
    intent
}

fn frames() -> impl Strategy<Value = Frame> {
    let source = prop_oneof![6 => (1u8..40).prop_map(|n| Mac(mac(n).0)), 1 => Just(Mac([9; 6]))];
    let destination = prop_oneof![
        6 => (1u8..40).prop_map(|n| Mac(mac(n).0)),
        3 => Just(Mac([0xff; 6])),
        1 => Just(Mac([0x33, 0x33, 0, 0, 0, 1])),
        3 => (0u16..5).prop_map(|n| Mac(group(n).0)),
        1 => (0u8..20).prop_map(|n| Mac([1, 0x80, 0xc2, 0, 0, n])),
        1 => Just(Mac(UPLINK_MAC)),
        1 => Just(Mac([2, 9, 9, 9, 9, 9])),
    ];
    let tag = (prop::bool::weighted(0.15), 0u16..6).prop_map(|(ad, vid)| {
        let tpid = if ad { VlanTpid::Dot1Ad } else { VlanTpid::Dot1Q };
        FrameTag::new(tpid, VlanId::new(vid).unwrap())
    });
    let tags = prop_oneof![
        4 => Just(Vec::new()),
        5 => prop::collection::vec(tag.clone(), 1),
        2 => prop::collection::vec(tag, 2..4),
    ];
    (source, destination, tags, bodies(), any::<bool>()).prop_map(
        |(src, dst, tags, (ethertype, mut body), honest)| {
            if let (Body::Arp { sha, .. }, true) = (&mut body, honest) {
                *sha = src;
            }
            if let (Body::Ipv6 { src: from, .. }, true) = (&mut body, honest)
                && from.segments()[0] == 0xfe80
            {
                *from = eui64(src);
            }
            Frame { tags, ..Frame::opaque(dst, src, ethertype) }.with_body(body)
        },
    )
}

fn bodies() -> impl Strategy<Value = (EtherType, Body)> {
    let v4 = prop::sample::select(vec![
        "192.0.2.1",
        "192.0.2.2",
        "192.0.2.9",
        "0.0.0.0",
        "198.51.100.7",
    ])
    .prop_map(|text| text.parse::<Ipv4Addr>().unwrap());
    let v6 =
        prop::sample::select(vec!["2001:db8::1", "2001:db8::2", "::", "fe80::1", "2001:db9::1"])
            .prop_map(|text| text.parse::<Ipv6Addr>().unwrap());
    let port = || prop::sample::select(vec![67u16, 68, 547, 546, 53]);
    let layer4 = prop_oneof![
        (port(), port()).prop_map(|(src, dst)| Layer4::Udp { src, dst }),
        (port(), port()).prop_map(|(src, dst)| Layer4::Tcp { src, dst, flags: 0 }),
        prop::sample::select(vec![134u8, 135, 8]).prop_map(|kind| Layer4::Icmp { kind, code: 0 }),
    ];
    let (none, to6) = (Ipv4Addr::BROADCAST, Ipv6Addr::LOCALHOST);
    let other = [0x8035u16, 0x88b5, 0x88b6, 0x88b7].map(|number| EtherType::new(number).unwrap());
    prop_oneof![
        3 => (v4.clone(), layer4.clone())
            .prop_map(move |(src, layer4)| (EtherType::IPV4, Body::ipv4(src, none, layer4))),
        3 => (v6, layer4).prop_map(move |(src, layer4)| {
            (EtherType::IPV6, Body::ipv6(src, to6, layer4))
        }),
        2 => (v4, 1u8..4).prop_map(move |(sip, op)| {
            let (sha, tha) = (Mac(mac(1).0), Mac([0; 6]));
            (EtherType::ARP, Body::Arp { op, sha, sip, tha, tip: none })
        }),
        2 => prop::sample::select(other.to_vec()).prop_map(|ethertype| (ethertype, Body::Opaque)),
    ]
}

/// Holds every frame's walk through the program against the reference. A frame's first part says
/// where it comes from: 0 for the uplink, else a port.
fn compare(
    intent: &Intent,
    ports: usize,
    uplink_use: UplinkUse,
    frames: &[(usize, Frame)],
) -> Result<(), TestCaseError> {
    compare_with(world(ports), intent, ports, uplink_use, frames, |program, hook, frame| {
        walk(&program.rules, hook, frame)
    })
}

fn compare_with(
    world: World,
    intent: &Intent,
    ports: usize,
    uplink_use: UplinkUse,
    frames: &[(usize, Frame)],
    mut meet: impl FnMut(&FlowProgram, Hook, &Frame) -> Walk,
) -> Result<(), TestCaseError> {
    let policies = BTreeMap::from([(adapter_id(), uplink_use)]);
    let plan = plan(&world, intent, &Claims::default(), &policies);
    let Program::Flows(program) = &plan.programs[&adapter_id()] else { panic!("flows") };
    let member = |(id, port): (&Id, &PortPlan)| {
        let interface = port.place.as_ref().ok()?.representor.as_ref()?.ifindex.get();
        let groups = asked_groups(&world, intent, id);
        Some((id.clone(), Member { interface, macs: port.macs.iter().copied().collect(), groups }))
    };
    let members = plan.ports.iter().filter_map(member).collect();
    let uplink = Uplink { interface: UPLINK, mac: MacAddr(UPLINK_MAC), is_for: uplink_use };
    let reference = Reference::new(intent, members, uplink);
    for (from, frame) in frames {
        let (ifindex, expected) = match from {
            0 => (UPLINK, reference.fate_from_uplink(frame)),
            _ => {
                let number = (from - 1) % ports;
                let port = id(format!("port{number}"));
                (number as u32 + 1, reference.fate_from_port(&port, frame))
            }
        };
        let hook = Hook::ingress(Ifindex::new(ifindex).unwrap());
        let walked = meet(program, hook, frame);
        let seen = Fate {
            copies: walked.deliveries.iter().map(|(i, f)| (i.get(), f.clone())).collect(),
            to_host: walked.to_host.clone(),
        };
        prop_assert_eq!(&seen, &expected, "from {} {:?}\n{:#?}", ifindex, frame, walked.trace);
        prop_assert_eq!(walked.deliveries.len(), seen.copies.len(), "delivered twice");
        prop_assert_eq!(&walked.unmodelled, &None, "{:#?}", walked.trace);
    }
    Ok(())
}

/// A NIC that takes what its driver takes, but for some rules that it refuses for no reason.
struct Nic {
    profile: Profile,
    /// Of 256 rules it refuses so many.
    refuses: u8,
    seed: u64,
}

impl Nic {
    fn takes(&self, rule: &Rule) -> bool {
        let mut hasher = DefaultHasher::new();
        (rule.id(), rule.actions(), self.seed).hash(&mut hasher);
        self.profile.accepts(rule).is_ok() && (hasher.finish() as u8) >= self.refuses
    }

    /// What stands at a hook once nothing more is to be changed: each rule, and whether it is in
    /// hardware. `known` is what the daemon takes the hardware for.
    fn settled(
        &self,
        known: &Hardware,
        program: &FlowProgram,
        hook: Hook,
    ) -> BTreeMap<RuleId, (Rule, bool)> {
        let mut held: BTreeMap<RuleId, (Rule, bool)> = BTreeMap::new();
        let mut refused: BTreeSet<RuleId> = BTreeSet::new();
        for _ in 0..40 {
            let wanted =
                known.attainable(program.rules.of_hook(hook), |rule| match held.get(rule.id()) {
                    Some((there, true)) if there == rule => Answer::Taken,
                    Some((there, false)) if there == rule => Answer::Refused,
                    _ if refused.contains(rule.id()) => Answer::Refused,
                    _ => Answer::None,
                });
            let wanted: Vec<Rule> = wanted.into_iter().map(Cow::into_owned).collect();
            let mut now = BTreeMap::new();
            for rule in wanted {
                let taken = rule.offload() != Offload::SkipHw && self.takes(&rule);
                if rule.offload() == Offload::SkipSw && !taken {
                    refused.insert(rule.id().clone());
                    continue;
                }
                now.insert(rule.id().clone(), (rule, taken));
            }
            if now == held {
                return held;
            }
            held = now;
        }
        panic!("there is always something else to change");
    }
}

fn nics() -> impl Strategy<Value = Profile> {
    let eswitch = || Eswitch::new(ifindex(UPLINK), (1..200).map(ifindex));
    let mlx5 = move |ignore_flow_level, outer_second_vid| {
        Profile::Mlx5(Mlx5 { eswitch: eswitch(), ignore_flow_level, outer_second_vid })
    };
    prop_oneof![
        Just(Profile::AcceptAll),
        Just(mlx5(false, false)),
        Just(mlx5(true, false)),
        Just(mlx5(true, true)),
        Just(Profile::Ice(Ice::new(eswitch()))),
    ]
}

fn ifindex(number: u32) -> Ifindex {
    Ifindex::new(number).unwrap()
}

/// What the daemon takes a NIC for: its driver's profile, of which firmware may do more.
fn taken_for(profile: &Profile) -> Hardware {
    Hardware::new(match profile {
        Profile::Mlx5(mlx5) => Profile::Mlx5(Mlx5::new(mlx5.eswitch.clone())),
        other => other.clone(),
    })
}

fn uplink_uses() -> impl Strategy<Value = UplinkUse> {
    prop_oneof![Just(UplinkUse::Shared), Just(UplinkUse::Exclusive)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn a_walk_through_the_program_delivers_what_a_switch_delivers(
        networks in prop::collection::vec(networks(), 4),
        ports in ports(4, 7),
        uplink_use in uplink_uses(),
        frames in prop::collection::vec((0usize..8, frames()), 10),
    ) {
        let count = ports.len();
        let world = with_guests(world(count), &ports);
        let intent = intent(networks, ports);
        compare_with(world, &intent, count, uplink_use, &frames, |program, hook, frame| {
            walk(&program.rules, hook, frame)
        })?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, ..ProptestConfig::default() })]

    #[test]
    fn floods_reach_everybody_over_as_many_rules_as_they_take(
        kind in kinds(),
        tags in prop::collection::vec(prop::option::weighted(0.3, 1u16..4), 31..120),
        promiscuous in any::<bool>(),
        uplink_use in uplink_uses(),
        frames in prop::collection::vec((0usize..120, frames()), 20),
    ) {
        let count = tags.len();
        let ports = tags
            .into_iter()
            .enumerate()
            .map(|(n, tag)| (vec![(0, tag)], vec![n as u8 + 1], true, promiscuous, Permits::default()))
            .collect();
        let networks = vec![network(kind, UnknownUnicast::Uplink)];
        compare(&intent(networks, ports), count, uplink_use, &frames)?;
    }
}

#[test]
fn floods_keep_to_the_adapters_own_ceilings_and_who_is_beyond_them_is_refused() {
    let ceilings = Ceilings { actions: 8, gotos: 4, ..KERNEL };
    let capabilities = Capabilities { profile: "generic", abilities: BTreeMap::new(), ceilings };
    let mut world = world(40);
    let adapter = world.adapters.get_mut(&adapter_id()).unwrap();
    adapter.capabilities = Some(Arc::new(capabilities));
    let ports = (1..=40).map(|n| (vec![(0, None)], vec![n], true, false, Permits::default()));
    let isolated = network(NetworkKind::Isolated, UnknownUnicast::Drop);
    let intent = intent(vec![isolated], ports.collect());
    let plan = plan(&world, &intent, &Claims::default(), &BTreeMap::new());
    let Program::Flows(program) = &plan.programs[&adapter_id()] else { panic!("flows") };
    assert!(program.rules.iter().all(|rule| rule.actions().len() <= 8));
    let refused = plan.ports.values().filter(|port| !port.unmet.is_empty()).count();
    assert_eq!(refused, 40 - 25, "four rules of six receivers, and the sender");
}

#[test]
fn more_members_than_a_frame_can_be_flooded_to_are_refused_before_anything_is_installed() {
    let isolated = network(NetworkKind::Isolated, UnknownUnicast::Drop);
    let mut intent = intent(vec![isolated], Vec::new());
    for n in 0..520u32 {
        let [_, _, hi, lo] = n.to_be_bytes();
        let network = id("net0".into());
        let attachment = Attachment { network, tag: None, priority: None, qinq: false };
        intent.apply(port(
            n as usize,
            vec![attachment],
            vec![MacAddr([2, 0, 0, 1, hi, lo])],
            true,
            false,
            Permits::default(),
        ));
    }
    let plan = plan(&world(520), &intent, &Claims::default(), &BTreeMap::new());
    let refused = plan.ports.values().filter(|port| !port.unmet.is_empty()).count();
    assert_eq!(refused, 520 - 481, "sixteen rules of thirty receivers, and the sender");
    assert!(plan.ports[&id("port519".into())].unmet[0].message.contains("second network"));
    assert!(plan.ports[&id("port0".into())].unmet.is_empty());
}

#[test]
fn an_address_that_ports_name_in_their_pairs_is_had_by_all_of_these_and_by_no_other() {
    let virtual_router = AddressPair { mac: Some(mac(30)), ip: "192.0.2.100".parse().unwrap() };
    let router = Permits { pairs: vec![virtual_router], ..Permits::default() };
    let sketch =
        |own, permits: &Permits| (vec![(0, None)], vec![own], true, false, permits.clone());
    let others = Permits::default();
    let sketches =
        vec![sketch(1, &router), sketch(2, &router), sketch(30, &others), sketch(4, &others)];
    let intent = intent(vec![network(NetworkKind::Flat, UnknownUnicast::Uplink)], sketches);
    let plan = plan(&world(4), &intent, &Claims::default(), &BTreeMap::new());
    let macs = |port: &str| &plan.ports[&id(port.into())].macs;
    assert_eq!(macs("port0"), &[mac(1), mac(30)]);
    assert_eq!(macs("port1"), &[mac(2), mac(30)]);
    assert_eq!(macs("port2"), &[]);
    let conflict = plan.ports[&id("port2".into())].conflict.as_ref().unwrap();
    assert!(conflict.message.contains("port0"));

    let Program::Flows(program) = &plan.programs[&adapter_id()] else { panic!("flows") };
    let receivers = |from: u32, source: u8| -> Vec<u32> {
        let frame = Frame::opaque(Mac(mac(30).0), Mac(mac(source).0), EtherType::IPV4);
        let walked = walk(&program.rules, Hook::ingress(ifindex(from)), &frame);
        assert_eq!(walked.to_host, None);
        walked.deliveries.iter().map(|(interface, _)| interface.get()).collect()
    };
    assert_eq!(receivers(4, 4), [1, 2, UPLINK], "one may be behind the uplink");
    assert_eq!(receivers(1, 1), [2, UPLINK], "never back");
    assert_eq!(receivers(1, 30), [2, UPLINK]);
    assert_eq!(receivers(UPLINK, 9), [1, 2]);
}

#[test]
fn guests_for_whose_groups_a_network_has_no_room_get_all_groups_and_cost_no_rules() {
    // Each asks for 32 groups for which no other does: there is room for those of eight.
    let guest = |n: u16| {
        let asks = Some(((n * 32..(n + 1) * 32).collect(), false));
        (vec![(0, None)], vec![n as u8 + 1], true, false, Permits { asks, ..Permits::default() })
    };
    let guests: Vec<PortSketch> = (0..20).map(guest).collect();
    let flat = network(NetworkKind::Flat, UnknownUnicast::Drop);
    let network = NetworkSpec { multicast: Multicast::Declared, ..flat };
    let world = with_guests(world(20), &guests);
    let intent = intent(vec![network], guests);
    let plan = plan(&world, &intent, &Claims::default(), &BTreeMap::new());
    let Program::Flows(program) = &plan.programs[&adapter_id()] else { panic!("flows") };

    let hook = Hook::ingress(ifindex(20));
    let grouped = program.rules.of_hook_noted(hook).filter_map(|(_, why)| match why.purpose {
        Purpose::GroupFlood(group) => Some(group),
        _ => None,
    });
    assert_eq!(grouped.collect::<BTreeSet<MacAddr>>().len(), 256 + 1, "broadcast is one");

    let receivers = |number: u16| -> BTreeSet<u32> {
        let frame = Frame::opaque(Mac(group(number).0), Mac(mac(20).0), EtherType::IPV4);
        let walked = walk(&program.rules, hook, &frame);
        walked.deliveries.iter().map(|(interface, _)| interface.get()).collect()
    };
    // Who asked for it, the twelve that came too late but for the sender, and the uplink.
    let get_all: BTreeSet<u32> = (9..20).chain([UPLINK]).collect();
    for guest in 0..8u16 {
        let expected = get_all.iter().copied().chain([u32::from(guest) + 1]).collect();
        assert_eq!(receivers(guest * 32 + 7), expected);
    }
    assert_eq!(receivers(8 * 32), get_all, "a group of one that came too late");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_hardware_refuses_hardware_then_software_delivers_what_a_switch_delivers(
        networks in prop::collection::vec(networks(), 4),
        ports in ports(4, 7),
        uplink_use in uplink_uses(),
        profile in nics(),
        refuses in prop_oneof![Just(0u8), 1u8..60, 60u8..255],
        seed in any::<u64>(),
        frames in prop::collection::vec((0usize..8, frames()), 10),
    ) {
        let count = ports.len();
        let known = taken_for(&profile);
        let world = with_guests(world_on(&profile, count), &ports);
        let nic = Nic { profile, refuses, seed };
        let mut settled = BTreeMap::new();
        let intent = intent(networks, ports);
        compare_with(world, &intent, count, uplink_use, &frames, |program, hook, frame| {
            let held = settled.entry(hook).or_insert_with(|| nic.settled(&known, program, hook));
            let in_hw = |rule: &Rule| held[rule.id()].1;
            let rules = held.values().map(|(rule, _)| rule);
            walk_two_stage(rules, in_hw, &nic.profile, hook, frame).together()
        })?;
    }
}

#[test]
fn hardware_without_chains_holds_known_unicast_that_no_guard_looks_into() {
    let profile = Profile::Ice(Ice::new(Eswitch::new(ifindex(UPLINK), (1..4).map(ifindex))));
    let server = [Allowance::DhcpServer, Allowance::RouterAdvertisements];
    let permits = |allow: &[Allowance]| Permits { allow: allow.to_vec(), ..Permits::default() };
    let ports = [&server[..], &[], &[]].into_iter().zip([None, None, Some(7)]).zip(1..);
    let ports =
        ports.map(|((allow, tag), n)| (vec![(0, tag)], vec![n], true, false, permits(allow)));
    let flat = network(NetworkKind::Flat, UnknownUnicast::Drop);
    let intent = intent(vec![flat], ports.collect());
    let policies = BTreeMap::from([(adapter_id(), UplinkUse::Exclusive)]);
    let plan = plan(&world_on(&profile, 3), &intent, &Claims::default(), &policies);
    let Program::Flows(program) = &plan.programs[&adapter_id()] else { panic!("flows") };
    let (known, nic) = (taken_for(&profile), Nic { profile, refuses: 0, seed: 0 });
    let of_hardware = |from: u32, to: u8, ethertype: EtherType| {
        let hook = Hook::ingress(ifindex(from));
        let held = nic.settled(&known, program, hook);
        let source = if from == UPLINK { Mac([2, 9, 9, 9, 9, 9]) } else { Mac(mac(from as u8).0) };
        let frame = Frame::opaque(Mac(mac(to).0), source, ethertype);
        let in_hw = |rule: &Rule| held[rule.id()].1;
        let rules = held.values().map(|(rule, _)| rule);
        let walk = walk_two_stage(rules, in_hw, &nic.profile, hook, &frame);
        walk.hardware.deliveries.iter().map(|(to, _)| to.get()).collect::<Vec<_>>()
    };
    let (ipv4, arp, left) = (EtherType::IPV4, EtherType::ARP, Vec::<u32>::new());
    assert_eq!(of_hardware(1, 2, ipv4), [2], "may be a DHCP server");
    assert_eq!(of_hardware(2, 1, ipv4), left, "whether it is one is looked at in software");
    assert_eq!(of_hardware(2, 1, arp), [1]);
    assert_eq!(of_hardware(UPLINK, 2, ipv4), [2]);
    assert_eq!(of_hardware(1, 3, ipv4), left, "needs a tag");
    assert_eq!(of_hardware(UPLINK, 9, ipv4), left, "nobody's address");
}
