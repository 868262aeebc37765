//! One client: its positions, its fold, its connection, and what it must have at the end.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use boilerhouse_bridge::event::{PerResource, Resource, ResourceVersion};
use serde_json::Value;

use crate::oracle::fold::{Fold, Undo};
use crate::oracle::violation::{Guarantee, Validation, Violation, ensure};
use crate::oracle::visibility::ExpectedProjection;

use super::super::projected_history::{Pools, ProjectedHistory};
use super::super::record::{Entry, ReceivedEvent, Start, time_ms};
use super::super::replica::ReplicaKnowledge;
use super::super::timeline::ReplicaTimeline;
use super::snapshot::ReceivedState;
use super::{Coverage, StreamValidator};

/// A client's position in one resource, in one of the epochs in which it may be.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CandidatePosition {
    pub(super) epoch: usize,
    /// The client has been served up to here.
    pub(super) version: ResourceVersion,
    /// The events of the version `end` that the client has not yet received.
    pub(super) pending: VecDeque<Arc<Value>>,
    pub(super) end: ResourceVersion,
}

pub(super) type CandidatePositions = PerResource<Vec<CandidatePosition>>;

/// A version of each resource that the client asks for.
pub(super) type Versions = PerResource<Option<ResourceVersion>>;

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) replica: usize,
    pub(super) at: u64,
    pub(super) start: Start,
    /// Whether the first event has been received.
    has_started: bool,
    /// The parts of a `state.initial` so far.
    pub(super) parts: Option<ReceivedState>,
    /// The namespace in the ids of this connection, since the last `state.initial`.
    pub(super) namespace_hash: Option<u64>,
    /// Whether a complete `state.initial` has been received.
    pub(super) has_snapshot: bool,
    /// Whether the last event about a resource was `upstream.down`.
    pub(super) down: PerResource<Option<bool>>,
}

pub(super) struct Client<'a> {
    pub(super) validator: &'a StreamValidator,
    pub(super) projection: usize,
    pub(super) positions: CandidatePositions,
    /// The positions at the last id.
    pub(super) saved: CandidatePositions,
    /// The versions of the last id.
    pub(super) id: Option<Versions>,
    pub(super) id_text: Option<String>,
    pub(super) fold: Option<Fold>,
    /// What the fold held before the events since the last id.
    pub(super) undo: Vec<Undo>,
    pub(super) pools: Option<Pools>,
    connection: Option<Connection>,
    /// The time of the last `state.initial`.
    pub(super) initial_taken_at: u64,
    pub(super) coverage: Coverage,
}

impl<'a> Client<'a> {
    pub(super) fn new(validator: &'a StreamValidator) -> Client<'a> {
        Client {
            validator,
            projection: 0,
            positions: CandidatePositions::default(),
            saved: CandidatePositions::default(),
            id: None,
            id_text: None,
            fold: None,
            undo: Vec::new(),
            pools: None,
            connection: None,
            initial_taken_at: 0,
            coverage: Coverage::default(),
        }
    }

    pub(super) fn expected(&self) -> &'a ProjectedHistory {
        &self.validator.expected
    }

