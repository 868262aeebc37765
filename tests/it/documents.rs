//! The documents: every relative link leads to a file and a heading that exist, every citation in code does, and no file
//! refers to a document outside the repository.

use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below a folder of the repository, by extension; build results and installed packages are left out.
fn files(folder: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !["target", "node_modules", ".git"].contains(&name.as_str()) {
                files(&path, extensions, found);
            }
        } else if path.extension().is_some_and(|extension| extensions.iter().any(|wanted| extension == *wanted)) {
            found.push(path);
        }
    }
}

/// What people read and edit.
fn text_files() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    files(root(), &["md", "rs", "toml", "yml", "yaml", "py", "js", "mjs", "sh", "html"], &mut found);
    for folder in ["tests", "tests/scripts", "tests/control-plane", "tests/python", ".ci"] {
        let entries = std::fs::read_dir(root().join(folder)).into_iter().flatten();
        found.extend(
            entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file() && path.extension().is_none()),
        );
    }
    found.sort();
    found.dedup();
    found
        .into_iter()
        .map(|path| {
            let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
            (path.strip_prefix(root()).unwrap().to_owned(), text)
        })
        .collect()
}

/// The anchors of a Markdown file, as GitHub makes them: lower case, spaces to hyphens, other punctuation dropped.
fn anchors(markdown: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in prose(markdown).lines() {
        let title = line.trim_start_matches('#');
        if title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let kept = title.trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-' || *c == '_');
        let slug: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let twin = (1..).map(|n| format!("{slug}-{n}")).find(|twin| !found.contains(twin)).unwrap();
        if !found.insert(slug) {
            found.insert(twin);
        }
    }
    found
}

/// Markdown without fenced code blocks.
fn prose(markdown: &str) -> String {
    let mut is_code = false;
    let mut kept = String::new();
    for line in markdown.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if !is_code {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// The targets of `[text](target)`.
fn links(markdown: &str) -> Vec<String> {
    let text = prose(markdown);
    text.match_indices("](")
        .filter_map(|(at, _)| text[at + 2..].split([')', ' ']).next())
        .map(|target| target.trim_matches(['<', '>']).to_owned())
        .collect()
}

/// What is wrong with a link from a file, if anything.
fn broken(from: &Path, target: &str) -> Option<String> {
    let (path, anchor) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
    let mut file = PathBuf::new();
    let folder = if path.is_empty() { from } else { from.parent().unwrap_or(Path::new("")) };
    for part in folder.join(path).components() {
        match part {
            Component::ParentDir if !file.pop() => return Some(format!("{target} leaves the repository")),
            Component::ParentDir | Component::CurDir => {}
            part => file.push(part),
        }
    }
    let Ok(metadata) = std::fs::metadata(root().join(&file)) else {
        return Some(format!("{} is missing", file.display()));
    };
    let anchor = anchor?;
    if metadata.is_dir() || !anchors(&std::fs::read_to_string(root().join(&file)).unwrap()).contains(anchor) {
        return Some(format!("{} has no heading '#{anchor}'", file.display()));
    }
    None
}

#[test]
fn relative_links_lead_to_files_and_headings() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (file, text) in text_files().into_iter().filter(|(file, _)| file.extension().is_some_and(|e| e == "md")) {
        for target in links(&text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            checked += 1;
            wrong.extend(broken(&file, &target).map(|error| format!("{}: {error}", file.display())));
        }
    }
    assert!(wrong.is_empty(), "broken links:\n{}", wrong.join("\n"));
    assert!(checked > 30, "only {checked} links found");
}

#[test]
fn cited_documents_and_sections_exist() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (file, text) in text_files().into_iter().filter(|(file, _)| !file.ends_with("documents.rs")) {
        for (at, _) in text.match_indices("docs/") {
            let before = text[..at].chars().next_back();
            let rest = &text[at..];
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "/-_.#".contains(c))).unwrap_or(rest.len());
            let cited = rest[..end].trim_end_matches(['.', '#']);
            let is_path = before.is_none_or(|c| !(c.is_alphanumeric() || "/-_.".contains(c)));
            if !is_path || !cited.contains(".md") {
                continue;
            }
            checked += 1;
            // A citation names a path from the repository's root.
            wrong.extend(broken(Path::new("README.md"), cited).map(|error| format!("{}: {error}", file.display())));
        }
    }
    assert!(wrong.is_empty(), "citations of what does not exist:\n{}", wrong.join("\n"));
    assert!(checked > 100, "only {checked} citations found");
}

/// `a/{b,c}.rs` → `a/b.rs`, `a/c.rs`.
fn alternatives(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let (inside, after) = rest.split_once('}').unwrap();
    inside.split(',').flat_map(|one| alternatives(&format!("{before}{one}{after}"))).collect()
}

