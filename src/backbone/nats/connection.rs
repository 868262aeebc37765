//! The connection to NATS.

use std::{
    convert::Infallible,
    fmt,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_nats::{
    Client, ConnectOptions, Event, Message, Subscriber,
    jetstream::{
        self,
        kv::{self, Operation, Store, Watch},
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
use crate::{
    broker::{TlsConfig, retry_delay},
    event::{MqttMessage, Telemetry},
};

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
/// Maximum bytes of a message of another replica: four times the largest payload of an MQTT message, because `1e15` is sent
/// as 1000000000000000.0.
const MAX_MESSAGE_BYTES: usize = 256 << 10;
/// Maximum bytes of a snapshot in the bucket. They have less than 1 KiB.
const MAX_VALUE_BYTES: i32 = 4096;
/// Time after which the bucket counts as read, although its last entry has not arrived: it can expire before it is sent.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval at which telemetry of unknown instances is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Maximum bytes of a credentials file.
const MAX_CREDENTIALS_BYTES: u64 = 16 << 10;
/// The reason of an outage of which the client knows no other.
const LOST: &str = "the connection was lost";

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
    let (mut progress, ttl) = (Progress::default(), nats.feed.telemetry_ttl());
    loop {
        match run_connection(config, nats, &mut progress).await {
            Err(reason) => nats.down(&reason),
            Ok(never) => match never {},
        }
        progress.failures += 1;
        let until = Instant::now() + retry_delay(progress.failures);
        while Instant::now() < until {
            sleep_until(until.min(Instant::now() + RETRY_INTERVAL)).await;
            progress.pending.retry(&nats.feed, ttl);
        }
    }
}

/// What one connection leaves for the next one.
#[derive(Debug, Default)]
struct Progress {
    pending: Pending,
    /// Failures in a row.
    failures: u32,
    /// When the bucket was created, in nanoseconds since the Unix epoch. Revisions of another bucket start again.
    bucket_created: Option<i128>,
}

impl Progress {
    /// Starts at the first revision again if this is not the bucket that was read before, or an older copy of it. Entries that
    /// were read from it are skipped otherwise.
    fn open_bucket(&mut self, nats: &Nats, created: i128, last_revision: u64) {
        let is_same = self.bucket_created.replace(created) == Some(created);
        if !is_same || last_revision < *nats.revision.borrow() {
            nats.revision.send_replace(0);
        }
    }
}

/// Connects, reads the bucket, and then reads both until the connection is lost. The error is the reason.
async fn run_connection(config: &Config, nats: &Nats, progress: &mut Progress) -> Result<Infallible, String> {
    let is_lost = Arc::new(watch::Sender::new(None));
    let mut lost = is_lost.subscribe();
    let client = connect(config, is_lost, nats.lost_messages()).await?;
    let subject = format!("boilerhouse-bridge.{}.mqtt", config.bucket);
    let mut context = jetstream::new(client.clone());
    context.set_timeout(REQUEST_TIMEOUT);
    let store = open_bucket(&context, &config.bucket, nats.feed.telemetry_ttl()).await?;
    let mut messages = client.subscribe(subject.clone()).await.map_err(|error| format!("subscription: {error}"))?;
    let mut entries = store.watch_with_history(">").await.map_err(|error| format!("watch of the bucket: {error}"))?;
    let info = store.stream.get_info().await.map_err(|error| format!("state of the bucket: {error}"))?;
    progress.open_bucket(nats, info.created.unix_timestamp_nanos(), info.state.last_sequence);
    let link = Link { client, store, subject };
    let reading = read(nats, progress, link, info.state.messages == 0, &mut entries, &mut messages);
    tokio::select! {
        reason = reading => reason,
        reason = lost.wait_for(Option::is_some) => {
            Err(reason.ok().and_then(|reason| reason.clone()).unwrap_or_else(|| LOST.to_owned()))
        }
    }
}

/// Reads telemetry and messages until one of them ends. The link is up when the bucket has been read; an empty one has.
async fn read(
    nats: &Nats,
    progress: &mut Progress,
    link: Link,
    is_empty: bool,
    entries: &mut Watch,
    messages: &mut Subscriber,
) -> Result<Infallible, String> {
    let (mut is_read, read_by) = (is_empty, Instant::now() + CATCH_UP_TIMEOUT);
    let mut link = Some(link);
    let ttl = nats.feed.telemetry_ttl();
    let mut retry = tokio::time::interval(RETRY_INTERVAL);
    retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        if is_read && let Some(link) = link.take() {
            progress.failures = 0;
            nats.up(link);
        }
        tokio::select! {
            entry = entries.next() => {
                let entry = entry.ok_or("the watch of the bucket ended")?;
                let entry = entry.map_err(|error| format!("watch of the bucket: {error}"))?;
                let put = (entry.operation == Operation::Put).then_some(&*entry.value);
                take_entry(nats, &mut progress.pending, entry.revision, &entry.key, put);
                is_read |= entry.seen_current;
            }
            message = messages.next() => take_message(nats, &message.ok_or("the subscription ended")?),
            _ = retry.tick() => progress.pending.retry(&nats.feed, ttl),
            () = sleep_until(read_by), if !is_read => is_read = true,
        }
    }
}

/// Publishes an entry of the bucket, unless it was read before: after a reconnect the bucket sends the newest one of each key
/// again. The order of revisions is that of the puts, so neither clocks nor equal values matter.
fn take_entry(nats: &Nats, pending: &mut Pending, revision: u64, key: &str, put: Option<&[u8]>) {
    if revision <= *nats.revision.borrow() {
        return;
    }
    if let Some(value) = put {
        let outcome = match serde_json::from_slice::<Telemetry>(value) {
            Ok(telemetry) if telemetry.tunnel_id == key => {
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
    nats.revision.send_replace(revision);
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
                Event::Disconnected | Event::Closed => Some(LOST.to_owned()),
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
    file.take(MAX_CREDENTIALS_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_CREDENTIALS_BYTES {
        return Err(format!("{}: the file has more than {} KiB", path.display(), MAX_CREDENTIALS_BYTES >> 10));
    }
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
    use crate::{
        event::{
            NamespaceId, Resource,
            projection::{EventFormat, EventTypes, Filter, Projection, Scope},
        },
        feed::{Config as FeedConfig, Feed, FrameFormat, Framing, ReadResult, StartAt},
        test_support::{PodBuilder, telemetry},
    };

    #[test]
    fn credentials_are_never_cut_at_the_bound_of_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let max = usize::try_from(MAX_CREDENTIALS_BYTES).unwrap();
        std::fs::write(file.path(), "c".repeat(max)).unwrap();
        assert_eq!(credentials(file.path()).unwrap().len(), max);
        std::fs::write(file.path(), "c".repeat(max + 1)).unwrap();
        let error = credentials(file.path()).unwrap_err();
        assert!(error.ends_with("the file has more than 16 KiB"), "{error}");
    }

    #[tokio::test]
    async fn revisions_decide_what_was_published() {
        let (mut writer, feed) = Feed::new(FeedConfig { wall_clock_ms: || 1_000, ..FeedConfig::default() });
        writer.set_namespace(NamespaceId::from_uid("u"));
        writer.replace(Resource::Pods, vec![PodBuilder::new("a").version(1).view()], 1);
        writer.replace(Resource::Claims, Vec::new(), 1);
        let types = EventTypes::parse("telemetry", EventFormat::Full).unwrap();
        let projection = Projection { scope: Scope::All, filter: Filter::default(), types, format: EventFormat::Full };
        let framing = Framing { format: FrameFormat::JsonLines, edgeplane_names: false };
        let mut stream = feed.subscribe(feed.projection_cache(projection, framing), StartAt::Live).unwrap();
        let (nats, mut progress) = (Nats::new(feed), Progress::default());
        let mut events = |progress: &mut Progress, revision, received_at_ms| {
            let value = serde_json::to_vec(&Telemetry { received_at_ms, ..telemetry("uid-a") }).unwrap();
            take_entry(&nats, &mut progress.pending, revision, "uid-a", Some(&value));
            let mut events = 0;
            while let ReadResult::Batch(batch) = stream.read(1 << 20) {
                events += batch
                    .concat()
                    .split(|byte| *byte == b'\n')
                    .filter(|line| line.starts_with(b"{\"type\":\"tele"))
                    .count();
            }
            events
        };
        progress.open_bucket(&nats, 7, 0);
        assert_eq!(events(&mut progress, 1, 1_000), 1);
        assert_eq!(events(&mut progress, 2, 1_000), 1, "an equal post of the same millisecond");
        assert_eq!(events(&mut progress, 3, 900), 1, "of a replica whose clock is behind");
        progress.open_bucket(&nats, 7, 3);
        assert_eq!(events(&mut progress, 3, 900), 0, "the bucket repeats it after a reconnect");
        assert_eq!(events(&mut progress, 4, 900), 1);
        progress.open_bucket(&nats, 8, 1);
        assert_eq!(events(&mut progress, 1, 1_000), 1, "another bucket starts again");
        progress.open_bucket(&nats, 8, 0);
        assert_eq!(events(&mut progress, 1, 1_000), 1, "and so does an older copy");
    }

    #[test]
    fn message_with_numbers_that_become_longer_has_at_most_four_times_the_bytes() {
        let payload = format!("[{}0]", "1e15,".repeat(13_000));
        let message = MqttMessage { topic: "t".to_owned(), payload: serde_json::from_str(&payload).unwrap() };
        let bytes = serde_json::to_vec(&message).unwrap().len();
        assert!((3 * payload.len()..MAX_MESSAGE_BYTES).contains(&bytes), "{bytes} of {}", payload.len());
    }
}
