//! What one filtered client is told, held against the cluster's history: its fold at every id, the way each object
//! enters and leaves, and the edges that it must hear of.

use std::collections::{BTreeMap, VecDeque};

use boilerhouse_bridge::{
    event::Cursor,
    sim::{ApiResource, store::Store},
};
use serde_json::{Value, json};

use super::{Case, NAMESPACE, label};

/// Objects by uid, as views.
type Objects = BTreeMap<String, Value>;

#[derive(Debug)]
pub(super) struct FilterValidator<'a> {
    store: &'a Store,
    case: &'a Case,
    /// What the client holds: instances, claims.
    held: [Objects; 2],
    /// Edges that it has not heard of yet, each resource in its order; known once it has a first cursor.
    edges: Option<[VecDeque<String>; 2]>,
    /// The two versions of the last id.
    rv: [u64; 2],
    left: usize,
    entered: usize,
}

impl<'a> FilterValidator<'a> {
    pub(super) fn new(store: &'a Store, case: &'a Case) -> FilterValidator<'a> {
        FilterValidator { store, case, held: Default::default(), edges: None, rv: [0; 2], left: 0, entered: 0 }
    }

    /// Takes the next message.
    pub(super) fn receive(&mut self, message: &Value) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("{what}: {message}"));
        match message["type"].as_str().unwrap_or_default() {
            "state.initial" => {
                for (held, views) in self.held.iter_mut().zip([&message["instances"], &message["claims"]]) {
                    let views = views.as_array().ok_or("no array")?.iter();
                    *held = views.map(|view| (text(view, "uid"), view.clone())).collect();
                }
            }
            "instance.state" => self.state(0, message, &message["instance"])?,
            "claim.state" => self.state(1, message, &message["claim"])?,
            kind @ ("pool.instance.ready" | "tenant.claimed" | "tenant.released") => {
                let resource = usize::from(kind != "pool.instance.ready");
                let received = format!("{kind} {}", text(message, "uid"));
                let edges = self.edges.as_mut().ok_or("an edge before anything else")?;
                if edges[resource].pop_front().as_ref() != Some(&received) {
                    return wrong("another edge was to come");
                }
            }
            "heartbeat" | "pool.depth" => {}
            _ => return wrong("not expected here"),
        }
        match message["id"].as_str() {
            Some(id) => self.at(id).map_err(|problem| format!("{problem} (at {message})")),
            None => Ok(()),
        }
    }

    /// Once the client has been told everything: how often an object left the filter, and how often one entered it.
    pub(super) fn finish(self) -> Result<(usize, usize), String> {
        match self.edges.iter().flatten().flatten().next() {
            Some(edge) => Err(format!("not told of {edge}")),
            None => Ok((self.left, self.entered)),
        }
    }

    fn state(&mut self, resource: usize, message: &Value, view: &Value) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("{what}: {message}"));
        let uid = text(view, "uid");
        let held = self.held[resource].get(&uid);
        if text(message, "name") != text(view, "name") {
            return wrong("two names");
        }
        let previous = held.map(|held| &held["phase"]).filter(|previous| **previous != message["phase"]);
        if message.get("previousPhase") != previous {
            return wrong("not the phase that the client knew");
        }
        if message["phase"] == "Deleted" {
            let gone = self.gone(resource, message);
            if held != Some(view) {
                return wrong("it leaves with another view than the last that matched");
            }
            if message["cause"] != gone {
                return wrong("another cause");
            }
            self.left += usize::from(gone == "filtered");
            self.held[resource].remove(&uid);
            return Ok(());
        }
        if message["phase"] != view["phase"] || message.get("cause").is_some() {
            return wrong("a state that contradicts itself");
        }
        if held == Some(view) {
            return wrong("nothing has changed");
        }
        self.entered += usize::from(held.is_none() && self.lived(resource, message));
        self.held[resource].insert(uid, view.clone());
        Ok(())
    }

    /// `<uid>.<resourceVersion>.<type>`: the write that the message is about.
    fn write_of(&self, message: &Value) -> &'a boilerhouse_bridge::sim::store::Change {
        let rv: u64 =
            text(message, "key").split('.').nth(1).and_then(|rv| rv.parse().ok()).expect("a key with a version");
        self.store.since(rv - 1).first().expect("a version of the history")
    }

    /// Why an object is gone for the client: it is there, or it is not.
    fn gone(&self, resource: usize, message: &Value) -> &'static str {
        let after = self.write_of(message).after.as_deref();
        if after.is_some_and(|object| is_watched(resource, object)) { "filtered" } else { "deleted" }
    }

    /// Whether an object had been there before, unseen.
    fn lived(&self, resource: usize, message: &Value) -> bool {
        self.write_of(message).before.as_deref().is_some_and(|object| is_watched(resource, object))
    }

    /// The promise: at every id the fold is the filtered state that Kubernetes had there.
    fn at(&mut self, id: &str) -> Result<(), String> {
        let rv = Cursor::decode(id).ok_or("no cursor")?.versions.into_array();
        if (0..2).any(|k| rv[k] < self.rv[k]) {
            return Err(format!("the id goes back from {:?} to {rv:?}", self.rv));
        }
        self.rv = rv;
        if self.edges.is_none() {
            self.edges = Some(self.edges_after(rv));
        }
        for (resource, kind) in [(0, ApiResource::Pods), (1, ApiResource::Claims)] {
            let objects = self.store.list_at(kind, Some(NAMESPACE), rv[resource]).map_err(|e| e.to_string())?;
            let shown = objects.iter().filter(|object| self.shows(resource, object));
            let truth: Objects =
                shown.map(|object| (text(&object["metadata"], "uid"), view(resource, object))).collect();
            if self.held[resource] != truth {
                return Err(format!("the client holds {:?}, true is {truth:?}", self.held[resource]));
            }
        }
        Ok(())
    }

    fn shows(&self, resource: usize, object: &Value) -> bool {
        is_watched(resource, object) && [self.case.pod, self.case.claim][resource](object)
    }

    /// The transitions after these versions of which one side at least matches.
    fn edges_after(&self, rv: [u64; 2]) -> [VecDeque<String>; 2] {
        let mut edges: [VecDeque<String>; 2] = Default::default();
        for change in self.store.history() {
            let resource = match change.resource {
                ApiResource::Pods => 0,
                ApiResource::Claims => 1,
                ApiResource::Namespaces | ApiResource::TokenReviews | ApiResource::AccessReviews => continue,
            };
            if change.revision <= rv[resource] {
                continue;
            }
            let watched = |side: &'a Option<std::sync::Arc<Value>>| side.as_deref().filter(|o| is_watched(resource, o));
            let (before, after) = (watched(&change.before), watched(&change.after));
            let matches = before.into_iter().chain(after).any(|object| self.shows(resource, object));
            if let (Some(edge), true) = (edge(resource, before, after), matches) {
                let object = after.or(before).expect("one side is there");
                edges[resource].push_back(format!("{edge} {}", text(&object["metadata"], "uid")));
            }
        }
        edges
    }
}

