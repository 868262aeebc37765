//! The validator: the record of one client against the store's history, event by event (docs/guarantees.md, G1 to G9).
//!
//! It follows the client's cursor: at any time it knows for each resource up to which version the client has been served,
//! and so which event must come next, to the last field. An id may stand anywhere between that and the next version of
//! which the client sees something. Where the history of etcd is in doubt it follows each that is possible.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use boilerhouse_bridge::event::{Cursor, Resource, ResourceVersion};
use serde_json::Value;

use super::expected_history::ExpectedHistory;
use super::projections::PROJECTIONS;
use super::record::{Entry, ReceivedEvent, Start};
use super::replica_timeline::ReplicaTimeline;
use received_state::ReceivedState;

mod event;
mod received_state;
mod upstream;

/// What all records of a history are held against.
#[derive(Debug)]
pub(super) struct StreamValidator {
    pub(super) history: ExpectedHistory,
    pub(super) timelines: Vec<ReplicaTimeline>,
    /// Who came back when: milliseconds, replica.
    pub(super) resumes: Vec<(u64, usize)>,
}

/// What was found in a record, so that the test can tell that it tested something.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Coverage {
    pub(super) events: u64,
    pub(super) ids: u64,
    pub(super) connections: u64,
    /// Resumes that went on without a snapshot.
    pub(super) resumed: u64,
    /// Of them those whose replica had begun after the cursor, so that it had to read the past.
    pub(super) backfilled: u64,
    /// Of them those whose replica had not come so far.
    pub(super) ahead: u64,
    pub(super) differences: u64,
    pub(super) empty_differences: u64,
    pub(super) parts: u64,
    pub(super) downs: u64,
    /// `state.initial` by reason.
    pub(super) initials: BTreeMap<String, u64>,
}

/// A client's place in one resource, in one of the histories that it may be in.
#[derive(Clone, Debug, PartialEq)]
struct CandidatePosition {
    epoch: usize,
    /// Served up to here.
    rv: ResourceVersion,
    /// What is still to come of the version `end`.
    pending: VecDeque<Arc<Value>>,
    end: ResourceVersion,
}

type CandidatePositions = [Vec<CandidatePosition>; 2];
type Fold = [BTreeMap<String, Arc<Value>>; 2];
/// Instances of each workload: warming, ready, acquired.
type Pools = BTreeMap<String, [u64; 3]>;

/// A connection while it lasts.
#[derive(Debug)]
struct Open {
    replica: usize,
    at: u64,
    start: Start,
    /// Whether its first line has come.
    started: bool,
    /// What has come of a `state.initial` in parts.
    parts: Option<ReceivedState>,
    /// Whether a whole one has come.
    is_pictured: bool,
    /// Whether the last word about a resource was that it is down.
    down: [Option<bool>; 2],
}

struct Client<'a> {
    validator: &'a StreamValidator,
    projection: usize,
    positions: CandidatePositions,
    /// The tracks at the last id.
    saved: CandidatePositions,
    /// The last id, as far as it covers something.
    id: Option<[Option<ResourceVersion>; 2]>,
    text: Option<String>,
    fold: Option<Fold>,
    /// What the fold held before the events since the last id.
    undo: Vec<(usize, String, Option<Arc<Value>>)>,
    pools: Option<Pools>,
    open: Option<Open>,
    /// When the last `state.initial` began to come.
    initial_started_at: u64,
    coverage: Coverage,
}

type Validation = Result<(), String>;

