//! Random histories: whatever happened in whatever order, the plan is the one that planning from
//! nothing gives, the kernel holds it, the books agree, and a restart changes nothing.
//!
//! In: sketches of events, API calls, faults and restarts. Runs the planner and what the owner
//! knows of flows on the kernel in memory; `tc_flows`' conformance list says that this one behaves
//! as the real one does.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, Instant},
};

use api::{
    resources::{
        AddressPair, AdminState, Allowance, Attachment, Backing, EswitchMode, GuestMacs, GuestSpec,
        Multicast, NetworkKind, NetworkSpec, PortFunction, PortSpec, Promiscuous, Qos,
        UnknownUnicast, VlanProto, VlanTag,
    },
    types::{Bitrate, Id, MacAddr, Priority, Vid},
};
use proptest::prelude::*;
use tc_flows::{Action, DumpFault, FakeKernel, Kernel as _, Mode, Offload, Op, Rule};

use super::flows::AdapterFlows;
use crate::{
    apply::flows::run,
    config::UplinkUse,
    daemon::FLOW_OWNER,
    intent::{Change, Intent},
    plan::{AdapterPolicies, Dirty, Plan, Planner, Program},
    world::{
        AdapterView, BackingView, Connection, EswitchView, GuestFunction, GuestView, NetdevView,
        RateView, RxFilter, VfView, World,
    },
};

/// The table has no room (`ENOSPC`, include/uapi/asm-generic/errno-base.h).
const ENOSPC: i32 = 28;

/// Netdevs of the software adapter, VFs of the other, guests, networks, ports.
const TAPS: usize = 6;
const VFS: u16 = 4;
const GUESTS: usize = 4;
const NETWORKS: usize = 4;
const PORTS: usize = 8;

const SOFT: &str = "soft-lab";
const NIC: &str = "netdevsim-netdevsim1";

fn id(text: impl AsRef<str>) -> Id {
    text.as_ref().parse().unwrap()
}

fn mac(number: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, number])
}

/// Something that happens.
#[derive(Debug, Clone)]
enum Step {
    Port(usize, Option<PortSketch>),
    Network(usize, Option<NetworkSketch>),
    /// The platform says on which tap a guest's vf0 stands.
    Guest(usize, Option<usize>),
    /// A guest is seen: each function's tap or VF, addresses, whether it asks for everything, and
    /// whether it is enabled.
    Seen(usize, Option<Vec<FunctionSketch>>),
    /// A tap comes or goes; one that comes back has another index.
    Tap(usize),
    /// The software adapter's uplink comes or goes.
    Uplink,
    /// The NIC is in this mode now, or not there.
    Mode(Option<EswitchMode>),
    /// Somebody else deletes a flow, of those that are there the n-th, and the kernel tells or not.
    Theft(usize, bool),
    /// It is time for an audit.
    Audit,
    /// The kernel refuses, or loses the answers to, so many of the next changes.
    Refusals(usize),
    LostAnswers(usize),
    LostDump,
    /// The daemon ends and starts again.
    Restart,
}

type FunctionSketch = (bool, usize, Vec<u8>, bool, bool);
type NetworkSketch = (u8, bool, bool, bool, bool);

#[derive(Debug, Clone)]
struct PortSketch {
    function: (u8, usize),
    attachments: Vec<(usize, Option<u16>)>,
    macs: Vec<u8>,
    choice: Option<u16>,
    promiscuous: bool,
    down: bool,
    permits: u8,
}

