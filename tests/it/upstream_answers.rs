//! One answer of the API server has one meaning: the hub and the dedicated watchers judge each answer of a table equally
//! (docs/failures.md#expected-errors-and-outages). Both are observed through the socket of a `/ws` client, and at the
//! scripted API server.
//!
//! The API server has the Pod `first`. When the client is connected, the first watch moves to version 11 and ends. The watch
//! from there, or the list after it, gets the answer of the table. What the client receives next shows what the bridge did:
//! - `continued`: the watch went on.
//! - `rewatched`: the bridge watched again from version 11.
//! - `relisted`: the bridge listed again.

mod cases;
mod limits;

use std::time::Duration;

use boilerhouse_bridge::feed;
use boilerhouse_bridge::source::{dedicated, hub, retry::Backoff};
use boilerhouse_bridge::test_support::PodBuilder;
use futures::{StreamExt, future::join_all, stream};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use self::cases::{Case, Place, cases};
use crate::support::http_client::{self, TEST_TIMEOUT, WsClient};
use crate::support::in_process::{Config, InProcessBridge};
use crate::support::scripted_api::{Answer, ApiRequest, Kind, NAMESPACE, ScriptedApi, empty_answer, line, list};

/// Which watches a client reads.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Hub,
    Dedicated,
}

/// What the bridge did after an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reaction {
    Continues,
    WatchesAgain,
    ListsAgain,
}

/// What the bridge does when each watch from version 11, or each list, gets the answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Repeated {
    /// One list ends the failure, and the client stays connected.
    Recovers,
    /// The client is disconnected with 1013 after the time that the upstream may be down.
    Closes,
    /// Not tested: the upstream is up again and again for a moment.
    Alternates,
}

/// How long the upstream may be down before a client of a repeated answer is disconnected.
const MAX_DOWNTIME: Duration = Duration::from_millis(400);

fn pod(name: &str, version: u64) -> Value {
    PodBuilder::new(name).namespace(NAMESPACE).version(version).json()
}

/// An API server that gives the answer of a case once, or each time. The first watch ends when `connected` is true.
fn api(case: &Case, is_repeated: bool, connected: watch::Receiver<bool>) -> ScriptedApi {
    let (answer, place) = (case.answer.clone(), case.place);
    ScriptedApi::new(move |request: &ApiRequest| {
        if !request.is_pods {
            return empty_answer(request, 10);
        }
        let is_answered = is_repeated || request.before == usize::from(request.kind == Kind::List);
        match (request.kind, place) {
            (Kind::List, _) if request.before == 0 => list(10, &[pod("first", 5)]),
            (Kind::List, Place::List) if is_answered => answer.list(),
            (Kind::List, _) => list(20, &[pod("first", 5), pod("relisted", 15)]),
            (Kind::NextPage, Place::List) => answer.next_page(),
            (Kind::Watch(10), _) => {
                let mut connected = connected.clone();
                let moved = async move {
                    // An error means that the test has ended.
                    let _ = connected.wait_for(|connected| *connected).await;
                    Ok(cases::bookmark("11"))
                };
                Answer::Body(stream::once(moved).boxed())
            }
            (Kind::Watch(11), Place::List) => cases::expired_watch(),
            (Kind::Watch(11), Place::Watch) if is_answered => answer.watch(line("ADDED", &pod("continued", 12))),
            (Kind::Watch(11), Place::Watch) => Answer::open(vec![line("ADDED", &pod("rewatched", 13))]),
            (Kind::Probe, _) => list(11, &[]),
            _ => empty_answer(request, 20),
        }
    })
}

/// Starts a bridge whose hub, or whose dedicated watchers, use this API server.
async fn start(mode: Mode, api: &ScriptedApi, max_upstream_downtime: Duration) -> InProcessBridge {
    let backoff = Backoff { min: Duration::from_millis(1), max: Duration::from_millis(5), ..Backoff::default() };
    let short = Duration::from_secs(2);
    let hub = hub::Config {
        backoff,
        page_timeout: short,
        start_timeout: short,
        catch_up_quiet_period: Duration::from_millis(10),
        list: cases::LIST_LIMITS,
        page_bytes: cases::PAGE_BYTES,
        line_bytes: cases::LINE_BYTES,
        ..hub::Config::default()
    };
    let dedicated = dedicated::Config {
        max_connections: usize::from(mode == Mode::Dedicated),
        backoff,
        relist_backoff: [Duration::from_millis(1), Duration::from_millis(5)],
        page_timeout: short,
        start_timeout: short,
        list: cases::LIST_LIMITS,
        page_bytes: cases::PAGE_BYTES,
        line_bytes: cases::LINE_BYTES,
        ..dedicated::Config::default()
    };
    let feed = feed::Config { max_upstream_downtime, ..feed::Config::default() };
    let config = Config { hub, dedicated, feed, ..Config::default() };
    let quiet = ScriptedApi::new(|request| empty_answer(request, 10));
    let (of_hub, of_dedicated) = match mode {
        Mode::Hub => (api, &quiet),
        Mode::Dedicated => (&quiet, api),
    };
    InProcessBridge::start(NAMESPACE, of_hub.client(), &of_dedicated.client(), config).await
}

