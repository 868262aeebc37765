//! API keys, and the parser of the keys file. Pure.
//!
//! Guarantees:
//! - A keys file contains hashes of keys, never keys.
//! - An error gives the position and the kind of a mistake. It never quotes the file, because an operator may have
//!   written the key itself into it.
//!
//! Must not import: any sibling except `secret`.
//!
//! Specification: docs/protocol.md#access, "Keys file".

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use super::secret::{Fingerprint, Secret};

/// Maximum number of keys in a file: far more than a deployment needs, and few enough to compare a secret with each key
/// in constant time (a few µs).
pub(super) const MAX_KEYS: usize = 1_000;
/// Maximum number of characters of a name. The name appears in cookies and logs.
const MAX_NAME: usize = 100;

/// What a key permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    /// To read snapshots and streams.
    Read,
    /// To send telemetry.
    Ingest,
}

/// One API key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// Unique name, used in logs and as the caller of budgets.
    pub name: Arc<str>,
    /// SHA-256 of the key.
    pub fingerprint: Fingerprint,
    /// The only tenant whose objects the key can read; `None` for all tenants.
    pub tenant: Option<String>,
    /// What the key permits.
    pub access: Vec<Permission>,
    /// When the key expires.
    pub expires_at: Option<Timestamp>,
}

/// All API keys that are valid at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiKeys(Vec<ApiKey>);

/// Why a keys file is rejected.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeysFileError {
    /// An I/O error.
    #[error("the file cannot be read: {0}")]
    Unreadable(String),
    /// The path was a regular file at start and no longer is.
    #[error("the file is no longer a regular file")]
    NotRegular,
    /// The file exceeds this number of bytes.
    #[error("the file is longer than {0} bytes")]
    TooLong(u64),
    /// There is no list of keys, as in a file that is not written yet.
    #[error("the `keys` list is missing; write `keys: []` for no keys")]
    NoList,
    /// A member that is not expected at this position, or no YAML.
    #[error(
        "line {line}, column {column}: expected `keys: [{{name, sha256, tenantId?, access?: [read, ingest], \
         expiresAt?}}]`"
    )]
    Shape {
        /// Counted from 1; 0 if the parser reports no position.
        line: u64,
        /// Counted from 1; 0 if the parser reports no position.
        column: u64,
    },
    /// A key with an invalid or repeated value.
    #[error("key {number}: {reason}")]
    Key {
        /// Counted from 1, in the order of the file.
        number: usize,
        /// Why the key is rejected, and what to do.
        reason: &'static str,
    },
    /// More than 1000 keys.
    #[error("the file has more than {MAX_KEYS} keys")]
    TooMany,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysDocument {
    keys: Option<Vec<KeyEntry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KeyEntry {
    name: String,
    sha256: String,
    #[serde(default, deserialize_with = "present_not_null")]
    tenant_id: Option<String>,
    #[serde(default, deserialize_with = "present_not_null")]
    access: Option<Vec<Permission>>,
    #[serde(default, deserialize_with = "present_not_null")]
    expires_at: Option<String>,
}

/// Deserializes a member that must have a value if it is present; null becomes the default value, which
/// [`KeyEntry::into_key`] rejects.
///
/// `tenantId:` without a value is a mistake, or the file is not complete yet. It must not become a key for all tenants.
fn present_not_null<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(entry: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(entry).map(|value| Some(value.unwrap_or_default()))
}

impl ApiKeys {
    /// Name of the key that is given by the environment variable of the same name.
    pub const ENVIRONMENT: &str = "BOILERHOUSE_API_KEY";

    /// Parses the text of a keys file, YAML or JSON.
    ///
    /// # Errors
    /// See [`KeysFileError`].
    pub fn parse(text: &str) -> Result<ApiKeys, KeysFileError> {
        let document: KeysDocument = serde_saphyr::from_str(text).map_err(|error| {
            // The message of the parser may quote the file.
            let location = error.location();
            let (line, column) = location.map_or((0, 0), |at| (at.line(), at.column()));
            KeysFileError::Shape { line, column }
        })?;
        let entries = document.keys.ok_or(KeysFileError::NoList)?;
        if entries.len() > MAX_KEYS {
            return Err(KeysFileError::TooMany);
        }
        let mut keys = ApiKeys::default();
        for (index, entry) in entries.into_iter().enumerate() {
            let key = entry.into_key().and_then(|key| keys.check_unique(&key).map(|()| key));
            keys.0.push(key.map_err(|reason| KeysFileError::Key { number: index + 1, reason })?);
        }
        Ok(keys)
    }

    /// Adds the key of the environment, which has all permissions for all tenants.
    #[must_use]
    pub fn with_environment(mut self, secret: &Secret) -> ApiKeys {
        self.0.push(ApiKey {
            name: ApiKeys::ENVIRONMENT.into(),
            fingerprint: secret.fingerprint(),
            tenant: None,
            access: vec![Permission::Read, Permission::Ingest],
            expires_at: None,
        });
        self
    }

    /// Returns the key whose SHA-256 is that of `secret`. It compares with every key, so that the time does not depend
    /// on which key matches.
    #[must_use]
    pub fn find(&self, secret: &Secret) -> Option<&ApiKey> {
        let fingerprint = secret.fingerprint();
        self.0.iter().fold(None, |found, key| if key.fingerprint == fingerprint { Some(key) } else { found })
    }

    /// Returns the key with this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&ApiKey> {
        self.0.iter().find(|key| *key.name == *name)
    }

    /// Returns all keys, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &ApiKey> {
        self.0.iter()
    }

    /// Returns whether at least one key is limited to one tenant.
    #[must_use]
    pub fn has_tenants(&self) -> bool {
        self.0.iter().any(|key| key.tenant.is_some())
    }

    /// Returns the number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are no keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn check_unique(&self, key: &ApiKey) -> Result<(), &'static str> {
        if self.0.iter().any(|other| other.name == key.name) {
            return Err("another key has the same name");
        }
        if self.0.iter().any(|other| other.fingerprint == key.fingerprint) {
            return Err("another key has the same sha256");
        }
        Ok(())
    }
}

