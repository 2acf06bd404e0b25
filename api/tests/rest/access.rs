//! Who may do what: every role at every operation, tokens that change, certificates of every kind
//! of wrong, peers of the Unix socket.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::http::Method;
use eswitchd_api::client::{Client, ClientError, Server};
use eswitchd_api::credentials::{CredentialError, CredentialFiles, Credentials};
use eswitchd_api::server::{
    Access, Answered, Audit, Bound, ConnectionLimits, Listeners, PeerMatch, PeerRole, Role, Served,
    TlsFiles, TlsListenSpec, TokenFile, UnixListenSpec, probe_router, router, token_line,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::oneshot,
};
use tokio_rustls::TlsConnector;

use crate::{double::Double, wire::within};

const ROLES: [Role; 3] = [Role::Read, Role::Write, Role::Admin];

// ---------------------------------------------------------------- certificates

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Issuer {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate and its key, PEM.
fn certificate(by: &Issuer, name: &str, until: i32) -> (String, String) {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, by).unwrap();
    (certificate.pem(), key.serialize_pem())
}

// ---------------------------------------------------------------- a daemon with listeners

struct Guarded {
    folder: TempDir,
    tcp: std::net::SocketAddr,
    tls: std::net::SocketAddr,
    probes: std::net::SocketAddr,
    audits: Arc<Mutex<Vec<Audit>>>,
    answered: Arc<Mutex<Vec<String>>>,
    server_ca: Issuer,
    client_ca: Issuer,
    _stop: oneshot::Sender<()>,
}

impl Guarded {
    async fn start(peers: Vec<PeerRole>) -> Guarded {
        let folder = tempfile::tempdir().unwrap();
        let (server_ca, client_ca) = (authority("servers"), authority("clients"));
        let (chain, key) = certificate(&server_ca, "localhost", 2100);
        let at = |name: &str| folder.path().join(name);
        fs::write(at("cert.pem"), chain).unwrap();
        fs::write(at("key.pem"), key).unwrap();
        fs::write(at("clients.pem"), client_ca.pem()).unwrap();
        let tokens: Vec<String> =
            ROLES.iter().map(|role| token_line(&role.to_string(), *role, &secret(*role))).collect();
        write_tokens(&at("tokens"), &tokens.join("\n"));
        let listeners = Listeners {
            unix: Some(UnixListenSpec { path: at("api.sock"), mode: 0o666, group: None }),
            tcp: vec!["127.0.0.1:0".parse().unwrap()],
            tls: Some(TlsListenSpec {
                addresses: vec!["127.0.0.1:0".parse().unwrap()],
                files: TlsFiles {
                    certificate: at("cert.pem"),
                    key: at("key.pem"),
                    client_ca: Some(at("clients.pem")),
                },
                tokens: true,
            }),
            probes: vec!["127.0.0.1:0".parse().unwrap()],
        };
        let bound = Bound::bind(&listeners).await.unwrap();
        let [tcp, tls, probes] =
            [bound.tcp_addresses()[0], bound.tls_addresses()[0], bound.probe_addresses()[0]];
        let audits = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&audits);
        let answered = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&answered);
        let name = |name: &str| name.to_owned().try_into().unwrap();
        let access = Access {
            peers,
            clients: vec![
                (name("nova.example"), Role::Write),
                (name("*.admins.example".trim_start_matches("*.")), Role::Admin),
            ],
            tokens: Some(TokenFile::open(at("tokens")).unwrap()),
            audit: Some(Arc::new(move |audit: &Audit| noted.lock().unwrap().push(audit.clone()))),
            seen: Some(Arc::new(move |answered: Answered<'_>| {
                let Answered { method, route, status } = answered;
                let line = format!("{method} {} {status}", route.unwrap_or("none"));
                lines.lock().unwrap().push(line);
            })),
        };
        let double = Double::with(|_| {});
        let probes_of = probe_router(Arc::clone(&double));
        let served = Served { api: router(double), access: Arc::new(access), probes: probes_of };
        let limits = ConnectionLimits {
            header_time: Duration::from_millis(500),
            ..ConnectionLimits::default()
        };
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(bound.serve(served, limits, async {
            let _ = stopped.await;
        }));
        Guarded { folder, tcp, tls, probes, audits, answered, server_ca, client_ca, _stop: stop }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn over_tcp(&self, method: &str, path: &str, token: Option<&str>) -> (u16, String) {
        let stream = TcpStream::connect(self.tcp).await.unwrap();
        ask(stream, method, path, token).await
    }

    async fn over_unix(&self, path: &str) -> (u16, String) {
        ask(UnixStream::connect(self.file("api.sock")).await.unwrap(), "GET", path, None).await
    }

    /// Over TLS with this certificate and key: status and body, or why there is no connection.
    async fn over_tls(
        &self,
        pair: Option<&(String, String)>,
        path: &str,
        token: Option<&str>,
    ) -> Result<(u16, String), String> {
        let mut roots = RootCertStore::empty();
        roots.add(self.server_ca.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots);
        let config = match pair {
            None => config.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = CertificateDer::pem_slice_iter(chain.as_bytes());
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                config.with_client_auth_cert(chain.map(Result::unwrap).collect(), key).unwrap()
            }
        };
        let connector = TlsConnector::from(Arc::new(config));
        let stream = TcpStream::connect(self.tls).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
        // In TLS 1.3 a client hears of its refusal only when it reads.
        let request = head("PUT", path, token);
        stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
        let mut answer = Vec::new();
        let read = within(5, stream.read_to_end(&mut answer)).await;
        match answer.is_empty() {
            true => Err(read.err().map_or("closed".to_owned(), |error| error.to_string())),
            false => Ok(parse(&answer)),
        }
    }
}

