//! The reference has what exists, and nothing else: flags with their environment names and defaults, limits with their
//! names and files, and the pages of the site.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The flags in a text, without their dashes: `--url` is `url`.
fn flags(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    text.match_indices("--")
        .filter(|(at, _)| !text[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '-'))
        .map(|(at, _)| text[at + 2..].split(|c: char| !is_part(c)).next().unwrap().trim_end_matches('-').to_owned())
        .filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase()))
        .collect()
}

struct Flag {
    name: String,
    environment: Option<String>,
    default: Option<String>,
}

/// The flags of each command, from the golden file that `--help` is compared with.
fn flags_of_commands() -> BTreeMap<String, Vec<Flag>> {
    let help = read("tests/golden/help.txt");
    let mut commands = BTreeMap::new();
    for part in help.split("$ boilerhouse-bridge ").skip(1) {
        let (command, text) = part.split_once("--help").unwrap();
        // A flag has six columns before it, its description ten.
        let mut found: Vec<String> = Vec::new();
        for line in text.lines() {
            let is_flag = line.get(6..).is_some_and(|rest| rest.starts_with("--")) && !line.starts_with("       ");
            if is_flag {
                found.push(line[6..].to_owned());
            } else if let Some(last) = found.last_mut() {
                last.push(' ');
                last.push_str(line.trim());
            }
        }
        let flags = found.iter().map(|text| {
            let note = |label: &str| {
                let start = text.find(label)? + label.len();
                Some(text[start..].split([']', '=']).next()?.trim().to_owned())
            };
            let name = text[2..].split(|c: char| !(c.is_ascii_lowercase() || c == '-')).next().unwrap().to_owned();
            Flag { name, environment: note("[env:"), default: note("[default:") }
        });
        let flags = flags.filter(|flag| !["help", "version"].contains(&flag.name.as_str()));
        commands.insert(command.trim().to_owned(), flags.collect());
    }
    commands
}

/// The text of the sections with these headings, up to the next heading of the same level or a higher one.
fn sections(document: &str, headings: &[&str]) -> String {
    let mut kept = String::new();
    for heading in headings {
        let marks = heading.split(' ').next().unwrap().len();
        let start = document.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no heading '{heading}'")) + 1;
        let rest = &document[start + heading.len()..];
        let end = (1..=marks).filter_map(|level| rest.find(&format!("\n{} ", "#".repeat(level)))).min();
        kept.push_str(&rest[..end.unwrap_or(rest.len())]);
    }
    kept
}

/// Where docs/protocol.md describes the flags of a command.
const FLAG_SECTIONS: &[(&str, &[&str])] = &[
    ("serve", &["### Flags of `serve`"]),
    ("demo", &["### Flags of `demo`"]),
    ("events", &["### `events`", "### Port-forward", "### Deliveries"]),
    ("top", &["### `top`"]),
    ("dashboard", &["### `dashboard`"]),
    ("relay", &["### Flags of `relay`"]),
    ("doctor", &["## Doctor", "### Flags of `serve`"]),
];

