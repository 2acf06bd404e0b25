//! A guest that libvirt manages, with a second QMP socket for the daemon: both see it rightly, and
//! neither is in the other's way.
//!
//! libvirtd is Debian's, of the lab's root file system, which it sees as its own; what it writes
//! goes to file systems that end with the test. Needs the lab's guest images, and root.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    ffi::OsStr,
    fs,
    io::Write as _,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use api::resources::BackingSource;
use controller::world::{BackingView, Connection};
use eswitchd_e2e_tests::{DEADLINE, Observer, main_mac, vf0};
use lab::{guest::PF_ADDRESS, net};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Folders of the root that libvirtd writes to.
const WRITTEN: [&str; 6] =
    ["etc/libvirt", "var/lib/libvirt", "var/log/libvirt", "var/cache/libvirt", "run", "tmp"];

/// No cgroups, no namespaces, no security driver: the guest is none of those's concern here.
const QEMU_CONF: &str = "user = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\n\
    remember_owner = 0\nsecurity_driver = \"none\"\nnamespaces = []\ncgroup_controllers = []\n\
    stdio_handler = \"file\"\n";
const LIBVIRTD_CONF: &str = "unix_sock_group = \"root\"\nauth_unix_rw = \"none\"\n";

/// Where the root sees the guest images.
const IMAGES: &str = "/mnt";

/// Gives this thread, and all that it starts, mounts of their own.
fn own_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
}

/// A running libvirtd.
struct Libvirt {
    root: PathBuf,
    log: PathBuf,
    process: Child,
}

