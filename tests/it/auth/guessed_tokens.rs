//! Clients that guess Kubernetes tokens in parallel, and valid clients beside them, with the binary on the simulator
//! (docs/protocol.md#access, "Limits").

use std::time::Duration;

use boilerhouse_bridge::sim::{
    ApiResource, Verb,
    fault::{Answer, Fault},
};
use futures::{StreamExt, future::join_all, stream};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::support::{
    accounts::{Accounts, REQUIRED_ACCESS, RbacSubject},
    bridge_process::BridgeProcess,
    http_client::{self, HttpResponse, WsClient, request},
    sim_cluster::{NAMESPACE, SimCluster},
    sse_client::SseClient,
};

const AUDIENCE: &str = "boilerhouse-bridge";
/// All clients connect through a proxy, which reports their addresses.
const FLAGS: &[&str] = &["--token-audience", AUDIENCE, "--trusted-proxies", "127.0.0.0/8"];
/// TokenReviews of unknown tokens for one address: at once, and per minute.
const PROMISED: u64 = 60;
/// Clients that guess in parallel.
const GUESSERS: usize = 40;
/// Reviews that the bridge has in flight at once (docs/limits.md#authentication).
const CONCURRENT_REVIEWS: usize = 8;
const ATTACKER: &str = "192.0.2.1";

/// A cluster with one account that may read, and a bridge that accepts its tokens.
struct Fixture {
    cluster: SimCluster,
    bridge: BridgeProcess,
}

impl Fixture {
    async fn new() -> Fixture {
        let cluster = SimCluster::new().await;
        let accounts = Accounts::Simulated(&cluster.sim);
        accounts.create_account(NAMESPACE, "reader").await;
        accounts.bind(NAMESPACE, RbacSubject::Account("reader"), &REQUIRED_ACCESS).await;
        let bridge = cluster.bridge(FLAGS).await;
        Fixture { cluster, bridge }
    }

    /// Returns a new valid token.
    async fn token(&self) -> String {
        Accounts::Simulated(&self.cluster.sim).create_token(NAMESPACE, "reader", &[AUDIENCE]).await
    }

    async fn get(&self, address: &str, token: &str) -> HttpResponse {
        let headers = [("X-Forwarded-For", address), ("Authorization", &format!("Bearer {token}"))];
        request(self.bridge.address, "GET", "/api/v1/instances", &headers).await
    }

    /// Returns the number of TokenReviews that the API server has received.
    fn review_count(&self) -> u64 {
        let metrics = self.cluster.sim.metrics();
        metrics.requests.get(&(Verb::Create, ApiResource::TokenReviews)).copied().unwrap_or_default()
    }

    /// Sends this many requests with different invalid tokens, in parallel. Returns the statuses.
    async fn guess(&self, name: &str, count: usize) -> Vec<u16> {
        stream::iter(0..count)
            .map(|number| async move { self.get(ATTACKER, &format!("{name}-{number}")).await.status })
            .buffer_unordered(GUESSERS)
            .collect()
            .await
    }
}

