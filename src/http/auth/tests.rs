//! Tests of credentials over time, with a paused clock: their end, the notice before it, and the budgets of denials.

mod guesses;
mod keys_reload;
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
    metrics::Revocation,
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

/// Wall-clock time at the start of a test, in seconds since the Unix epoch: 2026-01-02T03:04:05Z.
const START_S: i64 = 1_767_323_045;
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

/// Returns a wall-clock time that advances with tokio's clock.
fn clock() -> Timestamp {
    thread_local!(static START: Instant = Instant::now());
    let elapsed = START.with(Instant::elapsed);
    Timestamp::from_second(START_S).unwrap() + elapsed
}

/// Returns the time this many seconds after the start.
fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(START_S + seconds).unwrap()
}

/// A cluster in which every token belongs to the user `jane`, except tokens that start with `guess`, which are unknown.
#[derive(Debug, Default)]
struct Cluster {
    /// No review is answered.
    is_down: AtomicBool,
    /// Every SubjectAccessReview is denied.
    is_denied: AtomicBool,
    /// A SubjectAccessReview was denied.
    was_denied: AtomicBool,
    /// Duration of a TokenReview.
    review_ms: AtomicU64,
    /// Number of TokenReviews.
    review_count: AtomicU64,
    /// TokenReviews of tokens that start with `failing` are not answered.
    has_failing_tokens: AtomicBool,
}

impl Cluster {
    fn reviews(self: &Arc<Self>) -> ReviewBackend {
        let (for_tokens, for_access) = (self.clone(), self.clone());
        ReviewBackend {
            token: Box::new(move |token| {
                let user =
                    KubernetesUser { name: "jane".into(), groups: vec!["dev".into()], ..KubernetesUser::default() };
                for_tokens.review_count.fetch_add(1, SeqCst);
                let fails = for_tokens.has_failing_tokens.load(SeqCst) && token.expose().starts_with("failing");
                let user = (!token.expose().starts_with("guess")).then_some(user);
                let result = if fails || for_tokens.is_down.load(SeqCst) { Err(ReviewUnavailable) } else { Ok(user) };
                let duration = Duration::from_millis(for_tokens.review_ms.load(SeqCst));
                async move {
                    tokio::time::sleep(duration).await;
                    result
                }
                .boxed()
            }),
            access: Box::new(move |_| {
                let denied = for_access.is_denied.load(SeqCst);
                for_access.was_denied.fetch_or(denied, SeqCst);
                let decision =
                    if denied { AccessDecision::Denied("watch pods".into()) } else { AccessDecision::Granted };
                let result = if for_access.is_down.load(SeqCst) { Err(ReviewUnavailable) } else { Ok(decision) };
                async move { result }.boxed()
            }),
        }
    }
}

/// Returns an authenticator with the API key `abc` and the tokens of a cluster.
fn auth(cluster: &Arc<Cluster>) -> Arc<Authenticator> {
    // The first call of `clock` sets the start time.
    assert_eq!(clock(), at(0));
    let sources = CredentialSources { environment: Some(Secret::new("abc")), ..CredentialSources::default() };
    let auth = Authenticator::new(Config { clock, ..Config::default() }, sources, Metrics::default()).unwrap();
    auth.with_reviews(cluster.reviews()).into()
}

/// Returns the default rate limits.
fn limits() -> RateLimits {
    RateLimits::new(&rate_limit::Config::default())
}

/// Returns a JWT with this expiry.
fn token(end: Timestamp) -> String {
    let claims = format!(r#"{{"exp":{}}}"#, end.as_second());
    format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims))
}

/// Authenticates a request with a Bearer credential from this address.
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
    let caller = Caller::address(address);
    let principal = auth.authenticate(AccessRequirement::Read, context, &caller, &limits.token_reviews).await;
    principal.map_err(|denied| admit::reject(&denied, &limits.denied_credentials, &caller))
}

