//! `cargo lab test`: the workspace's tests on this machine, then the suites in the lab VM, or
//! natively where this kernel has what they need.

use std::io::Read;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lab::cargo::{self, Executable};
use lab::setup::{self, Lab};
use lab::totals::{Reader, Totals};
use lab::vm::{self, Job};
use lab::{At, Error, Result, native, node, python};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// Also the long variants of tests.
    #[arg(long)]
    long: bool,
    /// Uses the lab VM even where this kernel could run the suites.
    #[arg(long)]
    vm: bool,
    /// Only the suites of the lab.
    #[arg(long)]
    lab_only: bool,
}

/// The suite that runs guests.
const GUESTS: &str = "eswitchd-e2e-tests";

/// Suites that need nothing of the kernel: these run on the machine itself, whatever its kernel. In
/// the VM each guest that they watch would be an emulation in an emulation, and there is no Python,
/// no Node.js and no browser.
const WATCHERS: [&str; 8] =
    ["commands", "grafana", "libvirt", "observe", "page", "pictures", "specification", "taps"];

/// For all suites in the VM; a suite that hangs must not keep a build machine for ever.
const LIMIT: Duration = Duration::from_secs(40 * 60);
const LONG_LIMIT: Duration = Duration::from_secs(3 * 3600);

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let lab = setup::ready(false)?;
    let binaries = cargo::binaries(cargo::Profile::Lab)?;
    let mut suites = cargo::suites()?;
    // What is quick comes first, and always in the same order.
    suites
        .sort_by_key(|suite| (suite.package == GUESTS, suite.package.clone(), suite.name.clone()));
    let filtered = arguments.filter.is_some();
    let machine = if arguments.lab_only { None } else { Some(on_machine(&lab, arguments)?) };
    let lacks = native_lacks(&binaries);
    let (totals, ok) = if lacks.is_empty() && !arguments.vm {
        eprintln!("this kernel has all that the suites need: they run natively");
        natively(&lab, &binaries, &suites, arguments)?
    } else {
        eprintln!("the suites run in the lab VM (this machine lacks {})", lacks.join(", "));
        let watches = |suite: &Executable| WATCHERS.contains(&suite.name.as_str());
        let (beside, inside): (Vec<Executable>, Vec<Executable>) =
            suites.into_iter().partition(|suite| suite.package == GUESTS && watches(suite));
        let (beside_totals, beside_ok) = natively(&lab, &binaries, &beside, arguments)?;
        let (totals, ok) = in_vm(&lab, &binaries, &inside, arguments)?;
        let mut both = beside_totals;
        both += totals;
        (both, beside_ok && ok)
    };

    let mut summary = String::from("\n");
    if let Some((machine, _)) = &machine {
        summary.push_str(&format!("machine: {machine}\n"));
    }
    summary.push_str(&format!("lab:     {totals}\n"));
    vm::to_stdout(summary.as_bytes());

    let machine_ok =
        machine.is_none_or(|(machine, ok)| ok && machine.ok() && (filtered || machine.passed > 0));
    let lab_ok = ok && totals.ok() && (filtered || totals.passed > 0);
    for (place, ok) in [("machine", machine_ok), ("lab", lab_ok)] {
        if !ok {
            eprintln!("cargo lab: tests failed, or none ran: {place}");
        }
    }
    Ok(if machine_ok && lab_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Puts the binaries into a job and tells it where everything is.
pub(crate) fn prepare(job: &mut Job, binaries: &[Executable]) -> Result<()> {
    for binary in binaries {
        job.add_executable(&binary.path, &binary.name)?;
    }
    for (name, value) in [
        ("ESWITCHD_LAB", "1"),
        ("ESWITCHD_BIN", "/job/bin/eswitchd"),
        ("ESWITCHCTL_BIN", "/job/bin/eswitchctl"),
        ("LAB_GUEST_DIR", "/lab/guest"),
        ("LAB_QEMU", "/usr/bin/qemu-system-x86_64"),
    ] {
        job.set(name, value);
    }
    Ok(())
}

/// Runs a command with its standard output passed on and read for totals.
fn counted(command: &mut Command) -> Result<(Totals, bool)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .at(format!("starting {}", command.get_program().display()))?;
    let mut reader = Reader::default();
    if let Some(mut output) = child.stdout.take() {
        let mut chunk = [0; 8192];
        loop {
            let length = output.read(&mut chunk).at("reading test output")?;
            if length == 0 {
                break;
            }
            reader.feed(&chunk[..length]);
            vm::to_stdout(&chunk[..length]);
        }
    }
    let status = child.wait().at("waiting for tests")?;
    Ok((reader.totals(), status.success()))
}

