//! The counters of ports are true: known numbers of frames appear exactly, in both directions and
//! by the reason they were dropped for, and go on over a change of rules and a restart.

#![expect(clippy::expect_used, reason = "what fails here fails the test")]

use std::{collections::BTreeMap, fs, time::Duration};

use lab::{
    daemon::Daemon,
    net::{self, Netns},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const ONE: &str = "02:00:00:00:00:01";
const TWO: &str = "02:00:00:00:00:02";
const OTHER: &str = "02:00:00:00:00:77";
const LINK_LOCAL: &str = "01:80:c2:00:00:02";
const IPV4: u16 = 0x0800;

/// An IPv4 packet with UDP in it: its last address byte and source port.
fn udp(host: u8, port: u16) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, host, 10, 0, 0, 2];
    packet.extend(port.to_be_bytes());
    packet.extend([0x10, 0, 0, 26, 0, 0]);
    packet.resize(46, 0);
    packet
}

/// What guest 1 sends, how often, and for what it is dropped.
fn frames() -> Vec<(Vec<u8>, usize, Option<&'static str>)> {
    let frame =
        |to, from, vlans: &[u16], host, port| net::frame(to, from, vlans, IPV4, &udp(host, port));
    vec![
        (frame(TWO, ONE, &[], 1, 5000), 7, None),
        (frame(TWO, OTHER, &[], 1, 5000), 5, Some("spoofed_mac")),
        (frame(TWO, ONE, &[], 9, 5000), 3, Some("spoofed_ip")),
        (frame(TWO, ONE, &[0], 9, 5000), 2, Some("spoofed_ip")),
        (frame(TWO, ONE, &[5], 1, 5000), 4, Some("tag")),
        (frame(TWO, ONE, &[5, 6], 1, 5000), 1, Some("tag")),
        (frame(LINK_LOCAL, ONE, &[], 1, 5000), 2, Some("link_local")),
        (frame(TWO, ONE, &[], 1, 67), 6, Some("dhcp_server")),
    ]
}

/// Every series of the ports by its name and labels.
fn series(daemon: &Daemon) -> BTreeMap<String, u64> {
    let metrics = daemon.request("GET", "/metrics", None).expect("metrics").body;
    let lines = metrics.as_str().expect("text").lines();
    lines
        .filter(|line| {
            let of = |what| line.starts_with(&format!("eswitchd_port_{what}"));
            of("received") || of("sent") || of("dropped")
        })
        .filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect()
}

/// Waits until the series say that all this was sent so many times.
fn say(daemon: &Daemon, times: u64) {
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    let mut more = |name: String, by: u64| *expected.entry(name).or_default() += times * by;
    for (frame, count, dropped) in frames() {
        let (bytes, count) = ((frame.len() * count) as u64, count as u64);
        more("eswitchd_port_sent_packets_total{port=\"p1\"}".into(), count);
        more("eswitchd_port_sent_bytes_total{port=\"p1\"}".into(), bytes);
        match dropped {
            Some(reason) => {
                let labels = format!("{{port=\"p1\",reason=\"{reason}\"}}");
                more(format!("eswitchd_port_dropped_packets_total{labels}"), count);
            }
            None => {
                more("eswitchd_port_received_packets_total{port=\"p2\"}".into(), count);
                more("eswitchd_port_received_bytes_total{port=\"p2\"}".into(), bytes);
            }
        }
    }
    let mut seen = BTreeMap::new();
    let arrived = net::wait_for("the counters", Duration::from_secs(20), || {
        seen = series(daemon);
        // All others stay at nothing, but for the bytes of what was dropped.
        let all = seen.iter().filter(|(name, _)| !name.contains("dropped_bytes"));
        let counted: BTreeMap<_, _> = all
            .filter(|(_, value)| **value > 0)
            .map(|(name, value)| (name.clone(), *value))
            .collect();
        (counted == expected).then_some(())
    });
    assert!(arrived.is_ok(), "are {seen:#?}\nshould be {expected:#?}");
}

