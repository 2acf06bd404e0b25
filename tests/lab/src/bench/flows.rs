//! tc-flows against a bare loop and against `tc`, in the same kernel.
//!
//! In: how many rules, where, how often. Out: [`Line`]s. The rule is the admission rule of a
//! switchdev program: a VLAN tag and a source MAC lead to a chain.
//!
//! The *floor* sends the very same messages (flags, handles and cookies too), encoded beforehand,
//! from one thread over one socket, in the batch that turned out fastest just before. Nobody
//! listens to the kernel's notifications while anything is measured.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use tc_flows::{
    Action, ChainId, Handle, Hook, Kernel, Mac, Match, Mode, NetlinkKernel, Op, Outcome, Owner,
    Prio, Rule, VlanId, VlanTpid, encode,
};

use super::{Line, Run, ifindex, kernel, refused};
use crate::net::{self, Netdevsim};
use crate::{At, Error, Result};

const OURS: Owner = Owner(*b"ours");
/// The owner of the floor's flows.
pub(super) const FLOOR: Owner = Owner(*b"flor");

/// Batches among which the floor takes the fastest, in messages.
const BATCHES: [usize; 5] = [16, 128, 512, 1024, 2048];

/// Socket buffers of the floor: larger than any of its batches and all answers to it.
const BUFFER: usize = 64 << 20;

/// Changes that one side makes before the other has its turn.
const SLICE: usize = 4096;

/// Runs of the largest sets: each takes minutes.
const RUNS_OF_100K: usize = 3;

/// The netdevs that are programmed in turn: ours, the floor's and tc's.
struct Place {
    name: &'static str,
    links: [String; 3],
    /// Keeps the device there.
    _device: Option<Netdevsim>,
}

impl Place {
    fn veth() -> Result<Place> {
        let links = ["bench-ours", "bench-floor", "bench-tc"];
        for link in links {
            net::ip(&format!("link add {link} type veth peer name {link}-p"))?;
            net::ip(&format!("link set {link} up"))?;
        }
        Ok(Place { name: "veth", links: links.map(str::to_owned), _device: None })
    }

    fn netdevsim() -> Result<Place> {
        net::modprobe("netdevsim")?;
        let device = Netdevsim::create(1)?;
        device.set_vfs(3)?;
        device.switchdev()?;
        let links = [device.representor(0)?, device.representor(1)?, device.representor(2)?];
        for link in &links {
            net::command("ethtool", ["-K", link, "hw-tc-offload", "on"])?;
            net::ip(&format!("link set {link} up"))?;
        }
        Ok(Place { name: "netdevsim", links, _device: Some(device) })
    }

    /// Makes the qdiscs anew: no rule is left.
    fn clear(&self) -> Result<()> {
        for link in &self.links {
            // There is none the first time.
            let _ = net::tc(&format!("qdisc del dev {link} clsact"));
            net::tc(&format!("qdisc add dev {link} clsact"))?;
        }
        Ok(())
    }

    fn hook(&self, link: usize) -> Result<Hook> {
        ifindex(&self.links[link]).map(Hook::ingress)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.name == "veth" {
            for link in &self.links {
                let _ = net::ip(&format!("link del {link}"));
            }
        }
    }
}

/// The admission rule of guest number `at`, which leads to `chain`.
fn admission(hook: Hook, at: u32, chain: u32) -> Result<Rule> {
    let [_, b, c, d] = at.to_be_bytes();
    let number = "a bench's rule".to_owned();
    let wrong = || Error::Format { what: number.clone(), text: at.to_string() };
    let vid = VlanId::new(100).ok_or_else(wrong)?;
    let matching = Match::vlan(VlanTpid::Dot1Q, vid).src(Mac([2, 0, 0, b, c, d]));
    let chain = ChainId::new(chain).ok_or_else(wrong)?;
    let prio = Prio::new(10).ok_or_else(wrong)?;
    Rule::new(hook, ChainId::ZERO, prio, matching, [Action::Goto(chain)]).map_err(refused)
}

/// What is measured of the changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Insert,
    Replace,
    Delete,
}

impl Change {
    const ALL: [Change; 3] = [Change::Insert, Change::Replace, Change::Delete];

