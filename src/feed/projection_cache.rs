//! A lens in use: renders and frames each step once for all who look the same way, and shares the bytes.
//!
//! What it keeps of them ([`kept`]) is not needed for correctness: whoever reads behind that renders for himself.

mod frame_cache;
mod initial_state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::gauge::Gauge;
use serde::Serialize;

use self::frame_cache::Kept;
pub(super) use self::{
    frame_cache::{FRAMES, Frame},
    initial_state::Initial,
};
use super::{Config, Framing, Reason, Shared, Snapshot, group::Shown};
use crate::{
    event::{
        Cursor, Home, Notice, ResourceVersion, Step, Version, What,
        projection::{Format, Lens},
        render,
    },
    wire::json,
};

/// A lens with the bytes that its readers share.
#[derive(Debug)]
pub struct SharedLens {
    pub(super) lens: Lens,
    pub(super) framing: Framing,
    /// [`Lens::hash`], which stands in each cursor.
    hash: u64,
    kept: Mutex<Kept>,
    /// Held while the current state is encoded, which is done by one at a time.
    building: Mutex<()>,
}

impl SharedLens {
    /// Counts what it keeps in `all`, beside what other lenses do.
    pub(super) fn new(lens: Lens, framing: Framing, all: Gauge) -> SharedLens {
        let hash = lens.hash();
        SharedLens { lens, framing, hash, kept: Mutex::new(Kept::new(all)), building: Mutex::default() }
    }

    /// Lets go of all but so many frames; who is being sent a state still has it.
    pub(super) fn keep_at_most(&self, frames: usize) {
        self.kept().let_go(frames);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        lock(&self.kept)
    }

    /// The cursor of a client of this lens that has been served up to `rv`.
    pub(super) fn cursor(&self, home: Home, rv: [ResourceVersion; 2]) -> String {
        Cursor::new(home, self.hash, self.lens.types.kinds(), rv).encode()
    }

    /// The frames from a position of the log on, until about `max_bytes` of them are there; `None` when the log no
    /// longer reaches back to it.
    pub(super) fn frames(&self, shared: &Shared, home: Home, from: u64, max_bytes: usize) -> Option<Vec<Frame>> {
        if shared.hub.is_some() {
            return self.private_frames(shared, home, from, max_bytes);
        }
        let kept = self.up_to_date(shared, home, from)?;
        let frames = (from >= kept.first()).then(|| take(kept.since(from).cloned(), max_bytes));
        drop(kept);
        shared.lenses.trim();
        frames.or_else(|| self.private_frames(shared, home, from, max_bytes))
    }

    /// How far the log goes from a position, and whether anything on the way concerns those who look through the lens.
    /// Where it cannot be known here, something does.
    pub(super) fn news(&self, shared: &Shared, from: u64) -> (u64, bool) {
        let home = shared.state().ready();
        let kept = home.ok().and_then(|home| self.up_to_date(shared, home, from));
        let news = kept.filter(|kept| from >= kept.first()).map(|kept| {
            let concerns = kept.since(from).any(|frame| !frame.is_silent());
            (kept.end(), concerns)
        });
        shared.lenses.trim();
        news.unwrap_or_else(|| (*shared.head.borrow(), true))
    }

    /// What is shown to all who are at a position, as one piece of at most `max_bytes`.
    pub(super) fn shown(&self, from: u64, max_bytes: usize) -> Option<Shown> {
        let kept = self.kept();
        if from < kept.first() {
            return None;
        }
        let new = kept.since(from);
        if new.clone().any(|frame| frame.own) {
            return None;
        }
        let after = new.clone().last()?.after;
        let bytes: usize = new.clone().map(|frame| frame.bytes.len()).sum();
        let mut told = new.map(|frame| &frame.bytes).filter(|bytes| !bytes.is_empty());
        let bytes = match (told.next()?, told.next()) {
            _ if bytes > max_bytes => return None,
            (only, None) => only.clone(),
            (first, Some(second)) => {
                [first, second].into_iter().chain(told).flatten().copied().collect::<Vec<u8>>().into()
            }
        };
        Some(Shown { from, to: kept.end(), after, bytes })
    }

