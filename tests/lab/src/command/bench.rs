//! `cargo lab bench`: benchmarks in the lab VM, each against a floor in the same run.

use std::{
    process::{Command, ExitCode},
    time::Duration,
};

use lab::{
    At, Error, Result,
    bench::{Line, api, daemon, flows, guest, native, observer, plug, switch},
    setup,
    vm::{self, Job},
};

use super::test::prepare;
use crate::exit_code;

/// The longest that all benchmarks may take.
const LIMIT: Duration = Duration::from_secs(90 * 60);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only benchmarks whose name contains this.
    filter: Option<String>,
    /// One JSON object a line on standard output, and nothing else.
    #[arg(long)]
    json: bool,
    /// Pairs that are measured, unless a benchmark says otherwise of itself.
    #[arg(long)]
    runs: Option<usize>,
}

impl Arguments {
    fn wants(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()))
    }
}

/// On the machine: runs what needs no VM, boots the VM and has the others run in it.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut all_in_vm = flows::names();
    all_in_vm.extend([guest::EVENT_TO_FLOW, plug::PLUG_WAIT].map(str::to_owned));
    all_in_vm.extend(daemon::names().chain(switch::names()).map(str::to_owned));
    let in_vm: Vec<&String> = all_in_vm.iter().filter(|name| arguments.wants(name)).collect();
    let native: Vec<&str> =
        native::NAMES.into_iter().filter(|name| arguments.wants(name)).collect();
    let observer: Vec<&str> =
        observer::NAMES.into_iter().filter(|name| arguments.wants(name)).collect();
    let api: Vec<&str> = api::NAMES.into_iter().filter(|name| arguments.wants(name)).collect();
    if in_vm.is_empty() && native.is_empty() && observer.is_empty() && api.is_empty() {
        let mut all = all_in_vm;
        let others = native::NAMES.into_iter().chain(observer::NAMES).chain(api::NAMES);
        all.extend(others.map(str::to_owned));
        let text = format!("no benchmark is called so; there are: {}\n", all.join(" "));
        vm::to_stderr(text.as_bytes());
        return Ok(ExitCode::FAILURE);
    }
    for name in native {
        tell(&native::run(name)?, arguments.json);
    }
    for name in observer {
        tell(&observer::run(name, arguments.runs.unwrap_or(5))?, arguments.json);
    }
    if !api.is_empty() {
        of_api(arguments)?;
    }
    if in_vm.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let lab = setup::ready(false)?;
    let mut job = Job::new(&lab)?;
    prepare(&mut job, &lab::cargo::binaries(lab::cargo::Profile::Release)?)?;
    job.limit(LIMIT);
    if arguments.wants(plug::PLUG_WAIT) {
        job.scratch_disk()?;
    }
    let mut script = "exec lab inside bench".to_owned();
    if let Some(runs) = arguments.runs {
        script.push_str(&format!(" --runs {runs}"));
    }
    if arguments.json {
        script.push_str(" --json");
    }
    if let Some(filter) = &arguments.filter {
        script.push_str(&format!(" -- {}", vm::quote(filter)));
    }
    job.run(&lab, &script, vm::to_stdout, vm::to_stderr).map(exit_code)
}

/// Runs the benchmarks of the API in a process of their own, which knows where the daemon is.
fn of_api(arguments: &Arguments) -> Result<()> {
    let binaries = lab::cargo::binaries(lab::cargo::Profile::Release)?;
    let path = |name: &str| {
        let found = binaries.iter().find(|binary| binary.name == name);
        found.map(|binary| binary.path.clone()).unwrap_or_default()
    };
    let mut command = Command::new(path("lab"));
    command.args(["inside", "bench-api"]).env("ESWITCHD_BIN", path("eswitchd"));
    if let Some(runs) = arguments.runs {
        command.args(["--runs", &runs.to_string()]);
    }
    if arguments.json {
        command.arg("--json");
    }
    command.args(&arguments.filter);
    let status = command.status().at("starting the benchmarks of the API")?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::Command {
            program: "lab inside bench-api".into(),
            status: status.to_string(),
            tail: String::new(),
        }),
    }
}

/// In that process: runs them.
pub(crate) fn inside_api(arguments: &Arguments) -> Result<ExitCode> {
    api::run(&|name| arguments.wants(name), arguments.runs.unwrap_or(5), &mut |line| {
        tell(&line, arguments.json);
    })?;
    Ok(ExitCode::SUCCESS)
}

/// In the VM: runs the benchmarks.
pub(crate) fn inside(arguments: &Arguments) -> Result<ExitCode> {
    let mut say = |line: &str| vm::to_stderr(format!("{line}\n").as_bytes());
    if arguments.wants(guest::EVENT_TO_FLOW) {
        let folder = std::env::temp_dir().join("eswitchd-bench");
        std::fs::create_dir_all(&folder).at("creating the benchmark's folder")?;
        let line = guest::event_to_flow(&folder, arguments.runs.unwrap_or(20), &mut say)?;
        tell(&line, arguments.json);
    }
    if arguments.wants(plug::PLUG_WAIT) {
        let line = plug::plug_wait(arguments.runs.unwrap_or(20), &mut say)?;
        tell(&line, arguments.json);
    }
    daemon::run(
        &|name| arguments.wants(name),
        arguments.runs.unwrap_or(3),
        &mut say,
        &mut |line| tell(&line, arguments.json),
    )?;
    switch::run(
        &|name| arguments.wants(name),
        arguments.runs.unwrap_or(5),
        &mut say,
        &mut |line| tell(&line, arguments.json),
    )?;
    flows::run(
        &|name| arguments.wants(name),
        arguments.runs.unwrap_or(5),
        &mut say,
        &mut |line| {
            tell(&line, arguments.json);
        },
    )?;
    Ok(ExitCode::SUCCESS)
}

fn tell(line: &Line, json: bool) {
    let text = match json {
        true => serde_json::to_string(line).unwrap_or_default(),
        false => line.to_string(),
    };
    vm::to_stdout(format!("{text}\n").as_bytes());
}