impl StreamValidator {
    /// Holds a record against the truth. Everything has come to rest, so nothing may be missing at its end.
    ///
    /// # Errors
    /// A sentence about the first line that is wrong.
    pub(super) fn validate(&self, record: &[Entry]) -> Result<Coverage, String> {
        let mut client = Client {
            validator: self,
            projection: 0,
            positions: CandidatePositions::default(),
            saved: CandidatePositions::default(),
            id: None,
            text: None,
            fold: None,
            undo: Vec::new(),
            pools: None,
            open: None,
            initial_started_at: 0,
            coverage: Coverage::default(),
        };
        for (nth, entry) in record.iter().enumerate() {
            let outcome = match entry {
                Entry::Connect { at, replica, projection, start } => client.connect(*at, *replica, *projection, start),
                Entry::Event(received) => client.received(received, &record[nth + 1..]),
                Entry::Cut { .. } => {
                    client.open = None;
                    Ok(())
                }
            };
            outcome.map_err(|why| format!("entry {nth}, {}: {why}", shortened(entry)))?;
        }
        client.complete().map_err(|why| format!("at the end: {why}"))?;
        Ok(client.coverage)
    }
}

fn shortened(entry: &Entry) -> String {
    let output = match entry {
        Entry::Event(received) => {
            let at = received.id.as_ref().and_then(|id| Cursor::decode(id)).map(|cursor| cursor.versions.into_array());
            format!("at {}, id {at:?}, idle {}, {}", received.at, received.idle, received.body)
        }
        other => format!("{other:?}"),
    };
    output.chars().take(600).collect()
}

