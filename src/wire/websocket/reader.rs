//! Incremental reader for the frames of clients, without I/O and without a buffer for messages.
//!
//! Owns: an incomplete header, the position in a message, and the payload of an incomplete control frame. An idle
//! reader allocates no memory.
//!
//! Guarantees:
//! - The result does not depend on where the bytes are split.
//! - A frame that RFC 6455 forbids is rejected when its header is complete. Text that is not UTF-8 is rejected at its
//!   first invalid byte.
//! - One exception to section 5.2: a length in more bytes than needed is accepted, as in tungstenite. Some clients send
//!   it, and nothing depends on it.
use super::opcodes::{BINARY, CLOSE, CONTINUATION, FIN, MAX_CONTROL_PAYLOAD, PING, PONG, RESERVED_BITS, TEXT};
use crate::wire::{
    close::CloseReason,
    utf8::{NotUtf8, Utf8Validator},
};

/// Reads the frames of one client, starting with the first byte after the handshake.
///
/// ```
/// # use boilerhouse_bridge::wire::{CloseReason, websocket::{FrameReader, MessagePart}};
/// # fn read(bytes: &mut [u8], reader: &mut FrameReader) -> Result<(), CloseReason> {
/// let mut read_to = 0;
/// while read_to < bytes.len() {
///     let (used, part) = reader.read(&mut bytes[read_to..])?;
///     read_to += used;
///     if let Some(MessagePart::Close(_)) = part { /* answer with CloseReason::Normal, and end */ }
/// }
/// # Ok(()) }
/// # read(&mut b"\x81\x82\0\0\0\0hi".to_vec(), &mut FrameReader::new(64 * 1024)).unwrap();
/// ```
#[derive(Debug)]
pub struct FrameReader {
    /// Maximum size of a message in bytes, all fragments together.
    max_message: u64,
    /// The message whose next fragment must follow. Control frames may come before the fragment.
    unfinished: Option<Message>,
    phase: Phase,
}

/// A result of [`FrameReader::read`].
#[derive(Debug, PartialEq, Eq)]
pub enum MessagePart<'a> {
    /// Bytes of a message, unmasked. The chunk may be empty (an empty message, an empty fragment). A text may be split
    /// inside a character: only all chunks of a message together are valid UTF-8.
    Data {
        /// `true` for a text message, `false` for a binary message.
        text: bool,
        /// The bytes, unmasked in the buffer of the caller.
        chunk: &'a [u8],
        /// Whether this is the first chunk of the message.
        first: bool,
        /// Whether this is the last chunk of the message.
        last: bool,
    },
    /// A ping. The caller must answer with a pong of the same payload, at most [`MAX_CONTROL_PAYLOAD`] bytes.
    Ping(Vec<u8>),
    /// A pong. Its payload has no meaning, because the bridge's pings have none.
    Pong,
    /// A close frame, with a valid code or without a code. The reader ignores all bytes after it.
    Close(Option<u16>),
}

#[derive(Debug)]
enum Phase {
    Header(Header),
    Data {
        payload: Payload,
        fin: bool,
        message: Message,
    },
    Control {
        payload: Payload,
        opcode: u8,
        received: Vec<u8>,
    },
    /// After a close frame or an error. Further bytes are ignored (RFC 6455 sections 5.5.1 and 7.1.7).
    Finished,
}

#[derive(Debug, Clone, Copy)]
struct Message {
    /// The UTF-8 validator of a text message; `None` for a binary message.
    text: Option<Utf8Validator>,
    /// Bytes of the frames whose header is complete.
    len: u64,
    /// Whether the next chunk is the first one of the message.
    is_first_part: bool,
}

/// The part of a frame's payload that was not received yet.
#[derive(Debug)]
struct Payload {
    left: u64,
    /// The mask, rotated so that its first byte applies to the next byte of the payload.
    mask: [u8; 4],
}

/// The received part of a header.
#[derive(Debug, Clone, Copy, Default)]
struct Header {
    bytes: [u8; LONGEST_HEADER],
    len: u8,
}

