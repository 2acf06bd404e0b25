//! The switch that the flows make, beside Open vSwitch and the kernel's bridge in the same VM: how
//! many rules it takes, how soon a port that is plugged receives, and how fast frames pass.
//!
//! In: eswitchd's binary, Open vSwitch from Debian, pktgen. Out: [`Line`]s. All are given the same
//! ports: veths in one VLAN, with a veth as the uplink.

use std::{
    fs,
    io::{Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::{
    socket::{
        self, AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, setsockopt,
        sockopt,
    },
    time::{TimeVal, TimeValLike},
};
use serde_json::{Value, json};
use tc_flows::{Hook, Kernel, Owner};

use super::{Line, Run, ifindex, kernel, refused};
use crate::{At, Error, Result, daemon::Daemon, net};

const RULES: [(&str, usize); 3] =
    [("switch/rules/2", 2), ("switch/rules/8", 8), ("switch/rules/32", 32)];
const PLUG: &str = "switch/plug_to_first_packet";
const FORWARD: [(&str, usize); 2] = [("switch/forward/64", 60), ("switch/forward/1500", 1514)];

/// Names of all benchmarks here.
pub fn names() -> impl Iterator<Item = &'static str> {
    RULES.iter().chain(&FORWARD).map(|(name, _)| *name).chain([PLUG])
}

/// The owner of eswitchd's flows, as its cookies say.
const ESWITCHD: Owner = Owner(*b"eswd");

/// Ports of each switch where frames are counted.
const PORTS: usize = 8;

/// Frames that pktgen sends in a run.
const FRAMES: u64 = 200_000;

/// Frames that are sent at once at a first contact.
const CONTACT: usize = 500;

/// The VLAN.
const VLAN: u16 = 100;

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(30);

/// How long everything is left alone before a figure is taken.
const QUIET: Duration = Duration::from_millis(300);

/// Runs those that `wants` wants.
///
/// # Errors
/// The daemon, Open vSwitch or the kernel does not do its part.
pub fn run(
    wants: &dyn Fn(&str) -> bool,
    runs: usize,
    say: &mut dyn FnMut(&str),
    tell: &mut dyn FnMut(Line),
) -> Result<()> {
    if !names().any(wants) {
        return Ok(());
    }
    for module in ["openvswitch", "pktgen", "bridge"] {
        net::modprobe(module)?;
    }
    for (name, ports) in RULES.into_iter().filter(|(name, _)| wants(name)) {
        tell(rules(name, ports)?);
    }
    if wants(PLUG) {
        tell(plug(runs, say)?);
    }
    let wanted: Vec<(&str, usize)> = FORWARD.into_iter().filter(|(name, _)| wants(name)).collect();
    if !wanted.is_empty() {
        forward(&wanted, runs, say, tell)?;
    }
    Ok(())
}

// ---------------------------------------------------------------- switches

/// Veth pairs: `NAME0` is the uplink, `NAME1`, … the ports, and with `x` behind it the other end.
/// Gone with this.
struct Links {
    name: &'static str,
    ports: usize,
}

impl Links {
    fn new(name: &'static str, ports: usize) -> Result<Links> {
        let links = Links { name, ports };
        for port in 0..=ports {
            net::ip(&format!("link add {name}{port} type veth peer name {name}{port}x"))?;
            for end in [links.link(port), links.end(port)] {
                net::ip(&format!("link set {end} addrgenmode none up"))?;
            }
        }
        Ok(links)
    }

    fn link(&self, port: usize) -> String {
        format!("{}{port}", self.name)
    }

    fn end(&self, port: usize) -> String {
        format!("{}{port}x", self.name)
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        for port in 0..=self.ports {
            // What is left over is in the way of nothing but the next benchmark, which says so.
            let _ = net::ip(&format!("link del {}", self.link(port)));
        }
    }
}

fn mac(port: usize) -> String {
    format!("02:00:00:00:00:{port:02x}")
}

/// eswitchd with all ports of these links but the uplink plugged.
fn eswitchd(links: &Links, folder: &Path) -> Result<Daemon> {
    let configuration = format!(
        "\n[[adapter]]\nsoftware = \"lab\"\nuplink = \"{}\"\nrepresentors = [{}]\n",
        links.link(0),
        (1..=links.ports).map(|n| format!("\"{}\"", links.link(n))).collect::<Vec<_>>().join(", ")
    );
    let daemon = Daemon::start(&folder.join("eswitchd"), &configuration)?;
    daemon.put("/v1/networks/blue", json!({"kind": {"vlan": {"vid": VLAN}}}))?;
    for port in 1..=links.ports {
        plugged(&daemon, links, port, "?wait=programmed&timeout=25")?;
    }
    Ok(daemon)
}

fn plugged(daemon: &Daemon, links: &Links, port: usize, query: &str) -> Result<()> {
    let spec = json!({
        "function": {"netdev": {"adapter": "soft-lab", "name": links.link(port)}},
        "attachments": [{"network": "blue"}],
        "macs": [mac(port)],
    });
    daemon.put(&format!("/v1/ports/p{port}{query}"), spec).map(|_| ())
}

/// Open vSwitch with a bridge `br0`. Ended with this.
struct Ovs {
    folder: PathBuf,
    children: Vec<Child>,
}

impl Ovs {
    /// Without ports; `offload` is its `hw-offload`, with which it makes tc flows where it can.
    fn start(folder: &Path, offload: bool) -> Result<Ovs> {
        let folder = folder.join(format!("ovs-{offload}"));
        fs::create_dir_all(&folder).at("making a folder")?;
        let mut ovs = Ovs { folder, children: Vec::new() };
        let database = ovs.folder.join("conf.db").display().to_string();
        let schema = "/usr/share/openvswitch/vswitch.ovsschema";
        net::command("ovsdb-tool", ["create", &database, schema])?;
        let remote = format!("--remote=p{}", ovs.socket());
        ovs.spawn("ovsdb-server", &[&database, &remote])?;
        net::wait_for("Open vSwitch's database", LIMIT, || {
            ovs.vsctl("--no-wait init").is_ok().then_some(())
        })?;
        ovs.vsctl(&format!("--no-wait set Open_vSwitch . other_config:hw-offload={offload}"))?;
        let socket = ovs.socket();
        ovs.spawn("ovs-vswitchd", &[&socket])?;
        ovs.vsctl("add-br br0")?;
        Ok(ovs)
    }

    fn socket(&self) -> String {
        format!("unix:{}/db.sock", self.folder.display())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        for folder in ["OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR", "OVS_SYSCONFDIR"] {
            command.env(folder, &self.folder);
        }
        command
    }

    fn spawn(&mut self, program: &str, arguments: &[&str]) -> Result<()> {
        let log = fs::File::create(self.folder.join(program)).at("making a log")?;
        let mut command = self.command(program);
        command.args(arguments).stderr(log);
        self.children.push(command.spawn().at(format!("starting {program}"))?);
        Ok(())
    }

    fn vsctl(&self, arguments: &str) -> Result<String> {
        let options = [format!("--db={}", self.socket()), "--timeout=30".to_owned()];
        let words = arguments.split_whitespace().map(str::to_owned);
        net::command("ovs-vsctl", options.into_iter().chain(words))
    }

    /// Asks the switch itself.
    fn appctl(&self, words: &[&str]) -> Result<String> {
        let pid = self.children.last().map(Child::id).unwrap_or_default();
        let target = self.folder.join(format!("ovs-vswitchd.{pid}.ctl")).display().to_string();
        net::command("ovs-appctl", [&["-t", &target], words].concat())
    }

    /// All ports of these links, and the uplink.
    fn plug_all(&self, links: &Links) -> Result<()> {
        self.vsctl(&format!("add-port br0 {}", links.link(0)))?;
        for port in 1..=links.ports {
            self.vsctl(&format!("add-port br0 {} tag={VLAN}", links.link(port)))?;
        }
        Ok(())
    }

    /// Plugs a port as a platform does, by one transaction of its database (RFC 7047), and does not
    /// wait for the switch.
    fn plug(&self, link: &str) -> Result<()> {
        let request = json!({"id": 0, "method": "transact", "params": [
            "Open_vSwitch",
            {"op": "insert", "table": "Interface", "row": {"name": link}, "uuid-name": "i"},
            {"op": "insert", "table": "Port", "uuid-name": "p",
             "row": {"name": link, "tag": VLAN, "interfaces": ["named-uuid", "i"]}},
            {"op": "mutate", "table": "Bridge", "where": [["name", "==", "br0"]],
             "mutations": [["ports", "insert", ["set", [["named-uuid", "p"]]]]]},
            {"op": "mutate", "table": "Open_vSwitch", "where": [],
             "mutations": [["next_cfg", "+=", 1]]},
        ]});
        let path = self.folder.join("db.sock");
        let mut stream = UnixStream::connect(path).at("connecting to Open vSwitch")?;
        stream.set_read_timeout(Some(LIMIT)).at("setting a time limit")?;
        stream.write_all(request.to_string().as_bytes()).at("asking Open vSwitch")?;
        let mut answer = Vec::new();
        loop {
            let mut part = [0; 4096];
            let length = stream.read(&mut part).at("reading an answer")?;
            answer.extend(&part[..length]);
            let parsed = serde_json::from_slice::<Value>(&answer);
            let text = || String::from_utf8_lossy(&answer).into_owned();
            match parsed {
                Ok(answer) if answer["error"].is_null() && !text().contains("\"error\":\"") => {
                    return Ok(());
                }
                Err(_) if length > 0 => {}
                _ => return Err(Error::Format { what: "Open vSwitch".into(), text: text() }),
            }
        }
    }
}

impl Drop for Ovs {
    fn drop(&mut self) {
        // Its datapath stays in the kernel otherwise. What does not end by itself is killed.
        let _ = self.appctl(&["exit", "--cleanup"]);
        for child in self.children.iter_mut().rev() {
            thread::sleep(QUIET);
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The kernel's bridge with VLANs; where `locked`, it takes from each port only its own address.
struct Bridge(&'static str);

impl Bridge {
    fn new(name: &'static str, links: &Links, locked: bool) -> Result<Bridge> {
        net::ip(&format!(
            "link add {name} type bridge vlan_filtering 1 vlan_default_pvid 0 mcast_snooping 0"
        ))?;
        net::ip(&format!("link set {name} addrgenmode none up"))?;
        let bridge = |arguments: String| net::command("bridge", arguments.split_whitespace());
        for port in 0..=links.ports {
            let link = links.link(port);
            net::ip(&format!("link set {link} master {name}"))?;
            let tagging = if port == 0 { "" } else { "pvid untagged" };
            bridge(format!("vlan add dev {link} vid {VLAN} {tagging}"))?;
            if port > 0 && locked {
                bridge(format!("link set dev {link} learning off locked on"))?;
                let mac = mac(port);
                bridge(format!("fdb add {mac} dev {link} master static vlan {VLAN}"))?;
            }
        }
        Ok(Bridge(name))
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // As with links.
        let _ = net::ip(&format!("link del {}", self.0));
    }
}

/// A folder for one benchmark, gone with this.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Folder> {
        let folder = std::env::temp_dir().join(format!("eswitchd-bench-switch-{name}"));
        fs::create_dir_all(&folder).at("making a folder")?;
        Ok(Folder(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // As with links.
        let _ = fs::remove_dir_all(&self.0);
    }
}

// ---------------------------------------------------------------- frames

/// A raw socket on the far end of a port.
struct End(OwnedFd);

/// For experiments (IEEE 802): nobody else sends it.
const ETHERTYPE: u16 = 0x88b5;

impl End {
    fn of(link: &str) -> Result<End> {
        let what = || format!("opening {link}");
        let socket = socket::socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )
        .at(what())?;
        let address = nix::ifaddrs::getifaddrs()
            .at(what())?
            .filter(|address| address.interface_name == link)
            .find_map(|address| address.address.and_then(|a| a.as_link_addr().copied()))
            .ok_or_else(|| Error::Missing { what: what(), remedy: "create it before".into() })?;
        socket::bind(socket.as_raw_fd(), &address).at(what())?;
        setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20)).at(what())?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(20)).at(what())?;
        Ok(End(socket))
    }

    fn send(&self, to: &str, from: &str, vlans: &[u16]) -> Result<()> {
        let frame = net::frame(to, from, vlans, ETHERTYPE, b"eswitchd");
        nix::unistd::write(&self.0, &frame).at("sending").map(|_| ())
    }

    /// Whether one of our frames has come in, within a moment.
    fn receives(&self) -> bool {
        let mut room = [0; 256];
        let received = socket::recvfrom::<LinkAddr>(self.0.as_raw_fd(), &mut room);
        let Ok((_, Some(address))) = received else { return false };
        // PACKET_OUTGOING (include/uapi/linux/if_packet.h) is what the end itself sends.
        address.pkttype() != 4 && room[12..14] == ETHERTYPE.to_be_bytes()
    }

    fn forget(&self) {
        let mut room = [0; 256];
        while socket::recv(self.0.as_raw_fd(), &mut room, MsgFlags::MSG_DONTWAIT).is_ok() {}
    }
}

const BROADCAST: &str = "ff:ff:ff:ff:ff:ff";
const OUTSIDE: &str = "02:99:00:00:00:01";

/// Everybody sends to everybody, and to nobody in particular.
fn converse(links: &Links) -> Result<()> {
    let ends: Vec<End> =
        (0..=links.ports).map(|port| End::of(&links.end(port))).collect::<Result<_>>()?;
    let own = |port: usize| if port == 0 { OUTSIDE.to_owned() } else { mac(port) };
    for _ in 0..2 {
        for (from, end) in ends.iter().enumerate() {
            let vlans: &[u16] = if from == 0 { &[VLAN] } else { &[] };
            end.send(BROADCAST, &own(from), vlans)?;
            for to in (0..=links.ports).filter(|to| *to != from) {
                end.send(&own(to), &own(from), vlans)?;
            }
        }
        thread::sleep(QUIET);
    }
    Ok(())
}

// ---------------------------------------------------------------- benchmarks

fn rules(name: &str, ports: usize) -> Result<Line> {
    let folder = Folder::new("rules")?;
    let (links, theirs) = (Links::new("ours", ports)?, Links::new("ovs", ports)?);
    let daemon = eswitchd(&links, &folder.0)?;
    let mut reader = kernel(ESWITCHD)?;
    let mut ours = 0;
    for port in 0..=ports {
        let hook = Hook::ingress(ifindex(&links.link(port))?);
        ours += reader.dump_terse(hook).map_err(refused)?.own.len();
    }
    let ovs = Ovs::start(&folder.0, true)?;
    ovs.plug_all(&theirs)?;
    converse(&theirs)?;
    let flows = ovs.appctl(&["dpctl/dump-flows"])?.lines().count();
    let in_tc = ovs.appctl(&["dpctl/dump-flows", "type=tc"])?.lines().count();
    drop(daemon);
    let note = format!(
        "lab VM; {ports} ports in one VLAN network with an uplink; ours {:.1} a port, there before \
         any frame; ovs: datapath flows (hw-offload=true, {in_tc} of them in tc) after each two \
         have sent to each other and each to all",
        ours as f64 / ports as f64
    );
    Ok(Line::of(
        name,
        "rules",
        &[Run { ours: ours as f64, theirs: vec![("ovs", flows as f64)] }],
        note,
    ))
}

/// How long it takes from the beginning of `plug` to the first frame that arrives at an end, in
/// milliseconds, while frames to it are sent from another.
fn first(from: &End, at: &End, to: usize, plug: impl FnOnce() -> Result<()> + Send) -> Result<f64> {
    at.forget();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let sending = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                from.send(&mac(to), &mac(1), &[])?;
                thread::sleep(Duration::from_micros(300));
            }
            Ok(())
        });
        thread::sleep(QUIET);
        let early = at.receives();
        let began = Instant::now();
        let plugging = scope.spawn(plug);
        let mut arrived = at.receives();
        while !arrived && began.elapsed() < LIMIT {
            arrived = at.receives();
        }
        let took = began.elapsed().as_secs_f64() * 1000.0;
        over.store(true, Ordering::Relaxed);
        for thread in [sending, plugging] {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        if early || !arrived {
            let what = "a port that is plugged".to_owned();
            return Err(Error::Format { what, text: format!("early {early}, {arrived}") });
        }
        Ok(took)
    })
}

