//! The import rules of `docs/architecture.md#module-layers`: which top-level module may import which, which external
//! crates belong to which modules, no import cycle between files, and facade files without code.
//!
//! The sources are read as text. Test modules are left out: they may import anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Top-level module → the top-level modules that it may import.
const LAYERS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    ("lib", &[]),
    ("api", &[]),
    ("event", &[]),
    ("wire", &[]),
    ("ring", &[]),
    ("tasks", &[]),
    ("client", &[]),
    ("https_client", &[]),
    ("forward", &["client", "https_client"]),
    ("traces", &["client", "https_client"]),
    ("weak_table", &[]),
    ("x509", &[]),
    ("feed", &["event", "wire", "ring", "weak_table"]),
    ("broker", &[]),
    ("backbone", &["broker", "event", "feed"]),
    ("validate", &["event"]),
    ("relay", &["client", "event", "feed", "ring", "wire"]),
    ("schema", &["event", "wire"]),
    ("source", &["api", "broker", "event", "feed", "validate", "x509"]),
    (
        "http",
        &["backbone", "event", "wire", "feed", "relay", "schema", "tasks", "traces", "validate", "weak_table", "x509"],
    ),
    ("doctor", &["api", "client", "event", "https_client", "source"]),
    ("sim", &["api"]),
    (
        "cli",
        &[
            "api", "backbone", "broker", "client", "doctor", "event", "forward", "wire", "ring", "feed", "relay",
            "source", "http", "tasks", "traces", "sim", "validate",
        ],
    ),
    ("test_support", &["api", "event"]),
];

/// Narrower rules: a module, and what its files may import beside their own siblings. The longest prefix counts.
const NARROWER: &[(&str, &[&str])] = &[
    // The decoder turns JSON into views: it must not depend on how the JSON is read.
    ("source::decode", &["api", "event", "source::decode"]),
    ("source::error", &[]),
    ("source::connect", &["source::connect", "source::error", "x509"]),
    ("source::review", &["api", "source::error"]),
    (
        "source::diagnose",
        &[
            "api",
            "event",
            "source::answer",
            "source::connect",
            "source::diagnose",
            "source::error",
            "source::line_splitter",
            "source::list_limits",
        ],
    ),
    // Connections do not depend on what is served over them.
    ("http::conn", &["http::conn", "tasks", "x509"]),
    // Streams do not depend on events, principals or endpoints: what they send comes from an `Outbound`.
    ("http::stream", &["http::stream", "http::conn", "http::sync", "feed", "relay", "traces", "wire", "weak_table"]),
    (
        "http::auth",
        &["event", "wire", "http::auth", "http::caller", "http::forwarded", "http::rate_limit", "weak_table"],
    ),
];

