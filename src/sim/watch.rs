//! One watch: a stream of lines that the client polls. It needs no task and follows tokio's clock.
//!
//! Owns: its position in the history of the store.
//!
//! Guarantees: selectors work as in the API server. An object that starts to match is ADDED. An object that no longer
//! matches is DELETED, with its previous content and the resourceVersion of the change.

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
    path: ResourcePath,
    selector: Selector,
    /// All changes up to this revision are sent, or do not match.
    position: Revision,
    /// A bookmark is sent only for a revision after this one.
    start_version: Revision,
    /// The objects of the initial state, if the watch started without a version.
    initial: VecDeque<Arc<Value>>,
    fault: Option<(usize, WatchFault)>,
    deadline: Instant,
    bookmark_at: Option<Instant>,
    cuts: u64,
    stalls: u64,
    ended: bool,
}

/// The next action of a watch.
enum WatchStep {
    Line(Bytes),
    /// Wait for a change of the store, at most until this time.
    Wait(Instant),
    /// Send nothing more, and do not end.
    Silence,
    Reset,
    End,
}

/// An event of a watch. It is serialized outside the lock of the state.
enum PendingEvent {
    Event(&'static str, Arc<Value>),
    /// The object no longer matches the selector, since this revision.
    NoLongerMatches(Arc<Value>, Revision),
    Bookmark(Revision),
}

/// Counts a watch as open until it is dropped.
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
    /// Opens a watch and counts it as open. `state` must be the locked state of `sim`.
    pub(super) fn open(
        sim: &Sim,
        state: &mut SimState,
        path: &ResourcePath,
        options: &ListOptions,
        fault: Option<(usize, WatchFault)>,
    ) -> Self {
        let (now, config) = (Instant::now(), sim.config());
        let requested = options.timeout_seconds.filter(|seconds| *seconds > 0).map(std::time::Duration::from_secs);
        let timeout = requested.unwrap_or(config.watch_timeout);
        let has_bookmarks = options.bookmarks && timeout >= config.bookmark_min_watch;
        let first_bookmark = config.bookmark_interval.min(timeout.saturating_sub(config.bookmark_lead));
        let requested_version = options.version.filter(|version| *version > 0);
        let initial = match requested_version {
            Some(_) => VecDeque::new(),
            None => state.store.list(path.resource, path.namespace.as_deref()).into(),
        };
        let position = requested_version.unwrap_or(state.store.revision());
        *state.metrics.open_watches.entry(path.resource).or_default() += 1;
        Self {
            guard: OpenWatchGuard { sim: sim.clone(), resource: path.resource },
            changed: sim.changed(),
            path: path.clone(),
            selector: options.selector.clone(),
            position,
            start_version: position,
            initial: initial.into_iter().filter(|object| options.selector.matches(object)).collect(),
            fault,
            deadline: now + timeout,
            bookmark_at: has_bookmarks.then(|| now + first_bookmark),
            cuts: state.cuts.0,
            stalls: state.stalls,
            ended: false,
        }
    }

    /// Returns the lines of the watch, until it ends.
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
            // Silence comes first: a watch in a black hole receives no reset either.
            if state.stalls != self.stalls {
                return WatchStep::Silence;
            }
            match state.cuts {
                (cuts, ConnectionEnd::Eof) if cuts != self.cuts => return WatchStep::End,
                (cuts, ConnectionEnd::Reset) if cuts != self.cuts => return WatchStep::Reset,
                // The watch is too slow, and its next change was discarded. The API server also ends such a watch
                // instead of skipping a change.
                _ if self.position < state.store.discarded_up_to() => return WatchStep::End,
                _ => self.next_pending(&state, now),
            }
        };
        match pending {
            Some(PendingEvent::Bookmark(revision)) => WatchStep::Line(line("BOOKMARK", &self.bookmark(revision))),
            Some(PendingEvent::Event(kind, object)) => self.emit(&line(kind, &object)),
            Some(PendingEvent::NoLongerMatches(object, revision)) => {
                let mut object = (*object).clone();
                object["metadata"]["resourceVersion"] = json!(revision.to_string());
                self.emit(&line("DELETED", &object))
            }
            None if now >= self.deadline => WatchStep::End,
            None => WatchStep::Wait(self.bookmark_at.map_or(self.deadline, |at| at.min(self.deadline))),
        }
    }

    /// Returns the next event. The order is: the initial state, the changes since then, a bookmark that is due.
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

    /// Returns the event of a change, or `None` if the watch does not cover the object.
    fn classify(&self, change: &Change) -> Option<PendingEvent> {
        let is_same_namespace = |namespace: &String| *namespace == change.namespace;
        if change.resource != self.path.resource || !self.path.namespace.as_ref().is_none_or(is_same_namespace) {
            return None;
        }
        let before = change.before.as_ref().filter(|object| self.selector.matches(object));
        let after = change.after.as_ref().filter(|object| self.selector.matches(object));
        match (before, after) {
            (None, None) => None,
            (None, Some(after)) => Some(PendingEvent::Event("ADDED", after.clone())),
            (Some(_), Some(after)) => Some(PendingEvent::Event("MODIFIED", after.clone())),
            (Some(before), None) => Some(PendingEvent::NoLongerMatches(before.clone(), change.revision)),
        }
    }

    /// Returns the step that sends the line of an event, with the fault of the watch if it is due.
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

    /// Returns the time of the bookmark after `now`. The last bookmark is sent `bookmark_lead` before the deadline.
    fn next_bookmark(&self, now: Instant) -> Option<Instant> {
        let config = self.guard.sim.config();
        let last = self.deadline.checked_sub(config.bookmark_lead)?;
        (last > now).then(|| last.min(now + config.bookmark_interval))
    }

    fn bookmark(&self, revision: Revision) -> Value {
        let resource = self.path.resource;
        let metadata = json!({"resourceVersion": revision.to_string()});
        let mut object = json!({"kind": resource.kind(), "apiVersion": resource.api_version(), "metadata": metadata});
        if resource == ApiResource::Pods {
            object["spec"] = json!({"containers": null});
            object["status"] = json!({});
        }
        object
    }
}

/// Returns the ERROR line of a watch.
pub(super) fn error_line(error: &StatusError) -> Bytes {
    line("ERROR", &error.to_json())
}

fn line(event_type: &'static str, object: &Value) -> Bytes {
    #[derive(Serialize)]
    struct Line<'a> {
        r#type: &'static str,
        object: &'a Value,
    }
    // Serializing cannot fail, because a `Value` has string keys only.
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
    async fn watch_ends_if_its_next_change_was_discarded() {
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
        assert!(line.starts_with(b"{\"type\":\"ADDED\""), "expected an ADDED event: {line:?}");
        write("b");
        write("c");
        sim.store(|store| store.discard_before(from + 2));
        assert!(watch.frame().await.is_none(), "the watch must end instead of sending c without b");
    }
}
