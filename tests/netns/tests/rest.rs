//! What the REST API promises about the kernel: judged by iproute2, at the moment of the answer.
//!
//! In: requests. Out: what `tc` and `ip` show when they are answered, without waiting any more.

#![expect(clippy::expect_used, reason = "what fails here fails the test")]

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::TcpStream,
};

use lab::{
    daemon::{self, Answer, Daemon},
    net::{self, Netdevsim, Netns},
};
use serde_json::{Value, json};
use tempfile::TempDir;

const WAIT: &str = "?wait=programmed&timeout=25";

/// eswitchd on a netdevsim device with so many VFs.
struct Rig {
    device: Netdevsim,
    daemon: Daemon,
    _folder: TempDir,
}

impl Rig {
    fn new(vfs: u32, switchdev: bool) -> Rig {
        net::modprobe("netdevsim").expect("netdevsim");
        let device = Netdevsim::create(1).expect("a device");
        device.set_vfs(vfs).expect("VFs");
        if switchdev {
            device.switchdev().expect("switchdev");
        }
        let folder = tempfile::tempdir().expect("a folder");
        let configuration = format!("\n[[adapter]]\nhandle = \"{}\"\n", device.handle());
        let daemon = Daemon::start(folder.path(), &configuration).expect("eswitchd");
        Rig { device, daemon, _folder: folder }
    }

    fn put(&self, path: &str, spec: Value) -> Answer {
        self.daemon.request("PUT", path, Some(&json!({ "spec": spec }))).expect("an answer")
    }

    /// A port on this VF, with an address that ends in its number.
    fn port(&self, vf: u32) -> Value {
        json!({
            "function": {"vf": {
                "adapter": self.device.handle().replacen('/', "-", 1), "index": vf,
            }},
            "attachments": [{"network": "blue"}],
            "macs": [mac(vf)],
        })
    }

    fn representor(&self, vf: u32) -> String {
        self.device.representor(vf).expect("a representor")
    }
}

fn mac(vf: u32) -> String {
    format!("02:00:00:00:00:{:02x}", vf + 1)
}

/// What `tc` shows of a netdev's ingress filters, as text.
fn filters(netdev: &str) -> String {
    net::command("tc", ["filter", "show", "dev", netdev, "ingress"]).expect("tc")
}

#[test]
fn a_put_that_waits_is_answered_when_every_flow_that_it_needs_is_there() {
    let _netns = Netns::enter().expect("a namespace");
    let rig = Rig::new(4, true);
    let blue = json!({"kind": {"vlan": {"vid": 100}}});
    assert_eq!(rig.put(&format!("/v1/networks/blue{WAIT}"), blue).status, 201);
    for vf in 0..4 {
        let answer = rig.put(&format!("/v1/ports/p{vf}{WAIT}"), rig.port(vf));
        assert_eq!(answer.status, 201, "{answer:?}");
        let conditions = answer.body["status"]["conditions"].as_array().expect("conditions");
        let programmed = conditions.iter().find(|c| c["type"] == "Programmed").expect("one");
        assert_eq!(programmed["status"], "True", "{programmed}");
        // Where it stands, at every member before it, and at the uplink.
        let own = filters(&rig.representor(vf));
        assert!(own.contains(&format!("src_mac {}", mac(vf))), "{own}");
        let others = (0..vf).map(|other| rig.representor(other));
        for netdev in others.chain([rig.device.uplink().expect("an uplink")]) {
            let shown = filters(&netdev);
            assert!(shown.contains(&format!("dst_mac {}", mac(vf))), "{netdev}: {shown}");
            assert!(shown.contains(&format!("to device {}", rig.representor(vf))), "{shown}");
        }
        let link = net::ip_json(&format!("link show {}", rig.representor(vf))).expect("ip");
        let flags = link[0]["flags"].as_array().expect("flags");
        assert!(flags.contains(&json!("UP")), "{link}");
    }
    // What is there already is answered as well.
    assert_eq!(rig.put(&format!("/v1/ports/p0{WAIT}"), rig.port(0)).status, 200);

    // A network that changes changes at every member before the answer.
    let blue = json!({"kind": {"vlan": {"vid": 200}}});
    assert_eq!(rig.put(&format!("/v1/networks/blue{WAIT}"), blue).status, 200);
    for vf in 0..4 {
        let shown = filters(&rig.representor(vf));
        assert!(shown.contains("push id 200") && !shown.contains("push id 100"), "{shown}");
    }
}

