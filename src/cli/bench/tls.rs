//! TLS of a measurement: what clients trust, and what the floor encrypts with.

use std::{io, net::TcpStream, path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned,
    client::Resumption,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};

/// Trusts the certificates of this file, and nothing else.
pub(super) fn client(ca: &Path) -> Result<Arc<ClientConfig>> {
    let mut trusted = RootCertStore::empty();
    for certificate in certificates(ca)? {
        trusted.add(certificate).with_context(|| format!("a certificate of {}", ca.display()))?;
    }
    let mut config = ClientConfig::builder().with_root_certificates(trusted).with_no_client_auth();
    // The clients stand for as many programs, none of which has been here before.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// As the bridge's own listener does it.
pub(super) fn server(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>> {
    let private = PrivateKeyDer::from_pem_file(key).with_context(|| format!("no private key in {}", key.display()))?;
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(certificates(certificate)?, private);
    Ok(Arc::new(config.context("the certificate and the key cannot be used together")?))
}

/// The name that a server's certificate must be for.
pub(super) fn name(host: &str) -> Result<ServerName<'static>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(bare.to_owned()).with_context(|| format!("{host} is no name"))
}

/// A connection for few questions, each of which may wait.
pub(super) fn blocking(
    stream: TcpStream,
    config: &Arc<ClientConfig>,
) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let host = stream.peer_addr()?.ip().to_string();
    Ok(StreamOwned::new(ClientConnection::new(config.clone(), name(&host)?)?, stream))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let all = all.map_err(io::Error::other).with_context(|| format!("cannot read {}", file.display()))?;
    ensure!(!all.is_empty(), "there is no certificate in PEM in {}", file.display());
    Ok(all)
}
