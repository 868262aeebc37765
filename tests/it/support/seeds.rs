//! Seeds of the seeded tests: which seeds a test runs, and the command that repeats a failure.
//!
//! Guarantees: `BRIDGE_SEED=<n>` is the only variable that selects a seed, and every seeded test reads it here. A test
//! that fails prints the command that runs it again with the same seed.

use std::ops::Range;

/// The variable that selects one seed.
const VARIABLE: &str = "BRIDGE_SEED";

/// The seed of `BRIDGE_SEED` if it is set, otherwise all of `default`.
///
/// # Panics
/// If the variable is set and is not a decimal number.
pub(crate) fn seeds(default: Range<u64>) -> Vec<u64> {
    match std::env::var(VARIABLE) {
        Ok(seed) => {
            vec![seed.parse().unwrap_or_else(|error| panic!("{VARIABLE}={seed} is not a decimal number: {error}"))]
        }
        Err(_) => default.collect(),
    }
}

/// The same for a test that runs one seed: that of `BRIDGE_SEED` if it is set, otherwise `default`.
///
/// # Panics
/// If the variable is set and is not a decimal number.
pub(crate) fn seed(default: u64) -> u64 {
    seeds(default..default + 1)[0]
}

/// Prints the command that repeats a seed if the test panics before this value is dropped. It works in `async` tests
/// and in threads of a test as well.
#[derive(Debug)]
#[must_use = "the command is printed when the value is dropped"]
pub(crate) struct ReplayCommand {
    test: &'static str,
    seed: u64,
}

impl ReplayCommand {
    /// `test` is [`test_name!`] of the test function.
    pub(crate) fn on_panic(test: &'static str, seed: u64) -> ReplayCommand {
        ReplayCommand { test, seed }
    }
}

impl Drop for ReplayCommand {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("replays with: {VARIABLE}={} cargo test --test it {}", self.seed, self.test);
        }
    }
}

/// The name of the enclosing test function as `cargo test` filters it, such as `seeded_ws::equal_seeds_…`.
macro_rules! test_name {
    () => {{
        fn inside() {}
        $crate::support::seeds::enclosing(std::any::type_name_of_val(&inside))
    }};
}
pub(crate) use test_name;

/// The enclosing function of a path such as `it::module::test::{{closure}}::inside`, without the crate.
pub(crate) fn enclosing(path: &'static str) -> &'static str {
    let path = path.split_once("::").map_or(path, |(_crate, path)| path).trim_end_matches("::inside");
    path.split_once("::{{closure}}").map_or(path, |(test, _)| test)
}

#[test]
fn test_name_is_the_name_that_cargo_test_filters() {
    let in_closure = || test_name!();
    assert_eq!(in_closure(), "support::seeds::test_name_is_the_name_that_cargo_test_filters");
}
