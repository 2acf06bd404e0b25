//! The transport of tc-flows against a real kernel: many changes at once, what is lost, what is
//! refused and where, counters, terse dumps, and who else changes something.
//!
//! iproute2's `tc` is the other owner and the judge. Each test has network namespaces of its own.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]

use std::time::Duration;

use lab::net::{self, Netdevsim, Netns};
use tc_flows::{
    Action, ChainId, Counters, Dump, Handle, Hook, HwState, Ifindex, Kernel, Mac, Match, Mode,
    NetlinkKernel, Offload, Op, Outcome, OwnRule, Owner, Prio, Rule, TerseDump,
};

const OWNER: Owner = Owner(*b"test");

/// Software emulation is slow, and the suites run side by side.
const PATIENCE: Duration = Duration::from_secs(30);

fn ifindex(link: &str) -> Ifindex {
    let index = std::fs::read_to_string(format!("/sys/class/net/{link}/ifindex")).expect(link);
    Ifindex::new(index.trim().parse().unwrap()).unwrap()
}

/// A veth pair, both ends up, IPv6 autoconfiguration off.
fn veth(link: &str, peer: &str) {
    net::ip(&format!("link add {link} type veth peer name {peer}")).unwrap();
    for end in [link, peer] {
        net::ip(&format!("link set {end} addrgenmode none up")).unwrap();
    }
}

/// The ingress hook of a new veth, with a qdisc, and a kernel.
fn room() -> (Netns, Hook, NetlinkKernel) {
    let room = Netns::enter().unwrap();
    veth("ours", "peer");
    let hook = Hook::ingress(ifindex("ours"));
    let mut kernel = NetlinkKernel::open(OWNER).unwrap();
    kernel.ensure_hook(hook).unwrap();
    (room, hook, kernel)
}

fn prio(number: u16) -> Prio {
    Prio::new(number).unwrap()
}

fn source(n: u32) -> Mac {
    let [a, b, c, d] = n.to_be_bytes();
    Mac([2, 1, a, b, c, d])
}

fn drop_source(hook: Hook, chain: u32, prio: Prio, n: u32) -> Rule {
    let chain = ChainId::new(chain).unwrap();
    Rule::new(hook, chain, prio, Match::any().src(source(n)), [Action::Drop]).unwrap()
}

fn add(rule: Rule, handle: u32) -> Op {
    Op::Add { rule, handle: Handle(handle) }
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
