//! Empty, zero, negative, huge and invalid values of every flag, in each place of a value: the flag itself, its environment
//! variable, and the config file.

use super::{UNASSIGNED_ADDRESS, fails, file, run};

/// Numeric flags, their variables, and their accepted ranges.
const NUMBERS: &[(&str, &str, &str)] = &[
    ("--port <PORT>", "PORT", "0 to 65535"),
    ("--request-rate <N>", "BRIDGE_REQUEST_RATE", "1 to 4294967295"),
    ("--connect-rate <N>", "BRIDGE_CONNECT_RATE", "1 to 4294967295"),
    ("--max-filters-per-principal <N>", "BRIDGE_MAX_FILTERS_PER_PRINCIPAL", "1 to 1000000"),
    ("--response-memory <MIB>", "BRIDGE_RESPONSE_MEMORY", "1 to 65536"),
    ("--stream-rate <N>", "BRIDGE_STREAM_RATE", "1 to 4294967295"),
    ("--max-connections <N>", "BRIDGE_MAX_CONNECTIONS", "1 to 1000000"),
    ("--max-connections-per-principal <N>", "BRIDGE_MAX_CONNECTIONS_PER_PRINCIPAL", "1 to 1000000"),
    ("--dedicated-watchers <N>", "BRIDGE_DEDICATED_WATCHERS", "0 to 1000000"),
    ("--drain <SECONDS>", "BRIDGE_DRAIN", "0 to 3600"),
    ("--heartbeat <SECONDS>", "BRIDGE_HEARTBEAT", "5 to 60"),
    ("--telemetry-ttl <SECONDS>", "BRIDGE_TELEMETRY_TTL", "1 to 86400"),
    ("--mqtt-rate <N>", "BRIDGE_MQTT_RATE", "1 to 10000"),
];

/// Other flags and their variables.
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
    ("log-format", "BRIDGE_LOG_FORMAT"),
    ("probe-listen", "BRIDGE_PROBE_LISTEN"),
    ("schema-pack", "BRIDGE_SCHEMA_PACK"),
    ("booster-wasm", "BRIDGE_BOOSTER_WASM"),
    ("mqtt-url", "BRIDGE_MQTT_URL"),
    ("mqtt-topic", "BRIDGE_MQTT_TOPIC"),
    ("mqtt-username-file", "BRIDGE_MQTT_USERNAME_FILE"),
    ("mqtt-password-file", "BRIDGE_MQTT_PASSWORD_FILE"),
    ("mqtt-ca-file", "BRIDGE_MQTT_CA_FILE"),
    ("mqtt-client-id", "BRIDGE_MQTT_CLIENT_ID"),
    ("nats-url", "BRIDGE_NATS_URL"),
    ("nats-credentials-file", "BRIDGE_NATS_CREDENTIALS_FILE"),
    ("nats-ca-file", "BRIDGE_NATS_CA_FILE"),
    ("nats-bucket", "BRIDGE_NATS_BUCKET"),
    ("otlp-endpoint", "BRIDGE_OTLP_ENDPOINT"),
    ("otlp-ca-file", "BRIDGE_OTLP_CA_FILE"),
];

/// Returns the names of all flags of the two tables, and their variables.
fn flags() -> Vec<(&'static str, &'static str)> {
    let name = |flag: &'static str| flag.split(' ').next().unwrap().trim_start_matches('-');
    let numbers = NUMBERS.iter().map(|(flag, variable, _)| (name(flag), *variable));
    numbers.chain(OTHERS.iter().copied()).collect()
}

/// The error of `serve` when all flags are valid: it listens, and finds no cluster.
const NO_CLUSTER: &str = "no kubeconfig found (looked at `/nowhere/.kube/config`) and this is not a Pod with a service \
                          account; name a file with --kubeconfig or KUBECONFIG, or try `boilerhouse-bridge demo`, which \
                          needs no cluster";

/// Checks that a value is rejected with this reason as a flag, as a variable and in the config file.
async fn rejected_everywhere(flag: &str, variable: &str, value: &str, reason: &str) {
    let name = flag.split(' ').next().unwrap();
    let error = format!("invalid value '{value}' for '{flag}': {reason}");
    fails(&["serve", &format!("{name}={value}")], &[], 2, &error).await;
    fails(&["serve"], &[(variable, value)], 2, &error).await;
    let key = name.trim_start_matches('-');
    let (_file, path) = file(&format!("{key}: {value}\n"));
    fails(&["serve", "--config", &path], &[], 2, &format!("{path}: {error}")).await;
}