fn secret(role: Role) -> String {
    format!("secret-of-{role}")
}

fn write_tokens(path: &Path, text: &str) {
    // As a rotation is done: a new file in the place of the old one.
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o640)).unwrap();
    fs::rename(&new, path).unwrap();
}

fn head(method: &str, path: &str, token: Option<&str>) -> String {
    let token = token.map(|token| format!("authorization: Bearer {token}\r\n"));
    let token = token.unwrap_or_default();
    format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{token}\r\n")
}

fn parse(answer: &[u8]) -> (u16, String) {
    let text = String::from_utf8_lossy(answer).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("{text}")), text)
}

async fn ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    path: &str,
    token: Option<&str>,
) -> (u16, String) {
    stream.write_all(head(method, path, token).as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    within(5, stream.read_to_end(&mut answer)).await.unwrap();
    parse(&answer)
}

// ---------------------------------------------------------------- roles

/// Every operation of the document, with the least role that may do it.
fn operations() -> Vec<(String, String, Option<Role>)> {
    let document: Value = serde_json::from_str(include_str!("../../../docs/openapi.json")).unwrap();
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys().map(|method| method.to_uppercase()) {
            let needed = match (method.as_str(), path.as_str()) {
                (_, "/healthz" | "/readyz") => None,
                ("GET", _) | ("POST", "/v1/trace") => Some(Role::Read),
                (_, "/v1/snapshot" | "/v1/teardown" | "/v1/resume") => Some(Role::Admin),
                (_, path) if path.ends_with("/eswitch") => Some(Role::Admin),
                _ => Some(Role::Write),
            };
            let path = match path.as_str() {
                "/v1/events" => "/v1/events?follow=false".to_owned(),
                path => path.replace("{id}", "a"),
            };
            operations.push((method, path, needed));
        }
    }
    operations
}

