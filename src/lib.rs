//! `boilerhouse-bridge` watches a Boilerhouse platform's Kubernetes objects and sends small JSON events over WebSocket
//! and SSE. Snapshot GETs return the current state.
//!
//! # Data flow
//!
//! Data flows in one direction:
//!
//! ```text
//!  Kubernetes API server
//!    │ list, watch                                 ┌──────────────── feed ────────────────┐
//!    ▼                                             │                                      │
//!  source/hub ──► source/decode ──► feed::Writer ─►│ inventory    current state           │
//!  (one list-and-watch    (JSON → view)            │ ring log     changes (old, new view) │
//!   per resource)                                  └──────────────────┬───────────────────┘
//!                                                                     │ log entry + projection
//!                                                   projection cache: render and frame once
//!                                                                     │ bytes, shared by equal projections
//!                                          ┌──────────────────────────┼──────────────────────────┐
//!                                          ▼                          ▼                          ▼
//!                                      WebSocket                     SSE                   snapshot GETs
//! ```
//!
//! A dedicated watcher of one `/ws` connection writes to a feed of its own, which uses the same rendering and
//! transport.
//!
//! # Reading order
//!
//! | Module | Question |
//! |---|---|
//! | [`event`] | What is an event, and which client receives it? Start at [`event::render`]. |
//! | [`ring`], [`feed`] | In which order are changes stored, and how far has each subscription read? |
//! | [`wire`] | Which bytes does a client receive? |
//! | [`validate`], [`backbone`] | Which telemetry and MQTT messages are accepted, and where do they go? |
//! | [`source`] | How does the bridge read Kubernetes, and what does it do when a watch fails? |
//! | [`http`] | How are clients accepted, authenticated and served? |
//! | [`cli`] | Which flags exist, and how are the modules combined? |
//! | [`client`] | How does a Rust program read the events of a bridge? |
//! | [`forward`] | How are events delivered to webhooks? |
//! | [`relay`] | How is the stream of another server sent on to many clients? |
//! | [`doctor`] | What is wrong with a configuration, a cluster or a running bridge? |
//! | [`tasks`] | Which tasks run, and how does the process shut down? |
//! | [`traces`] | Which spans does a request have, and how do they reach a collector? |
//! | [`schema`] | Which schemas of the messages and bodies does the bridge publish? |
//! | [`api`], [`sim`] | Which Kubernetes types does the project define? How is a cluster simulated? |
//!
//! `docs/architecture.md#data-flow` follows one change through these modules.
//! `docs/development.md#add-an-event-type` lists the files to change for a new event type.
//!
//! # Rules that the tests check
//!
//! - Imports follow the data: `{event, wire, ring} ← feed ← {source, http} ← cli`, and `client ← relay ← http`. `source`
//!   and `http` meet only at `feed`, and no files import each other in a cycle (`docs/architecture.md#module-layers`,
//!   `tests/it/module_layers.rs`).
//! - One resourceVersion is one log entry. The events of a client are a pure function of the log entry and the
//!   projection.
//! - A client is informed of every gap: by `state.initial` with a reason, or by `coalesced`
//!   (`docs/guarantees.md#guarantees`).
//! - Every buffer, queue, retry and wait has a bound with a name (`docs/limits.md`).

#[cfg(feature = "server")]
pub mod api;
#[cfg(feature = "server")]
pub mod backbone;
#[cfg(any(feature = "mqtt", feature = "nats"))]
pub mod broker;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "server")]
pub mod doctor;
#[cfg(feature = "server")]
pub mod event;
#[cfg(feature = "server")]
pub mod feed;
#[cfg(feature = "server")]
pub mod forward;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "server")]
mod https_client;
#[cfg(feature = "server")]
pub mod relay;
#[cfg(feature = "server")]
pub mod ring;
#[cfg(feature = "server")]
pub mod schema;
#[cfg(feature = "server")]
pub mod sim;
#[cfg(feature = "server")]
pub mod source;
#[cfg(feature = "server")]
pub mod tasks;
#[cfg(all(feature = "server", any(test, feature = "test-support")))]
pub mod test_support;
#[cfg(feature = "server")]
pub mod traces;
#[cfg(feature = "server")]
pub mod validate;
#[cfg(feature = "server")]
mod weak_table;
#[cfg(feature = "server")]
pub mod wire;
#[cfg(feature = "server")]
mod x509;
