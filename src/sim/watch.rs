//! One watch: a stream of lines that its client pulls, so that it needs no task and follows tokio's clock.
//!
//! It reads the store's history from its own position. Selectors work as in the API server: an object that comes into
//! the selection is ADDED, one that leaves it is DELETED with its previous content and the event's resourceVersion.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, Stream};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::fault::{ConnectionEnd, WatchFault};
use super::handle::{Sim, SimState};
use super::list_options::{ListOptions, Selector};
use super::path::ResourcePath;
use super::resource::ApiResource;
use super::status::StatusError;
use super::store::{Change, Revision};

/// An open watch.
pub(super) struct Watch {
    guard: OpenWatchGuard,
    changed: watch::Receiver<()>,
    target: ResourcePath,
    selector: Selector,
    /// Everything up to here has been told or passed over.
    position: Revision,
    /// Bookmarks come only once the version has moved past this.
    start_version: Revision,
    /// The state at the beginning, where the watch asked for it.
    initial: VecDeque<Arc<Value>>,
    fault: Option<(usize, WatchFault)>,
    deadline: Instant,
    bookmark_at: Option<Instant>,
    cuts: u64,
    stalls: u64,
    ended: bool,
}

/// What a watch does next.
enum WatchStep {
    Line(Bytes),
    Wait(Instant),
    Silence,
    Reset,
    End,
}

/// What the store has for a watch, to be written down outside the lock.
enum PendingEvent {
    Event(&'static str, Arc<Value>),
    Left(Arc<Value>, Revision),
    Bookmark(Revision),
}

/// Counts a watch as open for as long as it lives.
struct OpenWatchGuard {
    sim: Sim,
    resource: ApiResource,
}

impl Drop for OpenWatchGuard {
    fn drop(&mut self) {
        if let Some(open) = self.sim.lock().metrics.open_watches.get_mut(&self.resource) {
            *open -= 1;
        }
    }
}

impl Watch {
    /// Opens a watch, and counts it. `state` is the locked state of `sim`.
    pub(super) fn open(
        sim: &Sim,
        state: &mut SimState,
        target: &ResourcePath,
        options: &ListOptions,
        fault: Option<(usize, WatchFault)>,
    ) -> Self {
        let (now, config) = (Instant::now(), sim.config());
        let asked = options.timeout_seconds.filter(|seconds| *seconds > 0).map(std::time::Duration::from_secs);
        let timeout = asked.unwrap_or(config.watch_timeout);
        let wants_bookmarks = options.bookmarks && timeout >= config.bookmark_min_watch;
        let first_bookmark = config.bookmark_interval.min(timeout.saturating_sub(config.bookmark_lead));
        let asked_version = options.version.filter(|version| *version > 0);
        let initial = match asked_version {
            Some(_) => VecDeque::new(),
            None => state.store.list(target.resource, target.namespace.as_deref()).into(),
        };
        let position = asked_version.unwrap_or(state.store.revision());
        *state.metrics.open_watches.entry(target.resource).or_default() += 1;
        Self {
            guard: OpenWatchGuard { sim: sim.clone(), resource: target.resource },
            changed: sim.changed(),
            target: target.clone(),
            selector: options.selector.clone(),
            position,
            start_version: position,
            initial: initial.into_iter().filter(|object| options.selector.matches(object)).collect(),
            fault,
            deadline: now + timeout,
            bookmark_at: wants_bookmarks.then(|| now + first_bookmark),
            cuts: state.cuts.0,
            stalls: state.stalls,
            ended: false,
        }
    }

    /// The lines of the watch, until it ends.
    pub(super) fn lines(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        stream::unfold(self, |mut watch| async move { watch.next().await.map(|line| (line, watch)) })
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            match self.step(Instant::now()) {
                WatchStep::Line(line) => return Some(Ok(line)),
                WatchStep::Wait(until) => {
                    tokio::select! {
                        _ = self.changed.changed() => {}
                        () = sleep_until(until) => {}
                    }
                }
                WatchStep::Silence => std::future::pending().await,
                WatchStep::Reset => {
                    self.ended = true;
                    return Some(Err(io::Error::new(io::ErrorKind::ConnectionReset, "connection reset by peer")));
                }
                WatchStep::End => return None,
            }
        }
    }

    fn step(&mut self, now: Instant) -> WatchStep {
        if self.ended {
            return WatchStep::End;
        }
        match self.fault {
            Some((0, WatchFault::Stall)) => return WatchStep::Silence,
            Some((0, WatchFault::Cut(ConnectionEnd::Eof))) => return WatchStep::End,
            Some((0, WatchFault::Cut(ConnectionEnd::Reset))) => return WatchStep::Reset,
            Some((0, WatchFault::Expired)) => {
                self.ended = true;
                let expired = StatusError::watch_expired(self.position, self.position + 1);
                return WatchStep::Line(line("ERROR", &expired.to_json()));
            }
            _ => {}
        }
        let sim = self.guard.sim.clone();
        let pending = {
            let state = sim.lock();
            // Silence first: what a black hole swallowed does not see the reset either.
            if state.stalls != self.stalls {
                return WatchStep::Silence;
            }
            match state.cuts {
                (cuts, ConnectionEnd::Eof) if cuts != self.cuts => return WatchStep::End,
                (cuts, ConnectionEnd::Reset) if cuts != self.cuts => return WatchStep::Reset,
                // It is too slow: the API server ends such a watch, too, rather than skip a change.
                _ if self.position < state.store.discarded_up_to() => return WatchStep::End,
                _ => self.next_pending(&state, now),
            }
        };
        match pending {
            Some(PendingEvent::Bookmark(revision)) => WatchStep::Line(line("BOOKMARK", &self.bookmark(revision))),
            Some(PendingEvent::Event(kind, object)) => self.emit(&line(kind, &object)),
            Some(PendingEvent::Left(object, revision)) => {
                let mut object = (*object).clone();
                object["metadata"]["resourceVersion"] = json!(revision.to_string());
                self.emit(&line("DELETED", &object))
            }
            None if now >= self.deadline => WatchStep::End,
            None => WatchStep::Wait(self.bookmark_at.map_or(self.deadline, |at| at.min(self.deadline))),
        }
    }

