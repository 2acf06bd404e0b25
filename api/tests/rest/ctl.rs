//! eswitchctl: what it reads, what it prints, how it ends.

use std::sync::Arc;

use clap::error::ErrorKind;
use eswitchd_api::{
    cli::{Arguments, Exit, run},
    error::ApiError,
    events::{News, NewsKind},
    resources::*,
    server::Daemon,
};
use serde_json::{Value, json};

use crate::{
    double::{Double, State, Trouble},
    wire::Running,
};

/// What a run printed, and how it ended.
#[derive(Debug, PartialEq)]
struct Ran {
    exit: Exit,
    out: String,
    err: String,
}

/// Runs a command line against a daemon.
async fn ctl(daemon: &Running, line: &str, input: &str) -> Ran {
    let server = daemon.socket();
    let words = ["eswitchctl", "--server", server.to_str().unwrap()];
    let arguments = Arguments::read(words.into_iter().chain(line.split_whitespace())).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = run(arguments, &mut input.as_bytes(), &mut out, &mut err).await;
    let text =
        |bytes| String::from_utf8(bytes).unwrap().replace(server.to_str().unwrap(), "SOCKET");
    Ran { exit, out: text(out), err: text(err) }
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn condition(r#type: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({"type": r#type, "status": status, "reason": reason, "message": message,
           "last_transition": "2026-11-22T15:04:05Z"})
}

/// A host with a NIC and a software adapter; all is well but a flow of `web-2`.
fn host(state: &mut State) {
    let networks: [Network; 2] = [
        from(json!({
            "id": "blue", "revision": 1,
            "spec": {"kind": {"vlan": {"vid": 100}}, "reserved_macs": ["02:00:5e:00:00:01"]},
            "status": {"ports": ["web-1", "web-2"], "conditions": []},
        })),
        from(json!({
            "id": "red", "revision": 2,
            "spec": {"kind": {"vlan": {"vid": 7, "proto": "802.1ad"}}, "adapter": "soft-lab",
                     "unknown_unicast": "drop"},
            "status": {"ports": ["web-1"], "conditions": []},
        })),
    ];
    let ports: [Port; 2] = [
        from(json!({
            "id": "web-1", "revision": 3,
            "spec": {"function": {"guest_vf": {"guest": "vm1", "device": "vf0"}},
                     "attachments": [{"network": "blue"}, {"network": "red", "tag": 20}]},
            "status": {
                "conditions": [condition("Bound", "True", "Backed", ""),
                               condition("Offloaded", "False", "Software", "no hardware")],
                "adapter": "soft-lab", "representor": {"name": "tap0", "ifindex": 14},
                "macs": ["02:aa:bb:cc:00:01"], "events_programmed": 3,
                "event_to_programmed_us": 1740,
                "flows": {"in_hw": 0, "not_in_hw": 12, "refused": 0, "pending": 0},
            },
        })),
        from(json!({
            "id": "web-2", "revision": 4,
            "spec": {"function": {"vf": {"adapter": "pci-0000:03:00.0", "index": 1}},
                     "attachments": [{"network": "blue"}]},
            "status": {
                "conditions": [
                    condition("Programmed", "False", "KernelRefused", "EOPNOTSUPP: no\u{1b}[2J"),
                    condition("Offloaded", "Partial", "SomeInSoftware", "9 of 10"),
                    condition("Conflict", "False", "NoConflict", ""),
                ],
                "adapter": "pci-0000:03:00.0", "vf": 1, "macs": [], "events_programmed": 0,
                "flows": {"in_hw": 9, "not_in_hw": 0, "refused": 1, "pending": 0},
            },
        })),
    ];
    let guest: Guest = from(json!({
        "id": "vm1", "revision": 0, "spec": {},
        "status": {
            "conditions": [condition("Connected", "True", "Greeted", "")],
            "pid": 4711, "qemu": "11.1.3", "run_state": "running",
            "functions": [
                {"device": "vf0", "pf": "pf0", "enabled": true, "promiscuous": false,
                 "filter_known": true},
                {"device": "vf1", "pf": "pf0", "enabled": false, "promiscuous": true,
                 "filter_known": false},
            ],
        },
    }));
    state.networks = networks.into_iter().map(|network| (network.id.clone(), network)).collect();
    state.ports = ports.into_iter().map(|port| (port.id.clone(), port)).collect();
    state.guests = [(guest.id.clone(), guest)].into();
    state.adapters = vec![
        from(json!({
            "id": "pci-0000:03:00.0", "handle": "pci/0000:03:00.0", "driver": "mlx5_core",
            "mode": "switchdev", "switch_id": "1a2b", "foreign_filters": 2,
            "uplink": {"name": "enp3s0f0np0", "ifindex": 4}, "vfs": [{"index": 0}, {"index": 1}],
            "flows": {"in_hw": 9, "not_in_hw": 0, "refused": 1, "pending": 0},
            "conditions": [],
        })),
        from(json!({
            "id": "soft-lab", "handle": "soft-lab", "mode": "software", "foreign_filters": 0,
            "vfs": [{"representor": {"name": "tap0", "ifindex": 14}}],
            "flows": {"in_hw": 0, "not_in_hw": 12, "refused": 0, "pending": 0},
            "conditions": [condition("Offloaded", "False", "Software", "")],
        })),
    ];
    state.flows = vec![
        from(json!({
            "adapter": "soft-lab", "netdev": "tap0", "purpose": "flood", "port": "web-1",
            "network": "blue", "state": "not_in_hw",
            "tc": "ingress chain 1 prio 2 protocol all flower action mirred egress mirror dev t1",
        })),
        from(json!({
            "adapter": "pci-0000:03:00.0", "netdev": "rep1", "purpose": "default drop",
            "port": "web-2", "state": "refused", "reason": "no room",
            "tc": "ingress prio 9 flower action drop",
        })),
    ];
}

