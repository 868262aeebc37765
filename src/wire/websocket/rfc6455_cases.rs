//! The rules of RFC 6455 for client frames as tables. Each row is read in every split, and compared with tungstenite.
use super::{CloseReason, FIN, FrameReader, MessagePart, tungstenite_compat};

/// The message limit of the tests, in bytes. It is small to keep the tests short, and above 125 bytes so that it does
/// not apply to control frames.
pub(super) const MAX: usize = 300;

/// What a reader reports for a stream of bytes: complete messages, control frames, and the error that ends it.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(super) enum Observed {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Closed(Option<u16>),
    Rejected(CloseReason),
}
use Observed::{Binary, Closed, Ping, Pong, Rejected, Text};

/// Reads `bytes` with [`FrameReader`], in parts of the given sizes, which repeat until the end.
pub(super) fn read(bytes: &[u8], sizes: &[usize]) -> Vec<Observed> {
    let (mut reader, mut observed, mut message) = (FrameReader::new(MAX), Vec::new(), None::<Vec<u8>>);
    let mut bytes = bytes.to_vec();
    let (mut left, mut sizes) = (&mut bytes[..], sizes.iter().cycle());
    while let Some(received) = left.split_off_mut(..(*sizes.next().unwrap()).min(left.len()))
        && !received.is_empty()
    {
        let mut read_to = 0;
        while read_to < received.len() {
            let (used, part) = match reader.read(&mut received[read_to..]) {
                Ok(read) => read,
                Err(close) => {
                    observed.push(Rejected(close));
                    break;
                }
            };
            assert!(used > 0, "the reader must use at least one byte");
            read_to += used;
            match part {
                None => {}
                Some(MessagePart::Ping(payload)) => observed.push(Ping(payload)),
                Some(MessagePart::Pong) => observed.push(Pong),
                Some(MessagePart::Close(code)) => observed.push(Closed(code)),
                Some(MessagePart::Data { text, chunk, first, last }) => {
                    assert_eq!(first, message.is_none(), "`first` must be set on the first chunk of a message only");
                    message.get_or_insert_default().extend_from_slice(chunk);
                    if let Some(complete) = message.take_if(|_| last) {
                        observed.push(if text { Text(String::from_utf8(complete).unwrap()) } else { Binary(complete) });
                    }
                }
            }
        }
    }
    observed
}

/// Returns a masked frame with this first byte and payload.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut out = vec![first];
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len => {
            out.push(0x80 | 126);
            out.extend((len as u16).to_be_bytes());
        }
    }
    out.extend(mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    out
}

