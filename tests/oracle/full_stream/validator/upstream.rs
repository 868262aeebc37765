//! Heartbeats and reports about the API server: they must be fresh and right (G6, G10).

use std::collections::VecDeque;

use boilerhouse_bridge::event::Resource;

use crate::oracle::violation::{Guarantee, Validation, Violation, ensure};

use super::super::record::{ReceivedEvent, Start, time_ms};
use super::super::replica::ReplicaKnowledge;
use super::super::timeline::ReplicaTimeline;
use super::client::{CandidatePosition, CandidatePositions, Client, Versions};
use super::snapshot::NAMESPACE_CHECK;

/// A replica that lags no more than this has received what it missed before it reports `upstream.up` (milliseconds).
const MAX_LAG: u64 = 400;
/// A silent API server is reported as down within this time (G10; milliseconds).
const DETECTED_WITHIN: u64 = 40_000;
/// A resumed client waits at most this time for a backfill or a version check (milliseconds).
const MAX_WAIT: u64 = 31_000;

impl Client<'_> {
    pub(super) fn heartbeat(&mut self, received: &ReceivedEvent) -> Validation {
        let missing = |key: &str| Violation::new(Guarantee::WireFormat, format!("{key} is missing"));
        let id = received.id.as_ref().ok_or_else(|| missing("id"))?;
        let versions = self.versions(id)?;
        if self.positions.iter().all(Vec::is_empty) {
            self.positions = self.positions_from(versions, received.at);
        }
        if received.is_coalesced() {
            self.empty_difference(versions, received.at)?;
        }
        let upstream = received.body["upstream"].as_str().ok_or_else(|| missing("upstream"))?;
        let age = received.body["upstreamAgeMs"].as_u64().ok_or_else(|| missing("upstreamAgeMs"))?;
        let members = received.body.as_object().map_or(0, serde_json::Map::len);
        let expected_members = 4 + usize::from(received.is_coalesced());
        ensure(
            ["live", "syncing", "down"].contains(&upstream) && members == expected_members,
            Guarantee::WireFormat,
            || "the members are wrong".to_owned(),
        )?;
        let at = time_ms(received.body["timestamp"].as_str())?;
        ensure(at <= received.at, Guarantee::Honest, || "the timestamp is in the future".to_owned())?;
        if let Some(timeline) = self.timeline() {
            let last = |bytes: &Vec<u64>| bytes[..bytes.partition_point(|byte| *byte <= at)].last().copied();
            let last_byte_at = timeline.bytes.iter().filter_map(last).min().unwrap_or(0);
            // The heartbeat of a difference is rendered once for all clients. A slow client receives it later.
            let is_fresh = at == received.at || received.is_coalesced();
            let is_honest = age >= at - last_byte_at && (upstream == "down" || age <= DETECTED_WITHIN);
            ensure(is_fresh && is_honest, Guarantee::Honest, || format!("the last byte arrived at {last_byte_at}"))?;
        }
        let is_reported = self.connection().down.iter().any(|down| *down == Some(true));
        ensure(!received.idle || upstream != "down" || is_reported, Guarantee::Honest, || {
            "no event of this connection says what is down".to_owned()
        })?;
        self.reach(id, received.at)?;
        if received.idle { self.is_fresh(versions, received.at) } else { Ok(()) }
    }

    /// The positions of a client that starts without a snapshot.
    fn positions_from(&self, versions: Versions, at: u64) -> CandidatePositions {
        let epochs = 0..=self.expected().history.epoch_at(at);
        versions.map(|version| {
            let position =
                |version, epoch| CandidatePosition { epoch, version, pending: VecDeque::new(), end: version };
            let positions = |version| epochs.clone().map(|epoch| position(version, epoch)).collect();
            version.map(positions).unwrap_or_default()
        })
    }

    /// The id of an idle client must be at the version of its replica (G6).
    fn is_fresh(&self, versions: Versions, at: u64) -> Validation {
        let connection = self.connection();
        let may_wait = matches!(connection.start, Start::Resume { .. }) && at < connection.at + MAX_WAIT;
        let Some(timeline) = self.timeline().filter(|_| !may_wait) else { return Ok(()) };
        for resource in self.needed() {
            // What arrives at the same moment may come after the heartbeat.
            let Some((epoch, version)) = timeline.position(resource, at) else { continue };
            let is_there = self.positions[resource].iter().any(|position| position.epoch == epoch);
            ensure(!is_there || versions[resource] >= Some(version), Guarantee::Bookmarked, || {
                format!("the replica is at version {version} of {}", resource.plural())
            })?;
        }
        Ok(())
    }

    /// A difference in which the client sees no change.
    fn empty_difference(&mut self, versions: Versions, at: u64) -> Validation {
        self.follow_switches(at);
        let mut exists = false;
        for resource in self.needed() {
            let mut after = Vec::new();
            for position in self.positions[resource].iter().filter(|position| position.pending.is_empty()) {
                for (since, to) in self.differences(position, resource, versions[resource], at) {
                    let events = self.expected().difference(self.projection, position.epoch, resource, since, to);
                    if events.is_empty() {
                        exists = true;
                        after.push(CandidatePosition { version: to, end: to, ..position.clone() });
                    }
                }
            }
            self.positions[resource].extend(after);
        }
        self.coverage.empty_differences += 1;
        ensure(exists, Guarantee::Reliable, || "there is no such difference".to_owned())
    }

    /// `upstream.down` and `upstream.up`.
    pub(super) fn upstream(&mut self, received: &ReceivedEvent) -> Validation {
        let plural = received.body["resource"].as_str().unwrap_or_default();
        let resource = Resource::ALL
            .into_iter()
            .find(|resource| resource.plural() == plural)
            .ok_or_else(|| Violation::new(Guarantee::WireFormat, format!("the resource {plural:?} does not exist")))?;
        let is_down = received.name() == "upstream.down";
        let at = time_ms(received.time.as_deref())?;
        let before = self.connection_mut().down[resource].replace(is_down);
        ensure(before.unwrap_or(false) != is_down, Guarantee::Honest, || {
            "the connection has the report already, or never had one of an outage".to_owned()
        })?;
        self.coverage.downs += u64::from(is_down);
        match self.replica() {
            ReplicaKnowledge::Undisturbed => {
                ensure(false, Guarantee::Honest, || "nothing disturbed the replica".to_owned())
            }
            ReplicaKnowledge::Unknown => Ok(()),
            ReplicaKnowledge::Recorded(timeline) if is_down => {
                ensure(timeline.may_be_down(resource, at), Guarantee::Honest, || "the API server answers".to_owned())
            }
            ReplicaKnowledge::Recorded(timeline) => self.has_received_missed(timeline, resource, at),
        }
    }

    /// With `upstream.up` the client must have received what was written before the new watch started.
    fn has_received_missed(&self, timeline: &ReplicaTimeline, resource: Resource, at: u64) -> Validation {
        let mut starts = timeline.watch_starts[resource].iter().rev();
        let started = *starts
            .find(|started| **started <= at)
            .ok_or_else(|| Violation::new(Guarantee::Honest, "no watch has started"))?;
        // A replica that lags cannot have received everything. A watch that sent nothing afterwards may be dead.
        if timeline.setup.lag_ms > MAX_LAG || !timeline.has_delivered(resource, started, at) {
            return Ok(());
        }
        // After a list there is nothing that a watch could have missed.
        let list = timeline.last_list(resource, started).filter(|(listed, _)| started - listed <= NAMESPACE_CHECK);
        let (expected, positions) = (self.expected(), &self.positions[resource]);
        let has_received = |position: &CandidatePosition| {
            let written = expected.history.written_before(position.epoch, started);
            let missed = list.map_or(written, |(_, version)| version);
            let next = expected.next_visible(self.projection, position.epoch, resource, position.version);
            next.is_none_or(|next| next > missed)
        };
        ensure(positions.is_empty() || positions.iter().any(has_received), Guarantee::Honest, || {
            "what was missed has not been delivered".to_owned()
        })
    }
}
