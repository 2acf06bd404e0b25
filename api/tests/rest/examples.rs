//! The scripts in docs/examples do what they say, against a daemon in memory. They need Python 3
//! and curl 7.82.

use std::{path::PathBuf, process::Output};

use eswitchd_api::types::Id;
use serde_json::{Value, json};

use crate::{double::Double, wire::Running};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples");

async fn run(daemon: &Running, script: &str, arguments: &[&str]) -> Output {
    tokio::process::Command::new(format!("{FOLDER}/{script}"))
        .arg(daemon.socket())
        .args(arguments)
        .output()
        .await
        .unwrap()
}

#[track_caller]
fn said(output: &Output, expected: &str) {
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{output:?}");
    assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]), "{output:?}");
}

fn specs(daemon: &Running) -> Value {
    daemon.double.change(|state| {
        let ports: Vec<Value> = state.ports.values().map(|port| json!(port.spec)).collect();
        let networks: Vec<Value> =
            state.networks.values().map(|network| json!([network.id, network.spec.kind])).collect();
        json!({"ports": ports, "networks": networks})
    })
}

/// A trunk port as Neutron has it, in a file.
fn neutron_port(daemon: &Running, change: Value) -> PathBuf {
    let mut port = json!({
        "id": "5a1f9a4c-0001",
        "device_id": "instance-00000001",
        "mac_address": "fa:16:3e:00:00:01",
        "network_id": "net-blue",
        "network": {"provider:network_type": "vlan", "provider:segmentation_id": 100},
        "fixed_ips": [{"ip_address": "192.0.2.7"}, {"ip_address": "2001:db8::7"}],
        "allowed_address_pairs": [
            {"ip_address": "198.51.100.0/24"},
            {"ip_address": "192.0.2.100", "mac_address": "00:00:5e:00:01:01"},
        ],
        "binding:profile": {
            "pci_slot": "0000:03:00.4", "pf_pci_slot": "0000:03:00.0", "vf_num": 2,
        },
        "trunk_details": {"sub_ports": [{
            "network_id": "net-red", "segmentation_id": 20,
            "network": {"provider:network_type": "vlan", "provider:segmentation_id": 200},
        }]},
        "qos_rules": [{"direction": "egress", "max_kbps": 500_000}],
    });
    let fields = port.as_object_mut().unwrap();
    fields.extend(change.as_object().unwrap().clone());
    let path = daemon.folder.path().join("port.json");
    std::fs::write(&path, port.to_string()).unwrap();
    path
}

#[tokio::test]
async fn a_compute_agent_plugs_unplugs_and_migrates_a_neutron_port() {
    let daemon = Running::usual(Double::with(|_| {})).await;
    let file = neutron_port(&daemon, json!({}));
    let file = file.to_str().unwrap();
    let expected = json!({
        "networks": [
            ["net-blue", {"vlan": {"vid": 100, "proto": "802.1q"}}],
            ["net-red", {"vlan": {"vid": 200, "proto": "802.1q"}}],
        ],
        "ports": [{
            "function": {"vf": {"adapter": "pci-0000:03:00.0", "index": 2}},
            "attachments": [{"network": "net-blue"}, {"network": "net-red", "tag": 20}],
            "macs": ["fa:16:3e:00:00:01"],
            "ips": ["192.0.2.7", "2001:db8::7"],
            "allowed_address_pairs": [
                {"ip": "198.51.100.0/24"},
                {"ip": "192.0.2.100", "mac": "00:00:5e:00:01:01"},
            ],
            "promiscuous": "deny",
            "qos": {"tx_max": 500_000_000},
            "admin_state": "up",
        }],
    });
    for command in ["expect", "arrived", "plug", "plug"] {
        let ran = run(&daemon, "compute-agent.py", &[command, file]).await;
        said(&ran, &format!("{command} 5a1f9a4c-0001\n"));
        assert_eq!(specs(&daemon), expected);
    }
    for _ in 0..2 {
        let ran = run(&daemon, "compute-agent.py", &["unplug", file]).await;
        said(&ran, "unplug 5a1f9a4c-0001\n");
        assert_eq!(specs(&daemon)["ports"], json!([]));
    }
}

#[tokio::test]
async fn a_compute_agent_says_what_is_missing_and_fails() {
    let missing = Some((1, "port 5a1f9a4c-0001: not Bound (VfMissing)"));
    let daemon = Running::usual(Double::with(|state| state.missing = missing)).await;
    let guest_vf = json!({"binding:profile": {"guest_vf": "vf0"}, "port_security_enabled": false});
    let file = neutron_port(&daemon, guest_vf);
    let ran = run(&daemon, "compute-agent.py", &["plug", file.to_str().unwrap()]).await;
    let words = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(1));
    assert!(
        words.contains("not Bound (VfMissing)") && words.contains("goes on by itself"),
        "{words}"
    );

    let vxlan = neutron_port(&daemon, json!({"network": {"provider:network_type": "vxlan"}}));
    let ran = run(&daemon, "compute-agent.py", &["plug", vxlan.to_str().unwrap()]).await;
    assert_eq!(ran.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&ran.stderr).contains("type vxlan"), "{ran:?}");
}

#[tokio::test]
async fn an_operator_of_nodes_gives_their_vfs_ports_and_takes_them_away() {
    let daemon = Running::usual(Double::with(|_| {})).await;
    let operator = async |words: &'static str| {
        let words: Vec<&str> = words.split(' ').collect();
        run(&daemon, "node-operator.sh", &words).await
    };
    for _ in 0..2 {
        said(&operator("network blue 100").await, "network blue 100\n");
        said(&operator("attach node1 vf3 blue 2").await, "attach node1 vf3 blue 2\n");
    }
    let id: Id = "node1.vf3".parse().unwrap();
    let port = daemon.double.change(|state| state.ports[&id].clone());
    let function = json!({"guest_vf": {"guest": "node1", "device": "vf3"}});
    assert_eq!(json!(port.spec.function), function);
    assert_eq!(json!(port.spec.guest_macs), json!({"max": 2}));

    // A network goes after its ports.
    let refused = operator("remove blue").await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("ports/node1.vf3"), "{refused:?}");
    for _ in 0..2 {
        said(&operator("detach node1 vf3").await, "detach node1 vf3\n");
    }
    said(&operator("remove blue").await, "remove blue\n");
    assert_eq!(specs(&daemon), json!({"ports": [], "networks": []}));
}
