//! Random delays.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

/// Returns a random duration of at most `max`, another one on each call.
pub(super) fn random_fraction(max: Duration) -> Duration {
    // The standard library seeds each hasher at random. A spread of delays needs no better randomness.
    let random = RandomState::new().hash_one(());
    max.mul_f64(random as f64 / u64::MAX as f64)
}
