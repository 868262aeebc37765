//! One attempt to deliver a message: one POST.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Request, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT},
};
use http_body_util::{BodyExt as _, Full, Limited};
use jiff::Timestamp;
use rustls::ClientConfig;
use tokio::time::{Instant, timeout_at};

use super::{message::Message, receiver::Receiver, retry::retry_after, signature::Secrets};
use crate::{
    client::innermost,
    https_client::{HttpsClient, https_client},
};

/// The time of one attempt, from the lookup of the name to the end of the response (docs/protocol.md#deliveries).
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a response that are read, so that its connection can be used again. They are not used otherwise.
const MAX_RESPONSE_BYTES: usize = 64 << 10;
const AGENT: HeaderValue = HeaderValue::from_static(concat!("boilerhouse-bridge/", env!("CARGO_PKG_VERSION")));

/// Sends messages.
#[derive(Clone, Debug)]
pub struct Sender {
    client: HttpsClient,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx.
    Accepted(u16),
    /// 410: the receiver wants no more deliveries.
    Gone,
    /// Any other status.
    Rejected {
        /// The status.
        status: u16,
        /// `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// There was no answer.
    Failed(String),
}

impl Outcome {
    /// Returns the status, if there was an answer.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Outcome::Accepted(status) | Outcome::Rejected { status, .. } => Some(*status),
            Outcome::Gone => Some(StatusCode::GONE.as_u16()),
            Outcome::Failed(_) => None,
        }
    }

    /// Returns why the message was not accepted.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        match self {
            Outcome::Accepted(_) => None,
            Outcome::Failed(error) => Some(error.clone()),
            Outcome::Gone => Some("HTTP 410".to_owned()),
            Outcome::Rejected { status: status @ 300..400, .. } => {
                Some(format!("HTTP {status} (redirects are not followed: change the URL)"))
            }
            Outcome::Rejected { status, .. } => Some(format!("HTTP {status}")),
        }
    }
}

impl Sender {
    /// Returns a sender. `tls` is used for receivers with https.
    #[must_use]
    pub fn new(tls: Arc<ClientConfig>) -> Sender {
        Sender { client: https_client(tls) }
    }

    /// POSTs a message once. It follows no redirect.
    pub(super) async fn send(&self, receiver: &Receiver, message: &Message, secrets: Option<&Secrets>) -> Outcome {
        let request = match request(receiver, message, secrets) {
            Ok(request) => request,
            Err(error) => return Outcome::Failed(error.to_string()),
        };
        let end = Instant::now() + ATTEMPT_TIMEOUT;
        let (head, body) = match timeout_at(end, self.client.request(request)).await {
            Err(_) => return Outcome::Failed(format!("no answer within {ATTEMPT_TIMEOUT:?}")),
            Ok(Err(error)) => return Outcome::Failed(innermost(&error)),
            Ok(Ok(response)) => response.into_parts(),
        };
        // The status counts, also if the body is cut or has no end.
        let _ = timeout_at(end, Limited::new(body, MAX_RESPONSE_BYTES).collect()).await;
        match head.status {
            status if status.is_success() => Outcome::Accepted(status.as_u16()),
            StatusCode::GONE => Outcome::Gone,
            status => {
                let asked = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
                let retry_after = asked.and_then(|value| retry_after(value, Timestamp::now()));
                Outcome::Rejected { status: status.as_u16(), retry_after }
            }
        }
    }
}

fn request(receiver: &Receiver, message: &Message, secrets: Option<&Secrets>) -> http::Result<Request<Full<Bytes>>> {
    let timestamp = u64::try_from(Timestamp::now().as_second()).unwrap_or_default();
    let mut request = Request::post(receiver.uri.clone())
        .header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, AGENT)
        .header("webhook-id", &message.id)
        .header("webhook-timestamp", timestamp);
    if let Some(secrets) = secrets {
        request = request.header("webhook-signature", secrets.sign(&message.id, timestamp, &message.body));
    }
    request.body(Full::from(message.body.clone()))
}
