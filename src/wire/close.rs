//! Why the bridge ends a stream: close codes and texts.

/// Every way in which the bridge ends a stream (docs/protocol.md#stream-endpoints, "Close codes").
///
/// A WebSocket client gets code and reason in its close frame, an SSE client gets the reason in `stream.closing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client closed, and this answers it.
    Normal,
    /// The client broke RFC 6455.
    Protocol,
    /// A text message or a close reason of the client is not UTF-8.
    Utf8,
    /// A message of the client is longer than the reader allows.
    TooBig,
    /// The credential that opened the stream has expired.
    CredentialExpired,
    /// The rights that opened the stream have been taken away.
    AccessRevoked,
    /// A defect of the bridge.
    Internal,
    /// The bridge shuts down; another one, or the same one restarted, will serve.
    Draining,
    /// A write made no progress for too long.
    SlowConsumer,
    /// Neither a pong nor any other byte came for too long.
    Idle,
    /// Kubernetes has been out of reach for too long (only `/ws`).
    UpstreamUnavailable,
    /// The client fell off the log and its contract has no way to tell it so (only `/ws`).
    Lagged,
}

impl CloseReason {
    /// The close code of RFC 6455 section 7.4.1, or of IANA's registry for 1012 and 1013.
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

    /// The reason in words that clients may compare; empty for [`CloseReason::Normal`]. At most 123 bytes, what fits a close
    /// frame beside its code (RFC 6455 section 5.5).
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
        let contract: [(CloseReason, u16, &str); 12] = [
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
        for (close, code, reason) in contract {
            assert_eq!((close.code(), close.text()), (code, reason), "{close:?}");
        }
    }
}