/// The command names its flags itself: as keys of the config file, and with their variables in the help.
#[tokio::test]
async fn tables_have_every_flag_of_serve_with_its_variable() {
    let (_file, path) = file("unknown: 1\n");
    let exit = run(&["serve", "--config", &path], &[]).await;
    let (_, keys) = exit.stderr.trim().split_once("accepted: ").unwrap_or_else(|| panic!("{}", exit.stderr));
    let mut found: Vec<&str> = flags().into_iter().map(|(flag, _)| flag).filter(|flag| *flag != "config").collect();
    found.sort_unstable();
    assert_eq!(found, keys.split(", ").collect::<Vec<_>>());
    let help = run(&["serve", "--help"], &[]).await.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    for (flag, variable) in flags().into_iter().filter(|(flag, _)| *flag != "kubeconfig") {
        let text = help.split_once(&format!("--{flag} <")).or_else(|| help.split_once(&format!("--{flag}[=")));
        let (_, text) = text.unwrap_or_else(|| panic!("--{flag} is not in {help}"));
        let (_, text) = text.split_once("[env: ").unwrap_or_else(|| panic!("--{flag} has no variable in {help}"));
        assert_eq!(text.split([']', '=']).next(), Some(variable), "the variable of --{flag}");
    }
}

#[tokio::test]
async fn invalid_number_error_states_the_accepted_range() {
    for (flag, variable, range) in NUMBERS {
        let reason = format!("expected a whole number from {range}");
        let zero = (!range.starts_with('0')).then_some("0");
        for value in ["-1", "1.5", "99999999999999999999999", "many"].into_iter().chain(zero) {
            rejected_everywhere(flag, variable, value, &reason).await;
        }
        let name = flag.split(' ').next().unwrap();
        // The value as an argument of its own, and an empty value.
        fails(&["serve", name, "-1"], &[], 2, &format!("invalid value '-1' for '{flag}': {reason}")).await;
        fails(&["serve", name, ""], &[], 2, &format!("invalid value '' for '{flag}': {reason}")).await;
    }
    let seed = "expected a whole number from 0 to 18446744073709551615";
    fails(&["demo", "--seed", "-1"], &[], 2, &format!("invalid value '-1' for '--seed <SEED>': {seed}")).await;
    let speed = "invalid value '-1' for '--speed <SPEED>': expected a number from 0.01 to 1000";
    fails(&["demo", "--speed", "-1"], &[], 2, speed).await;
    let port = "invalid value 'x' for '--port <PORT>': expected a whole number from 0 to 65535";
    fails(&["demo"], &[("PORT", "x")], 2, port).await;
}

/// A chart passes a value that is not set as an empty variable or as an empty line of the file.
#[tokio::test]
async fn empty_value_equals_an_unset_value() {
    let flags = flags();
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
    // All of them at once: the defaults apply, and an empty credential does not allow access without credentials.
    let mut variables: Vec<(&str, &str)> = flags.iter().map(|(_, variable)| (*variable, "")).collect();
    variables.push(("BOILERHOUSE_API_KEY", ""));
    let error = format!(
        "--listen-host {UNASSIGNED_ADDRESS} would give the network access without credentials: set BOILERHOUSE_API_KEY, --keys-file \
         or --token-audience, or pass --allow-anonymous"
    );
    fails(&["serve", "--listen-host", UNASSIGNED_ADDRESS], &variables, 2, &error).await;
    let error = format!(
        "cannot listen on {UNASSIGNED_ADDRESS} port 3000: Cannot assign requested address (os error 99); it must be an address of \
         this machine, or a name of one"
    );
    fails(&["serve", "--listen-host", UNASSIGNED_ADDRESS, "--allow-anonymous"], &variables, 1, &error).await;
    let exit = run(&serve, &[("BOILERHOUSE_API_KEY", "")]).await;
    assert!(exit.stderr.contains("BOILERHOUSE_API_KEY is empty, so it counts as unset"), "{}", exit.stderr);
    // The list of a flag may be empty.
    for flag in ["--cors-origin", "--allowed-hosts", "--trusted-proxies"] {
        fails(&[&serve[..], &[flag, ""]].concat(), &[], 5, NO_CLUSTER).await;
        fails(&[&serve[..], &[&format!("{flag}= , ,")]].concat(), &[], 5, NO_CLUSTER).await;
    }
}

#[tokio::test]
async fn invalid_namespace_is_rejected() {
    let error = "expected the name of a namespace: at most 63 lower case letters, digits and '-'; '-' may not be the first or last \
                character";
    for value in ["Bad Name/x", "kube.system", "-1", "1.5", "a_b", &"x".repeat(64)] {
        rejected_everywhere("--namespace <NAMESPACE>", "K8S_NAMESPACE", value, error).await;
    }
    fails(&["serve", "-n", ""], &[], 2, &format!("invalid value '' for '--namespace <NAMESPACE>': {error}")).await;
    fails(&["serve", "--port=0", "-n", "team-7"], &[], 5, NO_CLUSTER).await;
}

