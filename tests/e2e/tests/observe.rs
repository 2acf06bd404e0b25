//! A real guest's life as the daemon's observer sees it, over a real QEMU's QMP socket.
//!
//! Order is asserted, not speed: each step waits for what it leads to, under a generous deadline.
//! Needs the lab's guest images; taps need CAP_NET_ADMIN.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{path::Path, time::Duration};

use api::resources::BackingSource;
use controller::observe::guest::GuestUpdate;
use controller::world::{BackingView, Connection, GuestFunction};
use eswitchd_e2e_tests::{DEADLINE, Observer, create_vfs, main_mac, vf0};
use lab::{
    guest::{Backing, Function, Guest, PF_ADDRESS},
    net,
};
use serde_json::json;

#[test]
fn a_guests_life_is_seen_in_its_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut observer = Observer::of(folder.path());
    let guest = Guest::named("a")
        .vf(0, Backing::Tap("observe-a0".into()))
        .qmp_socket(folder.path().join("a.sock"))
        .start()
        .unwrap();

    let update = observer.until("running", |u| {
        u.view.connection == Connection::Connected && u.view.run_state.as_deref() == Some("running")
    });
    assert_eq!(update.guest.as_str(), "a");
    assert_eq!(update.view.pid, Some(guest.pid()));
    let ids: Vec<_> = update.view.functions.keys().map(String::as_str).collect();
    assert_eq!(ids, ["pf0", "vf0", "vf1", "vf2", "vf3"]);
    assert!(update.view.functions["pf0"].enabled && update.view.functions["pf0"].pf.is_none());
    let vf = vf0(&update);
    assert!(!vf.enabled && vf.filter.is_none() && vf.pf.as_deref() == Some("pf0"), "{vf:?}");
    assert_eq!(vf.backing, BackingView::Netdev { name: "observe-a0".into() });
    let other = &update.view.functions["vf1"].backing;
    assert!(
        matches!(other, BackingView::Unsupported { reason } if reason.contains("hubport")),
        "{other:?}"
    );

    // QEMU sends no event for this, and a VF comes up when the guest gets to it.
    create_vfs(&guest, 2);
    let update = observer.until("two VFs enabled", |u| {
        ["vf0", "vf1"].iter().all(|vf| u.view.functions.get(*vf).is_some_and(|vf| vf.enabled))
    });
    assert!(!update.view.functions["vf2"].enabled);
    observer.until_vf0("the driver bound, its link down", |vf| {
        vf.filter.as_ref().is_some_and(|filter| filter.promiscuous)
    });

    let before = observer.filter_events();
    guest.run("ip link set eth1 up").unwrap();
    let update = observer
        .until_vf0("link up", |vf| vf.filter.as_ref().is_some_and(|filter| !filter.promiscuous));
    assert_eq!(main_mac(vf0(&update)), guest.mac(Function::Vf(0)).unwrap());
    observer.until_filter_event_after(before);

    let before = observer.filter_events();
    guest.run("ip link set eth1 address 02:aa:bb:cc:00:01").unwrap();
    observer.until_vf0("another MAC", |vf| main_mac(vf) == "02:aa:bb:cc:00:01");
    observer.until_filter_event_after(before);

    guest.run("ip link add link eth1 name eth1.100 type vlan id 100").unwrap();
    observer.until_vf0("a VLAN", |vf| {
        vf.filter.as_ref().is_some_and(|filter| filter.vlans.contains(&100))
    });

    guest.run("ip link add link eth1 name mv0 address 02:aa:bb:cc:00:02 type macvlan").unwrap();
    guest.run("ip link set mv0 up").unwrap();
    observer.until_vf0("a macvlan's MAC", |vf| {
        let macs = vf.filter.iter().flat_map(|filter| &filter.unicast);
        macs.into_iter().any(|mac| mac.to_string() == "02:aa:bb:cc:00:02")
    });

    guest.run("ip link set eth1 promisc on").unwrap();
    observer.until_vf0("promiscuous", |vf| vf.filter.as_ref().is_some_and(|f| f.promiscuous));
    guest.run("ip link set eth1 promisc off").unwrap();
    observer.until_vf0("no longer promiscuous", |vf| {
        vf.filter.as_ref().is_some_and(|filter| !filter.promiscuous)
    });

    let mut qmp = guest.qmp().unwrap();
    qmp.execute("stop", json!({})).unwrap();
    observer.until("paused", |u| u.view.run_state.as_deref() == Some("paused"));
    qmp.execute("cont", json!({})).unwrap();
    let update = observer.until("resumed", |u| u.view.run_state.as_deref() == Some("running"));
    assert_eq!(main_mac(vf0(&update)), "02:aa:bb:cc:00:01", "a pause loses nothing");

    let driver = "/sys/bus/pci/drivers/virtio-pci";
    let device = guest.run("basename $(readlink -f /sys/class/net/eth1/device/..)").unwrap();
    let device = device.trim();
    guest.run(&format!("echo {device} > {driver}/unbind")).unwrap();
    observer.until_vf0("no driver", |vf| vf.enabled && vf.filter.is_none());
    guest.run(&format!("echo {device} > {driver}/bind")).unwrap();
    observer.until_vf0("a driver again", |vf| vf.enabled && vf.filter.is_some());

    create_vfs(&guest, 0);
    observer.until_vf0("VFs gone", |vf| !vf.enabled && vf.filter.is_none());
    create_vfs(&guest, 1);
    let update = observer.until_vf0("a VF again", |vf| vf.enabled && vf.filter.is_some());
    assert_eq!(main_mac(vf0(&update)), guest.mac(Function::Vf(0)).unwrap());
    assert!(!update.view.functions["vf1"].enabled);

    drop(qmp);
    guest.kill().unwrap();
    let update = observer.until("the end", |u| u.view.connection == Connection::Gone);
    assert!(update.view.functions.is_empty() && update.view.pid.is_none());
    assert!(observer.counts["NIC_RX_FILTER_CHANGED"] >= 4, "{:?}", observer.counts);
    assert!(observer.counts["STOP"] >= 1 && observer.counts["RESUME"] >= 1);
}

