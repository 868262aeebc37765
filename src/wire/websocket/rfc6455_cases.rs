//! RFC 6455's rules for client frames as tables, each row in every split and held against the oracle as well.
use super::{CloseReason, FIN, FrameReader, MessagePart, tungstenite_compat};

/// Small, so that a test's bytes stay few; above 125, so that no control frame is too big by it.
pub(super) const MAX: usize = 300;

/// What one stream of bytes led to: pieces (data chunks joined a message), and how it ended.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(super) enum Observed {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Closed(Option<u16>),
    Refused(CloseReason),
}
use Observed::{Binary, Closed, Ping, Pong, Refused, Text};

/// Reads `bytes` in portions of the given sizes, over and over.
pub(super) fn read(bytes: &[u8], sizes: &[usize]) -> Vec<Observed> {
    let (mut reader, mut observed, mut message) = (FrameReader::new(MAX), Vec::new(), None::<Vec<u8>>);
    let mut bytes = bytes.to_vec();
    let (mut left, mut sizes) = (&mut bytes[..], sizes.iter().cycle());
    while let Some(received) = left.split_off_mut(..(*sizes.next().unwrap()).min(left.len()))
        && !received.is_empty()
    {
        let mut at = 0;
        while at < received.len() {
            let (used, part) = match reader.read(&mut received[at..]) {
                Ok(read) => read,
                Err(close) => {
                    observed.push(Refused(close));
                    break;
                }
            };
            assert!(used > 0, "no progress");
            at += used;
            match part {
                None => {}
                Some(MessagePart::Ping(payload)) => observed.push(Ping(payload)),
                Some(MessagePart::Pong) => observed.push(Pong),
                Some(MessagePart::Close(code)) => observed.push(Closed(code)),
                Some(MessagePart::Data { text, chunk, first, last }) => {
                    assert_eq!(first, message.is_none());
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

/// A masked frame: first byte, payload.
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
            assert_eq!(read(&bytes, &[split]), expected, "{rule}, {split} bytes at a time");
        }
    }
}

#[test]
fn valid_frames_are_read() {
    let text = |words: &str| Text(words.to_owned());
    check([
        (
            "the RFC's example (5.7)",
            vec![b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58".to_vec()],
            vec![text("Hello")],
        ),
        ("empty messages", vec![frame(0x81, b""), frame(0x82, b"")], vec![text(""), Binary(vec![])]),
        ("fragments (5.4)", vec![frame(1, b"a"), frame(0, b""), frame(0x80, b"b")], vec![text("ab")]),
        ("empty last fragment", vec![frame(2, b"a"), frame(0x80, b"")], vec![Binary(b"a".to_vec())]),
        (
            "controls between fragments",
            vec![frame(1, b"a"), frame(0x89, b"p"), frame(0x8a, b"q"), frame(0x80, b"b")],
            vec![Ping(b"p".to_vec()), Pong, text("ab")],
        ),
        ("a character over fragments", vec![frame(1, b"\xe2"), frame(0x80, b"\x82\xac")], vec![text("€")]),
        ("the longest frame", vec![frame(0x82, &[7; MAX])], vec![Binary(vec![7; MAX])]),
        ("the longest message", vec![frame(2, &[7; 200]), frame(0x80, &[7; 100])], vec![Binary(vec![7; MAX])]),
        ("the longest ping", vec![frame(0x89, &[7; 125])], vec![Ping(vec![7; 125])]),
        (
            "a longer length than needed",
            vec![b"\x82\xff\0\0\0\0\0\0\0\x01\0\0\0\0x".to_vec()],
            vec![Binary(b"x".to_vec())],
        ),
        (
            "close and what follows",
            vec![frame(0x88, b"\x03\xe8bye"), frame(0x81, b"a"), vec![0xff; 9]],
            vec![Closed(Some(1000))],
        ),
        ("close without a code", vec![frame(0x88, b"")], vec![Closed(None)]),
        ("close within a message", vec![frame(1, b"a"), frame(0x88, b"\x0f\xa0")], vec![Closed(Some(4000))]),
    ]);
}

#[test]
fn invalid_frames_are_rejected() {
    let refused = |rule, close, frames: &[Vec<u8>]| (rule, frames.to_vec(), vec![Refused(close)]);
    let (protocol, utf8, too_big) = (CloseReason::Protocol, CloseReason::Utf8, CloseReason::TooBig);
    check([
        refused("not masked (5.1)", protocol, &[b"\x81\x01a".to_vec()]),
        refused("reserved bit 1 (5.2)", protocol, &[frame(0xc1, b"a")]),
        refused("reserved bit 2", protocol, &[frame(0xa1, b"a")]),
        refused("reserved bit 3 on a ping", protocol, &[frame(0x99, b"")]),
        refused("length with the top bit (5.2)", protocol, &[b"\x82\xff\x80\0\0\0\0\0\0\x01\0\0\0\0".to_vec()]),
        refused("fragmented ping (5.5)", protocol, &[frame(0x09, b"")]),
        refused("fragmented close", protocol, &[frame(0x08, b"")]),
        refused("ping of 126 bytes (5.5)", protocol, &[frame(0x89, &[0; 126])[..8].to_vec()]),
        refused("continuation of nothing (5.4)", protocol, &[frame(0x80, b"a")]),
        refused("frame too big, by its header alone", too_big, &[frame(0x82, &[0; MAX + 1])[..8].to_vec()]),
        refused("huge, by its header alone", too_big, &[b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0".to_vec()]),
        refused("not UTF-8 (8.1)", utf8, &[frame(0x81, b"a\xff")]),
        refused("not UTF-8, with the rest on its way", utf8, &[frame(0x81, b"a\xffbcdef")[..8].to_vec()]),
        refused("half a character", utf8, &[frame(0x81, b"\xe2\x82")]),
        refused("close of one byte (5.5.1)", protocol, &[frame(0x88, b"\x03")]),
        refused("close reason not UTF-8", utf8, &[frame(0x88, b"\x03\xe8\xff")]),
        refused("after a refusal nothing counts", protocol, &[frame(0x83, b""), frame(0x81, b"a")]),
    ]);
}

#[test]
fn invalid_frame_sequences_are_rejected() {
    // Data chunks of a message that never ended are not among what was observed.
    let refused = |rule, close, frames: &[Vec<u8>]| (rule, frames.to_vec(), vec![Refused(close)]);
    check([
        refused("binary in a text", CloseReason::Protocol, &[frame(1, b"a"), frame(0x82, b"b")]),
        refused("text in a binary", CloseReason::Protocol, &[frame(2, b"a"), frame(1, b"b")]),
        refused("sum too big", CloseReason::TooBig, &[frame(2, &[0; 200]), frame(0, &[0; 101])[..6].to_vec()]),
        refused("half a character, empty end", CloseReason::Utf8, &[frame(1, b"\xe2\x82"), frame(0x80, b"")]),
        refused("second fragment not UTF-8", CloseReason::Utf8, &[frame(1, b"\xe2\x82"), frame(0x80, b"a")]),
    ]);
    let (ended, again) = (frame(0x81, b"a"), frame(0x80, b"b"));
    check([(
        "continuation of an ended message",
        vec![ended, again],
        vec![Text("a".into()), Refused(CloseReason::Protocol)],
    )]);
}

#[test]
fn reserved_opcodes_and_invalid_close_codes_are_rejected() {
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        check([("reserved opcode (5.2)", vec![frame(FIN | opcode, b"")], vec![Refused(CloseReason::Protocol)])]);
    }
    let valid = |code| matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
    for code in 0..=u16::MAX {
        let expected = if valid(code) { Closed(Some(code)) } else { Refused(CloseReason::Protocol) };
        let bytes = frame(0x88, &code.to_be_bytes());
        assert_eq!(read(&bytes, &[bytes.len()]), [expected], "{code}");
        tungstenite_compat::assert_same(&bytes);
    }
}

#[test]
fn frame_reader_is_at_most_96_bytes() {
    assert!(size_of::<FrameReader>() <= 96, "{} bytes", size_of::<FrameReader>());
}