#[test]
fn a_delete_that_waits_is_answered_when_no_flow_knows_the_port_any_more() {
    let _netns = Netns::enter().expect("a namespace");
    let rig = Rig::new(3, true);
    assert_eq!(rig.put("/v1/networks/blue", json!({"kind": "isolated"})).status, 201);
    for vf in 0..3 {
        let answer = rig.put(&format!("/v1/ports/p{vf}{WAIT}"), rig.port(vf));
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    let answer = rig.daemon.request("DELETE", &format!("/v1/ports/p1{WAIT}"), None).expect("it");
    assert_eq!(answer.status, 204, "{answer:?}");
    for vf in 0..3 {
        let shown = filters(&rig.representor(vf));
        assert!(!shown.contains(&mac(1)), "{shown}");
        assert!(!shown.contains(&format!("to device {}", rig.representor(1))), "{shown}");
    }
}

#[test]
fn a_put_that_waits_in_legacy_mode_is_answered_when_the_vf_has_its_settings() {
    let _netns = Netns::enter().expect("a namespace");
    let rig = Rig::new(1, false);
    let pf = rig.device.uplink().expect("the PF's netdev");
    let vf = || net::ip_json(&format!("link show {pf}")).expect("ip")[0]["vfinfo_list"][0].clone();
    let vlan = |vid: u16| json!({"kind": {"vlan": {"vid": vid}}});
    assert_eq!(rig.put("/v1/networks/blue", vlan(100)).status, 201);

    let answer = rig.put(&format!("/v1/ports/p0{WAIT}"), rig.port(0));
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!((&vf()["address"], &vf()["link_state"]), (&json!(mac(0)), &json!("auto")));
    let answer = rig.put(&format!("/v1/networks/blue{WAIT}"), vlan(200));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(vf()["vlan_list"][0]["vlan"], 200);
    let answer = rig.daemon.request("DELETE", &format!("/v1/ports/p0{WAIT}"), None).expect("it");
    assert_eq!(answer.status, 204, "{answer:?}");
    assert_eq!(vf()["link_state"], "disable");
}

#[test]
fn who_has_waited_in_vain_is_told_what_is_missing_and_finds_the_change_stored() {
    let _netns = Netns::enter().expect("a namespace");
    let rig = Rig::new(1, true);
    assert_eq!(rig.put("/v1/networks/blue", json!({"kind": "isolated"})).status, 201);
    let mut port = rig.port(0);
    port["function"] = json!({"guest_vf": {"guest": "nobody", "device": "vf0"}});
    let answer = rig.put("/v1/ports/p0?wait=programmed&timeout=1", port);
    assert_eq!((answer.status, &answer.body["type"]), (504, &json!("/problems/not-programmed")));
    let reasons = answer.body["reasons"].as_array().expect("reasons");
    let first = reasons.first().and_then(Value::as_str).unwrap_or_default();
    assert!(first.starts_with("port p0: not Bound (GuestNotSeen)"), "{answer:?}");
    assert_eq!(rig.daemon.get("/v1/ports/p0").expect("the port")["revision"], 2);

    // Nothing is programmed after a teardown, and nobody is told that it was.
    rig.daemon.request("POST", "/v1/teardown", None).expect("torn down");
    let answer = rig.put("/v1/ports/p1?wait=programmed&timeout=1", rig.port(0));
    assert_eq!(answer.status, 504, "{answer:?}");
    assert!(answer.body["reasons"].to_string().contains("/v1/resume"), "{answer:?}");
}

// ---------------------------------------------------------------- dry runs and batches

/// Everything that a change could change: filters and links as the kernel shows them, and what the
/// daemon has stored and wants.
fn everything(rig: &Rig, vfs: u32) -> Vec<String> {
    let netdevs = (0..vfs).map(|vf| rig.representor(vf)).chain(rig.device.uplink().ok());
    let mut all: Vec<String> = netdevs.map(|netdev| filters(&netdev)).collect();
    all.push(net::command("ip", ["-d", "link"]).expect("ip"));
    let ask = |path| rig.daemon.get(path).expect("an answer");
    let mut ports = ask("/v1/ports");
    for port in ports["items"].as_array_mut().expect("items") {
        // How old they are, at the least, is another with each question.
        port["status"].as_object_mut().expect("a status").remove("statistics");
    }
    all.push(ports.to_string());
    all.extend(["/v1/snapshot", "/v1/flows", "/v1/networks"].map(|path| ask(path).to_string()));
    all
}

/// Every flow that is wanted, with its netdev.
fn wanted_flows(rig: &Rig) -> BTreeSet<String> {
    let flows = rig.daemon.get("/v1/flows").expect("flows");
    let text = |flow: &Value| format!("{} {}", flow["netdev"], flow["tc"]);
    flows["items"].as_array().expect("items").iter().map(text).collect()
}

#[test]
fn a_dry_run_changes_nothing_and_foretells_what_the_change_then_does() {
    let _netns = Netns::enter().expect("a namespace");
    let rig = Rig::new(4, true);
    let blue = json!({"kind": {"vlan": {"vid": 100}}});
    assert_eq!(rig.put("/v1/networks/blue", blue).status, 201);
    for vf in 0..3 {
        assert_eq!(rig.put(&format!("/v1/ports/p{vf}{WAIT}"), rig.port(vf)).status, 201);
    }
    let green = json!({"kind": {"vlan": {"vid": 200}}});
    for (method, path, spec) in [
        ("PUT", "/v1/ports/p3", Some(rig.port(3))),
        ("PUT", "/v1/networks/blue", Some(green)),
        ("DELETE", "/v1/ports/p1", None),
    ] {
        let body = spec.map(|spec| json!({ "spec": spec }));
        let ask = |query: &str| {
            let path = format!("{path}{query}");
            rig.daemon.request(method, &path, body.as_ref()).expect("an answer")
        };
        let (before, flows) = (everything(&rig, 4), wanted_flows(&rig));
        let foretold = ask("?dry_run=true");
        assert_eq!(foretold.status, 200, "{foretold:?}");
        assert_eq!(everything(&rig, 4), before, "{method} {path}");

        assert!(ask(WAIT).status < 300);
        let (now, counts) = (wanted_flows(&rig), &foretold.body["flows"]);
        let count = |name: &str| usize::try_from(counts[name].as_u64().expect("one")).expect("few");
        let (new, gone) = (now.difference(&flows).count(), flows.difference(&now).count());
        assert_eq!(count("added") + count("changed"), new, "{method} {path} {counts}");
        assert_eq!(count("removed") + count("changed"), gone, "{method} {path} {counts}");
        assert!(new + gone > 0, "{method} {path}");
        for flow in foretold.body["flow_changes"].as_array().expect("flows") {
            let text = format!("{} {}", flow["netdev"], flow["tc"]);
            let holds = if flow["change"] == "removed" { &flows } else { &now };
            assert!(holds.contains(&text), "{method} {path}: {flow}");
        }
    }
    // What would be in conflict is said beforehand.
    let mut thief = rig.port(1);
    thief["macs"] = json!([mac(0)]);
    let body = json!({ "spec": thief });
    let answer = rig.daemon.request("PUT", "/v1/ports/thief?dry_run=true", Some(&body));
    let conditions = answer.expect("an answer").body["conditions"].to_string();
    assert!(conditions.contains("Conflict") && conditions.contains("p0"), "{conditions}");
}

#[test]
fn a_batch_is_done_whole_or_not_at_all() {
    let _netns = Netns::enter().expect("a namespace");
    let rig = Rig::new(3, true);
    let named = |vf: u32| json!({"id": format!("p{vf}"), "spec": rig.port(vf)});
    let blue = json!({"id": "blue", "spec": {"kind": {"vlan": {"vid": 100}}}});
    let post = |batch: Value| {
        rig.daemon.request("POST", &format!("/v1/apply{WAIT}"), Some(&batch)).expect("an answer")
    };
    let applied = post(json!({"ports": [named(0), named(1), named(2)], "networks": [blue]}));
    assert_eq!(applied.status, 200, "{applied:?}");
    assert_eq!(applied.body["revision"], 4);
    for vf in 0..3 {
        let shown = filters(&rig.representor(vf));
        assert!((0..3).filter(|other| *other != vf).all(|other| shown.contains(&mac(other))));
    }

    let before = everything(&rig, 3);
    let refused = post(json!({
        "ports": [{"id": "p9", "spec": rig.port(2)}],
        "delete": {"networks": ["blue"], "ports": ["p0", "p1"]},
    }));
    assert_eq!(
        (refused.status, &refused.body["blockers"]),
        (409, &json!(["ports/p2", "ports/p9"]))
    );
    assert_eq!(everything(&rig, 3), before, "nothing of it was done");

    let gone = post(json!({"delete": {"networks": ["blue"], "ports": ["p0", "p1", "p2"]}}));
    assert_eq!(gone.status, 200, "{gone:?}");
    for vf in 0..3 {
        assert!(!filters(&rig.representor(vf)).contains("02:00:00:00:00"), "{vf}");
    }
    assert_eq!(rig.daemon.get("/v1/networks").expect("a list"), json!({"items": []}));
}

// ---------------------------------------------------------------- access

#[test]
fn roles_tokens_and_the_listener_for_metrics_are_as_configured_and_changes_leave_records() {
    let _netns = Netns::enter().expect("a namespace");
    net::ip("link set lo up").expect("lo");
    let folder = tempfile::tempdir().expect("a folder");
    let tokens = folder.path().join("tokens");
    // The digest of `secret`.
    let digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    std::fs::write(&tokens, format!("nova write sha256:{digest}\n")).expect("tokens");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o640);
    std::fs::set_permissions(&tokens, private).expect("a mode");
    let configuration = format!(
        "tokens = \"{}\"\nmetrics = [\"127.0.0.1:9180\"]\ntcp = [\"127.0.0.1:9181\"]\n\
         [[api.peer]]\nuser = \"1\"\nrole = \"read\"\n",
        tokens.display()
    );
    let daemon = Daemon::start(&folder.path().join("daemon"), &configuration).expect("eswitchd");
    let over = |port: u16, method: &str, path: &str, token: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        let body = r#"{"spec": {"kind": "flat"}}"#;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{token}\
             content-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(head.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer.get(9..12).map(str::to_owned).expect("a status")
    };
    let token = "authorization: Bearer secret\r\n";
    assert_eq!(over(9180, "GET", "/metrics", ""), "200");
    assert_eq!(over(9180, "GET", "/v1/ports", token), "404");
    assert_eq!(over(9181, "GET", "/v1/ports", ""), "401");
    assert_eq!(over(9181, "PUT", "/v1/networks/blue", token), "201");
    assert_eq!(over(9181, "POST", "/v1/teardown", token), "403");
    // Over the socket: root, whoever is named there.
    daemon.delete("/v1/networks/blue").expect("deleted");

    let events = daemon.request("GET", "/v1/events?since=0&follow=false", None).expect("events");
    let text = events.body.as_str().expect("text").to_owned();
    let audits = text.lines().filter(|line| line.contains("\"kind\":\"audit\""));
    let audits: Vec<&str> = audits.collect();
    assert_eq!(audits.len(), 2, "{text}");
    assert!(audits[0].contains("token nova, write: PUT /v1/networks/blue: 201 (created)"));
    assert!(audits[0].contains("\"revision\":1"), "{}", audits[0]);
    assert!(audits[1].contains("admin: DELETE /v1/networks/blue: 204"), "{}", audits[1]);
    assert!(daemon.log().contains("who=\"token nova\" role=write"), "{}", daemon.log());
}

