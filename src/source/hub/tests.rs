mod scripted_api;
mod seeded_faults;

use bytes::Bytes;
use scripted_api::{Answer, Script, bookmark, expired, line, list, pod, said, versions, watch};
use serde_json::json;

use super::*;

fn config() -> Config {
    Config { namespace: "bh".into(), ..Config::default() }
}

fn is_live(fact: &SourceEvent) -> bool {
    matches!(fact, SourceEvent::Health(_, Health::Live))
}

fn is_down(fact: &SourceEvent) -> bool {
    matches!(fact, SourceEvent::Health(_, Health::Down { .. }))
}

fn is_replace(fact: &SourceEvent) -> bool {
    matches!(fact, SourceEvent::Replace(..))
}

/// Facts in short: `=a1,b2@7` a list at 7, `+a8`, `-a9`, `b10` a bookmark, and the health.
fn short(facts: &[SourceEvent]) -> Vec<String> {
    let told =
        |views: &[View]| versions(views).iter().map(|(name, rv)| format!("{name}{rv}")).collect::<Vec<_>>().join(",");
    facts
        .iter()
        .filter(|fact| !matches!(fact, SourceEvent::BytesReceived(_)))
        .map(|fact| match fact {
            SourceEvent::BytesReceived(_) => String::new(),
            SourceEvent::Namespace(uid) => format!("home {uid}"),
            SourceEvent::Replace(_, views, rv) => format!("={}@{rv}", told(views)),
            SourceEvent::Upsert(view) => format!("+{}", told(std::slice::from_ref(view))),
            SourceEvent::Remove(view) => format!("-{}", told(std::slice::from_ref(view))),
            SourceEvent::Bookmark(_, rv) => format!("b{rv}"),
            SourceEvent::Health(_, Health::Connecting) => "connecting".to_owned(),
            SourceEvent::Health(_, Health::Live) => "live".to_owned(),
            SourceEvent::Health(_, Health::Down { reason, .. }) => format!("down: {reason}"),
        })
        .collect()
}

/// A script whose pods are listed at 10 and whose API server is at 10.
fn listed() -> Script {
    let script = Script::default();
    script.on("list", list(10, &[pod("a", 5)]));
    script.on("probe", list(10, &[]));
    script
}

#[tokio::test(start_paused = true)]
async fn hub_lists_then_watches() {
    let script = listed();
    let (sender, answer) = watch();
    script.on("watch", answer);
    let config = config();
    let test = async {
        script.nth(1, is_live).await;
        for (kind, object) in [("ADDED", pod("b", 11)), ("MODIFIED", pod("a", 12)), ("DELETED", pod("b", 13))] {
            sender.send(line(kind, &object)).await.unwrap();
        }
        sender.send(bookmark(20)).await.unwrap();
        script.nth(1, |fact| matches!(fact, SourceEvent::Bookmark(..))).await;
    };
    script.follow(&config, test).await;
    assert_eq!(short(&script.facts()), ["=a5@10", "live", "+b11", "+a12", "-b13", "b20"]);
    assert_eq!(script.asked("list", 1).await.1, "&labelSelector=boilerhouse.dev%2Fmanaged%3Dtrue&limit=500");
    assert_eq!(
        script.asked("watch", 1).await.1,
        "&watch=true&timeoutSeconds=30&labelSelector=boilerhouse.dev%2Fmanaged%3Dtrue&allowWatchBookmarks=true\
         &resourceVersion=10"
    );
}

