//! API keys: what the keys file says, and who a secret belongs to. Pure.
//!
//! The file holds hashes, never keys; what is wrong with it is said by place and kind, never by quoting it: somebody may
//! have put the key itself there.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use super::secret::{Fingerprint, Secret};

/// Keys in a file: far more than anybody hands out, few enough to compare with each in constant time (a few µs).
pub(super) const MAX_KEYS: usize = 1_000;
/// Characters of a name: it stands in cookies and in logs.
const MAX_NAME: usize = 100;

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    /// Snapshots and streams.
    Read,
    /// Telemetry in.
    Ingest,
}

/// One API key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// What logs and limits call it; unique.
    pub name: Arc<str>,
    /// What it is known by.
    pub fingerprint: Fingerprint,
    /// The one tenant that it sees; `None`: everything.
    pub tenant: Option<String>,
    /// What it may do.
    pub access: Vec<Permission>,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
}

/// All keys that are known at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiKeys(Vec<ApiKey>);

/// What is wrong with a keys file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeysFileError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// It was a regular file, and is none any more.
    #[error("it is no regular file any more")]
    NotRegular,
    /// Longer than so many bytes.
    #[error("it is longer than {0} bytes")]
    TooLong(u64),
    /// Nothing is said of keys, as in a file that is still to be written.
    #[error("it has no list of keys (`keys: []` says that there are none)")]
    NoList,
    /// Not what is expected there, or not YAML at all.
    #[error(
        "line {line}, column {column}: expected is `keys: [{{name, sha256, tenantId?, access?: [read, ingest], \
         expiresAt?}}]`"
    )]
    Shape {
        /// From 1; 0 where it is not known.
        line: u64,
        /// From 1.
        column: u64,
    },
    /// One key is wrong.
    #[error("key {number}: {what}")]
    Key {
        /// From 1, in the order of the file.
        number: usize,
        /// What about it.
        what: &'static str,
    },
    /// Too many keys.
    #[error("it holds more than {MAX_KEYS} keys")]
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

/// What is named has a value: `tenantId:` alone is a mistake, or cut off, and no word for a key that sees everything.
fn present_not_null<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(entry: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(entry).map(|value| Some(value.unwrap_or_default()))
}

impl ApiKeys {
    /// Name of the key that comes from the environment.
    pub const ENVIRONMENT: &str = "BOILERHOUSE_API_KEY";

    /// Reads a keys file's text, YAML or JSON.
    ///
    /// # Errors
    /// See [`KeysFileError`].
    pub fn parse(text: &str) -> Result<ApiKeys, KeysFileError> {
        let document: KeysDocument = serde_saphyr::from_str(text).map_err(|error| {
            // Its message may quote the file.
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
            let key = entry.key().and_then(|key| keys.check_unique(&key).map(|()| key));
            keys.0.push(key.map_err(|what| KeysFileError::Key { number: index + 1, what })?);
        }
        Ok(keys)
    }

    /// Adds the one key of the environment, which may do everything.
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

    /// The key that this secret is. Every key is compared with, whichever it is.
    #[must_use]
    pub fn find(&self, secret: &Secret) -> Option<&ApiKey> {
        let fingerprint = secret.fingerprint();
        self.0.iter().fold(None, |found, key| if key.fingerprint == fingerprint { Some(key) } else { found })
    }

    /// The key of this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&ApiKey> {
        self.0.iter().find(|key| *key.name == *name)
    }

    /// Whether some key sees one tenant only.
    #[must_use]
    pub fn has_tenants(&self) -> bool {
        self.0.iter().any(|key| key.tenant.is_some())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn check_unique(&self, key: &ApiKey) -> Result<(), &'static str> {
        if self.0.iter().any(|other| other.name == key.name) {
            return Err("another key has its name");
        }
        if self.0.iter().any(|other| other.fingerprint == key.fingerprint) {
            return Err("another key has its sha256");
        }
        Ok(())
    }
}

impl ApiKey {
    /// Whether it may do this.
    #[must_use]
    pub fn allows(&self, access: Permission) -> bool {
        self.access.contains(&access)
    }
}

