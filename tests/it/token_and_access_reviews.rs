//! Tests of `source::review`: the bridge's TokenReviews and SubjectAccessReviews, on the simulator and on the real API
//! server with RBAC (docs/protocol.md#access).

use std::sync::{Arc, Mutex};

use boilerhouse_bridge::sim::{
    ApiResource, Sim, SimConfig, Verb,
    fault::{Answer, Fault},
};
use boilerhouse_bridge::source::{
    error::UpstreamError,
    review::{Config, Reviewer, User},
};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tracing_subscriber::fmt::MakeWriter;

use crate::support::accounts::{Accounts, PROPAGATION_TIMEOUT, REQUIRED_ACCESS, RbacSubject, user_name};
use crate::support::control_plane::ControlPlane;

const AUDIENCE: &str = "boilerhouse-bridge";
const NAMESPACE: &str = "boilerhouse";

fn sim() -> Sim {
    Sim::new(SimConfig { namespaces: vec![NAMESPACE.into(), "other".into()], ..SimConfig::default() })
}

fn config(namespace: &str) -> Config {
    Config { namespace: namespace.into(), audience: AUDIENCE.into(), ..Config::default() }
}

/// Returns a user with a name and no other attribute.
fn named(name: &str) -> User {
    User { name: name.to_owned(), uid: String::new(), groups: Vec::new(), extra: Default::default() }
}

/// Repeats the access reviews of a user until the first denied permission is `denied`.
async fn wait_first_denied(review: &Reviewer, user: &User, denied: Option<&str>) {
    let end = Instant::now() + PROPAGATION_TIMEOUT;
    loop {
        let found = review.first_denied(user).await.unwrap();
        if found.as_deref() == denied {
            return;
        }
        assert!(Instant::now() < end, "{}: expected {denied:?}, found {found:?}", user.name);
        sleep(PROPAGATION_TIMEOUT / 100).await;
    }
}

/// Checks everything that both servers have in common, in the namespace `ns` and another one.
async fn check_reviews(accounts: Accounts<'_>, client: Client, ns: &str, other_namespace: &str) {
    let review = Reviewer::new(client, config(ns));
    let uid = accounts.create_account(ns, "reader").await;
    let token = accounts.create_token(ns, "reader", &["other", AUDIENCE]).await;
    let reader = review.token(&token).await.unwrap().expect("expected a valid token");
    assert_eq!((&reader.name, &reader.uid), (&user_name(ns, "reader"), &uid));
    assert!(reader.groups.contains(&format!("system:serviceaccounts:{ns}")), "{reader:?}");
    assert_eq!(reader.extra["authentication.kubernetes.io/credential-id"].len(), 1, "{reader:?}");

    let (own, other) =
        (accounts.create_token(ns, "reader", &[]).await, accounts.create_token(ns, "reader", &["other"]).await);
    let expired = accounts.create_token_expiring_in(ns, "reader", AUDIENCE, -3600).await;
    let (blank_before, blank_after) = (format!(" {token}"), format!("{token} "));
    for invalid in [&own, &other, &expired, "garbage", "", " ", "\t", &blank_before, &blank_after] {
        assert_eq!(review.token(invalid).await.unwrap(), None, "{invalid:?}");
    }

    assert_eq!(review.first_denied(&reader).await.unwrap().as_deref(), Some("list pods"));
    accounts.bind(ns, RbacSubject::Account("reader"), &REQUIRED_ACCESS).await;
    wait_first_denied(&review, &reader, None).await;
    accounts.unbind(ns, RbacSubject::Account("reader")).await;
    wait_first_denied(&review, &reader, Some("list pods")).await;

    // Three of the four permissions are not enough, even if the user has all four in another namespace.
    accounts.create_account(other_namespace, "partly").await;
    accounts.bind(other_namespace, RbacSubject::Group(&format!("system:serviceaccounts:{ns}")), &REQUIRED_ACCESS).await;
    for (missing, text) in REQUIRED_ACCESS.iter().zip(REQUIRED_ACCESS_TEXT) {
        let account = format!("without-{}", text.replace(' ', "-"));
        let permissions: Vec<_> = REQUIRED_ACCESS.iter().filter(|permission| *permission != missing).copied().collect();
        accounts.create_account(ns, &account).await;
        accounts.bind(ns, RbacSubject::Account(&account), &permissions).await;
        wait_first_denied(&review, &named(&user_name(ns, &account)), Some(text)).await;
    }
    // Permissions of groups count, and a review without the groups lacks them.
    accounts.bind(ns, RbacSubject::Group(&format!("system:serviceaccounts:{ns}")), &REQUIRED_ACCESS).await;
    wait_first_denied(&review, &reader, None).await;
    assert_eq!(review.first_denied(&named(&reader.name)).await.unwrap().as_deref(), Some("list pods"));
}

