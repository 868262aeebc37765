//! The binary as a user runs it (protocol.md section 8): help, mistakes, exit codes, what wins over what. Everything in
//! here ends by itself. Nothing listens: where an address shows, it is one that cannot be bound.

mod values;

use std::{net::TcpListener, process::Stdio};

use tokio::{process::Command, time::timeout};

use crate::support::{bridge, golden, web::BOUND};

/// An address that is no machine's (RFC 5737): binding it fails, and the error says which one was tried.
const NOBODYS: &str = "192.0.2.1";

/// How a command ended.
#[derive(Debug)]
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

/// The binary at home nowhere, so that no kubeconfig is found.
fn command(args: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = bridge::command(args);
    for name in ["COLUMNS", "KUBERNETES_SERVICE_HOST", "CLICOLOR_FORCE"] {
        command.env_remove(name);
    }
    command.env("HOME", "/nowhere").envs(variables.iter().copied()).kill_on_drop(true);
    command
}

async fn run(args: &[&str], variables: &[(&str, &str)]) -> Ended {
    let child = command(args, variables).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = timeout(BOUND, child.wait_with_output()).await.unwrap_or_else(|_| panic!("{args:?} goes on")).unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(!stdout.contains('\x1b') && !stderr.contains('\x1b'), "{args:?}: colour without a terminal: {stderr}");
    Ended { code: output.status.code().unwrap(), stdout, stderr }
}

/// Runs what must fail: with this code, nothing on stdout, and this as its last word.
async fn fails(args: &[&str], variables: &[(&str, &str)], code: i32, word: &str) {
    let ended = run(args, variables).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (code, ""), "{args:?} {variables:?}: {}", ended.stderr);
    let said = ended.stderr.lines().any(|line| line == format!("error: {word}"));
    assert!(said, "{args:?} {variables:?}:\n{}expected: error: {word}", ended.stderr);
}

/// A file with this in it.
fn file(text: &str) -> (tempfile::NamedTempFile, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let path = file.path().to_string_lossy().into_owned();
    (file, path)
}

#[tokio::test]
async fn every_command_explains_itself() {
    let mut text = String::new();
    for args in [&["--help"][..], &["serve", "--help"], &["demo", "--help"], &["crd", "--help"]] {
        // What the environment holds is not shown.
        let ended = run(args, &[("PORT", "1234"), ("BOILERHOUSE_API_KEY", "canary")]).await;
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{args:?}");
        // Nor whether it holds anything, nor does a file that is not there keep anybody from help.
        let empty =
            run(args, &[("PORT", ""), ("BRIDGE_KEYS_FILE", ""), ("BRIDGE_CONFIG", "/nowhere/bridge.yaml")]).await;
        assert_eq!((empty.code, empty.stderr.as_str(), empty.stdout), (0, "", ended.stdout.clone()), "{args:?}");
        text += &format!("$ boilerhouse-bridge {}\n{}\n", args.join(" "), ended.stdout);
    }
    golden::check("help.txt", &text);
    let without = run(&[], &[]).await;
    assert_eq!((without.code, without.stdout.as_str()), (2, ""));
    assert!(text.contains(&without.stderr), "{}", without.stderr);
    for args in [&["--version"][..], &["serve", "--version"]] {
        let ended = run(args, &[]).await;
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{args:?}");
        assert!(ended.stdout.trim_end().ends_with(env!("CARGO_PKG_VERSION")), "{}", ended.stdout);
    }
}

/// The refusal comes before anything is opened: neither the port, which is taken, nor the kubeconfig, which is not
/// there, is complained of.
#[tokio::test]
async fn nobody_listens_to_the_network_without_meaning_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for host in ["0.0.0.0", "::", "0", "192.168.1.5", "10.0.0.7", NOBODYS, "fe80::1", "::ffff:10.0.0.7"] {
        let word = format!(
            "--listen-host {host} would let anybody on the network read everything: set BOILERHOUSE_API_KEY, --keys-file \
             or --token-audience, or pass --allow-anonymous if that is meant"
        );
        let serve = ["serve", "--port", &port, "--kubeconfig", "/nowhere/config"];
        fails(&[&serve[..], &["--listen-host", host]].concat(), &[], 2, &word).await;
        fails(&serve, &[("LISTEN_HOST", host)], 2, &word).await;
        fails(&serve, &[("LISTEN_HOST", host), ("BRIDGE_ALLOW_ANONYMOUS", "false")], 2, &word).await;
    }
    // With the word it goes on, to the next thing that is wrong.
    let in_use = format!(
        "cannot listen on 0.0.0.0 port {port}: another program has it; choose another with --port (0 takes a free one)"
    );
    let serve = ["serve", "--port", &port, "--listen-host", "0.0.0.0"];
    fails(&[&serve[..], &["--allow-anonymous"]].concat(), &[], 1, &in_use).await;
    fails(&serve, &[("BRIDGE_ALLOW_ANONYMOUS", "true")], 1, &in_use).await;
    let in_use = in_use.replace("0.0.0.0", "localhost");
    fails(&["serve", "--port", &port, "--listen-host", "localhost"], &[], 1, &in_use).await;
    let in_use = in_use.replace("localhost", "127.0.0.1");
    fails(&["serve", "--port", &port], &[], 1, &in_use).await;
    fails(&["demo", "--port", &port], &[], 1, &in_use).await;
    fails(&["demo"], &[("PORT", &port)], 1, &in_use).await;
}

