//! The binary as a user runs it (docs/protocol.md#command-line): help, usage errors, exit codes, and the precedence of
//! flags, environment variables and the config file. Each command ends by itself. None of them listens: the addresses in
//! this file cannot be bound.

mod events_command;
mod flag_values;
#[cfg(feature = "top")]
mod top_command;

use std::{net::TcpListener, process::Stdio};

use tokio::{process::Command, time::timeout};

use crate::support::{bridge_process, golden, http_client::TEST_TIMEOUT};

/// An address for documentation (RFC 5737). No machine has it, so binding it fails, and the error names it.
const UNASSIGNED_ADDRESS: &str = "192.0.2.1";

/// The exit code and output of a command.
#[derive(Debug)]
struct Exit {
    code: i32,
    stdout: String,
    stderr: String,
}

/// The binary with a home directory that does not exist, so that it finds no kubeconfig.
fn command(args: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = bridge_process::command(args);
    for name in ["COLUMNS", "KUBERNETES_SERVICE_HOST", "CLICOLOR_FORCE"] {
        command.env_remove(name);
    }
    command.env("HOME", "/nowhere").envs(variables.iter().copied()).kill_on_drop(true);
    command
}

async fn run(args: &[&str], variables: &[(&str, &str)]) -> Exit {
    let child = command(args, variables).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = timeout(TEST_TIMEOUT, child.wait_with_output())
        .await
        .unwrap_or_else(|_| panic!("{args:?} does not end"))
        .unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(!stdout.contains('\x1b') && !stderr.contains('\x1b'), "{args:?}: color without a terminal: {stderr}");
    Exit { code: output.status.code().unwrap(), stdout, stderr }
}

/// Runs a command that must fail with an exit code and an error line, and print nothing to stdout.
async fn fails(args: &[&str], variables: &[(&str, &str)], code: i32, error: &str) {
    let exit = run(args, variables).await;
    assert_eq!((exit.code, exit.stdout.as_str()), (code, ""), "{args:?} {variables:?}: {}", exit.stderr);
    let has_line = exit.stderr.lines().any(|line| line == format!("error: {error}"));
    assert!(has_line, "{args:?} {variables:?}:\n{}expected: error: {error}", exit.stderr);
}

/// A temporary file with this content, and its path.
fn file(text: &str) -> (tempfile::NamedTempFile, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let path = file.path().to_string_lossy().into_owned();
    (file, path)
}

#[tokio::test]
async fn completions_name_the_commands_and_flags() {
    for shell in ["bash", "zsh", "fish"] {
        let exit = run(&["completions", shell], &[]).await;
        assert_eq!((exit.code, exit.stderr.as_str()), (0, ""), "{shell}");
        for word in ["serve", "events", "instance-filter", "dedicated-watchers"] {
            assert!(exit.stdout.contains(word), "{shell}: no {word}");
        }
    }
    let exit = run(&["completions", "tcsh"], &[]).await;
    assert!(exit.code == 2 && exit.stderr.contains("bash, zsh, fish"), "{exit:?}");
}

#[tokio::test]
async fn man_pages_exist_for_every_command() {
    let program = run(&["man"], &[]).await;
    assert!(program.code == 0 && program.stdout.contains(".TH boilerhouse-bridge 1"), "{program:?}");
    // The error of an unknown command names all commands.
    let wrong = run(&["man", "event"], &[]).await;
    let (_, commands) = wrong.stderr.trim().split_once("accepted: ").unwrap_or_else(|| panic!("{wrong:?}"));
    let commands: Vec<&str> = commands.split(", ").collect();
    assert!(wrong.code == 2 && commands.starts_with(&["serve", "demo", "events"]), "{wrong:?}");
    for command in ["doctor", "man", "crd"] {
        assert!(commands.contains(&command), "{commands:?} has no {command}");
    }
    assert_eq!(commands.contains(&"top"), cfg!(feature = "top"), "{commands:?}");
    for command in commands {
        let page = run(&["man", command], &[]).await;
        assert_eq!((page.code, page.stderr.as_str()), (0, ""), "{command}");
        assert!(page.stdout.contains(&format!(".TH boilerhouse-bridge-{command} 1")), "{command}: {}", page.stdout);
    }
}

