//! The checks of the flags and of this machine.

use std::net::TcpListener;

use super::{Run, run_with};
use crate::support::sim_cluster::SimCluster;

/// Variables and their values.
type Environment<'a> = &'a [(&'a str, &'a str)];

/// An address for documentation (RFC 5737). No machine has it.
const UNASSIGNED_ADDRESS: &str = "192.0.2.1";
/// A loopback address that only this test uses.
const OWN_LOOPBACK: &str = "127.0.77.1";
const SHA256: &str = "1234567890123456789012345678901234567890123456789012345678901234";

async fn check(id: &str, args: &[&str], variables: &[(&str, &str)]) -> Run {
    let mut all = vec!["--only", id];
    all.extend(args);
    run_with(&all, variables).await
}

fn write(folder: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

#[tokio::test]
async fn config_check_reports_a_file_that_cannot_be_used() {
    let folder = tempfile::tempdir().unwrap();
    check("config", &[], &[]).await.expect_passed("config", "no --config file");
    let good = write(&folder, "good.yaml", "allowed-hosts: [localhost]\nkeys-file: /nowhere/keys\n");
    let run = check("config,allowed-hosts,credentials", &["--config", &good], &[]).await;
    run.expect_passed("config", "good.yaml can be used");
    run.expect_passed("allowed-hosts", "localhost");
    run.expect("credentials", "failed", "error", "/nowhere/keys of --keys-file does not exist");

    let bad = write(&folder, "bad.yaml", "prot: 3000\n");
    let run = check("config,origins", &["--config", &bad], &[]).await;
    run.expect("config", "failed", "error", "unknown key 'prot'; accepted:");
    run.expect("origins", "skipped", "info", "the check config failed");
    let own = write(&folder, "own.yaml", "only: config\n");
    let run = check("config", &[], &[("BRIDGE_CONFIG", &own)]).await;
    run.expect("config", "failed", "error", "unknown key 'only'");
    let run = check("config", &["--config", "/nowhere/c.yaml"], &[]).await;
    run.expect("config", "failed", "error", "cannot read the config file /nowhere/c.yaml");
    assert!(run.check("config")["fix"].is_string());
    assert_eq!(run.hint("config"), "boilerhouse-bridge doctor --config /nowhere/c.yaml --fix");
    let run = check("config", &["--listen-host", "nowhere.invalid"], &[]).await;
    run.expect("config", "failed", "error", "--listen-host 'nowhere.invalid'");
    for (args, words) in [
        (&["--mqtt-url", "mqtt://127.0.0.1:1"][..], "--mqtt-url needs --mqtt-topic"),
        (&["--nats-bucket", "x"], "--nats-bucket needs --nats-url"),
        (&["--otlp-ca-file", "x"], "--otlp-ca-file needs --otlp-endpoint"),
    ] {
        check("config", args, &[]).await.expect("config", "failed", "error", words);
    }
    let secret = check("config", &["--mqtt-url", "mqtt://user:canary@broker", "--mqtt-topic", "a"], &[]).await;
    secret.expect("config", "failed", "error", "--mqtt-username-file");
    assert!(!secret.report.to_string().contains("canary"), "{:#}", secret.report);
    for (flag, url) in [
        ("--mqtt-url", "mqtt://user:canary@broker"),
        ("--nats-url", "user:canary@server"),
        ("--otlp-endpoint", "https://user:canary@collector"),
        ("--otlp-endpoint", "https://collector/?key=canary"),
    ] {
        let run = check("config", &["--config", "/nowhere/c.yaml", flag, url], &[]).await;
        assert!(run.hint("config").contains(flag), "{:#}", run.report);
        assert!(!run.report.to_string().contains("canary"), "{:#}", run.report);
    }
}

#[tokio::test]
async fn credentials_check_reports_what_serve_refuses_and_what_expires() {
    let folder = tempfile::tempdir().unwrap();
    let keys = |expiry: &str| format!("keys: [{{name: a, sha256: {SHA256}{expiry}}}]\n");
    let good = write(&folder, "good.yaml", &keys(""));
    let expired = write(&folder, "expired.yaml", &keys(", expiresAt: 2020-01-01T00:00:00Z"));
    let broken = write(&folder, "broken.yaml", "keys: canary\n");
    let short = write(&folder, "session", "short");
    let long = write(&folder, "session-long", &"x".repeat(40));
    let open = ["--listen-host", "0.0.0.0"];
    let passes: [(&[&str], Environment, &str); 4] = [
        (&[], &[], "only this machine can connect"),
        (&["--keys-file", &good], &[], "1 keys in"),
        (&["--session-key-file", &long], &[], ""),
        (&["--token-audience", "bridge", open[0], open[1]], &[], "Kubernetes tokens with the audience bridge"),
    ];
    for (args, variables, words) in passes {
        check("credentials", args, variables).await.expect_passed("credentials", words);
    }
    let fails: [(&[&str], Environment, &str, &str); 9] = [
        (&open, &[], "error", "would give the network access without credentials"),
        (&["--ws-auth", "required"], &[], "error", "--ws-auth required needs credentials"),
        (&["--token-audience", " "], &[], "error", "--token-audience is empty"),
        (&["--keys-file", &broken], &[], "error", "line 1, column 7"),
        (&["--session-key-file", &short], &[], "error", "fewer than 32 bytes"),
        (&[], &[("BOILERHOUSE_API_KEY", "a b")], "error", "contains white space"),
        (&["--keys-file", &expired], &[], "warning", "have expired: a"),
        (&[], &[("BOILERHOUSE_API_KEY", "short")], "warning", "short enough to be guessed"),
        (&["--allow-anonymous", open[0], open[1]], &[], "warning", "can read everything"),
    ];
    for (args, variables, severity, words) in fails {
        let run = check("credentials", args, variables).await;
        run.expect("credentials", "failed", severity, words);
        assert!(!run.report.to_string().contains("canary"), "{:#}", run.report);
    }
}

#[tokio::test]
async fn tls_check_reports_pairs_that_cannot_be_served() {
    let folder = tempfile::tempdir().unwrap();
    let pair = |name: &str, from: i32, to: i32| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 1, 1));
        let certificate = params.self_signed(&key).unwrap().pem();
        [
            write(&folder, &format!("{name}.crt"), &certificate),
            write(&folder, &format!("{name}.key"), &key.serialize_pem()),
        ]
    };
    let [certificate, key] = pair("good", 2020, 2120);
    let [old, old_key] = pair("old", 2019, 2020);
    let [future, future_key] = pair("future", 2119, 2120);
    let tls = async |args: &[&str]| check("tls", args, &[]).await;
    tls(&[]).await.expect("tls", "skipped", "info", "plain HTTP");
    tls(&["--tls-cert", &certificate, "--tls-key", &key]).await.expect_passed("tls", "valid until 2120-01-01");
    for (args, words) in [
        (&["--tls-cert", &certificate, "--tls-key", &old_key][..], "cannot be used together"),
        (&["--tls-cert", &certificate][..], "--tls-cert needs --tls-key"),
        (&["--tls-cert", &key, "--tls-key", &key][..], "no certificate in PEM"),
        (&["--tls-cert", "/nowhere/a", "--tls-key", &key][..], "cannot read /nowhere/a"),
        (&["--tls-cert", &old, "--tls-key", &old_key][..], "expired at 2020-01-01"),
        (&["--tls-cert", &future, "--tls-key", &future_key][..], "valid from 2119-01-01"),
    ] {
        tls(args).await.expect("tls", "failed", "error", words);
    }
}

