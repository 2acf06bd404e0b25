//! `vdpa = "manage"`: the daemon makes and removes vDPA devices for ports, and no others.
//!
//! Needs vdpa_sim_net and the initial network namespace, which is where the vDPA family is, and the
//! lab's virtio PF. A simulated device stands on no VF: a software adapter names what makes them, and
//! each of its representors counts as a place. On a real VF the devices are vp_vdpa's. Judged with
//! `vdpa` of iproute2.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::process::{Child, Command, Stdio};

use eswitchd_e2e_tests::{
    DEADLINE,
    vdpa::{VirtioPf, character_device},
};
use lab::{
    daemon::{Daemon, condition},
    net,
    vm::VIRTIO_PF_ADDRESS,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const CONFIGURATION: &str = "\n[[adapter]]\nsoftware = \"lab\"\nrepresentors = [\"vdm*\"]\n\
                             vdpa = \"manage\"\nvdpa_management = \"vdpasim_net\"\n";
const MAC_1: &str = "02:aa:00:00:00:01";
const MAC_2: &str = "02:aa:00:00:00:02";
const OURS: &str = "eswd-vdm0@soft-lab";

/// Devices of names that are not the daemon's to touch: somebody's, and another adapter's.
const FOREIGN: [&str; 2] = ["somebodys", "eswd-vdm0@soft-other"];

/// What the test makes of its own, removed when it ends.
struct Made;

impl Drop for Made {
    fn drop(&mut self) {
        for device in FOREIGN.into_iter().chain([OURS]) {
            let _ = net::command("vdpa", ["dev", "del", device]);
        }
        let _ = net::ip("link del vdm0");
    }
}

/// Killed when dropped.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The address of a vDPA device; none where there is no such device.
fn mac_of(device: &str) -> Option<String> {
    let shown = net::command("vdpa", ["-j", "dev", "config", "show", device]).ok()?;
    let shown: Value = serde_json::from_str(&shown).ok()?;
    Some(shown["config"][device]["mac"].as_str()?.to_owned())
}

fn until_mac(mac: Option<&str>) {
    net::wait_for("the device's address", DEADLINE, || {
        (mac_of(OURS).as_deref() == mac).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}, not {mac:?}", mac_of(OURS)));
}

/// Has a process hold a vDPA device, as a QEMU does.
fn hold(device: &str) -> Holder {
    let node = character_device(device);
    let script = format!("exec 5<>{} && echo held && exec sleep 1000", node.display());
    let mut child =
        Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = [0; 5];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
    Holder(child)
}

fn port(mac: &str) -> Value {
    json!({
        "function": {"netdev": {"adapter": "soft-lab", "name": "vdm0"}},
        "attachments": [{"network": "blue"}],
        "macs": [mac],
    })
}

#[test]
fn a_ports_vdpa_device_comes_with_it_follows_its_address_and_goes_with_it_when_nobody_uses_it() {
    for module in ["vdpa_sim_net", "vhost_vdpa"] {
        net::modprobe(module).unwrap();
    }
    let _made = Made;
    net::ip("link add vdm0 type veth peer name vdm0-peer").unwrap();
    for device in FOREIGN {
        net::command("vdpa", ["dev", "add", "name", device, "mgmtdev", "vdpasim_net"]).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(folder.path(), CONFIGURATION).unwrap();
    daemon.put("/v1/networks/blue", json!({"kind": "flat"})).unwrap();

    daemon.put("/v1/ports/p", port(MAC_1)).unwrap();
    let seen = daemon.wait_for_condition("/v1/ports/p", "VdpaDevice", "True").unwrap();
    assert_eq!(seen["status"]["vdpa_device"], OURS);
    assert_eq!(mac_of(OURS).as_deref(), Some(MAC_1));

    daemon.put("/v1/ports/p", port(MAC_2)).unwrap();
    until_mac(Some(MAC_2));
    daemon.wait_for_condition("/v1/ports/p", "VdpaDevice", "True").unwrap();

    // A device that a process uses stays as it is, and the port says why it is not what it should.
    let holder = hold(OURS);
    daemon.put("/v1/ports/p", port(MAC_1)).unwrap();
    let refused = |port: &Value| condition(port, "VdpaDevice")["reason"] == "Refused";
    let seen = daemon.wait_for("/v1/ports/p", refused).unwrap();
    let message = condition(&seen, "VdpaDevice")["message"].as_str().unwrap().to_owned();
    assert!(message.contains("which a process uses") && message.contains("busy"), "{message}");
    daemon.delete("/v1/ports/p").unwrap();
    let seen = daemon.wait_for_condition("/v1/adapters/soft-lab", "Healthy", "False").unwrap();
    assert!(condition(&seen, "Healthy")["message"].as_str().unwrap().contains(OURS));
    assert_eq!(mac_of(OURS).as_deref(), Some(MAC_2));

    // What an earlier run left is found again, and removed once it is free.
    daemon.end(Signal::SIGTERM).unwrap();
    daemon.restart().unwrap();
    daemon.wait_for_condition("/v1/adapters/soft-lab", "Healthy", "False").unwrap();
    drop(holder);
    until_mac(None);
    daemon.wait_for_condition("/v1/adapters/soft-lab", "Healthy", "True").unwrap();
    for device in FOREIGN {
        net::command("vdpa", ["dev", "show", device]).unwrap();
    }
}

#[test]
fn on_real_vfs_a_device_comes_and_goes_with_its_port_and_an_address_that_the_driver_refuses_is_told()
 {
    let pf = VirtioPf::new();
    let adapter = format!("pci-{VIRTIO_PF_ADDRESS}");
    let configuration =
        format!("\n[[adapter]]\nhandle = \"pci/{VIRTIO_PF_ADDRESS}\"\nvdpa = \"manage\"\n");
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path(), &configuration).unwrap();
    daemon.put("/v1/networks/blue", json!({"kind": "flat"})).unwrap();
    let port = |macs: &[&str]| {
        json!({
            "function": {"vf": {"adapter": adapter, "index": 1}},
            "attachments": [{"network": "blue"}],
            "macs": macs,
            "guest_macs": {"max": 1, "allow": [MAC_1]},
        })
    };
    let ours = format!("eswd-vf1@{adapter}");
    let shown = || {
        let shown = net::command("vdpa", ["-j", "dev", "show", &ours]).ok()?;
        let shown: Value = serde_json::from_str(&shown).unwrap();
        Some(shown["dev"][&ours].clone())
    };
    let until_gone = || {
        net::wait_for("the device to go", DEADLINE, || shown().is_none().then_some(())).unwrap();
    };

    daemon.put("/v1/ports/p", port(&[])).unwrap();
    let seen = daemon.wait_for_condition("/v1/ports/p", "VdpaDevice", "True").unwrap();
    assert_eq!(seen["status"]["vdpa_device"], ours);
    let device = shown().unwrap();
    assert_eq!(device["mgmtdev"], format!("pci/{}", pf.address(1)));
    assert_eq!(device["type"], "network");
    daemon.delete("/v1/ports/p").unwrap();
    until_gone();

    // A port that insists on its address gets no device with another one, and the kernel's words.
    daemon.put("/v1/ports/p", port(&[MAC_2])).unwrap();
    let refused = |port: &Value| condition(port, "VdpaDevice")["reason"] == "Refused";
    let seen = daemon.wait_for("/v1/ports/p", refused).unwrap();
    let message = condition(&seen, "VdpaDevice")["message"].as_str().unwrap();
    assert!(message.contains(&ours) && message.contains("not supported"), "{message}");
    assert_eq!((&seen["status"]["vdpa_device"], shown()), (&Value::Null, None));

    // Without one the port has its device again.
    daemon.put("/v1/ports/p", port(&[])).unwrap();
    daemon.wait_for_condition("/v1/ports/p", "VdpaDevice", "True").unwrap();
    assert!(shown().is_some());
    daemon.delete("/v1/ports/p").unwrap();
    until_gone();
}
