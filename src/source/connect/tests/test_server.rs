//! An API server over TLS that records the credentials of requests.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

/// What the server has seen of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) authorization: Option<String>,
    /// The client certificate in DER.
    pub(super) certificate: Option<Vec<u8>>,
}

/// A server that answers each request with an empty object, or with the next prepared status.
pub(super) struct TestServer {
    pub(super) url: String,
    /// The certificate of the server, in PEM.
    pub(super) certificate: String,
    clients: Issuer<'static, KeyPair>,
    seen: Arc<Mutex<Vec<Seen>>>,
    statuses: Arc<Mutex<VecDeque<u16>>>,
}

impl TestServer {
    pub(super) async fn start() -> TestServer {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let mut authority = CertificateParams::new([]).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(authority.self_signed(&key).unwrap().der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build().unwrap();
        let key_der = PrivateKeyDer::from_pem_slice(made.signing_key.serialize_pem().as_bytes()).unwrap();
        let config = ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![made.cert.der().clone()], key_der)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let (seen, statuses) = (Arc::<Mutex<Vec<Seen>>>::default(), Arc::<Mutex<VecDeque<u16>>>::default());
        let server = TestServer {
            url,
            certificate: made.cert.pem(),
            clients: Issuer::new(authority, key),
            seen: seen.clone(),
            statuses: statuses.clone(),
        };
        let acceptor = TlsAcceptor::from(Arc::new(config));
        #[allow(clippy::disallowed_methods, reason = "the tasks of a test end with its runtime")]
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (acceptor, seen, statuses) = (acceptor.clone(), seen.clone(), statuses.clone());
                tokio::spawn(async move {
                    let Ok(mut socket) = acceptor.accept(socket).await else { return };
                    let certificate = socket.get_ref().1.peer_certificates().map(|all| all[0].to_vec());
                    let mut head = Vec::new();
                    while let Ok(byte) = socket.read_u8().await {
                        head.push(byte);
                        if head.ends_with(b"\r\n\r\n") {
                            let text = String::from_utf8_lossy(&std::mem::take(&mut head)).into_owned();
                            let header = text.lines().find_map(|line| line.strip_prefix("authorization: "));
                            let authorization = header.map(str::to_owned);
                            seen.lock().unwrap().push(Seen { authorization, certificate: certificate.clone() });
                            let status = statuses.lock().unwrap().pop_front().unwrap_or(200);
                            let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\n{{}}");
                            if socket.write_all(answer.as_bytes()).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        server
    }

    /// Issues a client certificate. Returns certificate and key in PEM, and the certificate in DER.
    pub(super) fn client(&self, name: &str) -> (String, String, Vec<u8>) {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.clients).unwrap();
        let pem = certificate.pem();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
        (pem, key.serialize_pem(), der)
    }

    /// Answers the next requests with these statuses.
    pub(super) fn answer(&self, statuses: &[u16]) {
        self.statuses.lock().unwrap().extend(statuses);
    }

    /// Returns what the server has seen since the last call.
    pub(super) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}
