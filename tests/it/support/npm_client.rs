//! Clients from npm in the versions that `tests/node/package.json` pins.
//!
//! Owns one Node process per client. The process is killed when the value is dropped.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use super::http_client::TEST_TIMEOUT;

fn dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/node")
}

/// Returns a command that runs a script with Node. `script` is a path below `tests/node`.
///
/// # Panics
/// When the packages are not installed.
pub(crate) fn node(script: &str, args: &[&str]) -> Command {
    let script = dir().join(script);
    let installed = dir().join("node_modules/.package-lock.json").exists();
    assert!(installed, "the packages of tests/node are missing: run `npm ci --prefix tests/node` or tests/run");
    let mut command = Command::new("node");
    command
        .arg(script)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs a script and returns its standard output. The script must exit successfully within four times [`TEST_TIMEOUT`].
pub(crate) async fn output(script: &str, args: &[&str]) -> String {
    let child = node(script, args).spawn().expect("cannot start node; install Node 20 or later");
    let output = timeout(4 * TEST_TIMEOUT, child.wait_with_output())
        .await
        .unwrap_or_else(|_| panic!("{script} does not end in time"));
    let output = output.unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A client that prints JSON lines while it runs.
#[derive(Debug)]
pub(crate) struct NpmClient {
    /// The lines that [`NpmClient::until`] has read so far.
    pub(crate) lines: Vec<Value>,
    url: String,
    out: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl NpmClient {
    /// Starts this script with this URL.
    pub(crate) fn start(script: &str, url: &str) -> NpmClient {
        NpmClient::of(node(script, &[url]), url)
    }

    /// Does the same. The client trusts the certificate in this file.
    pub(crate) fn start_trusting(certificate: &Path, script: &str, url: &str) -> NpmClient {
        let mut command = node(script, &[url]);
        command.env("NODE_EXTRA_CA_CERTS", certificate);
        NpmClient::of(command, url)
    }

    fn of(mut command: Command, url: &str) -> NpmClient {
        let mut child = command.stderr(Stdio::inherit()).spawn().expect("cannot start node; install Node 20 or later");
        let out = BufReader::new(child.stdout.take().unwrap()).lines();
        NpmClient { lines: Vec::new(), url: url.to_owned(), out, _child: child }
    }

    /// Reads lines up to and including the first that satisfies `last`.
    ///
    /// # Panics
    /// When there is no such line within twice [`TEST_TIMEOUT`], or the client exits or reports that it gave up.
    pub(crate) async fn until(&mut self, last: impl Fn(&Value) -> bool) {
        let reading = timeout(2 * TEST_TIMEOUT, async {
            loop {
                let line = self.out.next_line().await.unwrap().expect("the client exited");
                let line: Value = serde_json::from_str(&line).unwrap();
                assert!(line["gaveUp"].is_null(), "{} gave up: {line} after {:#?}", self.url, self.lines);
                self.lines.push(line);
                if self.lines.last().is_some_and(&last) {
                    return;
                }
            }
        });
        let received = reading.await.is_ok();
        assert!(received, "the client of {} does not print the expected line in time: {:#?}", self.url, self.lines);
    }
}
