//! The server side of RFC 6455 without I/O: functions that append frames to a buffer, and [`FrameReader`] for the bytes
//! of clients.
//!
//! Guarantees:
//! - Each message is one unmasked frame (section 5.1) without extensions.
//! - Frames are appended, so that a batch of messages is one buffer and one write.
use base64::{Engine, prelude::BASE64_STANDARD};
use sha1::{Digest, Sha1};

use self::opcodes::{BINARY, CLOSE, FIN, PING, PONG, TEXT};
use super::close::CloseReason;

mod opcodes;
mod reader;
#[cfg(test)]
mod rfc6455_cases;
#[cfg(test)]
mod tungstenite_compat;

pub use self::{
    opcodes::MAX_CONTROL_PAYLOAD,
    reader::{FrameReader, MessagePart},
};

/// Returns `Sec-WebSocket-Accept` for the client's `Sec-WebSocket-Key` (RFC 6455 section 4.2.2, point 5.4).
///
/// `key` is the value of the header without surrounding white space. The handshake must check that it is a valid key.
pub fn accept_key(key: &str) -> String {
    let digest = Sha1::new().chain_update(key).chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11").finalize();
    BASE64_STANDARD.encode(digest)
}

/// Appends a text message.
pub fn text(out: &mut Vec<u8>, message: &str) {
    frame(out, TEXT, message.as_bytes());
}

/// Appends a binary message.
pub fn binary(out: &mut Vec<u8>, message: &[u8]) {
    frame(out, BINARY, message);
}

/// Appends a ping without payload. Any byte from the client shows that it is alive, so no pong has to be matched.
pub fn ping(out: &mut Vec<u8>) {
    frame(out, PING, &[]);
}

/// Appends the answer to a ping. `payload` is the payload of [`MessagePart::Ping`], at most [`MAX_CONTROL_PAYLOAD`]
/// bytes.
pub fn pong(out: &mut Vec<u8>, payload: &[u8]) {
    debug_assert!(payload.len() <= MAX_CONTROL_PAYLOAD);
    frame(out, PONG, payload);
}

/// Appends a close frame with code and text of `reason`. It must be the last frame (RFC 6455 section 5.5.1).
pub fn close(out: &mut Vec<u8>, reason: CloseReason) {
    let mut payload = reason.code().to_be_bytes().to_vec();
    payload.extend_from_slice(reason.text().as_bytes());
    frame(out, CLOSE, &payload);
}

fn frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    const LONGEST_HEADER: usize = 10;
    out.reserve(LONGEST_HEADER + payload.len());
    out.push(FIN | opcode);
    match payload.len() {
        len @ 0..=125 => out.push(len as u8),
        len @ 126..=0xFFFF => {
            out.push(126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_key_matches_the_rfc_example() {
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn frames_are_appended_complete_and_unmasked() {
        let mut out = Vec::new();
        text(&mut out, "Hello");
        binary(&mut out, &[0xff]);
        ping(&mut out);
        pong(&mut out, b"Hello");
        close(&mut out, CloseReason::Draining);
        close(&mut out, CloseReason::Normal);
        // The first and the fourth are examples of RFC 6455 section 5.7.
        assert_eq!(out, b"\x81\x05Hello\x82\x01\xff\x89\x00\x8a\x05Hello\x88\x0a\x03\xf4draining\x88\x02\x03\xe8");
    }

    #[test]
    fn payload_lengths_use_the_shortest_encoding() {
        let heads: [(usize, &[u8]); 6] = [
            (0, b"\x82\x00"),
            (125, b"\x82\x7d"),
            (126, b"\x82\x7e\x00\x7e"),
            (65_535, b"\x82\x7e\xff\xff"),
            (65_536, b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
            (70_000, b"\x82\x7f\x00\x00\x00\x00\x00\x01\x11\x70"),
        ];
        for (len, head) in heads {
            let mut out = Vec::new();
            binary(&mut out, &vec![7; len]);
            assert!(out.starts_with(head), "head of a frame of {len} bytes: expected {head:x?}");
            assert_eq!(out.len(), head.len() + len, "length of a frame of {len} bytes");
        }
    }
}
