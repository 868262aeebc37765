//! The past: what readers want to know that the log does not hold, and how a source tells it (architecture.md, the feed's
//! contract, 3 and 5).
//!
//! Readers ask and wait, at no cost; whoever asks before a round begins shares it. A source takes a round, asks the API
//! server, and puts what it finds in front of the log, for all. Rounds are counted, so that a reader knows which answer
//! is his. What cannot be shown to meet the log's start ends in a difference that says since when.

use std::{pin::pin, sync::Arc};

use super::{Shared, inventory::Inventory, state::State};
use crate::event::{Resource, ResourceVersion, Step, Version, View, What};

/// Who waits for what, and what came of it.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// The oldest versions asked for, while somebody waits for a round to begin.
    below: Option<[ResourceVersion; 2]>,
    backfills: Rounds,
    /// Somebody waits for a confirmation to begin.
    unsure: bool,
    confirms: Rounds,
    /// The newest versions that the API server is known to have had, in this history.
    confirmed: [ResourceVersion; 2],
}

#[derive(Debug, Default)]
struct Rounds {
    begun: u64,
    ended: u64,
}

impl Wanted {
    /// Asks for the time after `rv`. Returns the round that will tell it.
    pub(super) fn ask_history(&mut self, rv: [ResourceVersion; 2]) -> u64 {
        self.below = Some(self.below.map_or(rv, |[pods, claims]| [pods.min(rv[0]), claims.min(rv[1])]));
        self.backfills.begun + 1
    }

    pub(super) fn history_is_told(&self, round: u64) -> bool {
        self.backfills.ended >= round
    }

    /// Asks which versions there are. Returns the round that will tell it.
    pub(super) fn ask_versions(&mut self) -> u64 {
        self.unsure = true;
        self.confirms.begun + 1
    }

    /// The versions that there are, once that round has told them.
    pub(super) fn versions(&self, round: u64) -> Option<[ResourceVersion; 2]> {
        (self.confirms.ended >= round).then_some(self.confirmed)
    }

    pub(super) fn confirmed(&self) -> [ResourceVersion; 2] {
        self.confirmed
    }

    /// Versions of another history say nothing.
    pub(super) fn forget(&mut self) {
        self.confirmed = [0; 2];
    }
}

/// The source's hand for the past. The writer's is for what is new: neither is in the other's way.
#[derive(Debug)]
pub struct Past {
    shared: Arc<Shared>,
}

/// What lies between the oldest cursor asked for and the log's start.
#[derive(Debug)]
pub struct Backfill {
    /// One for each resource of which something is missing.
    pub gaps: Vec<Gap>,
    first: u64,
    history: u64,
    base: [ResourceVersion; 2],
}

/// The time of one resource that the log does not hold.
#[derive(Debug)]
pub struct Gap {
    kind: Resource,
    from: ResourceVersion,
    to: ResourceVersion,
    /// The state at `to`.
    end: Arc<Inventory>,
    state: Inventory,
    at: ResourceVersion,
    versions: Vec<Version>,
}

impl Past {
    pub(super) fn new(shared: Arc<Shared>) -> Past {
        Past { shared }
    }

    /// Resolves when somebody waits for history.
    pub async fn wanted(&self) {
        self.until(|wanted| wanted.below.is_some()).await;
    }

    /// Resolves when somebody has a cursor ahead of this replica, and it should be found out whether there is such a
    /// version.
    pub async fn unsure(&self) {
        self.until(|wanted| wanted.unsure).await;
    }

    async fn until(&self, holds: impl Fn(&Wanted) -> bool) {
        let mut asked = pin!(self.shared.asked.notified());
        loop {
            // Registered before looking, so that a question in between is not missed.
            asked.as_mut().enable();
            if holds(&self.shared.state().wanted) {
                return;
            }
            asked.as_mut().await;
            asked.set(self.shared.asked.notified());
        }
    }

    /// Begins a round: whoever asks from now on waits for the next one.
    #[must_use]
    pub fn begin(&self) -> Backfill {
        let mut state = self.shared.state();
        state.wanted.backfills.begun += 1;
        let below = state.wanted.below.take().unwrap_or(state.base);
        let (base, first, history) = (state.base, state.log.first(), state.history);
        let mut end = state.inventory.clone();
        let steps: Vec<Arc<Step>> = state.log.range(first, usize::MAX).into_iter().flatten().cloned().collect();
        drop(state);
        let state = Arc::make_mut(&mut end);
        for change in steps.iter().rev().filter_map(|step| step.version()).flat_map(|v| v.changes.iter().rev()) {
            state.undo(change);
        }
        let missing = Resource::ALL.into_iter().filter(|kind| below[*kind as usize] < base[*kind as usize]);
        let gap = |kind| Gap {
            kind,
            from: below[kind as usize],
            to: base[kind as usize],
            end: end.clone(),
            state: Inventory::default(),
            at: below[kind as usize],
            versions: Vec::new(),
        };
        Backfill { gaps: missing.map(gap).collect(), first, history, base }
    }

