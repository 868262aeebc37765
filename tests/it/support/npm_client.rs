//! Clients from npm, as `tests/node/package.json` pins them.

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

/// Node with this script: a path below `tests/node`.
///
/// # Panics
/// Where the packages have not been installed.
pub(crate) fn node(script: &str, args: &[&str]) -> Command {
    let script = dir().join(script);
    let installed = dir().join("node_modules/.package-lock.json").exists();
    assert!(installed, "the packages of tests/node are missing: run `npm ci --prefix tests/node`, or tests/run");
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

/// What such a script prints, which has to end well within four times the usual bound.
pub(crate) async fn output(script: &str, args: &[&str]) -> String {
    let child = node(script, args).spawn().expect("node is missing: install Node 20 or later");
    let output =
        timeout(4 * TEST_TIMEOUT, child.wait_with_output()).await.unwrap_or_else(|_| panic!("{script} goes on"));
    let output = output.unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A client that prints JSON lines for as long as it lives; killed when dropped.
#[derive(Debug)]
pub(crate) struct NpmClient {
    /// What it has said so far.
    pub(crate) lines: Vec<Value>,
    url: String,
    out: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl NpmClient {
    /// This script with this URL.
    pub(crate) fn start(script: &str, url: &str) -> NpmClient {
        NpmClient::of(node(script, &[url]), url)
    }

    /// The same, trusting whom this certificate's file names.
    pub(crate) fn start_trusting(certificate: &Path, script: &str, url: &str) -> NpmClient {
        let mut command = node(script, &[url]);
        command.env("NODE_EXTRA_CA_CERTS", certificate);
        NpmClient::of(command, url)
    }

    fn of(mut command: Command, url: &str) -> NpmClient {
        let mut child = command.stderr(Stdio::inherit()).spawn().expect("node is missing: install Node 20");
        let out = BufReader::new(child.stdout.take().unwrap()).lines();
        NpmClient { lines: Vec::new(), url: url.to_owned(), out, _child: child }
    }

    /// Listens until it says this, and to that line only.
    ///
    /// # Panics
    /// When it does not say so within twice the usual bound, ends, or gives up.
    pub(crate) async fn until(&mut self, is: impl Fn(&Value) -> bool) {
        let listening = timeout(2 * TEST_TIMEOUT, async {
            loop {
                let line = self.out.next_line().await.unwrap().expect("the client ended");
                let line: Value = serde_json::from_str(&line).unwrap();
                assert!(line["gaveUp"].is_null(), "{} gave up: {line} after {:#?}", self.url, self.lines);
                self.lines.push(line);
                if self.lines.last().is_some_and(&is) {
                    return;
                }
            }
        });
        let received = listening.await.is_ok();
        assert!(received, "{} does not say it: {:#?}", self.url, self.lines);
    }
}
