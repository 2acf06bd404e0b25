//! tc-flows against a real kernel: what it encodes, what it decodes, what it says of refusals and
//! of hardware, and whether the packet walk tells the truth.
//!
//! iproute2's `tc` is the authority on what a rule means: a rule of ours and the same rule given
//! to `tc` in its own syntax must look alike to it. Each test has network namespaces of its own.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeMap;
use std::time::Instant;

use eswitchd_netns_tests::{
    AD, PATIENCE, Q, add, chain, ifindex, mac, prio, shown_by_tc, veth, vid,
};
use lab::net::{self, Netdevsim, Netns};
use tc_flows::conformance::{self, Place};
use tc_flows::{
    Action, ArpMatch, EtherType, Handle, Hook, HwState, Ifindex, Installed, Ipv4Match, Ipv4Prefix,
    Ipv6Match, Ipv6Prefix, Kernel, Mac, Match, Mode, NetlinkKernel, Notice, Offload, Op, Outcome,
    OwnChanges, Owner, Ports, Rule, RuleSet, Watch, diff,
};

const OWNER: Owner = Owner(*b"test");

// ---------------------------------------------------------------- the rooms

fn kernel_at(hook: Hook) -> NetlinkKernel {
    let mut kernel = NetlinkKernel::open(OWNER).unwrap();
    kernel.ensure_hook(hook).unwrap();
    kernel
}

/// Own rules of a hook, without what the kernel counts.
fn own(kernel: &mut NetlinkKernel, hook: Hook) -> Vec<(Rule, Handle, HwState)> {
    let own = kernel.dump(hook).unwrap().own;
    own.into_iter().map(|own| (own.rule, own.handle, own.hw)).collect()
}

// ---------------------------------------------------------------- every key, every action

fn every_match() -> Vec<Match> {
    let v4 = |last: u8| [192, 0, 2, last].into();
    let v6 = |last: u16| [0x2001, 0xdb8, 0, 0, 0, 0, 0, last].into();
    let multicast = Mac([1, 0, 0, 0, 0, 0]);
    let ports = Ports::any().src(67).dst(68);
    let any4 = Ipv4Match::any;
    let any6 = Ipv6Match::any;
    vec![
        Match::any(),
        Match::any().src(mac(1)),
        Match::any().dst(mac(2)),
        Match::any().src(mac(1)).dst(mac(2)),
        Match::any().dst_masked(multicast, multicast),
        Match::any().src_masked(mac(0), Mac([0xff, 0xff, 0xff, 0, 0, 0])),
        Match::vlan(Q, vid(0)),
        Match::vlan(Q, vid(100)).src(mac(1)),
        Match::vlan(AD, vid(4095)).dst(mac(1)),
        Match::tagged(Q),
        Match::tagged(AD).src(mac(3)),
        Match::double_tagged(AD, None, Q),
        Match::double_tagged(AD, Some(vid(7)), Q).src(mac(1)),
        Match::tagged_with(Q, EtherType::ARP),
        Match::vlan_with(Q, vid(5), EtherType::IPV4),
        Match::vlan_with(Q, vid(5), any6().icmp_type(134)),
        Match::vlan_with(AD, vid(5), any4().udp(ports)),
        Match::ethertype(EtherType::IPV4),
        Match::ethertype(EtherType::IPV6),
        Match::ethertype(EtherType::ARP),
        Match::ethertype(EtherType::RARP),
        Match::ethertype(EtherType::new(0x88cc).unwrap()).dst(mac(1)),
        Match::ethertype(any4().src(v4(1)).dst(v4(2))),
        Match::ethertype(any4().src_in(Ipv4Prefix::new(v4(0), 24).unwrap())),
        Match::ethertype(any4().dst_in(Ipv4Prefix::new(v4(0), 24).unwrap())),
        Match::ethertype(any4().tos(0x10, 0xf0).ttl(64)),
        Match::ethertype(any4().proto(47)),
        Match::ethertype(any4().udp(ports)),
        Match::ethertype(any4().tcp(ports)),
        Match::ethertype(any4().sctp(ports)),
        Match::ethertype(any4().icmp(3, 1)),
        Match::ethertype(any6().src(v6(1)).dst(v6(2))),
        Match::ethertype(any6().src_in(Ipv6Prefix::new(v6(0), 32).unwrap())),
        Match::ethertype(any6().tos(4, 4).ttl(255)),
        Match::ethertype(any6().tcp(Ports::any().dst(22))),
        Match::ethertype(any6().icmp(135, 0)),
        Match::ethertype(ArpMatch::any().op(2).sip(v4(1)).tip(v4(2)).sha(mac(1)).tha(mac(2))),
        Match::ethertype(ArpMatch::any().sip_in(Ipv4Prefix::new(v4(0), 24).unwrap())),
    ]
}

