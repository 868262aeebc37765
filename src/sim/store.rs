//! What etcd holds: objects with their full history, under one revision counter that all resources share.
//!
//! Pure: time is what the owner last told it, uids come from a seed. Every write is one revision and one [`Change`];
//! the list of changes is what a validator takes for the truth. The watch window (what an API server's watch cache
//! still knows) and the compaction mark (what etcd still knows) are apart, because a restart loses only the first.
//! Knows nothing of HTTP, selectors or subresources.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};
use uuid::Uuid;

use super::resource::ApiResource;

/// A revision of the store; an object's resourceVersion is one, written in decimal.
pub type Revision = u64;

/// One write: the object before and after it.
#[derive(Clone, Debug)]
pub struct Change {
    /// The revision that the write made.
    pub revision: Revision,
    /// What kind of object was written.
    pub resource: ApiResource,
    /// Its namespace, empty for what has none.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The object before, absent when it was created.
    pub before: Option<Arc<Value>>,
    /// The object after, absent when it was deleted.
    pub after: Option<Arc<Value>>,
}

/// Why the store refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no object of that name.
    #[error("not found")]
    NotFound,
    /// The namespace of a new object does not exist.
    #[error("namespace {0:?} not found")]
    NoNamespace(String),
    /// There is already an object of that name.
    #[error("already exists")]
    Exists,
    /// The object has another resourceVersion than the writer believes.
    #[error("conflict")]
    Conflict,
    /// The writer believes in another uid.
    #[error("uid {0:?} is another object's")]
    Uid(String),
    /// The object lacks a name, or is no object.
    #[error("{0}")]
    Malformed(&'static str),
    /// The revision has been compacted away.
    #[error("revision {0} is compacted")]
    Compacted(Revision),
}

/// Namespace and name of an object, and what it is.
type Key = (ApiResource, String, String);

/// An object from one revision on; `None` where it was deleted.
type Version = (Revision, Option<Arc<Value>>);

/// All objects and their history.
#[derive(Clone, Debug)]
pub struct Store {
    now: Timestamp,
    seed: u64,
    uids: u64,
    revision: Revision,
    watch_window: Revision,
    /// Changes up to here are no longer in memory.
    discarded_up_to: Revision,
    compacted: Revision,
    versions: BTreeMap<Key, Vec<Version>>,
    changes: Vec<Change>,
}

impl Store {
    /// An empty store at revision `first`. Two stores of one seed that see the same writes hand out the same uids.
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

    /// Sets the time that later writes carry.
    pub fn set_time(&mut self, now: Timestamp) {
        self.now = now;
    }

    /// The time last told.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The newest revision.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// A watch can start at this revision or later; earlier it is expired.
    #[must_use]
    pub fn watch_window(&self) -> Revision {
        self.watch_window
    }

    /// Exact lists work at this revision or later.
    #[must_use]
    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// Every change still kept, in order of revision; all since the beginning unless [`Store::discard_before`] was called.
    #[must_use]
    pub fn history(&self) -> &[Change] {
        &self.changes
    }

    /// Up to here [`Store::since`] no longer knows what happened.
    pub(super) fn discarded_up_to(&self) -> Revision {
        self.discarded_up_to
    }

    /// The changes after a revision.
    #[must_use]
    pub fn since(&self, revision: Revision) -> &[Change] {
        &self.changes[self.changes.partition_point(|change| change.revision <= revision)..]
    }

    /// The object as it is now.
    #[must_use]
    pub fn get(&self, resource: ApiResource, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let versions = self.versions.get(&key(resource, namespace, name))?;
        versions.last().and_then(|(_, object)| object.clone())
    }

    /// All objects of a resource now, by namespace and name; `None` means every namespace.
    #[must_use]
    pub fn list(&self, resource: ApiResource, namespace: Option<&str>) -> Vec<Arc<Value>> {
        self.list_at(resource, namespace, self.revision).unwrap_or_default()
    }

    /// The same at an earlier revision.
    ///
    /// # Errors
    /// [`Refused::Compacted`] where the revision is older than the compaction mark.
    pub fn list_at(
        &self,
        resource: ApiResource,
        namespace: Option<&str>,
        at: Revision,
    ) -> Result<Vec<Arc<Value>>, Refused> {
        if at < self.compacted {
            return Err(Refused::Compacted(at));
        }
        let start = (resource, namespace.unwrap_or_default().to_owned(), String::new());
        let mine = |key: &Key| key.0 == resource && namespace.is_none_or(|namespace| key.1 == namespace);
        let range = self.versions.range(start..).take_while(|(key, _)| mine(key));
        Ok(range.filter_map(|(_, versions)| version_at(versions, at)).collect())
    }

