//! How fast and how cheap the observer of guests is, with QEMU doubles on sockets.
//!
//! In: `event_to_dirty GUESTS ROUNDS`, `idle_cpu GUESTS SECONDS`, `memory GUESTS` or `flood GUESTS
//! EVENTS`; with a real guest of the lab, `event_seen EVENTS` or `change_seen CHANGES`. Out: one JSON
//! object a line. The doubles live in a process of their own (this program, called `doubles`), so
//! that what is measured here is the observer alone. No kernel but for sockets is needed.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "what fails here ends the measurement"
)]
#![expect(clippy::print_stdout, reason = "figures are the output")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc as blocking,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use controller::{
    observe::guest::{GuestMessage, GuestUpdate, GuestWatch},
    world::Connection,
};
use lab::{
    guest::{Guest, PF_ADDRESS, qmp::Qmp},
    qmp_double::Double,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// VFs of a double, and how many of them are in use.
const VFS: (usize, usize) = (4, 2);

/// Events of one round.
const EVENTS: usize = 300;

/// Between two events: slower than what a guest may cause at most.
const PAUSE: Duration = Duration::from_millis(6);

/// For all guests to connect, and for an event to be seen.
const LIMIT: Duration = Duration::from_secs(60);

fn main() {
    allow_many_descriptors();
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let number = |at: usize| -> usize {
        arguments.get(at).and_then(|text| text.parse().ok()).expect("a number")
    };
    match arguments.first().map(String::as_str) {
        Some("doubles") => doubles(Path::new(&arguments[1]), number(2)),
        Some("event_to_dirty") => runtime().block_on(event_to_dirty(number(1), number(2))),
        Some("idle_cpu") => runtime().block_on(idle_cpu(number(1), number(2))),
        Some("memory") => runtime().block_on(memory(number(1))),
        Some("flood") => runtime().block_on(flood(number(1), number(2))),
        Some("event_seen") => event_seen(number(1)),
        Some("change_seen") => change_seen(number(1)),
        // `cargo bench` and `cargo test` call every target.
        _ => {}
    }
}

/// Each guest takes a socket and a process's descriptor: more than what a shell allows at first.
fn allow_many_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    setrlimit(Resource::Nofile, raised).unwrap();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

fn mac(number: usize) -> String {
    format!("02:aa:bb:{:02x}:{:02x}:{:02x}", number >> 16, number >> 8 & 255, number & 255)
}

/// Serves doubles until standard input ends. A line `GUEST NUMBER` gives the guest's `vf0` the
/// address of that number; a line `flood EVENTS` has every guest but the first send so many events
/// at once.
fn doubles(folder: &Path, count: usize) {
    let listen =
        |number| Double::listen(&folder.join(format!("g{number}.sock")), VFS.0, VFS.1).unwrap();
    let doubles: Vec<Double> = (0..count).map(listen).collect();
    println!("ready");
    for line in std::io::stdin().lines().map_while(Result::ok) {
        if let Some(events) = line.strip_prefix("flood ") {
            for double in doubles.iter().skip(1) {
                double.flood("vf0", events.parse().unwrap()).unwrap();
            }
            continue;
        }
        let numbers: Vec<usize> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        doubles[numbers[0]].change("vf0", |nic| nic.mac = mac(numbers[1])).unwrap();
    }
}

/// The observer of doubles that are in another process.
struct Observed {
    process: Child,
    input: ChildStdin,
    messages: mpsc::Receiver<GuestMessage>,
    filter_events: u64,
    cancel: CancellationToken,
    _watch: GuestWatch,
    _folder: tempfile::TempDir,
}

impl Observed {
    /// Starts doubles, and returns when all are connected.
    async fn start(guests: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .arg("doubles")
            .arg(folder.path())
            .arg(guests.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        output.read_line(&mut String::new()).unwrap();
        let (sink, messages) = mpsc::channel(256);
        let cancel = CancellationToken::new();
        let remembered = BTreeMap::new();
        let watch =
            GuestWatch::start(Some(folder.path().into()), &remembered, sink, cancel.clone());
        let mut observed = Observed {
            process,
            input,
            messages,
            filter_events: 0,
            cancel,
            _watch: watch.unwrap(),
            _folder: folder,
        };
        let mut connected = BTreeSet::new();
        while connected.len() < guests {
            let update = observed.next().await;
            if update.view.connection == Connection::Connected {
                connected.insert(update.guest);
            }
        }
        observed
    }

    async fn next(&mut self) -> GuestUpdate {
        loop {
            match tokio::time::timeout(LIMIT, self.messages.recv()).await {
                Ok(Some(GuestMessage::Update(update))) => {
                    let counted = update.counts.get("NIC_RX_FILTER_CHANGED");
                    self.filter_events += counted.copied().unwrap_or(0);
                    return *update;
                }
                Ok(Some(GuestMessage::Forgotten(_))) => {}
                _ => panic!("the observer has fallen silent"),
            }
        }
    }

    /// From the event read to what it changed, as the owner would hear it, in microseconds; `None`
    /// where the observer had looked by itself.
    async fn event(&mut self, guest: usize, number: usize) -> Option<f64> {
        writeln!(self.input, "{guest} {number}").unwrap();
        let (name, mac) = (format!("g{guest}"), mac(number));
        loop {
            let update = self.next().await;
            let heard = Instant::now();
            let filter = update.view.functions.get("vf0").and_then(|vf0| vf0.filter.as_ref());
            if update.guest.as_str() == name
                && filter.is_some_and(|f| f.main_mac.to_string() == mac)
            {
                let read = update.cause.event_read?;
                return Some(heard.duration_since(read).as_secs_f64() * 1e6);
            }
        }
    }

    async fn end(mut self) {
        self.cancel.cancel();
        drop(self.input);
        self.process.wait().unwrap();
        while self.messages.recv().await.is_some() {}
    }
}

/// p50 and p99 of one round, in microseconds.
async fn round(guests: usize, numbers: &mut impl Iterator<Item = usize>) -> (f64, f64) {
    let mut observed = Observed::start(guests).await;
    let mut latencies = Vec::new();
    while latencies.len() < EVENTS {
        let number = numbers.next().unwrap();
        tokio::time::sleep(PAUSE).await;
        latencies.extend(observed.event(number * 7919 % guests, number).await);
    }
    observed.end().await;
    percentiles(latencies)
}

async fn event_to_dirty(guests: usize, rounds: usize) {
    let mut numbers = 1..;
    for _ in 0..rounds {
        let (p50, p99) = round(guests, &mut numbers).await;
        let (one_p50, one_p99) = round(1, &mut numbers).await;
        println!(
            "{{\"p50\":{p50:.1},\"p99\":{p99:.1},\"one_p50\":{one_p50:.1},\"one_p99\":{one_p99:.1}}}"
        );
    }
}

/// Processor time that this process has had, in seconds. The kernel scales the sum of both fields
/// to what the scheduler measured, so that it is good to a tick.
fn processor_time() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    // Fields 14 and 15 of proc_pid_stat(5), in ticks of 10 ms.
    let ticks: f64 = [11, 12].map(|at: usize| fields[at].parse::<f64>().unwrap()).iter().sum();
    ticks / 100.0
}

async fn idle_cpu(guests: usize, seconds: usize) {
    let mut observed = Observed::start(guests).await;
    // What follows the connecting is over then, and a guest counts as quiet.
    tokio::time::sleep(Duration::from_secs(15)).await;
    while observed.messages.try_recv().is_ok() {}
    let (began, before) = (Instant::now(), processor_time());
    tokio::time::sleep(Duration::from_secs(seconds as u64)).await;
    let percent = 100.0 * (processor_time() - before) / began.elapsed().as_secs_f64();
    let mut updates = 0;
    while observed.messages.try_recv().is_ok() {
        updates += 1;
    }
    observed.end().await;
    println!("{{\"percent\":{percent:.3},\"updates\":{updates}}}");
}

/// Resident memory of this process, in bytes.
fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap() * 1024.0
}

