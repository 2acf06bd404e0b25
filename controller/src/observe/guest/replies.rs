//! What QMP replies say about functions.
//!
//! In: the `return` values of query-pci, query-rx-filter, query-status and qom-get (QEMU's
//! `qapi/pci.json`, `qapi/net.json`, `qapi/run-state.json`). Out: checked values. A reply of another
//! form is an error, never a guess. No I/O.

use std::collections::BTreeMap;

use api::types::MacAddr;
use serde::Deserialize;

use crate::world::{PciAddress, RxFilter};

/// A PCI device with an id, as query-pci shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PciPlace {
    /// Where the guest sees it; absent where it is no place that PCI has.
    pub(crate) address: Option<PciAddress>,
    /// Whether a BAR has an address. A VF's BARs have one exactly while the guest has it enabled.
    pub(crate) enabled: bool,
    /// Whether it is a network controller (PCI base class 2).
    pub(crate) network: bool,
}

#[derive(Deserialize)]
struct WireBus {
    #[serde(default)]
    devices: Vec<WirePciDevice>,
}

#[derive(Deserialize)]
struct WirePciDevice {
    bus: i64,
    slot: i64,
    function: i64,
    #[serde(default)]
    qdev_id: String,
    class_info: WirePciClass,
    #[serde(default)]
    regions: Vec<WireRegion>,
    pci_bridge: Option<WireBus>,
}

#[derive(Deserialize)]
struct WirePciClass {
    class: u32,
}

#[derive(Deserialize)]
struct WireRegion {
    address: i64,
}

/// What QEMU says for the address of a BAR that has none (`PCI_BAR_UNMAPPED`).
const UNMAPPED: i64 = -1;

/// The PCI base class of network controllers.
const NETWORK_CONTROLLER: u32 = 2;

impl WirePciDevice {
    fn address(&self) -> Option<PciAddress> {
        let within = |number: i64, limit: u8| u8::try_from(number).ok().filter(|n| *n <= limit);
        Some(PciAddress {
            bus: within(self.bus, u8::MAX)?,
            slot: within(self.slot, 31)?,
            function: within(self.function, 7)?,
        })
    }
}

fn collect(devices: &[WirePciDevice], places: &mut BTreeMap<String, PciPlace>) {
    for device in devices {
        if !device.qdev_id.is_empty() {
            let place = PciPlace {
                address: device.address(),
                enabled: device.regions.iter().any(|region| region.address != UNMAPPED),
                network: device.class_info.class >> 8 == NETWORK_CONTROLLER,
            };
            places.insert(device.qdev_id.clone(), place);
        }
        if let Some(bridge) = &device.pci_bridge {
            collect(&bridge.devices, places);
        }
    }
}

/// The PCI devices that have ids, behind bridges too, from query-pci.
pub(crate) fn pci_places(value: &str) -> Result<BTreeMap<String, PciPlace>, serde_json::Error> {
    let buses: Vec<WireBus> = serde_json::from_str(value)?;
    let mut places = BTreeMap::new();
    for bus in &buses {
        collect(&bus.devices, &mut places);
    }
    Ok(places)
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct WireRxFilter {
    name: String,
    promiscuous: bool,
    multicast: WireRxState,
    vlan: WireRxState,
    multicast_overflow: bool,
    unicast_overflow: bool,
    main_mac: MacAddr,
    vlan_table: Vec<u16>,
    unicast_table: Vec<MacAddr>,
    multicast_table: Vec<MacAddr>,
}

#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum WireRxState {
    Normal,
    None,
    All,
}

/// The receive filter of one NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NicFilter {
    /// The NIC's name: its device id where it has one.
    pub(crate) name: String,
    /// What a driver asks for; absent where none has asked yet.
    pub(crate) filter: Option<RxFilter>,
}

impl From<WireRxFilter> for NicFilter {
    fn from(wire: WireRxFilter) -> Self {
        // Before a driver attaches, and after a reset, QEMU shows a filter that lets everything
        // through. A driver that has negotiated anything leaves it promiscuous with no VLANs, or
        // not promiscuous.
        let untouched = wire.promiscuous && wire.vlan == WireRxState::All;
        let filter = (!untouched).then(|| {
            // QEMU empties a table that overflowed; whatever a peer leaves in it says nothing.
            let table = |overflow: bool, mut macs: Vec<MacAddr>| {
                if overflow {
                    macs.clear();
                }
                macs.sort_unstable();
                macs.dedup();
                macs
            };
            let mut vlans = wire.vlan_table;
            if wire.vlan == WireRxState::All {
                vlans.clear();
            }
            vlans.sort_unstable();
            vlans.dedup();
            RxFilter {
                main_mac: wire.main_mac,
                unicast: table(wire.unicast_overflow, wire.unicast_table),
                unicast_overflow: wire.unicast_overflow,
                multicast: table(wire.multicast_overflow, wire.multicast_table),
                multicast_overflow: wire.multicast_overflow,
                all_multicast: wire.multicast == WireRxState::All,
                vlans,
                promiscuous: wire.promiscuous,
            }
        });
        NicFilter { name: wire.name, filter }
    }
}

/// The receive filters of a query-rx-filter.
pub(crate) fn rx_filters(value: &str) -> Result<Vec<NicFilter>, serde_json::Error> {
    let wire: Vec<WireRxFilter> = serde_json::from_str(value)?;
    Ok(wire.into_iter().map(NicFilter::from).collect())
}

#[derive(Deserialize)]
struct WireStatus {
    status: String,
}

/// The run state of a query-status.
pub(crate) fn run_state(value: &str) -> Result<String, serde_json::Error> {
    Ok(serde_json::from_str::<WireStatus>(value)?.status)
}