impl ApiKey {
    /// Returns whether the key has this permission.
    #[must_use]
    pub fn allows(&self, permission: Permission) -> bool {
        self.access.contains(&permission)
    }
}

impl KeyEntry {
    /// Checks the entry and makes it a key.
    fn into_key(self) -> Result<ApiKey, &'static str> {
        if self.name.is_empty() || self.name.chars().count() > MAX_NAME || self.name.contains(char::is_control) {
            return Err("the name must have 1 to 100 printable characters");
        }
        if self.name == ApiKeys::ENVIRONMENT {
            return Err("the name BOILERHOUSE_API_KEY is reserved for the key of the environment");
        }
        let fingerprint = Fingerprint::parse(&self.sha256).ok_or(
            "sha256 must have 64 hexadecimal digits; print the SHA-256 of a key with `printf %s KEY | sha256sum`",
        )?;
        if self.tenant_id.as_deref() == Some("") {
            return Err("tenantId is empty; remove it for a key that can read all tenants");
        }
        let access = self.access.unwrap_or_else(|| vec![Permission::Read]);
        if access.is_empty() {
            return Err("access is empty; remove it for [read]");
        }
        let expires_at = self.expires_at.map(|text| text.parse()).transpose();
        let expires_at = expires_at.map_err(|_| "expiresAt must be an RFC 3339 time such as 2027-01-31T00:00:00Z")?;
        Ok(ApiKey { name: self.name.into(), fingerprint, tenant: self.tenant_id, access, expires_at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The SHA-256 of "abc" (FIPS 180-4).
    const ABC_SHA256: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const OTHER_SHA256: &str = "1234567890123456789012345678901234567890123456789012345678901234";

    #[test]
    fn yaml_and_json_keys_files_parse_equally() {
        let yaml = format!(
            "keys:\n- name: a\n  sha256: {ABC_SHA256}\n- {{name: b, sha256: {OTHER_SHA256}, tenantId: alice, \
             access: [ingest], expiresAt: 2027-01-31T00:00:00Z}}\n"
        );
        let json = format!(
            r#"{{"keys":[{{"name":"a","sha256":"{ABC_SHA256}"}},{{"name":"b","sha256":"{OTHER_SHA256}",
            "tenantId":"alice","access":["ingest"],"expiresAt":"2027-01-31T00:00:00Z"}}]}}"#
        );
        let keys = ApiKeys::parse(&yaml).unwrap();
        assert_eq!(ApiKeys::parse(&json), Ok(keys.clone()), "expected the same keys from JSON as from YAML");
        let abc = keys.find(&Secret::new("abc")).unwrap();
        assert_eq!((&*abc.name, &abc.tenant, &abc.expires_at), ("a", &None, &None));
        assert!(abc.allows(Permission::Read) && !abc.allows(Permission::Ingest));
        assert_eq!(keys.find(&Secret::new("abcd")), None);
        let b = &keys.0[1];
        assert_eq!(
            (b.tenant.as_deref(), b.allows(Permission::Read), b.allows(Permission::Ingest)),
            (Some("alice"), false, true)
        );
        assert!(keys.has_tenants() && !ApiKeys::default().has_tenants());
        assert_eq!((keys.named("a"), keys.named("b"), keys.named("c")), (Some(abc), Some(b), None));
    }

    #[test]
    fn keys_file_without_a_key_list_is_rejected() {
        for text in ["keys: []", "{\"keys\": []}"] {
            assert_eq!(ApiKeys::parse(text), Ok(ApiKeys::default()), "{text}");
        }
        for text in ["", "\n", "# keys", "---", "keys:", "keys: null", "null", "{}"] {
            assert_eq!(ApiKeys::parse(text), Err(KeysFileError::NoList), "{text}");
        }
    }

    #[test]
    fn parse_error_gives_position_without_file_content() {
        let with_members = |more: &str| format!("keys: [{{name: a, sha256: {ABC_SHA256}{more}}}]");
        let table = [
            ("canary".to_owned(), "expected `keys: ["),
            ("keys: canary".to_owned(), "line 1, column 7"),
            ("keys: [canary]".to_owned(), "line 1, column 8"),
            ("keys: [{name: a, sha256: canary}]".to_owned(), "key 1: sha256 must"),
            ("keys: [{name: a, key: canary}]".to_owned(), "line 1"),
            (with_members(", canary: 1"), "line 1"),
            (with_members(", access: [canary]"), "line 1"),
            (with_members(", access: []"), "key 1: access is empty"),
            (with_members(", expiresAt: canary"), "key 1: expiresAt must"),
            (with_members(", tenantId: ''"), "key 1: tenantId is empty"),
            (with_members(", tenantId:"), "key 1: tenantId is empty"),
            (with_members(", tenantId: ~"), "key 1: tenantId is empty"),
            (with_members(", expiresAt:"), "key 1: expiresAt must"),
            (with_members(", access: null"), "key 1: access is empty"),
            (with_members(&format!("}}, {{name: a, sha256: {OTHER_SHA256}")), "key 2: another key has the same name"),
            (with_members(&format!("}}, {{name: b, sha256: {ABC_SHA256}")), "key 2: another key has the same sha256"),
            (format!("keys: [{{name: '', sha256: {ABC_SHA256}}}]"), "key 1: the name must"),
            (
                format!("keys: [{{name: BOILERHOUSE_API_KEY, sha256: {ABC_SHA256}}}]"),
                "key 1: the name BOILERHOUSE_API_KEY is reserved",
            ),
            ("keys: [{canary".to_owned(), "line 1"),
            ("- canary: &a [*a, *a]".to_owned(), "expected `keys: ["),
            (
                (0..=MAX_KEYS)
                    .fold("keys:\n".to_owned(), |text, n| text + &format!("- {{name: k{n}, sha256: {n:064}}}\n")),
                "more than",
            ),
        ];
        for (text, expected) in table {
            let error = ApiKeys::parse(&text).unwrap_err();
            let output = format!("{error} {error:?}");
            assert!(output.contains(expected), "expected '{expected}' for '{text}', found: {output}");
            assert!(!output.contains("canary"), "expected no content of the file, found: {output}");
        }
    }

    #[test]
    fn environment_key_has_all_permissions() {
        let keys = ApiKeys::default().with_environment(&Secret::new("abc"));
        let key = keys.find(&Secret::new("abc")).unwrap();
        assert!(key.allows(Permission::Read) && key.allows(Permission::Ingest) && key.tenant.is_none());
    }
}
