//! The clients of `stalled` that have stopped reading.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use tokio::{io::AsyncWriteExt, net::TcpSocket, runtime::Handle, task::JoinSet, time::sleep};

use crate::connect::UPGRADE;

/// A stalled client stays this long: one second longer than the bridge waits for it.
pub(super) const HOLD: Duration = Duration::from_secs(11);
/// Size of the kernel's receive buffer that a stalled client requests, in bytes.
const SMALL_BUFFER: u32 = 4096;

/// Clients that do not read.
pub(super) struct StalledClients(JoinSet<Result<()>>);

impl StalledClients {
    /// Starts this many, spread over [`HOLD`].
    pub(super) fn start(runtime: &Handle, address: SocketAddr, count: u64) -> StalledClients {
        let mut clients = JoinSet::new();
        for index in 0..count {
            let delay = HOLD.mul_f64(index as f64 / count as f64);
            clients.spawn_on(stall(address, index, delay), runtime);
        }
        StalledClients(clients)
    }

    /// Disconnects all. Fails when one of them has failed.
    pub(super) fn stop(mut self) -> Result<()> {
        match self.0.try_join_next() {
            Some(ended) => ended?.context("a stalled client"),
            None => Ok(()),
        }
    }
}

/// Connects, reads nothing, and reconnects after [`HOLD`].
async fn stall(address: SocketAddr, index: u64, delay: Duration) -> Result<()> {
    sleep(delay).await;
    let (path, fields) = if index.is_multiple_of(2) { ("/api/sse", "") } else { ("/api/websocket", UPGRADE) };
    let request = format!("GET {path}?types=instance.state&snapshot=state HTTP/1.1\r\nHost: {address}\r\n{fields}\r\n");
    loop {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(SMALL_BUFFER)?;
        let mut stream = socket.connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        sleep(HOLD).await;
    }
}
