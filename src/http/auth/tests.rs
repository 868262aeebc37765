//! Credentials over time, with the clock held: what ends them, and when whoever has a stream is told.

mod thousand_streams;

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use futures::{FutureExt, StreamExt, future};
use http::HeaderMap;
use jiff::Timestamp;
use tokio::time::{Instant, timeout};

use super::{
    credential::Credential,
    lease::{CredentialStatus, CredentialWatch},
    review_cache::{AccessDecision, ReviewBackend, ReviewSubject, ReviewUnavailable},
    secret::Secret,
    signed_token::{TokenPurpose, TokenSigner},
    user::KubernetesUser,
    *,
};
use crate::{
    http::{
        admit::{self, Rejection},
        caller::Caller,
        forwarded::ClientInfo,
        rate_limit::{self, RateLimits},
    },
    wire::CloseReason,
};

/// The wall's clock at the start of a test: 2026-01-02T03:04:05Z.
const START_S: i64 = 1_767_323_045;
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

/// The wall's clock, which runs with tokio's.
fn clock() -> Timestamp {
    thread_local!(static START: Instant = Instant::now());
    let passed = START.with(Instant::elapsed);
    Timestamp::from_second(START_S).unwrap() + passed
}

/// Seconds from the start.
fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(START_S + seconds).unwrap()
}

/// A cluster whose tokens are all `jane`'s, but for those that begin with `guess`: nobody's.
#[derive(Debug, Default)]
struct Cluster {
    down: AtomicBool,
    denied: AtomicBool,
    /// Somebody was told no.
    was_denied: AtomicBool,
    /// How long a question takes.
    takes_ms: AtomicU64,
    /// Tokens that were asked about.
    review_count: AtomicU64,
    /// Nothing is said of tokens that begin with `odd`.
    odd: AtomicBool,
}

impl Cluster {
    fn reviews(self: &Arc<Self>) -> ReviewBackend {
        let (one, two) = (self.clone(), self.clone());
        ReviewBackend {
            token: Box::new(move |token| {
                let user =
                    KubernetesUser { name: "jane".into(), groups: vec!["dev".into()], ..KubernetesUser::default() };
                one.review_count.fetch_add(1, SeqCst);
                let odd = one.odd.load(SeqCst) && token.expose().starts_with("odd");
                let down = odd || one.down.load(SeqCst);
                let user = (!token.expose().starts_with("guess")).then_some(user);
                let answer = if down { Err(ReviewUnavailable) } else { Ok(user) };
                let takes = Duration::from_millis(one.takes_ms.load(SeqCst));
                async move {
                    tokio::time::sleep(takes).await;
                    answer
                }
                .boxed()
            }),
            access: Box::new(move |_| {
                let denied = two.denied.load(SeqCst);
                two.was_denied.fetch_or(denied, SeqCst);
                let answer = if denied { AccessDecision::Denied("watch pods".into()) } else { AccessDecision::Granted };
                let answer = if two.down.load(SeqCst) { Err(ReviewUnavailable) } else { Ok(answer) };
                async move { answer }.boxed()
            }),
        }
    }
}

/// Somebody who knows the key `abc`, and all tokens of a cluster.
fn auth(cluster: &Arc<Cluster>) -> Arc<Authenticator> {
    // Held before anything else, so that it starts now.
    assert_eq!(clock(), at(0));
    let sources = CredentialSources { environment: Some(Secret::new("abc")), ..CredentialSources::default() };
    let auth = Authenticator::new(Config { clock, ..Config::default() }, sources, Metrics::default()).unwrap();
    auth.with_reviews(cluster.reviews()).into()
}

fn limits() -> RateLimits {
    RateLimits::new(&rate_limit::Config::default())
}

/// A token that says when it ends.
fn token(end: Timestamp) -> String {
    let claims = format!(r#"{{"exp":{}}}"#, end.as_second());
    format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims))
}

