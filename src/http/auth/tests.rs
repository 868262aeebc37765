//! Credentials over time, with the clock held: what ends them, and when whoever has a stream is told.

mod crowd;

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use futures::{FutureExt, StreamExt, future};
use tokio::time::{Instant, timeout};

use super::{
    lease::Standing,
    review_cache::{Access as Right, Reviews},
    *,
};
use crate::{http::rate_limit, wire::Close};

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
    refused: AtomicBool,
    /// How long a question takes.
    takes_ms: AtomicU64,
    /// Tokens that were asked about.
    asked: AtomicU64,
    /// Nothing is said of tokens that begin with `odd`.
    odd: AtomicBool,
}

impl Cluster {
    fn reviews(self: &Arc<Self>) -> Reviews {
        let (one, two) = (self.clone(), self.clone());
        Reviews {
            token: Box::new(move |token| {
                let user = User { name: "jane".into(), groups: vec!["dev".into()], ..User::default() };
                one.asked.fetch_add(1, SeqCst);
                let odd = one.odd.load(SeqCst) && token.reveal().starts_with("odd");
                let down = odd || one.down.load(SeqCst);
                let user = (!token.reveal().starts_with("guess")).then_some(user);
                let answer = if down { Err(Unavailable) } else { Ok(user) };
                let takes = Duration::from_millis(one.takes_ms.load(SeqCst));
                async move {
                    tokio::time::sleep(takes).await;
                    answer
                }
                .boxed()
            }),
            access: Box::new(move |_| {
                let denied = two.denied.load(SeqCst);
                two.refused.fetch_or(denied, SeqCst);
                let answer = if denied { Right::Denied("watch pods".into()) } else { Right::Granted };
                let answer = if two.down.load(SeqCst) { Err(Unavailable) } else { Ok(answer) };
                async move { answer }.boxed()
            }),
        }
    }
}

/// Somebody who knows the key `abc`, and all tokens of a cluster.
fn auth(cluster: &Arc<Cluster>) -> Arc<Auth> {
    // Held before anything else, so that it starts now.
    assert_eq!(clock(), at(0));
    let known = Known { environment: Some(Secret::new("abc")), ..Known::default() };
    let auth = Auth::new(Config { clock, ..Config::default() }, known, Metrics::default()).unwrap();
    auth.asking(cluster.reviews()).into()
}

fn limits() -> Limits {
    Limits::new(&rate_limit::Config::default())
}

/// A token that says when it ends.
fn token(end: Timestamp) -> String {
    let claims = format!(r#"{{"exp":{}}}"#, end.as_second());
    format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims))
}

async fn come(auth: &Auth, limits: &Limits, address: IpAddr, secret: &str) -> Result<Principal, Refusal> {
    let mut headers = HeaderMap::new();
    headers.insert(http::header::AUTHORIZATION, format!("Bearer {secret}").parse().unwrap());
    let came = Came { address, secure: false, loopback: false };
    auth.admit(Needs::Read, Asks { headers: &headers, query: "", came, cookies: true }, limits).await
}

/// The status and the `Retry-After` of a refusal.
fn told(refused: Refusal) -> (u16, Option<String>) {
    let response = match refused {
        Refusal::No(error) => error.into_response(),
        Refusal::Later(later) => later.error().into_response(),
    };
    let after = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    (response.status().as_u16(), after)
}

/// The next change of a credential, with the seconds at which it came.
async fn next(auth: &Auth, hold: &mut Hold) -> (i64, Standing) {
    let standing = async {
        tokio::select! {
            never = auth.run() => match never {},
            standing = hold.next() => standing.unwrap(),
        }
    };
    let standing = timeout(Duration::from_secs(3600), standing).await.expect("nothing changes");
    (clock().as_second() - START_S, standing)
}

#[tokio::test(start_paused = true)]
async fn a_token_ends_when_it_says_and_is_announced() {
    let (auth, limits) = (auth(&Arc::default()), limits());
    let end = at(600);
    let jane = come(&auth, &limits, HERE, &token(end)).await.unwrap();
    let mut hold = auth.hold(&jane).unwrap();
    assert_eq!(next(&auth, &mut hold).await, (0, Standing::Good));
    assert_eq!(next(&auth, &mut hold).await, (540, Standing::Expiring(end)));
    assert_eq!(next(&auth, &mut hold).await, (600, Standing::Ended(Close::CredentialExpired)));
    assert_eq!(told(come(&auth, &limits, HERE, &token(end)).await.unwrap_err()).0, 401);
}