impl Libvirt {
    /// Starts it in the test's own mount namespace; it sees `folder` where the test sees it.
    fn start(folder: &Path) -> Self {
        let qemu = PathBuf::from(std::env::var_os("LAB_QEMU").unwrap());
        let root = qemu.parent().unwrap().join("root");
        assert!(root.is_dir(), "this test needs the lab's root beside {}", qemu.display());
        let show = |options: &[&str], what: &Path, place: &Path| {
            let options = options.iter().map(OsStr::new);
            net::command("mount", options.chain([what.as_os_str(), place.as_os_str()])).unwrap();
        };
        for written in WRITTEN {
            show(&["-t", "tmpfs"], Path::new("tmpfs"), &root.join(written));
        }
        for shown in ["dev", "proc", "sys"] {
            show(&["--rbind"], &Path::new("/").join(shown), &root.join(shown));
        }
        let within = |path: &Path| root.join(path.strip_prefix("/").unwrap());
        let images = std::env::var_os("LAB_GUEST_DIR").unwrap();
        show(&["--bind"], Path::new(&images), &within(Path::new(IMAGES)));
        fs::create_dir_all(within(folder)).unwrap();
        show(&["--bind"], folder, &within(folder));
        fs::write(root.join("etc/libvirt/qemu.conf"), QEMU_CONF).unwrap();
        fs::write(root.join("etc/libvirt/libvirtd.conf"), LIBVIRTD_CONF).unwrap();

        let log = folder.join("libvirtd.log");
        let process = chroot(&root)
            .arg("/usr/sbin/libvirtd")
            .stdin(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn();
        let libvirt = Libvirt { root, log, process: process.unwrap() };
        net::wait_for("libvirtd", DEADLINE, || libvirt.ask(&["version"]).ok()).unwrap();
        libvirt
    }

    /// What virsh prints, or its complaint.
    fn ask(&self, arguments: &[&str]) -> Result<String, String> {
        let output = chroot(&self.root)
            .args(["/usr/bin/virsh", "--quiet", "--connect", "qemu:///system"])
            .args(arguments)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// What virsh prints, when it must succeed.
    fn virsh(&self, arguments: &[&str]) -> String {
        self.ask(arguments).unwrap_or_else(|complaint| {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            panic!("virsh {}: {complaint}\n{log}", arguments.join(" "))
        })
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        // Its guests outlive it otherwise.
        let _ = self.ask(&["destroy", "managed"]);
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A command that has the lab's root as its own.
fn chroot(root: &Path) -> Command {
    let mut command = Command::new("chroot");
    command.arg(root).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8");
    command
}

/// A command that is typed on a guest's console again and again until this is dropped, as nobody
/// hears when the guest begins to read.
struct Typing {
    _end: mpsc::Sender<()>,
}

impl Typing {
    fn start(console: &Path, command: &str) -> Self {
        let mut console = UnixStream::connect(console).unwrap();
        // As `recipe/guest-init.sh` of the lab reads it; the first line ends what was cut before.
        let line = format!("\n1 0 $'{command}'\n");
        let (end, ended) = mpsc::channel();
        thread::spawn(move || {
            while ended.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                console.write_all(line.as_bytes()).unwrap();
            }
        });
        Typing { _end: end }
    }
}

/// A domain with an emulated PF and one VF, which libvirt knows nothing of.
fn domain(folder: &Path) -> String {
    let folder = folder.display();
    let arguments = [
        "-device",
        "pcie-root-port,id=b,chassis=77,addr=0x10",
        "-netdev",
        "hubport,id=n0,hubid=0",
        "-netdev",
        "tap,id=n1,ifname=managed0,script=no,downscript=no",
        "-device",
        "virtio-net-pci,id=vf0,bus=b,addr=0x0.0x1,netdev=n1,sriov-pf=pf0,romfile=",
        "-device",
        "virtio-net-pci,id=pf0,bus=b,addr=0x0.0x0,netdev=n0,romfile=",
        "-qmp",
        &format!("unix:{folder}/managed.sock,server=on,wait=off"),
    ];
    let arguments = arguments.map(|argument| format!("<qemu:arg value='{argument}'/>")).concat();
    format!(
        "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n\
         <name>managed</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>\n\
         <os><type arch='x86_64' machine='q35'>hvm</type>\n\
         <kernel>{IMAGES}/vmlinuz</kernel><initrd>{IMAGES}/initramfs</initrd>\n\
         <cmdline>console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on</cmdline></os>\n\
         <features><acpi/><apic/></features><on_reboot>destroy</on_reboot>\n\
         <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>\n\
         <controller type='usb' model='none'/><memballoon model='none'/>\n\
         <serial type='unix'><source mode='bind' path='{folder}/console'/></serial></devices>\n\
         <qemu:commandline>{arguments}</qemu:commandline>\n\
         </domain>\n"
    )
}

#[test]
fn a_guest_of_libvirt_is_seen_over_a_second_socket_and_libvirt_goes_on_managing_it() {
    own_mounts();
    // As libvirt clears the capabilities of its QEMUs, the tap must be there before.
    net::ip("tuntap add dev managed0 mode tap user root").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let libvirt = Libvirt::start(folder.path());
    fs::write(folder.path().join("domain.xml"), domain(folder.path())).unwrap();
    let mut observer = Observer::of(folder.path());

    libvirt.virsh(&["define", &folder.path().join("domain.xml").display().to_string()]);
    assert_eq!(libvirt.virsh(&["domstate", "managed"]), "shut off");
    libvirt.virsh(&["start", "managed"]);
    assert_eq!(libvirt.virsh(&["domstate", "managed"]), "running");
    observer.until_running(&["managed"]);
    observer.until("the PF's driver", |u| {
        u.view.functions.get("pf0").is_some_and(|pf| pf.enabled && pf.filter.is_some())
    });

    let typing = Typing::start(
        &folder.path().join("console"),
        &format!(
            "echo 1 > /sys/bus/pci/devices/{PF_ADDRESS}/sriov_numvfs; \
             ip link set eth1 address 02:aa:bb:cc:00:01; ip link set eth1 up"
        ),
    );
    let update = observer.until_vf0("a VF", |vf| {
        vf.filter.as_ref().is_some_and(|filter| !filter.promiscuous)
            && main_mac(vf) == "02:aa:bb:cc:00:01"
    });
    drop(typing);
    let tap = BackingView::Netdev { name: "managed0".into() };
    assert_eq!((&vf0(&update).backing, vf0(&update).source), (&tap, Some(BackingSource::TapName)));
    let pid = fs::read_to_string(libvirt.root.join("run/libvirt/qemu/managed.pid")).unwrap();
    assert_eq!(update.view.pid.unwrap().to_string(), pid.trim());

    libvirt.virsh(&["suspend", "managed"]);
    assert_eq!(libvirt.virsh(&["domstate", "managed"]), "paused");
    let update = observer.until("paused", |u| u.view.run_state.as_deref() == Some("paused"));
    assert!(vf0(&update).enabled && vf0(&update).backing == tap);
    libvirt.virsh(&["resume", "managed"]);
    assert_eq!(libvirt.virsh(&["domstate", "managed"]), "running");
    observer.until("resumed", |u| u.view.run_state.as_deref() == Some("running"));

    libvirt.virsh(&["destroy", "managed"]);
    assert_eq!(libvirt.virsh(&["domstate", "managed"]), "shut off");
    let update = observer.until("the end", |u| u.view.connection == Connection::Gone);
    assert!(update.view.functions.is_empty());
    libvirt.virsh(&["undefine", "managed"]);
}
