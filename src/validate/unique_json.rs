//! JSON whose repeated keys are found: `serde_json` keeps the last value and drops the others without an error.

use std::{cell::RefCell, fmt};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Maximum number of repeated keys that are returned.
const MAX_REPEATED: usize = 100;
/// Maximum number of characters of each key in a path.
const MAX_KEY_CHARS: usize = 50;

/// The keys that a text has more than once.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Repeated {
    /// The paths of the first 100.
    pub(super) paths: Vec<String>,
    /// The number of further ones.
    pub(super) more: usize,
}

impl Repeated {
    /// Returns whether each key is there once.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }
}

/// Parses a JSON text, at most 128 levels deep. Returns the value and its repeated keys.
///
/// # Errors
/// A message with the place, if it is no JSON text.
pub fn parse(text: &[u8]) -> Result<(Value, Repeated), String> {
    let repeated = RefCell::default();
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let seed = Node { path: None, repeated: &repeated };
    let value = seed.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    value.map(|value| (value, repeated.into_inner())).map_err(|error| error.to_string())
}

/// A place in the text. The text of its path is only made for a repeated key.
#[derive(Clone, Copy)]
enum Path<'p> {
    Key(&'p str, Option<&'p Path<'p>>),
    Index(usize, Option<&'p Path<'p>>),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Key(key, parent) => {
                if let Some(parent) = parent {
                    write!(f, "{parent}.")?;
                }
                write!(f, "{key:.MAX_KEY_CHARS$}")
            }
            Path::Index(index, parent) => {
                parent.map_or(Ok(()), |parent| parent.fmt(f))?;
                write!(f, "[{index}]")
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Node<'p> {
    path: Option<&'p Path<'p>>,
    repeated: &'p RefCell<Repeated>,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        loop {
            let path = Path::Index(values.len(), self.path);
            let Some(value) = elements.next_element_seed(Node { path: Some(&path), ..self })? else { break };
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            let path = Path::Key(&key, self.path);
            let value = members.next_value_seed(Node { path: Some(&path), ..self })?;
            if map.contains_key(&key) {
                let repeated = &mut *self.repeated.borrow_mut();
                if repeated.paths.len() < MAX_REPEATED {
                    repeated.paths.push(path.to_string());
                } else {
                    repeated.more += 1;
                }
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_is_that_of_serde_json_and_repeated_keys_are_found() {
        for text in [r#"{"a":[1,-2,0.5,1e300,null,true,"\u00e4",{"b":{}}]}"#, "7", "[]", r#"" ""#] {
            assert_eq!(parse(text.as_bytes()).unwrap(), (serde_json::from_str(text).unwrap(), Repeated::default()));
        }
        let (_, repeated) = parse(br#"{"a":[{},{"b":1,"b":2}],"a":0}"#).unwrap();
        assert_eq!(repeated, Repeated { paths: vec!["a[1].b".to_owned(), "a".to_owned()], more: 0 });
        let (_, repeated) = parse(format!("{{{}}}", ["\"a\":0"; MAX_REPEATED + 3].join(",")).as_bytes()).unwrap();
        assert_eq!((repeated.paths.len(), repeated.more), (MAX_REPEATED, 2), "the first one is no repetition");
        for text in ["", "{", "[1,]", "1 2", "nul", "\u{feff}{}", "1e400", &"[".repeat(129)] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse(b"\"\xff\"").is_err());
    }
}