/// A guest with four VFs, of which the first stands on a tap, seen and running.
fn seen(folder: &Path, observer: &mut Observer, name: &str, tap: &str) -> Guest {
    let guest = Guest::named(name)
        .vf(0, Backing::Tap(tap.into()))
        .qmp_socket(folder.join(format!("{name}.sock")))
        .start()
        .unwrap();
    observer.until_running(&[name]);
    guest
}

#[test]
fn more_macs_than_the_device_holds_are_an_overflow_and_not_a_list_cut_short() {
    let folder = tempfile::tempdir().unwrap();
    let mut observer = Observer::of(folder.path());
    let guest = seen(folder.path(), &mut observer, "a", "many-macs0");
    create_vfs(&guest, 1);
    guest.run("ip link set eth1 up").unwrap();
    let unicast = |vf: &GuestFunction| {
        vf.filter.as_ref().map(|filter| (filter.unicast.len(), filter.unicast_overflow))
    };
    guest
        .run(
            "for i in $(seq 10 40); do ip link add link eth1 name mv$i address 02:aa:00:00:01:$i \
             type macvlan; ip link set mv$i up; done",
        )
        .unwrap();
    observer.until_vf0("31 addresses", |vf| unicast(vf) == Some((31, false)));
    guest
        .run(
            "for i in $(seq 41 80); do ip link add link eth1 name mv$i address 02:aa:00:00:01:$i \
             type macvlan; ip link set mv$i up; done",
        )
        .unwrap();
    observer.until_vf0("an overflow", |vf| unicast(vf) == Some((0, true)));
    guest.run("for i in $(seq 11 80); do ip link del mv$i; done").unwrap();
    let update = observer.until_vf0("one address", |vf| unicast(vf) == Some((1, false)));
    assert_eq!(vf0(&update).filter.as_ref().unwrap().unicast[0].to_string(), "02:aa:00:00:01:10");
}

