//! A typed client of the REST API, over a Unix socket, TCP on loopback, or TLS.
//!
//! In: calls. Out: resources, or why there are none. Connections are kept and used again; every
//! answer is bounded in size and time. All requests of this API are idempotent, so one that met a
//! connection which the daemon had just closed is sent again, once.

use std::{
    fmt, io,
    net::SocketAddr,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;

use crate::{
    DEFAULT_SOCKET,
    batch::{Applied, Batch, DryRun},
    credentials::{CredentialError, Credentials},
    error::{Problem, ResourceKind},
    events::Event,
    explain::Explanation,
    resources::{
        Adapter, Desired, EswitchChange, EswitchSpec, Flow, Guest, GuestSpec, List, Network,
        NetworkSpec, Port, PortSpec, Resource, TornDown,
    },
    server::{
        EswitchHow, FlowFilter, Put, PutOutcome, WAIT_MAX, declared::Declared, reply::OUTCOME,
    },
    snapshot::{Restored, Snapshot},
    trace::{Trace, TraceRequest},
    types::Id,
};

/// The largest answer that is read, in bytes: some 100,000 flows.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// How long an answer may take: longer than the daemon gives itself.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(40);

/// Connections that are kept for the next request.
const IDLE_MAX: usize = 16;

/// Where the daemon listens: `/run/eswitchd/api.sock`, `unix:/run/eswitchd/api.sock`,
/// `http://127.0.0.1:9170` or `https://host.example:9443`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Server {
    /// On a Unix socket.
    Unix(PathBuf),
    /// On TCP, without TLS: a loopback address.
    Http(SocketAddr),
    /// On TLS.
    Https {
        /// The name or address that its certificate is for.
        host: String,
        /// The port.
        port: u16,
    },
}

impl Default for Server {
    fn default() -> Self {
        Self::Unix(DEFAULT_SOCKET.into())
    }
}

/// A text is not a [`Server`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no server: write an absolute path of a Unix socket, http://127.0.0.1:PORT or \
     https://HOST:PORT"
)]
pub struct InvalidServer(String);

impl FromStr for Server {
    type Err = InvalidServer;

    fn from_str(text: &str) -> Result<Self, InvalidServer> {
        let invalid = || InvalidServer(text.to_owned());
        if let Some(authority) = text.strip_prefix("http://") {
            let authority = authority.strip_suffix('/').unwrap_or(authority);
            let numeric = match authority.strip_prefix("localhost:") {
                Some(port) => format!("127.0.0.1:{port}"),
                None => authority.to_owned(),
            };
            let address: SocketAddr = numeric.parse().map_err(|_| invalid())?;
            return match address.ip().to_canonical().is_loopback() {
                true => Ok(Self::Http(address)),
                false => Err(invalid()),
            };
        }
        if let Some(authority) = text.strip_prefix("https://") {
            let authority = authority.strip_suffix('/').unwrap_or(authority);
            let (host, port) = authority.rsplit_once(':').ok_or_else(invalid)?;
            let host =
                host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            ServerName::try_from(host).map_err(|_| invalid())?;
            let port = port.parse().map_err(|_| invalid())?;
            return Ok(Self::Https { host: host.to_owned(), port });
        }
        match text.strip_prefix("unix:").unwrap_or(text) {
            path if path.starts_with('/') => Ok(Self::Unix(path.into())),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Http(address) => write!(f, "http://{address}"),
            Self::Https { host, port } => write!(f, "https://{}", authority(host, *port)),
        }
    }
}

/// Host and port as they stand in a URL.
fn authority(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error("cannot reach eswitchd at {server}: {source}")]
    Unreachable {
        /// Where.
        server: Server,
        /// The kernel's words.
        source: io::Error,
    },
    /// The server's kind needs credentials that are not there.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// The connection broke. Whether the request was carried out is not known.
    #[error("the connection to eswitchd broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The daemon did not answer in time. Whether the request was carried out is not known.
    #[error("eswitchd at {server} has not answered for {limit:?}")]
    Timeout {
        /// Where.
        server: Server,
        /// How long an answer may take.
        limit: Duration,
    },
    /// The daemon said no.
    #[error(transparent)]
    Problem(Box<Problem>),
    /// The answer is none of eswitchd's.
    #[error("an answer with status {status} that is none of eswitchd's: {detail}")]
    Strange {
        /// Its status.
        status: u16,
        /// What is strange about it.
        detail: String,
    },
}

