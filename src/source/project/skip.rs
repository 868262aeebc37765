//! How long a JSON value is, found without reading it: a watch line is mostly what nobody wants.
//!
//! Exact for compact JSON, as API servers write it. Of all else only so much is noticed as shows that the structure is
//! broken: brackets and strings must end, and a string must begin where one may, or a quote too many would turn texts
//! into structure. What has no length here is for a real parser to judge.
//!
//! Objects and arrays are taken 64 bytes at a time. A set of places in such a block is a `u64`, in an order that
//! compilers find by themselves with vector instructions: byte c of it, bit r, is the place 8 * r + c.

use std::mem::replace;

use memchr::memchr2;

/// Bytes looked at together: as many as a `u64` has bits.
const BLOCK: usize = 64;

/// The bit of each place, within its byte.
const BITS: [u8; BLOCK] = {
    let (mut bits, mut place) = ([0; BLOCK], 0);
    while place < BLOCK {
        bits[place] = 1 << (place / 8);
        place += 1;
    }
    bits
};

/// The length of the string that begins with `text`'s first byte, a quote; `None` when it has no end.
pub(super) fn string(text: &[u8]) -> Option<usize> {
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
// Within its caller, compilers have been seen to undo the vectors of `places`: a third slower.
#[inline(never)]
pub(super) fn container(text: &[u8]) -> Option<usize> {
    let mut state = State { depth: 1, in_string: false, escaped: false, may_begin: true };
    let (blocks, rest) = text.get(1..)?.as_chunks();
    for (n, block) in blocks.iter().enumerate() {
        if let Some(end) = state.end(block).ok()? {
            return Some(1 + n * BLOCK + end);
        }
    }
    let mut last = [b' '; BLOCK];
    last[..rest.len()].copy_from_slice(rest);
    state.end(&last).ok()?.map(|end| 1 + blocks.len() * BLOCK + end)
}

/// Where a block begins.
struct State {
    /// Brackets that are open.
    depth: u32,
    in_string: bool,
    /// The byte before is a backslash that counts.
    escaped: bool,
    /// The byte before is one that a string may follow.
    may_begin: bool,
}

/// No length.
struct Broken;

impl State {
    /// Goes through a block; the place behind the bracket that closes the last open one, if it is there.
    #[inline(always)]
    fn end(&mut self, block: &[u8; BLOCK]) -> Result<Option<usize>, Broken> {
        let backslashes = places(block, |byte| byte == b'\\');
        let mut quotes = places(block, |byte| byte == b'"');
        if backslashes != 0 || self.escaped {
            quotes &= !self.escaped(backslashes);
        }
        // The two kinds of brackets differ by this one bit.
        let opens = places(block, |byte| byte | 0x20 == b'{');
        let closes = places(block, |byte| byte | 0x20 == b'}');
        // Comma and colon, and with them six bytes that are before no string of compact JSON anyway.
        let separators = places(block, |byte| byte & !0x16 == 0x28);
        let in_strings = self.in_strings(quotes);
        let before = opens | separators;
        if quotes & in_strings & !behind(before, replace(&mut self.may_begin, is_last(before))) != 0 {
            return Err(Broken);
        }
        let (opens, closes) = (opens & !in_strings, closes & !in_strings);
        if closes.count_ones() >= self.depth {
            return Ok(self.close(opens, closes));
        }
        self.depth = self.depth + opens.count_ones() - closes.count_ones();
        Ok(None)
    }

    /// The places behind backslashes that count.
    #[inline(always)]
    fn escaped(&mut self, backslashes: u64) -> u64 {
        let behind = behind(backslashes, self.escaped);
        if behind & backslashes == 0 {
            self.escaped = is_last(backslashes);
            return behind;
        }
        self.escaped_in_runs(backslashes)
    }

    /// The same where backslashes stand side by side, and one may be escaped itself.
    #[cold]
    fn escaped_in_runs(&mut self, backslashes: u64) -> u64 {
        let mut escaped = u64::from(self.escaped);
        let mut rest = in_order(backslashes) & !escaped;
        self.escaped = false;
        while rest != 0 {
            let first = rest & rest.wrapping_neg();
            self.escaped = is_last(first);
            escaped |= first << 1;
            rest &= !(first | first << 1);
        }
        in_order(escaped)
    }

    /// The places from each opening quote up to its closing one: those with an odd number of quotes up to them.
    #[inline(always)]
    fn in_strings(&mut self, quotes: u64) -> u64 {
        // Within each eight places, which are a bit of each byte...
        let mut odd = quotes;
        for shift in [8, 16, 32] {
            odd ^= odd << shift;
        }
        // ...then over the eights: the last byte has each one's sum, and gets the sum of all up to it.
        let mut sums = odd >> 56;
        for shift in [1, 2, 4] {
            sums ^= sums << shift;
        }
        let before = (sums << 1 & 0xff) ^ if self.in_string { 0xff } else { 0 };
        self.in_string ^= sums & 0x80 != 0;
        odd ^ (before * 0x0101_0101_0101_0101)
    }

    /// Bracket by bracket.
    #[cold]
    fn close(&mut self, opens: u64, closes: u64) -> Option<usize> {
        let closes = in_order(closes);
        let mut brackets = in_order(opens) | closes;
        while brackets != 0 {
            let place = brackets.trailing_zeros();
            if closes >> place & 1 == 0 {
                self.depth += 1;
            } else {
                self.depth -= 1;
                if self.depth == 0 {
                    return Some(place as usize + 1);
                }
            }
            brackets &= brackets - 1;
        }
        None
    }
}

/// The places of the bytes that are so.
#[inline(always)]
fn places(block: &[u8; BLOCK], is: impl Fn(u8) -> bool) -> u64 {
    let mut bits = [0; BLOCK];
    for ((to, byte), bit) in bits.iter_mut().zip(block).zip(&BITS) {
        *to = if is(*byte) { *bit } else { 0 };
    }
    let all = bits.as_chunks().0.iter().fold(0, |all, some| all | u128::from_le_bytes(*some));
    all as u64 | (all >> 64) as u64
}

/// The places one on from these, with what comes over from the block before: the same bit of the next byte, and from the
/// last byte the next bit of the first one.
#[inline(always)]
fn behind(places: u64, from_before: bool) -> u64 {
    places << 8 | places >> 56 << 1 & 0xff | u64::from(from_before)
}

/// Whether the last place is among them, in either order.
#[inline(always)]
fn is_last(places: u64) -> bool {
    places >> 63 == 1
}

/// The same places with the first one lowest, and back again: the 8 by 8 bits mirrored at their diagonal.
fn in_order(mut places: u64) -> u64 {
    for (shift, mask) in [(7, 0x00AA_00AA_00AA_00AA), (14, 0x0000_CCCC_0000_CCCC), (28, 0x0000_0000_F0F0_F0F0)] {
        let swapped = (places ^ places >> shift) & mask;
        places ^= swapped ^ swapped << shift;
    }
    places
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::source::project::tests::any_json;

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

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

        /// Rich in what could be misjudged, long enough for several blocks, and seldom JSON.
        #[test]
        fn a_container_ends_nowhere_else_than_byte_by_byte(
            bits in prop::collection::vec(
                prop::sample::select(vec![
                    "{", "}", "[", "]", "\"", "\\", "\\\\", "\\\"", "\"a\":", ",", "\"{\"", "\u{e9}", "[]", "        ",
                    "aaaaaaaaaaaaaaaaaaaaaaa", "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"",
                ]),
                0..200,
            ),
        ) {
            let text = format!("{{{}", bits.concat());
            if let Some(end) = container(text.as_bytes()) {
                prop_assert_eq!(Some(end), slow(text.as_bytes()));
            }
        }

        /// Whatever stands in it, wherever it stands, and whatever follows.
        #[test]
        fn a_container_of_json_ends_where_it_ends(before in any_json(), inner in any_json(), after in any_json()) {
            let text = json!([before, {"\\": inner}, after]).to_string();
            prop_assert_eq!(container(text.as_bytes()), Some(text.len()));
            let inner = json!({"\\": inner}).to_string();
            let from = json!([before]).to_string().len();
            prop_assert_eq!(container(&text.as_bytes()[from..]), Some(inner.len()), "{} in {}", inner, text);
        }

        #[test]
        fn a_string_ends_with_its_first_quote_that_is_not_escaped(text in r#""(a|\\\\|\\"|"|\{){0,40}"#) {
            let mut escaped = false;
            let end = text.bytes().enumerate().skip(1).find(|(_, byte)| {
                let is_end = *byte == b'"' && !escaped;
                escaped = *byte == b'\\' && !escaped;
                is_end
            });
            prop_assert_eq!(string(text.as_bytes()), end.map(|(at, _)| at + 1));
        }

        #[test]
        fn places_have_one_order_and_the_other(block in prop::collection::vec(any::<bool>(), BLOCK)) {
            let bytes: [u8; BLOCK] = std::array::from_fn(|place| u8::from(block[place]));
            let found = places(&bytes, |byte| byte == 1);
            let in_a_row = (0..BLOCK).fold(0, |all, place| all | u64::from(block[place]) << place);
            prop_assert_eq!(in_order(found), in_a_row);
            prop_assert_eq!(in_order(in_a_row), found);
        }
    }
}