    /// Ends the round with what was found, the gaps all closed.
    pub fn fill(&self, backfill: Backfill) {
        let Backfill { gaps, first, history, base } = backfill;
        let mut from = base;
        let mut versions = Vec::new();
        for gap in gaps {
            from[gap.kind as usize] = gap.from;
            versions.extend(gap.versions);
        }
        // Any order between the two resources is true; that of the numbers is nearest to what happened.
        versions.sort_by_key(|version| version.rv);
        self.shared.change(|state, now_ms| {
            state.wanted.backfills.ended += 1;
            if state.log.first() != first || state.history != history {
                return;
            }
            let mut after = from;
            let step = |version: Version| {
                after[version.kind as usize] = version.rv;
                let step = Step { after, at_ms: now_ms, what: What::Version(version) };
                let cost = step.cost();
                (Arc::new(step), cost)
            };
            if state.log.prepend(versions.into_iter().map(step).collect(), now_ms) {
                state.base = from;
                self.shared.metrics.backfills.inc();
            }
        });
    }

    /// Ends the round without having found anything.
    pub fn give_up(&self) {
        self.shared.change(|state, _| state.wanted.backfills.ended += 1);
    }

    /// Begins a confirmation: whoever asks from now on waits for the next one.
    pub fn begin_confirm(&self) {
        let wanted = &mut self.shared.state().wanted;
        wanted.unsure = false;
        wanted.confirms.begun += 1;
    }

    /// Ends a confirmation with the versions that the API server has; `None` when it is not to be asked.
    pub fn confirm(&self, versions: Option<[ResourceVersion; 2]>) {
        self.shared.change(|state, _| {
            let State { wanted, newest, .. } = state;
            wanted.confirms.ended += 1;
            wanted.confirmed = versions.unwrap_or(*newest);
        });
    }
}

impl Gap {
    /// The resource.
    #[must_use]
    pub fn kind(&self) -> Resource {
        self.kind
    }

    /// The version after which something is missing.
    #[must_use]
    pub fn from(&self) -> ResourceVersion {
        self.from
    }

    /// The version up to which, and including which, it is missing.
    #[must_use]
    pub fn to(&self) -> ResourceVersion {
        self.to
    }

    /// Takes the state at [`Gap::from`].
    pub fn list(&mut self, views: Vec<View>) {
        self.state = Inventory::default();
        self.state.replace(self.kind, views);
    }

    /// Takes an object that was added or modified. Versions come in order, none after [`Gap::to`].
    pub fn upsert(&mut self, view: View) {
        let rv = view.rv();
        let changes = self.state.upsert(view);
        if !changes.is_empty() {
            let since = (changes.len() > 1).then_some(self.at);
            self.push(rv, changes, since);
        }
    }

    /// Takes an object that was deleted, at its version.
    pub fn remove(&mut self, view: &View) {
        if let Some(change) = self.state.remove(self.kind, view.name(), view.uid()) {
            self.push(view.rv(), vec![change], None);
        }
    }

    /// Steps taken so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.versions.len()
    }

    /// Whether no step has been taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.versions.is_empty()
    }

    /// Ends it: with a difference, unless what has come is `whole` and leads to the state at the log's start.
    pub fn close(&mut self, whole: bool) {
        let meets = match self.kind {
            Resource::Instance => self.state.instances == self.end.instances,
            Resource::Claim => self.state.claims == self.end.claims,
        };
        if whole && meets {
            return;
        }
        let end = self.end.views().filter(|view| view.kind() == self.kind).collect();
        let changes = self.state.replace(self.kind, end);
        let (to, since) = (self.to, self.at);
        self.push(to, changes, Some(since));
    }

    fn push(&mut self, rv: ResourceVersion, changes: Vec<crate::event::Change>, since: Option<ResourceVersion>) {
        self.at = rv;
        let version = Version { kind: self.kind, rv, changes: changes.into(), since, restart: false };
        self.versions.push(version);
    }
}
