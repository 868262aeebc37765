//! A door to a server: its address stays while what is behind it is replaced, and it breaks off who passes.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{
    io::{AsyncReadExt, copy},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use super::rng::SeededRng;

/// A TCP proxy; it and all that passes end when it is dropped.
#[derive(Debug)]
pub(crate) struct TcpProxy {
    pub(crate) address: SocketAddr,
    to: watch::Sender<Option<SocketAddr>>,
    serving: JoinHandle<()>,
}

/// How many bytes of the server's a connection is given before it breaks off: at least, and how many more at most.
pub(crate) type CutAfterBytes = (u64, u64);

impl TcpProxy {
    /// A door to nowhere yet: who comes is sent away. Half of those that break off end in order, half are reset.
    pub(crate) async fn new(leak: Option<CutAfterBytes>, seed: u64) -> TcpProxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (to, leads_to) = watch::channel(None);
        let serving = tokio::spawn(async move {
            let (mut rng, mut passing) = (SeededRng(seed), JoinSet::new());
            loop {
                let (client, _) = listener.accept().await.unwrap();
                while passing.try_join_next().is_some() {}
                let most = leak.map_or(u64::MAX, |(least, more)| least + rng.below(more));
                let reset = rng.below(2) == 0;
                let to: Option<SocketAddr> = *leads_to.borrow();
                if let Some(to) = to {
                    passing.spawn(forward(client, to, most, reset));
                }
            }
        });
        TcpProxy { address, to, serving }
    }

    /// Whoever comes from now on gets there. Who is inside stays where he is.
    pub(crate) fn set_target(&self, to: Option<SocketAddr>) {
        self.to.send_replace(to);
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn forward(mut client: TcpStream, to: SocketAddr, most: u64, reset: bool) {
    let Ok(mut server) = TcpStream::connect(to).await else { return };
    let (mut from_client, mut to_client) = client.split();
    let (from_server, mut to_server) = server.split();
    let mut some = from_server.take(most);
    // Whichever ends, or fails, ends both.
    tokio::select! {
        _ = copy(&mut from_client, &mut to_server) => {}
        _ = copy(&mut some, &mut to_client) => {}
    }
    if reset {
        client.set_zero_linger().unwrap();
    }
}
