mod chaos;
mod script;

use bytes::Bytes;
use script::{Answer, Script, bookmark, expired, line, list, pod, said, versions, watch};
use serde_json::json;

use super::*;

fn config() -> Config {
    Config { namespace: "bh".into(), ..Config::default() }
}

fn is_live(fact: &Fact) -> bool {
    matches!(fact, Fact::Health(_, Health::Live))
}

fn is_down(fact: &Fact) -> bool {
    matches!(fact, Fact::Health(_, Health::Down { .. }))
}

fn is_replace(fact: &Fact) -> bool {
    matches!(fact, Fact::Replace(..))
}

/// Facts in short: `=a1,b2@7` a list at 7, `+a8`, `-a9`, `b10` a bookmark, and the health.
fn short(facts: &[Fact]) -> Vec<String> {
    let told =
        |views: &[View]| versions(views).iter().map(|(name, rv)| format!("{name}{rv}")).collect::<Vec<_>>().join(",");
    facts
        .iter()
        .filter(|fact| !matches!(fact, Fact::Heard(_)))
        .map(|fact| match fact {
            Fact::Heard(_) => String::new(),
            Fact::Home(uid) => format!("home {uid}"),
            Fact::Replace(_, views, rv) => format!("={}@{rv}", told(views)),
            Fact::Upsert(view) => format!("+{}", told(std::slice::from_ref(view))),
            Fact::Remove(view) => format!("-{}", told(std::slice::from_ref(view))),
            Fact::Bookmark(_, rv) => format!("b{rv}"),
            Fact::Health(_, Health::Connecting) => "connecting".to_owned(),
            Fact::Health(_, Health::Live) => "live".to_owned(),
            Fact::Health(_, Health::Down { reason, .. }) => format!("down: {reason}"),
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
async fn lists_then_watches() {
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
        script.nth(1, |fact| matches!(fact, Fact::Bookmark(..))).await;
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
async fn a_list_comes_in_pages_and_starts_again_when_one_expires() {
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
async fn lost_history_is_a_new_list_and_nothing_is_down() {
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
async fn a_line_that_does_not_parse_loses_no_change() {
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
async fn an_endless_line_ends_the_watch() {
    let script = listed();
    script.on("watch", said([Ok(Bytes::from(vec![b'x'; 1001]))]));
    let config = Config { line_bytes: 1000, ..config() };
    script.follow(&config, async { drop(script.nth(2, is_replace).await) }).await;
    assert_eq!(short(&script.facts()), ["=a5@10", "live", "=a5@10"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_goes_on_where_it_was() {
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
async fn a_black_hole_is_told_and_what_was_missed_comes_before_live() {
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
        let (last_byte, _) = script.nth(1, |fact| matches!(fact, Fact::Upsert(_))).await;
        let (down_at, down) = script.nth(1, is_down).await;
        assert_eq!(down_at - last_byte, Duration::from_secs(20), "15 s of silence and 5 s for the probe");
        assert!(matches!(down, Fact::Health(_, Health::Down { since, .. }) if since == last_byte));

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
async fn a_watch_taken_up_again_is_live_once_quiet() {
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
        assert_eq!(live - asked, config.settle);
        drop(sender);
    };
    script.follow(&config, test).await;
    assert_eq!(short(&script.facts()), ["=a5@10", "live", "+b11", "down: connection refused", "live"]);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_watch_is_probed_and_stays() {
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
async fn an_answer_that_was_overtaken_takes_nobody_back() {
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
        script.nth(2, |fact| matches!(fact, Fact::Upsert(..))).await;
        let Answer::Json(_, body) = list(11, &[]) else { unreachable!() };
        probe.send(Ok(Bytes::from(body.to_string()))).await.unwrap();
        drop(probe);
        // The next one, fifteen seconds later: this one has been answered.
        script.only("probe", list(12, &[]));
        script.asked("probe", 2).await;
        sender.send(line("ADDED", &pod("d", 13))).await.unwrap();
        script.nth(3, |fact| matches!(fact, Fact::Upsert(..))).await;
    };
    script.follow(&config, test).await;
    assert_eq!(short(&script.facts()), ["=a5@10", "live", "+b11", "+c12", "+d13"]);
    assert_eq!((script.count("list"), script.count("watch")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_busy_server_is_not_a_dead_one() {
    let script = listed();
    script.only("probe", Answer::Patience(429, 1));
    let (_sender, answer) = watch();
    script.on("watch", answer);
    let config = config();
    script.follow(&config, async { drop(script.asked("probe", 2).await) }).await;
    assert_eq!(short(&script.facts()), ["=a5@10", "live"]);
}

#[tokio::test(start_paused = true)]
async fn a_server_without_its_store_is_down() {
    let script = listed();
    script.only("probe", Answer::Json(500, json!({"message": "etcdserver: leader changed", "code": 500})));
    let (_sender, answer) = watch();
    script.on("watch", answer);
    let config = config();
    script.follow(&config, async { drop(script.nth(1, is_down).await) }).await;
    assert_eq!(short(&script.facts()), ["=a5@10", "live", "down: error answer"]);
}

#[tokio::test(start_paused = true)]
async fn an_older_copy_is_noticed_and_listed() {
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
async fn failures_are_told_once_a_change_and_paced() {
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
async fn watches_that_end_as_they_start_are_paced() {
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
async fn lists_whose_watch_has_expired_at_once_are_paced() {
    let script = listed();
    script.on("watch", Answer::Json(410, expired()));
    let config = config();
    let start = Instant::now();
    script.follow(&config, async { drop(script.asked("list", 30).await) }).await;
    assert!(start.elapsed() > Duration::from_secs(13), "thirty lists in {:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn patience_is_granted_up_to_a_bound() {
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
async fn every_request_has_its_time() {
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
async fn time_never_goes_back() {
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
        script.nth(1, |fact| matches!(fact, Fact::Bookmark(..))).await;
    };
    script.follow(&config, test).await;
    assert_eq!(short(&script.facts()), ["=a5@10", "live", "+b12", "+d13", "b14"]);
}

#[tokio::test(start_paused = true)]
async fn without_its_namespace_nothing_starts() {
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
fn pauses_double_up_to_the_cap_and_are_jittered() {
    let (config, trouble) = (config(), Trouble::Ended);
    let ms = |tries, random| config.pause(tries, &trouble, random).as_millis();
    assert_eq!([1, 2, 3, 4, 5, 50].map(|tries| ms(tries, u64::MAX)), [100, 200, 400, 800, 1000, 1000]);
    assert_eq!([1, 2, u32::MAX].map(|tries| ms(tries, 0)), [50, 100, 500]);
    let busy = Trouble::Busy { code: 429, retry_after: Some(Duration::from_secs(9)) };
    assert_eq!(config.pause(1, &busy, 0), Duration::from_secs(9));
}

#[test]
fn what_cannot_be_read_is_not_repeated() {
    let secret = br#"{"metadata":{"name":"n","uid":"u","resourceVersion":"canary"}}"#;
    let Err(Trouble::Unreadable(told)) = api_client::parse::<PodRow>(secret) else { panic!("it is unreadable") };
    assert!(!told.contains("canary"), "{told}");
    assert!(told.contains("column"), "{told}");
}
