//! The demo, inside the lab: two real guests, their containers, and eswitchd between them.
//!
//! In: eswitchd's binary, saved guests. Out: a timeline for people and one [`Report`] for programs.
//! Nothing forwards between the guests' taps but the flows that eswitchd installs: there is no
//! bridge and IP forwarding is off, which the first ping, before any port exists, shows.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    At, Error, Result,
    daemon::{Daemon, condition},
    guest::{Backing, Guest, PF_ADDRESS},
    net,
};

/// VFs that each guest creates.
const VFS: usize = 2;

/// What a demo run showed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Whether every step held.
    pub ok: bool,
    /// What did not hold, where something did not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<String>,
    /// Real QEMU guests with an emulated PF.
    pub guests: usize,
    /// VFs that the guests created.
    pub vfs: usize,
    /// Whether the container in one guest reached the other's before there were flows.
    pub ping_before: bool,
    /// Whether it did afterwards.
    pub ping_after: bool,
    /// Whether it did after the guest had changed its address.
    pub ping_after_mac_change: bool,
    /// Milliseconds from each guest event, read off its QMP socket, to its flows acknowledged by
    /// the kernel, by the daemon's own measure.
    pub event_to_flow_ms: Vec<f64>,
    /// Flows that were installed with both ports in place.
    pub flows: usize,
    /// The reason with which the other guest's address was refused.
    pub refused: String,
    /// Frames that a guest sent from the other guest's address.
    pub spoofed_frames_sent: u64,
    /// How many of them arrived anywhere.
    pub spoofed_frames_delivered: u64,
    /// Flows of a guest's port after it had removed its VFs.
    pub flows_after_removal: usize,
    /// Seconds from the start of eswitchd to the end.
    pub seconds: f64,
}

/// A guest with one container, which has its first VF to itself.
struct Tenant {
    guest: Guest,
    name: &'static str,
    address: &'static str,
    mac: String,
}

/// A running demo.
pub struct Demo<'a> {
    began: Instant,
    say: &'a mut dyn FnMut(&str),
    report: Report,
    daemon: Daemon,
    tenants: Vec<Tenant>,
}

impl<'a> Demo<'a> {
    /// Runs the demo in `folder`, telling each step to `say`. What does not hold is in the report;
    /// an error means that the demo itself could not go on.
    ///
    /// # Errors
    /// Something that the demo stands on failed: a guest, the kernel, the daemon's start.
    pub fn run(folder: &Path, say: &'a mut dyn FnMut(&str)) -> Result<(Report, Self)> {
        let began = Instant::now();
        let configuration = "\n[[adapter]]\nsoftware = \"lab\"\nuplink = \"uplink0\"\n\
                             representors = [\"vm-*\"]\n";
        net::modprobe("dummy")?;
        net::ip("link add uplink0 type dummy")?;
        net::ip("link set uplink0 up")?;
        let daemon = Daemon::start(folder, configuration)?;
        let report = Report::default();
        let mut demo = Demo { began, say, report, daemon, tenants: Vec::new() };
        demo.say("eswitchd runs: one software adapter, a guest for every QMP socket it finds");
        demo.guests_with_containers()?;
        demo.ping_without_flows()?;
        demo.plug()?;
        demo.change_of_address()?;
        demo.spoofing()?;
        demo.removal_and_return()?;
        demo.report.seconds = demo.began.elapsed().as_secs_f64();
        demo.report.ok = demo.report.failures.is_empty();
        Ok((demo.report.clone(), demo))
    }

