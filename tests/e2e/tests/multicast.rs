//! Frames to a multicast group, from an IPv6 address in a real guest, whose solicited-node group the
//! guest's kernel asks for, to who receives them.
//!
//! One guest with two VFs on taps in a network with `multicast: declared`. What the kernel holds is
//! read with `tc`, what goes to the guest from the taps' counters.

#![expect(clippy::expect_used, reason = "what fails here fails the test")]

use std::collections::BTreeSet;

use eswitchd_e2e_tests::{DEADLINE, create_vfs};
use lab::{
    daemon::Daemon,
    guest::{Backing, Guest},
    net::{self, Netns, frame, send_frame},
};
use serde_json::json;

const SENDER: &str = "02:bb:00:00:00:01";
/// An address, and its solicited-node group (RFC 4291, section 2.7.1; RFC 2464, section 7).
const ADDRESS: &str = "2001:db8::7:7707/64";
const GROUP: &str = "33:33:ff:07:77:07";
const BROADCAST: &str = "ff:ff:ff:ff:ff:ff";

/// For experiments (IEEE 802): nobody else sends it.
const ETHERTYPE: u16 = 0x88b5;
const FRAMES: u64 = 500;

/// To which netdevs the rule for this destination, at the hook of the sender, sends frames.
fn goes_to(destination: &str) -> BTreeSet<String> {
    let all = net::tc_json("filter show dev vm-far ingress").expect("tc");
    let all = all.as_array().cloned().unwrap_or_default();
    let of_it = all.iter().filter(|filter| filter["options"]["keys"]["dst_mac"] == destination);
    of_it
        .flat_map(|filter| filter["options"]["actions"].as_array().cloned().unwrap_or_default())
        .filter_map(|action| Some(action["to_dev"].as_str()?.to_owned()))
        .collect()
}

fn until_it_goes_to(expected: &[&str]) {
    let expected: BTreeSet<String> = expected.iter().map(|to| (*to).to_owned()).collect();
    net::wait_for("the flows", DEADLINE, || (goes_to(GROUP) == expected).then_some(()))
        .unwrap_or_else(|error| panic!("{error}: {:?}, not {expected:?}", goes_to(GROUP)));
}

/// Frames that went out to a guest.
fn sent(tap: &str) -> u64 {
    let link = net::ip_json(&format!("-s link show {tap}")).expect("statistics");
    link[0]["stats64"]["tx"]["packets"].as_u64().expect("a number")
}

/// Sends many frames; says to which of the taps they all went. Few others go there meanwhile.
fn taken_by(destination: &str) -> Vec<&'static str> {
    let taps = ["vm-a", "vm-b"];
    let before = taps.map(sent);
    let frame = frame(destination, SENDER, &[], ETHERTYPE, b"eswitchd");
    for _ in 0..FRAMES {
        send_frame("far", &frame).expect("sent");
    }
    let gets = |(tap, before): &(&'static str, u64)| sent(tap) - before >= FRAMES;
    taps.into_iter().zip(before).filter(gets).map(|(tap, _)| tap).collect()
}

#[test]
fn a_group_goes_to_the_function_whose_driver_asked_for_it_and_broadcast_to_all() {
    let _netns = Netns::enter().expect("a namespace");
    net::ip("link add vm-far type veth peer name far").expect("veth");
    for link in ["vm-far", "far"] {
        net::ip(&format!("link set {link} addrgenmode none up")).expect("up");
    }
    for tap in ["vm-a", "vm-b"] {
        net::ip(&format!("tuntap add dev {tap} mode tap")).expect("tap");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let configuration = "\n[[adapter]]\nsoftware = \"lab\"\nrepresentors = [\"vm-*\"]\n";
    let daemon = Daemon::start(folder.path(), configuration).expect("eswitchd");
    let network = json!({"kind": "isolated", "multicast": "declared"});
    daemon.put("/v1/networks/blue", network).expect("a network");
    let far = json!({
        "function": {"netdev": {"adapter": "soft-lab", "name": "vm-far"}},
        "attachments": [{"network": "blue"}],
        "macs": [SENDER],
    });
    daemon.put("/v1/ports/far", far).expect("a port");
    for (port, device) in [("a", "vf0"), ("b", "vf1")] {
        let spec = json!({
            "function": {"guest_vf": {"guest": "c", "device": device}},
            "attachments": [{"network": "blue"}],
            "guest_macs": {"max": 1},
        });
        daemon.put(&format!("/v1/ports/{port}"), spec).expect("a port");
    }
    let guest = Guest::named("c")
        .vf(0, Backing::Tap("vm-a".into()))
        .vf(1, Backing::Tap("vm-b".into()))
        .qmp_socket(daemon.qmp_dir().join("c.sock"))
        .start()
        .expect("a guest");
    create_vfs(&guest, 2);
    guest.run("ip link set eth1 up; ip link set eth2 up").expect("links");
    for port in ["/v1/ports/a", "/v1/ports/b"] {
        daemon.wait_for_condition(port, "Programmed", "True").expect("programmed");
    }

    until_it_goes_to(&[]);
    assert_eq!(taken_by(GROUP), Vec::<&str>::new(), "nobody has asked");
    guest.run(&format!("ip addr add {ADDRESS} dev eth2")).expect("asked");
    until_it_goes_to(&["vm-b"]);
    assert_eq!(taken_by(GROUP), ["vm-b"]);
    guest.run(&format!("ip addr add {ADDRESS} dev eth1")).expect("asked");
    until_it_goes_to(&["vm-a", "vm-b"]);
    assert_eq!(taken_by(GROUP), ["vm-a", "vm-b"]);
    guest.run(&format!("ip addr del {ADDRESS} dev eth2")).expect("asked no more");
    until_it_goes_to(&["vm-a"]);
    assert_eq!(taken_by(GROUP), ["vm-a"]);
    assert_eq!(taken_by(BROADCAST), ["vm-a", "vm-b"]);
}
