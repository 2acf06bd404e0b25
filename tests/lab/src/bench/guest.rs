//! From a guest's event to the flows, with a real QEMU guest and the daemon as a whole.
//!
//! In: eswitchd's binary, a saved guest. Out: a [`Line`].

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tc_flows::{
    Action, Hook, Ifindex, Installed, Kernel, Mode, NetlinkKernel, Owner, Rule, RuleSet, diff,
};

use super::{Line, Run, flows::FLOOR, ifindex, kernel, refused};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    At, Error, Result,
    daemon::Daemon,
    guest::{Backing, Guest, PF_ADDRESS},
    net,
};

/// The name of the benchmark.
pub const EVENT_TO_FLOW: &str = "guest/event_to_flow";

/// The owner of eswitchd's flows, as its cookies say.
pub(super) const ESWITCHD: Owner = Owner(*b"eswd");

/// How long everything is left alone before a figure is taken or asked for.
const QUIET: Duration = Duration::from_millis(500);

/// How long an event of the guest may take.
const EVENT_LIMIT: Duration = Duration::from_secs(30);

/// Changes of address that a run makes at most: each is another address.
const RUNS_MOST: usize = 250;

/// `guest/event_to_flow`: from NIC_RX_FILTER_CHANGED read off the QMP socket to the flows
/// acknowledged by the kernel, by the daemon's own measure, against a bare loop that makes the same
/// `query-rx-filter` round trip and sends the same netlink messages on netdevs of its own.
///
/// # Errors
/// The guest, the daemon or the kernel does not do its part.
pub fn event_to_flow(folder: &Path, runs: usize, say: &mut dyn FnMut(&str)) -> Result<Line> {
    net::ip("tuntap add dev vm-a mode tap")?;
    net::ip("link set vm-a up")?;
    let mut scratch = BTreeMap::new();
    for name in ["vm-b", "uplink0", "floor-a", "floor-b", "floor-up"] {
        net::ip(&format!("link add {name} type veth peer name {name}-peer"))?;
        net::ip(&format!("link set {name} up"))?;
    }
    for (ours, floor) in [("vm-a", "floor-a"), ("vm-b", "floor-b"), ("uplink0", "floor-up")] {
        scratch.insert(ifindex(ours)?, ifindex(floor)?);
    }
    let configuration = "\n[[adapter]]\nsoftware = \"lab\"\nuplink = \"uplink0\"\n\
                         representors = [\"vm-a\", \"vm-b\"]\n";
    let daemon = Daemon::start(folder, configuration)?;
    let guest = Guest::named("a")
        .vf(0, Backing::Tap("vm-a".into()))
        .qmp_socket(daemon.qmp_dir().join("a.sock"))
        .start()?;
    daemon.put_pair(json!({"vlan": {"vid": 100}}), "vm-b", ("a", "vf0"))?;
    guest.run(&format!("echo 1 > /sys/bus/pci/devices/{PF_ADDRESS}/sriov_numvfs"))?;
    guest.run("ip link set eth1 address 02:aa:00:00:00:ff; ip link set eth1 up")?;
    daemon.wait_for_condition("/v1/ports/a", "Programmed", "True")?;
    say("the guest is up and its port programmed");

    let mut eswitchd = kernel(ESWITCHD)?;
    let mut floor = kernel(FLOOR)?;
    for hook in scratch.values().map(|ifindex| Hook::ingress(*ifindex)) {
        floor.ensure_hook(hook).map_err(refused)?;
    }
    let hooks: Vec<Hook> = scratch.keys().map(|ifindex| Hook::ingress(*ifindex)).collect();
    let mut monitor = guest.qmp()?;
    let mut pairs = Vec::new();
    let mut changes = 0;
    for run in 0..RUNS_MOST.min(3 * runs) {
        let before = copied(&mut eswitchd, &hooks, &scratch)?;
        let programmed = |port: &Value| port["status"]["events_programmed"].as_u64();
        let seen = programmed(&daemon.get("/v1/ports/a")?);
        let mac = format!("02:aa:00:00:00:{run:02x}");
        guest.run(&format!("ip link set eth1 address {mac}"))?;
        // To ask at once would measure the asking, too.
        std::thread::sleep(QUIET);
        let port = daemon.wait_for("/v1/ports/a", |port| {
            port["status"]["macs"][0] == mac && port["status"]["flows"]["pending"] == 0
        })?;
        if programmed(&port) == seen {
            say("the daemon looked by itself before it had read the event: not counted");
            continue;
        }
        let ours = port["status"]["event_to_programmed_us"].as_f64().unwrap_or(f64::NAN) / 1000.0;

        let after = copied(&mut eswitchd, &hooks, &scratch)?;
        let installed = install(&mut floor, &before)?;
        let ops = diff(&installed, &after).ops;
        changes = ops.len();
        // The floor answers an event of its own, while the daemon is stopped: both are measured
        // while the guest does the same.
        let pid = Pid::from_raw(daemon.pid().unwrap_or_default() as i32);
        kill(pid, Signal::SIGSTOP).at("stopping the daemon")?;
        monitor.events();
        let mac = format!("02:aa:00:00:01:{run:02x}");
        let theirs = std::thread::scope(|scope| {
            let change = scope.spawn(|| guest.run(&format!("ip link set eth1 address {mac}")));
            monitor.event("NIC_RX_FILTER_CHANGED", EVENT_LIMIT)?;
            let began = Instant::now();
            monitor.execute("query-rx-filter", json!({"name": "vf0"}))?;
            let outcomes = floor.apply(&ops, Mode::Told);
            let took = began.elapsed().as_secs_f64() * 1000.0;
            if let Some(failed) = outcomes.iter().find(|outcome| !outcome.is_done()) {
                let text = format!("{failed:?}");
                return Err(Error::Format { what: "the floor's flows".into(), text });
            }
            change.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok(took)
        });
        kill(pid, Signal::SIGCONT).at("continuing the daemon")?;
        let theirs = theirs?;
        daemon.wait_for("/v1/ports/a", |port| port["status"]["macs"][0] == mac)?;
        std::thread::sleep(QUIET);
        // The first pair warms caches up.
        if run > 0 {
            say(&format!("pair {}: {ours:.2} ms, floor {theirs:.2} ms", pairs.len() + 1));
            pairs.push(Run { ours, theirs: vec![("floor", theirs)] });
        }
        if pairs.len() == runs {
            break;
        }
    }
    let note = format!(
        "real QEMU guest in the lab VM (software emulation); {changes} flow changes an event, each \
         acknowledged; the floor makes the same query and sends the same messages"
    );
    Ok(Line::of(EVENT_TO_FLOW, "ms", &pairs, note))
}

