//! Server-sent events: the event stream format of the HTML standard (section 9.2, "Server-sent events").
//!
//! Guarantees:
//! - [`event`] appends one complete block with its blank line. Blocks can therefore be shared and concatenated.
//! - Nothing else ends a block, because widespread clients deliver a block without data as an empty message. What
//!   [`retry`] and [`comment`] append becomes a part of the next block.
//! - No argument can end a line, a field or a block, whatever characters it contains.

use memchr::memchr2;

/// Appends an event with id, name and data. An `EventSource` delivers an event without a name to `onmessage`.
///
/// A line end in `data` (`\n`, `\r\n` or a single `\r`, which are equal in the standard) starts a new `data:` line, and
/// the client receives `\n`. Line ends are removed from `name` and `id`, and U+0000 from `id`, because a client ignores an id
/// with U+0000.
pub fn event(out: &mut Vec<u8>, name: Option<&str>, id: Option<&str>, data: &str) {
    out.reserve(data.len() + name.map_or(0, str::len) + id.map_or(0, str::len) + 32);
    if let Some(id) = id {
        field(out, "id: ", id, |byte| byte != 0);
    }
    if let Some(name) = name {
        field(out, "event: ", name, |_| true);
    }
    lines(out, "data: ", data);
    out.push(b'\n');
}

/// Appends the time in milliseconds that the client waits before it reconnects. The line belongs to the next block.
pub fn retry(out: &mut Vec<u8>, ms: u128) {
    out.extend_from_slice(format!("retry: {ms}\n").as_bytes());
}

/// Appends comment lines, which clients ignore. They keep proxies from closing a quiet connection, and belong to the next
/// block.
pub fn comment(out: &mut Vec<u8>, text: &str) {
    lines(out, ": ", text);
}

fn field(out: &mut Vec<u8>, field: &str, value: &str, is_allowed: impl Fn(u8) -> bool) {
    out.extend_from_slice(field.as_bytes());
    out.extend(value.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n') && is_allowed(*byte)));
    out.push(b'\n');
}

fn lines(out: &mut Vec<u8>, field: &str, text: &str) {
    let mut rest = Some(text);
    while let Some(text) = rest {
        let line = &text[..memchr2(b'\r', b'\n', text.as_bytes()).unwrap_or(text.len())];
        let end = &text[line.len()..];
        rest = end.strip_prefix("\r\n").or_else(|| end.strip_prefix(['\r', '\n']));
        out.extend_from_slice(field.as_bytes());
        out.extend_from_slice(line.as_bytes());
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn blocks_follow_the_sse_specification() {
        let one = |name, id, data| written(|out| event(out, name, id, data));
        assert_eq!(one(None, None, "{}"), "data: {}\n\n");
        assert_eq!(one(Some("matrix-down"), Some("c1"), "{}"), "id: c1\nevent: matrix-down\ndata: {}\n\n");
        assert_eq!(one(None, None, ""), "data: \n\n");
        assert_eq!(one(None, None, "a\nb\r\nc\rd\n"), "data: a\ndata: b\ndata: c\ndata: d\ndata: \n\n");
        assert_eq!(one(None, None, "\n\r"), "data: \ndata: \ndata: \n\n");
        assert_eq!(one(Some("a\r\nid: x"), Some("1\n\ndata: y\0"), "z"), "id: 1data: y\nevent: aid: x\ndata: z\n\n");
        assert_eq!(written(|out| retry(out, 1500)), "retry: 1500\n");
        assert_eq!(written(|out| comment(out, "ok")), ": ok\n");
        assert_eq!(written(|out| comment(out, "a\ndata: b")), ": a\n: data: b\n");
    }

    /// Parses a stream as a client does (section 9.2.6 of the standard). Returns (type, last event id, data) of each
    /// event, and the reconnection time.
    fn parse(stream: &str) -> (Vec<(String, String, String)>, Option<u64>) {
        let (mut events, mut wait) = (Vec::new(), None);
        let (mut name, mut id, mut data) = (String::new(), String::new(), String::new());
        for line in stream.replace("\r\n", "\n").replace('\r', "\n").split('\n') {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                _ if line.is_empty() => {
                    if !data.is_empty() {
                        data.pop();
                        events.push((name.clone(), id.clone(), data.clone()));
                    }
                    name.clear();
                    data.clear();
                }
                "event" => name = value.to_owned(),
                "id" if !value.contains('\0') => id = value.to_owned(),
                "data" => data.extend([value, "\n"]),
                "retry" => wait = value.parse().ok(),
                _ => {}
            }
        }
        (events, wait)
    }

    /// Generates texts with many characters that could end a field.
    fn text_with_delimiters() -> impl Strategy<Value = String> {
        let bits = prop::sample::select(vec!["\r", "\n", "\r\n", ":", " ", "data", "id: 9", "\0", "é😀", "{\"a\":1}"]);
        prop::collection::vec(bits, 0..6).prop_map(|bits| bits.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn encoded_stream_round_trips_through_a_parser(
            name in prop::option::of(text_with_delimiters()),
            id in text_with_delimiters(),
            data in text_with_delimiters(),
            text in text_with_delimiters(),
            ms in any::<u64>(),
        ) {
            let stream = written(|out| {
                retry(out, ms.into());
                event(out, name.as_deref(), Some(&id), &data);
                comment(out, &text);
                event(out, None, None, "after");
            });
            prop_assert_eq!(stream.matches("\n\n").count(), 2, "only events end a block");
            let one_line = |text: &str| text.replace(['\r', '\n'], "");
            let id = one_line(&id).replace('\0', "");
            let received = data.replace("\r\n", "\n").replace('\r', "\n");
            let first = (one_line(&name.unwrap_or_default()), id.clone(), received);
            prop_assert_eq!(parse(&stream), (vec![first, (String::new(), id, "after".to_owned())], Some(ms)));
        }
    }
}