async fn memory(guests: usize) {
    Observed::start(1).await.end().await;
    let before = resident();
    let observed = Observed::start(guests).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    #[expect(clippy::cast_precision_loss, reason = "hundreds")]
    let each = (resident() - before) / guests as f64;
    observed.end().await;
    println!("{{\"bytes\":{each:.0}}}");
}

/// One guest's p50 while nothing else happens and while all others flood, and the memory at its
/// peak, a guest.
async fn flood(guests: usize, events: usize) {
    Observed::start(1).await.end().await;
    let before = resident();
    let mut observed = Observed::start(guests).await;
    let mut numbers = 1..;
    let quiet = latencies(&mut observed, EVENTS, &mut numbers).await;
    let began = Instant::now();
    writeln!(observed.input, "flood {events}").unwrap();
    let mut flooded = Vec::new();
    let mut peak = before;
    let expected = ((guests - 1) * events) as u64;
    while observed.filter_events < expected && began.elapsed() < 2 * LIMIT {
        flooded.extend(latencies(&mut observed, 10, &mut numbers).await);
        peak = f64::max(peak, resident());
    }
    let (took, counted) = (began.elapsed().as_secs_f64(), observed.filter_events);
    observed.end().await;
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    let bytes = (peak - before) / guests as f64;
    let (quiet, quiet_p99) = percentiles(quiet);
    let (flooded, flooded_p99) = percentiles(flooded);
    println!(
        "{{\"bytes\":{bytes:.0},\"quiet_p50\":{quiet:.1},\"flooded_p50\":{flooded:.1},\
         \"quiet_p99\":{quiet_p99:.1},\"flooded_p99\":{flooded_p99:.1},\
         \"seconds\":{took:.1},\"events\":{counted}}}"
    );
}

