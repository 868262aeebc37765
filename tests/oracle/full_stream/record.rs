//! The record of one client of the full stream: every connection, every event with its time, every disconnect.

use std::sync::Arc;

use serde_json::Value;

use crate::oracle::violation::{Guarantee, Violation};

/// How a client connects.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Start {
    Snapshot,
    /// `snapshot=none`
    Live,
    Resume {
        /// The last id of this client. The client may send a forged one instead.
        id: String,
        /// The projection under which the client received the id.
        projection: usize,
        /// Whether the client changes the namespace of the cursor to another one.
        is_forged: bool,
    },
}

/// One event as a client received it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ReceivedEvent {
    /// Milliseconds since the start of the test, by the clock of the bridge.
    pub(crate) at: u64,
    /// Whether there was nothing else to read at that time.
    pub(crate) idle: bool,
    pub(crate) id: Option<String>,
    pub(crate) time: Option<String>,
    /// Everything but these two.
    pub(crate) body: Arc<Value>,
}

/// One entry of a record.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Entry {
    Connect {
        at: u64,
        /// The number of the replica. A restarted replica has a new number.
        replica: usize,
        /// The number of the projection.
        projection: usize,
        start: Start,
    },
    Event(ReceivedEvent),
    /// The connection ended.
    Disconnect {
        at: u64,
    },
}

impl ReceivedEvent {
    pub(crate) fn new(mut body: Value, at: u64, idle: bool) -> ReceivedEvent {
        let mut take =
            |key: &str| body.as_object_mut().unwrap().remove(key).map(|text| text.as_str().unwrap().to_owned());
        let (id, time) = (take("id"), take("time"));
        ReceivedEvent { at, idle, id, time, body: Arc::new(body) }
    }

    /// The event type.
    pub(crate) fn name(&self) -> &str {
        self.body["type"].as_str().unwrap_or_default()
    }

    pub(crate) fn is_coalesced(&self) -> bool {
        self.body["coalesced"] == true
    }
}

/// The milliseconds of a timestamp.
pub(crate) fn time_ms(text: Option<&str>) -> Result<u64, Violation> {
    let timestamp = text.and_then(|text| text.parse::<jiff::Timestamp>().ok());
    let ms = timestamp.and_then(|timestamp| u64::try_from(timestamp.as_millisecond()).ok());
    ms.ok_or_else(|| Violation::new(Guarantee::WireFormat, format!("{text:?} is no time")))
}
