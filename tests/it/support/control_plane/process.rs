//! The processes of a control plane: where their binaries are, how one is started and killed, and how none outlives
//! the test process.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

/// Ports that are tried. Below Linux's ephemeral range (32768 and up): a client that keeps trying a server that was
/// killed could otherwise be given that very port as its own, and be connected to itself.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// One of the two servers: how to start it, and the process while it runs.
#[derive(Debug)]
pub(crate) struct Server {
    binary: PathBuf,
    flags: Vec<String>,
    log: PathBuf,
    pid_file: PathBuf,
    child: Option<Child>,
}

impl Server {
    pub(crate) fn new(binaries: &Path, name: &str, dir: &Path, flags: Vec<String>) -> Self {
        let [log, pid_file] = ["log", "pid"].map(|suffix| dir.join(format!("{name}.{suffix}")));
        Self { binary: binaries.join(name), flags, log, pid_file, child: None }
    }

    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.binary.display());
        let log = std::fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let child = Command::new(&self.binary)
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.binary.display()));
        std::fs::write(&self.pid_file, child.id().to_string()).unwrap();
        self.child = Some(child);
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; in either case it is gone after the wait, and its number may be used again.
            let _ = child.kill();
            let _ = child.wait();
            let _ = std::fs::remove_file(&self.pid_file);
        }
    }

    pub(crate) fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// `Err` once a started server has ended by itself.
    pub(crate) fn alive(&mut self) -> Result<(), String> {
        match self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
            Some(status) => Err(format!("{} ended, {status}\n{}", self.binary.display(), self.log_tail())),
            None => Ok(()),
        }
    }

    pub(crate) fn log_tail(&self) -> String {
        let log = text(&std::fs::read(&self.log).unwrap_or_default());
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

/// The folder with etcd, kube-apiserver and kubectl: `KUBEBUILDER_ASSETS`, or what `tests/control-plane/build` makes
/// of the pinned modules (minutes the first time, and nothing from then on).
pub(crate) async fn binaries() -> PathBuf {
    if let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS") {
        return assets.into();
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let output = tokio::process::Command::new("tests/control-plane/build")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CARGO_TARGET_DIR", target)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .await
        .expect("tests/control-plane/build cannot be run");
    assert!(
        output.status.success(),
        "these tests run against a real API server, which tests/control-plane/build could not build (its message is \
         above). Install Go 1.26 or let tests/run do it, or set KUBEBUILDER_ASSETS to a folder with etcd, \
         kube-apiserver and kubectl; or leave these tests out: cargo test --lib"
    );
    text(&output.stdout).trim().into()
}

/// Ends the servers and removes the folder once this process is gone, however it went: it reads a pipe that only we
/// hold open.
pub(crate) fn orphan_killer(dir: &Path) -> Child {
    const SCRIPT: &str = r#"
        trap '' INT TERM HUP
        cat >/dev/null
        for pid in "$1"/*.pid; do test -f "$pid" && kill -9 "$(cat "$pid")"; done
        rm -rf "$1" || { sleep 1; rm -rf "$1"; }
    "#;
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT, "reaper"]).arg(dir).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let offset = (std::process::id() as u16).wrapping_mul(16).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + offset % (PORTS.end - PORTS.start);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