fn on_machine(lab: &Lab, arguments: &Arguments) -> Result<(Totals, bool)> {
    let mut command = cargo::cargo();
    command
        .args(["test", "--no-fail-fast"])
        .args(&arguments.filter)
        // Tests that only watch a guest run it beside the lab.
        .env("LAB_GUEST_DIR", &lab.guest)
        .env("LAB_QEMU", &lab.qemu);
    if arguments.long {
        command.env("ESWITCHD_LONG", "1");
    }
    counted(&mut command)
}

/// The command that executes the suites one after the other, for `sh`; `place` gives the path of
/// an executable.
fn script(
    suites: &[Executable],
    place: impl Fn(&Executable) -> String,
    filter: Option<&str>,
) -> String {
    let mut script = String::from("failed=0\n");
    for suite in suites {
        let title = format!("\n     Running {} {}", suite.package, suite.name);
        let filter = filter.map(vm::quote).unwrap_or_default();
        // Guests are emulated inside an emulation: two tests at once take longer than one after the
        // other, because each then waits for guests that get half as much done.
        let threads = if suite.package == GUESTS { "RUST_TEST_THREADS=1 " } else { "" };
        script.push_str(&format!(
            "printf '%s\\n' {}\n{threads}{} {filter} || failed=1\n",
            vm::quote(&title),
            vm::quote(&place(suite))
        ));
    }
    script.push_str("exit $failed\n");
    script
}

fn job_name(suite: &Executable) -> String {
    format!("{}.{}", suite.package, suite.name)
}

fn in_vm(
    lab: &Lab,
    binaries: &[Executable],
    suites: &[Executable],
    arguments: &Arguments,
) -> Result<(Totals, bool)> {
    let mut job = Job::new(lab)?;
    prepare(&mut job, binaries)?;
    for suite in suites {
        job.add_executable(&suite.path, &job_name(suite))?;
    }
    job.limit(if arguments.long { LONG_LIMIT } else { LIMIT });
    if arguments.long {
        job.set("ESWITCHD_LONG", "1");
    }
    job.set("RUST_BACKTRACE", "1");
    let place = |suite: &Executable| format!("/job/bin/{}", job_name(suite));
    let script = script(suites, place, arguments.filter.as_deref());
    let reader = Arc::new(Mutex::new(Reader::default()));
    let fed = Arc::clone(&reader);
    let sink = move |bytes: &[u8]| {
        fed.lock().unwrap_or_else(PoisonError::into_inner).feed(bytes);
        vm::to_stdout(bytes);
    };
    let status = match job.run(lab, &script, sink, vm::to_stderr) {
        Ok(status) => status,
        // What was counted before is still worth showing.
        Err(error @ Error::Vm { .. }) => {
            eprintln!("cargo lab: {error}");
            1
        }
        Err(error) => return Err(error),
    };
    let totals = reader.lock().unwrap_or_else(PoisonError::into_inner).totals();
    Ok((totals, status == 0 && totals.executables == suites.len() as u64))
}

fn natively(
    lab: &Lab,
    binaries: &[Executable],
    suites: &[Executable],
    arguments: &Arguments,
) -> Result<(Totals, bool)> {
    let path = |name: &str| {
        binaries.iter().find(|binary| binary.name == name).map(|binary| binary.path.clone())
    };
    let place = |suite: &Executable| suite.path.display().to_string();
    let mut command = isolated("sh");
    command
        .arg("-c")
        .arg(format!("ip link set lo up\n{}", script(suites, place, arguments.filter.as_deref())))
        .env("ESWITCHD_LAB", "1")
        .env("LAB_GUEST_DIR", &lab.guest)
        .env("LAB_QEMU", &lab.qemu)
        .env("LAB_SCHEMATHESIS", python::schemathesis()?)
        .env("LAB_GRAFANA_SCHEMA", node::grafana_schema()?)
        .env("LAB_CHROMIUM", setup::chromium()?)
        .env("ESWITCHD_BIN", path("eswitchd").unwrap_or_default())
        .env("ESWITCHCTL_BIN", path("eswitchctl").unwrap_or_default());
    if arguments.long {
        command.env("ESWITCHD_LONG", "1");
    }
    let (totals, ok) = counted(&mut command)?;
    Ok((totals, ok && totals.executables == suites.len() as u64))
}

/// A command in network, mount and process namespaces of its own.
fn isolated(program: &str) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--mount", "--fork", "--pid", "--kill-child=KILL", "--mount-proc", "--"])
        .arg(program);
    command
}

fn native_lacks(binaries: &[Executable]) -> Vec<String> {
    let Some(lab) = binaries.iter().find(|binary| binary.name == "lab") else {
        return vec!["the lab binary".into()];
    };
    let mut proof = isolated(&lab.path.display().to_string());
    native::lacks(proof.args(["inside", "prove"]))
}