async fn authenticate(
    auth: &Authenticator,
    limits: &RateLimits,
    address: IpAddr,
    secret: &str,
) -> Result<Principal, Rejection> {
    let mut headers = HeaderMap::new();
    headers.insert(http::header::AUTHORIZATION, format!("Bearer {secret}").parse().unwrap());
    let client = ClientInfo { address, secure: false, loopback: false };
    let context = CredentialContext { headers: &headers, query: "", client, cookies: true };
    let principal = auth.authenticate(AccessRequirement::Read, context, &limits.token_reviews).await;
    principal.map_err(|denied| admit::reject(&denied, &limits.denied_credentials, &Caller::address(address)))
}

/// The status and the `Retry-After` of a refusal.
fn status_of(denied: Rejection) -> (u16, Option<String>) {
    let response = match denied {
        Rejection::Error(error) => error.into_response(),
        Rejection::Unavailable(unavailable) => unavailable.to_error().into_response(),
    };
    let after = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    (response.status().as_u16(), after)
}

/// The next change of a credential, with the seconds at which it came.
async fn next(auth: &Authenticator, watch: &mut CredentialWatch) -> (i64, CredentialStatus) {
    let status = async {
        tokio::select! {
            never = auth.run_watchdog() => match never {},
            status = watch.next() => status.unwrap(),
        }
    };
    let status = timeout(Duration::from_secs(3600), status).await.expect("nothing changes");
    (clock().as_second() - START_S, status)
}

#[tokio::test(start_paused = true)]
async fn token_expiry_is_announced_and_ends_access() {
    let (auth, limits) = (auth(&Arc::default()), limits());
    let end = at(600);
    let jane = authenticate(&auth, &limits, HERE, &token(end)).await.unwrap();
    let mut watch = auth.watch(&jane).unwrap();
    assert_eq!(next(&auth, &mut watch).await, (0, CredentialStatus::Valid));
    assert_eq!(next(&auth, &mut watch).await, (540, CredentialStatus::Expiring(end)));
    assert_eq!(next(&auth, &mut watch).await, (600, CredentialStatus::Ended(CloseReason::CredentialExpired)));
    assert_eq!(status_of(authenticate(&auth, &limits, HERE, &token(end)).await.unwrap_err()).0, 401);
}

#[tokio::test(start_paused = true)]
async fn issued_tokens_expire_with_their_credential() {
    let (auth, limits) = (auth(&Arc::default()), limits());
    let short = authenticate(&auth, &limits, HERE, &token(at(600))).await.unwrap();
    let long = authenticate(&auth, &limits, HERE, &token(at(100 * 3600))).await.unwrap();
    let key = authenticate(&auth, &limits, HERE, "abc").await.unwrap();
    for (principal, purpose, end) in [
        (&short, TokenPurpose::Ticket, 600),
        (&short, TokenPurpose::Session, 600),
        (&long, TokenPurpose::Ticket, 3600),
        (&long, TokenPurpose::Session, 12 * 3600),
        (&key, TokenPurpose::Ticket, 3600),
        (&key, TokenPurpose::Session, 12 * 3600),
    ] {
        assert_eq!(auth.issue(principal, purpose, "localhost").unwrap().1, at(end), "{purpose:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn revoked_access_ends_streams_within_25_s() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    let jane = authenticate(&auth, &limits, HERE, &token(at(10_000))).await.unwrap();
    let mut watch = auth.watch(&jane).unwrap();
    assert_eq!(next(&auth, &mut watch).await, (0, CredentialStatus::Valid));
    cluster.denied.store(true, SeqCst);
    let (seconds, status) = next(&auth, &mut watch).await;
    assert_eq!(status, CredentialStatus::Ended(CloseReason::AccessRevoked));
    assert!(seconds <= 25, "{seconds}");
    assert_eq!(status_of(authenticate(&auth, &limits, HERE, &token(at(10_000))).await.unwrap_err()).0, 403);
    assert_eq!(auth.metrics.revoked.get(), 1);
}

/// The no of an API server that has just started and does not know everybody's roles yet.
#[tokio::test(start_paused = true)]
async fn denial_followed_by_approval_ends_no_stream() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    let jane = authenticate(&auth, &limits, HERE, &token(at(10_000))).await.unwrap();
    let mut watch = auth.watch(&jane).unwrap();
    assert_eq!(next(&auth, &mut watch).await, (0, CredentialStatus::Valid));
    cluster.denied.store(true, SeqCst);
    let restarted = async {
        while !cluster.was_denied.load(SeqCst) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.denied.store(false, SeqCst);
    };
    let run = future::join(timeout(Duration::from_secs(100), next(&auth, &mut watch)), restarted).await.0;
    assert!(run.is_err(), "{run:?}");
    assert!(authenticate(&auth, &limits, HERE, &token(at(10_000))).await.is_ok(), "the no is forgotten as well");
}

#[tokio::test(start_paused = true)]
async fn review_outage_keeps_streams_for_five_minutes_and_rejects_new_tokens() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    let jane = authenticate(&auth, &limits, HERE, &token(at(10_000))).await.unwrap();
    let mut watch = auth.watch(&jane).unwrap();
    assert_eq!(next(&auth, &mut watch).await, (0, CredentialStatus::Valid));
    cluster.down.store(true, SeqCst);
    let run = timeout(Duration::from_secs(280), next(&auth, &mut watch)).await;
    assert!(run.is_err(), "it lives on: {run:?}");
    assert_eq!(
        status_of(authenticate(&auth, &limits, HERE, &token(at(10_000))).await.unwrap_err()),
        (503, Some("1".into()))
    );
    assert_eq!(
        status_of(authenticate(&auth, &limits, HERE, &token(at(20_000))).await.unwrap_err()),
        (503, Some("1".into()))
    );
    assert!(authenticate(&auth, &limits, HERE, "abc").await.is_ok(), "keys need no cluster");
    let (seconds, status) = next(&auth, &mut watch).await;
    assert_eq!(status, CredentialStatus::Ended(CloseReason::AccessRevoked));
    assert!((300..=340).contains(&seconds), "{seconds}");
}

