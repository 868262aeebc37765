//! How long a JSON value is, found without reading it: a watch line is mostly what nobody wants.
//!
//! Exact for compact JSON, as API servers write it. Of all else only so much is noticed as shows that the structure is
//! broken: brackets and strings must end, and a string must begin where one may, or a quote too many would turn texts
//! into structure. What has no length here is for a real parser to judge.
//!
//! Objects and arrays are taken 64 bytes at a time, with the widest vectors that the processor has. A set of places in
//! such a block is a `u64`: bit n of it is the place n.

use std::mem::replace;

use fearless_simd::{Level, Simd, dispatch, prelude::*, u8x64};
use memchr::memchr2;

/// Bytes looked at together: as many as a `u64` has bits.
const BLOCK: usize = 64;

/// What stands in the string that begins with `text`'s first byte, a quote, if that is ASCII as it is meant: without
/// escapes and control characters. `None` too for one at the very end of `text`.
pub(super) fn plain_string(text: &[u8]) -> Option<&[u8]> {
    /// This byte in each place.
    const fn all(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    let text = text.get(1..)?;
    let end = text.as_chunks().0.iter().enumerate().find_map(|(n, bytes)| {
        let bytes = u64::from_le_bytes(*bytes);
        let zero = |bytes: u64| bytes.wrapping_sub(all(1));
        // The highest bit of a byte says that it is special. Up to the first that is so, none borrows from the next.
        let special = zero(bytes ^ all(b'"')) | zero(bytes ^ all(b'\\')) | bytes.wrapping_sub(all(b' ')) | bytes;
        let special = special & all(0x80);
        (special != 0).then(|| n * 8 + special.trailing_zeros() as usize / 8)
    })?;
    (text[end] == b'"').then(|| &text[..end])
}

/// The length of the string that begins with `text`'s first byte, a quote; `None` when it has no end.
pub(super) fn string_len(text: &[u8]) -> Option<usize> {
    // Most are short.
    if let Some(inner) = plain_string(text) {
        return Some(inner.len() + 2);
    }
    let mut at = 1;
    loop {
        at += memchr2(b'"', b'\\', text.get(at..)?)?;
        if text[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}

/// The length of the object or array that begins with `text`'s first byte, a bracket; `None` when it has no end.
pub(super) fn container_len(text: &[u8]) -> Option<usize> {
    dispatch!(Level::new(), simd => by_blocks(simd, text))
}

// What runs with the processor's own instructions must be inlined into where `dispatch!` allows them.
#[inline(always)]
fn by_blocks<S: Simd>(simd: S, text: &[u8]) -> Option<usize> {
    let mut state = State { depth: 1, in_string: false, escaped: false, string_may_start: true };
    let (blocks, rest) = text.get(1..)?.as_chunks();
    for (n, block) in blocks.iter().enumerate() {
        if let Some(end) = state.end(u8x64::simd_from(simd, *block)).ok()? {
            return Some(1 + n * BLOCK + end);
        }
    }
    let mut last = [b' '; BLOCK];
    last[..rest.len()].copy_from_slice(rest);
    state.end(u8x64::simd_from(simd, last)).ok()?.map(|end| 1 + blocks.len() * BLOCK + end)
}

/// Where a block begins.
struct State {
    /// Brackets that are open.
    depth: u32,
    in_string: bool,
    /// The byte before is a backslash that counts.
    escaped: bool,
    /// The byte before is one that a string may follow.
    string_may_start: bool,
}

/// No length.
struct Unbalanced;

impl State {
    /// Goes through a block; the place behind the bracket that closes the last open one, if it is there.
    #[inline(always)]
    fn end<S: Simd>(&mut self, block: u8x64<S>) -> Result<Option<usize>, Unbalanced> {
        let backslashes = block.simd_eq(b'\\').to_bitmask();
        let mut quotes = block.simd_eq(b'"').to_bitmask();
        if backslashes != 0 || self.escaped {
            quotes &= !self.escaped(backslashes);
        }
        // The two kinds of brackets differ by this one bit.
        let brackets = block | 0x20;
        let opens = brackets.simd_eq(b'{').to_bitmask();
        let closes = brackets.simd_eq(b'}').to_bitmask();
        // Comma and colon, and with them six bytes that are before no string of compact JSON anyway.
        let separators = (block & !0x16).simd_eq(0x28).to_bitmask();
        let in_strings = self.in_strings(quotes);
        let before = opens | separators;
        if quotes & in_strings & !shifted(before, replace(&mut self.string_may_start, is_last(before))) != 0 {
            return Err(Unbalanced);
        }
        let (opens, closes) = (opens & !in_strings, closes & !in_strings);
        if closes.count_ones() >= self.depth {
            return Ok(match close(self.depth, opens, closes) {
                Closed::At(end) => Some(end),
                Closed::Not { depth } => {
                    self.depth = depth;
                    None
                }
            });
        }
        self.depth = self.depth + opens.count_ones() - closes.count_ones();
        Ok(None)
    }

    /// The places behind backslashes that count.
    #[inline(always)]
    fn escaped(&mut self, backslashes: u64) -> u64 {
        let behind = shifted(backslashes, self.escaped);
        if behind & backslashes == 0 {
            self.escaped = is_last(backslashes);
            return behind;
        }
        let escaped;
        (escaped, self.escaped) = escaped_in_runs(backslashes, self.escaped);
        escaped
    }

    /// The places from each opening quote up to its closing one: those with an odd number of quotes up to them.
    #[inline(always)]
    fn in_strings(&mut self, quotes: u64) -> u64 {
        let mut odd = quotes;
        for shift in [1, 2, 4, 8, 16, 32] {
            odd ^= odd << shift;
        }
        let in_strings = if self.in_string { !odd } else { odd };
        self.in_string = is_last(in_strings);
        in_strings
    }
}

// What is seldom needed is given values: a reference to the state would keep it in memory all the way.

/// The places behind backslashes that count, where those stand side by side and one may be escaped itself; and whether
/// the last place is such a backslash.
#[cold]
fn escaped_in_runs(backslashes: u64, first_is_escaped: bool) -> (u64, bool) {
    let mut escaped = u64::from(first_is_escaped);
    let mut rest = backslashes & !escaped;
    let mut last_counts = false;
    while rest != 0 {
        let first = rest & rest.wrapping_neg();
        last_counts = is_last(first);
        escaped |= first << 1;
        rest &= !(first | first << 1);
    }
    (escaped, last_counts)
}

enum Closed {
    /// The place behind the bracket that closes the last open one.
    At(usize),
    /// So many brackets are open at the end.
    Not { depth: u32 },
}

/// Bracket by bracket.
#[cold]
fn close(mut depth: u32, opens: u64, closes: u64) -> Closed {
    let mut brackets = opens | closes;
    while brackets != 0 {
        let place = brackets.trailing_zeros();
        if closes >> place & 1 == 0 {
            depth += 1;
        } else {
            depth -= 1;
            if depth == 0 {
                return Closed::At(place as usize + 1);
            }
        }
        brackets &= brackets - 1;
    }
    Closed::Not { depth }
}

/// The places one on from these, with what comes over from the block before.
#[inline(always)]
fn shifted(places: u64, from_before: bool) -> u64 {
    places << 1 | u64::from(from_before)
}

/// Whether the last place is among them.
#[inline(always)]
fn is_last(places: u64) -> bool {
    places >> 63 == 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::source::decode::tests::any_json;

    /// Byte by byte.
    fn slow(text: &[u8]) -> Option<usize> {
        let (mut depth, mut in_string, mut escaped) = (0, false, false);
        for (at, byte) in text.iter().enumerate() {
            let is_escaped = escaped;
            escaped = *byte == b'\\' && !escaped;
            match byte {
                b'"' if !is_escaped && !in_string && !b"{[,:(*.8<>".contains(&text[at - 1]) => return None,
                b'"' if !is_escaped => in_string = !in_string,
                _ if in_string => {}
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Some(at + 1);
            }
        }
        None
    }

    /// With each width of vectors that this processor has.
    #[cfg(target_arch = "x86_64")]
    fn with_every_width(text: &[u8]) -> Vec<Option<usize>> {
        let level = Level::new();
        let ends = [
            level.as_sse2().map(|simd| by_blocks(simd, text)),
            level.as_sse4_2().map(|simd| by_blocks(simd, text)),
            level.as_avx2().map(|simd| by_blocks(simd, text)),
            level.as_avx512().map(|simd| by_blocks(simd, text)),
        ];
        ends.into_iter().flatten().collect()
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn with_every_width(text: &[u8]) -> Vec<Option<usize>> {
        vec![container(text)]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

        /// Rich in what could be misjudged, long enough for several blocks, and seldom JSON.
        #[test]
        fn container_end_matches_a_byte_by_byte_scan(
            bits in prop::collection::vec(
                prop::sample::select(vec![
                    "{", "}", "[", "]", "\"", "\\", "\\\\", "\\\"", "\"a\":", ",", "\"{\"", "\u{e9}", "[]", "        ",
                    "aaaaaaaaaaaaaaaaaaaaaaa", "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"",
                ]),
                0..200,
            ),
        ) {
            let text = format!("{{{}", bits.concat());
            let end = container_len(text.as_bytes());
            if end.is_some() {
                prop_assert_eq!(end, slow(text.as_bytes()));
            }
            prop_assert!(with_every_width(text.as_bytes()).into_iter().all(|other| other == end));
        }

        /// Whatever stands in it, wherever it stands, and whatever follows.
        #[test]
        fn container_end_is_correct_for_any_json(before in any_json(), inner in any_json(), after in any_json()) {
            let text = json!([before, {"\\": inner}, after]).to_string();
            prop_assert_eq!(container_len(text.as_bytes()), Some(text.len()));
            let inner = json!({"\\": inner}).to_string();
            let from = json!([before]).to_string().len();
            prop_assert_eq!(container_len(&text.as_bytes()[from..]), Some(inner.len()), "{} in {}", inner, text);
        }

        #[test]
        fn plain_string_returns_only_unescaped_ascii(
            inner in prop::collection::vec(
                prop_oneof![8 => 0x20_u8..0x7f, 1 => any::<u8>(), 1 => prop::sample::select(b"\"\\\x1f\x7f\x80".to_vec())],
                0..40,
            ),
            after in "[a\"\\\\\t]{0,20}",
        ) {
            let text = [b"\"", &inner[..], b"\"", after.as_bytes()].concat();
            let end = 1 + text[1..].iter().position(|byte| *byte == b'"').unwrap();
            let is_plain = text[1..end].iter().all(|byte| (0x20..0x80).contains(byte) && *byte != b'\\');
            match plain_string(&text) {
                Some(found) => prop_assert_eq!(Some(found), is_plain.then(|| &text[1..end])),
                None => prop_assert!(!is_plain || text.len() - end < 8),
            }
        }

        #[test]
        fn string_ends_at_its_first_unescaped_quote(text in r#""(a|\\\\|\\"|"|\{){0,40}"#) {
            let mut escaped = false;
            let end = text.bytes().enumerate().skip(1).find(|(_, byte)| {
                let is_end = *byte == b'"' && !escaped;
                escaped = *byte == b'\\' && !escaped;
                is_end
            });
            prop_assert_eq!(string_len(text.as_bytes()), end.map(|(at, _)| at + 1));
        }
    }
}
