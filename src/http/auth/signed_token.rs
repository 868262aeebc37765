//! Signed tokens: session cookies and stream tickets. A token names its principal and its expiry.
//!
//! The text of a token is `<version>.<payload>.<HMAC-SHA256>`, payload and HMAC in base64url. The client can read the
//! payload, but cannot change it.
//!
//! Guarantees:
//! - Nothing is stored. Every replica with the same key accepts the same tokens.
//! - A token of one purpose is never accepted for the other.
//! - Everything is pure, except [`TokenSigner::random`].
//!
//! Must not import: any sibling except `secret` and `user`.
//!
//! Specification: docs/protocol.md#access, "Session cookies and stream tickets".

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::Timestamp;
use ring::{hmac, rand::SystemRandom};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    secret::{Fingerprint, Secret},
    user::KubernetesUser,
};

/// Prefix of every token. A new payload layout needs a new number.
const VERSION: &str = "bbp1";
/// Minimum number of bytes of a key. A shorter key makes HMAC-SHA256 weaker (RFC 2104, section 3).
pub const MIN_KEY_BYTES: usize = 32;

/// Signs tokens and verifies their signatures.
#[derive(Debug)]
pub struct TokenSigner(hmac::Key);

/// What a token is accepted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenPurpose {
    /// A session cookie, accepted at one Host.
    Session,
    /// A stream ticket, accepted for streams.
    Ticket,
}

/// The principal of a token. The token contains no rights: they are checked for each request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CredentialSubject {
    /// An API key: its name and its [`TokenSigner::key_id`]. A different key with the same name is a different subject.
    Key(Arc<str>, Arc<str>),
    /// A Kubernetes user.
    User(Arc<KubernetesUser>),
}

/// The payload of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedToken {
    /// What the token is accepted for.
    #[serde(rename = "for")]
    pub purpose: TokenPurpose,
    /// The principal.
    #[serde(rename = "who")]
    pub holder: CredentialSubject,
    /// The Host for which a session cookie is accepted, with the port if the `Host` header contains one. Empty in a
    /// stream ticket, which is accepted at every Host.
    pub host: String,
    /// Expiry in whole seconds since the Unix epoch.
    #[serde(rename = "exp")]
    pub expires_s: i64,
}

/// Why a signing key cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SigningKeyError {
    /// Fewer than [`MIN_KEY_BYTES`] bytes.
    #[error("the key has fewer than {MIN_KEY_BYTES} bytes; create one with `head -c 32 /dev/urandom | base64`")]
    Short,
    /// The operating system provides no random bytes.
    #[error("the operating system provides no random bytes")]
    NoRandom,
}

impl TokenSigner {
    /// Creates a signer with a random key. Only this process accepts its tokens.
    ///
    /// # Errors
    /// [`SigningKeyError::NoRandom`].
    pub fn random() -> Result<TokenSigner, SigningKeyError> {
        hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map(TokenSigner)
            .map_err(|_| SigningKeyError::NoRandom)
    }

    /// Creates a signer with this key, without leading and trailing ASCII white space.
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

    /// Returns the signed text of a token.
    #[must_use]
    pub fn sign(&self, token: &SignedToken) -> Secret {
        // Serialization cannot fail: the payload contains only strings, numbers and lists of strings.
        let payload = serde_json::to_vec(token).unwrap_or_default();
        let signed = format!("{VERSION}.{}", BASE64_URL_SAFE_NO_PAD.encode(payload));
        let tag = hmac::sign(&self.0, signed.as_bytes());
        Secret::new(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(tag)))
    }

    /// Returns the payload of a text that [`TokenSigner::sign`] with the same key signed for this purpose, otherwise
    /// `None`. It does not check the expiry.
    #[must_use]
    pub fn verify(&self, text: &str, purpose: TokenPurpose) -> Option<SignedToken> {
        let (signed, tag) = text.rsplit_once('.')?;
        let tag = BASE64_URL_SAFE_NO_PAD.decode(tag).ok()?;
        hmac::verify(&self.0, signed.as_bytes(), &tag).ok()?;
        let payload = signed.strip_prefix(VERSION)?.strip_prefix('.')?;
        let token: SignedToken = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        (token.purpose == purpose).then_some(token)
    }

    /// Returns the identifier of an API key in tokens: an HMAC of its fingerprint.
    ///
    /// Tickets appear in URLs. With a plain hash, a reader of a URL could try guesses of a weak key; the HMAC also
    /// depends on the signing key. The prefix `key ` keeps this input different from that of every token.
    #[must_use]
    pub fn key_id(&self, key: &Fingerprint) -> Arc<str> {
        let tag = hmac::sign(&self.0, &[b"key ", key.bytes()].concat());
        BASE64_URL_SAFE_NO_PAD.encode(tag).into()
    }

    /// Returns whether a text has the prefix of a token. It does not check the signature.
    #[must_use]
    pub fn is_signed_token(text: &str) -> bool {
        text.strip_prefix(VERSION).is_some_and(|rest| rest.starts_with('.'))
    }
}

