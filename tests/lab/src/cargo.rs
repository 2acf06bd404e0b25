//! Builds what goes into the VM: the workspace's binaries and the suites' test executables.
//!
//! In: names of packages and binaries, and for what they are built. Out: paths of executables, as
//! cargo reports them.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{At, Error, Result};

/// Packages whose tests run in the lab.
pub const SUITES: &[&str] = &["eswitchd-netns-tests", "eswitchd-e2e-tests"];

/// The binaries that jobs in the VM use, each with its package.
pub const BINARIES: &[(&str, &str)] =
    &[("eswitchd", "eswitchd"), ("eswitchctl", "eswitchd-api"), ("lab", "eswitchd-lab")];

/// What the binaries are built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// To be tried: soon built.
    Lab,
    /// To be measured: as users build them.
    Release,
}

impl Profile {
    const fn name(self) -> &'static str {
        match self {
            Profile::Lab => "lab",
            Profile::Release => "release",
        }
    }
}

/// An executable that cargo built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    /// Name of the package's target: of the binary or of the test file.
    pub name: String,
    /// Package, as in [`SUITES`].
    pub package: String,
    /// Where it is.
    pub path: PathBuf,
}

/// The cargo that runs this, or the one in `PATH`.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Builds [`BINARIES`].
///
/// # Errors
/// cargo fails; it has said why on standard error.
pub fn binaries(profile: Profile) -> Result<Vec<Executable>> {
    let mut command = cargo();
    command.arg("build");
    for (binary, package) in BINARIES {
        command.args(["--package", package, "--bin", binary]);
    }
    executables(&mut command, profile)
}

/// Builds the test executables of [`SUITES`].
///
/// # Errors
/// cargo fails; it has said why on standard error.
pub fn suites() -> Result<Vec<Executable>> {
    let mut command = cargo();
    command.args(["test", "--no-run"]);
    for package in SUITES {
        command.args(["--package", package]);
    }
    executables(&mut command, Profile::Lab)
}

/// Builds one test executable of [`SUITES`].
///
/// # Errors
/// cargo fails, also where there is no such test; it has said why on standard error.
pub fn suite(package: &str, name: &str) -> Result<Executable> {
    let mut command = cargo();
    command.args(["test", "--no-run", "--package", package, "--test", name]);
    let built = executables(&mut command, Profile::Lab)?;
    built.into_iter().find(|suite| suite.name == name).ok_or_else(|| Error::Missing {
        what: format!("cargo built no test `{name}` of {package}"),
        remedy: "see what it says".into(),
    })
}

fn executables(command: &mut Command, profile: Profile) -> Result<Vec<Executable>> {
    command.args(["--profile", profile.name()]);
    command.arg("--message-format=json-render-diagnostics");
    let output =
        command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().at("starting cargo")?;
    if !output.status.success() {
        return Err(Error::Command {
            program: "cargo".into(),
            status: output.status.to_string(),
            tail: String::new(),
        });
    }
    let found = String::from_utf8_lossy(&output.stdout).lines().filter_map(executable).collect();
    Ok(found)
}

/// An artifact message with an executable; anything else is `None`.
/// Format: The Cargo Book, "External tools", JSON messages.
fn executable(line: &str) -> Option<Executable> {
    let message: Value = serde_json::from_str(line).ok()?;
    let path = message["executable"].as_str()?;
    // `path+file:///…/tests/e2e#eswitchd-e2e-tests@0.1.0`, or `…/api#0.1.0` where the folder has
    // the package's name.
    let id = message["package_id"].as_str()?;
    let (location, version) = id.rsplit_once('#')?;
    let package = match version.split_once('@') {
        Some((name, _)) => name,
        None => location.rsplit('/').next()?,
    };
    Some(Executable {
        name: message["target"]["name"].as_str()?.to_owned(),
        package: package.to_owned(),
        path: path.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_among_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","package_id":"path+file:///w/tests/e2e#eswitchd-e2e-tests@0.1.0","target":{"kind":["test"],"name":"guest"},"executable":"/t/guest-1"}"#;
        let expected = Executable {
            name: "guest".into(),
            package: "eswitchd-e2e-tests".into(),
            path: "/t/guest-1".into(),
        };
        assert_eq!(executable(line), Some(expected));
        let library = line.replace(r#""/t/guest-1""#, "null");
        assert_eq!(executable(&library), None);
        assert_eq!(executable(r#"{"reason":"build-finished","success":true}"#), None);
    }
}
