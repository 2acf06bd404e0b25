//! The ground that the other guest tests stand on: a real guest with an emulated PF starts, creates
//! VFs, and talks over QMP and taps. eswitchd is not involved.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::time::Duration;

use lab::guest::{Backing, Function, Guest, PF_ADDRESS};
use lab::net::{self, Netns};
use serde_json::{Value, json};

fn tap(name: &str) -> Backing {
    net::ip(&format!("tuntap add dev {name} mode tap")).unwrap();
    net::ip(&format!("link set {name} up")).unwrap();
    Backing::Tap(name.to_owned())
}

fn create_vfs(guest: &Guest, count: usize) {
    guest.run(&format!("echo {count} > /sys/bus/pci/devices/{PF_ADDRESS}/sriov_numvfs")).unwrap();
}

#[test]
fn a_guest_creates_vfs_with_the_macs_of_their_devices() {
    let _netns = Netns::enter().unwrap();
    let guest =
        Guest::named("a").pf(tap("a-pf")).vf(0, tap("a-vf0")).vf(1, tap("a-vf1")).start().unwrap();

    assert_eq!(guest.exec("echo out; echo err >&2; exit 3").unwrap().status, 3);
    create_vfs(&guest, 2);
    let links = guest.run("ip -o link").unwrap();
    for (link, function) in [("eth1", Function::Vf(0)), ("eth2", Function::Vf(1))] {
        let mac = guest.mac(function).unwrap();
        let line = links.lines().find(|line| line.contains(&format!(" {link}:")));
        assert!(line.is_some_and(|line| line.contains(&mac)), "{link} {mac}:\n{links}");
    }

    // On the host's side the VFs that exist have addresses, the others have none.
    let mut qmp = guest.qmp().unwrap();
    let buses = qmp.execute("query-pci", json!({})).unwrap();
    for (vf, exists) in [(0, true), (1, true), (2, false)] {
        let id = Function::Vf(vf).id();
        let address = region_address(&buses, &id);
        assert_eq!(address != -1, exists, "{id} at {address} in {buses}");
    }
}

#[test]
fn a_command_that_hangs_is_killed_and_the_guest_goes_on() {
    let _netns = Netns::enter().unwrap();
    let guest = Guest::named("c").start().unwrap();
    assert_eq!(guest.exec_within("sleep 1000", Duration::from_secs(1)).unwrap().status, 137);
    assert_eq!(guest.run("echo on").unwrap(), "on\n");
}

#[test]
fn two_guests_reach_each_other_through_taps_that_a_bridge_joins() {
    let _netns = Netns::enter().unwrap();
    net::ip("link add joint type bridge forward_delay 0").unwrap();
    net::ip("link set joint up").unwrap();
    let guests = ["a", "b"].map(|name| {
        let tap = format!("{name}-tap");
        let guest = Guest::named(name).vf(0, self::tap(&tap)).start().unwrap();
        net::ip(&format!("link set {tap} master joint")).unwrap();
        guest
    });
    for (number, guest) in (1..).zip(&guests) {
        create_vfs(guest, 1);
        guest
            .run(&format!("ip addr add 10.1.0.{number}/24 dev eth1; ip link set eth1 up"))
            .unwrap();
    }
    guests[0].run("ping -c 3 -W 10 10.1.0.2").unwrap();
}

/// Address of the first region of the PCI device with this id, in an answer to `query-pci`.
/// Devices behind a bridge stand in the bridge, not in a bus of the list.
fn region_address(buses: &Value, id: &str) -> i64 {
    fn find<'a>(devices: &'a Value, id: &str) -> Option<&'a Value> {
        devices.as_array()?.iter().find_map(|device| {
            if device["qdev_id"] == id {
                return Some(device);
            }
            find(&device["pci_bridge"]["devices"], id)
        })
    }
    let mut buses = buses.as_array().unwrap().iter();
    let device = buses.find_map(|bus| find(&bus["devices"], id)).unwrap();
    device["regions"][0]["address"].as_i64().unwrap()
}
