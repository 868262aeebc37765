//! Answers without an end: the bridge stops to read them at its limits, and the client misses nothing
//! (docs/limits.md#dedicated-watchers).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use boilerhouse_bridge::event::Instance;
use boilerhouse_bridge::source::{dedicated, hub};
use bytes::Bytes;
use futures::stream;
use futures::{StreamExt, future::join_all};
use serde_json::{Value, json};

use super::{Mode, pod};
use crate::support::http_client::{WsClient, poll_until};
use crate::support::in_process::{Config, InProcessBridge};
use crate::support::scripted_api::{Answer, ApiRequest, Kind, NAMESPACE, ScriptedApi, empty_answer, line, list};

/// Bytes of a chunk of an endless line.
const CHUNK: usize = 16 << 10;
/// Connections whose watches all get a line without an end.
const CONNECTIONS: usize = 12;

/// The bytes of all endless lines that the bridge has read, of the watches that are open.
#[derive(Clone, Debug, Default)]
struct Unfinished {
    now: Arc<AtomicUsize>,
    max: Arc<AtomicUsize>,
    total: Arc<AtomicUsize>,
}

/// The bytes of one watch. Dropping it removes them.
struct UnfinishedLine(Unfinished, usize);

impl Drop for UnfinishedLine {
    fn drop(&mut self) {
        self.0.now.fetch_sub(self.1, SeqCst);
    }
}

