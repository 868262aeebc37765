//! Heartbeats and what is said of the upstream: fresh, and honest (G6, G10).

use std::collections::VecDeque;

use boilerhouse_bridge::event::{Resource, ResourceVersion};

use super::super::record::{ReceivedEvent, Start};
use super::received_state::HOME;
use super::{CandidatePosition, CandidatePositions, Client, Validation, moment};

/// A silence in which what was missed has surely come (milliseconds).
const SETTLE: u64 = 400;
/// Silence of the upstream is said to be one by then (G10; milliseconds).
const HONEST: u64 = 40_000;
/// How long somebody may be kept who is behind the log or ahead of its replica (milliseconds).
const PARKED: u64 = 31_000;

impl Client<'_> {
    pub(super) fn heartbeat(&mut self, received: &ReceivedEvent) -> Validation {
        let id = received.id.as_ref().ok_or("it has no id")?;
        let versions = self.versions(id)?;
        if self.positions.iter().all(Vec::is_empty) {
            self.positions = self.positions_from(versions, received.at);
        }
        if received.is_coalesced() {
            self.empty_difference(versions, received.at)?;
        }
        let upstream = received.body["upstream"].as_str().ok_or("no upstream")?;
        let age = received.body["upstreamAgeMs"].as_u64().ok_or("no age")?;
        let keys = received.body.as_object().unwrap().len();
        if !["live", "down"].contains(&upstream) || keys != 4 + usize::from(received.is_coalesced()) {
            return Err("its keys are wrong".to_owned());
        }
        let at = moment(received.body["timestamp"].as_str())?;
        let timeline = self.timeline();
        let last = |bytes: &Vec<u64>| bytes[..bytes.partition_point(|byte| *byte <= at)].last().copied();
        let last_byte_at = timeline.bytes.iter().filter_map(last).min().unwrap_or(0);
        // Those of a difference are written once for all, and wait for who is slow.
        if at > received.at
            || (at < received.at && !received.is_coalesced())
            || age < at - last_byte_at
            || (upstream == "live" && age > HONEST)
        {
            return Err(format!("the last byte came at {last_byte_at}"));
        }
        self.reach(id, received.at)?;
        if received.idle { self.is_fresh(versions, received.at) } else { Ok(()) }
    }

    /// Where a client begins that wants transitions only.
    fn positions_from(&self, versions: [Option<ResourceVersion>; 2], at: u64) -> CandidatePositions {
        let epochs = 0..=self.validator.history.epoch_at(at);
        versions.map(|rv| {
            let position = |rv: ResourceVersion| {
                epochs.clone().map(move |epoch| CandidatePosition { epoch, rv, pending: VecDeque::new(), end: rv })
            };
            rv.map(|rv| position(rv).collect()).unwrap_or_default()
        })
    }

    /// Whether an idle client's id is where its replica is: G6.
    fn is_fresh(&self, versions: [Option<ResourceVersion>; 2], at: u64) -> Validation {
        let open = self.open.as_ref().unwrap();
        if matches!(open.start, Start::Resume { .. }) && at < open.at + PARKED {
            return Ok(());
        }
        for kind in self.needed() {
            let k = kind as usize;
            // What comes at the same moment may be behind it.
            let Some((epoch, rv)) = self.timeline().position(kind, at) else { continue };
            if self.positions[k].iter().any(|position| position.epoch == epoch) && versions[k] < Some(rv) {
                return Err(format!("its replica has come to {rv} of {}", kind.plural()));
            }
        }
        Ok(())
    }

    /// A difference in which the client sees no change.
    fn empty_difference(&mut self, versions: [Option<ResourceVersion>; 2], at: u64) -> Validation {
        self.follow_switches(at);
        let mut known = false;
        for kind in self.needed() {
            let k = kind as usize;
            let mut more = Vec::new();
            for position in self.positions[k].iter().filter(|position| position.pending.is_empty()) {
                for (since, to) in self.differences(position, kind, versions[k], at) {
                    if self.validator.history.difference(self.projection, position.epoch, kind, since, to).is_empty() {
                        known = true;
                        more.push(CandidatePosition { rv: to, end: to, ..position.clone() });
                    }
                }
            }
            self.positions[k].extend(more);
        }
        self.coverage.empty_differences += 1;
        if known { Ok(()) } else { Err("there is no such difference".to_owned()) }
    }

    pub(super) fn upstream(&mut self, received: &ReceivedEvent) -> Validation {
        let resource = received.body["resource"].as_str().ok_or("no resource")?;
        let kind = Resource::ALL.into_iter().find(|kind| kind.plural() == resource).ok_or("no such resource")?;
        let (k, is_down) = (kind as usize, received.name() == "upstream.down");
        let at = moment(received.time.as_deref())?;
        let down = &mut self.open.as_mut().unwrap().down[k];
        if down.replace(is_down) == Some(is_down) {
            return Err("it is said twice".to_owned());
        }
        self.coverage.downs += u64::from(is_down);
        let timeline = self.timeline();
        if is_down {
            return if timeline.may_be_down(kind, at) { Ok(()) } else { Err("nothing is wrong".to_owned()) };
        }
        let started =
            *timeline.watch_starts[k].iter().rev().find(|started| **started <= at).ok_or("no watch has begun")?;
        // A replica that is told of things late cannot know what it has missed.
        if timeline.setup.lag_ms > SETTLE {
            return Ok(());
        }
        // Behind a list there is nothing that a watch could have missed; and of what a dead watch says nobody knows.
        let listed = timeline.listed_before(kind, started).filter(|(listed, _)| started - listed <= HOME);
        if !timeline.has_delivered(kind, started, at) {
            return Ok(());
        }
        let received = |position: &CandidatePosition| {
            let written = self.validator.history.written_before(position.epoch, started);
            let missed = listed.map_or(written, |(_, rv)| rv);
            let next = self.validator.history.next_visible(self.projection, position.epoch, kind, position.rv);
            next.is_none_or(|next| next > missed)
        };
        let is_told = self.positions[k].is_empty() || self.positions[k].iter().any(received);
        if is_told { Ok(()) } else { Err("what was missed has not been told".to_owned()) }
    }
}
