//! What one client knows about outages: the `upstream.down` events that it has received, and that no `upstream.up` has
//! followed.
//!
//! *Guarantees:* on one stream, `upstream.down` and `upstream.up` of a resource alternate, and begin with `upstream.down`. A
//! stream that starts during an outage, or skips entries of the log, gets the events that lead to what is down now
//! (docs/protocol.md#control-events).

use std::sync::Arc;

use bytes::Bytes;

use super::Subscription;
use crate::{
    event::{EntryKind, EphemeralEvent, LogEntry, projection::EventFormat},
    feed::types::ReadResult,
};

impl Subscription {
    /// Returns the first heartbeat of a stream that does not start with `state.initial`, and then what was down at its start.
    /// `None` on `/ws`, and if the stream starts with `state.initial`.
    pub(super) fn greet(&mut self) -> Option<ReadResult> {
        self.greeting.as_ref()?;
        let heartbeat = self.heartbeat()?;
        let outages = self.greeting.take()?;
        let report = self.report(&outages, self.started_at, self.now_ms());
        Some(ReadResult::Batch([heartbeat].into_iter().chain(report).collect()))
    }

    /// Returns what has gone down since the last report, for a stream that does not read the log: its state, or its resume, can
    /// take longer than the outage. `upstream.up` waits, because the changes that were missed must precede it.
    pub(super) fn report_now(&mut self) -> Option<ReadResult> {
        let state = self.inner.state();
        let (outages, end) = (state.outages(), state.log.end_position());
        drop(state);
        let is_down = |known: &Arc<LogEntry>| outages.iter().any(|entry| entry.upstream() == known.upstream());
        if outages.len() <= self.known_outages.len() || !self.known_outages.iter().all(is_down) {
            return None;
        }
        self.report(&outages, end, self.now_ms()).map(|report| ReadResult::Batch(vec![report]))
    }

    /// Returns the events that lead from what the client knows to these outages, those at this position of the log. `at_ms` is
    /// the time of that, in milliseconds since the Unix epoch. `None` if there are none, and on `/ws`.
    pub(super) fn report(&mut self, outages: &[Arc<LogEntry>], position: u64, at_ms: u64) -> Option<Bytes> {
        if self.cache.projection.format == EventFormat::Boilerhouse {
            return None;
        }
        let mut out = Vec::new();
        let known = std::mem::replace(&mut self.known_outages, outages.to_vec());
        self.outages_at = position;
        let is_in =
            |list: &[Arc<LogEntry>], entry: &LogEntry| list.iter().any(|other| other.upstream() == entry.upstream());
        for entry in known.iter().filter(|entry| !is_in(outages, entry)) {
            if let EntryKind::Ephemeral(EphemeralEvent::Upstream { resource, last_byte_ms, .. }) = entry.kind {
                let up = EphemeralEvent::Upstream { resource, down_reason: None, last_byte_ms };
                self.cache.append_ephemeral(&mut out, &up, at_ms);
            }
        }
        for entry in outages.iter().filter(|entry| !is_in(&known, entry)) {
            if let EntryKind::Ephemeral(event) = &entry.kind {
                self.cache.append_ephemeral(&mut out, event, entry.observed_at_ms);
            }
        }
        (!out.is_empty()).then(|| out.into())
    }

