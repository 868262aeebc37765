//! The flags of MQTT, NATS and traces, which every binary knows (docs/protocol.md#mqtt, docs/protocol.md#traces).

use crate::support::bridge_process::command;

/// Runs `serve` with these arguments, and returns what it prints to stderr. It must be a usage error.
async fn usage_error(args: &[&str]) -> String {
    let output = command(&[&["serve"], args].concat()).output().await.unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
    text
}

#[tokio::test]
async fn flags_of_inputs_that_lack_another_one_are_usage_errors() {
    let mqtt = ["--mqtt-url", "mqtt://127.0.0.1:1"];
    let topic = ["--mqtt-topic", "a"];
    for (args, expected) in [
        (mqtt.to_vec(), "--mqtt-url needs --mqtt-topic"),
        (topic.to_vec(), "--mqtt-topic needs --mqtt-url"),
        (vec!["--mqtt-client-id", "x"], "--mqtt-client-id needs --mqtt-url"),
        ([mqtt, topic, ["--mqtt-password-file", "x"]].concat(), "--mqtt-password-file needs --mqtt-username-file"),
        ([mqtt, topic, ["--mqtt-ca-file", "x"]].concat(), "--mqtt-ca-file needs an mqtts:// URL"),
        ([mqtt, ["--mqtt-topic", "a/#/b"]].concat(), "stands for one whole level"),
        (vec!["--mqtt-url", "http://broker"], "expected mqtt://host:port"),
        (vec!["--mqtt-url", "mqtt://user:word@broker"], "--mqtt-username-file"),
        (vec!["--mqtt-rate", "0"], "expected a whole number from 1 to 10000"),
        (vec!["--nats-bucket", "x"], "--nats-bucket needs --nats-url"),
        (vec!["--nats-url", "nats://a,tls://b"], "use nats:// for all servers, or tls:// for all"),
        (vec!["--nats-url", "nats://a", "--nats-ca-file", "x"], "--nats-ca-file needs a tls:// URL"),
        (vec!["--nats-url", "a:4222"], "expected nats://host:port"),
        (vec!["--otlp-endpoint", "grpc://collector:4317"], "--otlp-endpoint: expected http://host:port"),
        (vec!["--otlp-endpoint", "http://user:word@collector"], "OTEL_EXPORTER_OTLP_HEADERS"),
        (vec!["--otlp-endpoint", "http://collector", "--otlp-ca-file", "x"], "--otlp-ca-file needs an https:// URL"),
        (vec!["--otlp-ca-file", "x"], "--otlp-ca-file needs --otlp-endpoint"),
    ] {
        let error = usage_error(&args).await;
        assert!(error.contains(expected), "{args:?}: {error}");
        assert!(!error.contains("word@"), "{error}");
    }
}

#[tokio::test]
async fn binary_without_a_feature_says_how_to_build_one_with_it() {
    let inputs: [(bool, &str, &str, &[&str]); 3] = [
        (cfg!(feature = "mqtt"), "mqtt", "MQTT", &["--mqtt-url", "mqtt://127.0.0.1:1", "--mqtt-topic", "a"]),
        (cfg!(feature = "nats"), "nats", "NATS", &["--nats-url", "nats://127.0.0.1:1"]),
        (cfg!(feature = "otlp"), "otlp", "OTLP", &["--otlp-endpoint", "http://127.0.0.1:1"]),
    ];
    for (_, feature, name, args) in inputs.into_iter().filter(|(is_compiled, ..)| !is_compiled) {
        let error = usage_error(args).await;
        let build = format!("build one with `cargo build --release --features {feature}`");
        let expected = format!("{}: this binary has no {name} support; {build}", args[0]);
        assert!(error.contains(&expected), "{error}");
    }
}

#[cfg(feature = "mqtt")]
#[tokio::test]
async fn unusable_ca_file_is_a_usage_error() {
    let error = usage_error(&["--mqtt-url", "mqtts://b", "--mqtt-topic", "a", "--mqtt-ca-file", "/absent"]).await;
    assert!(error.contains("--mqtt-ca-file: /absent"), "{error}");
}
