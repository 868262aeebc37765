//! The transport and the endpoint of a stream, as metrics name them.

/// How a stream is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// RFC 6455.
    WebSocket,
    /// The event stream of the HTML standard.
    Sse,
}

impl Transport {
    /// Returns the value of the label `transport`.
    pub fn label(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Sse => "sse",
        }
    }
}

/// An endpoint that opens streams. A permit refers to a static one, so that a stream costs one pointer for its labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The path pattern: the value of the label `endpoint`.
    pub path: &'static str,
    /// The transport of its streams.
    pub transport: Transport,
}