impl SignedToken {
    /// Returns the expiry.
    #[must_use]
    pub fn expires_at(&self) -> Timestamp {
        // A time out of range becomes 1970-01-01, so the token counts as expired.
        Timestamp::from_second(self.expires_s).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn token(purpose: TokenPurpose, holder: CredentialSubject) -> SignedToken {
        SignedToken { purpose, holder, host: "bridge.example:8443".into(), expires_s: 1_800_000_000 }
    }

    fn subjects() -> [CredentialSubject; 2] {
        let groups = vec!["dev".into(), "system:authenticated".into()];
        let extra = BTreeMap::from([("scopes".into(), vec!["read".into()])]);
        let user = KubernetesUser { name: "jane".into(), uid: "1".into(), groups, extra };
        [CredentialSubject::Key("k".into(), "f".into()), CredentialSubject::User(user.into())]
    }

    #[test]
    fn token_verifies_only_with_its_signing_key_and_purpose() {
        let (signer, same_key) = (
            TokenSigner::from_key(&[b'k'; 32]).unwrap(),
            TokenSigner::from_key(b"\n kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk\n").unwrap(),
        );
        let (other_key, random_key) = (TokenSigner::from_key(&[b'x'; 32]).unwrap(), TokenSigner::random().unwrap());
        for subject in subjects() {
            let token = token(TokenPurpose::Session, subject);
            let text = signer.sign(&token);
            assert_eq!(
                same_key.verify(text.expose(), TokenPurpose::Session),
                Some(token),
                "expected acceptance by a signer with the same key"
            );
            assert_eq!(
                signer.verify(text.expose(), TokenPurpose::Ticket),
                None,
                "expected rejection for another purpose"
            );
            assert_eq!(other_key.verify(text.expose(), TokenPurpose::Session), None);
            assert_eq!(random_key.verify(text.expose(), TokenPurpose::Session), None);
            assert!(TokenSigner::is_signed_token(text.expose()));
        }
        assert!(TokenSigner::from_key(b"too short").is_err());
    }

    #[test]
    fn key_id_depends_on_the_signing_key() {
        let signer = |byte| TokenSigner::from_key(&[byte; 32]).unwrap();
        let (signer, same_key, other_key) = (signer(b'k'), signer(b'k'), signer(b'x'));
        let (abc, abd) = (Secret::new("abc").fingerprint(), Secret::new("abd").fingerprint());
        assert_eq!(signer.key_id(&abc), same_key.key_id(&abc), "expected equal ids from signers with the same key");
        assert_ne!(signer.key_id(&abc), other_key.key_id(&abc));
        assert_ne!(signer.key_id(&abc), signer.key_id(&abd));
        // Computed with another implementation of RFC 2104: HMAC-SHA256 with the key 'k' 32 times, over "key " and the
        // SHA-256 of "abc".
        assert_eq!(&*signer.key_id(&abc), "MXrYZQVhAN3tTTMEKgK5OblGMEVbBd1JhGm8dKfdCY4");
    }

    #[test]
    fn modified_token_is_rejected() {
        let signer = TokenSigner::from_key(&[b'k'; 32]).unwrap();
        for subject in subjects() {
            let text = signer.sign(&token(TokenPurpose::Ticket, subject));
            let text = text.expose();
            for index in 0..text.len() {
                for replacement in ["A", "z", ".", ""] {
                    let modified = format!("{}{replacement}{}", &text[..index], &text[index + 1..]);
                    if modified != text {
                        assert_eq!(
                            signer.verify(&modified, TokenPurpose::Ticket),
                            None,
                            "expected rejection: {modified}"
                        );
                    }
                }
                assert_eq!(signer.verify(&text[..index], TokenPurpose::Ticket), None);
            }
            assert_eq!(signer.verify(&format!("{text}A"), TokenPurpose::Ticket), None);
            assert_eq!(signer.verify(&format!("{text}="), TokenPurpose::Ticket), None);
        }
    }
}
