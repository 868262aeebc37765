//! What a client goes through: every line with its moment, every connection, every cut.

use std::sync::Arc;

use serde_json::Value;

/// How a client connects.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Start {
    Snapshot,
    /// `snapshot=none`
    Live,
    Resume {
        /// The last id of this client, or what was made of it.
        id: String,
        /// What it asked for when it got it.
        projection: usize,
        /// Whether it says that it is of another cluster.
        is_forged: bool,
    },
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ReceivedEvent {
    /// Milliseconds since the beginning.
    pub(super) at: u64,
    /// Whether there was nothing else to read then.
    pub(super) idle: bool,
    pub(super) id: Option<String>,
    pub(super) time: Option<String>,
    /// Everything but these two.
    pub(super) body: Arc<Value>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Entry {
    Connect {
        at: u64,
        /// Which replica, restarts counted.
        replica: usize,
        projection: usize,
        start: Start,
    },
    Event(ReceivedEvent),
    Cut {
        at: u64,
    },
}

impl ReceivedEvent {
    pub(super) fn parse(line: &[u8], at: u64, idle: bool) -> ReceivedEvent {
        let mut body: Value = serde_json::from_slice(line).unwrap();
        let mut take =
            |key: &str| body.as_object_mut().unwrap().remove(key).map(|text| text.as_str().unwrap().to_owned());
        let (id, time) = (take("id"), take("time"));
        ReceivedEvent { at, idle, id, time, body: Arc::new(body) }
    }

    pub(super) fn name(&self) -> &str {
        self.body["type"].as_str().unwrap_or_default()
    }

    pub(super) fn is_coalesced(&self) -> bool {
        self.body["coalesced"] == true
    }
}
