//! eswitchctl: the API for people on a command line.
//!
//! In: arguments, documents, and a daemon to ask. Out: text on the writers that are handed over,
//! and an exit status. What the daemon says reaches a terminal without control characters.

mod apply;
mod describe;
mod doctor;
mod dry_run;
mod eswitch;
mod events;
mod explain;
mod get;
mod screen;
mod snapshot;
mod status;
mod table;
mod top;
mod trace;
mod yaml;

use std::{
    io::{self, Read, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{CommandFactory, Parser, Subcommand, ValueEnum, error::ErrorKind};

use crate::{
    DEFAULT_SOCKET,
    batch::{Batch, Wanted},
    client::{Client, ClientError, Server},
    credentials::{CredentialFiles, Credentials},
    error::{Problem, ResourceKind},
    resources::{EswitchMode, EswitchSpec, TornDown},
    server::{EswitchHow, FlowFilter, WAIT_MAX},
    types::Id,
};
use table::printable;

const EXAMPLES: &str = "\
Examples:
  eswitchctl status
  eswitchctl get ports -o wide
  eswitchctl get network blue -o json
  eswitchctl get flows --port web-1 -o wide
  eswitchctl get ports --label tier=web
  eswitchctl apply -f networks.json --wait
  echo '{\"kind\": \"network\", \"id\": \"blue\", \"spec\": {\"kind\": {\"vlan\": {\"vid\": 100}}}}' |
      eswitchctl apply -f -
  eswitchctl delete port web-1
  eswitchctl events -f
  eswitchctl describe port web-1
  eswitchctl explain port web-1
  eswitchctl top
  eswitchctl doctor
  eswitchctl trace --from port/web-1 --dst-mac 02:aa:bb:cc:00:02 --ip 192.0.2.1,192.0.2.2
  eswitchctl snapshot save host1.json
  eswitchctl snapshot restore host1.json
  eswitchctl completion bash > /etc/bash_completion.d/eswitchctl
  eswitchctl --server https://host1.example:9443 --ca ca.pem --token-file token status

Exit status:
  0  done
  1  the daemon refused: what it says tells what would be right
  2  wrong arguments, or a file that is not what it should be
  3  no daemon answers
  4  the daemon failed
  5  status: the daemon is not ready, or something is degraded; explain: a link is broken;
     doctor: something is wrong
  6  --wait: it is stored, and was not in the kernel in time";

/// A command line of eswitchctl.
#[derive(Debug, Parser)]
#[command(
    name = "eswitchctl",
    version,
    about = "Shows and changes what eswitchd does",
    after_help = EXAMPLES
)]
pub struct Arguments {
    /// Where the daemon listens: a Unix socket's path, <http://127.0.0.1:PORT> or
    /// <https://HOST:PORT>
    #[arg(
        long,
        help = "Where the daemon listens: a Unix socket's path, http://127.0.0.1:PORT or \
                https://HOST:PORT",
        global = true,
        env = "ESWITCHD_API",
        default_value = DEFAULT_SOCKET,
        value_name = "SOCKET"
    )]
    server: Server,
    /// File with a bearer token; over http:// one is needed
    #[arg(long, global = true, env = "ESWITCHD_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// File with the CA that the daemon's certificate is by; https:// needs it
    #[arg(long, global = true, env = "ESWITCHD_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// File with a certificate to show over https://
    #[arg(long, global = true, env = "ESWITCHD_CERT", value_name = "FILE")]
    cert: Option<PathBuf>,
    /// File with its key
    #[arg(long, global = true, env = "ESWITCHD_KEY", value_name = "FILE")]
    key: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show resources, all of a kind or one
    #[command(after_help = "Examples:
  eswitchctl get ports -o wide
  eswitchctl get network blue -o json
  eswitchctl get flows --port web-1 -o wide")]
    Get {
        /// What to show
        kind: Kind,
        /// Only this one
        id: Option<Id>,
        /// How to show it
        #[arg(short, long, default_value = "table")]
        output: Output,
        #[command(flatten)]
        filter: Filter,
    },
    /// Create or change networks, ports and guests
    #[command(
        after_help = "A document is {\"kind\": \"network\", \"id\": \"blue\", \"spec\": {…}} with \
                            kind network, port or guest, in JSON or YAML. A file holds any number of \
                            them. They are applied in one transaction: all of them, or nothing."
    )]
    Apply {
        /// A file of JSON or YAML documents, - for standard input
        #[arg(short, long)]
        file: PathBuf,
        /// Change nothing: say which flows, settings and conditions would change
        #[arg(long, conflicts_with = "wait")]
        dry_run: bool,
        /// Wait until everything is in the kernel, at most so many seconds
        #[arg(
            long,
            value_name = "SECONDS",
            num_args = 0..=1,
            require_equals = true,
            default_missing_value = "60"
        )]
        wait: Option<u64>,
    },
    /// Remove a network, port or guest, or all that a file names
    #[command(after_help = "Example:
  eswitchctl delete port web-1 --wait
  eswitchctl delete port web-1 --dry-run
  eswitchctl delete -f networks.json")]
    Delete {
        /// Its kind
        #[arg(required_unless_present = "file")]
        kind: Option<DeclaredKind>,
        /// Its id
        #[arg(required_unless_present = "file")]
        id: Option<Id>,
        /// Remove all that the documents of this file name, - for standard input
        #[arg(short, long, conflicts_with_all = ["kind", "id"])]
        file: Option<PathBuf>,
        /// Change nothing: say which flows, settings and conditions would change
        #[arg(long, conflicts_with = "wait")]
        dry_run: bool,
        /// Wait until the kernel knows it no more, at most 25 seconds
        #[arg(long)]
        wait: bool,
    },
    /// Show everything about one resource: spec, status, conditions, last events
    #[command(after_help = "Example:
  eswitchctl describe port web-1")]
    Describe {
        /// Its kind
        kind: Kind,
        /// Its id
        id: Id,
    },
    /// Write all that the daemon tells to a file, for those who look into a problem
    #[command(
        after_help = "It names guests, networks and addresses. Tokens, keys and what guests send \
                            are not in it: the daemon tells none of that."
    )]
    BugReport {
        /// The file
        file: PathBuf,
    },
    /// Show on one screen what there is, and what is degraded and why
    Status,
    /// Show what ports receive, send and lose at the moment
    #[command(
        after_help = "On a terminal a screen; keys: n, r, s, d order by name, received, sent, \
                            dropped; q quits. Elsewhere a table for each interval.\n\nExample:
  eswitchctl top
  eswitchctl top --interval 10 --count 1"
    )]
    Top {
        /// Seconds between two readings
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
        interval: u64,
        /// End after so many intervals
        #[arg(long)]
        count: Option<u32>,
    },
    /// Check this host and the daemon, and say what to fix
    #[command(after_help = "Kernel, modules, the daemon's rights, NICs, IOMMU, other agents that \
                            program switches; readiness, adapters, filters of others, QMP sockets. \
                            Nothing is changed. Ask as root: else not everything can be seen.")]
    Doctor {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Change an adapter's mode and number of VFs, or say what that would mean
    #[command(after_help = "Only where the configuration has manage_eswitch. Examples:
  eswitchctl eswitch pci-0000:03:00.0 --mode switchdev --vfs 8 --dry-run
  eswitchctl eswitch pci-0000:03:00.0 --vfs 16")]
    Eswitch {
        /// The adapter's id
        adapter: Id,
        /// The mode
        #[arg(long, required_unless_present = "vfs")]
        mode: Option<Mode>,
        /// How many VFs there are to be
        #[arg(long, value_name = "COUNT")]
        vfs: Option<u16>,
        /// Change nothing: say what it would mean
        #[arg(long)]
        dry_run: bool,
        /// Even while VFs are in use: every VF is removed and made anew under whoever uses it
        #[arg(long)]
        force: bool,
    },
    /// Show how far a port has come: asked, seen, planned, installed, in hardware, hit
    #[command(after_help = "The first link that is broken is marked, with its reason.\n\nExample:
  eswitchctl explain port web-1")]
    Explain {
        /// What to explain
        kind: Explained,
        /// Its id
        id: Id,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what a frame meets in the installed rules: nothing is sent
    #[command(after_help = "Examples:
  eswitchctl trace --from port/web-1 --dst-mac ff:ff:ff:ff:ff:ff --arp 192.0.2.1,192.0.2.2
  eswitchctl trace --from port/web-1 --dst-mac 02:aa:bb:cc:00:02 --vlan 20 \\
      --ip 192.0.2.1,192.0.2.2 --udp 1234,53
  eswitchctl trace --from uplink --src-mac 02:00:5e:00:00:01 --dst-mac 02:aa:bb:cc:00:02 --vlan 100")]
    Trace {
        #[command(flatten)]
        frame: trace::FrameArguments,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what has happened, or with -f what happens
    #[command(after_help = "Examples:
  eswitchctl events
  eswitchctl events -f
  eswitchctl events -f --json | jq 'select(.kind == \"drift\")'")]
    Events {
        /// Go on until interrupted, from now on
        #[arg(short, long)]
        follow: bool,
        /// Begin behind the event with this id; 0 is the oldest that is kept
        #[arg(long, value_name = "ID")]
        since: Option<Id>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Save everything that clients have declared to a file, or restore it
    Snapshot {
        #[command(subcommand)]
        direction: Direction,
    },
    /// Take away every flow of the daemon, and nothing else
    #[command(
        after_help = "What was declared stays. The daemon programs nothing until `eswitchctl \
                            resume`, or until it is started anew."
    )]
    Teardown,
    /// Have the daemon program the switch again after a teardown
    Resume,
    /// Print what makes a shell complete command lines of eswitchctl
    #[command(after_help = "Example:
  eswitchctl completion bash > /etc/bash_completion.d/eswitchctl")]
    Completion {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual pages, eswitchctl(1) and those of its commands, as roff
    #[command(after_help = "Example:
  eswitchctl man > eswitchctl.1
  eswitchctl man get | man -l -")]
    Man {
        /// Of this command only
        command: Option<String>,
    },
}

/// Where a snapshot goes.
#[derive(Debug, Subcommand)]
enum Direction {
    /// Write networks, ports, guests and who holds which address to a file
    Save {
        /// The file, - for standard output
        file: PathBuf,
    },
    /// Put what a file says in the place of everything that is declared: all of it, or nothing
    Restore {
        /// The file, - for standard input
        file: PathBuf,
    },
}

/// Kinds of resources that can be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// L2 segments
    #[value(alias = "network")]
    Networks,
    /// Permissions of VFs to take part in networks
    #[value(alias = "port")]
    Ports,
    /// VMs
    #[value(alias = "guest")]
    Guests,
    /// Eswitches of the host
    #[value(alias = "adapter")]
    Adapters,
    /// tc-flower rules
    #[value(alias = "flow")]
    Flows,
}

/// Kinds of resources that clients declare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum DeclaredKind {
    /// An L2 segment
    #[value(alias = "networks")]
    Network,
    /// A permission of a VF to take part in networks
    #[value(alias = "ports")]
    Port,
    /// A VM
    #[value(alias = "guests")]
    Guest,
}

