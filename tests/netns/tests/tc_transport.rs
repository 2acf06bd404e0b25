//! The transport of tc-flows against a real kernel: many changes at once, what is lost, what is
//! refused and where, counters, terse dumps, and who else changes something.
//!
//! iproute2's `tc` is the other owner and the judge. Each test has network namespaces of its own.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::{BTreeSet, VecDeque};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use eswitchd_netns_tests::{PATIENCE, add, ifindex, prio, veth};
use lab::net::{self, Netdevsim, Netns};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use tc_flows::{
    Action, AsyncKernel, ChainId, Change, Counters, CtFlags, CtState, Dump, EtherType, Handle,
    Hook, HwState, Kernel, Mac, Match, Mode, NetlinkKernel, Notice, Offload, Op, Outcome,
    OwnChanges, OwnRule, Owner, Place, Prio, Rule, RuleId, SeenAction, SeenFilter, Sender,
    TerseDump, Watch, encode, outcomes,
};

const OWNER: Owner = Owner(*b"test");

/// The ingress hook of a new veth, with a qdisc, and a kernel.
fn room() -> (Netns, Hook, NetlinkKernel) {
    let room = Netns::enter().unwrap();
    veth("ours", "peer");
    let hook = Hook::ingress(ifindex("ours"));
    let mut kernel = NetlinkKernel::open(OWNER).unwrap();
    kernel.ensure_hook(hook).unwrap();
    (room, hook, kernel)
}

fn source(n: u32) -> Mac {
    let [a, b, c, d] = n.to_be_bytes();
    Mac([2, 1, a, b, c, d])
}

fn drop_source(hook: Hook, chain: u32, prio: Prio, n: u32) -> Rule {
    let chain = ChainId::new(chain).unwrap();
    Rule::new(hook, chain, prio, Match::any().src(source(n)), [Action::Drop]).unwrap()
}

fn delete(rule: &Rule, handle: u32) -> Op {
    Op::Delete { id: rule.id().clone(), handle: Handle(handle) }
}

/// So many rules of one prio, with handles from 1.
fn rules(hook: Hook, count: u32) -> Vec<Op> {
    (1..=count).map(|n| add(drop_source(hook, 0, prio(1), n), n)).collect()
}

// ---------------------------------------------------------------- outcomes

#[test]
fn of_ten_thousand_changes_each_has_its_own_outcome_in_either_mode() {
    let (_room, hook, mut kernel) = room();
    for (mode, installed) in
        [(Mode::Fast, Outcome::Installed), (Mode::Told, Outcome::NotInHw { reason: None })]
    {
        let mut ops = rules(hook, 10_000);
        // Handles that are taken: refused, each by itself.
        for at in (0..10_000).step_by(97).skip(1) {
            ops[at] = add(drop_source(hook, 0, prio(1), 20_000 + at as u32), 1);
        }
        let start = Instant::now();
        let outcomes = kernel.apply(&ops, mode);
        println!("{mode:?}: {:.0} rules/s", 10_000.0 / start.elapsed().as_secs_f64());
        assert_eq!(outcomes.len(), ops.len());
        for (at, outcome) in outcomes.iter().enumerate() {
            if at % 97 == 0 && at > 0 {
                assert!(matches!(outcome, Outcome::Refused { errno: 17, .. }), "{at}: {outcome:?}");
            } else {
                assert_eq!(*outcome, installed, "{at}");
            }
        }
        let own = kernel.dump_terse(hook).unwrap().own;
        assert_eq!(own.len(), outcomes.iter().filter(|outcome| outcome.is_done()).count());
        let gone: Vec<Op> =
            ops.iter().map(|op| Op::Delete { id: op.id().clone(), handle: op.handle() }).collect();
        assert!(kernel.apply(&gone, mode).iter().all(|outcome| *outcome == Outcome::Deleted));
        assert_eq!(kernel.dump_terse(hook).unwrap().own, []);
    }
}