#[tokio::test]
async fn help_output_matches_the_golden_file() {
    let mut text = String::new();
    for args in [
        &["--help"][..],
        &["serve", "--help"],
        &["demo", "--help"],
        &["events", "--help"],
        &["top", "--help"],
        &["relay", "--help"],
        &["dashboard", "--help"],
        &["doctor", "--help"],
        &["completions", "--help"],
        &["man", "--help"],
        &["crd", "--help"],
    ] {
        // Help does not show the values of variables.
        let exit = run(args, &[("PORT", "1234"), ("BOILERHOUSE_API_KEY", "canary")]).await;
        assert_eq!((exit.code, exit.stderr.as_str()), (0, ""), "{args:?}");
        // Help is the same with empty variables and with a config file that does not exist.
        let empty =
            run(args, &[("PORT", ""), ("BRIDGE_KEYS_FILE", ""), ("BRIDGE_CONFIG", "/nowhere/bridge.yaml")]).await;
        assert_eq!((empty.code, empty.stderr.as_str(), empty.stdout), (0, "", exit.stdout.clone()), "{args:?}");
        text += &format!("$ boilerhouse-bridge {}\n{}\n", args.join(" "), exit.stdout);
    }
    golden::check("help.txt", &text);
    let without = run(&[], &[]).await;
    assert_eq!((without.code, without.stdout.as_str()), (2, ""));
    assert!(text.contains(&without.stderr), "{}", without.stderr);
    for args in [&["--version"][..], &["serve", "--version"]] {
        let exit = run(args, &[]).await;
        assert_eq!((exit.code, exit.stderr.as_str()), (0, ""), "{args:?}");
        assert!(exit.stdout.trim_end().ends_with(env!("CARGO_PKG_VERSION")), "{}", exit.stdout);
    }
}

/// The check comes before anything is opened: the error is neither about the port, which is in use, nor about the
/// kubeconfig, which does not exist.
#[tokio::test]
async fn non_loopback_host_requires_credentials_or_allow_anonymous() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for host in ["0.0.0.0", "::", "0", "192.168.1.5", "10.0.0.7", UNASSIGNED_ADDRESS, "fe80::1", "::ffff:10.0.0.7"] {
        let error = format!(
            "--listen-host {host} would give the network access without credentials: set BOILERHOUSE_API_KEY, --keys-file \
             or --token-audience, or pass --allow-anonymous"
        );
        let serve = ["serve", "--port", &port, "--kubeconfig", "/nowhere/config"];
        fails(&[&serve[..], &["--listen-host", host]].concat(), &[], 2, &error).await;
        fails(&serve, &[("LISTEN_HOST", host)], 2, &error).await;
        fails(&serve, &[("LISTEN_HOST", host), ("BRIDGE_ALLOW_ANONYMOUS", "false")], 2, &error).await;
    }
    // With --allow-anonymous the next error is reported.
    let in_use = format!(
        "cannot listen on 0.0.0.0 port {port}: another program uses it; choose another port with --port (0 takes a free port)"
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

/// IPv6 addresses as in a URL, and IPv4 addresses that are written as IPv6 addresses.
#[tokio::test]
async fn listen_host_accepts_brackets_and_mapped_ipv4_addresses() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let in_use = |host: &str| {
        format!(
            "cannot listen on {host} port {port}: another program uses it; choose another port with --port (0 takes a free \
             port)"
        )
    };
    let serve = ["serve", "--port", &port, "--listen-host"];
    for host in ["::ffff:127.0.0.1", "[::ffff:127.0.0.1]", "::ffff:7f00:1"] {
        let bare = host.trim_matches(['[', ']']);
        fails(&[&serve[..], &[host]].concat(), &[], 1, &in_use(bare)).await;
        fails(&serve[..3], &[("LISTEN_HOST", host)], 1, &in_use(bare)).await;
        let (_file, path) = file(&format!("listen-host: '{host}'\n"));
        fails(&[&serve[..3], &["--config", &path]].concat(), &[], 1, &in_use(bare)).await;
    }
    let error = "--listen-host :: would give the network access without credentials: set BOILERHOUSE_API_KEY, --keys-file or \
                 --token-audience, or pass --allow-anonymous";
    fails(&[&serve[..], &["[::]"]].concat(), &[], 2, error).await;
    // A machine without IPv6 cannot listen on it. Both errors are about the address without brackets.
    let listener = TcpListener::bind("[::1]:0");
    let port = listener.as_ref().map_or(port.clone(), |taken| taken.local_addr().unwrap().port().to_string());
    let exit = run(&["serve", "--listen-host", "[::1]", "--port", &port], &[]).await;
    assert_eq!(exit.code, 1, "{}", exit.stderr);
    assert!(exit.stderr.contains(&format!("error: cannot listen on ::1 port {port}: ")), "{}", exit.stderr);
}