fn steps() -> impl Strategy<Value = Step> {
    let attachments =
        prop::collection::vec((0..NETWORKS, prop::option::weighted(0.4, 1u16..4)), 0..3);
    let port = (
        (0u8..3, 0..TAPS.max(GUESTS)),
        attachments,
        prop::collection::vec(1u8..9, 0..3),
        prop::option::of(0u16..3),
        prop::bool::weighted(0.3),
        prop::bool::weighted(0.1),
        any::<u8>(),
    );
    let port =
        port.prop_map(|(function, attachments, macs, choice, promiscuous, down, permits)| {
            PortSketch { function, attachments, macs, choice, promiscuous, down, permits }
        });
    let seldom = || prop::bool::weighted(0.2);
    let network = (0u8..5, any::<bool>(), seldom(), seldom(), any::<bool>());
    let function = (
        any::<bool>(),
        0..TAPS,
        prop::collection::vec(1u8..9, 1..4),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.85),
    );
    let functions = prop::collection::vec(function, 1..3);
    let mode = prop_oneof![
        1 => Just(None),
        2 => Just(Some(EswitchMode::Legacy)),
        3 => Just(Some(EswitchMode::Switchdev)),
    ];
    prop_oneof![
        8 => (0..PORTS, prop::option::weighted(0.85, port)).prop_map(|(n, p)| Step::Port(n, p)),
        4 => (0..NETWORKS, prop::option::weighted(0.85, network))
            .prop_map(|(n, sketch)| Step::Network(n, sketch)),
        1 => (0..GUESTS, prop::option::of(0..TAPS)).prop_map(|(n, tap)| Step::Guest(n, tap)),
        8 => (0..GUESTS, prop::option::weighted(0.9, functions))
            .prop_map(|(n, functions)| Step::Seen(n, functions)),
        2 => (0..TAPS).prop_map(Step::Tap),
        1 => Just(Step::Uplink),
        1 => mode.prop_map(Step::Mode),
        2 => (0usize..200, any::<bool>()).prop_map(|(nth, told)| Step::Theft(nth, told)),
        1 => Just(Step::Audit),
        1 => (1usize..6).prop_map(Step::Refusals),
        1 => (1usize..6).prop_map(Step::LostAnswers),
        1 => Just(Step::LostDump),
        1 => Just(Step::Restart),
    ]
}

/// The daemon's state without its tasks, and the kernel.
struct Host {
    world: World,
    intent: Intent,
    policies: AdapterPolicies,
    planner: Planner,
    flows: BTreeMap<Id, AdapterFlows>,
    kernel: FakeKernel,
    now: Instant,
    /// The NIC's driver.
    driver: &'static str,
}

impl Host {
    fn new(uplink_use: UplinkUse, driver: &'static str) -> Host {
        let mut kernel = FakeKernel::new(FLOW_OWNER);
        // A driver that takes traps, and of other rules some.
        kernel.set_driver(|rule| {
            let mut hasher = DefaultHasher::new();
            (rule.id().matching(), rule.prio(), rule.actions()).hash(&mut hasher);
            let refuses = rule.offload() == Offload::Auto && hasher.finish().is_multiple_of(8);
            if refuses { Err("no room".to_owned()) } else { Ok(()) }
        });
        let mut netdev = |name: String| NetdevView {
            ifindex: kernel.add_interface(),
            name,
            mac: Some(mac(0xf0)),
        };
        let soft = AdapterView {
            handle: SOFT.into(),
            mode: Some(EswitchMode::Software),
            uplink: Some(netdev("up0".into())),
            representors: (0..TAPS)
                .map(|n| (format!("tap{n}"), netdev(format!("tap{n}"))))
                .collect(),
            ..AdapterView::default()
        };
        let mut world = World::default();
        world.adapters.insert(id(SOFT), soft);
        let mut host = Host {
            world,
            intent: Intent::default(),
            policies: BTreeMap::from([(id(SOFT), uplink_use)]),
            planner: Planner::default(),
            flows: BTreeMap::new(),
            kernel,
            now: Instant::now(),
            driver,
        };
        host.set_mode(Some(EswitchMode::Switchdev));
        host
    }

