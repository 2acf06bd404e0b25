//! The API as a client on the Unix socket sees it: changes that are durable, and questions.
//!
//! In: eswitchd's binary (`ESWITCHD_BIN`), on the machine itself, in a network namespace of its own;
//! its store is on the disk that holds the lab's cache. Out: [`Line`]s.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    time::Instant,
};

use serde_json::{Value, json};

use super::{Line, Run, median};
use crate::{At, Error, Result, cache::Cache, daemon::Daemon, net::Netns};

const APPLY: &str = "api/apply/10k";
const PUT_PORT: &str = "api/put_port";
const GET: &str = "api/get";

/// Names of all benchmarks here.
pub const NAMES: [&str; 3] = [APPLY, PUT_PORT, GET];

/// Ports, in networks of a hundred.
const PORTS: usize = 10_000;

/// Ports at the beginning and at the end that are looked at by themselves: a write costs the same
/// however many ports there are.
const FEW: usize = 100;

/// Questions of one run.
const GETS: usize = 2_000;

/// Runs those that `wants` wants.
///
/// # Errors
/// The daemon does not start, or refuses something.
pub fn run(wants: &dyn Fn(&str) -> bool, runs: usize, tell: &mut dyn FnMut(Line)) -> Result<()> {
    if !NAMES.into_iter().any(wants) {
        return Ok(());
    }
    let _namespace = Netns::enter()?;
    let folder = Cache::open()?.run_folder()?;
    let adapter = "\n[[adapter]]\nsoftware = \"lab\"\nrepresentors = [\"rep*\"]\n";
    let daemon = Daemon::start(folder.path(), adapter)?;
    let mut client = Connection::to(&daemon)?;
    let networks: Vec<Value> = (0..PORTS / 100)
        .map(|n| json!({"id": format!("net{n}"), "spec": {"kind": {"vlan": {"vid": n + 1}}}}))
        .collect();
    client.ask("POST", "/v1/apply", &json!({ "networks": networks }).to_string())?;
    if wants(PUT_PORT) {
        tell(put_port(&mut client)?);
    }
    // The ports that are there already are left out of its time.
    delete_ports(&mut client)?;
    let applied = apply(&mut client)?;
    if wants(APPLY) {
        tell(applied);
    }
    if wants(GET) {
        tell(get(&mut client, runs)?);
    }
    Ok(())
}

fn spec(number: usize) -> Value {
    json!({
        "function": {"netdev": {"adapter": "soft-lab", "name": format!("rep{number}")}},
        "attachments": [{"network": format!("net{}", number / 100)}],
        "macs": [format!("02:00:00:00:{:02x}:{:02x}", number >> 8 & 0xff, number & 0xff)],
    })
}

/// All ports, one by one.
fn put_port(client: &mut Connection) -> Result<Line> {
    let mut times = Vec::new();
    for number in 0..PORTS {
        let body = json!({ "spec": spec(number) }).to_string();
        let began = Instant::now();
        client.ask("PUT", &format!("/v1/ports/p{number}"), &body)?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let found: Vec<Run> = times.iter().map(|ms| Run { ours: *ms, theirs: Vec::new() }).collect();
    let all = times.iter().sum::<f64>() / 1e3;
    let (first, last) = (&times[..FEW], &times[PORTS - FEW..]);
    let (first, last) = (median(first.to_vec()), median(last.to_vec()));
    times.sort_by(f64::total_cmp);
    let p99 = times.get(times.len() * 99 / 100).copied().unwrap_or(0.0);
    let note = format!(
        "this machine; p50, and p99 {p99:.2} ms; of the first {FEW} p50 {first:.2} ms, of the last \
         {last:.2} ms; {PORTS} new ports one by one take {all:.1} s; each durable, one connection over \
         the Unix socket"
    );
    Ok(Line::of(PUT_PORT, "ms", &found, note))
}

fn delete_ports(client: &mut Connection) -> Result<()> {
    let ports: Vec<String> = (0..PORTS).map(|number| format!("p{number}")).collect();
    client.ask("POST", "/v1/apply", &json!({"delete": {"ports": ports}}).to_string())
}

/// All ports in one batch.
fn apply(client: &mut Connection) -> Result<Line> {
    let port = |n: usize| json!({"id": format!("p{n}"), "spec": spec(n)});
    let ports: Vec<Value> = (0..PORTS).map(port).collect();
    let batch = json!({ "ports": ports }).to_string();
    let began = Instant::now();
    client.ask("POST", "/v1/apply", &batch)?;
    let run = Run { ours: began.elapsed().as_secs_f64(), theirs: Vec::new() };
    let note = format!("this machine; {PORTS} new ports in one batch, durable");
    Ok(Line::of(APPLY, "s", &[run], note))
}

fn get(client: &mut Connection, runs: usize) -> Result<Line> {
    let mut found = Vec::new();
    for _ in 0..runs {
        let began = Instant::now();
        for number in 0..GETS {
            client.ask("GET", &format!("/v1/ports/p{}", number % PORTS), "")?;
        }
        found.push(Run { ours: GETS as f64 / began.elapsed().as_secs_f64(), theirs: Vec::new() });
    }
    let note = format!(
        "this machine; single ports of {PORTS}; one connection over the Unix socket, one request at \
         a time"
    );
    Ok(Line::of(GET, "requests/s", &found, note))
}

/// A connection that is kept.
pub(super) struct Connection(BufReader<UnixStream>);

impl Connection {
    pub(super) fn to(daemon: &Daemon) -> Result<Self> {
        let stream = UnixStream::connect(daemon.socket()).at("connecting to the API")?;
        Ok(Connection(BufReader::new(stream)))
    }

    /// One request and its answer, which must be a success.
    pub(super) fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<()> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.get_mut().write_all(request.as_bytes()).at("sending a request")?;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.0.read_line(&mut head).at("reading an answer")? == 0 {
                break;
            }
        }
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        let mut answer = vec![0; length.unwrap_or(0)];
        self.0.read_exact(&mut answer).at("reading an answer")?;
        match head.starts_with("HTTP/1.1 2") {
            true => Ok(()),
            false => Err(Error::Format {
                what: format!("{method} {path}"),
                text: head + &String::from_utf8_lossy(&answer),
            }),
        }
    }
}
