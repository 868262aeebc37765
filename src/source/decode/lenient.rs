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
pub(super) enum Lenient<T> {
    /// The key is not there.
    #[default]
    Absent,
    /// It is there, null or of another type.
    Malformed,
    /// It is there.
    Value(T),
}

/// What can be made of a JSON value; what is not overridden is odd.
pub(super) trait FromJsonValue: Sized {
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

/// A struct whose every field is `Lenient` and defaulted, so that any JSON object fits it.
pub(super) trait LenientStruct: DeserializeOwned {}

/// A port number, 1 to 65535.
pub(super) struct Port(pub(super) u16);

/// An RFC 3339 time, in UTC and whole seconds.
pub(super) struct UtcSeconds(pub(super) String);

/// How a [`UtcSeconds`] is written, a 0 for each digit.
const UTC_SECONDS_PATTERN: &[u8; 20] = b"0000-00-00T00:00:00Z";

/// The entries of a map whose values are strings, and whether there were others.
pub(super) struct StringMap {
    entries: BTreeMap<String, String>,
    has_malformed: bool,
}

impl<T> Lenient<T> {
    /// The value; a wrong type is noted under `name`.
    pub(super) fn value(self, name: &'static str, malformed: &mut Vec<&'static str>) -> Option<T> {
        match self {
            Lenient::Absent => None,
            Lenient::Malformed => {
                malformed.push(name);
                None
            }
            Lenient::Value(value) => Some(value),
        }
    }
}

impl Lenient<String> {
    /// The value unless it is empty: an optional key is left out then (docs/protocol.md, `?`).
    pub(super) fn non_empty(self, name: &'static str, malformed: &mut Vec<&'static str>) -> Option<String> {
        self.value(name, malformed).filter(|text| !text.is_empty())
    }
}

impl Lenient<StringMap> {
    /// The entries that are strings; any other is noted under `name`.
    pub(super) fn string_map(self, name: &'static str, malformed: &mut Vec<&'static str>) -> BTreeMap<String, String> {
        let Some(texts) = self.value(name, malformed) else { return BTreeMap::new() };
        if texts.has_malformed {
            malformed.push(name);
        }
        texts.entries
    }
}

/// A resourceVersion: a decimal integer in a string (KEP-5504).
///
/// # Errors
/// When it is anything else: without its version an object has no place in the order.
pub(in crate::source) fn resource_version<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<ResourceVersion, D::Error> {
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

impl FromJsonValue for String {
    fn from_text(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

impl FromJsonValue for Port {
    fn from_number(number: u64) -> Option<Self> {
        u16::try_from(number).ok().filter(|port| *port != 0).map(Port)
    }
}

impl FromJsonValue for UtcSeconds {
    fn from_text(text: &str) -> Option<Self> {
        let moment: jiff::Timestamp = text.parse().ok()?;
        // As API servers write it, it is what it would be written as. A leap second is another one.
        let same = |(byte, shape): (u8, u8)| if shape == b'0' { byte.is_ascii_digit() } else { byte == shape };
        if text.len() == UTC_SECONDS_PATTERN.len()
            && text.bytes().zip(*UTC_SECONDS_PATTERN).all(same)
            && !text.ends_with("60Z")
        {
            return Some(UtcSeconds(text.to_owned()));
        }
        Some(UtcSeconds(jiff::Timestamp::from_second(moment.as_second()).ok()?.to_string()))
    }
}

impl FromJsonValue for StringMap {
    fn from_map<'de, A: MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
        let mut texts = StringMap { entries: BTreeMap::new(), has_malformed: false };
        while let Some((key, value)) = map.next_entry::<String, Lenient<String>>()? {
            match value {
                Lenient::Value(value) => drop(texts.entries.insert(key, value)),
                Lenient::Malformed | Lenient::Absent => texts.has_malformed = true,
            }
        }
        Ok(Some(texts))
    }
}

impl<T: LenientStruct> FromJsonValue for T {
    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Option<Self>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Some)
    }
}

impl<'de, T: FromJsonValue> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any(PhantomData))
    }
}

/// Accepts every JSON value.
struct Any<T>(PhantomData<T>);

impl<'de, T: FromJsonValue> Visitor<'de> for Any<T> {
    type Value = Lenient<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Lenient::Malformed)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Lenient::Malformed)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Lenient::Malformed)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Lenient::Malformed)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(T::from_number(number).map_or(Lenient::Malformed, Lenient::Value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(T::from_text(text).map_or(Lenient::Malformed, Lenient::Value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Lenient::Malformed)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        Ok(T::from_map(map)?.map_or(Lenient::Malformed, Lenient::Value))
    }
}
