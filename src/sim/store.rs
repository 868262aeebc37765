//! The simulated etcd: objects with their history, under one revision counter for all resources.
//!
//! Owns: all versions of all objects, and the list of changes.
//!
//! Guarantees:
//! - Each write creates one revision and one [`Change`]. Tests validate recorded streams against the list of changes.
//! - It is pure: the owner sets the time ([`Store::set_time`]), and uids come from a seed.
//! - The watch window (the history in the API server's watch cache) and the compaction mark (the history in etcd) are
//!   separate, because a restart of the API server loses only the first.
//!
//! It does not implement HTTP, selectors and subresources.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};
use uuid::Uuid;

use super::resource::ApiResource;

/// A revision of the store. The resourceVersion of an object is a revision in decimal.
pub type Revision = u64;

/// One write: the object before and after it.
#[derive(Clone, Debug)]
pub struct Change {
    /// The revision of the write.
    pub revision: Revision,
    /// The resource of the object.
    pub resource: ApiResource,
    /// The namespace of the object; empty for an object without a namespace.
    pub namespace: String,
    /// The name of the object.
    pub name: String,
    /// The object before the write; `None` if the write created it.
    pub before: Option<Arc<Value>>,
    /// The object after the write; `None` if the write deleted it.
    pub after: Option<Arc<Value>>,
}

/// Why the store rejected a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No object has this name.
    #[error("not found")]
    NotFound,
    /// The namespace of a new object does not exist.
    #[error("namespace {0:?} not found")]
    NoNamespace(String),
    /// An object has this name already.
    #[error("already exists")]
    Exists,
    /// The write contains another resourceVersion than the object has.
    #[error("conflict")]
    Conflict,
    /// The write contains another uid than the object has.
    #[error("uid {0:?} belongs to another object")]
    Uid(String),
    /// The object has no name, no namespace or no metadata.
    #[error("{0}")]
    Malformed(&'static str),
    /// The revision was compacted.
    #[error("revision {0} is compacted")]
    Compacted(Revision),
}

/// Resource, namespace and name of an object.
type Key = (ApiResource, String, String);

/// A revision, and the object since then; `None` if the revision deleted it.
type Version = (Revision, Option<Arc<Value>>);

/// All objects and their history.
#[derive(Clone, Debug)]
pub struct Store {
    now: Timestamp,
    seed: u64,
    uids: u64,
    revision: Revision,
    watch_window: Revision,
    /// Changes up to this revision are no longer in memory.
    discarded_up_to: Revision,
    compacted: Revision,
    versions: BTreeMap<Key, Vec<Version>>,
    changes: Vec<Change>,
}

impl Store {
    /// Creates an empty store at revision `first`. Two stores with the same seed and the same writes have the same
    /// uids.
    #[must_use]
    pub fn new(seed: u64, first: Revision, now: Timestamp) -> Self {
        let (versions, changes) = (BTreeMap::new(), Vec::new());
        Self {
            now,
            seed,
            uids: 0,
            revision: first,
            watch_window: first,
            discarded_up_to: first,
            compacted: first,
            versions,
            changes,
        }
    }

    /// Sets the time of later writes.
    pub fn set_time(&mut self, now: Timestamp) {
        self.now = now;
    }

    /// Returns the time that was set last.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Returns the newest revision.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Returns the oldest revision at which a watch can start. An older one is expired.
    #[must_use]
    pub fn watch_window(&self) -> Revision {
        self.watch_window
    }

    /// Returns the oldest revision of an exact list. An older one is compacted.
    #[must_use]
    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// Returns the changes in memory, in order of revision: all of them, unless [`Store::discard_before`] was called.
    #[must_use]
    pub fn history(&self) -> &[Change] {
        &self.changes
    }

    /// Returns the revision up to which changes were discarded. [`Store::since`] is complete from it on.
    pub(super) fn discarded_up_to(&self) -> Revision {
        self.discarded_up_to
    }

    /// Returns the changes after a revision.
    #[must_use]
    pub fn since(&self, revision: Revision) -> &[Change] {
        &self.changes[self.changes.partition_point(|change| change.revision <= revision)..]
    }

    /// Returns the current state of an object.
    #[must_use]
    pub fn get(&self, resource: ApiResource, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let versions = self.versions.get(&key(resource, namespace, name))?;
        versions.last().and_then(|(_, object)| object.clone())
    }

