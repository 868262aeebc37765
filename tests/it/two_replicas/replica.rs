//! One replica of the model: a feed, and two watches that lag, are lost and go back as the model's dice say.

use std::sync::Arc;

use boilerhouse_bridge::{
    event::{Claim, Home, Instance, Resource, ResourceVersion, View},
    feed::{self, Backfill, Feed, Past, Writer},
    ring::Limits,
};
use futures::FutureExt;

use super::world::World;
use crate::support::dice::Dice;

/// One bridge: how far its two watches have come, and its feed.
pub(super) struct Replica {
    writer: Writer,
    pub(super) feed: Feed,
    past: Past,
    /// A backfill under way.
    backfill: Option<Backfill>,
    pub(super) at: [ResourceVersion; 2],
}

impl Replica {
    pub(super) fn start(world: &World, items: usize) -> Replica {
        let limits = Limits { items, ..Limits::default() };
        let (mut writer, feed) = Feed::new(feed::Config { log: limits, clock: || 0, ..feed::Config::default() });
        writer.home(Home::of("home"));
        let at = world.rv();
        for kind in Resource::ALL {
            writer.replace(kind, world.list(kind, at).into_values().collect(), at);
        }
        let past = writer.past();
        Replica { writer, feed, past, backfill: None, at: [at; 2] }
    }

    /// Delivers the next event of one resource's watch, if there is one.
    pub(super) fn watch(&mut self, world: &World, kind: Resource) {
        let k = kind as usize;
        let Some(next) = world.of(kind, self.at[k], ResourceVersion::MAX).next() else { return };
        match &next.new {
            Some(view) => self.writer.upsert(view.clone()),
            None => self.writer.remove(kind, &next.name, &next.uid, next.rv),
        }
        self.at[k] = next.rv;
    }

    /// Does the next part of a backfill, if one is wanted or under way. True when one has ended.
    pub(super) fn backfill(&mut self, world: &World, dice: &mut Dice) -> bool {
        let Some(mut backfill) = self.backfill.take() else {
            if self.past.wanted().now_or_never().is_some() {
                self.backfill = Some(self.past.begin());
            }
            return false;
        };
        for gap in &mut backfill.gaps {
            let (kind, from, to) = (gap.kind(), gap.from(), gap.to());
            gap.list(world.list(kind, from).into_values().collect());
            let missed: Vec<_> = world.of(kind, from, to).collect();
            // Its watch may end early, or be too late for its history.
            let whole = dice.roll(4) != 0;
            let some = if whole { missed.len() } else { dice.roll(missed.len() as u64 + 1) as usize };
            for happening in missed.into_iter().take(some) {
                match (&happening.new, &happening.old) {
                    (Some(view), _) => gap.upsert(view.clone()),
                    (None, Some(old)) => gap.remove(&at_version(old, happening.rv)),
                    (None, None) => unreachable!("nothing happened"),
                }
            }
            gap.close(whole);
        }
        self.past.fill(backfill);
        true
    }

    /// A bookmark: nothing of this resource between the last event and now.
    pub(super) fn bookmark(&mut self, world: &World, kind: Resource) {
        let k = kind as usize;
        if world.of(kind, self.at[k], ResourceVersion::MAX).next().is_none() {
            self.at[k] = world.rv();
            self.writer.bookmark(kind, self.at[k]);
        }
    }

    /// The watch was lost and its history with it: a new list.
    pub(super) fn relist(&mut self, world: &World, kind: Resource) {
        self.at[kind as usize] = world.rv();
        self.writer.replace(kind, world.list(kind, world.rv()).into_values().collect(), world.rv());
    }
}

/// A view as a watch's DELETED shows it.
fn at_version(view: &View, rv: ResourceVersion) -> View {
    match view {
        View::Instance(instance) => View::Instance(Arc::new(Instance { rv, ..Instance::clone(instance) })),
        View::Claim(claim) => View::Claim(Arc::new(Claim { rv, ..Claim::clone(claim) })),
    }
}
