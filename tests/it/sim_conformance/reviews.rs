//! What tokens and users are answered to be, as functions that run against any API server: [`BEHAVIORS`].

use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use http::{Method, StatusCode};
use kube::Client;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use boilerhouse_bridge::sim::{
    ApiResource, Sim, SimConfig, Verb,
    review::{LEEWAY, OWN_AUDIENCE},
};

use super::client::*;
use crate::support::accounts::{Accounts, PROPAGATION_TIMEOUT, REQUIRED_ACCESS, RbacSubject, user_name};
use crate::support::control_plane::ControlPlane;

const TOKENS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const ACCESS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
const OURS: &str = "boilerhouse-bridge";

/// A behaviour, pointed at people, a client and an empty namespace that exists.
type Behavior = for<'a> fn(Accounts<'a>, &'a Client, &'a str) -> BoxFuture<'a, ()>;

macro_rules! behaviors {
    ($($name:ident),* $(,)?) => {
        &[$((stringify!($name), |accounts, client, namespace| Box::pin($name(accounts, client, namespace)))),*]
    };
}

const BEHAVIORS: &[(&str, Behavior)] = behaviors![
    token_is_authenticated_for_its_audiences,
    token_for_another_audience_is_not_authenticated,
    malformed_token_is_not_authenticated,
    blank_token_is_the_anonymous_user,
    expired_token_is_accepted_for_one_more_minute,
    token_ends_with_its_service_account,
    permission_covers_one_verb_one_resource_and_one_namespace,
    groups_have_permissions,
    permissions_can_be_revoked,
    malformed_reviews_are_rejected,
    creating_reviews_requires_permission,
];

#[tokio::test(start_paused = true)]
async fn simulator_shows_every_review_behavior() {
    for (index, (name, behavior)) in BEHAVIORS.iter().enumerate() {
        let namespace = format!("truth-{index}");
        let sim = Sim::new(SimConfig { namespaces: vec![namespace.clone()], ..SimConfig::default() });
        println!("{name}");
        behavior(Accounts::Simulated(&sim), &sim.client(&namespace), &namespace).await;
    }
}

#[tokio::test]
async fn real_api_server_shows_every_review_behavior() {
    let plane = ControlPlane::shared().await;
    let failed = join_all(BEHAVIORS.iter().map(|(name, behavior)| async move {
        let (client, namespace) = (plane.client().await, plane.namespace().await);
        let outcome = AssertUnwindSafe(behavior(Accounts::Real(plane), &client, &namespace)).catch_unwind().await;
        outcome.err().map(|_| *name)
    }));
    let failed: Vec<_> = failed.await.into_iter().flatten().collect();
    assert!(failed.is_empty(), "what the real one does otherwise (each said why above): {failed:?}");
}

async fn review(client: &Client, path: &str, spec: &Value) -> Value {
    let (code, review) = post(client, path, json!({ "spec": spec })).await;
    assert_eq!(code, StatusCode::CREATED, "{review}");
    let (group, kind) = match path {
        TOKENS => ("authentication.k8s.io/v1", "TokenReview"),
        _ => ("authorization.k8s.io/v1", "SubjectAccessReview"),
    };
    assert_eq!((&review["apiVersion"], &review["kind"]), (&json!(group), &json!(kind)));
    assert_eq!(&review["spec"], spec, "it repeats what it was asked");
    review["status"].clone()
}

async fn token(client: &Client, token: &str, audiences: &[&str]) -> Value {
    let spec = match audiences {
        [] => json!({ "token": token }),
        _ => json!({ "token": token, "audiences": audiences }),
    };
    review(client, TOKENS, &spec).await
}

/// A refusal: nothing says so but what is not there.
fn is_unauthenticated(status: &Value, why: &str) {
    assert_eq!((status.get("authenticated"), status.get("audiences")), (None, None), "{status}");
    assert_eq!(status["user"], json!({}), "{status}");
    assert!(status["error"].as_str().unwrap().contains(why), "{status}");
}

async fn token_is_authenticated_for_its_audiences(accounts: Accounts<'_>, client: &Client, ns: &str) {
    let uid = accounts.create_account(ns, "a").await;
    let ours = accounts.create_token(ns, "a", &[OURS, "other"]).await;
    let status = token(client, &ours, &[OURS]).await;
    assert_eq!((&status["authenticated"], &status["audiences"]), (&json!(true), &json!([OURS])), "{status}");
    assert_eq!(status.get("error"), None);
    let who = &status["user"];
    assert_eq!((&who["username"], &who["uid"]), (&json!(user_name(ns, "a")), &json!(uid)));
    let groups = json!(["system:serviceaccounts", format!("system:serviceaccounts:{ns}"), "system:authenticated"]);
    assert_eq!(who["groups"], groups);
    let id = who["extra"]["authentication.kubernetes.io/credential-id"][0].as_str();
    assert!(id.is_some_and(|id| id.starts_with("JTI=")), "{who}");
    let several = token(client, &ours, &["nobody", "other", OURS]).await;
    assert_eq!(several["audiences"], json!(["other", OURS]), "those that both name");
    let own = accounts.create_token(ns, "a", &[]).await;
    assert_eq!(token(client, &own, &[]).await["audiences"], json!([OWN_AUDIENCE]));
}

