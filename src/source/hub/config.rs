//! Configuration and bounds of the hub.

use std::{sync::Arc, time::Duration};

use crate::source::{
    list_limits::{LINE_BYTES, ListLimits, PAGE_BYTES, PAGE_OBJECTS},
    retry::Backoff,
};

/// What the hub watches, and its bounds.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the watched namespace. The hub requests nothing outside it except its Namespace object.
    pub namespace: Arc<str>,
    /// URL of the API server, for messages only.
    pub server: Arc<str>,
    /// Objects in one page of a list.
    pub page_objects: u32,
    /// Maximum bytes of one page. A longer page is a decode error.
    pub page_bytes: usize,
    /// Bounds of one list, over all its pages.
    pub list: ListLimits,
    /// Maximum time for one page of a list, or for the Namespace, from the request to the last byte.
    pub page_timeout: Duration,
    /// Maximum time until a watch starts. An API server usually answers at once; 15 s allows for a slow load balancer.
    pub start_timeout: Duration,
    /// `timeoutSeconds` of a watch, in whole seconds. It must be more than 12 s, because API servers send no
    /// bookmark to shorter watches.
    pub watch_timeout: Duration,
    /// Time after `watch_timeout` at which the connection of a watch counts as dead.
    pub watch_grace: Duration,
    /// Maximum bytes of one watch line.
    pub line_bytes: usize,
    /// Time after the last useful byte at which a resource counts as down while the hub waits for a list or for the start
    /// of a watch. It is longer than a watch without a byte can last (`watch_timeout` and `watch_grace`), and below the
    /// 40 s of docs/guarantees.md, G10.
    pub down_after: Duration,
    /// Silence of a watch after which the hub sends one `LIST limit=1` (a probe).
    pub probe_after_silence: Duration,
    /// Maximum time for the response to a probe.
    pub probe_timeout: Duration,
    /// Maximum delay before a throttled probe (429) is repeated, while a resumed watch must show that nothing is missing.
    pub probe_retry_max: Duration,
    /// Silence after which a resumed watch has delivered all missed changes. The API server sends them at once.
    pub catch_up_quiet_period: Duration,
    /// A watch that ends sooner, without a change, counts as failed, because something ends it at its start.
    pub min_watch_duration: Duration,
    /// Delays between retries.
    pub backoff: Backoff,
    /// Time for which the hub collects clients with cursors older than the log, so that one backfill serves them all.
    pub backfill_batch_delay: Duration,
    /// Minimum time between the starts of two backfills. The second one collects clients for all of it: after a restart they
    /// reconnect within 3 s, and a minute has few backfills.
    pub backfill_interval: Duration,
    /// Silence of the watch of a backfill after which what it has delivered is taken for all of the history, if the objects
    /// are those at the end of the gap, in the same versions.
    pub backfill_quiet_period: Duration,
    /// Duration of the watch of a backfill, in whole seconds. The watch ends earlier if it reaches the start of the log.
    pub backfill_watch_timeout: Duration,
    /// Silence of a watch after which its start counts as successful, where a backfill only asks whether the API server
    /// has the watch history. An expired watch sends its error at once.
    pub backfill_probe_quiet_period: Duration,
    /// Maximum time of one backfill.
    pub backfill_timeout: Duration,
    /// Maximum exact lists of one resource in one backfill. The first is at the oldest version that the API server still
    /// has. The others are for clients with newer cursors, if the changes from there cannot be read to the end.
    pub backfill_lists: usize,
    /// Maximum number of backfills that start within a minute. Further ones wait.
    pub backfills_per_minute: u32,
    /// Maximum number of version checks, for cursors ahead of this replica, that start within a minute. Further ones wait.
    pub version_checks_per_minute: u32,
    /// Maximum time of one version check, with its retries.
    pub version_check_timeout: Duration,
    /// Time between two requests for the Namespace, which show whether it was deleted and created again.
    pub namespace_check_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            namespace: "boilerhouse".into(),
            server: "the API server".into(),
            page_objects: PAGE_OBJECTS,
            page_bytes: PAGE_BYTES,
            list: ListLimits::default(),
            page_timeout: Duration::from_secs(30),
            start_timeout: Duration::from_secs(15),
            watch_timeout: Duration::from_secs(30),
            watch_grace: Duration::from_secs(5),
            line_bytes: LINE_BYTES,
            down_after: Duration::from_secs(38),
            probe_after_silence: Duration::from_secs(15),
            probe_timeout: Duration::from_secs(5),
            probe_retry_max: Duration::from_secs(5),
            catch_up_quiet_period: Duration::from_secs(1),
            min_watch_duration: Duration::from_secs(1),
            backoff: Backoff::default(),
            backfill_batch_delay: Duration::from_millis(50),
            backfill_interval: Duration::from_secs(2),
            backfill_quiet_period: Duration::from_millis(50),
            backfill_watch_timeout: Duration::from_secs(2),
            backfill_probe_quiet_period: Duration::from_millis(250),
            backfill_timeout: Duration::from_secs(10),
            backfill_lists: 4,
            backfills_per_minute: 6,
            version_checks_per_minute: 12,
            version_check_timeout: Duration::from_secs(30),
            namespace_check_interval: Duration::from_secs(30),
        }
    }
}