/// The permissions of [`REQUIRED_ACCESS`] as texts, in the same order.
const REQUIRED_ACCESS_TEXT: [&str; 4] =
    ["list pods", "watch pods", "list boilerhouseclaims", "watch boilerhouseclaims"];

#[tokio::test(start_paused = true)]
async fn reviews_decide_access_on_the_simulator() {
    let sim = sim();
    check_reviews(Accounts::Simulated(&sim), sim.client(NAMESPACE), NAMESPACE, "other").await;
}

#[tokio::test]
async fn reviews_decide_access_on_the_api_server() {
    let plane = ControlPlane::shared().await;
    let (ns, other_namespace) = (plane.namespace().await, plane.namespace().await);
    check_reviews(Accounts::Real(plane), plane.client().await, &ns, &other_namespace).await;
}

/// The reviewer creates reviews with its own credentials, which need the permission.
#[tokio::test]
async fn missing_review_permission_is_forbidden() {
    let plane = ControlPlane::shared().await;
    let unprivileged_client = Reviewer::new(Accounts::Real(plane).unprivileged_client().await, config("default"));
    let sim = sim();
    let simulated = Reviewer::new(Accounts::Simulated(&sim).unprivileged_client().await, config("default"));
    for review in [unprivileged_client, simulated] {
        assert!(matches!(review.token("garbage").await, Err(UpstreamError::Forbidden(_))));
        assert!(matches!(review.first_denied(&named("jane")).await, Err(UpstreamError::Forbidden(_))));
    }
}

#[tokio::test(start_paused = true)]
async fn failed_review_returns_an_error() {
    let sim = sim();
    let accounts = Accounts::Simulated(&sim);
    let token = accounts.create_token(NAMESPACE, "reader", &[AUDIENCE]).await;
    accounts.bind(NAMESPACE, RbacSubject::Account("reader"), &REQUIRED_ACCESS).await;
    let review = Reviewer::new(sim.client(NAMESPACE), config(NAMESPACE));
    let limit = Config::default().timeout;

    sim.set_reviews_available(false);
    assert!(matches!(review.token(&token).await, Err(UpstreamError::ConnectionRefused { .. })));
    assert!(matches!(review.first_denied(&named("jane")).await, Err(UpstreamError::ConnectionRefused { .. })));
    sim.set_reviews_available(true);
    assert!(review.token(&token).await.unwrap().is_some(), "expected success when reviews are available again");

    for (answer, code) in [(Answer::Internal, 500), (Answer::Unavailable, 503)] {
        sim.arm(Fault::answer(answer).on(ApiResource::TokenReviews));
        let error = review.token(&token).await.unwrap_err();
        assert!(matches!(error, UpstreamError::ErrorStatus { code: found, .. } if found == code), "{error}");
    }
    sim.arm(Fault::answer(Answer::TooManyRequests(7)).on(ApiResource::TokenReviews));
    assert!(matches!(review.token(&token).await, Err(UpstreamError::Throttled { code: 429, .. })));
    sim.arm(Fault::answer(Answer::Unauthorized).on(ApiResource::TokenReviews));
    assert!(matches!(review.token(&token).await, Err(UpstreamError::Unauthorized { .. })));

    let started = Instant::now();
    sim.arm(Fault::hang().on(ApiResource::TokenReviews));
    assert!(matches!(review.token(&token).await, Err(UpstreamError::Timeout { .. })));
    assert_eq!(started.elapsed().as_secs(), limit.as_secs());
    // One failed review of the four is enough. Each round arms one fault.
    for round in 0..4 {
        let reader = named(&user_name(NAMESPACE, "reader"));
        assert_eq!(review.first_denied(&reader).await.unwrap(), None);
        sim.arm(Fault::hang().on(ApiResource::AccessReviews));
        let started = Instant::now();
        assert!(matches!(review.first_denied(&reader).await, Err(UpstreamError::Timeout { .. })), "{round}");
        assert_eq!(started.elapsed().as_secs(), limit.as_secs());
    }
    assert_eq!(sim.pending_faults(), 0);
}

