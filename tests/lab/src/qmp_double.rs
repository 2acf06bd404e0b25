//! QEMU doubles: peers that speak QMP as QEMU does, as far as a reader of receive filters listens,
//! for tests and benchmarks with more guests than a machine carries.
//!
//! In: requests on Unix sockets, changes that the guest is said to make. Out: what QEMU 11 answers,
//! in its own spelling and order of fields, and NIC_RX_FILTER_CHANGED under its own rule (once, and
//! again after a query). Threads and blocking sockets; no command is carried out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use serde_json::Value;

use crate::{At, Result};

/// The stack of a double's threads: there are two for each.
const STACK: usize = 128 * 1024;

/// One NIC of a double.
#[derive(Debug, Clone)]
pub struct Nic {
    /// The device id of its PF; empty for a PF.
    pub pf: String,
    /// Whether its BARs have addresses.
    pub enabled: bool,
    /// Whether a driver has set its filter.
    pub driver: bool,
    /// The address in force.
    pub mac: String,
    /// The event fires once, and again only after a query.
    armed: bool,
}

#[derive(Debug)]
struct State {
    nics: BTreeMap<String, Nic>,
    /// Whom events go to.
    client: Option<UnixStream>,
    /// How often each command was asked.
    asked: BTreeMap<String, u64>,
}

