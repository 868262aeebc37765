//! The flags of the MQTT input, which `serve` and `relay` share (docs/protocol.md#mqtt).

use std::{convert::Infallible, num::NonZeroU32, path::PathBuf, str::FromStr, sync::Arc};

use clap::Args;
use http::Uri;
use prometheus_client::registry::Registry;

use super::{
    exit::CliError,
    parsers::{List, integer_in},
    server::ReadinessLine,
};
use crate::{backbone::Backbone, tasks::Tasks, validate::Validator};
#[cfg(feature = "mqtt")]
use crate::{client, source::mqtt};

/// A broker to read. Without the feature there is none.
#[cfg(feature = "mqtt")]
pub(super) type Broker = mqtt::Config;
/// See the variant with the feature.
#[cfg(not(feature = "mqtt"))]
pub(super) type Broker = Infallible;

/// Maximum number of topic filters.
const MAX_TOPICS: usize = 100;
/// Maximum bytes of a topic filter. MQTT allows 65,535; all of them are in one request.
const MAX_TOPIC_BYTES: usize = 1024;
/// Maximum of `--mqtt-rate`.
const MAX_RATE: u64 = 10_000;

/// Arguments of the MQTT input.
#[derive(Clone, Debug, Args)]
pub(super) struct MqttArgs {
    /// MQTT 5 broker whose JSON messages become `mqtt.message` events: mqtt://host[:1883], or mqtts://host[:8883] with TLS.
    /// Needs --mqtt-topic, and a binary with the feature `mqtt`
    #[arg(long, env = "BRIDGE_MQTT_URL", value_name = "URL")]
    mqtt_url: Option<String>,

    /// Topics to subscribe to (comma-separated), with the wildcards `+` and `#`. Of several bridges with the same
    /// `$share/<group>/<topic>`, one receives each message
    #[arg(long, env = "BRIDGE_MQTT_TOPIC", value_name = "TOPIC")]
    mqtt_topic: Vec<List<TopicFilter>>,

    /// Path of a file with the user name for the broker. It is read before each connection
    #[arg(long, env = "BRIDGE_MQTT_USERNAME_FILE", value_name = "FILE")]
    mqtt_username_file: Option<PathBuf>,

    /// Path of a file with the password for the broker. It is read before each connection
    #[arg(long, env = "BRIDGE_MQTT_PASSWORD_FILE", value_name = "FILE")]
    mqtt_password_file: Option<PathBuf>,

    /// Path of a file with the certificates (PEM) that issue the broker's certificate. Without it, those of the operating
    /// system
    #[arg(long, env = "BRIDGE_MQTT_CA_FILE", value_name = "FILE")]
    mqtt_ca_file: Option<PathBuf>,

    /// Client id at the broker; it must differ between bridges. Without it, a new one at each start
    #[arg(long, env = "BRIDGE_MQTT_CLIENT_ID", value_name = "ID", value_parser = client_id)]
    mqtt_client_id: Option<String>,

    /// Maximum number of MQTT messages a second that become events. Further ones wait in a queue of 256, and are dropped and
    /// counted when it is full
    #[arg(long, env = "BRIDGE_MQTT_RATE", default_value = "100", value_name = "N")]
    #[arg(value_parser = integer_in::<NonZeroU32>(1..=MAX_RATE))]
    mqtt_rate: NonZeroU32,
}

/// The URL of a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BrokerUrl {
    host: String,
    port: u16,
    has_tls: bool,
}

impl FromStr for BrokerUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<BrokerUrl, String> {
        let expected = || "expected mqtt://host:port or mqtts://host:port".to_owned();
        let uri: Uri = text.parse().map_err(|_| expected())?;
        let has_tls = match uri.scheme_str() {
            Some("mqtt") => false,
            Some("mqtts") => true,
            _ => return Err(expected()),
        };
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(
                "user and password are not part of the URL; use --mqtt-username-file and --mqtt-password-file".into()
            );
        }
        if uri.path_and_query().is_some_and(|rest| !["", "/"].contains(&rest.as_str())) {
            return Err(format!("{}, without a path", expected()));
        }
        let authority = uri.authority().ok_or_else(expected)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let has_port = authority.as_str().len() > authority.host().len();
        let port = match authority.port_u16() {
            Some(port) if port > 0 => port,
            None if !has_port => 1883 + 7000 * u16::from(has_tls),
            _ => return Err(format!("{}, with a port from 1 to 65535", expected())),
        };
        if host.is_empty() {
            return Err(expected());
        }
        if has_tls && host.contains(':') {
            return Err("TLS to an IPv6 address is not supported; use a host name".to_owned());
        }
        Ok(BrokerUrl { host: host.to_owned(), port, has_tls })
    }
}