#[tokio::test(start_paused = true)]
async fn what_is_made_of_a_token_ends_with_it() {
    let (auth, limits) = (auth(&Arc::default()), limits());
    let short = come(&auth, &limits, HERE, &token(at(600))).await.unwrap();
    let long = come(&auth, &limits, HERE, &token(at(100 * 3600))).await.unwrap();
    let key = come(&auth, &limits, HERE, "abc").await.unwrap();
    for (principal, purpose, end) in [
        (&short, Purpose::Ticket, 600),
        (&short, Purpose::Session, 600),
        (&long, Purpose::Ticket, 3600),
        (&long, Purpose::Session, 12 * 3600),
        (&key, Purpose::Ticket, 3600),
        (&key, Purpose::Session, 12 * 3600),
    ] {
        assert_eq!(auth.pass(principal, purpose, "localhost").unwrap().1, at(end), "{purpose:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_right_that_is_taken_back_ends_streams_within_25_seconds() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    let jane = come(&auth, &limits, HERE, &token(at(10_000))).await.unwrap();
    let mut hold = auth.hold(&jane).unwrap();
    assert_eq!(next(&auth, &mut hold).await, (0, Standing::Good));
    cluster.denied.store(true, SeqCst);
    let (seconds, standing) = next(&auth, &mut hold).await;
    assert_eq!(standing, Standing::Ended(Close::AccessRevoked));
    assert!(seconds <= 25, "{seconds}");
    assert_eq!(told(come(&auth, &limits, HERE, &token(at(10_000))).await.unwrap_err()).0, 403);
    assert_eq!(auth.metrics.revoked.get(), 1);
}

/// The no of an API server that has just started and does not know everybody's roles yet.
#[tokio::test(start_paused = true)]
async fn a_no_that_passes_within_a_second_ends_no_stream() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    let jane = come(&auth, &limits, HERE, &token(at(10_000))).await.unwrap();
    let mut hold = auth.hold(&jane).unwrap();
    assert_eq!(next(&auth, &mut hold).await, (0, Standing::Good));
    cluster.denied.store(true, SeqCst);
    let restarted = async {
        while !cluster.refused.load(SeqCst) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.denied.store(false, SeqCst);
    };
    let run = future::join(timeout(Duration::from_secs(100), next(&auth, &mut hold)), restarted).await.0;
    assert!(run.is_err(), "{run:?}");
    assert!(come(&auth, &limits, HERE, &token(at(10_000))).await.is_ok(), "the no is forgotten as well");
}

#[tokio::test(start_paused = true)]
async fn while_the_cluster_cannot_be_asked_streams_live_on_for_five_minutes_and_nobody_new_comes_in() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    let jane = come(&auth, &limits, HERE, &token(at(10_000))).await.unwrap();
    let mut hold = auth.hold(&jane).unwrap();
    assert_eq!(next(&auth, &mut hold).await, (0, Standing::Good));
    cluster.down.store(true, SeqCst);
    let run = timeout(Duration::from_secs(280), next(&auth, &mut hold)).await;
    assert!(run.is_err(), "it lives on: {run:?}");
    assert_eq!(told(come(&auth, &limits, HERE, &token(at(10_000))).await.unwrap_err()), (503, Some("1".into())));
    assert_eq!(told(come(&auth, &limits, HERE, &token(at(20_000))).await.unwrap_err()), (503, Some("1".into())));
    assert!(come(&auth, &limits, HERE, "abc").await.is_ok(), "keys need no cluster");
    let (seconds, standing) = next(&auth, &mut hold).await;
    assert_eq!(standing, Standing::Ended(Close::AccessRevoked));
    assert!((300..=340).contains(&seconds), "{seconds}");
}

/// An outage that ends in time is no reason to go.
#[tokio::test(start_paused = true)]
async fn an_outage_that_ends_is_forgotten() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    let jane = come(&auth, &limits, HERE, &token(at(100_000))).await.unwrap();
    let mut hold = auth.hold(&jane).unwrap();
    assert_eq!(next(&auth, &mut hold).await, (0, Standing::Good));
    for down in [true, false, true, false] {
        cluster.down.store(down, SeqCst);
        let run = timeout(Duration::from_secs(200), next(&auth, &mut hold)).await;
        assert!(run.is_err(), "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn refused_credentials_are_limited_by_address_and_good_ones_are_not() {
    let known = Known { environment: Some(Secret::new("abc")), ..Known::default() };
    let auth = Auth::new(Config::default(), known, Metrics::default()).unwrap();
    let limits = limits();
    for tried in 0..60 {
        let refused = told(come(&auth, &limits, HERE, &format!("wrong{tried}")).await.unwrap_err());
        assert_eq!(refused, (401, None), "{tried}");
    }
    assert_eq!(told(come(&auth, &limits, HERE, "wrong").await.unwrap_err()), (429, Some("1".into())));
    assert_eq!(told(come(&auth, &limits, THERE, "wrong").await.unwrap_err()).0, 401);
    assert!(come(&auth, &limits, HERE, "abc").await.is_ok());
    assert_eq!(auth.metrics.refused.get(), 62);
}

/// Whoever guesses tokens does not keep the API server busy: after sixty it is not asked any more.
#[tokio::test(start_paused = true)]
async fn the_cluster_is_not_asked_about_guesses_for_ever() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    for tried in 0..200 {
        come(&auth, &limits, HERE, &format!("guess{tried}")).await.unwrap_err();
    }
    assert_eq!(cluster.asked.load(SeqCst), 60);
    come(&auth, &limits, THERE, "guess").await.unwrap_err();
    assert_eq!(cluster.asked.load(SeqCst), 61);
    assert_eq!(auth.metrics.refused.get(), 201);
}