#[tokio::test]
async fn each_role_may_do_what_it_may_and_nothing_else() {
    let daemon = Guarded::start(Vec::new()).await;
    let mut tried = 0;
    println!("{:7}{:34}{:>10}{:>10}{:>10}{:>10}", "", "", "nobody", "read", "write", "admin");
    for (method, path, needed) in operations() {
        let mut line = format!("{method:7}{path:34}");
        let callers = [None].into_iter().chain(ROLES.map(Some));
        for role in callers {
            let token = role.map(secret);
            let (status, answer) = daemon.over_tcp(&method, &path, token.as_deref()).await;
            let may = needed.is_none_or(|needed| role.is_some_and(|role| role >= needed));
            let refused = match role {
                None => status == 401 && answer.contains("www-authenticate: Bearer"),
                Some(_) => status == 403 && answer.contains("/problems/forbidden"),
            };
            assert_eq!(refused, !may, "{method} {path} {role:?}: {answer}");
            line.push_str(&format!("{:>10}", if may { "yes" } else { "no" }));
            tried += 1;
        }
        println!("{line}");
    }
    assert!(tried >= 4 * 28, "{tried}");
    // Paths that are none, and methods that are not for a path, need what changes need.
    for (method, path) in
        [("POST", "/v1/%74eardown"), ("PATCH", "/v1/ports"), ("PUT", "//v1/apply")]
    {
        let (status, _) = daemon.over_tcp(method, path, Some(&secret(Role::Write))).await;
        assert_eq!(status, 403, "{method} {path}");
    }
}

