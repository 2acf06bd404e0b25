//! `cargo lab fuzz`: the fuzz targets of tests/fuzz, each for so many seconds.
//!
//! In: the targets, their committed corpus. Out: libFuzzer's progress, and a failure where an
//! input breaks a target, with the input's place. Built with the stable toolchain: coverage
//! counters of LLVM's own, no sanitizer (the workspace forbids unsafe code).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use lab::{At, Error, Result, cargo, vm};

/// What `cargo fuzz` passes to rustc for coverage, the sanitizer aside.
const RUSTFLAGS: &str = "--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module \
     -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
     -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares";

/// The longest input: beyond a netlink datagram of the kernel's or a QMP line there is no more to
/// find, only less.
const LONGEST: u32 = 16 << 10;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only targets whose name contains this.
    filter: Option<String>,
    /// How long each target runs.
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// Adds inputs that reach something new to the committed corpus.
    #[arg(long)]
    grow: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let mut targets: Vec<String> = fs::read_dir(folder.join("fuzz_targets"))
        .at("reading tests/fuzz/fuzz_targets")?
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .filter(|name| arguments.filter.as_ref().is_none_or(|filter| name.contains(filter)))
        .collect();
    targets.sort();
    if targets.is_empty() {
        vm::to_stderr(b"no fuzz target is called so\n");
        return Ok(ExitCode::FAILURE);
    }
    let built = build(&folder)?;
    let mut failed = Vec::new();
    for target in &targets {
        if !fuzz(&folder, &built, target, arguments)? {
            failed.push(target.as_str());
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    vm::to_stderr(format!("broken: {}\n", failed.join(", ")).as_bytes());
    Ok(ExitCode::FAILURE)
}

/// Builds all targets; the folder of their executables.
fn build(folder: &Path) -> Result<PathBuf> {
    let version = Command::new("rustc").arg("-vV").output().at("starting rustc")?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host =
        host.ok_or_else(|| Error::Format { what: "rustc -vV".into(), text: version.clone() })?;
    let target = folder.join("../../target/fuzz");
    // With a target named, build scripts and macros are not instrumented.
    let status = cargo::cargo()
        .args(["build", "--release", "--locked", "--target", host, "--manifest-path"])
        .arg(folder.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTFLAGS", RUSTFLAGS)
        .status()
        .at("starting cargo")?;
    if !status.success() {
        return Err(Error::Command {
            program: "cargo build".into(),
            status: status.to_string(),
            tail: String::new(),
        });
    }
    Ok(target.join(host).join("release"))
}

/// Runs one target; whether nothing broke it.
fn fuzz(folder: &Path, built: &Path, target: &str, arguments: &Arguments) -> Result<bool> {
    let committed = folder.join("corpus").join(target);
    let found = built.join("corpus").join(target);
    let broken = built.join("broken").join(target);
    for folder in [&committed, &found, &broken] {
        fs::create_dir_all(folder).at(format!("creating {}", folder.display()))?;
    }
    let mut command = Command::new(built.join(target));
    command
        .args([format!("-max_total_time={}", arguments.seconds), format!("-max_len={LONGEST}")])
        .arg("-print_final_stats=1")
        .arg(format!("-artifact_prefix={}/", broken.display()))
        .args([&found, &committed]);
    let whole = command.status().at(format!("starting {target}"))?.success();
    if !whole {
        let text = format!("{target}: the input that broke it is in {}\n", broken.display());
        vm::to_stderr(text.as_bytes());
    }
    if arguments.grow {
        let mut merge = Command::new(built.join(target));
        merge.args(["-merge=1"]).args([&committed, &found]);
        merge.status().at(format!("merging what {target} found"))?;
    }
    Ok(whole)
}
