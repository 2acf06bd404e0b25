//! eswitchd killed at any point: at each system call that changes the kernel or the store.
//!
//! `strace` kills it when a thread enters the n-th call of a kind, for every n until it lives through
//! the whole story. After each end it is started again as it is, and has to come to the same state:
//! nothing that it acknowledged is lost, and a bystander's flows and packets never notice. It also
//! makes its netlink sockets fail again and again, which ends in the same state without an end.

#![expect(clippy::expect_used, reason = "what fails here fails the test")]
#![expect(clippy::print_stdout, reason = "how often it was killed is for people")]

use std::{
    collections::BTreeSet,
    process::{Child, Command, Stdio},
};

use lab::{
    daemon::{Daemon, condition},
    net::{self, Netdevsim, Netns},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

/// What changes the kernel: requests over netlink.
const KERNEL: &str = "sendto,sendmsg,sendmmsg";

/// What changes the store.
const STORE: &str = "pwrite64,fsync,fdatasync,ftruncate,fallocate,rename";

/// In the ordinary run, every so many calls; in the long one, each.
const STRIDE: usize = 7;

/// What becomes of calls: notifications and answers are lost, a socket is dead, a request does not
/// get out. tc is spoken over `recvmmsg`, the rest of netlink over `recvfrom`.
const FAULTS: [(&str, &str, &str); 5] = [
    ("recvmmsg", "ENOBUFS", FAULTY),
    ("recvmmsg", "ECONNRESET", FAULTY),
    ("recvfrom", "ENOBUFS", FAULTY),
    // A connection that is opened anew has a thread of its own, whose calls count from one: it must
    // get somewhere before it is reset as well.
    ("recvfrom", "ECONNRESET", "30..66+6"),
    (KERNEL, "ENOBUFS", FAULTY),
];

/// Of which calls of each thread, as strace counts them.
const FAULTY: &str = "10..46+6";

/// Of one network: the ports that the story is about, and the bystanders'.
const REPRESENTORS: [&str; 5] = ["rep1", "rep2", "rep3", "by1", "by2"];

/// A step of the story, as the API is asked for it.
struct Step {
    method: &'static str,
    path: &'static str,
    spec: Value,
}

fn put(path: &'static str, spec: Value) -> Step {
    Step { method: "PUT", path, spec }
}

fn port(function: &Value, network: &str, macs: &[&str]) -> Value {
    json!({"function": function, "attachments": [{"network": network}], "macs": macs})
}

fn on_netdev(name: &str) -> Value {
    json!({"netdev": {"adapter": "soft-lab", "name": name}})
}

/// A network and three ports on these; one gets another address, one goes, and the network moves to
/// another VLAN.
fn story([one, two, three]: &[Value; 3]) -> Vec<Step> {
    let blue = |vid: u16| json!({"kind": {"vlan": {"vid": vid}}});
    vec![
        put("/v1/networks/blue", blue(100)),
        put("/v1/ports/p1", port(one, "blue", &["02:00:00:00:00:01"])),
        put("/v1/ports/p2", port(two, "blue", &["02:00:00:00:00:02"])),
        put("/v1/ports/p3", port(three, "blue", &["02:00:00:00:00:03"])),
        put("/v1/ports/p2", port(two, "blue", &["02:00:00:00:00:22"])),
        Step { method: "DELETE", path: "/v1/ports/p3", spec: Value::Null },
        put("/v1/networks/blue", blue(101)),
    ]
}

/// What undoes it.
const UNDO: [&str; 4] = ["/v1/ports/p1", "/v1/ports/p2", "/v1/ports/p3", "/v1/networks/blue"];

/// What the kernel holds, netdev by netdev.
type State = Vec<Vec<String>>;

struct Rig {
    daemon: Daemon,
    folder: tempfile::TempDir,
    story: Vec<Step>,
    state: Box<dyn Fn() -> State>,
}

impl Rig {
    /// Veths as representors, bystanders among them.
    fn of_veths() -> Rig {
        let peers = [("rep1", "vm1"), ("rep2", "vm2"), ("rep3", "vm3"), ("up0", "wire")];
        for (near, far) in peers {
            net::ip(&format!("link add {near} type veth peer name {far}")).expect("veth");
            net::ip(&format!("link set {far} up")).expect("up");
        }
        net::ip("link set up0 up").expect("up");
        // The bystanders are containers: they speak to each other.
        for number in [1, 2] {
            let inside = format!("bystander{number}");
            drop(Netns::named(&inside).expect("a namespace"));
            net::ip(&format!(
                "link add by{number} type veth peer name eth0 address 02:00:00:00:01:0{number} \
                 netns {inside}"
            ))
            .expect("veth");
            net::ip(&format!("-n {inside} addr add 10.8.0.{number}/24 dev eth0")).expect("address");
            net::ip(&format!("-n {inside} link set eth0 up")).expect("up");
        }
        let folder = tempfile::tempdir().expect("a folder");
        let configuration = "\n[[adapter]]\nsoftware = \"lab\"\nuplink = \"up0\"\n\
                             representors = [\"rep*\", \"by*\"]\n";
        let daemon = Daemon::start(folder.path(), configuration).expect("eswitchd");
        daemon.put("/v1/networks/green", json!({"kind": "isolated"})).expect("a network");
        for number in [1, 2] {
            let mac = format!("02:00:00:00:01:0{number}");
            let spec = port(&on_netdev(&format!("by{number}")), "green", &[&mac]);
            daemon.put(&format!("/v1/ports/by{number}"), spec).expect("a port");
        }
        for path in ["/v1/ports/by1", "/v1/ports/by2"] {
            daemon.wait_for_condition(path, "Programmed", "True").expect("programmed");
        }
        // Whatever is to be made of the others is made.
        net::wait_for("the guards", lab::daemon::PATIENCE, || {
            REPRESENTORS.iter().all(|netdev| !outline(netdev).is_empty()).then_some(())
        })
        .expect("guards");
        let netdevs = || REPRESENTORS.iter().chain(&["up0"]);
        Rig {
            daemon,
            folder,
            story: story(&["rep1", "rep2", "rep3"].map(on_netdev)),
            state: Box::new(move || netdevs().map(|netdev| outline(netdev)).collect()),
        }
    }

    /// A netdevsim.
    fn of(device: &Netdevsim) -> Rig {
        let folder = tempfile::tempdir().expect("a folder");
        let handle = device.handle();
        let configuration = format!("\n[[adapter]]\nhandle = \"{handle}\"\n");
        let daemon = Daemon::start(folder.path(), &configuration).expect("eswitchd");
        let adapter = handle.replacen('/', "-", 1);
        let vfs = [0, 1, 2].map(|index| json!({"vf": {"adapter": adapter, "index": index}}));
        let mut story = story(&vfs);
        for step in &mut story {
            if step.path == "/v1/ports/p1" {
                step.spec["qos"] = json!({"tx_max": 300_000_000});
            }
        }
        let uplink = device.uplink().expect("the uplink or PF");
        let representors: Vec<String> = (0..3).flat_map(|vf| device.representor(vf)).collect();
        let state = move || {
            let mut state: State = representors.iter().map(|netdev| outline(netdev)).collect();
            let vfs = net::ip_json(&format!("link show {uplink}")).expect("ip");
            state.push(vec![vfs[0]["vfinfo_list"].to_string()]);
            if !representors.is_empty() {
                state.push(outline(&uplink));
                let rates = net::devlink_json("port function rate show").expect("devlink");
                state.push(vec![rates.to_string()]);
            }
            state
        };
        Rig { daemon, folder, story, state: Box::new(state) }
    }

    /// One step; whether it was acknowledged.
    fn take(&self, step: &Step) -> bool {
        let body = (step.method == "PUT").then(|| json!({ "spec": step.spec }));
        match self.daemon.request(step.method, step.path, body.as_ref()) {
            // A step whose acknowledgement was lost may be there already.
            Ok(answer) => (200..300).contains(&answer.status) || answer.status == 404,
            Err(_) => false,
        }
    }

    /// What clients were told and is there.
    fn intent(&self) -> Option<Vec<Value>> {
        let mut specs = Vec::new();
        for path in ["/v1/networks", "/v1/ports"] {
            let list = self.daemon.get(path).ok()?;
            let items = list["items"].as_array()?;
            specs.extend(items.iter().map(|item| json!([item["id"], item["spec"]])));
        }
        Some(specs)
    }

    /// Whether intent and flows are these, and the daemon says so.
    fn is_as_told(&self, told: &[Value], expected: &[Vec<String>]) -> bool {
        let says_so = ["/v1/ports/p1", "/v1/ports/p2"].iter().all(|path| {
            let port = self.daemon.get(path).unwrap_or_default();
            condition(&port, "Programmed")["status"] == "True"
        });
        says_so && self.intent().is_some_and(|intent| intent == told) && (self.state)() == expected
    }

    fn programmed(&self) {
        for path in ["/v1/ports/p1", "/v1/ports/p2"] {
            self.daemon.wait_for_condition(path, "Programmed", "True").expect("programmed");
        }
    }

    fn undo(&self) {
        for path in UNDO {
            let answer = self.daemon.request("DELETE", path, None).expect("an answer");
            assert!([204, 404].contains(&answer.status), "{path}: {answer:?}");
        }
    }
}

/// A netdev's filters without handles, counters and ages.
fn outline(netdev: &str) -> Vec<String> {
    let text = net::command("tc", ["-j", "filter", "show", "dev", netdev, "ingress"]).expect("tc");
    let all: Value = serde_json::from_str(&text).expect("JSON");
    let mut outline: Vec<String> = all
        .as_array()
        .expect("a list")
        .iter()
        .filter(|filter| filter["options"].is_object())
        .map(|filter| {
            let words: Vec<String> = filter["options"]["actions"]
                .as_array()
                .expect("actions")
                .iter()
                .map(|action| {
                    let mut action = action.clone();
                    for varies in ["index", "ref", "bind", "order"] {
                        action.as_object_mut().expect("an action").remove(varies);
                    }
                    action.to_string()
                })
                .collect();
            let (chain, prio, protocol) = (&filter["chain"], &filter["pref"], &filter["protocol"]);
            format!("{chain} {prio} {protocol} {} {words:?}", filter["options"]["keys"])
        })
        .collect();
    outline.sort();
    outline
}

fn background(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("started")
}

/// Interrupts a program: what it printed.
fn end(child: Child) -> String {
    let pid = Pid::from_raw(child.id().try_into().expect("a process id"));
    kill(pid, Signal::SIGINT).expect("interrupted");
    let output = child.wait_with_output().expect("ended");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn killed_at_any_change_of_kernel_or_store_it_comes_to_the_same_state() {
    let _netns = Netns::enter().expect("a namespace");
    let mut rig = Rig::of_veths();
    let (base, told, expected) = rehearsed(&mut rig);

    let monitor = background(Command::new("tc").arg("monitor"));
    let mut ping = Command::new("ip");
    ping.args(["netns", "exec", "bystander1", "ping", "-i", "0.02", "10.8.0.2"]);
    let ping = background(&mut ping);

    for calls in [KERNEL, STORE] {
        killed_at_any(calls, &mut rig, &base, &told, &expected);
    }

    let pings = end(ping);
    let answered: BTreeSet<u32> = pings
        .split("icmp_seq=")
        .skip(1)
        .filter_map(|rest| rest.split_whitespace().next()?.parse().ok())
        .collect();
    let last = answered.last().copied().expect("an answer");
    let lost: Vec<u32> = (1..last).filter(|sequence| !answered.contains(sequence)).collect();
    assert!(last > 100 && lost.is_empty(), "{lost:?} of {last} pings were lost");
    // A qdisc that is asked about is shown to everybody (`tc_get_qdisc`, net/sched/sch_api.c), as
    // `qdisc …`; one that comes or goes as `added qdisc …`, `deleted qdisc …`.
    let touched: Vec<String> = end(monitor)
        .lines()
        .filter(|line| !line.starts_with("qdisc"))
        .filter(|line| line.contains("dev by1") || line.contains("dev by2"))
        .map(str::to_owned)
        .collect();
    assert_eq!(touched, [""; 0], "flows of bystanders were touched");
    println!("{last} pings between bystanders, none lost");
}

#[test]
fn on_a_nic_in_either_mode_it_does_as_well() {
    for switchdev in [true, false] {
        let _netns = Netns::enter().expect("a namespace");
        net::modprobe("netdevsim").expect("netdevsim");
        let device = Netdevsim::create(1).expect("a device");
        device.set_vfs(3).expect("VFs");
        if switchdev {
            device.switchdev().expect("switchdev");
        }
        let mut rig = Rig::of(&device);
        let (base, told, expected) = rehearsed(&mut rig);
        println!("switchdev: {switchdev}");
        killed_at_any(KERNEL, &mut rig, &base, &told, &expected);
    }
}

#[test]
fn sockets_that_fail_again_and_again_do_not_change_where_it_ends() {
    let _netns = Netns::enter().expect("a namespace");
    net::modprobe("netdevsim").expect("netdevsim");
    let device = Netdevsim::create(1).expect("a device");
    device.set_vfs(3).expect("VFs");
    device.switchdev().expect("switchdev");
    let mut rig = Rig::of(&device);
    let (base, told, expected) = rehearsed(&mut rig);
    for (calls, error, faulty) in FAULTS {
        let trace_file = rig.folder.path().join("trace").display().to_string();
        let inject = format!("inject={calls}:error={error}:when={faulty}");
        let strace = ["strace", "-f", "--kill-on-exit", "-qqq", "-o", &trace_file];
        let trace = format!("trace={calls}");
        let strace = [&strace[..], &["-e", &trace, "-e", &inject]].concat();
        rig.daemon.restart_under(&strace).expect("strace");
        assert!(!tell(&mut rig, &told, &expected), "it ended by itself:\n{}", rig.daemon.log());
        let trace = std::fs::read_to_string(&trace_file).expect("a trace");
        let faults = trace.lines().filter(|line| line.contains("(INJECTED)")).count();
        println!("{calls}: {error} {faults} times");
        assert!(faults > 5, "{calls}: so few faults are nothing");
        // strace takes it along.
        rig.daemon.end(Signal::SIGKILL).expect("killed");
        rig.daemon.restart().expect("started again");
        rig.undo();
        settled(&rig, Some(&base));
        rig.daemon.end(Signal::SIGTERM).expect("stopped");
    }
}

/// Tells the story once and undoes it: what the kernel holds before, what is wanted after it, and
/// what the kernel holds then. The daemon is ended.
fn rehearsed(rig: &mut Rig) -> (State, Vec<Value>, State) {
    let base = settled(rig, None);
    for step in &rig.story {
        assert!(rig.take(step), "{} {}", step.method, step.path);
    }
    rig.programmed();
    let told = rig.intent().expect("lists");
    let expected = settled(rig, None);
    assert_ne!(base, expected);
    rig.undo();
    settled(rig, Some(&base));
    rig.daemon.end(Signal::SIGTERM).expect("stopped");
    (base, told, expected)
}

/// Has the daemon killed at each of these calls in turn while it is told the story.
fn killed_at_any(calls: &str, rig: &mut Rig, base: &State, told: &[Value], expected: &State) {
    let stride = if std::env::var_os("ESWITCHD_LONG").is_some() { 1 } else { STRIDE };
    let (mut nth, mut kills) = (1, 0);
    loop {
        let inject = format!("inject={calls}:signal=KILL:when={nth}");
        let trace = format!("trace={calls}");
        let trace_file = rig.folder.path().join("trace").display().to_string();
        let strace = ["strace", "-f", "--kill-on-exit", "-qqq", "-o", &trace_file];
        let strace = [&strace[..], &["-e", &trace, "-e", &inject]].concat();
        rig.daemon.restart_under(&strace).expect("strace");
        let killed = tell(rig, told, expected);
        if !killed {
            // At rest it is killed as well.
            rig.daemon.end(Signal::SIGKILL).expect("killed");
            rig.daemon.restart().expect("started again");
        }
        rig.undo();
        settled(rig, Some(base));
        rig.daemon.end(Signal::SIGTERM).expect("stopped");
        if !killed {
            break;
        }
        kills += 1;
        nth += stride;
    }
    println!("{calls}: killed at {kills} calls, each {stride}th up to the {nth}th");
    assert!(kills * stride >= 20, "{calls}: so few calls are not the whole story");
}

/// Tells the story to a daemon that may be killed meanwhile, and is started again where it is.
/// Returns whether it was.
fn tell(rig: &mut Rig, told: &[Value], expected: &State) -> bool {
    let mut killed = false;
    let mut next = 0;
    let mut waited = 0;
    while next < rig.story.len() {
        if rig.take(&rig.story[next]) {
            next += 1;
            continue;
        }
        if rig.daemon.runs() {
            // It has not opened its socket yet.
            waited += 1;
            assert!(waited < 600, "neither dead nor answering:\n{}", rig.daemon.log());
            std::thread::sleep(std::time::Duration::from_millis(50));
            continue;
        }
        assert!(!killed, "killed twice");
        killed = true;
        rig.daemon.restart().expect("started again");
    }
    // The end may come after the last answer, while flows are written or what it has seen is stored.
    let mut revive = || {
        if !rig.daemon.runs() {
            assert!(!std::mem::replace(&mut killed, true), "killed twice");
            rig.daemon.restart().expect("started again");
        }
        rig.is_as_told(told, expected).then_some(())
    };
    if let Err(error) = net::wait_for("the end of the story", lab::daemon::PATIENCE, &mut revive) {
        panic!("{error}:\nis {:#?}\nshould be {expected:#?}", (rig.state)());
    }
    killed
}

/// Waits until the kernel holds this; where nothing is expected, until it stays as it is. Returns it.
fn settled(rig: &Rig, expected: Option<&State>) -> State {
    let mut last = (rig.state)();
    let found = net::wait_for("the flows", lab::daemon::PATIENCE, || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let now = (rig.state)();
        let is_so = expected.map_or(now == last, |expected| now == *expected);
        last = now;
        is_so.then_some(())
    });
    if let Err(error) = found {
        panic!("{error}:\nare {last:#?}\nshould be {expected:#?}");
    }
    last
}
