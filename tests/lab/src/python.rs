//! Programs from PyPI that tests run, pinned with the hashes of their files.
//!
//! In: a requirements file of the project, and `pip` with the machine's own configuration. Out: a
//! folder of the cache, for `PYTHONPATH`. Nothing is installed outside of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{Cache, Step};
use crate::{At, Error, Result};

/// schemathesis and all that it needs, as `pip-compile --generate-hashes` writes it.
const SCHEMATHESIS: &str = include_str!("recipe/schemathesis.txt");

/// The folder that has schemathesis, for `PYTHONPATH`.
///
/// # Errors
/// There is no Python 3.11 or later with pip, or the packages cannot be had.
pub fn schemathesis() -> Result<PathBuf> {
    installed("schemathesis", SCHEMATHESIS)
}

fn installed(name: &'static str, requirements: &str) -> Result<PathBuf> {
    // Compiled packages are for one version of Python.
    let step = Step::new(name, &[requirements, &python(&["--version"])?]);
    Cache::open()?.ready(&step, |_, place| {
        eprintln!("installs {name} from PyPI");
        install(requirements, place)
    })
}

fn install(requirements: &str, place: &Path) -> Result<()> {
    let list = place.join("requirements.txt");
    fs::write(&list, requirements).at("writing requirements")?;
    let (list, place) = (list.to_string_lossy(), place.to_string_lossy());
    python(&[
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--root-user-action=ignore",
        "--require-hashes",
        "--only-binary=:all:",
        "--requirement",
        &list,
        "--target",
        &place,
    ])
    .map(|_| ())
}

/// Runs Python; what it prints.
fn python(arguments: &[&str]) -> Result<String> {
    let output = Command::new("python3").args(arguments).output().map_err(|_| Error::Missing {
        what: "there is no python3".into(),
        remedy: "install Python 3.11 or later with pip (Debian: python3-pip)".into(),
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::Command {
        program: format!("python3 {}", arguments.join(" ")),
        status: output.status.to_string(),
        tail: String::from_utf8_lossy(&output.stderr).trim_end().to_owned(),
    })
}
