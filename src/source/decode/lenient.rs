//! Values that may be of any type: what is wanted, or absent, or odd, but never a parse error.
//!
//! Each type is read in one pass by a visitor that skips what it does not want, so that nothing is buffered.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error, IgnoredAny, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

use crate::event::ResourceVersion;

/// A value of a wished type, or not.
#[derive(Debug, Default)]
pub(super) enum Loose<T> {
    /// The key is not there.
    #[default]
    Absent,
    /// It is there, null or of another type.
    Odd,
    /// It is there.
    Is(T),
}

/// What can be made of a JSON value; what is not overridden is odd.
pub(super) trait Shape: Sized {
    fn from_text(_: &str) -> Option<Self> {
        None
    }

    fn from_number(_: u64) -> Option<Self> {
        None
    }

    /// # Errors
    /// Only those of the JSON itself.
    fn from_map<'de, A: MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

/// A struct whose every field is `Loose` and defaulted, so that any JSON object fits it.
pub(super) trait Fields: DeserializeOwned {}

/// A port number, 1 to 65535.
pub(super) struct Port(pub(super) u16);

/// An RFC 3339 time, in UTC and whole seconds.
pub(super) struct Moment(pub(super) String);

/// How a [`Moment`] is written, a 0 for each digit.
const SHAPE: &[u8; 20] = b"0000-00-00T00:00:00Z";

/// The entries of a map whose values are strings, and whether there were others.
pub(super) struct Texts {
    entries: BTreeMap<String, String>,
    odd: bool,
}

impl<T> Loose<T> {
    /// The value; a wrong type is noted under `name`.
    pub(super) fn take(self, name: &'static str, odd: &mut Vec<&'static str>) -> Option<T> {
        match self {
            Loose::Absent => None,
            Loose::Odd => {
                odd.push(name);
                None
            }
            Loose::Is(value) => Some(value),
        }
    }
}

impl Loose<String> {
    /// The value unless it is empty: an optional key is left out then (protocol.md, `?`).
    pub(super) fn text(self, name: &'static str, odd: &mut Vec<&'static str>) -> Option<String> {
        self.take(name, odd).filter(|text| !text.is_empty())
    }
}

impl Loose<Texts> {
    /// The entries that are strings; any other is noted under `name`.
    pub(super) fn texts(self, name: &'static str, odd: &mut Vec<&'static str>) -> BTreeMap<String, String> {
        let Some(texts) = self.take(name, odd) else { return BTreeMap::new() };
        if texts.odd {
            odd.push(name);
        }
        texts.entries
    }
}

/// A resourceVersion: a decimal integer in a string (KEP-5504).
///
/// # Errors
/// When it is anything else: without its version an object has no place in the order.
pub(in crate::source) fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ResourceVersion, D::Error> {
    struct Decimal;
    impl Visitor<'_> for Decimal {
        type Value = ResourceVersion;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a resourceVersion")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<ResourceVersion, E> {
            text.parse().map_err(|_| E::custom("a resourceVersion that is not a decimal integer"))
        }
    }
    deserializer.deserialize_str(Decimal)
}

impl Shape for String {
    fn from_text(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

impl Shape for Port {
    fn from_number(number: u64) -> Option<Self> {
        u16::try_from(number).ok().filter(|port| *port != 0).map(Port)
    }
}

impl Shape for Moment {
    fn from_text(text: &str) -> Option<Self> {
        let moment: jiff::Timestamp = text.parse().ok()?;
        // As API servers write it, it is what it would be written as. A leap second is another one.
        let same = |(byte, shape): (u8, u8)| if shape == b'0' { byte.is_ascii_digit() } else { byte == shape };
        if text.len() == SHAPE.len() && text.bytes().zip(*SHAPE).all(same) && !text.ends_with("60Z") {
            return Some(Moment(text.to_owned()));
        }
        Some(Moment(jiff::Timestamp::from_second(moment.as_second()).ok()?.to_string()))
    }
}

impl Shape for Texts {
    fn from_map<'de, A: MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
        let mut texts = Texts { entries: BTreeMap::new(), odd: false };
        while let Some((key, value)) = map.next_entry::<String, Loose<String>>()? {
            match value {
                Loose::Is(value) => drop(texts.entries.insert(key, value)),
                Loose::Odd | Loose::Absent => texts.odd = true,
            }
        }
        Ok(Some(texts))
    }
}

impl<T: Fields> Shape for T {
    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Option<Self>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Some)
    }
}

impl<'de, T: Shape> Deserialize<'de> for Loose<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any(PhantomData))
    }
}

/// Accepts every JSON value.
struct Any<T>(PhantomData<T>);

impl<'de, T: Shape> Visitor<'de> for Any<T> {
    type Value = Loose<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Loose::Odd)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Loose::Odd)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Loose::Odd)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Loose::Odd)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(T::from_number(number).map_or(Loose::Odd, Loose::Is))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(T::from_text(text).map_or(Loose::Odd, Loose::Is))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Loose::Odd)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        Ok(T::from_map(map)?.map_or(Loose::Odd, Loose::Is))
    }
}
