//! The oracle for the full stream (docs/protocol.md#full-stream).

mod expected;
mod projected_history;
mod record;
mod replica;
mod timeline;
mod validator;

pub(crate) use projected_history::ProjectedHistory;
pub(crate) use record::{Entry, ReceivedEvent, Start};
pub(crate) use replica::ReplicaKnowledge;
pub(crate) use timeline::{ReplicaTimeline, Setup};
pub(crate) use validator::{Coverage, StreamValidator};
