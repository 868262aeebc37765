//! What the hub writes to a feed: one event for each call of the Writer.

use std::sync::{Mutex, PoisonError};

use crate::{
    event::{Resource, ResourceVersion, View},
    feed::Health,
};

/// One call of the Writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SourceEvent {
    /// The uid of the watched Namespace.
    Namespace(String),
    /// A complete list and its version.
    Replace(Resource, Vec<View>, ResourceVersion),
    /// A created or modified object.
    Upsert(View),
    /// A deleted object: its last state, with the version of the deletion.
    Remove(View),
    /// A version without a change.
    Bookmark(Resource, ResourceVersion),
    /// A byte of a response about the resource was received.
    BytesReceived(Resource),
    /// The health of the watch changed.
    Health(Resource, Health),
}

/// The receiver of the events of both watch loops. Both loops run in one task, so the lock is never contended.
pub(super) type EventSink<'a> = &'a Mutex<dyn FnMut(SourceEvent) + Send + 'a>;

/// Passes one event to the sink.
pub(super) fn emit(sink: EventSink<'_>, event: SourceEvent) {
    (sink.lock().unwrap_or_else(PoisonError::into_inner))(event);
}