#[test]
fn where_answers_are_lost_the_outcome_is_unknown_and_a_dump_shows_the_truth() {
    let (_room, hook, mut whole) = room();
    let mut small = NetlinkKernel::open_sized(OWNER, 8 << 10, 512).unwrap();
    let ops = rules(hook, 2_000);
    let outcomes = small.apply(&ops, Mode::Told);
    let unknown = outcomes.iter().filter(|outcome| **outcome == Outcome::Unknown).count();
    println!("{unknown} of 2000 unknown");
    assert!(unknown > 0);
    let there: BTreeSet<Handle> =
        whole.dump(hook).unwrap().own.iter().map(|own| own.handle).collect();
    for (op, outcome) in ops.iter().zip(&outcomes) {
        // None was refused, and none is said to be.
        assert!(*outcome == Outcome::Unknown || outcome.is_done(), "{outcome:?}");
        assert!(there.contains(&op.handle()), "{op:?}: {outcome:?}");
    }
    // The connection is as good as before.
    assert_eq!(small.dump(hook).unwrap().own.len(), 2_000);
    let gone = delete(&drop_source(hook, 0, prio(1), 1), 1);
    assert_eq!(small.apply(&[gone], Mode::Told), [Outcome::Deleted]);
}

/// What this crate can say, the kernel takes: so a byte is changed on the way.
#[test]
fn a_refusal_names_the_attribute_that_the_kernel_objects_to() {
    let (_room, hook, _kernel) = room();
    let tracked = CtState::new(CtFlags::TRACKED.and(CtFlags::NEW), CtFlags::NONE).unwrap();
    let matching = Match::ethertype(EtherType::IPV4).ct_state(tracked);
    let rule = Rule::new(hook, ChainId::ZERO, prio(1), matching, [Action::Drop]).unwrap();
    let ops = [add(rule, 1)];
    let mut sent = Vec::new();
    encode(&ops, OWNER, Mode::Told, 1, &mut sent);
    // TCA_FLOWER_KEY_CT_STATE and its mask: 6 bytes each, kinds 91 and 92.
    let impossible = CtFlags::TRACKED.and(CtFlags::NEW).and(CtFlags::ESTABLISHED);
    for kind in [91u16, 92] {
        let was = CtFlags::TRACKED.and(CtFlags::NEW).bits();
        let state = [6, kind, was].map(u16::to_ne_bytes).concat();
        let at = sent.windows(6).position(|window| window == state).unwrap();
        sent[at + 4..at + 6].copy_from_slice(&impossible.bits().to_ne_bytes());
    }

    let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
    socket.bind_auto().unwrap();
    socket.connect(&SocketAddr::new(0, 0)).unwrap();
    socket.set_ext_ack(true).unwrap();
    socket.send(&sent, 0).unwrap();
    let (answer, _) = socket.recv_from_full().unwrap();
    let expected = Outcome::Refused {
        errno: 22,
        message: Some("new and est are mutually exclusive".to_owned()),
        attribute: Some("TCA_OPTIONS/TCA_FLOWER_KEY_CT_STATE_MASK".to_owned()),
    };
    assert_eq!(outcomes(&ops, &sent, Mode::Told, 1, &[&answer]), [expected]);
}

#[test]
fn a_future_that_is_dropped_in_the_middle_leaves_a_kernel_that_finished_its_work() {
    let (_room, hook, kernel) = room();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let kernel = AsyncKernel::start(kernel, 4).unwrap();
        let apply = kernel.apply(rules(hook, 10_000), Mode::Told);
        let cut = tokio::time::timeout(Duration::from_millis(1), apply).await;
        assert!(cut.is_err(), "ten thousand rules in a millisecond");
        // Behind it in the queue.
        assert_eq!(kernel.dump_terse(hook).await.unwrap().own.len(), 10_000);
        let gone = delete(&drop_source(hook, 0, prio(1), 1), 1);
        assert_eq!(kernel.apply([gone], Mode::Told).await, [Outcome::Deleted]);
    });
}

// ---------------------------------------------------------------- who changes what

/// What a watch told that nobody asked for yet.
struct Told {
    watch: Watch,
    waiting: VecDeque<Notice>,
}

impl Told {
    fn by(watch: Watch) -> Told {
        Told { watch, waiting: VecDeque::new() }
    }

