//! vDPA devices of a real kernel: made, read and removed over generic netlink, and found again
//! behind a real QEMU's backends, however it was given them.
//!
//! Needs vdpa_sim_net and the initial network namespace, which is where the vDPA family is; judged
//! with `vdpa` of iproute2 where it can be.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use api::{
    resources::{BackingSource, ControlQueue},
    types::MacAddr,
};
use controller::{
    eswitch::vdpa::{ManagementName, NewVdpaDevice, Vdpa, VdpaConfig},
    world::{BackingView, Connection},
};
use eswitchd_e2e_tests::{DEADLINE, Observer};
use lab::net;
use serde_json::Value;
use tokio::runtime::Runtime;

fn simulator() -> ManagementName {
    ManagementName { bus: None, device: "vdpasim_net".into() }
}

/// The kernel's vDPA side, with simulated devices that go when this does.
struct Simulated {
    runtime: Runtime,
    vdpa: Vdpa,
    made: Vec<&'static str>,
}

impl Simulated {
    fn new() -> Self {
        for module in ["vdpa_sim_net", "vhost_vdpa"] {
            net::modprobe(module).unwrap();
        }
        let runtime = Runtime::new().unwrap();
        Simulated { runtime, vdpa: Vdpa::open().unwrap(), made: Vec::new() }
    }

    fn make(&mut self, name: &'static str, mac: [u8; 6]) {
        let device = NewVdpaDevice {
            name: name.into(),
            management: simulator(),
            mac: Some(MacAddr(mac)),
            mtu: None,
        };
        self.runtime.block_on(self.vdpa.create(&device)).unwrap();
        self.made.push(name);
    }

    fn config(&self, name: &str) -> VdpaConfig {
        self.runtime.block_on(self.vdpa.config(name)).unwrap()
    }

    /// The character device of a vDPA device, which is given to vhost_vdpa first.
    fn character_device(&self, name: &str) -> String {
        let device = Path::new("/sys/bus/vdpa/devices").join(name);
        if !device.join("driver").ends_with("vhost_vdpa") {
            fs::write(device.join("driver_override"), "vhost_vdpa").unwrap();
            let driver = device.join("driver");
            if driver.exists() && !fs::canonicalize(&driver).unwrap().ends_with("vhost_vdpa") {
                fs::write(driver.join("unbind"), name).unwrap();
            }
            if !driver.exists() {
                fs::write("/sys/bus/vdpa/drivers_probe", name).unwrap();
            }
        }
        let node = net::wait_for("a character device", DEADLINE, || {
            let entries = fs::read_dir(&device).ok()?;
            let mut names = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
            names.find(|name| name.starts_with("vhost-vdpa-"))
        });
        format!("/dev/{}", node.unwrap())
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        for name in &self.made {
            let _ = self.runtime.block_on(self.vdpa.delete(name));
        }
    }
}

fn shown(command: &str) -> Value {
    let arguments: Vec<&str> = command.split(' ').collect();
    serde_json::from_str(&net::command("vdpa", arguments).unwrap()).unwrap()
}

#[test]
fn devices_are_made_read_and_removed_as_the_vdpa_tool_shows_them() {
    let mut simulated = Simulated::new();
    let managements = simulated.runtime.block_on(simulated.vdpa.managements()).unwrap();
    let management = managements.iter().find(|m| m.name == simulator()).unwrap();
    assert!(management.network && management.features != 0);
    simulated.make("made", [2, 0xaa, 0, 0, 0, 7]);

    let devices = simulated.runtime.block_on(simulated.vdpa.devices()).unwrap();
    let device = devices.iter().find(|device| device.name == "made").unwrap();
    assert!(device.network && device.management == simulator());
    let listed = shown("-j dev show made");
    assert_eq!(listed["dev"]["made"]["mgmtdev"], "vdpasim_net");
    assert_eq!(listed["dev"]["made"]["max_vqs"].as_u64().map(|n| n as u32), device.max_vqs);

    let config = simulated.config("made");
    let listed = shown("-j dev config show made");
    assert_eq!(listed["config"]["made"]["mac"], "02:aa:00:00:00:07");
    assert_eq!(config.mac.unwrap().to_string(), "02:aa:00:00:00:07");
    assert_eq!(listed["config"]["made"]["mtu"].as_u64(), config.mtu.map(u64::from));

    let absent = simulated.runtime.block_on(simulated.vdpa.config("absent")).unwrap_err();
    assert_eq!(absent.errno, nix::errno::Errno::ENODEV as i32);
    let twice =
        NewVdpaDevice { name: "made".into(), management: simulator(), mac: None, mtu: None };
    let twice = simulated.runtime.block_on(simulated.vdpa.create(&twice)).unwrap_err();
    assert_eq!(twice.errno, nix::errno::Errno::EEXIST as i32);
    simulated.runtime.block_on(simulated.vdpa.delete("made")).unwrap();
    simulated.made.clear();
    assert!(net::command("vdpa", ["dev", "show", "made"]).is_err());
}