#[tokio::test]
async fn contradictory_auth_options_are_rejected() {
    let error = "BOILERHOUSE_API_KEY holds only white space: set a key, or unset the variable";
    fails(&["serve"], &[("BOILERHOUSE_API_KEY", "\n")], 2, error).await;
    let error = "BOILERHOUSE_API_KEY contains white space, which no client can send: set a key without it";
    fails(&["serve"], &[("BOILERHOUSE_API_KEY", "ca nary")], 2, error).await;
    let error = "--ws-auth required needs credentials: set BOILERHOUSE_API_KEY, --keys-file or --token-audience";
    fails(&["serve", "--ws-auth", "required"], &[], 2, error).await;
    let error = "--token-audience is empty, so that every token of the cluster would be accepted: name an audience";
    fails(&["serve", "--token-audience", ""], &[], 2, error).await;
    let error = "CORS_ORIGIN=* requires credentials: name the origins instead";
    fails(&["serve"], &[("CORS_ORIGIN", "*")], 2, error).await;
    fails(&["serve", "--cors-origin", "https://app.example, *"], &[], 2, error).await;
}

/// The error is neither about the port, which is in use, nor about the kubeconfig, which does not exist.
#[tokio::test]
async fn unusable_credentials_fail_before_anything_is_opened() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let serve = ["serve", "--port", &port, "--kubeconfig", "/nowhere/config"];
    for (text, reason) in [
        ("", "the `keys` list is missing; write `keys: []` for no keys"),
        ("keys:\n", "the `keys` list is missing; write `keys: []` for no keys"),
        ("keys: [{name: '', sha256: ''}]", "key 1: the name must have 1 to 100 printable characters"),
    ] {
        let (_file, path) = file(text);
        let error = format!("the keys file {path} cannot be used: {reason}");
        fails(&[&serve[..], &["--keys-file", &path]].concat(), &[], 1, &error).await;
    }
    let error =
        "the keys file /nowhere/keys cannot be used: the file cannot be read: No such file or directory (os error 2)";
    fails(&[&serve[..], &["--keys-file", "/nowhere/keys"]].concat(), &[], 1, error).await;
    let (_file, path) = file("short");
    let error = format!(
        "cannot use the session key file {path}: the key has fewer than 32 bytes; create one with \
         `head -c 32 /dev/urandom | base64`"
    );
    fails(&[&serve[..], &["--session-key-file", &path]].concat(), &[], 1, &error).await;
}

/// clap would suggest `--tls-key`.
#[tokio::test]
async fn key_on_the_command_line_is_refused_with_the_right_place() {
    for command in ["serve", "events", "top", "relay", "doctor"] {
        let exit = run(&[command, "--api-key", "k"], &[]).await;
        let tip = "  tip: other users can read arguments; `serve` reads its key from BOILERHOUSE_API_KEY, a client from \
                   --token-file";
        assert!(exit.code == 2 && exit.stderr.lines().any(|line| line == tip), "{command}: {}", exit.stderr);
        assert!(!exit.stderr.contains("--tls-key"), "{}", exit.stderr);
    }
}

#[tokio::test]
async fn usage_errors_name_the_argument() {
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
        (
            &["serve", "--cors-origin", "https://*.example"],
            "invalid value 'https://*.example' for '--cors-origin <ORIGIN>': 'https://*.example' is not an origin: it has a \
             wildcard; name each origin, or use * alone for all origins",
        ),
        (
            &["serve", "--listen-host", "127.0.0.1:3000"],
            "invalid value '127.0.0.1:3000' for '--listen-host <HOST>': expected an address or a name without scheme and \
             port; set the port with --port",
        ),
    ];
    for (args, error) in table {
        fails(args, &[], 2, error).await;
    }
}

