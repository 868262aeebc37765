//! The HTTP client for requests to receivers of webhooks, collectors of traces and other bridges. It follows no redirect,
//! so that headers with secrets reach no other server.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::ClientConfig;

/// Time that an unused connection stays open.
const POOL_IDLE: Duration = Duration::from_secs(30);

/// A client with a pool of connections, for http and https.
pub(crate) type HttpsClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Returns a client. `tls` is used for https.
pub(crate) fn https_client(tls: Arc<ClientConfig>) -> HttpsClient {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let https = HttpsConnector::from((tcp, tls));
    Client::builder(TokioExecutor::new()).pool_idle_timeout(POOL_IDLE).pool_timer(TokioTimer::new()).build(https)
}
