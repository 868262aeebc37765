//! Tests of Kubernetes tokens with the binary (docs/protocol.md#access), on the simulator and on a real API server with
//! RBAC and TokenRequest.

use std::time::Duration;

use boilerhouse_bridge::sim::{ApiResource, Verb};
use futures::future::{join, join3};
use http::Method;
use jiff::Timestamp;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{
    accounts::{Accounts, PROPAGATION_TIMEOUT, REQUIRED_ACCESS, RbacSubject, user_name},
    bridge_process::BridgeProcess,
    control_plane::ControlPlane,
    http_client::{HttpResponse, TEST_TIMEOUT, WsClient, request},
    sim_cluster::{NAMESPACE, SimCluster},
    sse_client::SseClient,
};

const AUDIENCE: &str = "boilerhouse-bridge";
const FLAGS: &[&str] = &["--token-audience", AUDIENCE, "--ws-auth", "required"];
/// Maximum time from the revocation of a right to the end of the streams (docs/failures.md: 30 s). The reviews repeat
/// every 20 s, and a denial is confirmed after 2 s.
const REVOCATION_TIMEOUT: Duration = Duration::from_secs(30);
/// Time within which the reviews of all users with open streams are repeated.
const REVIEW_PERIOD: Duration = Duration::from_secs(22);

/// Accounts, a bridge that accepts their tokens, and the namespace of both.
struct TokenFixture<'a> {
    accounts: Accounts<'a>,
    bridge: BridgeProcess,
    namespace: String,
}