fn every_action_list(to: Ifindex, other: Ifindex) -> Vec<Vec<Action>> {
    let push = |tpid, n| Action::VlanPush { tpid, vid: vid(n) };
    let modify = |tpid, n| Action::VlanModify { tpid, vid: vid(n) };
    let mut full: Vec<Action> = vec![Action::Mirror(to); 31];
    full.push(Action::Redirect(other));
    vec![
        vec![Action::Drop],
        vec![Action::Pass],
        vec![Action::Trap],
        vec![Action::Goto(chain(7))],
        vec![Action::Goto(chain((1 << 28) - 1))],
        vec![Action::Redirect(to)],
        vec![Action::Mirror(to), Action::Redirect(other)],
        vec![Action::Mirror(to), Action::Drop],
        vec![push(Q, 100), Action::Redirect(to)],
        vec![push(AD, 4094), push(Q, 0), Action::Pass],
        vec![Action::VlanPop, Action::Goto(chain(3))],
        vec![modify(Q, 8), Action::Mirror(to), modify(AD, 9), Action::Drop],
        full,
    ]
}

/// Every match with a plain action, and every action list with a plain match, each in a prio of
/// its own.
fn table(hook: Hook, to: Ifindex, other: Ifindex) -> Vec<Rule> {
    let matches = every_match().into_iter().map(|matching| (matching, vec![Action::Drop]));
    let actions = every_action_list(to, other).into_iter().map(|list| (Match::any(), list));
    matches
        .chain(actions)
        .zip(1..)
        .map(|((matching, actions), at)| {
            Rule::new(hook, chain(u32::from(at) % 3), prio(at), matching, actions).unwrap()
        })
        .collect()
}

#[test]
fn tc_sees_every_key_and_action_as_if_it_had_installed_them_itself() {
    let _room = Netns::enter().unwrap();
    veth("ours", "ours-peer");
    veth("tcs", "tcs-peer");
    veth("out", "out-peer");
    veth("out2", "out2-peer");
    net::tc("qdisc add dev tcs clsact").unwrap();
    for (direction, hook) in
        [("ingress", Hook::ingress(ifindex("ours"))), ("egress", Hook::egress(ifindex("ours")))]
    {
        let mut rules = table(hook, ifindex("out"), ifindex("out2"));
        let last = u16::try_from(rules.len()).unwrap();
        rules.push(
            Rule::new(hook, chain(0), prio(last + 1), Match::any(), [Action::Drop])
                .unwrap()
                .with_offload(Offload::SkipHw),
        );
        for rule in &rules {
            net::tc(&format!("filter add dev tcs {rule}")).unwrap();
        }
        let theirs = shown_by_tc(&format!("dev tcs {direction}"));
        let mut kernel = kernel_at(hook);
        for mode in [Mode::Fast, Mode::Told] {
            let ops: Vec<Op> = rules.iter().map(|rule| add(rule.clone(), 1)).collect();
            for (op, outcome) in ops.iter().zip(kernel.apply(&ops, mode)) {
                assert!(outcome.is_done(), "{op:?}: {outcome:?}");
            }
            let ours = shown_by_tc(&format!("dev ours {direction}"));
            assert_eq!(ours.len(), rules.len());
            for rule in &rules {
                let place = (rule.chain().get().into(), rule.prio().get().into());
                assert_eq!(ours[&place], theirs[&place], "{rule}");
            }
            let ops: Vec<Op> = rules
                .iter()
                .map(|rule| Op::Delete { id: rule.id().clone(), handle: Handle(1) })
                .collect();
            let gone = kernel.apply(&ops, mode);
            assert!(gone.iter().all(|outcome| *outcome == Outcome::Deleted), "{gone:?}");
            assert_eq!(shown_by_tc(&format!("dev ours {direction}")), BTreeMap::new());
        }
    }
}