impl KeyEntry {
    fn key(self) -> Result<ApiKey, &'static str> {
        if self.name.is_empty() || self.name.chars().count() > MAX_NAME || self.name.contains(char::is_control) {
            return Err("its name must be 1 to 100 printable characters");
        }
        if self.name == ApiKeys::ENVIRONMENT {
            return Err("its name stands for the key of the environment");
        }
        let fingerprint = Fingerprint::parse(&self.sha256)
            .ok_or("its sha256 must be the 64 hexadecimal digits of the key's SHA-256 (`printf %s KEY | sha256sum`)")?;
        if self.tenant_id.as_deref() == Some("") {
            return Err("its tenantId is empty: leave it out for a key that sees everything");
        }
        let access = self.access.unwrap_or_else(|| vec![Permission::Read]);
        if access.is_empty() {
            return Err("its access is empty: leave it out for [read]");
        }
        let expires_at = self.expires_at.map(|text| text.parse()).transpose();
        let expires_at = expires_at.map_err(|_| "its expiresAt must be a time like 2027-01-31T00:00:00Z")?;
        Ok(ApiKey { name: self.name.into(), fingerprint, tenant: self.tenant_id, access, expires_at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The SHA-256 of "abc".
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const DIGITS: &str = "1234567890123456789012345678901234567890123456789012345678901234";

    #[test]
    fn yaml_and_json_keys_files_parse_equally() {
        let yaml = format!(
            "keys:\n- name: a\n  sha256: {ABC}\n- {{name: b, sha256: {DIGITS}, tenantId: alice, access: [ingest], \
             expiresAt: 2027-01-31T00:00:00Z}}\n"
        );
        let json = format!(
            r#"{{"keys":[{{"name":"a","sha256":"{ABC}"}},{{"name":"b","sha256":"{DIGITS}","tenantId":"alice",
            "access":["ingest"],"expiresAt":"2027-01-31T00:00:00Z"}}]}}"#
        );
        let keys = ApiKeys::parse(&yaml).unwrap();
        assert_eq!(ApiKeys::parse(&json), Ok(keys.clone()));
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
        let entry = |more: &str| format!("keys: [{{name: a, sha256: {ABC}{more}}}]");
        let table = [
            ("canary".to_owned(), "expected is"),
            ("keys: canary".to_owned(), "line 1, column 7"),
            ("keys: [canary]".to_owned(), "line 1, column 8"),
            ("keys: [{name: a, sha256: canary}]".to_owned(), "key 1: its sha256"),
            ("keys: [{name: a, key: canary}]".to_owned(), "line 1"),
            (entry(", canary: 1"), "line 1"),
            (entry(", access: [canary]"), "line 1"),
            (entry(", access: []"), "key 1: its access"),
            (entry(", expiresAt: canary"), "key 1: its expiresAt"),
            (entry(", tenantId: ''"), "key 1: its tenantId"),
            (entry(", tenantId:"), "key 1: its tenantId"),
            (entry(", tenantId: ~"), "key 1: its tenantId"),
            (entry(", expiresAt:"), "key 1: its expiresAt"),
            (entry(", access: null"), "key 1: its access"),
            (entry(&format!("}}, {{name: a, sha256: {DIGITS}")), "key 2: another key has its name"),
            (entry(&format!("}}, {{name: b, sha256: {ABC}")), "key 2: another key has its sha256"),
            (format!("keys: [{{name: '', sha256: {ABC}}}]"), "key 1: its name"),
            (format!("keys: [{{name: BOILERHOUSE_API_KEY, sha256: {ABC}}}]"), "key 1: its name"),
            ("keys: [{canary".to_owned(), "line 1"),
            ("- canary: &a [*a, *a]".to_owned(), "expected is"),
            (
                (0..=MAX_KEYS)
                    .fold("keys:\n".to_owned(), |text, n| text + &format!("- {{name: k{n}, sha256: {n:064}}}\n")),
                "more than",
            ),
        ];
        for (text, expected) in table {
            let error = ApiKeys::parse(&text).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains(expected) && !shown.contains("canary"), "{text}: {shown}");
        }
    }

    #[test]
    fn environment_key_has_all_permissions() {
        let keys = ApiKeys::default().with_environment(&Secret::new("abc"));
        let key = keys.find(&Secret::new("abc")).unwrap();
        assert!(key.allows(Permission::Read) && key.allows(Permission::Ingest) && key.tenant.is_none());
    }
}