/// Returns the status and the `Retry-After` header of a rejection.
fn status_of(rejection: Rejection) -> (u16, Option<String>) {
    let response = match rejection {
        Rejection::Error(error) => error.into_response(),
        Rejection::Unavailable(unavailable) => unavailable.to_error().into_response(),
    };
    let retry_after = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    (response.status().as_u16(), retry_after)
}

/// Waits for the next status of a credential. Returns it with the seconds since the start.
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
    cluster.is_denied.store(true, SeqCst);
    let (seconds, status) = next(&auth, &mut watch).await;
    assert_eq!(status, CredentialStatus::Ended(CloseReason::AccessRevoked));
    assert!(seconds <= 25, "expected the end within 25 s, found {seconds} s");
    assert_eq!(status_of(authenticate(&auth, &limits, HERE, &token(at(10_000))).await.unwrap_err()).0, 403);
    assert_eq!(auth.metrics.revoked(Revocation::AccessDenied), 1);
}

/// An API server that has just started has not loaded all roles, and denies existing rights.
#[tokio::test(start_paused = true)]
async fn denial_followed_by_approval_ends_no_stream() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    let jane = authenticate(&auth, &limits, HERE, &token(at(10_000))).await.unwrap();
    let mut watch = auth.watch(&jane).unwrap();
    assert_eq!(next(&auth, &mut watch).await, (0, CredentialStatus::Valid));
    cluster.is_denied.store(true, SeqCst);
    let restart = async {
        while !cluster.was_denied.load(SeqCst) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.is_denied.store(false, SeqCst);
    };
    let change = future::join(timeout(Duration::from_secs(100), next(&auth, &mut watch)), restart).await.0;
    assert!(change.is_err(), "expected no change of the status, found {change:?}");
    assert!(authenticate(&auth, &limits, HERE, &token(at(10_000))).await.is_ok(), "expected no cached denial");
}

#[tokio::test(start_paused = true)]
async fn review_outage_keeps_streams_for_five_minutes_and_rejects_new_tokens() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    let jane = authenticate(&auth, &limits, HERE, &token(at(10_000))).await.unwrap();
    let mut watch = auth.watch(&jane).unwrap();
    assert_eq!(next(&auth, &mut watch).await, (0, CredentialStatus::Valid));
    cluster.is_down.store(true, SeqCst);
    let change = timeout(Duration::from_secs(280), next(&auth, &mut watch)).await;
    assert!(change.is_err(), "expected no change of the status for 280 s, found {change:?}");
    assert_eq!(
        status_of(authenticate(&auth, &limits, HERE, &token(at(10_000))).await.unwrap_err()),
        (503, Some("1".into()))
    );
    assert_eq!(
        status_of(authenticate(&auth, &limits, HERE, &token(at(20_000))).await.unwrap_err()),
        (503, Some("1".into()))
    );
    assert!(
        authenticate(&auth, &limits, HERE, "abc").await.is_ok(),
        "expected the API key to be valid during the outage"
    );
    let (seconds, status) = next(&auth, &mut watch).await;
    assert_eq!(status, CredentialStatus::Ended(CloseReason::AccessRevoked));
    assert!((300..=340).contains(&seconds), "expected the end after 300 to 340 s, found {seconds} s");
}

