//! TLS of the API's listeners: TLS 1.3, and a certificate of the client where a CA for those is
//! named.
//!
//! In: PEM files. Out: what accepts connections by them. Files that change count from the next
//! connection on, within a second; connections that are open stay.

use std::{io, path::PathBuf, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    server::{VerifierBuilderError, WebPkiClientVerifier},
    version::TLS13,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::access::{Peer, Reread};

/// The files of a TLS listener, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The daemon's certificate, and those between it and its CA.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Whose certificates clients are known by; none, where clients bring tokens only.
    pub client_ca: Option<PathBuf>,
}

/// The files of a TLS listener cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is no PEM file of what it should be.
    #[error("{path}: {source}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// Certificate and key are of no use together.
    #[error("certificate {certificate} and key {key}: {source}")]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong with them.
        source: rustls::Error,
    },
    /// The CA of clients is of no use.
    #[error("client_ca {path}: {source}")]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: VerifierBuilderError,
    },
}

/// Accepts TLS connections.
#[derive(Debug)]
pub(super) struct Tls {
    files: TlsFiles,
    /// Whether a client may come without a certificate.
    tokens: bool,
    config: Reread<ServerConfig>,
}

impl Tls {
    /// By these files; with `tokens`, clients without a certificate may come.
    pub(super) fn open(files: TlsFiles, tokens: bool) -> Result<Tls, TlsError> {
        let watched = [Some(&files.certificate), Some(&files.key), files.client_ca.as_ref()];
        let watched = watched.into_iter().flatten().cloned().collect();
        let config = Reread::new(watched, |_| read(&files, tokens))?;
        Ok(Tls { files, tokens, config })
    }

    /// Makes a connection one of TLS.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<(TlsStream<TcpStream>, Peer)> {
        let config = self.config.get(|_| read(&self.files, self.tokens));
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let certificates = stream.get_ref().1.peer_certificates();
        let peer = match certificates.and_then(<[_]>::first) {
            Some(certificate) => Peer::Certified(certificate.clone().into_owned()),
            None => Peer::Uncertified,
        };
        Ok((stream, peer))
    }
}

fn read(files: &TlsFiles, tokens: bool) -> Result<ServerConfig, TlsError> {
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|source| TlsError::Pem { path: files.key.clone(), source })?;
    let provider = Arc::new(ring::default_provider());
    let pair = |source| TlsError::Pair {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        source,
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_protocol_versions(&[&TLS13]).map_err(pair)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if tokens { verifier.allow_unauthenticated() } else { verifier };
            let verifier = verifier
                .build()
                .map_err(|source| TlsError::ClientCa { path: path.clone(), source })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    builder.with_single_cert(chain, key).map_err(pair)
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |source| TlsError::Pem { path: path.clone(), source };
    CertificateDer::pem_file_iter(path).map_err(wrong)?.collect::<Result<_, _>>().map_err(wrong)
}
