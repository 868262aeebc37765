//! The connection to the broker.

use std::{
    convert::Infallible,
    fmt,
    io::{ErrorKind, Read},
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rumqttc::{
    TlsConfiguration, Transport,
    v5::{
        AsyncClient, ConnectionError, Event, MqttOptions, StateError,
        mqttbytes::{
            QoS,
            v5::{ConnectReturnCode, Filter, Packet, SubscribeReasonCode},
        },
    },
};
use tokio::{
    sync::mpsc,
    task::spawn_blocking,
    time::{Instant, sleep, timeout_at},
};

use super::{
    intake::{PublishMessage, QUEUE, RawMessage, enqueue, publish},
    status::Status,
};
use crate::{
    broker::{TlsConfig, retry_delay},
    validate::Validator,
};

/// Time without a packet after which the broker is asked for one. Twice this time without an answer is a lost connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Maximum time for a connection, TLS and the answer of the broker together; and for the answer to the subscription after that.
const CONNECT_SECONDS: u64 = 10;
/// Maximum bytes of a packet, which the broker is asked not to exceed (MQTT 5.0, section 3.1.2.11.4): 1 MiB.
const MAX_PACKET_BYTES: u32 = 1 << 20;
/// Publications with an acknowledgement that the broker may have sent before the bridge has acknowledged the first.
const RECEIVE_MAXIMUM: u16 = 1024;
/// Requests to the broker that wait: there is one, the subscription.
pub(super) const REQUESTS: usize = 4;
/// Maximum bytes of a user name or a password.
const MAX_SECRET_BYTES: u64 = 4096;

/// The broker and what is read from it.
#[derive(Clone)]
pub struct Config {
    /// Host name or IP address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The configuration of TLS, for a broker with TLS.
    pub tls: Option<TlsConfig>,
    /// Topic filters.
    pub topics: Vec<String>,
    /// The client id. Two connections with the same one end each other.
    pub client_id: String,
    /// File with the user. It is read before each try.
    pub username_file: Option<PathBuf>,
    /// File with the password. It is read before each try.
    pub password_file: Option<PathBuf>,
    /// Messages a second that are parsed and published at most.
    pub rate: NonZeroU32,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("mqtt::Config").field("host", &self.host).field("topics", &self.topics).finish_non_exhaustive()
    }
}

/// Reads messages and publishes them with `publish_message` until it is dropped.
pub async fn run(
    config: Config,
    publish_message: PublishMessage,
    validator: Arc<Validator>,
    status: Arc<Status>,
) -> Infallible {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let read = read(&config, &sender, &status);
    let publish = publish(receiver, config.rate, &publish_message, &validator, &status);
    futures::future::join(read, publish).await.0
}

/// Connects again and again.
async fn read(config: &Config, queue: &mpsc::Sender<RawMessage>, status: &Status) -> Infallible {
    let mut failures = 0;
    loop {
        let reason = read_connection(config, queue, status, &mut failures).await;
        status.connection.down(&reason);
        failures += 1;
        sleep(retry_delay(failures)).await;
    }
}

