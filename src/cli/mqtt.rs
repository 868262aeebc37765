//! The flags of the MQTT input (docs/protocol.md#mqtt).

use std::{convert::Infallible, num::NonZeroU32, path::PathBuf, str::FromStr, sync::Arc};

use clap::Args;
use prometheus_client::registry::Registry;

use super::{
    broker::{self, BrokerUrl},
    exit::CliError,
    parsers::{List, integer_in},
    server::ReadinessLine,
};
#[cfg(feature = "mqtt")]
use crate::source::mqtt;
use crate::{
    doctor::{shell_path, shell_word},
    event::MqttMessage,
    tasks::Tasks,
    validate::Validator,
};

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

/// Parses the URL of a broker.
fn broker_url(text: &str) -> Result<BrokerUrl, String> {
    let url = BrokerUrl::parse(text, ["mqtt", "mqtts"], "--mqtt-username-file and --mqtt-password-file")?;
    if url.has_tls && url.host.contains(':') {
        return Err("TLS to an IPv6 address is not supported; use a host name".to_owned());
    }
    Ok(url)
}

/// Returns the port of a URL without one.
fn default_port(has_tls: bool) -> u16 {
    if has_tls { 8883 } else { 1883 }
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
    broker::name(text, &['-', '_', '.'])
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
        let url = broker_url(url).map_err(|error| CliError::usage(format!("--mqtt-url: {error}")))?;
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

    /// Returns a command that reads one message of the broker with the same credentials, for `doctor`. The text of the URL is
    /// not in it, apart from host and port.
    pub(super) fn show_command(&self) -> String {
        let url = self.mqtt_url.as_deref().and_then(|url| broker_url(url).ok());
        let mut command = "mosquitto_sub -V 5 -C 1 -W 10 -t '$SYS/#'".to_owned();
        if let Some(BrokerUrl { host, port, has_tls }) = url {
            command += &format!(" -h {} -p {}", shell_word(&host), port.unwrap_or(default_port(has_tls)));
            let ca = self.mqtt_ca_file.as_deref().map(|file| format!(" --cafile {}", shell_path(file)));
            command += &ca.unwrap_or_else(|| if has_tls { " --tls-use-os-certs".to_owned() } else { String::new() });
        }
        for (flag, file) in [("-u", &self.mqtt_username_file), ("-P", &self.mqtt_password_file)] {
            command +=
                &file.as_deref().map(|file| format!(" {flag} \"$(cat {})\"", shell_path(file))).unwrap_or_default();
        }
        command
    }

    /// Returns the broker to read, if there is one.
    ///
    /// # Errors
    /// A flag lacks another one, a file cannot be used, or this binary has no MQTT support.
    #[cfg(feature = "mqtt")]
    pub(super) fn resolve(&self) -> Result<Option<Broker>, CliError> {
        let Some((url, topics)) = self.check()? else { return Ok(None) };
        let tls = match url.has_tls {
            true => Some(broker::tls_config("--mqtt-ca-file", self.mqtt_ca_file.clone())?),
            false => None,
        };
        if tls.is_none() && self.mqtt_username_file.is_some() {
            tracing::warn!("user and password are sent to the MQTT broker unencrypted; use an mqtts:// URL");
        }
        Ok(Some(mqtt::Config {
            host: url.host,
            port: url.port.unwrap_or(default_port(url.has_tls)),
            tls,
            topics,
            client_id: self.mqtt_client_id.clone().unwrap_or_else(new_client_id),
            username_file: self.mqtt_username_file.clone(),
            password_file: self.mqtt_password_file.clone(),
            rate: self.mqtt_rate,
        }))
    }

    /// See the variant with the feature.
    #[cfg(not(feature = "mqtt"))]
    pub(super) fn resolve(&self) -> Result<Option<Broker>, CliError> {
        match self.check()? {
            None => Ok(None),
            Some(_) => Err(broker::without_feature("--mqtt-url", "mqtt")),
        }
    }
}

/// Returns a client id of 23 characters, which every broker accepts.
#[cfg(feature = "mqtt")]
fn new_client_id() -> String {
    use std::hash::{BuildHasher, RandomState};

    format!("bridge-{:016x}", RandomState::new().hash_one(0))
}

/// Connects to a broker once, for `doctor`. Its client id is a new one, so that a running bridge keeps its connection.
///
/// # Errors
/// Why the broker cannot be read.
#[cfg(feature = "mqtt")]
pub(super) async fn check(broker: Broker) -> Result<String, String> {
    let config = mqtt::Config { client_id: new_client_id(), ..broker };
    mqtt::check(&config).await?;
    let mqtt::Config { host, port, topics, .. } = config;
    Ok(format!("{host} port {port} accepts the connection and the subscription to {}", topics.join(", ")))
}

/// See the variant with the feature.
#[cfg(not(feature = "mqtt"))]
pub(super) async fn check(broker: Broker) -> Result<String, String> {
    match broker {}
}

/// Starts to read a broker, and publishes its messages with `publish`, which must not wait. Returns the line for
/// `/readyz?verbose`.
#[cfg(feature = "mqtt")]
pub(super) fn start(
    broker: Broker,
    publish: impl Fn(MqttMessage) + Send + Sync + 'static,
    validator: &Arc<Validator>,
    tasks: &Tasks,
    registry: &mut Registry,
) -> ReadinessLine {
    let metrics = mqtt::Metrics::default();
    metrics.register(registry);
    let status = Arc::new(mqtt::Status::new(metrics));
    let read = mqtt::run(broker, Box::new(publish), validator.clone(), status.clone());
    tasks.spawn("mqtt", async move { Ok::<_, Infallible>(read.await) });
    Box::new(move || status.line())
}

/// See the variant with the feature.
#[cfg(not(feature = "mqtt"))]
pub(super) fn start(
    broker: Broker,
    _: impl Fn(MqttMessage) + Send + Sync + 'static,
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
    fn tls_needs_a_host_name() {
        assert!(broker_url("mqtts://broker:8883").unwrap().has_tls);
        broker_url("mqtts://[::1]:8883").unwrap_err();
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