impl TokenFixture<'_> {
    async fn real() -> TokenFixture<'static> {
        let plane = ControlPlane::shared().await;
        let namespace = plane.namespace().await;
        let bridge = BridgeProcess::serve(plane, &namespace, FLAGS).await;
        TokenFixture { accounts: Accounts::Real(plane), bridge, namespace }
    }

    async fn simulated(cluster: &SimCluster) -> TokenFixture<'_> {
        let bridge = cluster.bridge(FLAGS).await;
        TokenFixture { accounts: Accounts::Simulated(&cluster.sim), bridge, namespace: NAMESPACE.to_owned() }
    }

    /// Creates an account with all needed rights. Returns an `Authorization` value with its token.
    async fn reader(&self, name: &str) -> String {
        self.accounts.create_account(&self.namespace, name).await;
        self.accounts.bind(&self.namespace, RbacSubject::Account(name), &REQUIRED_ACCESS).await;
        self.bearer(name).await
    }

    /// Returns an `Authorization` value with a new token of the account.
    async fn bearer(&self, name: &str) -> String {
        format!("Bearer {}", self.accounts.create_token(&self.namespace, name, &[AUDIENCE]).await)
    }

    async fn get(&self, bearer: &str) -> HttpResponse {
        request(self.bridge.address, "GET", "/api/v1/instances", &[("Authorization", bearer)]).await
    }

    /// Repeats a GET until it is answered with 200. The API server applies new rights with a delay, and the bridge
    /// caches a denial for 10 s.
    async fn wait_admitted(&self, bearer: &str) {
        let end = Instant::now() + TEST_TIMEOUT;
        while self.get(bearer).await.status != 200 {
            assert!(Instant::now() < end, "expected 200, found: {}", self.get(bearer).await.body);
            sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Tests which tokens are accepted, and the status and message of the others.
async fn check_token_admission(fixture: TokenFixture<'_>) {
    let TokenFixture { accounts, bridge, namespace } = &fixture;
    let reader = fixture.reader("reader").await;
    fixture.wait_admitted(&reader).await;
    let socket = WsClient::with(bridge.address, "/ws", &[("Authorization", &reader)]).await;
    assert!(socket.is_ok(), "expected a stream, found status {:?}", socket.err());

    for audience in [&["other"][..], &[]] {
        let token = accounts.create_token(namespace, "reader", audience).await;
        let response = fixture.get(&format!("Bearer {token}")).await;
        assert_eq!((response.status, &response.json()["code"]), (401, &json!("UNAUTHORIZED")), "{audience:?}");
    }
    // The API server accepts an expired token for another 30 s. The bridge reads the expiry from the token.
    let expired = accounts.create_token_expiring_in(namespace, "reader", AUDIENCE, -20).await;
    let response = fixture.get(&format!("Bearer {expired}")).await;
    assert_eq!(
        (response.status, &response.json()["message"]),
        (401, &json!("invalid API key: the credential has expired"))
    );

    for (missing, right) in
        REQUIRED_ACCESS.iter().zip(["list pods", "watch pods", "list boilerhouseclaims", "watch boilerhouseclaims"])
    {
        let account = format!("without-{}", right.replace(' ', "-"));
        accounts.create_account(namespace, &account).await;
        let rights: Vec<_> = REQUIRED_ACCESS.iter().filter(|needed| *needed != missing).copied().collect();
        accounts.bind(namespace, RbacSubject::Account(&account), &rights).await;
        let response = fixture.get(&fixture.bearer(&account).await).await;
        assert_eq!(response.status, 403, "without {right}: {}", response.body);
        let (message, name) = (response.json()["message"].as_str().unwrap().to_owned(), user_name(namespace, &account));
        // The message may name another right, because the API server applies the granted rights with a delay.
        assert!(message.starts_with(&format!("user '{name}' may not ")), "{message}");
    }
    let response = request(bridge.address, "GET", &format!("/api/sse?token={}", &reader["Bearer ".len()..]), &[]).await;
    assert_eq!(response.status, 401, "expected no token in a query: {}", response.body);
}

#[tokio::test]
async fn token_admission_on_the_simulator() {
    let cluster = SimCluster::new().await;
    check_token_admission(TokenFixture::simulated(&cluster).await).await;
}

#[tokio::test]
async fn token_admission_on_the_api_server() {
    check_token_admission(TokenFixture::real().await).await;
}

/// Tests that the removal of a role binding ends the streams of its user, and no other stream.
async fn check_access_revocation(fixture: TokenFixture<'_>) {
    let address = fixture.bridge.address;
    let (reader, other) = (fixture.reader("reader").await, fixture.reader("other").await);
    fixture.wait_admitted(&reader).await;
    fixture.wait_admitted(&other).await;
    let session = request(address, "POST", "/api/v1/session", &[("Authorization", &reader)]).await;
    let cookie = session.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let ticket = request(address, "POST", "/api/v1/tickets", &[("Authorization", &reader)]).await.json();
    let mut sockets = [
        WsClient::with(address, "/api/websocket", &[("Authorization", &reader)]).await.unwrap(),
        WsClient::with(address, "/ws", &[("Authorization", &reader)]).await.unwrap(),
        WsClient::with(address, "/api/websocket", &[("Cookie", &cookie)]).await.unwrap(),
        WsClient::with(address, &format!("/events/ws?token={}", ticket["ticket"].as_str().unwrap()), &[])
            .await
            .unwrap(),
    ];
    let mut sse = SseClient::open(address, "/api/sse", &[("Authorization", &reader)]).await;
    let mut unaffected = WsClient::with(address, "/api/websocket", &[("Authorization", &other)]).await.unwrap();

    fixture.accounts.unbind(&fixture.namespace, RbacSubject::Account("reader")).await;
    let start = Instant::now();
    let revoked = Some((1008, "access revoked".to_owned()));
    for socket in &mut sockets {
        let (_, close) = socket.closed(REVOCATION_TIMEOUT.saturating_sub(start.elapsed())).await;
        assert_eq!(close, revoked);
    }
    let last = timeout(REVOCATION_TIMEOUT.saturating_sub(start.elapsed()), sse.rest())
        .await
        .expect("the SSE stream must end")
        .pop();
    assert_eq!(last.map(|last| last.json()["reason"].clone()), Some(json!("access revoked")));
    assert_eq!(fixture.get(&reader).await.status, 403);
    // The stream of the other user continues: it still receives events.
    assert_eq!(unaffected.json().await["type"], "state.initial");
    fixture.wait_admitted(&other).await;
    let event = timeout(TEST_TIMEOUT, unaffected.until(|event| event["type"] == "heartbeat")).await;
    assert!(event.is_ok(), "expected a heartbeat on the stream of the other user");
}

/// Tests that the expiry of a token is announced, and ends its stream on time although the API server still accepts the
/// token.
async fn check_token_expiry(fixture: TokenFixture<'_>) {
    let address = fixture.bridge.address;
    fixture.wait_admitted(&fixture.reader("reader").await).await;
    let start = Timestamp::now();
    let token = fixture.accounts.create_token_expiring_in(&fixture.namespace, "reader", AUDIENCE, 6).await;
    let bearer = format!("Bearer {token}");
    let mut socket = WsClient::with(address, "/api/websocket", &[("Authorization", &bearer)]).await.unwrap();
    assert_eq!(socket.json().await["type"], "state.initial");
    let expiring = socket.json().await;
    assert_eq!(expiring["type"], "auth.expiring");
    let end: Timestamp = expiring["expiresAt"].as_str().unwrap().parse().unwrap();
    assert!(
        (5..=7).contains(&(end.as_second() - start.as_second())),
        "expected an expiry 6 s after {start}: {expiring}"
    );
    let (_, close) = socket.closed(TEST_TIMEOUT).await;
    let delay = end.duration_until(Timestamp::now());
    assert_eq!(close, Some((1008, "credential expired".to_owned())));
    // docs/protocol.md#access allows 1 s. The test allows 3 s, for a slow test machine.
    assert!(
        !delay.is_negative() && delay.as_secs() < 3,
        "expected the end at most 3 s after the expiry, found {delay:?}"
    );
    assert_eq!(fixture.get(&bearer).await.status, 401);
}

#[tokio::test]
async fn revocation_and_expiry_end_streams_on_the_simulator() {
    let (first, second) = (SimCluster::new().await, SimCluster::new().await);
    join(
        check_access_revocation(TokenFixture::simulated(&first).await),
        check_token_expiry(TokenFixture::simulated(&second).await),
    )
    .await;
}

#[tokio::test]
async fn revocation_and_expiry_end_streams_on_the_api_server() {
    join3(
        check_access_revocation(TokenFixture::real().await),
        check_token_expiry(TokenFixture::real().await),
        check_refused_reviews(),
    )
    .await;
}

/// Removes the right to create reviews from the bridge's own account. Tests that open streams continue after the next
/// repetition of the reviews, and that new tokens are rejected.
async fn check_refused_reviews() {
    let plane = ControlPlane::shared().await;
    let (accounts, namespace) = (Accounts::Real(plane), plane.namespace().await);
    accounts.create_account(&namespace, "bridge").await;
    accounts.bind(&namespace, RbacSubject::Account("bridge"), &REQUIRED_ACCESS).await;
    let (namespace_reader, rbac) = (format!("{namespace}-home"), "/apis/rbac.authorization.k8s.io/v1");
    let rule = json!({"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"], "resourceNames": [namespace]});
    let role = json!({"metadata": {"name": namespace_reader}, "rules": [rule]});
    plane.call(Method::POST, &format!("{rbac}/clusterroles"), &role).await;
    let bindings = format!("{rbac}/clusterrolebindings");
    for (role, name) in [(namespace_reader.as_str(), &namespace_reader), ("system:auth-delegator", &namespace)] {
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role});
        let subjects = json!([{"kind": "ServiceAccount", "name": "bridge", "namespace": namespace}]);
        let binding = json!({"metadata": {"name": name}, "roleRef": role, "subjects": subjects});
        plane.call(Method::POST, &bindings, &binding).await;
    }
    let kubeconfig = plane.kubeconfig_of(&accounts.create_token(&namespace, "bridge", &[]).await);
    let bridge = BridgeProcess::start(&kubeconfig.to_string_lossy(), &namespace, FLAGS).await;
    bridge.wait_ready().await;
    let fixture = TokenFixture { accounts, bridge, namespace };
    let reader = fixture.reader("reader").await;
    fixture.wait_admitted(&reader).await;
    let mut socket =
        WsClient::with(fixture.bridge.address, "/api/websocket", &[("Authorization", &reader)]).await.unwrap();

    plane.call(Method::DELETE, &format!("{bindings}/{}", fixture.namespace), &json!(null)).await;
    let (start, end) = (Instant::now(), Instant::now() + PROPAGATION_TIMEOUT);
    loop {
        // Each request has a new token, because the outcome of a review is cached.
        let response = fixture.get(&fixture.bearer("reader").await).await;
        if response.status == 503 {
            assert_eq!(response.json()["code"], "UPSTREAM_UNAVAILABLE");
            break;
        }
        assert!(
            response.status == 200 && Instant::now() < end,
            "expected 503, found {}: {}",
            response.status,
            response.body
        );
    }
    // `until` panics when the stream ends.
    let still_open = timeout(REVIEW_PERIOD.saturating_sub(start.elapsed()), socket.until(|_| false)).await.is_err();
    assert!(still_open, "expected the stream to continue");
    let pod = json!({
        "metadata": {"name": "later", "labels": {"boilerhouse.dev/managed": "true"}},
        "spec": {"containers": [{"name": "main", "image": "none"}]},
    });
    plane.call(Method::POST, &format!("/api/v1/namespaces/{}/pods", fixture.namespace), &pod).await;
    timeout(TEST_TIMEOUT, socket.until(|event| event["name"] == "later"))
        .await
        .expect("the stream must receive the event");
    assert_eq!(fixture.get(&fixture.bearer("reader").await).await.status, 503);
}