    /// The next thing to tell, in order: the initial state, the changes since, a bookmark that is due.
    fn next_pending(&mut self, state: &SimState, now: Instant) -> Option<PendingEvent> {
        if let Some(object) = self.initial.pop_front() {
            return Some(PendingEvent::Event("ADDED", object));
        }
        for change in state.store.since(self.position) {
            self.position = change.revision;
            if let Some(pending) = self.classify(change) {
                return Some(pending);
            }
        }
        if self.bookmark_at.is_some_and(|at| at <= now) {
            self.bookmark_at = self.next_bookmark(now);
            let revision = state.store.revision();
            return (revision > self.start_version).then_some(PendingEvent::Bookmark(revision));
        }
        None
    }

    fn classify(&self, change: &Change) -> Option<PendingEvent> {
        let here = |namespace: &String| *namespace == change.namespace;
        if change.resource != self.target.resource || !self.target.namespace.as_ref().is_none_or(here) {
            return None;
        }
        let before = change.before.as_ref().filter(|object| self.selector.matches(object));
        let after = change.after.as_ref().filter(|object| self.selector.matches(object));
        match (before, after) {
            (None, None) => None,
            (None, Some(after)) => Some(PendingEvent::Event("ADDED", after.clone())),
            (Some(_), Some(after)) => Some(PendingEvent::Event("MODIFIED", after.clone())),
            (Some(before), None) => Some(PendingEvent::Left(before.clone(), change.revision)),
        }
    }

    /// A line on its way to the client, where a fault may meet it.
    fn emit(&mut self, line: &Bytes) -> WatchStep {
        match &mut self.fault {
            Some((0, WatchFault::HalfLine)) => {
                self.ended = true;
                WatchStep::Line(line.slice(..line.len() / 2))
            }
            Some((0, WatchFault::Garbage)) => {
                self.fault = None;
                WatchStep::Line(Bytes::from_static(b"{\"type\":\"MODIFIED\",\"object\":<html>}\n"))
            }
            Some((after, _)) => {
                *after = after.saturating_sub(1);
                WatchStep::Line(line.clone())
            }
            None => WatchStep::Line(line.clone()),
        }
    }

    fn next_bookmark(&self, now: Instant) -> Option<Instant> {
        let config = self.guard.sim.config();
        let last = self.deadline.checked_sub(config.bookmark_lead)?;
        (last > now).then(|| last.min(now + config.bookmark_interval))
    }

    fn bookmark(&self, revision: Revision) -> Value {
        let resource = self.target.resource;
        let metadata = json!({"resourceVersion": revision.to_string()});
        let mut object = json!({"kind": resource.kind(), "apiVersion": resource.api_version(), "metadata": metadata});
        if resource == ApiResource::Pods {
            object["spec"] = json!({"containers": null});
            object["status"] = json!({});
        }
        object
    }
}

/// A watch that is told at once that its version is too old, or any other failure.
pub(super) fn error_line(error: &StatusError) -> Bytes {
    line("ERROR", &error.to_json())
}

fn line(event_type: &'static str, object: &Value) -> Bytes {
    #[derive(Serialize)]
    struct Line<'a> {
        r#type: &'static str,
        object: &'a Value,
    }
    // Values have string keys only, so that writing them cannot fail.
    let mut line = serde_json::to_vec(&Line { r#type: event_type, object }).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Empty};
    use tower::ServiceExt;

    use super::*;
    use crate::sim::SimConfig;

    #[tokio::test]
    async fn watch_behind_forgotten_history_ends_without_skipping_a_change() {
        let sim = Sim::new(SimConfig::default());
        let write = |name: &str| {
            let pod = json!({"metadata": {"name": name, "namespace": "n"}});
            sim.store(|store| store.create(ApiResource::Pods, pod).map(drop)).unwrap();
        };
        sim.store(|store| store.create(ApiResource::Namespaces, json!({"metadata": {"name": "n"}})).map(drop)).unwrap();
        let from = sim.store(|store| store.revision());
        let request = format!("/api/v1/namespaces/n/pods?watch=true&resourceVersion={from}");
        let request = http::Request::get(request).body(Empty::<Bytes>::new()).unwrap();
        let mut watch = sim.service().oneshot(request).await.unwrap().into_body();
        write("a");
        let line = watch.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(line.starts_with(b"{\"type\":\"ADDED\""), "{line:?}");
        write("b");
        write("c");
        sim.store(|store| store.discard_before(from + 2));
        assert!(watch.frame().await.is_none(), "c must not come without b");
    }
}
