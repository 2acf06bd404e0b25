//! vDPA devices of a real kernel: made, read and removed over generic netlink, and found again
//! behind a real QEMU's backends, however it was given them.
//!
//! Needs vdpa_sim_net and the initial network namespace, which is where the vDPA family is, and for
//! VFs the lab's virtio PF behind an IOMMU; judged with `vdpa` of iproute2 where it can be.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use api::{
    resources::{BackingSource, ControlQueue, MacSource, RxMode},
    types::MacAddr,
};
use controller::{
    eswitch::vdpa::{ManagementName, NewVdpaDevice, Vdpa, VdpaConfig},
    world::{BackingView, Connection},
};
use eswitchd_e2e_tests::{
    Observer, create_vfs, main_mac,
    vdpa::{VirtioPf, character_device},
    vf0,
};
use lab::{
    guest::{Backing, Guest},
    net,
    vm::VIRTIO_PF_ADDRESS,
};
use serde_json::Value;
use tokio::runtime::Runtime;

fn simulator() -> ManagementName {
    ManagementName { bus: None, device: "vdpasim_net".into() }
}

/// The kernel's vDPA side, with devices that go when this does.
struct Devices {
    runtime: Runtime,
    vdpa: Vdpa,
    made: Vec<&'static str>,
}

impl Devices {
    fn simulated() -> Self {
        for module in ["vdpa_sim_net", "vhost_vdpa"] {
            net::modprobe(module).unwrap();
        }
        Self::none()
    }

    fn none() -> Self {
        let runtime = Runtime::new().unwrap();
        Devices { runtime, vdpa: Vdpa::open().unwrap(), made: Vec::new() }
    }

    fn make(&mut self, name: &'static str, mac: [u8; 6]) {
        self.make_on(name, simulator(), Some(MacAddr(mac)));
    }

    fn make_on(&mut self, name: &'static str, management: ManagementName, mac: Option<MacAddr>) {
        let device = NewVdpaDevice { name: name.into(), management, mac, mtu: None };
        self.runtime.block_on(self.vdpa.create(&device)).unwrap();
        self.made.push(name);
    }

    fn config(&self, name: &str) -> VdpaConfig {
        self.runtime.block_on(self.vdpa.config(name)).unwrap()
    }
}

impl Drop for Devices {
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
    let mut devices = Devices::simulated();
    let managements = devices.runtime.block_on(devices.vdpa.managements()).unwrap();
    let management = managements.iter().find(|m| m.name == simulator()).unwrap();
    assert!(management.network && management.features != 0);
    devices.make("made", [2, 0xaa, 0, 0, 0, 7]);

    let listed = devices.runtime.block_on(devices.vdpa.devices()).unwrap();
    let device = listed.iter().find(|device| device.name == "made").unwrap();
    assert!(device.network && device.management == simulator());
    let listed = shown("-j dev show made");
    assert_eq!(listed["dev"]["made"]["mgmtdev"], "vdpasim_net");
    assert_eq!(listed["dev"]["made"]["max_vqs"].as_u64().map(|n| n as u32), device.max_vqs);

    let config = devices.config("made");
    let listed = shown("-j dev config show made");
    assert_eq!(listed["config"]["made"]["mac"], "02:aa:00:00:00:07");
    assert_eq!(config.mac.unwrap().to_string(), "02:aa:00:00:00:07");
    assert_eq!(listed["config"]["made"]["mtu"].as_u64(), config.mtu.map(u64::from));

    let absent = devices.runtime.block_on(devices.vdpa.config("absent")).unwrap_err();
    assert_eq!(absent.errno, nix::errno::Errno::ENODEV as i32);
    let twice =
        NewVdpaDevice { name: "made".into(), management: simulator(), mac: None, mtu: None };
    let twice = devices.runtime.block_on(devices.vdpa.create(&twice)).unwrap_err();
    assert_eq!(twice.errno, nix::errno::Errno::EEXIST as i32);
    devices.runtime.block_on(devices.vdpa.delete("made")).unwrap();
    devices.made.clear();
    assert!(net::command("vdpa", ["dev", "show", "made"]).is_err());
}

/// A QEMU that has not begun to run; killed when dropped.
struct Qemu(Child);

