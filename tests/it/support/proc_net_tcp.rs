//! The kernel's socket queues of connections of another process, from `/proc/net/tcp`.

use std::{collections::HashMap, net::SocketAddr};

/// Bytes in the kernel's queues of one side of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SocketQueues {
    /// Bytes that are written and not yet acknowledged by the peer.
    pub(crate) sent: u64,
    /// Bytes that are received and not yet read.
    pub(crate) received: u64,
}

/// Returns the queues of the established connections of a listener on loopback, by the port of the client.
pub(crate) fn queues_by_client_port(listener: SocketAddr) -> HashMap<u16, SocketQueues> {
    const ESTABLISHED: &str = "01";
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let port = |address: &str| u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok();
        let bytes = |hex: &str| u64::from_str_radix(hex, 16).ok();
        if port(fields[1])? != listener.port() || fields[3] != ESTABLISHED {
            return None;
        }
        let (sent, received) = fields[4].split_once(':')?;
        Some((port(fields[2])?, SocketQueues { sent: bytes(sent)?, received: bytes(received)? }))
    });
    rows.collect()
}
