//! A short, stable hash.
//!
//! Guarantees: equal bytes give equal numbers on every replica and in every release. Cursors contain these numbers.

use sha2::{Digest, Sha256};

/// Returns the first 64 bits of the SHA-256 of `bytes`, in big-endian order.
#[must_use]
pub fn sha256_prefix(bytes: &[u8]) -> u64 {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    digest.iter().take(8).fold(0, |value, byte| value << 8 | u64::from(*byte))
}