impl Qemu {
    /// Starts it with an emulated PF and a VF, `vf0` and so on, for each of these backends, in a
    /// shell that has done `before`, and with its QMP socket in `folder`.
    fn start(folder: &Path, before: &str, options: &str, backends: &[String]) -> Qemu {
        let mut script = format!(
            "{before}\n\
             exec \"$LAB_QEMU\" -nodefaults -machine q35 -accel tcg -m 64 -display none -S \\\n\
             -device pcie-root-port,id=b {options} -netdev hubport,id=pf,hubid=0 \\\n\
             -qmp unix:{}/vm1.sock,server=on,wait=off",
            folder.display()
        );
        for (vf, backend) in backends.iter().enumerate() {
            script += &format!(" -netdev vhost-vdpa,id=n{vf},{backend}");
        }
        let nic = "-device virtio-net-pci,bus=b,romfile=";
        // The PF comes last: it takes the VFs that are there.
        for vf in (0..backends.len()).rev() {
            let place = vf + 1;
            script += &format!(" {nic},id=vf{vf},addr=0x0.{place:#x},netdev=n{vf},sriov-pf=pf0");
        }
        script += &format!(" {nic},id=pf0,addr=0x0.0x0,netdev=pf");
        let qemu = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap();
        Qemu(qemu)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn devices_are_found_behind_qemu_by_path_by_descriptor_and_by_set() {
    let mut devices = Devices::simulated();
    let names = ["by-path", "by-fd", "by-set-1", "by-set-2"];
    for (number, name) in (1..).zip(names) {
        devices.make(name, [2, 0xaa, 0, 0, 1, number]);
    }
    let [path, fd, set1, set2] = names.map(|name| character_device(name).display().to_string());
    let folder = tempfile::tempdir().unwrap();
    let mut observer = Observer::of(folder.path());
    // The sets are added in another order than their descriptors are opened and used.
    let _qemu = Qemu::start(
        folder.path(),
        &format!("exec 5<>{fd} 6<>{set1} 7<>{set2}"),
        "-add-fd fd=7,set=2 -add-fd fd=6,set=1",
        &[
            format!("vhostdev={path}"),
            "vhostfd=5".into(),
            "vhostdev=/dev/fdset/1".into(),
            "vhostdev=/dev/fdset/2".into(),
        ],
    );
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

/// vDPA devices on VFs of the lab's virtio PF; they go before it.
struct OnVfs {
    devices: Devices,
    pf: VirtioPf,
}

impl OnVfs {
    fn new() -> Self {
        let pf = VirtioPf::new();
        OnVfs { devices: Devices::none(), pf }
    }

    /// Makes a vDPA device on the VF of this index; its character device.
    fn make(&mut self, name: &'static str, index: usize) -> PathBuf {
        let management = ManagementName { bus: Some("pci".into()), device: self.pf.address(index) };
        // It takes no address: the VF has one.
        self.devices.make_on(name, management, None);
        character_device(name)
    }
}

/// The VF of this index of the lab's virtio PF.
fn virtio_vf(index: u16) -> BackingView {
    BackingView::Vf { handle: format!("pci/{VIRTIO_PF_ADDRESS}"), index }
}

#[test]
fn devices_on_vfs_of_a_pf_are_resolved_to_that_pf_and_their_index() {
    let mut pf = OnVfs::new();
    // Made in another order than that of the VFs, and of the guest's functions.
    let shadowed = pf.make("on-vf2", 2);
    let by_path = pf.make("on-vf1", 1);
    let by_fd = pf.make("on-vf0", 0);
    let folder = tempfile::tempdir().unwrap();
    let mut observer = Observer::of(folder.path());
    let _qemu = Qemu::start(
        folder.path(),
        &format!("exec 5<>{}", by_fd.display()),
        "",
        &[
            format!("vhostdev={}", by_path.display()),
            "vhostfd=5".into(),
            format!("vhostdev={},x-svq=on", shadowed.display()),
        ],
    );
    let update = observer.until("the guest", |u| u.view.connection == Connection::Connected);
    let functions = &update.view.functions;
    let expected = [
        ("vf0", 1, BackingSource::VdpaPath, ControlQueue::Hidden),
        ("vf1", 0, BackingSource::VdpaDescriptor, ControlQueue::Hidden),
        ("vf2", 2, BackingSource::VdpaPath, ControlQueue::Seen),
    ];
    for (device, index, source, control_queue) in expected {
        let function = &functions[device];
        assert_eq!(function.backing, virtio_vf(index), "{device}");
        assert_eq!(function.source, Some(source), "{device}");
        assert_eq!(function.visibility.control_queue, control_queue, "{device}");
    }
}

#[test]
fn where_the_control_queue_is_hidden_the_address_comes_from_the_vdpa_device() {
    let mut pf = OnVfs::new();
    let hidden = Backing::VhostVdpa { node: pf.make("hidden", 2), shadowed: false };
    let shadowed = Backing::VhostVdpa { node: pf.make("shadowed", 0), shadowed: true };
    let given = pf.devices.config("hidden").mac.unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let mut observer = Observer::of(folder.path());
    let guest = Guest::named("a")
        .vf(0, hidden)
        .vf(1, shadowed)
        .qmp_socket(folder.path().join("a.sock"))
        .start()
        .unwrap();
    observer.until_running(&["a"]);
    create_vfs(&guest, 2);
    guest.run("ip link set eth1 up; ip link set eth2 up").unwrap();
    let update = observer.until("both links", |u| {
        ["vf0", "vf1"].map(|vf| &u.view.functions[vf]).into_iter().all(|vf| vf.filter.is_some())
            && u.view.functions["vf1"].visibility.rx_mode == RxMode::Negotiated
    });
    let [hidden, shadowed] = ["vf0", "vf1"].map(|vf| &update.view.functions[vf]);
    assert_eq!((&hidden.backing, &shadowed.backing), (&virtio_vf(2), &virtio_vf(0)));
    assert_eq!(hidden.visibility.control_queue, ControlQueue::Hidden);
    assert_eq!(hidden.visibility.mac, MacSource::VdpaConfig);
    assert_eq!(main_mac(hidden), given);
    assert_eq!(shadowed.visibility.control_queue, ControlQueue::Seen);
    assert_eq!(shadowed.visibility.mac, MacSource::RxFilter);

    guest.run("ip link set eth2 address 02:aa:bb:cc:00:02").unwrap();
    observer.until("the shadowed function's change", |u| {
        main_mac(&u.view.functions["vf1"]) == "02:aa:bb:cc:00:02"
    });
    // Nothing tells of this one. This device's configuration shows it to whoever looks, and that a
    // driver is there which can set receive modes, though not what it sets.
    guest.run("ip link set eth1 address 02:aa:bb:cc:00:01").unwrap();
    let update = observer.until_vf0("the hidden function's change", |vf| {
        main_mac(vf) == "02:aa:bb:cc:00:01" && vf.visibility.rx_mode == RxMode::Negotiated
    });
    assert_eq!(vf0(&update).visibility.mac, MacSource::VdpaConfig);
}