    /// Waits for a change that fits, passing over others: who did it.
    fn wait_for(&mut self, what: &str, fits: impl Fn(&Change) -> bool) -> Sender {
        let start = Instant::now();
        let mut passed = Vec::new();
        while start.elapsed() < PATIENCE {
            while let Some(notice) = self.waiting.pop_front() {
                match &notice {
                    Notice::Changed { change, by } if fits(change) => return *by,
                    _ => passed.push(notice),
                }
            }
            self.waiting.extend(self.watch.wait(Duration::from_millis(100)).unwrap());
        }
        panic!("{what} did not come, but {passed:#?}");
    }
}

fn is_own(filter: &SeenFilter, handle: u32) -> bool {
    matches!(filter, SeenFilter::Own(own) if own.handle == Handle(handle))
}

fn is_foreign(filter: &SeenFilter, at: u16) -> bool {
    matches!(filter, SeenFilter::Foreign(foreign) if foreign.prio == at)
}

#[test]
fn a_watch_tells_every_change_and_whether_it_is_ours() {
    let (_room, hook, mut kernel) = room();
    let port = kernel.port();
    let mut told = Told::by(Watch::open(OWNER, &[port], OwnChanges::Shown).unwrap());
    let others = |by: Sender| matches!(by, Sender::Other(other) if other != port);
    let tc = |args: &str| net::tc(args).unwrap();

    let rule = drop_source(hook, 0, prio(1), 1);
    assert_eq!(kernel.apply(&[add(rule.clone(), 1)], Mode::Fast), [Outcome::Installed]);
    let by = told.wait_for(
        "our addition",
        |change| matches!(change, Change::FilterAdded { hook: at, filter } if *at == hook && is_own(filter, 1)),
    );
    assert_eq!(by, Sender::Ours);
    let replace = Op::Replace { rule: rule.clone(), handle: Handle(1) };
    assert!(kernel.apply(&[replace], Mode::Fast)[0].is_done());
    let by = told.wait_for(
        "our replacement",
        |change| matches!(change, Change::FilterSet { filter, .. } if is_own(filter, 1)),
    );
    assert_eq!(by, Sender::Ours);
    assert_eq!(kernel.apply(&[delete(&rule, 1)], Mode::Fast), [Outcome::Deleted]);
    let by = told.wait_for(
        "our deletion",
        |change| matches!(change, Change::FilterDeleted { filter, .. } if is_own(filter, 1)),
    );
    assert_eq!(by, Sender::Ours);

    tc("filter add dev ours ingress pref 5 chain 3 flower action drop");
    let by = told.wait_for(
        "tc's addition",
        |change| matches!(change, Change::FilterAdded { hook: at, filter } if *at == hook && is_foreign(filter, 5)),
    );
    assert!(others(by), "{by:?}");
    tc("filter replace dev ours ingress pref 6 chain 3 flower action drop");
    let by = told.wait_for(
        "tc's replacement",
        |change| matches!(change, Change::FilterSet { filter, .. } if is_foreign(filter, 6)),
    );
    assert!(others(by), "{by:?}");
    tc("filter del dev ours ingress pref 5 chain 3");
    let by = told.wait_for("the deletion of a prio", |change| {
        *change == Change::PrioDeleted { hook, chain: 3, prio: 5, protocol: 3 }
    });
    assert!(others(by), "{by:?}");
    tc("filter del dev ours ingress chain 3");
    told.wait_for("the flush of a chain", |change| {
        *change == Change::PrioDeleted { hook, chain: 3, prio: 6, protocol: 3 }
    });
    let place = Place::Interface(hook.ifindex().unwrap());
    let by = told.wait_for("the end of a chain", |change| {
        *change == Change::ChainDeleted { place, chain: 3 }
    });
    assert_eq!(by, Sender::Kernel);

    tc("actions add action gact drop index 7");
    let seven = vec![SeenAction { kind: "gact".to_owned(), index: Some(7) }];
    told.wait_for("an action", |change| *change == Change::ActionsSet(seven.clone()));
    tc("actions change action gact pass index 7");
    told.wait_for("its change", |change| *change == Change::ActionsSet(seven.clone()));
    tc("actions del action gact index 7");
    told.wait_for("its end", |change| *change == Change::ActionsDeleted(seven.clone()));

    let (ifindex, kind) = (hook.ifindex().unwrap(), "clsact".to_owned());
    tc("qdisc del dev ours clsact");
    let gone = Change::QdiscDeleted { ifindex, kind: kind.clone() };
    told.wait_for("the end of the qdisc", |change| *change == gone);
    tc("qdisc add dev ours clsact");
    let there = Change::QdiscAdded { ifindex, kind };
    told.wait_for("the qdisc", |change| *change == there);
}