impl Unfinished {
    /// A watch whose line has this many bytes and no end; it then stays open.
    fn watch(&self, bytes: usize) -> Answer {
        let line = UnfinishedLine(self.clone(), 0);
        let chunks = stream::unfold(line, move |mut line| async move {
            if line.1 >= bytes {
                return std::future::pending().await;
            }
            line.1 += CHUNK;
            line.0.total.fetch_add(CHUNK, SeqCst);
            let now = line.0.now.fetch_add(CHUNK, SeqCst) + CHUNK;
            line.0.max.fetch_max(now, SeqCst);
            Some((Ok(Bytes::from(vec![b' '; CHUNK])), line))
        });
        Answer::Body(chunks.boxed())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_line_without_an_end_is_read_up_to_the_limit() {
    for mode in [Mode::Hub, Mode::Dedicated] {
        let unfinished = Unfinished::default();
        let endless = unfinished.clone();
        let api = ScriptedApi::new(move |request: &ApiRequest| match request.kind {
            Kind::List if request.is_pods && request.before == 0 => list(10, &[pod("first", 5)]),
            Kind::List if request.is_pods => list(20, &[pod("first", 5), pod("relisted", 15)]),
            Kind::Watch(10) if request.is_pods => endless.watch(usize::MAX),
            Kind::Watch(20) if request.is_pods => Answer::open(vec![line("ADDED", &pod("watched", 21))]),
            _ => empty_answer(request, 10),
        });
        let quiet = ScriptedApi::new(|request| empty_answer(request, 10));
        let (of_hub, of_dedicated) = if mode == Mode::Hub { (&api, &quiet) } else { (&quiet, &api) };
        let dedicated =
            dedicated::Config { max_connections: usize::from(mode == Mode::Dedicated), ..dedicated::Config::default() };
        let config = Config { dedicated, ..Config::default() };
        let bridge = InProcessBridge::start(NAMESPACE, of_hub.client(), &of_dedicated.client(), config).await;
        let mut client = WsClient::connect(bridge.address, "/ws").await;
        client.until(|event| event["name"] == "watched").await;
        let (read, limit) = (unfinished.total.load(SeqCst), hub::Config::default().line_bytes);
        println!("{mode:?}: {read} bytes of the line were read, the limit is {limit}");
        assert!((limit..=limit + 2 * CHUNK).contains(&read), "{mode:?}: {read} bytes were read");
        assert_eq!(unfinished.now.load(SeqCst), 0, "{mode:?}: the watch is still open");
    }
}

/// Each line is shorter than the limit of a line. All of them together are longer than the limit of all buffers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_lines_of_all_dedicated_watchers_share_one_limit() {
    const LINE: usize = 1 << 20;
    const BUFFERS: usize = 3 << 20;
    let unfinished = Unfinished::default();
    let endless = unfinished.clone();
    let api = ScriptedApi::new(move |request: &ApiRequest| match request.kind {
        Kind::List if request.is_pods => list(10, &[pod("first", 5)]),
        Kind::Watch(10) if request.is_pods => endless.watch(LINE),
        _ => empty_answer(request, 10),
    });
    let quiet = ScriptedApi::new(|request| empty_answer(request, 10));
    let dedicated = dedicated::Config {
        all_lines_bytes: BUFFERS,
        relist_backoff: [Duration::from_millis(10), Duration::from_millis(50)],
        ..dedicated::Config::default()
    };
    let config = Config { dedicated, ..Config::default() };
    let bridge = InProcessBridge::start(NAMESPACE, quiet.client(), &api.client(), config).await;
    let clients = join_all((0..CONNECTIONS).map(|_| WsClient::connect(bridge.address, "/ws"))).await;
    // The watchers that do not get the bytes of their line list again, until others release theirs.
    let lists = poll_until(|| Some(api.lists()).filter(|lists| *lists >= 6 * CONNECTIONS)).await;
    let (max, allowed) = (unfinished.max.load(SeqCst), BUFFERS + CONNECTIONS * 2 * CHUNK);
    println!("{CONNECTIONS} connections: at most {max} bytes of unfinished lines, {allowed} allowed; {lists} lists");
    assert!(max <= allowed, "{max} bytes of unfinished lines, at most {allowed} expected");
    assert!(max >= BUFFERS / 2, "only {max} bytes were buffered, so the limit was not reached");
    drop(clients);
    poll_until(|| (unfinished.now.load(SeqCst) == 0).then_some(())).await;
}

/// The limit is reached by the objects of the second page. The list then starts again, and what it lists afterwards arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_beyond_the_limit_of_all_lists_starts_again_and_loses_nothing() {
    const PODS_OF_A_PAGE: usize = 100;
    let pods: Vec<Value> = (0..PODS_OF_A_PAGE).map(|number| pod(&format!("pod-{number}"), 5)).collect();
    let page = |after: Option<&str>| {
        let metadata = json!({"resourceVersion": "10", "continue": after});
        json!({"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": pods})
    };
    let (first, last) = (page(Some("next")), page(None));
    // Enough for the views of the first page beside a page, and too little for those of both pages.
    let all_lists_bytes = first.to_string().len() + PODS_OF_A_PAGE * 3 / 2 * size_of::<Instance>();
    let api = ScriptedApi::new(move |request: &ApiRequest| match request.kind {
        Kind::List if request.is_pods && request.before == 0 => Answer::json(200, &first),
        Kind::NextPage if request.is_pods => Answer::json(200, &last),
        Kind::List if request.is_pods => list(20, &[pod("relisted", 15)]),
        Kind::Watch(_) if request.is_pods => Answer::open(Vec::new()),
        _ => empty_answer(request, 10),
    });
    let quiet = ScriptedApi::new(|request| empty_answer(request, 10));
    let dedicated = dedicated::Config {
        all_lists_bytes,
        relist_backoff: [Duration::from_millis(10), Duration::from_millis(50)],
        ..dedicated::Config::default()
    };
    let config = Config { dedicated, ..Config::default() };
    let bridge = InProcessBridge::start(NAMESPACE, quiet.client(), &api.client(), config).await;
    let mut client = WsClient::connect(bridge.address, "/ws").await;
    let received = client.until(|event| event["name"] == "relisted").await;
    assert_eq!(received.len(), 1, "objects of the list that was given up: {received:?}");
}
