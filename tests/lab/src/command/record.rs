//! `cargo lab record`: renews the golden inputs of the observer of guests from a real QEMU.
//!
//! In: a guest of the lab, run beside it. Out: `life.jsonl` among the controller's test data, or
//! another file. A test reads it: `cargo test -p eswitchd --lib recorded`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use lab::{At, Result, recording, setup, vm};

/// Where the tests look for it.
const GOLDEN: &str = "../../controller/src/observe/guest/testdata/life.jsonl";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where to write it, in the place of the committed one.
    file: Option<PathBuf>,
}

/// Has the recording made by this program, with the lab's guests in its environment.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let lab = setup::ready(false)?;
    let golden = || Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN);
    let file = arguments.file.clone().unwrap_or_else(golden);
    let program = std::env::current_exe().at("finding this program")?;
    let status = Command::new(program)
        .args(["inside", "record"])
        .arg(file)
        .env("LAB_GUEST_DIR", &lab.guest)
        .env("LAB_QEMU", &lab.qemu)
        .status()
        .at("starting this program")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(clap::Args)]
pub(crate) struct InsideArguments {
    file: PathBuf,
}

/// With the lab's guests in the environment: makes the recording.
pub(crate) fn inside(arguments: &InsideArguments) -> Result<ExitCode> {
    recording::record(&arguments.file, &mut |moment| {
        vm::to_stderr(format!("{moment}\n").as_bytes());
    })?;
    Ok(ExitCode::SUCCESS)
}
