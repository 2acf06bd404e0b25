//! vDPA devices as these suites use them: given to vhost_vdpa, and made on the lab's virtio VFs.
//!
//! In: names of vDPA devices, the lab's virtio PF. Out: character devices, and VFs that make vDPA
//! devices. Needs the initial network namespace, which is where the kernel's vDPA side is.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use lab::{
    net,
    vm::{VIRTIO_PF_ADDRESS, VIRTIO_VFS},
};

use crate::DEADLINE;

/// Gives a vDPA device to vhost_vdpa, whoever has it now; its character device.
pub fn character_device(name: &str) -> PathBuf {
    let device = Path::new("/sys/bus/vdpa/devices").join(name);
    let driver = device.join("driver");
    fs::write(device.join("driver_override"), "vhost_vdpa").unwrap();
    if fs::canonicalize(&driver).is_ok_and(|driver| !driver.ends_with("vhost_vdpa")) {
        fs::write(driver.join("unbind"), name).unwrap();
    }
    if !driver.exists() {
        fs::write("/sys/bus/vdpa/drivers_probe", name).unwrap();
    }
    net::wait_for("a character device", DEADLINE, || {
        let entries = fs::read_dir(&device).ok()?;
        let mut names = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
        let node = names.find(|name| name.starts_with("vhost-vdpa-"))?;
        Some(Path::new("/dev").join(node)).filter(|node| node.exists())
    })
    .unwrap()
}

/// The lab's virtio PF with all its VFs, each given to vp_vdpa, until this is dropped. One test of a
/// process at a time has it.
#[derive(Debug)]
pub struct VirtioPf {
    _alone: MutexGuard<'static, ()>,
}

impl VirtioPf {
    /// Makes the VFs.
    pub fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let pf = Path::new("/sys/bus/pci/devices").join(VIRTIO_PF_ADDRESS);
        assert!(pf.exists(), "this test needs the lab's virtio PF: `cargo lab test --vm`");
        for module in ["virtio_net", "vp_vdpa", "vhost_vdpa"] {
            net::modprobe(module).unwrap();
        }
        fs::write(pf.join("sriov_numvfs"), "0").unwrap();
        fs::write(pf.join("sriov_drivers_autoprobe"), "0").unwrap();
        fs::write(pf.join("sriov_numvfs"), VIRTIO_VFS.to_string()).unwrap();
        let pf = VirtioPf { _alone: alone };
        for index in 0..VIRTIO_VFS {
            let address = pf.address(index);
            let vf = Path::new("/sys/bus/pci/devices").join(&address);
            fs::write(vf.join("driver_override"), "vp-vdpa").unwrap();
            fs::write("/sys/bus/pci/drivers_probe", &address).unwrap();
            assert!(vf.join("driver").exists(), "vp_vdpa does not take {address}");
        }
        pf
    }

    /// PCI address of the VF of this index.
    pub fn address(&self, index: usize) -> String {
        let link = format!("/sys/bus/pci/devices/{VIRTIO_PF_ADDRESS}/virtfn{index}");
        fs::canonicalize(link).unwrap().file_name().unwrap().to_string_lossy().into_owned()
    }
}

impl Default for VirtioPf {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for VirtioPf {
    fn drop(&mut self) {
        let pf = Path::new("/sys/bus/pci/devices").join(VIRTIO_PF_ADDRESS);
        let _ = fs::write(pf.join("sriov_numvfs"), "0");
        let _ = fs::write(pf.join("sriov_drivers_autoprobe"), "1");
    }
}