/// How many of the frames that are sent at once are lost.
fn lost(from: &End, at: &End, to: usize) -> Result<usize> {
    at.forget();
    for _ in 0..CONTACT {
        from.send(&mac(to), &mac(1), &[])?;
    }
    let mut arrived = 0;
    let began = Instant::now();
    while arrived < CONTACT && began.elapsed() < Duration::from_secs(2) {
        arrived += usize::from(at.receives());
    }
    Ok(CONTACT - arrived)
}

fn plug(runs: usize, say: &mut dyn FnMut(&str)) -> Result<Line> {
    let folder = Folder::new("plug")?;
    let (links, theirs) = (Links::new("ours", PORTS)?, Links::new("ovs", PORTS)?);
    let daemon = eswitchd(&links, &folder.0)?;
    let ovs = Ovs::start(&folder.0, true)?;
    ovs.plug_all(&theirs)?;
    let ends = |links: &Links| Ok::<_, Error>((End::of(&links.end(1))?, End::of(&links.end(2))?));
    let (our_ends, their_ends) = (ends(&links)?, ends(&theirs)?);
    let (mut pairs, mut our_loss, mut their_loss) = (Vec::new(), 0, 0);
    for run in 1..=runs {
        daemon.delete("/v1/ports/p2?wait=programmed&timeout=25")?;
        let ours = first(&our_ends.0, &our_ends.1, 2, || plugged(&daemon, &links, 2, ""))?;
        let link = theirs.link(2);
        ovs.vsctl(&format!("del-port br0 {link}"))?;
        let figure = first(&their_ends.0, &their_ends.1, 2, || ovs.plug(&link))?;
        // The first frames ever between two that are plugged: nothing is learnt yet.
        thread::sleep(QUIET);
        our_loss += lost(&our_ends.0, &our_ends.1, 2)?;
        for forget in [&["fdb/flush", "br0"][..], &["revalidator/purge"]] {
            ovs.appctl(forget)?;
        }
        their_loss += lost(&their_ends.0, &their_ends.1, 2)?;
        say(&format!("plug {run}: {ours:.1} ms, ovs {figure:.1} ms"));
        pairs.push(Run { ours, theirs: vec![("ovs", figure)] });
    }
    let sent = runs * CONTACT;
    let note = format!(
        "lab VM; one of {PORTS} ports of a VLAN network, from the request (ovs: its database's \
         transaction, hw-offload=true) to the first frame that arrives; of {sent} frames sent at \
         once at first contact {our_loss} were lost, ovs {their_loss}"
    );
    Ok(Line::of(PLUG, "ms", &pairs, note))
}