impl From<DeclaredKind> for ResourceKind {
    fn from(kind: DeclaredKind) -> Self {
        match kind {
            DeclaredKind::Network => Self::Network,
            DeclaredKind::Port => Self::Port,
            DeclaredKind::Guest => Self::Guest,
        }
    }
}

/// Modes that an eswitch can be set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Per-VF settings on the PF
    Legacy,
    /// A representor for each VF, and flows
    Switchdev,
}

impl From<Mode> for EswitchMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Legacy => Self::Legacy,
            Mode::Switchdev => Self::Switchdev,
        }
    }
}

/// Kinds of resources that can be explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Explained {
    /// A permission of a VF to take part in networks
    #[value(alias = "ports")]
    Port,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// One line each, what matters most
    Table,
    /// One line each, more of it
    Wide,
    /// Everything
    Json,
    /// Everything, for people
    Yaml,
}

#[derive(Debug, clap::Args)]
struct Filter {
    /// Flows: only on this adapter
    #[arg(long, value_name = "ID")]
    adapter: Option<Id>,
    /// Flows: only because of this port
    #[arg(long, value_name = "ID")]
    port: Option<Id>,
    /// Flows: only because of this network
    #[arg(long, value_name = "ID")]
    network: Option<Id>,
    /// Networks, ports, guests: only with this label; may be repeated
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    label: Vec<String>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The daemon refused.
    Refused = 1,
    /// Wrong arguments or documents.
    Usage = 2,
    /// No daemon answers.
    Unreachable = 3,
    /// The daemon failed.
    Failed = 4,
    /// `status`: something is degraded; `explain`: a link is broken; `doctor`: something is wrong.
    Degraded = 5,
    /// `--wait`: it is stored, and was not in the kernel in time.
    NotProgrammed = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Why a command came to no end.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{0}")]
    Document(String),
    #[error("cannot read {}: {source}", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}", .path.display())]
    Save { path: PathBuf, source: io::Error },
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
}

