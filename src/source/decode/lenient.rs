//! Deserialization of JSON values that may have any type: the expected value, absent, or malformed, but no parse error.
//!
//! Guarantees: each value is read in one pass by a visitor that skips all other data, so nothing is buffered.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error, IgnoredAny, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

use crate::event::ResourceVersion;

/// A value that may be missing or of another type.
#[derive(Debug, Default)]
pub(super) enum Lenient<T> {
    /// The key is missing.
    #[default]
    Absent,
    /// The value is null or of another type.
    Malformed,
    /// The value has the expected type.
    Value(T),
}

/// The JSON values that a type accepts. Without an implementation of a method, a value of that JSON type is malformed.
pub(super) trait FromJsonValue: Sized {
    /// Converts a string.
    fn from_text(_: &str) -> Option<Self> {
        None
    }

    /// Converts a number that is not negative and has no fraction.
    fn from_number(_: u64) -> Option<Self> {
        None
    }

    /// Converts an object.
    ///
    /// # Errors
    /// Only if the JSON itself is invalid.
    fn from_map<'de, A: MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

/// A struct that accepts every JSON object, because each of its fields is `Lenient` and has a default.
pub(super) trait LenientStruct: DeserializeOwned {}

/// A port number, 1 to 65535.
pub(super) struct Port(pub(super) u16);

/// An RFC 3339 time in UTC and whole seconds.
pub(super) struct UtcSeconds(pub(super) String);

/// The format of a [`UtcSeconds`]; each 0 stands for a digit.
const UTC_SECONDS_PATTERN: &[u8; 20] = b"0000-00-00T00:00:00Z";

/// The entries of a map whose values are strings.
pub(super) struct StringMap {
    entries: BTreeMap<String, String>,
    /// Whether the map has entries with values of another type.
    has_malformed: bool,
}

impl<T> Lenient<T> {
    /// Returns the value. If it is malformed, adds `name` to `malformed`.
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
    /// Returns the value unless it is empty. An optional key of a view is left out then (docs/protocol.md#objects).
    pub(super) fn non_empty(self, name: &'static str, malformed: &mut Vec<&'static str>) -> Option<String> {
        self.value(name, malformed).filter(|text| !text.is_empty())
    }
}

impl Lenient<StringMap> {
    /// Returns the entries that are strings. If there are others, adds `name` to `malformed`.
    pub(super) fn string_map(self, name: &'static str, malformed: &mut Vec<&'static str>) -> BTreeMap<String, String> {
        let Some(map) = self.value(name, malformed) else { return BTreeMap::new() };
        if map.has_malformed {
            malformed.push(name);
        }
        map.entries
    }
}

/// Deserializes a resourceVersion: a decimal integer in a string (KEP-5504).
///
/// # Errors
/// When the value is anything else. An object without a version has no place in the order of events.
pub(in crate::source) fn resource_version<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<ResourceVersion, D::Error> {
    struct Decimal;
    impl Visitor<'_> for Decimal {
        type Value = ResourceVersion;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a resourceVersion in a string")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<ResourceVersion, E> {
            text.parse().map_err(|_| E::custom("the resourceVersion is not a decimal integer"))
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
        let time: jiff::Timestamp = text.parse().ok()?;
        // Fast path: a text in the format of API servers is already in the result's format. A leap second is normalized.
        let matches = |(byte, pattern): (u8, u8)| if pattern == b'0' { byte.is_ascii_digit() } else { byte == pattern };
        if text.len() == UTC_SECONDS_PATTERN.len()
            && text.bytes().zip(*UTC_SECONDS_PATTERN).all(matches)
            && !text.ends_with("60Z")
        {
            return Some(UtcSeconds(text.to_owned()));
        }
        Some(UtcSeconds(jiff::Timestamp::from_second(time.as_second()).ok()?.to_string()))
    }
}

impl FromJsonValue for StringMap {
    fn from_map<'de, A: MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
        let mut strings = StringMap { entries: BTreeMap::new(), has_malformed: false };
        while let Some((key, value)) = map.next_entry::<String, Lenient<String>>()? {
            match value {
                Lenient::Value(value) => drop(strings.entries.insert(key, value)),
                Lenient::Malformed | Lenient::Absent => strings.has_malformed = true,
            }
        }
        Ok(Some(strings))
    }
}

impl<T: LenientStruct> FromJsonValue for T {
    fn from_map<'de, A: MapAccess<'de>>(map: A) -> Result<Option<Self>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Some)
    }
}

impl<'de, T: FromJsonValue> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue(PhantomData))
    }
}

/// A visitor that accepts every JSON value.
struct AnyValue<T>(PhantomData<T>);

impl<'de, T: FromJsonValue> Visitor<'de> for AnyValue<T> {
    type Value = Lenient<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
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
