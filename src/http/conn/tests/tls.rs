//! Handshakes, and what TLS changes about a connection.
use std::{
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
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

/// The only name in the certificates of these tests.
pub(in crate::http) const NAME: &str = "bridge.test";

/// A folder with a certificate and its key, and what a client trusts.
pub(in crate::http) struct Certified {
    folder: tempfile::TempDir,
    trusted: RootCertStore,
}

impl Certified {
    pub(in crate::http) fn new() -> Certified {
        let mut certified = Certified { folder: tempfile::tempdir().unwrap(), trusted: RootCertStore::empty() };
        certified.renew();
        certified
    }

    pub(in crate::http) fn tls(&self) -> Tls {
        let [certificate, key] = self.files();
        Tls::read(&certificate, &key).unwrap()
    }

    fn files(&self) -> [PathBuf; 2] {
        ["tls.crt", "tls.key"].map(|name| self.folder.path().join(name))
    }

    /// Another certificate and another key, both files at once, which clients trust as well. Returns it as clients see it.
    fn renew(&mut self) -> CertificateDer<'static> {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        self.write(0, &made.cert.pem());
        self.write(1, &made.signing_key.serialize_pem());
        self.trusted.add(made.cert.der().clone()).unwrap();
        made.cert.der().clone()
    }

    /// In the place of what was there, at once.
    fn write(&self, which: usize, text: &str) {
        let next = self.folder.path().join("next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(next, &self.files()[which]).unwrap();
    }

    pub(in crate::http) async fn connect(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(self.trusted.clone()).with_no_client_auth();
        let name = ServerName::try_from(NAME).unwrap();
        timeout(BOUND, TlsConnector::from(Arc::new(config)).connect(name, stream)).await.expect("no handshake")
    }
}

fn served(certified: &Certified) -> Config {
    Config { tls: Some(certified.tls()), ..Config::default() }
}

#[tokio::test]
async fn gets_and_a_stream_over_tls() {
    let certified = Certified::new();
    let server = listen(served(&certified), async |request| stream_or_text(&request)).await;
    let mut client = certified.connect(server.connect().await).await.unwrap();
    let requests = "GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n\
                    GET /stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly";
    client.write_all(requests.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    let seen_early = async {
        while !got.ends_with(b"\r\n\r\nearly") {
            assert_ne!(client.read_buf(&mut got).await.unwrap(), 0, "{}", String::from_utf8_lossy(&got));
        }
    };
    timeout(BOUND, seen_early).await.unwrap();
    client.write_all(b"late").await.unwrap();
    // No error: TLS's own end came before TCP's, so that nobody can have cut it short.
    timeout(BOUND, client.read_to_end(&mut got)).await.unwrap().unwrap();
    let got = String::from_utf8(got).unwrap();
    assert!(got.contains("\r\n\r\n</a>HTTP/1.1 200") && got.contains("\r\n\r\n</b>HTTP/1.1 101"), "{got}");
    assert!(got.ends_with("earlylate"), "{got}");
    server.empty().await;
}

#[tokio::test]
async fn requests_say_whether_they_came_through_tls() {
    let certified = Certified::new();
    let answer = async |request: Request<Incoming>| text(request.extensions().get::<Peer>().unwrap().tls.to_string());
    let server = listen(served(&certified), answer).await;
    let mut client = certified.connect(server.connect().await).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut got = String::new();
    timeout(BOUND, client.read_to_string(&mut got)).await.unwrap().unwrap();
    assert!(got.ends_with("\r\n\r\ntrue"), "{got}");
}

/// Whoever does not get through the handshake is gone after the time for a head, and keeps nobody from coming in.
#[tokio::test]
async fn a_handshake_takes_no_longer_than_a_head() {
    let certified = Certified::new();
    let limit = Duration::from_millis(500);
    let config = Config { header_read_timeout: limit, ..served(&certified) };
    let server = listen(config, async |_| text("hello")).await;
    let begun = Instant::now();
    let mut silent = server.connect().await;
    let mut slow = server.connect().await;
    let dripping = async {
        // How a ClientHello begins, and never goes on: each byte in time, all of them never.
        for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".iter().chain(std::iter::repeat(&0)) {
            if slow.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(limit / 10).await;
        }
    };
    let welcome = certified.connect(server.connect().await);
    let (welcome, ()) = timeout(BOUND, futures::future::join(welcome, dripping)).await.expect("the slow one stays");
    drop(welcome.unwrap());
    assert_eq!(silent.read(&mut [0; 16]).await.unwrap_or(0), 0, "a silent one is told nothing");
    assert!(begun.elapsed() >= limit);
    server.empty().await;
}

#[tokio::test]
async fn what_is_no_handshake_ends_at_once() {
    let certified = Certified::new();
    let config = Config { header_read_timeout: 2 * BOUND, ..served(&certified) };
    let server = listen(config, async |_| text("hello")).await;
    for garbage in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff], &[0; 64]] {
        let mut client = server.connect().await;
        client.write_all(garbage).await.unwrap();
        let mut got = Vec::new();
        let _ = timeout(BOUND, client.read_to_end(&mut got)).await.expect("it stays");
        assert!(!got.starts_with(b"HTTP"), "nothing is served in the clear: {got:?}");
    }
    let stranger = Certified::new();
    stranger.connect(server.connect().await).await.expect_err("a certificate of another's");
    server.empty().await;
}

