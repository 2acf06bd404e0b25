//! The ground that the other netns tests stand on: what this lab's kernel does with netdevsim,
//! flower, veth and frames. eswitchd is not involved.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::time::Duration;

use lab::net::{self, Capture, Netdevsim, Netns};

const LIMIT: Duration = Duration::from_secs(20);
const A: &str = "02:00:00:00:00:0a";
const B: &str = "02:00:00:00:00:0b";
/// IEEE 802 local experimental EtherType.
const EXPERIMENT: u16 = 0x88b5;

fn netdevsim(vfs: u32) -> Netdevsim {
    net::modprobe("netdevsim").unwrap();
    let sim = Netdevsim::create(1).unwrap();
    sim.set_vfs(vfs).unwrap();
    sim
}

#[test]
fn a_netdevsim_in_switchdev_mode_has_one_representor_for_each_vf() {
    let _netns = Netns::enter().unwrap();
    let sim = netdevsim(3);
    sim.switchdev().unwrap();

    let representors: std::collections::BTreeSet<String> =
        (0..3).map(|vf| sim.representor(vf).unwrap()).collect();
    assert_eq!(representors.len(), 3, "{representors:?}");
    assert!(sim.representor(3).is_err());

    let switch = |link: &str| {
        let links = net::ip_json(&format!("link show dev {link}")).unwrap();
        links[0]["phys_switch_id"].as_str().unwrap().to_owned()
    };
    let uplink = switch(&sim.uplink().unwrap());
    for representor in &representors {
        assert_eq!(switch(representor), uplink, "{representor}");
    }
}

#[test]
fn a_flower_rule_on_a_representor_is_in_hardware() {
    lab::native::prove().unwrap();
}

#[test]
fn vf_settings_of_a_netdevsim_in_legacy_mode_are_read_back() {
    let _netns = Netns::enter().unwrap();
    let sim = netdevsim(2);
    let pf = sim.uplink().unwrap();
    net::ip(&format!("link set dev {pf} vf 1 mac {A} vlan 100 spoofchk on")).unwrap();
    let links = net::ip_json(&format!("link show dev {pf}")).unwrap();
    let vf = &links[0]["vfinfo_list"][1];
    assert_eq!(vf["address"], A);
    assert_eq!(vf["vlan_list"][0]["vlan"], 100);
    assert_eq!(vf["spoofchk"], true);
}

#[test]
fn frames_with_vlan_tags_arrive_as_they_were_sent() {
    let _netns = Netns::enter().unwrap();
    net::ip("link add left type veth peer name right").unwrap();
    net::ip("link set left up").unwrap();
    net::ip("link set right up").unwrap();
    let capture = Capture::start("right").unwrap();
    for vlans in [&[][..], &[100], &[100, 7]] {
        let frame = net::frame(B, A, vlans, EXPERIMENT, b"payload");
        net::send_frame("left", &frame).unwrap();
        capture.wait_for(LIMIT, |seen| seen == frame).unwrap();
    }
    // What a link sends itself is not captured on it.
    let own = net::frame(A, B, &[], EXPERIMENT, b"own");
    net::send_frame("right", &own).unwrap();
    capture.wait_for(Duration::from_millis(300), |seen| seen == own).unwrap_err();
}

#[test]
fn a_link_moves_into_a_named_namespace_and_is_seen_there_only() {
    let _netns = Netns::enter().unwrap();
    let other = Netns::named("other").unwrap();
    net::ip("link add here type veth peer name there").unwrap();
    net::ip("link set there netns other").unwrap();
    let there = || net::ip_json("link show dev there").is_ok();
    assert!(!there());
    assert!(other.run(there).unwrap());
}
