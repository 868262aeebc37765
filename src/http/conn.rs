//! TCP and TLS sockets, HTTP/1 connections, and the hijack of a socket for a stream (docs/architecture.md#sockets).
//!
//! hyper parses requests and writes ordinary responses. A response that carries a [`StreamStart`] is not passed to
//! hyper. When all earlier responses are in the kernel, the connection task takes the socket from hyper and frees
//! hyper's buffers. The stream then runs on the socket in a task of its own.
//!
//! Owns: the listener, and each socket until its stream starts.
//!
//! Guarantees:
//! - The number of connections, the bytes of a request head and the unsent bytes of a connection are bounded
//!   ([`Config`]).
//! - Connections that wait for a request give way to connections that have one.
//! - A connection that makes no progress is closed.
//!
//! Must not import: routes, streams, the feed.

mod accept;
mod connection;
mod handoff;
mod hijack;
mod hyper_io;
mod metrics;
mod peer;
pub(crate) mod stream_start;
mod tls;
mod transport;
mod waiting;

pub use self::{
    accept::{Config, NON_STREAM_CONNECTIONS, PROBE_CONNECTIONS, serve},
    metrics::{Metrics, RejectReason},
    peer::Peer,
    stream_start::{HijackedSocket, StreamStart},
    tls::{CertificateUse, ReloadingTls, TlsError},
    transport::Conn,
    waiting::CountedAddress,
};

#[cfg(test)]
pub(in crate::http) mod tests;
