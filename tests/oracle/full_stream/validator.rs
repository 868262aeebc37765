//! The validator: compares the record of one client with the history, event by event (docs/guarantees.md#guarantees,
//! G1 to G10).
//!
//! It follows the client's cursor. For each resource it has the version up to which the client has been served, so it
//! knows which event must come next, to the last member. An id may be anywhere between that version and the next one
//! with events for the client. If etcd was restored, several epochs are possible; it follows each.

mod client;
mod event;
mod snapshot;
mod upstream;

use std::collections::BTreeMap;

use boilerhouse_bridge::event::Cursor;

use crate::oracle::violation::Violation;

use super::projected_history::ProjectedHistory;
use super::record::Entry;
use super::replica::ReplicaKnowledge;
use client::Client;

/// What the records of all clients of a test are compared with.
#[derive(Debug)]
pub(crate) struct StreamValidator {
    pub(crate) expected: ProjectedHistory,
    /// By number.
    pub(crate) replicas: Vec<ReplicaKnowledge>,
    /// When a client resumed, and on which replica.
    pub(crate) resumes: Vec<(u64, usize)>,
}

/// What a record contained, so that a test can assert that it tested something.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Coverage {
    pub(crate) events: u64,
    pub(crate) ids: u64,
    pub(crate) connections: u64,
    /// Resumes without a snapshot.
    pub(crate) resumed: u64,
    /// Of them those at a replica that started after the cursor and so needed a backfill.
    pub(crate) backfilled: u64,
    /// Of them those at a replica that had not yet reached the cursor.
    pub(crate) ahead: u64,
    pub(crate) differences: u64,
    pub(crate) empty_differences: u64,
    /// Parts of `state.initial`.
    pub(crate) parts: u64,
    pub(crate) downs: u64,
    /// Objects that left the filter, and objects that entered it after their creation.
    pub(crate) left: u64,
    pub(crate) entered: u64,
    /// `state.initial` by reason.
    pub(crate) initials: BTreeMap<String, u64>,
}

impl StreamValidator {
    /// Validates a record. Everything is at rest, so nothing may be missing at its end.
    ///
    /// # Errors
    /// The first entry that is wrong.
    pub(crate) fn validate(&self, record: &[Entry]) -> Result<Coverage, Violation> {
        let mut client = Client::new(self);
        for (nth, entry) in record.iter().enumerate() {
            client
                .apply(entry, &record[nth + 1..])
                .map_err(|violation| violation.at(format!("entry {nth} ({})", shortened(entry))))?;
        }
        client.complete().map_err(|violation| violation.at("the end"))?;
        Ok(client.coverage)
    }
}

/// An entry with its versions, cut to 600 characters.
fn shortened(entry: &Entry) -> String {
    let text = match entry {
        Entry::Event(received) => {
            let cursor = received.id.as_ref().and_then(|id| Cursor::decode(id));
            let versions = cursor.map(|cursor| cursor.versions.into_array());
            format!("at {}, id {versions:?}, idle {}, {}", received.at, received.idle, received.body)
        }
        other => format!("{other:?}"),
    };
    text.chars().take(600).collect()
}
