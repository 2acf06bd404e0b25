//! Who may do what: roles, and whom they are given to.
//!
//! In: how a connection was made, a request's head. Out: a [`Caller`] with a role that suffices, or
//! the refusal; and a record of each change. Knows of requests only method and path.

use std::{
    fmt,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::MatchedPath,
    http::{HeaderMap, Method, Request, Response, header::AUTHORIZATION},
    response::IntoResponse,
};
use nix::unistd::{Gid, Uid, User};
use rustls::pki_types::{CertificateDer, DnsName, ServerName};
use tokio::net::unix::UCred;
use tower::ServiceExt;

use super::{
    reply::{self, OUTCOME},
    tokens::{InvalidTokens, Tokens},
};
use crate::error::ApiError;

/// How often files are looked at for a change.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a caller may do; each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Look, and trace frames.
    Read,
    /// Declare networks, ports and guests.
    Write,
    /// Change eswitches, restore snapshots, take flows away.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        })
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Role, String> {
        match text {
            "read" => Ok(Role::Read),
            "write" => Ok(Role::Write),
            "admin" => Ok(Role::Admin),
            _ => Err(format!("`{text}` is no role: use read, write or admin")),
        }
    }
}

/// The least role that may do this; none where anybody may.
fn needed(method: &Method, path: &str) -> Option<Role> {
    let declares = ["/v1/networks/", "/v1/ports/", "/v1/guests/"];
    match *method {
        // The live page is the same for everybody; what it shows it has to ask for.
        _ if ["/healthz", "/readyz", "/ui"].contains(&path) => None,
        Method::GET | Method::HEAD => Some(Role::Read),
        Method::POST if path == "/v1/trace" => Some(Role::Read),
        _ if path == "/v1/apply" || declares.iter().any(|start| path.starts_with(start)) => {
            Some(Role::Write)
        }
        _ => Some(Role::Admin),
    }
}

/// Who gets which role.
#[derive(Default)]
pub struct Access {
    /// Of those who come over the Unix socket; where there are none, whoever can open it is an
    /// administrator.
    pub peers: Vec<PeerRole>,
    /// Of those who come with a certificate, by a DNS name that it is for.
    pub clients: Vec<(DnsName<'static>, Role)>,
    /// The file of bearer tokens.
    pub tokens: Option<TokenFile>,
    /// Told of each change.
    pub audit: Option<Recorder>,
    /// Told of each request that was answered.
    pub seen: Option<Observer>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Access { peers, clients, tokens, .. } = self;
        f.debug_struct("Access")
            .field("peers", peers)
            .field("clients", clients)
            .field("tokens", tokens)
            .finish_non_exhaustive()
    }
}

/// The role of a user or of a group's members on the Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerRole {
    /// Who.
    pub who: PeerMatch,
    /// Their role.
    pub role: Role,
}

/// A user or the members of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerMatch {
    /// The user with this id.
    User(u32),
    /// Who is in the group with this id.
    Group(u32),
}

/// Takes the record of each change.
pub type Recorder = Arc<dyn Fn(&Audit) + Send + Sync>;

/// Takes note of each request that was answered.
pub type Observer = Arc<dyn Fn(Answered<'_>) + Send + Sync>;

/// A request that was answered.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    /// Its method.
    pub method: &'a Method,
    /// The route, `/v1/ports/{id}`; none where it had no right to ask, or for nothing that is there.
    pub route: Option<&'a str>,
    /// The status of the answer.
    pub status: u16,
}

/// A record of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// Who asked for it: `uid 1000 (nova)`, `token neutron`, `certificate nova.example`.
    pub who: String,
    /// The role.
    pub role: Role,
    /// The method and the path.
    pub what: String,
    /// The status of the answer.
    pub status: u16,
    /// What came of it: `created`, `updated`, `unchanged`.
    pub outcome: Option<String>,
    /// The revision that came of it, where the answer says one.
    pub revision: Option<u64>,
}

/// How a connection was made.
#[derive(Debug, Clone)]
pub(super) enum Peer {
    /// Over the Unix socket.
    Unix(UnixPeer),
    /// Over TCP on loopback.
    Loopback,
    /// Over TLS, with a certificate that was verified.
    Certified(CertificateDer<'static>),
    /// Over TLS without one.
    Uncertified,
}

/// Who has connected to the Unix socket: a user and its primary group. The user database is asked
/// once a connection: it may be read from a file, or be far away.
#[derive(Debug, Clone)]
pub(super) struct UnixPeer {
    uid: u32,
    gid: u32,
    known: Arc<OnceLock<(String, Option<Role>)>>,
}

impl From<UCred> for UnixPeer {
    fn from(peer: UCred) -> UnixPeer {
        UnixPeer { uid: peer.uid(), gid: peer.gid(), known: Arc::default() }
    }
}

impl Peer {
    /// Whether web pages can reach the listener through a browser that says nothing of itself.
    pub(super) const fn is_for_browsers(&self) -> bool {
        matches!(self, Peer::Loopback)
    }
}

/// Somebody with a role.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Caller {
    who: String,
    role: Role,
}

