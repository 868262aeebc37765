//! Secrets in memory: never shown, compared in constant time.

use std::fmt;

use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq;

/// A credential as it was presented. Shows nothing of itself.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

/// The SHA-256 of a secret: enough to know it again.
#[derive(Clone, Copy)]
pub struct Fingerprint([u8; 32]);

impl Secret {
    /// Takes a secret in.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The secret itself, for whoever has to hand it on. Not for logs, errors or answers.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What it is known again by.
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
    /// The SHA-256 of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Fingerprint {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
        Fingerprint(hash)
    }

    /// Reads 64 hexadecimal digits.
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

    /// The hash itself. Of a weak secret it is as good as the secret: not for anybody to see.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq for Fingerprint {
    /// In constant time.
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
    /// Of a weak secret, the hash is as good as the secret.
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
        for bad in ["", "abc", &hex[1..], &format!("{hex}0"), &hex.replace('b', "g"), &hex.replace("ba", "é")] {
            assert_eq!(Fingerprint::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn debug_output_hides_secrets() {
        let secret = Secret::new("canary");
        let hex: String = secret.fingerprint().0.iter().map(|byte| format!("{byte:02x}")).collect();
        let shown = format!("{secret:?} {:#?}", secret.fingerprint());
        assert!(!shown.contains("canary") && !shown.contains(&hex[..8]), "{shown}");
    }
}
