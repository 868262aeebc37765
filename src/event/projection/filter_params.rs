//! The parser of `params` (docs/protocol.md#stream-endpoints): `{"instances":{…},"claims":{…}}` becomes a [`Filter`].
//!
//! Guarantees:
//! - The parser rejects everything that it does not know, because a filter that is read in another way than the client
//!   means shows too many objects or none. Each error contains the place and what is accepted there.
//! - Filters with the same meaning become equal values, so that they share a projection cache and a cursor. The order
//!   of keys does not matter, an empty object equals an absent one, and a key occurs once.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};

use super::{Filter, ObjectFilter};
use crate::event::{PerResource, Resource};

/// Maximum length of the text in bytes: 8 KiB. It is enough for a hundred labels, and it fits the head of a request.
const MAX_BYTES: usize = 8 << 10;

/// The key of each resource at the top level of `params`.
const RESOURCE_KEYS: PerResource<&str> = PerResource::new("instances", "claims");

impl Filter {
    /// Parses the decoded value of `params`, at most 8 KiB.
    ///
    /// # Errors
    /// Returns a message with the place, the reason, and what is accepted there.
    pub fn parse(text: &str) -> Result<Filter, String> {
        if text.len() > MAX_BYTES {
            return Err(format!("{} bytes long; the maximum is {MAX_BYTES} bytes", text.len()));
        }
        let node = serde_json::from_str(text)
            .map_err(|e| format!(r#"not JSON ({e}); expected {{"instances":{{…}},"claims":{{…}}}}, URL-encoded"#))?;
        let mut filter = Filter::default();
        for (key, node) in object_members("the value", node)? {
            match Resource::ALL.into_iter().find(|resource| RESOURCE_KEYS[*resource] == key) {
                Some(Resource::Pods) => filter.instances = parse_object_filter(Resource::Pods, node)?,
                Some(Resource::Claims) => filter.claims = parse_object_filter(Resource::Claims, node)?,
                None => {
                    let accepted = RESOURCE_KEYS.into_array().join(", ");
                    return Err(format!("unknown key '{key}'; accepted keys: {accepted}"));
                }
            }
        }
        Ok(filter)
    }
}

/// Returns the keys that filter the objects of this resource.
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
            return Err(format!("unknown key '{key}' under {under}; accepted keys: {}", accepted.join(", ")));
        }
        let place = format!("{under}.{key}");
        let field = match key.as_str() {
            "name" => &mut filter.name,
            "phase" => &mut filter.phase,
            "workloadRef" => &mut filter.workload_ref,
            "tenantId" => &mut filter.tenant_id,
            "poolStatus" => &mut filter.pool_status,
            "source" => &mut filter.source,
            // Only `labels` is left of the accepted keys.
            _ => {
                filter.labels = labels(&place, node)?;
                continue;
            }
        };
        let JsonNode::Text(value) = node else {
            return Err(format!("{place} is {}; expected a string", node.type_name()));
        };
        *field = Some(value);
    }
    Ok(filter)
}

fn labels(place: &str, node: JsonNode) -> Result<BTreeMap<String, Option<String>>, String> {
    let value = |(key, node): (String, JsonNode)| match node {
        JsonNode::Text(value) => Ok((key, Some(value))),
        JsonNode::Null => Ok((key, None)),
        JsonNode::Object(_) | JsonNode::Other(_) => {
            Err(format!("{place} has '{key}' as {}; expected a string, or null for any value", node.type_name()))
        }
    };
    object_members(place, node)?.into_iter().map(value).collect()
}

/// Returns the members of `node`, which must be an object with each key once. Of two values for a key, one would
/// otherwise be dropped without an error.
fn object_members(place: &str, node: JsonNode) -> Result<Vec<(String, JsonNode)>, String> {
    let JsonNode::Object(members) = node else {
        return Err(format!("{place} is {}; expected an object, {{…}}", node.type_name()));
    };
    let mut keys: Vec<&str> = members.iter().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    match keys.windows(2).find(|two| two[0] == two[1]) {
        Some(two) => Err(format!("{place} has '{}' more than once; write each key once", two[0])),
        None => Ok(members),
    }
}

