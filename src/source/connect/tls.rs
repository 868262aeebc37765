//! The TLS configuration of connections to the API server.
//!
//! Guarantees:
//! - A server is trusted if its certificate is issued by one of the given certificates, or is one of them. In both cases its
//!   names, its validity and its usage are checked, and it must prove that it has the private key.
//! - A client certificate of any X.509 version is sent. Its key must belong to it.
//! - No session is resumed: a resumed session would keep a former client certificate and skip the verification.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kube::client::ConfigExt;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, ExtendedKeyPurpose, RootCertStore, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, ring},
    pki_types::{
        CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer, ServerName, UnixTime,
        pem::PemObject,
    },
    server::ParsedCertificate,
    sign::{CertifiedKey, SigningKey, SingleCertAndKey},
};

use super::field::FieldError;
use crate::x509::Certificate;

/// Bytes of a field, and the name of the field in errors.
#[derive(Clone, Copy)]
pub(super) struct Pem<'a> {
    pub(super) place: &'a str,
    pub(super) bytes: &'a [u8],
}

/// How the server is verified.
#[derive(Clone, Copy)]
pub(super) enum Trusted<'a> {
    /// With the certificates of the operating system. The text is the field that would name others.
    System(&'a str),
    Certificates(Pem<'a>),
    Everything,
}

/// Builds the configuration.
///
/// # Errors
/// When certificates or keys cannot be used. The error names the field.
pub(super) fn client_config(trusted: Trusted<'_>, identity: Option<[Pem<'_>; 2]>) -> Result<ClientConfig, FieldError> {
    let identity = identity.map(client_identity).transpose()?;
    let mut config = match trusted {
        Trusted::System(place) => system_config(place)?,
        Trusted::Certificates(pem) => with_verifier(Arc::new(GivenCertificates::new(pem)?), pem.place)?,
        Trusted::Everything => with_verifier(Arc::new(NoVerification), "insecure-skip-tls-verify")?,
    };
    if let Some(identity) = identity {
        config.client_auth_cert_resolver = identity;
    }
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Builds a configuration with the verifier of the operating system, which kube finds.
fn system_config(place: &str) -> Result<ClientConfig, FieldError> {
    kube::Config::new(http::Uri::from_static("https://localhost")).rustls_client_config().map_err(|error| {
        let hint = "set it to the certificate authority of the cluster";
        FieldError::new(place, format!("the field is missing, and the system has no certificates: {error}; {hint}"))
    })
}

fn with_verifier(verifier: Arc<dyn ServerCertVerifier>, place: &str) -> Result<ClientConfig, FieldError> {
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = config.map_err(|error| FieldError::new(place, error.to_string()))?;
    Ok(config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Returns the certificates of a PEM text. Other sections and malformed sections are skipped, as in Go.
fn certificates(pem: Pem<'_>) -> Result<Vec<CertificateDer<'static>>, FieldError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem.bytes).filter_map(Result::ok).collect();
    if found.is_empty() {
        return Err(FieldError::new(pem.place, "there is no certificate in PEM in it"));
    }
    Ok(found)
}

fn client_identity([certificate, key]: [Pem<'_>; 2]) -> Result<Arc<dyn ResolvesClientCert>, FieldError> {
    let chain = certificates(certificate)?;
    let der =
        private_key(key.bytes).ok_or_else(|| FieldError::new(key.place, "there is no private key in PEM in it"))?;
    // As in Go, the label of the section does not count.
    let forms: [PrivateKeyDer<'_>; 3] = [
        PrivatePkcs8KeyDer::from(der.as_slice()).into(),
        PrivateSec1KeyDer::from(der.as_slice()).into(),
        PrivatePkcs1KeyDer::from(der.as_slice()).into(),
    ];
    let signing_key = forms.iter().find_map(|form| ring::sign::any_supported_type(form).ok());
    let signing_key = signing_key.ok_or_else(|| {
        let problem = "the key is malformed, encrypted, or of a kind that the TLS library does not support; it supports \
                       RSA with 2048 to 8192 bits, ECDSA with P-256 or P-384, and Ed25519";
        FieldError::new(key.place, problem)
    })?;
    if !belongs_to(&*signing_key, &chain[0]) {
        let problem = format!("the key does not belong to the certificate of {}", certificate.place);
        return Err(FieldError::new(key.place, problem));
    }
    // `ConfigBuilder::with_client_auth_cert` refuses X.509 version 1, because it parses the certificate with webpki. The
    // server verifies the certificate; the client only sends it.
    Ok(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, signing_key))))
}