#[tokio::test]
async fn parallel_guesses_cause_no_more_reviews_than_promised() {
    let fixture = Fixture::new().await;
    let (known, new) = (fixture.token().await, fixture.token().await);
    assert_eq!(fixture.get(ATTACKER, &known).await.status, 200);
    let (before, start) = (fixture.review_count(), Instant::now());
    let statuses = fixture.guess("guess", 10 * GUESSERS).await;
    let reviews = fixture.review_count() - before;
    let promised = PROMISED + start.elapsed().as_secs() + 1;
    assert!((PROMISED..=promised).contains(&reviews), "expected {PROMISED} to {promised} reviews, found {reviews}");
    assert!(statuses.iter().all(|status| [401, 429].contains(status)), "{statuses:?}");

    // Valid clients beside them: a known token, API access from another address, and the next unit of the budget.
    assert_eq!(fixture.get(ATTACKER, &known).await.status, 200, "a token that was accepted before");
    assert_eq!(fixture.get("192.0.2.2", &new).await.status, 200, "a new token from another address");
    let another = fixture.token().await;
    let mut rejected = fixture.get(ATTACKER, "one-more").await;
    // The budget of denied credentials can answer first, and a use can have refilled.
    for number in 0..GUESSERS {
        if rejected.header("ratelimit-policy") != Some("\"reviews\";q=60;w=60") {
            rejected = fixture.get(ATTACKER, &format!("one-more-{number}")).await;
        }
    }
    assert_eq!((rejected.status, rejected.header("ratelimit-policy")), (429, Some("\"reviews\";q=60;w=60")));
    assert!(rejected.body.contains("too many unknown tokens: more than 60 per minute"), "{}", rejected.body);
    let end = Instant::now() + http_client::TEST_TIMEOUT;
    while fixture.get(ATTACKER, &another).await.status != 200 {
        assert!(Instant::now() < end, "a new token must be accepted when the budget refills");
        sleep(Duration::from_millis(100)).await;
    }
}

/// A bridge that has just started knows no token. Its clients can share an address, for example behind a proxy.
#[tokio::test]
async fn parallel_valid_tokens_use_no_budget() {
    const CLIENTS: usize = 3 * PROMISED as usize;
    let fixture = Fixture::new().await;
    let tokens = join_all((0..CLIENTS).map(|_| fixture.token())).await;
    // As many at once as reviews run: a request that waits for its review for 5 s gets 503, which a busy machine could reach.
    for tokens in tokens.chunks(CONCURRENT_REVIEWS) {
        let statuses = join_all(tokens.iter().map(async |token| fixture.get(ATTACKER, token).await.status)).await;
        assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    }
    assert_eq!(fixture.review_count(), CLIENTS as u64);
    let statuses = fixture.guess("guess", GUESSERS).await;
    assert!(statuses.iter().all(|status| *status == 401), "expected the complete budget, found {statuses:?}");
}

/// Without an answer the token can be valid or not. The reviews count, so that guesses do not add to the load of an API
/// server in trouble. No client gets an answer that is final for it.
#[tokio::test]
async fn reviews_without_an_answer_count_and_reject_for_now_only() {
    let fixture = Fixture::new().await;
    let token = fixture.token().await;
    for _ in 0..2 * PROMISED {
        fixture.cluster.sim.arm(Fault::answer(Answer::Internal).on(ApiResource::TokenReviews));
    }
    let (before, start) = (fixture.review_count(), Instant::now());
    let mut statuses = fixture.guess("guess", 2 * PROMISED as usize - 10).await;
    let (reviews, promised) = (fixture.review_count() - before, PROMISED + start.elapsed().as_secs() + 1);
    assert!((PROMISED..=promised).contains(&reviews), "expected {PROMISED} to {promised} reviews, found {reviews}");
    statuses.sort_unstable();
    statuses.dedup();
    assert_eq!(statuses, [429, 503]);
    let authorization = format!("Bearer {token}");
    let headers = [("X-Forwarded-For", ATTACKER), ("Authorization", authorization.as_str())];
    let mut reasons = Vec::new();
    // The budget refills during the test, so that some reviews are sent.
    for _ in 0..5 {
        let mut events = SseClient::open(fixture.bridge.address, "/api/sse", &headers).await;
        assert_eq!(events.head.status, 200, "an EventSource does not reconnect after another status");
        let last = events.rest().await.pop().unwrap().json();
        assert_eq!(last["type"], "stream.closing");
        reasons.push(last["reason"].clone());
        let status = WsClient::with(fixture.bridge.address, "/api/websocket", &headers).await.err();
        assert!([Some(429), Some(503)].contains(&status), "{status:?}");
    }
    assert!(reasons.contains(&json!("rate")), "{reasons:?}");
}
