//! What a client shows to the daemon, and whom it believes to be the daemon.
//!
//! In: files of a token, a CA, a certificate and its key. Out: [`Credentials`], checked. Nothing
//! here is ever printed.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::http::HeaderValue;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    version::TLS13,
};

/// The files that credentials are read from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CredentialFiles {
    /// A bearer token, alone in its file.
    pub token: Option<PathBuf>,
    /// Whose certificates the daemon is known by, PEM; `https://` needs it.
    pub ca: Option<PathBuf>,
    /// The client's own certificate and those between it and its CA, PEM.
    pub certificate: Option<PathBuf>,
    /// Its key, PEM.
    pub key: Option<PathBuf>,
}

/// Credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file holds no token.
    #[error("{path}: is no token: write it alone into the file, without blanks")]
    Token {
        /// The file.
        path: PathBuf,
    },
    /// A file is no PEM file of what it should be.
    #[error("{path}: {source}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// Certificate and key are of no use together.
    #[error("certificate and key: {0}")]
    Pair(#[source] rustls::Error),
    /// One of the two is missing.
    #[error("a certificate needs its key, and a key its certificate: name both files")]
    Half,
    /// Nobody is believed to be the daemon.
    #[error("https:// needs the CA's certificate: name its file (--ca)")]
    NoCa,
}

/// What a client shows to the daemon, and whom it believes.
#[derive(Clone, Default)]
pub struct Credentials {
    /// The whole value of the header `Authorization`.
    pub(crate) authorization: Option<HeaderValue>,
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (token, tls) = (self.authorization.is_some(), self.tls.is_some());
        f.debug_struct("Credentials").field("token", &token).field("tls", &tls).finish()
    }
}

impl Credentials {
    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read or is not what it should be, or one is missing.
    pub fn read(files: &CredentialFiles) -> Result<Credentials, CredentialError> {
        let authorization = files.token.as_deref().map(authorization).transpose()?;
        let tls = match (&files.ca, &files.certificate, &files.key) {
            (None, None, None) => None,
            (None, ..) => return Err(CredentialError::NoCa),
            (Some(ca), certificate, key) => {
                Some(Arc::new(tls(ca, certificate.as_ref(), key.as_ref())?))
            }
        };
        Ok(Credentials { authorization, tls })
    }
}

fn authorization(path: &Path) -> Result<HeaderValue, CredentialError> {
    let read = fs::read_to_string(path);
    let text = read.map_err(|source| CredentialError::Read { path: path.to_owned(), source })?;
    let token = text.trim();
    let value = HeaderValue::try_from(format!("Bearer {token}"));
    let mut value = value
        .ok()
        .filter(|_| !token.is_empty() && !token.contains(char::is_whitespace))
        .ok_or_else(|| CredentialError::Token { path: path.to_owned() })?;
    value.set_sensitive(true);
    Ok(value)
}

fn tls(
    ca: &Path,
    certificate: Option<&PathBuf>,
    key: Option<&PathBuf>,
) -> Result<ClientConfig, CredentialError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(ca)?);
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .map_err(CredentialError::Pair)?
        .with_root_certificates(roots);
    match (certificate, key) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(certificate), Some(path)) => {
            let key = PrivateKeyDer::from_pem_file(path)
                .map_err(|source| CredentialError::Pem { path: path.clone(), source })?;
            builder
                .with_client_auth_cert(certificates(certificate)?, key)
                .map_err(CredentialError::Pair)
        }
        _ => Err(CredentialError::Half),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
    let wrong = |source| CredentialError::Pem { path: path.to_owned(), source };
    CertificateDer::pem_file_iter(path).map_err(wrong)?.collect::<Result<_, _>>().map_err(wrong)
}
