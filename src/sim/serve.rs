//! The simulated API over a TCP listener, with HTTP/1.1 and without TLS, for clients in other processes.
//!
//! Owns: the connections, at most [`SimConfig::max_connections`](super::SimConfig::max_connections) at once. Each
//! connection has one task, which ends with the future of [`Sim::serve`].

use std::future::Future;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::handle::Sim;

impl Sim {
    /// Serves the API until `stop` completes. Further connections wait in the listener's queue when
    /// [`SimConfig::max_connections`](super::SimConfig::max_connections) are open. Dropping the returned future closes
    /// all connections.
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
                    // A failed accept concerns one client only.
                    let Ok((socket, _)) = accepted else { continue };
                    // The real API server sets it as well (the default of Go). Without it, an event waits up to 40 ms
                    // for the acknowledgement of the previous one.
                    let Ok(()) = socket.set_nodelay(true) else { continue };
                    let service = TowerToHyperService::new(self.service());
                    let mut http = hyper::server::conn::http1::Builder::new();
                    http.timer(TokioTimer::new());
                    // Errors are resets and cuts of the connection. Faults cause them on purpose.
                    connections.spawn(async move { drop(http.serve_connection(TokioIo::new(socket), service).await) });
                }
            }
        }
    }
}