/// Behind one address may be many people.
#[tokio::test(start_paused = true)]
async fn whoever_guesses_keeps_nobody_out_who_was_let_in_before() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    come(&auth, &limits, HERE, "known").await.unwrap();
    // Past what is remembered of it.
    tokio::time::advance(Duration::from_secs(3600)).await;
    for tried in 0..200 {
        come(&auth, &limits, HERE, &format!("guess{tried}")).await.unwrap_err();
    }
    assert!(come(&auth, &limits, HERE, "known").await.is_ok());
    assert_eq!(
        told(come(&auth, &limits, HERE, "new").await.unwrap_err()),
        (429, Some("1".into())),
        "it may be a guess"
    );
    assert!(come(&auth, &limits, THERE, "new").await.is_ok());
    assert!(come(&auth, &limits, HERE, "new").await.is_ok(), "now it is known");
}

/// One wrong token a hundred times over, and what is no token at all, are no guesses: the cluster is not asked.
#[tokio::test(start_paused = true)]
async fn refusals_that_cost_no_question_keep_nobody_out() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    for _ in 0..100 {
        come(&auth, &limits, HERE, "guess").await.unwrap_err();
        come(&auth, &limits, HERE, "bbp1.no.pass").await.unwrap_err();
    }
    assert_eq!(told(come(&auth, &limits, HERE, "guess").await.unwrap_err()).0, 429);
    assert_eq!(cluster.asked.load(SeqCst), 1);
    assert!(come(&auth, &limits, HERE, "new").await.is_ok());
}

/// A ticket stands in URLs: nothing in it is worth guessing a key by.
#[tokio::test(start_paused = true)]
async fn a_pass_of_a_key_says_nothing_that_a_guess_could_be_tried_against() {
    let (auth, limits) = (auth(&Arc::default()), limits());
    let key = come(&auth, &limits, HERE, "abc").await.unwrap();
    let (ticket, _) = auth.pass(&key, Purpose::Ticket, "").unwrap();
    let payload = BASE64_URL_SAFE_NO_PAD.decode(ticket.reveal().split('.').nth(1).unwrap()).unwrap();
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
async fn nothing_of_a_credential_can_be_printed() {
    let cluster = Arc::new(Cluster::default());
    let key = "canary-of-a-key";
    let known = Known {
        environment: Some(Secret::new(key)),
        seal: Some(Seal::of(b"canary-of-a-seal-0123456789abcdef").unwrap()),
        ..Known::default()
    };
    let mut shown = format!("{known:#?}");
    let auth = Auth::new(Config::default(), known, Metrics::default()).unwrap().asking(cluster.reviews());
    let limits = limits();
    let token = format!("canary.{}.canary", BASE64_URL_SAFE_NO_PAD.encode(r#"{"exp":9999999999}"#));
    let mut hidden = vec!["canary".to_owned(), token.split('.').nth(1).unwrap().to_owned()];
    for secret in [key, &token] {
        let principal = come(&auth, &limits, HERE, secret).await.unwrap();
        let (pass, _) = auth.pass(&principal, Purpose::Session, "localhost").unwrap();
        hidden.push(pass.reveal().rsplit('.').next().unwrap().to_owned());
        // Kept an eye on by the one that is shown below.
        let _hold = auth.hold(&principal).unwrap();
        let refused = come(&auth, &limits, HERE, pass.reveal()).await.unwrap_err();
        let presented = [Presented::Bearer, Presented::Ticket, Presented::Cookie].map(|of| of(Secret::new(secret)));
        let subject = Subject::Token(Secret::new(secret));
        shown += &format!("{principal:?} {pass:?} {refused:?} {presented:?} {subject:?}");
    }
    shown += &format!("{auth:#?} {limits:?}");
    assert!(shown.contains("Secret") && shown.contains("Principal"), "{shown}");
    for word in hidden {
        assert!(!shown.contains(&word), "{word}: {shown}");
    }
}
