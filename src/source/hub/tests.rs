//! Tests of the hub: with scripted responses, and with seeded faults of the simulated API.

mod list_limits;
mod scripted_api;
mod seeded_faults;
mod upstream_health;

use std::time::Duration;

use bytes::Bytes;
use scripted_api::{ScriptedApi, ScriptedResponse, bookmark, ended_watch, expired, line, list, pod, versions, watch};
use serde_json::json;

use super::*;
use crate::event::View;

fn config() -> Config {
    Config { namespace: "bh".into(), ..Config::default() }
}

fn is_live(event: &SourceEvent) -> bool {
    matches!(event, SourceEvent::Health(_, Health::Live))
}

fn is_down(event: &SourceEvent) -> bool {
    matches!(event, SourceEvent::Health(_, Health::Down { .. }))
}

fn is_replace(event: &SourceEvent) -> bool {
    matches!(event, SourceEvent::Replace(..))
}

/// The events in a short form: `=a1,b2@7` a list at version 7, `+a8`, `-a9`, `b10` a bookmark, and the health.
fn short_form(events: &[SourceEvent]) -> Vec<String> {
    let names = |views: &[View]| {
        versions(views).iter().map(|(name, version)| format!("{name}{version}")).collect::<Vec<_>>().join(",")
    };
    events
        .iter()
        .filter(|event| !matches!(event, SourceEvent::BytesReceived(_)))
        .map(|event| match event {
            SourceEvent::BytesReceived(_) => String::new(),
            SourceEvent::Namespace(uid) => format!("namespace {uid}"),
            SourceEvent::Replace(_, views, version) => format!("={}@{version}", names(views)),
            SourceEvent::Upsert(view) => format!("+{}", names(std::slice::from_ref(view))),
            SourceEvent::Remove(view) => format!("-{}", names(std::slice::from_ref(view))),
            SourceEvent::Bookmark(_, version) => format!("b{version}"),
            SourceEvent::Health(_, Health::Connecting) => "connecting".to_owned(),
            SourceEvent::Health(_, Health::Live) => "live".to_owned(),
            SourceEvent::Health(_, Health::Down { reason, .. }) => format!("down: {reason}"),
        })
        .collect()
}

/// An API whose list has one Pod at version 10 and whose current version is 10.
fn api_with_one_pod() -> ScriptedApi {
    let api = ScriptedApi::default();
    api.respond("list", list(10, &[pod("a", 5)]));
    api.respond("probe", list(10, &[]));
    api
}

#[tokio::test(start_paused = true)]
async fn hub_lists_then_watches() {
    let api = api_with_one_pod();
    let (sender, response) = watch();
    api.respond("watch", response);
    let config = config();
    let test = async {
        api.wait_for_event(1, is_live).await;
        for (kind, object) in [("ADDED", pod("b", 11)), ("MODIFIED", pod("a", 12)), ("DELETED", pod("b", 13))] {
            sender.send(line(kind, &object)).await.unwrap();
        }
        sender.send(bookmark(20)).await.unwrap();
        api.wait_for_event(1, |event| matches!(event, SourceEvent::Bookmark(..))).await;
    };
    api.run_watch_loop(&config, test).await;
    assert_eq!(short_form(&api.events()), ["=a5@10", "live", "+b11", "+a12", "-b13", "b20"]);
    assert_eq!(api.wait_for_request("list", 1).await.1, "&labelSelector=boilerhouse.dev%2Fmanaged%3Dtrue&limit=500");
    assert_eq!(
        api.wait_for_request("watch", 1).await.1,
        "&watch=true&timeoutSeconds=30&labelSelector=boilerhouse.dev%2Fmanaged%3Dtrue&allowWatchBookmarks=true\
         &resourceVersion=10"
    );
}

