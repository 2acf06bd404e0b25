//! A real Prometheus scrapes eswitchd while a guest comes, asks for what it may not have, and goes:
//! each query of each dashboard and each rule has data of the shape that is expected of it, and each
//! alert fires when its fault is caused and clears afterwards.
//!
//! Prometheus asks for protobuf; that the text is well, promtool says. A netdevsim whose port is
//! linked with another's carries frames to the hook of the uplink, where no hardware takes them.

#![expect(clippy::expect_used, reason = "what fails here fails the test")]
#![expect(clippy::print_stdout, reason = "what was asked, and what came, is to be read")]

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use eswitchd_e2e_tests::{
    create_vfs,
    prometheus::{Prometheus, WINDOW, committed, hurried, without_limit},
};
use lab::{
    daemon::Daemon,
    dashboards::{DASHBOARDS, Query, names_behind, queries},
    guest::{Backing, Guest},
    net::{self, Netdevsim, Netns},
    pictures,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// For an alert to fire, or to clear: far longer than a fight lasts, on a slow machine too.
const LIMIT: Duration = Duration::from_secs(400);

/// Between two looks at an alert: asking without a pause would take the processor from all that is
/// waited for.
const PACE: Duration = Duration::from_millis(500);

/// A certificate and its key, valid for so many days more.
fn certificate(folder: &Path, days: u64) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut parameters = rcgen::CertificateParams::new(vec!["localhost".into()]).expect("a name");
    let end = Duration::from_secs(since_1970() + days * 86400);
    parameters.not_after = rcgen::date_time_ymd(1970, 1, 1) + end;
    let certificate = parameters.self_signed(&key).expect("a certificate");
    for (name, text) in [("key.pem", key.serialize_pem()), ("cert.pem", certificate.pem())] {
        let fresh = folder.join("fresh");
        fs::write(&fresh, text).expect("written");
        fs::rename(&fresh, folder.join(name)).expect("in place");
    }
}

/// Everything that runs.
struct Host {
    daemon: Daemon,
    prometheus: Prometheus,
    sim: Netdevsim,
    /// The netdev whose frames come in at the uplink.
    wire: String,
    began: Instant,
}

impl Host {
    fn say(&self, what: &str) {
        println!("{:6.1} s: {what}", self.began.elapsed().as_secs_f64());
    }

    /// Waits until an alert fires, and goes on causing it meanwhile.
    fn fires(&self, alert: &str, cause: impl FnMut()) {
        self.until(alert, true, cause);
    }

    fn clears(&self, alert: &str) {
        self.until(alert, false, || {});
    }

    fn until(&self, alert: &str, fires: bool, mut meanwhile: impl FnMut()) {
        let reached = net::wait_for(alert, LIMIT, || {
            meanwhile();
            if self.prometheus.fires(alert) == Some(fires) {
                return Some(());
            }
            thread::sleep(PACE);
            None
        });
        let becomes = if fires { "fires" } else { "clears" };
        assert!(
            reached.is_ok(),
            "{alert} never {becomes} within {LIMIT:?}\n{}{}",
            self.prometheus.account(alert),
            self.measured(alert),
        );
        self.say(&format!("{alert} {becomes}"));
    }

    /// What the daemon itself says of the metrics that an alert asks for.
    fn measured(&self, alert: &str) -> String {
        let Ok(Value::String(metrics)) = self.daemon.get("/metrics") else {
            return "the daemon tells no metrics".into();
        };
        let rule = committed("alerts.yml").split("- alert: ").find(|rule| rule.starts_with(alert));
        let expr = rule.unwrap_or_default().split_once("for: ").unwrap_or_default().0;
        let names: BTreeSet<String> = names_behind(expr, "eswitchd_").into_iter().collect();
        let asked = |line: &&str| {
            let name = line.strip_prefix("eswitchd_").unwrap_or_default();
            names.iter().any(|asked| name.starts_with(asked))
        };
        let lines: Vec<&str> = metrics.lines().filter(asked).take(40).collect();
        lines.join("\n")
    }

    /// Sends broadcast frames in at the uplink.
    fn send(&self, frames: usize) {
        let frame = net::frame("ff:ff:ff:ff:ff:ff", "02:00:00:00:00:99", &[], 0x88b5, &[0; 46]);
        for _ in 0..frames {
            net::send_frame(&self.wire, &frame).expect("sent");
        }
    }
}

