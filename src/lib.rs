//! boilerhouse-bridge: what happens to a Boilerhouse platform's Kubernetes objects, as a live stream of JSON events.
//!
//! Facts flow one way, left to right:
//!
//! ```text
//!  Kubernetes ─► source/hub ─► source/decode ─► Writer  ─► feed: inventory + log of steps ─► lens ─┬─► WebSocket
//!                                                           (old view, new view)       (render,    ├─► SSE
//!                                                                                       frame)     └─► snapshot GETs
//! ```
//!
//! Reading order: [`event`] (what is said), [`ring`] and [`feed`] (in which order, and who has read how far), [`wire`]
//! (how it looks in bytes), [`source`] (where facts come from), [`http`] (who listens), [`cli`] (how it is put
//! together), [`tasks`] (who runs), [`sim`] (a cluster for demos and tests).
//!
//! Always true, and tested in `tests/it`:
//! - Imports follow the data: `event ← wire ← feed ← {source, http}`, `ring ← feed`, `* ← cli`; source and http meet only
//!   at feed (`tests/it/module_layers.rs`).
//! - One resourceVersion is one step of the log. What a client sees of it is a pure function of step and lens.
//! - A client is told of every gap: by `state.initial` with a reason, or by `coalesced`.
//! - Every buffer, queue, retry and wait has a bound with a name.

pub mod api;
pub mod cli;
pub mod event;
pub mod feed;
pub mod http;
pub mod ring;
pub mod sim;
pub mod source;
pub mod tasks;
#[cfg(any(test, feature = "test-support"))]
pub mod test_support;
pub mod wire;
