//! The oracle for `/ws` (docs/protocol.md#boilerhouse-stream).

mod expected;
mod record;
mod validator;

pub(crate) use expected::initial_events;
pub(crate) use record::{End, Record, Start, WatchMode, WsEvent, WsEventType};
pub(crate) use validator::{replay, validate};