#[tokio::test]
async fn origins_and_hosts_are_checked() {
    let origins = async |args: &[&str]| check("origins", args, &[]).await;
    origins(&[]).await.expect_passed("origins", "only pages of the bridge itself");
    origins(&["--cors-origin", "https://app.example"]).await.expect_passed("origins", "https://app.example:443");
    origins(&["--cors-origin", "http://localhost:8080"]).await.expect_passed("origins", "http://localhost:8080");
    origins(&["--cors-origin", "*"]).await.expect("origins", "failed", "error", "requires credentials");
    let run = check("origins", &["--cors-origin", "*"], &[("BOILERHOUSE_API_KEY", "0123456789abcdef")]).await;
    run.expect_passed("origins", "all origins");
    let insecure = origins(&["--cors-origin", "http://app.example"]).await;
    insecure.expect("origins", "failed", "warning", "http://app.example:80");
    let command = "boilerhouse-bridge doctor --only origins --cors-origin";
    assert_eq!(insecure.hint("origins"), format!("{command} https://app.example"));
    let ports = origins(&["--cors-origin", "http://app.example:8080,capacitor://localhost"]).await;
    assert_eq!(ports.hint("origins"), format!("{command} https://app.example:8080,capacitor://localhost"));

    let hosts = async |args: &[&str]| check("allowed-hosts", args, &[]).await;
    hosts(&[]).await.expect_passed("allowed-hosts", "no other name");
    hosts(&["--allowed-hosts", "localhost"]).await.expect_passed("allowed-hosts", "localhost");
    let unknown = hosts(&["--allowed-hosts", "localhost,nowhere.invalid"]).await;
    unknown.expect("allowed-hosts", "failed", "warning", "do not resolve on this machine: nowhere.invalid");
    assert_eq!(unknown.code, 0, "a warning does not count");
}

#[tokio::test]
async fn port_check_knows_free_ports_bridges_and_other_programs() {
    let port = async |args: &[&str]| check("port", args, &[]).await;
    port(&["--listen-host", OWN_LOOPBACK]).await.expect_passed("port", "127.0.77.1 port 3000 is free");
    port(&["--port", "0"]).await.expect_passed("port", "free port");
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let number = other.local_addr().unwrap().port().to_string();
    // The listener accepts the connection, and nothing ever answers.
    let silent = port(&["--port", &number]).await;
    silent.expect("port", "failed", "error", "another program uses 127.0.0.1 port");
    // It closes each connection without an answer.
    let closing = std::thread::spawn(move || {
        // The first connection is that of the silent check.
        drop(other.accept());
        drop(other.accept());
    });
    let used = port(&["--port", &number]).await;
    used.expect("port", "failed", "error", "another program uses 127.0.0.1 port");
    assert_eq!(used.hint("port"), format!("ss -ltnp 'sport = :{number}'"));
    closing.join().unwrap();

    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&["--probe-listen", "127.0.0.1:0"]).await;
    let (main, probe) = (bridge.address.port().to_string(), bridge.probe_address().to_string());
    let own = port(&["--port", &main, "--probe-listen", &probe]).await;
    own.expect("port", "failed", "warning", "a bridge listens on 127.0.0.1 port");
    let tls = port(&["--port", &main, "--tls-cert", "a", "--tls-key", "b"]).await;
    tls.expect("port", "failed", "warning", "cannot find out");
    let foreign = port(&["--listen-host", UNASSIGNED_ADDRESS, "--allow-anonymous"]).await;
    foreign.expect("port", "failed", "error", "not an address of this machine");
}
