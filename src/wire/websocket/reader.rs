//! Client frames, read as the bytes come, in any split, without I/O and without a buffer for messages.
//!
//! A reader remembers a header that has begun, where it is in a message, and a control frame's payload while that is on
//! its way; an idle one owns no memory besides itself. What RFC 6455 forbids is refused as soon as the header is complete, text
//! that is not UTF-8 at its first wrong byte. The one leniency: a length in more bytes than it needs is taken, against section
//! 5.2, as tungstenite takes it; there are clients that send it and nothing depends on it.
use super::opcodes::{BINARY, CLOSE, CONTINUATION, FIN, MAX_CONTROL_PAYLOAD, PING, PONG, RESERVED_BITS, TEXT};
use crate::wire::{
    close::CloseReason,
    utf8::{NotUtf8, Utf8Validator},
};

/// A client's frames, from the first byte after the handshake on.
///
/// ```
/// # use boilerhouse_bridge::wire::{CloseReason, websocket::{FrameReader, MessagePart}};
/// # fn read(bytes: &mut [u8], reader: &mut FrameReader) -> Result<(), CloseReason> {
/// let mut at = 0;
/// while at < bytes.len() {
///     let (used, part) = reader.read(&mut bytes[at..])?;
///     at += used;
///     if let Some(MessagePart::Close(_)) = part { /* answer with CloseReason::Normal, and end */ }
/// }
/// # Ok(()) }
/// # read(&mut b"\x81\x82\0\0\0\0hi".to_vec(), &mut FrameReader::new(64 * 1024)).unwrap();
/// ```
#[derive(Debug)]
pub struct FrameReader {
    /// A message's fragments together are at most this many bytes.
    max_message: u64,
    /// The message of which more fragments must come; control frames may come before them.
    unfinished: Option<Message>,
    phase: Phase,
}

/// What [`FrameReader::read`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum MessagePart<'a> {
    /// Some bytes of a message, unmasked. They may be none (an empty message, an empty fragment), and a text may be split
    /// inside a character: only the chunks of a whole message together are sure to be UTF-8.
    Data {
        /// Whether the message is text rather than binary.
        text: bool,
        /// The bytes, in place.
        chunk: &'a [u8],
        /// Whether the message begins with this chunk.
        first: bool,
        /// Whether the message ends with this chunk.
        last: bool,
    },
    /// To be answered with a pong of the same payload, at most [`MAX_CONTROL_PAYLOAD`] bytes.
    Ping(Vec<u8>),
    /// The client is there; its payload answers nothing of ours.
    Pong,
    /// The client ends the stream, with a valid code or none. What comes after is swallowed.
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
    /// After a close frame or an error nothing that comes means anything (RFC 6455 sections 5.5.1 and 7.1.7).
    Finished,
}

#[derive(Debug, Clone, Copy)]
struct Message {
    /// The state of the UTF-8 check; binary has none.
    text: Option<Utf8Validator>,
    /// Bytes, counted a frame at a time when its header is complete.
    len: u64,
    /// No chunk of it was handed out yet.
    is_first_part: bool,
}

/// The part of a frame's payload that has not come yet.
#[derive(Debug)]
struct Payload {
    left: u64,
    /// Rotated so that its first byte is for the next byte of the payload.
    mask: [u8; 4],
}

/// As much of a header as has come.
#[derive(Debug, Clone, Copy, Default)]
struct Header {
    bytes: [u8; LONGEST_HEADER],
    len: u8,
}

/// Two bytes, a length of eight, a mask of four (RFC 6455 section 5.2).
const LONGEST_HEADER: usize = 14;

impl FrameReader {
    /// A reader that takes messages of up to `max_message` bytes, their fragments counted together.
    pub fn new(max_message: usize) -> Self {
        Self { max_message: max_message as u64, unfinished: None, phase: Phase::Header(Header::default()) }
    }

    /// Reads on in `bytes`, up to the next part; says how many of them it used, at least one. To be called until all are
    /// used; a part never waits for a byte beyond its own. Payloads are unmasked in place.
    ///
    /// # Errors
    /// How the stream must be closed: [`CloseReason::Protocol`], [`CloseReason::Utf8`] or [`CloseReason::TooBig`]. Where one frame breaks several
    /// rules the first of this order counts: opcode and form of the length, size of the frame, mask, reserved bits, control
    /// frames' own rules, fragmentation, size of the message, UTF-8.
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
                let chunk = payload.take(rest);
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
                let chunk = payload.take(rest);
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

    /// Judges a complete header by itself and by what came before it.
    fn start_payload(&self, header: &Header) -> Result<Phase, CloseReason> {
        let (opcode, len) = (header.bytes[0] & 0x0F, header.payload_len());
        let fin = header.bytes[0] & FIN != 0;
        let known = matches!(opcode, CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG);
        if !known || len >> 63 != 0 {
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

/// What a close frame says: nothing, or a code and a reason in UTF-8 (RFC 6455 section 5.5.1).
fn close_code(payload: &[u8]) -> Result<Option<u16>, CloseReason> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() { Ok(None) } else { Err(CloseReason::Protocol) };
    };
    if std::str::from_utf8(reason).is_err() {
        return Err(CloseReason::Utf8);
    }
    // RFC 6455 section 7.4: 1004 to 1006 and 1015 never travel, the rest up to 2999 is for registered codes only. 1012 to
    // 1014 came into IANA's registry after the RFC.
    match u16::from_be_bytes(*code) {
        code @ (1000..=1003 | 1007..=1014 | 3000..=4999) => Ok(Some(code)),
        _ => Err(CloseReason::Protocol),
    }
}

impl Payload {
    /// Unmasks what `bytes` hold of this payload.
    fn take<'a>(&mut self, bytes: &'a mut [u8]) -> &'a [u8] {
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
    /// Takes what `bytes` hold of this header; says how many.
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

    /// Where the mask begins: behind the length, of which there are three forms (RFC 6455 section 5.2).
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
        let longer = &self.bytes[2..self.mask_at()];
        let short = u64::from(self.bytes[1] & 0x7F);
        if longer.is_empty() { short } else { longer.iter().fold(0, |len, &byte| len << 8 | u64::from(byte)) }
    }
}
