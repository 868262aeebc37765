//! Every promise of `/ws` (docs/protocol.md#boilerhouse-stream), one function each, on the real API server and on the simulator.
//!
//! A promise is driven once, and bridges of every kind listen to the same changes: each must tell exactly what the
//! promise says. The two resources are watched apart, so order is promised, and held, within each of them only; in the
//! burst it is one order.

mod connection;
mod events;
mod outage;

use futures::future::BoxFuture;

use crate::support::{cluster::Cluster, ws_matrix::WsMatrix};

/// A promise, on a stage with an empty namespace.
type Promise = for<'a> fn(WsMatrix<'a>) -> BoxFuture<'a, ()>;

macro_rules! promises {
    ($($file:ident::$name:ident),* $(,)?) => { &[$((stringify!($name), |matrix| Box::pin($file::$name(matrix)))),*] };
}

/// Every promise by its name.
const PROMISES: &[(&str, Promise)] = promises![
    events::current_state_is_sent_first,
    events::snapshot_none_sends_no_state,
    events::every_transition_is_sent_once,
    events::each_uid_is_a_separate_object,
    events::managed_label_adds_and_removes_pods,
    events::unmanaged_and_foreign_objects_are_never_sent,
    events::only_requested_types_are_sent,
    connection::client_messages_are_ignored,
    connection::client_message_over_64_kib_closes_the_stream,
    connection::connection_id_is_derived_from_the_namespace_uid,
    outage::api_server_restart_sends_no_event,
    outage::lost_watch_history_sends_the_diff,
    outage::each_uid_is_a_separate_object_after_an_outage,
];

#[tokio::test]
async fn ws_contract_holds_on_the_simulator() {
    let mut cluster = Cluster::simulated().await;
    for (name, promise) in PROMISES {
        println!("{name}");
        check_promise(&mut cluster, promise).await;
    }
}

#[tokio::test]
async fn ws_contract_holds_on_the_real_api_server() {
    let mut cluster = Cluster::real().await;
    for (name, promise) in PROMISES {
        println!("{name}");
        check_promise(&mut cluster, promise).await;
    }
}

async fn check_promise(cluster: &mut Cluster, promise: &Promise) {
    cluster.new_namespace().await;
    promise(WsMatrix::new(cluster)).await;
}
