//! The binary as a user runs it.

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

/// Lines of log that are kept for failing tests.
pub(crate) const LOG_LINES: usize = 10_000;

/// A running bridge; killed when dropped.
#[derive(Debug)]
pub(crate) struct BridgeProcess {
    child: Child,
    pub(crate) address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl BridgeProcess {
    /// `serve` against a real control plane's namespace, ready.
    pub(crate) async fn serve(plane: &ControlPlane, namespace: &str, args: &[&str]) -> BridgeProcess {
        let kubeconfig = plane.kubeconfig();
        let bridge = BridgeProcess::start(&kubeconfig.to_string_lossy(), namespace, args).await;
        bridge.wait_ready().await;
        bridge
    }

    /// `serve` with this kubeconfig, listening, not necessarily ready.
    pub(crate) async fn start(kubeconfig: &str, namespace: &str, args: &[&str]) -> BridgeProcess {
        let mut all = vec!["serve", "--port", "0", "--kubeconfig", kubeconfig, "--namespace", namespace];
        all.extend(args);
        BridgeProcess::run(&all).await
    }

    /// Any command that listens.
    pub(crate) async fn run(args: &[&str]) -> BridgeProcess {
        BridgeProcess::run_with(args, &[]).await
    }

    /// The same, with these in its environment.
    pub(crate) async fn run_with(args: &[&str], variables: &[(&str, &str)]) -> BridgeProcess {
        let mut command = command(args);
        command.envs(variables.iter().copied());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (found, mut address) = watch::channel(None);
        let found = Arc::new(found);
        tokio::spawn(follow(child.stdout.take().unwrap(), log.clone(), found.clone()));
        tokio::spawn(follow(child.stderr.take().unwrap(), log.clone(), found));
        let address = timeout(TEST_TIMEOUT, address.wait_for(Option::is_some)).await;
        let address = match address {
            Ok(Ok(address)) => address.unwrap(),
            _ => panic!("it did not listen: {:#?}", log.lock().unwrap()),
        };
        BridgeProcess { child, address, log }
    }

    /// Waits until `/readyz` says so.
    pub(crate) async fn wait_ready(&self) {
        let ready = timeout(TEST_TIMEOUT, async {
            while http_client::get(self.address, "/readyz").await.status != 200 {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        });
        assert!(ready.await.is_ok(), "not ready: {:#?}", self.log());
    }

    /// A WebSocket on this path.
    pub(crate) async fn listen(&self, path: &str) -> WsClient {
        WsClient::connect(self.address, path).await
    }

    /// What it has logged and printed.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Resident memory in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Sends SIGTERM, SIGINT, SIGSTOP, …
    pub(crate) async fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status().await.unwrap();
        assert!(sent.success());
    }

    /// Stops it in the middle of what it does (SIGSTOP), all of its threads: from now on it notices nothing.
    pub(crate) async fn pause(&self) {
        self.signal("STOP").await;
        let stopped = timeout(TEST_TIMEOUT, async {
            while !self.threads_are_stopped() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        });
        assert!(stopped.await.is_ok(), "it does not stop");
    }

    /// Lets a paused one go on.
    pub(crate) async fn resume(&self) {
        self.signal("CONT").await;
    }

    fn threads_are_stopped(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        // proc_pid_stat(5): the state is the field behind the name, which ends with the last parenthesis.
        let mut stats = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("stat")).ok());
        stats.all(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')))
    }

    /// Waits for the end.
    pub(crate) async fn ended(&mut self, bound: std::time::Duration) -> ExitStatus {
        timeout(bound, self.child.wait()).await.unwrap_or_else(|_| panic!("still running: {:#?}", self.log())).unwrap()
    }
}

/// The binary with these arguments and nothing of the environment that would steer it.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_boilerhouse-bridge"));
    for (name, _) in
        std::env::vars().filter(|(name, _)| name.starts_with("BRIDGE_") || name.starts_with("BOILERHOUSE_"))
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
    found: Arc<watch::Sender<Option<SocketAddr>>>,
) {
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(address) = address(&line) {
            found.send_replace(Some(address));
        }
        let mut log = log.lock().unwrap();
        if log.len() < LOG_LINES {
            log.push(line);
        }
    }
}

/// The first `http://host:port`, or `https`, of a line that is about listening.
fn address(line: &str) -> Option<SocketAddr> {
    let rest = line.split_once("listening on http")?.1;
    let rest = rest.strip_prefix('s').unwrap_or(rest).strip_prefix("://")?;
    rest.split(|c: char| c.is_whitespace() || c == ',' || c == '/').next()?.parse().ok()
}
