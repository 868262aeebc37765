//! What tokens and users are answered to be, as functions that run against any API server: [`BEHAVIOURS`].

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

use super::wire::*;
use crate::support::people::{KNOWN_BOUND, NEEDED, People, Who, user};
use crate::support::plane::ControlPlane;

const TOKENS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const ACCESS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
const OURS: &str = "boilerhouse-bridge";

/// A behaviour, pointed at people, a client and an empty namespace that exists.
type Behaviour = for<'a> fn(People<'a>, &'a Client, &'a str) -> BoxFuture<'a, ()>;

macro_rules! behaviours {
    ($($name:ident),* $(,)?) => {
        &[$((stringify!($name), |people, client, namespace| Box::pin($name(people, client, namespace)))),*]
    };
}

const BEHAVIOURS: &[(&str, Behaviour)] = behaviours![
    a_token_is_somebodys_for_its_audiences,
    a_token_for_others_is_nobodys,
    what_is_no_token_is_nobodys,
    a_blank_token_is_the_anonymous_users,
    a_token_is_believed_a_minute_past_its_end,
    a_token_ends_with_its_account,
    a_right_is_one_verb_on_one_resource_in_one_namespace,
    a_group_has_rights,
    rights_can_be_taken_back,
    questions_without_sense_are_refused,
    reviewing_is_a_right,
];

#[tokio::test(start_paused = true)]
async fn the_simulator_reviews() {
    for (index, (name, behaviour)) in BEHAVIOURS.iter().enumerate() {
        let namespace = format!("truth-{index}");
        let sim = Sim::new(SimConfig { namespaces: vec![namespace.clone()], ..SimConfig::default() });
        println!("{name}");
        behaviour(People::Simulated(&sim), &sim.client(&namespace), &namespace).await;
    }
}

