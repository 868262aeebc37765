//! The table of answers, and what the bridge must do after each.

use std::io;
use std::time::Duration;

use boilerhouse_bridge::source::list_limits::ListLimits;
use bytes::Bytes;
use serde_json::{Value, json};

use super::{Reaction, Repeated, pod};
use crate::support::scripted_api::{self, Answer};

/// Limits of a list, small enough to exceed them.
pub(super) const LIST_LIMITS: ListLimits =
    ListLimits { time: Duration::from_secs(5), pages: 3, bytes: 16 << 10, objects: 8, view_bytes: 1 << 20 };
/// Maximum bytes of a page.
pub(super) const PAGE_BYTES: usize = 8 << 10;
/// Maximum bytes of a watch line.
pub(super) const LINE_BYTES: usize = 4 << 10;

/// Where the answer is given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Place {
    /// The request for a watch, or the watch.
    Watch,
    /// A list.
    List,
}

/// The answer of a case.
#[derive(Clone, Debug)]
pub(super) enum CaseAnswer {
    /// A status, with header fields and a body.
    Status(u16, Vec<(&'static str, String)>, Bytes),
    /// A watch that sends these bytes, then the line of a change, and stays open.
    Line(Bytes),
    /// A watch that sends these bytes and ends.
    Ended(Bytes),
    /// A watch that sends these bytes and breaks.
    Broken(Bytes),
    /// A list whose every page has this body.
    Pages(Bytes),
    Refused,
    Hang,
}

/// An answer, and what the bridge does.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) answer: CaseAnswer,
    pub(super) reaction: Reaction,
    pub(super) repeated: Repeated,
    /// The reason in the metrics of errors.
    pub(super) counted_as: Option<&'static str>,
    /// The least time until the next request, if the API server has asked for one.
    pub(super) min_delay: Option<Duration>,
}

impl CaseAnswer {
    /// The answer to a watch. `next` is a line after the bytes of the case.
    pub(super) fn watch(&self, next: Bytes) -> Answer {
        match self.clone() {
            CaseAnswer::Line(bytes) => Answer::open(vec![bytes, next]),
            CaseAnswer::Ended(bytes) => Answer::ended(vec![Ok(bytes)]),
            CaseAnswer::Broken(bytes) => Answer::ended(vec![Ok(bytes), Err(io::ErrorKind::ConnectionReset.into())]),
            _ => self.list(),
        }
    }

    /// The answer to a list.
    pub(super) fn list(&self) -> Answer {
        match self.clone() {
            CaseAnswer::Status(code, headers, body) => Answer::Response(code, headers, body),
            CaseAnswer::Ended(bytes) | CaseAnswer::Line(bytes) => Answer::ended(vec![Ok(bytes)]),
            CaseAnswer::Broken(bytes) => Answer::ended(vec![Ok(bytes), Err(io::ErrorKind::ConnectionReset.into())]),
            CaseAnswer::Pages(body) => Answer::Response(200, Vec::new(), body),
            CaseAnswer::Refused => Answer::Refused,
            CaseAnswer::Hang => Answer::Hang,
        }
    }

    /// The answer to a page after the first.
    pub(super) fn next_page(&self) -> Answer {
        self.list()
    }
}

/// A watch whose history has expired.
pub(super) fn expired_watch() -> Answer {
    Answer::ended(vec![Ok(error_line(&json!({"code": 410, "reason": "Expired"})))])
}

/// A bookmark with this version.
pub(super) fn bookmark(version: &str) -> Bytes {
    let metadata = json!({"resourceVersion": version});
    scripted_api::line("BOOKMARK", &json!({"kind": "Pod", "apiVersion": "v1", "metadata": metadata}))
}

fn error_line(status: &Value) -> Bytes {
    scripted_api::line("ERROR", status)
}

fn text(text: &str) -> Bytes {
    Bytes::from(format!("{text}\n"))
}

/// An object without this member of its metadata, or with another value of it.
fn odd(member: &str, value: Option<Value>) -> Value {
    let mut pod = pod("odd", 12);
    let metadata = pod["metadata"].as_object_mut().unwrap();
    match value {
        Some(value) => metadata.insert(member.to_owned(), value),
        None => metadata.remove(member),
    };
    pod
}

fn case(name: &str, place: Place, answer: CaseAnswer, reaction: Reaction, repeated: Repeated) -> Case {
    Case { name: name.to_owned(), place, answer, reaction, repeated, counted_as: None, min_delay: None }
}

impl Case {
    fn counted(self, label: &'static str) -> Case {
        Case { counted_as: Some(label), ..self }
    }

