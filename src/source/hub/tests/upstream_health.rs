//! When a resource counts as down although requests have not failed yet, when it counts as live again, and how another
//! Namespace is noticed.

use tokio::time::{advance, sleep};

use super::*;

/// A list in any number of pages may take any time.
fn patient_config() -> Config {
    Config { page_timeout: Duration::from_secs(600), ..config() }
}

fn list_body(version: u64, items: &[serde_json::Value]) -> Bytes {
    let ScriptedResponse::Json(_, body) = list(version, items) else { unreachable!() };
    body.to_string().into()
}

#[tokio::test(start_paused = true)]
async fn slow_relist_is_down_38_s_after_the_last_useful_byte_and_live_when_complete() {
    let api = api_with_one_pod();
    let (lines, response) = watch();
    api.respond("watch", response);
    let (pages, response) = watch();
    api.respond("list", response);
    let (_open, response) = watch();
    api.respond("watch", response);
    let config = patient_config();
    let test = async {
        api.wait_for_event(1, is_live).await;
        advance(Duration::from_secs(3)).await;
        lines.send(line("ADDED", &pod("b", 11))).await.unwrap();
        let (last_useful, _) = api.wait_for_event(1, |event| matches!(event, SourceEvent::Upsert(_))).await;
        advance(Duration::from_secs(5)).await;
        lines.send(line("ERROR", &expired())).await.unwrap();
        api.wait_for_request("list", 2).await;
        let send_slowly = async {
            loop {
                pages.send(Ok(Bytes::from_static(b" "))).await.unwrap();
                sleep(Duration::from_secs(10)).await;
            }
        };
        let (down_at, down) = tokio::select! {
            () = send_slowly => unreachable!(),
            down = api.wait_for_event(1, is_down) => down,
        };
        assert_eq!(down_at - last_useful, Duration::from_secs(38));
        assert!(matches!(down, SourceEvent::Health(_, Health::Down { since, .. }) if since == last_useful), "{down:?}");
        // The list still has time: it is limited to 120 s.
        advance(Duration::from_secs(50)).await;
        pages.send(Ok(list_body(20, &[pod("b", 11)]))).await.unwrap();
        drop(pages);
        api.wait_for_event(2, is_live).await;
    };
    api.run_watch_loop(&config, test).await;
    assert_eq!(short_form(&api.events()), ["=a5@10", "live", "+b11", "down: no answer", "=b11@20", "live"]);
}

/// The second watch starts and sends nothing but an error, so the answer to the probe before is the last useful byte.
#[tokio::test(start_paused = true)]
async fn expired_watch_does_not_delay_the_report_of_a_slow_relist() {
    let api = api_with_one_pod();
    let (lines, response) = watch();
    api.respond("watch", response);
    api.respond("watch", ended_watch([line("ERROR", &expired())]));
    let (_pages, response) = watch();
    api.respond("list", response);
    let config = patient_config();
    let start = Instant::now();
    let test = async {
        api.wait_for_request("probe", 1).await;
        sleep(Duration::from_secs(7)).await;
        drop(lines);
        let (down_at, _) = api.wait_for_event(1, is_down).await;
        assert_eq!(down_at - start, Duration::from_secs(15 + 38));
    };
    api.run_watch_loop(&config, test).await;
    assert_eq!(short_form(&api.events()), ["=a5@10", "live", "down: no answer"]);
}

/// The probes get 429, and the watch is given up after 35 s. The next one does not start.
#[tokio::test(start_paused = true)]
async fn watch_that_does_not_start_is_down_38_s_after_the_last_useful_byte() {
    let api = api_with_one_pod();
    api.respond_only("probe", ScriptedResponse::RetryAfter(429, 1));
    let (_silent, response) = watch();
    api.respond("watch", response);
    api.respond("watch", ScriptedResponse::Hang);
    let config = config();
    let start = Instant::now();
    let test = async {
        let (down_at, _) = api.wait_for_event(1, is_down).await;
        assert_eq!(down_at - start, Duration::from_secs(38));
    };
    api.run_watch_loop(&config, test).await;
    assert_eq!(short_form(&api.events()), ["=a5@10", "live", "down: no answer"]);
}