/// TLS takes in what the kernel does not: waiting for that to leave has an end too.
#[tokio::test]
async fn a_flush_that_does_not_move_is_cut() {
    let certified = Certified::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let tls = certified.tls();
    let (client, server) = tokio::join!(certified.connect(client.unwrap()), tls.accept(server.unwrap().0, BOUND));
    let (mut client, stall) = (client.unwrap(), Duration::from_millis(300));
    let mut guarded = Guarded::new(Conn::Tls(server.unwrap()), stall);
    let blocked = timeout(BOUND, async {
        loop {
            // Small enough always to be taken in, once what was there has left.
            poll_fn(|cx| Pin::new(&mut guarded).poll_write(cx, &[0; 1024])).await.unwrap();
            let begun = Instant::now();
            if let Err(error) = guarded.flush().await {
                return (error.kind(), begun.elapsed());
            }
        }
    });
    let (kind, waited) = blocked.await.expect("it waits for ever");
    assert_eq!(kind, io::ErrorKind::TimedOut);
    assert!(waited >= stall, "{waited:?}");
    drop(guarded);
    let mut got = Vec::new();
    let outcome = client.read_to_end(&mut got).await;
    assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "the kernel was to forget the rest");
}

#[test]
fn a_bad_pair_is_refused_and_the_key_is_not_shown() {
    let (certified, other) = (Certified::new(), Certified::new());
    let [certificate, key] = certified.files();
    let [_, others_key] = other.files();
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
        (&certificate, &others_key, "cannot be used together"),
    ];
    let secret = key_text.lines().nth(1).unwrap();
    for (certificate, key, expected) in table {
        let problem = Tls::read(certificate, key).unwrap_err();
        let told = format!("{problem} {problem:?}");
        assert!(told.contains(expected) && !told.contains(secret), "{told}");
    }
    assert!(!format!("{:?}", certified.tls()).contains(secret));
}

/// What the log says.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    async fn says(&self, what: &str) {
        let said = async {
            while !String::from_utf8_lossy(&self.0.lock().unwrap()).contains(what) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(BOUND, said).await.unwrap_or_else(|_| panic!("the log never says {what:?}"));
        self.0.lock().unwrap().clear();
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_certificate_is_exchanged_while_connections_go_on() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let mut certified = Certified::new();
    let first = certified.renew();
    let config = served(&certified);
    let following = config.tls.clone().unwrap().follow(Duration::from_millis(10));
    let server = listen(config, async |_| text("hello")).await;
    server.tasks.spawn("certificate", async { Ok::<_, Infallible>(following.await) });
    let seen = async |certified: &Certified| {
        let client = certified.connect(server.connect().await).await.unwrap();
        let certificates = client.get_ref().1.peer_certificates().unwrap();
        (certificates[0].clone().into_owned(), client)
    };
    let (certificate, mut old) = seen(&certified).await;
    assert_eq!(certificate, first);

    // One file is new and the other is not yet; then one is none at all, then it is gone.
    let [_, key] = certified.files();
    let other = Certified::new();
    std::fs::copy(other.files()[1].clone(), &key).unwrap();
    log.says("the new TLS certificate cannot be used: the one before is still served").await;
    certified.write(1, "nonsense");
    log.says("no private key in PEM").await;
    std::fs::remove_file(&key).unwrap();
    log.says("cannot read").await;
    assert_eq!(seen(&certified).await.0, first);

    let second = certified.renew();
    log.says("the TLS certificate has changed").await;
    assert_eq!(seen(&certified).await.0, second);
    old.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut got = String::new();
    timeout(BOUND, old.read_to_string(&mut got)).await.unwrap().unwrap();
    assert!(got.ends_with("hello"), "who was there stays: {got}");
}