#[tokio::test]
async fn what_cannot_be_kept_is_not_promised() {
    let word = "BOILERHOUSE_API_KEY is blank, and would let nobody in: unset it where no key is meant";
    fails(&["serve"], &[("BOILERHOUSE_API_KEY", "\n")], 2, word).await;
    let word = "BOILERHOUSE_API_KEY has white space in it, which no client can send";
    fails(&["serve"], &[("BOILERHOUSE_API_KEY", "ca nary")], 2, word).await;
    let word = "--ws-auth required needs credentials: BOILERHOUSE_API_KEY, --keys-file or --token-audience";
    fails(&["serve", "--ws-auth", "required"], &[], 2, word).await;
    let word = "--token-audience is empty: every token of the cluster would do";
    fails(&["serve", "--token-audience", ""], &[], 2, word).await;
    let word = "CORS_ORIGIN=* is possible only with credentials: name the origins instead";
    fails(&["serve"], &[("CORS_ORIGIN", "*")], 2, word).await;
    fails(&["serve", "--cors-origin", "https://app.example, *"], &[], 2, word).await;
}

/// Before anything is opened: neither the port, which is taken, nor the kubeconfig, which is not there, is complained of.
#[tokio::test]
async fn credentials_that_cannot_be_used_are_found_first() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let serve = ["serve", "--port", &port, "--kubeconfig", "/nowhere/config"];
    for (text, problem) in [
        ("", "it has no list of keys (`keys: []` says that there are none)"),
        ("keys:\n", "it has no list of keys (`keys: []` says that there are none)"),
        ("keys: [{name: '', sha256: ''}]", "key 1: its name must be 1 to 100 printable characters"),
    ] {
        let (_file, path) = file(text);
        let word = format!("the keys file {path} cannot be used: {problem}");
        fails(&[&serve[..], &["--keys-file", &path]].concat(), &[], 1, &word).await;
    }
    let word = "the keys file /nowhere/keys cannot be used: it cannot be read: No such file or directory (os error 2)";
    fails(&[&serve[..], &["--keys-file", "/nowhere/keys"]].concat(), &[], 1, word).await;
    let (_file, path) = file("short");
    let word = format!(
        "the session key file {path} cannot be used: it must hold at least 32 bytes (`head -c 32 /dev/urandom | base64`)"
    );
    fails(&[&serve[..], &["--session-key-file", &path]].concat(), &[], 1, &word).await;
}

#[tokio::test]
async fn mistakes_are_named() {
    let table: &[(&[&str], &str)] = &[
        (&["sevre"], "unrecognized subcommand 'sevre'"),
        (&["serve", "--prot", "1"], "unexpected argument '--prot' found"),
        (&["serve", "extra"], "unexpected argument 'extra' found"),
        (
            &["serve", "--port", "many"],
            "invalid value 'many' for '--port <PORT>': expected a whole number from 0 to 65535",
        ),
        (
            &["serve", "--port", "65536"],
            "invalid value '65536' for '--port <PORT>': expected a whole number from 0 to 65535",
        ),
        (&["serve", "--port", "1", "--port", "2"], "the argument '--port <PORT>' cannot be used multiple times"),
        (&["serve", "--config"], "a value is required for '--config <FILE>' but none was supplied"),
        (&["demo", "--speed", "0"], "invalid value '0' for '--speed <SPEED>': expected a number from 0.01 to 1000"),
        (&["demo", "--speed", "NaN"], "invalid value 'NaN' for '--speed <SPEED>': expected a number from 0.01 to 1000"),
        (
            &["demo", "--speed", "fast"],
            "invalid value 'fast' for '--speed <SPEED>': expected a number from 0.01 to 1000",
        ),
        (&["demo", "--listen-host", "0.0.0.0"], "unexpected argument '--listen-host' found"),
        (&["crd", "--port", "1"], "unexpected argument '--port' found"),
        (
            &["serve", "--log-level", "loud"],
            "invalid value 'loud' for '--log-level <LEVEL>': expected error, warn, info, debug or trace",
        ),
        (
            &["serve", "--cors-origin", "https://app.example,app.example"],
            "invalid value 'https://app.example,app.example' for '--cors-origin <ORIGIN>': 'app.example' is not an origin: \
             expected http://host[:port] or https://host[:port]",
        ),
        (
            &["serve", "--cors-origin", "null"],
            "invalid value 'null' for '--cors-origin <ORIGIN>': 'null' is not an origin: expected http://host[:port] or \
             https://host[:port]",
        ),
    ];
    for (args, word) in table {
        fails(args, &[], 2, word).await;
    }
}