/// External crates that only these modules may name. Other crates may be used anywhere.
const CRATES: &[(&str, &[&str])] = &[
    ("kube", &["api", "source", "sim"]),
    ("k8s_openapi", &["api", "source", "sim"]),
    ("schemars", &["api", "doctor", "event", "schema"]),
    ("fearless_simd", &["source"]),
    ("warp", &["http"]),
    ("hyper", &["client", "http", "sim", "source"]),
    ("jsonschema", &["validate"]),
    ("wasmi", &["validate"]),
    ("hyper_rustls", &["https_client", "source"]),
    ("hyper_util", &["client", "http", "https_client", "sim", "source"]),
    ("socket2", &["http"]),
    ("sha1", &["wire"]),
    ("sha2", &["event"]),
    ("clap", &["cli"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("ratatui", &["cli"]),
    ("anyhow", &["cli"]),
    ("serde_saphyr", &["api", "cli", "source", "http"]),
    ("rumqttc", &["source"]),
    ("async_nats", &["backbone"]),
    ("opentelemetry", &["traces"]),
    ("opentelemetry_http", &["traces"]),
    ("opentelemetry_otlp", &["traces"]),
    ("opentelemetry_sdk", &["traces"]),
    (
        "rustls",
        &["backbone", "broker", "cli", "client", "doctor", "forward", "https_client", "source", "http", "traces"],
    ),
    ("rustls_platform_verifier", &["client"]),
    ("tokio_tungstenite", &["client"]),
    ("strsim", &["cli"]),
    ("tokio_rustls", &["cli", "client", "http"]),
    ("ring", &["doctor", "forward", "http"]),
    ("subtle", &["http"]),
    ("governor", &["http"]),
    ("tracing_subscriber", &["cli"]),
    (
        "tokio",
        &[
            "backbone", "broker", "client", "doctor", "feed", "forward", "relay", "source", "http", "tasks", "traces",
            "sim", "cli",
        ],
    ),
    ("tokio_util", &["http", "tasks"]),
    ("tracing", &["backbone", "broker", "relay", "source", "http", "tasks", "traces", "sim", "cli"]),
];

/// Files that hold documentation, `mod` and `use` only, so that no child has to import its parent.
const FACADES: &[&str] = &[
    "lib",
    "api",
    "doctor",
    "event",
    "feed",
    "forward",
    "validate",
    "relay",
    "schema",
    "source",
    "source::mqtt",
    "traces",
    "http",
    "http::auth",
    "http::conn",
    "http::stream",
    "sim",
];

/// A source file without comments, strings and test modules, and where it lives in the module tree.
#[derive(Clone, Debug)]
struct Source {
    tokens: Vec<String>,
}

/// Module path (`feed::state`) → file.
type Sources = BTreeMap<String, Source>;

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn read_sources() -> Sources {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    let module = |file: &Path| {
        let parts = file.strip_prefix(&src).unwrap().with_extension("");
        parts.iter().map(|part| part.to_string_lossy().into_owned()).collect::<Vec<_>>().join("::")
    };
    sources_of(files.iter().map(|file| (module(file), std::fs::read_to_string(file).unwrap())))
}

/// Reads files by module path, without the modules that are declared under `#[cfg(test)]`.
fn sources_of(files: impl IntoIterator<Item = (String, String)>) -> Sources {
    let mut sources: Sources = files.into_iter().map(|(name, text)| (name, Source { tokens: tokens(&text) })).collect();
    let mut test_modules = Vec::new();
    for (name, source) in &mut sources {
        let parent = if name == "lib" { String::new() } else { format!("{name}::") };
        test_modules.extend(remove_test_items(&mut source.tokens).into_iter().map(|child| format!("{parent}{child}")));
    }
    sources.retain(|name, _| !test_modules.iter().any(|test| is_within(name, test)));
    sources
}

/// Identifiers, `::` and single punctuation characters. Comments are skipped; a literal becomes one `"` token.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let (mut at, mut found) = (0, Vec::new());
    let starts = |at: usize, with: &str| chars[at..].iter().copied().take(with.len()).eq(with.chars());
    while at < chars.len() {
        let c = chars[at];
        if starts(at, "//") {
            while at < chars.len() && chars[at] != '\n' {
                at += 1;
            }
        } else if starts(at, "/*") {
            while at < chars.len() && !starts(at, "*/") {
                at += 1;
            }
            at += 2;
        } else if c == 'r' && (starts(at, "r\"") || starts(at, "r#")) && !starts(at, "r#_") {
            let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
            let end = format!("\"{}", "#".repeat(hashes));
            at += hashes + 2;
            while at < chars.len() && !starts(at, &end) {
                at += 1;
            }
            at += end.len();
            found.push("\"".to_owned());
        } else if c == '"' {
            at += 1;
            while at < chars.len() && chars[at] != '"' {
                at += if chars[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
            found.push("\"".to_owned());
        } else if c == '\'' {
            // A character literal, or a lifetime.
            if chars.get(at + 1) == Some(&'\\') {
                at += 3;
                while at < chars.len() && chars[at] != '\'' {
                    at += 1;
                }
                at += 1;
            } else {
                let is_lifetime = chars.get(at + 2) != Some(&'\'');
                at += if is_lifetime { 1 } else { 3 };
                while is_lifetime && chars.get(at).is_some_and(|c| c.is_alphanumeric() || *c == '_') {
                    at += 1;
                }
            }
        } else if c.is_alphanumeric() || c == '_' {
            let start = at;
            while at < chars.len() && (chars[at].is_alphanumeric() || chars[at] == '_') {
                at += 1;
            }
            found.push(chars[start..at].iter().collect());
        } else if starts(at, "::") {
            found.push("::".to_owned());
            at += 2;
        } else {
            if !c.is_whitespace() {
                found.push(c.to_string());
            }
            at += 1;
        }
    }
    found
}

/// Removes each item after `#[cfg(test)]`, and returns the names of the file modules among them.
fn remove_test_items(tokens: &mut Vec<String>) -> Vec<String> {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut names = Vec::new();
    while let Some(start) = tokens.windows(MARK.len()).position(|window| window.iter().eq(MARK.iter())) {
        let mut end = start + MARK.len();
        let mut depth = 0;
        while end < tokens.len() {
            match tokens[end].as_str() {
                "{" => depth += 1,
                "}" if depth == 1 => break,
                "}" => depth -= 1,
                ";" if depth == 0 => break,
                _ => {}
            }
            end += 1;
        }
        let end = end.min(tokens.len() - 1);
        if tokens[end] == ";"
            && let Some(at) = tokens[start..end].iter().position(|token| token == "mod")
        {
            names.push(tokens[start + at + 1].clone());
        }
        tokens.drain(start..=end);
    }
    names
}

fn is_within(name: &str, module: &str) -> bool {
    name == module || name.strip_prefix(module).is_some_and(|rest| rest.starts_with("::"))
}

/// The paths that a file names, with the name that a `use` binds each to.
fn paths(tokens: &[String]) -> Vec<(Vec<String>, Option<String>)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let is_use = tokens[at] == "use";
        let start = if is_use { at + 1 } else { at };
        // Any identifier may start a path: `absolute` keeps `crate`, `super`, `self` and the file's own children.
        let is_root = tokens.get(start).is_some_and(|token| token.starts_with(|c: char| c.is_alphabetic() || c == '_'));
        // The end of a longer path, or the path of a visibility: `pub(in crate::source)`.
        let follows = start > 0 && ["::", "in"].contains(&tokens[start - 1].as_str()) && !is_use;
        if (is_root && tokens.get(start + 1).is_some_and(|token| token == "::") && !follows) || is_use {
            at = path_tree(tokens, start, &mut Vec::new(), is_use, &mut found);
        } else {
            at += 1;
        }
    }
    found
}

/// Reads one path or use tree from `at`, and returns the index after it.
fn path_tree(
    tokens: &[String],
    mut at: usize,
    prefix: &mut Vec<String>,
    is_use: bool,
    found: &mut Vec<(Vec<String>, Option<String>)>,
) -> usize {
    let depth = prefix.len();
    while let Some(token) = tokens.get(at) {
        let next = tokens.get(at + 1).map(String::as_str);
        if token == "{" {
            at += 1;
            while tokens.get(at).is_some_and(|token| token != "}") {
                at = path_tree(tokens, at, prefix, is_use, found);
                if tokens.get(at).is_some_and(|token| token == ",") {
                    at += 1;
                }
            }
            prefix.truncate(depth);
            return at + 1;
        }
        if !token.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '*') {
            break;
        }
        prefix.push(token.clone());
        at += 1;
        if next == Some("::") {
            at += 1;
            // A turbofish ends the path.
            if tokens.get(at).is_some_and(|token| token == "<") {
                break;
            }
            continue;
        }
        break;
    }
    let mut path = prefix.clone();
    if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    let mut bound = path.last().cloned();
    if is_use && tokens.get(at).is_some_and(|token| token == "as") {
        bound = tokens.get(at + 1).cloned();
        at += 2;
    }
    if !path.is_empty() {
        found.push((path, is_use.then_some(bound).flatten()));
    }
    prefix.truncate(depth);
    at.max(1)
}