/// Waits until a port's own status says the same as the series, and nothing else.
fn status_says_the_same(daemon: &Daemon) {
    let arrived = net::wait_for("the statistics", Duration::from_secs(20), || {
        let mut told: BTreeMap<String, u64> = BTreeMap::new();
        for port in ["p1", "p2"] {
            let answer = daemon.request("GET", &format!("/v1/ports/{port}"), None).ok()?;
            let of = answer.body["status"]["statistics"].as_object()?.clone();
            assert!(of["age_ms"].as_u64()? < 60_000);
            for (what, counts) in of.iter().filter(|(what, _)| *what != "age_ms") {
                let reasons = match what.as_str() {
                    "dropped" => counts.as_object()?.iter().collect(),
                    _ => vec![(what, counts)],
                };
                for (reason, counts) in reasons {
                    for unit in ["packets", "bytes"] {
                        let label = match what.as_str() {
                            "dropped" => format!(",reason=\"{reason}\""),
                            _ => String::new(),
                        };
                        let name =
                            format!("eswitchd_port_{what}_{unit}_total{{port=\"{port}\"{label}}}");
                        told.insert(name, counts[unit].as_u64()?);
                    }
                }
            }
        }
        let known: BTreeMap<_, _> =
            series(daemon).into_iter().filter(|(_, value)| *value > 0).collect();
        told.retain(|_, value| *value > 0);
        (told == known).then_some(())
    });
    arrived.expect("as the metrics");
}

/// What streams of events tell of traffic while everything is sent once, adds up to just that.
fn streams_say_the_same(daemon: &Daemon) {
    let told = |text: &str| -> Vec<Value> {
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let all = data.map(|json| serde_json::from_str::<Value>(json).expect("JSON"));
        all.filter(|event| event.get("over_ms").is_some()).collect()
    };
    let sum = |text: &str, path: &str| -> u64 {
        told(text).iter().filter_map(|traffic| traffic["ports"].pointer(path)?.as_u64()).sum()
    };
    let mut streams = [(); 2].map(|()| daemon.events("traffic=true").expect("a stream"));
    for stream in &mut streams {
        stream.wait_for("traffic", |text| !told(text).is_empty()).expect("counters are read");
    }
    send();
    let count = |dropped_too: bool| {
        let counts = |dropped: &Option<&str>| dropped_too || dropped.is_none();
        let all = frames().into_iter().filter(|(_, _, dropped)| counts(dropped));
        all.map(|(frame, count, _)| (count as u64, (frame.len() * count) as u64))
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    };
    let expected = [
        ("/p1/sent/packets", count(true).0),
        ("/p1/sent/bytes", count(true).1),
        ("/p2/received/packets", count(false).0),
        ("/p2/received/bytes", count(false).1),
    ];
    for stream in &mut streams {
        let all = |text: &str| expected.iter().all(|(path, count)| sum(text, path) >= *count);
        stream.wait_for("everything", all).expect("all that was sent");
        for (path, count) in expected {
            assert_eq!(sum(&stream.text(), path), count, "{path}");
        }
        let traffic = told(&stream.text());
        assert!(traffic.iter().all(|one| one["over_ms"].as_u64() > Some(0)), "{traffic:?}");
    }
}

fn send() {
    for (frame, count, _) in frames() {
        for _ in 0..count {
            net::send_frame("vm1", &frame).expect("sent");
        }
    }
}

fn port(daemon: &Daemon, number: u8, more: Value) {
    let mut spec = json!({
        "function": {"netdev": {"adapter": "soft-lab", "name": format!("rep{number}")}},
        "attachments": [{"network": "blue"}],
    });
    let fields = spec.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    let path = format!("/v1/ports/p{number}");
    daemon.put(&path, spec).expect("a port");
    daemon.wait_for_condition(&path, "Programmed", "True").expect("programmed");
}

fn plug(number: u8) {
    net::ip(&format!("link add rep{number} type veth peer name vm{number}")).expect("veth");
    net::ip(&format!("link set vm{number} up")).expect("up");
}

/// Waits until the series of ports that are named say just this.
fn until(daemon: &Daemon, expected: &[(&str, u64)]) {
    let mut seen = BTreeMap::new();
    let arrived = net::wait_for("the counters", Duration::from_secs(20), || {
        seen = series(daemon);
        let says = |(name, value): &(&str, u64)| {
            seen.get(&format!("eswitchd_port_{name}")).is_some_and(|seen| seen == value)
        };
        expected.iter().all(says).then_some(())
    });
    assert!(arrived.is_ok(), "are {seen:#?}\nshould be {expected:#?}");
}