#[tokio::test]
async fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let (_file, path) = file(&format!("port: 4001\nlisten-host: {NOBODYS}\nallow-anonymous: true\n"));
    let (_other, other) = file(&format!("port: 4002\nlisten-host: {NOBODYS}\nallow-anonymous: true\n"));
    let tried = |host: &str, port: &str| {
        format!(
            "cannot listen on {host} port {port}: Cannot assign requested address (os error 99); it must be an address of \
             this machine, or a name of one"
        )
    };
    let serve = ["serve", "--config", &path];
    let port: [&str; 2] = ["--port", "4003"];
    let host: [&str; 2] = ["--listen-host", "192.0.2.3"];
    let environment = [("PORT", "4004"), ("LISTEN_HOST", "192.0.2.4"), ("BRIDGE_ALLOW_ANONYMOUS", "true")];
    fails(&[&["serve", "--allow-anonymous"][..], &host].concat(), &[], 1, &tried("192.0.2.3", "3000")).await;
    fails(&serve, &[], 1, &tried(NOBODYS, "4001")).await;
    fails(&["serve", &format!("--config={path}")], &[], 1, &tried(NOBODYS, "4001")).await;
    fails(&["serve"], &[("BRIDGE_CONFIG", &path)], 1, &tried(NOBODYS, "4001")).await;
    fails(&serve, &[("BRIDGE_CONFIG", &other)], 1, &tried(NOBODYS, "4001")).await;
    fails(&serve, &environment, 1, &tried("192.0.2.4", "4004")).await;
    fails(&["serve"], &environment, 1, &tried("192.0.2.4", "4004")).await;
    fails(&[&serve[..], &port].concat(), &[], 1, &tried(NOBODYS, "4003")).await;
    fails(&[&serve[..], &port].concat(), &environment, 1, &tried("192.0.2.4", "4003")).await;
    fails(&[&serve[..], &port, &host].concat(), &environment, 1, &tried("192.0.2.3", "4003")).await;
    let word = format!(
        "--listen-host {NOBODYS} would let anybody on the network read everything: set BOILERHOUSE_API_KEY, --keys-file \
         or --token-audience, or pass --allow-anonymous if that is meant"
    );
    fails(&[&serve[..], &["--allow-anonymous=false"]].concat(), &[], 2, &word).await;
    fails(&serve, &[("BRIDGE_ALLOW_ANONYMOUS", "false")], 2, &word).await;
}

