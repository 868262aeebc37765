//! The processes of a control plane: finding the binaries, starting and killing a server, choosing ports.
//!
//! Guarantees: no server outlives the test process ([`orphan_killer`]).

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

/// Ports that are tried. They are below Linux's ephemeral range (32768 and up). Otherwise a client that retries a
/// killed server could get the server's port as its own local port and connect to itself.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// One of the two servers: its command and, while it runs, its process.
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
        assert!(self.child.is_none(), "{} already runs", self.binary.display());
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

    /// Sends a signal, such as `STOP`.
    #[cfg(all(feature = "mqtt", feature = "nats"))]
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // The process may have exited before. After the wait it has exited, and the system can reuse its id.
            let _ = child.kill();
            let _ = child.wait();
            let _ = std::fs::remove_file(&self.pid_file);
        }
    }

    pub(crate) fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// Returns an error with the end of the log if a started server has exited by itself.
    pub(crate) fn alive(&mut self) -> Result<(), String> {
        match self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
            Some(status) => Err(format!("{} exited: {status}\n{}", self.binary.display(), self.log_tail())),
            None => Ok(()),
        }
    }

    pub(crate) fn log_tail(&self) -> String {
        let log = text(&std::fs::read(&self.log).unwrap_or_default());
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

/// Returns the folder with etcd, kube-apiserver and kubectl: `KUBEBUILDER_ASSETS`, or the folder into which
/// `tests/control-plane/build` builds the pinned modules. The first build takes minutes; later calls take no time.
pub(crate) async fn binaries() -> PathBuf {
    if let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS") {
        return assets.into();
    }
    built_binaries("tests/control-plane/build").await
}

/// Returns the folder into which a script of tests builds programs from pinned modules.
///
/// # Panics
/// When the script fails. It says why on stderr.
pub(crate) async fn built_binaries(script: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let output = tokio::process::Command::new(script)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CARGO_TARGET_DIR", target)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .await
        .unwrap_or_else(|error| panic!("{script} cannot be run: {error}"));
    assert!(
        output.status.success(),
        "{script} cannot build the programs that this test needs; its message is above. Install Go 1.26, or run tests/run, \
         which installs it. For etcd, kube-apiserver and kubectl, KUBEBUILDER_ASSETS can name a folder that has them. \
         `cargo test --lib` runs the tests that need no such program"
    );
    text(&output.stdout).trim().into()
}

/// Starts a shell process that kills the servers and removes the folder when the test process has ended, for any
/// reason. It reads a pipe that only the test process holds open. A killed server can still create files for a moment,
/// so the removal is tried for up to 5 s.
pub(crate) fn orphan_killer(dir: &Path) -> Child {
    const SCRIPT: &str = r#"
        trap '' INT TERM HUP
        cat >/dev/null
        for pid in "$1"/*.pid; do test -f "$pid" && kill -9 "$(cat "$pid")"; done
        tries=0
        until rm -rf "$1" || [ "$tries" -ge 50 ]; do tries=$((tries + 1)); sleep 0.1; done
    "#;
    let mut command = Command::new("sh");
    command
        .args(["-c", SCRIPT, "orphan-killer"])
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
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
