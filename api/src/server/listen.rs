//! Listeners and their connections: one Unix socket, and TCP on loopback.
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
    net::{TcpListener, UnixListener, UnixSocket, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{Instant, Sleep},
};
use tower::ServiceExt;

use crate::{error::ApiError, validate::SOCKET_PATH_LEN_MAX};

/// Where to listen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listeners {
    /// The Unix socket.
    pub unix: Option<UnixListenSpec>,
    /// TCP, only on loopback addresses. Port 0 takes a free one.
    pub tcp: Vec<SocketAddr>,
}

/// A Unix socket to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixListenSpec {
    /// Its path. The folder must exist.
    pub path: PathBuf,
    /// Its permissions: whoever may write to it may do everything. `0o660`, for example.
    pub mode: u32,
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
    /// The address is open to other hosts.
    #[error(
        "{address} is no loopback address: whoever reaches it may do everything, as there is no \
         TLS yet; listen on 127.0.0.1 or [::1]"
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

/// Listens, and answers by `router` until `shutdown`; then at most
/// [`ConnectionLimits::grace_time`] longer.
pub async fn serve(
    listeners: Listeners,
    router: Router,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    Bound::bind(&listeners).await?.serve(router, ConnectionLimits::default(), shutdown).await;
    Ok(())
}

/// Listeners that listen, and do not answer yet.
#[derive(Debug)]
pub struct Bound {
    unix: Option<(UnixListener, OwnedPath)>,
    tcp: Vec<TcpListener>,
}

impl Bound {
    /// Listens on all addresses, or on none of them.
    pub async fn bind(listeners: &Listeners) -> Result<Self, ServeError> {
        if listeners.unix.is_none() && listeners.tcp.is_empty() {
            return Err(ServeError::Nothing);
        }
        let mut tcp = Vec::new();
        for address in &listeners.tcp {
            tcp.push(bind_tcp(*address).await?);
        }
        let unix = match &listeners.unix {
            Some(spec) => Some(bind_unix(spec).await?),
            None => None,
        };
        Ok(Self { unix, tcp })
    }

    /// The TCP addresses with the ports that they got.
    pub fn tcp_addresses(&self) -> Vec<SocketAddr> {
        self.tcp.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Answers by `router` until `shutdown`; then finishes what is under way, within
    /// [`ConnectionLimits::grace_time`].
    pub async fn serve(
        self,
        router: Router,
        limits: ConnectionLimits,
        shutdown: impl Future<Output = ()> + Send,
    ) {
        let (stop, stopped) = watch::channel(());
        let mut listening = JoinSet::new();
        let server = Server { router, limits, stopped };
        // The path outlives the listener: it goes when nobody answers there any more.
        let _path = self.unix.map(|(listener, path)| {
            listening.spawn(server.clone().accept_all(listener));
            path
        });
        for listener in self.tcp {
            listening.spawn(server.clone().accept_all(listener));
        }
        shutdown.await;
        drop(stop);
        while listening.join_next().await.is_some() {}
    }
}

async fn bind_tcp(address: SocketAddr) -> Result<TcpListener, ServeError> {
    match address.ip().to_canonical().is_loopback() {
        true => TcpListener::bind(address)
            .await
            .map_err(|source| ServeError::Listen { place: address.to_string(), source }),
        false => Err(ServeError::NotLoopback { address }),
    }
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
    listen_unix(path, spec.mode)
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
fn listen_unix(path: &Path, mode: u32) -> io::Result<(UnixListener, OwnedPath)> {
    let permissions = || fs::Permissions::from_mode(mode);
    let socket = UnixSocket::new_stream()?;
    fs::File::from(socket.as_fd().try_clone_to_owned()?).set_permissions(permissions())?;
    socket.bind(path)?;
    let owned = OwnedPath::of(path)?;
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
    /// Whether web pages can reach it through a browser.
    const FOR_BROWSERS: bool;

    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for UnixListener {
    const FOR_BROWSERS: bool = false;

    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        UnixListener::accept(self).await.map(|(stream, _)| stream)
    }
}

impl Accept for TcpListener {
    const FOR_BROWSERS: bool = true;

    type Stream = tokio::net::TcpStream;

    async fn accept(&self) -> io::Result<tokio::net::TcpStream> {
        let (stream, _) = TcpListener::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

#[derive(Clone)]
struct Server {
    router: Router,
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
                (stream, slot) = next(&listener, &slots) => {
                    connections.spawn(self.clone().converse(stream, slot, L::FOR_BROWSERS));
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
        for_browsers: bool,
    ) {
        let Self { router, limits, mut stopped } = self;
        let service = service_fn(move |request: Request<Incoming>| {
            let router = router.clone();
            async move {
                match foreign_host(request.headers()).filter(|_| for_browsers) {
                    Some(host) => Ok(ApiError::ForeignHost { host }.into_response()),
                    None => router.oneshot(request.map(Body::new)).await,
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
async fn next<L: Accept>(
    listener: &L,
    slots: &Arc<Semaphore>,
) -> (L::Stream, OwnedSemaphorePermit) {
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
