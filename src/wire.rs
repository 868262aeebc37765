//! The wire: the bytes that clients send and receive, as JSON, SSE blocks, HTTP chunks and WebSocket
//! frames, and the codes in them.
//!
//! Owns: no state. It contains pure functions and readers without I/O.
//!
//! Guarantees: the same code serves every transport and test, because it gets bytes and values and returns them.
//!
//! Must not import: sockets, the feed, clocks, and other modules of this crate.
//!
//! Implements `docs/protocol.md#stream-endpoints`.

pub mod chunked;
mod close;
mod error_code;
pub mod json;
pub mod sse;
mod utf8;
pub mod websocket;

pub use close::CloseReason;
pub use error_code::ErrorCode;
