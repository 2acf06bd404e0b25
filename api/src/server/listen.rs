//! Listeners and their connections: a Unix socket, TCP on loopback, TLS, and one for probes.
//!
//! In: where to listen, and the routes. Out: answered requests, until the daemon shuts down. A
//! connection that stands still, slow reader or slow writer, is given up; their number is bounded
//! for each listener, so that one listener's clients cannot shut out another's.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, header::HOST},
    response::IntoResponse,
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixSocket, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{Instant, Sleep},
};
use tokio_rustls::server::TlsStream;
use tower::ServiceExt;

use super::{
    access::{Access, Peer},
    tls::{Tls, TlsError, TlsFiles},
};
use crate::{error::ApiError, validate::SOCKET_PATH_LEN_MAX};

/// Where to listen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listeners {
    /// The Unix socket.
    pub unix: Option<UnixListenSpec>,
    /// TCP, only on loopback addresses. Port 0 takes a free one.
    pub tcp: Vec<SocketAddr>,
    /// TLS, on any address.
    pub tls: Option<TlsListenSpec>,
    /// TCP on any address for metrics, liveness and readiness: whoever reaches it may read them.
    pub probes: Vec<SocketAddr>,
}

/// Where to listen for TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsListenSpec {
    /// The addresses. Port 0 takes a free one.
    pub addresses: Vec<SocketAddr>,
    /// Certificates and key.
    pub files: TlsFiles,
    /// Whether clients may come without a certificate, with a token.
    pub tokens: bool,
}

/// A Unix socket to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixListenSpec {
    /// Its path. The folder must exist.
    pub path: PathBuf,
    /// Its permissions: whoever may write to it may connect. `0o660`, for example.
    pub mode: u32,
    /// The group that it belongs to; the daemon's own where absent.
    pub group: Option<u32>,
}

/// Why the daemon does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There is nothing to listen on.
    #[error("no address to listen on: configure a Unix socket or a loopback address")]
    Nothing,
    /// The path is too long for a socket.
    #[error(
        "{path} is longer than {SOCKET_PATH_LEN_MAX} bytes: no Unix socket can have such a path"
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// The folder of the socket is missing.
    #[error("{folder} is no folder: create it (in systemd: RuntimeDirectory=)")]
    NoFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// Something else is at the socket's path.
    #[error("{path} is there and is no socket: move it away, or listen somewhere else")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Another daemon answers on the socket.
    #[error("another daemon listens on {path}: stop it, or listen somewhere else")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The TLS files cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address is open to other hosts.
    #[error(
        "{address} is no loopback address, and what goes over it is not encrypted; listen on \
         127.0.0.1 or [::1], or use TLS"
    )]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// The kernel refused.
    #[error("cannot listen on {place}: {source}")]
    Listen {
        /// Path or address.
        place: String,
        /// The kernel's words.
        source: io::Error,
    },
}

/// How much connections may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// How many there may be at a time on each listener; others wait.
    pub connections: usize,
    /// How long a request's head may take to arrive, and a connection may be idle between two.
    pub header_time: Duration,
    /// How long a client may read nothing of an answer that waits for it.
    pub stall_time: Duration,
    /// How long requests that are under way may go on after the end of the daemon was asked for.
    pub grace_time: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections: 2048,
            header_time: Duration::from_secs(10),
            stall_time: Duration::from_secs(20),
            grace_time: Duration::from_secs(5),
        }
    }
}

/// The largest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// What answers, and whom.
#[derive(Debug, Clone)]
pub struct Served {
    /// The whole API, to those who may.
    pub api: Router,
    /// Who may.
    pub access: Arc<Access>,
    /// What the listeners for probes answer, to everybody.
    pub probes: Router,
}

/// Listens, and answers until `shutdown`; then at most [`ConnectionLimits::grace_time`] longer.
pub async fn serve(
    listeners: Listeners,
    served: Served,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    Bound::bind(&listeners).await?.serve(served, ConnectionLimits::default(), shutdown).await;
    Ok(())
}