/// Ports on the VFs of the netdevsim, of one network.
fn hardware_ports(daemon: &Daemon, sim: &Netdevsim, numbers: std::ops::Range<u8>) {
    for number in numbers {
        hardware_port(daemon, sim, number, &[format!("02:00:00:00:01:{number:02x}")]);
    }
}

fn hardware_port(daemon: &Daemon, sim: &Netdevsim, number: u8, macs: &[String]) {
    let spec = json!({
        "function": {"vf": {"adapter": id_of(sim), "index": number}},
        "attachments": [{"network": "red"}],
        "macs": macs,
        "qos": {"tx_max": 100_000_000},
    });
    daemon.put(&format!("/v1/ports/hw{number}"), spec).expect("a port");
}

/// Meanwhile four clients give two ports other addresses again and again: while one of them takes
/// its breath, the changes of the others are on their way.
fn without_rest(host: &Host, meanwhile: impl FnOnce()) {
    /// Ends the changes when it is dropped, also by a panic.
    struct Rest<'a>(&'a AtomicBool);
    impl Drop for Rest<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for client in 0..4_u8 {
            let (over, daemon, sim) = (&over, &host.daemon, &host.sim);
            let number = 2 + client % 2;
            scope.spawn(move || {
                for turn in [2 * client, 2 * client + 1].into_iter().cycle() {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let mac = |mac| format!("02:00:00:{turn:02x}:{number:02x}:{mac:02x}");
                    hardware_port(daemon, sim, number, &(0..64).map(mac).collect::<Vec<_>>());
                }
            });
        }
        let _rest = Rest(&over);
        meanwhile();
    });
}

fn id_of(sim: &Netdevsim) -> String {
    sim.handle().replace('/', "-")
}

/// Links the ports of two netdevsims with each other.
fn link(one: &Netdevsim, other: &Netdevsim) {
    let netns = fs::File::open("/proc/thread-self/ns/net").expect("a namespace");
    let index = |sim: &Netdevsim| {
        let name = sim.uplink().expect("an uplink");
        fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).expect("an index")
    };
    let end = |sim: &Netdevsim| format!("{}:{}", netns.as_raw_fd(), index(sim).trim());
    let ends = format!("{} {}", end(one), end(other));
    fs::write("/sys/bus/netdevsim/link_device", ends).expect("linked");
}

fn promtool(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool");
    child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("read");
    let output = child.wait_with_output().expect("its end");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    said
}

fn since_1970() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs()
}

/// What a dashboard asks for.
fn asked_by(dashboard: &str) -> Vec<Query> {
    queries(&serde_json::from_str(dashboard).expect("JSON"))
}

/// An expression with its variables in place.
fn filled(expr: &str, port: &str) -> String {
    expr.replace("$__rate_interval", WINDOW)
        .replace("=\"$instance\"", "=\"host-1\"")
        .replace("$instance", ".*")
        .replace("$adapter", ".*")
        .replace("$guest", ".*")
        .replace("$port", port)
}

/// Asks everything that dashboards and rules ask, prints what came, and gives what had no data or
/// another shape than expected.
fn lacking(prometheus: &Prometheus, from: u64) -> Vec<String> {
    let mut all: Vec<(&str, String, String, Vec<String>)> = Vec::new();
    for (page, text) in DASHBOARDS {
        for query in asked_by(text) {
            let told = query.told();
            all.push((page, query.title, query.expr, told));
        }
    }
    let mut name = String::new();
    for line in committed("alerts.yml").lines().map(str::trim) {
        if let Some(rule) = line.strip_prefix("- alert: ").or(line.strip_prefix("- record: ")) {
            name = rule.to_owned();
        } else if let Some(expr) = line.strip_prefix("expr: ") {
            let expr = hurried(without_limit(expr));
            all.push(("rule", name.clone(), expr, Vec::new()));
        }
    }
    let now = since_1970();
    let mut lacking = Vec::new();
    println!("{:8} {:40} series", "where", "what");
    for (page, title, expr, labels) in all {
        // Ports of both kinds are looked at.
        let asked = ["a", "hw0"].map(|port| filled(&expr, port));
        let asked: BTreeSet<String> = asked.into_iter().collect();
        let series: Vec<Value> =
            asked.iter().flat_map(|expr| prometheus.query_since(expr, from, now)).collect();
        println!("{page:8} {title:40} {}", series.len());
        if series.is_empty() {
            lacking.push(format!("{page} {title}: no data: {expr}"));
        }
        for one in &series {
            let metric = one["metric"].as_object().expect("labels");
            let missing = labels.iter().find(|label| !metric.contains_key(*label));
            let value = one["values"][0][1].as_str().map(str::parse::<f64>);
            if missing.is_some() || !matches!(value, Some(Ok(_))) {
                lacking.push(format!("{page} {title}: {missing:?} {value:?}: {one}"));
            }
        }
    }
    lacking
}