impl Client<'_> {
    fn needed(&self) -> impl Iterator<Item = Resource> + use<> {
        let projection = self.projection;
        Resource::ALL.into_iter().filter(move |kind| PROJECTIONS[projection].needs(*kind))
    }

    fn timeline(&self) -> &ReplicaTimeline {
        &self.validator.timelines[self.open.as_ref().unwrap().replica]
    }

    fn connect(&mut self, at: u64, replica: usize, projection: usize, start: &Start) -> Validation {
        self.coverage.connections += 1;
        let before = std::mem::replace(&mut self.projection, projection);
        match start {
            Start::Snapshot | Start::Live => {
                (self.id, self.text, self.fold, self.pools) = (None, None, None, None);
                self.positions = CandidatePositions::default();
            }
            Start::Resume { id, .. } => {
                if self.text.as_ref() != Some(id) {
                    return Err("this is not the last id".to_owned());
                }
                self.positions = self.saved.clone();
                for (k, uid, was) in self.undo.drain(..).rev() {
                    let Some(fold) = &mut self.fold else { break };
                    match was {
                        Some(view) => drop(fold[k].insert(uid, view)),
                        None => drop(fold[k].remove(&uid)),
                    }
                }
                if before != projection {
                    self.fold = None;
                }
                // All pools are told again.
                self.pools = Some(BTreeMap::new());
            }
        }
        self.undo.clear();
        let start = start.clone();
        self.open = Some(Open { replica, at, start, started: false, parts: None, is_pictured: false, down: [None; 2] });
        Ok(())
    }

    fn received(&mut self, received: &ReceivedEvent, next: &[Entry]) -> Validation {
        let name = received.name();
        let open = self.open.as_mut().ok_or("outside of a connection")?;
        if open.parts.is_some() && name != "state.initial" {
            return Err("in the middle of a state.initial".to_owned());
        }
        if !std::mem::replace(&mut open.started, true) {
            self.opens(received)?;
        }
        if name != "heartbeat" && name != "state.initial" && moment(received.time.as_deref())? > received.at {
            return Err("it has not happened yet".to_owned());
        }
        match name {
            "state.initial" => self.initial(received)?,
            "heartbeat" => self.heartbeat(received)?,
            "instance.state" | "pool.instance.ready" => self.event(Resource::Pods, received, next)?,
            "claim.state" | "tenant.claimed" | "tenant.released" => self.event(Resource::Claims, received, next)?,
            "upstream.down" | "upstream.up" => self.upstream(received)?,
            "pool.depth" => self.pool(received)?,
            other => return Err(format!("nobody knows the type {other}")),
        }
        Ok(())
    }

    /// The first line of a connection.
    fn opens(&mut self, received: &ReceivedEvent) -> Validation {
        let open = self.open.as_ref().unwrap();
        let reason = received.body["reason"].as_str();
        let fits = match &open.start {
            Start::Snapshot => reason == Some("connect"),
            Start::Live => received.name() == "heartbeat",
            Start::Resume { is_forged: true, .. } => reason == Some("foreign"),
            // Where that cursor is of a lost history, it is foreign as well.
            Start::Resume { projection, .. } if !PROJECTIONS[self.projection].takes(&PROJECTIONS[*projection]) => {
                reason == Some("filter") || reason == Some("foreign")
            }
            Start::Resume { .. } => received.name() == "heartbeat" || reason.is_some(),
        };
        if !fits {
            return Err("so no such connection opens".to_owned());
        }
        if let Start::Resume { .. } = open.start
            && received.name() == "heartbeat"
        {
            let (at, timeline) = (open.at, self.timeline());
            let cursor = self.id.unwrap_or_default();
            let is = |fits: &dyn Fn(Resource, ResourceVersion) -> bool| {
                self.needed().any(|kind| cursor[kind as usize].is_some_and(|rv| fits(kind, rv)))
            };
            let first = |kind| timeline.position(kind, u64::MAX).and(timeline.first(kind));
            let is_old = is(&|kind, rv| first(kind).is_some_and(|first| rv < first));
            let is_ahead = is(&|kind, rv| timeline.position(kind, at).is_some_and(|(_, place)| rv > place));
            self.coverage.resumed += 1;
            self.coverage.backfilled += u64::from(is_old);
            self.coverage.ahead += u64::from(is_ahead);
        }
        Ok(())
    }

    fn pool(&mut self, received: &ReceivedEvent) -> Validation {
        if received.id.is_some() || !PROJECTIONS[self.projection].has("pool.depth") {
            return Err("nobody asked for it".to_owned());
        }
        let (workload, counts) = pool_of(&received.body)?;
        if let Some(pools) = &mut self.pools {
            pools.insert(workload, counts);
        }
        Ok(())
    }

    /// Everything has come to rest: the client has all there is.
    fn complete(&self) -> Validation {
        let open = self.open.as_ref().ok_or("nobody is there")?;
        if !open.started || open.parts.is_some() {
            return Err("it has not begun".to_owned());
        }
        let history = &self.validator.history;
        let newest = history.epoch_at(u64::MAX);
        for kind in self.needed() {
            let done = |position: &CandidatePosition| {
                let nothing = history.next_visible(self.projection, position.epoch, kind, position.rv).is_none();
                nothing && position.pending.is_empty() && history.is_shared(position.epoch, newest, position.rv)
            };
            if !self.positions[kind as usize].iter().any(done) {
                return Err(format!("{} are missing after {:?}", kind.plural(), self.positions[kind as usize]));
            }
        }
        if open.down.contains(&Some(true)) {
            return Err("it is still said to be down".to_owned());
        }
        if let Some(pools) = self.pools.as_ref().filter(|_| PROJECTIONS[self.projection].has("pool.depth")) {
            let mut pools = pools.clone();
            let really = history.pools(newest, ResourceVersion::MAX);
            pools.retain(|workload, counts| *counts != [0; 3] || really.contains_key(workload));
            if pools != really {
                return Err(format!("the pools are {pools:?} and should be {really:?}"));
            }
        }
        self.folds()
    }
}

/// Milliseconds since the history's beginning.
fn moment(text: Option<&str>) -> Result<u64, String> {
    let at = text.and_then(|text| text.parse::<jiff::Timestamp>().ok()).ok_or("no time")?;
    u64::try_from(at.as_millisecond()).map_err(|_| "a time before all times".to_owned())
}

fn pool_of(pool: &Value) -> Result<(String, [u64; 3]), String> {
    let count = |key: &str| pool[key].as_u64().ok_or("a count is missing");
    let workload = pool["workloadRef"].as_str().ok_or("no workload")?.to_owned();
    Ok((workload, [count("warming")?, count("ready")?, count("acquired")?]))
}
