//! `cargo lab screens`: renews the screens of `eswitchctl` in the documentation.
//!
//! In: the demo's guests, in the lab VM, with `eswitchctl` on a real terminal. Out: what stood there
//! as text and as SVG, in `docs/screens`, or in another folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use lab::cargo::{self, Profile};
use lab::demo::Demo;
use lab::vm::{self, Job};
use lab::{At, Result, screens, setup};

use super::test::prepare;
use crate::exit_code;

const COMMITTED: &str = "../../docs/screens";

/// The demo takes two minutes.
const LIMIT: Duration = Duration::from_secs(15 * 60);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where to keep them, in the place of the committed ones.
    folder: Option<PathBuf>,
}

/// On the machine: has them made in the VM, and keeps them.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let lab = setup::ready(false)?;
    let mut job = Job::new(&lab)?;
    prepare(&mut job, &cargo::binaries(Profile::Lab)?)?;
    job.limit(LIMIT);
    let status = job.run(&lab, "exec lab inside screens /out", vm::to_stdout, vm::to_stderr)?;
    if status != 0 {
        return Ok(exit_code(status));
    }
    let committed = || Path::new(env!("CARGO_MANIFEST_DIR")).join(COMMITTED);
    let folder = arguments.folder.clone().unwrap_or_else(committed);
    fs::create_dir_all(&folder).at(format!("creating {}", folder.display()))?;
    for entry in fs::read_dir(job.out()).at("reading what the job left")?.flatten() {
        let place = folder.join(entry.file_name());
        fs::copy(entry.path(), &place).at(format!("writing {}", place.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(clap::Args)]
pub(crate) struct InsideArguments {
    /// Where to keep them.
    folder: PathBuf,
}

/// In the VM: runs the demo, and makes the screens from what it leaves.
pub(crate) fn inside(arguments: &InsideArguments) -> Result<ExitCode> {
    // Where the daemon's socket is by default.
    let folder = Path::new("/run/eswitchd");
    fs::create_dir_all(folder).at("creating the daemon's folder")?;
    let mut say = |line: &str| vm::to_stdout(format!("{line}\n").as_bytes());
    let (report, mut demo) = Demo::run(folder, &mut say)?;
    if !report.ok {
        return Ok(ExitCode::FAILURE);
    }
    screens::of_demo(&mut demo, &arguments.folder)?;
    Ok(ExitCode::SUCCESS)
}
