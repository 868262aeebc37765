//! The phase after a cursor: the events that the client misses, without those that it already has
//! (docs/architecture.md#feed-contract, items 2 and 3).

use bytes::Bytes;
use tokio::time::Instant;

use super::Subscription;
use crate::{
    event::{EntryKind, EphemeralEvent, PerResource, ResourceVersion, cursor},
    feed::{
        projection_cache::{ENTRIES_PER_READ, read_entries},
        resume::is_inside_coalesced,
        types::{SnapshotReason, required_resources},
    },
};

impl Subscription {
    /// Returns whether the client's versions are beyond those of the API server, so that they are of another history.
    ///
    /// Replicas differ by milliseconds, so it waits for `ahead_cursor_wait` first. Then one version check answers for
    /// all waiting subscriptions (docs/architecture.md#feed-contract, item 3).
    pub(super) fn cursor_beyond_history(&mut self, floor: PerResource<ResourceVersion>) -> bool {
        let mut state = self.inner.state();
        let existing = cursor::max_versions(state.latest_versions, state.backfill_requests.checked_versions());
        if self.cache.covers(existing, floor) {
            (self.wake_at, self.version_check) = (None, 0);
            return false;
        }
        if self.version_check > 0 {
            return state.backfill_requests.version_check_result(self.version_check).is_some();
        }
        let now = Instant::now();
        let deadline = *self.wake_at.get_or_insert_with(|| now + self.inner.config.ahead_cursor_wait);
        if now >= deadline {
            self.wake_at = None;
            self.version_check = state.backfill_requests.request_version_check();
            drop(state);
            self.inner.backfill_requested.notify_waiters();
        }
        false
    }

    /// Renders entries for this client alone, without those that it already has. `None` means that the log has evicted
    /// the next entry.
    pub(super) fn catch_up(&mut self, floor: PerResource<ResourceVersion>, max_bytes: usize) -> Option<Vec<Bytes>> {
        let mut frames = Vec::new();
        let mut bytes = 0;
        loop {
            let Some((_, entries)) = read_entries(&self.inner, self.position, ENTRIES_PER_READ) else {
                // What was rendered is delivered first. The next call returns `None`.
                return (!frames.is_empty()).then_some(frames);
            };
            if entries.is_empty() {
                let state = self.inner.state();
                // The versions belong to the end of the log. Entries that were appended meanwhile must pass the floor first.
                if state.log.end_position() > self.position {
                    continue;
                }
                let latest = state.latest_versions;
                drop(state);
                if self.finish_catch_up(floor, latest) {
                    frames.extend(self.pool_depths());
                }
                return Some(frames);
            }
            for entry in entries {
                if bytes > max_bytes {
                    return Some(frames);
                }
                let change_set = entry.change_set();
                if change_set.is_some_and(|change_set| change_set.history_reset) && self.on_history_reset() {
                    return Some(frames);
                }
                let is_required = change_set.is_some_and(|change_set| {
                    required_resources(&self.cache.projection).any(|resource| resource == change_set.resource)
                });
                if is_required && is_inside_coalesced(&entry, floor) {
                    self.restart_with_snapshot(SnapshotReason::Expired);
                    return Some(frames);
                }
                self.position += 1;
                self.delivered_versions = cursor::max_versions(self.delivered_versions, entry.versions_after);
                let is_missed = match &entry.kind {
                    EntryKind::ChangeSet(change_set) => change_set.version > floor[change_set.resource],
                    // The depths of all pools follow the catch-up.
                    EntryKind::Ephemeral(EphemeralEvent::PoolDepth(_)) => false,
                    EntryKind::Ephemeral(EphemeralEvent::Upstream { .. }) => self.is_news(&entry, self.position),
                    // The client misses those from before its stream.
                    EntryKind::Ephemeral(_) => self.position > self.started_at,
                };
                if is_missed {
                    let frame = self.cache.render_entry(
                        &self.inner,
                        self.namespace,
                        &entry,
                        self.position,
                        self.delivered_versions,
                    );
                    if !frame.bytes.is_empty() {
                        bytes += frame.bytes.len();
                        frames.push(frame.bytes);
                    }
                }
                if self.finish_catch_up(floor, entry.versions_after) {
                    frames.extend(self.pool_depths());
                    return Some(frames);
                }
            }
        }
    }

    /// Returns the depths of all pools: the client missed the events of those that changed while it was disconnected.
    fn pool_depths(&self) -> Option<Bytes> {
        let mut out = Vec::new();
        self.cache.append_pool_depths(&mut out, &self.inner);
        (!out.is_empty()).then(|| out.into())
    }

    /// Ends the catch-up if `versions` have reached the floor for all resources that the projection needs.
    fn finish_catch_up(&mut self, floor: PerResource<ResourceVersion>, versions: PerResource<ResourceVersion>) -> bool {
        let is_finished = self.cache.covers(versions, floor);
        if is_finished {
            self.go_live();
        }
        is_finished
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        event::{
            MqttMessage, NamespaceId, Resource,
            projection::{EventFormat, Projection, Scope},
        },
        feed::{
            Config, Feed, FrameFormat, Framing, StartAt, Writer,
            ephemeral::tests::{projection, read},
        },
        test_support::PodBuilder,
    };