fn check(rules: impl IntoIterator<Item = (&'static str, Vec<Vec<u8>>, Vec<Observed>)>) {
    for (rule, frames, expected) in rules {
        let bytes = frames.concat();
        tungstenite_compat::assert_same(&bytes);
        for split in 1..=bytes.len() {
            assert_eq!(read(&bytes, &[split]), expected, "{rule}, in parts of {split} bytes");
        }
    }
}

#[test]
fn valid_frames_are_read() {
    let text = |words: &str| Text(words.to_owned());
    check([
        (
            "the example of the RFC (5.7)",
            vec![b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58".to_vec()],
            vec![text("Hello")],
        ),
        ("empty messages", vec![frame(0x81, b""), frame(0x82, b"")], vec![text(""), Binary(vec![])]),
        ("fragments (5.4)", vec![frame(1, b"a"), frame(0, b""), frame(0x80, b"b")], vec![text("ab")]),
        ("empty last fragment", vec![frame(2, b"a"), frame(0x80, b"")], vec![Binary(b"a".to_vec())]),
        (
            "control frames between fragments",
            vec![frame(1, b"a"), frame(0x89, b"p"), frame(0x8a, b"q"), frame(0x80, b"b")],
            vec![Ping(b"p".to_vec()), Pong, text("ab")],
        ),
        ("a character in two fragments", vec![frame(1, b"\xe2"), frame(0x80, b"\x82\xac")], vec![text("€")]),
        ("the longest frame", vec![frame(0x82, &[7; MAX])], vec![Binary(vec![7; MAX])]),
        ("the longest message", vec![frame(2, &[7; 200]), frame(0x80, &[7; 100])], vec![Binary(vec![7; MAX])]),
        ("the longest ping", vec![frame(0x89, &[7; 125])], vec![Ping(vec![7; 125])]),
        (
            "a length in more bytes than needed",
            vec![b"\x82\xff\0\0\0\0\0\0\0\x01\0\0\0\0x".to_vec()],
            vec![Binary(b"x".to_vec())],
        ),
        (
            "bytes after a close frame are ignored",
            vec![frame(0x88, b"\x03\xe8bye"), frame(0x81, b"a"), vec![0xff; 9]],
            vec![Closed(Some(1000))],
        ),
        ("close without a code", vec![frame(0x88, b"")], vec![Closed(None)]),
        ("close inside a message", vec![frame(1, b"a"), frame(0x88, b"\x0f\xa0")], vec![Closed(Some(4000))]),
    ]);
}

#[test]
fn invalid_frames_are_rejected() {
    let rejected = |rule, close, frames: &[Vec<u8>]| (rule, frames.to_vec(), vec![Rejected(close)]);
    let (protocol, utf8, too_big) = (CloseReason::Protocol, CloseReason::Utf8, CloseReason::TooBig);
    check([
        rejected("not masked (5.1)", protocol, &[b"\x81\x01a".to_vec()]),
        rejected("reserved bit 1 (5.2)", protocol, &[frame(0xc1, b"a")]),
        rejected("reserved bit 2", protocol, &[frame(0xa1, b"a")]),
        rejected("reserved bit 3 on a ping", protocol, &[frame(0x99, b"")]),
        rejected(
            "length with the highest bit set (5.2)",
            protocol,
            &[b"\x82\xff\x80\0\0\0\0\0\0\x01\0\0\0\0".to_vec()],
        ),
        rejected("fragmented ping (5.5)", protocol, &[frame(0x09, b"")]),
        rejected("fragmented close", protocol, &[frame(0x08, b"")]),
        rejected("ping of 126 bytes (5.5)", protocol, &[frame(0x89, &[0; 126])[..8].to_vec()]),
        rejected("continuation without a message (5.4)", protocol, &[frame(0x80, b"a")]),
        rejected("frame over the limit, header only", too_big, &[frame(0x82, &[0; MAX + 1])[..8].to_vec()]),
        rejected(
            "frame of 2^63 - 1 bytes, header only",
            too_big,
            &[b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0".to_vec()],
        ),
        rejected("not UTF-8 (8.1)", utf8, &[frame(0x81, b"a\xff")]),
        rejected("not UTF-8, before the frame is complete", utf8, &[frame(0x81, b"a\xffbcdef")[..8].to_vec()]),
        rejected("half a character", utf8, &[frame(0x81, b"\xe2\x82")]),
        rejected("close of one byte (5.5.1)", protocol, &[frame(0x88, b"\x03")]),
        rejected("close reason not UTF-8", utf8, &[frame(0x88, b"\x03\xe8\xff")]),
        rejected("frames after an error are ignored", protocol, &[frame(0x83, b""), frame(0x81, b"a")]),
    ]);
}

#[test]
fn invalid_frame_sequences_are_rejected() {
    // `Observed` contains complete messages only, so that the first fragments are not in it.
    let rejected = |rule, close, frames: &[Vec<u8>]| (rule, frames.to_vec(), vec![Rejected(close)]);
    check([
        rejected("binary frame inside a text message", CloseReason::Protocol, &[frame(1, b"a"), frame(0x82, b"b")]),
        rejected("text frame inside a binary message", CloseReason::Protocol, &[frame(2, b"a"), frame(1, b"b")]),
        rejected(
            "fragments over the limit together",
            CloseReason::TooBig,
            &[frame(2, &[0; 200]), frame(0, &[0; 101])[..6].to_vec()],
        ),
        rejected(
            "half a character, empty last fragment",
            CloseReason::Utf8,
            &[frame(1, b"\xe2\x82"), frame(0x80, b"")],
        ),
        rejected("second fragment not UTF-8", CloseReason::Utf8, &[frame(1, b"\xe2\x82"), frame(0x80, b"a")]),
    ]);
    let (ended, again) = (frame(0x81, b"a"), frame(0x80, b"b"));
    check([(
        "continuation after the end of a message",
        vec![ended, again],
        vec![Text("a".into()), Rejected(CloseReason::Protocol)],
    )]);
}

#[test]
fn reserved_opcodes_and_invalid_close_codes_are_rejected() {
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        check([("reserved opcode (5.2)", vec![frame(FIN | opcode, b"")], vec![Rejected(CloseReason::Protocol)])]);
    }
    let valid = |code| matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
    for code in 0..=u16::MAX {
        let expected = if valid(code) { Closed(Some(code)) } else { Rejected(CloseReason::Protocol) };
        let bytes = frame(0x88, &code.to_be_bytes());
        assert_eq!(read(&bytes, &[bytes.len()]), [expected], "close code {code}");
        tungstenite_compat::assert_same(&bytes);
    }
}

#[test]
fn frame_reader_is_at_most_96_bytes() {
    assert!(size_of::<FrameReader>() <= 96, "at most 96 bytes, found {}", size_of::<FrameReader>());
}
