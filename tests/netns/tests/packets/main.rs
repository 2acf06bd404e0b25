//! Whether frames come out where a switch lets them out: random networks and ports on veths and taps,
//! the real daemon, a real kernel, and every ordered pair of ends with frames that are allowed and
//! frames that are not.
//!
//! What is expected is said by the reference switch (`controller/tests/reference`), and by a
//! VLAN-filtering bridge of the kernel. The seed is printed; `TC_FLOWS_SEED` sets it.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod bridge;
mod judge;
mod moves;
#[path = "../../../../controller/tests/reference/mod.rs"]
mod reference;
mod rig;
mod topology;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use eswitchd_netns_tests::{Random, ends::Arrival, frames};
use lab::net::Netns;
use tc_flows::Frame;

use crate::{
    bridge::{Bridge, Difference},
    rig::{Rig, show},
    topology::{Breadth, HOST, TRIALS, Topology, Trial, UPLINK_MAC, is_link_local, pairs},
};

/// A frame that went in.
struct Sent {
    trial: Trial,
    from: u32,
    frame: Frame,
}

/// What came out, by number: each with its end.
type Seen = BTreeMap<u32, Vec<(u32, Vec<u8>)>>;

fn seen(arrivals: BTreeMap<u32, Vec<Arrival>>) -> Seen {
    let sorted = arrivals.into_iter().map(|(number, arrivals)| {
        let mut copies: Vec<(u32, Vec<u8>)> =
            arrivals.into_iter().map(|arrival| (arrival.end, arrival.bytes)).collect();
        copies.sort();
        (number, copies)
    });
    sorted.collect()
}

/// One frame of each kind for each ordered pair of ends.
fn every_pair(random: &mut Random, topology: &Topology) -> Vec<Sent> {
    let mut all = Vec::new();
    for (from, to) in pairs(topology.ports) {
        for trial in TRIALS {
            all.push(Sent { trial, from, frame: topology.frame(random, trial, from, to) });
        }
    }
    all
}

/// As many of the ports at most have taps.
const TAPS: usize = 6;

fn some_taps(random: &mut Random, ports: u32) -> Vec<u32> {
    (1..=ports).filter(|_| ports > 3 && random.chance(4)).take(TAPS).collect()
}

/// Ports and networks of the topologies that are tried.
fn sizes(ordinary: &[(u32, u32)], long: usize) -> Vec<(u32, u32)> {
    let rounds = if std::env::var_os("ESWITCHD_LONG").is_some() { long } else { 1 };
    std::iter::repeat_n(ordinary, rounds).flatten().copied().collect()
}

/// Panics with the first of what was not as expected.
#[track_caller]
fn assert_none(wrong: &[String], of: usize) {
    assert!(
        wrong.is_empty(),
        "{} of {of} frames:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(8)].join("\n")
    );
}