/// A JSON value, reduced to what filters contain. An object has all its members, also those with the same key.
#[derive(Debug)]
enum JsonNode {
    Text(String),
    Null,
    Object(Vec<(String, JsonNode)>),
    /// A value of a type that no filter contains: the name of the type.
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
        f.write_str("a JSON value")
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
            assert_eq!(Filter::parse(text).map(hash), Ok(none), "must have the hash of no filter: {text}");
        }
        let one = r#"{"instances":{"phase":"Running","labels":{"a":"1","b":null}}}"#;
        let other = r#" {"claims":{}, "instances":{"labels":{"b":null,"\u0061":"1"},"phase":"Running"}} "#;
        assert_eq!(Filter::parse(one).map(hash), Filter::parse(other).map(hash));
        for different in [
            r#"{"claims":{"phase":"Running","labels":{"a":"1","b":null}}}"#,
            r#"{"instances":{"phase":"Running","labels":{"a":"1","b":""}}}"#,
            r#"{"instances":{"phase":"Running","labels":{"a":"1"}}}"#,
        ] {
            let hashes = (Filter::parse(one).map(hash), Filter::parse(different).map(hash));
            assert_ne!(hashes.0, hashes.1, "must have another hash: {different}");
        }
    }

    #[test]
    fn parse_error_names_location_and_accepted_values() {
        let long = format!(r#"{{"instances":{{"name":"{}"}}}}"#, "x".repeat(MAX_BYTES));
        let instances = "accepted keys: name, phase, workloadRef, tenantId, poolStatus, labels";
        let claims = "accepted keys: name, phase, tenantId, workloadRef, source, labels";
        let rows: &[(&str, &str, &str)] = &[
            ("", "not JSON (EOF", r#"expected {"instances":{…},"claims":{…}}, URL-encoded"#),
            ("phase=Running", "not JSON (", "expected {"),
            (r#"{"instances":{}} x"#, "not JSON (trailing", "expected {"),
            (r#"{"instances":{"name":"\ud800"}}"#, "not JSON (", "expected {"),
            ("[]", "the value is an array", "expected an object"),
            ("null", "the value is null", "expected an object"),
            ("7", "the value is a number", "expected an object"),
            (r#""instances""#, "the value is a string", "expected an object"),
            (r#"{"pods":{}}"#, "unknown key 'pods'", "accepted keys: instances, claims"),
            (r#"{"instance":{}}"#, "unknown key 'instance'", "accepted keys: instances, claims"),
            (r#"{"phase":"Running"}"#, "unknown key 'phase'", "accepted keys: instances, claims"),
            (r#"{"instances":[]}"#, "instances is an array", "expected an object"),
            (r#"{"claims":null}"#, "claims is null", "expected an object"),
            (r#"{"instances":{"tenant":"a"}}"#, "unknown key 'tenant' under instances", instances),
            (r#"{"instances":{"source":"pool"}}"#, "unknown key 'source' under instances", instances),
            (r#"{"instances":{"workload_ref":"a"}}"#, "unknown key 'workload_ref' under instances", instances),
            (r#"{"claims":{"poolStatus":"ready"}}"#, "unknown key 'poolStatus' under claims", claims),
            (r#"{"instances":{"phase":null}}"#, "instances.phase is null", "expected a string"),
            (r#"{"instances":{"phase":["Running"]}}"#, "instances.phase is an array", "expected a string"),
            (r#"{"claims":{"name":-1}}"#, "claims.name is a number", "expected a string"),
            (r#"{"claims":{"name":1.5}}"#, "claims.name is a number", "expected a string"),
            (r#"{"claims":{"name":true}}"#, "claims.name is a boolean", "expected a string"),
            (r#"{"claims":{"name":{}}}"#, "claims.name is an object", "expected a string"),
            (r#"{"claims":{"labels":"a=b"}}"#, "claims.labels is a string", "expected an object"),
            (r#"{"claims":{"labels":{"a":1}}}"#, "claims.labels has 'a' as a number", "a string, or null"),
            (r#"{"claims":{"labels":{"a":{}}}}"#, "claims.labels has 'a' as an object", "a string, or null"),
            (r#"{"claims":{},"claims":{}}"#, "the value has 'claims' more than once", "write each key once"),
            (r#"{"claims":{"name":"a","n\u0061me":"b"}}"#, "claims has 'name' more than once", "write each key once"),
            (
                r#"{"claims":{"labels":{"a":"1","a":null}}}"#,
                "claims.labels has 'a' more than once",
                "write each key once",
            ),
            (&long, "bytes long", "the maximum is 8192 bytes"),
        ];
        for (text, reason, accepted) in rows {
            let error = Filter::parse(text).unwrap_err();
            assert!(
                error.contains(reason) && error.contains(accepted),
                "{text}: expected {reason:?} and {accepted:?}: {error}"
            );
        }
        // The depth is bounded as well.
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
                Err(error) => {
                    let hints = ["; accepted keys: ", "; expected ", "; write each key once", "; the maximum is "];
                    prop_assert!(hints.iter().any(|hint| error.contains(hint)), "no hint what is accepted: {}", error);
                }
            }
        }
    }
}