/// Listeners that listen, and do not answer yet.
#[derive(Debug)]
pub struct Bound {
    unix: Option<(UnixListener, OwnedPath)>,
    tcp: Vec<TcpListener>,
    tls: Vec<TlsListener>,
    probes: Vec<TcpListener>,
}

impl Bound {
    /// Listens on all addresses, or on none of them.
    pub async fn bind(listeners: &Listeners) -> Result<Self, ServeError> {
        let Listeners { unix, tcp, tls, probes } = listeners;
        if unix.is_none() && tcp.is_empty() && tls.is_none() {
            return Err(ServeError::Nothing);
        }
        if let Some(address) = tcp.iter().find(|tcp| !tcp.ip().to_canonical().is_loopback()) {
            return Err(ServeError::NotLoopback { address: *address });
        }
        let tcp = bind_tcp(tcp).await?;
        let probes = bind_tcp(probes).await?;
        let tls = match tls {
            Some(TlsListenSpec { addresses, files, tokens }) => {
                let tls = Arc::new(Tls::open(files.clone(), *tokens)?);
                let listeners = bind_tcp(addresses).await?.into_iter();
                listeners.map(|listener| TlsListener(listener, Arc::clone(&tls))).collect()
            }
            None => Vec::new(),
        };
        let unix = match unix {
            Some(spec) => Some(bind_unix(spec).await?),
            None => None,
        };
        Ok(Self { unix, tcp, tls, probes })
    }

    /// The TCP addresses with the ports that they got.
    pub fn tcp_addresses(&self) -> Vec<SocketAddr> {
        addresses(&self.tcp)
    }

    /// The TLS addresses, likewise.
    pub fn tls_addresses(&self) -> Vec<SocketAddr> {
        self.tls.iter().filter_map(|TlsListener(listener, _)| listener.local_addr().ok()).collect()
    }

    /// The addresses for probes, likewise.
    pub fn probe_addresses(&self) -> Vec<SocketAddr> {
        addresses(&self.probes)
    }

    /// Answers until `shutdown`; then finishes what is under way, within
    /// [`ConnectionLimits::grace_time`].
    pub async fn serve(
        self,
        served: Served,
        limits: ConnectionLimits,
        shutdown: impl Future<Output = ()> + Send,
    ) {
        let (stop, stopped) = watch::channel(());
        let mut listening = JoinSet::new();
        let Served { api, access, probes } = served;
        let server = Server { router: api, access: Some(access), limits, stopped };
        let prober = Server { router: probes, access: None, ..server.clone() };
        // The path outlives the listener: it goes when nobody answers there any more.
        let _path = self.unix.map(|(listener, path)| {
            listening.spawn(server.clone().accept_all(listener));
            path
        });
        for listener in self.tcp {
            listening.spawn(server.clone().accept_all(listener));
        }
        for listener in self.tls {
            listening.spawn(server.clone().accept_all(listener));
        }
        for listener in self.probes {
            listening.spawn(prober.clone().accept_all(listener));
        }
        drop((server, prober));
        shutdown.await;
        drop(stop);
        while listening.join_next().await.is_some() {}
    }
}

fn addresses(listeners: &[TcpListener]) -> Vec<SocketAddr> {
    listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
}