#[tokio::test]
async fn each_change_leaves_a_record_of_who_what_and_which_revision() {
    let daemon = Guarded::start(Vec::new()).await;
    let body = r#"{"spec": {"kind": "flat"}}"#;
    let head = head("PUT", "/v1/networks/blue", Some(&secret(Role::Write)));
    let length = format!("content-length: {}\r\n\r\n{body}", body.len());
    let mut stream = TcpStream::connect(daemon.tcp).await.unwrap();
    stream.write_all(head.trim_end().as_bytes()).await.unwrap();
    stream.write_all(format!("\r\n{length}").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    within(5, stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(parse(&answer).0, 201);
    daemon.over_tcp("GET", "/v1/networks", Some(&secret(Role::Admin))).await;
    let dry = "/v1/networks/blue?dry_run=true";
    daemon.over_tcp("DELETE", dry, Some(&secret(Role::Admin))).await;
    daemon.over_tcp("DELETE", "/v1/networks/blue", Some(&secret(Role::Admin))).await;
    let audits = daemon.audits.lock().unwrap().clone();
    let expected = [
        Audit {
            who: "token write".into(),
            role: Role::Write,
            what: "PUT /v1/networks/blue".into(),
            status: 201,
            outcome: Some("created".into()),
            revision: Some(1),
        },
        Audit {
            who: "token admin".into(),
            role: Role::Admin,
            what: "DELETE /v1/networks/blue".into(),
            status: 204,
            outcome: None,
            revision: Some(2),
        },
    ];
    assert_eq!(audits, expected);
}

#[tokio::test]
async fn a_token_that_is_rotated_counts_without_a_restart_and_the_old_one_no_longer() {
    let daemon = Guarded::start(Vec::new()).await;
    let status = async |token: &str| daemon.over_tcp("GET", "/v1/ports", Some(token)).await.0;
    assert_eq!(status(&secret(Role::Read)).await, 200);
    write_tokens(&daemon.file("tokens"), &token_line("read", Role::Read, "fresh"));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!((status("fresh").await, status(&secret(Role::Read)).await), (200, 401));
    // A file that cannot be used changes nothing.
    write_tokens(&daemon.file("tokens"), "read king sha256:00");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(status("fresh").await, 200);
}

#[test]
fn a_token_file_that_others_can_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokens");
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(TokenFile::open(path.clone()).unwrap_err().to_string().contains("chmod 0640"));
    assert!(TokenFile::open(folder.path().join("none")).is_err());
}

// ---------------------------------------------------------------- certificates

#[tokio::test]
async fn a_client_is_known_by_a_certificate_of_the_right_authority_that_has_not_expired() {
    let daemon = Guarded::start(Vec::new()).await;
    let by_us = |name: &str, until| certificate(&daemon.client_ca, name, until);
    let write = "/v1/networks/a";
    let outcome = async |pair: Option<&(String, String)>, path: &str, token: Option<&str>| {
        daemon.over_tls(pair, path, token).await.map(|(status, _)| status)
    };
    // An empty body is refused with 400: the role was enough.
    assert_eq!(outcome(Some(&by_us("nova.example", 2100)), write, None).await, Ok(400));
    let admins_only = "/v1/snapshot";
    assert_eq!(outcome(Some(&by_us("nova.example", 2100)), admins_only, None).await, Ok(403));
    assert_eq!(outcome(Some(&by_us("admins.example", 2100)), admins_only, None).await, Ok(400));
    assert_eq!(outcome(Some(&by_us("other.example", 2100)), write, None).await, Ok(403));

    let expired = outcome(Some(&by_us("nova.example", 2001)), write, None).await;
    assert!(expired.is_err_and(|error| error.to_lowercase().contains("expired")));
    let stranger = authority("strangers");
    let foreign = certificate(&stranger, "nova.example", 2100);
    assert!(outcome(Some(&foreign), write, None).await.is_err());

    // Without one: with a token, or not at all.
    assert_eq!(outcome(None, write, None).await, Ok(401));
    assert_eq!(outcome(None, write, Some(&secret(Role::Write))).await, Ok(400));
    // What is not TLS gets nothing.
    let mut stream = TcpStream::connect(daemon.tls).await.unwrap();
    stream.write_all(head("GET", "/v1/ports", None).as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = within(5, stream.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP"));
}

#[tokio::test]
async fn the_client_and_eswitchctl_speak_tls_with_a_certificate_or_a_token() {
    let daemon = Guarded::start(Vec::new()).await;
    let write = |name: &str, text: &str| {
        fs::write(daemon.file(name), text).unwrap();
        Some(daemon.file(name))
    };
    let (chain, key) = certificate(&daemon.client_ca, "nova.example", 2100);
    let ca = write("ca.pem", &daemon.server_ca.pem());
    let (certificate, key) = (write("nova.pem", &chain), write("nova.key", &key));
    let token = write("token", &secret(Role::Read));
    let server = Server::Https { host: "localhost".into(), port: daemon.tls.port() };
    let ask = async |files: CredentialFiles| {
        let client = Client::with_credentials(server.clone(), Credentials::read(&files).unwrap());
        client.networks().await.map_err(|error| match error {
            ClientError::Problem(problem) => problem.kind,
            error => format!("{error:?}"),
        })
    };
    let with_ca = CredentialFiles { ca, ..CredentialFiles::default() };
    let certified = CredentialFiles { certificate, key, ..with_ca.clone() };
    assert_eq!(ask(certified.clone()).await, Ok(vec![]));
    assert_eq!(ask(CredentialFiles { token: token.clone(), ..with_ca.clone() }).await, Ok(vec![]));
    assert_eq!(ask(with_ca.clone()).await.unwrap_err(), "/problems/unauthenticated");
    // Whom the CA does not know is not the daemon.
    let stranger = write("stranger.pem", &authority("strangers").pem());
    let wrong = ask(CredentialFiles { ca: stranger, token, ..with_ca.clone() }).await;
    assert!(wrong.as_ref().is_err_and(|error| error.contains("InvalidCertificate")), "{wrong:?}");
    // Half of what is needed is told before anything is sent.
    let half = CredentialFiles { key: None, ..certified };
    assert!(matches!(Credentials::read(&half), Err(CredentialError::Half)));
    assert!(ask(CredentialFiles::default()).await.unwrap_err().contains("NoCa"));

    let url = server.to_string();
    let file = |name: &str| daemon.file(name).display().to_string();
    let (ca, token) = (file("ca.pem"), file("token"));
    let words =
        ["eswitchctl", "--server", &url, "--ca", &ca, "--token-file", &token, "get", "ports"];
    let arguments = eswitchd_api::cli::Arguments::read(words).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = eswitchd_api::cli::run(arguments, &mut &b""[..], &mut out, &mut err).await;
    assert_eq!(exit, eswitchd_api::cli::Exit::Done, "{}", String::from_utf8_lossy(&err));
}

#[tokio::test]
async fn certificates_that_are_renewed_count_without_a_restart() {
    let daemon = Guarded::start(Vec::new()).await;
    let pair = certificate(&daemon.client_ca, "nova.example", 2100);
    assert!(daemon.over_tls(Some(&pair), "/v1/networks/a", None).await.is_ok());
    let (chain, key) = certificate(&authority("somebody else"), "localhost", 2100);
    fs::write(daemon.file("cert.pem"), chain).unwrap();
    fs::write(daemon.file("key.pem"), key).unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let refused = daemon.over_tls(Some(&pair), "/v1/networks/a", None).await.unwrap_err();
    assert!(refused.contains("invalid peer certificate"), "{refused}");
}

#[tokio::test]
async fn a_client_that_dawdles_before_tls_is_cut_off() {
    let daemon = Guarded::start(Vec::new()).await;
    let mut stream = TcpStream::connect(daemon.tls).await.unwrap();
    stream.write_all(&[0x16]).await.unwrap();
    let mut answer = Vec::new();
    assert!(matches!(within(5, stream.read_to_end(&mut answer)).await, Ok(0) | Err(_)));
}

// ---------------------------------------------------------------- the Unix socket, and probes

#[tokio::test]
async fn the_unix_socket_goes_to_its_group_and_each_peer_has_its_role() {
    let rules = vec![PeerRole { who: PeerMatch::Group(4_000_000), role: Role::Write }];
    let daemon = Guarded::start(rules).await;
    // The daemon's own user may do everything.
    assert_eq!(daemon.over_unix("/v1/ports").await.0, 200);
    let root = nix::unistd::Uid::effective().is_root();
    if root {
        // Others by what their group is: 4000000 has a role, 4000001 has none.
        for (group, status) in [("4000000", "200"), ("4000001", "403")] {
            let socket = daemon.file("api.sock");
            fs::set_permissions(daemon.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
            let curl = tokio::process::Command::new("setpriv")
                .args(["--reuid", "4000009", "--regid", group, "--clear-groups", "curl", "-sS"])
                .args(["-o", "/dev/null", "-w", "%{http_code}", "--unix-socket"])
                .arg(&socket)
                .arg("http://localhost/v1/ports")
                .output()
                .await
                .unwrap();
            assert_eq!(String::from_utf8_lossy(&curl.stdout), status, "{curl:?}");
        }
        let path = daemon.file("grouped.sock");
        let unix = UnixListenSpec { path: path.clone(), mode: 0o660, group: Some(4_000_000) };
        let listeners = Listeners { unix: Some(unix), ..Listeners::default() };
        let _bound = Bound::bind(&listeners).await.unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.gid(), found.mode() & 0o777), (4_000_000, 0o660));
    }
}

#[tokio::test]
async fn each_answered_request_is_told_by_its_route_whether_its_caller_may_or_not() {
    let daemon = Guarded::start(Vec::new()).await;
    let token = secret(Role::Read);
    daemon.over_tcp("GET", "/v1/ports/nobody", Some(&token)).await;
    daemon.over_tcp("GET", "/v1/nothing", Some(&token)).await;
    daemon.over_tcp("DELETE", "/v1/ports/nobody", Some(&token)).await;
    let answered = daemon.answered.lock().unwrap().clone();
    assert_eq!(answered, ["GET /v1/ports/{id} 404", "GET none 404", "DELETE none 403"]);
}

#[tokio::test]
async fn metrics_and_health_have_a_listener_of_their_own_and_nothing_else_is_there() {
    let daemon = Guarded::start(Vec::new()).await;
    for (path, status) in [
        ("/metrics", 200),
        ("/healthz", 200),
        ("/readyz", 200),
        ("/v1/ports", 404),
        ("/openapi.json", 404),
    ] {
        let stream = TcpStream::connect(daemon.probes).await.unwrap();
        assert_eq!(ask(stream, "GET", path, None).await.0, status, "{path}");
    }
    let stream = TcpStream::connect(daemon.probes).await.unwrap();
    let (_, answer) = ask(stream, Method::GET.as_str(), "/healthz", None).await;
    for header in ["nosniff", "no-store", "default-src 'none'", "no-referrer"] {
        assert!(answer.contains(header), "{answer}");
    }
}