/// File → the files whose items it names, re-exports and imports of facades followed to the file that defines the item.
fn imports(sources: &Sources) -> BTreeMap<String, BTreeSet<String>> {
    let mut bindings: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let mut named: BTreeMap<String, Vec<Vec<String>>> = BTreeMap::new();
    for (name, source) in sources {
        for (path, bound) in paths(&source.tokens) {
            if let Some(absolute) = absolute(sources, name, &path) {
                if let Some(bound) = bound.filter(|bound| bound != "*") {
                    bindings.insert((name.clone(), bound), absolute.clone());
                }
                named.entry(name.clone()).or_default().push(absolute);
            }
        }
    }
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, paths) in named {
        // A facade only passes on what its children define: it depends on nothing by itself.
        let is_facade = FACADES.contains(&name.as_str());
        for path in paths {
            let target = definition(sources, &bindings, path);
            if target != name && !(is_facade && is_within(&target, &name)) {
                found.entry(name.clone()).or_default().insert(target);
            }
        }
    }
    found
}

/// A path from the crate's root, or `None` for one into another crate.
fn absolute(sources: &Sources, file: &str, path: &[String]) -> Option<Vec<String>> {
    let mut module: Vec<String> =
        if file == "lib" || file == "main" { Vec::new() } else { file.split("::").map(str::to_owned).collect() };
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" | "boilerhouse_bridge" => {
            module.clear();
            rest = &rest[1..];
        }
        "self" => rest = &rest[1..],
        "super" => {
            while rest.first().is_some_and(|part| part == "super") {
                module.pop();
                rest = &rest[1..];
            }
        }
        // `child::Item` in a parent.
        first => {
            let child = module.iter().cloned().chain([first.to_owned()]).collect::<Vec<_>>().join("::");
            if !sources.contains_key(&child) {
                return None;
            }
        }
    }
    module.extend(rest.iter().cloned());
    Some(module)
}

