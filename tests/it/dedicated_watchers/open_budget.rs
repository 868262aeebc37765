//! The budget for opening dedicated watchers (docs/limits.md#dedicated-watchers): clients that connect and leave in a loop
//! cause a bounded number of lists at the API server. A client beyond the budget sees no difference.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use boilerhouse_bridge::http::rate_limit;
use boilerhouse_bridge::test_support::PodBuilder;
use futures::future::join_all;
use tokio::time::Instant;

use crate::support::http_client::{self, WsClient};
use crate::support::in_process::{Config, InProcessBridge};
use crate::support::long_form;
use crate::support::scripted_api::{Answer, ApiRequest, Kind, NAMESPACE, ScriptedApi, empty_answer, line, list};

/// Clients that connect and leave at the same time.
const CLIENTS: usize = 4;
/// How long they do so.
const SHORT: Duration = Duration::from_secs(4);
const LONG_FORM: Duration = Duration::from_secs(20);
/// Openings that one caller has at once, and within a minute.
const BUDGET: u32 = 12;

/// Starts a bridge, and returns it with the API server of its dedicated watchers.
async fn start(dedicated_opens: u32) -> (InProcessBridge, ScriptedApi) {
    let pod = |name, version| PodBuilder::new(name).namespace(NAMESPACE).version(version).json();
    let script = move |request: &ApiRequest| match request.kind {
        Kind::List if request.is_pods => list(10, &[pod("a", 5)]),
        Kind::Watch(_) if request.is_pods => Answer::open(vec![line("ADDED", &pod("b", 11))]),
        _ => empty_answer(request, 10),
    };
    let (of_hub, of_dedicated) = (ScriptedApi::new(script), ScriptedApi::new(script));
    let dedicated_opens = NonZeroU32::new(dedicated_opens).unwrap();
    let limits = rate_limit::Config { dedicated_opens, ..rate_limit::Config::default() };
    let config = Config { limits, ..Config::default() };
    let bridge = InProcessBridge::start(NAMESPACE, of_hub.client(), &of_dedicated.client(), config).await;
    (bridge, of_dedicated)
}

/// Connects, reads the events of both Pods, and leaves, again and again. Returns the number of connections.
async fn connect_and_leave(address: SocketAddr, duration: Duration) -> usize {
    let start = Instant::now();
    let mut connections = 0;
    while start.elapsed() < duration {
        let mut client = WsClient::connect(address, "/ws").await;
        let received = client.until(|event| event["name"] == "b").await;
        assert_eq!(received.len(), 2, "the events of a connection: {received:?}");
        connections += 1;
    }
    connections
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_connect_and_leave_cause_a_bounded_number_of_lists() {
    let duration = if long_form() { LONG_FORM } else { SHORT };
    for budget in [u32::MAX, BUDGET] {
        let (bridge, api) = start(budget).await;
        let start = Instant::now();
        let loops = join_all((0..CLIENTS).map(|_| connect_and_leave(bridge.address, duration)));
        let connections: usize = loops.await.into_iter().sum();
        let (lists, seconds) = (api.lists(), start.elapsed().as_secs_f64());
        let rate = lists as f64 / seconds;
        println!(
            "budget {budget}: {connections} connections and {lists} lists in {seconds:.1} s, {rate:.1} lists a second"
        );
        // Each opening costs two lists. All clients have one address, and the budget refills evenly over a minute.
        let openings = (BUDGET as f64 + f64::from(BUDGET) * seconds / 60.0).ceil() as usize;
        if budget == BUDGET {
            assert!(lists <= 2 * openings, "{lists} lists, at most {} expected", 2 * openings);
            assert!(connections > 2 * openings, "only {connections} connections, so the budget was not used up");
            let name = "bridge_rate_limit_rejections_total";
            let over = http_client::metric(bridge.address, &format!("{name}{{budget=\"dedicated_opens\"}}")).await;
            assert!(over as usize >= connections - openings, "{over} connections over the budget were counted");
        }
    }
}