#[test]
fn a_port_inherits_nothing_from_who_had_its_netdev_before_also_over_a_restart() {
    let _netns = quiet();
    (1..=2).for_each(plug);
    let folder = tempfile::tempdir().expect("a folder");
    let mut daemon = Daemon::start(folder.path(), CONFIGURATION).expect("eswitchd");
    daemon.put("/v1/networks/blue", json!({"kind": "isolated"})).expect("a network");
    port(&daemon, 1, json!({"macs": [ONE]}));
    port(&daemon, 2, json!({"macs": [TWO]}));
    let send = |from: &str, count| {
        let frame = net::frame(TWO, from, &[], IPV4, &udp(1, 5000));
        (0..count).for_each(|_| net::send_frame("vm1", &frame).expect("sent"));
    };
    const SENT: &str = "sent_packets_total{port=\"p1\"}";
    const SPOOFED: &str = "dropped_packets_total{port=\"p1\",reason=\"spoofed_mac\"}";
    const NEXT_SENT: &str = "sent_packets_total{port=\"next\"}";
    const NEXT_SPOOFED: &str = "dropped_packets_total{port=\"next\",reason=\"spoofed_mac\"}";
    const RECEIVED: &str = "received_packets_total{port=\"p2\"}";
    send(ONE, 5);
    send(OTHER, 3);
    until(&daemon, &[(SENT, 8), (SPOOFED, 3), (RECEIVED, 5)]);

    // Nobody looks between what the one sends last and the other sends first.
    send(ONE, 2);
    daemon.delete("/v1/ports/p1").expect("gone");
    let spec = json!({
        "function": {"netdev": {"adapter": "soft-lab", "name": "rep1"}},
        "attachments": [{"network": "blue"}],
        "macs": [ONE],
    });
    daemon.put("/v1/ports/next", spec).expect("another port");
    daemon.wait_for_condition("/v1/ports/next", "Programmed", "True").expect("programmed");
    until(&daemon, &[(NEXT_SENT, 0), (NEXT_SPOOFED, 0), (RECEIVED, 7)]);
    send(ONE, 4);
    send(OTHER, 6);
    until(&daemon, &[(NEXT_SENT, 10), (NEXT_SPOOFED, 6), (RECEIVED, 11)]);

    for (run, signal) in [(1, Signal::SIGTERM), (2, Signal::SIGTERM)] {
        daemon.end(signal).expect("ended");
        send(OTHER, 1);
        daemon.restart().expect("started");
        until(&daemon, &[(NEXT_SENT, 10 + run), (NEXT_SPOOFED, 6 + run), (RECEIVED, 11)]);
    }
    // After a crash what was counted is not counted again.
    daemon.end(Signal::SIGKILL).expect("ended");
    daemon.restart().expect("started");
    until(&daemon, &[(NEXT_SENT, 0), (NEXT_SPOOFED, 0), (RECEIVED, 0)]);
    send(ONE, 1);
    until(&daemon, &[(NEXT_SENT, 1), (NEXT_SPOOFED, 0), (RECEIVED, 1)]);
    // The kernel was asked for what drivers tell of software; no driver here tells it.
    assert!(!daemon.log().contains("software counters"), "the kernel does not know the question");
}

const CONFIGURATION: &str = "\n[[adapter]]\nsoftware = \"lab\"\nrepresentors = [\"rep*\"]\n";

/// A namespace of guests that say nothing by themselves.
fn quiet() -> Netns {
    let netns = Netns::enter().expect("a namespace");
    for which in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
        fs::write(path, "1").expect("IPv6 off");
    }
    netns
}

#[test]
fn counters_tell_exactly_what_was_sent_received_and_dropped_over_changes_and_restarts() {
    let _netns = quiet();
    (1..=2).for_each(plug);
    let folder = tempfile::tempdir().expect("a folder");
    let mut daemon = Daemon::start(folder.path(), CONFIGURATION).expect("eswitchd");
    daemon.put("/v1/networks/blue", json!({"kind": "isolated"})).expect("a network");
    port(&daemon, 1, json!({"macs": [ONE], "ips": ["10.0.0.1"]}));
    port(&daemon, 2, json!({"macs": [TWO]}));

    streams_say_the_same(&daemon);
    say(&daemon, 1);
    status_says_the_same(&daemon);

    // Rules of both hooks are written anew.
    port(&daemon, 2, json!({"macs": [TWO, OTHER.replace("77", "78")]}));
    send();
    say(&daemon, 2);

    daemon.end(Signal::SIGTERM).expect("stopped");
    send();
    daemon.restart().expect("started");
    daemon.wait_for_condition("/v1/ports/p1", "Programmed", "True").expect("programmed");
    say(&daemon, 3);

    // What a representor had counted is not lost with it.
    net::ip("link del rep2").expect("deleted");
    daemon.wait_for_condition("/v1/ports/p2", "Bound", "False").expect("unplugged");
    plug(2);
    daemon.wait_for_condition("/v1/ports/p2", "Programmed", "True").expect("programmed");
    send();
    say(&daemon, 4);
    status_says_the_same(&daemon);
}
