//! While ports join, move and leave: no frame comes out at a wrong port at any moment, and between
//! ports that nothing is changed about none is lost.
//!
//! One thread sends without a pause, another changes ports over the API; `judge.rs` says what is
//! wrong. That it would say so is shown with filters that another program adds.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use api::resources::{AdminState, NetworkSpec, UnknownUnicast};
use controller::{
    config::UplinkUse,
    intent::{Change, Intent},
};
use eswitchd_netns_tests::{
    PATIENCE, Q, Random,
    ends::{Arrival, Ends},
    frames, vid,
};
use lab::net::{self, Netns};
use serde_json::json;
use tc_flows::Mac;

use crate::{
    judge::{
        Epoch, History, MOVING, NETWORKS, STAYING, Sent, Shape, Wrong, address, kind, must_arrive,
        retagged, round, wrong,
    },
    rig::{Rig, show},
    topology::{Topology, WIRE, id, port_id},
};

/// Changes in the ordinary run.
const CHANGES: usize = 40;

fn some_shape(random: &mut Random, port: u32) -> Shape {
    let first = random.below(NETWORKS);
    let second = (first + 1 + random.below(NETWORKS - 1)) % NETWORKS;
    let mac = address(port, random.below(2) as u8);
    match random.below(5) {
        0 => Shape::new(&[(first, Some(5))], mac),
        1 => Shape::new(&[(first, None), (second, Some(5))], mac),
        2 => Shape::new(&[(first, Some(6)), (second, Some(5))], mac),
        // In the flat network no guest keeps its tags.
        3 if first > 0 => Shape { keeps_tags: true, ..Shape::new(&[(first, None)], mac) },
        _ => Shape::new(&[(first, None)], mac),
    }
}

/// A switch with the ports that nothing is changed about, and what is known of all ports.
fn start() -> (Rig, History) {
    let mut intent = Intent::default();
    for number in 0..NETWORKS {
        let unknown_unicast = UnknownUnicast::Uplink;
        let (kind, reserved_macs) = (kind(number), Vec::new());
        let spec = NetworkSpec {
            kind,
            adapter: None,
            reserved_macs,
            unknown_unicast,
            multicast: Default::default(),
            labels: Default::default(),
        };
        intent.apply(Change::Network(id(format!("net{number}")), Some(spec)));
    }
    let mut history = History::new();
    let since = Instant::now();
    for (port, networks) in STAYING {
        let shape = Shape::new(networks, address(port, 0));
        intent.apply(Change::Port(port_id(port), Some(shape.spec(port, AdminState::Up))));
        history.insert(port, vec![Epoch { since, until: None, shape: Some(shape) }]);
    }
    for port in MOVING {
        history.insert(port, vec![Epoch { since, until: None, shape: None }]);
    }
    let ports = STAYING.len() as u32 + MOVING.len() as u32;
    let topology = Topology { intent, ports, uplink_use: UplinkUse::Exclusive };
    (Rig::new(&topology, &[]), history)
}

/// What has been sent, each frame numbered by its place, from 1.
#[derive(Default)]
struct Traffic {
    sent: Mutex<Vec<Sent>>,
    over: AtomicBool,
}

/// Ends the traffic, also where a test fails meanwhile.
struct UntilDropped<'a>(&'a Traffic);

impl Drop for UntilDropped<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

