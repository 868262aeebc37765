//! Secrets in memory and their fingerprints.
//!
//! Guarantees:
//! - `Debug` output contains no part of a secret or of a fingerprint.
//! - Fingerprints are compared in constant time.
//!
//! Must not import: any other module of this crate.

use std::fmt;

use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq;

/// A credential as the client presented it. `Debug` prints the type name only.
///
/// `==` is not constant-time. Use it for map keys only, and compare fingerprints to check a credential.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

/// The SHA-256 of a secret. It is sufficient to recognize the secret.
#[derive(Clone, Copy)]
pub struct Fingerprint([u8; 32]);

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// Returns the secret itself, for code that must pass it on. It must not appear in logs, errors or responses.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns the SHA-256 of the secret.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.0.as_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Fingerprint {
    /// Returns the SHA-256 of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Fingerprint {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
        Fingerprint(hash)
    }

    /// Parses 64 hexadecimal digits; returns `None` for any other text.
    #[must_use]
    pub fn parse(hex: &str) -> Option<Fingerprint> {
        let digits = hex.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16);
            *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
        }
        Some(Fingerprint(hash))
    }

    /// Returns the hash itself. It must not be published: the hash of a weak secret reveals the secret to an attacker
    /// who tries guesses.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq for Fingerprint {
    /// Compares in constant time.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Fingerprint {}

impl std::hash::Hash for Fingerprint {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Debug for Fingerprint {
    /// Prints the type name only: the hash of a weak secret reveals the secret to an attacker who tries guesses.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprint_is_sha256_and_parses_hex() {
        // FIPS 180-4, the digest of "abc".
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Fingerprint::parse(hex), Some(Secret::new("abc").fingerprint()));
        assert_eq!(Fingerprint::parse(&hex.to_uppercase()), Some(Secret::new("abc").fingerprint()));
        assert_ne!(Fingerprint::parse(hex), Some(Secret::new("abd").fingerprint()));
        for invalid in ["", "abc", &hex[1..], &format!("{hex}0"), &hex.replace('b', "g"), &hex.replace("ba", "é")] {
            assert_eq!(Fingerprint::parse(invalid), None, "expected no fingerprint of '{invalid}'");
        }
    }

    #[test]
    fn debug_output_hides_secrets() {
        let secret = Secret::new("canary");
        let hex: String = secret.fingerprint().0.iter().map(|byte| format!("{byte:02x}")).collect();
        let output = format!("{secret:?} {:#?}", secret.fingerprint());
        assert!(!output.contains("canary") && !output.contains(&hex[..8]), "expected no secret, found: {output}");
    }
}
