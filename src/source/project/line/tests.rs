use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::source::project::{
    ClaimRow, PodRow, Seen,
    tests::{CLAIM_SPOTS, POD_SPOTS, Spot, any_json, claim, pod},
};

/// The line that `tests/scripts/instructions` measures.
#[path = "../../../../benches/line_to_frame/line.rs"]
mod real;

static REAL: LazyLock<String> = LazyLock::new(|| String::from_utf8(real::Line::new().next().to_vec()).unwrap());

fn modified(object: &Value) -> String {
    format!(r#"{{"type":"MODIFIED","object":{object}}}"#)
}

/// What kind of event it is, and what is seen of its object.
fn told<T: Row>(event: WatchEvent<T>) -> (&'static str, Option<Seen>) {
    match event {
        WatchEvent::Added(row) => ("ADDED", Some(row.into_seen())),
        WatchEvent::Modified(row) => ("MODIFIED", Some(row.into_seen())),
        WatchEvent::Deleted(row) => ("DELETED", Some(row.into_seen())),
        WatchEvent::Bookmark(_) => ("BOOKMARK", None),
        WatchEvent::Error(_) => ("ERROR", None),
    }
}

fn by_serde<T: Row>(text: &str) -> Option<(&'static str, Option<Seen>)> {
    serde_json::from_str(text).ok().map(told::<T>)
}

fn here<T: Row>(text: &str) -> Option<(&'static str, Option<Seen>)> {
    change(text.as_bytes()).map(told::<T>)
}

fn either<T: Row>(text: &str) -> Option<(&'static str, Option<Seen>)> {
    line(text.as_bytes()).ok().map(told::<T>)
}

fn with(mut object: Value, spots: &[Spot], places: &[(usize, Value)]) -> String {
    for (at, value) in places {
        if let Some(place) = object.pointer_mut(spots[at % spots.len()].0) {
            *place = value.clone();
        }
    }
    modified(&object)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn odd_pods_are_read_as_by_serde(places in prop::collection::vec((any::<usize>(), any_json()), 0..4)) {
        let text = with(pod(), POD_SPOTS, &places);
        let serde = by_serde::<PodRow>(&text);
        prop_assert!(serde.is_some());
        if !text.contains('\\') {
            prop_assert_eq!(&here::<PodRow>(&text), &serde);
        }
        prop_assert_eq!(either::<PodRow>(&text), serde);
    }

    #[test]
    fn odd_claims_are_read_as_by_serde(places in prop::collection::vec((any::<usize>(), any_json()), 0..4)) {
        let text = with(claim(), CLAIM_SPOTS, &places);
        let serde = by_serde::<ClaimRow>(&text);
        prop_assert!(serde.is_some());
        if !text.contains('\\') {
            prop_assert_eq!(&here::<ClaimRow>(&text), &serde);
        }
        prop_assert_eq!(either::<ClaimRow>(&text), serde);
    }

    /// A line cut and gone on with another's bytes, or with garbage: what serde can read is read alike.
    #[test]
    fn what_serde_reads_is_read_alike(
        from in any::<prop::sample::Index>(),
        gone in 0_usize..60,
        put in prop_oneof![
            Just(String::new()),
            "[]\\[{}\",:\\\\ a1]{0,8}",
            prop::sample::select(vec!["<html>", "{\"phase\":\"x\"}", "null", "\"status\":", "\t", "\\u0000"]).prop_map(str::to_owned),
        ],
    ) {
        let from = from.index(REAL.len());
        let to = (from + gone).min(REAL.len());
        let text = format!("{}{put}{}", &REAL[..from], &REAL[to..]);
        if let Some(serde) = by_serde::<PodRow>(&text) {
            prop_assert_eq!(either::<PodRow>(&text).unwrap(), serde);
        }
    }

    /// A byte that is not what it was changes nothing but the value that it stands in, or the line is refused.
    #[test]
    fn a_wrong_byte_in_what_is_skipped_changes_nothing(at in any::<prop::sample::Index>(), byte in 0x20_u8..0x7f) {
        let skipped = REAL.find("\"annotations\"").unwrap()..REAL.find("\"status\":{\"conditions\"").unwrap();
        let mut text = REAL.clone().into_bytes();
        text[skipped.start + at.index(skipped.len())] = byte;
        let text = String::from_utf8(text).unwrap();
        if let Some(event) = either::<PodRow>(&text) {
            let (_, seen) = event;
            let was = by_serde::<PodRow>(&REAL).unwrap().1.unwrap();
            // The annotations' own key is among them, and so are the beginnings of `spec` and `managedFields`.
            prop_assert!(seen.is_some_and(|seen| seen.view == was.view), "{}", text);
        }
    }
}

#[test]
fn a_real_line_is_read_here() {
    let event = here::<PodRow>(&REAL);
    assert!(event.is_some());
    assert_eq!(event, by_serde::<PodRow>(&REAL));
}

#[test]
fn a_line_that_is_cut_is_refused_wherever_it_is() {
    let text = modified(&pod());
    for cut in 0..text.len() {
        assert_eq!(either::<PodRow>(&text[..cut]), None, "at {cut}");
    }
    for cut in (0..REAL.len()).step_by(61) {
        assert_eq!(either::<PodRow>(&REAL[..cut]), None, "at {cut}");
        assert_eq!(either::<PodRow>(&format!("{}<html>", &REAL[..cut])), None, "at {cut}");
        assert_eq!(either::<PodRow>(&format!("{}{}", &REAL[..cut], *REAL)).is_some(), cut == 0, "again at {cut}");
    }
}

#[test]
fn a_line_whose_structure_is_broken_is_refused() {
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
        assert_eq!(by_serde::<PodRow>(&text), None, "{text}");
        assert_eq!(either::<PodRow>(&text), None, "{text}");
    }
    for end in ["", "}}", "},", "}]", "}{}", ",\"type\":\"ADDED\"}", ",\"object\":{}}"] {
        let text = format!(r#"{{"type":"ADDED","object":{{{meta}}}{end}"#);
        assert_eq!(either::<PodRow>(&text), None, "{text}");
    }
}

#[test]
fn every_way_to_write_a_line_is_read_alike() {
    let meta = r#"{"name":"n","uid":"u","resourceVersion":"7","labels":{"a":"1","a\u0062":"2","a":"3"}}"#;
    let object = format!(r#"{{"metadata":{meta},"status":{{"phase":"R\u00e9\"\\","podIP":"\u0031"}}}}"#);
    let plain = r#"{"metadata":{"name":"n","uid":"u","resourceVersion":"7"}}"#;
    for (text, is_here) in [
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
        let serde = by_serde::<PodRow>(&text);
        assert!(serde.is_some(), "{text}");
        assert_eq!(here::<PodRow>(&text).is_some(), is_here, "{text}");
        assert_eq!(either::<PodRow>(&text), serde, "{text}");
    }
}