async fn full() -> Running {
    Running::usual(Double::with(host)).await
}

// ---------------------------------------------------------------- arguments

#[test]
fn command_lines_that_make_no_sense_are_refused_with_usage() {
    for (line, kind) in [
        ("", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
        ("get", ErrorKind::MissingRequiredArgument),
        ("get switches", ErrorKind::InvalidValue),
        ("get ports a/b", ErrorKind::ValueValidation),
        ("get ports -o xml", ErrorKind::InvalidValue),
        ("get flows web-1", ErrorKind::ArgumentConflict),
        ("get ports --port web-1", ErrorKind::ArgumentConflict),
        ("apply", ErrorKind::MissingRequiredArgument),
        ("delete adapter x", ErrorKind::InvalidValue),
        ("delete port", ErrorKind::MissingRequiredArgument),
        ("--server example:80 status", ErrorKind::ValueValidation),
        ("status --verbose", ErrorKind::UnknownArgument),
        ("trace --from port/a", ErrorKind::MissingRequiredArgument),
        ("trace --from a --dst-mac 02:00:00:00:00:01", ErrorKind::ValueValidation),
        (
            "trace --from port/a --dst-mac 02:00:00:00:00:01 --udp 1,2",
            ErrorKind::MissingRequiredArgument,
        ),
        ("explain network blue", ErrorKind::InvalidValue),
    ] {
        let words = std::iter::once("eswitchctl").chain(line.split_whitespace());
        let error = Arguments::read(words).unwrap_err();
        assert_eq!(error.kind(), kind, "{line}");
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn kinds_are_understood_in_singular_and_plural_and_the_server_anywhere() {
    for line in [
        "get network",
        "get networks",
        "get port web-1",
        "get guest",
        "get adapter",
        "get flow --adapter a --network b",
        "delete networks blue",
        "delete port web-1",
        "status --server http://127.0.0.1:80",
        "--server unix:/run/x.sock get ports -owide",
        "apply -f -",
    ] {
        let words = std::iter::once("eswitchctl").chain(line.split_whitespace());
        assert!(Arguments::read(words).is_ok(), "{line}");
    }
}

#[test]
fn help_has_examples_and_exit_statuses() {
    let help = Arguments::read(["eswitchctl", "--help"]).unwrap_err().to_string();
    for text in
        ["Examples:", "eswitchctl apply -f -", "Exit status:", "ESWITCHD_API", "/run/eswitchd"]
    {
        assert!(help.contains(text), "{text}: {help}");
    }
}

// ---------------------------------------------------------------- waiting

#[tokio::test]
async fn apply_waits_until_all_is_programmed_and_says_what_it_waits_for() {
    let document = r#"{"kind": "network", "id": "blue", "spec": {"kind": "flat"}}"#;
    let missing = Some((1, "flows of 2 netdevs are on their way"));
    let daemon = Running::usual(Double::with(|state| state.missing = missing)).await;
    let ran = ctl(&daemon, "apply -f - --wait=10", document).await;
    assert_eq!(ran.out, "networks/blue created\nprogrammed\n");
    assert_eq!(ran.err, "waiting: flows of 2 netdevs are on their way\n");
    assert_eq!(ran.exit, Exit::Done);

    let daemon = Running::usual(Double::with(|state| state.missing = missing)).await;
    let ran = ctl(&daemon, "apply -f - --wait=0", document).await;
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::NotProgrammed, "networks/blue created\n"));
    assert!(ran.err.contains("\n  flows of 2 netdevs are on their way\n"), "{}", ran.err);
    let ran = ctl(&daemon, "delete network blue --wait", "").await;
    assert_eq!((ran.exit, ran.out.as_str()), (Exit::Done, "networks/blue deleted\n"));
}

// ---------------------------------------------------------------- get

#[tokio::test]
async fn tables_say_what_matters() {
    let daemon = full().await;
    for (line, expected) in [
        (
            "get networks",
            "\
ID    KIND            ADAPTER   PORTS  STATE
blue  vlan 100        any       2      ok
red   vlan 7 802.1ad  soft-lab  1      ok
",
        ),
        (
            "get network blue -o wide",
            "\
ID    KIND      ADAPTER  PORTS  UNKNOWN UNICAST  RESERVED           REVISION  STATE
blue  vlan 100  any      2      uplink           02:00:5e:00:00:01  1         ok
",
        ),
        (
            "get ports",
            "\
ID     FUNCTION            NETWORKS     MACS               FLOWS  IN HW  STATE
web-1  vm1/vf0             blue,red@20  02:aa:bb:cc:00:01  12     0      ok
web-2  pci-0000:03:00.0/1  blue         -                  10     9      Programmed False (KernelRefused) +1
",
        ),
        (
            "get port web-1 -o wide",
            "\
ID     FUNCTION  NETWORKS     MACS               FLOWS  IN HW  ADAPTER   VF  REPRESENTOR  EVENT TO FLOW  REVISION  STATE
web-1  vm1/vf0   blue,red@20  02:aa:bb:cc:00:01  12     0      soft-lab  -   tap0#14      1.740 ms       3         ok
",
        ),
        (
            "get guests",
            "\
ID   RUN STATE  QEMU    ENABLED  STATE
vm1  running    11.1.3  1/2      ok
",
        ),
        (
            "get guest vm1 -o wide",
            "\
ID   RUN STATE  QEMU    ENABLED  PID   QMP  REVISION  STATE
vm1  running    11.1.3  1/2      4711  -    0         ok
",
        ),
        (
            "get adapters",
            "\
ID                MODE       UPLINK       VFS  FLOWS  IN HW  STATE
pci-0000:03:00.0  switchdev  enp3s0f0np0  2    10     9      ok
soft-lab          software   -            1    12     0      ok
",
        ),
        (
            "get flows",
            "\
NETDEV  STATE      PORT   NETWORK  PURPOSE
tap0    not in hw  web-1  blue     flood
rep1    refused    web-2  -        default drop
",
        ),
        (
            "get flows --port web-2 -o wide",
            "\
ADAPTER           NETDEV  STATE    PORT   NETWORK  PURPOSE       REASON   TC
pci-0000:03:00.0  rep1    refused  web-2  -        default drop  no room  ingress prio 9 flower action drop
",
        ),
    ] {
        let ran = ctl(&daemon, line, "").await;
        assert_eq!(ran.out, expected, "{line}: {ran:?}");
        assert_eq!((ran.exit, ran.err.as_str()), (Exit::Done, ""));
    }
}

#[tokio::test]
async fn json_is_what_the_daemon_says() {
    let daemon = full().await;
    let all: List<Port> =
        serde_json::from_str(&ctl(&daemon, "get ports -o json", "").await.out).unwrap();
    assert_eq!(all.items.len(), 2);
    let one: Port =
        serde_json::from_str(&ctl(&daemon, "get port web-1 -o json", "").await.out).unwrap();
    assert_eq!(all.items[0], one);
}

// ---------------------------------------------------------------- trace, explain

#[tokio::test]
async fn trace_shows_each_rule_why_it_is_there_and_where_the_frame_ends() {
    let daemon = full().await;
    let line = "trace --from port/web-1 --src-mac 02:aa:00:00:00:01 --dst-mac ff:ff:ff:ff:ff:ff \
                --vlan 20 --arp 192.0.2.1,192.0.2.2";
    let ran = ctl(&daemon, line, "").await;
    let expected = "\
Some(02:aa:00:00:00:01) > ff:ff:ff:ff:ff:ff, [TraceTag { vid: 20, proto: Dot1Q, priority: Priority(0) }]
comes in at tap0 of soft-lab
 1. software: chain 0 prio 60 (in hardware, too): admission of 02:aa:bb:cc:00:01 (port web-1, network blue as tag 20)
      dev tap0 ingress protocol all pref 60 chain 0 flower action goto chain 64
      -> goto chain 64
 2. software: no rule of chain 64 takes it
result: to port web-2 (tap1, untagged)
but: 2 filters of others are there and not walked
";
    assert_eq!((ran.out.as_str(), ran.err.as_str(), ran.exit), (expected, "", Exit::Done));
    let ran = ctl(&daemon, &line.replace("web-1", "web-9"), "").await;
    assert_eq!(ran.exit, Exit::Refused, "{ran:?}");
    // Only one adapter has an uplink.
    let line = "trace --from uplink --src-mac 02:aa:00:00:00:01 --dst-mac 02:aa:00:00:00:02 \
                --ip 2001:db8::1,2001:db8::2 --icmp 134,0 --json";
    let ran = ctl(&daemon, line, "").await;
    assert!(ran.out.contains("\"verdict\": \"to port web-2"), "{ran:?}");
}

#[tokio::test]
async fn explain_marks_the_first_broken_link_and_says_what_to_do() {
    let daemon = full().await;
    let ran = ctl(&daemon, "explain port web-1", "").await;
    let expected = "\
port web-1
   asked        ok      revision 3: attached to blue
   seen         ok      on representor tap0
   hit          waits   no frame yet
                        what to do: do something
";
    assert_eq!((ran.out.as_str(), ran.exit), (expected, Exit::Done));
    daemon.double.change(|state| {
        for port in state.ports.values_mut() {
            port.status.adapter = None;
        }
    });
    let ran = ctl(&daemon, "explain port web-1", "").await;
    assert!(
        ran.out.contains("=> seen         BROKEN  guest `vm1` is not there\\u{7}\n"),
        "{ran:?}"
    );
    assert_eq!(ran.exit, Exit::Degraded);
}

// ---------------------------------------------------------------- describe, bug-report

#[tokio::test]
async fn describe_says_everything_about_a_resource_without_control_characters() {
    let daemon = full().await;
    let news = |resource: &str, message: &str| News {
        kind: NewsKind::Refusal,
        resource: resource.into(),
        reason: "AddressRefused".into(),
        message: message.into(),
        revision: None,
    };
    daemon.double.feed().tell("T1".into(), news("ports/web-2", "no \u{1b}[2J"));
    daemon.double.feed().tell("T2".into(), news("ports/web-1", "of another"));
    let ran = ctl(&daemon, "describe port web-2", "").await;
    for part in [
        "id: \"web-2\"\n",
        "    vf:\n      adapter: \"pci-0000:03:00.0\"\n      index: 1\n",
        "\nconditions:\n  TYPE        STATUS   REASON          SINCE                 MESSAGE\n",
        "  Programmed  False    KernelRefused   2026-11-22T15:04:05Z  EOPNOTSUPP: no\\u{1b}[2J\n",
        "\nhow far it has come:\n   asked        ok      revision 3",
        "\nlast events:\n  T1 refusal   ports/web-2 AddressRefused: no \\u{1b}[2J\n",
    ] {
        assert!(ran.out.contains(part), "{part}: {}", ran.out);
    }
    assert!(!ran.out.contains("of another") && !ran.out.contains('\u{1b}'), "{}", ran.out);
    for line in ["describe network blue", "describe guest vm1", "describe adapter soft-lab"] {
        assert_eq!(ctl(&daemon, line, "").await.exit, Exit::Done, "{line}");
    }
    assert_eq!(ctl(&daemon, "describe port web-9", "").await.exit, Exit::Refused);
    assert_eq!(ctl(&daemon, "describe flow a", "").await.exit, Exit::Usage);
}

#[tokio::test]
async fn yaml_is_what_json_is() {
    let daemon = full().await;
    for what in ["ports", "port web-1", "adapters", "flows"] {
        let json = ctl(&daemon, &format!("get {what} -o json"), "").await.out;
        let yaml = ctl(&daemon, &format!("get {what} -o yaml"), "").await.out;
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), json, "{yaml}");
    }
}