/// A client of one daemon. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Client {
    server: Server,
    credentials: Credentials,
    idle: Arc<Mutex<Vec<SendRequest<Full<Bytes>>>>>,
    wait: Option<Duration>,
    labels: Vec<String>,
}

/// What a stream of events tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Something happened.
    Event(Box<Event>),
    /// Something about the stream itself: `start`, `lost` or `end`.
    Notice {
        /// Which.
        name: String,
        /// For people.
        message: String,
    },
}

/// A stream of events.
#[derive(Debug)]
pub struct EventStream {
    _connection: SendRequest<Full<Bytes>>,
    body: Incoming,
    /// What has arrived and is no whole message yet.
    text: Vec<u8>,
}

impl EventStream {
    /// What it tells next; nothing where it has ended.
    pub async fn next(&mut self) -> Result<Option<Told>, ClientError> {
        loop {
            if let Some(end) = self.text.windows(2).position(|pair| pair == b"\n\n") {
                let message: Vec<u8> = self.text.drain(..end + 2).collect();
                match told(&String::from_utf8_lossy(&message))? {
                    Some(told) => return Ok(Some(told)),
                    None => continue,
                }
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    self.text.extend(frame.into_data().unwrap_or_default());
                }
                Some(Err(error)) => return Err(ClientError::Broken(error.into())),
            }
        }
    }
}

/// One message of a stream; none where it is a comment.
fn told(message: &str) -> Result<Option<Told>, ClientError> {
    #[derive(serde::Deserialize)]
    struct Notice {
        message: String,
    }
    let field = |name: &str| message.lines().find_map(|line| line.strip_prefix(name));
    let (Some(name), Some(data)) = (field("event: "), field("data: ")) else { return Ok(None) };
    let wrong = |error| strange(StatusCode::OK, &format!("event `{name}`: {error}"));
    Ok(Some(match name {
        "start" | "lost" | "end" => {
            let Notice { message } = serde_json::from_str(data).map_err(wrong)?;
            Told::Notice { name: name.to_owned(), message }
        }
        _ => Told::Event(serde_json::from_str(data).map_err(wrong)?),
    }))
}

/// An answer, read whole.
struct Answer {
    status: StatusCode,
    outcome: Option<PutOutcome>,
    body: Bytes,
}

impl Client {
    /// A client of the daemon at `server`. Connects at the first call.
    pub fn new(server: Server) -> Self {
        Self::with_credentials(server, Credentials::default())
    }

    /// A client that shows `credentials`.
    pub fn with_credentials(server: Server, credentials: Credentials) -> Self {
        Self { server, credentials, idle: Arc::default(), wait: None, labels: Vec::new() }
    }

    /// The same client; its changes are answered when they are in the kernel, or after `limit` (whole
    /// seconds, at most [`WAIT_MAX`]) with the problem `not-programmed`.
    pub fn waiting(&self, limit: Duration) -> Self {
        Self { wait: Some(limit.min(WAIT_MAX)), ..self.clone() }
    }

    /// The same client; its lists of networks, ports and guests have only what has all of these
    /// labels, each `NAME` or `NAME=VALUE`.
    pub fn labelled(&self, labels: Vec<String>) -> Self {
        Self { labels, ..self.clone() }
    }

    /// The path of a list of what clients declare.
    fn declared(&self, kind: ResourceKind) -> String {
        let labels: Vec<String> =
            self.labels.iter().map(|label| format!("label={}", percent_encoded(label))).collect();
        format!("/v1/{}?{}", kind.plural(), labels.join("&"))
    }

    /// The path of a resource that is to be changed.
    fn change<Spec: Declared>(&self, id: &Id) -> String {
        format!("/v1/{}/{id}{}", Spec::KIND.plural(), self.waiting_query())
    }

    fn waiting_query(&self) -> String {
        let query = |limit: Duration| format!("?wait=programmed&timeout={}", limit.as_secs());
        self.wait.map(query).unwrap_or_default()
    }

    /// Where the daemon listens.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Creates or changes a network.
    pub async fn put_network(
        &self,
        id: &Id,
        spec: NetworkSpec,
    ) -> Result<Put<Network>, ClientError> {
        self.put(id, spec).await
    }

    /// A network.
    pub async fn network(&self, id: &Id) -> Result<Network, ClientError> {
        self.one::<NetworkSpec>(id).await
    }

    /// All networks.
    pub async fn networks(&self) -> Result<Vec<Network>, ClientError> {
        self.list(&self.declared(ResourceKind::Network)).await
    }