/// Returns the content of the first section whose label ends with `PRIVATE KEY`. The content is empty if it is not base64,
/// for example because the section is encrypted and has header lines.
fn private_key(pem: &[u8]) -> Option<Vec<u8>> {
    let mut lines = pem.split(|byte| matches!(byte, b'\r' | b'\n')).map(<[u8]>::trim_ascii);
    lines.find(|line| line.starts_with(b"-----BEGIN ") && line.ends_with(b"PRIVATE KEY-----"))?;
    let base64: Vec<u8> = lines.take_while(|line| !line.starts_with(b"-----END ")).flatten().copied().collect();
    Some(STANDARD.decode(base64).unwrap_or_default())
}

fn belongs_to(key: &dyn SigningKey, certificate: &CertificateDer<'_>) -> bool {
    let Some(parsed) = Certificate::parse(certificate) else { return false };
    // All keys of ring know their public key.
    key.public_key().is_none_or(|public_key| public_key.as_ref() == parsed.public_key)
}

/// Trusts the given certificates: as issuers of the server's certificate, and as the server's certificate itself.
///
/// client-go does the same (`crypto/x509.Certificate.Verify`). webpki alone accepts only issuers, and refuses a server that
/// presents a self-signed certificate of an authority.
#[derive(Debug)]
struct GivenCertificates {
    given: Vec<CertificateDer<'static>>,
    issuers: Arc<WebPkiServerVerifier>,
}

impl GivenCertificates {
    fn new(pem: Pem<'_>) -> Result<GivenCertificates, FieldError> {
        let unusable =
            |reason: String| FieldError::new(pem.place, format!("no certificate in it can be used: {reason}"));
        let (mut roots, mut given, mut refused) = (RootCertStore::empty(), Vec::new(), String::new());
        for certificate in certificates(pem)? {
            // As in Go, one certificate that can be used is enough.
            match roots.add(certificate.clone()) {
                Ok(()) => given.push(certificate),
                Err(error) => refused = error.to_string(),
            }
        }
        if given.is_empty() {
            return Err(unusable(refused));
        }
        let issuers = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
        Ok(GivenCertificates { given, issuers: issuers.map_err(|error| unusable(error.to_string()))? })
    }
}

impl ServerCertVerifier for GivenCertificates {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.given.contains(end_entity) {
            return verify_given(end_entity, server_name, now);
        }
        self.issuers.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.issuers.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.issuers.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.issuers.supported_verify_schemes()
    }
}

/// Verifies a certificate that is trusted itself. rustls verifies the server's signature separately.
fn verify_given(
    certificate: &CertificateDer<'_>,
    server_name: &ServerName<'_>,
    now: UnixTime,
) -> Result<ServerCertVerified, rustls::Error> {
    let fields = Certificate::parse(certificate).ok_or(CertificateError::BadEncoding)?;
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if seconds < fields.not_before {
        return Err(CertificateError::NotValidYet.into());
    }
    if seconds > fields.not_after {
        return Err(CertificateError::Expired.into());
    }
    if !fields.is_for_servers {
        let required = ExtendedKeyPurpose::ServerAuth;
        return Err(CertificateError::InvalidPurposeContext { required, presented: Vec::new() }.into());
    }
    verify_server_name(&ParsedCertificate::try_from(certificate)?, server_name)?;
    Ok(ServerCertVerified::assertion())
}

/// `insecure-skip-tls-verify: true`.
#[derive(Debug)]
struct NoVerification;

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