/// Whether the bridge watches it at all.
fn is_watched(resource: usize, object: &Value) -> bool {
    resource == 1 || label(object, "boilerhouse.dev/managed") == Some("true")
}

fn edge(resource: usize, before: Option<&Value>, after: Option<&Value>) -> Option<&'static str> {
    if resource == 0 {
        let ready =
            |pod: Option<&Value>| pod.and_then(|pod| label(pod, "boilerhouse.dev/pool-status")) == Some("ready");
        return (ready(after) && !ready(before)).then_some("pool.instance.ready");
    }
    let phase =
        |claim: Option<&Value>| claim.map(|claim| claim["status"]["phase"].as_str().unwrap_or("Pending").to_owned());
    match (phase(before).as_deref(), phase(after).as_deref()) {
        (Some("Active"), Some("Active")) => None,
        (_, Some("Active")) => Some("tenant.claimed"),
        (Some("Released") | None, _) => None,
        (Some(_), Some("Released") | None) => Some("tenant.released"),
        (Some(_), Some(_)) => None,
    }
}

/// A view by the tables of docs/protocol.md#objects.
fn view(resource: usize, object: &Value) -> Value {
    let (metadata, status) = (&object["metadata"], &object["status"]);
    let mut view = json!({"name": metadata["name"], "uid": metadata["uid"]});
    let mut put = |key: &str, value: &Value| {
        if value.as_object().map_or(!value.is_null(), |members| !members.is_empty()) {
            view[key] = value.clone();
        }
    };
    put("labels", &metadata["labels"]);
    if resource == 0 {
        put("phase", &json!(status["phase"].as_str().unwrap_or("Unknown")));
        put("workloadRef", &metadata["labels"]["boilerhouse.dev/workload"]);
        put("tenantId", &metadata["labels"]["boilerhouse.dev/tenant"]);
        put("poolStatus", &metadata["labels"]["boilerhouse.dev/pool-status"]);
        put("ip", &status["podIP"]);
        put("createdAt", &metadata["creationTimestamp"]);
    } else {
        put("phase", &json!(status["phase"].as_str().unwrap_or("Pending")));
        put("tenantId", &object["spec"]["tenantId"]);
        put("workloadRef", &object["spec"]["workloadRef"]);
        put("source", &status["source"]);
    }
    view
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}
