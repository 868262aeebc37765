//! The connection to NATS.

use std::{
    convert::Infallible,
    fmt,
    hash::{BuildHasher, RandomState},
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_nats::{
    Client, ConnectOptions, Event, Message, Subscriber,
    jetstream::{
        self,
        kv::{self, Entry, Operation, Store, Watch},
    },
};
use futures::StreamExt;
use prometheus_client::metrics::counter::Counter;
use rustls::ClientConfig;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep_until, timeout},
};

use super::{
    pending::Pending,
    shared::{Link, Nats},
};
use crate::event::{MqttMessage, Telemetry};

/// Maximum time for a connection, TLS and authentication together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum wait for an answer of JetStream.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of pings. After two without an answer, the connection is lost.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Messages that are received and not read yet; more are lost and counted.
const RECEIVED: usize = 1024;
/// Messages that wait to be sent.
const TO_SEND: usize = 256;
/// Maximum bytes of a message of another replica: twice the largest payload of an MQTT message, because of escapes.
const MAX_MESSAGE_BYTES: usize = 256 << 10;
/// Maximum bytes of a snapshot in the bucket. They have less than 1 KiB.
const MAX_VALUE_BYTES: i32 = 4096;
/// Time without an entry after which the bucket counts as read, because an empty one sends none.
const CATCH_UP_IDLE: Duration = Duration::from_secs(1);
/// Interval at which telemetry of unknown instances is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Delay after the first failure.
const MIN_BACKOFF: Duration = Duration::from_secs(1);
/// Maximum delay between two tries.
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Maximum bytes of a credentials file.
const MAX_CREDENTIALS_BYTES: u64 = 16 << 10;
/// Maximum characters of a reason, because a server can send any text.
pub(super) const MAX_REASON_CHARS: usize = 200;

/// Returns the configuration of TLS. It is called before each try, so that changed certificates are used.
pub type TlsConfig = Arc<dyn Fn() -> Result<Arc<ClientConfig>, String> + Send + Sync>;

/// How NATS is reached.
#[derive(Clone)]
pub struct Config {
    /// URLs of the servers.
    pub servers: Vec<String>,
    /// The configuration of TLS, for servers with TLS.
    pub tls: Option<TlsConfig>,
    /// Credentials file. It is read before each try.
    pub credentials_file: Option<PathBuf>,
    /// The bucket of telemetry; it is also part of the subject of MQTT messages.
    pub bucket: String,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("nats::Config")
            .field("servers", &self.servers)
            .field("bucket", &self.bucket)
            .finish_non_exhaustive()
    }
}

/// Returns the backbone, and the future that connects it until it is dropped.
pub fn start(
    config: Config,
    feed: crate::feed::Feed,
) -> (Arc<Nats>, impl Future<Output = Infallible> + Send + 'static) {
    let nats = Arc::new(Nats::new(feed));
    (nats.clone(), async move { run(&config, &nats).await })
}

/// Connects again and again.
async fn run(config: &Config, nats: &Nats) -> Infallible {
    // Before, this replica knows no instance.
    nats.feed.wait_synced().await;
    let (mut pending, mut failures, ttl) = (Pending::default(), 0, nats.feed.telemetry_ttl());
    loop {
        let reason = match run_connection(config, nats, &mut pending, &mut failures).await {
            Err(reason) => reason.chars().take(MAX_REASON_CHARS).collect(),
            Ok(never) => match never {},
        };
        nats.down(reason);
        let until = Instant::now() + backoff(failures, RandomState::new().hash_one(failures));
        failures += 1;
        while Instant::now() < until {
            sleep_until(until.min(Instant::now() + RETRY_INTERVAL)).await;
            pending.retry(&nats.feed, ttl);
        }
    }
}