#[tokio::test]
async fn a_bug_report_is_one_file_with_everything() {
    let daemon = full().await;
    let file = daemon.folder.path().join("report.json");
    let ran = ctl(&daemon, &format!("bug-report {}", file.display()), "").await;
    assert_eq!(ran.exit, Exit::Done, "{ran:?}");
    let report: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let count = |part: &str| report[part].as_array().unwrap().len();
    assert_eq!((count("ports"), count("flows"), count("adapters")), (2, 2, 2));
    assert!(report["snapshot"]["format"] == 1 && report["events"].is_array());
}

// ---------------------------------------------------------------- status

#[tokio::test]
async fn status_says_what_is_degraded_and_why_without_control_characters() {
    let ran = ctl(&full().await, "status", "").await;
    let expected = "\
eswitchd at unix:SOCKET: ready

adapters: 2
  ID                MODE       UPLINK       VFS  FLOWS  IN HW  STATE
  pci-0000:03:00.0  switchdev  enp3s0f0np0  2    10     9      ok
  soft-lab          software   -            1    12     0      ok

guests: 1
  ID   RUN STATE  QEMU    ENABLED  STATE
  vm1  running    11.1.3  1/2      ok

ports: 2
  ID     FUNCTION            NETWORKS     MACS               FLOWS  IN HW  STATE
  web-1  vm1/vf0             blue,red@20  02:aa:bb:cc:00:01  12     0      ok
  web-2  pci-0000:03:00.0/1  blue         -                  10     9      Programmed False (KernelRefused) +1

degraded: 2
  WHAT        CONDITION          SINCE                 WHY
  port/web-2  Programmed False   2026-11-22T15:04:05Z  KernelRefused: EOPNOTSUPP: no\\u{1b}[2J
  port/web-2  Offloaded Partial  2026-11-22T15:04:05Z  SomeInSoftware: 9 of 10
";
    assert_eq!(ran, Ran { exit: Exit::Degraded, out: expected.to_owned(), err: String::new() });
}

#[tokio::test]
async fn completions_and_manual_pages_know_every_command_and_need_no_daemon() {
    let offline = |line: &'static str| async move {
        let words = ["eswitchctl", "--server", "/nowhere"];
        let arguments = Arguments::read(words.into_iter().chain(line.split_whitespace())).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = run(arguments, &mut &b""[..], &mut out, &mut err).await;
        (exit, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    };
    let commands =
        ["get", "apply", "delete", "status", "events", "snapshot", "teardown", "resume", "man"];
    let scripts = ["completion bash", "completion zsh", "completion fish"];
    for line in scripts.into_iter().chain(["man"]) {
        let (exit, out, _) = offline(line).await;
        assert_eq!(exit, Exit::Done);
        for command in commands {
            assert!(out.contains(command), "{line}: {command}");
        }
    }
    let (_, script, _) = offline("completion bash").await;
    let checked = std::process::Command::new("bash").args(["-n", "-c", &script]).status();
    assert!(checked.unwrap().success());
    let (_, page, _) = offline("man apply").await;
    assert!(page.contains(".TH") && page.contains("dry\\-run"), "{page}");
    let (exit, _, err) = offline("man nothing").await;
    assert_eq!(exit, Exit::Usage);
    assert!(err.contains("no command `nothing`"), "{err}");
}

#[tokio::test]
async fn status_of_a_daemon_with_nothing_to_do_is_short() {
    let daemon = Running::usual(Double::with(|_| {})).await;
    let expected = "\
eswitchd at unix:SOCKET: ready

adapters: 0

guests: 0

ports: 0

nothing is degraded
";
    let ran = ctl(&daemon, "status", "").await;
    assert_eq!(ran, Ran { exit: Exit::Done, out: expected.to_owned(), err: String::new() });
}

#[tokio::test]
async fn status_of_a_daemon_that_is_not_ready_says_so() {
    let daemon = Running::usual(Double::with(|state| {
        state.not_ready = vec!["adapter soft-lab: uplink is missing".into()];
    }))
    .await;
    let ran = ctl(&daemon, "status", "").await;
    assert_eq!(ran.exit, Exit::Degraded);
    assert!(ran.out.starts_with(
        "eswitchd at unix:SOCKET: NOT READY\n  adapter soft-lab: uplink is missing\n"
    ));
}

#[tokio::test]
async fn status_of_a_large_host_still_is_one_screen() {
    let daemon = Running::usual(Double::with(|state| {
        host(state);
        let port = state.ports["web-2"].clone();
        state.ports = (0..1000)
            .map(|n| format!("p{n:04}").parse().unwrap())
            .map(|id: eswitchd_api::types::Id| (id.clone(), Port { id, ..port.clone() }))
            .collect();
    }))
    .await;
    let ran = ctl(&daemon, "status", "").await;
    assert!(ran.out.contains("ports: 1000\n") && ran.out.contains("… and 985 more"));
    assert!(ran.out.contains("degraded: 2000\n"));
    assert!(ran.out.lines().count() < 60, "{}", ran.out);
}

// ---------------------------------------------------------------- apply and delete

const BLUE: &str = r#"{"kind": "network", "id": "blue", "spec": {"kind": "flat"}}"#;
const WEB: &str = r#"{"kind": "port", "id": "web", "spec": {
    "function": {"vf": {"adapter": "a", "index": 0}}, "attachments": [{"network": "blue"}]}}"#;