/// The API server does not answer reviews. Open streams continue, and new tokens are rejected until it answers again.
#[tokio::test]
async fn unavailable_reviews_keep_streams_open_and_reject_new_tokens() {
    let cluster = SimCluster::new().await;
    let fixture = TokenFixture::simulated(&cluster).await;
    let address = fixture.bridge.address;
    let reader = fixture.reader("reader").await;
    let mut socket = WsClient::with(address, "/api/websocket", &[("Authorization", &reader)]).await.unwrap();
    assert_eq!(socket.json().await["type"], "state.initial");
    cluster.sim.set_reviews_available(false);

    let new_token = fixture.bearer("reader").await;
    let response = fixture.get(&new_token).await;
    assert_eq!((response.status, &response.json()["code"]), (503, &json!("UPSTREAM_UNAVAILABLE")), "{}", response.body);
    assert!(response.header("retry-after").is_some());
    assert_eq!(WsClient::with(address, "/ws", &[("Authorization", &new_token)]).await.err(), Some(503));
    // An EventSource does not reconnect after a 503.
    let mut events = SseClient::open(address, "/api/sse", &[("Authorization", &new_token)]).await;
    assert_eq!(events.head.status, 200);
    let last = events.rest().await.pop().unwrap().json();
    assert_eq!((&last["type"], &last["reason"]), (&json!("stream.closing"), &json!("credential check unavailable")));

    // Waits until the reviews of users with open streams are repeated.
    let review_count = || cluster.sim.metrics().requests.get(&(Verb::Create, ApiResource::TokenReviews)).copied();
    let before = review_count();
    let end = Instant::now() + TEST_TIMEOUT;
    while review_count() == before {
        assert!(Instant::now() < end, "expected another review of the user with an open stream");
        sleep(Duration::from_millis(50)).await;
    }
    cluster.create_pod("a");
    socket.until(|event| event["name"] == "a").await;

    cluster.sim.set_reviews_available(true);
    fixture.wait_admitted(&new_token).await;
    let log = fixture.bridge.log().join("\n");
    for word in ["reviews fail", "reviews work again"] {
        assert_eq!(log.matches(word).count(), 1, "expected '{word}' once, found: {log}");
    }
    let secret = new_token.rsplit('.').nth(1).unwrap();
    assert!(!log.contains(secret), "expected no token in the log, found: {log}");
}
