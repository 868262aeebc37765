//! Resumes: where in the log the holder of a cursor goes on, or why nowhere (protocol.md section 3).

use std::time::Duration;

use tokio::time::Instant;

use super::{Reason, Refused, Shared, needs, state::State};
use crate::event::{Cursor, Home, ResourceVersion, Step, projection::Lens};

/// The first position that the cursor does not cover.
pub(super) fn place(state: &State, home: Home, lens: &Lens, cursor: &Cursor) -> Result<u64, Refused> {
    // What was before another history began may be of either, whatever the numbers are.
    if cursor.home != home.hash || needs(lens).any(|kind| cursor.rv[kind as usize] < state.origin[kind as usize]) {
        return Err(Refused::Foreign);
    }
    let covered = needs(lens).all(|kind| cursor.covers[kind as usize]);
    if cursor.lens != lens.hash() || !covered {
        return Err(Refused::OtherLens);
    }
    position(state, lens, cursor.rv)
}

fn position(state: &State, lens: &Lens, rv: [ResourceVersion; 2]) -> Result<u64, Refused> {
    if needs(lens).any(|kind| rv[kind as usize] < state.base[kind as usize]) {
        return Err(Refused::Below);
    }
    let mut start = state.log.end();
    for kind in needs(lens) {
        let k = kind as usize;
        let first = state.log.partition_point(|step| step.after[k] <= rv[k]);
        if state.log.range(first, 1).into_iter().flatten().any(|step| straddles(step, rv)) {
            return Err(Refused::Between);
        }
        start = start.min(first);
    }
    Ok(start)
}

/// Whether a client at these versions is in the middle of a difference, which tells it nothing true.
pub(super) fn straddles(step: &Step, at: [ResourceVersion; 2]) -> bool {
    step.version().is_some_and(|version| {
        let at = at[version.kind as usize];
        version.since.is_some_and(|since| since < at) && at < version.rv
    })
}

/// A client whose cursor the log does not reach back to, while it may be extended.
#[derive(Debug)]
pub(super) struct Parked {
    round: u64,
    history: u64,
    pub(super) limit: Instant,
}

/// What became of it.
pub(super) enum Looked {
    /// Nothing yet.
    Not,
    /// The log reaches back: here it goes on.
    At(u64),
    /// It is to be told the current state.
    Never(Reason),
}

impl Parked {
    pub(super) fn new(state: &mut State, lens: &Lens, rv: [ResourceVersion; 2], patience: Duration) -> Parked {
        let mut below = [ResourceVersion::MAX; 2];
        for kind in needs(lens) {
            below[kind as usize] = rv[kind as usize];
        }
        Parked { round: state.wanted.ask_history(below), history: state.history, limit: Instant::now() + patience }
    }

    pub(super) fn look(&self, shared: &Shared, lens: &Lens, rv: [ResourceVersion; 2]) -> Looked {
        let state = shared.state();
        if state.history != self.history {
            return Looked::Never(Reason::Foreign);
        }
        if !state.wanted.history_is_told(self.round) && Instant::now() < self.limit {
            return Looked::Not;
        }
        position(&state, lens, rv).map_or(Looked::Never(Reason::Expired), Looked::At)
    }
}
