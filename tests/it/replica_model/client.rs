//! A client of the model. It reads a little, disconnects, resumes on either replica, and records what it receives.

use boilerhouse_bridge::{
    event::{Cursor, PerResource, Resource},
    feed::{FrameFormat, Framing, ReadResult, SnapshotReason, StartAt, Subscription},
    schema::messages::Form,
    test_support::SeededRng,
};
use serde_json::Value;

use super::replica::Replica;
use crate::oracle::full_stream::{Entry, ReceivedEvent, Start};
use crate::oracle::mutations::delivery::Mutation;
use crate::oracle::visibility::{Condition, ExpectedProjection};
use crate::seeded_full_stream::projections::to_projection;
use crate::support::schemas;

/// `types` of a client, and whether its filter selects a tenant, a pool status, both or none.
const TYPES: [Option<&str>; 3] = [Some("instance,pool"), Some("claim,tenant"), None];
const CONDITIONS: [&[Condition]; 4] = [
    &[],
    &[(Resource::Pods, "poolStatus", Some("ready"))],
    &[(Resource::Pods, "tenantId", Some("alice")), (Resource::Claims, "tenantId", Some("alice"))],
    &[
        (Resource::Pods, "tenantId", Some("alice")),
        (Resource::Pods, "poolStatus", Some("ready")),
        (Resource::Claims, "tenantId", Some("alice")),
    ],
];

/// The projections of all clients. Each client has one.
pub(super) fn projections() -> Vec<ExpectedProjection> {
    let of = |types| CONDITIONS.map(|conditions| ExpectedProjection { types, conditions });
    TYPES.into_iter().flat_map(of).collect()
}

/// A client.
pub(super) struct Client {
    projection: usize,
    pub(super) subscription: Option<Subscription>,
    last_id: Option<String>,
    pub(super) record: Vec<Entry>,
    /// Whether events came after the last id.
    has_pending: bool,
    pub(super) resumes: u64,
    /// Events that are not part of a difference.
    pub(super) events: u64,
    mutation: Option<Mutation>,
}

impl Client {
    pub(super) fn new(rng: &mut SeededRng, mutation: Option<Mutation>) -> Client {
        let has_tenant = rng.below(3) == 0;
        let has_status = rng.below(4) == 0;
        let types = usize::try_from(rng.below(4)).unwrap().min(TYPES.len() - 1);
        let conditions = 2 * usize::from(has_tenant) + usize::from(has_status);
        Client {
            projection: types * CONDITIONS.len() + conditions,
            subscription: None,
            last_id: None,
            record: Vec::new(),
            has_pending: false,
            resumes: 0,
            events: 0,
            mutation,
        }
    }

    /// The cursor with which it resumes.
    pub(super) fn cursor(&self) -> Option<Cursor> {
        self.last_id.as_ref().map(|id| Cursor::decode(id).expect("an id is a cursor"))
    }

    /// Connects to a replica, with a snapshot if it has no cursor.
    pub(super) fn connect(&mut self, number: usize, replica: &Replica) {
        let framing = Framing { format: FrameFormat::Sse { named: false, chunked: false }, edgeplane_names: false };
        let cache = replica.feed.projection_cache(to_projection(&projections()[self.projection]), framing);
        let cursor =
            self.cursor().map(|cursor| self.mutation.map_or(cursor, |mutation| mutation.mutate_cursor(cursor)));
        let start_at = match cursor {
            Some(cursor) => StartAt::Cursor(cursor),
            None => StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: PerResource::default() },
        };
        let start = match self.last_id.clone() {
            Some(id) => Start::Resume { id, projection: self.projection, is_forged: false },
            None => Start::Snapshot,
        };
        self.subscription = Some(replica.feed.subscribe(cache, start_at).expect("the feed is synced"));
        self.resumes += u64::from(self.last_id.is_some());
        self.record.push(Entry::Connect { at: 0, replica: number, projection: self.projection, start });
    }

    /// Disconnects. In half of the cases it receives a heartbeat just before.
    pub(super) fn disconnect(&mut self, rng: &mut SeededRng) {
        if self.subscription.is_none() {
            return;
        }
        if rng.below(2) == 0 {
            self.heartbeat();
        }
        // A read returns complete log entries, and the last event of an entry has an id.
        assert!(!self.has_pending, "a read ended with an event without an id");
        self.subscription = None;
        self.record.push(Entry::Disconnect { at: 0 });
    }

    /// Reads once. Returns whether there was anything to read.
    pub(super) fn read(&mut self, rng: &mut SeededRng) -> bool {
        if self.subscription.is_none() {
            return false;
        }
        if rng.below(4) == 0 {
            self.heartbeat();
        }
        let Some(subscription) = &mut self.subscription else { return false };
        let batch = match subscription.read(1 + rng.below(2_000) as usize) {
            ReadResult::Batch(batch) => batch,
            ReadResult::Idle => return false,
            ReadResult::End(close) => panic!("the full stream must not end: {close:?}"),
        };
        let mut events = events_of(&batch.concat());
        if let Some(mutation) = self.mutation {
            mutation.mutate(&mut events, rng);
            let reason = match mutation {
                Mutation::ExpiredWithoutReason => Some(SnapshotReason::Expired),
                Mutation::ForeignWithoutReason => Some(SnapshotReason::Foreign),
                _ => None,
            };
            if let Some(reason) = reason
                && rng.below(8) == 0
            {
                subscription.restart_with_snapshot(reason);
            }
        }
        events.into_iter().for_each(|event| self.receive(event));
        true
    }

    /// Receives a heartbeat, if the subscription has a cursor. Returns whether it has.
    pub(super) fn heartbeat(&mut self) -> bool {
        let heartbeat = self.subscription.as_mut().and_then(Subscription::heartbeat);
        let events = heartbeat.iter().flat_map(|bytes| events_of(bytes));
        events.for_each(|event| self.receive(event));
        heartbeat.is_some()
    }

    fn receive(&mut self, event: Value) {
        schemas::check_event(&[Form::Full], &event);
        let received = ReceivedEvent::new(event, 0, false);
        let is_event = received.body["key"].is_string();
        self.events += u64::from(is_event && !received.is_coalesced());
        self.has_pending |= is_event;
        if let Some(id) = &received.id {
            (self.last_id, self.has_pending) = (Some(id.clone()), false);
        }
        self.record.push(Entry::Event(received));
    }
}

/// The events in blocks of an event stream.
fn events_of(bytes: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(bytes).unwrap();
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.map(|data| serde_json::from_str(data).unwrap()).collect()
}