/// Runs a case once. Fails with what happened instead of the expected reaction.
async fn observe(case: &Case, mode: Mode) -> Result<(), String> {
    let connected = watch::Sender::new(false);
    let api = api(case, false, connected.subscribe());
    let bridge = start(mode, &api, Duration::from_secs(60)).await;
    let mut client = WsClient::connect(bridge.address, "/ws").await;
    connected.send_replace(true);
    let wanted = ["continued", "rewatched", "relisted"];
    let found = timeout(TEST_TIMEOUT, client.until(|event| wanted.iter().any(|name| event["name"] == *name)));
    let found = found.await.map_err(|_| "no event followed".to_owned())?;
    let last: Value = serde_json::from_str(found.last().unwrap()).unwrap();
    let reaction = match last["name"].as_str() {
        Some("continued") => Reaction::Continues,
        Some("rewatched") => Reaction::WatchesAgain,
        _ => Reaction::ListsAgain,
    };
    ensure(reaction == case.reaction, || format!("expected {:?}, found {reaction:?}", case.reaction))?;
    ensure(!found.iter().any(|text| text.contains("Deleted")), || format!("a deletion did not happen: {found:?}"))?;
    if let Some(label) = case.counted_as {
        let name = match mode {
            Mode::Hub => "bridge_upstream_interruptions_total",
            Mode::Dedicated => "bridge_dedicated_watcher_errors_total",
        };
        let labels = ["resource=\"pods\"", &format!("reason=\"{label}\"")];
        let count = http_client::metric_sum(bridge.address, name, &labels).await;
        ensure(count > 0, || format!("not counted as {label}"))?;
    }
    if let Some(delay) = case.min_delay {
        let (kind, nth) = if case.place == Place::Watch { (Kind::Watch(11), 0) } else { (Kind::List, 1) };
        let times = times(&api, kind);
        let waited = times[nth + 1] - times[nth];
        ensure(waited >= delay, || format!("the next request came after {waited:?}, not after {delay:?}"))?;
    }
    Ok(())
}

fn times(api: &ScriptedApi, kind: Kind) -> Vec<Instant> {
    api.pod_requests().into_iter().filter(|(_, other)| *other == kind).map(|(at, _)| at).collect()
}

fn ensure(is_met: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if is_met { Ok(()) } else { Err(message()) }
}

/// Runs a case whose answer is repeated.
async fn observe_repeated(case: &Case, mode: Mode) -> Result<(), String> {
    if case.repeated == Repeated::Alternates {
        return Ok(());
    }
    let connected = watch::Sender::new(false);
    let api = api(case, true, connected.subscribe());
    let max_downtime = if case.repeated == Repeated::Closes { MAX_DOWNTIME } else { Duration::from_secs(60) };
    let bridge = start(mode, &api, max_downtime).await;
    let mut client = WsClient::connect(bridge.address, "/ws").await;
    connected.send_replace(true);
    if case.repeated == Repeated::Closes {
        let close = timeout(TEST_TIMEOUT, client.closed(2 * TEST_TIMEOUT)).await;
        let (_, close) = close.map_err(|_| "the client is still connected".to_owned())?;
        return ensure(close == Some((1013, "upstream unavailable".to_owned())), || {
            format!("expected 1013: {close:?}")
        });
    }
    let recovered = timeout(TEST_TIMEOUT, client.until(|event| event["name"] == "relisted")).await;
    recovered.map_err(|_| "the bridge has not listed again".to_owned())?;
    let counts = [times(&api, Kind::List).len(), times(&api, Kind::Watch(11)).len()];
    ensure(counts == [2, 1], || format!("{counts:?} lists and watches from version 11, [2, 1] expected"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hub_and_dedicated_watchers_judge_each_answer_equally() {
    let cases = cases();
    assert!(cases.len() >= 96, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for chunk in cases.chunks(8) {
        let runs = chunk.iter().flat_map(|case| [Mode::Hub, Mode::Dedicated].map(|mode| (case.clone(), mode)));
        let results = join_all(runs.map(async |(case, mode)| {
            let name = case.name.clone();
            let run = tokio::spawn(async move {
                observe(&case, mode).await.map_err(|error| format!("once: {error}"))?;
                observe_repeated(&case, mode).await.map_err(|error| format!("repeated: {error}"))
            });
            // A panic in the support code fails this case only.
            let error = run.await.unwrap_or_else(|panic| Err(panic.to_string())).err()?;
            Some(format!("{name} ({mode:?}): {error}"))
        }));
        wrong.extend(results.await.into_iter().flatten());
    }
    println!("{} answers, each judged by the hub and by dedicated watchers, once and repeated", cases.len());
    assert!(wrong.is_empty(), "{} of {} answers:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
