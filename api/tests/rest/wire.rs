//! Real sockets: the listeners, and the client over them.

use std::{
    future::Future,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use eswitchd_api::{
    client::{Client, ClientError, Server},
    credentials::{CredentialFiles, Credentials},
    resources::*,
    server::{
        Access, Bound, ConnectionLimits, FlowFilter, Listeners, PutOutcome, Role, ServeError,
        Served, TokenFile, UnixListenSpec, probe_router, router, serve, token_line,
    },
    types::Id,
};
use serde_json::{from_value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::oneshot,
    task::JoinHandle,
};

use crate::double::{Double, Trouble};

/// A daemon that listens in a folder of its own.
pub(crate) struct Running {
    pub(crate) folder: TempDir,
    pub(crate) double: Arc<Double>,
    tcp: Vec<std::net::SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Running {
    async fn new(double: Arc<Double>, limits: ConnectionLimits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listeners = Listeners {
            unix: Some(UnixListenSpec {
                path: folder.path().join("api.sock"),
                mode: 0o660,
                group: None,
            }),
            tcp: vec!["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()],
            ..Listeners::default()
        };
        let bound = Bound::bind(&listeners).await.unwrap();
        let tcp = bound.tcp_addresses();
        let (stop, stopped) = oneshot::channel();
        let tokens = folder.path().join("tokens");
        std::fs::write(folder.path().join("token"), "secret\n").unwrap();
        std::fs::write(&tokens, token_line("tests", Role::Admin, "secret")).unwrap();
        std::fs::set_permissions(&tokens, std::fs::Permissions::from_mode(0o600)).unwrap();
        let access = Access { tokens: Some(TokenFile::open(tokens).unwrap()), ..Access::default() };
        let served = Served { access: Arc::new(access), ..served(Arc::clone(&double)) };
        let task = tokio::spawn(bound.serve(served, limits, async {
            let _ = stopped.await;
        }));
        Self { folder, double, tcp, stop: Some(stop), task }
    }

    pub(crate) async fn usual(double: Arc<Double>) -> Self {
        Self::new(double, ConnectionLimits::default()).await
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("api.sock")
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(Server::Unix(self.socket()))
    }

    /// A client over TCP, with the token.
    fn client_at(&self, address: std::net::SocketAddr) -> Client {
        let token = Some(self.folder.path().join("token"));
        let files = CredentialFiles { token, ..CredentialFiles::default() };
        Client::with_credentials(Server::Http(address), Credentials::read(&files).unwrap())
    }

    pub(crate) async fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        within(5, &mut self.task).await.unwrap();
    }

    pub(crate) async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.socket()).await.unwrap()
    }
}

fn id(text: &str) -> Id {
    text.parse().unwrap()
}

fn flat() -> NetworkSpec {
    from_value(json!({"kind": "flat"})).unwrap()
}

fn port_on(network: &str) -> PortSpec {
    from_value(json!({"function": {"vf": {"adapter": "a", "index": 0}},
                      "attachments": [{"network": network}]}))
    .unwrap()
}

#[test]
fn what_a_client_does_not_say_of_a_port_is_what_a_new_one_has() {
    let port = port_on("blue");
    assert_eq!(PortSpec::new(port.function.clone(), port.attachments.clone()), port);
}

pub(crate) async fn within<T>(seconds: u64, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), future).await.expect("in time")
}

fn unix(path: &Path) -> Listeners {
    let unix = UnixListenSpec { path: path.to_owned(), mode: 0o600, group: None };
    Listeners { unix: Some(unix), ..Listeners::default() }
}

/// Everything, to everybody.
fn served(double: Arc<Double>) -> Served {
    let probes = probe_router(Arc::clone(&double));
    Served { api: router(double), access: Arc::default(), probes }
}

// ---------------------------------------------------------------- the client

