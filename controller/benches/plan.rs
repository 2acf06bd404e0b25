//! How long planning takes, from nothing and after one event.
//!
//! In: `full PORTS NETWORKS ROUNDS` or `event PORTS NETWORKS ROUNDS`. Out: one JSON object a line,
//! nanoseconds. No kernel is needed.

#![expect(clippy::unwrap_used, reason = "what fails here ends the measurement")]
#![expect(clippy::print_stdout, reason = "figures are the output")]

use std::{collections::BTreeMap, time::Instant};

use api::{
    resources::{
        Attachment, EswitchMode, NetworkKind, NetworkSpec, PortFunction, PortSpec, UnknownUnicast,
        VlanProto, VlanTag,
    },
    types::{Id, MacAddr, Vid},
};
use controller::{
    intent::{Change, Claims, Intent},
    plan::{Dirty, Planner, Program, plan},
    world::{AdapterView, NetdevView, World},
};
use serde_json::json;
use tc_flows::Ifindex;

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let number = |at: usize| -> u32 { arguments.get(at).unwrap().parse().unwrap() };
    match arguments.first().map(String::as_str) {
        Some("full") => full(number(1), number(2), number(3)),
        Some("event") => event(number(1), number(2), number(3)),
        _ => panic!("full or event"),
    }
}

fn id(text: &str) -> Id {
    text.parse().unwrap()
}

fn netdev(ifindex: u32, name: String) -> NetdevView {
    let [_, _, c, d] = ifindex.to_be_bytes();
    NetdevView {
        ifindex: Ifindex::new(ifindex).unwrap(),
        name,
        mac: Some(MacAddr([2, 0xfe, 0, 0, c, d])),
    }
}

fn host(ports: u32, networks: u32) -> (World, Intent) {
    let representors =
        (0..ports).map(|n| (format!("rep{n}"), netdev(n + 2, format!("rep{n}")))).collect();
    let adapter = AdapterView {
        handle: "soft-lab".into(),
        mode: Some(EswitchMode::Software),
        uplink: Some(netdev(1, "up0".into())),
        representors,
        ..AdapterView::default()
    };
    let world = World { adapters: BTreeMap::from([(id("soft-lab"), adapter)]), ..World::default() };
    let mut intent = Intent::default();
    for n in 0..networks {
        let tag = VlanTag { vid: Vid::try_from(n as u16 + 1).unwrap(), proto: VlanProto::Dot1Q };
        let spec = NetworkSpec {
            kind: NetworkKind::Vlan(tag),
            adapter: None,
            reserved_macs: Vec::new(),
            unknown_unicast: UnknownUnicast::Uplink,
            multicast: Default::default(),
            labels: Default::default(),
        };
        intent.apply(Change::Network(id(&format!("net{n}")), Some(spec)));
    }
    for n in 0..ports {
        let [_, b, c, d] = n.to_be_bytes();
        let name = format!("rep{n}");
        let function = PortFunction::Netdev { adapter: id("soft-lab"), name };
        let network = id(&format!("net{}", n % networks));
        let attachment = Attachment { network, tag: None, priority: None, qinq: false };
        let macs = vec![MacAddr([2, 0, 0, b, c, d])];
        let spec = PortSpec { macs, ..PortSpec::new(function, vec![attachment]) };
        intent.apply(Change::Port(id(&format!("port{n}")), Some(spec)));
    }
    (world, intent)
}

fn full(ports: u32, networks: u32, rounds: u32) {
    let (world, intent) = host(ports, networks);
    let policies = BTreeMap::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        let plan = plan(&world, &intent, &Claims::default(), &policies);
        let took = begun.elapsed();
        let rules: usize = plan
            .programs
            .values()
            .map(|program| match program {
                Program::Flows(flows) => flows.rules.len(),
                Program::VfSettings(_) => 0,
            })
            .sum();
        println!("{}", json!({"ns": took.as_nanos() as u64, "rules": rules}));
    }
}

/// A port's address changes to another and back.
fn event(ports: u32, networks: u32, rounds: u32) {
    let (world, mut intent) = host(ports, networks);
    let policies = BTreeMap::new();
    let mut planner = Planner::default();
    planner.update(&world, &intent, &policies, &Dirty::all());
    for round in 0..rounds {
        let port = id(&format!("port{}", round * 7 % ports));
        let mut spec = intent.ports[&port].spec.clone();
        spec.macs[0].0[1] ^= 1;
        let change = Change::Port(port, Some(spec));
        let mut dirty = Dirty::default();
        dirty.change(&change);
        intent.apply(change);
        let begun = Instant::now();
        let changes = planner.update(&world, &intent, &policies, &dirty);
        let took = begun.elapsed();
        let rules: usize =
            changes.flows.values().map(|delta| delta.gone.len() + delta.put.len()).sum();
        println!("{}", json!({"ns": took.as_nanos() as u64, "rules": rules}));
    }
}
