//! The certificate and key of a listener, their reload, and the TLS handshake.
//!
//! Owns: the server configuration of rustls, which a reload replaces while the listener works.
//!
//! Guarantees:
//! - The served certificate and key belong together, also while their files are replaced one after the other.
//! - No error, log message or `Debug` output contains a part of a key.

use std::{
    convert::Infallible,
    fmt,
    fs::File,
    future::pending,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
    server::TlsStream,
};

use super::metrics::Metrics;
use crate::x509::Certificate;

/// Maximum number of bytes that TLS buffers while the kernel accepts none: one record (RFC 8446 section 5.1). A socket
/// that becomes writable accepts at least as many bytes at once.
///
/// rustls's default is 64 KiB, which is as much memory as a stalled client may cost in all.
const UNSENT_BYTES: usize = 16 * 1024;

/// Maximum number of bytes of a certificate or key file: enough for a hundred certificates.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A certificate and its key, from two files. Clones share them.
#[derive(Clone)]
pub struct ReloadingTls(Arc<Shared>);

struct Shared {
    /// The files in PEM: the certificate, followed by its intermediate certificates, and the key.
    paths: [PathBuf; 2],
    /// The contents of the files that were last loaded or rejected.
    last_evaluated: Mutex<[Vec<u8>; 2]>,
    config: RwLock<Arc<ServerConfig>>,
}

/// When and for what a certificate can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertificateUse {
    /// Start of the validity, in seconds since 1970.
    pub not_before: i64,
    /// End of the validity, in seconds since 1970.
    pub not_after: i64,
    /// Whether a TLS server may use it.
    pub is_for_servers: bool,
}

/// Why a certificate and a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    /// A file has more than 1 MiB.
    #[error("{} is longer than {MAX_FILE_BYTES} bytes", .0.display())]
    TooLong(PathBuf),
    /// The certificate file contains no certificate.
    #[error("there is no certificate in PEM in {}", .0.display())]
    NoCertificate(PathBuf),
    /// The key file contains no private key.
    #[error("there is no private key in PEM in {}", .0.display())]
    NoKey(PathBuf),
    /// The certificate and the key do not belong together, or rustls does not support their kind.
    #[error("the certificate in {} and the key in {} cannot be used together", .0[0].display(), .0[1].display())]
    Unusable([PathBuf; 2], #[source] rustls::Error),
}

impl ReloadingTls {
    /// Reads two files in PEM: the certificate, followed by its intermediate certificates, and the key.
    ///
    /// # Errors
    /// See [`TlsError`]. An error contains no part of a key.
    pub fn read(certificate: &Path, key: &Path) -> Result<ReloadingTls, TlsError> {
        let paths = [certificate.to_owned(), key.to_owned()];
        let contents = [read_file(&paths[0])?, read_file(&paths[1])?];
        let config = RwLock::new(server_config(&paths, &contents)?);
        Ok(ReloadingTls(Arc::new(Shared { paths, last_evaluated: Mutex::new(contents), config })))
    }

    /// Returns what the certificate of the server says, or `None` if it cannot be parsed.
    #[must_use]
    pub fn certificate(&self) -> Option<CertificateUse> {
        let [certificates, _] = &*self.last_evaluated();
        let first = CertificateDer::pem_slice_iter(certificates).next()?.ok()?;
        let Certificate { not_before, not_after, is_for_servers, .. } = Certificate::parse(&first)?;
        Some(CertificateUse { not_before, not_after, is_for_servers })
    }

    /// Reads the files every `interval` until shutdown. New connections use a changed certificate; unusable files
    /// change nothing.
    ///
    /// A change counts at the second read that finds it, because the first read can happen between the replacement of
    /// the two files. Files that are not regular, such as pipes, are not read again.
    pub async fn watch_files(self, interval: Duration, metrics: Metrics) -> Infallible {
        metrics.set_certificate_expiry(expiry(&self.last_evaluated()));
        let mut last = None;
        if self.read_blocking(|paths| paths.iter().any(|path| is_special(path))).await.unwrap_or(true) {
            pending().await
        }
        loop {
            sleep(interval).await;
            let Some(found) = self.read_blocking(reread_files).await else { continue };
            // An error counts as a version as well, so that it is logged once.
            let version = found.as_ref().map_or_else(|error| [error_chain(error).into(), Vec::new()], Clone::clone);
            if last.as_ref() == Some(&version) {
                self.evaluate(found, version, &metrics);
            } else {
                last = Some(version);
            }
        }
    }