/// A guest that is none: an emulated PF `pf0` in use and VFs `vf0` and on, of which the first ones
/// are in use. Its socket file goes with it.
#[derive(Debug)]
pub struct Double {
    path: PathBuf,
    state: Arc<Mutex<State>>,
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Double {
    /// Listens at `path`, with `vfs` VFs of which `enabled` are in use.
    ///
    /// # Errors
    /// There can be no socket at `path`.
    pub fn listen(path: &Path, vfs: usize, enabled: usize) -> Result<Self> {
        let nic = |pf: &str, number: usize, enabled| Nic {
            pf: pf.to_owned(),
            enabled,
            driver: enabled,
            mac: format!("52:54:00:00:00:{number:02x}"),
            armed: false,
        };
        let mut nics = BTreeMap::from([("pf0".to_owned(), nic("", 0, true))]);
        for vf in 0..vfs {
            nics.insert(format!("vf{vf}"), nic("pf0", vf + 1, vf < enabled));
        }
        let state = State { nics, client: None, asked: BTreeMap::new() };
        let state = Arc::new(Mutex::new(state));
        let listener = UnixListener::bind(path).at(format!("listening at {}", path.display()))?;
        let served = Arc::clone(&state);
        thread::Builder::new()
            .stack_size(STACK)
            .spawn(move || {
                for stream in listener.incoming().map_while(std::result::Result::ok) {
                    // A client that went away ends only its own connection.
                    let _ = attend(stream, &served);
                    locked(&served).client = None;
                }
            })
            .at("starting a double")?;
        Ok(Double { path: path.into(), state })
    }

    /// The guest changes a NIC, and its QEMU says so where it does. Whether it did.
    ///
    /// # Errors
    /// There is no such NIC, or nobody listens any more.
    pub fn change(&self, device: &str, change: impl FnOnce(&mut Nic)) -> Result<bool> {
        let mut state = locked(&self.state);
        let missing = || std::io::Error::other(format!("no NIC {device}"));
        let nic = state.nics.get_mut(device).ok_or_else(missing).at("changing a double")?;
        change(nic);
        let fires = std::mem::take(&mut nic.armed);
        if fires && let Some(client) = &mut state.client {
            client.write_all(filter_changed(device).as_bytes()).at("sending an event")?;
        }
        Ok(fires)
    }

    /// Sends the event of a NIC so many times at once, as no QEMU does.
    ///
    /// # Errors
    /// Nobody listens any more.
    pub fn flood(&self, device: &str, events: usize) -> Result<()> {
        // What cannot be written at once must not keep the double from answering.
        let client = locked(&self.state).client.as_ref().map(UnixStream::try_clone);
        let Some(client) = client.transpose().at("flooding")? else { return Ok(()) };
        (&client).write_all(filter_changed(device).repeat(events).as_bytes()).at("flooding")
    }

    /// How often a command was asked.
    pub fn asked(&self, command: &str) -> u64 {
        locked(&self.state).asked.get(command).copied().unwrap_or(0)
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        if let Some(client) = &locked(&self.state).client {
            let _ = client.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// NIC_RX_FILTER_CHANGED as QEMU writes it.
fn filter_changed(device: &str) -> String {
    format!(
        "{{\"timestamp\": {{\"seconds\": 1763800000, \"microseconds\": 4711}}, \"event\": \
         \"NIC_RX_FILTER_CHANGED\", \"data\": {{\"name\": \"{device}\", \"path\": \
         \"/machine/peripheral/{device}/virtio-backend\"}}}}\r\n"
    )
}

const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 3, \"minor\": 1, \"major\": 11}, \
                        \"package\": \"double\"}, \"capabilities\": [\"oob\"]}}\r\n";

fn attend(stream: UnixStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut requests = BufReader::new(stream.try_clone()?);
    (&stream).write_all(GREETING.as_bytes())?;
    locked(state).client = Some(stream);
    let mut request = String::new();
    loop {
        request.clear();
        if requests.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let parsed: Value = serde_json::from_str(&request)?;
        // Answer and event leave in the order in which the model changed.
        let mut state = locked(state);
        let answer = state.answer(&parsed);
        if let Some(client) = &mut state.client {
            client.write_all(answer.as_bytes())?;
        }
    }
}

impl State {
    fn answer(&mut self, request: &Value) -> String {
        let id = &request["id"];
        let command = request["execute"].as_str().unwrap_or_default();
        *self.asked.entry(command.to_owned()).or_default() += 1;
        let arguments = &request["arguments"];
        let value = match command {
            "qmp_capabilities" => Some("{}".to_owned()),
            "query-status" => Some("{\"status\": \"running\", \"running\": true}".to_owned()),
            "query-pci" => Some(self.pci()),
            "query-rx-filter" => self.rx_filters(arguments["name"].as_str()),
            "qom-get" => {
                let path = arguments["path"].as_str().unwrap_or_default();
                let device = path.rsplit('/').next().unwrap_or_default();
                self.nics.get(device).map(|nic| match arguments["property"].as_str() {
                    Some("sriov-pf") => format!("\"{}\"", nic.pf),
                    _ => format!("\"net-{device}\""),
                })
            }
            _ => None,
        };
        match value {
            Some(value) => format!("{{\"return\": {value}, \"id\": {id}}}\r\n"),
            None => format!(
                "{{\"id\": {id}, \"error\": {{\"class\": \"GenericError\", \"desc\": \"no\"}}}}\r\n"
            ),
        }
    }

    fn rx_filters(&mut self, name: Option<&str>) -> Option<String> {
        let mut filters = Vec::new();
        for (device, nic) in &mut self.nics {
            if name.is_none_or(|name| name == device) {
                nic.armed = true;
                filters.push(rx_filter(device, nic));
            }
        }
        (!filters.is_empty()).then(|| format!("[{}]", filters.join(", ")))
    }

    fn pci(&self) -> String {
        let mut devices = Vec::new();
        for (function, (id, nic)) in self.nics.iter().enumerate() {
            let region = |bar: u32, size: u32| {
                let address: i64 = if nic.enabled { 4_261_412_864 } else { -1 };
                format!(
                    "{{\"prefetch\": true, \"mem_type_64\": true, \"bar\": {bar}, \"size\": {size}, \
                     \"address\": {address}, \"type\": \"memory\"}}"
                )
            };
            devices.push(format!(
                "{{\"irq_pin\": 0, \"bus\": 1, \"qdev_id\": \"{id}\", \"slot\": {}, \"class_info\": \
                 {{\"class\": 512, \"desc\": \"Ethernet controller\"}}, \"id\": {{\"device\": 4161, \
                 \"subsystem-vendor\": 6900, \"vendor\": 6900, \"subsystem\": 4352}}, \
                 \"function\": {}, \"regions\": [{}, {}]}}",
                function / 8,
                function % 8,
                region(1, 4096),
                region(4, 16384)
            ));
        }
        format!(
            "[{{\"bus\": 0, \"devices\": [{{\"irq_pin\": 0, \"bus\": 0, \"qdev_id\": \"b\", \"slot\": \
             1, \"class_info\": {{\"class\": 1540, \"desc\": \"PCI bridge\"}}, \"id\": {{\"device\": \
             12, \"vendor\": 6966}}, \"function\": 0, \"regions\": [], \"pci_bridge\": {{\"bus\": \
             {{\"number\": 0, \"secondary\": 1, \"subordinate\": 1}}, \"devices\": [{}]}}}}]}}]",
            devices.join(", ")
        )
    }
}

fn rx_filter(device: &str, nic: &Nic) -> String {
    let mut vlans = String::from("0");
    if !nic.driver {
        for vid in 1..4096 {
            let _ = write!(vlans, ", {vid}");
        }
    }
    format!(
        "{{\"unicast\": \"normal\", \"multicast\": \"normal\", \"broadcast-allowed\": false, \
         \"multicast-overflow\": false, \"main-mac\": \"{}\", \"unicast-overflow\": false, \
         \"unicast-table\": [], \"name\": \"{device}\", \"vlan\": \"{}\", \"promiscuous\": {}, \
         \"multicast-table\": [\"33:33:00:00:00:01\"], \"vlan-table\": [{vlans}]}}",
        nic.mac,
        if nic.driver { "normal" } else { "all" },
        !nic.driver
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::qmp::Qmp;
    use serde_json::json;
    use std::time::Duration;

    #[test]
    fn a_double_answers_as_a_qemu_and_fires_once_until_it_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let double = Double::listen(&path, 4, 2).unwrap();
        let mut qmp = Qmp::connect(&path, Duration::from_secs(10)).unwrap();
        let all = qmp.execute("query-rx-filter", json!({})).unwrap();
        let tables: Vec<usize> =
            (0..5).map(|nic| all[nic]["vlan-table"].as_array().unwrap().len()).collect();
        assert_eq!(tables, [1, 1, 1, 4096, 4096]);
        let pf = qmp
            .execute("qom-get", json!({"path": "/machine/peripheral/vf0", "property": "sriov-pf"}));
        assert_eq!(pf.unwrap(), "pf0");
        let pci = qmp.execute("query-pci", json!({})).unwrap();
        let vf3 = &pci[0]["devices"][0]["pci_bridge"]["devices"][4];
        assert_eq!((&vf3["qdev_id"], &vf3["regions"][0]["address"]), (&json!("vf3"), &json!(-1)));

        let change = |last: &str| {
            let mac = format!("02:00:00:00:00:{last}");
            double.change("vf0", |nic| nic.mac = mac).unwrap()
        };
        assert!(change("01"));
        assert!(!change("02"), "nobody has asked since");
        let event = qmp.event("NIC_RX_FILTER_CHANGED", Duration::from_secs(10)).unwrap();
        assert_eq!(event["data"]["name"], "vf0");
        let seen = qmp.execute("query-rx-filter", json!({"name": "vf0"})).unwrap();
        assert_eq!(seen[0]["main-mac"], "02:00:00:00:00:02");
        assert!(change("03"));
        assert_eq!(double.asked("query-rx-filter"), 2);
    }
}
