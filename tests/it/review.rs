//! Whom the cluster lets in, as the bridge asks it: against the simulator and the real API server with RBAC.

use std::sync::{Arc, Mutex};

use boilerhouse_bridge::sim::{
    ApiResource, Sim, SimConfig, Verb,
    fault::{Answer, Fault},
};
use boilerhouse_bridge::source::{
    error::Trouble,
    review::{Config, Review, User},
};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tracing_subscriber::fmt::MakeWriter;

use crate::support::people::{KNOWN_BOUND, NEEDED, People, Who, user};
use crate::support::plane::ControlPlane;

const AUDIENCE: &str = "boilerhouse-bridge";
const NAMESPACE: &str = "boilerhouse";

fn sim() -> Sim {
    Sim::new(SimConfig { namespaces: vec![NAMESPACE.into(), "other".into()], ..SimConfig::default() })
}

fn config(namespace: &str) -> Config {
    Config { namespace: namespace.into(), audience: AUDIENCE.into(), ..Config::default() }
}

/// A user of this name, of whom nothing else is known.
fn named(name: &str) -> User {
    User { name: name.to_owned(), uid: String::new(), groups: Vec::new(), extra: Default::default() }
}

/// Asks until this is said to be denied, or nothing.
async fn becomes(review: &Review, user: &User, denied: Option<&str>) {
    let end = Instant::now() + KNOWN_BOUND;
    loop {
        let now = review.denied(user).await.unwrap();
        if now.as_deref() == denied {
            return;
        }
        assert!(Instant::now() < end, "{}: {now:?}, not {denied:?}", user.name);
        sleep(KNOWN_BOUND / 100).await;
    }
}

/// All that is true of both. `elsewhere` is another namespace.
async fn judge(people: People<'_>, client: Client, ns: &str, elsewhere: &str) {
    let review = Review::new(client, config(ns));
    let uid = people.account(ns, "reader").await;
    let token = people.token(ns, "reader", &["other", AUDIENCE]).await;
    let reader = review.token(&token).await.unwrap().expect("somebody's token");
    assert_eq!((&reader.name, &reader.uid), (&user(ns, "reader"), &uid));
    assert!(reader.groups.contains(&format!("system:serviceaccounts:{ns}")), "{reader:?}");
    assert_eq!(reader.extra["authentication.kubernetes.io/credential-id"].len(), 1, "{reader:?}");

    let (own, other) = (people.token(ns, "reader", &[]).await, people.token(ns, "reader", &["other"]).await);
    let over = people.token_ending(ns, "reader", AUDIENCE, -3600).await;
    let (before, after) = (format!(" {token}"), format!("{token} "));
    for nobodys in [&own, &other, &over, "garbage", "", " ", "\t", &before, &after] {
        assert_eq!(review.token(nobodys).await.unwrap(), None, "{nobodys:?}");
    }

    assert_eq!(review.denied(&reader).await.unwrap().as_deref(), Some("list pods"));
    people.bind(ns, Who::Account("reader"), &NEEDED).await;
    becomes(&review, &reader, None).await;
    people.unbind(ns, Who::Account("reader")).await;
    becomes(&review, &reader, Some("list pods")).await;

    // Three of four do not do, wherever else there are all.
    people.account(elsewhere, "partly").await;
    people.bind(elsewhere, Who::Group(&format!("system:serviceaccounts:{ns}")), &NEEDED).await;
    for (missing, what) in NEEDED.iter().zip(NEEDED_IN_WORDS) {
        let account = format!("without-{}", what.replace(' ', "-"));
        let rights: Vec<_> = NEEDED.iter().filter(|right| *right != missing).copied().collect();
        people.account(ns, &account).await;
        people.bind(ns, Who::Account(&account), &rights).await;
        becomes(&review, &named(&user(ns, &account)), Some(what)).await;
    }
    // Groups count as they do for the API server.
    people.bind(ns, Who::Group(&format!("system:serviceaccounts:{ns}")), &NEEDED).await;
    becomes(&review, &reader, None).await;
    assert_eq!(review.denied(&named(&reader.name)).await.unwrap().as_deref(), Some("list pods"));
}