#[test]
fn every_flag_is_in_the_protocol_and_in_the_reference() {
    let protocol = read("docs/protocol.md");
    let index = sections(&read("docs/reference.md"), &["### Flags of each command"]);
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (command, flags_of_command) in flags_of_commands() {
        if flags_of_command.is_empty() {
            continue;
        }
        let Some((_, headings)) = FLAG_SECTIONS.iter().find(|(name, _)| *name == command) else {
            wrong.push(format!("FLAG_SECTIONS of this test does not have `{command}`"));
            continue;
        };
        let text = sections(&protocol, headings);
        let described = flags(&text);
        for flag in &flags_of_command {
            checked += 1;
            if !described.contains(&flag.name) {
                wrong.push(format!("docs/protocol.md, {}: --{} of `{command}` is missing", headings[0], flag.name));
                continue;
            }
            // A row with several flags has the names of their variables in the same order.
            let row = text.lines().find(|line| line.starts_with('|') && flags(line).contains(&flag.name));
            let has_environment = headings[0].contains("Flags of") && row.is_some_and(|row| row.contains('`'));
            if let (true, Some(row), Some(environment)) = (has_environment, row, &flag.environment)
                && !row.contains(environment.as_str())
            {
                wrong.push(format!("docs/protocol.md: the row of --{} does not have {environment}", flag.name));
            }
            if let (true, Some(row), Some(default)) = (has_environment, row, &flag.default)
                && !row.contains(default.as_str())
            {
                wrong.push(format!("docs/protocol.md: the row of --{} does not have the default {default}", flag.name));
            }
        }
        let row_of = |command: &str| {
            index.lines().find(|line| line.starts_with(&format!("| `{command}` |"))).unwrap_or_default()
        };
        let row = row_of(&command);
        let mut listed = flags(row);
        if row.contains("those of `serve`") {
            listed.extend(flags(row_of("serve")));
        }
        let expected: BTreeSet<String> = flags_of_command.iter().map(|flag| flag.name.clone()).collect();
        if listed != expected {
            let names: Vec<String> = flags_of_command.iter().map(|flag| format!("`--{}`", flag.name)).collect();
            wrong.push(format!("docs/reference.md: the row must be\n| `{command}` | {} |", names.join(", ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked > 90, "only {checked} flags found");
}

/// Flags in docs/protocol.md and docs/reference.md that `--help` does not show: flags of other programs, a former name, and
/// flags that the protocol marks as planned.
const OTHER_FLAGS: &[&str] =
    &["audience", "bench", "data-urlencode", "help", "metrics-listen", "mqtt", "own-watchers", "version"];

#[test]
fn every_flag_of_the_reference_exists() {
    let known: BTreeSet<String> = flags_of_commands().into_values().flatten().map(|flag| flag.name).collect();
    let mut unknown = Vec::new();
    for document in ["docs/protocol.md", "docs/reference.md", "docs/limits.md"] {
        let found = flags(&read(document));
        unknown.extend(
            found
                .into_iter()
                .filter(|name| !known.contains(name) && !OTHER_FLAGS.contains(&name.as_str()))
                .map(|name| format!("{document}: --{name}")),
        );
    }
    assert!(unknown.is_empty(), "flags that no command has:\n{}", unknown.join("\n"));
}

/// The texts in backticks of a cell.
fn code(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

fn is_word(text: &str, word: &str) -> bool {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word)
        .any(|(at, _)| !is_part(text[..at].chars().next_back()) && !is_part(text[at + word.len()..].chars().next()))
}

#[test]
fn every_limit_of_the_reference_exists() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for row in read("docs/limits.md").lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, bound, names, places, ..] = cells[..] else { continue };
        let places: Vec<&str> = code(places).filter(|place| place.ends_with(".rs")).collect();
        if cells.len() < 7 || places.is_empty() {
            continue;
        }
        let mut text = String::new();
        for place in places {
            match std::fs::read_to_string(root().join("src").join(place)) {
                Ok(found) => text.push_str(&found),
                Err(_) => wrong.push(format!("{bound}: src/{place} is missing")),
            }
        }
        for name in code(names) {
            checked += 1;
            let last = name.rsplit([':', '.']).next().unwrap();
            if !is_word(&text, last) {
                wrong.push(format!("{bound}: `{name}` is not in its file"));
            }
        }
    }
    assert!(wrong.is_empty(), "docs/limits.md:\n{}", wrong.join("\n"));
    assert!(checked > 250, "only {checked} names found");
}

/// Constants whose name or type is that of a bound, and that are none.
const NO_BOUNDS: &[&str] = &[
    // A default that docs/limits.md lists by its flag.
    "DEFAULT_MAX",
    "DEFAULT_MAX_FILTERS",
    "DEFAULT_MAX_MIB",
    "DEFAULT_RESPONSE_MEMORY",
    // Units and estimates.
    "BYTES_PER_UNIT",
    "ENTRY_OVERHEAD",
    "MIN_NODE_MEMBERS",
    "NODE_BYTES",
    "PAGE_BYTES",
    "SNAPSHOT_BYTES",
    // Parts of a contract: the largest integer of JSON, the oldest Kubernetes, and the size of a key that doctor makes.
    "KEY_BYTES",
    "MAX_INTEGER",
    "MIN_MINOR",
    "FILES_PER_DEDICATED_WATCHER",
    "MAPPED_BITS",
    "SMALL_BODY_BYTES",
    "UNIT_BYTES",
    // Widths on the screen, and the interval of a graph.
    "NAME_WIDTH",
    "SAMPLE",
];

/// Parts of a name that say that a constant is a bound. A constant of type Duration is one too.
const BOUND_PARTS: &[&str] =
    &["MAX", "MIN", "LIMIT", "BYTES", "TIMEOUT", "INTERVAL", "DELAY", "CAPACITY", "ATTEMPTS", "RETRIES", "BUDGET"];

#[test]
fn every_bound_is_in_the_reference() {
    let limits = read("docs/limits.md");
    let mut missing = Vec::new();
    let mut found = 0;
    for path in files(&root().join("src"), "rs") {
        let relative = path.strip_prefix(root().join("src")).unwrap().display().to_string();
        let is_test = relative.contains("/tests") || relative.starts_with("tests") || relative.ends_with("_cases.rs");
        if relative.starts_with("sim") || is_test || relative.ends_with("_compat.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for line in text.split("#[cfg(test)]\nmod ").next().unwrap().lines() {
            let Some((before, rest)) = line.split_once("const ") else { continue };
            let is_item = before.trim().is_empty() || before.trim().starts_with("pub");
            let Some((name, rest)) = rest.split_once(": ").filter(|_| is_item) else { continue };
            let kind = rest.split(" =").next().unwrap();
            let is_number =
                ["u8", "u16", "u32", "u64", "usize", "NonZeroU32"].contains(&kind) || kind.starts_with("Range");
            let is_bound = kind == "Duration"
                || (is_number && name.split('_').any(|part| BOUND_PARTS.contains(&part)))
                || kind.starts_with("RangeInclusive");
            if !is_bound || NO_BOUNDS.contains(&name) {
                continue;
            }
            found += 1;
            if !is_word(&limits, name) {
                missing.push(format!("src/{relative}: {name}"));
            }
        }
    }
    assert!(
        missing.is_empty(),
        "bounds that docs/limits.md does not list (or that belong to NO_BOUNDS of this test):\n{}",
        missing.join("\n")
    );
    assert!(found > 80, "only {found} bounds found");
}

#[test]
fn every_page_is_in_the_summary_of_the_site() {
    let summary = read("docs/SUMMARY.md");
    let listed: Vec<&str> =
        summary.match_indices("](").map(|(at, _)| summary[at + 2..].split(')').next().unwrap()).collect();
    let unique: BTreeSet<&str> = listed.iter().copied().collect();
    assert_eq!(listed.len(), unique.len(), "docs/SUMMARY.md lists a page twice");
    let docs = root().join("docs");
    let pages: BTreeSet<String> = files(&docs, "md")
        .iter()
        .map(|path| path.strip_prefix(&docs).unwrap().display().to_string())
        .filter(|path| !path.starts_with("SUMMARY"))
        .collect();
    let missing: Vec<&String> = pages.iter().filter(|page| !unique.contains(page.as_str())).collect();
    let unknown: Vec<&&str> = unique.iter().filter(|page| !pages.contains(**page)).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "not in docs/SUMMARY.md: {missing:?}\nno such page: {unknown:?}");
}
