//! What every flag makes of an empty, a zero, a negative, a huge and a wrong value, in each of the places where a value
//! can stand: the flag itself, its variable, the file.

use super::{NOBODYS, fails, file, run};

/// Flags that are numbers, their variables, and what is accepted.
const NUMBERS: &[(&str, &str, &str)] = &[
    ("--port <PORT>", "PORT", "0 to 65535"),
    ("--request-rate <N>", "BRIDGE_REQUEST_RATE", "1 to 4294967295"),
    ("--connect-rate <N>", "BRIDGE_CONNECT_RATE", "1 to 4294967295"),
    ("--stream-rate <N>", "BRIDGE_STREAM_RATE", "1 to 4294967295"),
    ("--max-connections <N>", "BRIDGE_MAX_CONNECTIONS", "1 to 1000000"),
    ("--max-connections-per-principal <N>", "BRIDGE_MAX_CONNECTIONS_PER_PRINCIPAL", "1 to 1000000"),
    ("--own-watchers <N>", "BRIDGE_OWN_WATCHERS", "0 to 1000000"),
    ("--drain <SECONDS>", "BRIDGE_DRAIN", "0 to 3600"),
];

/// Flags of other kinds and their variables.
const OTHERS: &[(&str, &str)] = &[
    ("config", "BRIDGE_CONFIG"),
    ("listen-host", "LISTEN_HOST"),
    ("allow-anonymous", "BRIDGE_ALLOW_ANONYMOUS"),
    ("keys-file", "BRIDGE_KEYS_FILE"),
    ("token-audience", "BRIDGE_TOKEN_AUDIENCE"),
    ("ws-auth", "BRIDGE_WS_AUTH"),
    ("session-key-file", "BRIDGE_SESSION_KEY_FILE"),
    ("cors-origin", "CORS_ORIGIN"),
    ("allowed-hosts", "BRIDGE_ALLOWED_HOSTS"),
    ("trusted-proxies", "BRIDGE_TRUSTED_PROXIES"),
    ("tls-cert", "BRIDGE_TLS_CERT"),
    ("tls-key", "BRIDGE_TLS_KEY"),
    ("namespace", "K8S_NAMESPACE"),
    ("kubeconfig", "KUBECONFIG"),
    ("context", "BRIDGE_CONTEXT"),
    ("log-level", "LOG_LEVEL"),
];

/// How far `serve` comes without a mistake: it listens, and finds no cluster.
const NO_CLUSTER: &str = "no kubeconfig found (looked at `/nowhere/.kube/config`) and this is not a Pod with a service \
                          account; name a file with --kubeconfig or KUBECONFIG, or try `boilerhouse-bridge demo`, which \
                          needs no cluster";

/// Fails with this complaint about this value, wherever it stands.
async fn refused_everywhere(flag: &str, variable: &str, value: &str, complaint: &str) {
    let name = flag.split(' ').next().unwrap();
    let word = format!("invalid value '{value}' for '{flag}': {complaint}");
    fails(&["serve", &format!("{name}={value}")], &[], 2, &word).await;
    fails(&["serve"], &[(variable, value)], 2, &word).await;
    let key = name.trim_start_matches('-');
    let (_file, path) = file(&format!("{key}: {value}\n"));
    fails(&["serve", "--config", &path], &[], 2, &format!("{path}: {word}")).await;
}

#[tokio::test]
async fn invalid_number_error_states_the_accepted_range() {
    for (flag, variable, range) in NUMBERS {
        let complaint = format!("expected a whole number from {range}");
        let zero = (!range.starts_with('0')).then_some("0");
        for value in ["-1", "1.5", "99999999999999999999999", "many"].into_iter().chain(zero) {
            refused_everywhere(flag, variable, value, &complaint).await;
        }
        let name = flag.split(' ').next().unwrap();
        // Also where the value is an argument of its own, and where there is none.
        fails(&["serve", name, "-1"], &[], 2, &format!("invalid value '-1' for '{flag}': {complaint}")).await;
        fails(&["serve", name, ""], &[], 2, &format!("invalid value '' for '{flag}': {complaint}")).await;
    }
    let seed = "expected a whole number from 0 to 18446744073709551615";
    fails(&["demo", "--seed", "-1"], &[], 2, &format!("invalid value '-1' for '--seed <SEED>': {seed}")).await;
    let speed = "invalid value '-1' for '--speed <SPEED>': expected a number from 0.01 to 1000";
    fails(&["demo", "--speed", "-1"], &[], 2, speed).await;
    let port = "invalid value 'x' for '--port <PORT>': expected a whole number from 0 to 65535";
    fails(&["demo"], &[("PORT", "x")], 2, port).await;
}