#[tokio::test]
async fn the_client_speaks_every_route_over_every_kind_of_listener() {
    let daemon = Running::usual(Double::with(|state| {
        state.metrics = "up 1\n".into();
        state.not_ready = vec!["no look yet".into()];
    }))
    .await;
    let clients = daemon.tcp.iter().map(|address| daemon.client_at(*address));
    for client in clients.chain([daemon.client()]) {
        let blue = id("blue");
        let put = client.put_network(&blue, flat()).await.unwrap();
        assert_eq!(put.outcome, PutOutcome::Created);
        let put = client.put_network(&blue, flat()).await.unwrap();
        assert_eq!(put.outcome, PutOutcome::Unchanged);
        assert_eq!(client.network(&blue).await.unwrap(), put.resource);
        assert_eq!(client.networks().await.unwrap(), [put.resource]);

        let port = client.put_port(&id("p"), port_on("blue")).await.unwrap().resource;
        let port = {
            assert_eq!(client.port(&id("p")).await.unwrap(), port);
            client.put_port(&id("p"), port_on("red")).await.unwrap()
        };
        assert_eq!(port.outcome, PutOutcome::Updated);
        assert_eq!(client.ports().await.unwrap(), [port.resource]);

        let guest = client.put_guest(&id("vm1"), GuestSpec::default()).await.unwrap().resource;
        assert_eq!(client.guest(&id("vm1")).await.unwrap(), guest);
        assert_eq!(client.guests().await.unwrap(), [guest]);

        assert_eq!(client.adapters().await.unwrap(), []);
        let filter = FlowFilter { port: Some(id("p:1")), ..FlowFilter::default() };
        assert_eq!(client.flows(&filter).await.unwrap(), []);
        assert_eq!(client.flows(&FlowFilter::default()).await.unwrap(), []);
        assert_eq!(client.not_ready().await.unwrap(), ["no look yet"]);
        assert_eq!(client.metrics().await.unwrap(), "up 1\n");

        client.delete_port(&id("p")).await.unwrap();
        client.delete_guest(&id("vm1")).await.unwrap();
        client.delete_network(&blue).await.unwrap();
        let Err(ClientError::Problem(problem)) = client.adapter(&id("x")).await else { panic!() };
        assert_eq!(problem.kind, "/problems/not-found");
    }
}

#[tokio::test]
async fn a_refusal_reaches_the_callers_with_all_it_says() {
    let daemon = Running::usual(Double::with(|_| {})).await;
    let client = daemon.client();
    client.put_network(&id("blue"), flat()).await.unwrap();
    client.put_port(&id("p"), port_on("blue")).await.unwrap();
    let Err(ClientError::Problem(problem)) = client.delete_network(&id("blue")).await else {
        panic!()
    };
    assert_eq!(problem.blockers, ["ports/p"]);
}

#[tokio::test]
async fn the_client_uses_its_connection_again_and_survives_its_end() {
    let limits =
        ConnectionLimits { header_time: Duration::from_millis(100), ..ConnectionLimits::default() };
    let daemon = Running::new(Double::with(|_| {}), limits).await;
    let client = daemon.client();
    for pause in [0, 0, 300, 0] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        client.put_network(&id("blue"), flat()).await.unwrap();
    }
}

#[tokio::test]
async fn a_call_that_meets_a_connection_just_closed_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let list = b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"items\":[]}";
        let mut request = [0; 1024];
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert!(stream.read(&mut request).await.unwrap() > 0);
            stream.write_all(list).await.unwrap();
            // The second request on a connection is read, and never answered.
            assert!(stream.read(&mut request).await.unwrap() > 0);
        }
    });
    let client = Client::new(Server::Unix(path));
    for _ in 0..3 {
        assert_eq!(within(5, client.networks()).await.unwrap(), []);
    }
}

#[tokio::test]
async fn many_calls_at_a_time_are_answered() {
    let daemon = Running::usual(Double::with(|_| {})).await;
    let client = daemon.client();
    let calls: Vec<_> = (0..200)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move {
                client.put_network(&id(&format!("n{n}")), flat()).await.unwrap();
            })
        })
        .collect();
    for call in calls {
        within(20, call).await.unwrap();
    }
    assert_eq!(client.networks().await.unwrap().len(), 200);
}

