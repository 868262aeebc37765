//! TLS: what a listener encrypts with, and the handshake.

use std::{fmt, io, sync::Arc, time::Duration};

use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
    server::TlsStream,
};

/// A certificate and its key.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

/// Why a certificate and a key cannot be served with.
#[derive(Debug, thiserror::Error)]
pub enum BadTls {
    /// The certificate's file.
    #[error("there is no certificate in PEM")]
    NoCertificate,
    /// The key's file.
    #[error("there is no private key in PEM")]
    NoKey,
    /// They do not belong together, or are of a kind that is not known.
    #[error("certificate and key cannot be used together")]
    Unusable(#[source] rustls::Error),
}

impl Tls {
    /// From the text of PEM files: the certificate followed by those that vouch for it, and its key.
    ///
    /// # Errors
    /// See [`BadTls`]. Nothing of a key is repeated.
    pub fn new(certificates: &[u8], key: &[u8]) -> Result<Tls, BadTls> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificates).collect();
        let certificates = certificates.ok().filter(|all| !all.is_empty()).ok_or(BadTls::NoCertificate)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| BadTls::NoKey)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.and_then(|config| config.with_no_client_auth().with_single_cert(certificates, key));
        let mut config = config.map_err(BadTls::Unusable)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls(TlsAcceptor::from(Arc::new(config))))
    }

    /// # Errors
    /// When the handshake fails, or takes longer than `limit`.
    pub(super) async fn accept(&self, stream: TcpStream, limit: Duration) -> io::Result<Box<TlsStream<TcpStream>>> {
        timeout(limit, self.0.accept(stream)).await?.map(Box::new)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}
