//! What Kubernetes does, as functions that run against any API server: [`BEHAVIOURS`].
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

use crate::support::plane::ControlPlane;

mod lists;
mod objects;
mod reviews;
mod watches;
mod wire;

/// A behaviour, pointed at a client and an empty namespace that exists.
pub(crate) type Behaviour = for<'a> fn(&'a Client, &'a str) -> BoxFuture<'a, ()>;

macro_rules! behaviours {
    ($($file:ident::$name:ident),* $(,)?) => {
        &[$((stringify!($name), |client, namespace| Box::pin($file::$name(client, namespace)))),*]
    };
}

/// Every behaviour by its name.
pub(crate) const BEHAVIOURS: &[(&str, Behaviour)] = behaviours![
    objects::objects_are_born_with_identity,
    objects::refusals_are_status_objects,
    lists::a_list_has_no_kinds_in_it_for_pods,
    objects::every_write_moves_the_version,
    objects::a_stale_writer_gets_a_conflict,
    objects::status_is_a_part_of_its_own,
    objects::claims_are_held_against_their_schema,
    objects::a_claim_is_deleted_at_once,
    objects::a_running_pod_is_deleted_in_two_steps,
    objects::a_pod_that_nobody_runs_is_deleted_at_once,
    lists::labels_select,
    lists::a_field_selector_selects_by_name,
    lists::pages_show_one_revision,
    lists::the_past_can_be_listed,
    lists::a_list_in_the_future_times_out,
    lists::list_options_that_contradict_are_refused,
    watches::a_watch_tells_what_came_after,
    watches::a_watch_without_version_begins_with_the_state,
    watches::a_watch_in_the_future_is_silent,
    watches::a_watch_from_too_long_ago_says_so_in_a_line,
    watches::a_selector_watch_tells_of_coming_and_going,
    watches::a_watch_keeps_to_its_namespace,
    watches::a_watch_ends_when_it_asked_to,
    watches::a_last_bookmark_comes_before_the_end,
    watches::a_watch_that_nothing_moved_gets_no_bookmark,
    watches::bookmarks_come_only_when_asked_for,
    watches::claims_are_watched_like_pods,
];

#[tokio::test(start_paused = true)]
async fn the_simulator_behaves() {
    for (index, (name, behaviour)) in BEHAVIOURS.iter().enumerate() {
        let namespace = format!("truth-{index}");
        let sim = Sim::new(SimConfig { namespaces: vec![namespace.clone(), "other".into()], ..SimConfig::default() });
        println!("{name}");
        behaviour(&sim.client(&namespace), &namespace).await;
        assert_eq!(sim.metrics().open(), 0, "{name} left a watch open");
    }
}

#[tokio::test]
async fn the_real_api_server_behaves() {
    let mut plane = ControlPlane::start().await;
    plane.kill_api_server();
    plane.start_api_server().await;
    let plane = &plane;
    wire::watchable(&plane.client().await).await;
    // All at once: most of their time they wait, for silence or for a bookmark.
    let failed = join_all(BEHAVIOURS.iter().map(|(name, behaviour)| async move {
        let (client, namespace) = (plane.client().await, plane.namespace().await);
        let outcome = AssertUnwindSafe(behaviour(&client, &namespace)).catch_unwind().await;
        outcome.err().map(|_| *name)
    }));
    let failed: Vec<_> = failed.await.into_iter().flatten().collect();
    assert!(failed.is_empty(), "what the real one does otherwise (each said why above): {failed:?}");
}