/// A topic filter (MQTT 5.0, sections 4.7 and 4.8.2).
#[derive(Clone, Debug, PartialEq, Eq)]
struct TopicFilter(String);

impl FromStr for TopicFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<TopicFilter, String> {
        if text.len() > MAX_TOPIC_BYTES || text.contains(char::is_control) {
            return Err(format!("expected at most {MAX_TOPIC_BYTES} bytes without control characters"));
        }
        let topic = match text.strip_prefix("$share/").map(|shared| shared.split_once('/')) {
            None => text,
            Some(Some((group, topic))) if !group.is_empty() && !group.contains(['+', '#']) => topic,
            Some(_) => return Err("expected $share/<group>/<topic>, with a group without + and #".to_owned()),
        };
        let levels: Vec<&str> = topic.split('/').collect();
        let is_wrong = |(index, level): (usize, &&str)| {
            let is_wildcard = *level == "+" || (*level == "#" && index + 1 == levels.len());
            level.contains(['+', '#']) && !is_wildcard
        };
        if topic.is_empty() || levels.iter().enumerate().any(is_wrong) {
            return Err("expected a topic such as sensors/+/state or sensors/#: + stands for one whole level, # for all further \
                        ones"
                .to_owned());
        }
        Ok(TopicFilter(text.to_owned()))
    }
}

/// Parses a client id: the characters that every broker must accept, and `-`, `_` and `.` (MQTT 5.0, section 3.1.3.1).
fn client_id(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=128).contains(&text.len()) && text.chars().all(is_plain) {
        return Ok(text.to_owned());
    }
    Err("expected 1 to 128 letters, digits, '-', '_' and '.'".to_owned())
}

/// Returns the error of a flag that needs a feature.
#[cfg(any(not(feature = "mqtt"), not(feature = "nats")))]
pub(super) fn without_feature(flag: &str, feature: &str) -> CliError {
    CliError::usage(format!(
        "{flag}: this binary has no {} support; build one with `cargo build --release --features {feature}`",
        feature.to_uppercase()
    ))
}

impl MqttArgs {
    /// Checks the flags together. Returns whether there is a broker.
    ///
    /// # Errors
    /// A flag lacks another one, or there are too many topics.
    fn check(&self) -> Result<Option<(BrokerUrl, Vec<String>)>, CliError> {
        let topics = self.mqtt_topic.iter().flat_map(|List(topics)| topics).map(|TopicFilter(topic)| topic.clone());
        let topics: Vec<String> = topics.collect();
        let Some(url) = &self.mqtt_url else {
            let others = [
                ("--mqtt-topic", !topics.is_empty()),
                ("--mqtt-username-file", self.mqtt_username_file.is_some()),
                ("--mqtt-password-file", self.mqtt_password_file.is_some()),
                ("--mqtt-ca-file", self.mqtt_ca_file.is_some()),
                ("--mqtt-client-id", self.mqtt_client_id.is_some()),
            ];
            return match others.into_iter().find(|(_, is_set)| *is_set) {
                None => Ok(None),
                Some((flag, _)) => Err(CliError::usage(format!("{flag} needs --mqtt-url"))),
            };
        };
        // Not a value parser: clap would print a URL with a password.
        let url: BrokerUrl = url.parse().map_err(|error| CliError::usage(format!("--mqtt-url: {error}")))?;
        let error = if topics.is_empty() {
            "--mqtt-url needs --mqtt-topic"
        } else if topics.len() > MAX_TOPICS {
            "--mqtt-topic: at most 100 topics are accepted; use wildcards"
        } else if self.mqtt_password_file.is_some() && self.mqtt_username_file.is_none() {
            "--mqtt-password-file needs --mqtt-username-file"
        } else if self.mqtt_ca_file.is_some() && !url.has_tls {
            "--mqtt-ca-file needs an mqtts:// URL"
        } else {
            return Ok(Some((url, topics)));
        };
        Err(CliError::usage(error))
    }

    /// Returns the broker to read, if there is one.
    ///
    /// # Errors
    /// A flag lacks another one, a file cannot be used, or this binary has no MQTT support.
    #[cfg(feature = "mqtt")]
    pub(super) fn resolve(&self) -> Result<Option<Broker>, CliError> {
        use std::hash::{BuildHasher, RandomState};

        let Some((url, topics)) = self.check()? else { return Ok(None) };
        let ca_file = self.mqtt_ca_file.clone();
        let tls: mqtt::TlsConfig =
            Arc::new(move || client::tls_config(ca_file.as_deref()).map_err(|error| error.to_string()));
        if url.has_tls {
            // Later, an unreadable file is an outage.
            tls().map_err(|reason| CliError::usage(format!("--mqtt-ca-file: {reason}")))?;
        } else if self.mqtt_username_file.is_some() {
            tracing::warn!("user and password are sent to the MQTT broker unencrypted; use an mqtts:// URL");
        }
        // 23 characters, which every broker accepts.
        let new_id = || format!("bridge-{:016x}", RandomState::new().hash_one(0));
        Ok(Some(mqtt::Config {
            host: url.host,
            port: url.port,
            tls: url.has_tls.then_some(tls),
            topics,
            client_id: self.mqtt_client_id.clone().unwrap_or_else(new_id),
            username_file: self.mqtt_username_file.clone(),
            password_file: self.mqtt_password_file.clone(),
            rate: self.mqtt_rate,
            backoff: mqtt::Config::default_backoff(),
        }))
    }