    /// What is kept, with the newest steps framed, if the log goes on from it or from a position. What is at the position
    /// may no longer be kept.
    fn up_to_date(&self, shared: &Shared, home: Home, from: u64) -> Option<MutexGuard<'_, Kept>> {
        let mut kept = self.kept();
        if from > kept.end() {
            kept.begin(from);
        }
        // Most readers come when another has framed everything: they need not ask for the feed's lock.
        while from >= kept.first() && kept.end() < *shared.head.borrow() {
            let steps = steps(shared, kept.end())?;
            if steps.is_empty() {
                break;
            }
            for (step, to) in steps.iter().zip(kept.end() + 1..) {
                let frame = self.frame(shared, home, step, to, step.after);
                kept.push(frame);
            }
        }
        Some(kept)
    }

    /// Frames for one reader, rendered until `max_bytes` are there.
    fn private_frames(&self, shared: &Shared, home: Home, from: u64, max_bytes: usize) -> Option<Vec<Frame>> {
        let steps = steps(shared, from)?;
        let frames = steps.iter().zip(from + 1..).map(|(step, to)| self.frame(shared, home, step, to, step.after));
        Some(take(frames, max_bytes))
    }

    /// One step as frames, the cursor `at` on the last event that passes; the log goes on at `to`.
    pub(super) fn frame(&self, shared: &Shared, home: Home, step: &Step, to: u64, at: [ResourceVersion; 2]) -> Frame {
        shared.metrics.renders.inc();
        let mut bytes = Vec::new();
        match &step.what {
            What::Version(version) => self.version(&mut bytes, shared, home, step.at_ms, version, at),
            What::Notice(notice) => {
                let time = render::time(step.at_ms);
                if let Some((name, body)) = render::render_notice(notice, &self.lens, &time) {
                    self.put_body(&mut bytes, name, None, body);
                }
            }
        }
        let restart = step.version().is_some_and(|version| version.restart);
        let own = restart || matches!(step.what, What::Notice(Notice::Upstream { .. }));
        Frame { to, bytes: bytes.into(), after: at, restart, own }
    }

    fn version(
        &self,
        out: &mut Vec<u8>,
        shared: &Shared,
        home: Home,
        at_ms: u64,
        version: &Version,
        at: [ResourceVersion; 2],
    ) {
        let full = self.lens.format == Format::Full;
        let time = full.then(|| render::time(at_ms));
        // Each is put when the next one comes: only the last has an `id`.
        let mut last = None;
        render::render(version, &self.lens, |event| {
            if let Some(before) = last.replace(event) {
                self.put_event(out, before, None, time.as_deref());
            }
        });
        match last {
            Some(last) => self.put_event(out, last, full.then(|| self.cursor(home, at)).as_deref(), time.as_deref()),
            // G3: something may have come and gone unseen, and the client is told so.
            None if full && version.since.is_some() && self.lens.types.kinds()[version.kind as usize] => {
                self.heartbeat(out, shared, home, at, true);
            }
            None => {}
        }
    }

    fn put_event<'a>(
        &self,
        out: &mut Vec<u8>,
        mut event: render::Event<'a>,
        id: Option<&'a str>,
        time: Option<&'a str>,
    ) {
        (event.id, event.time) = (id, time);
        let json = json::to_string(&event).expect("events have string keys only");
        self.framing.put(out, event.kind, id, &json);
    }

    /// A heartbeat of a client that has been served up to `at`.
    pub(super) fn heartbeat(
        &self,
        out: &mut Vec<u8>,
        shared: &Shared,
        home: Home,
        at: [ResourceVersion; 2],
        coalesced: bool,
    ) {
        let id = self.cursor(home, at);
        let timestamp = render::time((shared.config.clock)());
        let (upstream, upstream_age_ms) = shared.upstream();
        let body = render::Heartbeat { id: &id, timestamp: &timestamp, upstream, upstream_age_ms, coalesced };
        self.put_body(out, "heartbeat", Some(&id), body);
    }

    /// All pools that the lens shows, as `pool.depth`.
    pub(super) fn pools(&self, out: &mut Vec<u8>, shared: &Shared) {
        let inventory = shared.state().inventory.clone();
        let time = render::time((shared.config.clock)());
        for pool in inventory.pools() {
            if let Some((name, body)) = render::render_notice(&Notice::PoolDepth(pool), &self.lens, &time) {
                self.put_body(out, name, None, body);
            }
        }
    }

    fn put_body(&self, out: &mut Vec<u8>, name: &'static str, id: Option<&str>, body: impl Serialize) {
        let kind = self.framing.name(name);
        let json = json::to_string(&Message { kind, body }).expect("events have string keys only");
        self.framing.put(out, kind, id, &json);
    }

    /// Whether a state at `rv` is not older than `floor` in any resource that the lens needs.
    pub(super) fn reached(&self, rv: [ResourceVersion; 2], floor: [ResourceVersion; 2]) -> bool {
        let kinds = self.lens.types.kinds();
        (0..2).all(|k| !kinds[k] || rv[k] >= floor[k])
    }
}

/// An event that does not carry its type itself.
#[derive(Serialize)]
struct Message<T> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(flatten)]
    body: T,
}

/// Steps fetched from the log at once: bounds what is cloned under its lock.
const STEPS: usize = 256;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn steps(shared: &Shared, from: u64) -> Option<Vec<Arc<Step>>> {
    let state: MutexGuard<'_, _> = shared.state();
    let steps = state.log.range(from, STEPS)?.cloned().collect();
    Some(steps)
}

fn take(frames: impl Iterator<Item = Frame>, max_bytes: usize) -> Vec<Frame> {
    let mut bytes = 0;
    let mut taken = Vec::new();
    for frame in frames {
        if bytes > 0 && bytes + frame.bytes.len() > max_bytes {
            break;
        }
        bytes += frame.bytes.len();
        taken.push(frame);
    }
    taken
}

#[cfg(test)]
mod tests;
