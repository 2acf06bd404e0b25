//! `eswitchctl` on a real terminal: `top` paints it, obeys keys and gives it back; what ends by
//! itself leaves what it said.
//!
//! In: the real daemon with taps as a software adapter, and tmux. What `cargo lab screens` draws is
//! made with the same terminal.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::path::PathBuf;

use lab::{
    daemon::Daemon,
    net::{self, Netns},
    screens::Terminal,
};
use serde_json::json;

struct Host {
    daemon: Daemon,
    _netns: Netns,
    _folder: tempfile::TempDir,
}

/// A daemon with the ports `one` and `two` on taps, in one network.
fn host() -> Host {
    let netns = Netns::enter().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let adapter = "\n[[adapter]]\nsoftware = \"lab\"\nrepresentors = [\"tap-*\"]\n";
    for name in ["one", "two"] {
        net::ip(&format!("tuntap add dev tap-{name} mode tap")).unwrap();
    }
    let daemon = Daemon::start(&folder.path().join("eswitchd"), adapter).unwrap();
    daemon.put("/v1/networks/blue", json!({"kind": {"vlan": {"vid": 100}}})).unwrap();
    for (number, name) in ["one", "two"].into_iter().enumerate() {
        let spec = json!({
            "function": {"netdev": {"adapter": "soft-lab", "name": format!("tap-{name}")}},
            "attachments": [{"network": "blue"}],
            "macs": [format!("02:00:00:00:00:{number:02x}")],
        });
        daemon.put(&format!("/v1/ports/{name}"), spec).unwrap();
    }
    for name in ["one", "two"] {
        daemon.wait_for_condition(&format!("/v1/ports/{name}"), "Programmed", "True").unwrap();
    }
    Host { daemon, _netns: netns, _folder: folder }
}

/// A command line of `eswitchctl` that asks this daemon.
fn eswitchctl(daemon: &Daemon, arguments: &str) -> String {
    let program = PathBuf::from(std::env::var_os("ESWITCHCTL_BIN").unwrap());
    let socket = daemon.socket();
    format!("{} --server {} {arguments}", program.display(), socket.display())
}

#[test]
fn top_paints_a_terminal_obeys_keys_and_gives_it_back() {
    let host = host();
    let terminal = Terminal::open("test-top").unwrap();
    terminal.shown("echo before").unwrap();
    terminal.enter(&eswitchctl(&host.daemon, "top --interval 1")).unwrap();
    let table = terminal.until("a table", |s| s.text().contains("MOSTLY FOR")).unwrap();
    let text = table.text();
    assert!(text.contains("2 ports") && text.contains("by received"), "{text}");
    assert!(!text.contains("before"), "the screen is its own: {text}");
    terminal.type_keys("n").unwrap();
    terminal.until("another order", |screen| screen.text().contains("by name")).unwrap();
    terminal.type_keys("q").unwrap();
    let after = terminal.until("the shell", |screen| screen.text().ends_with("\n$\n")).unwrap();
    assert!(after.text().contains("before"), "what stood there stands there: {}", after.text());
    // Keys are shown again.
    let said = terminal.shown("echo after").unwrap().text();
    assert!(said.contains("$ echo after\nafter\n"), "{said}");
}

#[test]
fn what_ends_by_itself_leaves_what_it_said() {
    let host = host();
    for (name, arguments, says) in [
        ("test-status", "status", "soft-lab"),
        ("test-explain", "explain port one", "planned"),
        (
            "test-trace",
            "trace --from port/one --dst-mac 02:00:00:00:00:01 --ip 192.0.2.1,192.0.2.2",
            "two",
        ),
    ] {
        let terminal = Terminal::open(name).unwrap();
        let command = eswitchctl(&host.daemon, arguments);
        let said = terminal.shown(&command).unwrap().text();
        assert!(said.contains(says), "{said}");
    }
}