    /// What the step makes dirty, as the owner would say it.
    fn take(&mut self, step: Step) -> Dirty {
        let mut dirty = Dirty::default();
        let mut put = |intent: &mut Intent, change: Change| {
            dirty.change(&change);
            intent.apply(change);
        };
        match step {
            Step::Port(n, sketch) => {
                let spec = sketch.map(port_spec);
                put(&mut self.intent, Change::Port(id(format!("port{n}")), spec));
            }
            Step::Network(n, sketch) => {
                let spec = sketch.map(network_spec);
                put(&mut self.intent, Change::Network(id(format!("net{n}")), spec));
            }
            Step::Guest(n, tap) => {
                let backing = |tap| Backing::Netdev { name: format!("tap{tap}") };
                let backings = tap.map(|tap| ("vf0".to_owned(), backing(tap)));
                let spec =
                    GuestSpec { backings: backings.into_iter().collect(), ..GuestSpec::default() };
                put(&mut self.intent, Change::Guest(id(format!("vm{n}")), Some(spec)));
            }
            Step::Seen(n, functions) => {
                let guest = id(format!("vm{n}"));
                dirty.guests.insert(guest.clone());
                match functions {
                    Some(functions) => self.world.guests.insert(guest, guest_view(functions)),
                    None => self.world.guests.remove(&guest),
                };
            }
            Step::Tap(n) => {
                dirty.adapters.insert(id(SOFT));
                let name = format!("tap{n}");
                let soft = self.world.adapters.get_mut(&id(SOFT)).unwrap();
                match soft.representors.remove(&name) {
                    Some(gone) => self.kernel.remove_interface(gone.ifindex),
                    None => {
                        let ifindex = self.kernel.add_interface();
                        let netdev = NetdevView { ifindex, name: name.clone(), mac: None };
                        soft.representors.insert(name, netdev);
                    }
                }
            }
            Step::Uplink => {
                dirty.adapters.insert(id(SOFT));
                let soft = self.world.adapters.get_mut(&id(SOFT)).unwrap();
                match soft.uplink.take() {
                    Some(gone) => self.kernel.remove_interface(gone.ifindex),
                    None => {
                        let ifindex = self.kernel.add_interface();
                        let (name, mac) = ("up0".into(), Some(mac(0xf0)));
                        soft.uplink = Some(NetdevView { ifindex, name, mac });
                    }
                }
            }
            Step::Mode(mode) => {
                dirty.adapters.insert(id(NIC));
                self.set_mode(mode);
            }
            Step::Audit => {
                self.now += Duration::from_secs(1000);
                for flows in self.flows.values_mut() {
                    flows.audit(self.now, Duration::from_secs(1000));
                }
            }
            Step::Theft(nth, told) => {
                let rules: Vec<Rule> = self.kernel.rules().cloned().collect();
                if let Some(rule) = rules.get(nth % rules.len().max(1)) {
                    self.steal(rule, told);
                }
            }
            Step::Refusals(changes) => self.kernel.refuse_changes(changes, ENOSPC),
            Step::LostAnswers(changes) => self.kernel.lose_outcomes(changes),
            Step::LostDump => self.kernel.fail_dump(DumpFault::Interrupted),
            Step::Restart => {
                self.planner = Planner::holding(self.planner.claims().clone());
                self.flows.clear();
                dirty = Dirty::all();
            }
        }
        dirty
    }

    /// The NIC in another mode: its netdevs are others.
    fn set_mode(&mut self, mode: Option<EswitchMode>) {
        if let Some(before) = self.world.adapters.remove(&id(NIC)) {
            let of_vfs = before.vfs.into_values().filter_map(|vf| vf.representor);
            for gone in of_vfs.chain(before.uplink) {
                self.kernel.remove_interface(gone.ifindex);
            }
        }
        let mut view = AdapterView {
            handle: "netdevsim/netdevsim1".into(),
            driver: Some(self.driver.to_owned()),
            mode,
            ..AdapterView::default()
        };
        if mode.is_some() {
            let switchdev = mode == Some(EswitchMode::Switchdev);
            let mut netdev =
                |name: String| NetdevView { ifindex: self.kernel.add_interface(), name, mac: None };
            view.uplink = switchdev.then(|| netdev("eni1np1".into()));
            view.vfs = (0..VFS)
                .map(|n| {
                    let representor = switchdev.then(|| netdev(format!("eni1np1v{n}")));
                    (n, VfView { representor, ..VfView::default() })
                })
                .collect();
            // All VFs but one have a rate object.
            let leaves = (1..VFS).map(|n| (n, (u32::from(n), RateView::default())));
            view.eswitch = switchdev
                .then(|| EswitchView { leaves: leaves.collect(), ..EswitchView::default() });
        }
        self.world.adapters.insert(id(NIC), view);
    }

    fn steal(&mut self, rule: &Rule, told: bool) {
        // He may meet the faults that were meant for the daemon.
        let Ok(dump) = self.kernel.dump_consistent(rule.hook()) else { return };
        let held = dump.own.iter().find(|own| own.rule.id() == rule.id()).unwrap();
        let op = Op::Delete { id: rule.id().clone(), handle: held.handle };
        self.kernel.apply(&[op], Mode::Told);
        for flows in self.flows.values_mut().filter(|_| told) {
            flows.suspect(rule.hook(), None);
        }
    }

    /// Plans; checks the plan against one from nothing.
    fn plan(&mut self, dirty: &Dirty) {
        let mut from_nothing = Planner::holding(self.planner.claims().clone());
        from_nothing.update(&self.world, &self.intent, &self.policies, &Dirty::all());
        let before = self.planner.plan().clone();
        let changes = self.planner.update(&self.world, &self.intent, &self.policies, dirty);
        let plan = self.planner.plan();
        assert_eq!(plan, from_nothing.plan());
        assert_eq!(self.planner.claims(), from_nothing.claims());
        let said = |id: &Id| before.ports.get(id) != plan.ports.get(id);
        let ports: BTreeSet<&Id> =
            before.ports.keys().chain(plan.ports.keys()).filter(|id| said(id)).collect();
        assert_eq!(changes.ports.keys().collect::<BTreeSet<_>>(), ports);
        for adapter in self.world.adapters.keys() {
            let flows = self.flows.entry(adapter.clone()).or_default();
            match (plan.programs.get(adapter), changes.flows.get(adapter)) {
                (Some(Program::Flows(program)), Some(delta)) => flows.planned(program, delta),
                (Some(Program::Flows(_)), None) => {}
                _ => flows.withdraw(),
            }
        }
    }

