//! A TCP proxy between a client and a server. Its address stays the same while the server changes, and it can cut
//! connections.
//!
//! Owns the listener and all forwarded connections. They end when the value is dropped.

use std::net::{Ipv4Addr, SocketAddr};

use boilerhouse_bridge::test_support::SeededRng;
use tokio::{
    io::{AsyncReadExt, copy},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// A running TCP proxy.
#[derive(Debug)]
pub(crate) struct TcpProxy {
    pub(crate) address: SocketAddr,
    target: watch::Sender<Option<SocketAddr>>,
    serving: JoinHandle<()>,
}

/// The number of bytes from the server after which a connection is cut: the minimum, and the size of the random range
/// above it.
pub(crate) type CutAfterBytes = (u64, u64);

impl TcpProxy {
    /// Starts a proxy without a target: it closes every connection. With `cut`, each connection is cut after a random
    /// number of bytes; half of them end with a close, half with a reset.
    pub(crate) async fn new(cut: Option<CutAfterBytes>, seed: u64) -> TcpProxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (target, receiver) = watch::channel(None);
        let serving = tokio::spawn(async move {
            let (mut rng, mut connections) = (SeededRng(seed), JoinSet::new());
            loop {
                let (client, _) = listener.accept().await.unwrap();
                while connections.try_join_next().is_some() {}
                let max_bytes = cut.map_or(u64::MAX, |(min, range)| min + rng.below(range));
                let reset = rng.below(2) == 0;
                let target: Option<SocketAddr> = *receiver.borrow();
                if let Some(target) = target {
                    connections.spawn(forward(client, target, max_bytes, reset));
                }
            }
        });
        TcpProxy { address, target, serving }
    }

    /// Forwards new connections to this server. Open connections stay as they are.
    pub(crate) fn set_target(&self, target: Option<SocketAddr>) {
        self.target.send_replace(target);
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn forward(mut client: TcpStream, target: SocketAddr, max_bytes: u64, reset: bool) {
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    let (mut from_client, mut to_client) = client.split();
    let (from_server, mut to_server) = server.split();
    let mut limited = from_server.take(max_bytes);
    // The end or failure of one direction ends both.
    tokio::select! {
        _ = copy(&mut from_client, &mut to_server) => {}
        _ = copy(&mut limited, &mut to_client) => {}
    }
    if reset {
        client.set_zero_linger().unwrap();
    }
}