#[tokio::test]
async fn flag_overrides_environment_and_environment_overrides_file() {
    let (_file, path) = file(&format!("port: 4001\nlisten-host: {UNASSIGNED_ADDRESS}\nallow-anonymous: true\n"));
    let (_other, other) = file(&format!("port: 4002\nlisten-host: {UNASSIGNED_ADDRESS}\nallow-anonymous: true\n"));
    let bind_error = |host: &str, port: &str| {
        format!(
            "cannot listen on {host} port {port}: Cannot assign requested address (os error 99); it must be an address of \
             this machine, or a name of one"
        )
    };
    let serve = ["serve", "--config", &path];
    let port: [&str; 2] = ["--port", "4003"];
    let host: [&str; 2] = ["--listen-host", "192.0.2.3"];
    let environment = [("PORT", "4004"), ("LISTEN_HOST", "192.0.2.4"), ("BRIDGE_ALLOW_ANONYMOUS", "true")];
    fails(&[&["serve", "--allow-anonymous"][..], &host].concat(), &[], 1, &bind_error("192.0.2.3", "3000")).await;
    fails(&serve, &[], 1, &bind_error(UNASSIGNED_ADDRESS, "4001")).await;
    fails(&["serve", &format!("--config={path}")], &[], 1, &bind_error(UNASSIGNED_ADDRESS, "4001")).await;
    fails(&["serve"], &[("BRIDGE_CONFIG", &path)], 1, &bind_error(UNASSIGNED_ADDRESS, "4001")).await;
    fails(&serve, &[("BRIDGE_CONFIG", &other)], 1, &bind_error(UNASSIGNED_ADDRESS, "4001")).await;
    fails(&serve, &environment, 1, &bind_error("192.0.2.4", "4004")).await;
    fails(&["serve"], &environment, 1, &bind_error("192.0.2.4", "4004")).await;
    fails(&[&serve[..], &port].concat(), &[], 1, &bind_error(UNASSIGNED_ADDRESS, "4003")).await;
    fails(&[&serve[..], &port].concat(), &environment, 1, &bind_error("192.0.2.4", "4003")).await;
    fails(&[&serve[..], &port, &host].concat(), &environment, 1, &bind_error("192.0.2.3", "4003")).await;
    let error = format!(
        "--listen-host {UNASSIGNED_ADDRESS} would give the network access without credentials: set BOILERHOUSE_API_KEY, --keys-file \
         or --token-audience, or pass --allow-anonymous"
    );
    fails(&[&serve[..], &["--allow-anonymous=false"]].concat(), &[], 2, &error).await;
    fails(&serve, &[("BRIDGE_ALLOW_ANONYMOUS", "false")], 2, &error).await;
}

#[tokio::test]
async fn config_file_is_validated_as_strictly_as_flags() {
    let keys = "allow-anonymous, allowed-hosts, booster-wasm, connect-rate, context, cors-origin, \
                dedicated-watchers, drain, heartbeat, keys-file, kubeconfig, listen-host, log-format, log-level, \
                max-connections, max-connections-per-principal, max-filters-per-principal, mqtt-ca-file, \
                mqtt-client-id, mqtt-password-file, mqtt-rate, mqtt-topic, mqtt-url, mqtt-username-file, \
                namespace, nats-bucket, nats-ca-file, nats-credentials-file, nats-url, otlp-ca-file, otlp-endpoint, port, \
                probe-listen, request-rate, response-memory, schema-pack, session-key-file, stream-rate, telemetry-ttl, \
                tls-cert, tls-key, token-audience, trusted-proxies, ws-auth";
    let port = "expected a whole number from 0 to 65535";
    let table = [
        ("prot: 4000", format!("unknown key 'prot'; accepted: {keys}")),
        ("config: other.yaml", format!("unknown key 'config'; accepted: {keys}")),
        ("port: many", format!("invalid value 'many' for '--port <PORT>': {port}")),
        ("port: 1.50", format!("invalid value '1.50' for '--port <PORT>': {port}")),
        (
            "cors-origin: [https://a.example, b]",
            "invalid value 'https://a.example,b' for '--cors-origin <ORIGIN>': 'b' is not an origin: expected \
             http://host[:port] or https://host[:port]"
                .to_owned(),
        ),
    ];
    for (text, error) in table {
        let (_file, path) = file(text);
        fails(&["serve", "--config", &path], &[], 2, &format!("{path}: {error}")).await;
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
        let error = format!(
            "{path}: the file cannot be parsed at {place}: expected each flag once, on a line like `port: 3000` or \
             `allowed-hosts: [a.example, b.example]`"
        );
        fails(&["serve", "--config", &path], &[], 2, &error).await;
    }
    let error = "cannot read the config file /nowhere/bridge.yaml: No such file or directory (os error 2)";
    fails(&["serve", "--config", "/nowhere/bridge.yaml"], &[], 2, error).await;
    // A subcommand without --config ignores the variable.
    let missing = [("BRIDGE_CONFIG", "/nowhere/bridge.yaml")];
    fails(&["serve"], &missing, 2, error).await;
    fails(&["serve", "--prot", "1"], &missing, 2, "unexpected argument '--prot' found").await;
    fails(&["demo", "--config", "x"], &missing, 2, "unexpected argument '--config' found").await;
    let exit = run(&["crd"], &missing).await;
    assert_eq!((exit.code, exit.stderr.as_str()), (0, ""));
}

