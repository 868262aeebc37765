use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A Pod with every decoded field and some others. `test_support::PodBuilder` has fewer fields.
pub(super) fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "web-1", "namespace": "bh", "uid": "u-1", "resourceVersion": "41",
            "creationTimestamp": "2026-01-02T03:04:05Z", "generation": 1,
            "labels": {
                "boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": "web",
                "boilerhouse.dev/tenant": "alice", "boilerhouse.dev/pool-status": "ready"
            },
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}]
        },
        "spec": {"containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "podIP": "10.0.0.7", "conditions": [{"type": "Ready", "status": "True"}]}
    })
}

/// A claim with every decoded field and some others. `test_support::ClaimBuilder` has fewer fields.
pub(super) fn claim() -> Value {
    json!({
        "apiVersion": "boilerhouse.dev/v1alpha1", "kind": "BoilerhouseClaim",
        "metadata": {
            "name": "alice-web", "uid": "u-2", "resourceVersion": "42",
            "creationTimestamp": "2026-01-02T03:04:05Z", "labels": {"team": "a"},
            "annotations": {"boilerhouse.dev/last-activity": "2026-01-02T04:00:00Z", "other": "x"}
        },
        "spec": {"tenantId": "alice", "workloadRef": "web", "resume": true},
        "status": {
            "phase": "Active", "instanceId": "web-1", "endpoint": {"host": "10.0.0.7", "port": 8080},
            "source": "pool", "claimedAt": "2026-01-02T03:05:00Z", "detail": "fine"
        }
    })
}

fn decode<T: Decode>(object: &Value) -> Decoded {
    serde_json::from_str::<T>(&object.to_string()).unwrap().into_decoded()
}

/// Every field of a view by name, including the fields that are not serialized. Labels are separate entries.
fn fields_of(view: &View) -> Vec<(&'static str, String)> {
    let text = |v: &Option<String>| format!("{v:?}");
    match view {
        View::Instance(i) => vec![
            ("name", i.name.clone()),
            ("uid", i.uid.clone()),
            ("rv", i.resource_version.to_string()),
            ("phase", i.phase.clone()),
            ("workload", text(&i.workload_ref)),
            ("tenant", text(&i.tenant_id)),
            ("pool", text(&i.pool_status)),
            ("ip", text(&i.ip)),
            ("created", i.created_at.clone()),
            ("managed", text(&i.labels.get("boilerhouse.dev/managed").cloned())),
        ],
        View::Claim(c) => vec![
            ("name", c.name.clone()),
            ("uid", c.uid.clone()),
            ("rv", c.resource_version.to_string()),
            ("tenant", c.tenant_id.clone()),
            ("workload", c.workload_ref.clone()),
            ("phase", c.phase.clone()),
            ("instance", text(&c.instance_id)),
            ("endpoint", format!("{:?}", c.endpoint)),
            ("source", text(&c.source)),
            ("claimed", text(&c.claimed_at)),
            ("detail", text(&c.detail)),
            ("labels", format!("{:?}", c.labels)),
            ("activity", text(&c.last_activity)),
        ],
    }
}

