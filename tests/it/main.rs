//! The integration tests, in one binary (docs/development.md#test-layers).
// Helpers outside `#[test]` functions are test code too. A failed step in a helper fails the test and reports its line.
// libtest prints the output of helpers with the failed test.
#![allow(clippy::unwrap_used, clippy::print_stdout)]
#![allow(clippy::disallowed_methods, reason = "the tasks of a test end with its runtime")]

mod api_server_outage;
mod auth;
mod browser_cross_origin;
mod cli;
mod client_library;
mod control_plane;
mod dedicated_watchers;
mod demo_command;
mod doctor_command;
mod documents;
mod drain;
mod filters;
mod full_stream_chaos;
mod host_and_origin;
mod http_golden;
mod invented_cursors;
mod kubeconfigs;
mod many_clients;
mod misbehaving_clients;
mod module_layers;
#[cfg(feature = "mqtt")]
mod mqtt;
mod npm_clients_resume;
mod optional_inputs;
#[path = "../oracle/mod.rs"]
mod oracle;
mod port_forward;
mod published_schemas;
mod rbac_least_privilege;
mod read_your_writes;
mod recorded_credentials;
mod recreated_namespace;
mod reference_documents;
mod relay;
mod replica_model;
#[cfg(feature = "nats")]
mod replicas;
mod restart_latency;
mod resume;
mod seeded_full_stream;
mod seeded_ws;
mod sim_conformance;
mod sim_faults;
mod slow_consumers;
mod slow_upstream;
mod stream_endpoints;
mod stream_rate;
mod support;
mod telemetry;
mod tls;
mod token_and_access_reviews;
#[cfg(feature = "otlp")]
mod traces;
mod unread_responses;
mod upstream_answers;
mod webhooks;
mod websocket_echo;
mod ws_contract;
mod ws_golden;