    /// Creates an object; `metadata.name` must be there, and `metadata.namespace` where the resource has namespaces.
    /// Gives it uid, creationTimestamp, generation and resourceVersion; everything else stays as it came.
    ///
    /// # Errors
    /// [`Refused::Exists`], [`Refused::NoNamespace`], [`Refused::Malformed`].
    pub fn create(&mut self, resource: ApiResource, mut object: Value) -> Result<Arc<Value>, Refused> {
        let name = text(&object, "name").ok_or(Refused::Malformed("name or generateName is required"))?;
        let namespace = if resource.namespaced() {
            text(&object, "namespace").ok_or(Refused::Malformed("an object of this resource needs a namespace"))?
        } else {
            String::new()
        };
        if self.get(resource, &namespace, &name).is_some() {
            return Err(Refused::Exists);
        }
        if resource.namespaced() && self.get(ApiResource::Namespaces, "", &namespace).is_none() {
            return Err(Refused::NoNamespace(namespace));
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

    /// Changes an object in place. What identifies it (name, namespace, uid, creationTimestamp) stays as it was. A change
    /// of `spec` raises the generation; a change of nothing makes no revision.
    ///
    /// # Errors
    /// [`Refused::NotFound`]; [`Refused::Conflict`] and [`Refused::Uid`] where the change sets another resourceVersion or uid.
    pub fn modify(
        &mut self,
        resource: ApiResource,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<Arc<Value>, Refused> {
        let before = self.get(resource, namespace, name).ok_or(Refused::NotFound)?;
        let mut after = (*before).clone();
        change(&mut after);
        if !after["metadata"].is_object() {
            return Err(Refused::Malformed("an object needs metadata"));
        }
        let differs = |field: &str| {
            let (new, old) = (&after["metadata"][field], &before["metadata"][field]);
            !new.is_null() && new != old
        };
        if differs("uid") {
            return Err(Refused::Uid(text(&after, "uid").unwrap_or_default()));
        }
        if differs("resourceVersion") {
            return Err(Refused::Conflict);
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
        let dying = |object: &Value| object["metadata"].get("deletionTimestamp").is_some();
        if after.get("spec") != before.get("spec") || (dying(&after) && !dying(&before)) {
            after["metadata"]["generation"] = json!(before["metadata"]["generation"].as_u64().unwrap_or(0) + 1);
        }
        Ok(self.write(key(resource, namespace, name), Some(before), after))
    }

    /// Applies a JSON merge patch (RFC 7386) to the whole object, status included: the hand of kubelet and controllers.
    ///
    /// # Errors
    /// As [`Store::modify`].
    pub fn patch(
        &mut self,
        resource: ApiResource,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<Arc<Value>, Refused> {
        self.modify(resource, namespace, name, |object| merge(object, patch))
    }

    /// Marks an object as being deleted: the MODIFIED that a graceful delete begins with. [`Store::delete`] ends it.
    ///
    /// # Errors
    /// [`Refused::NotFound`].
    pub fn terminate(
        &mut self,
        resource: ApiResource,
        namespace: &str,
        name: &str,
        grace_seconds: u32,
    ) -> Result<Arc<Value>, Refused> {
        let end = self.now.saturating_add(i64::from(grace_seconds).seconds()).unwrap_or(self.now);
        self.modify(resource, namespace, name, |object| {
            object["metadata"]["deletionTimestamp"] = json!(seconds(end));
            object["metadata"]["deletionGracePeriodSeconds"] = json!(grace_seconds);
        })
    }

    /// Removes an object at once, and gives back how it was.
    ///
    /// # Errors
    /// [`Refused::NotFound`].
    pub fn delete(&mut self, resource: ApiResource, namespace: &str, name: &str) -> Result<Arc<Value>, Refused> {
        let before = self.get(resource, namespace, name).ok_or(Refused::NotFound)?;
        self.record(key(resource, namespace, name), Some(before.clone()), None);
        Ok(before)
    }

    /// Forgets the watch history up to now, as a restart of the API server does; exact lists go on working.
    pub fn lose_watch_history(&mut self) {
        self.watch_window = self.revision;
    }

    /// Compacts: exact lists before `revision` are refused from now on. The history stays readable.
    pub fn compact(&mut self, revision: Revision) {
        self.compacted = self.compacted.max(revision.min(self.revision));
    }

    /// Compacts, and gives the memory of everything before `revision` back. For scenarios that run for days.
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

    /// Puts an older copy in this store's place and returns what was lost. Revisions go back and will be given out again;
    /// uids will not. Watch history is gone, because the API server is restarted with it.
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

/// A time as Kubernetes writes it: UTC, whole seconds.
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