/// The daemon's rules as they stand in the kernel, moved to the floor's netdevs.
pub(super) fn copied(
    kernel: &mut NetlinkKernel,
    hooks: &[Hook],
    moved: &BTreeMap<Ifindex, Ifindex>,
) -> Result<RuleSet> {
    let there = |ifindex: Ifindex| moved.get(&ifindex).copied().unwrap_or(ifindex);
    let mut rules = RuleSet::new();
    for hook in hooks {
        for tc_flows::OwnRule { rule, .. } in kernel.dump(*hook).map_err(refused)?.own {
            let id = rule.id();
            let actions: Vec<Action> = rule
                .actions()
                .iter()
                .map(|action| match action {
                    Action::Mirror(to) => Action::Mirror(there(*to)),
                    Action::Redirect(to) => Action::Redirect(there(*to)),
                    other => other.clone(),
                })
                .collect();
            let Hook::Ingress(ifindex) = *hook else { continue };
            let hook = Hook::ingress(there(ifindex));
            let copy =
                Rule::new(hook, id.chain(), id.prio(), id.matching().clone(), actions).map_err(
                    |error| Error::Format { what: "a rule".into(), text: error.to_string() },
                )?;
            rules.insert(copy).map_err(|error| Error::Format {
                what: "a rule".into(),
                text: error.to_string(),
            })?;
        }
    }
    Ok(rules)
}

/// Brings the floor's netdevs to these rules; what they hold then.
pub(super) fn install(kernel: &mut NetlinkKernel, rules: &RuleSet) -> Result<Installed> {
    let mut installed = Installed::new();
    let hooks: std::collections::BTreeSet<Hook> =
        rules.iter().map(|rule| rule.id().hook()).collect();
    for hook in hooks {
        installed.adopt(&kernel.dump(hook).map_err(refused)?);
    }
    let ops = diff(&installed, rules).ops;
    for (op, outcome) in ops.iter().zip(kernel.apply(&ops, Mode::Told)) {
        installed.record(op, &outcome);
    }
    Ok(installed)
}