#[tokio::test(start_paused = true)]
async fn throttled_probe_of_a_resumed_watch_is_repeated_within_5_s() {
    for (requested, expected) in [(3, 3), (0, 1), (3600, 5)] {
        let api = api_with_one_pod();
        api.respond("watch", ended_watch([line("ADDED", &pod("b", 11))]));
        api.respond("watch", ScriptedResponse::Refused);
        let config = config();
        let test = async {
            api.wait_for_event(1, is_down).await;
            let (_open, response) = watch();
            api.respond_only("watch", response);
            api.respond_only("probe", ScriptedResponse::RetryAfter(429, requested));
            api.respond("probe", list(11, &[]));
            let (first, _) = api.wait_for_request("probe", 1).await;
            let (live, _) = api.wait_for_event(2, is_live).await;
            assert_eq!(live - first, Duration::from_secs(expected), "Retry-After: {requested}");
        };
        api.run_watch_loop(&config, test).await;
        assert_eq!(short_form(&api.events()), ["=a5@10", "live", "+b11", "down: connection refused", "live"]);
    }
}

#[tokio::test(start_paused = true)]
async fn another_namespace_is_noticed_within_30_s_and_both_resources_are_listed_again() {
    let api = api_with_one_pod();
    let namespace = |uid: &str| ScriptedResponse::Json(200, json!({"metadata": {"name": "bh", "uid": uid}}));
    api.respond_only("namespace", namespace("ns-1"));
    // Each of them is given up after 35 s.
    let mut open = Vec::new();
    for _ in 0..40 {
        let (lines, response) = watch();
        api.respond("watch", response);
        open.push(lines);
    }
    let config = config();
    let test = async {
        api.wait_for_event(1, is_live).await;
        // The Namespace does not exist for a while.
        api.wait_for_request("namespace", 3).await;
        api.respond_only("namespace", ScriptedResponse::Json(404, json!({"code": 404})));
        api.wait_for_request("namespace", 5).await;
        api.respond_only("namespace", namespace("ns-2"));
        let started = Instant::now();
        let is_new = |event: &SourceEvent| matches!(event, SourceEvent::Namespace(uid) if uid == "ns-2");
        let (noticed, _) = api.wait_for_event(1, is_new).await;
        assert!(noticed - started <= Duration::from_secs(30), "{:?}", noticed - started);
        api.wait_for_event(2, is_replace).await;
        let requests = api.request_count("namespace");
        sleep(Duration::from_secs(615)).await;
        assert_eq!(api.request_count("namespace") - requests, 20);
    };
    api.run_hub(&config, test).await;
    // The script does not answer requests for claims.
    let mut events = short_form(&api.events());
    events.retain(|event| event.starts_with('=') || event.starts_with("namespace"));
    assert_eq!(events[..4], ["namespace ns-1", "=a5@10", "namespace ns-2", "=a5@10"]);
}

/// The alert on missing permissions reads the counters.
#[tokio::test(start_paused = true)]
async fn failed_requests_of_the_namespace_count_for_both_resources() {
    let (api, config, metrics) = (ScriptedApi::default(), config(), Metrics::default());
    api.respond("namespace", ScriptedResponse::Json(403, json!({"code": 403})));
    let client = api.client();
    let pods = ResourceApi::new(&client, &config, &metrics);
    let sink = Mutex::new(|_| ());
    tokio::select! {
        _ = fetch_namespace(&pods, &config, &sink) => unreachable!("the request is refused"),
        _ = api.wait_for_request("namespace", 4) => (),
    }
    let text = metrics::tests::encoded(&metrics);
    for resource in Resource::ALL.map(Resource::plural) {
        let of_resource = |line: &&str| {
            line.starts_with("upstream_interruptions_total{") && line.contains(&format!("resource=\"{resource}\""))
        };
        let counted: Vec<&str> = text.lines().filter(of_resource).filter(|line| !line.ends_with(" 0")).collect();
        let [line] = counted[..] else { panic!("{counted:?}") };
        let (labels, count) = line.rsplit_once(' ').unwrap();
        // The fourth request can be answered before the test ends.
        assert!(labels.contains("\"forbidden\"") && ["3", "4"].contains(&count), "{line}");
    }
}