/// Maximum size of a header in bytes: 2, an extended length of 8, and a mask of 4 (RFC 6455 section 5.2).
const LONGEST_HEADER: usize = 14;

impl FrameReader {
    /// Creates a reader that accepts messages of up to `max_message` bytes, all fragments together.
    pub fn new(max_message: usize) -> Self {
        Self { max_message: max_message as u64, unfinished: None, phase: Phase::Header(Header::default()) }
    }

    /// Reads `bytes` up to the next part. Returns the number of bytes used, at least one, and the part if there is one.
    ///
    /// The caller must call it until all bytes are used. A part is returned as soon as its last byte is read. Payloads
    /// are unmasked in place.
    ///
    /// # Errors
    /// Returns the reason with which the stream must be closed: [`CloseReason::Protocol`], [`CloseReason::Utf8`] or
    /// [`CloseReason::TooBig`]. If a frame violates several rules, the first one in this order counts: opcode and form
    /// of the length, size of the frame, mask, reserved bits, rules of control frames, fragmentation, size of the
    /// message, UTF-8.
    pub fn read<'a>(&mut self, bytes: &'a mut [u8]) -> Result<(usize, Option<MessagePart<'a>>), CloseReason> {
        let result = self.advance(bytes);
        if matches!(result, Err(_) | Ok((_, Some(MessagePart::Close(_))))) {
            self.phase = Phase::Finished;
        }
        result
    }

    fn advance<'a>(&mut self, bytes: &'a mut [u8]) -> Result<(usize, Option<MessagePart<'a>>), CloseReason> {
        let mut used = 0;
        if let Phase::Header(header) = &mut self.phase {
            used = header.fill(bytes);
            if !header.is_complete() {
                return Ok((used, None));
            }
            let header = *header;
            self.phase = self.start_payload(&header)?;
        }
        let rest = &mut bytes[used..];
        match &mut self.phase {
            Phase::Header(_) => Ok((used, None)),
            Phase::Finished => Ok((used + rest.len(), None)),
            Phase::Data { payload, .. } if rest.is_empty() && payload.left > 0 => Ok((used, None)),
            Phase::Data { payload, fin, message } => {
                let chunk = payload.unmask(rest);
                used += chunk.len();
                let (ended, fin) = (payload.left == 0, *fin);
                let part = message.part(chunk, ended && fin)?;
                if ended {
                    self.unfinished = if fin { None } else { Some(*message) };
                    self.phase = Phase::Header(Header::default());
                }
                Ok((used, Some(part)))
            }
            Phase::Control { payload, opcode, received } => {
                let chunk = payload.unmask(rest);
                used += chunk.len();
                received.extend_from_slice(chunk);
                if payload.left > 0 {
                    return Ok((used, None));
                }
                let part = match *opcode {
                    CLOSE => MessagePart::Close(close_code(received)?),
                    PING => MessagePart::Ping(std::mem::take(received)),
                    _ => MessagePart::Pong,
                };
                self.phase = Phase::Header(Header::default());
                Ok((used, Some(part)))
            }
        }
    }

    /// Validates a complete header, also against the frames before it, and returns the phase of its payload.
    fn start_payload(&self, header: &Header) -> Result<Phase, CloseReason> {
        let (opcode, len) = (header.bytes[0] & 0x0F, header.payload_len());
        let fin = header.bytes[0] & FIN != 0;
        let is_defined = matches!(opcode, CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG);
        if !is_defined || len >> 63 != 0 {
            return Err(CloseReason::Protocol);
        }
        if len > self.max_message {
            return Err(CloseReason::TooBig);
        }
        let Some(mask) = header.mask() else { return Err(CloseReason::Protocol) };
        if header.bytes[0] & RESERVED_BITS != 0 {
            return Err(CloseReason::Protocol);
        }
        let payload = Payload { left: len, mask };
        let mut message = match (opcode, self.unfinished) {
            (CLOSE | PING | PONG, _) if !fin || len > MAX_CONTROL_PAYLOAD as u64 => return Err(CloseReason::Protocol),
            (CLOSE | PING | PONG, _) => return Ok(Phase::Control { payload, opcode, received: Vec::new() }),
            (CONTINUATION, Some(message)) => message,
            (TEXT, None) => Message { text: Some(Utf8Validator::default()), len: 0, is_first_part: true },
            (BINARY, None) => Message { text: None, len: 0, is_first_part: true },
            _ => return Err(CloseReason::Protocol),
        };
        message.len = message.len.saturating_add(len);
        if message.len > self.max_message {
            return Err(CloseReason::TooBig);
        }
        Ok(Phase::Data { payload, fin, message })
    }
}

