//! `params` of docs/protocol.md#stream-endpoints: a filter as clients write it, `{"instances":{…},"claims":{…}}`.
//!
//! Strict, because a filter that is misunderstood shows too much or nothing: every mistake is a sentence that says where
//! it is and what is accepted there. A filter has one form however it was written, so that equal filters share a lens
//! and a cursor: keys have an order, an empty object is the same as none, a key stands once.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};

use super::{Filter, ObjectFilter};
use crate::event::{PerResource, Resource};

/// The longest text that is read, in bytes: 8 KiB, room for a hundred labels and no more than fits a request's head.
const MAX_BYTES: usize = 8 << 10;

/// What stands directly under `params`, for each resource.
const RESOURCE_KEYS: PerResource<&str> = PerResource::new("instances", "claims");

impl Filter {
    /// Reads `params`, whose URL encoding is already undone. At most 8 KiB.
    ///
    /// # Errors
    /// A sentence that says what is wrong, where, and what is accepted there.
    pub fn parse(text: &str) -> Result<Filter, String> {
        if text.len() > MAX_BYTES {
            return Err(format!("{} bytes long: accepted are up to {MAX_BYTES}", text.len()));
        }
        let node = serde_json::from_str(text)
            .map_err(|e| format!(r#"not JSON ({e}): accepted is {{"instances":{{…}},"claims":{{…}}}}, URL-encoded"#))?;
        let mut filter = Filter::default();
        for (key, node) in object_members("the whole", node)? {
            match Resource::ALL.into_iter().find(|resource| RESOURCE_KEYS[*resource] == key) {
                Some(Resource::Pods) => filter.instances = parse_object_filter(Resource::Pods, node)?,
                Some(Resource::Claims) => filter.claims = parse_object_filter(Resource::Claims, node)?,
                None => {
                    return Err(format!("unknown key '{key}': accepted are {}", RESOURCE_KEYS.into_array().join(", ")));
                }
            }
        }
        Ok(filter)
    }
}

/// The keys that filter this kind of object.
fn filter_keys(resource: Resource) -> [&'static str; 6] {
    match resource {
        Resource::Pods => ["name", "phase", "workloadRef", "tenantId", "poolStatus", "labels"],
        Resource::Claims => ["name", "phase", "tenantId", "workloadRef", "source", "labels"],
    }
}

fn parse_object_filter(resource: Resource, node: JsonNode) -> Result<ObjectFilter, String> {
    let (under, accepted) = (RESOURCE_KEYS[resource], filter_keys(resource));
    let mut filter = ObjectFilter::default();
    for (key, node) in object_members(under, node)? {
        if !accepted.contains(&key.as_str()) {
            return Err(format!("unknown key '{key}' under {under}: accepted are {}", accepted.join(", ")));
        }
        let place = format!("{under}.{key}");
        let field = match key.as_str() {
            "name" => &mut filter.name,
            "phase" => &mut filter.phase,
            "workloadRef" => &mut filter.workload_ref,
            "tenantId" => &mut filter.tenant_id,
            "poolStatus" => &mut filter.pool_status,
            "source" => &mut filter.source,
            // `labels`: the only other one that is accepted.
            _ => {
                filter.labels = labels(&place, node)?;
                continue;
            }
        };
        let JsonNode::Text(value) = node else {
            return Err(format!("{place} is {}: accepted is a string", node.type_name()));
        };
        *field = Some(value);
    }
    Ok(filter)
}

fn labels(place: &str, node: JsonNode) -> Result<BTreeMap<String, Option<String>>, String> {
    let value = |(key, node): (String, JsonNode)| match node {
        JsonNode::Text(value) => Ok((key, Some(value))),
        JsonNode::Null => Ok((key, None)),
        JsonNode::Object(_) | JsonNode::Other(_) => Err(format!(
            "{place} has '{key}' as {}: accepted are a string, and null where any value will do",
            node.type_name()
        )),
    };
    object_members(place, node)?.into_iter().map(value).collect()
}

/// The members of what must be an object, each key once: of two values one would be dropped without a word.
fn object_members(place: &str, node: JsonNode) -> Result<Vec<(String, JsonNode)>, String> {
    let JsonNode::Object(members) = node else {
        return Err(format!("{place} is {}: accepted is an object, {{…}}", node.type_name()));
    };
    let mut keys: Vec<&str> = members.iter().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    match keys.windows(2).find(|two| two[0] == two[1]) {
        Some(two) => Err(format!("{place} has '{}' more than once: accepted is each key once", two[0])),
        None => Ok(members),
    }
}

/// JSON as far as filters have it, with every member of an object, even those whose key stands twice.
#[derive(Debug)]
enum JsonNode {
    Text(String),
    Null,
    Object(Vec<(String, JsonNode)>),
    /// What no filter has, in words.
    Other(&'static str),
}

impl JsonNode {
    fn type_name(&self) -> &'static str {
        match self {
            JsonNode::Text(_) => "a string",
            JsonNode::Null => "null",
            JsonNode::Object(_) => "an object",
            JsonNode::Other(name) => name,
        }
    }
}

impl<'de> Deserialize<'de> for JsonNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<JsonNode, D::Error> {
        deserializer.deserialize_any(JsonNodeVisitor)
    }
}

struct JsonNodeVisitor;

impl<'de> Visitor<'de> for JsonNodeVisitor {
    type Value = JsonNode;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E>(self, text: &str) -> Result<JsonNode, E> {
        Ok(JsonNode::Text(text.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<JsonNode, E> {
        Ok(JsonNode::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<JsonNode, E> {
        Ok(JsonNode::Other("a boolean"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<JsonNode, E> {
        Ok(JsonNode::Other("a number"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<JsonNode, E> {
        Ok(JsonNode::Other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<JsonNode, E> {
        Ok(JsonNode::Other("a number"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<JsonNode, A::Error> {
        while items.next_element::<JsonNode>()?.is_some() {}
        Ok(JsonNode::Other("an array"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<JsonNode, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = entries.next_entry()? {
            members.push(member);
        }
        Ok(JsonNode::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_map, option, prelude::*};

    use super::*;
    use crate::event::projection::{EventFormat, Projection};

    fn hash(filter: Filter) -> u64 {
        Projection { filter, ..Projection::everything(EventFormat::Full) }.fingerprint()
    }

    #[test]
    fn parse_maps_every_key_to_its_field() {
        let some = |text: &str| Some(text.to_owned());
        let text = r#"{"claims": {"source": "pool", "tenantId": "Zoë", "workloadRef": "w", "name": "c", "phase": "Active",
                       "labels": {"team": "a"}},
                       "instances": {"labels": {"b": null, "a": "1"}, "poolStatus": "ready", "tenantId": "t",
                       "workloadRef": "", "phase": "\u0052unning", "name": "n"}}"#;
        let instances = ObjectFilter {
            name: some("n"),
            phase: some("Running"),
            workload_ref: some(""),
            tenant_id: some("t"),
            pool_status: some("ready"),
            source: None,
            labels: [("a".into(), some("1")), ("b".into(), None)].into(),
        };
        let claims = ObjectFilter {
            name: some("c"),
            phase: some("Active"),
            workload_ref: some("w"),
            tenant_id: some("Zoë"),
            pool_status: None,
            source: some("pool"),
            labels: [("team".into(), some("a"))].into(),
        };
        assert_eq!(Filter::parse(text), Ok(Filter { instances, claims }));
    }

    #[test]
    fn equivalent_filters_have_equal_hashes() {
        let none = hash(Filter::default());
        let empty = ["{}", r#"{"instances":{}}"#, r#"{"claims":{"labels":{}},"instances":{"labels":{}}}"#];
        for text in empty {
            assert_eq!(Filter::parse(text).map(hash), Ok(none), "{text}");
        }
        let one = r#"{"instances":{"phase":"Running","labels":{"a":"1","b":null}}}"#;
        let other = r#" {"claims":{}, "instances":{"labels":{"b":null,"\u0061":"1"},"phase":"Running"}} "#;
        assert_eq!(Filter::parse(one).map(hash), Filter::parse(other).map(hash));
        for different in [
            r#"{"claims":{"phase":"Running","labels":{"a":"1","b":null}}}"#,
            r#"{"instances":{"phase":"Running","labels":{"a":"1","b":""}}}"#,
            r#"{"instances":{"phase":"Running","labels":{"a":"1"}}}"#,
        ] {
            assert_ne!(Filter::parse(one).map(hash), Filter::parse(different).map(hash), "{different}");
        }
    }

    #[test]
    fn parse_error_names_location_and_accepted_values() {
        let long = format!(r#"{{"instances":{{"name":"{}"}}}}"#, "x".repeat(MAX_BYTES));
        let instances = "accepted are name, phase, workloadRef, tenantId, poolStatus, labels";
        let claims = "accepted are name, phase, tenantId, workloadRef, source, labels";
        let rows: &[(&str, &str, &str)] = &[
            ("", "not JSON (EOF", r#"accepted is {"instances":{…},"claims":{…}}, URL-encoded"#),
            ("phase=Running", "not JSON (", "accepted is {"),
            (r#"{"instances":{}} x"#, "not JSON (trailing", "accepted is {"),
            (r#"{"instances":{"name":"\ud800"}}"#, "not JSON (", "accepted is {"),
            ("[]", "the whole is an array", "accepted is an object"),
            ("null", "the whole is null", "accepted is an object"),
            ("7", "the whole is a number", "accepted is an object"),
            (r#""instances""#, "the whole is a string", "accepted is an object"),
            (r#"{"pods":{}}"#, "unknown key 'pods'", "accepted are instances, claims"),
            (r#"{"instance":{}}"#, "unknown key 'instance'", "accepted are instances, claims"),
            (r#"{"phase":"Running"}"#, "unknown key 'phase'", "accepted are instances, claims"),
            (r#"{"instances":[]}"#, "instances is an array", "accepted is an object"),
            (r#"{"claims":null}"#, "claims is null", "accepted is an object"),
            (r#"{"instances":{"tenant":"a"}}"#, "unknown key 'tenant' under instances", instances),
            (r#"{"instances":{"source":"pool"}}"#, "unknown key 'source' under instances", instances),
            (r#"{"instances":{"workload_ref":"a"}}"#, "unknown key 'workload_ref' under instances", instances),
            (r#"{"claims":{"poolStatus":"ready"}}"#, "unknown key 'poolStatus' under claims", claims),
            (r#"{"instances":{"phase":null}}"#, "instances.phase is null", "accepted is a string"),
            (r#"{"instances":{"phase":["Running"]}}"#, "instances.phase is an array", "accepted is a string"),
            (r#"{"claims":{"name":-1}}"#, "claims.name is a number", "accepted is a string"),
            (r#"{"claims":{"name":1.5}}"#, "claims.name is a number", "accepted is a string"),
            (r#"{"claims":{"name":true}}"#, "claims.name is a boolean", "accepted is a string"),
            (r#"{"claims":{"name":{}}}"#, "claims.name is an object", "accepted is a string"),
            (r#"{"claims":{"labels":"a=b"}}"#, "claims.labels is a string", "accepted is an object"),
            (r#"{"claims":{"labels":{"a":1}}}"#, "claims.labels has 'a' as a number", "a string, and null"),
            (r#"{"claims":{"labels":{"a":{}}}}"#, "claims.labels has 'a' as an object", "a string, and null"),
            (r#"{"claims":{},"claims":{}}"#, "the whole has 'claims' more than once", "each key once"),
            (r#"{"claims":{"name":"a","n\u0061me":"b"}}"#, "claims has 'name' more than once", "each key once"),
            (r#"{"claims":{"labels":{"a":"1","a":null}}}"#, "claims.labels has 'a' more than once", "each key once"),
            (&long, "bytes long", "accepted are up to 8192"),
        ];
        for (text, problem, accepted) in rows {
            let sentence = Filter::parse(text).unwrap_err();
            assert!(sentence.contains(problem) && sentence.contains(accepted), "{text}: {sentence}");
        }
        // Depth is bounded, too.
        assert!(Filter::parse(&"[".repeat(MAX_BYTES)).unwrap_err().contains("recursion"));
    }

    fn any_object_filter(resource: Resource) -> impl Strategy<Value = ObjectFilter> {
        let text = || option::of(".{0,6}");
        let labels = btree_map(".{0,6}", text(), 0..3);
        (text(), text(), text(), text(), text(), labels).prop_map(
            move |(name, phase, workload, tenant, last, labels)| {
                let (pool_status, source) = match resource {
                    Resource::Pods => (last, None),
                    Resource::Claims => (None, last),
                };
                ObjectFilter { name, phase, workload_ref: workload, tenant_id: tenant, pool_status, source, labels }
            },
        )
    }

    proptest! {
        #[test]
        fn serialized_filter_round_trips(instances in any_object_filter(Resource::Pods), claims in any_object_filter(Resource::Claims)) {
            let filter = Filter { instances, claims };
            let text = serde_json::to_string(&filter).unwrap();
            let read = Filter::parse(&text);
            prop_assert_eq!(read.clone().map(hash), Ok(hash(filter.clone())));
            prop_assert_eq!(read, Ok(filter));
        }

        #[test]
        fn parse_never_panics_on_any_text(
            text in prop_oneof![".{0,40}", r#"(\{|\}|\[|\]|:|,|null|1|"(instances|claims|name|labels|a)"){0,14}"#]
        ) {
            match Filter::parse(&text) {
                Ok(filter) => {
                    let again = serde_json::to_string(&filter).unwrap();
                    prop_assert_eq!(Filter::parse(&again), Ok(filter));
                }
                Err(sentence) => prop_assert!(sentence.contains("accepted"), "{}", sentence),
            }
        }
    }
}