async fn token_for_another_audience_is_not_authenticated(accounts: Accounts<'_>, client: &Client, ns: &str) {
    accounts.create_account(ns, "a").await;
    let (ours, own) = (accounts.create_token(ns, "a", &[OURS]).await, accounts.create_token(ns, "a", &[]).await);
    let why = format!("token audiences [\"{OURS}\"] is invalid for the target audiences [\"other\" \"third\"]");
    is_unauthenticated(&token(client, &ours, &["other", "third"]).await, &why);
    is_unauthenticated(&token(client, &ours, &[]).await, OWN_AUDIENCE);
    is_unauthenticated(&token(client, &own, &[OURS]).await, OWN_AUDIENCE);
}

async fn malformed_token_is_not_authenticated(_: Accounts<'_>, client: &Client, _: &str) {
    for text in ["garbage", "a.b.c", "garbage ", "\tgarbage", "gar bage", "é"] {
        is_unauthenticated(&token(client, text, &[OURS]).await, "invalid bearer token");
    }
    for spec in [json!({"token": ""}), json!({"audiences": [OURS]}), json!({})] {
        let (code, status) = post(client, TOKENS, json!({ "spec": spec })).await;
        assert_eq!((code, &status["reason"]), (StatusCode::BAD_REQUEST, &json!("BadRequest")), "{status}");
        assert_eq!(status["message"], "token is required for TokenReview in authentication");
    }
}

/// A trap: authenticated, and for our audience.
async fn blank_token_is_the_anonymous_user(accounts: Accounts<'_>, client: &Client, ns: &str) {
    accounts.create_account(ns, "a").await;
    let ours = accounts.create_token(ns, "a", &[OURS]).await;
    for text in [" ", "  ", "\t", " garbage", &format!(" {ours}")] {
        let status = token(client, text, &[OURS]).await;
        let nobody = json!({"username": "system:anonymous", "groups": ["system:unauthenticated"]});
        assert_eq!(status, json!({"authenticated": true, "user": nobody, "audiences": [OURS]}), "{text:?}");
    }
    let followed = token(client, &format!("{ours} garbage"), &[OURS]).await;
    assert_eq!(followed["user"]["username"], user_name(ns, "a"), "what follows a blank does not count");
}

async fn expired_token_is_accepted_for_one_more_minute(accounts: Accounts<'_>, client: &Client, ns: &str) {
    accounts.create_account(ns, "a").await;
    let leeway = i64::try_from(LEEWAY.as_secs()).unwrap();
    // Seconds on either side, as time goes on.
    for (end, believed) in [(30, true), (-5, true), (20 - leeway, true), (-5 - leeway, false), (-3600, false)] {
        let status = token(client, &accounts.create_token_expiring_in(ns, "a", OURS, end).await, &[OURS]).await;
        assert_eq!(status["authenticated"] == true, believed, "{end} s: {status}");
        if !believed {
            is_unauthenticated(&status, "expired");
        }
    }
}

async fn token_ends_with_its_service_account(accounts: Accounts<'_>, client: &Client, ns: &str) {
    accounts.create_account(ns, "a").await;
    let ours = accounts.create_token(ns, "a", &[OURS]).await;
    assert_eq!(token(client, &ours, &[OURS]).await["authenticated"], true);
    accounts.delete_account(ns, "a", &[&ours]).await;
    // The real one believes for 10 s what it has seen.
    let end = Instant::now() + 2 * PROPAGATION_TIMEOUT;
    loop {
        let status = token(client, &ours, &[OURS]).await;
        if status["authenticated"] != true {
            return is_unauthenticated(&status, "");
        }
        assert!(Instant::now() < end, "{status}");
        sleep(PROPAGATION_TIMEOUT / 100).await;
    }
}

/// Asks until the answer is this one.
async fn becomes(client: &Client, spec: &Value, allowed: bool) -> Value {
    let end = Instant::now() + PROPAGATION_TIMEOUT;
    loop {
        let status = review(client, ACCESS, spec).await;
        if status["allowed"] == allowed {
            return status;
        }
        assert!(Instant::now() < end, "{spec}: {status}");
        sleep(PROPAGATION_TIMEOUT / 100).await;
    }
}

fn attributes(ns: &str, verb: &str, group: &str, resource: &str) -> Value {
    let mut attributes = json!({"namespace": ns, "verb": verb, "resource": resource});
    if !group.is_empty() {
        attributes["group"] = json!(group);
    }
    attributes
}