#[tokio::test]
async fn invalid_allowed_host_is_rejected() {
    for value in ["bridge.example:8080", "https://bridge.example", "bridge.example/", "a b", "bridge..example"] {
        let error = format!(
            "'{value}' is not a host name: expected one like bridge.example, without scheme, port or wildcard (it is \
             valid for every port; IP addresses and localhost are always allowed)"
        );
        rejected_everywhere("--allowed-hosts <NAME>", "BRIDGE_ALLOWED_HOSTS", value, &error).await;
    }
    let exit = run(&["serve", "--allowed-hosts", "*.example"], &[]).await;
    assert!(exit.code == 2 && exit.stderr.contains("'*.example' is not a host name: "), "{}", exit.stderr);
    let hosts = ["--allowed-hosts", "bridge.example, Other.example", "--allowed-hosts", "bridge.ns.svc."];
    fails(&[&["serve", "--port=0"][..], &hosts].concat(), &[], 5, NO_CLUSTER).await;
}

/// A bridge that is configured for https must not serve http: one flag of the pair alone is rejected in every place.
#[tokio::test]
async fn incomplete_tls_pair_is_rejected() {
    let table = [
        ("tls-cert", "BRIDGE_TLS_CERT", "--tls-cert needs --tls-key: set the path of the private key"),
        ("tls-key", "BRIDGE_TLS_KEY", "--tls-key needs --tls-cert: set the path of the certificate"),
    ];
    for (flag, variable, error) in table {
        fails(&["serve", &format!("--{flag}=half.pem")], &[], 2, error).await;
        fails(&["serve"], &[(variable, "half.pem")], 2, error).await;
        let (_file, path) = file(&format!("{flag}: half.pem\n"));
        fails(&["serve", "--config", &path], &[], 2, error).await;
    }
    // The two flags may come from different places.
    let (_file, path) = file("tls-cert: /nowhere/tls.crt\n");
    let exit = run(&["serve", "--config", &path, "--tls-key", "/nowhere/tls.key"], &[]).await;
    assert!(exit.stderr.contains("cannot serve TLS"), "{}", exit.stderr);
}

/// The former name of `--dedicated-watchers`, in each place of a value.
#[tokio::test]
async fn former_flag_name_is_accepted() {
    let serve = ["serve", "--port=0"];
    fails(&[&serve[..], &["--own-watchers", "3"]].concat(), &[], 5, NO_CLUSTER).await;
    fails(&serve, &[("BRIDGE_OWN_WATCHERS", "3")], 5, NO_CLUSTER).await;
    let error = "invalid value '-1' for '--dedicated-watchers <N>': expected a whole number from 0 to 1000000";
    fails(&serve, &[("BRIDGE_OWN_WATCHERS", "-1")], 2, error).await;
    fails(&serve, &[("BRIDGE_OWN_WATCHERS", "-1"), ("BRIDGE_DEDICATED_WATCHERS", "1")], 5, NO_CLUSTER).await;
    let (_file, path) = file("own-watchers: 3\n");
    fails(&[&serve[..], &["--config", &path]].concat(), &[], 5, NO_CLUSTER).await;
}

#[tokio::test]
async fn log_filter_and_format_are_validated() {
    let serve = ["serve", "--port=0"];
    let exit = run(&serve, &[("RUST_LOG", "boilerhouse_bridge=loud")]).await;
    assert!(exit.code == 2 && exit.stderr.contains("RUST_LOG is not a log filter"), "{}", exit.stderr);
    fails(&serve, &[("RUST_LOG", "debug")], 5, NO_CLUSTER).await;
    fails(&serve, &[("RUST_LOG", "")], 5, NO_CLUSTER).await;
    let exit = run(&[&serve[..], &["--log-format", "xml"]].concat(), &[]).await;
    assert!(exit.code == 2 && exit.stderr.contains("possible values: text, json"), "{}", exit.stderr);
    // A warning of the access flags is the first log line.
    let exit = run(&[&serve[..], &["--log-format", "json"]].concat(), &[("BOILERHOUSE_API_KEY", "")]).await;
    let line: serde_json::Value = serde_json::from_str(exit.stderr.lines().next().unwrap()).unwrap();
    assert_eq!(line["level"], "WARN", "{line}");
    assert!(line["message"].as_str().unwrap().contains("counts as unset") && line["timestamp"].is_string(), "{line}");
}
