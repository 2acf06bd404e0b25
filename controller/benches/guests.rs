//! How fast and how cheap the observer of guests is, with QEMU doubles on sockets.
//!
//! In: `event_to_dirty GUESTS ROUNDS`, `idle_cpu GUESTS SECONDS`, `memory GUESTS` or `flood GUESTS
//! EVENTS`. Out: one JSON object a line. The doubles live in a process of their own (this program, called `doubles`), so
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
    time::{Duration, Instant},
};

use controller::{
    observe::guest::{GuestMessage, GuestUpdate, GuestWatch},
    world::Connection,
};
use lab::qmp_double::Double;
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