/// A JSON pointer, the fields of the view that depend on it, and its name in `malformed_fields`.
pub(super) type Place = (&'static str, &'static [&'static str], Option<&'static str>);

pub(super) const POD_PLACES: &[Place] = &[
    ("/metadata/creationTimestamp", &["created"], Some("metadata.creationTimestamp")),
    ("/metadata/labels", &["workload", "tenant", "pool", "managed"], Some("metadata.labels")),
    ("/metadata/labels/boilerhouse.dev~1workload", &["workload"], Some("metadata.labels")),
    ("/metadata/labels/boilerhouse.dev~1tenant", &["tenant"], Some("metadata.labels")),
    ("/metadata/labels/boilerhouse.dev~1pool-status", &["pool"], Some("metadata.labels")),
    ("/metadata/labels/boilerhouse.dev~1managed", &["managed"], Some("metadata.labels")),
    ("/metadata/managedFields", &[], None),
    ("/metadata/namespace", &[], None),
    ("/kind", &[], None),
    ("/spec", &[], None),
    ("/status", &["phase", "ip"], Some("status")),
    ("/status/phase", &["phase"], Some("status.phase")),
    ("/status/podIP", &["ip"], Some("status.podIP")),
    ("/status/conditions", &[], None),
];

pub(super) const CLAIM_PLACES: &[Place] = &[
    ("/metadata/labels", &["labels"], Some("metadata.labels")),
    ("/metadata/annotations", &["activity"], Some("metadata.annotations")),
    ("/metadata/annotations/boilerhouse.dev~1last-activity", &["activity"], Some("metadata.annotations")),
    ("/metadata/annotations/other", &[], None),
    ("/spec", &["tenant", "workload"], Some("spec")),
    ("/spec/tenantId", &["tenant"], Some("spec.tenantId")),
    ("/spec/workloadRef", &["workload"], Some("spec.workloadRef")),
    ("/spec/resume", &[], None),
    ("/status", &["phase", "instance", "endpoint", "source", "claimed", "detail"], Some("status")),
    ("/status/phase", &["phase"], Some("status.phase")),
    ("/status/instanceId", &["instance"], Some("status.instanceId")),
    ("/status/endpoint", &["endpoint"], Some("status.endpoint")),
    ("/status/endpoint/host", &["endpoint"], Some("status.endpoint")),
    ("/status/endpoint/port", &["endpoint"], Some("status.endpoint")),
    ("/status/source", &["source"], Some("status.source")),
    ("/status/claimedAt", &["claimed"], Some("status.claimedAt")),
    ("/status/detail", &["detail"], Some("status.detail")),
];

pub(super) fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter("JSON has no NaN", |f| f.is_finite()).prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("\\PC{0,6}", inner, 0..4).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

fn same_type(a: &Value, b: &Value) -> bool {
    std::mem::discriminant(a) == std::mem::discriminant(b)
}

/// Replaces one value by one of another type, and checks that only the fields that depend on it change.
fn replace_one<T: Decode>(mut object: Value, places: &[Place], at: usize, value: Value) -> Result<(), TestCaseError> {
    let before = decode::<T>(&object);
    let (pointer, dependent, name) = places[at % places.len()];
    let place = object.pointer_mut(pointer).unwrap();
    prop_assume!(!same_type(place, &value));
    *place = value;
    let after = decode::<T>(&object);
    prop_assert_eq!(&after.malformed_fields, &name.into_iter().collect::<Vec<_>>());
    prop_assert!(after.malformed_fields.iter().all(|field| T::FIELDS.contains(field)), "{:?} is not in FIELDS", name);
    for ((field, old), (_, new)) in fields_of(&before.view).into_iter().zip(fields_of(&after.view)) {
        if dependent.contains(&field) {
            prop_assert_ne!(old, new, "{} must change", field);
        } else {
            prop_assert_eq!(old, new, "{} must not change", field);
        }
    }
    Ok(())
}

#[test]
fn fields_are_sorted_and_cover_all_malformed_fields() {
    for (fields, places) in [(DecodedPod::FIELDS, POD_PLACES), (DecodedClaim::FIELDS, CLAIM_PLACES)] {
        let mut expected: Vec<&str> = places.iter().filter_map(|(_, _, name)| *name).collect();
        expected.sort_unstable();
        expected.dedup();
        assert_eq!(fields, expected);
    }
}

proptest! {
    #[test]
    fn malformed_pod_field_affects_no_other_field(at in any::<usize>(), value in any_json()) {
        replace_one::<DecodedPod>(pod(), POD_PLACES, at, value)?;
    }

    #[test]
    fn malformed_claim_field_affects_no_other_field(at in any::<usize>(), value in any_json()) {
        replace_one::<DecodedClaim>(claim(), CLAIM_PLACES, at, value)?;
    }
}

#[test]
fn valid_pod_decodes_completely() {
    let Decoded { view, malformed_fields } = decode::<DecodedPod>(&pod());
    assert_eq!(malformed_fields, Vec::<&str>::new());
    let View::Instance(instance) = view else { panic!("a Pod must decode to an instance") };
    assert_eq!(
        serde_json::to_value(&*instance).unwrap(),
        json!({
            "name": "web-1", "uid": "u-1", "phase": "Running", "workloadRef": "web", "tenantId": "alice",
            "poolStatus": "ready", "ip": "10.0.0.7", "createdAt": "2026-01-02T03:04:05Z",
            "labels": {
                "boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": "web",
                "boilerhouse.dev/tenant": "alice", "boilerhouse.dev/pool-status": "ready"
            }
        })
    );
    assert_eq!(instance.resource_version, 41);
}

#[test]
fn valid_claim_decodes_completely() {
    let Decoded { view, malformed_fields } = decode::<DecodedClaim>(&claim());
    assert_eq!(malformed_fields, Vec::<&str>::new());
    let View::Claim(claim) = view else { panic!("a claim must decode to a claim") };
    assert_eq!(
        serde_json::to_value(&*claim).unwrap(),
        json!({
            "name": "alice-web", "uid": "u-2", "tenantId": "alice", "workloadRef": "web", "phase": "Active",
            "instanceId": "web-1", "endpoint": {"host": "10.0.0.7", "port": 8080}, "source": "pool",
            "claimedAt": "2026-01-02T03:05:00Z", "detail": "fine", "labels": {"team": "a"}
        })
    );
    assert_eq!((claim.resource_version, claim.last_activity.as_deref()), (42, Some("2026-01-02T04:00:00Z")));
}

#[test]
fn minimal_objects_get_default_values() {
    let minimal = json!({"metadata": {"name": "n", "uid": "u", "resourceVersion": "1"}});
    let pod = decode::<DecodedPod>(&minimal);
    assert_eq!(pod.malformed_fields, Vec::<&str>::new());
    assert_eq!(
        pod.view,
        View::Instance(Arc::new(Instance {
            name: "n".into(),
            uid: "u".into(),
            phase: "Unknown".into(),
            resource_version: 1,
            ..Instance::default()
        }))
    );
    let claim = decode::<DecodedClaim>(&minimal);
    assert_eq!(claim.malformed_fields, Vec::<&str>::new());
    assert_eq!(
        claim.view,
        View::Claim(Arc::new(Claim {
            name: "n".into(),
            uid: "u".into(),
            phase: "Pending".into(),
            resource_version: 1,
            ..Claim::default()
        }))
    );
}

#[test]
fn empty_strings_are_omitted() {
    let mut object = pod();
    object["status"]["phase"] = json!("");
    object["status"]["podIP"] = json!("");
    object["metadata"]["labels"]["boilerhouse.dev/tenant"] = json!("");
    let Decoded { view: View::Instance(instance), malformed_fields } = decode::<DecodedPod>(&object) else {
        panic!("a Pod must decode to an instance")
    };
    assert_eq!((instance.phase.as_str(), &instance.ip, &instance.tenant_id), ("Unknown", &None, &None));
    assert_eq!(instance.labels["boilerhouse.dev/tenant"], "");
    assert_eq!(malformed_fields, Vec::<&str>::new());
}

#[test]
fn times_are_normalized_to_utc_seconds() {
    for (text, expected) in [
        (json!("2026-01-02T03:04:05Z"), "2026-01-02T03:04:05Z"),
        (json!("2026-01-02T03:04:05.999Z"), "2026-01-02T03:04:05Z"),
        (json!("2026-01-02T03:04:05+02:00"), "2026-01-02T01:04:05Z"),
        (json!("yesterday"), ""),
        (json!(null), ""),
        (json!(1_767_323_045), ""),
    ] {
        let mut object = pod();
        object["metadata"]["creationTimestamp"] = text.clone();
        let Decoded { view: View::Instance(instance), malformed_fields } = decode::<DecodedPod>(&object) else {
            panic!("a Pod must decode to an instance")
        };
        assert_eq!(instance.created_at, expected, "createdAt of {text}");
        assert_eq!(malformed_fields.is_empty(), !expected.is_empty(), "malformed fields of {text}");
    }
}

#[test]
fn invalid_port_removes_the_endpoint() {
    for (port, is_valid) in [
        (json!(1), true),
        (json!(65535), true),
        (json!(0), false),
        (json!(65536), false),
        (json!(-1), false),
        (json!(80.5), false),
        (json!("80"), false),
    ] {
        let mut object = claim();
        object["status"]["endpoint"]["port"] = port.clone();
        let Decoded { view: View::Claim(claim), malformed_fields } = decode::<DecodedClaim>(&object) else {
            panic!("a claim must decode to a claim")
        };
        assert_eq!(claim.endpoint.is_some(), is_valid, "the endpoint with port {port}");
        assert_eq!(malformed_fields, if is_valid { vec![] } else { vec!["status.endpoint"] }, "{port}");
    }
    let mut object = claim();
    object["status"]["endpoint"] = json!({});
    assert_eq!(decode::<DecodedClaim>(&object).malformed_fields, ["status.endpoint"]);
}

#[test]
fn unknown_phases_and_sources_are_preserved() {
    let mut object = claim();
    object["status"]["phase"] = json!("Hibernating");
    object["status"]["source"] = json!("moon");
    let Decoded { view: View::Claim(claim), .. } = decode::<DecodedClaim>(&object) else {
        panic!("a claim must decode to a claim")
    };
    assert_eq!((claim.phase.as_str(), claim.source.as_deref()), ("Hibernating", Some("moon")));
}

#[test]
fn object_without_identity_fails_to_decode() {
    for pointer in ["name", "uid", "resourceVersion"] {
        for value in [json!(null), json!(7), json!({})] {
            let mut object = pod();
            object["metadata"][pointer] = value;
            assert!(
                serde_json::from_value::<DecodedPod>(object).is_err(),
                "an object with malformed {pointer} must fail"
            );
        }
    }
    for version in ["", "x", "-1", "1.5", "18446744073709551616"] {
        let mut object = pod();
        object["metadata"]["resourceVersion"] = json!(version);
        assert!(serde_json::from_value::<DecodedPod>(object).is_err(), "an object with version {version:?} must fail");
    }
}

#[test]
fn decoded_objects_implement_the_kube_resource_traits() {
    use kube::ResourceExt;
    let object: DecodedClaim = serde_json::from_value(claim()).unwrap();
    assert_eq!(
        (object.name_any(), object.uid(), object.resource_version()),
        ("alice-web".into(), Some("u-2".into()), Some("42".into()))
    );
    assert_eq!(
        DecodedClaim::url_path(&(), Some("bh")),
        "/apis/boilerhouse.dev/v1alpha1/namespaces/bh/boilerhouseclaims"
    );
    assert_eq!(DecodedPod::url_path(&(), Some("bh")), "/api/v1/namespaces/bh/pods");
}