/// Killed when dropped.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn devices_are_found_behind_qemu_by_path_by_descriptor_and_by_set() {
    let mut simulated = Simulated::new();
    let names = ["by-path", "by-fd", "by-set-1", "by-set-2"];
    for (number, name) in (1..).zip(names) {
        simulated.make(name, [2, 0xaa, 0, 0, 1, number]);
    }
    let [path, fd, set1, set2] = names.map(|name| simulated.character_device(name));
    let folder = tempfile::tempdir().unwrap();
    let mut observer = Observer::of(folder.path());
    // The sets are added in another order than their descriptors are opened and used.
    let script = format!(
        "exec 5<>{fd} 6<>{set1} 7<>{set2}\n\
         exec \"$LAB_QEMU\" -nodefaults -machine q35 -accel tcg -m 64 -display none -S \\\n\
         -device pcie-root-port,id=b \\\n\
         -add-fd fd=7,set=2 -add-fd fd=6,set=1 \\\n\
         -netdev vhost-vdpa,id=n1,vhostdev={path} \\\n\
         -netdev vhost-vdpa,id=n2,vhostfd=5 \\\n\
         -netdev vhost-vdpa,id=n3,vhostdev=/dev/fdset/1 \\\n\
         -netdev vhost-vdpa,id=n4,vhostdev=/dev/fdset/2 -netdev hubport,id=n0,hubid=0 \\\n\
         -device virtio-net-pci,id=vf3,bus=b,addr=0x0.0x4,netdev=n4,sriov-pf=pf0,romfile= \\\n\
         -device virtio-net-pci,id=vf2,bus=b,addr=0x0.0x3,netdev=n3,sriov-pf=pf0,romfile= \\\n\
         -device virtio-net-pci,id=vf1,bus=b,addr=0x0.0x2,netdev=n2,sriov-pf=pf0,romfile= \\\n\
         -device virtio-net-pci,id=vf0,bus=b,addr=0x0.0x1,netdev=n1,sriov-pf=pf0,romfile= \\\n\
         -device virtio-net-pci,id=pf0,bus=b,addr=0x0.0x0,netdev=n0,romfile= \\\n\
         -qmp unix:{}/vm1.sock,server=on,wait=off",
        folder.path().display()
    );
    let qemu = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap();
    let _qemu = Qemu(qemu);
    let update = observer.until("the guest", |u| u.view.connection == Connection::Connected);
    let functions = &update.view.functions;
    let sources = [
        ("vf0", "by-path", BackingSource::VdpaPath),
        ("vf1", "by-fd", BackingSource::VdpaDescriptor),
        ("vf2", "by-set-1", BackingSource::VdpaSet),
        ("vf3", "by-set-2", BackingSource::VdpaSet),
    ];
    for (vf, name, source) in sources {
        let function = &functions[vf];
        // A simulated device stands on no VF, and the reason names the device that was found.
        let BackingView::Unknown { reason } = &function.backing else { panic!("{function:?}") };
        assert!(reason.contains(&format!("vDPA device {name} stands on no VF")), "{vf}: {reason}");
        assert_eq!(function.source, Some(source));
        assert_eq!(function.visibility.control_queue, ControlQueue::Seen);
    }
    let other = &functions["pf0"].backing;
    assert!(matches!(other, BackingView::Unsupported { .. }), "{other:?}");
}