impl Access {
    /// Answers a request by `router`, where its caller may.
    pub(super) async fn answer(
        &self,
        peer: &Peer,
        router: Router,
        request: Request<Body>,
    ) -> Response<Body> {
        let method = request.method().clone();
        let response = self.answer_caller(peer, router, request).await;
        if let Some(seen) = &self.seen {
            let route = response.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
            seen(Answered { method: &method, route, status: response.status().as_u16() });
        }
        response
    }

    async fn answer_caller(
        &self,
        peer: &Peer,
        router: Router,
        request: Request<Body>,
    ) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let caller = match needed(&method, &path) {
            None => None,
            Some(role) => match self.permit(peer, request.headers(), role) {
                Ok(caller) => Some(caller),
                Err(error) => {
                    tracing::warn!(target: "audit", ?peer, %method, path, "refused: {error}");
                    return error.into_response();
                }
            },
        };
        let tries = request.uri().query().is_some_and(|query| query.contains("dry_run=true"));
        let changes = needed(&method, &path).is_some_and(|role| role > Role::Read) && !tries;
        let Ok(response) = router.oneshot(request).await;
        if let (Some(Caller { who, role }), Some(audit)) = (caller, &self.audit)
            && changes
        {
            let outcome = response.headers().get(OUTCOME);
            let outcome = outcome.and_then(|value| value.to_str().ok()).map(str::to_owned);
            let revision = response.extensions().get().map(|reply::Revision(number)| *number);
            let (what, status) = (format!("{method} {path}"), response.status().as_u16());
            audit(&Audit { who, role, what, status, outcome, revision });
        }
        response
    }

    fn permit(&self, peer: &Peer, headers: &HeaderMap, needed: Role) -> Result<Caller, ApiError> {
        let caller = self.caller(peer, headers)?;
        match caller.role >= needed {
            true => Ok(caller),
            false => Err(ApiError::Forbidden { who: caller.who, needed: needed.to_string() }),
        }
    }

    /// Who asks.
    fn caller(&self, peer: &Peer, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let unknown = |detail: &str| ApiError::Unauthenticated { detail: detail.to_owned() };
        let no_role = |who: String| ApiError::Forbidden { who, needed: "any".to_owned() };
        if let Some(field) = headers.get(AUTHORIZATION) {
            let token = field.as_bytes().strip_prefix(b"Bearer ");
            let token = token.ok_or_else(|| unknown("the header Authorization has no Bearer"))?;
            let file = self.tokens.as_ref();
            let tokens = file.ok_or_else(|| unknown("no tokens are configured"))?.read();
            let (name, role) = tokens.whose(token).ok_or_else(|| unknown("no such token"))?;
            return Ok(Caller { who: format!("token {name}"), role });
        }
        match peer {
            Peer::Unix(UnixPeer { uid, gid, known }) => {
                let find = || (user_name(*uid), self.role_of_peer(*uid, *gid));
                let (who, role) = known.get_or_init(find).clone();
                let role = role.ok_or_else(|| no_role(who.clone()))?;
                Ok(Caller { who, role })
            }
            Peer::Loopback => Err(unknown("TCP needs a token")),
            Peer::Uncertified => Err(unknown("neither a certificate nor a token")),
            Peer::Certified(certificate) => {
                let certificate = webpki::EndEntityCert::try_from(certificate)
                    .map_err(|_| unknown("the certificate cannot be read"))?;
                let is_for = |name: &DnsName<'static>| {
                    let name = ServerName::DnsName(name.clone());
                    certificate.verify_is_valid_for_subject_name(&name).is_ok()
                };
                let found = self.clients.iter().filter(|(name, _)| is_for(name));
                let found = found.max_by_key(|(_, role)| *role);
                let (name, role) =
                    found.ok_or_else(|| no_role("a certificate without a name here".to_owned()))?;
                Ok(Caller { who: format!("certificate {}", name.as_ref()), role: *role })
            }
        }
    }

    fn role_of_peer(&self, uid: u32, gid: u32) -> Option<Role> {
        // Who may replace the daemon is not kept from asking it.
        if self.peers.is_empty() || uid == 0 || uid == Uid::effective().as_raw() {
            return Some(Role::Admin);
        }
        let groups = groups(uid, gid);
        let applies = |rule: &&PeerRole| match rule.who {
            PeerMatch::User(wanted) => wanted == uid,
            PeerMatch::Group(wanted) => groups.contains(&wanted),
        };
        self.peers.iter().filter(applies).map(|rule| rule.role).max()
    }
}

/// The groups of a user, as the user database has them, and the one that it came with.
fn groups(uid: u32, gid: u32) -> Vec<u32> {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let name = user.and_then(|user| std::ffi::CString::new(user.name).ok());
    let all = name.and_then(|name| nix::unistd::getgrouplist(&name, Gid::from_raw(gid)).ok());
    all.map_or(vec![gid], |all| all.into_iter().map(Gid::as_raw).collect())
}

fn user_name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => format!("uid {uid} ({})", user.name),
        _ => format!("uid {uid}"),
    }
}