/// A chart's value that nobody set arrives as an empty variable, or as an empty line of the file.
#[tokio::test]
async fn empty_value_equals_an_unset_value() {
    let numbers =
        NUMBERS.iter().map(|(flag, variable, _)| (flag.split(' ').next().unwrap().trim_start_matches('-'), *variable));
    let flags: Vec<(&str, &str)> = numbers.chain(OTHERS.iter().copied()).collect();
    let serve = ["serve", "--port=0"];
    for (flag, variable) in flags.iter().filter(|(flag, _)| *flag != "port") {
        fails(&serve, &[(variable, "")], 5, NO_CLUSTER).await;
        for empty in ["", "''", "~"] {
            if *flag != "config" {
                let (_file, path) = file(&format!("{flag}: {empty}\n"));
                fails(&[&serve[..], &["--config", &path]].concat(), &[], 5, NO_CLUSTER).await;
            }
        }
    }
    // All of them at once, where the default shows; and no credential is one that would open the network to everybody.
    let mut variables: Vec<(&str, &str)> = flags.iter().map(|(_, variable)| (*variable, "")).collect();
    variables.push(("BOILERHOUSE_API_KEY", ""));
    let word = format!(
        "--listen-host {NOBODYS} would let anybody on the network read everything: set BOILERHOUSE_API_KEY, --keys-file \
         or --token-audience, or pass --allow-anonymous if that is meant"
    );
    fails(&["serve", "--listen-host", NOBODYS], &variables, 2, &word).await;
    let word = format!(
        "cannot listen on {NOBODYS} port 3000: Cannot assign requested address (os error 99); it must be an address of \
         this machine, or a name of one"
    );
    fails(&["serve", "--listen-host", NOBODYS, "--allow-anonymous"], &variables, 1, &word).await;
    let ended = run(&serve, &[("BOILERHOUSE_API_KEY", "")]).await;
    assert!(ended.stderr.contains("BOILERHOUSE_API_KEY is empty, which is as if it were not set"), "{}", ended.stderr);
    // A list may be empty where it is a flag, too.
    for flag in ["--cors-origin", "--allowed-hosts", "--trusted-proxies"] {
        fails(&[&serve[..], &[flag, ""]].concat(), &[], 5, NO_CLUSTER).await;
        fails(&[&serve[..], &[&format!("{flag}= , ,")]].concat(), &[], 5, NO_CLUSTER).await;
    }
}

#[tokio::test]
async fn invalid_namespace_is_rejected() {
    let word = "expected the name of a namespace: lower case letters, digits and '-', which neither begins nor ends it, 63 \
                characters at most";
    for value in ["Bad Name/x", "kube.system", "-1", "1.5", "a_b", &"x".repeat(64)] {
        refused_everywhere("--namespace <NAMESPACE>", "K8S_NAMESPACE", value, word).await;
    }
    fails(&["serve", "-n", ""], &[], 2, &format!("invalid value '' for '--namespace <NAMESPACE>': {word}")).await;
    fails(&["serve", "--port=0", "-n", "team-7"], &[], 5, NO_CLUSTER).await;
}

#[tokio::test]
async fn invalid_allowed_host_is_rejected() {
    for value in ["bridge.example:8080", "https://bridge.example", "bridge.example/", "a b", "bridge..example"] {
        let word = format!(
            "'{value}' is not a host name: expected one like bridge.example, without scheme, port or wildcard (it is \
             valid for every port; IP addresses and localhost are always allowed)"
        );
        refused_everywhere("--allowed-hosts <NAME>", "BRIDGE_ALLOWED_HOSTS", value, &word).await;
    }
    let ended = run(&["serve", "--allowed-hosts", "*.example"], &[]).await;
    assert!(ended.code == 2 && ended.stderr.contains("'*.example' is not a host name: "), "{}", ended.stderr);
    let hosts = ["--allowed-hosts", "bridge.example, Other.example", "--allowed-hosts", "bridge.ns.svc."];
    fails(&[&["serve", "--port=0"][..], &hosts].concat(), &[], 5, NO_CLUSTER).await;
}

/// A bridge that was meant to serve https does not serve http: half a pair is refused wherever the half stands.
#[tokio::test]
async fn incomplete_tls_pair_is_rejected() {
    let table = [
        ("tls-cert", "BRIDGE_TLS_CERT", "--tls-cert needs --tls-key, its private key"),
        ("tls-key", "BRIDGE_TLS_KEY", "--tls-key needs --tls-cert, its certificate"),
    ];
    for (flag, variable, word) in table {
        fails(&["serve", &format!("--{flag}=half.pem")], &[], 2, word).await;
        fails(&["serve"], &[(variable, "half.pem")], 2, word).await;
        let (_file, path) = file(&format!("{flag}: half.pem\n"));
        fails(&["serve", "--config", &path], &[], 2, word).await;
    }
    // The halves may come from different places.
    let (_file, path) = file("tls-cert: /nowhere/tls.crt\n");
    let ended = run(&["serve", "--config", &path, "--tls-key", "/nowhere/tls.key"], &[]).await;
    assert!(ended.stderr.contains("cannot serve TLS"), "{}", ended.stderr);
}