    /// The API's Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.daemon.socket()
    }

    /// The address of a guest's container: of guest a with 0, of guest b with 1.
    pub fn mac(&self, number: usize) -> &str {
        &self.tenants[number].mac
    }

    /// Has the container of guest b ping that of guest a from now on, as fast as it answers, for two
    /// minutes.
    ///
    /// # Errors
    /// The guest does not do it.
    pub fn ping_on(&self) -> Result<()> {
        let to = self.tenants[0].address;
        self.tenants[1].in_container(&format!("ping -A -s 1400 -w 120 {to} > /dev/null 2>&1 &"))
    }

    /// Has guest b take the address of guest a, which the daemon refuses.
    ///
    /// # Errors
    /// The guest does not do it, or the daemon does not refuse it.
    pub fn steal(&mut self) -> Result<()> {
        self.tenants[1].set_mac(&self.tenants[0].mac)?;
        self.daemon.wait_for_condition("/v1/ports/b", "Quarantined", "True").map(drop)
    }

    fn say(&mut self, what: &str) {
        let at = self.began.elapsed().as_secs_f64();
        (self.say)(&format!("[{at:6.1} s] {what}"));
    }

    /// Notes whether a step held.
    fn hold(&mut self, what: &str, held: bool) {
        if held {
            self.say(&format!("  ok   {what}"));
        } else {
            self.say(&format!("  FAIL {what}"));
            self.report.failures.push(what.to_owned());
        }
    }

    fn guests_with_containers(&mut self) -> Result<()> {
        for (name, number) in [("a", 1), ("b", 2)] {
            let mut builder =
                Guest::named(name).qmp_socket(self.daemon.qmp_dir().join(format!("{name}.sock")));
            for vf in 0..VFS {
                let tap = format!("vm-{name}-vf{vf}");
                net::ip(&format!("tuntap add dev {tap} mode tap"))?;
                net::ip(&format!("link set {tap} up"))?;
                builder = builder.vf(vf, Backing::Tap(tap));
            }
            self.tenants.push(Tenant {
                guest: builder.start()?,
                name,
                address: if number == 1 { "10.77.0.1" } else { "10.77.0.2" },
                mac: format!("02:aa:00:00:00:0{number}"),
            });
            self.say(&format!(
                "guest {name}: a real QEMU with an emulated PF (virtio SR-IOV), VFs on taps"
            ));
        }
        for number in 0..self.tenants.len() {
            let tenant = &self.tenants[number];
            tenant.create_vfs(VFS)?;
            tenant.make_container()?;
            let (name, mac, address) = (tenant.name, tenant.mac.clone(), tenant.address);
            self.say(&format!("guest {name}: echo {VFS} > sriov_numvfs"));
            self.say(&format!(
                "guest {name}: moves its VF eth1 into a container, gives it {mac} and {address}"
            ));
        }
        self.report.guests = self.tenants.len();
        let guests = self
            .daemon
            .wait_for("/v1/guests", |guests| enabled_vfs(guests) == self.tenants.len() * VFS);
        self.report.vfs = match guests {
            Ok(guests) => enabled_vfs(&guests),
            Err(error) => {
                self.hold(&format!("eswitchd sees the VFs: {error}"), false);
                0
            }
        };
        self.hold("eswitchd sees both guests and each of their VFs", self.report.vfs == 2 * VFS);
        Ok(())
    }

    fn ping_without_flows(&mut self) -> Result<()> {
        let forwarding =
            fs::read_to_string("/proc/sys/net/ipv4/ip_forward").at("reading sysctl")?;
        let bridges = net::ip("-o link show type bridge")?;
        let nothing = forwarding.trim() == "0" && bridges.is_empty();
        self.hold("nothing else forwards: no bridge, no IP forwarding", nothing);
        self.report.ping_before = self.ping(0)?;
        self.hold("before any port exists, the ping fails", !self.report.ping_before);
        Ok(())
    }

    fn plug(&mut self) -> Result<()> {
        self.daemon.put("/v1/networks/blue", json!({"kind": {"vlan": {"vid": 100}}}))?;
        for tenant in &self.tenants {
            let spec = json!({
                "function": {"guest_vf": {"guest": tenant.name, "device": "vf0"}},
                "attachments": [{"network": "blue"}],
                "guest_macs": {"max": 2, "allow": ["02:aa"]},
            });
            self.daemon.put(&format!("/v1/ports/{}", tenant.name), spec)?;
        }
        self.say("PUT /v1/networks/blue (VLAN 100) and a port for vf0 of each guest");
        for name in ["a", "b"] {
            let path = format!("/v1/ports/{name}");
            let programmed = self.daemon.wait_for_condition(&path, "Programmed", "True");
            self.hold(&format!("port {name} is programmed"), programmed.is_ok());
        }
        self.report.flows = items(&self.daemon.get("/v1/flows")?);
        let flows = self.daemon.get("/v1/flows?port=a")?;
        for flow in flows["items"].as_array().into_iter().flatten().take(4) {
            let (netdev, tc) = (&flow["netdev"], &flow["tc"]);
            self.say(&format!(
                "  flow dev {} {}",
                netdev.as_str().unwrap_or_default(),
                tc.as_str().unwrap_or_default()
            ));
        }
        self.report.ping_after = self.ping(0)?;
        self.hold(
            &format!("through {} flows, the ping works", self.report.flows),
            self.report.ping_after,
        );
        Ok(())
    }

    fn change_of_address(&mut self) -> Result<()> {
        for (number, mac) in [(0, "02:aa:00:00:01:01"), (1, "02:aa:00:00:01:02")] {
            let (followed, took) = self.new_address(number, mac)?;
            let name = self.tenants[number].name;
            let took =
                took.map_or("with a poll".to_owned(), |ms| format!("its event in {ms:.1} ms"));
            self.hold(&format!("guest {name} takes {mac}: flows follow {took}"), followed);
        }
        self.report.ping_after_mac_change = self.ping(0)?;
        self.hold("the ping works with the new addresses", self.report.ping_after_mac_change);
        Ok(())
    }

    /// Gives a guest's VF another address. Whether its port's flows follow, and how many milliseconds
    /// after the event: a poll in the same moment can be faster than the event.
    fn new_address(&mut self, number: usize, mac: &str) -> Result<(bool, Option<f64>)> {
        let path = format!("/v1/ports/{}", self.tenants[number].name);
        let programmed = |port: &Value| port["status"]["events_programmed"].as_u64().unwrap_or(0);
        let before = programmed(&self.daemon.get(&path)?);
        self.tenants[number].set_mac(mac)?;
        self.tenants[number].mac = mac.to_owned();
        let after = self.daemon.wait_for(&path, |port| {
            port["status"]["macs"] == json!([mac])
                && condition(port, "Programmed")["status"] == "True"
        });
        let by_event = after.as_ref().ok().filter(|port| programmed(port) > before);
        let took = by_event
            .and_then(|port| port["status"]["event_to_programmed_us"].as_f64())
            .map(|us| us / 1000.0);
        self.report.event_to_flow_ms.extend(took);
        Ok((after.is_ok(), took))
    }

    fn spoofing(&mut self) -> Result<()> {
        let stolen = self.tenants[0].mac.clone();
        let own = self.tenants[1].mac.clone();
        let delivered = packets("vm-a-vf0", "tx")?;
        let sent = packets("vm-b-vf0", "rx")?;
        self.tenants[1].set_mac(&stolen)?;
        let port = self.daemon.wait_for_condition("/v1/ports/b", "Quarantined", "True");
        self.report.refused = port
            .as_ref()
            .map(|port| condition(port, "Quarantined")["message"].as_str().unwrap_or_default())
            .unwrap_or_default()
            .to_owned();
        self.hold(
            &format!("guest b takes guest a's {stolen}: refused ({})", self.report.refused),
            port.is_ok(),
        );
        // ARP requests are broadcast: were they let through, everybody would get them.
        self.tenants[1].in_container("ping -c 3 -W 1 10.77.0.99 > /dev/null; true")?;
        self.report.spoofed_frames_sent = packets("vm-b-vf0", "rx")?.saturating_sub(sent);
        self.report.spoofed_frames_delivered = packets("vm-a-vf0", "tx")?.saturating_sub(delivered);
        let (sent, delivered) =
            (self.report.spoofed_frames_sent, self.report.spoofed_frames_delivered);
        self.hold(
            &format!("of {sent} frames from the stolen address {delivered} arrive"),
            sent > 0 && delivered == 0,
        );
        self.tenants[1].set_mac(&own)?;
        let path = "/v1/ports/b";
        let released = self.daemon.wait_for_condition(path, "Quarantined", "False").is_ok();
        self.hold("guest b goes back to its own address", released);
        Ok(())
    }

    fn removal_and_return(&mut self) -> Result<()> {
        self.tenants[0].create_vfs(0)?;
        let gone = self.daemon.wait_for("/v1/flows?port=a", |flows| items(flows) == 0);
        self.report.flows_after_removal = match &gone {
            Ok(_) => 0,
            Err(_) => items(&self.daemon.get("/v1/flows?port=a")?),
        };
        self.hold("guest a removes its VFs: its flows go", gone.is_ok());
        let kernel = net::command("tc", ["filter", "show", "dev", "vm-b-vf0", "ingress"])?;
        let clean = !kernel.contains(&self.tenants[0].mac);
        self.hold("and tc shows none of them on guest b's representor", clean);

        self.tenants[0].create_vfs(VFS)?;
        self.tenants[0].make_container()?;
        let path = "/v1/ports/a";
        let back = self.daemon.wait_for_condition(path, "Programmed", "True").is_ok();
        self.hold("guest a creates them anew: its flows are back", back);
        let pinged = self.ping(1)?;
        self.hold("and the ping works again, from guest b", pinged);
        Ok(())
    }

    /// Whether the container of one guest reaches the other's.
    fn ping(&self, from: usize) -> Result<bool> {
        let to = self.tenants[1 - from].address;
        let ping = format!("ping -c 5 -W 2 {to} | grep -q 'bytes from'");
        self.tenants[from].container_status(&ping).map(|status| status == 0)
    }
}

