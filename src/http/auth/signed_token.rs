//! Passes: who somebody is and until when, signed instead of stored, so that every replica with the same key knows them.
//!
//! A pass is `<version>.<payload>.<HMAC-SHA256>`, both parts in base64url. The payload can be read by whoever holds it
//! and by nobody forged. Pure, but for the drawing of a random key.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::Timestamp;
use ring::{hmac, rand::SystemRandom};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::secret::{Fingerprint, Secret};

/// Before every pass: another layout gets another number.
const VERSION: &str = "bbp1";
/// Bytes of a key file: what HMAC-SHA256 needs at least to be as strong as it can be (RFC 2104, section 3).
pub const MIN_KEY_BYTES: usize = 32;

/// What signs passes, and reads those that it has signed.
#[derive(Debug)]
pub struct TokenSigner(hmac::Key);

/// What a pass is good for: one kind is never taken for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenPurpose {
    /// A session cookie, good at one Host.
    Session,
    /// A ticket, good for streams.
    Ticket,
}

/// Who a pass stands for. Its rights are looked up each time, never carried.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CredentialSubject {
    /// An API key, by its name and [`TokenSigner::key_id`]: another key of that name is another holder.
    Key(Arc<str>, Arc<str>),
    /// A Kubernetes user.
    User(Arc<KubernetesUser>),
}

/// A Kubernetes user: all that the cluster's authorizers may look at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct KubernetesUser {
    /// `status.user.username` of a TokenReview.
    pub name: String,
    /// `status.user.uid`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// `status.user.groups`.
    pub groups: Vec<String>,
    /// `status.user.extra`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What a pass says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedToken {
    /// What it is good for.
    #[serde(rename = "for")]
    pub purpose: TokenPurpose,
    /// Who holds it.
    #[serde(rename = "who")]
    pub holder: CredentialSubject,
    /// The Host that it is good at, with its port if it names one; a ticket's is empty: good at all.
    pub host: String,
    /// Its end, in whole seconds since the Unix epoch.
    #[serde(rename = "exp")]
    pub expires_s: i64,
}

/// A key that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SigningKeyError {
    /// Too few bytes.
    #[error("it must hold at least {MIN_KEY_BYTES} bytes (`head -c 32 /dev/urandom | base64`)")]
    Short,
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    NoRandom,
}

impl TokenSigner {
    /// A seal of this process alone.
    ///
    /// # Errors
    /// [`SigningKeyError::NoRandom`].
    pub fn random() -> Result<TokenSigner, SigningKeyError> {
        hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map(TokenSigner)
            .map_err(|_| SigningKeyError::NoRandom)
    }

    /// The seal of all who have this key, white space at its ends aside.
    ///
    /// # Errors
    /// [`SigningKeyError::Short`].
    pub fn from_key(key: &[u8]) -> Result<TokenSigner, SigningKeyError> {
        let key = key.trim_ascii();
        if key.len() < MIN_KEY_BYTES {
            return Err(SigningKeyError::Short);
        }
        Ok(TokenSigner(hmac::Key::new(hmac::HMAC_SHA256, key)))
    }

    /// Signs.
    #[must_use]
    pub fn sign(&self, token: &SignedToken) -> Secret {
        // Strings and numbers only: this cannot fail.
        let payload = serde_json::to_vec(token).unwrap_or_default();
        let signed = format!("{VERSION}.{}", BASE64_URL_SAFE_NO_PAD.encode(payload));
        let tag = hmac::sign(&self.0, signed.as_bytes());
        Secret::new(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(tag)))
    }

    /// Reads what [`TokenSigner::sign`] of the same key has signed for this purpose, whether it has ended or not.
    #[must_use]
    pub fn verify(&self, text: &str, purpose: TokenPurpose) -> Option<SignedToken> {
        let (signed, tag) = text.rsplit_once('.')?;
        let tag = BASE64_URL_SAFE_NO_PAD.decode(tag).ok()?;
        hmac::verify(&self.0, signed.as_bytes(), &tag).ok()?;
        let payload = signed.strip_prefix(VERSION)?.strip_prefix('.')?;
        let token: SignedToken = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        (token.purpose == purpose).then_some(token)
    }

    /// What an API key is called in passes. They stand in URLs, and whoever saw a plain hash there could try guesses of a
    /// weak key against it; this takes the seal's key. No pass begins like what is signed here.
    #[must_use]
    pub fn key_id(&self, key: &Fingerprint) -> Arc<str> {
        let tag = hmac::sign(&self.0, &[b"key ", key.bytes()].concat());
        BASE64_URL_SAFE_NO_PAD.encode(tag).into()
    }

    /// Whether a text looks like a pass, signed by whomever.
    #[must_use]
    pub fn is_signed_token(text: &str) -> bool {
        text.strip_prefix(VERSION).is_some_and(|rest| rest.starts_with('.'))
    }
}

