//! The daemon put together: store, kernel connections, observers, owner, API.
//!
//! In: a configuration. Out: a daemon that works until its token is cancelled. Everything that is
//! opened here is opened in the network namespace of the calling thread.

use std::{
    future::Future,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use api::{
    events::{Feed, News, NewsKind},
    server::{
        self, Access, Answered, Audit, Listeners, Served, TlsFiles, TlsListenSpec, TokenFile,
        TokenFileError, UnixListenSpec,
    },
};
use tc_flows::{NetlinkKernel, Owner as FlowOwner};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    apply,
    config::{Config, ConfigError},
    eswitch::{EswitchError, EswitchHandle},
    metrics::Metrics,
    observe::{
        self,
        guest::{GuestWatch, GuestWatchError},
        host::HostWatch,
    },
    owner::{DaemonHandle, EswitchPolicy, Inbox, Outlets, Owner, Policies},
    store::{RedbStore, Store, StoreError},
};

/// How this daemon's flows are known: the first bytes of their cookies.
pub const FLOW_OWNER: FlowOwner = FlowOwner(*b"eswd");

/// The file in the state folder that carries the counts of ports to the next daemon.
const COUNTS: &str = "counts.json";

/// The folder in the state folder that notes which netdevs' TC offload was switched on.
pub(crate) const SWITCHED_ON: &str = "hw-tc-offload";

/// Updates of guests and of the host that may wait for the owner. An observer whose queue is full
/// waits, and its next update is of how things are then.
const QUEUE: usize = 256;

/// How long the store may still be open elsewhere: in an eswitchd that is on its way out, or in this
/// one before it started anew.
const STORE_IN_USE: Duration = Duration::from_secs(5);

