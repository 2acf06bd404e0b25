//! The daemon's store on real file systems: a full disk, a damaged file, and the way out of it.
//!
//! In: the real binaries, a state folder. Out: what the API says before and after. No adapter is
//! needed. Each test has namespaces of its own, so that what it mounts is nobody else's.

#![expect(clippy::expect_used, reason = "what fails here fails the test")]

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use lab::{
    daemon::{self, Daemon},
    net::{self, Netns},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// The ids of a list.
fn ids(daemon: &Daemon, list: &str) -> BTreeSet<String> {
    let answer = daemon.get(list).expect("a list");
    let items = answer["items"].as_array().cloned().unwrap_or_default();
    items.iter().filter_map(|item| Some(item["id"].as_str()?.to_owned())).collect()
}

fn port(number: usize) -> Value {
    json!({
        "function": {"vf": {"adapter": "soft-none", "index": 0}},
        "attachments": [{"network": "blue"}],
        "macs": (0..64).map(|mac| format!("02:00:00:{:02x}:{:02x}:{mac:02x}", number >> 8, number & 0xff))
            .collect::<Vec<_>>(),
    })
}

/// PUTs ports from this number on until one is refused; the number of that one.
fn fill(daemon: &Daemon, from: usize, known: &mut BTreeSet<String>) -> usize {
    for number in from..from + 5_000 {
        let path = format!("/v1/ports/p{number}");
        let body = json!({ "spec": port(number) });
        let answer = daemon.request("PUT", &path, Some(&body)).expect("an answer");
        match answer.status {
            201 => known.insert(format!("p{number}")),
            507 => {
                assert_eq!(answer.body["type"], "/problems/store-full", "{answer:?}");
                return number;
            }
            _ => panic!("{path}: {answer:?}"),
        };
    }
    panic!("the disk never was full");
}

#[test]
fn a_full_disk_is_answered_with_507_and_nothing_that_was_acknowledged_is_lost() {
    let _netns = Netns::enter().expect("namespaces");
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("state");
    fs::create_dir(&state).expect("a folder");
    let place = state.to_str().expect("text");
    net::command("mount", ["-t", "tmpfs", "-o", "size=6m", "tmpfs", place]).expect("a small disk");
    let mut daemon = Daemon::start(folder.path(), "").expect("eswitchd");
    daemon.put("/v1/networks/blue", json!({"kind": "flat"})).expect("a network");
    let mut known = BTreeSet::new();
    daemon.put("/v1/ports/p0", port(0)).expect("a port");
    known.insert("p0".to_owned());

    let filler = state.join("filler");
    let mut next = 1;
    for round in 0..2 {
        let mut size = 6 << 20;
        // To the last page.
        let mut file = fs::File::create(&filler).expect("a filler");
        while size > 0 {
            match std::io::Write::write(&mut file, &vec![1; size]) {
                Ok(written) if written > 0 => {}
                _ => size /= 2,
            }
        }
        drop(file);
        next = fill(&daemon, next, &mut known);
        let again = json!({ "spec": port(next) });
        let path = format!("/v1/ports/p{next}");
        let answer = daemon.request("PUT", &path, Some(&again)).expect("an answer");
        assert_eq!(answer.status, 507, "it is still full: {answer:?}");
        assert_eq!(ids(&daemon, "/v1/ports"), known);
        let revision = daemon.get("/v1/snapshot").expect("a snapshot")["revision"].clone();
        assert_eq!(revision, known.len() + 1, "what was refused counts for nothing");

        fs::remove_file(&filler).expect("room again");
        if round == 0 {
            daemon.put(&path, port(next)).expect("it goes on where there is room");
            known.insert(format!("p{next}"));
            next += 1;
        }
        daemon.end(Signal::SIGKILL).expect("killed");
        daemon.restart().expect("started again");
        assert_eq!(ids(&daemon, "/v1/ports"), known);
    }
    drop(daemon);
    net::command("umount", ["-l", place]).expect("ours to unmount");
}

/// Runs eswitchctl against the daemon; what it said, where it succeeded.
fn eswitchctl(daemon: &Daemon, arguments: &[&str]) -> String {
    let program = std::env::var_os("ESWITCHCTL_BIN").expect("ESWITCHCTL_BIN: `cargo lab test`");
    let output = Command::new(program)
        .arg("--server")
        .arg(daemon.socket())
        .args(arguments)
        .output()
        .expect("eswitchctl");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Changes each of these words in a file.
fn damage(file: &Path, word: &[u8]) {
    let mut bytes = fs::read(file).expect("the file");
    let places: Vec<usize> = bytes
        .windows(word.len())
        .enumerate()
        .filter(|(_, w)| *w == word)
        .map(|(at, _)| at)
        .collect();
    assert!(!places.is_empty(), "it is not there");
    for at in places {
        bytes[at] ^= 1;
    }
    fs::write(file, bytes).expect("written");
}

#[test]
fn a_damaged_store_keeps_the_daemon_from_starting_and_a_snapshot_is_the_way_out() {
    let _netns = Netns::enter().expect("namespaces");
    let folder = tempfile::tempdir().expect("a folder");
    let mut daemon = Daemon::start(folder.path(), "").expect("eswitchd");
    daemon.put("/v1/networks/blue", json!({"kind": "isolated"})).expect("a network");
    daemon.put("/v1/ports/p0", port(0)).expect("a port");
    let saved = folder.path().join("saved.json");
    let file = saved.to_str().expect("text");
    let said = eswitchctl(&daemon, &["snapshot", "save", file]);
    assert_eq!(said, "saved revision 2: 1 networks, 1 ports, 0 guests\n");
    daemon.end(Signal::SIGTERM).expect("stopped");

    // A word that is as good as the one that was there: nobody would notice it by reading.
    let store = folder.path().join("state/state.redb");
    damage(&store, b"isolated");
    let output = Command::new(daemon::program().expect("eswitchd"))
        .arg("--config")
        .arg(daemon.configuration())
        .env("NO_COLOR", "1")
        .output()
        .expect("run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    let way_out = ["state.redb", "move it away", "eswitchctl snapshot restore"];
    assert!(way_out.iter().all(|words| said.contains(words)), "{said}");
    assert!(!said.contains("panicked"), "{said}");

    fs::rename(&store, folder.path().join("damaged")).expect("moved away");
    daemon.restart().expect("started again");
    assert!(ids(&daemon, "/v1/networks").is_empty());
    let said = eswitchctl(&daemon, &["snapshot", "restore", file]);
    assert_eq!(said, "updated, revision 3: 1 networks, 1 ports, 0 guests\n");
    let network = daemon.get("/v1/networks/blue").expect("the network");
    assert_eq!(network["spec"]["kind"], "isolated");
    assert_eq!(daemon.get("/v1/ports/p0").expect("the port")["spec"]["macs"], port(0)["macs"]);
    daemon.end(Signal::SIGKILL).expect("killed");
    daemon.restart().expect("started again");
    let said = eswitchctl(&daemon, &["snapshot", "restore", file]);
    assert_eq!(said, "unchanged, revision 3: 1 networks, 1 ports, 0 guests\n");
}