/// An outage that ends in time is no reason to go.
#[tokio::test(start_paused = true)]
async fn short_review_outages_do_not_accumulate() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    let jane = authenticate(&auth, &limits, HERE, &token(at(100_000))).await.unwrap();
    let mut watch = auth.watch(&jane).unwrap();
    assert_eq!(next(&auth, &mut watch).await, (0, CredentialStatus::Valid));
    for down in [true, false, true, false] {
        cluster.down.store(down, SeqCst);
        let run = timeout(Duration::from_secs(200), next(&auth, &mut watch)).await;
        assert!(run.is_err(), "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn rejected_credentials_are_limited_by_address_and_valid_ones_are_not() {
    let sources = CredentialSources { environment: Some(Secret::new("abc")), ..CredentialSources::default() };
    let auth = Authenticator::new(Config::default(), sources, Metrics::default()).unwrap();
    let limits = limits();
    for tried in 0..60 {
        let denied = status_of(authenticate(&auth, &limits, HERE, &format!("wrong{tried}")).await.unwrap_err());
        assert_eq!(denied, (401, None), "{tried}");
    }
    assert_eq!(status_of(authenticate(&auth, &limits, HERE, "wrong").await.unwrap_err()), (429, Some("1".into())));
    assert_eq!(status_of(authenticate(&auth, &limits, THERE, "wrong").await.unwrap_err()).0, 401);
    assert!(authenticate(&auth, &limits, HERE, "abc").await.is_ok());
    assert_eq!(auth.metrics.refused.get(), 62);
}

/// Whoever guesses tokens does not keep the API server busy: after sixty it is not asked any more.
#[tokio::test(start_paused = true)]
async fn reviews_stop_after_sixty_unknown_tokens_from_one_address() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    for tried in 0..200 {
        authenticate(&auth, &limits, HERE, &format!("guess{tried}")).await.unwrap_err();
    }
    assert_eq!(cluster.review_count.load(SeqCst), 60);
    authenticate(&auth, &limits, THERE, "guess").await.unwrap_err();
    assert_eq!(cluster.review_count.load(SeqCst), 61);
    assert_eq!(auth.metrics.refused.get(), 201);
}

/// Behind one address may be many people.
#[tokio::test(start_paused = true)]
async fn exhausted_guess_budget_still_admits_known_tokens() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    authenticate(&auth, &limits, HERE, "known").await.unwrap();
    // Past what is remembered of it.
    tokio::time::advance(Duration::from_secs(3600)).await;
    for tried in 0..200 {
        authenticate(&auth, &limits, HERE, &format!("guess{tried}")).await.unwrap_err();
    }
    assert!(authenticate(&auth, &limits, HERE, "known").await.is_ok());
    assert_eq!(
        status_of(authenticate(&auth, &limits, HERE, "new").await.unwrap_err()),
        (429, Some("1".into())),
        "it may be a guess"
    );
    assert!(authenticate(&auth, &limits, THERE, "new").await.is_ok());
    assert!(authenticate(&auth, &limits, HERE, "new").await.is_ok(), "now it is known");
}