#[test]
fn a_dump_reads_back_every_key_and_action_as_the_rules_that_were_installed() {
    let _room = Netns::enter().unwrap();
    veth("ours", "ours-peer");
    veth("out", "out-peer");
    veth("out2", "out2-peer");
    for hook in [Hook::ingress(ifindex("ours")), Hook::egress(ifindex("ours"))] {
        let mut kernel = kernel_at(hook);
        let rules = table(hook, ifindex("out"), ifindex("out2"));
        let mut wanted = RuleSet::new();
        for rule in &rules {
            wanted.insert(rule.clone()).unwrap();
        }
        let mut installed = Installed::new();
        let ops = diff(&installed, &wanted).ops;
        for (op, outcome) in ops.iter().zip(kernel.apply(&ops, Mode::Told)) {
            assert_eq!(outcome, Outcome::NotInHw { reason: None }, "{op:?}");
            installed.record(op, &outcome);
        }
        let dump = kernel.dump(hook).unwrap();
        assert!(dump.hook_present);
        assert_eq!((dump.unreadable_own.len(), dump.foreign.len()), (0, 0), "{dump:?}");
        let mut adopted = Installed::new();
        adopted.adopt(&dump);
        assert_eq!(adopted, installed);
        assert_eq!(diff(&adopted, &wanted).ops, []);
    }
}

// ---------------------------------------------------------------- what every kernel does

/// The kernel of this network namespace, for the list of behaviours that the fake kernel is held
/// to as well.
struct Room {
    kernel: NetlinkKernel,
    owner: Owner,
    made: u32,
    watch: Option<Watch>,
}

impl Kernel for Room {
    fn ensure_hook(&mut self, hook: Hook) -> tc_flows::Result<()> {
        self.kernel.ensure_hook(hook)
    }

    fn apply(&mut self, ops: &[Op], mode: Mode) -> Vec<Outcome> {
        self.kernel.apply(ops, mode)
    }

    fn dump(&mut self, hook: Hook) -> tc_flows::Result<tc_flows::Dump> {
        self.kernel.dump(hook)
    }

    fn dump_terse(&mut self, hook: Hook) -> tc_flows::Result<tc_flows::TerseDump> {
        self.kernel.dump_terse(hook)
    }
}

/// The name of a veth that [`Room::add_interface`] made.
fn link_at(ifindex: Ifindex) -> String {
    let links = net::ip_json("link show").unwrap();
    let link = links.as_array().unwrap().iter().find(|link| link["ifindex"] == ifindex.get());
    link.unwrap()["ifname"].as_str().unwrap().to_owned()
}

impl Place for Room {
    fn speak_for(&mut self, owner: Owner) {
        self.kernel = NetlinkKernel::open(owner).unwrap();
        self.owner = owner;
    }

    fn add_interface(&mut self) -> Ifindex {
        self.made += 1;
        let link = format!("v{}", self.made);
        veth(&link, &format!("peer{}", self.made));
        ifindex(&link)
    }

    fn remove_interface(&mut self, gone: Ifindex) {
        net::ip(&format!("link del {}", link_at(gone))).unwrap();
    }

    fn add_ingress_qdisc(&mut self, at: Ifindex) {
        net::tc(&format!("qdisc add dev {} ingress", link_at(at))).unwrap();
    }

    fn add_matchall(&mut self, at: Ifindex) {
        let filter = "ingress protocol all pref 8 chain 2 matchall action drop";
        net::tc(&format!("filter add dev {} {filter}", link_at(at))).unwrap();
    }

