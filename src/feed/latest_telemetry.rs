//! The most recent telemetry of each tunnel.
//!
//! *Owns* data only; it is under the lock of the feed's state.
//!
//! *Guarantees:*
//! - There is at most one snapshot for each living instance. It is removed with the instance, and is not returned after it
//!   has expired.
//! - The snapshot that was stored last counts, whatever its time: clocks step back, and those of replicas differ.

use std::{collections::BTreeMap, sync::Arc};

use tokio::time::Instant;

use super::inventory::Inventory;
use crate::event::{Change, Instance, Telemetry, View};

/// The most recent telemetry by the uid of its instance.
#[derive(Debug, Default)]
pub(super) struct LatestTelemetry {
    by_uid: BTreeMap<String, Arc<Held>>,
    bytes: usize,
}

/// The telemetry of one instance.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) telemetry: Arc<Telemetry>,
    /// The name of the instance, by which the inventory finds it.
    pub(super) instance_name: String,
    pub(super) expires_at: Instant,
}

impl Held {
    fn charged_bytes(&self) -> usize {
        size_of::<Held>() + self.telemetry.charged_bytes() + self.telemetry.tunnel_id.len() + self.instance_name.len()
    }
}

impl LatestTelemetry {
    /// Returns the snapshot of this uid, expired or not.
    pub(super) fn get(&self, uid: &str) -> Option<&Arc<Held>> {
        self.by_uid.get(uid)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_uid.is_empty()
    }

    /// Returns the number of snapshots, with those that have expired since the last read.
    pub(super) fn len(&self) -> usize {
        self.by_uid.len()
    }

    /// Returns the bytes charged for all snapshots.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Removes the telemetry of the instances that these changes delete.
    pub(super) fn remove_deleted(&mut self, changes: &[Change]) {
        for change in changes {
            if let Change { old: Some(View::Instance(instance)), new: None } = change {
                self.remove(&instance.uid);
            }
        }
    }

    /// Returns the snapshots that have not expired, by uid, and removes the others.
    pub(super) fn unexpired(&mut self, now: Instant) -> Vec<Arc<Held>> {
        let bytes = &mut self.bytes;
        self.by_uid.retain(|_, held| {
            let is_valid = held.expires_at > now;
            if !is_valid {
                *bytes -= held.charged_bytes();
            }
            is_valid
        });
        self.by_uid.values().cloned().collect()
    }

    /// Stores a snapshot. It replaces the one of the same instance.
    pub(super) fn store(&mut self, held: Held) {
        self.remove(&held.telemetry.tunnel_id);
        self.bytes += held.charged_bytes();
        self.by_uid.insert(held.telemetry.tunnel_id.clone(), Arc::new(held));
    }

    pub(super) fn remove(&mut self, uid: &str) {
        if let Some(removed) = self.by_uid.remove(uid) {
            self.bytes -= removed.charged_bytes();
        }
    }
}

/// Returns the instance of each snapshot with the snapshot. A snapshot whose instance is not in the inventory is left out.
pub(super) fn with_instances<'a>(
    held: &'a [Arc<Held>],
    inventory: &'a Inventory,
) -> impl Iterator<Item = (&'a Arc<Instance>, &'a Arc<Telemetry>)> {
    held.iter().filter_map(|held| {
        let instance = inventory.instances.get(&held.instance_name)?;
        (instance.uid == held.telemetry.tunnel_id).then_some((instance, &held.telemetry))
    })
}