/// Why the daemon cannot work.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state folder cannot be made.
    #[error("state_dir {path}: {source}; make the folder, or name another")]
    StateDir {
        /// The folder.
        path: std::path::PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kernel cannot be talked to.
    #[error(transparent)]
    Eswitch(#[from] EswitchError),
    /// The kernel cannot be talked to about flows.
    #[error("flows: {0}")]
    Flows(#[from] tc_flows::Error),
    /// Guests cannot be watched.
    #[error(transparent)]
    Guests(#[from] GuestWatchError),
    /// The API cannot be served.
    #[error(transparent)]
    Api(#[from] server::ServeError),
    /// A user or group of the configuration is there no longer.
    #[error("{0}")]
    Access(String),
    /// The API's tokens cannot be used.
    #[error(transparent)]
    Tokens(#[from] TokenFileError),
    /// A metric cannot be registered.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// Flows could not be taken away.
    #[error("{0} flows or netdevs are left, see above; try again")]
    Teardown(usize),
    /// The system refuses threads or signals.
    #[error("runtime: {0}")]
    Runtime(#[source] std::io::Error),
}

/// Opens the store. One that was stopped a moment ago may not have let go of it yet.
async fn store(path: &Path) -> Result<RedbStore, StoreError> {
    let began = Instant::now();
    loop {
        match RedbStore::open(path) {
            Err(error) if error.is_in_use() && began.elapsed() < STORE_IN_USE => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            result => return result,
        }
    }
}

/// Works until `cancel`, or until the API cannot be served.
///
/// # Errors
/// What kept it from starting, with a remedy.
pub async fn run(config: Config, cancel: CancellationToken) -> Result<(), DaemonError> {
    allow_many_descriptors();
    std::fs::create_dir_all(&config.state_dir)
        .map_err(|source| DaemonError::StateDir { path: config.state_dir.clone(), source })?;
    let store = store(&config.state_dir.join("state.redb")).await?;
    let remembered = store.load()?;
    let metrics = Arc::new(Metrics::new()?);
    let adapters = config.adapters();
    let policies = adapters.iter().map(|(id, a)| (id.clone(), a.uplink_use)).collect();
    let eswitches = adapters.iter().filter_map(|(id, a)| {
        let device = a.handle.as_ref()?.parse().ok()?;
        let (manage, max_vfs, hardware_flows) = (a.manage_eswitch, a.max_vfs, a.hardware_flows);
        Some((id.clone(), EswitchPolicy { device, manage, max_vfs, hardware_flows }))
    });
    let eswitches = eswitches.collect();

    let (flows_done, flows) = mpsc::unbounded_channel();
    let (host_sink, host) = mpsc::channel(QUEUE);
    let (guest_sink, guests) = mpsc::channel(QUEUE);
    let (calls, called) = mpsc::channel(QUEUE);
    let kernel = NetlinkKernel::open(FLOW_OWNER)?;
    let (flow_sink, flow_news) = mpsc::channel(QUEUE);
    observe::flows::start(FLOW_OWNER, vec![kernel.port()], flow_sink)?;
    let feed = Arc::new(Feed::default());
    let outlets = Outlets {
        feed: Arc::clone(&feed),
        counts: config.state_dir.join(COUNTS),
        flows: apply::flows::start(kernel, flows_done, adapters.len())
            .map_err(DaemonError::Runtime)?,
        eswitch: EswitchHandle::open()?.noting_in(config.state_dir.join(SWITCHED_ON)),
        host: HostWatch::start(adapters, host_sink, cancel.clone()).await?,
        guests: GuestWatch::start(
            config.guests.qmp_dir.clone(),
            &remembered.guests,
            guest_sink,
            cancel.clone(),
        )?,
    };
    let certificate = config.api.tls.as_ref().map(|tls| tls.certificate.clone());
    let policies = Policies { adapters: policies, eswitches };
    let access = Arc::new(access(&config, Arc::clone(&feed), Arc::clone(&metrics))?);
    let owner = Owner::new(remembered, Box::new(store), policies, outlets, Arc::clone(&metrics));
    let inbox = Inbox { host, guests, flows, flow_news };
    let handle = DaemonHandle::new(calls, Arc::clone(&metrics), Arc::clone(&feed), certificate);

    let working = owner.run(inbox, called, cancel.clone());
    let stopping = cancel.clone().cancelled_owned();
    let shutdown = async move {
        stopping.await;
        // Or those who listen would hold up the end.
        feed.close();
    };
    let serving = serve(&config, access, handle, shutdown);
    info!(version = env!("CARGO_PKG_VERSION"), "started");
    let (served, ()) = tokio::join!(
        async {
            let served = serving.await;
            // Without an API nobody could tell that flows no longer follow.
            cancel.cancel();
            served
        },
        working
    );
    Ok(served?)
}

/// Takes all the descriptors that the system lets the daemon have: each guest needs two, and what a
/// service is given at first (1,024) serves 500 of them.
fn allow_many_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit on open files cannot be raised; set LimitNOFILE");
    }
}

/// Who may do what over the API, and where a record of it goes.
fn access(config: &Config, feed: Arc<Feed>, metrics: Arc<Metrics>) -> Result<Access, DaemonError> {
    let wrong = |message: String| DaemonError::Access(message);
    let tokens = config.api.tokens.clone().map(TokenFile::open).transpose()?;
    let audit = move |audit: &Audit| {
        let Audit { who, role, what, status, outcome, revision } = audit;
        info!(target: "audit", who, %role, what, status, outcome, revision, "change");
        let outcome = outcome.as_ref().map(|outcome| format!(" ({outcome})"));
        let message = format!("{who}, {role}: {what}: {status}{}", outcome.unwrap_or_default());
        let resource = what.split_once("/v1/").map_or(what.as_str(), |(_, path)| path);
        let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let (resource, reason) = (resource.to_owned(), "Asked".to_owned());
        let kind = NewsKind::Audit;
        feed.tell(now, News { kind, resource, reason, message, revision: *revision });
    };
    let seen = move |answered: Answered<'_>| {
        let Answered { method, route, status } = answered;
        // A method that nobody knows could be any text.
        let known = ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"];
        let method = known.iter().find(|known| **known == method.as_str()).unwrap_or(&"other");
        metrics.answered(method, route.unwrap_or("none"), status);
    };
    Ok(Access {
        peers: config.api.peers().map_err(wrong)?,
        clients: config.api.clients().map_err(wrong)?,
        tokens,
        audit: Some(Arc::new(audit)),
        seen: Some(Arc::new(seen)),
    })
}

async fn serve(
    config: &Config,
    access: Arc<Access>,
    handle: DaemonHandle,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), server::ServeError> {
    let api = &config.api;
    // A group that has gone since the configuration was checked gets nothing.
    let (mode, group) = (api.unix_mode, api.unix_gid().unwrap_or_default());
    let unix = api.unix.clone().map(|path| UnixListenSpec { path, mode, group });
    let tls = api.tls.as_ref().map(|tls| TlsListenSpec {
        addresses: tls.listen.clone(),
        files: TlsFiles {
            certificate: tls.certificate.clone(),
            key: tls.key.clone(),
            client_ca: tls.client_ca.clone(),
        },
        tokens: api.tokens.is_some(),
    });
    let listeners = Listeners { unix, tcp: api.tcp.clone(), tls, probes: api.metrics.clone() };
    let handle = Arc::new(handle);
    let probes = server::probe_router(Arc::clone(&handle));
    let served = Served { api: server::router(handle), access, probes };
    server::serve(listeners, served, shutdown).await
}
