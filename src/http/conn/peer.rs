//! The client's end of a connection.

use std::net::SocketAddr;

/// The client's end of a connection. [`super::serve`] puts it into the extensions of each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The address of the other end of the TCP connection.
    pub address: SocketAddr,
    /// True if the TCP connection is encrypted. It does not describe the hops between the client and a proxy.
    pub tls: bool,
}