/// Returns the delay after this number of earlier failures: it doubles, and is drawn from its upper half.
fn backoff(failures: u32, random: u64) -> Duration {
    let longest = MIN_BACKOFF.saturating_mul(1 << failures.min(8)).min(MAX_BACKOFF);
    let fraction = f64::from(u16::try_from(random >> 48).unwrap_or(0)) / f64::from(u16::MAX);
    longest.mul_f64(0.5 + fraction / 2.0)
}

/// Connects, reads the bucket, and then reads both until the connection is lost. The error is the reason.
async fn run_connection(
    config: &Config,
    nats: &Nats,
    pending: &mut Pending,
    failures: &mut u32,
) -> Result<Infallible, String> {
    let is_lost = Arc::new(watch::Sender::new(None));
    let mut lost = is_lost.subscribe();
    let client = connect(config, is_lost, nats.lost_messages()).await?;
    let subject = format!("boilerhouse-bridge.{}.mqtt", config.bucket);
    let mut context = jetstream::new(client.clone());
    context.set_timeout(REQUEST_TIMEOUT);
    let store = open_bucket(&context, &config.bucket, nats.feed.telemetry_ttl()).await?;
    let mut messages = client.subscribe(subject.clone()).await.map_err(|error| format!("subscription: {error}"))?;
    let mut entries = store.watch_with_history(">").await.map_err(|error| format!("watch of the bucket: {error}"))?;
    nats.revision.send_replace(0);
    nats.link.send_replace(Some(Link { client, store, subject }));
    let reading = read(nats, pending, failures, &mut entries, &mut messages);
    tokio::select! {
        reason = reading => reason,
        reason = lost.wait_for(Option::is_some) => {
            Err(reason.ok().and_then(|reason| reason.clone()).unwrap_or_default())
        }
    }
}

/// Reads telemetry and messages until one of them ends.
async fn read(
    nats: &Nats,
    pending: &mut Pending,
    failures: &mut u32,
    entries: &mut Watch,
    messages: &mut Subscriber,
) -> Result<Infallible, String> {
    let (mut is_up, mut idle_at) = (false, Instant::now() + CATCH_UP_IDLE);
    let ttl = nats.feed.telemetry_ttl();
    let mut retry = tokio::time::interval(RETRY_INTERVAL);
    retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let is_read = tokio::select! {
            entry = entries.next() => {
                let entry = entry.ok_or("the watch of the bucket ended")?;
                let entry = entry.map_err(|error| format!("watch of the bucket: {error}"))?;
                idle_at = Instant::now() + CATCH_UP_IDLE;
                take_entry(nats, pending, &entry);
                entry.seen_current
            }
            message = messages.next() => {
                take_message(nats, &message.ok_or("the subscription ended")?);
                false
            }
            _ = retry.tick() => {
                pending.retry(&nats.feed, ttl);
                false
            }
            () = sleep_until(idle_at), if !is_up => true,
        };
        if is_read && !is_up {
            is_up = true;
            *failures = 0;
            nats.up();
        }
    }
}

/// Publishes an entry of the bucket.
fn take_entry(nats: &Nats, pending: &mut Pending, entry: &Entry) {
    if entry.operation == Operation::Put {
        let outcome = match serde_json::from_slice::<Telemetry>(&entry.value) {
            Ok(telemetry) if telemetry.tunnel_id == entry.key => {
                if pending.publish(&nats.feed, telemetry) {
                    "received"
                } else {
                    "too_many"
                }
            }
            _ => "malformed",
        };
        nats.count_telemetry(outcome);
    }
    // After the feed has it: a post waits for this.
    nats.revision.send_replace(entry.revision);
}

/// Publishes a message of another replica.
fn take_message(nats: &Nats, message: &Message) {
    let is_short = message.payload.len() <= MAX_MESSAGE_BYTES;
    let parsed = is_short.then(|| serde_json::from_slice::<MqttMessage>(&message.payload).ok()).flatten();
    nats.count_message(if parsed.is_some() { "received" } else { "malformed" });
    if let Some(message) = parsed {
        nats.feed.publish_mqtt_message(message);
    }
}