#[tokio::test(start_paused = true)]
async fn blank_token_is_unknown_without_a_review() {
    let sim = sim();
    let review = Reviewer::new(sim.client(NAMESPACE), config(NAMESPACE));
    for blank in ["", " ", "\t", "\u{a0}", " x", "x ", "x y"] {
        assert_eq!(review.token(blank).await.unwrap(), None, "{blank:?}");
    }
    assert_eq!(sim.metrics().count(Verb::Create), 0);
}

/// Returns the client of an API server that answers every request with `answer`, and the specs of all requests.
fn scripted(answer: impl Fn(&Value) -> (u16, Vec<u8>) + Clone + Send + 'static) -> (Client, Arc<Mutex<Vec<Value>>>) {
    let specs: Arc<Mutex<Vec<Value>>> = Arc::default();
    let recorded = specs.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (answer, recorded) = (answer.clone(), recorded.clone());
        async move {
            let body = request.into_body().collect().await?.to_bytes();
            let body: Value = serde_json::from_slice(&body)?;
            let (status, bytes) = answer(&body);
            recorded.lock().unwrap().push(body["spec"].clone());
            let response = Response::builder().status(StatusCode::from_u16(status)?);
            Ok::<_, tower::BoxError>(response.body(Body::from(bytes))?)
        }
    });
    (Client::new(service, "default"), specs)
}

fn reply(status: &Value) -> (u16, Vec<u8>) {
    (201, json!({ "status": status }).to_string().into_bytes())
}

/// The API servers of these tests do not return these statuses, but a webhook authenticator can. Only a status with all
/// fields of an approval is accepted.
#[tokio::test]
async fn only_an_unambiguous_approval_is_accepted() {
    let approved =
        json!({"authenticated": true, "audiences": [AUDIENCE], "user": {"username": "jane", "groups": ["dev"]}});
    let with = |field: &str, value: Value| {
        let mut status = approved.clone();
        status[field] = value;
        status
    };
    let rejected = [
        with("authenticated", json!(false)),
        with("audiences", json!([])),
        with("audiences", json!(["other"])),
        with("audiences", json!([format!("{AUDIENCE} ")])),
        with("user", json!({})),
        with("user", json!({"username": "", "groups": ["dev"]})),
        with("user", json!({"username": "system:anonymous", "groups": ["system:unauthenticated"]})),
        json!({"authenticated": true, "user": {"username": "jane"}}),
        json!({"audiences": [AUDIENCE], "user": {"username": "jane"}}),
        json!({}),
    ];
    for status in rejected {
        let (client, _) = scripted(move |_| reply(&status));
        assert_eq!(Reviewer::new(client, config(NAMESPACE)).token("token").await, Ok(None));
    }
    let (client, specs) = scripted(move |_| reply(&approved));
    let jane = Reviewer::new(client, config(NAMESPACE)).token("token").await.unwrap().unwrap();
    assert_eq!((jane.name.as_str(), &jane.groups), ("jane", &vec!["dev".to_owned()]));
    assert_eq!(*specs.lock().unwrap(), [json!({"token": "token", "audiences": [AUDIENCE]})]);

    for status in [json!({"allowed": false}), json!({"allowed": true, "denied": true}), json!({})] {
        let (client, _) = scripted(move |_| reply(&status));
        let denied = Reviewer::new(client, config(NAMESPACE)).first_denied(&jane).await;
        assert_eq!(denied, Ok(Some("list pods".to_owned())));
    }
    for unreadable in [&b"token"[..], b"{}", b"{\"status\": null}", b"{\"status\": {\"authenticated\": \"token\"}}"] {
        let (client, _) = scripted(move |_| (201, unreadable.to_vec()));
        let error = Reviewer::new(client, config(NAMESPACE)).token("token").await.unwrap_err();
        assert!(matches!(error, UpstreamError::Decode(_)) && !error.to_string().contains("token"), "{error}");
    }
    let limits = Config { answer_bytes: 1000, ..config(NAMESPACE) };
    let (client, _) = scripted(|_| (201, vec![b' '; 1001]));
    assert!(matches!(Reviewer::new(client, limits).token("token").await, Err(UpstreamError::ConnectionLost(_))));
}