    /// See the variant with the feature.
    #[cfg(not(feature = "mqtt"))]
    pub(super) fn resolve(&self) -> Result<Option<Broker>, CliError> {
        match self.check()? {
            None => Ok(None),
            Some(_) => Err(without_feature("--mqtt-url", "mqtt")),
        }
    }
}

/// Starts to read a broker, and publishes its messages through the backbone. Returns the line for `/readyz?verbose`.
#[cfg(feature = "mqtt")]
pub(super) fn start(
    broker: Broker,
    backbone: &Arc<dyn Backbone>,
    validator: &Arc<Validator>,
    tasks: &Tasks,
    registry: &mut Registry,
) -> ReadinessLine {
    let metrics = mqtt::Metrics::default();
    metrics.register(registry);
    let status = Arc::new(mqtt::Status::new(metrics));
    let backbone = backbone.clone();
    let sink: mqtt::Sink = Box::new(move |message| {
        let backbone = backbone.clone();
        Box::pin(async move { backbone.publish_mqtt_message(message).await.map_err(|error| error.to_string()) })
    });
    let read = mqtt::run(broker, sink, validator.clone(), status.clone());
    tasks.spawn("mqtt", async move { Ok::<_, Infallible>(read.await) });
    Box::new(move || status.line())
}

/// See the variant with the feature.
#[cfg(not(feature = "mqtt"))]
pub(super) fn start(
    broker: Broker,
    _: &Arc<dyn Backbone>,
    _: &Arc<Validator>,
    _: &Tasks,
    _: &mut Registry,
) -> ReadinessLine {
    match broker {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broker_url_has_a_scheme_a_host_and_perhaps_a_port() {
        let url = |text: &str| text.parse::<BrokerUrl>().map(|url| (url.host, url.port, url.has_tls));
        for (text, host, port, has_tls) in [
            ("mqtt://broker", "broker", 1883, false),
            ("mqtt://broker/", "broker", 1883, false),
            ("mqtts://broker.example", "broker.example", 8883, true),
            ("mqtts://broker:1", "broker", 1, true),
            ("mqtt://127.0.0.1:1884", "127.0.0.1", 1884, false),
            ("mqtt://[::1]:1884", "::1", 1884, false),
            ("mqtt://[::1]", "::1", 1883, false),
        ] {
            assert_eq!(url(text), Ok((host.to_owned(), port, has_tls)), "{text}");
        }
        for wrong in [
            "",
            "broker",
            "broker:1883",
            "http://broker",
            "mqtt://",
            "mqtt://:1883",
            "mqtt://broker:0",
            "mqtt://broker:65536",
            "mqtt://broker:x",
            "mqtt://broker:",
            "mqtt://user:secret@broker",
            "mqtt://broker/path",
            "mqtt://broker?x=1",
            "mqtts://[::1]:8883",
            "mqtt:/broker",
            "ws://broker",
        ] {
            let error = url(wrong).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn topic_filters_follow_the_rules_of_mqtt() {
        for good in [
            "a",
            "/",
            "a//b",
            "a/b/c",
            "#",
            "+",
            "a/+/b",
            "a/#",
            "+/+/#",
            "$SYS/#",
            "$share/g/a/+",
            "$share/g//",
            "$share/g/#",
            "ä b",
        ] {
            assert_eq!(good.parse(), Ok(TopicFilter(good.to_owned())));
        }
        for wrong in [
            "",
            "a#",
            "a+/b",
            "#/a",
            "a/#/b",
            "++",
            "$share/",
            "$share/g",
            "$share/g/",
            "$share//a",
            "$share/+/a",
            "$share/g#/a",
            "a\0",
            &"x".repeat(1025),
        ] {
            wrong.parse::<TopicFilter>().unwrap_err();
        }
    }

    #[test]
    fn client_id_has_plain_characters() {
        assert_eq!(client_id("bridge-1.a_B").as_deref(), Ok("bridge-1.a_B"));
        for wrong in ["", "a b", "a/b", &"x".repeat(129)] {
            client_id(wrong).unwrap_err();
        }
    }
}
