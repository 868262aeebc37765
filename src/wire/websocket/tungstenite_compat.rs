//! Comparison with tungstenite: [`FrameReader`](super::FrameReader) on random and damaged streams, and the written
//! frames.
//!
//! These differences are intended. [`assert_same`] and [`read_with_tungstenite`] handle all of them:
//! - Section 5.2, a 64-bit length with the highest bit set: `FrameReader` reports a protocol error, tungstenite a
//!   message that is too big.
//! - Section 7.4.2, close code 1014: `FrameReader` accepts it, because IANA has registered it. tungstenite rejects it.
//! - Section 7.1.7, time of the error: `FrameReader` rejects a frame after its header or at the first invalid byte,
//!   tungstenite after the complete frame.
use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
};

use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::{Index, select},
    test_runner::{TestError, TestRunner},
};
use tokio_tungstenite::tungstenite::{
    Error, Message,
    error::CapacityError,
    protocol::{Role, WebSocket, WebSocketConfig},
};

use super::{
    CloseReason,
    rfc6455_cases::{MAX, Observed, read},
};

/// A socket that returns the bytes and then `WouldBlock`. It discards written bytes.
struct ScriptedInput<'a>(&'a [u8]);

impl Read for ScriptedInput<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { self.0.read(buffer) }
    }
}

impl Write for ScriptedInput<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads `bytes` with tungstenite.
fn read_with_tungstenite(bytes: &[u8], role: Role, max: usize) -> Vec<Observed> {
    let config =
        WebSocketConfig::default().read_buffer_size(1024).max_message_size(Some(max)).max_frame_size(Some(max));
    let mut socket = WebSocket::from_raw_socket(ScriptedInput(bytes), role, Some(config));
    let mut observed = Vec::new();
    loop {
        observed.push(match socket.read() {
            Ok(Message::Text(text)) => Observed::Text(text.to_string()),
            Ok(Message::Binary(bytes)) => Observed::Binary(bytes.to_vec()),
            Ok(Message::Ping(payload)) => Observed::Ping(payload.to_vec()),
            Ok(Message::Pong(_)) => Observed::Pong,
            // tungstenite reports an invalid close code in this way. It does not report the code itself.
            Ok(Message::Close(Some(frame))) if frame.reason.as_str() == "Protocol violation" => {
                Observed::Rejected(CloseReason::Protocol)
            }
            Ok(Message::Close(frame)) => Observed::Closed(frame.map(|frame| frame.code.into())),
            Ok(Message::Frame(_)) => unreachable!("`read` returns no raw frames"),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return observed,
            Err(Error::Capacity(CapacityError::MessageTooLong { size, .. })) if size >> 63 == 0 => {
                Observed::Rejected(CloseReason::TooBig)
            }
            Err(Error::Capacity(_) | Error::Protocol(_)) => Observed::Rejected(CloseReason::Protocol),
            Err(Error::Utf8(_)) => Observed::Rejected(CloseReason::Utf8),
            Err(error) => panic!("tungstenite: {error}"),
        });
        if matches!(observed.last(), Some(Observed::Closed(_) | Observed::Rejected(_))) {
            return observed;
        }
    }
}

/// Reads `bytes` with both readers, panics if the results differ, and returns the result.
pub(super) fn assert_same(bytes: &[u8]) -> Vec<Observed> {
    let ours = read(bytes, &[bytes.len()]);
    let mut theirs = read_with_tungstenite(bytes, Role::Server, MAX);
    if matches!(ours.last(), Some(Observed::Rejected(_))) && ours.len() == theirs.len() + 1 {
        // `FrameReader` rejected an incomplete frame. tungstenite must reject it too, once the frame is complete.
        let completed = [bytes, &[0; MAX]].concat();
        theirs = read_with_tungstenite(&completed, Role::Server, MAX);
    }
    if let (Some(Observed::Closed(Some(1014))), Some(last)) = (ours.last(), theirs.last_mut()) {
        assert_eq!(*last, Observed::Rejected(CloseReason::Protocol));
        *last = Observed::Closed(Some(1014));
    }
    assert_eq!(ours, theirs, "FrameReader (left) and tungstenite (right) must agree");
    ours
}

