//! The import table of architecture.md: which room may know which, and which outside crates belong to which rooms.
//!
//! Read from the sources as text: `crate::…` paths and the crates named in Cargo.toml, in everything that is compiled
//! into the product (test modules may look across).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Path below `src`, without `.rs` (a prefix; the longest that fits counts) → the rooms that it may import.
const ROOMS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    ("lib", &[]),
    ("event", &[]),
    ("wire", &["event"]),
    ("ring", &[]),
    ("feed", &["event", "wire", "ring"]),
    ("source/crd", &[]),
    ("source/decode", &["event", "source"]),
    ("source/error", &[]),
    ("source/connect", &[]),
    ("source/hub", &["event", "feed", "source"]),
    ("source/dedicated", &["event", "feed", "source"]),
    ("source/review", &["source"]),
    ("source", &[]),
    ("http", &["event", "wire", "feed", "tasks"]),
    ("tasks", &[]),
    ("sim", &["source"]),
    ("cli", &["event", "wire", "ring", "feed", "source", "http", "tasks", "sim"]),
];

/// Crates that only these rooms may name. What is not listed here may be used anywhere.
const CRATES: &[(&str, &[&str])] = &[
    ("kube", &["source", "sim"]),
    ("k8s_openapi", &["source", "sim"]),
    ("schemars", &["source"]),
    ("fearless_simd", &["source"]),
    ("warp", &["http"]),
    ("hyper", &["http", "sim"]),
    ("hyper_util", &["http", "sim", "source"]),
    ("socket2", &["http"]),
    ("sha1", &["wire"]),
    ("sha2", &["event"]),
    ("clap", &["cli"]),
    ("anyhow", &["cli"]),
    ("serde_saphyr", &["cli", "source", "http"]),
    ("rustls", &["cli", "source", "http"]),
    ("tokio_rustls", &["cli", "http"]),
    ("ring", &["http"]),
    ("subtle", &["http"]),
    ("governor", &["http"]),
    ("tracing_subscriber", &["cli"]),
    ("tokio", &["feed", "source", "http", "tasks", "sim", "cli"]),
    ("tokio_util", &["http", "tasks"]),
    ("tracing", &["source", "http", "tasks", "sim", "cli"]),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The product's part of a file: without comments, and without what stands behind the first `#[cfg(test)] mod … {`.
fn product(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = code.lines().map(|line| line.split("//").next().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

/// Names that stand right behind a prefix such as `crate::`, braces looked into.
fn names_behind(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.insert(word(rest));
            continue;
        };
        let (mut depth, mut fresh) = (1, true);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' => fresh = depth == 1 || fresh,
                c if fresh && depth == 1 && !c.is_whitespace() => {
                    names.insert(word(&group[at..]));
                    fresh = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
            if c == ',' && depth == 1 {
                fresh = true;
            }
        }
    }
    names.remove("");
    names
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// What a file names: rooms, listed crates, and parts of `source`.
#[derive(Debug)]
struct Imports {
    rooms: BTreeSet<String>,
    crates: BTreeSet<String>,
    source_parts: BTreeSet<String>,
}

/// By path below `src`.
fn imports() -> BTreeMap<String, Imports> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut found = BTreeMap::new();
    for file in files {
        let name = file.strip_prefix(&src).unwrap().with_extension("").to_string_lossy().into_owned();
        if name.split('/').any(|part| ["tests", "tungstenite_compat", "rfc6455_cases"].contains(&part)) {
            continue;
        }
        let code = product(&std::fs::read_to_string(&file).unwrap());
        let mut rooms = names_behind(&code, "crate::");
        rooms.extend(names_behind(&code, "boilerhouse_bridge::"));
        let crates = CRATES.iter().map(|(name, _)| *name);
        let crates = crates.filter(|name| !names_behind(&code, &format!("{name}::")).is_empty());
        let crates = crates.map(str::to_owned).collect();
        found.insert(name, Imports { rooms, crates, source_parts: names_behind(&code, "crate::source::") });
    }
    found
}

#[test]
fn imports_follow_the_data() {
    let mut wrong = Vec::new();
    for (file, Imports { rooms, crates, source_parts }) in imports() {
        let fits = |prefix: &str| file == prefix || file.starts_with(&format!("{prefix}/"));
        let longest = ROOMS.iter().filter(|(prefix, _)| fits(prefix)).max_by_key(|(prefix, _)| prefix.len());
        let Some((_, allowed)) = longest else {
            wrong.push(format!("{file} is in no room: give it one in the table"));
            continue;
        };
        let own = file.split('/').next().unwrap();
        // The simulator may know the claims' schema, but not how they are read: it would hide the reader's errors.
        if own == "sim" && !source_parts.is_subset(&BTreeSet::from(["crd".to_owned()])) {
            wrong.push(format!("{file} imports {source_parts:?} of source"));
        }
        for room in rooms.iter().filter(|room| *room != own && !allowed.contains(&room.as_str())) {
            wrong.push(format!("{file} imports {room}"));
        }
        for name in crates {
            let (_, homes) = CRATES.iter().find(|(listed, _)| *listed == name).unwrap();
            if !homes.contains(&own) {
                wrong.push(format!("{file} names {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "the house (architecture.md) does not allow:\n{}", wrong.join("\n"));
}

#[test]
fn the_reader_of_imports_sees_them() {
    let code = "use crate::{\n    event::{Kind, Rv},\n    feed::Feed,\n};\nfn f() { crate::wire::x(); mycrate::no(); }";
    let names: Vec<String> = names_behind(code, "crate::").into_iter().collect();
    assert_eq!(names, ["event", "feed", "wire"]);
    let imports = imports();
    let sees = imports["feed"].rooms.contains("event") && imports["source/hub/watch_loop"].crates.contains("kube");
    assert!(sees && imports.values().any(|file| file.source_parts.contains("crd")), "{imports:#?}");
}