impl Message {
    fn part<'a>(&mut self, chunk: &'a [u8], last: bool) -> Result<MessagePart<'a>, CloseReason> {
        if let Some(utf8) = &mut self.text {
            utf8.push(chunk).map_err(|NotUtf8| CloseReason::Utf8)?;
            if last && !utf8.is_complete() {
                return Err(CloseReason::Utf8);
            }
        }
        Ok(MessagePart::Data { text: self.text.is_some(), chunk, first: std::mem::take(&mut self.is_first_part), last })
    }
}

/// Returns the code of a close frame. The payload is empty, or a code and a reason in UTF-8 (RFC 6455 section 5.5.1).
fn close_code(payload: &[u8]) -> Result<Option<u16>, CloseReason> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() { Ok(None) } else { Err(CloseReason::Protocol) };
    };
    if std::str::from_utf8(reason).is_err() {
        return Err(CloseReason::Utf8);
    }
    // RFC 6455 section 7.4: a frame must not contain 1004 to 1006 and 1015. Other codes up to 2999 are for registered
    // codes only. IANA registered 1012 to 1014 after the RFC.
    match u16::from_be_bytes(*code) {
        code @ (1000..=1003 | 1007..=1014 | 3000..=4999) => Ok(Some(code)),
        _ => Err(CloseReason::Protocol),
    }
}

impl Payload {
    /// Unmasks and returns the bytes at the start of `bytes` that belong to this payload.
    fn unmask<'a>(&mut self, bytes: &'a mut [u8]) -> &'a [u8] {
        let len = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let chunk = &mut bytes[..len];
        let (words, tail) = chunk.as_chunks_mut::<4>();
        for word in words {
            *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(self.mask)).to_ne_bytes();
        }
        tail.iter_mut().zip(self.mask).for_each(|(byte, key)| *byte ^= key);
        self.mask.rotate_left(len % 4);
        self.left -= len as u64;
        chunk
    }
}

impl Header {
    /// Copies the bytes at the start of `bytes` that belong to this header. Returns their number.
    fn fill(&mut self, bytes: &[u8]) -> usize {
        let before = self.len;
        for &byte in bytes {
            if self.is_complete() {
                break;
            }
            self.bytes[usize::from(self.len)] = byte;
            self.len += 1;
        }
        usize::from(self.len - before)
    }

    fn is_complete(&self) -> bool {
        self.len >= 2 && usize::from(self.len) == self.mask_at() + if self.is_masked() { 4 } else { 0 }
    }

    fn is_masked(&self) -> bool {
        self.bytes[1] & 0x80 != 0
    }

    /// Returns the offset of the mask. It follows the length, which has three forms (RFC 6455 section 5.2).
    fn mask_at(&self) -> usize {
        match self.bytes[1] & 0x7F {
            126 => 4,
            127 => 10,
            _ => 2,
        }
    }

    fn mask(&self) -> Option<[u8; 4]> {
        let mask = self.bytes[self.mask_at()..].first_chunk().copied();
        mask.filter(|_| self.is_masked())
    }

    fn payload_len(&self) -> u64 {
        let extended = &self.bytes[2..self.mask_at()];
        let short = u64::from(self.bytes[1] & 0x7F);
        if extended.is_empty() { short } else { extended.iter().fold(0, |len, &byte| len << 8 | u64::from(byte)) }
    }
}