    /// A feed whose versions are 98, and a subscription whose cursor has these versions.
    fn resume(types: &str, versions: PerResource<ResourceVersion>) -> (Writer, Feed, Subscription) {
        let (mut writer, feed) = Feed::new(Config::default());
        let namespace = NamespaceId::from_uid("home");
        writer.set_namespace(namespace);
        for resource in Resource::ALL {
            writer.replace(resource, Vec::new(), 98);
        }
        let subscription = resume_in(&feed, types, versions);
        (writer, feed, subscription)
    }

    fn resume_in(feed: &Feed, types: &str, versions: PerResource<ResourceVersion>) -> Subscription {
        // As of a snapshot endpoint: it covers both resources, and a stream of any types accepts it.
        let cursor = Projection::everything(EventFormat::Full).cursor_at(feed.namespace().unwrap(), versions);
        let framing = Framing { format: FrameFormat::JsonLines, edgeplane_names: false };
        let cache = feed.projection_cache(projection(types, Scope::All, "{}"), framing);
        feed.subscribe(cache, StartAt::Cursor(cursor)).unwrap()
    }

    fn names(events: &[Value]) -> Vec<&str> {
        events.iter().filter_map(|event| event["name"].as_str()).collect()
    }

    /// The end of the log and its versions must be read under one lock: otherwise changes that are appended in between
    /// count as passed and are sent again.
    #[tokio::test]
    async fn changes_that_the_cursor_covers_are_not_sent_while_another_thread_appends_them() {
        for _ in 0..2000 {
            let (mut writer, _feed, mut subscription) = resume("instance", PerResource::new(100, 98));
            let appends = thread::spawn(move || {
                for version in 99..=101 {
                    writer.upsert(PodBuilder::new(&format!("v{version}")).version(version).view());
                }
            });
            let (mut events, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(10));
            while !names(&events).contains(&"v101") && Instant::now() < deadline {
                events.extend(read(&mut subscription));
            }
            assert_eq!(names(&events), ["v101"], "the cursor covers the other changes");
            appends.join().unwrap();
        }
    }

    /// A resume can take minutes, and nothing tells the client that it misses events meanwhile.
    #[tokio::test]
    async fn ephemeral_events_since_the_start_of_the_stream_reach_a_client_that_catches_up() {
        let message = |n: u32| MqttMessage { topic: "t".into(), payload: json!(n) };
        let (mut writer, feed, mut early) = resume("instance,mqtt", PerResource::new(100, 98));
        feed.publish_mqtt_message(message(1));
        let mut late = resume_in(&feed, "instance,mqtt", PerResource::new(100, 98));
        feed.publish_mqtt_message(message(2));
        let payloads = |events: &[Value]| events.iter().map(|event| event["payload"].clone()).collect::<Vec<_>>();
        assert_eq!(payloads(&read(&mut early)), [json!(1), json!(2)]);
        assert_eq!(payloads(&read(&mut late)), [json!(2)], "the first message is older than the stream");
        writer.upsert(PodBuilder::new("covered").version(100).view());
        feed.publish_mqtt_message(message(3));
        for reader in [&mut early, &mut late] {
            assert_eq!(payloads(&read(reader)), [json!(3)]);
        }
    }

    /// A difference of the other resource says nothing about the events of this one.
    #[tokio::test]
    async fn difference_of_a_resource_that_is_not_needed_does_not_restart_a_resume() {
        let (mut writer, feed, _) = resume("instance", PerResource::new(98, 98));
        writer.bookmark(Resource::Pods, 100);
        // Computed from version 98.
        writer.replace(Resource::Claims, Vec::new(), 104);
        writer.upsert(PodBuilder::new("missed").version(105).view());
        let events = read(&mut resume_in(&feed, "instance", PerResource::new(98, 101)));
        assert_eq!(names(&events), ["missed"], "{events:?}");
        let events = read(&mut resume_in(&feed, "instance,claim", PerResource::new(98, 101)));
        assert_eq!(events[0]["type"], "state.initial", "the difference may omit claims: {events:?}");
    }

    /// Telemetry, messages of a broker and the source are appended by different tasks.
    #[tokio::test]
    async fn announced_end_of_the_log_is_its_end_after_appends_of_two_threads() {
        let (mut writer, feed, _subscription) = resume("instance", PerResource::new(98, 98));
        for version in 99..3000 {
            thread::scope(|scope| {
                scope.spawn(|| feed.publish_mqtt_message(MqttMessage { topic: "t".into(), payload: json!(1) }));
                scope.spawn(|| writer.upsert(PodBuilder::new("a").version(version).view()));
            });
            assert_eq!(*feed.log_end().borrow(), feed.inner.state().log.end_position());
        }
    }
}