    /// Does all there is to do now.
    fn work(&mut self) {
        self.now += Duration::from_secs(40);
        let mut more = true;
        let mut rounds = 0;
        while std::mem::take(&mut more) {
            rounds += 1;
            assert!(rounds < 100, "there is always more to do");
            for (id, program) in flow_programs(self.planner.plan()) {
                let Some(flows) = self.flows.get_mut(id) else { continue };
                if let Some(job) = flows.next_job(id, program, &BTreeSet::new(), self.now) {
                    let mut parts = Vec::new();
                    run(&mut self.kernel, job, |part| parts.push(part));
                    for mut part in parts {
                        part.finished = self.now;
                        flows.done(program, &mut part);
                    }
                    more = true;
                }
                assert!(flows.ledger().agrees(&flows.counted(program)));
            }
        }
    }

    /// What was refused is tried again, and what somebody else did is looked after.
    fn settle(&mut self) {
        self.kernel.refuse_changes(0, 0);
        self.kernel.lose_outcomes(0);
        self.work();
        for (id, _) in flow_programs(self.planner.plan()) {
            self.flows.get_mut(id).unwrap().suspect_all();
        }
        // A dump that is lost on the way is asked for again with the next retry.
        for _ in 0..2 * (TAPS + usize::from(VFS)) {
            for (id, program) in flow_programs(self.planner.plan()) {
                self.flows.get_mut(id).unwrap().retry(program);
            }
            self.work();
        }
        let wanted: BTreeMap<_, &Rule> = flow_programs(self.planner.plan())
            .flat_map(|(_, program)| program.rules.iter())
            .map(|rule| (rule.id(), rule))
            .collect();
        // Where a rule may be executed depends on what the driver refused; so do traps.
        let held: BTreeMap<_, Rule> = self
            .kernel
            .rules()
            .filter(|rule| *rule.actions() != [Action::Trap])
            .map(|rule| match rule.offload() {
                Offload::SkipSw => (rule.id(), rule.clone()),
                _ => (rule.id(), rule.clone().with_offload(Offload::Auto)),
            })
            .collect();
        let missing: Vec<_> =
            wanted.iter().filter(|(id, rule)| held.get(*id) != Some(*rule)).collect();
        let alien: Vec<_> = held.keys().filter(|id| !wanted.contains_key(*id)).collect();
        assert!(missing.is_empty() && alien.is_empty(), "missing {missing:?}, alien {alien:?}");
    }
}

fn flow_programs(plan: &Plan) -> impl Iterator<Item = (&Id, &crate::plan::switchdev::FlowProgram)> {
    plan.programs.iter().filter_map(|(id, program)| match program {
        Program::Flows(program) => Some((id, program)),
        Program::VfSettings(_) => None,
    })
}

fn port_spec(sketch: PortSketch) -> PortSpec {
    let (kind, number) = sketch.function;
    let function = match kind {
        0 => PortFunction::GuestVf {
            guest: id(format!("vm{}", number % GUESTS)),
            device: format!("vf{}", number / GUESTS),
        },
        1 => PortFunction::Netdev { adapter: id(SOFT), name: format!("tap{number}") },
        _ => PortFunction::Vf { adapter: id(NIC), index: number as u16 % VFS },
    };
    let mut attachments: Vec<Attachment> = Vec::new();
    for (network, tag) in sketch.attachments {
        let network = id(format!("net{network}"));
        let tag = tag.map(|tag| Vid::try_from(tag).unwrap());
        if attachments.iter().all(|other| other.network != network && other.tag != tag) {
            let priority = tag.and_then(|tag| Priority::try_from(tag.get() as u8 % 8).ok());
            attachments.push(Attachment { network, tag, priority, qinq: false });
        }
    }
    if let [Attachment { tag: None, qinq, .. }] = attachments.as_mut_slice() {
        *qinq = sketch.permits / 8 % 4 == 3;
    }
    let macs: BTreeSet<MacAddr> = sketch.macs.into_iter().map(mac).collect();
    PortSpec {
        function,
        attachments,
        macs: macs.into_iter().collect(),
        guest_macs: sketch.choice.map(|max| GuestMacs { max, allow: Vec::new() }),
        ips: match sketch.permits % 4 {
            0 => vec!["192.0.2.1".parse().unwrap(), "2001:db8::/64".parse().unwrap()],
            _ => Vec::new(),
        },
        allowed_address_pairs: match sketch.permits / 4 % 8 {
            0 => vec![AddressPair { mac: Some(mac(9)), ip: "192.0.2.9".parse().unwrap() }],
            _ => Vec::new(),
        },
        ethertypes: if sketch.permits.is_multiple_of(8) { vec![0x88b5] } else { Vec::new() },
        allow: match sketch.permits / 32 % 4 {
            0 => vec![Allowance::DhcpServer, Allowance::LinkLocalGroups],
            _ => Vec::new(),
        },
        isolated: sketch.permits >= 128,
        promiscuous: if sketch.promiscuous { Promiscuous::Allow } else { Promiscuous::Deny },
        qos: Some(Qos {
            tx_max: Bitrate::from_mbit(number as u32 / 2),
            tx_min: None,
            rx_max: (sketch.permits % 8 < 2).then(|| Bitrate::from_mbit(7)).flatten(),
            flood_limit: (sketch.permits % 16 == 1).then_some(1000),
        }),
        mtu: None,
        admin_state: if sketch.down { AdminState::Down } else { AdminState::Up },
        labels: BTreeMap::new(),
    }
}

