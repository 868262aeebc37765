//! The cursor: how far a client has been served in each resource, as an opaque text. Implements
//! `docs/protocol.md#full-stream`.
//!
//! Guarantees:
//! - A cursor holds everything that a resume needs. The bridge stores no cursor, and every replica accepts it.
//! - A forged cursor yields nothing that a new stream would not. Cursors are therefore not signed: the bridge checks
//!   the rights at each request.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use uuid::Uuid;

use super::{PerResource, ResourceVersion, hash::sha256_prefix};

/// Version of the encoding, in the upper 6 bits of the first byte. Another layout must have another number.
const ENCODING_VERSION: u8 = 1;

/// How far a client has been served in both resources, in which namespace and under which projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// Hash of the Namespace's uid: [`NamespaceId::hash`].
    pub namespace_hash: u64,
    /// Hash of scope and filter: [`Projection::fingerprint`](super::projection::Projection::fingerprint).
    pub projection_hash: u64,
    /// The resources that the cursor covers.
    pub resources: PerResource<bool>,
    /// The client was served all versions up to and including these. Zero for a resource that is not covered.
    pub versions: PerResource<ResourceVersion>,
}

/// Identifies one namespace of one cluster by the uid of the Namespace. A Namespace that is created again has another
/// uid and another history of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NamespaceId {
    /// Hash of the uid, as in cursors.
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

/// Returns the newer version of each resource.
#[must_use]
pub fn max_versions(a: PerResource<ResourceVersion>, b: PerResource<ResourceVersion>) -> PerResource<ResourceVersion> {
    PerResource::from_fn(|resource| a[resource].max(b[resource]))
}

impl Cursor {
    /// Returns the cursor of a client that was served up to `versions`. The versions of other resources than
    /// `resources` become 0.
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

    /// Returns the text of the cursor: 26 to 50 characters of base64url without padding.
    ///
    /// The text encodes 19 to 37 bytes: 1 for version and coverage, 8 for each hash, 1 to 10 for each version.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut bytes = Vec::with_capacity(37);
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

    /// Reads the text of [`Cursor::encode`]. Returns `None` for every other text.
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

/// Reads a LEB128 number of at most 10 bytes. Returns the number and the bytes after it, or `None` if it does not end
/// or does not fit 64 bits.
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
        let valid = Cursor { namespace_hash: 7, projection_hash: 9, resources, versions }.encode();
        for text in ["", "42", "%%%", &valid[..valid.len() - 1], &format!("{valid}AA"), &format!("F{}", &valid[1..])] {
            assert_eq!(Cursor::decode(text), None, "must be rejected: {text}");
        }
    }

    #[test]
    fn encoded_length_is_between_26_and_50_characters() {
        for (version, length) in [(0, 26), (u64::MAX, 50)] {
            let versions = PerResource::new(version, version);
            let resources = PerResource::new(true, true);
            let cursor = Cursor { namespace_hash: version, projection_hash: version, resources, versions };
            assert_eq!(cursor.encode().len(), length, "versions of {version}");
        }
    }
}