/// Connects to one of the servers. `is_lost` gets the reason when the connection ends.
pub(super) async fn connect(
    config: &Config,
    is_lost: Arc<watch::Sender<Option<String>>>,
    lost_messages: Counter,
) -> Result<Client, String> {
    let (tls, file) = (config.tls.clone(), config.credentials_file.clone());
    let options = spawn_blocking(move || {
        let credentials = file.as_deref().map(credentials).transpose()?;
        let options = match &credentials {
            None => ConnectOptions::new(),
            Some(text) => ConnectOptions::with_credentials(text)
                .map_err(|_| "the credentials file has no valid user JWT and seed".to_owned())?,
        };
        let tls = tls.map(|tls| tls()).transpose()?;
        Ok::<_, String>(match tls {
            None => options,
            Some(tls) => options.require_tls(true).tls_client_config(ClientConfig::clone(&tls)),
        })
    });
    let options = options.await.map_err(|error| error.to_string())??;
    let options = options
        .name("boilerhouse-bridge")
        .no_echo()
        .connection_timeout(CONNECT_TIMEOUT)
        .request_timeout(Some(REQUEST_TIMEOUT))
        .ping_interval(PING_INTERVAL)
        .subscription_capacity(RECEIVED)
        .client_capacity(TO_SEND)
        // Connections are made again by this module, so that changed files are read.
        .max_reconnects(config.servers.len())
        .reconnect_delay_callback(|_| Duration::ZERO)
        .event_callback(move |event| {
            let reason = match event {
                Event::Disconnected | Event::Closed => Some("the connection was lost".to_owned()),
                Event::LameDuckMode => Some("the server shuts down".to_owned()),
                Event::ServerError(error) => {
                    tracing::debug!(%error, "error of the NATS server");
                    None
                }
                Event::SlowConsumer(_) => {
                    lost_messages.inc();
                    None
                }
                Event::Connected | Event::Draining | Event::ClientError(_) => None,
            };
            if reason.is_some() {
                is_lost.send_if_modified(|lost| lost.is_none().then(|| *lost = reason).is_some());
            }
            std::future::ready(())
        });
    let connection = timeout(CONNECT_TIMEOUT, options.connect(config.servers.clone())).await;
    let connection = connection.map_err(|_| format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))?;
    connection.map_err(|error| format!("no connection: {error}"))
}

/// Reads a credentials file. It blocks.
fn credentials(path: &Path) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let (mut text, file) = (String::new(), std::fs::File::open(path).map_err(failed)?);
    file.take(MAX_CREDENTIALS_BYTES).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// Opens the bucket with this TTL. Creates it if there is none.
async fn open_bucket(context: &jetstream::Context, bucket: &str, ttl: Duration) -> Result<Store, String> {
    if let Ok(store) = context.get_key_value(bucket).await {
        let mut config = store.stream.cached_info().config.clone();
        if config.max_age != ttl {
            config.max_age = ttl;
            config.duplicate_window = config.duplicate_window.min(ttl);
            context.update_stream(config).await.map_err(|error| format!("TTL of the bucket: {error}"))?;
        }
        return Ok(store);
    }
    let config = kv::Config {
        bucket: bucket.to_owned(),
        description: "Most recent telemetry of each tunnel of a boilerhouse-bridge".to_owned(),
        history: 1,
        max_age: ttl,
        max_value_size: MAX_VALUE_BYTES,
        ..kv::Config::default()
    };
    context.create_key_value(config).await.map_err(|error| format!("bucket '{bucket}': {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_the_maximum_with_jitter() {
        let seconds = |failures, random| backoff(failures, random).as_secs_f64();
        assert_eq!(
            [0, 1, 2, 3, 4, 5, 99].map(|failures| seconds(failures, u64::MAX)),
            [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
        );
        assert_eq!([0, 99].map(|failures| seconds(failures, 0)), [0.5, 15.0]);
    }
}
