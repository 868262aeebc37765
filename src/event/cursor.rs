//! The cursor: how far a reader has come in each resource, opaque to clients (protocol.md section 3).
//!
//! It holds everything a resume needs, so that nothing is stored anywhere and every replica understands it. It is not
//! signed: rights are checked at each request, so a forged one yields nothing that a fresh stream would not.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use uuid::Uuid;

use super::{ResourceVersion, projection::short_hash};

/// First byte of the encoding; another layout gets another number.
const VERSION: u8 = 1;

/// A position in both resources' histories, and what it is a position of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// The namespace's uid, hashed: one history of objects.
    pub home: u64,
    /// Rights and filter it was made under, hashed.
    pub lens: u64,
    /// The resources it speaks of.
    pub covers: [bool; 2],
    /// How far: versions up to and including these were served. Zero for a resource that is not covered.
    pub rv: [ResourceVersion; 2],
}

/// Where a history of objects lives: one namespace of one cluster, known by its uid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Home {
    /// What cursors carry.
    pub hash: u64,
    /// `connectionId`: UUID version 5, OID namespace, of the uid (protocol.md section 5).
    pub connection_id: Uuid,
}

impl Home {
    /// The home of a Namespace with this `metadata.uid`.
    #[must_use]
    pub fn of(namespace_uid: &str) -> Home {
        let connection_id = Uuid::new_v5(&Uuid::NAMESPACE_OID, namespace_uid.as_bytes());
        Home { hash: short_hash(namespace_uid.as_bytes()), connection_id }
    }
}

/// The larger of each component.
#[must_use]
pub fn join(a: [ResourceVersion; 2], b: [ResourceVersion; 2]) -> [ResourceVersion; 2] {
    [a[0].max(b[0]), a[1].max(b[1])]
}

impl Cursor {
    /// The cursor of a reader that has been served up to `rv`, in the resources that it covers.
    #[must_use]
    pub fn new(home: Home, lens: u64, covers: [bool; 2], rv: [ResourceVersion; 2]) -> Cursor {
        Cursor { home: home.hash, lens, covers, rv: [0, 1].map(|k| if covers[k] { rv[k] } else { 0 }) }
    }

    /// The text of it: 26 to 46 characters of base64url.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut bytes = Vec::with_capacity(38);
        bytes.push(VERSION << 2 | u8::from(self.covers[0]) | u8::from(self.covers[1]) << 1);
        bytes.extend_from_slice(&self.home.to_be_bytes());
        bytes.extend_from_slice(&self.lens.to_be_bytes());
        for rv in self.rv {
            let mut rest = rv;
            while rest >= 0x80 {
                bytes.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            bytes.push(rest as u8);
        }
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads what [`Cursor::encode`] wrote; `None` for anything else.
    #[must_use]
    pub fn decode(text: &str) -> Option<Cursor> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
        let (&first, rest) = bytes.split_first()?;
        if first >> 2 != VERSION {
            return None;
        }
        let (home, rest) = rest.split_first_chunk()?;
        let (lens, rest) = rest.split_first_chunk()?;
        let (pods, rest) = varint(rest)?;
        let (claims, rest) = varint(rest)?;
        rest.is_empty().then_some(Cursor {
            home: u64::from_be_bytes(*home),
            lens: u64::from_be_bytes(*lens),
            covers: [first & 1 != 0, first & 2 != 0],
            rv: [pods, claims],
        })
    }
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (i, &byte) in bytes.iter().enumerate().take(10) {
        let bits = u64::from(byte & 0x7f);
        if i == 9 && bits > 1 {
            return None;
        }
        value |= bits << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[i + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(home: u64, lens: u64, covers: [bool; 2], rv: [u64; 2]) {
            let cursor = Cursor { home, lens, covers, rv };
            let text = cursor.encode();
            prop_assert!((26..=50).contains(&text.len()), "{} characters", text.len());
            prop_assert_eq!(Cursor::decode(&text), Some(cursor));
        }

        #[test]
        fn any_text_is_refused_or_read_never_a_panic(text in "[A-Za-z0-9_-]{0,60}") {
            if let Some(cursor) = Cursor::decode(&text) {
                prop_assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
            }
        }
    }

    #[test]
    fn what_is_not_a_cursor_is_refused() {
        let good = Cursor { home: 7, lens: 9, covers: [true, true], rv: [300, 70_000] }.encode();
        for bad in ["", "42", "%%%", &good[..good.len() - 1], &format!("{good}AA"), &format!("F{}", &good[1..])] {
            assert_eq!(Cursor::decode(bad), None, "{bad}");
        }
    }
}
