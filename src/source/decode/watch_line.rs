//! The parser of watch lines. It reads only the few fields that a view needs.
//!
//! Guarantees: the result equals the result of serde_json for every line that serde_json accepts. A change in the format of
//! API servers takes the fast path, at a fraction of the cost. serde_json parses every other line, and returns the errors.
//! The fast path checks skipped data only as far as `json_skip` does.

use std::mem::replace;

use kube::core::WatchEvent;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor, value::BorrowedBytesDeserializer},
    forward_to_deserialize_any,
};
use serde_json::{Error, de::SliceRead};

use super::{Decode, json_skip};

/// Parses one watch line, without its newline.
///
/// # Errors
/// The error of serde_json, if the line is not JSON or not a watch event of this resource.
pub fn parse_watch_line<T: Decode>(text: &[u8]) -> Result<WatchEvent<T>, Error> {
    match parse_fast(text) {
        Some(event) => Ok(event),
        None => serde_json::from_slice(text),
    }
}

/// Parses a change whose `type` comes first and whose object comes last. Returns `None` for any other line.
pub(super) fn parse_fast<T: Decode>(text: &[u8]) -> Option<WatchEvent<T>> {
    let text = text.strip_prefix(br#"{"type":""#)?;
    let prefixes = [
        (&br#"ADDED","object":"#[..], WatchEvent::Added as fn(T) -> _),
        (br#"MODIFIED","object":"#, WatchEvent::Modified),
        (br#"DELETED","object":"#, WatchEvent::Deleted),
    ];
    let (object, event) = prefixes.into_iter().find_map(|(prefix, event)| Some((text.strip_prefix(prefix)?, event)))?;
    let mut json = FastJson { rest: object };
    let object = T::deserialize(&mut json).ok()?;
    (json.rest.trim_ascii() == b"}").then(|| event(object))
}

/// Parses a JSON text, of which most is skipped. Returns `None` for text that needs a complete parser.
pub(in crate::source) fn parse_json_fast<'de, D: Deserialize<'de>>(text: &'de [u8]) -> Option<D> {
    let mut json = FastJson { rest: text };
    let value = D::deserialize(&mut json).ok()?;
    json.rest.trim_ascii().is_empty().then_some(value)
}

/// A deserializer of JSON text. `rest` is the text that has not been read.
struct FastJson<'de> {
    rest: &'de [u8],
}

impl<'de> FastJson<'de> {
    /// Skips white space and returns the next byte, without consuming it; 0 at the end.
    #[inline]
    fn peek(&mut self) -> u8 {
        loop {
            match self.rest {
                [b' ' | b'\t' | b'\n' | b'\r', rest @ ..] => self.rest = rest,
                [byte, ..] => return *byte,
                [] => return 0,
            }
        }
    }

    /// Consumes the next byte if it is this one, and returns whether it was.
    #[inline]
    fn consume(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == byte;
        if is_next {
            self.rest = &self.rest[1..];
        }
        is_next
    }

    /// Consumes the next value if it is a plain string (see [`json_skip::plain_string`]), and returns its content.
    fn plain_string(&mut self) -> Option<&'de [u8]> {
        if self.peek() != b'"' {
            return None;
        }
        let inner = json_skip::plain_string(self.rest)?;
        self.rest = &self.rest[inner.len() + 2..];
        Some(inner)
    }

    /// Consumes the next value and returns its text. Numbers, booleans and null end at a delimiter and are not checked.
    fn value(&mut self) -> Result<&'de [u8], Error> {
        let length = match self.peek() {
            b'"' => json_skip::string_len(self.rest),
            b'{' | b'[' => json_skip::container_len(self.rest),
            _ => self.rest.iter().position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r')),
        };
        let (value, rest) = self.rest.split_at(length.ok_or_else(|| Error::custom("unterminated value"))?);
        self.rest = rest;
        Ok(value)
    }
}

impl<'de> Deserializer<'de> for &mut FastJson<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if let Some(text) = self.plain_string() {
            return visitor.visit_borrowed_str(str::from_utf8(text).map_err(Error::custom)?);
        }
        if self.consume(b'{') {
            let mut members = FastMembers { json: self, is_first: true, is_finished: false };
            let value = visitor.visit_map(&mut members)?;
            return if members.is_finished { Ok(value) } else { Err(Error::custom("unread members of an object")) };
        }
        let mut json = serde_json::Deserializer::new(SliceRead::new(self.value()?));
        let value = json.deserialize_any(visitor)?;
        json.end()?;
        Ok(value)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let value = self.value()?;
        if !matches!(value, [b'"' | b'{' | b'[', ..]) {
            serde_json::from_slice::<IgnoredAny>(value)?;
        }
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier
    }
}

/// The members of an object, after its opening bracket.
struct FastMembers<'j, 'de> {
    json: &'j mut FastJson<'de>,
    is_first: bool,
    is_finished: bool,
}

impl<'de> FastMembers<'_, 'de> {
    /// Returns a key that is not a plain string but has no escapes, such as one with non-ASCII characters.
    #[cold]
    fn unusual_key(&mut self) -> Result<&'de [u8], Error> {
        let key = match self.json.peek() {
            b'"' => self.json.value()?,
            _ => return Err(Error::custom("a key is not a string")),
        };
        let key = str::from_utf8(&key[1..key.len() - 1]).map_err(Error::custom)?;
        if key.contains('\\') {
            return Err(Error::custom("a key contains an escape"));
        }
        Ok(key.as_bytes())
    }
}

impl<'de> MapAccess<'de> for &mut FastMembers<'_, 'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let is_first = replace(&mut self.is_first, false);
        if is_first || !self.json.consume(b',') {
            if self.json.consume(b'}') {
                self.is_finished = true;
                return Ok(None);
            }
            if !is_first {
                return Err(Error::custom("missing comma between two members"));
            }
        }
        let key = match self.json.plain_string() {
            Some(key) => key,
            None => self.unusual_key()?,
        };
        seed.deserialize(BorrowedBytesDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        if !self.json.consume(b':') {
            return Err(Error::custom("missing colon after a key"));
        }
        seed.deserialize(&mut *self.json)
    }
}

#[cfg(test)]
mod tests;
