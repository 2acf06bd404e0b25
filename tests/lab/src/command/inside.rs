//! `lab inside …`: the parts of the tool that run in the lab VM, or in namespaces of the machine
//! where its kernel can do what the lab's can.
//!
//! The same binary, built in the profile `lab`, is put into the VM; a job calls it as
//! `lab inside NAME`.

use std::process::ExitCode;

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
    /// The demo's scenario.
    Demo(super::demo::InsideArguments),
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.part {
        Part::Prove => native::prove().map(|()| ExitCode::SUCCESS),
        Part::Demo(arguments) => super::demo::inside(arguments),
    }
}
