//! The same API over a listener, plain HTTP/1.1, for clients in other processes.

use std::future::Future;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::handle::Sim;

impl Sim {
    /// Serves until `stop`, at most [`SimConfig::max_connections`](super::SimConfig::max_connections) connections at
    /// once. Open connections are dropped with the returned future.
    pub async fn serve(&self, listener: TcpListener, stop: impl Future<Output = ()>) {
        let mut connections = JoinSet::new();
        tokio::pin!(stop);
        loop {
            while connections.try_join_next().is_some() {}
            let full = connections.len() >= self.config().max_connections;
            tokio::select! {
                () = &mut stop => return,
                _ = connections.join_next(), if full => {}
                accepted = listener.accept(), if !full => {
                    // A connection that could not be accepted is its client's loss; the listener goes on.
                    let Ok((socket, _)) = accepted else { continue };
                    // As the real one (Go's default): else an event waits for the last one's acknowledgement, up to 40 ms.
                    let Ok(()) = socket.set_nodelay(true) else { continue };
                    let service = TowerToHyperService::new(self.service());
                    let mut http = hyper::server::conn::http1::Builder::new();
                    http.timer(TokioTimer::new());
                    // Its errors are resets and cuts, which are what this API is for.
                    connections.spawn(async move { drop(http.serve_connection(TokioIo::new(socket), service).await) });
                }
            }
        }
    }
}
