//! The reasons for which the bridge ends a stream, with close code and text.

/// Why the bridge ends a stream (docs/protocol.md#stream-endpoints, "Close codes").
///
/// A WebSocket client receives code and text in the close frame. An SSE client receives the text in `stream.closing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client sent a close frame. The bridge answers it.
    Normal,
    /// The client violated RFC 6455.
    Protocol,
    /// A text message or a close reason of the client is not UTF-8.
    Utf8,
    /// A message of the client is longer than the reader accepts.
    TooBig,
    /// The credential that opened the stream has expired.
    CredentialExpired,
    /// The access that opened the stream was revoked.
    AccessRevoked,
    /// A defect of the bridge.
    Internal,
    /// The bridge shuts down. The client can connect to another replica, or to this one after its restart.
    Draining,
    /// A write to the client made no progress for the write timeout.
    SlowConsumer,
    /// The client sent neither a pong nor any other byte for the idle timeout.
    Idle,
    /// The API server was unreachable for longer than `/ws` allows (only `/ws`).
    UpstreamUnavailable,
    /// The log evicted entries that the client had not read. `/ws` has no event to report it (only `/ws`).
    Lagged,
}

impl CloseReason {
    /// Returns the close code. The codes are from RFC 6455 section 7.4.1; 1012 and 1013 are from the IANA registry.
    pub fn code(self) -> u16 {
        match self {
            Self::Normal => 1000,
            Self::Protocol => 1002,
            Self::Utf8 => 1007,
            Self::CredentialExpired | Self::AccessRevoked => 1008,
            Self::TooBig => 1009,
            Self::Internal => 1011,
            Self::Draining => 1012,
            Self::SlowConsumer | Self::Idle | Self::UpstreamUnavailable | Self::Lagged => 1013,
        }
    }

    /// Returns the text of the reason, which clients may compare; it is empty for [`CloseReason::Normal`].
    ///
    /// The text has at most 123 bytes, because a close frame holds 125 bytes with the code (RFC 6455 section 5.5).
    pub fn text(self) -> &'static str {
        match self {
            Self::Normal => "",
            Self::Protocol => "protocol error",
            Self::Utf8 => "not utf-8",
            Self::TooBig => "message too big",
            Self::CredentialExpired => "credential expired",
            Self::AccessRevoked => "access revoked",
            Self::Internal => "internal",
            Self::Draining => "draining",
            Self::SlowConsumer => "slow consumer",
            Self::Idle => "idle",
            Self::UpstreamUnavailable => "upstream unavailable",
            Self::Lagged => "lagged",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::CloseReason::{self, *};

    #[test]
    fn close_codes_and_reasons_match_the_protocol() {
        let expected: [(CloseReason, u16, &str); 12] = [
            (Normal, 1000, ""),
            (Protocol, 1002, "protocol error"),
            (Utf8, 1007, "not utf-8"),
            (CredentialExpired, 1008, "credential expired"),
            (AccessRevoked, 1008, "access revoked"),
            (TooBig, 1009, "message too big"),
            (Internal, 1011, "internal"),
            (Draining, 1012, "draining"),
            (SlowConsumer, 1013, "slow consumer"),
            (Idle, 1013, "idle"),
            (UpstreamUnavailable, 1013, "upstream unavailable"),
            (Lagged, 1013, "lagged"),
        ];
        for (reason, code, text) in expected {
            assert_eq!((reason.code(), reason.text()), (code, text), "{reason:?}");
        }
    }
}
