//! The wire: bytes that clients see and send, framed and unframed.
mod close;
pub mod json;
pub mod sse;
mod utf8;
pub mod websocket;

pub use close::CloseReason;