#[tokio::test]
async fn no_daemon_and_a_strange_daemon_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let client = Client::new(Server::Unix(path.clone()));
    assert!(matches!(client.networks().await, Err(ClientError::Unreachable { .. })));

    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(b"HTTP/1.1 502 Bad\r\ncontent-length: 2\r\n\r\nno").await;
        }
    });
    let strange = client.networks().await;
    assert!(matches!(strange, Err(ClientError::Strange { status: 502, .. })), "{strange:?}");
}

// ---------------------------------------------------------------- clients that dawdle

#[tokio::test]
async fn a_client_that_sends_its_header_drop_by_drop_is_cut_off() {
    let limits =
        ConnectionLimits { header_time: Duration::from_millis(300), ..ConnectionLimits::default() };
    let daemon = Running::new(Double::with(|_| {}), limits).await;
    let mut stream = daemon.connect().await;
    let began = Instant::now();
    let mut sent = 0;
    for byte in b"GET /healthz HTTP/1.1\r\nhost: a\r\n".iter().chain([b'x'; 200].iter()) {
        if stream.write_all(&[*byte]).await.is_err() {
            break;
        }
        sent += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(sent < 100, "cut off after {sent} bytes");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn idle_connections_do_not_keep_others_out_for_long() {
    let limits = ConnectionLimits {
        connections: 2,
        header_time: Duration::from_millis(300),
        ..ConnectionLimits::default()
    };
    let daemon = Running::new(Double::with(|_| {}), limits).await;
    let mut idle = Vec::new();
    for _ in 0..6 {
        idle.push(daemon.connect().await);
    }
    let client = daemon.client();
    within(5, client.networks()).await.unwrap();
    let tcp = daemon.client_at(daemon.tcp[0]);
    within(1, tcp.networks()).await.unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_is_cut_off() {
    let limits = ConnectionLimits {
        connections: 1,
        stall_time: Duration::from_millis(300),
        ..ConnectionLimits::default()
    };
    let double = Double::with(|state| state.metrics = "x".repeat(8 << 20));
    let daemon = Running::new(double, limits).await;
    let mut stream = daemon.connect().await;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    within(5, daemon.client().networks()).await.unwrap();
}

#[tokio::test]
async fn a_header_that_is_too_large_is_refused() {
    let daemon = Running::usual(Double::with(|_| {})).await;
    let mut stream = daemon.connect().await;
    let request =
        format!("GET /healthz HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(64 << 10));
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = within(5, stream.read_to_end(&mut answer)).await;
    assert!(answer.starts_with(b"HTTP/1.1 431 "), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn over_tcp_nobody_is_let_in_without_a_token() {
    let daemon = Running::usual(Double::with(|_| {})).await;
    let client = Client::new(Server::Http(daemon.tcp[0]));
    let Err(ClientError::Problem(problem)) = client.networks().await else { panic!("let in") };
    assert_eq!((problem.status, &*problem.kind), (401, "/problems/unauthenticated"));
    // Nor where the daemon has no tokens at all.
    let open = Listeners { tcp: vec!["127.0.0.1:0".parse().unwrap()], ..Listeners::default() };
    let bound = Bound::bind(&open).await.unwrap();
    let address = bound.tcp_addresses()[0];
    let limits = ConnectionLimits::default();
    tokio::spawn(bound.serve(served(Double::with(|_| {})), limits, std::future::pending()));
    let answer = Client::new(Server::Http(address)).networks().await;
    assert!(matches!(answer, Err(ClientError::Problem(problem)) if problem.status == 401));
}

#[tokio::test]
async fn a_web_page_of_another_host_is_refused_over_tcp() {
    let daemon = Running::usual(Double::with(|_| {})).await;
    let mut stream = tokio::net::TcpStream::connect(daemon.tcp[0]).await.unwrap();
    let request = "GET /v1/ports HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within(5, stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
    assert!(answer.contains("/problems/foreign-host"), "{answer}");
}

// ---------------------------------------------------------------- the socket

#[tokio::test]
async fn the_socket_has_its_mode_and_goes_with_the_daemon() {
    let mut daemon = Running::usual(Double::with(|_| {})).await;
    let mode = std::fs::metadata(daemon.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o660);
    daemon.stop().await;
    assert!(!daemon.socket().exists());
}

#[tokio::test]
async fn the_socket_of_a_dead_daemon_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(std::fs::metadata(&path).unwrap().file_type().is_socket());

    let _bound = Bound::bind(&unix(&path)).await.unwrap();
    UnixStream::connect(&path).await.unwrap();
}

#[tokio::test]
async fn the_socket_of_a_live_daemon_is_left_alone() {
    let daemon = Running::usual(Double::with(|_| {})).await;
    let error = Bound::bind(&unix(&daemon.socket())).await.unwrap_err();
    assert!(matches!(error, ServeError::InUse { .. }), "{error}");
    daemon.client().networks().await.unwrap();
}

#[tokio::test]
async fn a_daemon_removes_no_socket_but_its_own() {
    let mut daemon = Running::usual(Double::with(|_| {})).await;
    std::fs::remove_file(daemon.socket()).unwrap();
    let _other = std::os::unix::net::UnixListener::bind(daemon.socket()).unwrap();
    daemon.stop().await;
    assert!(daemon.socket().exists());
}

#[tokio::test]
async fn what_cannot_be_listened_on_is_said_with_what_would_be_right() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let tcp =
        |address: &str| Listeners { tcp: vec![address.parse().unwrap()], ..Listeners::default() };
    for (listeners, says) in [
        (unix(&file), "is no socket: move it away"),
        (unix(&folder.path().join("none/api.sock")), "create it"),
        (unix(&folder.path().join("x".repeat(120))), "107 bytes"),
        (tcp("0.0.0.0:0"), "listen on 127.0.0.1"),
        (tcp("192.0.2.1:80"), "listen on 127.0.0.1"),
        (tcp("[::]:0"), "listen on 127.0.0.1"),
        (Listeners::default(), "configure a Unix socket"),
    ] {
        let error = serve(listeners, served(Double::with(|_| {})), async {}).await.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[tokio::test]
async fn listening_is_all_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut listeners = unix(&folder.path().join("api.sock"));
    listeners.tcp.push(taken.local_addr().unwrap());
    let error = Bound::bind(&listeners).await.unwrap_err();
    assert!(matches!(error, ServeError::Listen { .. }), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

// ---------------------------------------------------------------- the end

#[tokio::test]
async fn a_request_under_way_is_finished_at_the_end() {
    let double =
        Double::with(|state| state.trouble = Some(Trouble::Delay(Duration::from_millis(500))));
    let mut daemon = Running::usual(double).await;
    let client = daemon.client();
    let asked = tokio::spawn(async move { client.networks().await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    daemon.stop.take().unwrap().send(()).unwrap();
    assert_eq!(within(5, asked).await.unwrap().unwrap(), []);
    within(5, &mut daemon.task).await.unwrap();
}

#[tokio::test]
async fn a_request_that_does_not_end_does_not_hold_up_the_end() {
    let double =
        Double::with(|state| state.trouble = Some(Trouble::Delay(Duration::from_secs(3600))));
    let limits =
        ConnectionLimits { grace_time: Duration::from_millis(200), ..ConnectionLimits::default() };
    let mut daemon = Running::new(double, limits).await;
    let client = daemon.client();
    let asked = tokio::spawn(async move { client.networks().await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    daemon.stop.take().unwrap().send(()).unwrap();
    within(2, &mut daemon.task).await.unwrap();
    assert!(matches!(within(2, asked).await.unwrap(), Err(ClientError::Broken(_))));
}