#[tokio::test(start_paused = true)]
async fn paged_list_restarts_when_a_page_expires() {
    let api = ScriptedApi::default();
    let page = |name, rv| {
        ScriptedResponse::Json(
            200,
            json!({"metadata": {"resourceVersion": "10", "continue": "token", "remainingItemCount": 1},
                   "items": [pod(name, rv)]}),
        )
    };
    api.respond("list", page("a", 1));
    api.respond("next page", ScriptedResponse::Json(410, expired()));
    api.respond("next page", page("b", 2));
    api.respond("next page", list(10, &[pod("c", 3)]));
    let config = config();
    api.run_watch_loop(&config, async { drop(api.wait_for_event(1, is_replace).await) }).await;
    assert_eq!(short_form(&api.events()), ["=a1,b2,c3@10"]);
    assert_eq!((api.request_count("list"), api.request_count("next page")), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn expired_history_relists_without_reporting_down() {
    for expiry in [ScriptedResponse::Json(410, expired()), ended_watch([line("ERROR", &expired())])] {
        let api = ScriptedApi::default();
        api.respond("list", list(10, &[pod("a", 5)]));
        api.respond("list", list(20, &[pod("b", 15)]));
        api.respond("watch", ended_watch([line("MODIFIED", &pod("a", 11))]));
        api.respond("watch", expiry);
        let (_sender, response) = watch();
        api.respond("watch", response);
        let config = config();
        api.run_watch_loop(&config, async { drop(api.wait_for_request("watch", 3).await) }).await;
        assert_eq!(short_form(&api.events()), ["=a5@10", "live", "+a11", "=b15@20"]);
        assert!(api.wait_for_request("watch", 3).await.1.ends_with("resourceVersion=20"));
    }
}

#[tokio::test(start_paused = true)]
async fn unparsable_line_relists_without_losing_a_change() {
    let api = ScriptedApi::default();
    api.respond("list", list(10, &[]));
    api.respond("list", list(20, &[pod("a", 12)]));
    let malformed = Ok(Bytes::from("{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":7}}}\n"));
    api.respond("watch", ended_watch([line("ADDED", &pod("x", 11)), malformed, line("ADDED", &pod("y", 13))]));
    let (_sender, response) = watch();
    api.respond("watch", response);
    let config = config();
    api.run_watch_loop(&config, async { drop(api.wait_for_event(2, is_replace).await) }).await;
    assert_eq!(short_form(&api.events()), ["=@10", "live", "+x11", "=a12@20"]);
}

#[tokio::test(start_paused = true)]
async fn line_over_the_limit_ends_the_watch() {
    let api = api_with_one_pod();
    api.respond("watch", ended_watch([Ok(Bytes::from(vec![b'x'; 1001]))]));
    let config = Config { line_bytes: 1000, ..config() };
    api.run_watch_loop(&config, async { drop(api.wait_for_event(2, is_replace).await) }).await;
    assert_eq!(short_form(&api.events()), ["=a5@10", "live", "=a5@10"]);
}

#[tokio::test(start_paused = true)]
async fn ended_watch_resumes_at_its_last_version() {
    let reset = || Err(std::io::ErrorKind::ConnectionReset.into());
    let half_line = || Ok(Bytes::from(&b"{\"type\":\"ADDED\",\"obj"[..]));
    for end in [vec![], vec![reset()], vec![half_line()], vec![half_line(), reset()]] {
        let api = api_with_one_pod();
        api.respond("watch", ended_watch([line("ADDED", &pod("b", 11)), bookmark(15)].into_iter().chain(end)));
        api.respond("watch", ended_watch([line("ADDED", &pod("c", 16))]));
        let (_sender, response) = watch();
        api.respond("watch", response);
        let config = config();
        let start = Instant::now();
        api.run_watch_loop(&config, async { drop(api.wait_for_request("watch", 3).await) }).await;
        assert_eq!(short_form(&api.events()), ["=a5@10", "live", "+b11", "b15", "+c16"]);
        assert!(api.wait_for_request("watch", 2).await.1.ends_with("resourceVersion=15"));
        assert_eq!(start.elapsed(), Duration::ZERO, "the first retry must come at once");
    }
}

#[tokio::test(start_paused = true)]
async fn black_hole_is_reported_down_and_missed_changes_precede_live() {
    let api = api_with_one_pod();
    let (sender, response) = watch();
    api.respond("watch", response);
    api.respond_only("probe", ScriptedResponse::Hang);
    api.respond("watch", ScriptedResponse::Hang);
    let config = config();
    let test = async {
        api.wait_for_event(1, is_live).await;
        tokio::time::advance(Duration::from_secs(3)).await;
        sender.send(line("ADDED", &pod("b", 11))).await.unwrap();
        let (last_byte, _) = api.wait_for_event(1, |event| matches!(event, SourceEvent::Upsert(_))).await;
        let (down_at, down) = api.wait_for_event(1, is_down).await;
        assert_eq!(down_at - last_byte, Duration::from_secs(20), "down after 15 s of silence and 5 s for the probe");
        assert!(matches!(down, SourceEvent::Health(_, Health::Down { since, .. }) if since == last_byte));

        let (sender, response) = watch();
        api.respond_only("watch", response);
        api.respond_only("probe", list(13, &[]));
        api.wait_for_request("probe", 2).await;
        sender.send(line("ADDED", &pod("c", 12))).await.unwrap();
        sender.send(line("DELETED", &pod("b", 13))).await.unwrap();
        api.wait_for_event(2, is_live).await;
    };
    api.run_watch_loop(&config, test).await;
    assert_eq!(short_form(&api.events()), ["=a5@10", "live", "+b11", "down: no answer", "+c12", "-b13", "live"]);
}

#[tokio::test(start_paused = true)]
async fn resumed_watch_is_live_after_the_quiet_period() {
    let api = api_with_one_pod();
    api.respond("watch", ended_watch([line("ADDED", &pod("b", 11))]));
    api.respond("watch", ScriptedResponse::Refused);
    let config = config();
    let test = async {
        api.wait_for_event(1, is_down).await;
        let (sender, response) = watch();
        api.respond_only("watch", response);
        // Only other resources have newer versions, so this watch delivers nothing.
        api.respond_only("probe", list(99, &[]));
        let (requested_at, _) = api.wait_for_request("probe", 1).await;
        let (live, _) = api.wait_for_event(2, is_live).await;
        assert_eq!(live - requested_at, config.catch_up_quiet_period);
        drop(sender);
    };
    api.run_watch_loop(&config, test).await;
    assert_eq!(short_form(&api.events()), ["=a5@10", "live", "+b11", "down: connection refused", "live"]);
}

#[tokio::test(start_paused = true)]
async fn quiet_watch_is_probed_and_stays_open() {
    let api = api_with_one_pod();
    let (sender, response) = watch();
    api.respond("watch", response);
    let (_second, response) = watch();
    api.respond("watch", response);
    let config = config();
    let start = Instant::now();
    let test = async {
        assert_eq!(api.wait_for_request("probe", 1).await.0 - start, Duration::from_secs(15));
        assert_eq!(api.wait_for_request("probe", 2).await.0 - start, Duration::from_secs(30));
        // The API server does not end the watch, so its connection counts as dead after 30 s and 5 s.
        assert_eq!(api.wait_for_request("watch", 2).await.0 - start, Duration::from_secs(35));
    };
    api.run_watch_loop(&config, test).await;
    assert_eq!(short_form(&api.events()), ["=a5@10", "live"]);
    drop(sender);
}

/// The watch may deliver newer versions while a probe is pending. The older version of the response is then no history reset.
#[tokio::test(start_paused = true)]
async fn stale_probe_response_is_not_a_history_reset() {
    let api = api_with_one_pod();
    let (sender, response) = watch();
    api.respond("watch", response);
    let (probe, response) = watch();
    api.respond_only("probe", response);
    let config = config();
    let test = async {
        api.wait_for_request("probe", 1).await;
        for object in [pod("b", 11), pod("c", 12)] {
            sender.send(line("ADDED", &object)).await.unwrap();
        }
        api.wait_for_event(2, |event| matches!(event, SourceEvent::Upsert(..))).await;
        let ScriptedResponse::Json(_, body) = list(11, &[]) else { unreachable!() };
        probe.send(Ok(Bytes::from(body.to_string()))).await.unwrap();
        drop(probe);
        // The next probe comes 15 s later and shows that this response was processed.
        api.respond_only("probe", list(12, &[]));
        api.wait_for_request("probe", 2).await;
        sender.send(line("ADDED", &pod("d", 13))).await.unwrap();
        api.wait_for_event(3, |event| matches!(event, SourceEvent::Upsert(..))).await;
    };
    api.run_watch_loop(&config, test).await;
    assert_eq!(short_form(&api.events()), ["=a5@10", "live", "+b11", "+c12", "+d13"]);
    assert_eq!((api.request_count("list"), api.request_count("watch")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn busy_server_is_not_reported_down() {
    let api = api_with_one_pod();
    api.respond_only("probe", ScriptedResponse::RetryAfter(429, 1));
    let (_sender, response) = watch();
    api.respond("watch", response);
    let config = config();
    api.run_watch_loop(&config, async { drop(api.wait_for_request("probe", 2).await) }).await;
    assert_eq!(short_form(&api.events()), ["=a5@10", "live"]);
}

#[tokio::test(start_paused = true)]
async fn server_without_etcd_is_reported_down() {
    let api = api_with_one_pod();
    api.respond_only(
        "probe",
        ScriptedResponse::Json(500, json!({"message": "etcdserver: leader changed", "code": 500})),
    );
    let (_sender, response) = watch();
    api.respond("watch", response);
    let config = config();
    api.run_watch_loop(&config, async { drop(api.wait_for_event(1, is_down).await) }).await;
    assert_eq!(short_form(&api.events()), ["=a5@10", "live", "down: error answer"]);
}

#[tokio::test(start_paused = true)]
async fn restored_backup_is_detected_and_reapi_with_one_pod() {
    let api = ScriptedApi::default();
    api.respond("namespace", ScriptedResponse::Json(200, json!({"metadata": {"name": "bh", "uid": "ns-1"}})));
    api.respond("list", list(100, &[pod("a", 50)]));
    api.respond("list", list(60, &[pod("a", 40)]));
    api.respond("probe", list(60, &[]));
    let (_open_watch, response) = watch();
    api.respond("watch", response);
    let (_sender, response) = watch();
    api.respond("watch", response);
    let config = config();
    api.run_watch_loop(&config, async { drop(api.wait_for_request("watch", 2).await) }).await;
    assert_eq!(short_form(&api.events()), ["=a50@100", "live", "namespace ns-1", "=a40@60"]);
    assert!(api.wait_for_request("watch", 2).await.1.ends_with("resourceVersion=60"));
}

#[tokio::test(start_paused = true)]
async fn failures_are_reported_once_per_change_and_retries_are_delayed() {
    let api = ScriptedApi::default();
    api.respond("list", ScriptedResponse::Refused);
    let config = config();
    let test = async {
        let start = Instant::now();
        let (at, _) = api.wait_for_request("list", 30).await;
        assert!(at - start > Duration::from_secs(13), "30 requests need more than 13 s, not {:?}", at - start);
        assert!(at - start < Duration::from_secs(30), "30 requests need less than 30 s, not {:?}", at - start);
        api.respond_only("list", ScriptedResponse::Json(403, json!({"code": 403})));
        api.wait_for_event(2, is_down).await;
        api.respond_only("list", list(10, &[]));
        let (_sender, response) = watch();
        api.respond_only("watch", response);
        api.wait_for_event(1, is_live).await;
    };
    api.run_watch_loop(&config, test).await;
    assert_eq!(short_form(&api.events()), ["down: connection refused", "down: forbidden", "=@10", "live"]);
}

#[tokio::test(start_paused = true)]
async fn watches_that_end_immediately_restart_with_delays() {
    let api = api_with_one_pod();
    for _ in 0..40 {
        api.respond("watch", ended_watch([]));
    }
    let config = config();
    let start = Instant::now();
    api.run_watch_loop(&config, async { drop(api.wait_for_request("watch", 30).await) }).await;
    assert!(start.elapsed() > Duration::from_secs(13), "30 watches need more than 13 s, not {:?}", start.elapsed());
    assert_eq!(short_form(&api.events())[..3], ["=a5@10", "live", "down: watch ended"]);
}

#[tokio::test(start_paused = true)]
async fn lists_with_immediately_expired_watches_repeat_with_delays() {
    let api = api_with_one_pod();
    api.respond("watch", ScriptedResponse::Json(410, expired()));
    let config = config();
    let start = Instant::now();
    api.run_watch_loop(&config, async { drop(api.wait_for_request("list", 30).await) }).await;
    assert!(start.elapsed() > Duration::from_secs(13), "30 lists need more than 13 s, not {:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_honored_up_to_30_s() {
    for (seconds, expected) in [(7, 7), (3600, 30)] {
        let api = api_with_one_pod();
        api.respond("watch", ScriptedResponse::RetryAfter(429, seconds));
        let config = config();
        let start = Instant::now();
        api.run_watch_loop(&config, async { drop(api.wait_for_request("watch", 2).await) }).await;
        assert_eq!(start.elapsed(), Duration::from_secs(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn each_request_has_a_timeout() {
    let api = ScriptedApi::default();
    let config = config();
    let start = Instant::now();
    let test = async {
        api.respond("list", ScriptedResponse::Hang);
        assert_eq!(api.wait_for_event(1, is_down).await.0 - start, config.page_timeout);
        api.respond_only("list", list(10, &[]));
        let (requested_at, _) = api.wait_for_request("watch", 1).await;
        assert!(api.wait_for_request("watch", 2).await.0 - requested_at >= config.start_timeout);
    };
    api.run_watch_loop(&config, test).await;
}

#[tokio::test(start_paused = true)]
async fn older_versions_are_ignored() {
    let api = api_with_one_pod();
    let (sender, response) = watch();
    api.respond("watch", response);
    let config = config();
    let test = async {
        for object in [pod("b", 12), pod("b", 12), pod("c", 11), pod("d", 13)] {
            sender.send(line("ADDED", &object)).await.unwrap();
        }
        for object in [pod("b", 11), pod("b", 12), pod("a", 5), pod("d", 13)] {
            sender.send(line("DELETED", &object)).await.unwrap();
        }
        sender.send(bookmark(12)).await.unwrap();
        sender.send(bookmark(14)).await.unwrap();
        api.wait_for_event(1, |event| matches!(event, SourceEvent::Bookmark(..))).await;
    };
    api.run_watch_loop(&config, test).await;
    assert_eq!(short_form(&api.events()), ["=a5@10", "live", "+b12", "+d13", "b14"]);
}

#[tokio::test(start_paused = true)]
async fn missing_namespace_delays_the_first_list() {
    let api = api_with_one_pod();
    api.respond("namespace", ScriptedResponse::Json(404, json!({"code": 404})));
    let config = config();
    let test = async {
        api.wait_for_request("namespace", 5).await;
        assert_eq!((api.request_count("list"), api.request_count("other")), (0, 0));
        api.respond_only("namespace", ScriptedResponse::Json(200, json!({"metadata": {"uid": "ns-1"}})));
        let (_sender, response) = watch();
        api.respond("watch", response);
        api.wait_for_event(1, is_live).await;
        api.wait_for_request("other", 1).await;
    };
    api.run_hub(&config, test).await;
    assert_eq!(
        short_form(&api.events()),
        ["down: no namespace", "down: no namespace", "connecting", "connecting", "namespace ns-1", "=a5@10", "live"]
    );
}

#[test]
fn decode_error_contains_no_object_content() {
    let secret = br#"{"metadata":{"name":"n","uid":"u","resourceVersion":"canary"}}"#;
    let Err(UpstreamError::Decode(text)) = crate::source::answer::parse::<DecodedPod>(secret) else {
        panic!("the object must not parse, because its version is not a number")
    };
    assert!(!text.contains("canary"), "the error must not contain the content: {text}");
    assert!(text.contains("column"), "the error must contain the position: {text}");
}