/// Authorizers other than RBAC can use all attributes of a user. OpenShift's authorizer uses the scopes of a token.
#[tokio::test]
async fn access_reviews_contain_all_user_attributes() {
    let scopes = json!({"scopes.authorization.openshift.io": ["user:info"], "empty": null});
    let info = json!({"username": "jane", "uid": "7", "groups": ["dev"], "extra": scopes});
    let status = json!({"authenticated": true, "audiences": [AUDIENCE], "user": info, "allowed": true});
    let (client, specs) = scripted(move |_| reply(&status));
    let review = Reviewer::new(client, config(NAMESPACE));
    let jane = review.token("token").await.unwrap().unwrap();
    assert_eq!(review.first_denied(&jane).await, Ok(None));
    // The first request is the TokenReview.
    let mut specs = specs.lock().unwrap().split_off(1);
    let resource = |spec: &mut Value| spec["resourceAttributes"].take();
    let attributes: Vec<_> = specs.iter_mut().map(resource).collect();
    let attribute = |verb: &str, group: &str, resource: &str| json!({"namespace": NAMESPACE, "verb": verb, "group": group, "resource": resource});
    let claims = ("boilerhouse.dev", "boilerhouseclaims");
    let expected =
        [("list", "", "pods"), ("watch", "", "pods"), ("list", claims.0, claims.1), ("watch", claims.0, claims.1)];
    assert_eq!(attributes, expected.map(|(verb, group, resource)| attribute(verb, group, resource)));
    let extra = json!({"scopes.authorization.openshift.io": ["user:info"], "empty": []});
    let user = json!({"user": "jane", "uid": "7", "groups": ["dev"], "extra": extra, "resourceAttributes": null});
    assert_eq!(specs, [user.clone(), user.clone(), user.clone(), user]);
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

/// The log at every level, the errors and the `Debug` output contain no token, even if the response contains it. The
/// log has one line when TokenReviews start to fail, although access reviews succeed meanwhile.
#[tokio::test]
async fn review_errors_and_logs_contain_no_token() {
    const CANARY: &str = "eyJhbGciOiJFUzI1NiJ9.canary.canary-of-a-token";
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(log.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let echo_token = |code: u16| {
        let message = format!("{}{CANARY} is refused", "x".repeat(280));
        (code, json!({"kind": "Status", "message": message, "code": code}).to_string().into_bytes())
    };
    let (client, _) = scripted(move |body| match body["kind"].as_str() {
        Some("TokenReview") => echo_token(500),
        _ => reply(&json!({"allowed": true})),
    });
    let review = Reviewer::new(client, config(NAMESPACE));
    for _ in 0..3 {
        let error = review.token(CANARY).await.unwrap_err();
        let printed = format!("{error} {error:?} {review:?}");
        assert!(printed.contains("[token]") && !printed.contains("canary"), "{printed}");
        assert_eq!(review.first_denied(&named("jane")).await, Ok(None));
    }
    let sim = sim();
    let simulated = Reviewer::new(sim.client(NAMESPACE), config(NAMESPACE));
    assert_eq!(simulated.token(CANARY).await, Ok(None));
    sim.set_reviews_available(false);
    simulated.token(CANARY).await.unwrap_err();
    let text = log.text();
    assert_eq!(text.matches("reviews fail").count(), 2, "expected one log line for each reviewer: {text}");
    assert!(!text.contains("canary"), "{text}");
    assert!(!format!("{sim:?}").contains("canary"));
}

/// On a real connection, the HTTP and TLS libraries log too.
#[tokio::test]
async fn real_connection_logs_contain_no_token() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(log.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let plane = ControlPlane::shared().await;
    let ns = plane.namespace().await;
    let accounts = Accounts::Real(plane);
    accounts.create_account(&ns, "reader").await;
    let token = accounts.create_token(&ns, "reader", &[AUDIENCE]).await;
    let review = Reviewer::new(plane.client().await, config(&ns));
    let before = log.0.lock().unwrap().len();
    let reader = review.token(&token).await.unwrap().unwrap();
    assert_eq!(review.first_denied(&reader).await.unwrap().as_deref(), Some("list pods"));
    assert_eq!(review.token("canary-of-a-token").await.unwrap(), None);
    let text = log.text().split_off(before);
    assert!(text.contains("TRACE"), "expected lines of level TRACE: {text}");
    let payload = token.split('.').nth(1).unwrap();
    assert!(!text.contains("canary") && !text.contains(payload), "{text}");
}
