//! TLS of a measurement: certificates, the configuration of clients, and the configuration of the baseline.

use std::{
    io,
    net::TcpStream,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned,
    client::Resumption,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};

/// A self-signed certificate for 127.0.0.1 and its key, in files that are removed with this value.
#[derive(Debug)]
pub(crate) struct CertificateFiles {
    folder: tempfile::TempDir,
}

impl CertificateFiles {
    pub(crate) fn new() -> Result<CertificateFiles> {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        let files = CertificateFiles { folder: tempfile::tempdir()? };
        std::fs::write(files.certificate(), made.cert.pem())?;
        std::fs::write(files.key(), made.signing_key.serialize_pem())?;
        Ok(files)
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.path().join("tls.crt")
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.folder.path().join("tls.key")
    }

    /// Returns the flags `--tls-cert` and `--tls-key` with these files.
    pub(crate) fn flags(&self) -> [String; 2] {
        [format!("--tls-cert={}", self.certificate().display()), format!("--tls-key={}", self.key().display())]
    }
}

/// Returns a configuration that trusts the certificates of this file only.
pub(crate) fn client(ca: &Path) -> Result<Arc<ClientConfig>> {
    let mut trusted = RootCertStore::empty();
    for certificate in certificates(ca)? {
        trusted.add(certificate).with_context(|| format!("cannot trust a certificate of {}", ca.display()))?;
    }
    let mut config = ClientConfig::builder().with_root_certificates(trusted).with_no_client_auth();
    // Each client stands for a program of its own that connects for the first time.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Returns a configuration like that of the bridge's own listener.
pub(crate) fn server(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>> {
    let private = PrivateKeyDer::from_pem_file(key).with_context(|| format!("no private key in {}", key.display()))?;
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(certificates(certificate)?, private);
    Ok(Arc::new(config.context("the certificate and the key do not fit together")?))
}

/// Returns the name that a server's certificate must contain.
pub(crate) fn name(host: &str) -> Result<ServerName<'static>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(bare.to_owned()).with_context(|| format!("{host} is not a host name or an address"))
}

/// Wraps a blocking connection.
pub(crate) fn blocking(
    stream: TcpStream,
    config: &Arc<ClientConfig>,
) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let host = stream.peer_addr()?.ip().to_string();
    Ok(StreamOwned::new(ClientConnection::new(config.clone(), name(&host)?)?, stream))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let all = all.map_err(io::Error::other).with_context(|| format!("cannot read {}", file.display()))?;
    ensure!(!all.is_empty(), "no certificate in PEM in {}", file.display());
    Ok(all)
}