/// A document names a Rust file by a part of its path, from the folder that the section is about.
#[test]
fn source_files_that_documents_name_exist() {
    // Files of other projects, and the place of a planned feature.
    const OTHERS: [&str; 3] = ["runtime/src/args.rs", "tests/integration-tests/main.rs", "http/connections.rs"];
    let files = text_files();
    let sources: Vec<String> = files.iter().map(|(path, _)| format!("/{}", path.display())).collect();
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for (document, text) in files.iter().filter(|(path, _)| path.extension().is_some_and(|extension| extension == "md"))
    {
        let is_path = |name: &&str| {
            name.ends_with(".rs")
                && name.contains('/')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-/{},.".contains(c))
        };
        for name in text.split('`').filter(is_path).flat_map(alternatives) {
            checked += 1;
            let ending = format!("/{name}");
            if !OTHERS.contains(&name.as_str()) && !sources.iter().any(|source| source.ends_with(&ending)) {
                wrong.push(format!("{}: {name}", document.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "documents name files that do not exist:\n{}", wrong.join("\n"));
    assert!(checked > 300, "only {checked} names found");
}

/// A document is named by its path from the repository's root or from the file that names it.
#[test]
fn no_file_refers_to_a_document_outside_the_repository() {
    let mut wrong = Vec::new();
    for (file, text) in text_files() {
        if file.ends_with("documents.rs") {
            continue;
        }
        for (at, _) in text.match_indices(".md") {
            let follows = text[at + 3..].chars().next();
            if follows.is_some_and(|c| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let start = text[..at].rfind(|c: char| !(c.is_ascii_alphanumeric() || "/-_.".contains(c)));
            let path = &text[start.map_or(0, |at| at + text[at..].chars().next().map_or(1, char::len_utf8))..at + 3];
            let folder = file.parent().unwrap_or(Path::new(""));
            let exists = [root().join(path), root().join(folder).join(path)].iter().any(|path| path.exists());
            if path != ".md" && !exists {
                wrong.push(format!("{}: {path}", file.display()));
            }
        }
        for place in ["../shared", "shared/design"] {
            if text.contains(place) {
                wrong.push(format!("{}: {place}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "documents that are not in the repository:\n{}", wrong.join("\n"));
}

/// Words that the language rules replace (docs/development.md#language-rules): pronouns without a referent, metaphors and
/// old names. "seat" in the sense of API Priority and Fairness is a term of Kubernetes.
const REJECTED_WORDS: &[&str] = &[
    "whoever",
    "nobody",
    "somebody",
    "everybody",
    "told",
    "anew",
    "take up",
    "taken up",
    "sent away",
    "for ever",
    "lens",
    "lenses",
    "hall",
    "door",
    "house",
    "riddle",
    "apologize",
    "dawdle",
];

#[test]
fn rejected_words_do_not_return() {
    // The rules themselves name the words; the others quote titles of golden files and recorded values.
    let exempt = [
        "docs/development.md",
        "tests/it/documents.rs",
        "tests/it/http_golden.rs",
        "tests/it/recorded_credentials.rs",
        "tests/it/stream_endpoints/golden.rs",
    ];
    let mut wrong = Vec::new();
    for (file, text) in text_files() {
        if exempt.iter().any(|path| file.ends_with(path)) || file.starts_with("tests/golden") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let line = line.to_lowercase();
            let is_letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            for word in REJECTED_WORDS {
                let found = line.match_indices(word).any(|(at, _)| {
                    !is_letter(line[..at].chars().next_back()) && !is_letter(line[at + word.len()..].chars().next())
                });
                if found {
                    wrong.push(format!("{}:{}: {word}", file.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "docs/development.md#language-rules rejects these words:\n{}", wrong.join("\n"));
}

/// `docs/metrics.md` lists exactly the metrics of the golden files, which a running bridge and relay are compared with.
#[test]
fn metrics_document_lists_every_metric() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let golden = read("tests/golden/metrics.txt") + &read("tests/golden/metrics-relay.txt");
    let expected: BTreeSet<String> = golden
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split_once(' '))
        .map(|(name, kind)| {
            let total = if kind == "counter" && !name.ends_with("_total") { "_total" } else { "" };
            format!("{name}{total} {kind}")
        })
        .collect();
    let document = read("docs/metrics.md");
    let listed: BTreeSet<String> = document
        .lines()
        .filter(|line| !line.contains("absent without"))
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| {
            let mut cells = line.split('|').map(str::trim);
            let (name, kind) = (cells.next()?.strip_suffix('`')?, cells.next()?);
            ["counter", "gauge", "histogram"].contains(&kind).then(|| format!("{name} {kind}"))
        })
        .collect();
    let missing: Vec<_> = expected.difference(&listed).collect();
    let unknown: Vec<_> = listed.difference(&expected).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "not in docs/metrics.md: {missing:#?}\nnot measured: {unknown:#?}"
    );
    assert!(expected.len() > 40, "only {} metrics", expected.len());
}

#[test]
fn anchors_are_those_of_github() {
    let text = "# A `/ws` stream: what, why?\n## Feed contract\n```\n## no heading\n```\n## Feed contract\n#no heading either\n";
    let expected = ["a-ws-stream-what-why", "feed-contract", "feed-contract-1"].map(str::to_owned);
    assert_eq!(anchors(text), BTreeSet::from(expected));
    assert_eq!(broken(Path::new("docs/a.md"), "../../outside.md").unwrap(), "../../outside.md leaves the repository");
    assert_eq!(broken(Path::new("README.md"), "docs/missing.md").unwrap(), "docs/missing.md is missing");
    assert!(broken(Path::new("README.md"), "README.md#no-such-heading").is_some());
    assert_eq!(broken(Path::new("README.md"), "Cargo.toml"), None);
}