// ---------------------------------------------------------------- files that change

/// What files say, read again when one of them has changed. Where they say nothing that can be
/// used, what they said last stays.
#[derive(Debug)]
pub(super) struct Reread<T> {
    files: Vec<PathBuf>,
    last: Mutex<Last<T>>,
}

#[derive(Debug)]
struct Last<T> {
    looked: Instant,
    stamps: Vec<Option<Stamp>>,
    value: Arc<T>,
}

/// What differs when a file was written or another was put in its place.
type Stamp = (u64, u64, i64, i64);

fn stamp(file: &PathBuf) -> Option<Stamp> {
    let of = |data: Metadata| (data.ino(), data.size(), data.mtime(), data.mtime_nsec());
    fs::metadata(file).ok().map(of)
}

impl<T> Reread<T> {
    /// Reads for the first time.
    pub(super) fn new<E>(
        files: Vec<PathBuf>,
        read: impl Fn(&[PathBuf]) -> Result<T, E>,
    ) -> Result<Self, E> {
        let stamps = files.iter().map(stamp).collect();
        let value = Arc::new(read(&files)?);
        let last = Mutex::new(Last { looked: Instant::now(), stamps, value });
        Ok(Reread { files, last })
    }

    /// What the files say.
    pub(super) fn get<E: fmt::Display>(&self, read: impl Fn(&[PathBuf]) -> Result<T, E>) -> Arc<T> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.looked.elapsed() >= LOOK_EVERY {
            last.looked = Instant::now();
            let stamps: Vec<_> = self.files.iter().map(stamp).collect();
            if stamps != last.stamps {
                match read(&self.files) {
                    Ok(value) => {
                        last.value = Arc::new(value);
                        tracing::info!(files = ?self.files, "read again");
                    }
                    Err(error) => {
                        tracing::error!(files = ?self.files, "as before, since: {error}");
                    }
                }
                last.stamps = stamps;
            }
        }
        Arc::clone(&last.value)
    }
}

/// A file of bearer tokens; a change of it counts within a second.
#[derive(Debug)]
pub struct TokenFile(Reread<Tokens>);

/// A token file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// It cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{path}: {source}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: InvalidTokens,
    },
    /// Others can read it.
    #[error("{path}: others may read or write it: chmod 0640")]
    Open {
        /// The file.
        path: PathBuf,
    },
}

impl TokenFile {
    /// Reads a token file.
    ///
    /// # Errors
    /// It cannot be read, others can, or a line is wrong.
    pub fn open(path: PathBuf) -> Result<TokenFile, TokenFileError> {
        Reread::new(vec![path], read_tokens).map(TokenFile)
    }

    fn read(&self) -> Arc<Tokens> {
        self.0.get(read_tokens)
    }
}

fn read_tokens(files: &[PathBuf]) -> Result<Tokens, TokenFileError> {
    let path = files.first().cloned().unwrap_or_default();
    let failed = |source| TokenFileError::Read { path: path.clone(), source };
    let text = fs::read_to_string(&path).map_err(failed)?;
    if fs::metadata(&path).map_err(failed)?.mode() & 0o007 != 0 {
        return Err(TokenFileError::Open { path });
    }
    text.parse().map_err(|source| TokenFileError::Invalid { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_to_need_less_needs_an_administrator() {
        use Role::{Admin, Read, Write};
        for (method, path, role) in [
            (Method::GET, "/healthz", None),
            (Method::GET, "/metrics", Some(Read)),
            (Method::GET, "/v1/ports", Some(Read)),
            (Method::POST, "/v1/trace", Some(Read)),
            (Method::PUT, "/v1/ports/eswitch", Some(Write)),
            (Method::DELETE, "/v1/networks/a", Some(Write)),
            (Method::POST, "/v1/apply", Some(Write)),
            (Method::PUT, "/v1/adapters/a/eswitch", Some(Admin)),
            (Method::PUT, "/v1/snapshot", Some(Admin)),
            (Method::POST, "/v1/teardown", Some(Admin)),
            (Method::POST, "/v1/whatever", Some(Admin)),
        ] {
            assert_eq!(needed(&method, path), role, "{method} {path}");
        }
    }

    #[test]
    fn peers_have_the_highest_role_of_those_that_fit_and_others_none() {
        let rule = |who, role| PeerRole { who, role };
        let peers = vec![
            rule(PeerMatch::User(4_000_001), Role::Read),
            rule(PeerMatch::Group(4_000_002), Role::Write),
        ];
        let access = Access { peers, ..Access::default() };
        assert_eq!(access.role_of_peer(4_000_001, 1), Some(Role::Read));
        assert_eq!(access.role_of_peer(4_000_001, 4_000_002), Some(Role::Write));
        assert_eq!(access.role_of_peer(4_000_003, 4_000_002), Some(Role::Write));
        assert_eq!(access.role_of_peer(4_000_003, 4_000_003), None);
        assert_eq!(access.role_of_peer(0, 0), Some(Role::Admin));
        assert_eq!(Access::default().role_of_peer(4_000_003, 1), Some(Role::Admin));
    }
}
