//! A QEMU double: speaks QMP as QEMU does, as far as this room listens, and can be told to
//! misbehave.
//!
//! In: requests. Out: what QEMU answers, in its own spelling and order of fields. [`Qemu`] is the
//! model and does no I/O; [`Server`] puts it behind a Unix socket.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::broadcast,
    task::JoinHandle,
};

/// One NIC of the double.
#[derive(Debug, Clone)]
pub(crate) struct Nic {
    pub(crate) pf: &'static str,
    pub(crate) netdev: &'static str,
    pub(crate) enabled: bool,
    pub(crate) driver: bool,
    pub(crate) mac: String,
    /// NIC_RX_FILTER_CHANGED fires once, and again only after a query.
    armed: bool,
}

/// The model.
#[derive(Debug, Clone)]
pub(crate) struct Qemu {
    pub(crate) nics: BTreeMap<&'static str, Nic>,
    pub(crate) run_state: &'static str,
    /// Requests by command name.
    pub(crate) asked: BTreeMap<String, u64>,
    /// Requests are kept and answered later.
    pub(crate) frozen: bool,
    /// What is added to the ids of replies.
    pub(crate) id_offset: u64,
}

impl Qemu {
    /// A guest that has booted: a PF in use and two VFs, not enabled.
    pub(crate) fn booted() -> Self {
        let nic = |pf, netdev, enabled, mac: &str| Nic {
            pf,
            netdev,
            enabled,
            driver: enabled,
            mac: mac.to_owned(),
            armed: false,
        };
        Qemu {
            nics: [
                ("pf0", nic("", "n0", true, "52:54:00:00:00:10")),
                ("vf0", nic("pf0", "n1", false, "52:54:00:00:00:11")),
                ("vf1", nic("pf0", "n2", false, "52:54:00:00:00:12")),
            ]
            .into(),
            run_state: "running",
            asked: BTreeMap::new(),
            frozen: false,
            id_offset: 0,
        }
    }

    /// So many VFs, all of them in use.
    pub(crate) fn with_vfs(&mut self, count: usize) {
        for number in 0..count {
            let (pf, netdev, mac) = ("pf0", "n1", format!("52:54:00:00:01:{number:02x}"));
            let nic = Nic { pf, netdev, enabled: true, driver: true, mac, armed: false };
            self.nics.insert(Box::leak(format!("vf{number}").into_boxed_str()), nic);
        }
    }

    /// What is sent to whoever connects.
    pub(crate) fn greeting() -> String {
        json!({"QMP": {"version": {"qemu": {"micro": 3, "minor": 1, "major": 11}, "package": ""},
                       "capabilities": ["oob"]}})
        .to_string()
    }

    /// The guest changes a VF; returns the event, where QEMU sends one.
    pub(crate) fn change(&mut self, vf: &str, change: impl FnOnce(&mut Nic)) -> Option<String> {
        let nic = self.nics.get_mut(vf).expect("a NIC of the double");
        change(nic);
        let fires = std::mem::take(&mut nic.armed);
        fires.then(|| Self::filter_changed(vf))
    }

    /// NIC_RX_FILTER_CHANGED as QEMU writes it.
    pub(crate) fn filter_changed(device: &str) -> String {
        json!({"timestamp": {"seconds": 1_763_800_000, "microseconds": 4711},
               "event": "NIC_RX_FILTER_CHANGED",
               "data": {"name": device,
                        "path": format!("/machine/peripheral/{device}/virtio-backend")}})
        .to_string()
    }

    fn rx_filter(name: &str, nic: &mut Nic) -> Value {
        nic.armed = true;
        let vlan_table: Vec<u16> = if nic.driver { vec![0] } else { (0..4096).collect() };
        json!({"name": name, "promiscuous": !nic.driver, "multicast": "normal",
               "unicast": "normal", "vlan": if nic.driver { "normal" } else { "all" },
               "broadcast-allowed": false, "multicast-overflow": false,
               "unicast-overflow": false, "main-mac": nic.mac, "vlan-table": vlan_table,
               "unicast-table": [], "multicast-table": ["33:33:00:00:00:01"]})
    }

    fn pci(&self) -> Value {
        let device = |(name, nic): (&&str, &Nic)| {
            let address: i64 = if nic.enabled { 4_261_412_864 } else { -1 };
            json!({"bus": 1, "slot": 0, "function": 0, "qdev_id": name, "irq_pin": 0,
                   "class_info": {"class": 512, "desc": "Ethernet controller"},
                   "id": {"device": 4161, "vendor": 6900},
                   "regions": [{"bar": 4, "type": "memory", "address": address, "size": 16384,
                                "prefetch": true, "mem_type_64": true}]})
        };
        let devices: Vec<_> = self.nics.iter().map(device).collect();
        json!([{"bus": 0, "devices": [
            {"bus": 0, "slot": 3, "function": 0, "qdev_id": "b", "irq_pin": 0,
             "class_info": {"class": 1540, "desc": "PCI bridge"}, "regions": [],
             "id": {"device": 12, "vendor": 6966},
             "pci_bridge": {"bus": {"number": 0, "secondary": 1, "subordinate": 1},
                            "devices": devices}}]}])
    }