    const fn name(self) -> &'static str {
        match self {
            Change::Insert => "insert",
            Change::Replace => "replace",
            Change::Delete => "delete",
        }
    }

    fn ops(self, hook: Hook, rules: u32) -> Result<Vec<Op>> {
        (1..=rules)
            .map(|at| {
                let handle = Handle(at);
                Ok(match self {
                    Change::Insert => Op::Add { rule: admission(hook, at, 5)?, handle },
                    Change::Replace => Op::Replace { rule: admission(hook, at, 6)?, handle },
                    Change::Delete => {
                        Op::Delete { id: admission(hook, at, 6)?.id().clone(), handle }
                    }
                })
            })
            .collect()
    }
}

/// The floor: a socket, and messages that were encoded beforehand.
pub(super) struct Floor {
    socket: Socket,
    datagram: Vec<u8>,
}

impl Floor {
    pub(super) fn open() -> Result<Floor> {
        let mut socket = Socket::new(NETLINK_ROUTE).at("opening the floor's socket")?;
        socket.bind_auto().at("binding the floor's socket")?;
        socket.connect(&SocketAddr::new(0, 0)).at("connecting the floor's socket")?;
        socket.set_ext_ack(true).at("asking for extended acks")?;
        socket.set_cap_ack(true).at("asking for capped acks")?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).at("sizing the floor's buffer")?;
        setsockopt(&socket, sockopt::SndBuf, &BUFFER).at("sizing the floor's buffer")?;
        Ok(Floor { socket, datagram: vec![0; 64 << 10] })
    }

    /// Sends each batch and waits for the answer to its last message. Counts errors.
    pub(super) fn send(&mut self, batches: &[(Vec<u8>, u32)]) -> Result<usize> {
        let mut errors = 0;
        for (bytes, last) in batches {
            self.socket.send(bytes, 0).at("sending the floor's batch")?;
            let mut answered = false;
            while !answered {
                let mut room = &mut self.datagram[..];
                let len = self.socket.recv(&mut room, 0).at("the floor's answers")?;
                let mut rest = &self.datagram[..len];
                while let [a, b, c, d, kind, _, _, _, seq @ ..] = rest {
                    let len = u32::from_ne_bytes([*a, *b, *c, *d]) as usize;
                    if *kind == 2 {
                        errors += usize::from(rest.get(16..20) != Some(&[0; 4]));
                        answered |= seq.first_chunk() == Some(&last.to_ne_bytes());
                    }
                    rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
                }
            }
        }
        Ok(errors)
    }
}

/// The floor's messages, so many to a batch, each batch with the sequence number of its last.
pub(super) fn batches(ops: &[Op], mode: Mode, batch: usize) -> Vec<(Vec<u8>, u32)> {
    let mut first = 1;
    ops.chunks(batch)
        .map(|chunk| {
            let mut bytes = Vec::new();
            encode(chunk, FLOOR, mode, first, &mut bytes);
            first += chunk.len() as u32;
            (bytes, first - 1)
        })
        .collect()
}

fn done(outcomes: &[Outcome]) -> Result<()> {
    match outcomes.iter().find(|outcome| !outcome.is_done()) {
        None => Ok(()),
        Some(failed) => Err(Error::Format {
            what: "an outcome of the benchmark".into(),
            text: format!("{failed:?}"),
        }),
    }
}

fn rate(rules: u32, took: Duration) -> f64 {
    f64::from(rules) / took.as_secs_f64()
}

/// The batch with which the floor is fastest here and now.
fn fastest_batch(place: &Place, mode: Mode) -> Result<usize> {
    const RULES: u32 = 8192;
    let mut floor = Floor::open()?;
    let mut best = (Duration::MAX, 0);
    // The first round warms up.
    for batch in [&BATCHES[..1], &BATCHES[..]].concat() {
        place.clear()?;
        let batches = batches(&Change::Insert.ops(place.hook(1)?, RULES)?, mode, batch);
        let began = Instant::now();
        floor.send(&batches)?;
        best = best.min((began.elapsed(), batch));
    }
    Ok(best.1)
}

/// A file for `tc -batch` with the same rules under the same handles.
fn tc_batch(path: &Path, link: &str, hook: Hook, rules: u32) -> Result<()> {
    let mut text = String::new();
    for at in 1..=rules {
        let rule = admission(hook, at, 5)?;
        let cookie = rule.cookie(OURS);
        let rule = rule.to_string().replacen(" flower", &format!(" handle {at:#x} flower"), 1);
        let _ = writeln!(text, "filter add dev {link} {rule} cookie {cookie}");
    }
    fs::write(path, text).at("writing the batch for tc")
}