    /// Returns all current objects of a resource, ordered by namespace and name. `None` is all namespaces.
    #[must_use]
    pub fn list(&self, resource: ApiResource, namespace: Option<&str>) -> Vec<Arc<Value>> {
        self.list_at(resource, namespace, self.revision).unwrap_or_default()
    }

    /// Returns the same at a given revision.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if the revision is older than the compaction mark.
    pub fn list_at(
        &self,
        resource: ApiResource,
        namespace: Option<&str>,
        at: Revision,
    ) -> Result<Vec<Arc<Value>>, StoreError> {
        if at < self.compacted {
            return Err(StoreError::Compacted(at));
        }
        let start = (resource, namespace.unwrap_or_default().to_owned(), String::new());
        let is_listed = |key: &Key| key.0 == resource && namespace.is_none_or(|namespace| key.1 == namespace);
        let range = self.versions.range(start..).take_while(|(key, _)| is_listed(key));
        Ok(range.filter_map(|(_, versions)| version_at(versions, at)).collect())
    }

    /// Creates an object. `metadata.name` is required, and `metadata.namespace` too if the resource is namespaced.
    ///
    /// The store sets uid, creationTimestamp, generation and resourceVersion, and changes no other field.
    ///
    /// # Errors
    /// [`StoreError::Exists`], [`StoreError::NoNamespace`], [`StoreError::Malformed`].
    pub fn create(&mut self, resource: ApiResource, mut object: Value) -> Result<Arc<Value>, StoreError> {
        let name = text(&object, "name").ok_or(StoreError::Malformed("name or generateName is required"))?;
        let namespace = if resource.namespaced() {
            text(&object, "namespace").ok_or(StoreError::Malformed("an object of this resource needs a namespace"))?
        } else {
            String::new()
        };
        if self.get(resource, &namespace, &name).is_some() {
            return Err(StoreError::Exists);
        }
        if resource.namespaced() && self.get(ApiResource::Namespaces, "", &namespace).is_none() {
            return Err(StoreError::NoNamespace(namespace));
        }
        self.uids += 1;
        let uid = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{}/{}", self.seed, self.uids).as_bytes());
        object["kind"] = json!(resource.kind());
        object["apiVersion"] = json!(resource.api_version());
        let metadata = &mut object["metadata"];
        metadata["uid"] = json!(uid.to_string());
        metadata["creationTimestamp"] = json!(seconds(self.now));
        if resource.namespaced() {
            metadata["generation"] = json!(1);
        }
        Ok(self.write((resource, namespace, name), None, object))
    }

    /// Changes an object in place. Its identity (name, namespace, uid, creationTimestamp) does not change.
    ///
    /// A change of `spec` increments the generation. A call that changes nothing creates no revision.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Conflict`] or [`StoreError::Uid`] if `change` sets another
    /// resourceVersion or uid; [`StoreError::Malformed`] if it removes the metadata.
    pub fn modify(
        &mut self,
        resource: ApiResource,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<Arc<Value>, StoreError> {
        let before = self.get(resource, namespace, name).ok_or(StoreError::NotFound)?;
        let mut after = (*before).clone();
        change(&mut after);
        if !after["metadata"].is_object() {
            return Err(StoreError::Malformed("an object needs metadata"));
        }
        let differs = |field: &str| {
            let (new, old) = (&after["metadata"][field], &before["metadata"][field]);
            !new.is_null() && new != old
        };
        if differs("uid") {
            return Err(StoreError::Uid(text(&after, "uid").unwrap_or_default()));
        }
        if differs("resourceVersion") {
            return Err(StoreError::Conflict);
        }
        for field in ["uid", "resourceVersion", "name", "namespace", "creationTimestamp", "generation"] {
            match before["metadata"].get(field) {
                Some(old) => after["metadata"][field] = old.clone(),
                None => drop(after["metadata"].as_object_mut().and_then(|metadata| metadata.remove(field))),
            }
        }
        for field in ["kind", "apiVersion"] {
            after[field] = before[field].clone();
        }
        if after == *before {
            return Ok(before);
        }
        let is_terminating = |object: &Value| object["metadata"].get("deletionTimestamp").is_some();
        if after.get("spec") != before.get("spec") || (is_terminating(&after) && !is_terminating(&before)) {
            after["metadata"]["generation"] = json!(before["metadata"]["generation"].as_u64().unwrap_or(0) + 1);
        }
        Ok(self.write(key(resource, namespace, name), Some(before), after))
    }

    /// Applies a JSON merge patch (RFC 7386) to the complete object with its status, as kubelet and controllers do.
    ///
    /// # Errors
    /// As [`Store::modify`].
    pub fn patch(
        &mut self,
        resource: ApiResource,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<Arc<Value>, StoreError> {
        self.modify(resource, namespace, name, |object| merge(object, patch))
    }

    /// Starts a graceful deletion: sets `deletionTimestamp`, which watches receive as MODIFIED. [`Store::delete`]
    /// completes it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub fn terminate(
        &mut self,
        resource: ApiResource,
        namespace: &str,
        name: &str,
        grace_seconds: u32,
    ) -> Result<Arc<Value>, StoreError> {
        let end = self.now.saturating_add(i64::from(grace_seconds).seconds()).unwrap_or(self.now);
        self.modify(resource, namespace, name, |object| {
            object["metadata"]["deletionTimestamp"] = json!(seconds(end));
            object["metadata"]["deletionGracePeriodSeconds"] = json!(grace_seconds);
        })
    }

    /// Deletes an object immediately, and returns its last state.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub fn delete(&mut self, resource: ApiResource, namespace: &str, name: &str) -> Result<Arc<Value>, StoreError> {
        let before = self.get(resource, namespace, name).ok_or(StoreError::NotFound)?;
        self.record(key(resource, namespace, name), Some(before.clone()), None);
        Ok(before)
    }

