//! The lab's igb: a real driver, and igbvf for its VFs, on an emulated 82576.
//!
//! It is one device of the whole machine: it lives in the first namespace, and one test after the
//! other has it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lab::{
    daemon,
    net::{self, Netns},
};

/// Its PCI address.
pub const IGB: &str = "0000:01:00.0";

/// The device, with VFs while this is there.
#[derive(Debug)]
pub struct Igb {
    sysfs: PathBuf,
}

impl Igb {
    /// With that many VFs and no settings.
    pub fn with_vfs(count: usize) -> Igb {
        let sysfs = PathBuf::from(format!("/sys/bus/pci/devices/{IGB}"));
        if !sysfs.exists() || std::env::var_os("ESWITCHD_LAB").is_none() {
            panic!("this test needs the lab's igb at {IGB}: run it with `cargo lab test --vm`");
        }
        for module in ["igb", "igbvf"] {
            net::modprobe(module).expect(module);
        }
        let igb = Igb { sysfs };
        fs::write(igb.sysfs.join("sriov_numvfs"), "0").expect("no VFs");
        // Without its link the 82576 takes no rates, and its VFs no frames.
        net::ip(&format!("link set {} up", igb.pf())).expect("up");
        net::wait_for("the PF's link", daemon::PATIENCE, || {
            let link = net::ip_json(&format!("link show {}", igb.pf())).ok()?;
            (link[0]["operstate"] == "UP").then_some(())
        })
        .expect("a link");
        fs::write(igb.sysfs.join("sriov_numvfs"), count.to_string()).expect("VFs");
        igb
    }

    fn netdev_of(&self, function: &Path) -> Option<String> {
        let entry = fs::read_dir(self.sysfs.join(function).join("net")).ok()?.next()?;
        entry.ok()?.file_name().into_string().ok()
    }

    /// The name of the PF's netdev.
    pub fn pf(&self) -> String {
        self.netdev_of(Path::new("")).expect("the PF's netdev")
    }

    /// Puts VF number `vf` into a namespace of its own, as a guest would have it: its driver begins
    /// anew and finds this address, then it gets 10.0.2.`last` and its link up.
    pub fn room(&self, name: &str, vf: usize, mac: &str, last: u8) -> Netns {
        let room = Netns::named(name).expect(name);
        let link = fs::read_link(self.sysfs.join(format!("virtfn{vf}"))).expect("the VF");
        let address = link.file_name().and_then(|name| name.to_str()).expect("its address");
        for step in ["unbind", "bind"] {
            fs::write(format!("/sys/bus/pci/drivers/igbvf/{step}"), address).expect(step);
        }
        let netdev = net::wait_for("the VF's netdev", daemon::PATIENCE, || {
            self.netdev_of(Path::new(&format!("virtfn{vf}")))
        })
        .expect("igbvf");
        let shown = net::ip_json(&format!("link show {netdev}")).expect("ip");
        assert_eq!(shown[0]["address"], mac, "the VF's address is what its port says");
        net::ip(&format!("link set {netdev} netns {name}")).expect("moved");
        for command in [
            format!("link set {netdev} addrgenmode none up"),
            format!("addr add 10.0.2.{last}/24 dev {netdev}"),
        ] {
            net::ip(&format!("-n {name} {command}")).expect(&command);
        }
        room
    }
}

impl Drop for Igb {
    fn drop(&mut self) {
        // The next test begins with it, too.
        let _ = fs::write(self.sysfs.join("sriov_numvfs"), "0");
        for name in ["igb-a", "igb-b"] {
            let _ = net::ip(&format!("netns del {name}"));
        }
    }
}

/// Whether a ping from this namespace is answered; what it learnt of addresses is forgotten before.
pub fn reaches(from: &str, to: &str) -> bool {
    net::ip(&format!("-n {from} neigh flush all")).expect("flushed");
    net::ip(&format!("netns exec {from} ping -c 3 -i 0.2 -W 1 {to}")).is_ok()
}
