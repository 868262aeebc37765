//! Every promise of `/ws` (protocol.md section 2), one function each, on the real API server and on the simulator.
//!
//! A promise is driven once, and bridges of every kind listen to the same changes: each must tell exactly what the
//! promise says. The two resources are watched apart, so order is promised, and held, within each of them only; in the
//! burst it is one order.

mod connection;
mod outage;
mod stream;

use futures::future::BoxFuture;

use crate::support::{cluster::Cluster, stage::Stage};

/// A promise, on a stage with an empty namespace.
type Promise = for<'a> fn(Stage<'a>) -> BoxFuture<'a, ()>;

macro_rules! promises {
    ($($file:ident::$name:ident),* $(,)?) => { &[$((stringify!($name), |stage| Box::pin($file::$name(stage)))),*] };
}

/// Every promise by its name.
const PROMISES: &[(&str, Promise)] = promises![
    stream::the_current_state_comes_first,
    stream::no_state_comes_where_none_is_asked_for,
    stream::every_transition_is_told_once,
    stream::each_uid_is_a_life,
    stream::what_comes_and_goes_by_its_label,
    stream::others_are_never_seen,
    stream::only_the_types_asked_for,
    connection::what_clients_say_is_ignored,
    connection::a_message_over_64_kib_closes,
    connection::one_connection_has_an_id,
    outage::a_restart_tells_nothing_new,
    outage::a_lost_watch_becomes_the_difference,
    outage::each_uid_is_a_life_though_nobody_watched,
];

#[tokio::test]
async fn promises_hold_on_the_simulator() {
    let mut cluster = Cluster::simulated().await;
    for (name, promise) in PROMISES {
        println!("{name}");
        keep(&mut cluster, promise).await;
    }
}

#[tokio::test]
async fn promises_hold_on_the_real_api_server() {
    let mut cluster = Cluster::real().await;
    for (name, promise) in PROMISES {
        println!("{name}");
        keep(&mut cluster, promise).await;
    }
}

async fn keep(cluster: &mut Cluster, promise: &Promise) {
    cluster.new_namespace().await;
    promise(Stage::new(cluster)).await;
}
