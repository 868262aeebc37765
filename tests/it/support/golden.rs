//! Golden files: texts that users can script against, compared byte for byte. `BLESS=1 cargo test` rewrites them; the
//! difference is reviewed before it is committed.

use std::path::Path;

/// Compares with `tests/golden/<name>`.
///
/// # Panics
/// When the texts differ. The message contains both.
pub(crate) fn check(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(expected == actual, "{name} differs; BLESS=1 rewrites it\n--- golden\n{expected}\n--- actual\n{actual}");
}
