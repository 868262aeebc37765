//! The contract of `/ws` (docs/protocol.md#boilerhouse-stream), on the real API server and on the simulator.
//!
//! Owns the list of rules; each rule is one function.
//!
//! Guarantees: a rule makes its changes once, and clients of bridges in every watch mode receive the same changes. Each
//! client must receive exactly the expected messages. The two resources are watched separately, so the order is
//! defined, and checked, within each resource only. The messages of the current state at the start have one order.

mod connection;
mod events;
mod outage;

use futures::future::BoxFuture;

use crate::support::{cluster::Cluster, ws_matrix::WsMatrix};

/// A rule of the contract. It gets a fixture with an empty namespace.
type Rule = for<'a> fn(WsMatrix<'a>) -> BoxFuture<'a, ()>;

macro_rules! rules {
    ($($file:ident::$name:ident),* $(,)?) => { &[$((stringify!($name), |matrix| Box::pin($file::$name(matrix)))),*] };
}

/// The rules by name.
const RULES: &[(&str, Rule)] = rules![
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
    for (name, rule) in RULES {
        println!("{name}");
        check_rule(&mut cluster, rule).await;
    }
}

#[tokio::test]
async fn ws_contract_holds_on_the_real_api_server() {
    let mut cluster = Cluster::real().await;
    for (name, rule) in RULES {
        println!("{name}");
        check_rule(&mut cluster, rule).await;
    }
}

async fn check_rule(cluster: &mut Cluster, rule: &Rule) {
    cluster.new_namespace().await;
    rule(WsMatrix::new(cluster)).await;
}
