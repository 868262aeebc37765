//! The errors of a client.

use std::time::Duration;

use super::rate_limit::RateLimit;

/// Characters of a response's first line that an error repeats.
const MAX_LINE_CHARS: usize = 200;

/// Why a client has no stream, or has lost it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The URL, a filter or another setting cannot be used. The text says what is accepted.
    #[error("{0}")]
    Setting(String),
    /// The file with the token cannot be read.
    #[error("cannot read the token from {path}: {reason}")]
    Token {
        /// The file.
        path: String,
        /// Why it cannot be read.
        reason: String,
    },
    /// No connection to the bridge.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// Host and port.
        address: String,
        /// The error of the socket, of TLS or of HTTP.
        reason: String,
    },
    /// The bridge, or a proxy before it, has answered with an error status.
    #[error("HTTP {status}: {message}")]
    Status {
        /// The status.
        status: u16,
        /// The `code` of the bridge's error body, for example `UNAUTHORIZED`.
        code: Option<String>,
        /// The message of the bridge, or the first line of another body.
        message: String,
        /// The header `Retry-After`.
        retry_after: Option<Duration>,
        /// The query parameter that the bridge rejects.
        parameter: Option<String>,
        /// The rate limit that the body names.
        rate_limit: Option<Box<RateLimit>>,
    },
    /// The server does not accept the cursor. The stream starts again without one: events may be missing.
    #[error("the server does not accept the cursor ({0}); the stream starts again without one")]
    CursorRejected(String),
    /// The server redirects. Redirects are not followed, because they could lead a credential to another host.
    #[error("the server redirects to {target}: use that URL; redirects are not followed")]
    Redirect {
        /// The status.
        status: u16,
        /// The target without its query.
        target: String,
    },
    /// The response is no event stream and no WebSocket: a sign-in page, for example.
    #[error("the response is {found}, not {expected}: {first_line:?}")]
    NotAStream {
        /// The status.
        status: u16,
        /// What the client asked for.
        expected: &'static str,
        /// Status and content type of the response.
        found: String,
        /// The first line of the body.
        first_line: String,
    },
    /// One event cannot be parsed. The stream continues with the next one.
    #[error("event {number} of this connection is malformed ({reason}): {text:?}")]
    Malformed {
        /// The number of the event, from 1.
        number: u64,
        /// Why.
        reason: String,
        /// Its start.
        text: String,
    },
    /// One event is larger than [`MAX_EVENT_BYTES`](super::MAX_EVENT_BYTES).
    #[error("an event is larger than {0} bytes")]
    TooLarge(usize),
    /// The bridge has ended the stream in an orderly way.
    #[error("the bridge closed the stream: {reason}{}", in_parentheses(detail))]
    Closed {
        /// The `reason` of `stream.closing`, or of the close frame.
        reason: String,
        /// The `detail` of `stream.closing`.
        detail: Option<String>,
        /// The delay before the client reconnects, where the bridge names one.
        retry_after: Option<Duration>,
    },
    /// The connection was cut.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// Nothing has arrived for this time, although heartbeats must.
    #[error("no byte for {0:?}")]
    Silent(Duration),
}

fn in_parentheses(detail: &Option<String>) -> String {
    detail.as_ref().map_or_else(String::new, |detail| format!(" ({detail})"))
}

impl Error {
    /// Returns true if the stream ends with this error. After all others it reconnects or continues.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Error::Setting(_) | Error::Token { .. } | Error::NotAStream { .. } | Error::Redirect { .. } => true,
            // 408, 425 and 429 pass by themselves.
            Error::Status { status, .. } => (400..500).contains(status) && ![408, 425, 429].contains(status),
            Error::Connect { .. }
            | Error::CursorRejected(_)
            | Error::Malformed { .. }
            | Error::TooLarge(_)
            | Error::Closed { .. }
            | Error::Lost(_)
            | Error::Silent(_) => false,
        }
    }

    /// Returns true if the bridge does not accept the credential, or none.
    #[must_use]
    pub fn is_unauthorized(&self) -> bool {
        matches!(self, Error::Status { status: 401, .. })
    }

    /// Returns the HTTP status of a response that is no stream.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Error::Status { status, .. } | Error::Redirect { status, .. } | Error::NotAStream { status, .. } => {
                Some(*status)
            }
            _ => None,
        }
    }

    /// Returns the delay that the server asks for.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::Status { retry_after, .. } | Error::Closed { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Returns the first line of a body that is not empty, cut to [`MAX_LINE_CHARS`].
pub(super) fn first_line(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    line.chars().take(MAX_LINE_CHARS).collect()
}
