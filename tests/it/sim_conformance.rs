//! What Kubernetes does, as functions that run against any API server: [`BEHAVIORS`].
//!
//! Run against the simulator (with paused time) and against the real kube-apiserver, so that the two cannot drift
//! apart. Each behaviour has a namespace of its own, and says what is true on both. A pod is never
//! scheduled: whoever wants it to live patches its status. The watch history of the server must not reach back to
//! version 1: a real one is to be restarted once after its first writes.

use std::panic::AssertUnwindSafe;

use boilerhouse_bridge::sim::{Sim, SimConfig};
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use kube::Client;

use crate::support::control_plane::ControlPlane;

mod client;
mod lists;
mod objects;
mod reviews;
mod watches;

/// A behaviour, pointed at a client and an empty namespace that exists.
pub(crate) type Behavior = for<'a> fn(&'a Client, &'a str) -> BoxFuture<'a, ()>;

macro_rules! behaviors {
    ($($file:ident::$name:ident),* $(,)?) => {
        &[$((stringify!($name), |client, namespace| Box::pin($file::$name(client, namespace)))),*]
    };
}

/// Every behaviour by its name.
pub(crate) const BEHAVIORS: &[(&str, Behavior)] = behaviors![
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

#[tokio::test(start_paused = true)]
async fn simulator_shows_every_behavior() {
    for (index, (name, behavior)) in BEHAVIORS.iter().enumerate() {
        let namespace = format!("truth-{index}");
        let sim = Sim::new(SimConfig { namespaces: vec![namespace.clone(), "other".into()], ..SimConfig::default() });
        println!("{name}");
        behavior(&sim.client(&namespace), &namespace).await;
        assert_eq!(sim.metrics().open(), 0, "{name} left a watch open");
    }
}

#[tokio::test]
async fn real_api_server_shows_every_behavior() {
    let mut plane = ControlPlane::start().await;
    plane.kill_api_server();
    plane.start_api_server().await;
    let plane = &plane;
    client::watchable(&plane.client().await).await;
    // All at once: most of their time they wait, for silence or for a bookmark.
    let failed = join_all(BEHAVIORS.iter().map(|(name, behavior)| async move {
        let (client, namespace) = (plane.client().await, plane.namespace().await);
        let outcome = AssertUnwindSafe(behavior(&client, &namespace)).catch_unwind().await;
        outcome.err().map(|_| *name)
    }));
    let failed: Vec<_> = failed.await.into_iter().flatten().collect();
    assert!(failed.is_empty(), "what the real one does otherwise (each said why above): {failed:?}");
}
