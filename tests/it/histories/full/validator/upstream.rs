//! Heartbeats and what is said of the upstream: fresh, and honest (G6, G10).

use std::collections::VecDeque;

use boilerhouse_bridge::event::{Resource, ResourceVersion};

use super::super::record::{Start, Told};
use super::picture::HOME;
use super::{Client, Track, Tracks, Verdict, moment};

/// A silence in which what was missed has surely come (milliseconds).
const SETTLE: u64 = 400;
/// Silence of the upstream is said to be one by then (G10; milliseconds).
const HONEST: u64 = 40_000;
/// How long somebody may be kept who is behind the log or ahead of its replica (milliseconds).
const PARKED: u64 = 31_000;

impl Client<'_> {
    pub(super) fn heartbeat(&mut self, told: &Told) -> Verdict {
        let id = told.id.as_ref().ok_or("it has no id")?;
        let versions = self.versions(id)?;
        if self.tracks.iter().all(Vec::is_empty) {
            self.tracks = self.tracks_from(versions, told.at);
        }
        if told.is_coalesced() {
            self.empty_difference(versions, told.at)?;
        }
        let upstream = told.body["upstream"].as_str().ok_or("no upstream")?;
        let age = told.body["upstreamAgeMs"].as_u64().ok_or("no age")?;
        let keys = told.body.as_object().unwrap().len();
        if !["live", "down"].contains(&upstream) || keys != 4 + usize::from(told.is_coalesced()) {
            return Err("its keys are wrong".to_owned());
        }
        let at = moment(told.body["timestamp"].as_str())?;
        let journey = self.journey();
        let last = |bytes: &Vec<u64>| bytes[..bytes.partition_point(|byte| *byte <= at)].last().copied();
        let heard = journey.bytes.iter().filter_map(last).min().unwrap_or(0);
        // Those of a difference are written once for all, and wait for who is slow.
        if at > told.at
            || (at < told.at && !told.is_coalesced())
            || age < at - heard
            || (upstream == "live" && age > HONEST)
        {
            return Err(format!("the last byte came at {heard}"));
        }
        self.reach(id, told.at)?;
        if told.idle { self.is_fresh(versions, told.at) } else { Ok(()) }
    }

    /// Where a client begins that wants transitions only.
    fn tracks_from(&self, versions: [Option<ResourceVersion>; 2], at: u64) -> Tracks {
        let epochs = 0..=self.court.chronicle.epoch_at(at);
        versions.map(|rv| {
            let track = |rv: ResourceVersion| {
                epochs.clone().map(move |epoch| Track { epoch, rv, pending: VecDeque::new(), end: rv })
            };
            rv.map(|rv| track(rv).collect()).unwrap_or_default()
        })
    }

    /// Whether an idle client's id is where its replica is: G6.
    fn is_fresh(&self, versions: [Option<ResourceVersion>; 2], at: u64) -> Verdict {
        let open = self.open.as_ref().unwrap();
        if matches!(open.start, Start::Resume { .. }) && at < open.at + PARKED {
            return Ok(());
        }
        for kind in self.needed() {
            let k = kind as usize;
            // What comes at the same moment may be behind it.
            let Some((epoch, rv)) = self.journey().place(kind, at) else { continue };
            if self.tracks[k].iter().any(|track| track.epoch == epoch) && versions[k] < Some(rv) {
                return Err(format!("its replica has come to {rv} of {}", kind.resource()));
            }
        }
        Ok(())
    }

    /// A difference in which the client sees no change.
    fn empty_difference(&mut self, versions: [Option<ResourceVersion>; 2], at: u64) -> Verdict {
        self.follow_turns(at);
        let mut known = false;
        for kind in self.needed() {
            let k = kind as usize;
            let mut more = Vec::new();
            for track in self.tracks[k].iter().filter(|track| track.pending.is_empty()) {
                for (since, to) in self.differences(track, kind, versions[k], at) {
                    if self.court.chronicle.difference(self.looks, track.epoch, kind, since, to).is_empty() {
                        known = true;
                        more.push(Track { rv: to, end: to, ..track.clone() });
                    }
                }
            }
            self.tracks[k].extend(more);
        }
        self.found.empty_differences += 1;
        if known { Ok(()) } else { Err("there is no such difference".to_owned()) }
    }

    pub(super) fn upstream(&mut self, told: &Told) -> Verdict {
        let resource = told.body["resource"].as_str().ok_or("no resource")?;
        let kind = Resource::ALL.into_iter().find(|kind| kind.resource() == resource).ok_or("no such resource")?;
        let (k, is_down) = (kind as usize, told.name() == "upstream.down");
        let at = moment(told.time.as_deref())?;
        let down = &mut self.open.as_mut().unwrap().down[k];
        if down.replace(is_down) == Some(is_down) {
            return Err("it is said twice".to_owned());
        }
        self.found.downs += u64::from(is_down);
        let journey = self.journey();
        if is_down {
            return if journey.is_unhappy(kind, at) { Ok(()) } else { Err("nothing is wrong".to_owned()) };
        }
        let began = *journey.began[k].iter().rev().find(|began| **began <= at).ok_or("no watch has begun")?;
        // A replica that is told of things late cannot know what it has missed.
        if journey.setup.lag_ms > SETTLE {
            return Ok(());
        }
        // Behind a list there is nothing that a watch could have missed; and of what a dead watch says nobody knows.
        let listed = journey.listed_before(kind, began).filter(|(listed, _)| began - listed <= HOME);
        if !journey.has_told(kind, began, at) {
            return Ok(());
        }
        let told = |track: &Track| {
            let written = self.court.chronicle.written_before(track.epoch, began);
            let missed = listed.map_or(written, |(_, rv)| rv);
            let next = self.court.chronicle.next_visible(self.looks, track.epoch, kind, track.rv);
            next.is_none_or(|next| next > missed)
        };
        let is_told = self.tracks[k].is_empty() || self.tracks[k].iter().any(told);
        if is_told { Ok(()) } else { Err("what was missed has not been told".to_owned()) }
    }
}
