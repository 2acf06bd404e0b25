//! VF trust in legacy mode: what ports allow, as real drivers report it.
//!
//! In: ports that allow promiscuous mode, or do not. Out: `ip -d link show`, never the daemon's own
//! word. Needs netdevsim, and the lab's igb in the first network namespace.

#![expect(clippy::expect_used, reason = "what fails here fails the test")]

use lab::{
    daemon::{self, Daemon},
    net::{self, Netdevsim, Netns},
};
use serde_json::{Value, json};

/// The lab's igb.
const IGB: &str = "0000:01:00.0";

/// Trust of the first two VFs, as `ip` reads it from the driver.
fn trust(pf: &str) -> [Value; 2] {
    let link = net::ip_json(&format!("-d link show {pf}")).expect("ip");
    [0, 1].map(|vf| link[0]["vfinfo_list"][vf]["trust"].clone())
}

fn until_trust(pf: &str, expected: [bool; 2]) {
    let expected = expected.map(Value::from);
    net::wait_for("trust", daemon::PATIENCE, || (trust(pf) == expected).then_some(()))
        .unwrap_or_else(|error| panic!("{error}: {:?}, not {expected:?}", trust(pf)));
}

/// Two ports on the first two VFs: trust is had by that which allows promiscuous mode, taken back
/// when it no longer does or goes, and not left to who comes next.
fn follows_the_ports(daemon: &Daemon, adapter: &str, pf: &str) {
    daemon.put("/v1/networks/blue", json!({"kind": "flat"})).expect("a network");
    let put = |vf: usize, promiscuous: &str| {
        let spec = json!({
            "function": {"vf": {"adapter": adapter, "index": vf}},
            "attachments": [{"network": "blue"}],
            "macs": [format!("02:00:00:00:00:0{vf}")],
            "promiscuous": promiscuous,
        });
        daemon.put(&format!("/v1/ports/p{vf}"), spec).expect("a port");
        let path = format!("/v1/ports/p{vf}");
        daemon.wait_for_condition(&path, "Programmed", "True").expect("programmed");
    };
    put(0, "deny");
    put(1, "allow");
    until_trust(pf, [false, true]);
    let seen = daemon.get(&format!("/v1/adapters/{adapter}")).expect("the adapter");
    let told = [0, 1].map(|vf| seen["vfs"][vf]["settings"]["trust"].clone());
    assert_eq!(told, [false, true].map(Value::from), "what the API says is what the driver says");

    put(0, "allow");
    put(1, "deny");
    until_trust(pf, [true, false]);
    daemon.delete("/v1/ports/p0").expect("deleted");
    until_trust(pf, [false, false]);
}

#[test]
fn on_netdevsim_trust_is_what_the_port_allows() {
    let _netns = Netns::enter().expect("a namespace");
    net::modprobe("netdevsim").expect("netdevsim");
    let device = Netdevsim::create(1).expect("a device");
    device.set_vfs(2).expect("VFs");
    let folder = tempfile::tempdir().expect("a folder");
    let configuration = format!("\n[[adapter]]\nhandle = \"{}\"\n", device.handle());
    let daemon = Daemon::start(folder.path(), &configuration).expect("eswitchd");
    let pf = device.uplink().expect("the PF's netdev");
    follows_the_ports(&daemon, &device.handle().replacen('/', "-", 1), &pf);
}

#[test]
fn on_igb_trust_is_what_the_port_allows() {
    let sysfs = std::path::Path::new("/sys/bus/pci/devices").join(IGB);
    if !sysfs.exists() || std::env::var_os("ESWITCHD_LAB").is_none() {
        panic!("this test needs the lab's igb at {IGB}: run it with `cargo lab test --vm`");
    }
    net::modprobe("igb").expect("igb");
    let set_vfs = |count: &str| std::fs::write(sysfs.join("sriov_numvfs"), count).expect("VFs");
    set_vfs("0");
    set_vfs("2");
    let pf = std::fs::read_dir(sysfs.join("net"))
        .expect("the PF's netdev")
        .find_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .expect("the PF's netdev");
    let folder = tempfile::tempdir().expect("a folder");
    let configuration = format!("\n[[adapter]]\nhandle = \"pci/{IGB}\"\n");
    let daemon = Daemon::start(folder.path(), &configuration).expect("eswitchd");
    follows_the_ports(&daemon, &format!("pci-{IGB}"), &pf);
    drop(daemon);
    set_vfs("0");
}