/// Has pktgen send frames from the end of port 1 to port 2: those that arrive in a second.
fn rate(links: &Links, size: usize) -> Result<f64> {
    let pktgen = |file: &str, line: &str| {
        fs::write(format!("/proc/net/pktgen/{file}"), line).at(format!("pktgen: {line}"))
    };
    let (from, to) = (links.end(1), links.end(2));
    pktgen("kpktgend_0", "rem_device_all")?;
    pktgen("kpktgend_0", &format!("add_device {from}"))?;
    let settings = [
        format!("count {FRAMES}"),
        format!("pkt_size {size}"),
        "clone_skb 0".to_owned(),
        "delay 0".to_owned(),
        "dst 192.0.2.2".to_owned(),
        "src_min 192.0.2.1".to_owned(),
        format!("src_mac {}", mac(1)),
        format!("dst_mac {}", mac(2)),
    ];
    for setting in settings {
        pktgen(&from, &setting)?;
    }
    let arrived = || -> Result<u64> {
        let path = format!("/sys/class/net/{to}/statistics/rx_packets");
        let text = fs::read_to_string(&path).at("reading a counter")?;
        text.trim().parse().map_err(|_| Error::Format { what: path, text })
    };
    let before = arrived()?;
    pktgen("pgctrl", "start")?;
    thread::sleep(QUIET);
    Ok((arrived()? - before) as f64 / sending(&from)?)
}