    fn after(self, delay: Duration) -> Case {
        Case { min_delay: Some(delay), ..self }
    }
}

/// All cases.
pub(super) fn cases() -> Vec<Case> {
    let mut all = statuses_of_a_watch();
    all.extend(error_lines());
    all.extend(unreadable_lines());
    all.extend(readable_lines());
    all.extend(ends_of_a_watch());
    all.extend(lists());
    all
}

/// Statuses of the request for a watch.
fn statuses_of_a_watch() -> Vec<Case> {
    let case = |name: &str, code, headers: &[(&'static str, &str)], body: &Value, reaction, label| {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let repeated = if reaction == Reaction::ListsAgain { Repeated::Recovers } else { Repeated::Closes };
        case(name, Place::Watch, CaseAnswer::Status(code, headers, body), reaction, repeated).counted(label)
    };
    let null = Value::Null;
    let (watches, lists) = (Reaction::WatchesAgain, Reaction::ListsAgain);
    let second = Duration::from_secs(1);
    vec![
        case("400", 400, &[], &json!({"code": 400, "reason": "BadRequest"}), lists, "error_answer"),
        case("401", 401, &[], &json!({"code": 401}), watches, "unauthorized"),
        case("403", 403, &[], &json!({"code": 403}), watches, "forbidden"),
        case("404", 404, &[], &null, lists, "error_answer"),
        case("409", 409, &[], &json!({"code": 409}), lists, "error_answer"),
        case("410", 410, &[], &json!({"code": 410, "reason": "Expired"}), lists, "history_expired"),
        case("410 without a body", 410, &[], &null, lists, "history_expired"),
        case("410 with an empty Status", 410, &[], &json!({}), lists, "history_expired"),
        case("410 with another code in its Status", 410, &[], &json!({"code": 500}), lists, "history_expired"),
        case("422", 422, &[], &json!({"code": 422}), lists, "error_answer"),
        case("429", 429, &[], &json!({"code": 429}), watches, "too_many_requests"),
        case("429 with Retry-After", 429, &[("retry-after", "1")], &null, watches, "too_many_requests").after(second),
        case(
            "429 with a delay in its Status",
            429,
            &[],
            &json!({"code": 429, "details": {"retryAfterSeconds": 1}}),
            watches,
            "too_many_requests",
        )
        .after(second),
        case("500", 500, &[], &json!({"code": 500}), watches, "error_answer"),
        case("500 with code 410 in its Status", 500, &[], &json!({"code": 410}), watches, "error_answer"),
        case("502 with HTML", 502, &[], &json!("<html>"), watches, "error_answer"),
        case("503 with Retry-After", 503, &[("retry-after", "1")], &null, watches, "too_many_requests").after(second),
        case("504", 504, &[], &json!({"code": 504, "reason": "Timeout"}), watches, "error_answer"),
        case("301", 301, &[("location", "/elsewhere")], &null, watches, "error_answer"),
    ]
}

/// `ERROR` lines of a watch.
fn error_lines() -> Vec<Case> {
    let case = |name: &str, status: &Value, reaction, repeated, label| {
        let name = format!("ERROR line: {name}");
        case(&name, Place::Watch, CaseAnswer::Line(error_line(status)), reaction, repeated).counted(label)
    };
    let (watches, lists) = (Reaction::WatchesAgain, Reaction::ListsAgain);
    let (recovers, alternates) = (Repeated::Recovers, Repeated::Alternates);
    vec![
        case("410", &json!({"code": 410, "reason": "Expired"}), lists, recovers, "history_expired"),
        case("410 without a reason", &json!({"code": 410}), lists, recovers, "history_expired"),
        case("Expired without a code", &json!({"reason": "Expired"}), lists, recovers, "history_expired"),
        case("Gone with code 500", &json!({"code": 500, "reason": "Gone"}), lists, recovers, "history_expired"),
        case("500", &json!({"code": 500, "message": "etcd"}), lists, recovers, "watch_error"),
        case("503", &json!({"code": 503}), lists, recovers, "watch_error"),
        case("504", &json!({"code": 504, "reason": "Timeout"}), lists, recovers, "watch_error"),
        case("400", &json!({"code": 400}), lists, recovers, "watch_error"),
        case("without a code", &json!({}), lists, recovers, "watch_error"),
        case("401", &json!({"code": 401}), watches, alternates, "unauthorized"),
        case("403", &json!({"code": 403}), watches, alternates, "forbidden"),
        case("429", &json!({"code": 429}), watches, alternates, "too_many_requests"),
        case(
            "500 with a delay",
            &json!({"code": 500, "details": {"retryAfterSeconds": 1}}),
            watches,
            alternates,
            "too_many_requests",
        )
        .after(Duration::from_secs(1)),
        case("object null", &Value::Null, lists, recovers, "unreadable_answer"),
    ]
}

/// Lines that are no watch event of a Pod. The changes that they stand for must not be lost.
fn unreadable_lines() -> Vec<Case> {
    let lines = [
        ("DELETED, object null", text(r#"{"type":"DELETED","object":null}"#)),
        ("ADDED, object null", text(r#"{"type":"ADDED","object":null}"#)),
        ("MODIFIED, object is a string", text(r#"{"type":"MODIFIED","object":"first"}"#)),
        ("DELETED without an object", text(r#"{"type":"DELETED"}"#)),
        ("object without a type", text(r#"{"object":{"metadata":{}}}"#)),
        ("unknown type", text(r#"{"type":"CHANGED","object":{"metadata":{}}}"#)),
        ("type in lower case", scripted_api::line("added", &pod("odd", 12))),
        ("without metadata", text(r#"{"type":"ADDED","object":{}}"#)),
        ("without a name", scripted_api::line("ADDED", &odd("name", None))),
        ("name is a number", scripted_api::line("ADDED", &odd("name", Some(json!(7))))),
        ("without a uid", scripted_api::line("ADDED", &odd("uid", None))),
        ("without a version", scripted_api::line("ADDED", &odd("resourceVersion", None))),
        ("version is no number", scripted_api::line("ADDED", &odd("resourceVersion", Some(json!("x"))))),
        ("version is empty", scripted_api::line("ADDED", &odd("resourceVersion", Some(json!(""))))),
        (
            "bookmark without a version",
            scripted_api::line("BOOKMARK", &json!({"kind": "Pod", "apiVersion": "v1", "metadata": {}})),
        ),
        ("bookmark with an empty version", bookmark("")),
        ("bookmark with a text as version", bookmark("later")),
        ("Status without an envelope", text(r#"{"kind":"Status","code":410,"reason":"Expired"}"#)),
        ("empty object", text("{}")),
        ("array", text("[]")),
        ("string", text("\"x\"")),
        ("number", text("7")),
        ("HTML", text("<html>")),
        ("JSON that ends too early", text(r#"{"type":"DELETED","object":{"metadata":{"name":"first""#)),
        ("not UTF-8", Bytes::from(&b"{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"\xff\"}}}\n"[..])),
        ("two objects", text(r#"{"type":"ADDED"}{"type":"ADDED"}"#)),
        ("longer than the limit", text(&"x".repeat(LINE_BYTES + 1))),
        ("longer than the limit, without an end", Bytes::from(vec![b' '; LINE_BYTES + 1])),
    ];
    let case = |(name, bytes)| {
        let name = format!("line: {name}");
        let answer = CaseAnswer::Line(bytes);
        case(&name, Place::Watch, answer, Reaction::ListsAgain, Repeated::Recovers).counted("unreadable_answer")
    };
    lines.into_iter().map(case).collect()
}

/// Lines that change nothing.
fn readable_lines() -> Vec<Case> {
    let lines = [
        ("empty line", text("")),
        ("bookmark with the same version", bookmark("11")),
        ("bookmark with an older version", bookmark("3")),
        ("older version of a new object", scripted_api::line("ADDED", &pod("older", 4))),
        ("deletion with an older version", scripted_api::line("DELETED", &pod("first", 5))),
        ("spaces around a line", text(&format!("  {}  ", json!({"type": "ADDED", "object": pod("first", 6)})))),
        ("carriage return", text(&format!("{}\r", json!({"type": "ADDED", "object": pod("first", 6)})))),
    ];
    let case = |(name, bytes)| {
        let name = format!("line: {name}");
        case(&name, Place::Watch, CaseAnswer::Line(bytes), Reaction::Continues, Repeated::Alternates)
    };
    lines.into_iter().map(case).collect()
}

/// Ends of a watch, and requests without an answer.
fn ends_of_a_watch() -> Vec<Case> {
    let half = || Bytes::from(&br#"{"type":"ADDED","obj"#[..]);
    let case = |name: &str, answer, repeated| case(name, Place::Watch, answer, Reaction::WatchesAgain, repeated);
    let (closes, alternates) = (Repeated::Closes, Repeated::Alternates);
    vec![
        case("end", CaseAnswer::Ended(Bytes::new()), alternates),
        case("end within a line", CaseAnswer::Ended(half()), alternates),
        case("reset", CaseAnswer::Broken(Bytes::new()), alternates).counted("connection_cut"),
        case("reset within a line", CaseAnswer::Broken(half()), alternates).counted("connection_cut"),
        case("connection refused", CaseAnswer::Refused, closes).counted("connection_refused"),
        case("no answer", CaseAnswer::Hang, closes).counted("no_answer"),
    ]
}

/// Answers to a list.
fn lists() -> Vec<Case> {
    let status = |code, body: &str| CaseAnswer::Status(code, Vec::new(), Bytes::from(body.to_owned()));
    let page = |next: bool, items: &[Value]| {
        let next = if next { "more" } else { "" };
        json!({"metadata": {"resourceVersion": "12", "continue": next}, "items": items}).to_string()
    };
    let pages = |items: &[Value]| CaseAnswer::Pages(page(true, items).into());
    let case = |name: &str, answer, label| {
        let name = format!("list: {name}");
        case(&name, Place::List, answer, Reaction::ListsAgain, Repeated::Closes).counted(label)
    };
    let many: Vec<Value> = (0..9).map(|n| pod(&format!("pod-{n}"), 12)).collect();
    let retry_after = CaseAnswer::Status(429, vec![("retry-after", "1".to_owned())], Bytes::new());
    let long = CaseAnswer::Pages((page(true, &[]) + &" ".repeat(PAGE_BYTES * 3 / 4)).into());
    vec![
        case("410", status(410, "{}"), "history_expired"),
        case("401", status(401, ""), "unauthorized"),
        case("403", status(403, ""), "forbidden"),
        case("404", status(404, "404 page not found"), "error_answer"),
        case("429 with Retry-After", retry_after, "too_many_requests").after(Duration::from_secs(1)),
        case("500", status(500, r#"{"code":410}"#), "error_answer"),
        case("503 with HTML", status(503, "<html>"), "error_answer"),
        case("204", status(204, ""), "unreadable_answer"),
        case("no JSON", status(200, "<html>"), "unreadable_answer"),
        case("Status", status(200, r#"{"kind":"Status","metadata":{},"code":410}"#), "unreadable_answer"),
        case("without a version", status(200, r#"{"metadata":{},"items":[]}"#), "unreadable_answer"),
        case(
            "version is no number",
            status(200, r#"{"metadata":{"resourceVersion":"x"},"items":[]}"#),
            "unreadable_answer",
        ),
        case("object without a uid", status(200, &page(false, &[odd("uid", None)])), "unreadable_answer"),
        case("object null", status(200, &page(false, &[Value::Null])), "unreadable_answer"),
        case("not UTF-8", CaseAnswer::Pages(Bytes::from(&b"{\"\xff\":1}"[..])), "unreadable_answer"),
        case("page over the limit", status(200, &" ".repeat(PAGE_BYTES + 1)), "unreadable_answer"),
        case("more pages than the limit", pages(&[]), "list_too_large"),
        case("more objects than the limit", status(200, &page(false, &many)), "list_too_large"),
        case("more bytes than the limit", long, "list_too_large"),
        case("broken", CaseAnswer::Broken(Bytes::from(&b"{\"metadata\":"[..])), "connection_cut"),
        case("connection refused", CaseAnswer::Refused, "connection_refused"),
        case("no answer", CaseAnswer::Hang, "no_answer"),
    ]
}
