//! A line of a watch, of which only the few fields that are wanted are read.
//!
//! serde_json is the judge: a change as API servers write it, in which nothing is odd, is read here, at a fraction of the
//! price; all else is left to it, and so are its values and its errors. What is skipped is looked at only as far as
//! `skip` does it.

use std::mem::replace;

use kube::core::WatchEvent;
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor, value::BorrowedBytesDeserializer},
    forward_to_deserialize_any,
};
use serde_json::{Error, de::SliceRead};

use super::{Decode, json_skip};

/// Reads one line, without its newline.
///
/// # Errors
/// serde_json's, when it is not JSON or not an event of this resource.
pub fn parse_watch_line<T: Decode>(text: &[u8]) -> Result<WatchEvent<T>, Error> {
    match parse_fast(text) {
        Some(event) => Ok(event),
        None => serde_json::from_slice(text),
    }
}

/// A change whose type comes first, and nothing after its object.
pub(super) fn parse_fast<T: Decode>(text: &[u8]) -> Option<WatchEvent<T>> {
    let text = text.strip_prefix(br#"{"type":""#)?;
    let event = [
        (&br#"ADDED","object":"#[..], WatchEvent::Added as fn(T) -> _),
        (br#"MODIFIED","object":"#, WatchEvent::Modified),
        (br#"DELETED","object":"#, WatchEvent::Deleted),
    ];
    let (object, event) = event.into_iter().find_map(|(prefix, event)| Some((text.strip_prefix(prefix)?, event)))?;
    let mut json = FastJson { rest: object };
    let row = T::deserialize(&mut json).ok()?;
    (json.rest.trim_ascii() == b"}").then(|| event(row))
}

/// JSON that is still to be read.
struct FastJson<'de> {
    rest: &'de [u8],
}

impl<'de> FastJson<'de> {
    /// The next byte that is not white space; 0 at the end.
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

    /// Whether the next byte is this one, which is taken then.
    #[inline]
    fn take(&mut self, byte: u8) -> bool {
        let is = self.peek() == byte;
        if is {
            self.rest = &self.rest[1..];
        }
        is
    }

    /// What the next value says, which is taken then, if it is a string that stands for itself.
    fn plain(&mut self) -> Option<&'de [u8]> {
        if self.peek() != b'"' {
            return None;
        }
        let inner = json_skip::plain_string(self.rest)?;
        self.rest = &self.rest[inner.len() + 2..];
        Some(inner)
    }

    /// The text of the next value. Only strings, objects and arrays are known by their first byte.
    fn value(&mut self) -> Result<&'de [u8], Error> {
        let length = match self.peek() {
            b'"' => json_skip::string_len(self.rest),
            b'{' | b'[' => json_skip::container_len(self.rest),
            _ => self.rest.iter().position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r')),
        };
        let (value, rest) = self.rest.split_at(length.ok_or_else(|| Error::custom("a value has no end"))?);
        self.rest = rest;
        Ok(value)
    }
}

impl<'de> Deserializer<'de> for &mut FastJson<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if let Some(text) = self.plain() {
            return visitor.visit_borrowed_str(str::from_utf8(text).map_err(Error::custom)?);
        }
        if self.take(b'{') {
            let mut members = FastMembers { json: self, first: true, over: false };
            let value = visitor.visit_map(&mut members)?;
            return if members.over { Ok(value) } else { Err(Error::custom("an object is not read to its end")) };
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
    first: bool,
    over: bool,
}

impl<'de> FastMembers<'_, 'de> {
    /// A key that is not plain, but could be read as it stands.
    #[cold]
    fn unusual_key(&mut self) -> Result<&'de [u8], Error> {
        let key = match self.json.peek() {
            b'"' => self.json.value()?,
            _ => return Err(Error::custom("a key is no string")),
        };
        let key = str::from_utf8(&key[1..key.len() - 1]).map_err(Error::custom)?;
        if key.contains('\\') {
            return Err(Error::custom("a key with an escape"));
        }
        Ok(key.as_bytes())
    }
}

impl<'de> MapAccess<'de> for &mut FastMembers<'_, 'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let first = replace(&mut self.first, false);
        if first || !self.json.take(b',') {
            if self.json.take(b'}') {
                self.over = true;
                return Ok(None);
            }
            if !first {
                return Err(Error::custom("no comma between two members"));
            }
        }
        let key = match self.json.plain() {
            Some(key) => key,
            None => self.unusual_key()?,
        };
        seed.deserialize(BorrowedBytesDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        if !self.json.take(b':') {
            return Err(Error::custom("no colon behind a key"));
        }
        seed.deserialize(&mut *self.json)
    }
}

#[cfg(test)]
mod tests;
