//! How fast and how cheap the observer of guests is, with QEMU doubles on sockets.
//!
//! In: `event_to_dirty GUESTS ROUNDS`, `idle_cpu GUESTS SECONDS` or `memory GUESTS`. Out: one JSON
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
        // `cargo bench` and `cargo test` call every target.
        _ => {}
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

fn mac(number: usize) -> String {
    format!("02:aa:bb:{:02x}:{:02x}:{:02x}", number >> 16, number >> 8 & 255, number & 255)
}

/// Serves doubles until standard input ends; each line is a guest whose `vf0` gets the address of
/// the number behind it.
fn doubles(folder: &Path, count: usize) {
    let listen =
        |number| Double::listen(&folder.join(format!("g{number}.sock")), VFS.0, VFS.1).unwrap();
    let doubles: Vec<Double> = (0..count).map(listen).collect();
    println!("ready");
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let numbers: Vec<usize> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        doubles[numbers[0]].change("vf0", |nic| nic.mac = mac(numbers[1])).unwrap();
    }
}

/// The observer of doubles that are in another process.
struct Observed {
    process: Child,
    input: ChildStdin,
    messages: mpsc::Receiver<GuestMessage>,
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
        let mut observed =
            Observed { process, input, messages, cancel, _watch: watch.unwrap(), _folder: folder };
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
                Ok(Some(GuestMessage::Update(update))) => return *update,
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
    latencies.sort_by(f64::total_cmp);
    (latencies[EVENTS / 2], latencies[EVENTS * 99 / 100])
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
