//! TLS handshakes, certificate reload, and connections over TLS.

use std::{
    io::{self, Write},
    path::PathBuf,
    pin::Pin,
};

use tokio::{io::AsyncWrite, time::Instant};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring::default_provider,
        pki_types::{CertificateDer, ServerName},
    },
};

use super::*;

/// The server name in the certificates of these tests.
pub(in crate::http) const SERVER_NAME: &str = "bridge.test";

/// A folder with a certificate and its key, and the roots that a client trusts.
pub(in crate::http) struct TestCertificate {
    folder: tempfile::TempDir,
    trusted: RootCertStore,
}

impl TestCertificate {
    pub(in crate::http) fn new() -> TestCertificate {
        let mut certified = TestCertificate { folder: tempfile::tempdir().unwrap(), trusted: RootCertStore::empty() };
        certified.renew();
        certified
    }

    pub(in crate::http) fn tls(&self) -> ReloadingTls {
        let [certificate, key] = self.files();
        ReloadingTls::read(&certificate, &key).unwrap()
    }

    fn files(&self) -> [PathBuf; 2] {
        ["tls.crt", "tls.key"].map(|name| self.folder.path().join(name))
    }

    /// Replaces both files by a new certificate and key, which clients trust as well. Returns the certificate in DER.
    fn renew(&mut self) -> CertificateDer<'static> {
        let generated = rcgen::generate_simple_self_signed([SERVER_NAME.to_owned()]).unwrap();
        self.write(0, &generated.cert.pem());
        self.write(1, &generated.signing_key.serialize_pem());
        self.trusted.add(generated.cert.der().clone()).unwrap();
        generated.cert.der().clone()
    }

    /// Replaces a file atomically.
    fn write(&self, which: usize, text: &str) {
        let next = self.folder.path().join("next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(next, &self.files()[which]).unwrap();
    }

    pub(in crate::http) async fn connect(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(self.trusted.clone()).with_no_client_auth();
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        timeout(TIMEOUT, TlsConnector::from(Arc::new(config)).connect(name, stream)).await.expect("the handshake ends")
    }
}

fn tls_config(certified: &TestCertificate) -> Config {
    Config { tls: Some(certified.tls()), ..Config::default() }
}

#[tokio::test]
async fn gets_and_stream_work_over_tls() {
    let certified = TestCertificate::new();
    let server = start_server(tls_config(&certified), async |request| stream_or_text(&request)).await;
    let mut client = certified.connect(server.connect().await).await.unwrap();
    let requests = "GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n\
                    GET /stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly";
    client.write_all(requests.as_bytes()).await.unwrap();
    let mut received = Vec::new();
    let read_until_early_bytes = async {
        while !received.ends_with(b"\r\n\r\nearly") {
            assert_ne!(client.read_buf(&mut received).await.unwrap(), 0, "{}", String::from_utf8_lossy(&received));
        }
    };
    timeout(TIMEOUT, read_until_early_bytes).await.unwrap();
    client.write_all(b"late").await.unwrap();
    // No error: `close_notify` precedes the end of the TCP connection, so that the data is complete.
    timeout(TIMEOUT, client.read_to_end(&mut received)).await.unwrap().unwrap();
    let received = String::from_utf8(received).unwrap();
    assert!(
        received.contains("\r\n\r\n</a>HTTP/1.1 200") && received.contains("\r\n\r\n</b>HTTP/1.1 101"),
        "{received}"
    );
    assert!(received.ends_with("earlylate"), "{received}");
    server.wait_until_idle().await;
}

#[tokio::test]
async fn request_extensions_mark_tls_connections() {
    let certified = TestCertificate::new();
    let respond =
        async |request: Request<Incoming>| text_response(request.extensions().get::<Peer>().unwrap().tls.to_string());
    let server = start_server(tls_config(&certified), respond).await;
    let mut client = certified.connect(server.connect().await).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut received = String::new();
    timeout(TIMEOUT, client.read_to_string(&mut received)).await.unwrap().unwrap();
    assert!(received.ends_with("\r\n\r\ntrue"), "{received}");
}

/// A client that does not complete the handshake is disconnected after `header_read_timeout`, and does not delay
/// others.
#[tokio::test]
async fn tls_handshake_is_closed_after_header_read_timeout() {
    let certified = TestCertificate::new();
    let limit = Duration::from_millis(500);
    let config = Config { header_read_timeout: limit, ..tls_config(&certified) };
    let server = start_server(config, async |_| text_response("hello")).await;
    let started = Instant::now();
    let mut silent = server.connect().await;
    let mut slow = server.connect().await;
    let slow_handshake = async {
        // The start of a ClientHello, one byte at a time: each byte arrives in time, and the message is never complete.
        for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".iter().chain(std::iter::repeat(&0)) {
            if slow.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(limit / 10).await;
        }
    };
    let other_handshake = certified.connect(server.connect().await);
    let (other_handshake, ()) = timeout(TIMEOUT, futures::future::join(other_handshake, slow_handshake))
        .await
        .expect("the slow client is disconnected");
    drop(other_handshake.unwrap());
    assert_eq!(silent.read(&mut [0; 16]).await.unwrap_or(0), 0, "the silent client receives nothing");
    assert!(started.elapsed() >= limit);
    server.wait_until_idle().await;
}

