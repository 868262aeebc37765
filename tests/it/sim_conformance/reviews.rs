//! Behaviors of TokenReviews and SubjectAccessReviews.

use http::{Method, StatusCode};
use kube::Client;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use boilerhouse_bridge::sim::{
    ApiResource, Verb,
    review::{LEEWAY, OWN_AUDIENCE},
};

use super::client::*;
use crate::support::accounts::{Accounts, PROPAGATION_TIMEOUT, REQUIRED_ACCESS, RbacSubject, user_name};

/// The path of TokenReviews.
const TOKENS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// The path of SubjectAccessReviews.
const ACCESS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
/// The audience of the bridge.
const AUDIENCE: &str = "boilerhouse-bridge";

/// Creates a review and returns its status.
async fn review(client: &Client, path: &str, spec: &Value) -> Value {
    let (code, review) = post(client, path, json!({ "spec": spec })).await;
    assert_eq!(code, StatusCode::CREATED, "{review}");
    let (group, kind) = match path {
        TOKENS => ("authentication.k8s.io/v1", "TokenReview"),
        _ => ("authorization.k8s.io/v1", "SubjectAccessReview"),
    };
    assert_eq!((&review["apiVersion"], &review["kind"]), (&json!(group), &json!(kind)));
    assert_eq!(&review["spec"], spec, "expected the spec of the request in the response");
    review["status"].clone()
}

/// Creates a TokenReview and returns its status.
async fn token(client: &Client, token: &str, audiences: &[&str]) -> Value {
    let spec = match audiences {
        [] => json!({ "token": token }),
        _ => json!({ "token": token, "audiences": audiences }),
    };
    review(client, TOKENS, &spec).await
}

/// Expects that a TokenReview is negative: the fields of a positive one are absent, and the error contains `reason`.
fn assert_unauthenticated(status: &Value, reason: &str) {
    assert_eq!((status.get("authenticated"), status.get("audiences")), (None, None), "{status}");
    assert_eq!(status["user"], json!({}), "{status}");
    assert!(status["error"].as_str().unwrap().contains(reason), "{status}");
}

pub(super) async fn token_is_authenticated_for_its_audiences(accounts: Accounts<'_>, client: &Client, ns: &str) {
    let uid = accounts.create_account(ns, "a").await;
    let bridge_token = accounts.create_token(ns, "a", &[AUDIENCE, "other"]).await;
    let status = token(client, &bridge_token, &[AUDIENCE]).await;
    assert_eq!((&status["authenticated"], &status["audiences"]), (&json!(true), &json!([AUDIENCE])), "{status}");
    assert_eq!(status.get("error"), None);
    let user = &status["user"];
    assert_eq!((&user["username"], &user["uid"]), (&json!(user_name(ns, "a")), &json!(uid)));
    let groups = json!(["system:serviceaccounts", format!("system:serviceaccounts:{ns}"), "system:authenticated"]);
    assert_eq!(user["groups"], groups);
    let id = user["extra"]["authentication.kubernetes.io/credential-id"][0].as_str();
    assert!(id.is_some_and(|id| id.starts_with("JTI=")), "{user}");
    let several = token(client, &bridge_token, &["third", "other", AUDIENCE]).await;
    assert_eq!(
        several["audiences"],
        json!(["other", AUDIENCE]),
        "expected the audiences that both the token and the review contain"
    );
    let own = accounts.create_token(ns, "a", &[]).await;
    assert_eq!(token(client, &own, &[]).await["audiences"], json!([OWN_AUDIENCE]));
}

pub(super) async fn token_for_another_audience_is_not_authenticated(accounts: Accounts<'_>, client: &Client, ns: &str) {
    accounts.create_account(ns, "a").await;
    let (bridge_token, own) =
        (accounts.create_token(ns, "a", &[AUDIENCE]).await, accounts.create_token(ns, "a", &[]).await);
    let reason = format!("token audiences [\"{AUDIENCE}\"] is invalid for the target audiences [\"other\" \"third\"]");
    assert_unauthenticated(&token(client, &bridge_token, &["other", "third"]).await, &reason);
    assert_unauthenticated(&token(client, &bridge_token, &[]).await, OWN_AUDIENCE);
    assert_unauthenticated(&token(client, &own, &[AUDIENCE]).await, OWN_AUDIENCE);
}