async fn bind_tcp(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, ServeError> {
    let mut listeners = Vec::new();
    for address in addresses {
        let failed = |source| ServeError::Listen { place: address.to_string(), source };
        listeners.push(TcpListener::bind(address).await.map_err(failed)?);
    }
    Ok(listeners)
}

// ---------------------------------------------------------------- the Unix socket

async fn bind_unix(spec: &UnixListenSpec) -> Result<(UnixListener, OwnedPath), ServeError> {
    let path = &spec.path;
    if path.as_os_str().len() > SOCKET_PATH_LEN_MAX {
        return Err(ServeError::PathTooLong { path: path.clone() });
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty())
        && !folder.is_dir()
    {
        return Err(ServeError::NoFolder { folder: folder.to_owned() });
    }
    remove_stale(path).await?;
    listen_unix(path, spec)
        .map_err(|source| ServeError::Listen { place: path.display().to_string(), source })
}

/// Makes way for a new socket, where a dead daemon's is still there.
async fn remove_stale(path: &Path) -> Result<(), ServeError> {
    let failed = |source| ServeError::Listen { place: path.display().to_string(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ServeError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "replacing the socket of a daemon that is gone");
            fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Also a full backlog: somebody listens, however slowly.
        Ok(_) => Err(ServeError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(ServeError::InUse { path: path.to_owned() })
        }
        Err(error) => Err(failed(error)),
    }
}

/// The socket is never open to more than `mode` says: Linux gives the file the mode of the socket
/// less the umask (`net/unix/af_unix.c`, `unix_bind_bsd`), and nobody can connect before `listen`.
fn listen_unix(path: &Path, spec: &UnixListenSpec) -> io::Result<(UnixListener, OwnedPath)> {
    let permissions = || fs::Permissions::from_mode(spec.mode);
    let socket = UnixSocket::new_stream()?;
    fs::File::from(socket.as_fd().try_clone_to_owned()?).set_permissions(permissions())?;
    socket.bind(path)?;
    let owned = OwnedPath::of(path)?;
    if spec.group.is_some() {
        std::os::unix::fs::chown(path, None, spec.group)?;
    }
    fs::set_permissions(path, permissions())?;
    Ok((socket.listen(1024)?, owned))
}

/// The file of a socket that this process has made. Removed at the end, unless another daemon has
/// put its own there meanwhile.
#[derive(Debug)]
struct OwnedPath {
    path: PathBuf,
    inode: (u64, u64),
}

impl OwnedPath {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), inode: inode(path)? })
    }
}

impl Drop for OwnedPath {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|found| found == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

// ---------------------------------------------------------------- connections

trait Accept: Send + 'static {
    /// A connection of which nothing was read yet.
    type Raw: Send + 'static;

    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<Self::Raw>> + Send;

    /// Finds out who it is.
    fn greet(
        &self,
        raw: Self::Raw,
    ) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send + 'static;
}

impl Accept for UnixListener {
    type Raw = UnixStream;
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        UnixListener::accept(self).await.map(|(stream, _)| stream)
    }

    fn greet(
        &self,
        stream: UnixStream,
    ) -> impl Future<Output = io::Result<(UnixStream, Peer)>> + Send + 'static {
        let peer = stream.peer_cred().map(|peer| Peer::Unix(peer.into()));
        std::future::ready(peer.map(|peer| (stream, peer)))
    }
}

impl Accept for TcpListener {
    type Raw = TcpStream;
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = TcpListener::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn greet(
        &self,
        stream: TcpStream,
    ) -> impl Future<Output = io::Result<(TcpStream, Peer)>> + Send + 'static {
        std::future::ready(Ok((stream, Peer::Loopback)))
    }
}

/// A TCP listener that speaks TLS.
#[derive(Debug)]
struct TlsListener(TcpListener, Arc<Tls>);

impl Accept for TlsListener {
    type Raw = TcpStream;
    type Stream = TlsStream<TcpStream>;

    async fn accept(&self) -> io::Result<TcpStream> {
        Accept::accept(&self.0).await
    }

    fn greet(
        &self,
        stream: TcpStream,
    ) -> impl Future<Output = io::Result<(TlsStream<TcpStream>, Peer)>> + Send + 'static {
        let tls = Arc::clone(&self.1);
        async move { tls.accept(stream).await }
    }
}

#[derive(Clone)]
struct Server {
    router: Router,
    /// Who may; everybody where absent.
    access: Option<Arc<Access>>,
    limits: ConnectionLimits,
    /// Closed when the end of the daemon is asked for.
    stopped: watch::Receiver<()>,
}

