//! `cargo lab setup`.

use std::process::ExitCode;
use std::time::Instant;

use lab::{Result, node, python, setup};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Builds everything anew, even what is cached.
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let start = Instant::now();
    let lab = setup::ready(arguments.force)?;
    python::schemathesis()?;
    node::grafana_schema()?;
    setup::chromium()?;
    eprintln!(
        "the lab is ready in {} ({:.1} s)",
        lab.cache.folder().display(),
        start.elapsed().as_secs_f64()
    );
    Ok(ExitCode::SUCCESS)
}