pub(super) async fn malformed_token_is_not_authenticated(_: Accounts<'_>, client: &Client, _: &str) {
    for text in ["garbage", "a.b.c", "garbage ", "\tgarbage", "gar bage", "é"] {
        assert_unauthenticated(&token(client, text, &[AUDIENCE]).await, "invalid bearer token");
    }
    for spec in [json!({"token": ""}), json!({"audiences": [AUDIENCE]}), json!({})] {
        let (code, status) = post(client, TOKENS, json!({ "spec": spec })).await;
        assert_eq!((code, &status["reason"]), (StatusCode::BAD_REQUEST, &json!("BadRequest")), "{status}");
        assert_eq!(status["message"], "token is required for TokenReview in authentication");
    }
}

/// The response is positive, and for the requested audience.
pub(super) async fn blank_token_is_the_anonymous_user(accounts: Accounts<'_>, client: &Client, ns: &str) {
    accounts.create_account(ns, "a").await;
    let bridge_token = accounts.create_token(ns, "a", &[AUDIENCE]).await;
    for text in [" ", "  ", "\t", " garbage", &format!(" {bridge_token}")] {
        let status = token(client, text, &[AUDIENCE]).await;
        let anonymous = json!({"username": "system:anonymous", "groups": ["system:unauthenticated"]});
        assert_eq!(status, json!({"authenticated": true, "user": anonymous, "audiences": [AUDIENCE]}), "{text:?}");
    }
    let followed = token(client, &format!("{bridge_token} garbage"), &[AUDIENCE]).await;
    assert_eq!(
        followed["user"]["username"],
        user_name(ns, "a"),
        "expected the API server to ignore the text after a blank"
    );
}

pub(super) async fn expired_token_is_accepted_for_one_more_minute(accounts: Accounts<'_>, client: &Client, ns: &str) {
    accounts.create_account(ns, "a").await;
    let leeway = i64::try_from(LEEWAY.as_secs()).unwrap();
    // Seconds until the expiry. Margins of at least 5 s, in the direction in which time passes, allow for a slow machine.
    for (expiry, accepted) in [(30, true), (-5, true), (20 - leeway, true), (-5 - leeway, false), (-3600, false)] {
        let status =
            token(client, &accounts.create_token_expiring_in(ns, "a", AUDIENCE, expiry).await, &[AUDIENCE]).await;
        assert_eq!(status["authenticated"] == true, accepted, "{expiry} s: {status}");
        if !accepted {
            assert_unauthenticated(&status, "expired");
        }
    }
}

pub(super) async fn token_ends_with_its_service_account(accounts: Accounts<'_>, client: &Client, ns: &str) {
    accounts.create_account(ns, "a").await;
    let bridge_token = accounts.create_token(ns, "a", &[AUDIENCE]).await;
    assert_eq!(token(client, &bridge_token, &[AUDIENCE]).await["authenticated"], true);
    accounts.delete_account(ns, "a", &[&bridge_token]).await;
    // The real API server caches a positive result for 10 s.
    let end = Instant::now() + 2 * PROPAGATION_TIMEOUT;
    loop {
        let status = token(client, &bridge_token, &[AUDIENCE]).await;
        if status["authenticated"] != true {
            return assert_unauthenticated(&status, "");
        }
        assert!(Instant::now() < end, "the token is still accepted: {status}");
        sleep(PROPAGATION_TIMEOUT / 100).await;
    }
}