    /// The answer to one request.
    pub(crate) fn answer(&mut self, request: &str) -> String {
        let request: Value = serde_json::from_str(request).expect("a request in JSON");
        let id = request["id"].as_u64().expect("an id") + self.id_offset;
        let command = request["execute"].as_str().expect("a command").to_owned();
        *self.asked.entry(command.clone()).or_default() += 1;
        let refused = |class: &str, desc: &str| {
            json!({"id": id, "error": {"class": class, "desc": desc}}).to_string()
        };
        let value = match command.as_str() {
            "qmp_capabilities" => json!({}),
            "query-status" => json!({"running": true, "status": self.run_state}),
            "query-pci" => self.pci(),
            "query-rx-filter" => match request["arguments"]["name"].as_str() {
                None => {
                    self.nics.iter_mut().map(|(name, nic)| Self::rx_filter(name, nic)).collect()
                }
                Some(name) => match self.nics.get_mut(name) {
                    Some(nic) => json!([Self::rx_filter(name, nic)]),
                    None => return refused("GenericError", "invalid net client name"),
                },
            },
            "qom-get" => {
                let path = request["arguments"]["path"].as_str().expect("a path");
                let name = path.strip_prefix("/machine/peripheral/").expect("a device");
                match (self.nics.get(name), request["arguments"]["property"].as_str()) {
                    (Some(nic), Some("sriov-pf")) => json!(nic.pf),
                    (Some(nic), Some("netdev")) => json!(nic.netdev),
                    (Some(_), _) => return refused("GenericError", "Property not found"),
                    (None, _) => return refused("DeviceNotFound", "Device not found"),
                }
            }
            other => panic!("a request that is on no list: {other}"),
        };
        // As QEMU orders and spaces it.
        format!("{{\"return\": {value}, \"id\": {id}}}")
    }
}

/// The model behind a socket. The socket file goes with it.
#[derive(Debug)]
pub(crate) struct Server {
    path: PathBuf,
    qemu: Arc<Mutex<Qemu>>,
    said: broadcast::Sender<String>,
    task: JoinHandle<()>,
}

impl Server {
    /// Listens at `path` in place of whatever was there, as QEMU does.
    pub(crate) fn listen(path: &Path, qemu: Qemu) -> Self {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).expect("a free path");
        let qemu = Arc::new(Mutex::new(qemu));
        let (said, _) = broadcast::channel(1024);
        let task = tokio::spawn(serve(listener, Arc::clone(&qemu), said.clone()));
        Server { path: path.into(), qemu, said, task }
    }

    /// The model, to look at it or to change it.
    pub(crate) fn qemu(&self) -> MutexGuard<'_, Qemu> {
        self.qemu.lock().expect("no test panics while it holds the model")
    }

    /// The guest changes a VF, and QEMU says so where it does.
    pub(crate) fn change(&self, vf: &str, change: impl FnOnce(&mut Nic)) -> bool {
        let event = self.qemu().change(vf, change);
        let fires = event.is_some();
        if let Some(event) = event {
            self.say(event);
        }
        fires
    }

    /// Sends one line, whole.
    pub(crate) fn say(&self, line: String) {
        let _ = self.said.send(line + "\r\n");
    }

    /// Closes the connection; listens on.
    pub(crate) fn hang_up(&self) {
        let _ = self.said.send(String::new());
    }

    /// How often a command was sent.
    pub(crate) fn asked(&self, command: &str) -> u64 {
        self.qemu().asked.get(command).copied().unwrap_or(0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// One client at a time, as QEMU's character device has it.
async fn serve(listener: UnixListener, qemu: Arc<Mutex<Qemu>>, said: broadcast::Sender<String>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        // A client that went away ends only its own connection.
        let _ = attend(stream, &qemu, said.subscribe()).await;
    }
}

async fn attend(
    stream: UnixStream,
    qemu: &Mutex<Qemu>,
    mut said: broadcast::Receiver<String>,
) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut requests = BufReader::new(reader).lines();
    writer.write_all((Qemu::greeting() + "\r\n").as_bytes()).await?;
    let frozen = || qemu.lock().expect("the model").frozen;
    loop {
        tokio::select! {
            biased;
            line = said.recv() => match line {
                Ok(line) if line.is_empty() => return Ok(()),
                Ok(line) => writer.write_all(line.as_bytes()).await?,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            },
            request = requests.next_line(), if !frozen() => {
                let Some(request) = request? else { return Ok(()) };
                let answer = qemu.lock().expect("the model").answer(&request);
                writer.write_all((answer + "\r\n").as_bytes()).await?;
            }
            () = tokio::time::sleep(std::time::Duration::from_millis(5)), if frozen() => {}
        }
    }
}
