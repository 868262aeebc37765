//! TLS: what a listener encrypts with, its exchange while the listener goes on, and the handshake.
//!
//! Always: a certificate and a key that go together, as files that are replaced one after the other may not for a
//! moment. Nothing of a key is shown.

use std::{
    convert::Infallible,
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use tokio::{
    net::TcpStream,
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

/// Bytes that TLS keeps of what the kernel does not take: one record (RFC 8446, section 5.1), which is also no more than
/// the kernel takes at once when it takes anything. rustls would keep 64 KiB, as much as a stalled client may cost in all.
const UNSENT_BYTES: usize = 16 * 1024;

/// A certificate and its key, from two files. Clones are the same one.
#[derive(Clone)]
pub struct ReloadingTls(Arc<Shared>);

struct Shared {
    /// In PEM: the certificate followed by those that vouch for it, and its key.
    paths: [PathBuf; 2],
    /// What the files were like when they were last taken, or found to be of no use.
    last_evaluated: Mutex<[Vec<u8>; 2]>,
    config: RwLock<Arc<ServerConfig>>,
}

/// Why a certificate and a key cannot be served with.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("cannot read {}", .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    /// The certificate's file.
    #[error("there is no certificate in PEM in {}", .0.display())]
    NoCertificate(PathBuf),
    /// The key's file.
    #[error("there is no private key in PEM in {}", .0.display())]
    NoKey(PathBuf),
    /// They do not belong together, or are of a kind that is not known.
    #[error("the certificate in {} and the key in {} cannot be used together", .0[0].display(), .0[1].display())]
    Unusable([PathBuf; 2], #[source] rustls::Error),
}

impl ReloadingTls {
    /// From two files in PEM: the certificate followed by those that vouch for it, and its key.
    ///
    /// # Errors
    /// See [`TlsError`]. Nothing of a key is repeated.
    pub fn read(certificate: &Path, key: &Path) -> Result<ReloadingTls, TlsError> {
        let paths = [certificate.to_owned(), key.to_owned()];
        let contents = read_files(&paths)?;
        let config = RwLock::new(server_config(&paths, &contents)?);
        Ok(ReloadingTls(Arc::new(Shared { paths, last_evaluated: Mutex::new(contents), config })))
    }

    /// Looks at the files again and again, for ever. What is new there is for whoever connects from then on; what is of
    /// no use changes nothing. It counts at the second look that finds the same: a look may come between the two files.
    pub async fn watch_files(self, interval: Duration) -> Infallible {
        let mut last = None;
        loop {
            sleep(interval).await;
            // Small files, mostly in memory: not worth a thread.
            let found = read_files(&self.0.paths);
            // A problem is told once, as a bad version is.
            let version = found.as_ref().map_or_else(|error| [error_chain(error).into(), Vec::new()], Clone::clone);
            if last.as_ref() == Some(&version) {
                self.evaluate(found, version);
            } else {
                last = Some(version);
            }
        }
    }

    fn evaluate(&self, found: Result<[Vec<u8>; 2], TlsError>, version: [Vec<u8>; 2]) {
        let mut last_evaluated = self.0.last_evaluated.lock().unwrap_or_else(PoisonError::into_inner);
        if *last_evaluated == version {
            return;
        }
        *last_evaluated = version;
        match found.and_then(|contents| server_config(&self.0.paths, &contents)) {
            Ok(config) => {
                *self.0.config.write().unwrap_or_else(PoisonError::into_inner) = config;
                tracing::info!("the TLS certificate has changed: it is for those who connect from now on");
            }
            Err(error) => {
                let error = error_chain(&error);
                tracing::error!(error, "the new TLS certificate cannot be used: the one before is still served");
            }
        }
    }

    /// # Errors
    /// When the handshake fails, or takes longer than `limit`.
    pub(super) async fn accept(&self, stream: TcpStream, limit: Duration) -> io::Result<Box<TlsStream<TcpStream>>> {
        let config = self.0.config.read().unwrap_or_else(PoisonError::into_inner).clone();
        let limited = |session: &mut rustls::ServerConnection| session.set_buffer_limit(Some(UNSENT_BYTES));
        timeout(limit, TlsAcceptor::from(config).accept_with(stream, limited)).await?.map(Box::new)
    }
}

fn read_files(paths: &[PathBuf; 2]) -> Result<[Vec<u8>; 2], TlsError> {
    let read = |path: &PathBuf| std::fs::read(path).map_err(|error| TlsError::Unreadable(path.clone(), error));
    Ok([read(&paths[0])?, read(&paths[1])?])
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

/// With its cause.
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