const VM: &str = r#"{"kind": "guest", "id": "vm1", "spec": {}}"#;

async fn empty() -> (Arc<Double>, Running) {
    let double = Double::with(|_| {});
    (Arc::clone(&double), Running::usual(double).await)
}

#[tokio::test]
async fn apply_takes_one_document_several_or_arrays_of_them() {
    let (_, daemon) = empty().await;
    for (input, out) in [
        (BLUE.to_owned(), "networks/blue created\n"),
        (
            format!("{BLUE}\n{VM} [{WEB}]"),
            "networks/blue unchanged\nguests/vm1 created\nports/web created\n",
        ),
        (BLUE.replace("flat", "isolated"), "networks/blue updated\n"),
    ] {
        let ran = ctl(&daemon, "apply -f -", &input).await;
        assert_eq!(ran, Ran { exit: Exit::Done, out: out.to_owned(), err: String::new() });
    }
}

#[tokio::test]
async fn apply_reads_files() {
    let (_, daemon) = empty().await;
    let file = daemon.folder.path().join("blue.json");
    std::fs::write(&file, BLUE).unwrap();
    let ran = ctl(&daemon, &format!("apply -f {}", file.display()), "").await;
    assert_eq!(ran.out, "networks/blue created\n");
    let ran = ctl(&daemon, &format!("apply -f {}.none", file.display()), "").await;
    assert_eq!(ran.exit, Exit::Usage);
    assert!(ran.err.contains("blue.json.none"), "{}", ran.err);
}

