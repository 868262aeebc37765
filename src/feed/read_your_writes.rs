//! What somebody has been told by another feed of the same upstream: no GET may be older (protocol.md section 2).
//!
//! Versions do for what a watch says. A deletion that a list showed has no version of its own, so its uid is kept until
//! the object is gone here, too, or is known here from later than the list. How much later is known as well as kube-runtime
//! lets us: it hides the list's version, so the newest version among the objects stands for it.

use std::collections::VecDeque;

use super::{inventory::Inventory, state::State};
use crate::event::{Resource, ResourceVersion, Step, View};

/// Deletions that are kept. They matter until the hub knows of them, which is a moment, and only after a list.
const GONE: usize = 1024;

#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    rv: [ResourceVersion; 2],
    gone: VecDeque<Gone>,
}

/// An object that a list no longer showed.
#[derive(Clone, Debug)]
struct Gone {
    kind: Resource,
    name: String,
    uid: String,
    /// The list is not older than this.
    at: ResourceVersion,
}

impl Gone {
    fn of(view: &View, at: ResourceVersion) -> Gone {
        Gone { kind: view.kind(), name: view.name().to_owned(), uid: view.uid().to_owned(), at }
    }

    /// Whether an inventory still shows it as it was before it went. A later version has come back, as a Pod does that
    /// loses its label and regains it.
    fn is_in(&self, inventory: &Inventory) -> bool {
        inventory.get(self.kind, &self.name).is_some_and(|view| view.uid() == self.uid && view.rv() <= self.at)
    }
}

impl Told {
    /// Notes what a change of a single reader's feed is about to tell him. `single` is that feed's state after it,
    /// `newest` and `synced` what they were before, `hub` the inventory that GETs are answered from.
    pub(super) fn note(
        &mut self,
        hub: &Inventory,
        single: &State,
        (newest, synced): ([ResourceVersion; 2], [bool; 2]),
        step: Option<&Step>,
    ) {
        for kind in Resource::ALL {
            let k = kind as usize;
            if single.newest[k] != newest[k] {
                self.rv[k] = self.rv[k].max(single.newest[k]);
            }
            if single.synced[k] && !synced[k] {
                // A first list tells by what it lacks: nothing will say later that those are gone.
                let at = single.newest[k];
                let lacks = |view: &View| single.inventory.get(kind, view.name()).is_none_or(|v| v.uid() != view.uid());
                for view in hub.views().filter(|view| view.kind() == kind && view.rv() <= at && lacks(view)) {
                    self.push(Gone::of(&view, at));
                }
            }
        }
        if let Some(version) = step.and_then(Step::version).filter(|version| version.since.is_some()) {
            for change in version.changes.iter().filter(|change| change.new.is_none()) {
                if let Some(view) = change.view() {
                    self.push(Gone::of(view, version.rv));
                }
            }
        }
    }

    fn push(&mut self, gone: Gone) {
        self.gone.truncate(GONE - 1);
        self.gone.push_front(gone);
    }

    /// Whether a state holds everything that had been told by the time this was taken. `now` is what has been told since:
    /// less than this where another history has begun.
    pub(super) fn is_known(&self, now: &Told, newest: [ResourceVersion; 2], inventory: &Inventory) -> bool {
        (0..2).all(|k| self.rv[k].min(now.rv[k]) <= newest[k]) && !self.gone.iter().any(|gone| gone.is_in(inventory))
    }

    /// Forgets the deletions that the hub knows of: it has come as far as the list, and lacks the object.
    pub(super) fn prune(&mut self, newest: [ResourceVersion; 2], inventory: &Inventory) {
        self.gone.retain(|gone| newest[gone.kind as usize] < gone.at || gone.is_in(inventory));
    }

    /// Another history of one resource has begun: its versions mean something else.
    pub(super) fn forget(&mut self, kind: Resource) {
        self.rv[kind as usize] = 0;
        self.gone.retain(|gone| gone.kind != kind);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::{
        event::{Home, Instance, Resource, ResourceVersion, View},
        feed::{Config, Feed, Refused, Writer},
    };

    fn pod(name: &str, rv: ResourceVersion) -> View {
        View::Instance(Arc::new(Instance { name: name.into(), uid: format!("u-{name}"), rv, ..Instance::default() }))
    }

    /// A hub with these pods, at 5.
    fn hub(pods: Vec<View>) -> (Writer, Feed) {
        let (mut writer, feed) =
            Feed::new(Config { told_wait: std::time::Duration::from_millis(1), ..Config::default() });
        writer.home(Home::of("home"));
        writer.replace(Resource::Instance, pods, 5);
        writer.replace(Resource::Claim, Vec::new(), 5);
        (writer, feed)
    }

    async fn get(feed: &Feed) -> Result<usize, Refused> {
        feed.snapshot().await.map(|snapshot| snapshot.inventory.instances.len())
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_list_tells_by_what_it_lacks() {
        let (mut writer, feed) = hub(vec![pod("a", 3), pod("b", 4)]);
        let (mut own, _single) = feed.single();
        own.replace(Resource::Instance, vec![pod("b", 4)], 4);
        assert_eq!(get(&feed).await, Err(Refused::NotReady), "a is gone, and the hub does not know yet");
        writer.remove(Resource::Instance, "a", "u-a", 6);
        assert_eq!(get(&feed).await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_back_is_no_longer_gone() {
        let (mut writer, feed) = hub(vec![pod("a", 3), pod("b", 5)]);
        let (mut own, _single) = feed.single();
        own.replace(Resource::Instance, vec![pod("a", 3), pod("b", 5)], 5);
        // A list made while the Pod had lost its label; then the label is back, for the hub and for the own watcher.
        own.replace(Resource::Instance, vec![pod("b", 5)], 5);
        assert_eq!(get(&feed).await, Err(Refused::NotReady));
        writer.upsert(pod("a", 7));
        own.upsert(pod("a", 7));
        assert_eq!(get(&feed).await, Ok(2));
        assert!(feed.shared.state().told.gone.is_empty(), "and is not kept");
    }

    #[tokio::test(start_paused = true)]
    async fn versions_of_a_history_that_has_ended_count_for_nothing() {
        let (mut writer, feed) = hub(vec![pod("a", 3)]);
        let (mut own, _single) = feed.single();
        own.replace(Resource::Instance, vec![pod("a", 900)], 900);
        assert_eq!(get(&feed).await, Err(Refused::NotReady));
        writer.bookmark(Resource::Instance, 1000);
        assert_eq!(get(&feed).await, Ok(1));
        writer.replace(Resource::Instance, vec![pod("a", 3)], 500);
        // Still of the old history, and late.
        own.upsert(pod("a", 1001));
        assert_eq!(get(&feed).await, Ok(1));
        own.replace(Resource::Instance, vec![pod("a", 501)], 501);
        assert_eq!(get(&feed).await, Err(Refused::NotReady), "the new history counts again");
    }
}
