//! `cargo lab`: builds the lab, runs tests in it, opens a shell in it.
//!
//! In: the command line. Out: output of what ran, and its exit status. Each subcommand has a file
//! in `command/`; what they do stands in the library.

mod command {
    //! The subcommands.
    pub(crate) mod bench;
    pub(crate) mod demo;
    pub(crate) mod fuzz;
    pub(crate) mod inside;
    pub(crate) mod pictures;
    pub(crate) mod record;
    pub(crate) mod screens;
    pub(crate) mod setup;
    pub(crate) mod shell;
    pub(crate) mod test;
}

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A virtual machine with netdevsim, flower and real QEMU guests, and what runs in it.
#[derive(Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", version)]
struct Arguments {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Subcommand)]
enum Commands {
    /// Builds the lab, or what is missing of it (the other subcommands do so too).
    Setup(command::setup::Arguments),
    /// Runs all tests: the workspace's on this machine, the suites of tests/ in the lab.
    Test(command::test::Arguments),
    /// Shows the main job: guests with emulated PFs, eswitchd, flows, packets.
    Demo(command::demo::Arguments),
    /// Measures speed as ratios against a floor in the same run.
    Bench(command::bench::Arguments),
    /// Feeds the decoders with what a fuzzer makes up.
    Fuzz(command::fuzz::Arguments),
    /// Renews the recorded life of a real guest that tests of the observer read.
    Record(command::record::Arguments),
    /// Renews the pictures in the documentation.
    Pictures(command::pictures::Arguments),
    /// Renews the screens of eswitchctl in the documentation.
    Screens(command::screens::Arguments),
    /// Opens a shell in the lab VM, or runs one command there.
    Shell(command::shell::Arguments),
    /// What runs inside the lab.
    #[command(hide = true)]
    Inside(command::inside::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Commands::Setup(arguments) => command::setup::run(&arguments),
        Commands::Test(arguments) => command::test::run(&arguments),
        Commands::Demo(arguments) => command::demo::run(&arguments),
        Commands::Bench(arguments) => command::bench::run(&arguments),
        Commands::Fuzz(arguments) => command::fuzz::run(&arguments),
        Commands::Record(arguments) => command::record::run(&arguments),
        Commands::Pictures(arguments) => command::pictures::run(&arguments),
        Commands::Screens(arguments) => command::screens::run(&arguments),
        Commands::Shell(arguments) => command::shell::run(&arguments),
        Commands::Inside(arguments) => command::inside::run(&arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cargo lab: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Exit status of a job, as this process's own.
fn exit_code(status: i32) -> ExitCode {
    u8::try_from(status).map_or(ExitCode::FAILURE, ExitCode::from)
}