/// Outages shorter than the grace end no stream, also if their sum is longer.
#[tokio::test(start_paused = true)]
async fn short_review_outages_do_not_accumulate() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    let jane = authenticate(&auth, &limits, HERE, &token(at(100_000))).await.unwrap();
    let mut watch = auth.watch(&jane).unwrap();
    assert_eq!(next(&auth, &mut watch).await, (0, CredentialStatus::Valid));
    for is_down in [true, false, true, false] {
        cluster.is_down.store(is_down, SeqCst);
        let change = timeout(Duration::from_secs(200), next(&auth, &mut watch)).await;
        assert!(change.is_err(), "expected no change of the status, found {change:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn rejected_credentials_are_limited_by_address_and_valid_ones_are_not() {
    let sources = CredentialSources { environment: Some(Secret::new("abc")), ..CredentialSources::default() };
    let auth = Authenticator::new(Config::default(), sources, Metrics::default()).unwrap();
    let limits = limits();
    for attempt in 0..60 {
        let status = status_of(authenticate(&auth, &limits, HERE, &format!("wrong{attempt}")).await.unwrap_err());
        assert_eq!(status, (401, None), "attempt {attempt}");
    }
    assert_eq!(status_of(authenticate(&auth, &limits, HERE, "wrong").await.unwrap_err()), (429, Some("1".into())));
    assert_eq!(status_of(authenticate(&auth, &limits, THERE, "wrong").await.unwrap_err()).0, 401);
    assert!(authenticate(&auth, &limits, HERE, "abc").await.is_ok());
    assert_eq!(auth.metrics.denied("unknown"), 62);
}

/// Tickets appear in URLs. Nothing in a ticket helps to guess a key.
#[tokio::test(start_paused = true)]
async fn ticket_payload_contains_no_hash_of_the_key() {
    let (auth, limits) = (auth(&Arc::default()), limits());
    let key = authenticate(&auth, &limits, HERE, "abc").await.unwrap();
    let (ticket, _) = auth.issue(&key, TokenPurpose::Ticket, "").unwrap();
    let payload = BASE64_URL_SAFE_NO_PAD.decode(ticket.expose().split('.').nth(1).unwrap()).unwrap();
    let payload = String::from_utf8(payload).unwrap();
    assert!(payload.contains("BOILERHOUSE_API_KEY"), "expected the name of the key, found: {payload}");
    let once = Secret::new("abc").fingerprint();
    let twice = secret::Fingerprint::of(once.bytes());
    for hash in [once, twice] {
        let hex: String = hash.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        for encoded in [hex, BASE64_URL_SAFE_NO_PAD.encode(hash.bytes())] {
            assert!(!payload.contains(&encoded), "expected no hash of the key, found: {payload}");
        }
    }
}

/// Logs and panic messages print `Debug` output.
#[tokio::test(start_paused = true)]
async fn debug_output_contains_no_credential() {
    let cluster = Arc::new(Cluster::default());
    let key = "canary-of-a-key";
    let sources = CredentialSources {
        environment: Some(Secret::new(key)),
        signer: Some(TokenSigner::from_key(b"canary-of-a-signer-0123456789abcdef").unwrap()),
        ..CredentialSources::default()
    };
    let mut output = format!("{sources:#?}");
    let auth =
        Authenticator::new(Config::default(), sources, Metrics::default()).unwrap().with_reviews(cluster.reviews());
    let limits = limits();
    let token = format!("canary.{}.canary", BASE64_URL_SAFE_NO_PAD.encode(r#"{"exp":9999999999}"#));
    let mut secret_words = vec!["canary".to_owned(), token.split('.').nth(1).unwrap().to_owned()];
    for secret in [key, &token] {
        let principal = authenticate(&auth, &limits, HERE, secret).await.unwrap();
        let (signed, _) = auth.issue(&principal, TokenPurpose::Session, "localhost").unwrap();
        secret_words.push(signed.expose().rsplit('.').next().unwrap().to_owned());
        // The lease is part of the output of `auth` below.
        let _watch = auth.watch(&principal).unwrap();
        let denied = authenticate(&auth, &limits, HERE, signed.expose()).await.unwrap_err();
        let credentials =
            [Credential::Bearer, Credential::Ticket, Credential::Cookie].map(|of| of(Secret::new(secret)));
        let subject = ReviewSubject::Token(Secret::new(secret));
        output += &format!("{principal:?} {signed:?} {denied:?} {credentials:?} {subject:?}");
    }
    output += &format!("{auth:#?} {limits:?}");
    assert!(output.contains("Secret") && output.contains("Principal"), "expected both types in the output: {output}");
    for word in secret_words {
        assert!(!output.contains(&word), "expected no '{word}' in the output: {output}");
    }
}