/// Latencies of the first guest's events.
async fn latencies(
    observed: &mut Observed,
    count: usize,
    numbers: &mut impl Iterator<Item = usize>,
) -> Vec<f64> {
    let mut latencies = Vec::new();
    while latencies.len() < count {
        tokio::time::sleep(PAUSE).await;
        latencies.extend(observed.event(0, numbers.next().unwrap()).await);
    }
    latencies
}

/// The middle, and what one in a hundred goes beyond.
fn percentiles(mut latencies: Vec<f64>) -> (f64, f64) {
    latencies.sort_by(f64::total_cmp);
    let at = |hundredth: usize| latencies.get(latencies.len() * hundredth / 100).copied();
    (at(50).unwrap_or(f64::NAN), at(99).unwrap_or(f64::NAN))
}

// ---------------------------------------------------------------- a real guest

/// A real guest, its observer, and a monitor of our own: events reach both with one timestamp.
struct Real {
    guest: Guest,
    monitor: Qmp,
    updates: blocking::Receiver<(SystemTime, GuestUpdate)>,
    _runtime: tokio::runtime::Runtime,
    _watch: GuestWatch,
    _folder: tempfile::TempDir,
}

impl Real {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime = runtime();
        let (sink, mut messages) = mpsc::channel(256);
        let (seen, updates) = blocking::channel();
        let watch = {
            let _inside = runtime.enter();
            let (remembered, never) = (BTreeMap::new(), CancellationToken::new());
            GuestWatch::start(Some(folder.path().into()), &remembered, sink, never).unwrap()
        };
        runtime.spawn(async move {
            while let Some(message) = messages.recv().await {
                if let GuestMessage::Update(update) = message {
                    seen.send((SystemTime::now(), *update)).ok();
                }
            }
        });
        let guest = Guest::named("a").qmp_socket(folder.path().join("a.sock")).start().unwrap();
        let monitor = guest.qmp().unwrap();
        let mut real =
            Real { guest, monitor, updates, _runtime: runtime, _watch: watch, _folder: folder };
        real.until(|update| update.view.connection == Connection::Connected);
        real.guest.run(&vfs(1)).unwrap();
        real.until(|update| shown(update).1);
        real
    }

    /// The first update that is as told, and when it came.
    fn until(&mut self, is: impl Fn(&GuestUpdate) -> bool) -> (SystemTime, GuestUpdate) {
        loop {
            let (at, update) = self.updates.recv_timeout(LIMIT).expect("the guest is observed");
            if is(&update) {
                return (at, update);
            }
        }
    }

    /// The last moment at which QEMU itself did not show a change yet that `command` makes in the
    /// guest, asked every few milliseconds.
    fn change(
        &mut self,
        command: &str,
        question: &str,
        made: impl Fn(&Value) -> bool,
    ) -> SystemTime {
        let arguments = match question {
            "query-rx-filter" => json!({"name": "vf0"}),
            _ => json!({}),
        };
        let (guest, monitor) = (&self.guest, &mut self.monitor);
        std::thread::scope(|scope| {
            let run = scope.spawn(|| guest.run(command).unwrap());
            let began = Instant::now();
            loop {
                let before = SystemTime::now();
                if made(&monitor.execute(question, arguments.clone()).unwrap()) {
                    run.join().unwrap();
                    return before;
                }
                assert!(began.elapsed() < LIMIT, "{command}");
                std::thread::sleep(Duration::from_millis(2));
            }
        })
    }
}

fn vfs(count: usize) -> String {
    format!("echo {count} > /sys/bus/pci/devices/{PF_ADDRESS}/sriov_numvfs")
}

