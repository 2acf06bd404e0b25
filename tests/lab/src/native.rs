//! Whether this machine's own kernel can run what the lab runs.
//!
//! In: the running kernel. Out: what it lacks; nothing means that the suites can run natively.
//! The proof is made in new network and mount namespaces, of which nothing stays.

use std::process::{Command, Stdio};

use crate::net::{self, Netdevsim, Netns};
use crate::{Error, Result};

/// Modules that the suites use.
const MODULES: &[&str] =
    &["netdevsim", "cls_flower", "act_mirred", "act_vlan", "sch_ingress", "veth", "tun", "dummy"];
/// Programs that the suites call.
const PROGRAMS: &[&str] = &["ip", "tc", "devlink", "ethtool", "tcpdump", "unshare", "modprobe"];

/// What this machine lacks for running the suites natively, each with its name. The last word has
/// `proof`: a command that runs [`prove`] as root.
pub fn lacks(proof: &mut Command) -> Vec<String> {
    let found = |program: &&&str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|folder| folder.join(program).is_file())
    };
    let mut lacks: Vec<String> =
        PROGRAMS.iter().filter(|program| !found(program)).map(|name| (*name).to_owned()).collect();
    if !nix::unistd::geteuid().is_root() {
        lacks.push("root".into());
    }
    let quietly = |command: &mut Command| {
        let silent = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        silent.status().is_ok_and(|status| status.success())
    };
    for module in MODULES {
        if !quietly(Command::new("modprobe").args(["--dry-run", module])) {
            lacks.push(format!("module {module}"));
        }
    }
    if lacks.is_empty() && !quietly(proof) {
        lacks.push("flower offload in netdevsim".into());
    }
    lacks
}

/// Makes a netdevsim in switchdev mode in new namespaces and gives it a flower rule, which must be
/// in hardware.
///
/// # Errors
/// The kernel refuses something, or does not offload the rule.
pub fn prove() -> Result<()> {
    net::modprobe("netdevsim")?;
    let _namespace = Netns::enter()?;
    let sim = Netdevsim::create(1)?;
    sim.set_vfs(1)?;
    sim.switchdev()?;
    let representor = sim.representor(0)?;
    net::command("ethtool", ["-K", &representor, "hw-tc-offload", "on"])?;
    net::tc(&format!("qdisc add dev {representor} clsact"))?;
    net::tc(&format!(
        "filter add dev {representor} ingress prio 1 flower skip_sw src_mac 02:00:00:00:00:01 \
         action drop"
    ))?;
    let filters = net::tc_json(&format!("filter show dev {representor} ingress"))?;
    let offloaded = filters
        .as_array()
        .is_some_and(|filters| filters.iter().any(|f| f["options"]["in_hw"] == true));
    if offloaded {
        return Ok(());
    }
    Err(Error::Format { what: "a flower rule in hardware".into(), text: filters.to_string() })
}
