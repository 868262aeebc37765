//! What the clients of one process share: the records of the current round, and the number of clients in each state.

use std::collections::BTreeMap;

use super::ClientReport;
use crate::clock::now_micros;

/// Guarded by one lock, as all clients run on one thread.
#[derive(Debug, Default)]
pub(super) struct Measurements {
    pub(super) report: ClientReport,
    /// Changes are recorded when they were made at this microsecond or later.
    record_from: u64,
    pub(super) deliveries: u64,
    /// The clients notify the pool when this many deliveries have been recorded.
    pub(super) awaited: u64,
    /// For each change: the number of clients that have received it, and the latency of the last one.
    changes: BTreeMap<u64, (usize, u64)>,
    pub(super) connections: usize,
    /// Clients that have received an event since the last reconnect of all.
    pub(super) resumed: usize,
    pub(super) initial_states: u64,
}

impl Measurements {
    /// Starts a round.
    pub(super) fn start(&mut self) {
        (self.report, self.record_from) = (ClientReport::default(), now_micros());
        (self.deliveries, self.awaited) = (0, u64::MAX);
        self.changes.clear();
    }

    /// Records that a client has received a change.
    pub(super) fn record(&mut self, made_at: u64, received_at: u64) {
        if made_at < self.record_from {
            return;
        }
        let latency = received_at.saturating_sub(made_at);
        self.report.latency.record(latency);
        self.deliveries += 1;
        let (clients, last) = self.changes.entry(made_at).or_default();
        (*clients, *last) = (*clients + 1, latency.max(*last));
    }

    /// Ends a round and returns its report.
    pub(super) fn finish(&mut self) -> ClientReport {
        for (clients, latency) in std::mem::take(&mut self.changes).into_values() {
            if clients == self.connections {
                self.report.last_client.record(latency);
            }
        }
        self.record_from = u64::MAX;
        std::mem::take(&mut self.report)
    }
}
