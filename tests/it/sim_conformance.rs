//! Conformance: behaviors of the Kubernetes API, as functions that run on any API server (docs/kubernetes-behavior.md).
//!
//! Owns the lists of behaviors. `BRIDGE_BEHAVIOR=<name>` selects one of them (docs/development.md#run-one-test).
//!
//! Guarantees: each behavior runs on the simulator, with paused time, and on the real kube-apiserver, so that the two
//! cannot differ unnoticed. Each behavior has a namespace of its own. Behaviors never wait for a fixed time: to show
//! that a watch sends nothing, they make one more change and expect its event next.
//!
//! No behavior schedules a Pod; a behavior that needs a running Pod patches its status. The watch history of the API
//! server must not reach back to version 1, so a real one is restarted once after its first writes.

use std::panic::AssertUnwindSafe;

use boilerhouse_bridge::sim::{Sim, SimConfig};
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use kube::Client;

use crate::support::{accounts::Accounts, control_plane::ControlPlane};

mod client;
mod lists;
mod objects;
mod reviews;
mod selection;
mod watches;

/// A behavior of objects, lists or watches. It gets a client and an empty namespace that exists.
type Behavior = for<'a> fn(&'a Client, &'a str) -> BoxFuture<'a, ()>;

/// A behavior of token and access reviews. It gets the accounts of the cluster, a client and an empty namespace that
/// exists.
type ReviewBehavior = for<'a> fn(Accounts<'a>, &'a Client, &'a str) -> BoxFuture<'a, ()>;

macro_rules! behaviors {
    ($($file:ident::$name:ident),* $(,)?) => {
        &[$((stringify!($name), |client, namespace| Box::pin($file::$name(client, namespace)))),*]
    };
}

macro_rules! review_behaviors {
    ($($file:ident::$name:ident),* $(,)?) => {
        &[$((stringify!($name), |accounts, client, namespace| Box::pin($file::$name(accounts, client, namespace)))),*]
    };
}

/// The behaviors of objects, lists and watches, by name.
const BEHAVIORS: &[(&str, Behavior)] = behaviors![
    objects::created_objects_have_identity,
    objects::errors_are_status_objects,
    lists::pod_list_items_have_no_kind,
    objects::every_write_increases_the_version,
    objects::stale_write_is_a_conflict,
    objects::status_is_a_separate_subresource,
    objects::claims_are_validated_against_their_schema,
    objects::claim_is_deleted_immediately,
    objects::running_pod_is_deleted_in_two_steps,
    objects::unscheduled_pod_is_deleted_immediately,
    lists::label_selector_filters_lists,
    lists::field_selector_filters_by_name,
    lists::pages_of_a_list_share_one_revision,
    lists::past_versions_can_be_listed,
    lists::list_at_a_future_version_times_out,
    lists::contradictory_list_options_are_rejected,
    watches::watch_sends_changes_after_its_version,
    watches::watch_without_version_starts_with_current_objects,
    watches::watch_at_a_future_version_sends_nothing,
    watches::watch_at_an_expired_version_sends_an_error_line,
    watches::selector_watch_sends_objects_that_start_or_stop_matching,
    watches::watch_is_limited_to_its_namespace,
    watches::watch_ends_at_its_timeout,
    watches::final_bookmark_precedes_the_end,
    watches::watch_without_progress_gets_no_bookmark,
    watches::bookmarks_are_sent_only_on_request,
    watches::claim_watches_behave_like_pod_watches,
];

/// The behaviors of token and access reviews, by name.
const REVIEW_BEHAVIORS: &[(&str, ReviewBehavior)] = review_behaviors![
    reviews::token_is_authenticated_for_its_audiences,
    reviews::token_for_another_audience_is_not_authenticated,
    reviews::malformed_token_is_not_authenticated,
    reviews::blank_token_is_the_anonymous_user,
    reviews::expired_token_is_accepted_for_one_more_minute,
    reviews::token_ends_with_its_service_account,
    reviews::permission_covers_one_verb_one_resource_and_one_namespace,
    reviews::own_access_and_the_claims_can_be_read,
    reviews::groups_have_permissions,
    reviews::permissions_can_be_revoked,
    reviews::malformed_reviews_are_rejected,
    reviews::creating_reviews_requires_permission,
];

/// Returns the behaviors of one list that `BRIDGE_BEHAVIOR` selects.
fn selected<B: Copy>(behaviors: &'static [(&'static str, B)]) -> Vec<(&'static str, B)> {
    let names = BEHAVIORS.iter().map(|(name, _)| *name).chain(REVIEW_BEHAVIORS.iter().map(|(name, _)| *name));
    let chosen = selection::check(selection::variable().as_deref(), &names.collect::<Vec<_>>());
    let chosen = chosen.unwrap_or_else(|error| panic!("{error}"));
    behaviors.iter().copied().filter(|(name, _)| chosen.contains(name)).collect()
}

#[tokio::test(start_paused = true)]
async fn simulator_shows_every_behavior() {
    for (index, (name, behavior)) in selected(BEHAVIORS).into_iter().enumerate() {
        let namespace = format!("conformance-{index}");
        let sim = Sim::new(SimConfig { namespaces: vec![namespace.clone(), "other".into()], ..SimConfig::default() });
        println!("{name}");
        behavior(&sim.client(&namespace), &namespace).await;
        assert_eq!(sim.metrics().open(), 0, "{name} left a watch open");
    }
}

#[tokio::test]
async fn real_api_server_shows_every_behavior() {
    let behaviors = selected(BEHAVIORS);
    if behaviors.is_empty() {
        return;
    }
    let mut plane = ControlPlane::start().await;
    plane.kill_api_server();
    plane.start_api_server().await;
    let plane = &plane;
    client::watchable(&plane.client().await).await;
    // All run concurrently, because most of their time they wait for bookmarks and for ends of watches.
    let failed = join_all(behaviors.into_iter().map(|(name, behavior)| async move {
        let (client, namespace) = (plane.client().await, plane.namespace().await);
        let outcome = AssertUnwindSafe(behavior(&client, &namespace)).catch_unwind().await;
        outcome.err().map(|_| name)
    }));
    let failed: Vec<_> = failed.await.into_iter().flatten().collect();
    assert!(failed.is_empty(), "behaviors that the real API server does not show (details above): {failed:?}");
}

#[tokio::test(start_paused = true)]
async fn simulator_shows_every_review_behavior() {
    for (index, (name, behavior)) in selected(REVIEW_BEHAVIORS).into_iter().enumerate() {
        let namespace = format!("conformance-{index}");
        let sim = Sim::new(SimConfig { namespaces: vec![namespace.clone()], ..SimConfig::default() });
        println!("{name}");
        behavior(Accounts::Simulated(&sim), &sim.client(&namespace), &namespace).await;
    }
}

#[tokio::test]
async fn real_api_server_shows_every_review_behavior() {
    let behaviors = selected(REVIEW_BEHAVIORS);
    if behaviors.is_empty() {
        return;
    }
    let plane = ControlPlane::shared().await;
    let failed = join_all(behaviors.into_iter().map(|(name, behavior)| async move {
        let (client, namespace) = (plane.client().await, plane.namespace().await);
        let outcome = AssertUnwindSafe(behavior(Accounts::Real(plane), &client, &namespace)).catch_unwind().await;
        outcome.err().map(|_| name)
    }));
    let failed: Vec<_> = failed.await.into_iter().flatten().collect();
    assert!(failed.is_empty(), "behaviors that the real API server does not show (details above): {failed:?}");
}