impl Tenant {
    fn create_vfs(&self, count: usize) -> Result<()> {
        let sysfs = format!("/sys/bus/pci/devices/{PF_ADDRESS}/sriov_numvfs");
        self.guest.run(&format!("echo {count} > {sysfs}")).map(|_| ())
    }

    /// A network namespace with the first VF in it, as a container runtime makes one.
    fn make_container(&self) -> Result<()> {
        let (mac, address) = (&self.mac, self.address);
        self.guest
            .run(&format!(
                "unshare -n sleep 1000000 < /dev/null > /dev/null 2>&1 &\n\
                 echo $! > /run/container; sleep 1\n\
                 ip link set eth1 netns $(cat /run/container)\n\
                 set -e; C='nsenter -n -t '$(cat /run/container)\n\
                 $C ip link set lo up; $C ip link set eth1 address {mac}\n\
                 $C ip addr add {address}/24 dev eth1; $C ip link set eth1 up"
            ))
            .map(|_| ())
    }

    fn container_status(&self, command: &str) -> Result<i32> {
        let command = format!("nsenter -n -t $(cat /run/container) sh -c \"{command}\"");
        self.guest.exec_within(&command, Duration::from_secs(60)).map(|output| output.status)
    }

    fn in_container(&self, command: &str) -> Result<()> {
        match self.container_status(command)? {
            0 => Ok(()),
            status => Err(Error::Guest {
                guest: self.name.into(),
                reason: format!("`{command}` ended with {status}"),
            }),
        }
    }

    fn set_mac(&self, mac: &str) -> Result<()> {
        self.in_container(&format!("ip link set eth1 address {mac}"))
    }
}

/// How many VFs the guests of a list have enabled.
fn enabled_vfs(guests: &Value) -> usize {
    let guests = guests["items"].as_array().into_iter().flatten();
    let functions = guests.flat_map(|guest| guest["status"]["functions"].as_array());
    functions.flatten().filter(|f| f["enabled"] == true && f["pf"].is_string()).count()
}

fn items(list: &Value) -> usize {
    list["items"].as_array().map_or(0, Vec::len)
}

/// Packets that a netdev has received (`rx`) or sent (`tx`).
fn packets(netdev: &str, direction: &str) -> Result<u64> {
    let path = format!("/sys/class/net/{netdev}/statistics/{direction}_packets");
    let text = fs::read_to_string(&path).at(format!("reading {path}"))?;
    text.trim().parse().map_err(|_| Error::Format { what: path, text })
}