#[tokio::test]
async fn the_real_api_server_reviews() {
    let plane = ControlPlane::shared().await;
    let failed = join_all(BEHAVIOURS.iter().map(|(name, behaviour)| async move {
        let (client, namespace) = (plane.client().await, plane.namespace().await);
        let outcome = AssertUnwindSafe(behaviour(People::Real(plane), &client, &namespace)).catch_unwind().await;
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
fn is_nobodys(status: &Value, why: &str) {
    assert_eq!((status.get("authenticated"), status.get("audiences")), (None, None), "{status}");
    assert_eq!(status["user"], json!({}), "{status}");
    assert!(status["error"].as_str().unwrap().contains(why), "{status}");
}

async fn a_token_is_somebodys_for_its_audiences(people: People<'_>, client: &Client, ns: &str) {
    let uid = people.account(ns, "a").await;
    let ours = people.token(ns, "a", &[OURS, "other"]).await;
    let status = token(client, &ours, &[OURS]).await;
    assert_eq!((&status["authenticated"], &status["audiences"]), (&json!(true), &json!([OURS])), "{status}");
    assert_eq!(status.get("error"), None);
    let who = &status["user"];
    assert_eq!((&who["username"], &who["uid"]), (&json!(user(ns, "a")), &json!(uid)));
    let groups = json!(["system:serviceaccounts", format!("system:serviceaccounts:{ns}"), "system:authenticated"]);
    assert_eq!(who["groups"], groups);
    let id = who["extra"]["authentication.kubernetes.io/credential-id"][0].as_str();
    assert!(id.is_some_and(|id| id.starts_with("JTI=")), "{who}");
    let several = token(client, &ours, &["nobody", "other", OURS]).await;
    assert_eq!(several["audiences"], json!(["other", OURS]), "those that both name");
    let own = people.token(ns, "a", &[]).await;
    assert_eq!(token(client, &own, &[]).await["audiences"], json!([OWN_AUDIENCE]));
}

async fn a_token_for_others_is_nobodys(people: People<'_>, client: &Client, ns: &str) {
    people.account(ns, "a").await;
    let (ours, own) = (people.token(ns, "a", &[OURS]).await, people.token(ns, "a", &[]).await);
    let why = format!("token audiences [\"{OURS}\"] is invalid for the target audiences [\"other\" \"third\"]");
    is_nobodys(&token(client, &ours, &["other", "third"]).await, &why);
    is_nobodys(&token(client, &ours, &[]).await, OWN_AUDIENCE);
    is_nobodys(&token(client, &own, &[OURS]).await, OWN_AUDIENCE);
}

async fn what_is_no_token_is_nobodys(_: People<'_>, client: &Client, _: &str) {
    for text in ["garbage", "a.b.c", "garbage ", "\tgarbage", "gar bage", "é"] {
        is_nobodys(&token(client, text, &[OURS]).await, "invalid bearer token");
    }
    for spec in [json!({"token": ""}), json!({"audiences": [OURS]}), json!({})] {
        let (code, status) = post(client, TOKENS, json!({ "spec": spec })).await;
        assert_eq!((code, &status["reason"]), (StatusCode::BAD_REQUEST, &json!("BadRequest")), "{status}");
        assert_eq!(status["message"], "token is required for TokenReview in authentication");
    }
}

/// A trap: authenticated, and for our audience.
async fn a_blank_token_is_the_anonymous_users(people: People<'_>, client: &Client, ns: &str) {
    people.account(ns, "a").await;
    let ours = people.token(ns, "a", &[OURS]).await;
    for text in [" ", "  ", "\t", " garbage", &format!(" {ours}")] {
        let status = token(client, text, &[OURS]).await;
        let nobody = json!({"username": "system:anonymous", "groups": ["system:unauthenticated"]});
        assert_eq!(status, json!({"authenticated": true, "user": nobody, "audiences": [OURS]}), "{text:?}");
    }
    let followed = token(client, &format!("{ours} garbage"), &[OURS]).await;
    assert_eq!(followed["user"]["username"], user(ns, "a"), "what follows a blank does not count");
}

async fn a_token_is_believed_a_minute_past_its_end(people: People<'_>, client: &Client, ns: &str) {
    people.account(ns, "a").await;
    let leeway = i64::try_from(LEEWAY.as_secs()).unwrap();
    // Seconds on either side, as time goes on.
    for (end, believed) in [(30, true), (-5, true), (20 - leeway, true), (-5 - leeway, false), (-3600, false)] {
        let status = token(client, &people.token_ending(ns, "a", OURS, end).await, &[OURS]).await;
        assert_eq!(status["authenticated"] == true, believed, "{end} s: {status}");
        if !believed {
            is_nobodys(&status, "expired");
        }
    }
}

async fn a_token_ends_with_its_account(people: People<'_>, client: &Client, ns: &str) {
    people.account(ns, "a").await;
    let ours = people.token(ns, "a", &[OURS]).await;
    assert_eq!(token(client, &ours, &[OURS]).await["authenticated"], true);
    people.remove(ns, "a", &[&ours]).await;
    // The real one believes for 10 s what it has seen.
    let end = Instant::now() + 2 * KNOWN_BOUND;
    loop {
        let status = token(client, &ours, &[OURS]).await;
        if status["authenticated"] != true {
            return is_nobodys(&status, "");
        }
        assert!(Instant::now() < end, "{status}");
        sleep(KNOWN_BOUND / 100).await;
    }
}

/// Asks until the answer is this one.
async fn becomes(client: &Client, spec: &Value, allowed: bool) -> Value {
    let end = Instant::now() + KNOWN_BOUND;
    loop {
        let status = review(client, ACCESS, spec).await;
        if status["allowed"] == allowed {
            return status;
        }
        assert!(Instant::now() < end, "{spec}: {status}");
        sleep(KNOWN_BOUND / 100).await;
    }
}

fn attributes(ns: &str, verb: &str, group: &str, resource: &str) -> Value {
    let mut attributes = json!({"namespace": ns, "verb": verb, "resource": resource});
    if !group.is_empty() {
        attributes["group"] = json!(group);
    }
    attributes
}

async fn a_right_is_one_verb_on_one_resource_in_one_namespace(people: People<'_>, client: &Client, ns: &str) {
    people.account(ns, "a").await;
    people.bind(ns, Who::Account("a"), &[(Verb::List, ApiResource::Pods), (Verb::Watch, ApiResource::Claims)]).await;
    let ask = |attributes: Value| json!({"user": user(ns, "a"), "resourceAttributes": attributes});
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
    let somebody = json!({"user": user(ns, "b"), "resourceAttributes": attributes(ns, "list", "", "pods")});
    assert_eq!(review(client, ACCESS, &somebody).await, json!({"allowed": false}));
}

async fn a_group_has_rights(people: People<'_>, client: &Client, ns: &str) {
    people.bind(ns, Who::Group("team"), &NEEDED).await;
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

async fn rights_can_be_taken_back(people: People<'_>, client: &Client, ns: &str) {
    people.account(ns, "a").await;
    people.bind(ns, Who::Account("a"), &NEEDED).await;
    let ask = json!({"user": user(ns, "a"), "resourceAttributes": attributes(ns, "list", "", "pods")});
    becomes(client, &ask, true).await;
    people.unbind(ns, Who::Account("a")).await;
    becomes(client, &ask, false).await;
}

async fn questions_without_sense_are_refused(_: People<'_>, client: &Client, ns: &str) {
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

async fn reviewing_is_a_right(people: People<'_>, _: &Client, _: &str) {
    let stranger = people.stranger().await;
    for (path, name) in [(TOKENS, "tokenreviews"), (ACCESS, "subjectaccessreviews")] {
        let (code, status) = post(&stranger, path, json!({"spec": {"token": "a", "user": "a"}})).await;
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