/// A frame of a client, valid or invalid.
#[derive(Debug, Clone)]
struct Frame {
    first: u8,
    payload: Vec<u8>,
    mask: Option<[u8; 4]>,
    /// The minimum number of bytes for the extended length: 0, 2 or 8.
    length_bytes: usize,
}

impl Frame {
    fn append(&self, out: &mut Vec<u8>) {
        let masked = if self.mask.is_some() { 0x80 } else { 0 };
        let len = self.payload.len();
        out.push(self.first);
        match (self.length_bytes, len) {
            (0, 0..=125) => out.push(masked | len as u8),
            (0 | 2, _) => {
                out.push(masked | 126);
                out.extend((len as u16).to_be_bytes());
            }
            _ => {
                out.push(masked | 127);
                out.extend((len as u64).to_be_bytes());
            }
        }
        let mask = self.mask.unwrap_or_default();
        out.extend(self.mask.iter().flatten());
        out.extend(self.payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    }
}

/// Generates frames of a correct client: messages in fragments of any length, with control frames in between.
fn frames() -> impl Strategy<Value = Vec<Frame>> {
    let text = vec(select(vec!["a", "é", "€", "😀", "\u{7ff}", "\u{ffff}", "word "]), 0..8)
        .prop_map(|words| (0x1, words.concat().into_bytes()));
    let binary = vec(any::<u8>(), 0..8).prop_map(|bytes| (0x2, bytes));
    let long = (1u8..=2, prop_oneof![124usize..=128, MAX - 2..=MAX + 2]).prop_map(|(op, len)| (op, vec![b'x'; len]));
    let message = (prop_oneof![4 => text, 2 => binary, 1 => long], vec(any::<Index>(), 0..4)).prop_map(
        |((opcode, bytes), mut cuts): ((u8, Vec<u8>), Vec<Index>)| {
            let mut cuts: Vec<usize> = cuts.drain(..).map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.sort_unstable();
            let starts = std::iter::once(0).chain(cuts.iter().copied());
            let ends = cuts.iter().copied().chain([bytes.len()]);
            let mut parts: Vec<(u8, Vec<u8>)> =
                starts.zip(ends).map(|(start, end)| (0x0, bytes[start..end].to_vec())).collect();
            parts[0].0 = opcode;
            parts.last_mut().unwrap().0 |= 0x80;
            parts
        },
    );
    let small = (select(vec![0x89, 0x8a]), prop_oneof![9 => 0usize..6, 1 => 124usize..=126])
        .prop_map(|(first, len)| (first, vec![b'p'; len]));
    let code = prop_oneof![select(vec![999, 1000, 1001, 1004, 1005, 1014, 1015, 2999, 3000, 4999, 5000]), any::<u16>()];
    let reason = select(vec![&b""[..], b"bye", "ciao é".as_bytes(), b"\xff"]);
    let close = option::weighted(0.9, (code, reason))
        .prop_map(|body| (0x88, body.map_or(Vec::new(), |(code, reason)| [&code.to_be_bytes()[..], reason].concat())));
    let parts = (vec(message, 1..4), vec((any::<Index>(), small), 0..3), option::weighted(0.3, close)).prop_map(
        |(messages, small, close)| {
            let mut parts = messages.concat();
            for (at, control) in small {
                parts.insert(at.index(parts.len() + 1), control);
            }
            parts.extend(close);
            parts
        },
    );
    let mask = prop_oneof![Just([0; 4]), any::<[u8; 4]>()];
    (parts, mask, prop_oneof![4 => Just(0usize), 1 => Just(2), 1 => Just(8)]).prop_map(|(parts, mask, length_bytes)| {
        let frame = |(first, payload)| Frame { first, payload, mask: Some(mask), length_bytes };
        parts.into_iter().map(frame).collect()
    })
}

/// A change to a stream that makes it invalid in most cases.
#[derive(Debug, Clone)]
enum Damage {
    Remove(Index),
    Repeat(Index),
    Unmask(Index),
    Head(Index, u8),
    Flip(Index, u8),
    Cut(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        any::<Index>().prop_map(Damage::Remove),
        any::<Index>().prop_map(Damage::Repeat),
        any::<Index>().prop_map(Damage::Unmask),
        (any::<Index>(), any::<u8>()).prop_map(|(at, first)| Damage::Head(at, first)),
        (any::<Index>(), 0u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        (any::<Index>(), 0u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        any::<Index>().prop_map(Damage::Cut),
    ]
}

fn bytes(mut frames: Vec<Frame>, damages: &[Damage]) -> Vec<u8> {
    for damage in damages {
        if frames.is_empty() {
            break;
        }
        let len = frames.len();
        match damage {
            Damage::Remove(at) => drop(frames.remove(at.index(len))),
            Damage::Repeat(at) => frames.push(frames[at.index(len)].clone()),
            Damage::Unmask(at) => frames[at.index(len)].mask = None,
            Damage::Head(at, first) => frames[at.index(len)].first = *first,
            Damage::Flip(..) | Damage::Cut(_) => {}
        }
    }
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.append(&mut bytes));
    for damage in damages {
        if bytes.is_empty() {
            break;
        }
        match damage {
            Damage::Flip(at, bit) => *at.get_mut(&mut bytes) ^= 1 << bit,
            Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Damage::Remove(_) | Damage::Repeat(_) | Damage::Unmask(_) | Damage::Head(..) => {}
        }
    }
    bytes
}

#[test]
fn client_frames_are_read_as_by_tungstenite() {
    const CASES: u32 = 20_000;
    let config = ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() };
    let outcomes = std::cell::RefCell::new(BTreeMap::<String, u32>::new());
    let streams = (frames(), prop_oneof![2 => vec(damage(), 1..3), 1 => Just(Vec::new())]);
    let tested = TestRunner::new(config).run(&(streams, vec(1usize..20, 1..5)), |((frames, damages), sizes)| {
        let bytes = bytes(frames, &damages);
        let observed = assert_same(&bytes);
        prop_assert_eq!(&observed, &read(&bytes, &[1]), "byte by byte");
        prop_assert_eq!(&observed, &read(&bytes, &sizes), "in parts of {:?} bytes", sizes);
        for at in (1..bytes.len()).filter(|_| bytes.len() <= 48) {
            prop_assert_eq!(&observed, &read(&bytes, &[at, bytes.len() - at]), "split at {}", at);
        }
        let outcome = match observed.last() {
            Some(Observed::Closed(_)) => "closed".to_owned(),
            Some(Observed::Rejected(close)) => format!("{close:?}"),
            _ => "open".to_owned(),
        };
        *outcomes.borrow_mut().entry(outcome).or_default() += 1;
        Ok(())
    });
    match tested {
        Ok(()) => {}
        Err(TestError::Fail(reason, input)) => panic!("{reason}\n{input:?}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
    // Without streams of each outcome, the comparison would prove little.
    let outcomes = outcomes.into_inner();
    for outcome in ["open", "closed", "Protocol", "Utf8", "TooBig"] {
        let count = outcomes.get(outcome).copied().unwrap_or(0);
        assert!(
            count >= CASES / 50,
            "{outcome}: expected at least {} streams, found {count} in {outcomes:?}",
            CASES / 50
        );
    }
}

#[test]
fn server_frames_are_read_by_tungstenite() {
    let (mut out, mut expected) = (Vec::new(), Vec::new());
    for len in [0, 1, 125, 126, 127, 65_535, 65_536, 100_000] {
        super::text(&mut out, &"x".repeat(len));
        super::binary(&mut out, &vec![0xff; len]);
        super::ping(&mut out);
        super::pong(&mut out, &vec![1; len.min(super::MAX_CONTROL_PAYLOAD)]);
        expected.extend([Observed::Text("x".repeat(len)), Observed::Binary(vec![0xff; len])]);
        expected.extend([Observed::Ping(Vec::new()), Observed::Pong]);
    }
    for reason in [CloseReason::Normal, CloseReason::AccessRevoked, CloseReason::UpstreamUnavailable] {
        let mut out = out.clone();
        super::close(&mut out, reason);
        let expected: Vec<Observed> = expected.iter().cloned().chain([Observed::Closed(Some(reason.code()))]).collect();
        assert!(
            read_with_tungstenite(&out, Role::Client, 100_000) == expected,
            "frames before a close with {reason:?}"
        );
    }
}
