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
pub struct Seal(hmac::Key);

/// What a pass is good for: one kind is never taken for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// A session cookie, good at one Host.
    Session,
    /// A ticket, good for streams.
    Ticket,
}

/// Who a pass stands for. Its rights are looked up each time, never carried.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Holder {
    /// An API key, by its name and [`Seal::name`]: another key of that name is another holder.
    Key(Arc<str>, Arc<str>),
    /// A Kubernetes user.
    User(Arc<User>),
}

/// A Kubernetes user: all that the cluster's authorizers may look at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct User {
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
pub struct Pass {
    /// What it is good for.
    #[serde(rename = "for")]
    pub purpose: Purpose,
    /// Who holds it.
    #[serde(rename = "who")]
    pub holder: Holder,
    /// The Host that it is good at, with its port if it names one; a ticket's is empty: good at all.
    pub host: String,
    /// Its end, in whole seconds since the Unix epoch.
    #[serde(rename = "exp")]
    pub expires_s: i64,
}

/// A key that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadKey {
    /// Too few bytes.
    #[error("it must hold at least {MIN_KEY_BYTES} bytes (`head -c 32 /dev/urandom | base64`)")]
    Short,
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    NoRandom,
}

impl Seal {
    /// A seal of this process alone.
    ///
    /// # Errors
    /// [`BadKey::NoRandom`].
    pub fn random() -> Result<Seal, BadKey> {
        hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).map(Seal).map_err(|_| BadKey::NoRandom)
    }

    /// The seal of all who have this key, white space at its ends aside.
    ///
    /// # Errors
    /// [`BadKey::Short`].
    pub fn of(key: &[u8]) -> Result<Seal, BadKey> {
        let key = key.trim_ascii();
        if key.len() < MIN_KEY_BYTES {
            return Err(BadKey::Short);
        }
        Ok(Seal(hmac::Key::new(hmac::HMAC_SHA256, key)))
    }

    /// Signs.
    #[must_use]
    pub fn sign(&self, pass: &Pass) -> Secret {
        // Strings and numbers only: this cannot fail.
        let payload = serde_json::to_vec(pass).unwrap_or_default();
        let signed = format!("{VERSION}.{}", BASE64_URL_SAFE_NO_PAD.encode(payload));
        let tag = hmac::sign(&self.0, signed.as_bytes());
        Secret::new(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(tag)))
    }

    /// Reads what [`Seal::sign`] of the same key has signed for this purpose, whether it has ended or not.
    #[must_use]
    pub fn open(&self, text: &str, purpose: Purpose) -> Option<Pass> {
        let (signed, tag) = text.rsplit_once('.')?;
        let tag = BASE64_URL_SAFE_NO_PAD.decode(tag).ok()?;
        hmac::verify(&self.0, signed.as_bytes(), &tag).ok()?;
        let payload = signed.strip_prefix(VERSION)?.strip_prefix('.')?;
        let pass: Pass = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        (pass.purpose == purpose).then_some(pass)
    }

    /// What an API key is called in passes. They stand in URLs, and whoever saw a plain hash there could try guesses of a
    /// weak key against it; this takes the seal's key. No pass begins like what is signed here.
    #[must_use]
    pub fn name(&self, key: &Fingerprint) -> Arc<str> {
        let tag = hmac::sign(&self.0, &[b"key ", key.bytes()].concat());
        BASE64_URL_SAFE_NO_PAD.encode(tag).into()
    }

    /// Whether a text looks like a pass, signed by whomever.
    #[must_use]
    pub fn is_pass(text: &str) -> bool {
        text.strip_prefix(VERSION).is_some_and(|rest| rest.starts_with('.'))
    }
}

impl Pass {
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

    fn pass(purpose: Purpose, holder: Holder) -> Pass {
        Pass { purpose, holder, host: "bridge.example:8443".into(), expires_s: 1_800_000_000 }
    }

    fn holders() -> [Holder; 2] {
        let groups = vec!["dev".into(), "system:authenticated".into()];
        let extra = BTreeMap::from([("scopes".into(), vec!["read".into()])]);
        let user = User { name: "jane".into(), uid: "1".into(), groups, extra };
        [Holder::Key("k".into(), "f".into()), Holder::User(user.into())]
    }

    #[test]
    fn a_pass_is_read_with_the_key_it_was_signed_with() {
        let (one, same) = (Seal::of(&[b'k'; 32]).unwrap(), Seal::of(b"\n kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk\n").unwrap());
        let (other, random) = (Seal::of(&[b'x'; 32]).unwrap(), Seal::random().unwrap());
        for holder in holders() {
            let pass = pass(Purpose::Session, holder);
            let text = one.sign(&pass);
            assert_eq!(same.open(text.reveal(), Purpose::Session), Some(pass), "on another replica");
            assert_eq!(one.open(text.reveal(), Purpose::Ticket), None, "for another purpose");
            assert_eq!(other.open(text.reveal(), Purpose::Session), None);
            assert_eq!(random.open(text.reveal(), Purpose::Session), None);
            assert!(Seal::is_pass(text.reveal()));
        }
        assert!(Seal::of(b"too short").is_err());
    }

    #[test]
    fn what_a_key_is_called_takes_the_key_of_the_seal_to_know() {
        let (one, same, other) = (Seal::of(&[b'k'; 32]), Seal::of(&[b'k'; 32]), Seal::of(&[b'x'; 32]));
        let (one, same, other) = (one.unwrap(), same.unwrap(), other.unwrap());
        let (abc, abd) = (Secret::new("abc").fingerprint(), Secret::new("abd").fingerprint());
        assert_eq!(one.name(&abc), same.name(&abc), "on another replica");
        assert_ne!(one.name(&abc), other.name(&abc));
        assert_ne!(one.name(&abc), one.name(&abd));
        // RFC 2104, from another implementation: HMAC-SHA256 of "key " and the SHA-256 of "abc", with 32 times 'k'.
        assert_eq!(&*one.name(&abc), "MXrYZQVhAN3tTTMEKgK5OblGMEVbBd1JhGm8dKfdCY4");
    }

    #[test]
    fn a_pass_that_was_touched_is_refused() {
        let seal = Seal::of(&[b'k'; 32]).unwrap();
        for holder in holders() {
            let text = seal.sign(&pass(Purpose::Ticket, holder));
            let text = text.reveal();
            for at in 0..text.len() {
                for with in ["A", "z", ".", ""] {
                    let touched = format!("{}{with}{}", &text[..at], &text[at + 1..]);
                    if touched != text {
                        assert_eq!(seal.open(&touched, Purpose::Ticket), None, "{touched}");
                    }
                }
                assert_eq!(seal.open(&text[..at], Purpose::Ticket), None);
            }
            assert_eq!(seal.open(&format!("{text}A"), Purpose::Ticket), None);
            assert_eq!(seal.open(&format!("{text}="), Purpose::Ticket), None);
        }
    }
}