    /// Returns whether an `upstream.*` entry of the log says something new to the client, and records it. `to` is the
    /// position after the entry.
    pub(super) fn is_news(&mut self, entry: &Arc<LogEntry>, to: u64) -> bool {
        let Some((resource, is_down)) = entry.upstream() else { return false };
        if to <= self.outages_at || self.cache.projection.format == EventFormat::Boilerhouse {
            return false;
        }
        let known = self.known_outages.iter().position(|known| known.upstream() == Some((resource, true)));
        match (is_down, known) {
            (true, None) => self.known_outages.push(entry.clone()),
            (false, Some(index)) => drop(self.known_outages.remove(index)),
            _ => return false,
        }
        self.outages_at = to;
        true
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use crate::{
        event::{
            NamespaceId, PerResource, Resource,
            projection::{EventFormat, Projection},
        },
        feed::{
            Config, Feed, FrameFormat, Framing, Health, SnapshotReason, StartAt, Subscription, Writer,
            ephemeral::tests::read,
        },
        ring,
        test_support::PodBuilder,
    };

    /// A feed at version 50 whose log holds this number of entries, and a live stream.
    fn feed(items: usize) -> (Writer, Feed, Subscription) {
        let log = ring::Limits { items, ..ring::Limits::default() };
        let (mut writer, feed) = Feed::new(Config { log, ..Config::default() });
        writer.set_namespace(NamespaceId::from_uid("u"));
        for resource in Resource::ALL {
            writer.replace(resource, Vec::new(), 50);
            writer.set_health(resource, Health::Live);
        }
        let framing = Framing { format: FrameFormat::JsonLines, edgeplane_names: false };
        let cache = feed.projection_cache(Projection::everything(EventFormat::Full), framing);
        let stream = feed.subscribe(cache, StartAt::Live).unwrap();
        (writer, feed, stream)
    }

    fn down() -> Health {
        Health::Down { since: Instant::now(), reason: "no answer".into() }
    }

    /// Returns the types of the next events, without those of objects.
    fn types(stream: &mut Subscription) -> Vec<String> {
        let names = read(stream).into_iter().map(|event| event["type"].as_str().unwrap().to_owned());
        names.filter(|name| name.starts_with("upstream") || name == "state.initial").collect()
    }

    /// Evicts all entries of the log.
    fn evict(writer: &mut Writer) {
        for version in 0..3 {
            writer.upsert(PodBuilder::new("a").version(100 + version).view());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_state_that_replaces_unread_entries_is_followed_by_the_reports_among_them() {
        let (mut writer, _feed, mut stream) = feed(2);
        assert_eq!(types(&mut stream), [""; 0]);
        writer.set_health(Resource::Pods, down());
        evict(&mut writer);
        assert_eq!(types(&mut stream), ["state.initial", "upstream.down"], "the report was evicted");
        stream.restart_with_snapshot(SnapshotReason::Lagged);
        assert_eq!(types(&mut stream), ["state.initial"], "the stream has the report");
        writer.set_health(Resource::Pods, Health::Live);
        writer.set_health(Resource::Claims, down());
        writer.set_health(Resource::Claims, Health::Live);
        writer.set_health(Resource::Claims, down());
        assert_eq!(types(&mut stream), ["state.initial", "upstream.up", "upstream.down"], "pods are up, claims down");
        writer.set_health(Resource::Claims, Health::Live);
        assert_eq!(types(&mut stream), ["upstream.up"]);
    }

    /// The state of another stream, from before a report, is still in the cache.
    #[tokio::test(start_paused = true)]
    async fn a_new_state_is_not_older_than_the_reports_that_the_client_has() {
        let (mut writer, feed, mut stream) = feed(100);
        let snapshot = StartAt::Snapshot { reason: SnapshotReason::Foreign, not_before: PerResource::default() };
        let mut other = feed.subscribe(stream.cache.clone(), snapshot).unwrap();
        assert_eq!(types(&mut other), ["state.initial"]);
        writer.set_health(Resource::Pods, down());
        assert_eq!(types(&mut stream), ["upstream.down"]);
        stream.restart_with_snapshot(SnapshotReason::Foreign);
        assert_eq!(types(&mut stream), ["state.initial"]);
        assert_eq!(
            types(&mut feed.subscribe(stream.cache.clone(), snapshot).unwrap()),
            ["state.initial", "upstream.down"]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_waits_for_its_resume_is_informed_of_outages() {
        let (mut writer, feed, stream) = feed(100);
        let older_than_the_log = PerResource::new(20, 20);
        let cursor = stream.cache.projection.cursor_at(feed.namespace().unwrap(), older_than_the_log);
        let mut waiting = feed.subscribe(stream.cache.clone(), StartAt::Cursor(cursor)).unwrap();
        assert_eq!(types(&mut waiting), [""; 0]);
        writer.set_health(Resource::Pods, down());
        assert_eq!(types(&mut waiting), ["upstream.down"]);
        writer.set_health(Resource::Pods, Health::Live);
        writer.set_health(Resource::Claims, down());
        assert_eq!(types(&mut waiting), [""; 0], "what was missed comes first");
        tokio::time::advance(Config::default().backfill_wait_timeout).await;
        assert_eq!(types(&mut waiting), ["state.initial", "upstream.up", "upstream.down"]);
        writer.set_health(Resource::Claims, Health::Live);
        assert_eq!(types(&mut waiting), ["upstream.up"]);
    }

    /// The greeting says that pods are down. The resume fails, and the API server is back before that.
    #[tokio::test(start_paused = true)]
    async fn an_outage_that_ends_while_a_resume_is_prepared_is_reported_as_ended() {
        let (mut writer, feed, stream) = feed(100);
        let older_than_the_log = PerResource::new(20, 20);
        let cursor = stream.cache.projection.cursor_at(feed.namespace().unwrap(), older_than_the_log);
        writer.set_health(Resource::Pods, down());
        for is_up_again in [true, false] {
            let mut resumed = feed.subscribe(stream.cache.clone(), StartAt::Cursor(cursor)).unwrap();
            assert_eq!(types(&mut resumed), ["upstream.down"]);
            if is_up_again {
                writer.set_health(Resource::Pods, Health::Live);
            }
            tokio::time::advance(Config::default().backfill_wait_timeout).await;
            let expected: &[&str] = if is_up_again { &["state.initial", "upstream.up"] } else { &["state.initial"] };
            assert_eq!(types(&mut resumed), expected);
            writer.set_health(Resource::Pods, down());
        }
    }
}