    /// Removes a network.
    pub async fn delete_network(&self, id: &Id) -> Result<(), ClientError> {
        self.delete::<NetworkSpec>(id).await
    }

    /// Creates or changes a port.
    pub async fn put_port(&self, id: &Id, spec: PortSpec) -> Result<Put<Port>, ClientError> {
        self.put(id, spec).await
    }

    /// A port.
    pub async fn port(&self, id: &Id) -> Result<Port, ClientError> {
        self.one::<PortSpec>(id).await
    }

    /// All ports.
    pub async fn ports(&self) -> Result<Vec<Port>, ClientError> {
        self.list(&self.declared(ResourceKind::Port)).await
    }

    /// Removes a port.
    pub async fn delete_port(&self, id: &Id) -> Result<(), ClientError> {
        self.delete::<PortSpec>(id).await
    }

    /// Creates or changes a guest.
    pub async fn put_guest(&self, id: &Id, spec: GuestSpec) -> Result<Put<Guest>, ClientError> {
        self.put(id, spec).await
    }

    /// A guest.
    pub async fn guest(&self, id: &Id) -> Result<Guest, ClientError> {
        self.one::<GuestSpec>(id).await
    }

    /// All guests.
    pub async fn guests(&self) -> Result<Vec<Guest>, ClientError> {
        self.list(&self.declared(ResourceKind::Guest)).await
    }

    /// Forgets what was PUT for a guest.
    pub async fn delete_guest(&self, id: &Id) -> Result<(), ClientError> {
        self.delete::<GuestSpec>(id).await
    }

    /// All adapters.
    pub async fn adapters(&self) -> Result<Vec<Adapter>, ClientError> {
        self.list("/v1/adapters").await
    }

    /// An adapter.
    pub async fn adapter(&self, id: &Id) -> Result<Adapter, ClientError> {
        json(&self.ask(Method::GET, &format!("/v1/adapters/{id}"), None).await?)
    }

    /// Changes an adapter's mode and number of VFs, or only says what that would mean.
    pub async fn put_eswitch(
        &self,
        id: &Id,
        spec: EswitchSpec,
        how: EswitchHow,
    ) -> Result<EswitchChange, ClientError> {
        let body = serde_json::to_vec(&Desired { spec })
            .map_err(|error| ClientError::Broken(error.into()))?;
        let EswitchHow { dry_run, force } = how;
        let path = format!("/v1/adapters/{id}/eswitch?dry_run={dry_run}&force={force}");
        json(&self.ask(Method::PUT, &path, Some(body.into())).await?)
    }

    /// The flows that match `filter`.
    pub async fn flows(&self, filter: &FlowFilter) -> Result<Vec<Flow>, ClientError> {
        // Ids need no percent-encoding in a query.
        let query: Vec<_> =
            [("adapter", &filter.adapter), ("port", &filter.port), ("network", &filter.network)]
                .into_iter()
                .filter_map(|(name, id)| id.as_ref().map(|id| format!("{name}={id}")))
                .collect();
        self.list(&format!("/v1/flows?{}", query.join("&"))).await
    }

    /// The way of a frame through the rules that are installed.
    pub async fn trace(&self, request: &TraceRequest) -> Result<Trace, ClientError> {
        let body =
            serde_json::to_vec(request).map_err(|error| ClientError::Broken(error.into()))?;
        json(&self.ask(Method::POST, "/v1/trace", Some(body.into())).await?)
    }

    /// How far a port has come.
    pub async fn explain(&self, port: &Id) -> Result<Explanation, ClientError> {
        json(&self.ask(Method::GET, &format!("/v1/ports/{port}/explain"), None).await?)
    }

    /// Makes all changes in one transaction, or none.
    pub async fn apply(&self, batch: &Batch) -> Result<Applied, ClientError> {
        self.batch(batch, &self.waiting_query()).await
    }

    /// What changes would come to. Nothing is changed.
    pub async fn dry_run(&self, batch: &Batch) -> Result<DryRun, ClientError> {
        self.batch(batch, "?dry_run=true").await
    }

    async fn batch<T: DeserializeOwned>(
        &self,
        batch: &Batch,
        query: &str,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(batch).map_err(|error| ClientError::Broken(error.into()))?;
        json(&self.ask(Method::POST, &format!("/v1/apply{query}"), Some(body.into())).await?)
    }