    fn watch(&mut self) {
        let ours = [self.kernel.port()];
        self.watch = Some(Watch::open(self.owner, &ours, OwnChanges::Shown).unwrap());
    }

    fn notices(&mut self) -> Vec<Notice> {
        // They are queued before the change is answered.
        self.watch.as_mut().unwrap().pending()
    }
}

#[test]
fn the_real_kernel_does_what_every_kernel_does() {
    let _room = Netns::enter().unwrap();
    let kernel = NetlinkKernel::open(OWNER).unwrap();
    let mut room = Room { kernel, owner: OWNER, made: 0, watch: None };
    assert_eq!(conformance::untrue(&mut room), [""; 0]);
}

// ---------------------------------------------------------------- hooks, owners, refusals

#[test]
fn a_hook_is_made_once_and_an_existing_qdisc_is_left_alone() {
    let _room = Netns::enter().unwrap();
    veth("bare", "bare-peer");
    veth("plain", "plain-peer");
    net::tc("qdisc add dev plain ingress").unwrap();
    let mut kernel = NetlinkKernel::open(OWNER).unwrap();

    let bare = Hook::ingress(ifindex("bare"));
    assert!(!kernel.dump(bare).unwrap().hook_present);
    kernel.ensure_hook(bare).unwrap();
    kernel.ensure_hook(bare).unwrap();
    kernel.ensure_hook(Hook::egress(ifindex("bare"))).unwrap();
    assert!(kernel.dump(bare).unwrap().hook_present);

    let plain = Hook::ingress(ifindex("plain"));
    kernel.ensure_hook(plain).unwrap();
    assert!(kernel.dump(plain).unwrap().hook_present);
    assert!(net::tc("qdisc show dev plain").unwrap().contains("qdisc ingress"));
    // An ingress qdisc has no egress hook: there the rules would meet the wrong frames.
    assert!(kernel.ensure_hook(Hook::egress(ifindex("plain"))).is_err());
    assert!(!kernel.dump(Hook::egress(ifindex("plain"))).unwrap().hook_present);

    let nowhere = Hook::ingress(Ifindex::new(9999).unwrap());
    assert!(matches!(kernel.ensure_hook(nowhere), Err(tc_flows::Error::Refused { errno: 19, .. })));
    assert!(!kernel.dump(nowhere).unwrap().hook_present);
}

#[test]
fn filters_of_others_are_reported_and_left_alone() {
    let _room = Netns::enter().unwrap();
    veth("ours", "ours-peer");
    let hook = Hook::ingress(ifindex("ours"));
    let mut kernel = kernel_at(hook);
    net::tc("filter add dev ours ingress protocol ip pref 7 flower src_ip 192.0.2.1 action drop")
        .unwrap();
    net::tc("filter add dev ours ingress protocol all pref 8 chain 2 matchall action drop")
        .unwrap();
    let rule = Rule::new(hook, chain(0), prio(1), Match::any(), [Action::Drop]).unwrap();
    let mut other = NetlinkKernel::open(Owner(*b"them")).unwrap();
    assert_eq!(other.apply(&[add(rule.clone(), 1)], Mode::Fast), [Outcome::Installed]);

    let dump = kernel.dump(hook).unwrap();
    assert_eq!((dump.own.len(), dump.unreadable_own.len()), (0, 0));
    let mut foreign: Vec<(u32, u16, u16, &str)> = dump
        .foreign
        .iter()
        .map(|filter| (filter.chain, filter.prio, filter.protocol, filter.kind.as_str()))
        .collect();
    foreign.sort_unstable();
    assert_eq!(foreign, [(0, 1, 3, "flower"), (0, 7, 0x0800, "flower"), (2, 8, 3, "matchall")]);

    // Its place is taken, and stays so.
    let mine = Rule::new(hook, chain(0), prio(1), Match::any(), [Action::Pass]).unwrap();
    let refused = kernel.apply(&[add(mine, 1)], Mode::Fast);
    assert!(matches!(refused[..], [Outcome::Refused { errno: 17, .. }]), "{refused:?}");
    assert_eq!(kernel.dump(hook).unwrap().foreign.len(), 3);
    assert_eq!(own(&mut other, hook), [(rule, Handle(1), HwState::NotInHw(None))]);
}

