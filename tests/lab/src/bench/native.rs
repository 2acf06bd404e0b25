//! Benchmarks that need no particular kernel: they run on the machine itself, in the profile
//! `release`.
//!
//! In: the workspace's own `cargo bench` targets. Out: [`Line`]s.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::Line;
use crate::{At, Error, Result, cargo};

const ENCODE: &str = "flows/encode";
const INDEX: &str = "flows/index";
const PLAN_FULL: &str = "plan/full/1000x10";
const PLAN_EVENT: &str = "plan/event";

/// Names of all benchmarks here.
pub const NAMES: [&str; 4] = [ENCODE, INDEX, PLAN_FULL, PLAN_EVENT];

/// Runs one of [`NAMES`].
///
/// # Errors
/// cargo fails, or a benchmark prints something else than it should.
pub fn run(name: &str) -> Result<Line> {
    match name {
        ENCODE => encode(),
        INDEX => index(),
        PLAN_FULL => plan(name, "full", 20, ("ms", 1e6)),
        _ => plan(name, "event", 200, ("µs", 1e3)),
    }
}

/// Standard output of a program that must succeed.
pub(super) fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .at(format!("starting {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(Error::Command { program, status: output.status.to_string(), tail: text })
}

pub(super) fn not_understood(what: &str, text: impl ToString) -> Error {
    Error::Format { what: what.to_owned(), text: text.to_string() }
}

fn bench(package: &str, target: &str) -> Command {
    let mut command = cargo::cargo();
    command.args(["bench", "--package", package, "--bench", target]);
    command
}

/// Where cargo puts what it builds.
fn target_folder() -> Result<PathBuf> {
    let text = output(cargo::cargo().args(["metadata", "--format-version=1", "--no-deps"]))?;
    let metadata: Value =
        serde_json::from_str(&text).map_err(|error| not_understood("cargo's metadata", error))?;
    let folder = metadata["target_directory"].as_str();
    Ok(folder.ok_or_else(|| not_understood("cargo's metadata", &text))?.into())
}

/// Encoding, by criterion's samples, with the number of instructions a rule by callgrind.
fn encode() -> Result<Line> {
    output(&mut bench("tc-flows", "encode"))?;
    let target = target_folder()?;
    // Format: criterion's own `sample.json`, each sample's iterations and nanoseconds in all.
    let file = target.join("criterion/encode/admission/new/sample.json");
    let text = std::fs::read_to_string(&file).at(format!("reading {}", file.display()))?;
    let sample: Value = serde_json::from_str(&text)
        .map_err(|error| not_understood("criterion's samples", error))?;
    let list = |name: &str| sample[name].as_array().cloned().unwrap_or_default();
    const RULES: f64 = 1000.0;
    let rates: Vec<super::Run> = list("iters")
        .iter()
        .zip(&list("times"))
        .filter_map(|(iterations, nanoseconds)| {
            let ours = iterations.as_f64()? * RULES / (nanoseconds.as_f64()? / 1e9);
            Some(super::Run { ours, theirs: Vec::new() })
        })
        .collect();
    let instructions = instructions(&target)?;
    let note = format!("this machine, one core, criterion's samples; {instructions}");
    Ok(Line::of(ENCODE, "rules/s", &rates, note))
}

/// How many instructions one rule takes, or why that is not known.
fn instructions(target: &Path) -> Result<String> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        return Ok("instructions not counted: valgrind is not installed".to_owned());
    }
    output(
        cargo::cargo()
            .args(["build", "--release", "--package", "tc-flows"])
            .args(["--example", "encode"]),
    )?;
    let count = |times: u32| -> Result<u64> {
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
        command.arg(target.join("release/examples/encode")).arg(times.to_string());
        let output = command.stdin(Stdio::null()).output().at("starting valgrind")?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        // `==PID== Collected : 12345`
        let line = text.lines().find(|line| line.contains("Collected :"));
        let count = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        count.ok_or_else(|| not_understood("valgrind", &text))
    };
    let (few, many) = (count(1_000)?, count(11_000)?);
    Ok(format!("{} instructions a rule by callgrind", (many - few) / 10_000))
}

/// Memory of the index of installed rules.
fn index() -> Result<Line> {
    let text = output(&mut bench("tc-flows", "index"))?;
    // `312.0 bytes a rule, 96 of them the rule's value, 100000 rules`
    let words: Vec<&str> = text.split_whitespace().collect();
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<f64>().ok());
    let (Some(all), Some(value)) = (number(0), number(4)) else {
        return Err(not_understood("the index benchmark", &text));
    };
    let run = super::Run { ours: all - value, theirs: Vec::new() };
    let note = format!("this machine, heap bytes beyond the rule's own value; {}", text.trim());
    Ok(Line::of(INDEX, "bytes/rule", &[run], note))
}

/// Planning, from nothing or after one event.
fn plan(
    name: &str,
    what: &str,
    rounds: usize,
    (unit, nanoseconds): (&'static str, f64),
) -> Result<Line> {
    let rounds = rounds.to_string();
    let text = output(bench("eswitchd", "plan").args(["--", what, "1000", "10", &rounds]))?;
    let figures: Vec<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let runs: Vec<super::Run> = figures
        .iter()
        // The first warms caches up.
        .skip(1)
        .filter_map(|figure| figure["ns"].as_f64())
        .map(|ns| super::Run { ours: ns / nanoseconds, theirs: Vec::new() })
        .collect();
    let rules = figures.last().and_then(|figure| figure["rules"].as_u64()).unwrap_or_default();
    let note = match what {
        "full" => {
            format!("this machine; 1,000 access ports, 100 in each of 10 networks: {rules} rules")
        }
        _ => format!("this machine; one of those ports has another address: {rules} rules change"),
    };
    Ok(Line::of(name, unit, &runs, note))
}