fn timed(program: &str, arguments: &[&str]) -> Result<Duration> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    let began = Instant::now();
    let status = command.status().at("starting tc")?;
    let took = began.elapsed();
    if status.success() {
        return Ok(took);
    }
    Err(Error::Command {
        program: format!("{program} {}", arguments.join(" ")),
        status: status.to_string(),
        tail: String::new(),
    })
}

/// Small sets are measured more often, as they take no time, the largest less.
fn runs_of(rules: u32, runs: usize) -> usize {
    match rules {
        ..10_000 => 4 * runs,
        10_000..100_000 => runs,
        100_000.. => runs.min(RUNS_OF_100K),
    }
}

fn size(rules: u32) -> String {
    format!("{}k", rules / 1000)
}

/// Names of all benchmarks here.
pub fn names() -> Vec<String> {
    let mut names = Vec::new();
    for place in ["veth", "netdevsim"] {
        for rules in [1_000, 10_000, 100_000] {
            for change in Change::ALL {
                names.push(format!("flows/{}/{}/{place}", change.name(), size(rules)));
            }
        }
        names.push(format!("flows/insert_told/10k/{place}"));
    }
    for rules in [10_000, 100_000] {
        for kind in ["full", "terse"] {
            names.push(format!("flows/dump_{kind}/{}/veth", size(rules)));
        }
    }
    names
}

/// Runs those of these benchmarks that `wanted` names, and hands each line over as it is there.
///
/// # Errors
/// The kernel or a tool does not do its part.
pub fn run(
    wanted: &dyn Fn(&str) -> bool,
    runs: usize,
    say: &mut dyn FnMut(&str),
    tell: &mut dyn FnMut(Line),
) -> Result<()> {
    for netdevsim in [false, true] {
        let name = if netdevsim { "netdevsim" } else { "veth" };
        let here = names().into_iter().filter(|bench| bench.ends_with(name));
        let here: Vec<String> = here.filter(|bench| wanted(bench)).collect();
        if here.is_empty() {
            continue;
        }
        let place = if netdevsim { Place::netdevsim()? } else { Place::veth()? };
        let asked =
            |bench: &str| here.iter().any(|name| *name == format!("flows/{bench}/{}", place.name));
        let mut batch = None;
        for rules in [1_000, 10_000, 100_000] {
            let runs = runs_of(rules, runs);
            if Change::ALL.iter().any(|change| asked(&format!("{}/{}", change.name(), size(rules))))
            {
                let batch = match batch {
                    Some(batch) => batch,
                    None => *batch.insert(fastest_batch(&place, Mode::Fast)?),
                };
                say(&format!("{} rules on {}, the floor's batch is {batch}", rules, place.name));
                changes(&place, rules, batch, runs, &asked, tell)?;
            }
        }
        if asked("insert_told/10k") {
            let batch = fastest_batch(&place, Mode::Told)?;
            say(&format!("told: the floor's batch is {batch}"));
            tell(told(&place, 10_000, batch, runs)?);
        }
        for rules in [10_000, 100_000] {
            let runs = runs_of(rules, runs);
            for terse in [false, true] {
                let kind = if terse { "dump_terse" } else { "dump_full" };
                if asked(&format!("{kind}/{}", size(rules))) {
                    tell(dump(&place, rules, terse, runs)?);
                }
            }
        }
        place.clear()?;
    }
    Ok(())
}

/// The same changes by us and by the floor, a slice by the one, a slice by the other, so that both
/// meet the machine in the same mood. Gives both rates.
fn raced(
    place: &Place,
    change: Change,
    rules: u32,
    mode: Mode,
    batch: usize,
    floor_first: bool,
) -> Result<(f64, f64)> {
    let mut kernel = kernel(OURS)?;
    let mut floor = Floor::open()?;
    let ours = change.ops(place.hook(0)?, rules)?;
    let theirs = change.ops(place.hook(1)?, rules)?;
    let mut took = (Duration::ZERO, Duration::ZERO);
    for (at, (ours, theirs)) in ours.chunks(SLICE).zip(theirs.chunks(SLICE)).enumerate() {
        let theirs = batches(theirs, mode, batch);
        let mut our_side = || {
            let began = Instant::now();
            let outcomes = kernel.apply(ours, mode);
            took.0 += began.elapsed();
            done(&outcomes)
        };
        let mut floor_side = || {
            let began = Instant::now();
            let errors = floor.send(&theirs)?;
            took.1 += began.elapsed();
            match errors {
                0 => Ok(()),
                _ => Err(refused(format!("{errors} errors at the floor"))),
            }
        };
        if (at % 2 == 0) == floor_first {
            floor_side()?;
            our_side()?;
        } else {
            our_side()?;
            floor_side()?;
        }
    }
    Ok((rate(rules, took.0), rate(rules, took.1)))
}

