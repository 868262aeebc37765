//! Brokers for tests: mosquitto (MQTT) and nats-server (NATS), on loopback.
//!
//! Owns the process and its folder. It can be killed and started again on the same port and with the same files. It ends
//! when the value is dropped, and when the test process ends.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    process::Command,
    time::{Instant, sleep},
};

use super::control_plane::process::{Server, built_binaries, free_port, orphan_killer};
use super::http_client::get;

/// How long a broker may take to listen. It takes some 50 ms, and longer beside a compiler.
const LISTEN_BOUND: Duration = Duration::from_secs(30);
/// Number of attempts to start, because another process can bind the port after it was chosen.
const START_ATTEMPTS: usize = 3;

/// A running broker.
#[derive(Debug)]
pub(crate) struct Broker {
    server: Server,
    orphan_killer: Child,
    dir: TempDir,
    pub(crate) address: SocketAddr,
}

impl Broker {
    /// Starts mosquitto with these lines of configuration beside the listener, and these files in its folder. `DIR` in a
    /// line stands for the folder.
    pub(crate) async fn mosquitto(lines: &[&str], files: &[(&str, &str)]) -> Broker {
        let binaries = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/opt/homebrew/sbin"].map(Path::new);
        let folder = binaries.into_iter().find(|folder| folder.join("mosquitto").exists());
        let folder = folder.expect("mosquitto is missing: install the package mosquitto").to_owned();
        Broker::start(&folder, "mosquitto", files, |dir, port| {
            // Without `user`, root would become a user that cannot read the folder.
            let mut config = format!("listener {port} 127.0.0.1\nuser root\nmax_queued_messages 0\n");
            lines.iter().for_each(|line| config += &format!("{}\n", line.replace("DIR", &dir.to_string_lossy())));
            let path = dir.join("mosquitto.conf");
            std::fs::write(&path, config).unwrap();
            vec!["-c".to_owned(), path.to_string_lossy().into_owned()]
        })
        .await
    }

    /// Starts nats-server with JetStream. `config` is the text of a configuration file; `DIR` stands for the folder.
    pub(crate) async fn nats(config: &str, files: &[(&str, &str)]) -> Broker {
        Broker::start(&built_binaries("tests/nats-server/build").await, "nats-server", files, |dir, port| {
            let folder = dir.to_string_lossy();
            let path = dir.join("nats.conf");
            std::fs::write(&path, config.replace("DIR", &folder)).unwrap();
            let store = format!("{folder}/store");
            let config = path.to_string_lossy().into_owned();
            ["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd", &store, "-c", &config].map(str::to_owned).into()
        })
        .await
    }

    async fn start(
        binaries: &Path,
        name: &str,
        files: &[(&str, &str)],
        flags: impl Fn(&Path, u16) -> Vec<String>,
    ) -> Broker {
        for attempt in 1.. {
            let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
            files.iter().for_each(|(name, content)| std::fs::write(dir.path().join(name), content).unwrap());
            let server = Server::new(binaries, name, dir.path(), flags(dir.path(), port));
            let (orphan_killer, address) = (orphan_killer(dir.path()), (Ipv4Addr::LOCALHOST, port).into());
            let mut broker = Broker { server, orphan_killer, dir, address };
            match broker.listen().await {
                Ok(()) => return broker,
                Err(error) => assert!(attempt < START_ATTEMPTS, "{error}"),
            }
        }
        unreachable!("the loop returns or panics")
    }

    /// Starts a killed broker again, and waits until it listens.
    pub(crate) async fn restart(&mut self) {
        self.listen().await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Kills the broker with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.server.kill();
    }

    /// Sends a signal to the broker, such as `STOP`.
    #[cfg(all(feature = "mqtt", feature = "nats"))]
    pub(crate) fn signal(&self, name: &str) {
        self.server.signal(name);
    }

    /// Returns the path of a file in the folder of the broker.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn listen(&mut self) -> Result<(), String> {
        self.server.start();
        let start = Instant::now();
        while TcpStream::connect(self.address).await.is_err() {
            self.server.alive()?;
            if start.elapsed() > LISTEN_BOUND {
                return Err(format!("it does not listen: {}", self.server.log_tail()));
            }
            sleep(Duration::from_millis(20)).await;
        }
        self.server.alive()
    }

    /// Publishes one message with mosquitto_pub and these further arguments, and waits until that is done.
    pub(crate) async fn publish(&self, topic: &str, payload: &[u8], args: &[&str]) {
        // It accepts no empty message from stdin.
        let source = if payload.is_empty() { "-n" } else { "-s" };
        let mut child = self.publisher(topic, &[args, &[source]].concat());
        let mut input = child.stdin.take().unwrap();
        input.write_all(payload).await.unwrap();
        drop(input);
        let status = child.wait().await.unwrap();
        assert!(status.success(), "mosquitto_pub: {status}");
    }

    /// Starts mosquitto_pub. With `-l`, each line that it reads is a message.
    pub(crate) fn publisher(&self, topic: &str, args: &[&str]) -> tokio::process::Child {
        let port = self.address.port().to_string();
        let mut command = Command::new("mosquitto_pub");
        command.args(["-V", "5", "-h", "127.0.0.1", "-p", &port, "-t", topic]).args(args);
        command.stdin(Stdio::piped()).kill_on_drop(true);
        command.spawn().expect("mosquitto_pub is missing: install the package mosquitto-clients")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        let _ = self.orphan_killer.kill();
        let _ = self.orphan_killer.wait();
    }
}

/// Asserts that docs/metrics.md has a row for each metric of the bridge whose name starts with this prefix.
pub(crate) async fn assert_metrics_are_documented(bridge: SocketAddr, prefix: &str) {
    let document = std::fs::read_to_string("docs/metrics.md").unwrap();
    let metrics = get(bridge, "/metrics").await.body;
    let metrics = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let metrics: Vec<_> = metrics.filter(|(name, _)| name.starts_with(prefix)).collect();
    assert!(metrics.len() > 3, "{metrics:?}");
    for (name, kind) in metrics {
        let total = if kind == "counter" { "_total" } else { "" };
        assert!(document.contains(&format!("| `{name}{total}` | {kind} |")), "{name} {kind} is not in docs/metrics.md");
    }
}
