//! Child processes of a measurement: this program in another role, and the bridge under test.
//!
//! Each of them ends with its handle.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::{Serialize, de::DeserializeOwned};

/// A child has this long to end by itself, 2 s: longer than any of them needs.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// The bridge that cargo has built for this bench.
pub(crate) const BRIDGE: &str = env!("CARGO_BIN_EXE_boilerhouse-bridge");

/// This program in another role. It answers each line of JSON with a line of JSON, and ends when its input ends.
#[derive(Debug)]
pub(crate) struct ChildProcess {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl ChildProcess {
    /// Starts `process ROLE ARGUMENTS` of this program.
    pub(crate) fn start<T: AsRef<OsStr>>(role: &str, args: &[T]) -> Result<ChildProcess> {
        let program = std::env::current_exe().context("cannot find the file of this program")?;
        let mut command = Command::new(program);
        command.args(["--bench", "process", role]).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start a process of the measurement")?;
        let (input, output) = (child.stdin.take(), child.stdout.take().context("the process has no output")?);
        Ok(ChildProcess { child, input, output: BufReader::new(output) })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a message that has no answer.
    pub(crate) fn send(&mut self, message: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let input = self.input.as_mut().context("the input of the process is closed")?;
        input.write_all(&line).context("a process of the measurement has ended")
    }

    /// Waits for the next message.
    pub(crate) fn receive<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("a process of the measurement has ended; see its error above");
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Sends a message and waits for its answer.
    pub(crate) fn request<T: DeserializeOwned>(&mut self, message: &impl Serialize) -> Result<T> {
        self.send(message)?;
        self.receive()
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        self.input = None;
        end(&mut self.child);
    }
}

/// A bridge that listens.
#[derive(Debug)]
pub(crate) struct BridgeProcess {
    child: Child,
    pub(crate) address: String,
}

impl BridgeProcess {
    /// Starts `serve` on a free port. The kubeconfig goes through a pipe, so that no file holds it.
    pub(crate) fn serve(binary: &Path, args: &[String], kubeconfig: &str) -> Result<BridgeProcess> {
        let mut command = Command::new(binary);
        command.args(["serve", "--port", "0", "--kubeconfig", "/dev/stdin"]).args(args);
        command.env_clear().stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(command, binary)?;
        child.stdin.take().context("the bridge has no input")?.write_all(kubeconfig.as_bytes())?;
        let log = child.stderr.take().context("the bridge has no log")?;
        BridgeProcess::listening(child, log)
    }

    /// Starts `relay` of this stream on a free port.
    pub(crate) fn relay(binary: &Path, upstream: &str, args: &[&str]) -> Result<BridgeProcess> {
        let mut command = Command::new(binary);
        command.args(["relay", "--listen", "127.0.0.1:0", "--upstream", upstream]).args(args);
        command.env_clear().stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = spawn(command, binary)?;
        let log = child.stderr.take().context("the relay has no log")?;
        BridgeProcess::listening(child, log)
    }

    /// Starts `demo` on a free port.
    pub(crate) fn demo(binary: &Path, args: &[&str]) -> Result<BridgeProcess> {
        let mut command = Command::new(binary);
        command.args(["demo", "--port", "0"]).args(args);
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = spawn(command, binary)?;
        let output = child.stdout.take().context("the bridge has no output")?;
        BridgeProcess::listening(child, output)
    }

    /// Waits for the line with the address.
    fn listening(mut child: Child, output: impl Read + Send + 'static) -> Result<BridgeProcess> {
        let mut lines = BufReader::new(output).lines();
        let mut log = String::new();
        let address = loop {
            let Some(line) = lines.next().transpose()? else {
                end(&mut child);
                bail!("the bridge did not start:\n{log}");
            };
            if let Some((_, rest)) = line.split_once("listening on ") {
                let address = rest.split(',').next().unwrap_or(rest);
                break address.split_once("://").map_or(address, |(_, address)| address).to_owned();
            }
            log += &line;
            log.push('\n');
        };
        // The bridge must never block on a full pipe. Warnings are printed, as they may explain a number.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok).filter(|line| line.contains("WARN") || line.contains("ERROR")) {
                // Without stderr there is no place to report to.
                let _ = writeln!(std::io::stderr(), "the bridge: {line}");
            }
        });
        Ok(BridgeProcess { child, address })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for BridgeProcess {
    fn drop(&mut self) {
        interrupt(&self.child);
        end(&mut self.child);
    }
}

/// Starts a program.
pub(crate) fn spawn(mut command: Command, program: &Path) -> Result<Child> {
    command.spawn().with_context(|| format!("cannot start {}", program.display()))
}

/// Sends SIGINT.
pub(crate) fn interrupt(child: &Child) {
    if let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
        // This fails only when the process has ended already.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    }
}

/// Waits until a process has ended, and kills it after [`END_TIMEOUT`].
pub(crate) fn end(child: &mut Child) {
    let limit = Instant::now() + END_TIMEOUT;
    while Instant::now() < limit {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // Both calls fail only when the process has ended already.
    let _ = child.kill();
    let _ = child.wait();
}
