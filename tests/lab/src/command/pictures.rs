//! `cargo lab pictures`: renews the pictures of dashboards and live page in the documentation.
//!
//! In: the suite with Prometheus, run in the lab VM. Out: PNGs in `docs/pictures`, or in another
//! folder, drawn by the browser on this machine.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use lab::browser::Browser;
use lab::cargo::{self, Profile};
use lab::vm::{self, Job};
use lab::{Result, pictures, setup};

use super::test::prepare;
use crate::exit_code;

const COMMITTED: &str = "../../docs/pictures";

/// The suite takes three minutes.
const LIMIT: Duration = Duration::from_secs(15 * 60);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where to draw them, in the place of the committed ones.
    folder: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let lab = setup::ready(false)?;
    let chromium = setup::chromium()?;
    let mut job = Job::new(&lab)?;
    prepare(&mut job, &cargo::binaries(Profile::Lab)?)?;
    let suite = cargo::suite("eswitchd-e2e-tests", "prometheus")?;
    // Not by its name, which is that of the program that it starts.
    job.add_executable(&suite.path, "suite")?;
    job.set("ESWITCHD_PICTURES", "/out");
    job.limit(LIMIT);
    let status = job.run(&lab, "exec suite every_query", vm::to_stdout, vm::to_stderr)?;
    if status != 0 {
        return Ok(exit_code(status));
    }
    let committed = || Path::new(env!("CARGO_MANIFEST_DIR")).join(COMMITTED);
    let folder = arguments.folder.clone().unwrap_or_else(committed);
    pictures::draw(&mut Browser::start_at(&chromium)?, &job.out(), &folder)?;
    Ok(ExitCode::SUCCESS)
}