impl SignedToken {
    /// Its end.
    #[must_use]
    pub fn expires_at(&self) -> Timestamp {
        // A time that cannot be is one that is over.
        Timestamp::from_second(self.expires_s).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(purpose: TokenPurpose, holder: CredentialSubject) -> SignedToken {
        SignedToken { purpose, holder, host: "bridge.example:8443".into(), expires_s: 1_800_000_000 }
    }

    fn holders() -> [CredentialSubject; 2] {
        let groups = vec!["dev".into(), "system:authenticated".into()];
        let extra = BTreeMap::from([("scopes".into(), vec!["read".into()])]);
        let user = KubernetesUser { name: "jane".into(), uid: "1".into(), groups, extra };
        [CredentialSubject::Key("k".into(), "f".into()), CredentialSubject::User(user.into())]
    }

    #[test]
    fn token_verifies_only_with_its_signing_key_and_purpose() {
        let (one, same) = (
            TokenSigner::from_key(&[b'k'; 32]).unwrap(),
            TokenSigner::from_key(b"\n kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk\n").unwrap(),
        );
        let (other, random) = (TokenSigner::from_key(&[b'x'; 32]).unwrap(), TokenSigner::random().unwrap());
        for holder in holders() {
            let token = token(TokenPurpose::Session, holder);
            let text = one.sign(&token);
            assert_eq!(same.verify(text.expose(), TokenPurpose::Session), Some(token), "on another replica");
            assert_eq!(one.verify(text.expose(), TokenPurpose::Ticket), None, "for another purpose");
            assert_eq!(other.verify(text.expose(), TokenPurpose::Session), None);
            assert_eq!(random.verify(text.expose(), TokenPurpose::Session), None);
            assert!(TokenSigner::is_signed_token(text.expose()));
        }
        assert!(TokenSigner::from_key(b"too short").is_err());
    }

    #[test]
    fn key_id_depends_on_the_signing_key() {
        let (one, same, other) = (
            TokenSigner::from_key(&[b'k'; 32]),
            TokenSigner::from_key(&[b'k'; 32]),
            TokenSigner::from_key(&[b'x'; 32]),
        );
        let (one, same, other) = (one.unwrap(), same.unwrap(), other.unwrap());
        let (abc, abd) = (Secret::new("abc").fingerprint(), Secret::new("abd").fingerprint());
        assert_eq!(one.key_id(&abc), same.key_id(&abc), "on another replica");
        assert_ne!(one.key_id(&abc), other.key_id(&abc));
        assert_ne!(one.key_id(&abc), one.key_id(&abd));
        // RFC 2104, from another implementation: HMAC-SHA256 of "key " and the SHA-256 of "abc", with 32 times 'k'.
        assert_eq!(&*one.key_id(&abc), "MXrYZQVhAN3tTTMEKgK5OblGMEVbBd1JhGm8dKfdCY4");
    }

    #[test]
    fn modified_token_is_rejected() {
        let signer = TokenSigner::from_key(&[b'k'; 32]).unwrap();
        for holder in holders() {
            let text = signer.sign(&token(TokenPurpose::Ticket, holder));
            let text = text.expose();
            for at in 0..text.len() {
                for with in ["A", "z", ".", ""] {
                    let touched = format!("{}{with}{}", &text[..at], &text[at + 1..]);
                    if touched != text {
                        assert_eq!(signer.verify(&touched, TokenPurpose::Ticket), None, "{touched}");
                    }
                }
                assert_eq!(signer.verify(&text[..at], TokenPurpose::Ticket), None);
            }
            assert_eq!(signer.verify(&format!("{text}A"), TokenPurpose::Ticket), None);
            assert_eq!(signer.verify(&format!("{text}="), TokenPurpose::Ticket), None);
        }
    }
}
