//! One replica of the model: a feed, and two watches that lag, are lost and go back as the model's dice say.

use std::sync::Arc;

use boilerhouse_bridge::{
    event::{Claim, Instance, NamespaceId, Resource, ResourceVersion, View},
    feed::{self, BackfillHandle, BackfillRound, Feed, Writer},
    ring::Limits,
};
use futures::FutureExt;

use super::history::ObjectHistory;
use crate::support::rng::SeededRng;

/// One bridge: how far its two watches have come, and its feed.
pub(super) struct Replica {
    writer: Writer,
    pub(super) feed: Feed,
    past: BackfillHandle,
    /// A backfill under way.
    backfill: Option<BackfillRound>,
    pub(super) at: [ResourceVersion; 2],
}

impl Replica {
    pub(super) fn start(history: &ObjectHistory, items: usize) -> Replica {
        let limits = Limits { items, ..Limits::default() };
        let (mut writer, feed) =
            Feed::new(feed::Config { log: limits, wall_clock_ms: || 0, ..feed::Config::default() });
        writer.set_namespace(NamespaceId::from_uid("home"));
        let at = history.rv();
        for kind in Resource::ALL {
            writer.replace(kind, history.list(kind, at).into_values().collect(), at);
        }
        let past = writer.backfill_handle();
        Replica { writer, feed, past, backfill: None, at: [at; 2] }
    }

    /// Delivers the next event of one resource's watch, if there is one.
    pub(super) fn watch(&mut self, history: &ObjectHistory, kind: Resource) {
        let k = kind as usize;
        let Some(next) = history.of(kind, self.at[k], ResourceVersion::MAX).next() else { return };
        match &next.new {
            Some(view) => self.writer.upsert(view.clone()),
            None => self.writer.remove(kind, &next.name, &next.uid, next.rv),
        }
        self.at[k] = next.rv;
    }

    /// Does the next part of a backfill, if one is wanted or under way. True when one has ended.
    pub(super) fn backfill(&mut self, history: &ObjectHistory, rng: &mut SeededRng) -> bool {
        let Some(mut backfill) = self.backfill.take() else {
            if self.past.wait_for_request().now_or_never().is_some() {
                self.backfill = Some(self.past.start_round());
            }
            return false;
        };
        for gap in &mut backfill.gaps {
            let (kind, from, to) = (gap.resource(), gap.from(), gap.to());
            gap.list(history.list(kind, from).into_values().collect());
            let missed: Vec<_> = history.of(kind, from, to).collect();
            // Its watch may end early, or be too late for its history.
            let whole = rng.below(4) != 0;
            let some = if whole { missed.len() } else { rng.below(missed.len() as u64 + 1) as usize };
            for change in missed.into_iter().take(some) {
                match (&change.new, &change.old) {
                    (Some(view), _) => gap.upsert(view.clone()),
                    (None, Some(old)) => gap.remove(&at_version(old, change.rv)),
                    (None, None) => unreachable!("nothing happened"),
                }
            }
            gap.close(whole);
        }
        self.past.complete_round(backfill);
        true
    }

    /// A bookmark: nothing of this resource between the last event and now.
    pub(super) fn bookmark(&mut self, history: &ObjectHistory, kind: Resource) {
        let k = kind as usize;
        if history.of(kind, self.at[k], ResourceVersion::MAX).next().is_none() {
            self.at[k] = history.rv();
            self.writer.bookmark(kind, self.at[k]);
        }
    }

    /// The watch was lost and its history with it: a new list.
    pub(super) fn relist(&mut self, history: &ObjectHistory, kind: Resource) {
        self.at[kind as usize] = history.rv();
        self.writer.replace(kind, history.list(kind, history.rv()).into_values().collect(), history.rv());
    }
}

/// A view as a watch's DELETED shows it.
fn at_version(view: &View, rv: ResourceVersion) -> View {
    match view {
        View::Instance(instance) => {
            View::Instance(Arc::new(Instance { resource_version: rv, ..Instance::clone(instance) }))
        }
        View::Claim(claim) => View::Claim(Arc::new(Claim { resource_version: rv, ..Claim::clone(claim) })),
    }
}