fn changes(
    place: &Place,
    rules: u32,
    batch: usize,
    runs: usize,
    asked: &dyn Fn(&str) -> bool,
    tell: &mut dyn FnMut(Line),
) -> Result<()> {
    let tc_file = std::env::temp_dir().join("eswitchd-bench-tc");
    tc_batch(&tc_file, &place.links[2], place.hook(2)?, rules)?;
    let tc_file = tc_file.to_string_lossy().into_owned();
    let insert = asked(&format!("insert/{}", size(rules)));
    let mut found: [Vec<Run>; 3] = Default::default();
    // The first run warms up, but the largest sets are warm after a moment.
    let warm_up = usize::from(rules < 100_000);
    for run in 0..runs + warm_up {
        place.clear()?;
        for (change, runs) in Change::ALL.into_iter().zip(&mut found) {
            let (ours, floor) = raced(place, change, rules, Mode::Fast, batch, run % 2 == 0)?;
            if run >= warm_up {
                runs.push(Run { ours, theirs: vec![("floor", floor)] });
            }
        }
        if insert {
            let tc = rate(rules, timed("tc", &["-batch", &tc_file])?);
            if let Some(run) = found[0].last_mut() {
                run.theirs.push(("tc", tc));
            }
        }
    }
    for (change, runs) in Change::ALL.into_iter().zip(&found) {
        let name = format!("{}/{}", change.name(), size(rules));
        if asked(&name) {
            let note =
                format!("lab VM (software emulation), fast mode; the floor sends {batch} at once");
            tell(Line::of(format!("flows/{name}/{}", place.name), "rules/s", runs, note));
        }
    }
    Ok(())
}

fn told(place: &Place, rules: u32, batch: usize, runs: usize) -> Result<Line> {
    let mut found = Vec::new();
    for run in 0..=runs {
        place.clear()?;
        let (ours, floor) = raced(place, Change::Insert, rules, Mode::Told, batch, run % 2 == 0)?;
        // The first run warms up.
        if run > 0 {
            found.push(Run { ours, theirs: vec![("floor", floor)] });
        }
    }
    let note = format!(
        "lab VM (software emulation), verbose, an acknowledgement and an echo each; the floor \
         sends {batch} at once and reads every answer"
    );
    let name = format!("flows/insert_told/{}/{}", size(rules), place.name);
    Ok(Line::of(name, "rules/s", &found, note))
}

fn dump(place: &Place, rules: u32, terse: bool, runs: usize) -> Result<Line> {
    place.clear()?;
    let hook = place.hook(0)?;
    let mut kernel = kernel(OURS)?;
    done(&kernel.apply(&Change::Insert.ops(hook, rules)?, Mode::Fast))?;
    let shown = ["filter", "show", "dev", &place.links[0], "ingress"];
    let (kind, option) = if terse { ("dump_terse", "-br") } else { ("dump_full", "-s") };
    let arguments = [&[option][..], &shown].concat();
    let mut found = Vec::new();
    for run in 0..=runs {
        let ours = dumped(&mut kernel, hook, terse, rules)?;
        let tc = rate(rules, timed("tc", &arguments)?);
        if run > 0 {
            found.push(Run { ours, theirs: vec![("tc", tc)] });
        }
    }
    let note = format!("lab VM (software emulation); tc {option}, printing to nowhere");
    Ok(Line::of(format!("flows/{kind}/{}/{}", size(rules), place.name), "rules/s", &found, note))
}

fn dumped(kernel: &mut NetlinkKernel, hook: Hook, terse: bool, rules: u32) -> Result<f64> {
    let began = Instant::now();
    let held = match terse {
        true => kernel.dump_terse(hook).map_err(refused)?.own.len(),
        false => kernel.dump(hook).map_err(refused)?.own.len(),
    };
    let took = began.elapsed();
    if held == rules as usize {
        return Ok(rate(rules, took));
    }
    Err(refused(format!("{held} of {rules} rules in the dump")))
}