/// Whether `vf0` is enabled, and whether its driver has set its filter.
fn shown(update: &GuestUpdate) -> (bool, bool) {
    let vf0 = update.view.functions.get("vf0");
    vf0.map_or((false, false), |vf0| (vf0.enabled, vf0.filter.is_some()))
}

/// Whether query-pci shows `vf0` with an address.
fn is_enabled(pci: &Value) -> bool {
    match pci {
        Value::Array(all) => all.iter().any(is_enabled),
        Value::Object(device) => {
            let regions = device.get("regions").and_then(Value::as_array);
            device.get("qdev_id").is_some_and(|id| id == "vf0")
                && regions.into_iter().flatten().any(|region| region["address"] != -1)
                || device.values().any(is_enabled)
        }
        _ => false,
    }
}

fn milliseconds(from: SystemTime, to: SystemTime) -> f64 {
    to.duration_since(from).unwrap_or_default().as_secs_f64() * 1e3
}

/// From QMP's own timestamp of an event to what it changed, as the owner hears it. The address of a
/// VF changes.
fn event_seen(events: usize) {
    let mut real = Real::start();
    real.guest.run("ip link set eth1 up").unwrap();
    real.until(|update| shown(update).1);
    let mut latencies = Vec::new();
    for number in 1..=3 * events {
        // What the last one caused is over then.
        std::thread::sleep(Duration::from_millis(150));
        real.monitor.execute("query-status", json!({})).unwrap();
        real.monitor.events();
        let mac = mac(number);
        real.guest.run(&format!("ip link set eth1 address {mac}")).unwrap();
        let (at, update) = real.until(|update| {
            let filter = update.view.functions.get("vf0").and_then(|vf0| vf0.filter.as_ref());
            filter.is_some_and(|filter| filter.main_mac.to_string() == mac)
        });
        // Where the observer looked by itself just then, no event led to it.
        if update.cause.event_read.is_none() {
            continue;
        }
        let event = real.monitor.event("NIC_RX_FILTER_CHANGED", LIMIT).unwrap();
        let of = |field: &str| event["timestamp"][field].as_u64().unwrap();
        let said = Duration::from_secs(of("seconds")) + Duration::from_micros(of("microseconds"));
        latencies.push(milliseconds(UNIX_EPOCH + said, at));
        if latencies.len() == events {
            break;
        }
    }
    let count = latencies.len();
    let most = latencies.iter().copied().fold(0.0, f64::max);
    let (p50, p99) = percentiles(latencies);
    println!("{{\"p50\":{p50:.3},\"p99\":{p99:.3},\"max\":{most:.3},\"events\":{count}}}");
}

/// From a change that has no event to its being heard of: a VF that is enabled, and the driver of
/// one, never up, that lets go of it.
fn change_seen(changes: usize) {
    let mut real = Real::start();
    let mut latencies = Vec::new();
    let unbind = "f=/sys/class/net/eth1/device/..; d=$(basename $(readlink -f $f)); \
                  echo $d > /sys/bus/pci/drivers/virtio-pci/unbind";
    let mut told = 0;
    for number in 0..changes {
        // Another phase of the observer's polls each time.
        let phase = Duration::from_millis(700 + (number as u64 * 377) % 1100);
        real.guest.run(&vfs(0)).unwrap();
        real.until(|update| shown(update) == (false, false));
        std::thread::sleep(phase);
        real.monitor.events();
        let made = real.change(&vfs(1), "query-pci", is_enabled);
        let (at, update) = real.until(|update| shown(update).0);
        let by_event = |update: &GuestUpdate| update.cause.event_read.is_some();
        told += usize::from(by_event(&update));
        latencies.push(milliseconds(made, at));
        if !shown(&update).1 {
            real.until(|update| shown(update).1);
        }
        std::thread::sleep(phase);
        let gone = |filter: &Value| filter[0]["vlan"] == "all";
        let made = real.change(unbind, "query-rx-filter", gone);
        let (at, update) = real.until(|update| shown(update) == (true, false));
        told += usize::from(by_event(&update));
        latencies.push(milliseconds(made, at));
    }
    let count = latencies.len();
    let most = latencies.iter().copied().fold(0.0, f64::max);
    let (p50, p99) = percentiles(latencies);
    println!(
        "{{\"p50\":{p50:.1},\"p99\":{p99:.1},\"max\":{most:.1},\"changes\":{count},\
         \"told\":{told}}}"
    );
}
