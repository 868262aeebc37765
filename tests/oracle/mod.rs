//! The oracle: decides whether what a client received is right.
//!
//! It has its own implementation of the rules of docs/protocol.md: views, filters, transitions, events, the fold. Every
//! seeded test compares its records with the same oracle. [`mutations`] test the oracle itself.
//!
//! Guarantees: it does not call the code that it checks. Must not import: anything of the product but `ALLOWED`, above
//! all not `event::render`, `event::projection` and `source::decode`. A test of this file checks it.

pub(crate) mod fold;
pub(crate) mod full_stream;
pub(crate) mod history;
pub(crate) mod mutations;
pub(crate) mod object;
pub(crate) mod recording;
pub(crate) mod transitions;
pub(crate) mod violation;
pub(crate) mod visibility;
pub(crate) mod ws;

/// Everything of the product that the oracle may use.
const ALLOWED: [&str; 8] = [
    "event::Cursor",
    "event::PerResource",
    "event::Resource",
    "event::ResourceVersion",
    "sim::ApiResource",
    "sim::store::Change",
    "test_support::SeededRng",
    "wire::CloseReason",
];

#[test]
fn oracle_does_not_call_the_code_that_it_checks() {
    let mut folders = vec![std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/oracle")];
    let (mut imports, crate_name) = (0, concat!("boilerhouse", "_bridge"));
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            for line in lines.filter(|line| line.contains(crate_name)) {
                let import = line.strip_prefix("use ").and_then(|line| line.strip_prefix(crate_name));
                let import = import.unwrap_or_else(|| panic!("{}: not an import: {line}", path.display()));
                let import = import.trim_start_matches("::").trim_end_matches(';');
                let (prefix, items) = import.split_once('{').unwrap_or(("", import));
                for item in items.trim_end_matches('}').split(", ") {
                    let item = format!("{prefix}{item}");
                    assert!(ALLOWED.contains(&item.as_str()), "{} must not use {item}", path.display());
                    imports += 1;
                }
            }
        }
    }
    assert!(imports > 20, "only {imports} imports of the oracle were found");
}
