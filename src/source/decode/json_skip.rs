//! Finds the length of a JSON value without parsing it. Most of a watch line is data that no view contains.
//!
//! Guarantees: the length is exact for compact JSON, as API servers write it. Other text is checked only for a broken
//! structure: brackets and strings must end, and a string must start where JSON allows one. Without that rule, one extra
//! quote would turn text into structure. A value without a length here must be parsed by a complete parser.
//!
//! Objects and arrays are processed in blocks of 64 bytes, with the widest vectors of the processor. A `u64` is a set of
//! places in a block: bit n is the place n.

use std::mem::replace;

use fearless_simd::{Level, Simd, dispatch, prelude::*, u8x64};
use memchr::memchr2;

/// Bytes of a block: the number of bits of a `u64`.
const BLOCK: usize = 64;

/// Returns the content of the string at the start of `text` if it is plain: ASCII without escapes and control characters.
///
/// The first byte of `text` must be a quote. The search reads 8 bytes at once, so the result may be `None` for a string that
/// ends within the last 7 bytes of `text`.
pub(super) fn plain_string(text: &[u8]) -> Option<&[u8]> {
    /// A word with this byte in each place.
    const fn all(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    let text = text.get(1..)?;
    let end = text.as_chunks().0.iter().enumerate().find_map(|(n, bytes)| {
        let bytes = u64::from_le_bytes(*bytes);
        let zero = |bytes: u64| bytes.wrapping_sub(all(1));
        // The highest bit of a byte is set if the byte is special. No subtraction borrows before the first special byte.
        let special = zero(bytes ^ all(b'"')) | zero(bytes ^ all(b'\\')) | bytes.wrapping_sub(all(b' ')) | bytes;
        let special = special & all(0x80);
        (special != 0).then(|| n * 8 + special.trailing_zeros() as usize / 8)
    })?;
    (text[end] == b'"').then(|| &text[..end])
}

/// Returns the length of the string at the start of `text`, or `None` if it has no end. The first byte must be a quote.
pub(super) fn string_len(text: &[u8]) -> Option<usize> {
    // Most strings are short and plain.
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

/// Returns the length of the object or array at the start of `text`, or `None` if it has no end.
///
/// The first byte must be an opening bracket.
pub(super) fn container_len(text: &[u8]) -> Option<usize> {
    dispatch!(Level::new(), simd => len_by_blocks(simd, text))
}

// Code with vector instructions must be inlined into `dispatch!`, which enables them.
#[inline(always)]
fn len_by_blocks<S: Simd>(simd: S, text: &[u8]) -> Option<usize> {
    let mut state = State { depth: 1, in_string: false, escaped: false, string_may_start: true };
    let (blocks, rest) = text.get(1..)?.as_chunks();
    for (n, block) in blocks.iter().enumerate() {
        if let Some(end) = state.find_end(u8x64::simd_from(simd, *block)).ok()? {
            return Some(1 + n * BLOCK + end);
        }
    }
    let mut last = [b' '; BLOCK];
    last[..rest.len()].copy_from_slice(rest);
    state.find_end(u8x64::simd_from(simd, last)).ok()?.map(|end| 1 + blocks.len() * BLOCK + end)
}

/// The state at the start of a block.
struct State {
    /// Number of open brackets.
    depth: u32,
    in_string: bool,
    /// The previous byte is a backslash that escapes the next one.
    escaped: bool,
    /// A string may follow the previous byte.
    string_may_start: bool,
}

/// The structure is broken, so there is no length.
struct Unbalanced;

impl State {
    /// Processes a block. Returns the place after the bracket that closes the last open one, if it is in this block.
    #[inline(always)]
    fn find_end<S: Simd>(&mut self, block: u8x64<S>) -> Result<Option<usize>, Unbalanced> {
        let backslashes = block.simd_eq(b'\\').to_bitmask();
        let mut quotes = block.simd_eq(b'"').to_bitmask();
        if backslashes != 0 || self.escaped {
            quotes &= !self.escaped_places(backslashes);
        }
        // `[` and `{`, and `]` and `}`, differ in this bit only.
        let brackets = block | 0x20;
        let opens = brackets.simd_eq(b'{').to_bitmask();
        let closes = brackets.simd_eq(b'}').to_bitmask();
        // The mask matches comma, colon, and six other bytes. In compact JSON, none of the six comes before a string.
        let separators = (block & !0x16).simd_eq(0x28).to_bitmask();
        let in_strings = self.in_strings(quotes);
        let before = opens | separators;
        if quotes & in_strings & !shifted(before, replace(&mut self.string_may_start, is_last(before))) != 0 {
            return Err(Unbalanced);
        }
        let (opens, closes) = (opens & !in_strings, closes & !in_strings);
        if closes.count_ones() >= self.depth {
            return Ok(match count_brackets(self.depth, opens, closes) {
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

    /// Returns the places after backslashes that escape.
    #[inline(always)]
    fn escaped_places(&mut self, backslashes: u64) -> u64 {
        let following = shifted(backslashes, self.escaped);
        if following & backslashes == 0 {
            self.escaped = is_last(backslashes);
            return following;
        }
        let escaped;
        (escaped, self.escaped) = escaped_in_runs(backslashes, self.escaped);
        escaped
    }

    /// Returns the places from each opening quote to the place before its closing quote. The number of quotes up to each of
    /// them is odd.
    #[inline(always)]
    fn in_strings(&mut self, quotes: u64) -> u64 {
        let mut parity = quotes;
        for shift in [1, 2, 4, 8, 16, 32] {
            parity ^= parity << shift;
        }
        let in_strings = if self.in_string { !parity } else { parity };
        self.in_string = is_last(in_strings);
        in_strings
    }
}

// The cold functions take values: a reference to the state would force it into memory in the hot path.

/// Returns the places after backslashes that escape, for adjacent backslashes that may be escaped themselves. Returns also
/// whether the last place is such a backslash.
#[cold]
fn escaped_in_runs(backslashes: u64, first_is_escaped: bool) -> (u64, bool) {
    let mut escaped = u64::from(first_is_escaped);
    let mut rest = backslashes & !escaped;
    let mut last_escapes = false;
    while rest != 0 {
        let first = rest & rest.wrapping_neg();
        last_escapes = is_last(first);
        escaped |= first << 1;
        rest &= !(first | first << 1);
    }
    (escaped, last_escapes)
}

enum Closed {
    /// The place after the bracket that closes the last open one.
    At(usize),
    /// Brackets are still open at the end of the block: `depth` of them.
    Not { depth: u32 },
}

/// Counts the brackets of a block one by one.
#[cold]
fn count_brackets(mut depth: u32, opens: u64, closes: u64) -> Closed {
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

/// Returns the places after the given ones. `from_before`: the last place of the previous block is one of them.
#[inline(always)]
fn shifted(places: u64, from_before: bool) -> u64 {
    places << 1 | u64::from(from_before)
}

/// Returns whether the last place of the block is in the set.
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

    /// The reference implementation, byte by byte.
    fn slow_len(text: &[u8]) -> Option<usize> {
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

    /// The results with each vector width that this processor supports.
    #[cfg(target_arch = "x86_64")]
    fn with_every_width(text: &[u8]) -> Vec<Option<usize>> {
        let level = Level::new();
        let ends = [
            level.as_sse2().map(|simd| len_by_blocks(simd, text)),
            level.as_sse4_2().map(|simd| len_by_blocks(simd, text)),
            level.as_avx2().map(|simd| len_by_blocks(simd, text)),
            level.as_avx512().map(|simd| len_by_blocks(simd, text)),
        ];
        ends.into_iter().flatten().collect()
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn with_every_width(text: &[u8]) -> Vec<Option<usize>> {
        vec![container_len(text)]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

        /// The text has many brackets, quotes and escapes, is long enough for several blocks, and is seldom valid JSON.
        #[test]
        fn container_end_matches_a_byte_by_byte_scan(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "{", "}", "[", "]", "\"", "\\", "\\\\", "\\\"", "\"a\":", ",", "\"{\"", "\u{e9}", "[]", "        ",
                    "aaaaaaaaaaaaaaaaaaaaaaa", "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"",
                ]),
                0..200,
            ),
        ) {
            let text = format!("{{{}", parts.concat());
            let end = container_len(text.as_bytes());
            if end.is_some() {
                prop_assert_eq!(end, slow_len(text.as_bytes()));
            }
            prop_assert!(with_every_width(text.as_bytes()).into_iter().all(|other| other == end));
        }

        /// Any JSON inside, before and after the value.
        #[test]
        fn container_end_is_correct_for_any_json(before in any_json(), inner in any_json(), after in any_json()) {
            let text = json!([before, {"\\": inner}, after]).to_string();
            prop_assert_eq!(container_len(text.as_bytes()), Some(text.len()));
            let inner = json!({"\\": inner}).to_string();
            let from = json!([before]).to_string().len();
            prop_assert_eq!(container_len(&text.as_bytes()[from..]), Some(inner.len()), "the length of {} in {}", inner, text);
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
