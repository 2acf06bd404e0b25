//! The room as a whole, against doubles behind real sockets.
//!
//! Every test waits for what must come, under a deadline far beyond what it should take; none takes
//! the passing of time for proof.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    time::timeout,
};

use super::{
    double::{Qemu, Server},
    *,
};
use crate::world::{BackingView, Connection, GuestFunction};

const DEADLINE: Duration = Duration::from_secs(30);

/// Limits under which no test waits long, the bounds on work unchanged.
fn limits() -> Limits {
    Limits {
        poll: Duration::from_millis(100),
        patience: Duration::from_millis(300),
        counts_interval: Duration::from_millis(20),
        reconnect: (Duration::from_millis(5), Duration::from_millis(100)),
        punish: (Duration::from_millis(200), Duration::from_secs(60)),
        vigil: Duration::from_millis(20),
        farewell: Duration::from_millis(100),
        ..Limits::default()
    }
}

/// A folder, a watch on it, and what it says.
struct Room {
    folder: TempDir,
    watch: GuestWatch,
    messages: mpsc::Receiver<GuestMessage>,
    /// Everything that was said.
    heard: Vec<GuestMessage>,
    cancel: CancellationToken,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn id(text: &str) -> Id {
    text.parse().unwrap()
}

impl Room {
    fn new() -> Self {
        Self::with(limits())
    }

    fn with(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (sink, messages) = mpsc::channel(64);
        let cancel = CancellationToken::new();
        let watch = GuestWatch::start_with(
            Some(folder.path().into()),
            Holders::default(),
            sink,
            cancel.clone(),
            limits,
        );
        Room { folder, watch: watch.unwrap(), messages, heard: Vec::new(), cancel }
    }

    fn socket(&self, guest: &str) -> PathBuf {
        self.folder.path().join(format!("{guest}.sock"))
    }

    fn listen(&self, guest: &str) -> Server {
        Server::listen(&self.socket(guest), Qemu::booted())
    }

    async fn next(&mut self, awaited: &str) -> GuestMessage {
        match timeout(DEADLINE, self.messages.recv()).await {
            Ok(Some(message)) => {
                self.heard.push(message.clone());
                message
            }
            _ => panic!("never came: {awaited}; last: {:#?}", self.heard.last()),
        }
    }

    /// The first update of `guest` from now on that is as told.
    async fn update(
        &mut self,
        guest: &str,
        awaited: &str,
        mut is: impl FnMut(&GuestUpdate) -> bool,
    ) -> GuestUpdate {
        loop {
            if let GuestMessage::Update(update) = self.next(awaited).await
                && update.guest.as_str() == guest
                && is(&update)
            {
                return *update;
            }
        }
    }

    async fn connected(&mut self, guest: &str) -> GuestUpdate {
        self.update(guest, "a connection", |u| u.view.connection == Connection::Connected).await
    }

    async fn misbehaving(&mut self, guest: &str) -> (String, GuestUpdate) {
        let is = |u: &GuestUpdate| matches!(u.view.connection, Connection::Misbehaving { .. });
        let update = self.update(guest, "misbehaviour", is).await;
        let Connection::Misbehaving { reason } = &update.view.connection else { unreachable!() };
        (reason.clone(), update)
    }

    async fn forgotten(&mut self, guest: &str) {
        while self.next("forgotten").await != GuestMessage::Forgotten(id(guest)) {}
    }
}

fn vf0(update: &GuestUpdate) -> &GuestFunction {
    &update.view.functions["vf0"]
}

fn mac_of_vf0(update: &GuestUpdate) -> Option<String> {
    Some(update.view.functions.get("vf0")?.filter.as_ref()?.main_mac.to_string())
}

/// A peer that does as told with every connection that it gets.
fn peer<F>(path: &Path, talk: impl Fn(UnixStream) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send,
{
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            talk(stream).await;
        }
    });
}

