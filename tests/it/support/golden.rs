//! Golden files: what users script against, held to the letter. `BLESS=1 cargo test` writes them anew; the diff is the
//! review.

use std::path::Path;

/// Compares with `tests/golden/<name>`.
///
/// # Panics
/// When they differ, with both texts.
pub(crate) fn check(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == actual,
        "{name} differs (BLESS=1 writes it anew)\n--- golden\n{expected}\n--- actual\n{actual}"
    );
}