#[tokio::test]
async fn apply_sends_nothing_where_any_document_is_wrong() {
    let (double, daemon) = empty().await;
    for (wrong, says) in [
        ("", "there is no document"),
        ("kind: [", "not YAML"),
        ("kind: network\n---\n", "document 1: id: missing field `id`"),
        ("{", "not JSON"),
        ("[5]", "document 1"),
        (r#"{"kind": "switch", "id": "a", "spec": {}}"#, "kind: unknown variant `switch`"),
        (r#"{"kind": "guest", "spec": {}}"#, "id: missing field `id`"),
        (r#"{"kind": "guest", "id": "a", "spec": {}, "status": {}}"#, "status: unknown field"),
        (
            r#"{"kind": "network", "id": "a", "spec": {"kind": {"vlan": {"vid": 5000}}}}"#,
            "spec.kind.vlan.vid: 5000 is not a VLAN id; use 1 to 4094",
        ),
        (
            r#"{"kind": "guest", "id": "a", "spec": {"qmp": "x"}}"#,
            "spec.qmp: `x` is not an absolute",
        ),
    ] {
        let input = if wrong.is_empty() { String::new() } else { format!("{wrong} {BLUE}") };
        let ran = ctl(&daemon, "apply -f -", &input).await;
        assert_eq!((ran.exit, ran.out.as_str()), (Exit::Usage, ""), "{wrong}");
        assert!(ran.err.contains(says), "{}", ran.err);
    }
    assert!(double.change(|state| state.networks.is_empty()));
}

#[tokio::test]
async fn a_refusal_of_a_batch_names_what_stands_in_the_way() {
    let (double, daemon) = empty().await;
    double.change(|state| {
        state.trouble = Some(Trouble::Error(|| ApiError::Conflict {
            detail: "VF 0 has a port".into(),
            blockers: vec![],
            remedy: "delete that port first".into(),
        }));
    });
    let ran = ctl(&daemon, "apply -f -", &format!("{WEB} {BLUE}")).await;
    let err = "eswitchctl: VF 0 has a port\n  remedy: delete that port first\n";
    let expected = Ran { exit: Exit::Refused, out: String::new(), err: err.to_owned() };
    assert_eq!(ran, expected);
}

#[tokio::test]
async fn documents_may_be_yaml_and_a_name_stands_once() {
    let (double, daemon) = empty().await;
    let yaml = "\
# a network and a port
kind: network
id: blue
spec:
  kind: {vlan: {vid: 100}}
  reserved_macs: [02:00:5e:00:00:01]
---
kind: port
id: web
spec:
  function: {vf: {adapter: pci-0000:03:00.0, index: 0}}
  attachments:
    - network: blue
  macs: [\"02:00:00:00:00:01\"]
";
    let ran = ctl(&daemon, "apply -f -", yaml).await;
    assert_eq!(
        (ran.out.as_str(), ran.err.as_str()),
        ("networks/blue created\nports/web created\n", "")
    );
    let kind = double.change(|state| state.networks.values().next().unwrap().spec.kind);
    assert!(matches!(kind, NetworkKind::Vlan(tag) if tag.vid.get() == 100));
    let ran = ctl(&daemon, "apply -f -", &format!("{BLUE} {BLUE}")).await;
    assert_eq!(ran.exit, Exit::Usage);
    assert!(ran.err.contains("document 2: networks/blue is there twice"), "{}", ran.err);

    let ran = ctl(&daemon, "delete -f - --dry-run", yaml).await;
    assert!(ran.out.contains("ports/web would be updated\n"), "{}", ran.out);
    assert_eq!(double.change(|state| state.ports.len()), 1, "nothing was done");
    let ran = ctl(&daemon, "delete -f -", yaml).await;
    assert_eq!(ran.out, "networks/blue deleted\nports/web deleted\n");
    assert!(double.change(|state| state.ports.is_empty() && state.networks.is_empty()));
}

#[tokio::test]
async fn delete_says_what_stands_in_the_way() {
    let (_, daemon) = empty().await;
    ctl(&daemon, "apply -f -", &format!("{BLUE} {WEB}")).await;
    let ran = ctl(&daemon, "delete network blue", "").await;
    assert_eq!(
        ran.err,
        "eswitchctl: network `blue` has 1 ports\n  in the way: ports/web\n  \
         remedy: detach or delete these ports first\n"
    );
    assert_eq!(ran.exit, Exit::Refused);
    for line in ["delete port web", "delete network blue"] {
        let ran = ctl(&daemon, line, "").await;
        assert_eq!(ran.exit, Exit::Done);
        assert!(ran.out.ends_with(" deleted\n"));
    }
}

// ---------------------------------------------------------------- how it ends

/// Runs the program itself.
async fn program(daemon: &Running, words: &[&str]) -> std::process::Output {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_eswitchctl"))
        .env("ESWITCHD_API", daemon.socket())
        .args(words)
        .output()
        .await
        .unwrap()
}

#[tokio::test]
async fn the_program_ends_with_the_status_that_its_help_promises() {
    let (double, mut daemon) = empty().await;
    let status =
        async |daemon: &Running, words: &[&str]| program(daemon, words).await.status.code();
    assert_eq!(status(&daemon, &["status"]).await, Some(0));
    assert_eq!(status(&daemon, &["get", "port", "none"]).await, Some(1));
    assert_eq!(status(&daemon, &["get", "switches"]).await, Some(2));
    double.change(|state| state.trouble = Some(Trouble::Error(|| ApiError::Store("disk".into()))));
    assert_eq!(status(&daemon, &["get", "ports"]).await, Some(4));
    double.change(|state| {
        state.trouble = None;
        host(state);
    });
    assert_eq!(status(&daemon, &["status"]).await, Some(5));
    daemon.stop().await;
    let gone = program(&daemon, &["status"]).await;
    assert_eq!(gone.status.code(), Some(3));
    let err = String::from_utf8(gone.stderr).unwrap();
    assert!(err.starts_with("eswitchctl: cannot reach eswitchd at unix:/"), "{err}");
}

#[tokio::test]
async fn the_program_prints_to_a_pipe() {
    let ran = program(&full().await, &["get", "guests"]).await;
    let out = String::from_utf8(ran.stdout).unwrap();
    assert_eq!(
        out,
        "ID   RUN STATE  QEMU    ENABLED  STATE\nvm1  running    11.1.3  1/2      ok\n"
    );
    assert!(ran.stderr.is_empty());
}

#[tokio::test]
async fn a_snapshot_goes_to_a_file_and_back() {
    let (double, daemon) = empty().await;
    ctl(&daemon, "apply -f -", &format!("{BLUE} {VM} {WEB}")).await;
    let file = daemon.folder.path().join("saved.json");
    let save = format!("snapshot save {}", file.display());
    let restore = format!("snapshot restore {}", file.display());
    let ran = ctl(&daemon, &save, "").await;
    let out = "saved revision 3: 1 networks, 1 ports, 1 guests\n".to_owned();
    assert_eq!(ran, Ran { exit: Exit::Done, out, err: String::new() });
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(ctl(&daemon, "snapshot save -", "").await.out, text);

    let ran = ctl(&daemon, &restore, "").await;
    assert_eq!(ran.out, "unchanged, revision 3: 1 networks, 1 ports, 1 guests\n");
    ctl(&daemon, "delete port web", "").await;
    let ran = ctl(&daemon, "snapshot restore -", &text).await;
    assert_eq!(ran.out, "updated, revision 4: 1 networks, 1 ports, 1 guests\n");
    assert_eq!(double.change(|state| state.ports.len()), 1);

    let ran = ctl(&daemon, "snapshot restore -", &text.replace("\"flat\"", "\"round\"")).await;
    assert_eq!(ran.exit, Exit::Refused);
    assert!(ran.err.contains("networks[0].spec.kind: unknown variant `round`"), "{}", ran.err);
    let ran = ctl(&daemon, &format!("{restore}.none"), "").await;
    assert_eq!(ran.exit, Exit::Usage);
    assert!(ran.err.contains("saved.json.none"), "{}", ran.err);
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_written_or_had_leaves_the_last_one_alone() {
    let (double, daemon) = empty().await;
    let file = daemon.folder.path().join("saved.json");
    std::fs::write(&file, "the last one").unwrap();
    double.change(|state| state.trouble = Some(Trouble::Error(|| ApiError::Store("disk".into()))));
    let ran = ctl(&daemon, &format!("snapshot save {}", file.display()), "").await;
    assert_eq!((ran.exit, ran.out), (Exit::Failed, String::new()));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "the last one");

    double.change(|state| state.trouble = None);
    let nowhere = daemon.folder.path().join("none/saved.json");
    let ran = ctl(&daemon, &format!("snapshot save {}", nowhere.display()), "").await;
    assert_eq!(ran.exit, Exit::Failed);
    assert!(ran.err.contains("cannot write") && ran.err.contains("none/saved.json"), "{}", ran.err);
}

#[tokio::test]
async fn a_teardown_says_what_went_and_what_would_not() {
    let daemon = full().await;
    let ran = ctl(&daemon, "teardown", "").await;
    assert_eq!(ran.exit, Exit::Done, "{ran:?}");
    assert!(ran.out.ends_with("flows taken away from 1 netdevs, 2 of others left\n"), "{ran:?}");
    let ran = ctl(&daemon, "resume", "").await;
    assert_eq!(ran, Ran { exit: Exit::Done, out: String::new(), err: String::new() });

    let (double, daemon) = empty().await;
    double.change(|state| state.not_torn_down = vec!["tap0: chain 0 prio 1: busy".into()]);
    let ran = ctl(&daemon, "teardown", "").await;
    assert_eq!(ran.exit, Exit::Failed);
    assert_eq!(ran.err, "eswitchctl: not taken away: tap0: chain 0 prio 1: busy\n");
}

// ---------------------------------------------------------------- top, doctor, eswitch

#[tokio::test]
async fn top_shows_what_ports_do_in_a_second() {
    let double = Double::with(|state| {
        state.metrics = "eswitchd_port_received_bytes_total{port=\"web-1\"} 7\n".into();
    });
    let daemon = Running::usual(double).await;
    let ran = ctl(&daemon, "top --interval 1 --count 1", "").await;
    let head = "PORT   RECEIVED bit/s  frames/s  SENT bit/s  frames/s  DROPPED/s  MOSTLY FOR\n";
    assert_eq!((ran.exit, &*ran.err), (Exit::Done, ""));
    assert_eq!(ran.out.lines().next().map(str::trim), head.lines().next());
    assert!(ran.out.lines().nth(1).unwrap().starts_with("web-1  0"), "{}", ran.out);
}

#[tokio::test]
async fn doctor_names_what_is_wrong_with_the_daemon_and_what_to_do() {
    let findings = async |double: Arc<Double>| -> Vec<Value> {
        let daemon = Running::usual(double).await;
        let ran = ctl(&daemon, "doctor --json", "").await;
        let all: Vec<Value> = serde_json::from_str(&ran.out).unwrap();
        let wrong = all.iter().any(|finding| finding["verdict"] == "wrong");
        assert_eq!(ran.exit, if wrong { Exit::Degraded } else { Exit::Done });
        // This host, as it may be, is what other tests are about.
        let of_daemon = |finding: &Value| {
            let what = finding["what"].as_str().unwrap().to_owned();
            ["daemon", "adapter", "guest"].iter().any(|start| what.starts_with(start))
        };
        all.into_iter().filter(of_daemon).collect()
    };
    let empty = findings(Double::with(|_| {})).await;
    assert_eq!(empty[0]["verdict"], "ok");
    assert_eq!((&empty[1]["what"], &empty[1]["verdict"]), (&"adapters".into(), &"wrong".into()));
    let said = findings(Double::with(|state| {
        host(state);
        state.not_ready = vec!["no look yet".into()];
        state.adapters[0].foreign_filters = 3;
    }))
    .await;
    let text = serde_json::to_string(&said).unwrap();
    assert_eq!((&said[0]["verdict"], &said[0]["says"]), (&"wrong".into(), &"no look yet".into()));
    assert!(text.contains("3 filters of others are on its hooks"), "{text}");
    for finding in said {
        assert_eq!(finding["verdict"] != "ok", finding["fix"].is_string(), "{finding}");
    }
    // Without a daemon the host is checked nevertheless.
    let mut daemon = Running::usual(Double::with(|_| {})).await;
    daemon.stop().await;
    let ran = ctl(&daemon, "doctor", "").await;
    assert_eq!(ran.exit, Exit::Degraded);
    assert!(ran.out.contains("WRONG daemon         cannot reach eswitchd at"), "{}", ran.out);
    assert!(ran.out.contains("to do: start it"), "{}", ran.out);
}

#[tokio::test]
async fn an_eswitch_is_tried_and_changed_by_a_command() {
    let daemon = Running::usual(Double::with(host)).await;
    let id = daemon.double.change(|state| state.adapters[0].id.clone());
    let tried = ctl(&daemon, &format!("eswitch {id} --vfs 9 --dry-run"), "").await;
    assert_eq!(tried.exit, Exit::Done, "{tried:?}");
    assert!(tried.out.starts_with(&format!("adapters/{id}: ")), "{tried:?}");
    assert!(tried.out.ends_with("nothing was changed\n"), "{tried:?}");
    let forced = ctl(&daemon, &format!("eswitch {id} --vfs 9 --force"), "").await;
    assert!(forced.out.contains("begun; `eswitchctl describe adapter"), "{forced:?}");
    assert!(Arguments::read(["eswitchctl", "eswitch", "a"]).is_err(), "nothing is asked for");
}

#[tokio::test]
async fn resources_are_shown_by_their_labels() {
    let daemon = Running::usual(Double::with(|_| {})).await;
    let document = |id: &str, tier: &str| {
        let spec = json!({"kind": "flat", "labels": {"tier": tier}});
        json!({"kind": "network", "id": id, "spec": spec}).to_string()
    };
    let both = document("blue", "größe 3") + &document("red", "db");
    assert_eq!(ctl(&daemon, "apply -f -", &both).await.exit, Exit::Done);
    let shown = ctl(&daemon, "get networks --label tier=db", "").await;
    assert!(shown.out.contains("red") && !shown.out.contains("blue"), "{shown:?}");
    let client = daemon.client().labelled(vec!["tier=größe 3".into()]);
    let ids: Vec<String> =
        client.networks().await.unwrap().iter().map(|it| it.id.to_string()).collect();
    assert_eq!(ids, ["blue"]);
    assert!(Arguments::read(["eswitchctl", "get", "flows", "-l", "a"]).is_err());
}
