//! The daemon `eswitchd`: reads its configuration, starts the observers, the owner and the API, and
//! ends with SIGTERM or SIGINT.
//!
//! Flows and VF settings stay when it ends: a restart or an upgrade must not cut guests off.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use controller::{config::Config, daemon};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

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
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(daemon::DaemonError::Runtime)?;
    runtime.block_on(async {
        let cancel = CancellationToken::new();
        let mut terminate =
            signal(SignalKind::terminate()).map_err(daemon::DaemonError::Runtime)?;
        let stop = cancel.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            info!("stopping");
            stop.cancel();
        });
        daemon::run(config, cancel).await
    })
}