#[test]
fn tcpdump_in_the_guest_is_promiscuous_as_long_as_it_runs_and_not_with_its_option_against_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut observer = Observer::of(folder.path());
    let guest = Guest::named("c")
        .vf(0, Backing::Tap("tcpdump0".into()))
        .qmp_socket(folder.path().join("c.sock"))
        .with_programs()
        .start()
        .unwrap();
    create_vfs(&guest, 1);
    guest.run("ip link set eth1 up").unwrap();
    let promiscuous = |vf: &GuestFunction| vf.filter.as_ref().map(|filter| filter.promiscuous);
    observer.until_vf0("link up", |vf| promiscuous(vf) == Some(false));

    let start = |options: &str| {
        let tcpdump = format!("/usr/bin/tcpdump {options} -i eth1 -w /dev/null");
        guest.run(&format!("setsid {tcpdump} > /tmp/log 2>&1 &")).unwrap();
        // Its own word that it listens comes after it has asked for the mode.
        net::wait_for("tcpdump to listen", DEADLINE, || {
            guest.run("cat /tmp/log").unwrap().contains("listening").then_some(())
        })
        .unwrap();
    };
    start("-p");
    guest.run("ip link set eth1 address 02:aa:bb:cc:00:0b").unwrap();
    let update = observer.until_vf0("a change meanwhile", |vf| main_mac(vf) == "02:aa:bb:cc:00:0b");
    assert_eq!(promiscuous(vf0(&update)), Some(false));
    guest.run("killall tcpdump; rm /tmp/log").unwrap();

    start("");
    observer.until_vf0("tcpdump", |vf| promiscuous(vf) == Some(true));
    guest.run("killall tcpdump").unwrap();
    observer.until_vf0("its end", |vf| promiscuous(vf) == Some(false));
}

#[test]
fn vfs_that_come_and_go_fast_are_seen_as_they_are_in_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut observer = Observer::of(folder.path());
    let guest = seen(folder.path(), &mut observer, "b", "fast-vfs0");
    let numvfs = format!("/sys/bus/pci/devices/{PF_ADDRESS}/sriov_numvfs");
    guest.run(&format!("for n in 0 2 0 4; do echo $n > {numvfs}; done")).unwrap();
    let enabled = |update: &GuestUpdate| {
        update.view.functions.values().filter(|f| f.pf.is_some() && f.enabled).count()
    };
    let update = observer.until("four VFs", |u| enabled(u) == 4);
    let indexes: Vec<_> = update.view.functions.values().map(|f| f.index).collect();
    assert_eq!(indexes, [None, Some(0), Some(1), Some(2), Some(3)]);
    guest.run(&format!("for n in 0 4 0; do echo $n > {numvfs}; done")).unwrap();
    observer.until("no VFs", |u| enabled(u) == 0);
}

#[test]
fn a_reset_takes_the_vfs_and_the_guest_is_followed_through_its_boot() {
    let folder = tempfile::tempdir().unwrap();
    let mut observer = Observer::of(folder.path());
    let guest = Guest::named("c")
        .qmp_socket(folder.path().join("c.sock"))
        .arguments(["-action", "reboot=reset"])
        .start()
        .unwrap();
    observer.until_running(&["c"]);
    create_vfs(&guest, 2);
    observer.until_vf0("a VF", |vf| vf.enabled && vf.filter.is_some());
    guest.qmp().unwrap().execute("system_reset", json!({})).unwrap();
    observer.until_vf0("the reset", |vf| !vf.enabled && vf.filter.is_none());
    observer.until("the PF's driver again", |u| {
        u.view.functions.get("pf0").is_some_and(|pf| pf.enabled && pf.filter.is_some())
    });
    assert!(observer.counts["RESET"] >= 1, "{:?}", observer.counts);
}

#[test]
fn a_qemu_that_stands_still_for_ten_seconds_keeps_what_was_seen() {
    let folder = tempfile::tempdir().unwrap();
    let mut observer = Observer::of(folder.path());
    let guest = seen(folder.path(), &mut observer, "d", "stopped0");
    create_vfs(&guest, 1);
    guest.run("ip link set eth1 up").unwrap();
    let before = observer.until_vf0("link up", |vf| {
        vf.filter.as_ref().is_some_and(|filter| !filter.promiscuous && filter.vlans == [0])
    });
    let signal = |signal| {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(guest.pid()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    };
    signal(nix::sys::signal::Signal::SIGSTOP);
    let stopped = std::time::Instant::now();
    let interrupted = observer
        .until("an interruption", |u| matches!(u.view.connection, Connection::Interrupted { .. }));
    assert_eq!(vf0(&interrupted).backing, vf0(&before).backing);
    assert!(vf0(&interrupted).enabled && vf0(&interrupted).filter.is_some());
    std::thread::sleep(Duration::from_secs(10).saturating_sub(stopped.elapsed()));
    signal(nix::sys::signal::Signal::SIGCONT);
    let after = observer.until("connected again", |u| u.view.connection == Connection::Connected);
    assert!(vf0(&after).enabled && main_mac(vf0(&after)) == main_mac(vf0(&before)));
    guest.run("ip link set eth1 address 02:aa:bb:cc:00:09").unwrap();
    observer.until_vf0("a change after it", |vf| main_mac(vf) == "02:aa:bb:cc:00:09");
}

#[test]
fn four_guests_that_were_there_before_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["a", "b", "c", "d"];
    let guests = names.map(|name| {
        Guest::named(name)
            .vf(0, Backing::Tap(format!("four-{name}0")))
            .qmp_socket(folder.path().join(format!("{name}.sock")))
            .start()
            .unwrap()
    });
    let mut observer = Observer::of(folder.path());
    observer.until_running(&names);
    for (name, guest) in names.iter().zip(&guests) {
        let update = &observer.last[*name];
        assert_eq!(update.view.pid, Some(guest.pid()));
        let tap = BackingView::Netdev { name: format!("four-{name}0") };
        assert_eq!(
            (&vf0(update).backing, vf0(update).source),
            (&tap, Some(BackingSource::TapName))
        );
    }
    for guest in &guests {
        create_vfs(guest, 1);
        guest.run("ip link set eth1 up").unwrap();
    }
    for (number, (name, guest)) in names.iter().zip(&guests).enumerate() {
        let mac = format!("02:aa:00:00:00:{number:02x}");
        guest.run(&format!("ip link set eth1 address {mac}")).unwrap();
        observer.until("its address", |u| u.guest.as_str() == *name && main_mac(vf0(u)) == mac);
    }
    for (number, name) in names.iter().enumerate() {
        assert_eq!(main_mac(vf0(&observer.last[*name])), format!("02:aa:00:00:00:{number:02x}"));
    }
}