/// As [`NEEDED`].
const NEEDED_IN_WORDS: [&str; 4] = ["list pods", "watch pods", "list boilerhouseclaims", "watch boilerhouseclaims"];

#[tokio::test(start_paused = true)]
async fn the_simulators_word_counts() {
    let sim = sim();
    judge(People::Simulated(&sim), sim.client(NAMESPACE), NAMESPACE, "other").await;
}

#[tokio::test]
async fn the_api_servers_word_counts() {
    let plane = ControlPlane::shared().await;
    let (ns, elsewhere) = (plane.namespace().await, plane.namespace().await);
    judge(People::Real(plane), plane.client().await, &ns, &elsewhere).await;
}

/// It asks as itself, and needs a right for that.
#[tokio::test]
async fn it_may_have_no_right_to_ask() {
    let plane = ControlPlane::shared().await;
    let stranger = Review::new(People::Real(plane).stranger().await, config("default"));
    let sim = sim();
    let simulated = Review::new(People::Simulated(&sim).stranger().await, config("default"));
    for review in [stranger, simulated] {
        assert!(matches!(review.token("garbage").await, Err(Trouble::Forbidden(_))));
        assert!(matches!(review.denied(&named("jane")).await, Err(Trouble::Forbidden(_))));
    }
}

#[tokio::test(start_paused = true)]
async fn no_answer_is_no_verdict() {
    let sim = sim();
    let people = People::Simulated(&sim);
    let token = people.token(NAMESPACE, "reader", &[AUDIENCE]).await;
    people.bind(NAMESPACE, Who::Account("reader"), &NEEDED).await;
    let review = Review::new(sim.client(NAMESPACE), config(NAMESPACE));
    let limit = Config::default().timeout;

    sim.set_reviewing(false);
    assert!(matches!(review.token(&token).await, Err(Trouble::Refused { .. })));
    assert!(matches!(review.denied(&named("jane")).await, Err(Trouble::Refused { .. })));
    sim.set_reviewing(true);
    assert!(review.token(&token).await.unwrap().is_some(), "and it is over when it is over");

    for (answer, code) in [(Answer::Internal, 500), (Answer::Unavailable, 503)] {
        sim.arm(Fault::answer(answer).on(ApiResource::TokenReviews));
        let trouble = review.token(&token).await.unwrap_err();
        assert!(matches!(trouble, Trouble::Answered { code: is, .. } if is == code), "{trouble}");
    }
    sim.arm(Fault::answer(Answer::TooManyRequests(7)).on(ApiResource::TokenReviews));
    assert!(matches!(review.token(&token).await, Err(Trouble::Busy { code: 429, .. })));
    sim.arm(Fault::answer(Answer::Unauthorized).on(ApiResource::TokenReviews));
    assert!(matches!(review.token(&token).await, Err(Trouble::Unauthorized { .. })));

    let begun = Instant::now();
    sim.arm(Fault::hang().on(ApiResource::TokenReviews));
    assert!(matches!(review.token(&token).await, Err(Trouble::NoAnswer { .. })));
    assert_eq!(begun.elapsed().as_secs(), limit.as_secs());
    // One of four is enough, whichever.
    for armed in 0..4 {
        let reader = named(&user(NAMESPACE, "reader"));
        assert_eq!(review.denied(&reader).await.unwrap(), None);
        sim.arm(Fault::hang().on(ApiResource::AccessReviews));
        let begun = Instant::now();
        assert!(matches!(review.denied(&reader).await, Err(Trouble::NoAnswer { .. })), "{armed}");
        assert_eq!(begun.elapsed().as_secs(), limit.as_secs());
    }
    assert_eq!(sim.armed(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_blank_token_is_not_asked_about() {
    let sim = sim();
    let review = Review::new(sim.client(NAMESPACE), config(NAMESPACE));
    for blank in ["", " ", "\t", "\u{a0}", " x", "x ", "x y"] {
        assert_eq!(review.token(blank).await.unwrap(), None, "{blank:?}");
    }
    assert_eq!(sim.metrics().count(Verb::Create), 0);
}

/// An API server of a test's own making: it answers all with this, and keeps what it was asked.
fn scripted(answer: impl Fn(&Value) -> (u16, Vec<u8>) + Clone + Send + 'static) -> (Client, Arc<Mutex<Vec<Value>>>) {
    let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
    let kept = asked.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (answer, kept) = (answer.clone(), kept.clone());
        async move {
            let body = request.into_body().collect().await?.to_bytes();
            let body: Value = serde_json::from_slice(&body)?;
            let (status, bytes) = answer(&body);
            kept.lock().unwrap().push(body["spec"].clone());
            let response = Response::builder().status(StatusCode::from_u16(status)?);
            Ok::<_, tower::BoxError>(response.body(Body::from(bytes))?)
        }
    });
    (Client::new(service, "default"), asked)
}

fn said(status: &Value) -> (u16, Vec<u8>) {
    (201, json!({ "status": status }).to_string().into_bytes())
}

/// What no API server of ours says, but an authenticator behind one may: nobody comes in for want of a clear yes.
#[tokio::test]
async fn only_a_clear_yes_is_one() {
    let yes = json!({"authenticated": true, "audiences": [AUDIENCE], "user": {"username": "jane", "groups": ["dev"]}});
    let without = |field: &str, value: Value| {
        let mut status = yes.clone();
        status[field] = value;
        status
    };
    let no = [
        without("authenticated", json!(false)),
        without("audiences", json!([])),
        without("audiences", json!(["other"])),
        without("audiences", json!([format!("{AUDIENCE} ")])),
        without("user", json!({})),
        without("user", json!({"username": "", "groups": ["dev"]})),
        without("user", json!({"username": "system:anonymous", "groups": ["system:unauthenticated"]})),
        json!({"authenticated": true, "user": {"username": "jane"}}),
        json!({"audiences": [AUDIENCE], "user": {"username": "jane"}}),
        json!({}),
    ];
    for status in no {
        let (client, _) = scripted(move |_| said(&status));
        assert_eq!(Review::new(client, config(NAMESPACE)).token("token").await, Ok(None));
    }
    let (client, asked) = scripted(move |_| said(&yes));
    let jane = Review::new(client, config(NAMESPACE)).token("token").await.unwrap().unwrap();
    assert_eq!((jane.name.as_str(), &jane.groups), ("jane", &vec!["dev".to_owned()]));
    assert_eq!(*asked.lock().unwrap(), [json!({"token": "token", "audiences": [AUDIENCE]})]);

    for status in [json!({"allowed": false}), json!({"allowed": true, "denied": true}), json!({})] {
        let (client, _) = scripted(move |_| said(&status));
        let denied = Review::new(client, config(NAMESPACE)).denied(&jane).await;
        assert_eq!(denied, Ok(Some("list pods".to_owned())));
    }
    for unreadable in [&b"token"[..], b"{}", b"{\"status\": null}", b"{\"status\": {\"authenticated\": \"token\"}}"] {
        let (client, _) = scripted(move |_| (201, unreadable.to_vec()));
        let trouble = Review::new(client, config(NAMESPACE)).token("token").await.unwrap_err();
        assert!(matches!(trouble, Trouble::Unreadable(_)) && !trouble.to_string().contains("token"), "{trouble}");
    }
    let limits = Config { answer_bytes: 1000, ..config(NAMESPACE) };
    let (client, _) = scripted(|_| (201, vec![b' '; 1001]));
    assert!(matches!(Review::new(client, limits).token("token").await, Err(Trouble::Cut(_))));
}

/// Authorizers other than RBAC may look at all of a user: OpenShift's at a token's scopes.
#[tokio::test]
async fn rights_are_asked_for_with_all_that_is_known() {
    let scopes = json!({"scopes.authorization.openshift.io": ["user:info"], "empty": null});
    let info = json!({"username": "jane", "uid": "7", "groups": ["dev"], "extra": scopes});
    let status = json!({"authenticated": true, "audiences": [AUDIENCE], "user": info, "allowed": true});
    let (client, asked) = scripted(move |_| said(&status));
    let review = Review::new(client, config(NAMESPACE));
    let jane = review.token("token").await.unwrap().unwrap();
    assert_eq!(review.denied(&jane).await, Ok(None));
    let mut asked = asked.lock().unwrap().split_off(1);
    let resource = |spec: &mut Value| spec["resourceAttributes"].take();
    let attributes: Vec<_> = asked.iter_mut().map(resource).collect();
    let wanted = |verb: &str, group: &str, resource: &str| json!({"namespace": NAMESPACE, "verb": verb, "group": group, "resource": resource});
    let claims = ("boilerhouse.dev", "boilerhouseclaims");
    let expected =
        [("list", "", "pods"), ("watch", "", "pods"), ("list", claims.0, claims.1), ("watch", claims.0, claims.1)];
    assert_eq!(attributes, expected.map(|(verb, group, resource)| wanted(verb, group, resource)));
    let extra = json!({"scopes.authorization.openshift.io": ["user:info"], "empty": []});
    let whom = json!({"user": "jane", "uid": "7", "groups": ["dev"], "extra": extra, "resourceAttributes": null});
    assert_eq!(asked, [whom.clone(), whom.clone(), whom.clone(), whom]);
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

/// Whatever is answered, and at every level: the log, the error and `Debug` say nothing of a token. The log tells of a
/// change once, whatever the other question comes to.
#[tokio::test]
async fn a_token_is_told_to_nobody() {
    const CANARY: &str = "eyJhbGciOiJFUzI1NiJ9.canary.canary-of-a-token";
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(log.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let repeats = |code: u16| {
        let message = format!("{}{CANARY} is refused", "x".repeat(280));
        (code, json!({"kind": "Status", "message": message, "code": code}).to_string().into_bytes())
    };
    let (client, _) = scripted(move |body| match body["kind"].as_str() {
        Some("TokenReview") => repeats(500),
        _ => said(&json!({"allowed": true})),
    });
    let review = Review::new(client, config(NAMESPACE));
    for _ in 0..3 {
        let trouble = review.token(CANARY).await.unwrap_err();
        let told = format!("{trouble} {trouble:?} {review:?}");
        assert!(told.contains("[token]") && !told.contains("canary"), "{told}");
        assert_eq!(review.denied(&named("jane")).await, Ok(None));
    }
    let sim = sim();
    let simulated = Review::new(sim.client(NAMESPACE), config(NAMESPACE));
    assert_eq!(simulated.token(CANARY).await, Ok(None));
    sim.set_reviewing(false);
    simulated.token(CANARY).await.unwrap_err();
    let text = log.text();
    assert_eq!(text.matches("Kubernetes cannot be asked").count(), 2, "once for each of the two: {text}");
    assert!(!text.contains("canary"), "{text}");
    assert!(!format!("{sim:?}").contains("canary"));
}

/// A real connection, where there is more that could tell.
#[tokio::test]
async fn a_real_connection_tells_nobody_either() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(log.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let plane = ControlPlane::shared().await;
    let ns = plane.namespace().await;
    let people = People::Real(plane);
    people.account(&ns, "reader").await;
    let token = people.token(&ns, "reader", &[AUDIENCE]).await;
    let review = Review::new(plane.client().await, config(&ns));
    let before = log.0.lock().unwrap().len();
    let reader = review.token(&token).await.unwrap().unwrap();
    assert_eq!(review.denied(&reader).await.unwrap().as_deref(), Some("list pods"));
    assert_eq!(review.token("canary-of-a-token").await.unwrap(), None);
    let text = log.text().split_off(before);
    assert!(text.contains("TRACE"), "the log is there: {text}");
    let payload = token.split('.').nth(1).unwrap();
    assert!(!text.contains("canary") && !text.contains(payload), "{text}");
}
