//! The encoder of the parts of initial states (docs/protocol.md#boilerhouse-stream, docs/protocol.md#full-stream).
//!
//! *Guarantees:* a message of a part has at most [`Config::initial_state_part_bytes`](crate::feed::Config::initial_state_part_bytes) bytes, unless one object alone is
//! larger. Encoding does not hold the lock of the feed.

use bytes::Bytes;
use serde::Serialize;

use super::{
    ProjectionCache,
    initial_state::{InitialState, PartStart},
};
use crate::{
    event::{
        Resource,
        projection::{EventFormat, EventType},
        render,
    },
    feed::{snapshot::Snapshot, state::Shared},
    wire::json,
};

/// Bytes that are reserved for a `state.initial` message without its objects: its keys, cursor, time, reason and
/// `connectionId` have less than 300.
const ENVELOPE_BYTES: usize = 512;

impl ProjectionCache {
    /// See [`InitialState::part`].
    pub(in crate::feed) fn initial_state_part(
        &self,
        shared: &Shared,
        initial: &InitialState,
        index: usize,
    ) -> Option<Bytes> {
        let part_bytes = shared.config.initial_state_part_bytes;
        initial.part(shared, index, |start| match self.projection.format {
            EventFormat::Boilerhouse => self.encode_burst(&initial.snapshot, start, part_bytes),
            EventFormat::Full => self.encode_state_initial(part_bytes, initial, start),
        })
    }

    /// Encodes objects as events, for `/ws`.
    fn encode_burst(&self, snapshot: &Snapshot, start: &PartStart, part_bytes: usize) -> (Bytes, Option<PartStart>) {
        let mut bytes = Vec::new();
        // This format has no pools.
        if let PartStart::Object(resource, name) = start {
            for view in snapshot.inventory.views_from(*resource, name) {
                if bytes.len() >= part_bytes {
                    let next = PartStart::Object(view.resource(), view.name().to_owned());
                    return (bytes.into(), Some(next));
                }
                render::render_initial(&view, &self.projection, |event| {
                    self.append_event(&mut bytes, event, None, None);
                });
            }
        }
        (bytes.into(), None)
    }

    /// Encodes objects as a `state.initial` event, for the full stream.
    fn encode_state_initial(
        &self,
        part_bytes: usize,
        initial: &InitialState,
        start: &PartStart,
    ) -> (Bytes, Option<PartStart>) {
        let snapshot = &initial.snapshot;
        let mut lists = ObjectLists::new(part_bytes.saturating_sub(ENVELOPE_BYTES));
        let next = self.fill(&mut lists, snapshot, start);
        // Only the last part has the cursor (docs/protocol.md#full-stream).
        let id = next.is_none().then(|| self.cursor(snapshot.namespace, snapshot.versions));
        let head = Head {
            event_type: self.framing.name("state.initial"),
            id: id.as_deref(),
            snapshot_at: &render::format_timestamp(initial.snapshot_at_ms),
            reason: initial.reason.name(),
            connection_id: &snapshot.namespace.connection_id.to_string(),
        };
        let mut json = json::to_string(&head).expect("the head has string keys only");
        // The closing brace follows after the lists.
        json.pop();
        let [instances, claims, pools] = &lists.lists;
        for (key, list) in [("instances", instances), ("claims", claims), ("pools", pools)] {
            json.extend([",\"", key, "\":[", list, "]"]);
        }
        json.push_str(if next.is_some() { ",\"more\":true}" } else { "}" });
        let mut bytes = Vec::with_capacity(json.len() + ENVELOPE_BYTES);
        self.framing.append_frame(&mut bytes, head.event_type, head.id, &json);
        (bytes.into(), next)
    }

    /// Appends objects from `start` on. Returns the first one that does not fit.
    fn fill(&self, lists: &mut ObjectLists, snapshot: &Snapshot, start: &PartStart) -> Option<PartStart> {
        let (projection, inventory) = (&self.projection, &snapshot.inventory);
        let first_pool = match start {
            PartStart::Pool(index) => *index,
            PartStart::Object(resource, name) => {
                let first_claim = match resource {
                    Resource::Pods => "",
                    Resource::Claims => name,
                };
                if *resource == Resource::Pods && projection.types.contains(EventType::InstanceState) {
                    for instance in inventory.instances.values_from(name) {
                        if projection.includes_instance(instance) && !lists.append(INSTANCES, instance) {
                            return Some(PartStart::Object(Resource::Pods, instance.name.clone()));
                        }
                    }
                }
                if projection.types.contains(EventType::ClaimState) {
                    for claim in inventory.claims.values_from(first_claim) {
                        if projection.includes_claim(claim) && !lists.append(CLAIMS, claim) {
                            return Some(PartStart::Object(Resource::Claims, claim.name.clone()));
                        }
                    }
                }
                0
            }
        };
        if projection.types.contains(EventType::PoolDepth) {
            for (index, pool) in snapshot.pools(projection).iter().enumerate().skip(first_pool) {
                if !lists.append(POOLS, pool) {
                    return Some(PartStart::Pool(index));
                }
            }
        }
        None
    }
}

/// The keys of `state.initial` before its lists.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Head<'a> {
    #[serde(rename = "type")]
    event_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    snapshot_at: &'a str,
    reason: &'static str,
    connection_id: &'a str,
}

/// The objects of one `state.initial` event: the elements of three JSON lists, without the brackets.
struct ObjectLists {
    lists: [String; 3],
    /// Bytes left.
    capacity: usize,
}

/// Indexes of [`ObjectLists::lists`].
const INSTANCES: usize = 0;
const CLAIMS: usize = 1;
const POOLS: usize = 2;

impl ObjectLists {
    fn new(capacity: usize) -> ObjectLists {
        ObjectLists { lists: Default::default(), capacity }
    }

    /// Appends an object to a list. Returns false, and appends nothing, if it does not fit and is not the first object.
    fn append(&mut self, list: usize, object: &impl Serialize) -> bool {
        let is_first = self.lists.iter().all(String::is_empty);
        let text = &mut self.lists[list];
        let before = text.len();
        if before > 0 {
            text.push(',');
        }
        json::append(text, object).expect("objects have string keys only");
        let added = text.len() - before;
        if added > self.capacity && !is_first {
            text.truncate(before);
            return false;
        }
        self.capacity = self.capacity.saturating_sub(added);
        true
    }
}