/// Reads one connection. Returns why it ended, or why there is none.
async fn read_connection(
    config: &Config,
    queue: &mpsc::Sender<RawMessage>,
    status: &Status,
    failures: &mut u32,
) -> String {
    let of_try = config.clone();
    let options = match spawn_blocking(move || options(&of_try)).await {
        Ok(Ok(options)) => options,
        Ok(Err(reason)) => return reason,
        Err(error) => return error.to_string(),
    };
    let (client, mut events) = AsyncClient::new(options, REQUESTS);
    // Until the broker has answered the subscription. Pings prove only that it lives.
    let mut answer_by = None;
    loop {
        let event = match answer_by {
            None => events.poll().await,
            Some(at) => match timeout_at(at, events.poll()).await {
                Ok(event) => event,
                Err(_) => return format!("no answer to the subscription within {CONNECT_SECONDS} s"),
            },
        };
        match event {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                // A publication arrives with the quality of service of its publisher, at most this one.
                let filters = config.topics.iter().map(|topic| Filter::new(topic, QoS::AtLeastOnce));
                if client.try_subscribe_many(filters).is_err() {
                    return "the topics cannot be subscribed to".to_owned();
                }
                answer_by = Some(Instant::now() + Duration::from_secs(CONNECT_SECONDS));
            }
            Ok(Event::Incoming(Packet::SubAck(answer))) => {
                let refused = answer.return_codes.iter().zip(&config.topics);
                let mut refused = refused.filter(|(code, _)| !matches!(code, SubscribeReasonCode::Success(_)));
                if let Some((code, topic)) = refused.next() {
                    return format!("the broker refuses the subscription to '{topic}': {code:?}");
                }
                *failures = 0;
                answer_by = None;
                status.connection.up();
            }
            Ok(Event::Incoming(Packet::Publish(message))) => enqueue(&message, queue, status),
            Ok(_) => {}
            Err(error) => return reason(error),
        }
    }
}

/// Reads the files and returns the options of a connection. It blocks.
pub(super) fn options(config: &Config) -> Result<MqttOptions, String> {
    // A name is resolved with its port, so an IPv6 address needs brackets.
    let host = if config.host.contains(':') && config.tls.is_none() {
        format!("[{}]", config.host)
    } else {
        config.host.clone()
    };
    let mut options = MqttOptions::new(&config.client_id, host, config.port);
    options.set_keep_alive(KEEP_ALIVE).set_connection_timeout(CONNECT_SECONDS);
    options.set_max_packet_size(Some(MAX_PACKET_BYTES)).set_receive_maximum(Some(RECEIVE_MAXIMUM));
    if let Some(username) = &config.username_file {
        let password = config.password_file.as_deref().map_or_else(|| Ok(String::new()), secret)?;
        options.set_credentials(secret(username)?, password);
    }
    if let Some(tls) = &config.tls {
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls()?)));
    }
    Ok(options)
}

/// Reads a user name or a password: the first line of the file.
fn secret(path: &Path) -> Result<String, String> {
    let failed = |reason: String| format!("{}: {reason}", path.display());
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    file.take(MAX_SECRET_BYTES + 1).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    let secret = text.lines().next().unwrap_or_default();
    if secret.is_empty() || text.len() as u64 > MAX_SECRET_BYTES {
        return Err(failed(format!("expected one line of at most {MAX_SECRET_BYTES} bytes")));
    }
    Ok(secret.to_owned())
}

/// Returns why a connection failed, in words for operators.
pub(super) fn reason(error: ConnectionError) -> String {
    match error {
        ConnectionError::Timeout(_) => format!("no answer within {CONNECT_SECONDS} s"),
        ConnectionError::Io(error) if error.kind() == ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        ConnectionError::Io(error) => error.to_string(),
        ConnectionError::ConnectionRefused(code)
        | ConnectionError::MqttState(StateError::ConnFail { reason: code }) => match code {
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => {
                "the broker does not accept the user or the password".to_owned()
            }
            code => format!("the broker refuses the connection: {code:?}"),
        },
        ConnectionError::MqttState(StateError::ConnectionAborted) => "the broker closed the connection".to_owned(),
        ConnectionError::MqttState(StateError::AwaitPingResp) => "the broker is silent".to_owned(),
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => {
            format!("the broker ended the connection: {reason_code:?}")
        }
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_is_the_first_line_of_a_short_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        for (content, expected) in [
            ("pass word\n", Some("pass word")),
            ("x\r\ny\n", Some("x")),
            ("", None),
            ("\nx", None),
            (&"x".repeat(4097), None),
        ] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(secret(&path).ok().as_deref(), expected, "{content:?}");
        }
        assert!(secret(&folder.path().join("absent")).unwrap_err().contains("absent"));
    }
}