    /// Discards the watch history up to now, as a restart of the API server does. Exact lists still work.
    pub fn lose_watch_history(&mut self) {
        self.watch_window = self.revision;
    }

    /// Compacts the store: exact lists before `revision` are rejected from now on. [`Store::history`] stays complete.
    pub fn compact(&mut self, revision: Revision) {
        self.compacted = self.compacted.max(revision.min(self.revision));
    }

    /// Compacts the store, and frees the memory of everything before `revision`. Scenarios that run for days need it.
    pub fn discard_before(&mut self, revision: Revision) {
        self.compact(revision);
        let mark = self.compacted;
        self.watch_window = self.watch_window.max(mark);
        self.discarded_up_to = mark;
        self.changes.drain(..self.changes.partition_point(|change| change.revision <= mark));
        self.versions.retain(|_, versions| {
            let first = versions.partition_point(|(revision, _)| *revision <= mark).saturating_sub(1);
            versions.drain(..first);
            !matches!(versions.as_slice(), [(revision, None)] if *revision <= mark)
        });
    }

    /// Replaces this store by an older copy, and returns the replaced store.
    ///
    /// Revisions go back and are used again, uids are not. The watch history is lost, because the API server restarts.
    pub fn restore(&mut self, older: Self) -> Self {
        let lost = std::mem::replace(self, older);
        self.now = lost.now;
        self.uids = lost.uids.max(self.uids);
        self.lose_watch_history();
        lost
    }

    fn write(&mut self, key: Key, before: Option<Arc<Value>>, mut after: Value) -> Arc<Value> {
        after["metadata"]["resourceVersion"] = json!((self.revision + 1).to_string());
        let after = Arc::new(after);
        self.record(key, before, Some(after.clone()));
        after
    }

    fn record(&mut self, key: Key, before: Option<Arc<Value>>, after: Option<Arc<Value>>) {
        self.revision += 1;
        let revision = self.revision;
        let (resource, namespace, name) = key.clone();
        self.versions.entry(key).or_default().push((revision, after.clone()));
        self.changes.push(Change { revision, resource, namespace, name, before, after });
    }
}

/// Applies a JSON merge patch (RFC 7386).
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in fields {
        match value {
            Value::Null => drop(target.as_object_mut().and_then(|target| target.remove(name))),
            _ => merge(&mut target[name], value),
        }
    }
}

/// Returns a time in the format of Kubernetes: UTC, whole seconds.
pub(super) fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn key(resource: ApiResource, namespace: &str, name: &str) -> Key {
    let namespace = if resource.namespaced() { namespace } else { "" };
    (resource, namespace.to_owned(), name.to_owned())
}

fn version_at(versions: &[Version], at: Revision) -> Option<Arc<Value>> {
    let after = versions.partition_point(|(revision, _)| *revision <= at);
    versions[..after].last().and_then(|(_, object)| object.clone())
}

fn text(object: &Value, field: &str) -> Option<String> {
    object["metadata"][field].as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests;
