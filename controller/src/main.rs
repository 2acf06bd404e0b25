//! The daemon `eswitchd`: reads its configuration, starts the observers, the owner and the API, and
//! ends with SIGTERM or SIGINT. SIGHUP: it reads its configuration again, and starts anew with it.
//!
//! Flows and VF settings stay when it ends: a restart or an upgrade must not cut guests off.
//! `--teardown` takes the flows away.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use controller::{
    config::Config,
    daemon,
    teardown::{Teardown, teardown},
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

/// What fails within this time of a start with a new configuration is held against that.
const STARTED: Duration = Duration::from_secs(10);

/// Keeps an SR-IOV NIC's embedded switch in step with what virtual machines do to their virtual
/// functions.
#[derive(Debug, Parser)]
#[command(name = "eswitchd", version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, short, default_value = "/etc/eswitchd.toml")]
    config: PathBuf,
    /// Only check the configuration file, and say whether it can be used.
    #[arg(long)]
    check: bool,
    /// Take away every flow of eswitchd in this network namespace, and switch hw-tc-offload off
    /// where it was switched on, while no daemon runs. Nothing else is touched: qdiscs, VF settings and what was asked for over the API stay.
    #[arg(long, conflicts_with = "check")]
    teardown: bool,
    /// Log lines as JSON.
    #[arg(long)]
    log_json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("ESWITCHD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if arguments.log_json {
        log.json().init();
    } else {
        log.init();
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), daemon::DaemonError> {
    let config = Config::load(&arguments.config)?;
    if arguments.check {
        info!(path = %arguments.config.display(), "the configuration can be used");
        return Ok(());
    }
    if arguments.teardown {
        let done = teardown(&config)?;
        let Teardown { removed: flows, netdevs, foreign, offload, left } = done;
        info!(flows, netdevs, foreign, offload, "torn down");
        for left in &left {
            error!(left, "not taken away");
        }
        return match left.is_empty() {
            true => Ok(()),
            false => Err(daemon::DaemonError::Teardown(left.len())),
        };
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(daemon::DaemonError::Runtime)?;
    runtime.block_on(work(&arguments.config, config))
}

/// Works with one configuration after the other until it is told to stop. One that cannot be read
/// or worked with changes nothing.
async fn work(path: &Path, mut config: Config) -> Result<(), daemon::DaemonError> {
    let listen = |kind| signal(kind).map_err(daemon::DaemonError::Runtime);
    let mut stops = [listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?];
    let mut hangup = listen(SignalKind::hangup())?;
    let mut before = None;
    loop {
        let cancel = CancellationToken::new();
        let running = daemon::run(config.clone(), cancel.clone());
        tokio::pin!(running);
        let began = Instant::now();
        let next = tokio::select! {
            ended = &mut running => match (ended, before.take()) {
                (Err(error), Some(last)) if began.elapsed() < STARTED => {
                    error!(%error, "the new configuration does not work; going on with the last");
                    config = last;
                    continue;
                }
                (ended, _) => return ended,
            },
            () = stopped(&mut stops) => None,
            new = reread(&mut hangup, path, &config) => Some(new),
        };
        info!("stopping");
        cancel.cancel();
        running.await?;
        let Some(new) = next else { return Ok(()) };
        info!("starting with the new configuration");
        before = Some(std::mem::replace(&mut config, new));
    }
}

async fn stopped([terminate, interrupt]: &mut [Signal; 2]) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Returns when SIGHUP came and the file says something new that can be used.
async fn reread(hangup: &mut Signal, path: &Path, config: &Config) -> Config {
    loop {
        hangup.recv().await;
        match Config::load(path) {
            Ok(new) if new == *config => info!("the configuration is as it was"),
            Ok(new) => return new,
            Err(error) => error!(%error, "going on with the configuration in force"),
        }
    }
}