async fn greet(stream: &mut UnixStream) {
    let _ = stream.write_all((Qemu::greeting() + "\r\n").as_bytes()).await;
}

// ---------------------------------------------------------------- a guest's life

#[tokio::test]
async fn a_guest_is_told_whole_and_only_when_everything_is_known() {
    let mut room = Room::new();
    let _qemu = room.listen("vm1");
    let first = room.update("vm1", "the first word", |_| true).await;
    assert_eq!(first.view.connection, Connection::Connecting);
    let update = room.update("vm1", "the inventory", |_| true).await;
    assert_eq!(update.view.connection, Connection::Connected);
    assert_eq!(update.view.qemu.as_deref(), Some("11.1.3"));
    assert_eq!(update.view.run_state.as_deref(), Some("running"));
    assert_eq!(update.view.pid, Some(std::process::id()));
    assert_eq!(update.view.functions.keys().collect::<Vec<_>>(), ["pf0", "vf0", "vf1"]);
    let (pf, vf) = (&update.view.functions["pf0"], vf0(&update));
    assert!(pf.enabled && pf.pf.is_none() && pf.filter.is_some());
    assert!(!vf.enabled && vf.pf.as_deref() == Some("pf0") && vf.filter.is_none());
    assert!(
        matches!(&vf.backing, BackingView::Unknown { reason } if reason.contains("-netdev n1"))
    );
}

#[tokio::test]
async fn enabling_a_vf_is_seen_without_any_event() {
    let mut room = Room::new();
    let qemu = room.listen("vm1");
    room.connected("vm1").await;
    qemu.qemu().nics.get_mut("vf0").unwrap().enabled = true;
    let update = room.update("vm1", "vf0 enabled", |u| vf0(u).enabled).await;
    assert_eq!(update.cause.event_read, None);
    qemu.qemu().nics.get_mut("vf0").unwrap().enabled = false;
    room.update("vm1", "vf0 disabled", |u| !vf0(u).enabled).await;
}

#[tokio::test]
async fn every_change_of_a_filter_is_told_with_the_time_of_its_event() {
    let mut room = Room::new();
    let qemu = room.listen("vm1");
    room.connected("vm1").await;
    for round in 1..=20 {
        let mac = format!("02:aa:bb:cc:00:{round:02x}");
        let before = Instant::now();
        let fired = qemu.change("vf0", |nic| (nic.driver, nic.mac) = (true, mac.clone()));
        let changed = |u: &GuestUpdate| mac_of_vf0(u).as_ref() == Some(&mac);
        let update = room.update("vm1", &mac, changed).await;
        // Where the last query was not answered yet the event was still out: the change is seen all
        // the same.
        if fired {
            let event_read = update.cause.event_read.expect("an event caused it");
            assert!(event_read >= before && event_read <= Instant::now());
        }
    }
}

#[tokio::test]
async fn events_are_counted_by_kind_even_where_nothing_changes() {
    let mut room = Room::new();
    let qemu = room.listen("vm1");
    room.connected("vm1").await;
    for kind in ["RTC_CHANGE", "RTC_CHANGE", "BREAD_TOASTED", "BREAD_BURNT"] {
        qemu.say(serde_json::json!({"event": kind, "data": {}}).to_string());
    }
    let mut counts = EventCounts::new();
    room.update("vm1", "all counts", |update| {
        for (kind, count) in &update.counts {
            *counts.entry(kind).or_default() += count;
        }
        counts == [("RTC_CHANGE", 2), ("other", 2)].into()
    })
    .await;
}

#[tokio::test]
async fn a_device_that_is_unplugged_goes_and_one_that_is_plugged_comes() {
    let mut room = Room::new();
    let qemu = room.listen("vm1");
    room.connected("vm1").await;
    let nic = qemu.qemu().nics.remove("vf0").unwrap();
    let deleted = serde_json::json!({"event": "DEVICE_DELETED",
        "data": {"device": "vf0", "path": "/machine/peripheral/vf0"}});
    qemu.say(deleted.to_string());
    room.update("vm1", "vf0 gone", |u| !u.view.functions.contains_key("vf0")).await;
    qemu.qemu().nics.insert("vf9", nic);
    room.update("vm1", "vf9 there", |u| u.view.functions.contains_key("vf9")).await;
}