async fn permission_covers_one_verb_one_resource_and_one_namespace(accounts: Accounts<'_>, client: &Client, ns: &str) {
    accounts.create_account(ns, "a").await;
    accounts
        .bind(ns, RbacSubject::Account("a"), &[(Verb::List, ApiResource::Pods), (Verb::Watch, ApiResource::Claims)])
        .await;
    let ask = |attributes: Value| json!({"user": user_name(ns, "a"), "resourceAttributes": attributes});
    let status = becomes(client, &ask(attributes(ns, "list", "", "pods")), true).await;
    assert!(status["reason"].as_str().unwrap().starts_with("RBAC: allowed by RoleBinding"), "{status}");
    let table = [
        (attributes(ns, "watch", "boilerhouse.dev", "boilerhouseclaims"), true),
        (attributes(ns, "watch", "", "pods"), false),
        (attributes(ns, "get", "", "pods"), false),
        (attributes(ns, "list", "boilerhouse.dev", "boilerhouseclaims"), false),
        (attributes(ns, "watch", "", "boilerhouseclaims"), false),
        (attributes(ns, "list", "boilerhouse.dev", "pods"), false),
        (attributes("other", "list", "", "pods"), false),
        (json!({"verb": "list", "resource": "pods"}), false),
    ];
    for (attributes, allowed) in table {
        let status = review(client, ACCESS, &ask(attributes.clone())).await;
        assert_eq!((&status["allowed"], status.get("denied")), (&json!(allowed), None), "{attributes}: {status}");
    }
    let somebody = json!({"user": user_name(ns, "b"), "resourceAttributes": attributes(ns, "list", "", "pods")});
    assert_eq!(review(client, ACCESS, &somebody).await, json!({"allowed": false}));
}

async fn groups_have_permissions(accounts: Accounts<'_>, client: &Client, ns: &str) {
    accounts.bind(ns, RbacSubject::Group("team"), &REQUIRED_ACCESS).await;
    let list = attributes(ns, "list", "", "pods");
    let whole = json!({
        "user": "anybody", "uid": "1", "groups": ["others", "team"], "extra": {"scopes": ["all"]},
        "resourceAttributes": list,
    });
    becomes(client, &whole, true).await;
    becomes(client, &json!({"groups": ["team"], "resourceAttributes": list}), true).await;
    let outside = json!({"user": "anybody", "groups": ["others"], "resourceAttributes": list});
    assert_eq!(review(client, ACCESS, &outside).await["allowed"], false);
    let masters =
        json!({"groups": ["system:masters"], "resourceAttributes": attributes("nowhere", "get", "", "frogs")});
    assert_eq!(review(client, ACCESS, &masters).await["allowed"], true);
}

async fn permissions_can_be_revoked(accounts: Accounts<'_>, client: &Client, ns: &str) {
    accounts.create_account(ns, "a").await;
    accounts.bind(ns, RbacSubject::Account("a"), &REQUIRED_ACCESS).await;
    let ask = json!({"user": user_name(ns, "a"), "resourceAttributes": attributes(ns, "list", "", "pods")});
    becomes(client, &ask, true).await;
    accounts.unbind(ns, RbacSubject::Account("a")).await;
    becomes(client, &ask, false).await;
}

async fn malformed_reviews_are_rejected(_: Accounts<'_>, client: &Client, ns: &str) {
    let nobody = json!({"resourceAttributes": attributes(ns, "list", "", "pods")});
    for (spec, field) in [(nobody, "spec.user"), (json!({"user": "a"}), "spec.resourceAttributes")] {
        let (code, status) = post(client, ACCESS, json!({ "spec": spec })).await;
        assert_eq!((code, &status["reason"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("Invalid")), "{status}");
        assert!(status["message"].as_str().unwrap().contains(field), "{status}");
    }
    for path in [TOKENS, ACCESS] {
        for method in [Method::GET, Method::DELETE] {
            let (code, status) = call(client, method, path, None).await;
            assert_eq!((code, &status["reason"]), (StatusCode::METHOD_NOT_ALLOWED, &json!("MethodNotAllowed")));
        }
        let (code, _) = get(client, &format!("{path}/name")).await;
        assert_eq!(code, StatusCode::NOT_FOUND, "they are not kept");
    }
}

async fn creating_reviews_requires_permission(accounts: Accounts<'_>, _: &Client, _: &str) {
    let unprivileged_client = accounts.unprivileged_client().await;
    for (path, name) in [(TOKENS, "tokenreviews"), (ACCESS, "subjectaccessreviews")] {
        let (code, status) = post(&unprivileged_client, path, json!({"spec": {"token": "a", "user": "a"}})).await;
        assert_eq!((code, &status["reason"]), (StatusCode::FORBIDDEN, &json!("Forbidden")), "{status}");
        let message = status["message"].as_str().unwrap();
        let words = format!("cannot create resource \"{name}\" in API group \"{}\" at the cluster scope", group(path));
        assert!(message.contains(&words), "{message}");
        assert_eq!(status["details"], json!({"group": group(path), "kind": name}));
    }
}

fn group(path: &str) -> &str {
    path.split('/').nth(2).unwrap()
}
