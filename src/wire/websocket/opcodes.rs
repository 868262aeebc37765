//! Opcodes, bit masks and limits of RFC 6455 frames.

/// Maximum payload of a control frame in bytes (RFC 6455 section 5.5).
pub const MAX_CONTROL_PAYLOAD: usize = 125;

/// Bit of the first byte: this is the last frame of a message.
pub(super) const FIN: u8 = 0x80;
/// Bits of the first byte that extensions use. The bridge negotiates no extension, so they must be 0.
pub(super) const RESERVED_BITS: u8 = 0x70;
pub(super) const CONTINUATION: u8 = 0x0;
pub(super) const TEXT: u8 = 0x1;
pub(super) const BINARY: u8 = 0x2;
pub(super) const CLOSE: u8 = 0x8;
pub(super) const PING: u8 = 0x9;
pub(super) const PONG: u8 = 0xA;