#[tokio::test]
async fn missing_cluster_error_lists_the_searched_paths() {
    let serve = ["serve", "--port", "0"];
    let advice = "and this is not a Pod with a service account; name a file with --kubeconfig or KUBECONFIG, or try \
                  `boilerhouse-bridge demo`, which needs no cluster";
    let error = format!("no kubeconfig found (looked at `/nowhere/.kube/config`) {advice}");
    fails(&serve, &[], 5, &error).await;
    let error = format!("no kubeconfig found (looked at `/nowhere/a`, `/nowhere/b`) {advice}");
    fails(&serve, &[("KUBECONFIG", "/nowhere/a:/nowhere/b")], 5, &error).await;
    let exit = run(&[&serve[..], &["--kubeconfig", "/nowhere/c"]].concat(), &[]).await;
    assert_eq!(exit.code, 5, "{}", exit.stderr);
    let error = "error: cannot read the kubeconfig /nowhere/c: No such file or directory (os error 2)\n";
    assert!(exit.stderr.ends_with(error), "{}", exit.stderr);
    let context = |name| format!("{{name: {name}, context: {{cluster: c, user: u}}}}");
    let (_file, path) = file(&format!(
        "{{apiVersion: v1, kind: Config, contexts: [{}, {}], clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:1'}}}}], \
         users: [{{name: u, user: {{}}}}]}}",
        context("one"),
        context("two"),
    ));
    let error = "the kubeconfig has no context `three`; it has `one`, `two`";
    fails(&[&serve[..], &["--kubeconfig", &path, "--context", "three"]].concat(), &[], 5, error).await;
    let error = "the kubeconfig names no current context; choose one with --context: it has `one`, `two`";
    fails(&[&serve[..], &["--kubeconfig", &path]].concat(), &[], 5, error).await;
    fails(&serve, &[("KUBECONFIG", &path)], 5, error).await;
    // KUBECONFIG overrides the config file as well.
    let (_config, config) = file("kubeconfig: /nowhere/d\n");
    fails(&[&serve[..], &["--config", &config]].concat(), &[("KUBECONFIG", &path)], 5, error).await;
    let exit = run(&[&serve[..], &["--config", &config]].concat(), &[("KUBECONFIG", "")]).await;
    assert!(exit.stderr.contains("cannot read the kubeconfig /nowhere/d: "), "{}", exit.stderr);
}

#[tokio::test]
async fn crd_command_prints_the_committed_file() {
    let exit = run(&["crd"], &[]).await;
    assert_eq!((exit.code, exit.stderr.as_str()), (0, ""));
    golden::check("../../crds/boilerhouseclaims.yaml", &exit.stdout);
}

#[tokio::test]
async fn closed_pipe_succeeds_and_full_disk_fails() {
    for args in [&["crd"][..], &["--help"], &["serve", "--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = command(args, &[]).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = timeout(TEST_TIMEOUT, child.wait_with_output()).await.expect("the command ends").unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{args:?}: {output:?}");
    }
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let child = command(&["crd"], &[]).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let output = timeout(TEST_TIMEOUT, child.wait_with_output()).await.expect("the command ends").unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.as_str()), (Some(1), "error: No space left on device (os error 28)\n"));
}