    /// What happens from now on, or behind the event `since`; with `follow` until the daemon ends.
    pub async fn events(
        &self,
        since: Option<&str>,
        follow: bool,
    ) -> Result<EventStream, ClientError> {
        let since = since.map(|id| format!("&since={id}")).unwrap_or_default();
        let path = format!("/v1/events?follow={follow}{since}");
        let mut connection = self.connect().await?;
        let request = self.request(&Method::GET, &path, None)?;
        let response = connection.send_request(request).await;
        let response = response.map_err(|error| ClientError::Broken(error.into()))?;
        if !response.status().is_success() {
            let answer = self.read(connection, response).await?;
            return Err(problem(&answer));
        }
        let body = response.into_body();
        Ok(EventStream { _connection: connection, body, text: Vec::new() })
    }

    /// Everything that clients have PUT.
    pub async fn snapshot(&self) -> Result<Snapshot, ClientError> {
        json(&self.ask(Method::GET, "/v1/snapshot", None).await?)
    }

    /// Puts a snapshot in the place of everything that clients have PUT; its text is the daemon's to
    /// check.
    pub async fn restore(&self, snapshot: Vec<u8>) -> Result<Put<Restored>, ClientError> {
        let answer = self.ask(Method::PUT, "/v1/snapshot", Some(snapshot.into())).await?;
        let outcome = answer.outcome.ok_or_else(|| strange(answer.status, "no outcome"))?;
        Ok(Put { outcome, resource: json(&answer)? })
    }

    /// Takes away every flow of the daemon, which then installs none until it is resumed.
    pub async fn tear_down(&self) -> Result<TornDown, ClientError> {
        json(&self.ask(Method::POST, "/v1/teardown", None).await?)
    }

    /// Has the daemon install flows again.
    pub async fn resume(&self) -> Result<(), ClientError> {
        self.ask(Method::POST, "/v1/resume", None).await.map(|_| ())
    }

    /// Nothing where the daemon does its work, else the reasons why it does not.
    pub async fn not_ready(&self) -> Result<Vec<String>, ClientError> {
        match self.ask(Method::GET, "/readyz", None).await {
            Ok(_) => Ok(Vec::new()),
            Err(ClientError::Problem(problem)) if problem.kind == "/problems/not-ready" => {
                Ok(problem.reasons)
            }
            Err(error) => Err(error),
        }
    }

    /// All metrics in Prometheus' text format.
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let answer = self.ask(Method::GET, "/metrics", None).await?;
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    async fn put<Spec: Declared>(
        &self,
        id: &Id,
        spec: Spec,
    ) -> Result<Put<Resource<Spec, Spec::Status>>, ClientError> {
        let body = serde_json::to_vec(&Desired { spec })
            .map_err(|error| ClientError::Broken(error.into()))?;
        let answer = self.ask(Method::PUT, &self.change::<Spec>(id), Some(body.into())).await?;
        let outcome = answer.outcome.ok_or_else(|| strange(answer.status, "no outcome"))?;
        Ok(Put { outcome, resource: json(&answer)? })
    }

    async fn one<Spec: Declared>(
        &self,
        id: &Id,
    ) -> Result<Resource<Spec, Spec::Status>, ClientError> {
        json(&self.ask(Method::GET, &format!("/v1/{}/{id}", Spec::KIND.plural()), None).await?)
    }

    async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, ClientError> {
        let answer = self.ask(Method::GET, path, None).await?;
        json::<List<T>>(&answer).map(|list| list.items)
    }

    async fn delete<Spec: Declared>(&self, id: &Id) -> Result<(), ClientError> {
        self.ask(Method::DELETE, &self.change::<Spec>(id), None).await.map(|_| ())
    }

    /// One request and its answer, where that is a success.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Answer, ClientError> {
        let asked = tokio::time::timeout(ANSWER_TIME_MAX, self.exchange(method, path, body)).await;
        let answer = asked.map_err(|_| ClientError::Timeout {
            server: self.server.clone(),
            limit: ANSWER_TIME_MAX,
        })??;
        if answer.status.is_success() {
            return Ok(answer);
        }
        Err(problem(&answer))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Answer, ClientError> {
        let request = || self.request(&method, path, body.clone());
        while let Some(mut connection) = self.take_idle() {
            if connection.ready().await.is_err() {
                continue;
            }
            match connection.send_request(request()?).await {
                Ok(response) => return self.read(connection, response).await,
                // The daemon closed it before it had read the request, or while.
                Err(error) if error.is_canceled() || error.is_incomplete_message() => break,
                Err(error) => return Err(ClientError::Broken(error.into())),
            }
        }
        let mut connection = self.connect().await?;
        let sent = connection.send_request(request()?).await;
        self.read(connection, sent.map_err(|error| ClientError::Broken(error.into()))?).await
    }

