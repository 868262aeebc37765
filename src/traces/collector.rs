//! The connection to the collector: the HTTP client that the exporter uses.
//!
//! Must not import: any sibling.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use opentelemetry_http::{HttpClient, HttpError};
use rustls::ClientConfig;

use crate::{
    client::innermost,
    https_client::{HttpsClient, https_client},
};

/// Bytes of an answer that are read. It is empty, or names rejected spans.
const MAX_RESPONSE_BYTES: usize = 64 << 10;
/// Maximum characters of a reason in the log.
pub(super) const MAX_REASON_CHARS: usize = 200;

/// The client of a collector.
pub(super) struct Collector {
    client: HttpsClient,
    /// Why the last request had no answer. The exporter's own error does not say it.
    failure: Mutex<Option<String>>,
}

impl Collector {
    /// Returns a client. `tls` is used for https.
    pub(super) fn new(tls: Arc<ClientConfig>) -> Collector {
        Collector { client: https_client(tls), failure: Mutex::new(None) }
    }

    /// Returns why the last request had no answer, once.
    pub(super) fn take_failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn post(&self, request: Request<Bytes>) -> Result<Response<Bytes>, String> {
        let response = self.client.request(request.map(Full::new)).await.map_err(|error| innermost(&error))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_RESPONSE_BYTES).collect().await.map_err(|error| error.to_string())?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collector")
    }
}

// Written as the macro `async_trait` of the trait writes it.
impl HttpClient for Collector {
    fn send_bytes<'a, 'b>(&'a self, request: Request<Bytes>) -> BoxFuture<'b, Result<Response<Bytes>, HttpError>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let answer = self.post(request).await;
            let failure = answer.as_ref().err().cloned();
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
            answer.map_err(HttpError::from)
        })
    }
}
