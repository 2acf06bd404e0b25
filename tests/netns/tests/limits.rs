//! How large and how fast what ports send and receive may be, with real packets.

#![expect(clippy::expect_used, reason = "what fails here fails the test")]

use std::time::Duration;

use lab::{
    daemon::Daemon,
    net::{self, Netns},
};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);

const ONE: &str = "02:00:00:00:00:01";
const TWO: &str = "02:00:00:00:00:02";
const OUTSIDE: &str = "02:99:00:00:00:01";
const BROADCAST: &str = "ff:ff:ff:ff:ff:ff";
/// An ethertype for experiments (IEEE 802).
const PAYLOAD: u16 = 0x88b5;

/// Two guests behind `rep1` and `rep2`, and a wire.
fn host(folder: &std::path::Path) -> Daemon {
    for which in ["all", "default"] {
        // Guests that say nothing by themselves.
        let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
        std::fs::write(path, "1").expect("IPv6 off");
    }
    for (ours, theirs) in [("rep1", "vm1"), ("rep2", "vm2"), ("up0", "wire")] {
        net::ip(&format!("link add {ours} type veth peer name {theirs}")).expect("veth");
        net::ip(&format!("link set {theirs} up")).expect("up");
    }
    net::ip("link set up0 up").expect("up");
    let configuration =
        "\n[[adapter]]\nsoftware = \"lab\"\nuplink = \"up0\"\nrepresentors = [\"rep*\"]\n";
    let daemon = Daemon::start(folder, configuration).expect("eswitchd");
    daemon.put("/v1/networks/blue", json!({"kind": {"vlan": {"vid": 100}}})).expect("a network");
    daemon
}

fn put_port(daemon: &Daemon, number: u8, more: Value) {
    let mut spec = json!({
        "function": {"netdev": {"adapter": "soft-lab", "name": format!("rep{number}")}},
        "attachments": [{"network": "blue"}],
        "macs": [format!("02:00:00:00:00:0{number}")],
    });
    let fields = spec.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    let path = format!("/v1/ports/p{number}");
    let path = format!("{path}?wait=programmed");
    let answer = daemon.request("PUT", &path, Some(&json!({"spec": spec}))).expect("an answer");
    assert!([200, 201].contains(&answer.status), "{:#}", answer.body);
}

#[test]
fn a_port_says_whether_its_path_carries_its_frames_and_what_to_do() {
    let _netns = Netns::enter().expect("a namespace");
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = host(folder.path());
    let path = "/v1/ports/p1";
    put_port(&daemon, 1, json!({"mtu": 1500}));
    daemon.wait_for_condition(path, "PathMtu", "True").expect("one tag fits");

    let qinq = json!({"attachments": [{"network": "blue", "qinq": true}], "mtu": 1500});
    put_port(&daemon, 1, qinq);
    daemon.wait_for_condition(path, "PathMtu", "False").expect("a second one does not");
    let status = daemon.request("GET", path, None).expect("the port").body["status"].clone();
    assert_eq!(status["mtu"], json!({"representor": 1500, "uplink": 1500}));
    let conditions = status["conditions"].as_array().expect("conditions");
    let told = conditions.iter().find(|told| told["type"] == "PathMtu").expect("told");
    let message = told["message"].as_str().expect("a message");
    assert!(message.contains("ip link set dev up0 mtu 1504"), "{message}");
    assert!(!message.contains("rep1"), "{message}");

    net::ip("link set dev up0 mtu 1504").expect("set");
    daemon.wait_for_condition(path, "PathMtu", "True").expect("it is seen");
    net::ip("link set dev rep1 mtu 1400").expect("set");
    daemon.wait_for_condition(path, "PathMtu", "False").expect("it is seen");
}

/// Frames of one burst, and bytes of each: so large that half of a burst is more than the rate lets
/// through in half a minute, however slow the machine is.
const FRAMES: u64 = 200;
const BYTES: usize = 60_000;

/// Sends a burst; says how many of it arrived.
fn arrived(from: &str, to: &str, frame: &[u8]) -> u64 {
    let before = received(to);
    for _ in 0..FRAMES {
        net::send_frame(from, frame).expect("sent");
    }
    // Nothing on the way waits for anything: what has not come is lost.
    let mut last = 0;
    net::wait_for("quiet", PATIENCE, || {
        let now = received(to) - before;
        std::thread::sleep(Duration::from_millis(100));
        (std::mem::replace(&mut last, now) == now && received(to) - before == now).then_some(now)
    })
    .expect("it is quiet")
}