#[tokio::test]
async fn a_reset_without_filter_events_is_seen() {
    let mut room = Room::with(Limits { poll: DEADLINE * 10, ..limits() });
    let qemu = room.listen("vm1");
    let update = room.connected("vm1").await;
    assert!(update.view.functions["pf0"].filter.is_some());
    qemu.qemu().nics.get_mut("pf0").unwrap().driver = false;
    qemu.say(r#"{"event": "RESET", "data": {"guest": true, "reason": "guest-reset"}}"#.into());
    let update =
        room.update("vm1", "the reset", |u| u.view.functions["pf0"].filter.is_none()).await;
    assert!(update.cause.event_read.is_some());
}

// ---------------------------------------------------------------- sockets that come and go

#[tokio::test]
async fn a_guest_that_hangs_up_keeps_its_functions_and_is_found_again() {
    let mut room = Room::new();
    let qemu = room.listen("vm1");
    let before = room.connected("vm1").await;
    qemu.hang_up();
    let update = room.update("vm1", "an interruption", |_| true).await;
    assert!(matches!(update.view.connection, Connection::Interrupted { .. }), "{update:?}");
    assert_eq!(update.view.functions, before.view.functions);
    room.connected("vm1").await;
}

#[tokio::test]
async fn a_socket_that_vanishes_and_reappears_leads_back_to_the_guest() {
    let mut room = Room::new();
    for _ in 0..3 {
        let qemu = room.listen("vm1");
        room.connected("vm1").await;
        drop(qemu);
        room.update("vm1", "an interruption", |u| {
            matches!(u.view.connection, Connection::Interrupted { .. })
        })
        .await;
    }
}

#[tokio::test]
async fn a_guest_may_be_there_before_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let _qemu = Server::listen(&folder.path().join("vm1.sock"), Qemu::booted());
    let (sink, mut messages) = mpsc::channel(64);
    let cancel = CancellationToken::new();
    let watch =
        GuestWatch::start(Some(folder.path().into()), &BTreeMap::new(), sink, cancel.clone())
            .unwrap();
    assert_eq!(watch.found_at_start(), &[id("vm1")].into());
    let connected = async {
        loop {
            match messages.recv().await.unwrap() {
                GuestMessage::Update(u) if u.view.connection == Connection::Connected => return,
                _ => {}
            }
        }
    };
    timeout(DEADLINE, connected).await.unwrap();
    cancel.cancel();
    let ended = async { while messages.recv().await.is_some() {} };
    timeout(DEADLINE, ended).await.expect("everything ends with the token");
}

#[tokio::test]
async fn a_guest_of_the_api_is_found_wherever_its_socket_is_and_left_when_it_is_released() {
    let mut room = Room::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().join("monitor");
    room.watch.set_api_guests([(id("vm1"), Some(path.clone()))].into());
    room.update("vm1", "nobody there", |u| u.view.connection == Connection::Gone).await;
    let _qemu = Server::listen(&path, Qemu::booted());
    room.connected("vm1").await;
    room.watch.set_api_guests(BTreeMap::new());
    room.forgotten("vm1").await;
}

#[tokio::test]
async fn a_guest_of_the_api_that_moves_to_another_socket_is_another_guest() {
    let mut room = Room::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().join("monitor");
    let mut other = Qemu::booted();
    other.nics.remove("vf1");
    let _there = Server::listen(&path, other);
    let _here = room.listen("vm1");
    room.watch.set_api_guests([(id("vm1"), None)].into());
    assert_eq!(room.connected("vm1").await.view.functions.len(), 3);
    room.watch.set_api_guests([(id("vm1"), Some(path))].into());
    room.update("vm1", "an end", |u| u.view.connection == Connection::Gone).await;
    assert_eq!(room.connected("vm1").await.view.functions.len(), 2);
}

