//! `cargo lab demo`: the main job on real input, in the lab VM.

use std::{
    io,
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    process::ExitCode,
    thread,
    time::Duration,
};

use lab::{
    At, Error, Result,
    demo::{Demo, Report},
    setup,
    vm::{self, Job},
};

use super::test::prepare;
use crate::exit_code;

/// The port inside the VM that the machine's loopback port is forwarded to.
const FORWARDED: u16 = 9180;

/// The longest that one run of the scenario may take.
const LIMIT: Duration = Duration::from_secs(15 * 60);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Ends after the scenario, instead of staying up until Ctrl-C.
    #[arg(long)]
    once: bool,
    /// Prints one line of JSON at the end on standard output, and the timeline on standard error.
    #[arg(long)]
    json: bool,
    /// Port on this machine's loopback for REST and metrics while it stays up.
    #[arg(long, default_value_t = FORWARDED)]
    port: u16,
}

/// On the machine: boots the VM and has the scenario run in it.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let lab = setup::ready(false)?;
    let mut job = Job::new(&lab)?;
    prepare(&mut job, &lab::cargo::binaries(lab::cargo::Profile::Lab)?)?;
    let mut script = "exec lab inside demo".to_owned();
    if arguments.json {
        script.push_str(" --json");
    }
    if arguments.once {
        script.push_str(" --once");
        job.limit(LIMIT);
    } else {
        TcpListener::bind(("127.0.0.1", arguments.port)).at(format!(
            "taking port {} of the loopback for the API (--port names another)",
            arguments.port
        ))?;
        job.forward(arguments.port, FORWARDED);
        job.set("DEMO_PORT", arguments.port.to_string());
    }
    job.run(&lab, &script, vm::to_stdout, vm::to_stderr).map(exit_code)
}

#[derive(clap::Args)]
pub(crate) struct InsideArguments {
    #[arg(long)]
    once: bool,
    #[arg(long)]
    json: bool,
}

/// In the VM: runs the scenario.
pub(crate) fn inside(arguments: &InsideArguments) -> Result<ExitCode> {
    let folder = std::env::temp_dir().join("eswitchd-demo");
    std::fs::create_dir_all(&folder).at("creating the demo's folder")?;
    let json = arguments.json;
    let mut say = move |line: &str| match json {
        true => vm::to_stderr(format!("{line}\n").as_bytes()),
        false => vm::to_stdout(format!("{line}\n").as_bytes()),
    };
    let (report, demo) = Demo::run(&folder, &mut say)?;
    tell(&report, json);
    if !arguments.once {
        stay(demo)?;
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell(report: &Report, json: bool) {
    let text = match json {
        true => serde_json::to_string(report).unwrap_or_default(),
        false => {
            let times: Vec<String> =
                report.event_to_flow_ms.iter().map(|ms| format!("{ms:.1}")).collect();
            format!(
                "\n{}: {} guests, {} VFs, {} flows; event to flow {} ms; spoofed frames delivered: {}",
                if report.ok { "every step held" } else { "NOT every step held" },
                report.guests,
                report.vfs,
                report.flows,
                times.join(", "),
                report.spoofed_frames_delivered
            )
        }
    };
    vm::to_stdout(format!("{text}\n").as_bytes());
}

/// Keeps everything up, with the API reachable from the machine.
fn stay(demo: Demo<'_>) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", FORWARDED)).at("listening for the machine")?;
    let port = std::env::var("DEMO_PORT").unwrap_or_else(|_| FORWARDED.to_string());
    let lines = format!(
        "\nIt stays up until Ctrl-C. To try, on this machine:\n\
         \x20 curl -s http://127.0.0.1:{port}/v1/ports/a\n\
         \x20 curl -s 'http://127.0.0.1:{port}/v1/flows?port=a'\n\
         \x20 curl -s http://127.0.0.1:{port}/metrics\n"
    );
    vm::to_stdout(lines.as_bytes());
    for machine in listener.incoming() {
        let machine = machine.at("taking a connection")?;
        match UnixStream::connect(demo.socket()) {
            Ok(api) => join(machine, api).at("forwarding a connection")?,
            Err(_) => break,
        }
    }
    drop(demo);
    Err(Error::Missing {
        what: "eswitchd has ended".into(),
        remedy: "its log is above; start the demo again".into(),
    })
}

/// Copies both ways, each on a thread of its own.
fn join(machine: TcpStream, api: UnixStream) -> io::Result<()> {
    let (mut asks, mut takes) = (machine.try_clone()?, api.try_clone()?);
    let (mut answers, mut reads) = (api, machine);
    // A peer may have closed before its end is shut down.
    thread::spawn(move || {
        let _ = io::copy(&mut asks, &mut takes);
        let _ = takes.shutdown(Shutdown::Write);
    });
    thread::spawn(move || {
        let _ = io::copy(&mut answers, &mut reads);
        let _ = reads.shutdown(Shutdown::Write);
    });
    Ok(())
}