#[test]
fn a_watch_leaves_out_our_own_changes_in_the_kernel_and_says_when_it_lost_others() {
    let (_room, hook, mut kernel) = room();
    let mut theirs = Watch::open(Owner(*b"them"), &[], OwnChanges::Shown).unwrap();
    let mut ours = Watch::open(OWNER, &[1, kernel.port(), 2], OwnChanges::Dropped).unwrap();
    // More than any receive buffer of ours holds.
    assert!(kernel.apply(&rules(hook, 20_000), Mode::Fast).iter().all(Outcome::is_done));
    assert_eq!(theirs.pending(), [Notice::Lost]);
    let left: Vec<Notice> = ours
        .pending()
        .into_iter()
        // That of the chain is the kernel's.
        .filter(|notice| !matches!(notice, Notice::Changed { by: Sender::Kernel, .. }))
        .collect();
    assert_eq!(left, []);

    net::tc("filter add dev ours ingress pref 9 flower action pass").unwrap();
    for watch in [theirs, ours] {
        Told::by(watch).wait_for(
            "tc's addition",
            |change| matches!(change, Change::FilterAdded { filter, .. } if is_foreign(filter, 9)),
        );
    }
}

#[test]
fn a_consistent_dump_has_every_rule_that_stood_all_the_time_whoever_empties_prios_meanwhile() {
    const PRIOS: u32 = 300;
    const EACH: u32 = 10;
    let (_room, hook, mut kernel) = room();
    let stable: Vec<Op> = (0..PRIOS * EACH)
        .map(|n| {
            let at = u16::try_from(100 + n / EACH).unwrap();
            add(drop_source(hook, 0, prio(at), n), n % EACH + 1)
        })
        .collect();
    assert!(kernel.apply(&stable, Mode::Fast).iter().all(Outcome::is_done));
    let start = Instant::now();
    assert_eq!(kernel.dump(hook).unwrap().own.len(), stable.len());
    let took = start.elapsed();

    // While a dump is under way, prios in front of the stable ones come and go.
    let (begin, begun) = mpsc::channel();
    let changer = std::thread::spawn(move || {
        let mut other = NetlinkKernel::open(Owner(*b"them")).unwrap();
        let rules: Vec<Rule> = (1..=8).map(|n| drop_source(hook, 0, prio(n), 1_000_000)).collect();
        let adds: Vec<Op> = rules.iter().map(|rule| add(rule.clone(), 1)).collect();
        let deletes: Vec<Op> = rules.iter().map(|rule| delete(rule, 1)).collect();
        while begun.recv().is_ok() {
            for _ in 0..6 {
                for ops in [&adds, &deletes] {
                    assert!(other.apply(ops, Mode::Fast).iter().all(Outcome::is_done));
                    std::thread::sleep(took / 10);
                }
            }
        }
    });
    let mut gaps = 0;
    for _ in 0..10 {
        begin.send(()).unwrap();
        gaps += usize::from(kernel.dump(hook).unwrap().own.len() < stable.len());
        begin.send(()).unwrap();
        let own = kernel.dump_consistent(hook).unwrap().own;
        let there: BTreeSet<&RuleId> = own.iter().map(|own| own.rule.id()).collect();
        assert_eq!((own.len(), there.len()), (stable.len(), stable.len()));
    }
    drop(begin);
    changer.join().unwrap();
    println!("{gaps} of 10 plain dumps left rules out");
}

// ---------------------------------------------------------------- counters and terse dumps