// ---------------------------------------------------------------- processes that end

/// The variable that makes this test binary serve a double instead of testing.
const SERVE_AT: &str = "ESWITCHD_TEST_QMP_DOUBLE";

/// A double in a process of its own, killed when dropped.
struct QemuProcess(Child);

impl QemuProcess {
    fn start(path: &Path) -> Self {
        let _ = std::fs::remove_file(path);
        let this_test = "observe::guest::tests::double_process";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", this_test, "--nocapture", "--test-threads=1"])
            .env(SERVE_AT, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let listening = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .any(|line| line.unwrap().contains("listening"));
        assert!(listening, "the double did not start");
        QemuProcess(child)
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Drop for QemuProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// No test by itself: with [`SERVE_AT`] this process is a QEMU until its standard input ends.
#[tokio::test]
async fn double_process() {
    let Some(path) = std::env::var_os(SERVE_AT) else { return };
    let server = Server::listen(Path::new(&path), Qemu::booted());
    println!("listening");
    let _ = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await;
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_whose_qemu_is_killed_loses_its_functions() {
    let mut room = Room::new();
    let qemu = QemuProcess::start(&room.socket("vm1"));
    let pid = qemu.0.id();
    assert_eq!(room.connected("vm1").await.view.pid, Some(pid));
    drop(qemu);
    let last = room.update("vm1", "the end", |u| u.view.connection == Connection::Gone).await;
    assert!(last.view.functions.is_empty() && last.view.pid.is_none());
    let between = room.heard.iter().any(|message| {
        matches!(message, GuestMessage::Update(u)
            if matches!(u.view.connection, Connection::Interrupted { .. }))
    });
    assert!(!between, "a QEMU that is gone was first taken for a hiccup");

    let again = QemuProcess::start(&room.socket("vm1"));
    let update = room.connected("vm1").await;
    assert_eq!(update.view.pid, Some(again.0.id()));
    assert_eq!(update.view.functions.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_without_socket_and_process_is_forgotten() {
    let mut room = Room::new();
    let qemu = QemuProcess::start(&room.socket("vm1"));
    room.connected("vm1").await;
    // Somebody cleans up the folder while QEMU runs: it is still connected, and still a guest.
    std::fs::remove_file(room.socket("vm1")).unwrap();
    let other = room.listen("vm2");
    room.connected("vm2").await;
    assert!(!room.heard.contains(&GuestMessage::Forgotten(id("vm1"))));
    drop(qemu);
    room.forgotten("vm1").await;
    let gone = room.heard.iter().any(|message| {
        matches!(message, GuestMessage::Update(u)
            if u.guest == id("vm1") && u.view.connection == Connection::Gone)
    });
    assert!(gone, "its end was told before it was forgotten");
    drop(other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_qemu_that_stands_still_is_interrupted_and_goes_on_where_it_was() {
    let mut room = Room::new();
    let qemu = QemuProcess::start(&room.socket("vm1"));
    let before = room.connected("vm1").await;
    qemu.signal(nix::sys::signal::Signal::SIGSTOP);
    let interrupted = room
        .update("vm1", "an interruption", |u| {
            matches!(u.view.connection, Connection::Interrupted { .. })
        })
        .await;
    assert_eq!(interrupted.view.functions, before.view.functions);
    qemu.signal(nix::sys::signal::Signal::SIGCONT);
    let after = room.connected("vm1").await;
    assert_eq!(after.view, before.view);
}

// ---------------------------------------------------------------- peers that misbehave

/// Lets `talk` loose in one guest, and asserts that another is served meanwhile.
async fn misbehaviour<F>(talk: impl Fn(UnixStream) -> F + Send + 'static) -> String
where
    F: Future<Output = ()> + Send,
{
    let mut room = Room::new();
    peer(&room.socket("bad"), talk);
    let good = room.listen("good");
    let (reason, _) = room.misbehaving("bad").await;
    good.change("vf1", |nic| nic.enabled = true);
    room.update("good", "its change", |u| {
        u.view.functions.get("vf1").is_some_and(|vf1| vf1.enabled)
    })
    .await;
    reason
}

#[tokio::test]
async fn rubbish_marks_the_guest_and_no_other() {
    let reason = misbehaviour(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let _ = stream.read_u8().await;
    })
    .await;
    assert!(reason.contains("no QMP message"), "{reason}");
}

#[tokio::test]
async fn deep_json_marks_the_guest_and_no_other() {
    let reason = misbehaviour(|mut stream| async move {
        let deep = format!("{{\"event\":\"X\",\"data\":{}\n", "[".repeat(900_000));
        let _ = stream.write_all(deep.as_bytes()).await;
        let _ = stream.read_u8().await;
    })
    .await;
    assert!(reason.contains("nests deeper"), "{reason}");
}

#[tokio::test]
async fn an_answer_to_no_question_marks_the_guest_and_no_other() {
    let reason = misbehaviour(|mut stream| async move {
        greet(&mut stream).await;
        let _ = stream.write_all(b"{\"return\": {}, \"id\": 4711}\r\n").await;
        let _ = stream.read_u8().await;
    })
    .await;
    assert!(reason.contains("4711"), "{reason}");
}

#[tokio::test]
async fn an_answer_of_another_type_marks_the_guest_and_no_other() {
    let reason = misbehaviour(|mut stream| async move {
        greet(&mut stream).await;
        for id in 1..10 {
            let answer = format!("{{\"return\": {{\"status\": [\"{id}\"]}}, \"id\": {id}}}\r\n");
            let _ = stream.read(&mut [0; 4096]).await;
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await;
    assert!(reason.contains("answer to query-"), "{reason}");
}

#[tokio::test]
async fn a_line_of_a_gibibyte_is_given_up_after_its_bound() {
    let (sent, mut taken) = mpsc::channel(16);
    let reason = misbehaviour(move |mut stream| {
        let sent = sent.clone();
        async move {
            let chunk = vec![b' '; 1 << 16];
            let mut total = 0usize;
            while total < 1 << 30 && stream.write_all(&chunk).await.is_ok() {
                total += chunk.len();
            }
            let _ = sent.send(total).await;
        }
    })
    .await;
    assert!(reason.contains("longer than"), "{reason}");
    let total = timeout(DEADLINE, taken.recv()).await.unwrap().unwrap();
    assert!(total < 4 << 20, "{total} bytes were taken of one line");
}

#[tokio::test]
async fn a_peer_that_never_answers_is_interrupted_and_costs_no_other_guest() {
    let mut room = Room::new();
    peer(&room.socket("bad"), |mut stream| async move {
        greet(&mut stream).await;
        std::future::pending().await
    });
    let _good = room.listen("good");
    let (mut interrupted, mut connected) = (false, false);
    while !(interrupted && connected) {
        if let GuestMessage::Update(update) = room.next("both guests").await {
            let connection = &update.view.connection;
            interrupted |= update.guest == id("bad")
                && matches!(connection, Connection::Interrupted { reason } if reason.contains("qmp_capabilities"));
            connected |= update.guest == id("good") && *connection == Connection::Connected;
        }
    }
}

#[tokio::test]
async fn lines_may_come_byte_by_byte() {
    let mut room = Room::new();
    peer(&room.socket("vm1"), |stream| async move {
        let (reader, mut writer) = stream.into_split();
        let mut requests = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(reader));
        let mut qemu = Qemu::booted();
        qemu.nics.retain(|name, _| *name == "pf0");
        let mut lines = vec![Qemu::greeting()];
        loop {
            for line in lines.drain(..) {
                for byte in (line + "\r\n").bytes() {
                    if writer.write_all(&[byte]).await.is_err() {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            }
            let Ok(Some(request)) = requests.next_line().await else { return };
            lines.push(r#"{"event": "BREAD_TOASTED", "data": {"slice": [1, {}]}}"#.into());
            lines.push(qemu.answer(&request));
        }
    });
    room.connected("vm1").await;
}

#[tokio::test]
async fn what_was_seen_before_stands_while_a_guest_misbehaves_and_until_it_is_seen_again() {
    let mut room = Room::new();
    let qemu = room.listen("vm1");
    let before = room.connected("vm1").await;
    qemu.say("]".into());
    let (_, update) = room.misbehaving("vm1").await;
    assert_eq!(update.view.functions, before.view.functions);
    let after = room.update("vm1", "the next word", |_| true).await;
    assert_eq!(after.view, before.view, "nothing was told before the next inventory");
}

#[tokio::test]
async fn a_reply_with_a_wrong_id_in_the_middle_of_a_life_is_misbehaviour() {
    let mut room = Room::new();
    let qemu = room.listen("vm1");
    room.connected("vm1").await;
    qemu.qemu().id_offset = 1000;
    room.misbehaving("vm1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_events_costs_a_bounded_number_of_queries_and_no_other_guest() {
    let mut room = Room::new();
    let flooder = room.listen("flooder");
    let good = room.listen("good");
    let mut connected = BTreeSet::new();
    while connected.len() < 2 {
        if let GuestMessage::Update(update) = room.next("both guests").await
            && update.view.connection == Connection::Connected
        {
            connected.insert(update.guest.clone());
        }
    }
    let asked_before = flooder.asked("query-rx-filter");
    let began = Instant::now();
    let event = Qemu::filter_changed("vf0");
    let flood = async {
        // 10,000 events a second, until somebody has had enough.
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        loop {
            tick.tick().await;
            for _ in 0..10 {
                flooder.say(event.clone());
            }
        }
    };
    let marked = async {
        let mut slowest = Duration::ZERO;
        for round in 0.. {
            let mac = format!("02:aa:bb:cc:{:02x}:{:02x}", round / 256, round % 256);
            let asked = Instant::now();
            good.change("vf1", |nic| (nic.driver, nic.mac) = (true, mac.clone()));
            loop {
                let GuestMessage::Update(update) = room.next("the good guest").await else {
                    continue;
                };
                if let Connection::Misbehaving { reason } = &update.view.connection {
                    return (reason.clone(), slowest);
                }
                let filter = update.view.functions.get("vf1").and_then(|vf1| vf1.filter.as_ref());
                if update.guest == id("good")
                    && filter.is_some_and(|filter| filter.main_mac.to_string() == mac)
                {
                    break;
                }
            }
            slowest = slowest.max(asked.elapsed());
        }
        unreachable!("rounds do not end")
    };
    let (reason, slowest) = tokio::select! {
        marked = marked => marked,
        () = flood => unreachable!("the flood does not end"),
    };
    assert!(reason.contains("more than"), "{reason}");
    let overruns = |budget| {
        let updates = room.heard.iter().filter_map(|message| match message {
            GuestMessage::Update(update) if update.guest == id("flooder") => Some(update),
            _ => None,
        });
        updates.filter_map(|update| update.overruns.get(budget)).sum::<u64>()
    };
    assert_eq!(overruns("messages"), 1, "the one that cost the connection");
    assert!(overruns("filter_looks") > 100, "events beyond the budget of looks are counted");
    let seconds = began.elapsed().as_secs_f64();
    let queries = flooder.asked("query-rx-filter") - asked_before;
    println!("{queries} queries in {seconds:.2} s; the good guest's slowest change {slowest:?}");
    // 64 at once and 200 a second for the function, and the slow poll.
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let bounded = queries as f64 <= 64.0 + 200.0 * seconds + 20.0 * (seconds + 1.0);
    assert!(bounded, "{queries} queries in {seconds} s");
    assert!(slowest < Duration::from_secs(5), "the good guest waited {slowest:?}");
}

#[tokio::test]
async fn a_receiver_that_takes_nothing_stops_no_guest_and_gets_the_last_view() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, mut messages) = mpsc::channel(1);
    let cancel = CancellationToken::new();
    let qemu = Server::listen(&folder.path().join("vm1.sock"), Qemu::booted());
    let _watch = GuestWatch::start_with(
        Some(folder.path().into()),
        Holders::default(),
        sink,
        cancel.clone(),
        limits(),
    )
    .unwrap();
    // The channel is full with the first word; everything after must wait without stopping.
    let wait = async {
        while qemu.asked("query-rx-filter") < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for round in 1..=50 {
            let mac = format!("02:00:00:00:00:{round:02x}");
            qemu.change("vf0", |nic| (nic.driver, nic.mac) = (true, mac));
            let asked = qemu.asked("query-rx-filter");
            while qemu.asked("query-rx-filter") == asked {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        let mut seen = 0;
        loop {
            let Some(GuestMessage::Update(update)) = messages.recv().await else { continue };
            seen += 1;
            if mac_of_vf0(&update).as_deref() == Some("02:00:00:00:00:32") {
                return seen;
            }
        }
    };
    let seen = timeout(DEADLINE, wait).await.expect("the last view");
    assert!(seen < 20, "{seen} updates waited in some queue");
    cancel.cancel();
}

// ---------------------------------------------------------------- what the fuzzer found worth keeping

#[test]
fn no_committed_input_of_the_fuzzer_breaks_the_reader() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fuzz/corpus/guest_qmp");
    let inputs: Vec<Vec<u8>> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .collect();
    assert!(!inputs.is_empty(), "{folder}");
    inputs.iter().for_each(|bytes| super::fuzz_qmp(bytes));
}

/// Seeds for the corpus, where `ESWITCHD_WRITE_SEEDS` names a folder for them: a real QEMU's lines,
/// and a dialogue with a model of one. `cargo lab fuzz --grow` keeps of them what is worth it.
#[test]
fn seeds_pass_the_reader() {
    let mut dialogue = vec![Qemu::greeting()];
    let mut qemu = Qemu::booted();
    qemu.with_vfs(2);
    let (mut asked, mut heard) = (Vec::new(), 0);
    let now = std::time::Instant::now();
    let mut conversation = super::conversation::Conversation::new(super::Limits::default(), now);
    while heard < dialogue.len() {
        conversation.hear(dialogue[heard].as_bytes(), now).unwrap();
        heard += 1;
        conversation.ask(now, &mut asked);
        let requests = String::from_utf8(std::mem::take(&mut asked)).unwrap();
        dialogue.extend(requests.lines().map(|request| qemu.answer(request)));
    }
    let mut seeds = vec![dialogue.join("\r\n") + "\r\n"];
    for line in include_str!("testdata/life.jsonl").lines() {
        let moment: serde_json::Value = serde_json::from_str(line).unwrap();
        let heard = moment["heard"].as_array().unwrap().iter();
        let lines = heard.chain(moment["answers"].as_object().unwrap().values());
        let lines = lines.filter_map(|line| line.as_str()).filter(|line| line.len() < 5000);
        seeds.push(lines.map(|line| format!("{line}\r\n")).collect());
    }
    for (at, seed) in seeds.iter().enumerate() {
        let cut = u16::try_from(seed.len() / 2).unwrap_or(u16::MAX).to_be_bytes();
        let bytes = [&cut, seed.as_bytes()].concat();
        super::fuzz_qmp(&bytes);
        if let Some(folder) = std::env::var_os("ESWITCHD_WRITE_SEEDS") {
            let folder = std::path::Path::new(&folder).join("guest_qmp");
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(format!("seed-{at}")), bytes).unwrap();
        }
    }
}
