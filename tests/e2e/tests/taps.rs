//! Taps of the same name in two network namespaces are two taps, whoever holds them.
//!
//! Needs the lab's guest images, and CAP_NET_ADMIN for taps and a second network namespace.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use controller::world::BackingView;
use eswitchd_e2e_tests::{Observer, vf0};
use lab::{
    guest::{Backing, Guest},
    net,
};

/// A network namespace that a sleeping process keeps.
struct Other(std::process::Child);

impl Other {
    fn new() -> Self {
        let mut child = std::process::Command::new("unshare")
            .args(["--net", "sh", "-c", "echo there; exec sleep 1000"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        Other(child)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_tap_that_was_moved_to_another_namespace_is_not_the_one_of_its_name_here() {
    let folder = tempfile::tempdir().unwrap();
    let start = |name: &str| {
        Guest::named(name)
            .vf(0, Backing::Tap("same0".into()))
            .qmp_socket(folder.path().join(format!("{name}.sock")))
            .start()
            .unwrap()
    };
    let here = BackingView::Netdev { name: "same0".into() };
    let first = start("a");
    let mut observer = Observer::of(folder.path());
    observer.until_running(&["a"]);
    assert_eq!(vf0(&observer.last["a"]).backing, here);
    drop(observer);

    // QEMU still holds it, and its descriptor still says its name. Here is another one now.
    let other = Other::new();
    net::ip(&format!("link set same0 netns {}", other.0.id())).unwrap();
    net::ip("tuntap add same0 mode tap").unwrap();
    let mut observer = Observer::of(folder.path());
    observer.until_running(&["a"]);
    let BackingView::Unknown { reason } = &vf0(&observer.last["a"]).backing else {
        panic!("{:?}", vf0(&observer.last["a"]));
    };
    assert!(reason.contains("another network namespace"), "{reason}");
    assert!(reason.contains(&first.pid().to_string()), "{reason}");

    // Whoever attaches to that one has it, and has it alone.
    let _second = start("b");
    observer.until_running(&["b"]);
    assert_eq!(vf0(&observer.last["b"]).backing, here);
    drop(_second);
    let _ = net::ip("link del same0");
}