#[test]
fn a_guest_that_leaves_for_another_host_is_seen_to_leave_and_to_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut observer = Observer::of(folder.path());
    let guest = seen(folder.path(), &mut observer, "a", "leaving0");
    create_vfs(&guest, 1);
    observer.until_vf0("a VF", |vf| vf.enabled && vf.filter.is_some());
    let mut qmp = guest.qmp().unwrap();
    let place = folder.path().join("left.state");
    qmp.execute("migrate", json!({"uri": format!("file:{}", place.display())})).unwrap();
    let update = observer.until("left", |u| u.view.run_state.as_deref() == Some("postmigrate"));
    assert!(vf0(&update).enabled && vf0(&update).filter.is_some());
    qmp.execute("cont", json!({})).unwrap();
    observer.until("here again", |u| u.view.run_state.as_deref() == Some("running"));
    guest.run("ip link set eth1 address 02:aa:bb:cc:00:0a").unwrap();
    observer.until_vf0("a change after it", |vf| main_mac(vf) == "02:aa:bb:cc:00:0a");
}

/// The folder that makes this test binary serve a double there instead of testing.
const SERVE_AT: &str = "ESWITCHD_TEST_DOUBLE";

/// No test by itself: with [`SERVE_AT`] this process is a QEMU, until it is killed.
#[test]
fn double_process() {
    let Some(path) = std::env::var_os(SERVE_AT) else { return };
    let _double = lab::qmp_double::Double::listen(Path::new(&path), 1, 1).unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn a_command_line_that_claims_a_neighbours_tap_is_refused_and_the_neighbour_unharmed() {
    let folder = tempfile::tempdir().unwrap();
    let mut observer = Observer::of(folder.path());
    let victim = seen(folder.path(), &mut observer, "b", "victim0");
    let tap = BackingView::Netdev { name: "victim0".into() };
    assert_eq!(vf0(&observer.last["b"]).backing, tap);

    // A QEMU whose command line says what it likes: the test runner passes over these words.
    let thief = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "double_process", "--"])
        .args(["-netdev", "tap,id=net-vf0,ifname=victim0"])
        .args(["-device", "virtio-net-pci,id=vf0,netdev=net-vf0"])
        .env(SERVE_AT, folder.path().join("thief.sock"))
        .stdout(std::process::Stdio::null())
        .spawn();
    let mut thief = thief.unwrap();
    let update = observer.until("the thief", |u| {
        u.guest.as_str() == "thief" && u.view.connection == Connection::Connected
    });
    let BackingView::Contested { reason } = &vf0(&update).backing else {
        panic!("{:?}", vf0(&update));
    };
    assert!(reason.contains(&victim.pid().to_string()), "{reason}");
    assert_eq!(vf0(&observer.last["b"]).backing, tap);
    victim.run("true").unwrap();
    thief.kill().unwrap();
    thief.wait().unwrap();
    observer
        .until("its end", |u| u.guest.as_str() == "thief" && u.view.connection == Connection::Gone);
    assert_eq!(vf0(&observer.last["b"]).backing, tap);
}
