//! `lab inside …`: the parts of the tool that run in the lab VM, or in namespaces of the machine
//! where its kernel can do what the lab's can.
//!
//! The same binary, built in the profile `lab`, is put into the VM; a job calls it as
//! `lab inside NAME`.

use std::process::ExitCode;
use std::time::Instant;

use lab::guest::{Backing, Guest};
use lab::{Result, native};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    part: Part,
}

#[derive(clap::Subcommand)]
enum Part {
    /// Succeeds where the kernel offloads flower rules of netdevsim.
    Prove,
    /// Starts a guest, executes commands in it, and shows what each took.
    Guest(GuestArguments),
    /// The benchmarks.
    Bench(super::bench::Arguments),
    /// The benchmarks of the API, which need nothing of the kernel.
    BenchApi(super::bench::Arguments),
    /// The recorder.
    Record(super::record::InsideArguments),
    /// The demo's scenario.
    Demo(super::demo::InsideArguments),
    /// The screens of eswitchctl.
    Screens(super::screens::InsideArguments),
}

#[derive(clap::Args)]
struct GuestArguments {
    /// Its name.
    name: String,
    /// Boots instead of resuming the saved state.
    #[arg(long)]
    cold: bool,
    /// A tap for each VF, in order.
    #[arg(long)]
    tap: Vec<String>,
    /// Shell commands, one after the other.
    #[arg(last = true)]
    commands: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.part {
        Part::Prove => native::prove().map(|()| ExitCode::SUCCESS),
        Part::Guest(arguments) => guest(arguments),
        Part::Bench(arguments) => super::bench::inside(arguments),
        Part::BenchApi(arguments) => super::bench::inside_api(arguments),
        Part::Record(arguments) => super::record::inside(arguments),
        Part::Demo(arguments) => super::demo::inside(arguments),
        Part::Screens(arguments) => super::screens::inside(arguments),
    }
}

fn guest(arguments: &GuestArguments) -> Result<ExitCode> {
    let mut builder = Guest::named(&arguments.name);
    for (index, tap) in arguments.tap.iter().enumerate() {
        builder = builder.vf(index, Backing::Tap(tap.clone()));
    }
    if arguments.cold {
        builder = builder.cold();
    }
    let start = Instant::now();
    let guest = builder.start()?;
    eprintln!("{:6.2} s  guest {} runs", start.elapsed().as_secs_f64(), guest.name());
    let mut status = 0;
    for command in &arguments.commands {
        let start = Instant::now();
        let output = guest.exec(command)?;
        eprintln!("{:6.2} s  {command}", start.elapsed().as_secs_f64());
        lab::vm::to_stdout(output.text.as_bytes());
        status = output.status;
    }
    Ok(crate::exit_code(status))
}
