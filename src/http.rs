//! HTTP: sockets (only `conn`), streams on them, and routes.
//!
//! A stream route answers with a value; `conn` takes the socket back from hyper and `stream` moves bytes on it.
pub mod conn;
pub mod stream;