/// The file that defines what a path names: the longest prefix that is a file, imports and re-exports there followed.
fn definition(sources: &Sources, bindings: &BTreeMap<(String, String), Vec<String>>, mut path: Vec<String>) -> String {
    for _ in 0..8 {
        let mut length = path.len();
        while length > 0 && !sources.contains_key(&path[..length].join("::")) {
            length -= 1;
        }
        let module = if length == 0 { "lib".to_owned() } else { path[..length].join("::") };
        let Some(item) = path.get(length) else { return module };
        let Some(target) = bindings.get(&(module.clone(), item.clone())) else { return module };
        let mut next = target.clone();
        next.extend(path[length + 1..].iter().cloned());
        if next == path {
            return module;
        }
        path = next;
    }
    panic!("re-exports of {path:?} run in a circle")
}

/// Groups of files that import each other, each with one cycle written out.
fn cycles(imports: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let reach = |from: &String| {
        let (mut seen, mut open) = (BTreeMap::<String, Option<String>>::new(), vec![from.clone()]);
        while let Some(file) = open.pop() {
            for next in imports.get(&file).into_iter().flatten() {
                if !seen.contains_key(next) {
                    seen.insert(next.clone(), Some(file.clone()));
                    open.insert(0, next.clone());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeMap<String, Option<String>>> =
        imports.keys().map(|file| (file, reach(file))).collect();
    let (mut found, mut done) = (Vec::new(), BTreeSet::new());
    for (file, seen) in &reached {
        if !seen.contains_key(*file) || done.contains(*file) {
            continue;
        }
        let group: BTreeSet<&String> = reached
            .iter()
            .filter(|(other, back)| seen.contains_key(**other) && back.contains_key(*file))
            .map(|(other, _)| *other)
            .collect();
        done.extend(group.iter().copied());
        let mut cycle = vec![(*file).clone()];
        let mut at = (*file).clone();
        while let Some(Some(before)) = seen.get(&at) {
            at = before.clone();
            cycle.push(at.clone());
            if at == **file {
                break;
            }
        }
        cycle.reverse();
        let members: Vec<&str> = group.iter().map(|file| file.as_str()).collect();
        found.push(format!("{}   ({} files: {})", cycle.join(" → "), members.len(), members.join(", ")));
    }
    found
}

fn top(module: &str) -> &str {
    module.split("::").next().unwrap_or(module)
}

#[test]
fn imports_follow_the_layer_table() {
    let mut wrong = Vec::new();
    for (file, imported) in imports(&read_sources()) {
        let Some((_, allowed)) = LAYERS.iter().find(|(module, _)| *module == top(&file)) else {
            wrong.push(format!("{file} is in no layer: add its top-level module to LAYERS"));
            continue;
        };
        let narrower = NARROWER.iter().filter(|(module, _)| is_within(&file, module)).max_by_key(|(m, _)| m.len());
        for target in imported {
            let fits = match narrower {
                Some((_, allowed)) => allowed.iter().any(|module| is_within(&target, module)),
                None => top(&target) == top(&file) || allowed.contains(&top(&target)),
            };
            if !fits {
                wrong.push(format!("{file} imports {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "docs/architecture.md#module-layers does not allow:\n{}", wrong.join("\n"));
}

#[test]
fn external_crates_stay_in_their_modules() {
    let mut wrong = Vec::new();
    for (file, source) in read_sources() {
        for (name, homes) in CRATES {
            let named = source.tokens.windows(2).enumerate().any(|(at, pair)| {
                pair[0] == *name
                    && pair[1] == "::"
                    && (at == 0 || source.tokens[at - 1] != "::")
                    && !(at > 1 && source.tokens[at - 1] == "{" && source.tokens[at - 2] == "::")
            });
            let home = top(&file);
            // A module of this crate may have a crate's name.
            if named && home != *name && !homes.contains(&home) && !LAYERS.iter().any(|(module, _)| module == name) {
                wrong.push(format!("{file} names {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "these crates belong to other modules:\n{}", wrong.join("\n"));
}

#[test]
fn files_form_no_import_cycle() {
    let found = cycles(&imports(&read_sources()));
    assert!(found.is_empty(), "{} import cycles:\n{}", found.len(), found.join("\n"));
}

#[test]
fn facade_files_hold_no_code() {
    let sources = read_sources();
    let mut wrong = Vec::new();
    for facade in FACADES {
        let Some(source) = sources.get(*facade) else { continue };
        for word in ["fn", "struct", "enum", "impl", "trait", "const", "static", "type", "macro_rules"] {
            if source.tokens.iter().any(|token| token == word) {
                wrong.push(format!("{facade} has {word}"));
            }
        }
    }
    assert!(wrong.is_empty(), "facade files hold documentation, mod and use only:\n{}", wrong.join("\n"));
}

/// The cases below are written as sources and read as the real ones are.
fn cycles_in(files: &[(&str, &str)]) -> Vec<String> {
    cycles(&imports(&sources_of(files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())))))
}

#[test]
fn a_planted_cycle_is_found_and_printed() {
    let direct = [("ring", "use crate::wire::Frame;"), ("wire", "fn f() { crate::ring::x(); }")];
    let found = cycles_in(&direct);
    assert!(found.len() == 1 && found[0].starts_with("ring → wire → ring"), "{found:?}");

    // Through the facade, which re-exports what the child defines, and by `super`.
    let facade = "mod state; mod writer; pub use self::{state::State, writer::Writer};";
    let hidden =
        [("feed", facade), ("feed::state", "use super::Writer;"), ("feed::writer", "use super::state::{self, State};")];
    let found = cycles_in(&hidden);
    assert!(found.len() == 1 && found[0].starts_with("feed::state → feed::writer → feed::state"), "{found:?}");

    let child = [("cli", "mod serve; struct Error; fn f() { serve::run(); }"), ("cli::serve", "use super::Error;")];
    let found = cycles_in(&child);
    assert!(found.len() == 1 && found[0].starts_with("cli → cli::serve → cli"), "{found:?}");

    let tests_only = [("ring", "#[cfg(test)] mod tests { use crate::wire::x; }"), ("wire", "use crate::ring::y;")];
    assert_eq!(cycles_in(&tests_only), [""; 0], "test modules may import anything");
    let comment =
        [("ring", "// use crate::wire::x;\n const A: &str = \"crate::wire::x\";"), ("wire", "use crate::ring::y;")];
    assert_eq!(cycles_in(&comment), [""; 0], "comments and strings are not imports");
}

#[test]
fn the_reader_finds_real_imports() {
    let imports = imports(&read_sources());
    for (file, target) in
        [("feed::writer", "feed::state"), ("http::routes", "http::error"), ("cli::serve", "cli::server")]
    {
        assert!(
            imports.get(file).is_some_and(|found| found.contains(target)),
            "{file} imports {:?}",
            imports.get(file)
        );
    }
}
