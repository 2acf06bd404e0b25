//! The host watch and the eswitch settings against a real kernel.
//!
//! iproute2's tools say what the kernel holds. Each test has a network namespace of its own (that of
//! igb works in the first one). A test that lacks what it needs fails: `cargo lab test` has it all.

#![expect(clippy::expect_used, reason = "what fails here fails the test")]
#![expect(clippy::print_stdout, reason = "times, for who runs it with --nocapture")]

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use api::{
    resources::{EswitchMode, VfLinkState, VlanProto},
    types::{Bitrate, Id, MacAddr},
};
use controller::{
    config::AdapterConfig,
    eswitch::{EswitchHandle, VfChange, VfRate, VfSetting, VfVlan},
    observe::host::{HostMessage, HostWatch},
    world::{AdapterView, NetdevView},
};
use lab::net::{self, Netdevsim, Netns};
use nix::errno::Errno;
use tokio::{runtime::Runtime, sync::mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long a view may take to become what a test waits for; software emulation is slow.
const PATIENCE: Duration = Duration::from_secs(20);

// ---------------------------------------------------------------- the rooms

/// Runs a shell command in this thread's network namespace; its output.
fn sh(command: &str) -> String {
    net::command("sh", ["-ec", command]).expect(command)
}

fn json(command: &str) -> serde_json::Value {
    serde_json::from_str(&sh(command)).expect("JSON")
}

/// A netdevsim device with that many VFs, in legacy mode.
fn netdevsim(vfs: u32) -> Netdevsim {
    net::modprobe("netdevsim").expect("netdevsim");
    let device = Netdevsim::create(1).expect("a device");
    if vfs != 0 {
        device.set_vfs(vfs).expect("VFs");
    }
    device
}

/// Opens the connections that change the host, and a runtime to use them from.
fn eswitch() -> (EswitchHandle, Runtime) {
    let eswitch = EswitchHandle::open().expect("netlink");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("rt");
    (eswitch, runtime)
}

/// A host watch over one adapter.
struct Watched {
    runtime: Runtime,
    messages: mpsc::Receiver<HostMessage>,
    watch: HostWatch,
    latest: AdapterView,
    received: usize,
    _cancel: DropGuard,
}

impl Watched {
    fn adapter(config: AdapterConfig) -> Watched {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let (sink, messages) = mpsc::channel(4);
        let cancel = CancellationToken::new();
        let adapters = vec![(id(), config)];
        let watch =
            runtime.block_on(HostWatch::start(adapters, sink, cancel.clone())).expect("a watch");
        let mut watched = Watched {
            runtime,
            messages,
            watch,
            latest: AdapterView::default(),
            received: 0,
            _cancel: cancel.drop_guard(),
        };
        assert!(watched.next(PATIENCE), "the first snapshot comes by itself");
        watched
    }

    /// Whether another snapshot came in time.
    fn next(&mut self, patience: Duration) -> bool {
        let received = self
            .runtime
            .block_on(async { tokio::time::timeout(patience, self.messages.recv()).await });
        match received {
            Ok(Some(message)) => {
                self.latest = message.adapters[&id()].clone();
                self.received += 1;
                true
            }
            Ok(None) => panic!("the watch ended"),
            Err(_) => false,
        }
    }

    /// Waits until the adapter looks as it should.
    fn until<T>(&mut self, what: &str, seen: impl Fn(&AdapterView) -> Option<T>) -> T {
        let begun = Instant::now();
        let end = begun + PATIENCE;
        loop {
            if let Some(found) = seen(&self.latest) {
                println!("{what}: seen after {:?}", begun.elapsed());
                return found;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(self.next(left), "never seen: {what}; last view: {:#?}", self.latest);
        }
    }
}

fn id() -> Id {
    "adapter".parse().expect("an id")
}

fn nic(handle: &str) -> AdapterConfig {
    AdapterConfig {
        handle: Some(handle.into()),
        software: None,
        uplink: None,
        representors: Vec::new(),
        uplink_use: Default::default(),
        vdpa: Default::default(),
        vdpa_management: None,
        manage_eswitch: false,
        max_vfs: None,
        hardware_flows: None,
    }
}

fn software(uplink: &str, patterns: &[&str]) -> AdapterConfig {
    AdapterConfig {
        handle: None,
        software: Some("lab".into()),
        uplink: Some(uplink.into()),
        representors: patterns.iter().map(|pattern| pattern.to_string()).collect(),
        uplink_use: Default::default(),
        vdpa: Default::default(),
        vdpa_management: None,
        manage_eswitch: false,
        max_vfs: None,
        hardware_flows: None,
    }
}

fn ifindex_of(name: &str) -> u64 {
    json(&format!("ip -j link show dev {name}"))[0]["ifindex"].as_u64().expect("an index")
}

/// The representors by VF index, as interface indexes; `None` unless all `count` are there.
fn representors(view: &AdapterView, count: usize) -> Option<BTreeMap<u16, NetdevView>> {
    let all: BTreeMap<u16, NetdevView> =
        view.vfs.iter().filter_map(|(vf, view)| Some((*vf, view.representor.clone()?))).collect();
    (all.len() == count && view.vfs.len() == count).then_some(all)
}

/// What devlink's own tool says: netdev names by VF number.
fn representors_by_devlink(handle: &str) -> BTreeMap<u16, String> {
    json("devlink -j port show")["port"]
        .as_object()
        .expect("ports")
        .iter()
        .filter(|(port, facts)| {
            port.starts_with(&format!("{handle}/")) && facts["flavour"] == "pcivf"
        })
        .map(|(_, facts)| {
            let vf = facts["vfnum"].as_u64().expect("vfnum") as u16;
            (vf, facts["netdev"].as_str().expect("netdev").to_owned())
        })
        .collect()
}

// ---------------------------------------------------------------- software adapters

#[test]
fn a_software_adapters_netdevs_join_and_leave_by_name() {
    let _room = Netns::enter().expect("root");
    let mut watched = Watched::adapter(software("up0", &["tap*", "up*"]));
    assert_eq!(watched.latest.mode, Some(EswitchMode::Software));
    assert_eq!(watched.latest.handle, "soft-lab");
    assert!(watched.latest.uplink.is_none());
    assert!(watched.latest.problems[0].contains("`up0` is not there"));

    sh("ip link add up0 type veth peer name wire0");
    let uplink = watched.until("the uplink", |view| view.uplink.clone());
    assert_eq!(u64::from(uplink.ifindex.get()), ifindex_of("up0"));
    assert!(watched.latest.problems.is_empty());
    assert!(watched.latest.representors.is_empty(), "an uplink is no representor, nor is wire0");

    sh("ip tuntap add tap7 mode tap");
    let tap = watched.until("the tap", |view| view.representors.get("tap7").cloned());
    assert_eq!(u64::from(tap.ifindex.get()), ifindex_of("tap7"));
    let mac = json("ip -j link show dev tap7")[0]["address"].clone();
    assert_eq!(tap.mac.map(|mac| mac.to_string()).as_deref(), mac.as_str());

    sh("ip link set tap7 name other7");
    watched.until("the renamed tap gone", |view| view.representors.is_empty().then_some(()));
    sh("ip link set other7 name tap8; ip link del tap8");
    sh("ip tuntap add tap7 mode tap");
    let again = watched.until("a new tap", |view| view.representors.get("tap7").cloned());
    assert_ne!(again.ifindex, tap.ifindex);
}

#[test]
fn a_new_tap_is_in_a_snapshot_within_milliseconds() {
    let _room = Netns::enter().expect("root");
    let mut watched = Watched::adapter(software("lo", &["tap*"]));
    let mut waits = Vec::new();
    for round in 0..20 {
        std::thread::sleep(Duration::from_millis(50));
        sh(&format!("ip tuntap add tap{round} mode tap"));
        let made = Instant::now();
        let name = format!("tap{round}");
        watched.until(&name, |view| view.representors.get(&name).map(drop));
        waits.push(made.elapsed());
    }
    waits.sort();
    println!(
        "from the end of `ip tuntap add` to the snapshot: median {:?}, most {:?}",
        waits[10], waits[19]
    );
    assert!(waits[10] < Duration::from_millis(100), "{waits:?}");
}

#[test]
fn a_flood_of_changes_is_answered_by_few_snapshots_and_the_last_one_is_right() {
    let _room = Netns::enter().expect("root");
    let mut watched = Watched::adapter(software("lo", &["v*"]));
    let script = Path::new("/tmp").join(format!("eswitchd-flood-{}", std::process::id()));
    let adds: String =
        (0..300).map(|n| format!("link add v{n} type veth peer name w{n}\n")).collect();
    std::fs::write(&script, adds).expect("script");
    sh(&format!("ip -b {}", script.display()));
    std::fs::remove_file(&script).expect("script");
    watched.until("all 300", |view| (view.representors.len() == 300).then_some(()));
    // Each veth pair notifies several times.
    assert!(watched.received < 300, "{} snapshots", watched.received);
    println!("{} snapshots for 300 veth pairs", watched.received);
}

#[test]
fn asking_again_without_a_change_sends_nothing() {
    let _room = Netns::enter().expect("root");
    let mut watched = Watched::adapter(software("lo", &["tap*"]));
    for _ in 0..10 {
        watched.watch.look_again();
    }
    assert!(!watched.next(Duration::from_millis(300)));
}

// ---------------------------------------------------------------- representors made ready

#[test]
fn a_prepared_representor_is_up_and_never_gets_an_ipv6_address() {
    let _room = Netns::enter().expect("root");
    let (eswitch, runtime) = eswitch();
    sh("ip link add rep0 type veth peer name vf0; ip link set vf0 up");
    let mut watched = Watched::adapter(software("lo", &["rep*"]));
    let rep = watched.until("the representor", |view| view.representors.get("rep0").cloned());

    runtime.block_on(eswitch.prepare_representor(&rep)).expect("prepared");
    let link = &json("ip -d -j link show dev rep0")[0];
    assert_eq!(link["inet6_addr_gen_mode"], "none");
    assert!(link["flags"].to_string().contains("\"UP\""), "{link}");
    assert_eq!(link["promiscuity"], 0);
    assert!(ipv6_addresses("rep0").is_empty());
}

#[test]
fn a_representor_that_was_up_before_loses_the_address_that_it_gave_itself() {
    let _room = Netns::enter().expect("root");
    let (eswitch, runtime) = eswitch();
    sh("ip link add rep0 type veth peer name vf0; ip link set vf0 up; ip link set rep0 up");
    sh("ip addr add fe80::77/64 dev rep0; ip link add bystander type veth peer name b1");
    sh("ip link set b1 up; ip link set bystander up");
    assert_eq!(ipv6_addresses("rep0").len(), 2);
    let rep = NetdevView {
        ifindex: tc_flows::Ifindex::new(ifindex_of("rep0") as u32).expect("an index"),
        name: "rep0".into(),
        mac: None,
    };

    runtime.block_on(eswitch.prepare_representor(&rep)).expect("prepared");
    assert_eq!(ipv6_addresses("rep0"), ["fe80::77"], "an address that somebody gave it stays");
    assert_eq!(ipv6_addresses("bystander").len(), 1, "another netdev's stays");
}

#[test]
fn what_cannot_be_done_says_what_and_why() {
    let _room = Netns::enter().expect("root");
    let (eswitch, runtime) = eswitch();
    let gone = NetdevView {
        ifindex: tc_flows::Ifindex::new(4242).expect("an index"),
        name: "gone0".into(),
        mac: None,
    };
    let refusal = runtime.block_on(eswitch.prepare_representor(&gone)).expect_err("no such netdev");
    assert_eq!(refusal.errno, Errno::ENODEV as i32);
    assert!(refusal.what.contains("gone0"), "{refusal}");

    sh("ip link add v0 type veth peer name v1");
    let veth = tc_flows::Ifindex::new(ifindex_of("v0") as u32).expect("an index");
    let answers = runtime.block_on(eswitch.set_vf(veth, 0, &everything()));
    let settings: Vec<VfSetting> = answers.iter().map(|(setting, _)| *setting).collect();
    assert_eq!(settings, everything().settings());
    assert_eq!(settings.len(), 5);
    for (setting, answer) in answers {
        let refusal = answer.expect_err("a veth has no VFs");
        assert_eq!(refusal.errno, Errno::EOPNOTSUPP as i32, "{refusal}");
        assert!(refusal.what.contains(&setting.to_string()), "{refusal}");
    }
}

/// The IPv6 addresses of a netdev.
fn ipv6_addresses(netdev: &str) -> Vec<String> {
    json(&format!("ip -j -6 addr show dev {netdev}"))
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|link| link["addr_info"].as_array().cloned().unwrap_or_default())
        .filter_map(|address| Some(address["local"].as_str()?.to_owned()))
        .collect()
}

/// A change of every setting.
fn everything() -> VfChange {
    VfChange {
        mac: Some(mac("02:aa:00:00:00:01")),
        vlan: Some(VfVlan { vid: 100, qos: 3, proto: VlanProto::Dot1Q }),
        rate: Some(VfRate { max_mbit: 500, min_mbit: 10 }),
        spoof_check: Some(true),
        link_state: Some(VfLinkState::Enable),
        trust: None,
    }
}

fn mac(text: &str) -> MacAddr {
    text.parse().expect("a MAC address")
}

// ---------------------------------------------------------------- NICs

#[test]
fn a_nic_that_is_not_there_is_a_problem_with_a_remedy() {
    let _room = Netns::enter().expect("root");
    let watched = Watched::adapter(nic("pci/0000:ff:1f.7"));
    assert_eq!(watched.latest.mode, None);
    assert_eq!(watched.latest.driver, None);
    assert!(watched.latest.problems[0].contains("correct `handle`"), "{:?}", watched.latest);
}

#[test]
fn representors_are_found_by_what_devlink_says_also_after_the_vfs_came_anew() {
    let _room = Netns::enter().expect("root");
    let device = netdevsim(3);
    device.switchdev().expect("switchdev");
    let mut watched = Watched::adapter(nic(&device.handle()));
    let first = watched.until("three representors", |view| representors(view, 3));
    assert_eq!(watched.latest.mode, Some(EswitchMode::Switchdev));
    assert_eq!(watched.latest.driver.as_deref(), Some("netdevsim"));
    assert_eq!(watched.latest.handle, device.handle());
    assert!(watched.latest.problems.is_empty(), "{:?}", watched.latest.problems);
    assert!(watched.latest.pf.is_none());
    let names: BTreeMap<u16, String> =
        first.iter().map(|(vf, netdev)| (*vf, netdev.name.clone())).collect();
    assert_eq!(names, representors_by_devlink(&device.handle()));
    for netdev in first.values() {
        assert_eq!(u64::from(netdev.ifindex.get()), ifindex_of(&netdev.name));
    }
    let uplink = watched.latest.uplink.clone().expect("an uplink");
    let shown = &json(&format!("ip -d -j link show dev {}", uplink.name))[0];
    assert_eq!(device.uplink().expect("an uplink"), uplink.name);
    // `ip` cuts a switch id of 32 bytes.
    let switch_id = watched.latest.switch_id.clone().expect("a switch id");
    assert!(switch_id.starts_with(shown["phys_switch_id"].as_str().expect("a switch id")));

    // netdevsim falls back to legacy mode when its last VF goes.
    device.set_vfs(0).expect("VFs");
    watched.until("no VFs", |view| view.vfs.is_empty().then_some(()));
    device.set_vfs(3).expect("VFs");
    device.switchdev().expect("switchdev");
    let second = watched.until("three new representors", |view| representors(view, 3));
    assert_eq!(watched.latest.uplink.as_ref(), Some(&uplink));
    for (vf, netdev) in &second {
        assert_ne!(netdev.ifindex, first[vf].ifindex);
        assert_eq!(u64::from(netdev.ifindex.get()), ifindex_of(&netdev.name));
    }
}

#[test]
fn a_renamed_representor_is_still_that_vfs() {
    let _room = Netns::enter().expect("root");
    let device = netdevsim(2);
    device.switchdev().expect("switchdev");
    let mut watched = Watched::adapter(nic(&device.handle()));
    let before = watched.until("two representors", |view| representors(view, 2));
    sh(&format!("ip link set {} name zz", before[&0].name));
    let renamed = watched.until("the new name", |view| {
        view.vfs[&0].representor.clone().filter(|netdev| netdev.name == "zz")
    });
    assert_eq!(renamed.ifindex, before[&0].ifindex);
}

#[test]
fn a_new_representor_is_in_a_snapshot_within_milliseconds() {
    let _room = Netns::enter().expect("root");
    let device = netdevsim(0);
    let mut watched = Watched::adapter(nic(&device.handle()));
    let mut waits = Vec::new();
    for _ in 0..9 {
        device.set_vfs(1).expect("VFs");
        // netdevsim does not notify this.
        watched.watch.look_again();
        watched.until("a VF", |view| (view.vfs.len() == 1).then_some(()));
        device.switchdev().expect("switchdev");
        let made = Instant::now();
        watched.until("a representor", |view| representors(view, 1));
        waits.push(made.elapsed());
        device.set_vfs(0).expect("VFs");
        watched.until("none", |view| view.vfs.is_empty().then_some(()));
    }
    waits.sort();
    println!(
        "from the end of `devlink dev eswitch set` to the snapshot: median {:?}, most {:?}",
        waits[4], waits[8]
    );
    assert!(waits[4] < Duration::from_millis(500), "{waits:?}");
}

#[test]
fn the_mode_is_followed_both_ways() {
    let _room = Netns::enter().expect("root");
    let device = netdevsim(2);
    let mut watched = Watched::adapter(nic(&device.handle()));
    let is = |mode: EswitchMode| move |view: &AdapterView| (view.mode == Some(mode)).then_some(());
    watched.until("legacy", is(EswitchMode::Legacy));
    let pf = watched.latest.pf.clone().expect("a PF");
    assert!(watched.latest.vfs.values().all(|vf| vf.settings.is_some()));
    device.switchdev().expect("switchdev");
    watched.until("switchdev", is(EswitchMode::Switchdev));
    watched.until("the representors", |view| representors(view, 2));
    assert_eq!(watched.latest.uplink.as_ref(), Some(&pf), "netdevsim's PF netdev is its uplink");
    sh(&format!("devlink dev eswitch set {} mode legacy", device.handle()));
    watched.until("legacy again", is(EswitchMode::Legacy));
    watched.until("no representors", |view| {
        view.vfs.values().all(|vf| vf.representor.is_none()).then_some(())
    });
}

#[test]
fn an_adapter_that_goes_is_noticed() {
    let _room = Netns::enter().expect("root");
    let device = netdevsim(0);
    let mut watched = Watched::adapter(nic(&device.handle()));
    watched.until("the device", |view| view.mode);
    drop(device);
    watched.until("its absence", |view| view.mode.is_none().then_some(()));
    assert!(watched.latest.problems[0].contains("is not there"), "{:?}", watched.latest.problems);
    assert!(watched.latest.vfs.is_empty() && watched.latest.pf.is_none());
}

#[test]
fn hw_tc_offload_is_switched_on_where_the_device_can() {
    let _room = Netns::enter().expect("root");
    let device = netdevsim(1);
    device.switchdev().expect("switchdev");
    let eswitch = EswitchHandle::open().expect("netlink");
    let mut watched = Watched::adapter(nic(&device.handle()));
    let representor = watched.until("a representor", |view| representors(view, 1))[&0].clone();
    let uplink = watched.latest.uplink.clone().expect("an uplink");
    let offloads = |netdev: &NetdevView| {
        sh(&format!("ethtool -k {} | grep hw-tc-offload", netdev.name)).trim().to_owned()
    };
    for netdev in [&representor, &uplink] {
        sh(&format!("ethtool -K {} hw-tc-offload off", netdev.name));
        assert_eq!(offloads(netdev), "hw-tc-offload: off");
    }
    watched.runtime.block_on(eswitch.prepare_representor(&representor)).expect("prepared");
    watched.runtime.block_on(eswitch.switch_tc_offload_on(&uplink)).expect("switched on");
    assert_eq!(offloads(&representor), "hw-tc-offload: on");
    assert_eq!(offloads(&uplink), "hw-tc-offload: on");
    let shown = &json(&format!("ip -d -j link show dev {}", representor.name))[0];
    assert_eq!(shown["inet6_addr_gen_mode"], "none");
    assert!(shown["flags"].to_string().contains("\"UP\""), "{shown}");
}

#[test]
fn legacy_vf_settings_are_written_one_by_one_and_read_back() {
    let _room = Netns::enter().expect("root");
    let device = netdevsim(2);
    let eswitch = EswitchHandle::open().expect("netlink");
    let mut watched = Watched::adapter(nic(&device.handle()));
    watched.until("two VFs", |view| (view.vfs.len() == 2).then_some(()));
    let pf = watched.latest.pf.clone().expect("a PF");
    let untouched = watched.latest.vfs[&0].clone();
    let vlan = VfVlan { vid: 200, qos: 3, proto: VlanProto::Dot1Ad };
    for (change, expected) in [
        (everything(), (100, VlanProto::Dot1Q, Some(true), Some(VfLinkState::Enable))),
        (
            VfChange {
                vlan: Some(vlan),
                spoof_check: Some(false),
                link_state: Some(VfLinkState::Disable),
                ..VfChange::default()
            },
            (200, VlanProto::Dot1Ad, Some(false), Some(VfLinkState::Disable)),
        ),
    ] {
        let answers = watched.runtime.block_on(eswitch.set_vf(pf.ifindex, 1, &change));
        for (setting, answer) in answers {
            assert_eq!(answer, Ok(()), "{setting}");
        }
        // The kernel notifies VF settings of a PF that is up, and this one is down.
        watched.watch.look_again();
        watched.until("the settings", |view| {
            let now = view.vfs[&1].settings.as_ref()?;
            ((now.vlan, now.vlan_proto, now.spoof_check, now.link_state) == expected).then_some(())
        });
        let now = watched.latest.vfs[&1].settings.clone().expect("settings");
        assert_eq!(now.mac, mac("02:aa:00:00:00:01"));
        assert_eq!(now.vlan_priority.get(), 3);
        assert_eq!((now.tx_max, now.tx_min), (Bitrate::from_mbit(500), Bitrate::from_mbit(10)));
    }
    let shown = json(&format!("ip -j link show dev {}", pf.name))[0]["vfinfo_list"][1].clone();
    assert_eq!(shown["address"], "02:aa:00:00:00:01");
    assert_eq!(shown["vlan_list"][0]["vlan"], 200);
    assert_eq!(shown["vlan_list"][0]["qos"], 3);
    assert_eq!(shown["vlan_list"][0]["protocol"], "802.1ad");
    assert_eq!(shown["link_state"], "disable");
    assert_eq!(shown["rate"], serde_json::json!({"max_tx": 500, "min_tx": 10}));
    assert_eq!(watched.latest.vfs[&0], untouched);

    let answers = watched.runtime.block_on(eswitch.set_vf(pf.ifindex, 9, &everything()));
    for (_, answer) in answers {
        let refusal = answer.expect_err("there is no VF 9");
        assert_eq!(refusal.errno, Errno::EINVAL as i32, "{refusal}");
    }
}

#[test]
fn a_setting_that_another_program_changed_is_seen() {
    let _room = Netns::enter().expect("root");
    let device = netdevsim(1);
    let mut watched = Watched::adapter(nic(&device.handle()));
    watched.until("a VF", |view| (view.vfs.len() == 1).then_some(()));
    let pf = watched.latest.pf.clone().expect("a PF");
    sh(&format!("ip link set {} up", pf.name));
    sh(&format!("ip link set {} vf 0 vlan 77", pf.name));
    let made = Instant::now();
    watched.until("its VLAN", |view| (view.vfs[&0].settings.as_ref()?.vlan == 77).then_some(()));
    assert!(made.elapsed() < Duration::from_secs(8), "notified, not found by the slow audit");
}

/// The PCI address of an igb PF.
fn igb() -> String {
    net::modprobe("igb").expect("igb");
    std::fs::read_dir("/sys/bus/pci/drivers/igb")
        .expect("the igb driver")
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.to_owned()))
        .find(|name| name.starts_with("0000:"))
        .expect("an igb PF")
}

