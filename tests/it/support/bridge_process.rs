//! A process of the bridge's binary, started as a user starts it.
//!
//! Owns the process and its log. The process is killed when the value is dropped.

use std::{
    net::SocketAddr,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::watch,
    time::timeout,
};

use super::{
    control_plane::ControlPlane,
    http_client::{self, TEST_TIMEOUT, WsClient},
};

/// Maximum number of log lines that are stored for failing tests.
pub(crate) const LOG_LINES: usize = 10_000;

/// A running bridge. It is killed when dropped.
#[derive(Debug)]
pub(crate) struct BridgeProcess {
    child: Child,
    pub(crate) address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl BridgeProcess {
    /// Starts `serve` on a namespace of a real control plane and waits until it is ready.
    pub(crate) async fn serve(plane: &ControlPlane, namespace: &str, args: &[&str]) -> BridgeProcess {
        let kubeconfig = plane.kubeconfig();
        let bridge = BridgeProcess::start(&kubeconfig.to_string_lossy(), namespace, args).await;
        bridge.wait_ready().await;
        bridge
    }

    /// Starts `serve` with this kubeconfig and waits until it listens. It need not be ready.
    pub(crate) async fn start(kubeconfig: &str, namespace: &str, args: &[&str]) -> BridgeProcess {
        let mut all = vec!["serve", "--port", "0", "--kubeconfig", kubeconfig, "--namespace", namespace];
        all.extend(args);
        BridgeProcess::run(&all).await
    }

    /// Starts any command that listens.
    pub(crate) async fn run(args: &[&str]) -> BridgeProcess {
        BridgeProcess::run_with(args, &[]).await
    }

    /// Starts any command that listens, with these environment variables.
    pub(crate) async fn run_with(args: &[&str], variables: &[(&str, &str)]) -> BridgeProcess {
        let mut command = command(args);
        command.envs(variables.iter().copied());
        BridgeProcess::spawn(command).await
    }

    /// Starts any command that listens, with this limit of open files, soft and hard.
    pub(crate) async fn run_with_file_limit(args: &[&str], files: u32) -> BridgeProcess {
        // The shell replaces itself by the bridge, so that the process is the bridge.
        let plain = command(args);
        let mut limited = Command::new("sh");
        limited.args(["-c", &format!("ulimit -n {files}; exec \"$0\" \"$@\"")]);
        limited.arg(plain.as_std().get_program()).args(args).stdin(Stdio::null());
        // `command` only removes variables.
        for (name, _) in plain.as_std().get_envs() {
            limited.env_remove(name);
        }
        BridgeProcess::spawn(limited).await
    }

    async fn spawn(mut command: Command) -> BridgeProcess {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (sender, mut address) = watch::channel(None);
        let sender = Arc::new(sender);
        tokio::spawn(follow(child.stdout.take().unwrap(), log.clone(), sender.clone()));
        tokio::spawn(follow(child.stderr.take().unwrap(), log.clone(), sender));
        let address = timeout(TEST_TIMEOUT, address.wait_for(Option::is_some)).await;
        let address = match address {
            Ok(Ok(address)) => address.unwrap(),
            _ => panic!("the process does not listen: {:#?}", log.lock().unwrap()),
        };
        BridgeProcess { child, address, log }
    }

    /// Waits until `/readyz` answers 200.
    pub(crate) async fn wait_ready(&self) {
        let ready = timeout(TEST_TIMEOUT, async {
            while http_client::get(self.address, "/readyz").await.status != 200 {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        });
        assert!(ready.await.is_ok(), "the bridge is not ready: {:#?}", self.log());
    }

    /// Opens a WebSocket on this path.
    pub(crate) async fn listen(&self, path: &str) -> WsClient {
        WsClient::connect(self.address, path).await
    }

    /// Returns the address of the listener for probes, which `--probe-listen` has started.
    pub(crate) fn probe_address(&self) -> SocketAddr {
        let log = self.log();
        let url = log.iter().find_map(|line| line.split_once("probes at http://")?.1.split('/').next());
        url.expect("no listener for probes in the log").parse().unwrap()
    }

    /// Returns the lines that the process has logged and printed.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the log has a line with this text, and returns the line.
    pub(crate) async fn wait_for_log(&self, text: &str) -> String {
        let found = timeout(TEST_TIMEOUT, async {
            loop {
                if let Some(line) = self.log().into_iter().find(|line| line.contains(text)) {
                    return line;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        });
        found.await.unwrap_or_else(|_| panic!("the log has no line with {text:?}: {:#?}", self.log()))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Returns the resident memory in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Sends a signal by its name without `SIG`, such as `TERM`.
    pub(crate) async fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status().await.unwrap();
        assert!(sent.success());
    }

    /// Stops all threads of the process with SIGSTOP and waits until they are stopped.
    pub(crate) async fn pause(&self) {
        self.signal("STOP").await;
        let stopped = timeout(TEST_TIMEOUT, async {
            while !self.threads_are_stopped() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        });
        assert!(stopped.await.is_ok(), "the process does not stop");
    }

    /// Continues a stopped process.
    pub(crate) async fn resume(&self) {
        self.signal("CONT").await;
    }

    fn threads_are_stopped(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        // proc_pid_stat(5): the state is the field after the name. The name ends with the last parenthesis.
        let mut stats = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("stat")).ok());
        stats.all(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')))
    }

    /// Waits until the process exits.
    pub(crate) async fn ended(&mut self, bound: std::time::Duration) -> ExitStatus {
        timeout(bound, self.child.wait())
            .await
            .unwrap_or_else(|_| panic!("the process still runs: {:#?}", self.log()))
            .unwrap()
    }
}

/// No certificates of the system, as in the image of the bridge: commands that use no TLS must not need them.
pub(crate) const NO_ROOTS: [(&str, &str); 2] = [("SSL_CERT_FILE", "/nowhere"), ("SSL_CERT_DIR", "/nowhere")];

/// Returns the binary with these arguments, without the environment variables that configure the bridge.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_boilerhouse-bridge"));
    for (name, _) in std::env::vars()
        .filter(|(name, _)| ["BRIDGE_", "BOILERHOUSE_", "OTEL_"].iter().any(|start| name.starts_with(start)))
    {
        command.env_remove(name);
    }
    for name in ["PORT", "LISTEN_HOST", "K8S_NAMESPACE", "CORS_ORIGIN", "KUBECONFIG", "LOG_LEVEL"] {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null());
    command
}

async fn follow(
    stream: impl AsyncRead + Unpin,
    log: Arc<Mutex<Vec<String>>>,
    sender: Arc<watch::Sender<Option<SocketAddr>>>,
) {
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(address) = address(&line) {
            sender.send_replace(Some(address));
        }
        let mut log = log.lock().unwrap();
        if log.len() < LOG_LINES {
            log.push(line);
        }
    }
}

/// Returns the address in a log line with `listening on http://…` or `listening on https://…`, or of a line that is a URL.
fn address(line: &str) -> Option<SocketAddr> {
    let rest = line.split_once("listening on ").map_or(line, |(_, rest)| rest).strip_prefix("http")?;
    let rest = rest.strip_prefix('s').unwrap_or(rest).strip_prefix("://")?;
    rest.split(|c: char| c.is_whitespace() || c == ',' || c == '/').next()?.parse().ok()
}
