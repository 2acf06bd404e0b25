//! The served specification and the daemon agree, as schemathesis finds out: examples, the edges of
//! each schema, random requests, and sequences along the document's links. All of its checks.
//!
//! In: the real daemon in a network namespace of its own, with a software adapter that has no
//! netdevs, behind TCP and a token. Needs the folder of schemathesis that `cargo lab test` installs.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use lab::{daemon::Daemon, net::Netns};

/// As in the daemon's token file by its SHA-256.
const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const TOKEN_LINE: &str =
    "schemathesis admin sha256:3eb1bd439947eb762998e566ccc2e099c791118b2f40579cc4f7da2b5061b7f9\n";

const ADDRESS: &str = "127.0.0.1:8080";

const SETTINGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/specification.toml");
const HOOKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/specification.py");

/// Random requests of each operation, and random sequences.
const EXAMPLES: &str = "5";
const LONG_EXAMPLES: &str = "200";

fn start(folder: &Path) -> Daemon {
    let tokens = folder.join("tokens");
    fs::write(&tokens, TOKEN_LINE).unwrap();
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600)).unwrap();
    let configuration = format!(
        "tcp = [\"{ADDRESS}\"]\ntokens = \"{}\"\n\n[[adapter]]\nsoftware = \"lab\"\n\
         representors = [\"tap*\"]\n",
        tokens.display()
    );
    Daemon::start(&folder.join("eswitchd"), &configuration).unwrap()
}

#[test]
fn schemathesis_finds_no_answer_that_the_specification_does_not_describe() {
    let libraries = std::env::var_os("LAB_SCHEMATHESIS").expect("as `cargo lab test` sets it");
    let _namespace = Netns::enter().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path());
    let document = daemon.get("/openapi.json").unwrap();
    let paths = document["paths"].as_object().unwrap().values();
    // All but the one that schemathesis reads the specification by.
    let operations = paths.map(|path| path.as_object().unwrap().len()).sum::<usize>() - 1;

    let long = std::env::var_os("ESWITCHD_LONG").is_some();
    let examples = if long { LONG_EXAMPLES } else { EXAMPLES };
    let output = Command::new("python3")
        .args(["-m", "schemathesis.cli", "--config-file", SETTINGS, "run"])
        .arg(format!("http://{ADDRESS}/openapi.json"))
        .args(["--header", &format!("Authorization: Bearer {TOKEN}")])
        .args(["--checks", "all", "--phases", "examples,coverage,fuzzing,stateful"])
        .args(["--mode", "all", "--max-examples", examples, "--seed", "1"])
        .arg("--continue-on-failure")
        .env("PYTHONPATH", libraries)
        .env("SCHEMATHESIS_HOOKS", HOOKS)
        .env("NO_COLOR", "1")
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(&format!("Tested: {operations}\n")), "{operations}: {said}");
    let summary = said.find("= SUMMARY =").unwrap_or_default();
    println!("{}", &said[summary..]);
    assert!(!daemon.log().contains("ERROR"), "{}", daemon.log());
}
