//! Clients from npm, as `tests/node/package.json` pins them.

use std::{path::PathBuf, process::Stdio};

use tokio::{process::Command, time::timeout};

use super::web::BOUND;

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
    let output = timeout(4 * BOUND, child.wait_with_output()).await.unwrap_or_else(|_| panic!("{script} goes on"));
    let output = output.unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