/// Where the answers go that `cargo lab pictures` draws.
fn pictures_folder() -> Option<PathBuf> {
    std::env::var_os("ESWITCHD_PICTURES").map(PathBuf::from)
}

/// Keeps what the dashboards' queries gave since `from`.
fn keep_answers(prometheus: &Prometheus, from: u64, folder: &Path) {
    let to = since_1970();
    for (page, text) in DASHBOARDS {
        let answers: Vec<Value> = asked_by(text)
            .iter()
            .map(|query| {
                let series = prometheus.query_since(&filled(&query.expr, "a"), from, to);
                pictures::answer(query, series)
            })
            .collect();
        let answers = json!({"from": from, "to": to, "answers": answers});
        fs::write(folder.join(format!("{page}.json")), answers.to_string()).expect("written");
    }
}

/// Keeps what the daemon says to the live page.
fn keep_page(host: &Host, folder: &Path) {
    let explained = format!("/v1/ports/{}/explain", pictures::EXPLAINED);
    let paths = pictures::ASKED.into_iter().chain([&*explained]);
    let mut answers: serde_json::Map<String, Value> =
        paths.map(|path| (path.to_owned(), host.daemon.get(path).expect("an answer"))).collect();
    let mut stream = host.daemon.events("traffic=true&since=0").expect("a stream");
    host.send(200);
    stream.wait_for("traffic", |text| text.contains("\"over_ms\":")).expect("a frame");
    answers.insert(pictures::FOLLOWED.into(), json!(stream.text()));
    fs::write(folder.join("page.json"), Value::from(answers).to_string()).expect("written");
}

#[test]
fn the_rules_are_as_promtool_wants_them_and_each_alert_fires_and_is_silent() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["alerts.yml", "alerts.test.yml", "prometheus.yml"] {
        fs::write(folder.path().join(name), committed(name)).expect("written");
    }
    let at = |name: &str| folder.path().join(name).display().to_string();
    print!("{}", promtool(&["check", "rules", &at("alerts.yml")], ""));
    print!("{}", promtool(&["check", "config", &at("prometheus.yml")], ""));
    print!("{}", promtool(&["test", "rules", &at("alerts.test.yml")], ""));
    let tests = committed("alerts.test.yml");
    for alert in names_behind(committed("alerts.yml"), "- alert: ") {
        let fires = format!("ALERTS{{alertname=\"{alert}\", alertstate=\"firing\"");
        assert!(tests.matches(&fires).count() >= 2, "{alert} is not made to fire");
        assert!(tests.contains(&format!("alertname: {alert}, exp_alerts: []")), "{alert}: silent");
    }
}