#[tokio::test]
async fn invalid_tls_handshake_closes_the_connection_at_once() {
    let certified = TestCertificate::new();
    let config = Config { header_read_timeout: 2 * TIMEOUT, ..tls_config(&certified) };
    let server = start_server(config, async |_| text_response("hello")).await;
    for garbage in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff], &[0; 64]] {
        let mut client = server.connect().await;
        client.write_all(garbage).await.unwrap();
        let mut received = Vec::new();
        let _ = timeout(TIMEOUT, client.read_to_end(&mut received)).await.expect("the server closes the connection");
        assert!(!received.starts_with(b"HTTP"), "the server sends no plain HTTP: {received:?}");
    }
    let other_certificate = TestCertificate::new();
    other_certificate.connect(server.connect().await).await.expect_err("the client does not trust the certificate");
    server.wait_until_idle().await;
}

/// TLS buffers bytes that the kernel does not accept. The flush of that buffer has a timeout as well.
#[tokio::test]
async fn blocked_tls_flush_fails_after_write_timeout() {
    let certified = TestCertificate::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let tls = certified.tls();
    let (client, server) = tokio::join!(certified.connect(client.unwrap()), tls.accept(server.unwrap().0, TIMEOUT));
    let (mut client, write_timeout) = (client.unwrap(), Duration::from_millis(300));
    let mut timed_io = HyperIo::new(Conn::Tls(server.unwrap()), write_timeout);
    let blocked = timeout(TIMEOUT, async {
        loop {
            // TLS always accepts this write, because its buffer is empty after each flush.
            std::future::poll_fn(|cx| Pin::new(&mut timed_io).poll_write(cx, &[0; 1024])).await.unwrap();
            let started = Instant::now();
            if let Err(error) = timed_io.flush().await {
                return (error.kind(), started.elapsed());
            }
        }
    });
    let (kind, waited) = blocked.await.expect("the flush fails");
    assert_eq!(kind, io::ErrorKind::TimedOut);
    assert!(waited >= write_timeout, "{waited:?}");
    drop(timed_io);
    let mut received = Vec::new();
    let outcome = client.read_to_end(&mut received).await;
    assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "the connection is reset");
}

#[test]
fn unusable_certificate_pair_is_rejected_without_printing_the_key() {
    let (certified, other) = (TestCertificate::new(), TestCertificate::new());
    let [certificate, key] = certified.files();
    let [_, other_key] = other.files();
    let key_text = std::fs::read_to_string(&key).unwrap();
    let (missing, empty) = (certified.folder.path().join("missing"), certified.folder.path().join("empty"));
    std::fs::write(&empty, "").unwrap();
    let broken = certified.folder.path().join("broken");
    std::fs::write(&broken, key_text.replace("-----END", "-----FIN")).unwrap();
    let table = [
        (&missing, &key, "cannot read"),
        (&certificate, &missing, "cannot read"),
        (&empty, &key, "no certificate in PEM"),
        (&key, &key, "no certificate in PEM"),
        (&certificate, &empty, "no private key in PEM"),
        (&certificate, &broken, "no private key in PEM"),
        (&certificate, &certificate, "no private key in PEM"),
        (&certificate, &other_key, "cannot be used together"),
    ];
    let secret = key_text.lines().nth(1).unwrap();
    for (certificate, key, expected) in table {
        let error = ReloadingTls::read(certificate, key).unwrap_err();
        let printed = format!("{error} {error:?}");
        assert!(printed.contains(expected) && !printed.contains(secret), "{printed}");
    }
    assert!(!format!("{:?}", certified.tls()).contains(secret));
}

/// The text of the log.
#[derive(Clone, Default)]
struct CapturedLog(Arc<Mutex<Vec<u8>>>);

impl CapturedLog {
    async fn wait_for(&self, expected: &str) {
        let written = async {
            while !String::from_utf8_lossy(&self.0.lock().unwrap()).contains(expected) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(TIMEOUT, written).await.unwrap_or_else(|_| panic!("the log does not contain {expected:?}"));
        self.0.lock().unwrap().clear();
    }
}

impl Write for CapturedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn certificate_reload_keeps_open_connections() {
    let log = CapturedLog::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let mut certified = TestCertificate::new();
    let first = certified.renew();
    let (config, metrics) = (tls_config(&certified), Metrics::default());
    let watch = config.tls.clone().unwrap().watch_files(Duration::from_millis(10), metrics.clone());
    let server = start_server(config, async |_| text_response("hello")).await;
    server.tasks.spawn("certificate", async { Ok::<_, Infallible>(watch.await) });
    let served_certificate = async |certified: &TestCertificate| {
        let client = certified.connect(server.connect().await).await.unwrap();
        let certificates = client.get_ref().1.peer_certificates().unwrap();
        (certificates[0].clone().into_owned(), client)
    };
    let (certificate, mut old) = served_certificate(&certified).await;
    assert_eq!(certificate, first);

    // One file is new and the other is not; then the key file contains no key; then it is deleted.
    let [_, key] = certified.files();
    let other = TestCertificate::new();
    std::fs::copy(other.files()[1].clone(), &key).unwrap();
    log.wait_for("new TLS certificate rejected; the previous one stays in use").await;
    certified.write(1, "nonsense");
    log.wait_for("no private key in PEM").await;
    std::fs::remove_file(&key).unwrap();
    log.wait_for("cannot read").await;
    assert_eq!(served_certificate(&certified).await.0, first);

    let second = certified.renew();
    log.wait_for("TLS certificate reloaded; new connections use it").await;
    assert_eq!(served_certificate(&certified).await.0, second);
    old.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let expected = crate::x509::Certificate::parse(&second).map(|certificate| certificate.not_after);
    assert!(expected.is_some() && metrics.certificate_expiry() == expected, "{expected:?} is reported");
    assert_eq!([true, false].map(|success| metrics.tls_reloads(success)), [1, 3], "good and bad reloads");
    let mut received = String::new();
    timeout(TIMEOUT, old.read_to_string(&mut received)).await.unwrap().unwrap();
    assert!(received.ends_with("hello"), "the open connection is still served: {received}");
}