#[test]
fn a_rule_whose_destination_vanished_is_unreadable_and_can_be_deleted_by_its_place() {
    let _room = Netns::enter().unwrap();
    veth("ours", "ours-peer");
    veth("out", "out-peer");
    let hook = Hook::ingress(ifindex("ours"));
    let mut kernel = kernel_at(hook);
    let rule = Rule::new(
        hook,
        chain(4),
        prio(1),
        Match::vlan(Q, vid(5)),
        [Action::Redirect(ifindex("out"))],
    )
    .unwrap();
    assert_eq!(kernel.apply(&[add(rule, 3)], Mode::Fast), [Outcome::Installed]);
    net::ip("link del out").unwrap();
    let dump = kernel.dump(hook).unwrap();
    let [(location, handle)] = dump.unreadable_own[..] else { panic!("{dump:?}") };
    let delete = Op::delete_at(location, handle);
    assert_eq!(kernel.apply(&[delete], Mode::Fast), [Outcome::Deleted]);
    assert_eq!(kernel.dump(hook).unwrap().unreadable_own, []);
}

#[test]
fn a_replacement_keeps_handle_and_place_and_changes_the_rest() {
    let _room = Netns::enter().unwrap();
    veth("ours", "ours-peer");
    let hook = Hook::ingress(ifindex("ours"));
    let mut kernel = kernel_at(hook);
    let rule =
        |action| Rule::new(hook, chain(0), prio(1), Match::any().src(mac(1)), [action]).unwrap();
    for mode in [Mode::Fast, Mode::Told] {
        let ops = [
            add(rule(Action::Drop), 1),
            Op::Replace { rule: rule(Action::Pass), handle: Handle(1) },
        ];
        for outcome in kernel.apply(&ops, mode) {
            assert!(outcome.is_done(), "{outcome:?}");
        }
        let own = own(&mut kernel, hook);
        assert_eq!(own, [(rule(Action::Pass), Handle(1), HwState::NotInHw(None))]);
        let gone = Op::Delete { id: rule(Action::Pass).id().clone(), handle: Handle(1) };
        // The second finds nothing, which is as good.
        assert_eq!(kernel.apply(&[gone.clone(), gone], mode), [Outcome::Deleted, Outcome::Deleted]);
    }
}

#[test]
fn one_bad_rule_among_ten_thousand_is_refused_alone_and_the_kernel_says_why() {
    let _room = Netns::enter().unwrap();
    veth("ours", "ours-peer");
    let hook = Hook::ingress(ifindex("ours"));
    let mut kernel = kernel_at(hook);
    let source = |n: u32| {
        let [a, b, c, d] = n.to_be_bytes();
        Mac([2, 1, a, b, c, d])
    };
    for mode in [Mode::Fast, Mode::Told] {
        let bad = 5_000;
        let ops: Vec<Op> = (0..10_000)
            .map(|n| {
                let source = Match::any().src(source(n));
                // One prio holds one protocol.
                let matching = if n == bad { Match::vlan(Q, vid(1)) } else { source };
                let rule = Rule::new(hook, chain(0), prio(1), matching, [Action::Drop]);
                add(rule.unwrap(), n + 1)
            })
            .collect();
        let start = Instant::now();
        let outcomes = kernel.apply(&ops, mode);
        let took = start.elapsed();
        println!("{mode:?}: {:.0} rules/s", ops.len() as f64 / took.as_secs_f64());
        for (n, outcome) in (0..).zip(&outcomes) {
            if n == bad {
                let Outcome::Refused { errno: 22, message: Some(message), .. } = outcome else {
                    panic!("{outcome:?}");
                };
                assert_eq!(message, "Protocol mismatch for filter with specified priority");
            } else {
                assert!(outcome.is_done(), "{n}: {outcome:?}");
            }
        }
        let start = Instant::now();
        let own = kernel.dump(hook).unwrap().own;
        let rate = own.len() as f64 / start.elapsed().as_secs_f64();
        println!("dump: {rate:.0} rules/s");
        assert_eq!(own.len(), 9_999);
        let deletes: Vec<Op> = own
            .iter()
            .map(|own| Op::Delete { id: own.rule.id().clone(), handle: own.handle })
            .collect();
        let gone = kernel.apply(&deletes, mode);
        assert!(gone.iter().all(|outcome| *outcome == Outcome::Deleted));
        assert_eq!(kernel.dump(hook).unwrap().own, []);
    }
}