#[test]
fn every_query_has_data_and_every_alert_fires_with_its_fault_and_clears_after() {
    let _netns = Netns::enter().expect("a namespace");
    net::ip("link set lo up").expect("loopback");
    net::ip("tuntap add dev vm-a mode tap").expect("a tap");
    net::modprobe("netdevsim").expect("netdevsim");
    let (sim, peer) = [(); 2].map(|()| Netdevsim::create(1).expect("a netdevsim")).into();
    sim.set_vfs(4).expect("VFs");
    sim.switchdev().expect("switchdev");
    link(&sim, &peer);
    let (uplink, wire) = (sim.uplink().expect("an uplink"), peer.uplink().expect("a port"));
    for netdev in [&uplink, &wire] {
        net::ip(&format!("link set {netdev} up")).expect("up");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("state");
    fs::create_dir(&state).expect("a folder");
    let place = state.to_str().expect("text");
    net::command("mount", ["-t", "tmpfs", "-o", "size=6m", "tmpfs", place]).expect("a small disk");
    certificate(folder.path(), 3);
    let at = |name: &str| folder.path().join(name).display().to_string();
    let configuration = format!(
        "metrics = [\"127.0.0.1:9180\"]\n\n[api.tls]\nlisten = [\"127.0.0.1:9443\"]\n\
         certificate = \"{}\"\nkey = \"{}\"\nclient_ca = \"{}\"\n\n\
         [[adapter]]\nhandle = \"{}\"\nhardware_flows = 1000\n\n\
         [[adapter]]\nsoftware = \"lab\"\nrepresentors = [\"vm-*\"]\n",
        at("cert.pem"),
        at("key.pem"),
        at("cert.pem"),
        sim.handle(),
    );
    let mut daemon = Daemon::start(folder.path(), &configuration).expect("eswitchd");
    for network in ["blue", "red"] {
        daemon.put(&format!("/v1/networks/{network}"), json!({"kind": "flat"})).expect("one");
    }
    hardware_ports(&daemon, &sim, 0..2);
    for port in ["hw0", "hw1"] {
        let path = format!("/v1/ports/{port}");
        daemon.wait_for_condition(&path, "Programmed", "True").expect("programmed");
    }
    // The netdevsim is said to have room for a little more than that.
    let path = format!("/v1/adapters/{}", id_of(&sim));
    let rests = |adapter: &Value| adapter["flows"]["pending"] == 0;
    let adapter = daemon.wait_for(&path, rests).expect("the adapter");
    let room = adapter["flows"]["in_hw"].as_u64().expect("flows") * 100 / 85;
    daemon.end(Signal::SIGTERM).expect("ended");
    let room = configuration.replace("flows = 1000", &format!("flows = {room}"));
    let daemon = Daemon::start(folder.path(), &room).expect("eswitchd");
    let (from, began) = (since_1970(), Instant::now());
    let prometheus = Prometheus::start(&folder.path().join("prometheus"));
    let mut host = Host { daemon, prometheus, sim, wire, began };
    host.say("Prometheus scrapes");

    // ---------------------------------------------------------------- life
    let spec = json!({
        "function": {"guest_vf": {"guest": "a", "device": "vf0"}},
        "attachments": [{"network": "blue"}],
        "guest_macs": {"max": 1, "allow": ["02:aa"]},
        "qos": {"flood_limit": 100},
    });
    host.daemon.put("/v1/ports/a", spec).expect("a port");
    let socket = host.daemon.qmp_dir().join("a.sock");
    let guest = Guest::named("a").vf(0, Backing::Tap("vm-a".into())).qmp_socket(&socket);
    let guest = guest.start().expect("a guest");
    create_vfs(&guest, 1);
    guest.run("ip link set eth1 address 02:aa:00:00:00:01; ip link set eth1 up").expect("a VF");
    host.daemon.wait_for_condition("/v1/ports/a", "Programmed", "True").expect("programmed");
    host.say("the guest is on the network");
    let metrics = host.daemon.get("/metrics").expect("metrics");
    let metrics = metrics.as_str().expect("text");
    print!("{}", promtool(&["check", "metrics"], metrics));
    let plugged = metrics.lines().any(|line| line == "eswitchd_plug_to_programmed_seconds_count 1");
    let plugs = metrics.lines().filter(|line| line.contains("plug_to_programmed"));
    assert!(plugged, "{:#?}", plugs.collect::<Vec<_>>());

    // ---------------------------------------------------------------- faults
    let representor = host.sim.representor(0).expect("a representor");
    host.fires("EswitchdDriftFight", || {
        // More than ten repairs within a minute are a fight: nothing else is done between.
        for _ in 0..12 {
            net::tc(&format!("filter del dev {representor} ingress chain 0")).ok();
            thread::sleep(Duration::from_millis(300));
        }
    });

    let mut last = 0x10_u8;
    host.fires("EswitchdRequestsRefused", || {
        // Beside the address that it has: nothing is taken away. More than 64 addresses have no
        // place in QEMU's list, which is empty then.
        let room = 0x10 + 60 - last;
        let more: Vec<String> = (0..room.min(8))
            .map(|_| {
                last += 1;
                format!(
                    "ip link add link eth1 name m{last} address 02:bb:00:00:00:{last:02x} type \
                     macvlan; ip link set m{last} up"
                )
            })
            .collect();
        if room > 0 {
            guest.run(&more.join("; ")).expect("more addresses");
        }
    });

    host.fires("EswitchdOffloadLost", || host.send(200));

    // Room is left.
    host.clears("EswitchdTableNearlyFull");
    hardware_ports(&host.daemon, &host.sim, 2..4);
    host.fires("EswitchdTableNearlyFull", || {});
    for number in 2..4 {
        host.daemon.delete(&format!("/v1/ports/hw{number}")).expect("gone");
    }
    host.clears("EswitchdTableNearlyFull");

    without_rest(&host, || host.fires("EswitchdReconcileOverdue", || {}));
    for number in 2..4 {
        host.daemon.delete(&format!("/v1/ports/hw{number}")).expect("gone");
    }
    host.clears("EswitchdReconcileOverdue");
    host.clears("EswitchdTableNearlyFull");

    let away = Netns::named("away").expect("another namespace");
    let moved = host.sim.representor(3).expect("a representor");
    net::ip(&format!("link set {moved} netns away")).expect("moved");
    host.fires("EswitchdRepresentorsMissing", || {});
    let here = nix::unistd::gettid();
    away.run(|| net::ip(&format!("link set {moved} netns {here}"))).expect("there").expect("back");
    host.clears("EswitchdRepresentorsMissing");

    host.fires("EswitchdCertificateExpiring", || {});
    certificate(folder.path(), 365);
    host.clears("EswitchdCertificateExpiring");

    let disturbed = host.sim.representor(1).expect("a representor");
    let filters = net::tc_json(&format!("filter show dev {disturbed} ingress")).expect("filters");
    let filters = filters.as_array().expect("a list").iter();
    let prios: BTreeSet<u64> = filters.filter_map(|filter| filter["pref"].as_u64()).collect();
    let answer = host.daemon.request("POST", "/v1/teardown", None).expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    host.fires("EswitchdNotReady", || {});
    host.fires("EswitchdPortNotProgrammed", || {});
    // Of another protocol in the place of a flow: the kernel refuses the flow.
    net::tc(&format!("qdisc add dev {disturbed} clsact")).ok();
    for prio in prios {
        net::tc(&format!(
            "filter add dev {disturbed} ingress prio {prio} protocol 0x88b6 flower action pass"
        ))
        .expect("in the way");
    }
    host.daemon.request("POST", "/v1/resume", None).expect("an answer");
    host.clears("EswitchdNotReady");
    host.fires("EswitchdFlowsRefused", || {});
    host.fires("EswitchdErrors", || {});
    if let Some(folder) = pictures_folder() {
        keep_page(&host, &folder);
    }
    net::tc(&format!("qdisc del dev {disturbed} clsact")).expect("out of the way");
    host.clears("EswitchdFlowsRefused");
    host.clears("EswitchdPortNotProgrammed");
    host.clears("EswitchdErrors");

    let filler = state.join("filler");
    let mut file = fs::File::create(&filler).expect("a filler");
    let mut size = 6 << 20;
    while size > 0 {
        match file.write(&vec![1; size]) {
            Ok(written) if written > 0 => {}
            _ => size /= 2,
        }
    }
    let mut number = 0_usize;
    host.fires("EswitchdStoreErrors", || {
        for _ in 0..20 {
            number += 1;
            let macs: Vec<String> = (0..64)
                .map(|mac| format!("02:cc:00:{:02x}:{:02x}:{mac:02x}", number >> 8, number & 0xff))
                .collect();
            let spec = json!({
                "function": {"vf": {"adapter": "soft-none", "index": 0}},
                "attachments": [{"network": "blue"}],
                "macs": macs,
            });
            let path = format!("/v1/ports/z{number}");
            let body = json!({ "spec": spec });
            let answer = host.daemon.request("PUT", &path, Some(&body)).expect("an answer");
            if answer.status == 507 {
                break;
            }
        }
    });
    fs::remove_file(&filler).expect("room again");
    host.clears("EswitchdStoreErrors");

    guest.kill().expect("killed");
    host.fires("EswitchdGuestDisconnected", || {});
    fs::remove_file(&socket).expect("the platform clears up");
    host.clears("EswitchdGuestDisconnected");

    host.daemon.end(Signal::SIGTERM).expect("ended");
    host.fires("EswitchdDown", || {});
    host.daemon.restart().expect("started");
    host.clears("EswitchdDown");

    let target = "[\"127.0.0.1:9180\"]";
    host.prometheus.configure(|text| text.replace(target, "[]"));
    host.fires("EswitchdAbsent", || {});
    host.prometheus.configure(|text| text.replace("targets: []", &format!("targets: {target}")));
    host.clears("EswitchdAbsent");
    for alert in ["EswitchdOffloadLost", "EswitchdRequestsRefused", "EswitchdDriftFight"] {
        host.clears(alert);
    }

    // ---------------------------------------------------------------- what was to be seen of it
    assert_eq!(lacking(&host.prometheus, from), Vec::<String>::new());
    host.say("every query had data");
    if let Some(folder) = pictures_folder() {
        keep_answers(&host.prometheus, from, &folder);
    }
}