impl Server {
    /// Accepts until stopped, then sees the connections out.
    async fn accept_all<L: Accept>(self, listener: L) {
        let slots = Arc::new(Semaphore::new(self.limits.connections));
        let mut connections = JoinSet::new();
        let mut stopped = self.stopped.clone();
        loop {
            tokio::select! {
                _ = stopped.changed() => break,
                (raw, slot) = next(&listener, &slots) => {
                    let (server, greeting) = (self.clone(), listener.greet(raw));
                    connections.spawn(async move {
                        match tokio::time::timeout(server.limits.header_time, greeting).await {
                            Ok(Ok((stream, peer))) => server.converse(stream, slot, peer).await,
                            Ok(Err(error)) => tracing::debug!("no connection: {error}"),
                            Err(_) => tracing::debug!("no connection: too slow"),
                        }
                    });
                }
                Some(_) = connections.join_next() => {}
            }
        }
        drop(listener);
        let finished = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(self.limits.grace_time, finished).await.is_err() {
            tracing::warn!(connections = connections.len(), "giving up connections at the end");
        }
    }

    async fn converse(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        _slot: OwnedSemaphorePermit,
        peer: Peer,
    ) {
        let Self { router, access, limits, mut stopped } = self;
        let service = service_fn(move |request: Request<Incoming>| {
            let (router, access, peer) = (router.clone(), access.clone(), peer.clone());
            async move {
                let request = request.map(Body::new);
                let Some(access) = access else { return router.oneshot(request).await };
                match foreign_host(request.headers()).filter(|_| peer.is_for_browsers()) {
                    Some(host) => Ok(ApiError::ForeignHost { host }.into_response()),
                    None => Ok(access.answer(&peer, router, request).await),
                }
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_time)
            .max_header_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(Unstalled::new(stream, limits.stall_time)), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            _ = stopped.changed() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!("connection ended: {error}");
        }
    }
}

/// The host that a request is for, where that is not this one. A web page whose name resolves to
/// 127.0.0.1 could otherwise do whatever its reader's host may do (DNS rebinding).
fn foreign_host(headers: &HeaderMap) -> Option<String> {
    let host = headers.get(HOST)?;
    let host = String::from_utf8_lossy(host.as_bytes()).into_owned();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host.as_str(),
    };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let is_here = name.eq_ignore_ascii_case("localhost")
        || address.is_ok_and(|address| address.to_canonical().is_loopback());
    (!is_here).then_some(host)
}

/// The next connection, when there is a slot for it.
async fn next<L: Accept>(listener: &L, slots: &Arc<Semaphore>) -> (L::Raw, OwnedSemaphorePermit) {
    #[expect(clippy::expect_used, reason = "nobody closes this semaphore")]
    let slot = Arc::clone(slots).acquire_owned().await.expect("an open semaphore");
    loop {
        match listener.accept().await {
            Ok(stream) => return (stream, slot),
            // A client that went away, or too many open files: the next one may do better.
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A stream whose writes fail when the peer takes nothing for too long.
struct Unstalled<S> {
    stream: S,
    limit: Duration,
    /// Runs while a write waits.
    deadline: Pin<Box<Sleep>>,
    waiting: bool,
}

impl<S> Unstalled<S> {
    fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, deadline: Box::pin(tokio::time::sleep(limit)), waiting: false }
    }

    /// Turns a write that waits too long into an error.
    fn watched<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.waiting = false;
            return write;
        }
        if !self.waiting {
            self.waiting = true;
            self.deadline.as_mut().reset(Instant::now() + self.limit);
        }
        ready!(self.deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Unstalled<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Unstalled<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watched(cx, write)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flush = Pin::new(&mut self.stream).poll_flush(cx);
        self.watched(cx, flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watched(cx, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_in_the_name_of_another_host_are_told_from_those_for_this_one() {
        let foreign = |host: &str| {
            foreign_host(&HeaderMap::from_iter([(HOST, host.parse().unwrap())])).is_some()
        };
        for here in ["127.0.0.1", "127.0.0.1:80", "127.8.0.1", "[::1]", "[::1]:80", "LocalHost:80"]
        {
            assert!(!foreign(here), "{here}");
        }
        for there in ["", "evil.example", "evil.example:80", "localhost.example", "192.0.2.1:80"] {
            assert!(foreign(there), "{there}");
        }
        assert_eq!(foreign_host(&HeaderMap::new()), None);
    }
}