    /// Calls `read` on a thread that may block, because a network file system can be slow. Returns `None` if the runtime
    /// shuts down.
    async fn read_blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&[PathBuf; 2]) -> T + Send + 'static,
    ) -> Option<T> {
        let paths = self.0.paths.clone();
        spawn_blocking(move || read(&paths)).await.ok()
    }

    /// Loads a version of the files, unless it is the last one that was evaluated.
    fn evaluate(&self, found: Result<[Vec<u8>; 2], TlsError>, version: [Vec<u8>; 2], metrics: &Metrics) {
        let mut last_evaluated = self.last_evaluated();
        if *last_evaluated == version {
            return;
        }
        *last_evaluated = version;
        match found.and_then(|contents| server_config(&self.0.paths, &contents)) {
            Ok(config) => {
                *self.0.config.write().unwrap_or_else(PoisonError::into_inner) = config;
                metrics.record_tls_reload(true);
                metrics.set_certificate_expiry(expiry(&last_evaluated));
                tracing::info!("TLS certificate reloaded; new connections use it");
            }
            Err(error) => {
                let error = error_chain(&error);
                metrics.record_tls_reload(false);
                tracing::error!(error, "new TLS certificate rejected; the previous one stays in use");
            }
        }
    }

    fn last_evaluated(&self) -> MutexGuard<'_, [Vec<u8>; 2]> {
        self.0.last_evaluated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Performs the handshake on an accepted connection.
    ///
    /// # Errors
    /// If the handshake fails or takes longer than `limit`.
    pub(super) async fn accept(&self, stream: TcpStream, limit: Duration) -> io::Result<Box<TlsStream<TcpStream>>> {
        let config = self.0.config.read().unwrap_or_else(PoisonError::into_inner).clone();
        let limited = |session: &mut rustls::ServerConnection| session.set_buffer_limit(Some(UNSENT_BYTES));
        timeout(limit, TlsAcceptor::from(config).accept_with(stream, limited)).await?.map(Box::new)
    }
}

/// Reads both files again. Opening a pipe would block until another process opens it for writing.
fn reread_files(paths: &[PathBuf; 2]) -> Result<[Vec<u8>; 2], TlsError> {
    let reread = |path: &PathBuf| {
        let special = || TlsError::Unreadable(path.clone(), io::Error::other("it is not a regular file"));
        if is_special(path) { Err(special()) } else { read_file(path) }
    };
    Ok([reread(&paths[0])?, reread(&paths[1])?])
}

/// Returns true if the path names something that exists and is no regular file, such as a pipe.
fn is_special(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file())
}

fn read_file(path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut content = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content));
    let bytes = read.map_err(|error| TlsError::Unreadable(path.to_owned(), error))?;
    if bytes as u64 > MAX_FILE_BYTES { Err(TlsError::TooLong(path.to_owned())) } else { Ok(content) }
}

fn server_config(paths: &[PathBuf; 2], [certificates, key]: &[Vec<u8>; 2]) -> Result<Arc<ServerConfig>, TlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificates).collect();
    let certificates = certificates.ok().filter(|all| !all.is_empty());
    let certificates = certificates.ok_or_else(|| TlsError::NoCertificate(paths[0].clone()))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsError::NoKey(paths[1].clone()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.and_then(|config| config.with_no_client_auth().with_single_cert(certificates, key));
    let mut config = config.map_err(|error| TlsError::Unusable(paths.clone(), error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Returns `notAfter` of the first certificate, in seconds since 1970.
fn expiry([certificates, _]: &[Vec<u8>; 2]) -> Option<i64> {
    let first = CertificateDer::pem_slice_iter(certificates).next()?.ok()?;
    Some(Certificate::parse(&first)?.not_after)
}

/// Returns the text of an error and of its cause.
fn error_chain(error: &TlsError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

impl fmt::Debug for ReloadingTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReloadingTls").field(&self.0.paths).finish()
    }
}
