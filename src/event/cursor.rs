//! The cursor: how far a reader has come in each resource, opaque to clients (docs/protocol.md#full-stream).
//!
//! It holds everything a resume needs, so that nothing is stored anywhere and every replica understands it. It is not
//! signed: rights are checked at each request, so a forged one yields nothing that a fresh stream would not.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use uuid::Uuid;

use super::{PerResource, ResourceVersion, hash::sha256_prefix};

/// First byte of the encoding; another layout gets another number.
const ENCODING_VERSION: u8 = 1;

/// A position in both resources' histories, and what it is a position of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// The namespace's uid, hashed: one history of objects.
    pub namespace_hash: u64,
    /// Rights and filter it was made under, hashed.
    pub projection_hash: u64,
    /// The resources it speaks of.
    pub resources: PerResource<bool>,
    /// How far: versions up to and including these were served. Zero for a resource that is not covered.
    pub versions: PerResource<ResourceVersion>,
}

/// Where a history of objects lives: one namespace of one cluster, known by its uid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NamespaceId {
    /// What cursors carry.
    pub hash: u64,
    /// `connectionId`: UUID version 5, OID namespace, of the uid (docs/protocol.md#snapshots).
    pub connection_id: Uuid,
}

impl NamespaceId {
    /// Returns the id of the Namespace with this `metadata.uid`.
    #[must_use]
    pub fn from_uid(namespace_uid: &str) -> NamespaceId {
        let connection_id = Uuid::new_v5(&Uuid::NAMESPACE_OID, namespace_uid.as_bytes());
        NamespaceId { hash: sha256_prefix(namespace_uid.as_bytes()), connection_id }
    }
}

/// The larger of each component.
#[must_use]
pub fn max_versions(a: PerResource<ResourceVersion>, b: PerResource<ResourceVersion>) -> PerResource<ResourceVersion> {
    PerResource::from_fn(|resource| a[resource].max(b[resource]))
}

impl Cursor {
    /// The cursor of a reader that has been served up to `versions`, in the resources that it covers.
    #[must_use]
    pub fn new(
        namespace: NamespaceId,
        projection_hash: u64,
        resources: PerResource<bool>,
        versions: PerResource<ResourceVersion>,
    ) -> Cursor {
        let versions = PerResource::from_fn(|resource| if resources[resource] { versions[resource] } else { 0 });
        Cursor { namespace_hash: namespace.hash, projection_hash, resources, versions }
    }

    /// The text of it: 26 to 46 characters of base64url.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut bytes = Vec::with_capacity(38);
        let [pods, claims] = self.resources.map(u8::from).into_array();
        bytes.push(ENCODING_VERSION << 2 | pods | claims << 1);
        bytes.extend_from_slice(&self.namespace_hash.to_be_bytes());
        bytes.extend_from_slice(&self.projection_hash.to_be_bytes());
        for version in self.versions.into_array() {
            let mut rest = version;
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
        if first >> 2 != ENCODING_VERSION {
            return None;
        }
        let (namespace_hash, rest) = rest.split_first_chunk()?;
        let (projection_hash, rest) = rest.split_first_chunk()?;
        let (pods, rest) = decode_varint(rest)?;
        let (claims, rest) = decode_varint(rest)?;
        rest.is_empty().then_some(Cursor {
            namespace_hash: u64::from_be_bytes(*namespace_hash),
            projection_hash: u64::from_be_bytes(*projection_hash),
            resources: PerResource::new(first & 1 != 0, first & 2 != 0),
            versions: PerResource::new(pods, claims),
        })
    }
}

fn decode_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
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
        fn cursor_round_trips(namespace_hash: u64, projection_hash: u64, covered: [bool; 2], served: [u64; 2]) {
            let resources = PerResource::from_fn(|resource| covered[resource as usize]);
            let versions = PerResource::from_fn(|resource| served[resource as usize]);
            let cursor = Cursor { namespace_hash, projection_hash, resources, versions };
            let text = cursor.encode();
            prop_assert!((26..=50).contains(&text.len()), "{} characters", text.len());
            prop_assert_eq!(Cursor::decode(&text), Some(cursor));
        }

        #[test]
        fn decode_never_panics_on_any_text(text in "[A-Za-z0-9_-]{0,60}") {
            if let Some(cursor) = Cursor::decode(&text) {
                prop_assert_eq!(Cursor::decode(&cursor.encode()), Some(cursor));
            }
        }
    }

    #[test]
    fn decode_rejects_invalid_cursors() {
        let (resources, versions) = (PerResource::new(true, true), PerResource::new(300, 70_000));
        let good = Cursor { namespace_hash: 7, projection_hash: 9, resources, versions }.encode();
        for bad in ["", "42", "%%%", &good[..good.len() - 1], &format!("{good}AA"), &format!("F{}", &good[1..])] {
            assert_eq!(Cursor::decode(bad), None, "{bad}");
        }
    }
}
