//! Packages from npm that tests use, pinned with the hashes of their files.
//!
//! In: a lock file of the project, and `npm` with the machine's own configuration. Out: a folder of
//! the cache that has `node_modules`. No script of a package is run.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::cache::{Cache, Step};
use crate::{At, Error, Result};

const MANIFEST: &str = include_str!("recipe/grafana/package.json");
/// Written by `npm install --package-lock-only --omit-lockfile-registry-resolved`.
const LOCK: &str = include_str!("recipe/grafana/package-lock.json");

/// The folder that has the types of Grafana's dashboards and the TypeScript compiler.
///
/// # Errors
/// There is no npm, or the packages cannot be had.
pub fn grafana_schema() -> Result<PathBuf> {
    let step = Step::new("grafana-schema", &[MANIFEST, LOCK]);
    Cache::open()?.ready(&step, |_, place| {
        eprintln!("installs Grafana's schema from npm");
        for (name, text) in [("package.json", MANIFEST), ("package-lock.json", LOCK)] {
            fs::write(place.join(name), text).at(format!("writing {name}"))?;
        }
        let mut npm = Command::new("npm");
        let arguments = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"];
        let output = npm.args(arguments).current_dir(place).output();
        let output = output.map_err(|_| Error::Missing {
            what: "there is no npm".into(),
            remedy: "install Node.js 18 or later with npm (Debian: npm)".into(),
        })?;
        if output.status.success() {
            return Ok(());
        }
        let said = [output.stdout, output.stderr].concat();
        Err(Error::Command {
            program: format!("npm {}", arguments.join(" ")),
            status: output.status.to_string(),
            tail: String::from_utf8_lossy(&said).trim_end().to_owned(),
        })
    })
}