// ---------------------------------------------------------------- hardware

fn source_drop(hook: Hook, offload: Offload) -> Rule {
    Rule::new(hook, chain(0), prio(1), Match::any().src(mac(1)), [Action::Drop])
        .unwrap()
        .with_offload(offload)
}

/// What the told mode says of a rule, which is gone afterwards.
fn told(kernel: &mut NetlinkKernel, rule: Rule) -> Outcome {
    let delete = Op::Delete { id: rule.id().clone(), handle: Handle(1) };
    let outcomes = kernel.apply(&[add(rule, 1), delete], Mode::Told);
    let [outcome, gone] = outcomes.try_into().unwrap();
    assert!(gone == Outcome::Deleted, "{gone:?}");
    outcome
}

#[test]
fn told_mode_says_that_hardware_took_a_rule() {
    net::modprobe("netdevsim").unwrap();
    let _room = Netns::enter().unwrap();
    let device = Netdevsim::create(1).unwrap();
    device.set_vfs(1).unwrap();
    device.switchdev().unwrap();
    let representor = device.representor(0).unwrap();
    net::ip(&format!("link set {representor} up")).unwrap();
    net::command("ethtool", ["-K", &representor, "hw-tc-offload", "on"]).unwrap();
    let hook = Hook::ingress(ifindex(&representor));
    let mut kernel = kernel_at(hook);

    assert_eq!(told(&mut kernel, source_drop(hook, Offload::Auto)), Outcome::InHw);
    assert_eq!(told(&mut kernel, source_drop(hook, Offload::SkipSw)), Outcome::InHw);
    let in_software = told(&mut kernel, source_drop(hook, Offload::SkipHw));
    assert_eq!(in_software, Outcome::NotInHw { reason: None });

    // The fast mode does not ask; a dump shows it.
    let rule = source_drop(hook, Offload::Auto);
    assert_eq!(kernel.apply(&[add(rule.clone(), 1)], Mode::Fast), [Outcome::Installed]);
    assert_eq!(own(&mut kernel, hook), [(rule, Handle(1), HwState::InHw)]);
}

/// Runs in the first network namespace, where the igb PF is: its driver has a flower offload that
/// is turned off.
#[test]
fn told_mode_says_why_hardware_did_not_take_a_rule() {
    struct Clsact(String);
    impl Drop for Clsact {
        fn drop(&mut self) {
            // Nothing is left to be done where it is gone.
            let _ = net::tc(&format!("qdisc del dev {} clsact", self.0));
        }
    }
    net::modprobe("igb").unwrap();
    let link = net::wait_for("the netdev of an igb PF", PATIENCE, || {
        let links = std::fs::read_dir("/sys/bus/pci/drivers/igb").ok()?;
        links
            .filter_map(Result::ok)
            .filter_map(|device| std::fs::read_dir(device.path().join("net")).ok()?.next()?.ok())
            .find_map(|link| link.file_name().into_string().ok())
    })
    .unwrap();
    let hook = Hook::ingress(ifindex(&link));
    let mut kernel = kernel_at(hook);
    let _clsact = Clsact(link);

    let words = Some("TC offload is disabled on net device".to_owned());
    let outcome = told(&mut kernel, source_drop(hook, Offload::Auto));
    assert_eq!(outcome, Outcome::NotInHw { reason: words.clone() });
    let rule = source_drop(hook, Offload::SkipSw);
    let outcome = kernel.apply(&[add(rule, 1)], Mode::Told);
    assert_eq!(outcome, [Outcome::Refused { errno: 95, message: words, attribute: None }]);
}