/// How long pktgen has sent, in seconds, as it says: who waits for it is woken each 100 ms only
/// (`pktgen_wait_all_threads_run`, net/core/pktgen.c).
fn sending(from: &str) -> Result<f64> {
    let path = format!("/proc/net/pktgen/{from}");
    let text = fs::read_to_string(&path).at("reading what pktgen did")?;
    // Result: OK: 545123(c544000+d1123) usec, ...
    let result = text.lines().find_map(|line| line.strip_prefix("Result: OK: "));
    let digits = result.and_then(|result| result.split('(').next());
    let micros: Option<f64> = digits.and_then(|digits| digits.parse().ok());
    micros.map(|micros| micros / 1e6).ok_or(Error::Format { what: path, text })
}

fn forward(
    wanted: &[(&str, usize)],
    runs: usize,
    say: &mut dyn FnMut(&str),
    tell: &mut dyn FnMut(Line),
) -> Result<()> {
    let folder = Folder::new("forward")?;
    let (ours, plain) = (Links::new("ours", PORTS)?, Links::new("plain", PORTS)?);
    let (locked, theirs) = (Links::new("locked", PORTS)?, Links::new("ovs", PORTS)?);
    let _daemon = eswitchd(&ours, &folder.0)?;
    let _bridges =
        [Bridge::new("brplain", &plain, false)?, Bridge::new("brlocked", &locked, true)?];
    let ovs = Ovs::start(&folder.0, false)?;
    ovs.plug_all(&theirs)?;
    for links in [&ours, &plain, &locked, &theirs] {
        converse(links)?;
    }
    for (name, size) in wanted {
        let mut found = Vec::new();
        for run in 0..=runs {
            let [ours, bridge, locked, ovs] = [
                rate(&ours, *size)?,
                rate(&plain, *size)?,
                rate(&locked, *size)?,
                rate(&theirs, *size)?,
            ];
            // The first warms caches up.
            if run == 0 {
                continue;
            }
            say(&format!(
                "{name} {run}: {ours:.0}, bridge {bridge:.0}, locked {locked:.0}, ovs {ovs:.0}"
            ));
            let theirs = vec![
                ("bridge", bridge),
                ("bridge with anti-spoof", locked),
                ("faster of bridge and ovs", bridge.max(ovs)),
                ("ovs", ovs),
            ];
            found.push(Run { ours, theirs });
        }
        let note = format!(
            "lab VM (software emulation); pktgen in the kernel, {FRAMES} frames a run from one of \
             {PORTS} ports to another, those that arrive; ovs: its kernel datapath; anti-spoof: \
             locked ports with an entry for each address"
        );
        tell(Line::of(*name, "packets/s", &found, note));
    }
    Ok(())
}
