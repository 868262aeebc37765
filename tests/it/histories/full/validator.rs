//! The validator: the record of one client against the store's history, event by event (quality.md, G1 to G9).
//!
//! It follows the client's cursor: at any time it knows for each resource up to which version the client has been served,
//! and so which event must come next, to the last field. An id may stand anywhere between that and the next version of
//! which the client sees something. Where the history of etcd is in doubt it follows each that is possible.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use boilerhouse_bridge::event::{Cursor, Kind, Rv};
use serde_json::Value;

use super::chronicle::Chronicle;
use super::journey::Journey;
use super::looks::LOOKS;
use super::record::{Entry, Start, Told};

/// What all records of a history are held against.
#[derive(Debug)]
pub(super) struct Court {
    pub(super) chronicle: Chronicle,
    pub(super) journeys: Vec<Journey>,
    /// Who came back when: milliseconds, replica.
    pub(super) resumes: Vec<(u64, usize)>,
}

/// What was found in a record, so that the test can tell that it tested something.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Found {
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
struct Track {
    epoch: usize,
    /// Served up to here.
    rv: Rv,
    /// What is still to come of the version `end`.
    pending: VecDeque<Arc<Value>>,
    end: Rv,
}

type Tracks = [Vec<Track>; 2];
type Fold = [BTreeMap<String, Arc<Value>>; 2];

/// A connection while it lasts.
#[derive(Debug)]
struct Open {
    replica: usize,
    at: u64,
    start: Start,
    /// Whether its first line has come.
    begun: bool,
    /// What has come of a `state.initial` in parts: its reason, instances and claims, pools.
    parts: Option<(String, Fold, BTreeMap<String, [u64; 3]>)>,
    /// Whether the last word about a resource was that it is down.
    down: [Option<bool>; 2],
    last: u64,
}

struct Client<'a> {
    court: &'a Court,
    looks: usize,
    tracks: Tracks,
    /// The tracks at the last id.
    saved: Tracks,
    /// The last id, as far as it covers something.
    id: Option<[Option<Rv>; 2]>,
    text: Option<String>,
    fold: Option<Fold>,
    /// What the fold held before the events since the last id.
    undo: Vec<(usize, String, Option<Arc<Value>>)>,
    pools: Option<BTreeMap<String, [u64; 3]>>,
    open: Option<Open>,
    /// When the last `state.initial` came.
    pictured: u64,
    found: Found,
}

type Verdict = Result<(), String>;

impl Court {
    /// Holds a record against the truth. `complete`: everything has come to rest, so nothing may be missing at its end.
    ///
    /// # Errors
    /// A sentence about the first line that is wrong.
    pub(super) fn judge(&self, record: &[Entry], complete: bool) -> Result<Found, String> {
        let mut client = Client {
            court: self,
            looks: 0,
            tracks: Tracks::default(),
            saved: Tracks::default(),
            id: None,
            text: None,
            fold: None,
            undo: Vec::new(),
            pools: None,
            open: None,
            pictured: 0,
            found: Found::default(),
        };
        for (nth, entry) in record.iter().enumerate() {
            let verdict = match entry {
                Entry::Connect { at, replica, looks, start } => client.connect(*at, *replica, *looks, start),
                Entry::Told(told) => client.told(told, &record[nth + 1..]),
                Entry::Cut { .. } => {
                    client.open = None;
                    Ok(())
                }
            };
            if let (Err(why), Ok(_)) = (&verdict, std::env::var("SHOW")) {
                for (at, entry) in record[..=nth].iter().enumerate().skip(nth.saturating_sub(25)) {
                    if std::env::var("POOLS").is_err()
                        && matches!(entry, Entry::Told(told) if told.name() == "pool.depth")
                    {
                        continue;
                    }
                    println!("{at}: {}", shortened(entry).chars().take(330).collect::<String>());
                }
                println!("{why}");
                if let Some(open) = &client.open {
                    println!("{:?}", self.journeys[open.replica]);
                }
            }
            verdict.map_err(|why| format!("entry {nth}, {}: {why}", shortened(entry)))?;
        }
        if complete {
            if let (Err(why), Ok(_), Some(open)) = (client.complete(), std::env::var("SHOW"), &client.open) {
                println!("{why} {open:?}");
                let skip = record.len().saturating_sub(std::env::var("SHOW").unwrap().parse().unwrap());
                for (at, entry) in record.iter().enumerate().skip(skip) {
                    println!("{at}: {}", shortened(entry).chars().take(300).collect::<String>());
                }
                let journey = &self.journeys[open.replica];
                println!("{:?} {:?}", journey.setup, self.chronicle);
                for k in 0..2 {
                    let tail = |times: &Vec<u64>| times[times.len().saturating_sub(8)..].to_vec();
                    println!(
                        "{k} failed {:?} began {:?} bytes {:?} relists {:?} places {:?}",
                        tail(&journey.failed[k]),
                        tail(&journey.began[k]),
                        tail(&journey.bytes[k]),
                        journey.relists[k].last(),
                        journey.place(Kind::ALL[k], u64::MAX)
                    );
                }
            }
            client.complete().map_err(|why| format!("at the end: {why}"))?;
        }
        Ok(client.found)
    }
}