/// Repeats a SubjectAccessReview until the result is `allowed`, and returns its status.
async fn wait_allowed(client: &Client, spec: &Value, allowed: bool) -> Value {
    let end = Instant::now() + PROPAGATION_TIMEOUT;
    loop {
        let status = review(client, ACCESS, spec).await;
        if status["allowed"] == allowed {
            return status;
        }
        assert!(Instant::now() < end, "expected allowed={allowed} for {spec}: {status}");
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

pub(super) async fn permission_covers_one_verb_one_resource_and_one_namespace(
    accounts: Accounts<'_>,
    client: &Client,
    ns: &str,
) {
    accounts.create_account(ns, "a").await;
    accounts
        .bind(ns, RbacSubject::Account("a"), &[(Verb::List, ApiResource::Pods), (Verb::Watch, ApiResource::Claims)])
        .await;
    let spec = |attributes: Value| json!({"user": user_name(ns, "a"), "resourceAttributes": attributes});
    let status = wait_allowed(client, &spec(attributes(ns, "list", "", "pods")), true).await;
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
        let status = review(client, ACCESS, &spec(attributes.clone())).await;
        assert_eq!((&status["allowed"], status.get("denied")), (&json!(allowed), None), "{attributes}: {status}");
    }
    let other = json!({"user": user_name(ns, "b"), "resourceAttributes": attributes(ns, "list", "", "pods")});
    assert_eq!(review(client, ACCESS, &other).await, json!({"allowed": false}));
}

pub(super) async fn groups_have_permissions(accounts: Accounts<'_>, client: &Client, ns: &str) {
    accounts.bind(ns, RbacSubject::Group("team"), &REQUIRED_ACCESS).await;
    let list = attributes(ns, "list", "", "pods");
    let complete = json!({
        "user": "jane", "uid": "1", "groups": ["others", "team"], "extra": {"scopes": ["all"]},
        "resourceAttributes": list,
    });
    wait_allowed(client, &complete, true).await;
    wait_allowed(client, &json!({"groups": ["team"], "resourceAttributes": list}), true).await;
    let not_in_group = json!({"user": "jane", "groups": ["others"], "resourceAttributes": list});
    assert_eq!(review(client, ACCESS, &not_in_group).await["allowed"], false);
    let masters =
        json!({"groups": ["system:masters"], "resourceAttributes": attributes("missing", "get", "", "unknown")});
    assert_eq!(review(client, ACCESS, &masters).await["allowed"], true);
}

pub(super) async fn permissions_can_be_revoked(accounts: Accounts<'_>, client: &Client, ns: &str) {
    accounts.create_account(ns, "a").await;
    accounts.bind(ns, RbacSubject::Account("a"), &REQUIRED_ACCESS).await;
    let spec = json!({"user": user_name(ns, "a"), "resourceAttributes": attributes(ns, "list", "", "pods")});
    wait_allowed(client, &spec, true).await;
    accounts.unbind(ns, RbacSubject::Account("a")).await;
    wait_allowed(client, &spec, false).await;
}

pub(super) async fn malformed_reviews_are_rejected(_: Accounts<'_>, client: &Client, ns: &str) {
    let without_user = json!({"resourceAttributes": attributes(ns, "list", "", "pods")});
    for (spec, field) in [(without_user, "spec.user"), (json!({"user": "a"}), "spec.resourceAttributes")] {
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
        assert_eq!(code, StatusCode::NOT_FOUND, "expected that reviews are not stored");
    }
}

pub(super) async fn creating_reviews_requires_permission(accounts: Accounts<'_>, _: &Client, _: &str) {
    let unprivileged_client = accounts.unprivileged_client().await;
    for (path, name) in [(TOKENS, "tokenreviews"), (ACCESS, "subjectaccessreviews")] {
        let (code, status) = post(&unprivileged_client, path, json!({"spec": {"token": "a", "user": "a"}})).await;
        assert_eq!((code, &status["reason"]), (StatusCode::FORBIDDEN, &json!("Forbidden")), "{status}");
        let message = status["message"].as_str().unwrap();
        let expected =
            format!("cannot create resource \"{name}\" in API group \"{}\" at the cluster scope", group(path));
        assert!(message.contains(&expected), "{message}");
        assert_eq!(status["details"], json!({"group": group(path), "kind": name}));
    }
}

fn group(path: &str) -> &str {
    path.split('/').nth(2).unwrap()
}

/// What `doctor` reads: the version, the caller's own access and name, and the resource of the claims with its schema.
pub(super) async fn own_access_and_the_claims_can_be_read(_: Accounts<'_>, client: &Client, ns: &str) {
    let get = async |path: &str| {
        let request = http::Request::get(path).body(Vec::new()).unwrap();
        client.request::<Value>(request).await.unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    assert!(get("/version").await["gitVersion"].as_str().unwrap().starts_with("v1."));
    let attributes = json!({"namespace": ns, "verb": "list", "group": "", "resource": "pods"});
    let spec = json!({"spec": {"resourceAttributes": attributes}});
    let (code, access) = post(client, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", spec).await;
    assert_eq!((code, &access["status"]["allowed"]), (StatusCode::CREATED, &json!(true)), "{access}");
    let (code, user) = post(client, "/apis/authentication.k8s.io/v1/selfsubjectreviews", json!({})).await;
    assert!(code == StatusCode::CREATED && user["status"]["userInfo"]["username"].is_string(), "{user}");

    let resources = get("/apis/boilerhouse.dev/v1alpha1").await;
    let claims = resources["resources"].as_array().unwrap();
    let claims = claims.iter().find(|resource| resource["name"] == "boilerhouseclaims").unwrap();
    assert_eq!(claims["namespaced"], true, "{claims}");
    for verb in ["list", "watch"] {
        assert!(claims["verbs"].as_array().unwrap().contains(&json!(verb)), "{claims}");
    }
    let document = get("/openapi/v3/apis/boilerhouse.dev/v1alpha1").await;
    let claim = &document["components"]["schemas"]["dev.boilerhouse.v1alpha1.BoilerhouseClaim"];
    assert_eq!(claim["properties"]["spec"]["properties"]["tenantId"]["type"], "string", "{claim}");
}