/// One wrong token a hundred times over, and what is no token at all, are no guesses: the cluster is not asked.
#[tokio::test(start_paused = true)]
async fn rejections_without_a_review_do_not_use_the_guess_budget() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    for _ in 0..100 {
        authenticate(&auth, &limits, HERE, "guess").await.unwrap_err();
        authenticate(&auth, &limits, HERE, "bbp1.no.pass").await.unwrap_err();
    }
    assert_eq!(status_of(authenticate(&auth, &limits, HERE, "guess").await.unwrap_err()).0, 429);
    assert_eq!(cluster.review_count.load(SeqCst), 1);
    assert!(authenticate(&auth, &limits, HERE, "new").await.is_ok());
}

/// A ticket stands in URLs: nothing in it is worth guessing a key by.
#[tokio::test(start_paused = true)]
async fn ticket_payload_contains_no_hash_of_the_key() {
    let (auth, limits) = (auth(&Arc::default()), limits());
    let key = authenticate(&auth, &limits, HERE, "abc").await.unwrap();
    let (ticket, _) = auth.issue(&key, TokenPurpose::Ticket, "").unwrap();
    let payload = BASE64_URL_SAFE_NO_PAD.decode(ticket.expose().split('.').nth(1).unwrap()).unwrap();
    let payload = String::from_utf8(payload).unwrap();
    assert!(payload.contains("BOILERHOUSE_API_KEY"), "{payload}");
    let once = Secret::new("abc").fingerprint();
    let twice = secret::Fingerprint::of(once.bytes());
    for hash in [once, twice] {
        let hex: String = hash.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        for shown in [hex, BASE64_URL_SAFE_NO_PAD.encode(hash.bytes())] {
            assert!(!payload.contains(&shown), "{payload}");
        }
    }
}

/// Whatever of it is printed, by a log or in a panic's message, which shows no more.
#[tokio::test(start_paused = true)]
async fn debug_output_contains_no_credential() {
    let cluster = Arc::new(Cluster::default());
    let key = "canary-of-a-key";
    let sources = CredentialSources {
        environment: Some(Secret::new(key)),
        signer: Some(TokenSigner::from_key(b"canary-of-a-seal-0123456789abcdef").unwrap()),
        ..CredentialSources::default()
    };
    let mut shown = format!("{sources:#?}");
    let auth =
        Authenticator::new(Config::default(), sources, Metrics::default()).unwrap().with_reviews(cluster.reviews());
    let limits = limits();
    let token = format!("canary.{}.canary", BASE64_URL_SAFE_NO_PAD.encode(r#"{"exp":9999999999}"#));
    let mut hidden = vec!["canary".to_owned(), token.split('.').nth(1).unwrap().to_owned()];
    for secret in [key, &token] {
        let principal = authenticate(&auth, &limits, HERE, secret).await.unwrap();
        let (signed, _) = auth.issue(&principal, TokenPurpose::Session, "localhost").unwrap();
        hidden.push(signed.expose().rsplit('.').next().unwrap().to_owned());
        // Kept an eye on by the one that is shown below.
        let _watch = auth.watch(&principal).unwrap();
        let denied = authenticate(&auth, &limits, HERE, signed.expose()).await.unwrap_err();
        let credentials =
            [Credential::Bearer, Credential::Ticket, Credential::Cookie].map(|of| of(Secret::new(secret)));
        let subject = ReviewSubject::Token(Secret::new(secret));
        shown += &format!("{principal:?} {signed:?} {denied:?} {credentials:?} {subject:?}");
    }
    shown += &format!("{auth:#?} {limits:?}");
    assert!(shown.contains("Secret") && shown.contains("Principal"), "{shown}");
    for word in hidden {
        assert!(!shown.contains(&word), "{word}: {shown}");
    }
}
