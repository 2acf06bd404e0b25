//! Benchmarks of the observer of guests. They run on the machine itself, with QEMU doubles on
//! sockets, in the profile `release`.
//!
//! In: the controller's `cargo bench` target `guests`. Out: [`Line`]s. The doubles live in a process
//! of their own, so that what is measured is the observer.

use serde_json::Value;

use super::native::{not_understood, output};
use super::{Line, Run};
use crate::setup::{self, Lab};
use crate::{Result, cargo};

const EVENT_TO_DIRTY: [(&str, usize); 3] = [
    ("guest/event_to_dirty/1", 1),
    ("guest/event_to_dirty/16", 16),
    ("guest/event_to_dirty/256", 256),
];
const IDLE_CPU: &str = "guest/idle_cpu/256";
const MEMORY: &str = "guest/memory/256";
const FLOOD: &str = "guest/flood/1000x1000";
const EVENT_SEEN: &str = "guest/event_seen";
const CHANGE_SEEN: &str = "guest/change_seen";

/// Names of all benchmarks here.
pub const NAMES: [&str; 8] = [
    EVENT_TO_DIRTY[0].0,
    EVENT_TO_DIRTY[1].0,
    EVENT_TO_DIRTY[2].0,
    IDLE_CPU,
    MEMORY,
    FLOOD,
    EVENT_SEEN,
    CHANGE_SEEN,
];

/// Events, and changes without one, that a real guest makes.
const EVENTS: usize = 100;
const CHANGES: usize = 20;

/// What is not understood where its figures are not.
const WHAT: &str = "the benchmark of guests";

/// How long idleness is measured, in seconds: all that a quiet guest causes now and then is in it.
const IDLE: usize = 120;

/// Runs one of [`NAMES`], in `runs` rounds where it has rounds.
///
/// # Errors
/// cargo fails, or the benchmark prints something else than it should.
pub fn run(name: &str, runs: usize) -> Result<Line> {
    if let Some((name, guests)) = EVENT_TO_DIRTY.into_iter().find(|(known, _)| *known == name) {
        return event_to_dirty(name, guests, runs);
    }
    if name == IDLE_CPU {
        let percent = number(&last(&["idle_cpu", "256", &IDLE.to_string()])?, "percent")?;
        let note =
            format!("this machine; 256 quiet guests for {IDLE} s, the observer's process alone");
        return Ok(Line::of(name, "% of a core", &[ours(percent)], note));
    }
    if name == EVENT_SEEN || name == CHANGE_SEEN {
        return seen(name);
    }
    if name == FLOOD {
        let found = last(&["flood", "1000", "1000"])?;
        let run = Run {
            ours: number(&found, "flooded_p50")?,
            theirs: vec![("quiet", number(&found, "quiet_p50")?)],
        };
        let note = format!(
            "this machine; p50 of one guest's events while 999 others send 1000 each at once; {:.0} \
             bytes of memory a guest at the peak",
            number(&found, "bytes")?
        );
        return Ok(Line::of(name, "µs", &[run], note));
    }
    let bytes = number(&last(&["memory", "256"])?, "bytes")?;
    let note = "this machine; resident memory that 256 connected guests add, a guest".to_owned();
    Ok(Line::of(name, "bytes/guest", &[ours(bytes)], note))
}

/// How long what a real guest does goes unseen.
fn seen(name: &str) -> Result<Line> {
    let (how, what) = match name {
        EVENT_SEEN => (
            ["event_seen".to_owned(), EVENTS.to_string()],
            "another address of a VF, from QMP's own timestamp of the event; must: 50 ms",
        ),
        _ => (
            ["change_seen".to_owned(), CHANGES.to_string()],
            "a VF enabled and a driver unbound, which have no event, from the last moment at which \
             QEMU did not show it; must: 1500 ms",
        ),
    };
    let found = last_in(Some(&setup::ready(false)?), &[&how[0], &how[1]])?;
    let [p50, p99, most] = ["p50", "p99", "max"].map(|name| number(&found, name));
    let (p50, p99, most) = (p50?, p99?, most?);
    let note = format!(
        "this machine; p99 of a real guest beside the lab, p50 {p50:.1}, longest {most:.1}: {what}, to \
         the owner's being told; {found}"
    );
    Ok(Line::of(name, "ms", &[ours(p99)], note))
}

fn ours(ours: f64) -> Run {
    Run { ours, theirs: Vec::new() }
}

/// p99 with so many guests, in turn with p99 of a single one.
fn event_to_dirty(name: &str, guests: usize, runs: usize) -> Result<Line> {
    let rounds = figures(None, &["event_to_dirty", &guests.to_string(), &runs.to_string()])?;
    let mut p99 = Vec::new();
    let mut p50 = Vec::new();
    for round in &rounds {
        let theirs = match guests {
            1 => Vec::new(),
            _ => vec![("one guest", number(round, "one_p99")?)],
        };
        p99.push(Run { ours: number(round, "p99")?, theirs });
        p50.push(ours(number(round, "p50")?));
    }
    let p50 = Line::of(name, "µs", &p50, String::new());
    let note = format!(
        "this machine; p99 of 300 events a round, p50 {:.0} µs; from the event read off its socket \
         to the owner's being told, doubles answering in another process",
        p50.median
    );
    Ok(Line::of(name, "µs", &p99, note))
}

/// What the benchmark prints: one JSON object a line.
fn figures(lab: Option<&Lab>, arguments: &[&str]) -> Result<Vec<Value>> {
    let mut command = cargo::cargo();
    command.args(["bench", "--package", "eswitchd", "--bench", "guests", "--"]).args(arguments);
    if let Some(lab) = lab {
        command.env("LAB_GUEST_DIR", &lab.guest).env("LAB_QEMU", &lab.qemu);
    }
    let text = output(&mut command)?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

fn last(arguments: &[&str]) -> Result<Value> {
    last_in(None, arguments)
}

/// Of a benchmark that needs the lab's guests.
fn last_in(lab: Option<&Lab>, arguments: &[&str]) -> Result<Value> {
    figures(lab, arguments)?.pop().ok_or_else(|| not_understood(WHAT, "nothing"))
}

fn number(figures: &Value, name: &str) -> Result<f64> {
    figures[name].as_f64().ok_or_else(|| not_understood(WHAT, figures))
}
