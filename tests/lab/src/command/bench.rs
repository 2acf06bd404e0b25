//! `cargo lab bench`: benchmarks in the lab VM, each against a floor in the same run.

use std::{process::ExitCode, time::Duration};

use lab::{
    At, Result,
    bench::{self, Line},
    setup,
    vm::{self, Job},
};

use super::test::prepare;
use crate::exit_code;

/// The longest that all benchmarks may take.
const LIMIT: Duration = Duration::from_secs(30 * 60);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only benchmarks whose name contains this.
    filter: Option<String>,
    /// One JSON object a line on standard output, and nothing else.
    #[arg(long)]
    json: bool,
    /// Pairs that are measured.
    #[arg(long, default_value_t = 20)]
    runs: usize,
}

/// On the machine: boots the VM and has the benchmarks run in it.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let lab = setup::ready(false)?;
    let mut job = Job::new(&lab)?;
    prepare(&mut job, &lab::cargo::binaries()?)?;
    job.limit(LIMIT);
    let mut script = format!("exec lab inside bench --runs {}", arguments.runs);
    if arguments.json {
        script.push_str(" --json");
    }
    if let Some(filter) = &arguments.filter {
        script.push_str(&format!(" -- {}", vm::quote(filter)));
    }
    job.run(&lab, &script, vm::to_stdout, vm::to_stderr).map(exit_code)
}

/// In the VM: runs the benchmarks.
pub(crate) fn inside(arguments: &Arguments) -> Result<ExitCode> {
    let name = "guest/event_to_flow";
    if !arguments.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str())) {
        vm::to_stderr(format!("no benchmark is called so; there is: {name}\n").as_bytes());
        return Ok(ExitCode::FAILURE);
    }
    let folder = std::env::temp_dir().join("eswitchd-bench");
    std::fs::create_dir_all(&folder).at("creating the benchmark's folder")?;
    let mut say = |line: &str| vm::to_stderr(format!("{line}\n").as_bytes());
    tell(&bench::event_to_flow(&folder, arguments.runs, &mut say)?, arguments.json);
    Ok(ExitCode::SUCCESS)
}

fn tell(line: &Line, json: bool) {
    let text = match json {
        true => serde_json::to_string(line).unwrap_or_default(),
        false => {
            let against: Vec<String> = line
                .against
                .iter()
                .map(|(name, a)| format!("{name} {:.2}, ratio {:.2}", a.median, a.ratio))
                .collect();
            format!(
                "{:<24} {:.2} {} ({:.2} to {:.2}, {} runs); {}\n  {}",
                line.bench,
                line.median,
                line.unit,
                line.min,
                line.max,
                line.runs,
                against.join("; "),
                line.note
            )
        }
    };
    vm::to_stdout(format!("{text}\n").as_bytes());
}
