use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::source::decode::{
    Decoded, DecodedClaim, DecodedPod,
    tests::{CLAIM_PLACES, POD_PLACES, Place, any_json, claim, pod},
};

/// The recorded line whose cost `tests/scripts/instructions` measures.
#[path = "../../../../benches/line_to_frame/line.rs"]
mod recorded_line;

static RECORDED: LazyLock<String> =
    LazyLock::new(|| String::from_utf8(recorded_line::Line::new().next().to_vec()).unwrap());

fn modified(object: &Value) -> String {
    format!(r#"{{"type":"MODIFIED","object":{object}}}"#)
}

/// The type of an event, and the decoded object.
fn summary<T: Decode>(event: WatchEvent<T>) -> (&'static str, Option<Decoded>) {
    match event {
        WatchEvent::Added(object) => ("ADDED", Some(object.into_decoded())),
        WatchEvent::Modified(object) => ("MODIFIED", Some(object.into_decoded())),
        WatchEvent::Deleted(object) => ("DELETED", Some(object.into_decoded())),
        WatchEvent::Bookmark(_) => ("BOOKMARK", None),
        WatchEvent::Error(_) => ("ERROR", None),
    }
}

fn with_serde<T: Decode>(text: &str) -> Option<(&'static str, Option<Decoded>)> {
    serde_json::from_str(text).ok().map(summary::<T>)
}

fn fast<T: Decode>(text: &str) -> Option<(&'static str, Option<Decoded>)> {
    parse_fast(text.as_bytes()).map(summary::<T>)
}

fn complete<T: Decode>(text: &str) -> Option<(&'static str, Option<Decoded>)> {
    parse_watch_line(text.as_bytes()).ok().map(summary::<T>)
}

/// A line with an object in which some values are replaced.
fn line_with(mut object: Value, targets: &[Place], values: &[(usize, Value)]) -> String {
    for (at, value) in values {
        if let Some(place) = object.pointer_mut(targets[at % targets.len()].0) {
            *place = value.clone();
        }
    }
    modified(&object)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn malformed_pods_decode_as_with_serde(values in prop::collection::vec((any::<usize>(), any_json()), 0..4)) {
        let text = line_with(pod(), POD_PLACES, &values);
        let serde = with_serde::<DecodedPod>(&text);
        prop_assert!(serde.is_some());
        if !text.contains('\\') {
            prop_assert_eq!(&fast::<DecodedPod>(&text), &serde);
        }
        prop_assert_eq!(complete::<DecodedPod>(&text), serde);
    }

    #[test]
    fn malformed_claims_decode_as_with_serde(values in prop::collection::vec((any::<usize>(), any_json()), 0..4)) {
        let text = line_with(claim(), CLAIM_PLACES, &values);
        let serde = with_serde::<DecodedClaim>(&text);
        prop_assert!(serde.is_some());
        if !text.contains('\\') {
            prop_assert_eq!(&fast::<DecodedClaim>(&text), &serde);
        }
        prop_assert_eq!(complete::<DecodedClaim>(&text), serde);
    }

    /// Some bytes of a line are removed, and other bytes may be inserted. If serde parses the result, both parsers agree.
    #[test]
    fn spliced_lines_decode_as_with_serde(
        from in any::<prop::sample::Index>(),
        removed in 0_usize..60,
        inserted in prop_oneof![
            Just(String::new()),
            "[]\\[{}\",:\\\\ a1]{0,8}",
            prop::sample::select(vec!["<html>", "{\"phase\":\"x\"}", "null", "\"status\":", "\t", "\\u0000"]).prop_map(str::to_owned),
        ],
    ) {
        let from = from.index(RECORDED.len());
        let to = (from + removed).min(RECORDED.len());
        let text = format!("{}{inserted}{}", &RECORDED[..from], &RECORDED[to..]);
        if let Some(serde) = with_serde::<DecodedPod>(&text) {
            prop_assert_eq!(complete::<DecodedPod>(&text).unwrap(), serde);
        }
    }

    /// A changed byte in skipped data either leaves the view unchanged, or the line is rejected.
    #[test]
    fn corrupt_byte_in_skipped_data_changes_no_decoded_field(at in any::<prop::sample::Index>(), byte in 0x20_u8..0x7f) {
        let skipped = RECORDED.find("\"annotations\"").unwrap()..RECORDED.find("\"status\":{\"conditions\"").unwrap();
        let mut text = RECORDED.clone().into_bytes();
        text[skipped.start + at.index(skipped.len())] = byte;
        let text = String::from_utf8(text).unwrap();
        if let Some((_, decoded)) = complete::<DecodedPod>(&text) {
            let expected = with_serde::<DecodedPod>(&RECORDED).unwrap().1.unwrap();
            // The skipped range includes the key `annotations` and the start of `spec` and `managedFields`.
            prop_assert!(decoded.is_some_and(|decoded| decoded.view == expected.view), "the view must not change: {}", text);
        }
    }
}

#[test]
fn recorded_line_uses_the_fast_decoder() {
    let event = fast::<DecodedPod>(&RECORDED);
    assert!(event.is_some());
    assert_eq!(event, with_serde::<DecodedPod>(&RECORDED));
}

#[test]
fn truncated_line_is_rejected_at_every_length() {
    let text = modified(&pod());
    for cut in 0..text.len() {
        assert_eq!(complete::<DecodedPod>(&text[..cut]), None, "cut at {cut}");
    }
    for cut in (0..RECORDED.len()).step_by(61) {
        assert_eq!(complete::<DecodedPod>(&RECORDED[..cut]), None, "cut at {cut}");
        assert_eq!(complete::<DecodedPod>(&format!("{}<html>", &RECORDED[..cut])), None, "cut at {cut}");
        assert_eq!(
            complete::<DecodedPod>(&format!("{}{}", &RECORDED[..cut], *RECORDED)).is_some(),
            cut == 0,
            "repeated after a cut at {cut}"
        );
    }
}

#[test]
fn structurally_invalid_line_is_rejected() {
    let meta = r#""metadata":{"name":"n","uid":"u","resourceVersion":"1"}"#;
    for object in [
        "<html>",
        r#"{<html>"#,
        r#"{META,"status":<html>}"#,
        r#"{META,"spec":<html>}"#,
        r#"{META,"spec":nul}"#,
        r#"{META,"spec":}"#,
        r#"{META,"spec"}"#,
        r#"{META,}"#,
        r#"{META "spec":1}"#,
        r#"{META,"spec":{}"#,
        r#"{META,"spec":{}}}"#,
        r#"{META,"spec":[}"#,
        r#"{META,"spec":"x}"#,
        r#"{META,"spec":"x"y}"#,
        r#"{META,"spec":{"a":"b\"}}"#,
        r#"{META,spec:1}"#,
        r#"{META,"status":{"phase":"a" "podIP":"b"}}"#,
        r#"{META,"status":{"phase":tru}}"#,
        r#"{META,"status":{"phase":truex}}"#,
        r#"{META,"status":{"phase":nullx}}"#,
        r#"{META,"status":{"phase":80x}}"#,
        r#"{META,"status":{"phase":1"a"}}"#,
        r#"{META,"status":{"phase":"\x"}}"#,
        r#"{META,META}"#,
        r#"{"status":{}}"#,
        r#"[]"#,
        "1",
    ] {
        let text = format!(r#"{{"type":"ADDED","object":{}}}"#, object.replace("META", meta));
        assert_eq!(with_serde::<DecodedPod>(&text), None, "{text}");
        assert_eq!(complete::<DecodedPod>(&text), None, "{text}");
    }
    for end in ["", "}}", "},", "}]", "}{}", ",\"type\":\"ADDED\"}", ",\"object\":{}}"] {
        let text = format!(r#"{{"type":"ADDED","object":{{{meta}}}{end}"#);
        assert_eq!(complete::<DecodedPod>(&text), None, "{text}");
    }
}

#[test]
fn equivalent_encodings_of_a_line_decode_equally() {
    let meta = r#"{"name":"n","uid":"u","resourceVersion":"7","labels":{"a":"1","a\u0062":"2","a":"3"}}"#;
    let object = format!(r#"{{"metadata":{meta},"status":{{"phase":"R\u00e9\"\\","podIP":"\u0031"}}}}"#);
    let plain = r#"{"metadata":{"name":"n","uid":"u","resourceVersion":"7"}}"#;
    for (text, is_fast) in [
        (format!(r#"{{"type":"ADDED","object":{object}}}"#), false),
        (format!(r#"{{"type":"ADDED","object":{plain}}}"#), true),
        (format!(r#"{{"type":"DELETED","object":{plain}}}"#), true),
        (format!(r#"{{"type":"MODIFIED","object":{}}}"#, plain.replace(':', " :\t").replace('{', "{ \r")), true),
        (format!(r#"{{"type":"MODIFIED","object":{plain} }} "#), true),
        (format!(r#"{{"object":{plain},"type":"MODIFIED"}}"#), false),
        (format!(r#"{{"type":"MODIFIED","more":[],"object":{plain}}}"#), false),
        (format!(r#" {{"type":"MODIFIED","object":{plain}}}"#), false),
        (
            r#"{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"9"}}}"#
                .into(),
            false,
        ),
        (
            r#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","reason":"Expired","code":410}}"#.into(),
            false,
        ),
    ] {
        let serde = with_serde::<DecodedPod>(&text);
        assert!(serde.is_some(), "{text}");
        assert_eq!(fast::<DecodedPod>(&text).is_some(), is_fast, "{text}");
        assert_eq!(complete::<DecodedPod>(&text), serde, "{text}");
    }
}