// ---------------------------------------------------------------- events

/// All events that are kept, oldest first, as kind, resource and reason.
fn events(rig: &Rig) -> Vec<(String, String, String)> {
    let answer = rig.daemon.request("GET", "/v1/events?since=0&follow=false", None).expect("it");
    // The body is sent in chunks, each with its length before it.
    let text = answer.body.as_str().expect("text").to_owned();
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let word = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
    data.filter_map(|json| serde_json::from_str::<Value>(json).ok())
        .map(|event| (word(&event, "kind"), word(&event, "resource"), word(&event, "reason")))
        .collect()
}

#[test]
fn what_clients_and_others_do_becomes_events_in_its_order() {
    let _netns = Netns::enter().expect("a namespace");
    let rig = Rig::new(1, true);
    assert_eq!(rig.put("/v1/networks/blue", json!({"kind": "isolated"})).status, 201);
    assert_eq!(rig.put(&format!("/v1/ports/p0{WAIT}"), rig.port(0)).status, 201);
    let wait_for = |kind: &str, resource: &str, reason: &str| {
        let wanted = (kind.to_owned(), resource.to_owned(), reason.to_owned());
        net::wait_for(reason, daemon::PATIENCE, || events(&rig).contains(&wanted).then_some(()))
            .unwrap_or_else(|error| panic!("{error}: {:#?}", events(&rig)));
    };
    wait_for("condition", "ports/p0", "Programmed");
    let representor = rig.representor(0);
    net::tc(&format!("filter del dev {representor} ingress chain 0 prio 62")).expect("a theft");
    let adapter = format!("adapters/{}", rig.device.handle().replacen('/', "-", 1));
    wait_for("drift", &adapter, "Repaired");
    rig.daemon.delete("/v1/ports/p0").expect("deleted");
    wait_for("resource", "ports/p0", "Deleted");

    let all = events(&rig);
    let place = |kind: &str, resource: &str, reason: &str| {
        let wanted = (kind.to_owned(), resource.to_owned(), reason.to_owned());
        all.iter().position(|event| *event == wanted).unwrap_or_else(|| panic!("{wanted:?}"))
    };
    let order = [
        place("resource", "networks/blue", "Created"),
        place("resource", "ports/p0", "Created"),
        place("condition", "ports/p0", "Programmed"),
        place("drift", &adapter, "Repaired"),
        place("resource", "ports/p0", "Deleted"),
    ];
    assert!(order.is_sorted(), "{all:#?}");
}