impl Traffic {
    /// Sends round after round until it is over.
    fn run(&self, ends: &Ends) {
        let round = round();
        while !self.over.load(Ordering::Relaxed) {
            for (at, (from, frame)) in round.iter().enumerate() {
                let number = {
                    let mut sent = self.sent.lock().unwrap();
                    sent.push(Sent { from: *from, frame: frame.clone(), at: Instant::now() });
                    sent.len() as u32
                };
                ends.send(*from, &frames::bytes(frame, number));
                if at % 32 == 0 {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    /// The number of the frame that was sent last, or is being sent.
    fn last(&self) -> u32 {
        self.sent.lock().unwrap().len() as u32
    }
}

/// Changes one of the ports that come, move and go, and waits until the kernel has it.
fn change(rig: &Rig, history: &mut History, random: &mut Random) {
    let port = random.pick(&MOVING);
    let gone = random.chance(4);
    let admin_state = if random.chance(6) { AdminState::Down } else { AdminState::Up };
    let wanted = some_shape(random, port);
    let path = format!("/v1/ports/port{port}?wait=programmed&timeout=25");
    let since = Instant::now();
    let answer = match gone {
        true => rig.daemon.request("DELETE", &path, None),
        false => {
            let spec = json!({"spec": wanted.spec(port, admin_state)});
            rig.daemon.request("PUT", &path, Some(&spec))
        }
    };
    let answer = answer.unwrap();
    assert!([200, 201, 204, 404].contains(&answer.status), "{:#}", answer.body);
    let until = Some(Instant::now());
    let shape = (!gone && admin_state == AdminState::Up).then_some(wanted);
    let epochs = history.get_mut(&port).unwrap();
    epochs.last_mut().unwrap().until = until;
    epochs.push(Epoch { since, until: None, shape });
}

/// What came out, by the number of the frame.
#[derive(Default)]
struct Arrivals(BTreeMap<u32, Vec<Arrival>>);

impl Arrivals {
    /// Adds what has come out since.
    fn take(&mut self, ends: &Ends) {
        for (number, arrivals) in ends.take() {
            self.0.entry(number).or_default().extend(arrivals);
        }
    }

    fn of(&self, number: u32) -> &[Arrival] {
        self.0.get(&number).map(Vec::as_slice).unwrap_or_default()
    }

    /// In words: a frame and where it came out.
    fn show(&self, number: u32, sent: &Sent) -> String {
        let copies: Vec<_> = self.of(number).iter().map(|a| (a.end, a.bytes.clone())).collect();
        format!("{number} from {}: {:?}: {}", sent.from, sent.frame, show(&copies))
    }
}

/// What is under way still comes out within that time.
const SETTLE: Duration = Duration::from_millis(500);

fn few(list: &[String]) -> String {
    list[..list.len().min(6)].join("\n")
}

#[test]
fn while_ports_join_move_and_leave_no_frame_is_at_a_wrong_port_and_others_lose_none() {
    let mut random = Random::seeded();
    let _netns = Netns::enter().unwrap();
    let began = Instant::now();
    let (rig, mut history) = start();
    let ends = &rig.ends.ends;
    let long = std::env::var_os("ESWITCHD_LONG").is_some();
    let changes = if long { 10 * CHANGES } else { CHANGES };
    let traffic = Traffic::default();
    thread::scope(|scope| {
        let _until = UntilDropped(&traffic);
        scope.spawn(|| traffic.run(ends));
        (0..changes).for_each(|_| change(&rig, &mut history, &mut random));
    });
    let took = began.elapsed();
    thread::sleep(SETTLE);
    let all_sent = traffic.sent.into_inner().unwrap();
    let mut arrivals = Arrivals::default();
    arrivals.take(ends);
    let (mut leaked, mut lost) = (Vec::new(), Vec::new());
    let (mut copies, mut awaited) = (0, 0);
    for (number, sent) in (1..).zip(&all_sent) {
        let arrived = arrivals.of(number);
        copies += arrived.len();
        awaited += must_arrive(sent).len();
        let Wrong { strays, missing } = wrong(&history, number, sent, arrived);
        let what = || {
            let at = sent.at.duration_since(began).as_millis();
            format!("at {at} ms {}", arrivals.show(number, sent))
        };
        if !strays.is_empty() {
            leaked.push(what());
        }
        if !missing.is_empty() {
            lost.push(format!("{}, not at {missing:?}", what()));
        }
    }
    println!(
        "{changes} changes in {:.0} s: {} frames, {copies} copies, {awaited} of them between ports \
         that stay as they are; {} at a wrong port or twice at one, {} lost",
        took.as_secs_f64(),
        all_sent.len(),
        leaked.len(),
        lost.len()
    );
    if !(leaked.is_empty() && lost.is_empty()) {
        for port in MOVING {
            for Epoch { since, until, shape } in &history[&port] {
                let since = since.duration_since(began).as_millis();
                let until = until.map(|until| until.duration_since(began).as_millis());
                println!("port{port} {since} to {until:?} ms: {shape:?}");
            }
        }
    }
    assert!(leaked.is_empty(), "at a wrong port, or twice at one:\n{}", few(&leaked));
    assert!(lost.is_empty(), "lost:\n{}", few(&lost));
    assert!(awaited > 20 * changes, "too little was sent");
}

/// What another program has the switch do to the frames that port 1 sends to one port, and what is
/// then wrong with each.
struct Fault {
    what: &'static str,
    to: u32,
    actions: &'static str,
    strays: &'static [(u32, Option<u16>)],
    missing: &'static [u32],
}

const FAULTS: [Fault; 7] = [
    Fault {
        what: "a copy at a port of another network",
        to: 2,
        actions: "action mirred egress mirror dev rep3 action continue",
        strays: &[(3, None)],
        missing: &[],
    },
    Fault {
        what: "a copy at another port of the network",
        to: 2,
        actions: "action vlan push id 9 pipe action mirred egress mirror dev rep8 pipe \
                  action vlan pop pipe action continue",
        strays: &[(8, Some(9))],
        missing: &[],
    },
    Fault {
        what: "a copy on the wire",
        to: 2,
        actions: "action mirred egress mirror dev up0 action continue",
        strays: &[(WIRE, None)],
        missing: &[],
    },
    Fault {
        what: "a copy at its sender",
        to: 2,
        actions: "action mirred egress mirror dev rep1 action continue",
        strays: &[(1, None)],
        missing: &[],
    },
    Fault {
        what: "two copies",
        to: 2,
        actions: "action mirred egress mirror dev rep2 action continue",
        strays: &[(2, None)],
        missing: &[],
    },
    Fault {
        what: "the tag of another network",
        to: 7,
        actions: "action vlan push id 7 pipe action mirred egress redirect dev rep7",
        strays: &[(7, Some(7))],
        missing: &[7],
    },
    Fault { what: "nothing", to: 2, actions: "action drop", strays: &[], missing: &[2] },
];

impl Fault {
    fn concerns(&self, sent: &Sent) -> bool {
        sent.from == 1 && sent.frame.dst == Mac(address(self.to, 0).0)
    }

    fn wrong(&self, number: u32, sent: &Sent) -> Wrong {
        let stray = |(end, tag): &(u32, Option<u16>)| {
            let tag = tag.map(|tag| (Q, vid(tag)));
            (*end, frames::bytes(&retagged(&sent.frame, [tag]), number))
        };
        Wrong { strays: self.strays.iter().map(stray).collect(), missing: self.missing.into() }
    }

    /// Before all that is eswitchd's.
    fn add(&self) {
        let (from, to, actions) = (address(1, 0), address(self.to, 0), self.actions);
        net::tc(&format!(
            "filter add dev rep1 ingress protocol all prio 1 flower src_mac {from} dst_mac {to} \
             {actions}"
        ))
        .unwrap();
    }

    fn remove(&self) {
        net::tc("filter del dev rep1 ingress protocol all prio 1").unwrap();
    }
}

/// Which frames a fault may have met, and which it has met for certain.
struct Reign {
    may: RangeInclusive<u32>,
    must: RangeInclusive<u32>,
}

#[test]
fn what_another_program_has_the_switch_do_wrong_is_told_frame_by_frame_and_nothing_else_is() {
    let mut random = Random::seeded();
    let _netns = Netns::enter().unwrap();
    let (rig, mut history) = start();
    let ends = &rig.ends.ends;
    let a_round = round().len() as u32;
    let traffic = Traffic::default();
    let mut arrivals = Arrivals::default();
    let mut reigns = Vec::new();
    thread::scope(|scope| {
        let _until = UntilDropped(&traffic);
        scope.spawn(|| traffic.run(ends));
        for fault in &FAULTS {
            // Who has been sent may be on its way still.
            let first = traffic.last().saturating_sub(a_round);
            fault.add();
            let certain = traffic.last() + 1;
            change(&rig, &mut history, &mut random);
            let told = net::wait_for(fault.what, PATIENCE, || {
                arrivals.take(ends);
                // What was sent a round before a frame that has come does not come any more.
                let settled = arrivals.0.keys().last()?.saturating_sub(a_round);
                let sent = traffic.sent.lock().unwrap();
                let told = (1..).zip(sent.iter()).any(|(number, sent)| {
                    (certain..=settled).contains(&number)
                        && fault.concerns(sent)
                        && wrong(&history, number, sent, arrivals.of(number))
                            == fault.wrong(number, sent)
                });
                told.then_some(settled)
            });
            let settled = told.unwrap();
            fault.remove();
            reigns.push(Reign { may: first..=traffic.last(), must: certain..=settled });
        }
    });
    thread::sleep(SETTLE);
    arrivals.take(ends);
    let all_sent = traffic.sent.into_inner().unwrap();
    let mut told = [0; FAULTS.len()];
    let (mut overlooked, mut unexplained) = (Vec::new(), Vec::new());
    for (number, sent) in (1..).zip(&all_sent) {
        let wrong = wrong(&history, number, sent, arrivals.of(number));
        let mut faults = FAULTS
            .iter()
            .zip(&reigns)
            .enumerate()
            .filter(|(_, (fault, reign))| fault.concerns(sent) && reign.may.contains(&number));
        let explained = faults.clone().find(|(_, (fault, _))| wrong == fault.wrong(number, sent));
        if let Some((at, _)) = explained {
            told[at] += 1;
        } else if wrong != Wrong::default() {
            unexplained.push(format!("{}: {wrong:?}", arrivals.show(number, sent)));
        } else if let Some((_, (fault, _))) = faults.find(|(_, (_, r))| r.must.contains(&number)) {
            overlooked.push(format!("{}: {}", arrivals.show(number, sent), fault.what));
        }
    }
    for (fault, told) in FAULTS.iter().zip(told) {
        println!("{}: {told} of {} frames", fault.what, all_sent.len());
    }
    assert!(overlooked.is_empty(), "overlooked:\n{}", few(&overlooked));
    assert!(unexplained.is_empty(), "wrong without a fault:\n{}", few(&unexplained));
}