#[tokio::test(start_paused = true)]
async fn paged_list_restarts_when_a_page_expires() {
    let script = Script::default();
    let page = |name, rv| {
        Answer::Json(
            200,
            json!({"metadata": {"resourceVersion": "10", "continue": "token", "remainingItemCount": 1},
                   "items": [pod(name, rv)]}),
        )
    };
    script.on("list", page("a", 1));
    script.on("more", Answer::Json(410, expired()));
    script.on("more", page("b", 2));
    script.on("more", list(10, &[pod("c", 3)]));
    let config = config();
    script.follow(&config, async { drop(script.nth(1, is_replace).await) }).await;
    assert_eq!(short(&script.facts()), ["=a1,b2,c3@10"]);
    assert_eq!((script.count("list"), script.count("more")), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn expired_history_relists_without_reporting_down() {
    for lost in [Answer::Json(410, expired()), said([line("ERROR", &expired())])] {
        let script = Script::default();
        script.on("list", list(10, &[pod("a", 5)]));
        script.on("list", list(20, &[pod("b", 15)]));
        script.on("watch", said([line("MODIFIED", &pod("a", 11))]));
        script.on("watch", lost);
        let (_sender, answer) = watch();
        script.on("watch", answer);
        let config = config();
        script.follow(&config, async { drop(script.asked("watch", 3).await) }).await;
        assert_eq!(short(&script.facts()), ["=a5@10", "live", "+a11", "=b15@20"]);
        assert!(script.asked("watch", 3).await.1.ends_with("resourceVersion=20"));
    }
}

#[tokio::test(start_paused = true)]
async fn unparsable_line_relists_without_losing_a_change() {
    let script = Script::default();
    script.on("list", list(10, &[]));
    script.on("list", list(20, &[pod("a", 12)]));
    let junk = Ok(Bytes::from("{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":7}}}\n"));
    script.on("watch", said([line("ADDED", &pod("x", 11)), junk, line("ADDED", &pod("y", 13))]));
    let (_sender, answer) = watch();
    script.on("watch", answer);
    let config = config();
    script.follow(&config, async { drop(script.nth(2, is_replace).await) }).await;
    assert_eq!(short(&script.facts()), ["=@10", "live", "+x11", "=a12@20"]);
}

#[tokio::test(start_paused = true)]
async fn line_over_the_limit_ends_the_watch() {
    let script = listed();
    script.on("watch", said([Ok(Bytes::from(vec![b'x'; 1001]))]));
    let config = Config { line_bytes: 1000, ..config() };
    script.follow(&config, async { drop(script.nth(2, is_replace).await) }).await;
    assert_eq!(short(&script.facts()), ["=a5@10", "live", "=a5@10"]);
}

#[tokio::test(start_paused = true)]
async fn ended_watch_resumes_at_its_last_version() {
    let broken = || Err(std::io::ErrorKind::ConnectionReset.into());
    let half = || Ok(Bytes::from(&b"{\"type\":\"ADDED\",\"obj"[..]));
    for end in [vec![], vec![broken()], vec![half()], vec![half(), broken()]] {
        let script = listed();
        script.on("watch", said([line("ADDED", &pod("b", 11)), bookmark(15)].into_iter().chain(end)));
        script.on("watch", said([line("ADDED", &pod("c", 16))]));
        let (_sender, answer) = watch();
        script.on("watch", answer);
        let config = config();
        let start = Instant::now();
        script.follow(&config, async { drop(script.asked("watch", 3).await) }).await;
        assert_eq!(short(&script.facts()), ["=a5@10", "live", "+b11", "b15", "+c16"]);
        assert!(script.asked("watch", 2).await.1.ends_with("resourceVersion=15"));
        assert_eq!(start.elapsed(), Duration::ZERO, "the first try is at once");
    }
}

#[tokio::test(start_paused = true)]
async fn black_hole_is_reported_down_and_missed_changes_precede_live() {
    let script = listed();
    let (sender, answer) = watch();
    script.on("watch", answer);
    script.only("probe", Answer::Hang);
    script.on("watch", Answer::Hang);
    let config = config();
    let test = async {
        script.nth(1, is_live).await;
        tokio::time::advance(Duration::from_secs(3)).await;
        sender.send(line("ADDED", &pod("b", 11))).await.unwrap();
        let (last_byte, _) = script.nth(1, |fact| matches!(fact, SourceEvent::Upsert(_))).await;
        let (down_at, down) = script.nth(1, is_down).await;
        assert_eq!(down_at - last_byte, Duration::from_secs(20), "15 s of silence and 5 s for the probe");
        assert!(matches!(down, SourceEvent::Health(_, Health::Down { since, .. }) if since == last_byte));

        let (sender, answer) = watch();
        script.only("watch", answer);
        script.only("probe", list(13, &[]));
        script.asked("probe", 2).await;
        sender.send(line("ADDED", &pod("c", 12))).await.unwrap();
        sender.send(line("DELETED", &pod("b", 13))).await.unwrap();
        script.nth(2, is_live).await;
    };
    script.follow(&config, test).await;
    assert_eq!(short(&script.facts()), ["=a5@10", "live", "+b11", "down: no answer", "+c12", "-b13", "live"]);
}

#[tokio::test(start_paused = true)]
async fn resumed_watch_is_live_after_the_quiet_period() {
    let script = listed();
    script.on("watch", said([line("ADDED", &pod("b", 11))]));
    script.on("watch", Answer::Refused);
    let config = config();
    let test = async {
        script.nth(1, is_down).await;
        let (sender, answer) = watch();
        script.only("watch", answer);
        // Other resources have moved on; nothing of this one was missed.
        script.only("probe", list(99, &[]));
        let (asked, _) = script.asked("probe", 1).await;
        let (live, _) = script.nth(2, is_live).await;
        assert_eq!(live - asked, config.catch_up_quiet_period);
        drop(sender);
    };
    script.follow(&config, test).await;
    assert_eq!(short(&script.facts()), ["=a5@10", "live", "+b11", "down: connection refused", "live"]);
}

#[tokio::test(start_paused = true)]
async fn quiet_watch_is_probed_and_stays_open() {
    let script = listed();
    let (sender, answer) = watch();
    script.on("watch", answer);
    let (_second, answer) = watch();
    script.on("watch", answer);
    let config = config();
    let start = Instant::now();
    let test = async {
        assert_eq!(script.asked("probe", 1).await.0 - start, Duration::from_secs(15));
        assert_eq!(script.asked("probe", 2).await.0 - start, Duration::from_secs(30));
        // The server does not end it: its connection must be dead, though another one works.
        assert_eq!(script.asked("watch", 2).await.0 - start, Duration::from_secs(35));
    };
    script.follow(&config, test).await;
    assert_eq!(short(&script.facts()), ["=a5@10", "live"]);
    drop(sender);
}

/// The answer to a probe was true when it was made; what the watch has told since is newer, and no sign of another history.
#[tokio::test(start_paused = true)]
async fn stale_probe_response_is_not_a_history_reset() {
    let script = listed();
    let (sender, answer) = watch();
    script.on("watch", answer);
    let (probe, answer) = watch();
    script.only("probe", answer);
    let config = config();
    let test = async {
        script.asked("probe", 1).await;
        for object in [pod("b", 11), pod("c", 12)] {
            sender.send(line("ADDED", &object)).await.unwrap();
        }
        script.nth(2, |fact| matches!(fact, SourceEvent::Upsert(..))).await;
        let Answer::Json(_, body) = list(11, &[]) else { unreachable!() };
        probe.send(Ok(Bytes::from(body.to_string()))).await.unwrap();
        drop(probe);
        // The next one, fifteen seconds later: this one has been answered.
        script.only("probe", list(12, &[]));
        script.asked("probe", 2).await;
        sender.send(line("ADDED", &pod("d", 13))).await.unwrap();
        script.nth(3, |fact| matches!(fact, SourceEvent::Upsert(..))).await;
    };
    script.follow(&config, test).await;
    assert_eq!(short(&script.facts()), ["=a5@10", "live", "+b11", "+c12", "+d13"]);
    assert_eq!((script.count("list"), script.count("watch")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn busy_server_is_not_reported_down() {
    let script = listed();
    script.only("probe", Answer::Patience(429, 1));
    let (_sender, answer) = watch();
    script.on("watch", answer);
    let config = config();
    script.follow(&config, async { drop(script.asked("probe", 2).await) }).await;
    assert_eq!(short(&script.facts()), ["=a5@10", "live"]);
}

#[tokio::test(start_paused = true)]
async fn server_without_etcd_is_reported_down() {
    let script = listed();
    script.only("probe", Answer::Json(500, json!({"message": "etcdserver: leader changed", "code": 500})));
    let (_sender, answer) = watch();
    script.on("watch", answer);
    let config = config();
    script.follow(&config, async { drop(script.nth(1, is_down).await) }).await;
    assert_eq!(short(&script.facts()), ["=a5@10", "live", "down: error answer"]);
}

#[tokio::test(start_paused = true)]
async fn restored_backup_is_detected_and_relisted() {
    let script = Script::default();
    script.on("home", Answer::Json(200, json!({"metadata": {"name": "bh", "uid": "ns-1"}})));
    script.on("list", list(100, &[pod("a", 50)]));
    script.on("list", list(60, &[pod("a", 40)]));
    script.on("probe", list(60, &[]));
    let (_future, answer) = watch();
    script.on("watch", answer);
    let (_sender, answer) = watch();
    script.on("watch", answer);
    let config = config();
    script.follow(&config, async { drop(script.asked("watch", 2).await) }).await;
    assert_eq!(short(&script.facts()), ["=a50@100", "live", "home ns-1", "=a40@60"]);
    assert!(script.asked("watch", 2).await.1.ends_with("resourceVersion=60"));
}

#[tokio::test(start_paused = true)]
async fn failures_are_reported_once_per_change_and_retries_are_delayed() {
    let script = Script::default();
    script.on("list", Answer::Refused);
    let config = config();
    let test = async {
        let start = Instant::now();
        let (at, _) = script.asked("list", 30).await;
        assert!(at - start > Duration::from_secs(13), "thirty tries in {:?}", at - start);
        assert!(at - start < Duration::from_secs(30), "thirty tries in {:?}", at - start);
        script.only("list", Answer::Json(403, json!({"code": 403})));
        script.nth(2, is_down).await;
        script.only("list", list(10, &[]));
        let (_sender, answer) = watch();
        script.only("watch", answer);
        script.nth(1, is_live).await;
    };
    script.follow(&config, test).await;
    assert_eq!(short(&script.facts()), ["down: connection refused", "down: forbidden", "=@10", "live"]);
}

#[tokio::test(start_paused = true)]
async fn watches_that_end_immediately_restart_with_delays() {
    let script = listed();
    for _ in 0..40 {
        script.on("watch", said([]));
    }
    let config = config();
    let start = Instant::now();
    script.follow(&config, async { drop(script.asked("watch", 30).await) }).await;
    assert!(start.elapsed() > Duration::from_secs(13), "thirty watches in {:?}", start.elapsed());
    assert_eq!(short(&script.facts())[..3], ["=a5@10", "live", "down: watch ended"]);
}

#[tokio::test(start_paused = true)]
async fn lists_with_immediately_expired_watches_repeat_with_delays() {
    let script = listed();
    script.on("watch", Answer::Json(410, expired()));
    let config = config();
    let start = Instant::now();
    script.follow(&config, async { drop(script.asked("list", 30).await) }).await;
    assert!(start.elapsed() > Duration::from_secs(13), "thirty lists in {:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_honored_up_to_30_s() {
    for (seconds, waited) in [(7, 7), (3600, 30)] {
        let script = listed();
        script.on("watch", Answer::Patience(429, seconds));
        let config = config();
        let start = Instant::now();
        script.follow(&config, async { drop(script.asked("watch", 2).await) }).await;
        assert_eq!(start.elapsed(), Duration::from_secs(waited));
    }
}

#[tokio::test(start_paused = true)]
async fn each_request_has_a_timeout() {
    let script = Script::default();
    let config = config();
    let start = Instant::now();
    let test = async {
        script.on("list", Answer::Hang);
        assert_eq!(script.nth(1, is_down).await.0 - start, config.page_timeout);
        script.only("list", list(10, &[]));
        let (asked, _) = script.asked("watch", 1).await;
        assert!(script.asked("watch", 2).await.0 - asked >= config.start_timeout);
    };
    script.follow(&config, test).await;
}

#[tokio::test(start_paused = true)]
async fn older_versions_are_ignored() {
    let script = listed();
    let (sender, answer) = watch();
    script.on("watch", answer);
    let config = config();
    let test = async {
        for object in [pod("b", 12), pod("b", 12), pod("c", 11), pod("d", 13)] {
            sender.send(line("ADDED", &object)).await.unwrap();
        }
        sender.send(bookmark(12)).await.unwrap();
        sender.send(bookmark(14)).await.unwrap();
        script.nth(1, |fact| matches!(fact, SourceEvent::Bookmark(..))).await;
    };
    script.follow(&config, test).await;
    assert_eq!(short(&script.facts()), ["=a5@10", "live", "+b12", "+d13", "b14"]);
}

#[tokio::test(start_paused = true)]
async fn missing_namespace_delays_the_first_list() {
    let script = listed();
    script.on("home", Answer::Json(404, json!({"code": 404})));
    let config = config();
    let test = async {
        script.asked("home", 5).await;
        assert_eq!((script.count("list"), script.count("other")), (0, 0));
        script.only("home", Answer::Json(200, json!({"metadata": {"uid": "ns-1"}})));
        let (_sender, answer) = watch();
        script.on("watch", answer);
        script.nth(1, is_live).await;
        script.asked("other", 1).await;
    };
    script.follow_both(&config, test).await;
    assert_eq!(short(&script.facts()), ["down: no namespace", "down: no namespace", "home ns-1", "=a5@10", "live"]);
}

#[test]
fn retry_delays_double_up_to_the_maximum_with_jitter() {
    let (config, trouble) = (config(), UpstreamError::WatchEnded);
    let ms = |tries, random| config.pause(tries, &trouble, random).as_millis();
    assert_eq!([1, 2, 3, 4, 5, 50].map(|tries| ms(tries, u64::MAX)), [100, 200, 400, 800, 1000, 1000]);
    assert_eq!([1, 2, u32::MAX].map(|tries| ms(tries, 0)), [50, 100, 500]);
    let busy = UpstreamError::Throttled { code: 429, retry_after: Some(Duration::from_secs(9)) };
    assert_eq!(config.pause(1, &busy, 0), Duration::from_secs(9));
}

#[test]
fn decode_error_contains_no_object_content() {
    let secret = br#"{"metadata":{"name":"n","uid":"u","resourceVersion":"canary"}}"#;
    let Err(UpstreamError::Decode(told)) = api_client::parse::<DecodedPod>(secret) else { panic!("it is unreadable") };
    assert!(!told.contains("canary"), "{told}");
    assert!(told.contains("column"), "{told}");
}