/// In the first network namespace: that is where the NIC's netdev is.
#[test]
fn igb_takes_legacy_settings_and_says_what_it_has_not() {
    let address = igb();
    let vfs = format!("/sys/bus/pci/devices/{address}/sriov_numvfs");
    std::fs::write(&vfs, "0").expect("sriov_numvfs");
    let eswitch = EswitchHandle::open().expect("netlink");
    let mut watched = Watched::adapter(nic(&format!("pci/{address}")));
    assert_eq!(watched.latest.mode, Some(EswitchMode::Legacy), "{:?}", watched.latest);
    assert_eq!(watched.latest.driver.as_deref(), Some("igb"));
    assert!(watched.latest.vfs.is_empty());
    let pf = watched.latest.pf.clone().expect("a PF");
    sh(&format!("ip link set {} up", pf.name));

    std::fs::write(&vfs, "2").expect("sriov_numvfs");
    let made = Instant::now();
    watched.until("two VFs", |view| (view.vfs.len() == 2).then_some(()));
    assert!(made.elapsed() < Duration::from_secs(8), "notified, not found by the slow audit");
    let change = VfChange { spoof_check: Some(false), ..everything() };
    let answers: BTreeMap<VfSetting, _> =
        watched.runtime.block_on(eswitch.set_vf(pf.ifindex, 1, &change)).into_iter().collect();
    assert_eq!(answers[&VfSetting::Mac], Ok(()));
    assert_eq!(answers[&VfSetting::Vlan], Ok(()));
    assert_eq!(answers[&VfSetting::SpoofCheck], Ok(()));
    let refusal = answers[&VfSetting::Rate].clone().expect_err("igb promises no minimum");
    assert_eq!(refusal.errno, Errno::EINVAL as i32, "{refusal}");
    let refusal = answers[&VfSetting::LinkState].clone().expect_err("igb has no VF link state");
    assert_eq!(refusal.errno, Errno::EOPNOTSUPP as i32, "{refusal}");
    watched.until("the settings", |view| {
        let now = view.vfs[&1].settings.as_ref()?;
        let expected = (mac("02:aa:00:00:00:01"), 100, Some(false));
        ((now.mac, now.vlan, now.spoof_check) == expected).then_some(())
    });

    let service = VfVlan { vid: 200, qos: 0, proto: VlanProto::Dot1Ad };
    let change = VfChange { vlan: Some(service), ..VfChange::default() };
    let answers = watched.runtime.block_on(eswitch.set_vf(pf.ifindex, 1, &change));
    let refusal = answers[0].1.clone().expect_err("igb has no 802.1ad");
    assert_eq!(refusal.errno, Errno::EPROTONOSUPPORT as i32, "{refusal}");
    std::fs::write(&vfs, "0").expect("sriov_numvfs");
}