#[test]
fn between_all_pairs_of_ends_frames_go_where_the_reference_switch_lets_them_go() {
    let mut random = Random::seeded();
    for (ports, networks) in sizes(&[(3, 1), (7, 3), (16, 8), (64, 8)], 6) {
        let _netns = Netns::enter().unwrap();
        let topology = Topology::some(&mut random, ports, networks, Breadth::All);
        let began = Instant::now();
        let rig = Rig::new(&topology, &some_taps(&mut random, ports));
        let programmed = began.elapsed().as_secs_f64();
        let sent = every_pair(&mut random, &topology);
        let mut expected = Seen::new();
        let mut host_is_silent = BTreeSet::new();
        let reference = rig.reference(&topology);
        for (number, Sent { from, frame, .. }) in (1..).zip(&sent) {
            let fate = reference.fate(*from, frame);
            let mut copies: Vec<(u32, Vec<u8>)> =
                fate.copies.iter().map(|(end, copy)| (*end, frames::bytes(copy, number))).collect();
            // The bridge that shows what the host gets keeps these to itself.
            if frame.dst.0 == UPLINK_MAC.0 || is_link_local(frame.dst) {
                host_is_silent.insert(number);
            } else if let Some(copy) = &fate.to_host {
                copies.push((HOST, frames::bytes(copy, number)));
            }
            copies.sort();
            if !copies.is_empty() {
                expected.insert(number, copies);
            }
        }
        let began = Instant::now();
        let mut got = seen(rig.ends.all(&sent, &expected));
        let passed = began.elapsed().as_secs_f64();
        for number in host_is_silent {
            if let Some(copies) = got.get_mut(&number) {
                copies.retain(|(end, _)| *end != HOST);
            }
        }
        let mut tally: BTreeMap<Trial, [usize; 3]> = BTreeMap::new();
        let mut wrong = Vec::new();
        let none = Vec::new();
        for (number, Sent { trial, from, frame }) in (1..).zip(&sent) {
            let expected = expected.get(&number).unwrap_or(&none);
            let got = got.get(&number).unwrap_or(&none);
            let [tried, came_out, copies] = tally.entry(*trial).or_default();
            *tried += 1;
            *came_out += usize::from(!expected.is_empty());
            *copies += expected.len();
            if got != expected {
                let (got, expected) = (show(got), show(expected));
                wrong.push(format!("{trial:?} from {from}: {frame:?}: {got}, not {expected}"));
            }
        }
        println!(
            "{ports} ports, {networks} networks, uplink {:?}: programmed in {programmed:.1} s, \
             frames passed in {passed:.1} s",
            topology.uplink_use
        );
        for (trial, [tried, came_out, copies]) in &tally {
            println!("  {trial:?}: {tried} sent, {came_out} came out, {copies} copies");
        }
        if !wrong.is_empty() {
            println!("{:#?}", topology.intent);
        }
        assert_none(&wrong, sent.len());
    }
}

#[test]
fn a_vlan_filtering_bridge_of_the_kernel_lets_out_the_same_but_for_what_is_listed() {
    let mut random = Random::seeded();
    for (ports, networks) in sizes(&[(6, 3), (20, 6)], 6) {
        let _netns = Netns::enter().unwrap();
        let topology = Topology::some(&mut random, ports, networks, Breadth::Bridge);
        let rig = Rig::new(&topology, &some_taps(&mut random, ports));
        let bridge = Bridge::new(&topology);
        let mut sent = every_pair(&mut random, &topology);
        // To whom the host is, a bridge does not know.
        sent.retain(|sent| sent.frame.dst.0 != UPLINK_MAC.0);
        let reference = rig.reference(&topology);
        let expected: Seen = (1..)
            .zip(&sent)
            .map(|(number, Sent { from, frame, .. })| {
                let copies = reference.fate(*from, frame).copies.into_iter();
                (number, copies.map(|(end, copy)| (end, frames::bytes(&copy, number))).collect())
            })
            .collect();
        let without_host = |arrivals| {
            let mut seen = seen(arrivals);
            seen.values_mut().for_each(|copies| copies.retain(|(end, _)| *end != HOST));
            seen.retain(|_, copies| !copies.is_empty());
            seen
        };
        let ours = without_host(rig.ends.all(&sent, &expected));
        let theirs = without_host(bridge.ends.all(&sent, &expected));
        let mut differences: BTreeMap<Difference, usize> = BTreeMap::new();
        let (mut wrong, mut alike, mut delivered) = (Vec::new(), 0, 0);
        let none = Vec::new();
        for (number, Sent { trial, from, frame }) in (1..).zip(&sent) {
            let ours = ours.get(&number).unwrap_or(&none);
            let theirs = theirs.get(&number).unwrap_or(&none);
            if ours == theirs {
                alike += 1;
                delivered += usize::from(!ours.is_empty());
            } else if let Some(difference) = Difference::of(&topology, *from, frame) {
                *differences.entry(difference).or_default() += 1;
            } else {
                let (ours, theirs) = (show(ours), show(theirs));
                wrong.push(format!("{trial:?} from {from}: {frame:?}: {ours}; bridge {theirs}"));
            }
        }
        println!(
            "{ports} ports, {networks} networks: {alike} frames alike, {delivered} of them \
             delivered; otherwise, as listed: {differences:?}"
        );
        if !wrong.is_empty() {
            println!("{:#?}", topology.intent);
        }
        assert_none(&wrong, sent.len());
        assert!(delivered > sent.len() / 8, "too little came out: {delivered}");
        assert!(alike > sent.len() / 2, "too little was compared: {alike}");
    }
}