/// What a full and a terse dump have in common.
fn common(full: &Dump, terse: &TerseDump) {
    assert_eq!(full.own.len(), terse.own.len());
    for (own, terse) in full.own.iter().zip(&terse.own) {
        assert!(terse.is(&own.rule, OWNER), "{own:?} {terse:?}");
        assert_eq!((terse.handle, &terse.hw), (own.handle, &own.hw));
        assert_eq!(terse.stats.times, None);
        assert!(own.stats.times.is_some());
    }
    assert_eq!(full.foreign, terse.foreign);
    assert_eq!(full.hook_present, terse.hook_present);
}

#[test]
fn a_terse_dump_shows_what_a_full_one_shows_by_cookie_place_handle_and_hardware() {
    net::modprobe("netdevsim").unwrap();
    let _room = Netns::enter().unwrap();
    let sim = Netdevsim::create(1).unwrap();
    sim.set_vfs(1).unwrap();
    sim.switchdev().unwrap();
    let representor = sim.representor(0).unwrap();
    net::ip(&format!("link set {representor} up")).unwrap();
    let hook = Hook::ingress(ifindex(&representor));
    let mut kernel = NetlinkKernel::open(OWNER).unwrap();
    assert_eq!(kernel.dump_terse(hook).unwrap(), TerseDump::default());
    kernel.ensure_hook(hook).unwrap();
    let ops: Vec<Op> = (1..=1_000)
        .map(|n| {
            let rule = drop_source(hook, n % 3, prio(1), n);
            let offload = if n % 2 == 0 { Offload::Auto } else { Offload::SkipHw };
            add(rule.with_offload(offload), n)
        })
        .collect();
    assert!(kernel.apply(&ops, Mode::Fast).iter().all(Outcome::is_done));
    net::tc(&format!("filter add dev {representor} ingress pref 9 flower action pass")).unwrap();
    let (full, terse) = (kernel.dump(hook).unwrap(), kernel.dump_terse(hook).unwrap());
    assert_eq!((full.own.len(), full.foreign.len()), (1_000, 1));
    common(&full, &terse);
    let hardware = |own: &&OwnRule| own.hw == HwState::InHw && own.in_hw_count == 1;
    assert_eq!(full.own.iter().filter(hardware).count(), 500);

    // A classifier that cannot be dumped tersely does not hide the others.
    net::tc(&format!("filter add dev {representor} ingress pref 8 matchall skip_hw action pass"))
        .unwrap();
    let (full, terse) = (kernel.dump(hook).unwrap(), kernel.dump_terse(hook).unwrap());
    assert_eq!((terse.own.len(), terse.foreign.len()), (1_000, 2));
    for (own, terse) in full.own.iter().zip(&terse.own) {
        assert!(terse.is(&own.rule, OWNER), "{own:?} {terse:?}");
    }
}

#[test]
fn counters_tell_how_many_frames_met_a_rule_and_when() {
    let (_room, hook, mut kernel) = room();
    let ops = [add(drop_source(hook, 0, prio(1), 1), 1), add(drop_source(hook, 0, prio(1), 2), 2)];
    assert!(kernel.apply(&ops, Mode::Fast).iter().all(Outcome::is_done));
    let frame = net::frame("ff:ff:ff:ff:ff:ff", &source(1).to_string(), &[], 0x0806, &[0; 46]);
    for _ in 0..25 {
        net::send_frame("peer", &frame).unwrap();
    }
    // Without the Ethernet header.
    let counted = Counters { bytes: 25 * (frame.len() as u64 - 14), packets: 25 };
    net::wait_for("25 frames counted", PATIENCE, || {
        let dump = kernel.dump_terse(hook).unwrap();
        (dump.own[0].stats.software.packets == 25).then_some(())
    })
    .unwrap();
    let own = kernel.dump(hook).unwrap().own;
    assert_eq!(own[0].stats.software, counted);
    assert_eq!((own[0].stats.hardware, own[0].stats.drops), (Counters::default(), 25));
    let times = own[0].stats.times.unwrap();
    assert!(times.last_used <= times.installed, "{times:?}");
    assert!(times.first_used.is_none_or(|first| first <= times.installed), "{times:?}");
    assert_eq!((own[1].stats.software, own[1].stats.drops), (Counters::default(), 0));
    assert_eq!(own[1].stats.times.unwrap().first_used, None);
}
