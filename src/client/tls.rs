//! TLS of a client: the roots of the system, or those of a file.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use rustls_platform_verifier::BuilderVerifierExt as _;

use super::error::Error;

/// Returns the configuration of TLS. `has_tls` says whether a URL has TLS. If none has and no file is given, the
/// configuration trusts no server, and the roots of the system are not read: the image of the bridge has none.
///
/// # Errors
/// The file has no certificate, or the roots of the system cannot be used.
pub(crate) fn config(has_tls: bool, ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Setting(format!("TLS: {error}")))?;
    let Some(path) = ca_file else {
        if !has_tls {
            return Ok(Arc::new(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth()));
        }
        let builder = builder.with_platform_verifier();
        let builder = builder.map_err(|error| Error::Setting(format!("the system's certificates: {error}")))?;
        return Ok(Arc::new(builder.with_no_client_auth()));
    };
    let invalid = |reason: String| Error::Setting(format!("{}: {reason}", path.display()));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| invalid(error.to_string()))? {
        let certificate = certificate.map_err(|error| invalid(error.to_string()))?;
        roots.add(certificate).map_err(|error| invalid(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(invalid("the file has no certificate; accepted: PEM".to_owned()));
    }
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}