#[tokio::test]
async fn the_file_is_read_as_strictly_as_the_flags() {
    let keys = "allow-anonymous, allowed-hosts, connect-rate, context, cors-origin, drain, keys-file, kubeconfig, \
                listen-host, log-level, max-connections, max-connections-per-principal, namespace, own-watchers, port, \
                request-rate, session-key-file, stream-rate, tls-cert, tls-key, token-audience, trusted-proxies, ws-auth";
    let port = "expected a whole number from 0 to 65535";
    let table = [
        ("prot: 4000", format!("unknown key 'prot': accepted are {keys}")),
        ("config: other.yaml", format!("unknown key 'config': accepted are {keys}")),
        ("port: many", format!("invalid value 'many' for '--port <PORT>': {port}")),
        ("port: 1.50", format!("invalid value '1.50' for '--port <PORT>': {port}")),
        (
            "cors-origin: [https://a.example, b]",
            "invalid value 'https://a.example,b' for '--cors-origin <ORIGIN>': 'b' is not an origin: expected \
             http://host[:port] or https://host[:port]"
                .to_owned(),
        ),
    ];
    for (text, word) in table {
        let (_file, path) = file(text);
        fails(&["serve", "--config", &path], &[], 2, &format!("{path}: {word}")).await;
    }
    let table = [
        ("- port\n", "line 1, column 1"),
        ("drain: 1\nport: {a: b}\n", "line 2, column 7"),
        ("port: [\n", "line 1, column 7"),
        ("port: 1\nport: 2\n", "line 2, column 1"),
        ("port: 1\n---\nport: 2\n", "line 3, column 1"),
        ("allowed-hosts: {a: b}\n", "line 1, column 16"),
    ];
    for (text, place) in table {
        let (_file, path) = file(text);
        let word = format!(
            "{path}: something is wrong at {place}: expected each flag once, on a line like `port: 3000` or \
             `allowed-hosts: [a.example, b.example]`"
        );
        fails(&["serve", "--config", &path], &[], 2, &word).await;
    }
    let word = "cannot read the config file /nowhere/bridge.yaml: No such file or directory (os error 2)";
    fails(&["serve", "--config", "/nowhere/bridge.yaml"], &[], 2, word).await;
    // Whoever takes no file is not kept from anything by one that is not there.
    let missing = [("BRIDGE_CONFIG", "/nowhere/bridge.yaml")];
    fails(&["serve"], &missing, 2, word).await;
    fails(&["serve", "--prot", "1"], &missing, 2, "unexpected argument '--prot' found").await;
    fails(&["demo", "--config", "x"], &missing, 2, "unexpected argument '--config' found").await;
    let ended = run(&["crd"], &missing).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
}

#[tokio::test]
async fn without_a_cluster_it_says_where_it_looked() {
    let serve = ["serve", "--port", "0"];
    let advice = "and this is not a Pod with a service account; name a file with --kubeconfig or KUBECONFIG, or try \
                  `boilerhouse-bridge demo`, which needs no cluster";
    let word = format!("no kubeconfig found (looked at `/nowhere/.kube/config`) {advice}");
    fails(&serve, &[], 5, &word).await;
    let word = format!("no kubeconfig found (looked at `/nowhere/a`, `/nowhere/b`) {advice}");
    fails(&serve, &[("KUBECONFIG", "/nowhere/a:/nowhere/b")], 5, &word).await;
    let ended = run(&[&serve[..], &["--kubeconfig", "/nowhere/c"]].concat(), &[]).await;
    assert_eq!(ended.code, 5, "{}", ended.stderr);
    let word = "error: cannot read the kubeconfig /nowhere/c: No such file or directory (os error 2)\n";
    assert!(ended.stderr.ends_with(word), "{}", ended.stderr);
    let context = |name| format!("{{name: {name}, context: {{cluster: c, user: u}}}}");
    let (_file, path) = file(&format!(
        "{{apiVersion: v1, kind: Config, contexts: [{}, {}], clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:1'}}}}], \
         users: [{{name: u, user: {{}}}}]}}",
        context("one"),
        context("two"),
    ));
    let word = "the kubeconfig has no context `three`; it has `one`, `two`";
    fails(&[&serve[..], &["--kubeconfig", &path, "--context", "three"]].concat(), &[], 5, word).await;
    let word = "the kubeconfig names no current context; choose one with --context: it has `one`, `two`";
    fails(&[&serve[..], &["--kubeconfig", &path]].concat(), &[], 5, word).await;
    fails(&serve, &[("KUBECONFIG", &path)], 5, word).await;
    // The environment wins over the file, here as well.
    let (_config, config) = file("kubeconfig: /nowhere/d\n");
    fails(&[&serve[..], &["--config", &config]].concat(), &[("KUBECONFIG", &path)], 5, word).await;
    let ended = run(&[&serve[..], &["--config", &config]].concat(), &[("KUBECONFIG", "")]).await;
    assert!(ended.stderr.contains("cannot read the kubeconfig /nowhere/d: "), "{}", ended.stderr);
}

#[tokio::test]
async fn crd_prints_what_the_repository_has() {
    let ended = run(&["crd"], &[]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    golden::check("../../crds/boilerhouseclaims.yaml", &ended.stdout);
}

#[tokio::test]
async fn a_closed_pipe_is_success_and_a_full_disk_is_not() {
    for args in [&["crd"][..], &["--help"], &["serve", "--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = command(args, &[]).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = timeout(BOUND, child.wait_with_output()).await.expect("it goes on").unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{args:?}: {output:?}");
    }
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let child = command(&["crd"], &[]).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let output = timeout(BOUND, child.wait_with_output()).await.expect("it goes on").unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.as_str()), (Some(1), "error: No space left on device (os error 28)\n"));
}