    /// Reads an answer whole and keeps its connection.
    async fn read(
        &self,
        connection: SendRequest<Full<Bytes>>,
        response: Response<Incoming>,
    ) -> Result<Answer, ClientError> {
        let (parts, body) = response.into_parts();
        let outcome = parts.headers.get(OUTCOME).and_then(|value| match value.as_bytes() {
            b"created" => Some(PutOutcome::Created),
            b"updated" => Some(PutOutcome::Updated),
            b"unchanged" => Some(PutOutcome::Unchanged),
            _ => None,
        });
        let body =
            Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| {
                match error.is::<LengthLimitError>() {
                    true => strange(parts.status, &format!("more than {ANSWER_BYTES_MAX} bytes")),
                    false => ClientError::Broken(error),
                }
            })?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX && !connection.is_closed() {
            idle.push(connection);
        }
        Ok(Answer { status: parts.status, outcome, body: body.to_bytes() })
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let unreachable = |source| ClientError::Unreachable { server: self.server.clone(), source };
        match &self.server {
            Server::Unix(path) => {
                handshake(UnixStream::connect(path).await.map_err(unreachable)?).await
            }
            Server::Http(address) => {
                let stream = TcpStream::connect(address).await.map_err(unreachable)?;
                stream.set_nodelay(true).map_err(unreachable)?;
                handshake(stream).await
            }
            Server::Https { host, port } => {
                let config = self.credentials.tls.clone().ok_or(CredentialError::NoCa)?;
                let name = ServerName::try_from(host.clone());
                let name = name.map_err(|error| unreachable(io::Error::other(error)))?;
                let stream =
                    TcpStream::connect((host.as_str(), *port)).await.map_err(unreachable)?;
                stream.set_nodelay(true).map_err(unreachable)?;
                let stream = TlsConnector::from(config).connect(name, stream).await;
                handshake(stream.map_err(unreachable)?).await
            }
        }
    }

    fn request(
        &self,
        method: &Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let host = match &self.server {
            Server::Unix(_) => "localhost".to_owned(),
            Server::Http(address) => address.to_string(),
            Server::Https { host, port } => authority(host, *port),
        };
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
        if let Some(authorization) = &self.credentials.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        request
            .body(Full::new(body.unwrap_or_default()))
            .map_err(|error| ClientError::Broken(error.into()))
    }
}

/// A text as the value of a query parameter (RFC 3986, section 2.3).
fn percent_encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| match plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<SendRequest<Full<Bytes>>, ClientError> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| ClientError::Broken(error.into()))?;
    // Ends when the sender is dropped; its errors reach the sender.
    tokio::spawn(connection);
    Ok(sender)
}

fn problem(answer: &Answer) -> ClientError {
    match serde_json::from_slice::<Problem>(&answer.body) {
        Ok(problem) => ClientError::Problem(Box::new(problem)),
        Err(_) => strange(answer.status, "no problem details"),
    }
}

fn json<T: DeserializeOwned>(answer: &Answer) -> Result<T, ClientError> {
    serde_json::from_slice(&answer.body)
        .map_err(|error| strange(answer.status, &format!("not the JSON it should be: {error}")))
}

fn strange(status: StatusCode, detail: &str) -> ClientError {
    ClientError::Strange { status: status.as_u16(), detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_socket_path_a_loopback_url_or_one_of_tls() {
        for (text, reads) in [
            ("/run/a.sock", "unix:/run/a.sock"),
            ("unix:/run/a.sock", "unix:/run/a.sock"),
            ("http://127.0.0.1:80", "http://127.0.0.1:80"),
            ("http://localhost:80/", "http://127.0.0.1:80"),
            ("http://[::1]:80", "http://[::1]:80"),
            ("https://host.example:9443/", "https://host.example:9443"),
            ("https://192.0.2.1:9443", "https://192.0.2.1:9443"),
            ("https://[2001:db8::1]:9443", "https://[2001:db8::1]:9443"),
        ] {
            assert_eq!(text.parse::<Server>().unwrap().to_string(), reads);
        }
        for text in
            ["", "a.sock", "unix:a.sock", "http://192.0.2.1:80", "https://a", "https://a b:1"]
        {
            assert!(text.parse::<Server>().is_err(), "{text}");
        }
    }
}