impl CommandError {
    fn exit(&self) -> Exit {
        match self {
            Self::Client(error) => exit_of(error),
            Self::Document(_) | Self::File { .. } => Exit::Usage,
            // Whoever read our output has seen enough: `eswitchctl get flows | head`.
            Self::Write(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
            Self::Write(_) | Self::Save { .. } => Exit::Failed,
        }
    }
}

fn exit_of(error: &ClientError) -> Exit {
    match error {
        ClientError::Unreachable { .. } | ClientError::Broken(_) | ClientError::Timeout { .. } => {
            Exit::Unreachable
        }
        ClientError::Credentials(_) => Exit::Usage,
        ClientError::Problem(problem) if is_not_programmed(problem) => Exit::NotProgrammed,
        ClientError::Problem(problem) if problem.status < 500 => Exit::Refused,
        ClientError::Problem(_) | ClientError::Strange { .. } => Exit::Failed,
    }
}

fn is_not_programmed(problem: &Problem) -> bool {
    problem.kind == "/problems/not-programmed"
}

/// Carries out a command line: results go to `out`, what went wrong to `err`.
pub async fn run(
    arguments: Arguments,
    input: &mut dyn Read,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Exit {
    let Arguments { server, token_file: token, ca, cert: certificate, key, command } = arguments;
    let credentials = match Credentials::read(&CredentialFiles { token, ca, certificate, key }) {
        Ok(credentials) => credentials,
        Err(error) => {
            // As below.
            let _ = writeln!(err, "eswitchctl: {}", printable(&chain(&error)));
            return Exit::Usage;
        }
    };
    let client = Client::with_credentials(server, credentials);
    let done = match command {
        Command::Get { kind, id, output, mut filter } => {
            let client = client.labelled(std::mem::take(&mut filter.label));
            get::get(&client, kind, id.as_ref(), &filter.into(), output, out)
                .await
                .map(|()| Exit::Done)
        }
        Command::Apply { file, dry_run, wait } => {
            let wait = wait.map(Duration::from_secs);
            let how = apply::How { delete: false, dry_run, wait };
            apply::apply(&client, &file, how, input, out, err).await
        }
        Command::Delete { kind, id, file, dry_run, wait } => {
            let client = if wait { client.waiting(WAIT_MAX) } else { client };
            match (kind, id, file) {
                (Some(kind), Some(id), _) if dry_run => {
                    let deletion = apply::batch(vec![deletion(kind, id)]);
                    show_dry_run(&client, &deletion, out).await
                }
                (Some(kind), Some(id), _) => delete(&client, kind, &id, out).await,
                (_, _, file) => {
                    let how = apply::How { delete: true, dry_run, wait: None };
                    let file = file.unwrap_or_else(|| "-".into());
                    apply::apply(&client, &file, how, input, out, err).await
                }
            }
        }
        Command::Explain { kind: Explained::Port, id, json } => {
            explain::explain(&client, &id, json, out).await
        }
        Command::Trace { frame, json } => trace::trace(&client, frame, json, out).await,
        Command::Describe { kind, id } => describe::describe(&client, kind, &id, out).await,
        Command::BugReport { file } => describe::bug_report(&client, &file, out).await,
        Command::Status => status::status(&client, out).await,
        Command::Top { interval, count } => {
            let how = top::How { interval: Duration::from_secs(interval), count };
            top::top(&client, how, out).await
        }
        Command::Doctor { json } => doctor::doctor(&client, json, out).await,
        Command::Eswitch { adapter, mode, vfs, dry_run, force } => {
            let spec = EswitchSpec { mode: mode.map(EswitchMode::from), num_vfs: vfs };
            eswitch::eswitch(&client, &adapter, spec, EswitchHow { dry_run, force }, out).await
        }
        Command::Events { follow, since, json } => {
            let since = since.map(|id| id.to_string());
            events::events(&client, events::Wish { since, follow, json }, out, err).await
        }
        Command::Snapshot { direction: Direction::Save { file } } => {
            snapshot::save(&client, &file, out).await
        }
        Command::Snapshot { direction: Direction::Restore { file } } => {
            snapshot::restore(&client, &file, input, out).await
        }
        Command::Teardown => tear_down(&client, out, err).await,
        Command::Resume => client.resume().await.map(|()| Exit::Done).map_err(Into::into),
        Command::Completion { shell } => completion(shell, out),
        Command::Man { command } => man(command.as_deref(), out),
    };
    done.unwrap_or_else(|error| {
        let exit = error.exit();
        // Where standard error cannot be written to, there is nobody left to tell.
        let _ = match (&error, exit) {
            (_, Exit::Done) => Ok(()),
            (CommandError::Client(error), _) => complain(err, "", error),
            (error, _) => writeln!(err, "eswitchctl: {}", printable(&error.to_string())),
        };
        exit
    })
}

impl Arguments {
    /// Reads a command line; an error is clap's, with its usage and exit status 2.
    pub fn read<I, T>(arguments: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = T>,
        T: Into<std::ffi::OsString> + Clone,
    {
        let read = Self::try_parse_from(arguments)?;
        if let Command::Get { kind, id, filter, .. } = &read.command {
            let wrong = |text| Err(Self::command().error(ErrorKind::ArgumentConflict, text));
            match kind {
                _ if !filter.label.is_empty()
                    && (id.is_some() || matches!(kind, Kind::Flows | Kind::Adapters)) =>
                {
                    return wrong("--label is for lists of networks, ports and guests");
                }
                Kind::Flows if id.is_some() => {
                    return wrong("flows have no id: use --adapter, --port or --network");
                }
                Kind::Flows => {}
                _ if !filter.is_empty() => {
                    return wrong("--adapter, --port and --network are for flows only");
                }
                _ => {}
            }
        }
        Ok(read)
    }
}

impl Filter {
    fn is_empty(&self) -> bool {
        self.adapter.is_none() && self.port.is_none() && self.network.is_none()
    }
}

impl From<Filter> for FlowFilter {
    fn from(filter: Filter) -> Self {
        Self { adapter: filter.adapter, port: filter.port, network: filter.network }
    }
}

fn deletion(kind: DeclaredKind, id: Id) -> Wanted {
    match kind {
        DeclaredKind::Network => Wanted::Network(id, None),
        DeclaredKind::Port => Wanted::Port(id, None),
        DeclaredKind::Guest => Wanted::Guest(id, None),
    }
}

async fn show_dry_run(
    client: &Client,
    batch: &Batch,
    out: &mut dyn Write,
) -> Result<Exit, CommandError> {
    dry_run::write(out, &client.dry_run(batch).await?)?;
    Ok(Exit::Done)
}

async fn delete(
    client: &Client,
    kind: DeclaredKind,
    id: &Id,
    out: &mut dyn Write,
) -> Result<Exit, CommandError> {
    match kind {
        DeclaredKind::Network => client.delete_network(id).await?,
        DeclaredKind::Port => client.delete_port(id).await?,
        DeclaredKind::Guest => client.delete_guest(id).await?,
    }
    writeln!(out, "{}/{id} deleted", ResourceKind::from(kind).plural())?;
    Ok(Exit::Done)
}

/// What makes a shell complete command lines.
fn completion(shell: clap_complete::Shell, out: &mut dyn Write) -> Result<Exit, CommandError> {
    let mut script = Vec::new();
    // It panics where it cannot write, as to a pipe that is closed.
    clap_complete::generate(shell, &mut Arguments::command(), "eswitchctl", &mut script);
    out.write_all(&script)?;
    Ok(Exit::Done)
}

/// The manual page of eswitchctl, or of one of its commands.
fn man(of: Option<&str>, out: &mut dyn Write) -> Result<Exit, CommandError> {
    let mut all = Arguments::command();
    all.build();
    let page = match of {
        None => &all,
        Some(name) => all.find_subcommand(name).ok_or_else(|| {
            CommandError::Document(format!("there is no command `{}`", printable(name)))
        })?,
    };
    clap_mangen::Man::new(page.clone()).render(&mut &mut *out)?;
    Ok(Exit::Done)
}

async fn tear_down(
    client: &Client,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<Exit, CommandError> {
    let TornDown { removed, netdevs, foreign, left, .. } = client.tear_down().await?;
    writeln!(out, "{removed} flows taken away from {netdevs} netdevs, {foreign} of others left")?;
    for left in &left {
        writeln!(err, "eswitchctl: not taken away: {}", printable(left))?;
    }
    Ok(if left.is_empty() { Exit::Done } else { Exit::Failed })
}

/// Says what is wrong with `what` and, where the daemon knows, what would be right.
fn complain(err: &mut dyn Write, what: &str, error: &ClientError) -> io::Result<()> {
    let what = if what.is_empty() { String::new() } else { format!("{what}: ") };
    let ClientError::Problem(problem) = error else {
        return writeln!(err, "eswitchctl: {what}{}", printable(&chain(error)));
    };
    let Problem { detail, field, remedy, blockers, reasons, .. } = &**problem;
    let field = field.as_ref().map(|field| format!("{field}: ")).unwrap_or_default();
    writeln!(err, "eswitchctl: {what}{}{}", printable(&field), printable(detail))?;
    if !blockers.is_empty() {
        writeln!(err, "  in the way: {}", printable(&blockers.join(", ")))?;
    }
    for reason in reasons {
        writeln!(err, "  {}", printable(reason))?;
    }
    match remedy {
        Some(remedy) => writeln!(err, "  remedy: {}", printable(remedy)),
        None => Ok(()),
    }
}

/// An error and what it comes from.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