/// The text of a qom-get; `None` where the property is not set.
pub(crate) fn text_property(value: &str) -> Result<Option<String>, serde_json::Error> {
    Ok(Some(serde_json::from_str::<String>(value)?).filter(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    pub(crate) fn pci_device(id: &str, class: u32, addresses: &[i64]) -> serde_json::Value {
        let regions: Vec<_> = addresses
            .iter()
            .enumerate()
            .map(|(bar, address)| {
                json!({"bar": bar, "type": "memory", "address": address, "size": 16384,
                       "prefetch": true, "mem_type_64": true})
            })
            .collect();
        json!({"bus": 1, "slot": 0, "function": 1, "qdev_id": id, "irq_pin": 0,
               "class_info": {"class": class}, "id": {"device": 4161, "vendor": 6900},
               "regions": regions})
    }

    #[test]
    fn devices_are_found_behind_nested_bridges() {
        let mut outer = pci_device("b0", 0x0604, &[]);
        let mut inner = pci_device("b1", 0x0604, &[]);
        inner["pci_bridge"] =
            json!({"bus": {}, "devices": [pci_device("vf0", 0x0200, &[-1, 4_261_412_864])]});
        outer["pci_bridge"] = json!({"bus": {}, "devices": [inner]});
        let reply = json!([{"bus": 0, "devices": [outer, pci_device("", 0x0601, &[])]}]);
        let places = pci_places(&reply.to_string()).unwrap();
        let address = Some(PciAddress { bus: 1, slot: 0, function: 1 });
        assert_eq!(places["vf0"], PciPlace { address, enabled: true, network: true });
        assert_eq!(places["b0"], PciPlace { address, enabled: false, network: false });
        assert_eq!(places.len(), 3, "devices without ids are left out");
    }

    #[test]
    fn a_vf_without_an_address_is_not_enabled() {
        for addresses in [&[][..], &[-1, -1][..]] {
            let reply = json!([{"bus": 0, "devices": [pci_device("vf0", 0x0200, addresses)]}]);
            assert!(!pci_places(&reply.to_string()).unwrap()["vf0"].enabled);
        }
    }

    fn filter(promiscuous: bool, vlan: &str, vlans: &[u16]) -> serde_json::Value {
        json!([{"name": "vf0", "promiscuous": promiscuous, "multicast": "normal",
                "unicast": "normal", "vlan": vlan, "broadcast-allowed": false,
                "multicast-overflow": false, "unicast-overflow": false,
                "main-mac": "02:aa:bb:cc:00:01", "vlan-table": vlans,
                "unicast-table": ["02:00:00:00:00:02", "02:00:00:00:00:01"],
                "multicast-table": ["01:00:5e:00:00:01"]}])
    }

    fn read(value: serde_json::Value) -> Option<RxFilter> {
        rx_filters(&value.to_string()).unwrap().remove(0).filter
    }

    #[test]
    fn a_filter_that_no_driver_has_touched_is_no_request() {
        let all: Vec<u16> = (0..4096).collect();
        assert_eq!(read(filter(true, "all", &all)), None);
    }

    #[test]
    fn a_driver_that_is_bound_but_down_asks_for_everything_untagged() {
        assert!(read(filter(true, "none", &[])).is_some_and(|f| f.promiscuous));
    }

    #[test]
    fn a_filter_reads_the_same_in_whatever_order_its_tables_come() {
        let seen = read(filter(false, "normal", &[100, 0])).unwrap();
        assert_eq!(seen.vlans, [0, 100]);
        assert_eq!(seen.unicast[0], "02:00:00:00:00:01".parse().unwrap());
        assert_eq!(seen.main_mac, "02:aa:bb:cc:00:01".parse().unwrap());
    }

    #[test]
    fn an_overflowed_table_says_nothing() {
        let mut value = filter(false, "normal", &[]);
        value[0]["unicast-overflow"] = json!(true);
        let seen = read(value).unwrap();
        assert!(seen.unicast_overflow && seen.unicast.is_empty());
    }

    #[test]
    fn groups_are_read_with_their_overflow_and_the_wish_for_all_of_them() {
        let seen = read(filter(false, "normal", &[])).unwrap();
        assert_eq!(seen.multicast, ["01:00:5e:00:00:01".parse().unwrap()]);
        assert!(!seen.multicast_overflow && !seen.all_multicast);
        let mut value = filter(false, "normal", &[]);
        value[0]["multicast-overflow"] = json!(true);
        value[0]["multicast"] = json!("all");
        let seen = read(value).unwrap();
        assert!(seen.multicast.is_empty() && seen.multicast_overflow && seen.all_multicast);
    }

    #[test]
    fn a_place_that_pci_does_not_have_is_none() {
        for (field, number) in [("bus", 256), ("bus", -1), ("slot", 32), ("function", 8)] {
            let mut device = pci_device("vf0", 0x0200, &[1]);
            device[field] = json!(number);
            let reply = json!([{"bus": 0, "devices": [device]}]);
            assert_eq!(pci_places(&reply.to_string()).unwrap()["vf0"].address, None);
        }
    }

    #[test]
    fn properties_that_are_not_set_are_absent() {
        assert_eq!(text_property(r#""""#).unwrap(), None);
        assert_eq!(text_property(r#""pf0""#).unwrap().as_deref(), Some("pf0"));
        assert!(text_property("3").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_readers_panic(text in "[\\[\\]{}\":,a-z0-9 -]{0,120}") {
            let _ = pci_places(&text);
            let _ = rx_filters(&text);
            let _ = run_state(&text);
            let _ = text_property(&text);
        }
    }
}