fn received(link: &str) -> u64 {
    let stats = net::ip_json(&format!("-s link show {link}")).expect("statistics");
    stats[0]["stats64"]["rx"]["packets"].as_u64().expect("a number")
}

fn police(link: &str) -> Vec<Value> {
    let filters = net::tc_json(&format!("filter show dev {link} egress")).expect("filters");
    let filters = filters.as_array().expect("a list").iter();
    filters.filter(|filter| filter["options"]["handle"].is_number()).cloned().collect()
}

fn dropped(daemon: &Daemon) -> u64 {
    let metrics = daemon.request("GET", "/metrics", None).expect("metrics").body;
    let name = "eswitchd_port_dropped_packets_total{port=\"p2\",reason=\"rx_rate\"} ";
    let mut lines = metrics.as_str().expect("text").lines();
    let line = lines.find_map(|line| line.strip_prefix(name)).expect("the series");
    line.parse().expect("a number")
}

#[test]
fn what_a_port_may_receive_is_limited_whoever_sends_and_nothing_else_is() {
    let _netns = Netns::enter().expect("a namespace");
    let folder = tempfile::tempdir().expect("a folder");
    let mut daemon = host(folder.path());
    for link in ["rep1", "vm1", "rep2", "vm2", "up0", "wire"] {
        net::ip(&format!("link set {link} mtu 65000")).expect("set");
    }
    put_port(&daemon, 1, json!({}));
    put_port(&daemon, 2, json!({"qos": {"rx_max": 1_000_000}}));
    let frame = |to, from, tags: &[u16]| net::frame(to, from, tags, PAYLOAD, &[0; BYTES]);
    let bursts = [
        ("vm1", frame(TWO, ONE, &[])),
        ("vm1", frame(BROADCAST, ONE, &[])),
        ("wire", frame(TWO, OUTSIDE, &[100])),
    ];
    let mut lost = 0;
    for (from, burst) in &bursts {
        let arrived = arrived(from, "vm2", burst);
        assert!(arrived < FRAMES / 2, "{arrived} frames from {from} arrived");
        lost += FRAMES - arrived;
    }
    // A reading of a second ago answers, too.
    net::wait_for("the count", PATIENCE, || (dropped(&daemon) == lost).then_some(()))
        .unwrap_or_else(|error| panic!("{error}: {} of {lost}", dropped(&daemon)));
    assert_eq!(arrived("vm2", "vm1", &frame(ONE, TWO, &[])), FRAMES, "it may send what it likes");

    let rule = police("rep2");
    assert_eq!(rule.len(), 1, "{rule:#?}");
    daemon.end(nix::sys::signal::Signal::SIGKILL).expect("killed");
    daemon.restart().expect("started");
    daemon.wait_for_condition("/v1/ports/p2", "Programmed", "True").expect("programmed");
    assert_eq!(police("rep2")[0]["options"]["handle"], rule[0]["options"]["handle"], "adopted");

    put_port(&daemon, 2, json!({}));
    assert_eq!(police("rep2"), Vec::<Value>::new());
    assert_eq!(arrived("vm1", "vm2", &bursts[0].1), FRAMES);
}

#[test]
fn a_qdisc_without_egress_hook_is_in_the_way_of_a_receive_rate_only() {
    let _netns = Netns::enter().expect("a namespace");
    let folder = tempfile::tempdir().expect("a folder");
    net::ip("link add rep3 type veth peer name vm3").expect("veth");
    net::tc("qdisc add dev rep3 ingress").expect("somebody's qdisc");
    let daemon = host(folder.path());
    put_port(&daemon, 3, json!({}));
    daemon.wait_for_condition("/v1/adapters/soft-lab", "Healthy", "True").expect("healthy");
    let spec = json!({
        "function": {"netdev": {"adapter": "soft-lab", "name": "rep3"}},
        "attachments": [{"network": "blue"}],
        "macs": ["02:00:00:00:00:03"],
        "qos": {"rx_max": 1_000_000},
    });
    daemon.put("/v1/ports/p3", spec).expect("a port");
    daemon.wait_for_condition("/v1/ports/p3", "Programmed", "False").expect("told");
    // Where there is no egress hook the kernel would put the rule here.
    let ingress = net::tc("filter show dev rep3 ingress").expect("filters");
    assert!(ingress.contains("drop") && !ingress.contains("police"), "{ingress}");
}
