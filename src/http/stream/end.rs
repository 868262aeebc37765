//! The ways in which a stream ends.

use crate::wire::CloseReason;

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamEnd {
    /// The client sent a close frame first.
    ClientClosed,
    /// The connection ended without a close frame.
    Disconnected,
    /// The bridge ended the stream, for this reason.
    ByBridge(CloseReason),
}

impl StreamEnd {
    /// Every end.
    pub(super) const ALL: [StreamEnd; 14] = [
        Self::ClientClosed,
        Self::Disconnected,
        Self::ByBridge(CloseReason::Normal),
        Self::ByBridge(CloseReason::Protocol),
        Self::ByBridge(CloseReason::Utf8),
        Self::ByBridge(CloseReason::TooBig),
        Self::ByBridge(CloseReason::CredentialExpired),
        Self::ByBridge(CloseReason::AccessRevoked),
        Self::ByBridge(CloseReason::Internal),
        Self::ByBridge(CloseReason::Draining),
        Self::ByBridge(CloseReason::SlowConsumer),
        Self::ByBridge(CloseReason::Idle),
        Self::ByBridge(CloseReason::UpstreamUnavailable),
        Self::ByBridge(CloseReason::Lagged),
    ];

    /// Returns the value of the label `reason`.
    pub fn label(self) -> &'static str {
        match self {
            Self::ClientClosed => "client_closed",
            Self::Disconnected => "disconnected",
            Self::ByBridge(reason) => match reason {
                CloseReason::Normal => "finished",
                CloseReason::Protocol => "protocol_error",
                CloseReason::Utf8 => "not_utf8",
                CloseReason::TooBig => "message_too_big",
                CloseReason::CredentialExpired => "credential_expired",
                CloseReason::AccessRevoked => "access_revoked",
                CloseReason::Internal => "internal",
                CloseReason::Draining => "draining",
                CloseReason::SlowConsumer => "slow_consumer",
                CloseReason::Idle => "idle",
                CloseReason::UpstreamUnavailable => "upstream_unavailable",
                CloseReason::Lagged => "lagged",
            },
        }
    }
}