fn network_spec((kind, unknown, elsewhere, reserves, narrows): NetworkSketch) -> NetworkSpec {
    let vlan = |vid, proto| VlanTag { vid: Vid::try_from(vid).unwrap(), proto };
    NetworkSpec {
        kind: match kind {
            0 => NetworkKind::Flat,
            1 => NetworkKind::Isolated,
            2 => NetworkKind::Vlan(vlan(7, VlanProto::Dot1Q)),
            3 => NetworkKind::Vlan(vlan(8, VlanProto::Dot1Q)),
            _ => NetworkKind::Vlan(vlan(7, VlanProto::Dot1Ad)),
        },
        adapter: elsewhere.then(|| id(NIC)),
        reserved_macs: if reserves { vec![mac(1), mac(2)] } else { Vec::new() },
        unknown_unicast: if unknown { UnknownUnicast::Uplink } else { UnknownUnicast::Drop },
        multicast: if narrows { Multicast::Declared } else { Multicast::Flood },
        labels: BTreeMap::new(),
    }
}

fn guest_view(functions: Vec<FunctionSketch>) -> GuestView {
    let functions = functions.into_iter().enumerate().map(|(n, sketch)| {
        let (tap, number, macs, promiscuous, enabled) = sketch;
        let backing = match tap {
            true => BackingView::Netdev { name: format!("tap{number}") },
            false => BackingView::Vf {
                handle: "netdevsim/netdevsim1".into(),
                index: number as u16 % VFS,
            },
        };
        let filter = RxFilter {
            main_mac: mac(macs[0]),
            unicast: macs[1..].iter().copied().map(mac).collect(),
            unicast_overflow: false,
            multicast: macs.iter().map(|n| MacAddr([0x33, 0x33, 0, 0, 0, *n])).collect(),
            multicast_overflow: false,
            all_multicast: false,
            vlans: Vec::new(),
            promiscuous,
        };
        let function = GuestFunction {
            pf: Some("pf0".into()),
            index: Some(n as u16),
            pci: None,
            enabled,
            filter: Some(filter),
            backing,
            source: None,
            visibility: Default::default(),
        };
        (format!("vf{n}"), function)
    });
    GuestView {
        connection: Connection::Connected,
        run_state: Some("running".into()),
        functions: functions.collect(),
        ..GuestView::default()
    }
}

fn live(history: Vec<Step>, uplink_use: UplinkUse, driver: &'static str) {
    let mut host = Host::new(uplink_use, driver);
    host.plan(&Dirty::all());
    host.settle();
    for step in history {
        let restarts = matches!(step, Step::Restart);
        if restarts {
            host.settle();
        }
        let changes = host.kernel.applied().len();
        let dirty = host.take(step);
        host.plan(&dirty);
        host.work();
        if restarts {
            assert_eq!(host.kernel.applied().len(), changes, "a restart changes nothing");
        }
    }
    host.settle();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn after_any_history_plan_kernel_and_books_are_as_from_nothing(
        history in prop::collection::vec(steps(), 1..40),
        shared in any::<bool>(),
        driver in prop::sample::select(&["netdevsim", "ice"][..]),
    ) {
        let uplink_use = if shared { UplinkUse::Shared } else { UplinkUse::Exclusive };
        live(history, uplink_use, driver);
    }
}
