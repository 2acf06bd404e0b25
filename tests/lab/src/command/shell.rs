//! `cargo lab shell`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use lab::vm::{self, Job};
use lab::{At, Result, setup};

use super::test::prepare;
use crate::exit_code;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Leaves eswitchd, eswitchctl and lab out of the VM, instead of building them.
    #[arg(long)]
    no_build: bool,
    /// A folder of this machine that the VM sees as /share.
    #[arg(long)]
    share: Option<PathBuf>,
    /// Gives the VM an empty disk with ext4, whose serial number is `scratch`.
    #[arg(long)]
    disk: bool,
    /// Ends the VM after this many seconds.
    #[arg(long)]
    limit: Option<u64>,
    /// The command and its arguments; an interactive shell when there is none.
    #[arg(last = true)]
    command: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let lab = setup::ready(false)?;
    let mut job = Job::new(&lab)?;
    let binaries = if arguments.no_build {
        Vec::new()
    } else {
        lab::cargo::binaries(lab::cargo::Profile::Lab)?
    };
    prepare(&mut job, &binaries)?;
    if let Some(folder) = &arguments.share {
        let folder = folder.canonicalize().at(format!("sharing {}", folder.display()))?;
        job.share(folder);
    }
    if arguments.disk {
        job.scratch_disk()?;
    }
    if let Some(seconds) = arguments.limit {
        job.limit(Duration::from_secs(seconds));
    }
    let words: Vec<String> = arguments.command.iter().map(|word| vm::quote(word)).collect();
    let status = if !words.is_empty() {
        job.run(&lab, &words.join(" "), vm::to_stdout, vm::to_stderr)?
    } else if std::io::stdin().is_terminal() {
        eprintln!("lab VM: a shell; leave with exit or Ctrl-D");
        job.run_on_terminal(&lab, "exec bash -i")?
    } else {
        // Commands on standard input, as any shell takes them.
        let script = std::io::read_to_string(std::io::stdin()).at("reading commands")?;
        job.run(&lab, &script, vm::to_stdout, vm::to_stderr)?
    };
    Ok(exit_code(status))
}