fn shortened(entry: &Entry) -> String {
    let said = match entry {
        Entry::Told(told) => {
            let at = told.id.as_ref().and_then(|id| Cursor::decode(id)).map(|cursor| cursor.rv);
            format!("at {}, id {at:?}, idle {}, {}", told.at, told.idle, told.body)
        }
        other => format!("{other:?}"),
    };
    said.chars().take(600).collect()
}

impl Client<'_> {
    fn needed(&self) -> impl Iterator<Item = Kind> + use<> {
        let looks = self.looks;
        Kind::ALL.into_iter().filter(move |kind| LOOKS[looks].needs(*kind))
    }

    fn journey(&self) -> &Journey {
        &self.court.journeys[self.open.as_ref().unwrap().replica]
    }

    fn connect(&mut self, at: u64, replica: usize, looks: usize, start: &Start) -> Verdict {
        self.found.connections += 1;
        let before = std::mem::replace(&mut self.looks, looks);
        match start {
            Start::Snapshot | Start::Now => {
                (self.id, self.text, self.fold, self.pools) = (None, None, None, None);
                self.tracks = Tracks::default();
            }
            Start::Resume { id, .. } => {
                if self.text.as_ref() != Some(id) {
                    return Err("this is not the last id".to_owned());
                }
                self.tracks = self.saved.clone();
                for (k, uid, was) in self.undo.drain(..).rev() {
                    let Some(fold) = &mut self.fold else { break };
                    match was {
                        Some(view) => drop(fold[k].insert(uid, view)),
                        None => drop(fold[k].remove(&uid)),
                    }
                }
                if before != looks {
                    self.fold = None;
                }
                // All pools are told again.
                self.pools = Some(BTreeMap::new());
            }
        }
        self.undo.clear();
        let start = start.clone();
        self.open = Some(Open { replica, at, start, begun: false, parts: None, down: [None; 2], last: at });
        Ok(())
    }

    fn told(&mut self, told: &Told, next: &[Entry]) -> Verdict {
        let name = told.name();
        let open = self.open.as_mut().ok_or("outside of a connection")?;
        if open.parts.is_some() && name != "state.initial" {
            return Err("in the middle of a state.initial".to_owned());
        }
        if !std::mem::replace(&mut open.begun, true) {
            self.opens(told)?;
        }
        if name != "heartbeat" && name != "state.initial" && told.time.is_none() {
            return Err("it has no time".to_owned());
        }
        match name {
            "state.initial" => self.initial(told)?,
            "heartbeat" => self.heartbeat(told)?,
            "instance.state" | "pool.instance.ready" => self.event(Kind::Instance, told, next)?,
            "claim.state" | "tenant.claimed" | "tenant.released" => self.event(Kind::Claim, told, next)?,
            "upstream.down" | "upstream.up" => self.upstream(told)?,
            "pool.depth" => self.pool(told)?,
            other => return Err(format!("nobody knows the type {other}")),
        }
        self.open.as_mut().unwrap().last = told.at;
        Ok(())
    }

    /// The first line of a connection.
    fn opens(&mut self, told: &Told) -> Verdict {
        let open = self.open.as_ref().unwrap();
        let reason = told.body["reason"].as_str();
        let fits = match &open.start {
            Start::Snapshot => reason == Some("connect"),
            Start::Now => told.name() == "heartbeat",
            Start::Resume { is_forged: true, .. } => reason == Some("foreign"),
            // Where that cursor is of a lost history, it is foreign as well.
            Start::Resume { looks, .. } if !LOOKS[self.looks].takes(&LOOKS[*looks]) => {
                reason == Some("filter") || reason == Some("foreign")
            }
            Start::Resume { .. } => told.name() == "heartbeat" || reason.is_some(),
        };
        if !fits {
            return Err("so no such connection opens".to_owned());
        }
        if let Start::Resume { .. } = open.start
            && told.name() == "heartbeat"
        {
            let (at, journey) = (open.at, self.journey());
            let cursor = self.id.unwrap_or_default();
            let is = |fits: &dyn Fn(Kind, Rv) -> bool| {
                self.needed().any(|kind| cursor[kind as usize].is_some_and(|rv| fits(kind, rv)))
            };
            let first = |kind| journey.place(kind, u64::MAX).and(journey.first(kind));
            let is_old = is(&|kind, rv| first(kind).is_some_and(|first| rv < first));
            let is_ahead = is(&|kind, rv| journey.place(kind, at).is_some_and(|(_, place)| rv > place));
            self.found.resumed += 1;
            self.found.backfilled += u64::from(is_old);
            self.found.ahead += u64::from(is_ahead);
        }
        Ok(())
    }

    fn initial(&mut self, told: &Told) -> Verdict {
        let body = &told.body;
        let reason = body["reason"].as_str().ok_or("no reason")?.to_owned();
        let open = self.open.as_mut().unwrap();
        let (why, mut objects, mut pools) =
            open.parts.take().unwrap_or_else(|| (reason.clone(), Fold::default(), BTreeMap::new()));
        if why != reason {
            return Err(format!("it began with {why}"));
        }
        for (k, array) in ["instances", "claims"].into_iter().enumerate() {
            for view in body[array].as_array().ok_or("an array is missing")? {
                let uid = view["uid"].as_str().ok_or("an object without uid")?.to_owned();
                if objects[k].insert(uid, Arc::new(view.clone())).is_some() {
                    return Err("an object stands in it twice".to_owned());
                }
            }
        }
        for pool in body["pools"].as_array().ok_or("an array is missing")? {
            let (workload, counts) = pool_of(pool)?;
            if pools.insert(workload, counts).is_some() {
                return Err("a pool stands in it twice".to_owned());
            }
        }
        self.found.parts += 1;
        let more = body.get("more") == Some(&Value::Bool(true));
        match (&told.id, more) {
            (None, true) => {
                open.parts = Some((reason, objects, pools));
                Ok(())
            }
            (Some(id), false) => self.pictured(told.at, id, reason, objects, pools),
            _ => Err("exactly the last part has an id".to_owned()),
        }
    }

    /// A whole picture.
    fn pictured(
        &mut self,
        at: u64,
        id: &str,
        reason: String,
        objects: Fold,
        pools: BTreeMap<String, [u64; 3]>,
    ) -> Verdict {
        self.justify(&reason, at)?;
        let versions = self.versions(id)?;
        if reason == "connect" || reason == "foreign" {
            self.id = None;
        }
        let chronicle = &self.court.chronicle;
        let epochs = 0..=chronicle.epoch_at(at);
        let mut tracks = Tracks::default();
        for kind in Kind::ALL {
            let (k, needed) = (kind as usize, LOOKS[self.looks].needs(kind));
            let rv = versions[k].unwrap_or(0);
            let told: BTreeMap<&str, &Value> = objects[k].iter().map(|(uid, view)| (uid.as_str(), &**view)).collect();
            let fits = |epoch: &usize| {
                !needed || (rv <= chronicle.last(*epoch) && chronicle.fold(self.looks, *epoch, kind, rv) == told)
            };
            let track = |epoch| Track { epoch, rv, pending: VecDeque::new(), end: rv };
            tracks[k] = epochs.clone().filter(fits).map(track).collect();
            if tracks[k].is_empty() || (!needed && !told.is_empty()) {
                let really: Vec<_> = epochs.map(|epoch| chronicle.fold(self.looks, epoch, kind, rv)).collect();
                return Err(format!("at {rv} {} were {really:?}", kind.resource()));
            }
        }
        if LOOKS[self.looks].has("pool.depth") {
            let fits = |track: &Track| pools == chronicle.pools(track.epoch, track.rv);
            if !tracks[0].iter().any(fits) {
                return Err(format!("the pools were {:?}", chronicle.pools(tracks[0][0].epoch, tracks[0][0].rv)));
            }
        } else if !pools.is_empty() {
            return Err("nobody asked for pools".to_owned());
        }
        self.tracks = tracks;
        self.fold = Some(objects);
        self.pools = Some(pools);
        self.pictured = at;
        // What was said of the upstream while the client was behind is not said again: heartbeats do.
        self.open.as_mut().unwrap().down = [None; 2];
        *self.found.initials.entry(reason).or_default() += 1;
        self.reach(id, at)
    }

    /// Whether there was a reason for a new picture.
    fn justify(&self, reason: &str, at: u64) -> Verdict {
        let (open, journey) = (self.open.as_ref().unwrap(), self.journey());
        let resumed = match &open.start {
            Start::Resume { looks, is_forged, .. } => Some((*looks, *is_forged)),
            Start::Snapshot | Start::Now => None,
        };
        let is_long = at.saturating_sub(journey.setup.born) > AGE;
        let is_right = match reason {
            "connect" => open.start == Start::Snapshot && self.pictured <= open.at,
            "filter" => resumed.is_some_and(|(looks, _)| !LOOKS[self.looks].takes(&LOOKS[looks])),
            "foreign" => resumed.is_some_and(|(_, is_forged)| is_forged) || self.is_foreign(at),
            "expired" => resumed.is_some() && (is_long || !self.should_be_held(at)),
            "lagged" => (journey.setup.is_small || is_long) && journey.has_heard(open.at, at),
            _ => false,
        };
        if is_right { Ok(()) } else { Err(format!("there is no reason to say {reason}")) }
    }

    /// Whether the client's cursor may be of another history than the replica's.
    fn is_foreign(&self, at: u64) -> bool {
        let (chronicle, journey) = (&self.court.chronicle, self.journey());
        let newest = chronicle.epoch_at(at);
        if newest == 0 {
            return false;
        }
        let is_lost = |kind: Kind| {
            let good = |track: &Track| chronicle.is_shared(track.epoch, newest, track.rv);
            !self.tracks[kind as usize].iter().any(good)
        };
        self.needed().any(is_lost) || journey.has_restarted(self.pictured.saturating_sub(HOME), at) || {
            // What was before a restart may be of either history.
            let is_before = |kind: Kind| {
                let mut restarts = journey.relists.iter().flatten().filter(|list| list.is_restart() && list.at <= at);
                let rv = self.id.unwrap_or_default()[kind as usize];
                restarts.any(|list| rv.is_none_or(|rv| rv < list.rv))
            };
            self.needed().any(is_before)
        }
    }

    /// Whether a replica without any trouble holds, or can read, all that came after the cursor.
    fn should_be_held(&self, at: u64) -> bool {
        let (open, journey) = (self.open.as_ref().unwrap(), self.journey());
        let lately = open.at.saturating_sub(BUDGET_TIME)..=at;
        let resumes =
            self.court.resumes.iter().filter(|(when, who)| *who == open.replica && lately.contains(when)).count();
        let is_spoilt = |kind: Kind| {
            let k = kind as usize;
            // Of what it does not cover nothing is needed.
            let is_between = self.id.unwrap_or_default()[k].is_some_and(|rv| journey.is_between(kind, rv, at));
            // A difference at the end of what was read of the past is one, too.
            let unread = journey.unwatched[k].iter().any(|when| *when <= at);
            let unlisted = journey.unlisted[k].iter().any(|when| (open.at..=at).contains(when));
            is_between || unread || unlisted
        };
        !journey.setup.is_small
            && resumes <= BUDGET
            && self.court.chronicle.epoch_at(at) == 0
            && !Kind::ALL.into_iter().any(is_spoilt)
    }

    fn heartbeat(&mut self, told: &Told) -> Verdict {
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
    fn tracks_from(&self, versions: [Option<Rv>; 2], at: u64) -> Tracks {
        let epochs = 0..=self.court.chronicle.epoch_at(at);
        versions.map(|rv| {
            let track =
                |rv: Rv| epochs.clone().map(move |epoch| Track { epoch, rv, pending: VecDeque::new(), end: rv });
            rv.map(|rv| track(rv).collect()).unwrap_or_default()
        })
    }

    /// Whether an idle client's id is where its replica is: G6.
    fn is_fresh(&self, versions: [Option<Rv>; 2], at: u64) -> Verdict {
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
    fn empty_difference(&mut self, versions: [Option<Rv>; 2], at: u64) -> Verdict {
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

    /// The differences that its replica has and that a client at this track can be told: since when, up to when.
    fn differences(&self, track: &Track, kind: Kind, to: Option<Rv>, at: u64) -> Vec<(Rv, Rv)> {
        let (chronicle, journey, k) = (&self.court.chronicle, self.journey(), kind as usize);
        let next = chronicle.next_visible(self.looks, track.epoch, kind, track.rv);
        let mut all = Vec::new();
        for relist in journey.relists[k].iter().filter(|relist| relist.at <= at && relist.epoch == track.epoch) {
            if to.is_none_or(|to| to == relist.rv) {
                all.extend(relist.since.iter().map(|since| (*since, relist.rv)));
            }
        }
        // At the end of what was read of the past, where that was not whole: where the log began. Of one that was cut off
        // before its id came, that may be anywhere that the replica has been.
        let ends = to.map_or_else(|| journey.versions(kind, at), |to| vec![to]);
        if let Some(unwatched) = journey.unwatched[k].iter().rev().find(|when| **when <= at) {
            let lists: Vec<Rv> =
                journey.pasts[k].iter().filter(|past| past.0 <= *unwatched).map(|past| past.1).collect();
            let least = lists.iter().copied().min().unwrap_or(Rv::MAX).max(track.rv);
            for to in ends {
                let end = next.unwrap_or(to).min(to);
                let versions = chronicle.between(track.epoch, kind, least.saturating_sub(1), end);
                all.extend(versions.chain(lists.iter().copied()).map(|since| (since, to)));
            }
        }
        all.retain(|(since, to)| *since >= track.rv && since < to && next.is_none_or(|next| next > *since));
        all.sort_unstable();
        all.dedup();
        all
    }

    fn event(&mut self, kind: Kind, told: &Told, next: &[Entry]) -> Verdict {
        self.found.events += 1;
        self.follow_turns(told.at);
        let (k, is_last) = (kind as usize, told.id.is_some());
        let mut after: Vec<Track> = Vec::new();
        let mut expected = None;
        for track in &self.tracks[k] {
            let continued = !track.pending.is_empty();
            let begun = if continued { vec![track.clone()] } else { self.begin(track, kind, told, next) };
            for mut track in begun {
                let Some(first) = track.pending.pop_front() else { continue };
                if first != told.body || track.pending.is_empty() != is_last {
                    expected.get_or_insert((first, track.pending.is_empty(), track.end));
                    continue;
                }
                if track.pending.is_empty() {
                    track.rv = track.end;
                }
                if !after.contains(&track) {
                    after.push(track);
                }
                self.found.differences += u64::from(told.is_coalesced() && !continued);
            }
        }
        if after.is_empty() {
            return Err(match expected {
                Some((event, last, rv)) => format!("expected at {rv}, last of it: {last}, {event}"),
                None => format!("nothing of that was to come after {:?}", self.tracks[k]),
            });
        }
        self.tracks[k] = after;
        self.take(k, &told.body);
        told.id.as_ref().map_or(Ok(()), |id| self.reach(id, told.at))
    }

    /// What may begin with an event at a track.
    fn begin(&self, track: &Track, kind: Kind, told: &Told, next: &[Entry]) -> Vec<Track> {
        let chronicle = &self.court.chronicle;
        let begun = |events: Vec<Arc<Value>>, end| Track { pending: events.into(), end, ..track.clone() };
        if !told.is_coalesced() {
            let visible = chronicle.visible(self.looks, track.epoch, kind);
            let next = visible.get(visible.partition_point(|one| one.rv <= track.rv));
            return next.map(|one| begun(one.events.clone(), one.rv)).into_iter().collect();
        }
        // A difference ends with an id, and that is its version.
        let rest = next.iter().map_while(|entry| match entry {
            Entry::Told(told) if told.is_coalesced() => Some(told),
            _ => None,
        });
        let end = [told].into_iter().chain(rest).find_map(|told| told.id.as_ref());
        let to = end.and_then(|id| Cursor::decode(id)).map(|cursor| cursor.rv[kind as usize]);
        let known = self.differences(track, kind, to, told.at).into_iter();
        known.map(|(since, to)| begun(chronicle.difference(self.looks, track.epoch, kind, since, to), to)).collect()
    }

    /// What an event does to the client's picture.
    fn take(&mut self, k: usize, body: &Value) {
        let view = &body[["instance", "claim"][k]];
        let (Some(fold), Some(uid)) = (&mut self.fold, view["uid"].as_str()) else { return };
        let was = match body["phase"].as_str() {
            Some("Deleted") => fold[k].remove(uid),
            _ => fold[k].insert(uid.to_owned(), Arc::new(view.clone())),
        };
        self.undo.push((k, uid.to_owned(), was));
    }

    /// Whoever is at a version that two histories share may be in either.
    fn follow_turns(&mut self, at: u64) {
        let chronicle = &self.court.chronicle;
        let newest = chronicle.epoch_at(at);
        for tracks in &mut self.tracks {
            for epoch in 1..=newest {
                let from = |track: &&Track| {
                    let is_shared = || chronicle.is_shared(track.epoch, epoch, track.rv);
                    track.epoch < epoch && track.pending.is_empty() && is_shared()
                };
                let followed = tracks.iter().find(from).map(|track| Track { epoch, ..track.clone() });
                let is_there = |track: &Track| tracks.iter().any(|other| other == track);
                if let Some(track) = followed.filter(|track| !is_there(track)) {
                    tracks.push(track);
                }
            }
        }
    }

    /// An id: everything up to it must have been told, and nothing of it may be missing.
    fn reach(&mut self, id: &str, at: u64) -> Verdict {
        self.follow_turns(at);
        let versions = self.versions(id)?;
        for kind in self.needed() {
            let (k, rv) = (kind as usize, versions[kind as usize].unwrap());
            if let Some(last) = self.id.and_then(|id| id[k]).filter(|last| rv < *last) {
                return Err(format!("{} go back from {last} to {rv}", kind.resource()));
            }
            let chronicle = &self.court.chronicle;
            let fits = |track: &Track| {
                let next = chronicle.next_visible(self.looks, track.epoch, kind, track.rv);
                let is_possible = rv >= track.rv && rv <= chronicle.last(track.epoch);
                track.pending.is_empty() && is_possible && next.is_none_or(|next| next > rv)
            };
            let before = std::mem::take(&mut self.tracks[k]);
            let mut after: Vec<Track> = before.iter().filter(|track| fits(track)).cloned().collect();
            if after.is_empty() {
                let why = |track: &Track| {
                    let next = chronicle.next_visible(self.looks, track.epoch, kind, track.rv);
                    format!("{track:?}, next {next:?}, last {}", chronicle.last(track.epoch))
                };
                let why: Vec<String> = before.iter().map(why).collect();
                return Err(format!("{} cannot be at {rv}: {why:?}", kind.resource()));
            }
            for track in &mut after {
                (track.rv, track.end) = (rv, rv);
            }
            after.dedup();
            self.tracks[k] = after;
        }
        self.found.ids += 1;
        self.saved = self.tracks.clone();
        self.id = Some(versions);
        self.text = Some(id.to_owned());
        self.undo.clear();
        self.folds()
    }

    /// Whether the client's picture is what the store had: G7.
    fn folds(&self) -> Verdict {
        let Some(fold) = &self.fold else { return Ok(()) };
        for kind in self.needed() {
            let k = kind as usize;
            let mine: BTreeMap<&str, &Value> = fold[k].iter().map(|(uid, view)| (uid.as_str(), &**view)).collect();
            let fits = |track: &Track| self.court.chronicle.fold(self.looks, track.epoch, kind, track.rv) == mine;
            if !self.tracks[k].iter().any(fits) {
                return Err(format!("the fold of {} is {mine:?}", kind.resource()));
            }
        }
        Ok(())
    }

    /// The versions in an id, of the resources that are asked for.
    fn versions(&self, id: &str) -> Result<[Option<Rv>; 2], String> {
        let cursor = Cursor::decode(id).ok_or("its id is none")?;
        let needed = Kind::ALL.map(|kind| LOOKS[self.looks].needs(kind));
        if cursor.covers != needed {
            return Err("its id covers something else".to_owned());
        }
        Ok([0, 1].map(|k| needed[k].then_some(cursor.rv[k])))
    }

    fn upstream(&mut self, told: &Told) -> Verdict {
        let resource = told.body["resource"].as_str().ok_or("no resource")?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.resource() == resource).ok_or("no such resource")?;
        let (k, is_down) = (kind as usize, told.name() == "upstream.down");
        let at = moment(told.time.as_deref())?;
        let down = &mut self.open.as_mut().unwrap().down[k];
        if std::mem::replace(down, Some(is_down)) == Some(is_down) {
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

    fn pool(&mut self, told: &Told) -> Verdict {
        if told.id.is_some() || !LOOKS[self.looks].has("pool.depth") {
            return Err("nobody asked for it".to_owned());
        }
        let (workload, counts) = pool_of(&told.body)?;
        if let Some(pools) = &mut self.pools {
            pools.insert(workload, counts);
        }
        Ok(())
    }

    /// Everything has come to rest: the client has all there is.
    fn complete(&self) -> Verdict {
        let open = self.open.as_ref().ok_or("nobody is there")?;
        if !open.begun || open.parts.is_some() {
            return Err("it has not begun".to_owned());
        }
        let chronicle = &self.court.chronicle;
        let newest = chronicle.epoch_at(u64::MAX);
        for kind in self.needed() {
            let done = |track: &Track| {
                let nothing = chronicle.next_visible(self.looks, track.epoch, kind, track.rv).is_none();
                nothing && track.pending.is_empty() && chronicle.is_shared(track.epoch, newest, track.rv)
            };
            if !self.tracks[kind as usize].iter().any(done) {
                return Err(format!("{} are missing after {:?}", kind.resource(), self.tracks[kind as usize]));
            }
        }
        if open.down.contains(&Some(true)) {
            return Err("it is still said to be down".to_owned());
        }
        if let Some(pools) = self.pools.as_ref().filter(|_| LOOKS[self.looks].has("pool.depth")) {
            let mut pools = pools.clone();
            let really = chronicle.pools(newest, Rv::MAX);
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

/// Where versions have gone back, it is asked once more whose they are before a list is taken in (milliseconds).
const HOME: u64 = 100;
/// A silence in which what was missed has surely come (milliseconds).
const SETTLE: u64 = 400;
/// A log holds no more than this, and neither does a replica remember (milliseconds).
const AGE: u64 = 590_000;
/// So many rounds may begin in so long a time (milliseconds).
const BUDGET: usize = 6;
const BUDGET_TIME: u64 = 65_000;
/// Silence of the upstream is said to be one by then (G10; milliseconds).
const HONEST: u64 = 40_000;
/// How long somebody may be kept who is behind the log or ahead of its replica (milliseconds).
const PARKED: u64 = 31_000;