    pub(super) fn projection(&self) -> &'a ExpectedProjection {
        &self.validator.expected.projections[self.projection]
    }

    pub(super) fn needed(&self) -> impl Iterator<Item = Resource> + use<'a> {
        self.projection().needed()
    }

    pub(super) fn connection(&self) -> &Connection {
        self.connection.as_ref().expect("an event belongs to a connection")
    }

    pub(super) fn connection_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("an event belongs to a connection")
    }

    pub(super) fn replica(&self) -> &'a ReplicaKnowledge {
        &self.validator.replicas[self.connection().replica]
    }

    /// The timeline of the replica, if it was recorded.
    pub(super) fn timeline(&self) -> Option<&'a ReplicaTimeline> {
        self.replica().timeline()
    }

    pub(super) fn apply(&mut self, entry: &Entry, next: &[Entry]) -> Validation {
        match entry {
            Entry::Connect { at, replica, projection, start } => self.connect(*at, *replica, *projection, start),
            Entry::Event(received) => self.receive(received, next),
            Entry::Disconnect { .. } => {
                self.connection = None;
                Ok(())
            }
        }
    }

    fn connect(&mut self, at: u64, replica: usize, projection: usize, start: &Start) -> Validation {
        self.coverage.connections += 1;
        let before = std::mem::replace(&mut self.projection, projection);
        match start {
            Start::Snapshot | Start::Live => {
                (self.id, self.id_text, self.fold, self.pools) = (None, None, None, None);
                self.positions = CandidatePositions::default();
            }
            Start::Resume { id, .. } => {
                ensure(self.id_text.as_ref() == Some(id), Guarantee::Resumable, || {
                    "the client does not resume with its last id".to_owned()
                })?;
                self.positions = self.saved.clone();
                for undo in self.undo.drain(..).rev() {
                    if let Some(fold) = &mut self.fold {
                        fold.undo(undo);
                    }
                }
                if before != projection {
                    self.fold = None;
                }
                // A resumed stream sends all pools again.
                self.pools = Some(BTreeMap::new());
            }
        }
        self.undo.clear();
        self.connection = Some(Connection {
            replica,
            at,
            start: start.clone(),
            has_started: false,
            parts: None,
            namespace_hash: None,
            has_snapshot: false,
            down: PerResource::default(),
        });
        Ok(())
    }

    fn receive(&mut self, received: &ReceivedEvent, next: &[Entry]) -> Validation {
        let name = received.name();
        let Some(connection) = self.connection.as_mut() else {
            return Err(Violation::new(Guarantee::WireFormat, "the client has no connection"));
        };
        ensure(connection.parts.is_none() || name == "state.initial", Guarantee::Atomic, || {
            "an event between two parts of a state.initial".to_owned()
        })?;
        if !std::mem::replace(&mut connection.has_started, true) {
            self.first_event(received)?;
        }
        if name != "heartbeat" && name != "state.initial" {
            ensure(time_ms(received.time.as_deref())? <= received.at, Guarantee::Honest, || {
                "the time of the event is in the future".to_owned()
            })?;
        }
        match name {
            "state.initial" => self.initial(received),
            "heartbeat" => self.heartbeat(received),
            "instance.state" | "pool.instance.ready" => self.event(Resource::Pods, received, next),
            "claim.state" | "tenant.claimed" | "tenant.released" => self.event(Resource::Claims, received, next),
            "upstream.down" | "upstream.up" => self.upstream(received),
            "pool.depth" => self.pool(received),
            other => Err(Violation::new(Guarantee::WireFormat, format!("the event type {other:?} does not exist"))),
        }
    }

    /// The first event of a connection.
    fn first_event(&mut self, received: &ReceivedEvent) -> Validation {
        let reason = received.body["reason"].as_str();
        let is_heartbeat = received.name() == "heartbeat";
        let (start, at) = (self.connection().start.clone(), self.connection().at);
        let is_right = match &start {
            Start::Snapshot => reason == Some("connect"),
            Start::Live => is_heartbeat,
            Start::Resume { is_forged: true, .. } => reason == Some("foreign"),
            // If the cursor is also of a lost epoch, the reason is foreign.
            Start::Resume { projection, .. } if !self.accepts_cursor_of(*projection) => {
                reason == Some("filter") || reason == Some("foreign")
            }
            Start::Resume { .. } => is_heartbeat || reason.is_some(),
        };
        ensure(is_right, Guarantee::Resumable, || "a connection does not start with this event".to_owned())?;
        if matches!(start, Start::Resume { .. }) && is_heartbeat {
            self.coverage.resumed += 1;
            if let Some(timeline) = self.timeline() {
                let cursor = self.id.unwrap_or_default();
                let any = |is: &dyn Fn(Resource, ResourceVersion) -> bool| {
                    self.needed().any(|resource| cursor[resource].is_some_and(|version| is(resource, version)))
                };
                let first = |resource| timeline.first_version(resource);
                let is_old = any(&|resource, version| first(resource).is_some_and(|first| version < first));
                let position = |resource| timeline.position(resource, at);
                let is_ahead = any(&|resource, version| position(resource).is_some_and(|(_, at)| version > at));
                self.coverage.backfilled += u64::from(is_old);
                self.coverage.ahead += u64::from(is_ahead);
            }
        }
        Ok(())
    }

    pub(super) fn accepts_cursor_of(&self, projection: usize) -> bool {
        self.projection().accepts_cursor_of(&self.expected().projections[projection])
    }

    fn pool(&mut self, received: &ReceivedEvent) -> Validation {
        let (workload, counts) = pool_of(&received.body)?;
        ensure(received.id.is_none(), Guarantee::WireFormat, || "pool.depth has an id".to_owned())?;
        ensure(self.projection().shows_pool(&workload), Guarantee::Filtered, || {
            "the client did not ask for this pool".to_owned()
        })?;
        if let Some(pools) = &mut self.pools {
            pools.insert(workload, counts);
        }
        Ok(())
    }

    /// Everything is at rest: the client must have received everything.
    pub(super) fn complete(&self) -> Validation {
        let incomplete = |message: &str| Violation::new(Guarantee::Convergent, message);
        let connection = self.connection.as_ref().ok_or_else(|| incomplete("the client is not connected"))?;
        ensure(connection.has_started && connection.parts.is_none(), Guarantee::Convergent, || {
            "the connection has not completely started".to_owned()
        })?;
        let (expected, history) = (self.expected(), &self.expected().history);
        let newest = history.epoch_at(u64::MAX);
        for resource in self.needed() {
            let is_at_end = |position: &CandidatePosition| {
                expected.next_visible(self.projection, position.epoch, resource, position.version).is_none()
                    && position.pending.is_empty()
                    && history.is_shared(position.epoch, newest, position.version)
            };
            ensure(self.positions[resource].iter().any(is_at_end), Guarantee::Convergent, || {
                format!("{} are missing after {:?}", resource.plural(), self.positions[resource])
            })?;
        }
        ensure(!connection.down.iter().any(|down| *down == Some(true)), Guarantee::Honest, || {
            "the last report says that the API server is down".to_owned()
        })?;
        // Without a recording it is not known whether the last counts have been published.
        let recorded = self.validator.replicas[connection.replica].timeline().is_some();
        if let Some(pools) = self.pools.as_ref().filter(|_| recorded && self.projection().has("pool.depth")) {
            let mut pools = pools.clone();
            let expected = expected.pools(self.projection, newest, ResourceVersion::MAX);
            pools.retain(|workload, counts| *counts != [0; 3] || expected.contains_key(workload));
            ensure(pools == expected, Guarantee::Convergent, || {
                format!("the pools are {pools:?} instead of {expected:?}")
            })?;
        }
        self.validate_fold()
    }
}

/// The workload and the counts of a pool.
pub(super) fn pool_of(pool: &Value) -> Result<(String, [u64; 3]), Violation> {
    let missing = |key: &str| Violation::new(Guarantee::WireFormat, format!("a pool has no {key}"));
    let count = |key: &str| pool[key].as_u64().ok_or_else(|| missing(key));
    let workload = pool["workloadRef"].as_str().ok_or_else(|| missing("workloadRef"))?.to_owned();
    Ok((workload, [count("warming")?, count("ready")?, count("acquired")?]))
}
