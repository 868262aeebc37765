//! `params` of protocol.md section 4: a filter as clients write it, `{"instances":{…},"claims":{…}}`.
//!
//! Strict, because a filter that is misunderstood shows too much or nothing: every mistake is a sentence that says where
//! it is and what is accepted there. A filter has one form however it was written, so that equal filters share a lens
//! and a cursor: keys have an order, an empty object is the same as none, a key stands once.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};

use super::{Filter, Wanted};
use crate::event::Resource;

/// The longest text that is read, in bytes: 8 KiB, room for a hundred labels and no more than fits a request's head.
const MAX_BYTES: usize = 8 << 10;

/// What stands directly under `params`, in the order of [`Kind`].
const KINDS: [&str; 2] = ["instances", "claims"];

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
        for (key, node) in members("the whole", node)? {
            match Resource::ALL.into_iter().find(|kind| KINDS[*kind as usize] == key) {
                Some(Resource::Instance) => filter.instances = wanted(Resource::Instance, node)?,
                Some(Resource::Claim) => filter.claims = wanted(Resource::Claim, node)?,
                None => return Err(format!("unknown key '{key}': accepted are {}", KINDS.join(", "))),
            }
        }
        Ok(filter)
    }
}

/// The keys that filter this kind of object.
fn accepted(kind: Resource) -> [&'static str; 6] {
    match kind {
        Resource::Instance => ["name", "phase", "workloadRef", "tenantId", "poolStatus", "labels"],
        Resource::Claim => ["name", "phase", "tenantId", "workloadRef", "source", "labels"],
    }
}

fn wanted(kind: Resource, node: Node) -> Result<Wanted, String> {
    let (under, accepted) = (KINDS[kind as usize], accepted(kind));
    let mut wanted = Wanted::default();
    for (key, node) in members(under, node)? {
        if !accepted.contains(&key.as_str()) {
            return Err(format!("unknown key '{key}' under {under}: accepted are {}", accepted.join(", ")));
        }
        let place = format!("{under}.{key}");
        let field = match key.as_str() {
            "name" => &mut wanted.name,
            "phase" => &mut wanted.phase,
            "workloadRef" => &mut wanted.workload_ref,
            "tenantId" => &mut wanted.tenant_id,
            "poolStatus" => &mut wanted.pool_status,
            "source" => &mut wanted.source,
            // `labels`: the only other one that is accepted.
            _ => {
                wanted.labels = labels(&place, node)?;
                continue;
            }
        };
        let Node::Text(value) = node else {
            return Err(format!("{place} is {}: accepted is a string", node.what()));
        };
        *field = Some(value);
    }
    Ok(wanted)
}

fn labels(place: &str, node: Node) -> Result<BTreeMap<String, Option<String>>, String> {
    let value = |(key, node): (String, Node)| match node {
        Node::Text(value) => Ok((key, Some(value))),
        Node::Null => Ok((key, None)),
        Node::Object(_) | Node::Other(_) => Err(format!(
            "{place} has '{key}' as {}: accepted are a string, and null where any value will do",
            node.what()
        )),
    };
    members(place, node)?.into_iter().map(value).collect()
}

/// The members of what must be an object, each key once: of two values one would be dropped without a word.
fn members(place: &str, node: Node) -> Result<Vec<(String, Node)>, String> {
    let Node::Object(members) = node else {
        return Err(format!("{place} is {}: accepted is an object, {{…}}", node.what()));
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
enum Node {
    Text(String),
    Null,
    Object(Vec<(String, Node)>),
    /// What no filter has, in words.
    Other(&'static str),
}

impl Node {
    fn what(&self) -> &'static str {
        match self {
            Node::Text(_) => "a string",
            Node::Null => "null",
            Node::Object(_) => "an object",
            Node::Other(what) => what,
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(Reading)
    }
}

struct Reading;

impl<'de> Visitor<'de> for Reading {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Text(text.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Other("a boolean"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Other("a number"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Other("a number"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        while items.next_element::<Node>()?.is_some() {}
        Ok(Node::Other("an array"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = entries.next_entry()? {
            members.push(member);
        }
        Ok(Node::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_map, option, prelude::*};

    use super::*;
    use crate::event::projection::{Format, Lens};

    fn hash(filter: Filter) -> u64 {
        Lens { filter, ..Lens::all(Format::Full) }.hash()
    }

    #[test]
    fn every_key_has_its_place() {
        let some = |text: &str| Some(text.to_owned());
        let text = r#"{"claims": {"source": "pool", "tenantId": "Zoë", "workloadRef": "w", "name": "c", "phase": "Active",
                       "labels": {"team": "a"}},
                       "instances": {"labels": {"b": null, "a": "1"}, "poolStatus": "ready", "tenantId": "t",
                       "workloadRef": "", "phase": "\u0052unning", "name": "n"}}"#;
        let instances = Wanted {
            name: some("n"),
            phase: some("Running"),
            workload_ref: some(""),
            tenant_id: some("t"),
            pool_status: some("ready"),
            source: None,
            labels: [("a".into(), some("1")), ("b".into(), None)].into(),
        };
        let claims = Wanted {
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
    fn a_filter_has_one_form() {
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
    fn what_is_wrong_is_said_with_its_place_and_what_is_accepted() {
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

    fn any_wanted(kind: Resource) -> impl Strategy<Value = Wanted> {
        let text = || option::of(".{0,6}");
        let labels = btree_map(".{0,6}", text(), 0..3);
        (text(), text(), text(), text(), text(), labels).prop_map(
            move |(name, phase, workload, tenant, last, labels)| {
                let (pool_status, source) = match kind {
                    Resource::Instance => (last, None),
                    Resource::Claim => (None, last),
                };
                Wanted { name, phase, workload_ref: workload, tenant_id: tenant, pool_status, source, labels }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(instances in any_wanted(Resource::Instance), claims in any_wanted(Resource::Claim)) {
            let filter = Filter { instances, claims };
            let text = serde_json::to_string(&filter).unwrap();
            let read = Filter::parse(&text);
            prop_assert_eq!(read.clone().map(hash), Ok(hash(filter.clone())));
            prop_assert_eq!(read, Ok(filter));
        }

        #[test]
        fn any_text_is_read_or_refused_never_a_panic(
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
