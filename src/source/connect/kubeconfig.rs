//! Kubeconfig files: search, parse, check, and merge, as client-go does it.
//!
//! Guarantees: what client-go decodes is decoded to the same values. No input causes a panic, and no error contains a value.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    error::{Error, known_contexts},
    field::{
        FieldError, Fields,
        Shape::{self, Anything, Base64, Flag, List, Named, Object, Text, Values},
        shown_name,
    },
    yaml::{SyntaxError, parse_yaml},
};

/// Maximum bytes of a kubeconfig and of each file that it names: 16 MiB. A longer file is an error.
pub(super) const MAX_FILE_BYTES: u64 = 16 << 20;

const EXTENSIONS: Shape = Named("extension", &Anything);

/// The fields of `Config` in `k8s.io/client-go/tools/clientcmd/api/v1`.
const CONFIG: Shape = Object(&[
    ("kind", Text),
    ("apiVersion", Text),
    ("preferences", Object(&[("colors", Flag), ("extensions", EXTENSIONS)])),
    ("clusters", Named("cluster", &CLUSTER)),
    ("users", Named("user", &USER)),
    ("contexts", Named("context", &CONTEXT)),
    ("current-context", Text),
    ("extensions", EXTENSIONS),
]);
const CONTEXT: Shape = Object(&[("cluster", Text), ("user", Text), ("namespace", Text), ("extensions", EXTENSIONS)]);
const CLUSTER: Shape = Object(&[
    ("server", Text),
    ("tls-server-name", Text),
    ("insecure-skip-tls-verify", Flag),
    ("certificate-authority", Text),
    ("certificate-authority-data", Base64),
    ("proxy-url", Text),
    ("disable-compression", Flag),
    ("extensions", EXTENSIONS),
]);
const USER: Shape = Object(&[
    ("client-certificate", Text),
    ("client-certificate-data", Base64),
    ("client-key", Text),
    ("client-key-data", Base64),
    ("token", Text),
    ("tokenFile", Text),
    ("as", Text),
    ("as-uid", Text),
    ("as-groups", List(&Text)),
    ("as-user-extra", Values(&List(&Text))),
    ("username", Text),
    ("password", Text),
    ("auth-provider", Object(&[("name", Text), ("config", Values(&Text))])),
    ("exec", EXEC),
    ("extensions", EXTENSIONS),
]);
const EXEC: Shape = Object(&[
    ("command", Text),
    ("args", List(&Text)),
    ("env", List(&Object(&[("name", Text), ("value", Text)]))),
    ("apiVersion", Text),
    ("installHint", Text),
    ("provideClusterInfo", Flag),
    ("interactiveMode", Text),
]);

/// The entries of one file, or of several merged files, in the order of the files.
#[derive(Default)]
pub(super) struct Kubeconfig {
    contexts: Vec<(String, Fields)>,
    clusters: Vec<(String, Fields)>,
    users: Vec<(String, Fields)>,
    current_context: String,
}

impl Kubeconfig {
    /// Reads and merges the files as kubectl does. Files that do not exist are skipped, unless `must_exist` is set. Returns
    /// `None` if no file exists.
    pub(super) fn read(paths: &[PathBuf], must_exist: bool) -> Result<Option<Kubeconfig>, Error> {
        let mut merged: Option<Kubeconfig> = None;
        for path in paths {
            let bytes = match read_file(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => continue,
                other => other.map_err(|source| Error::Read { path: path.clone(), source })?,
            };
            // It fails only for an empty path and for a folder that was removed. Relative paths then stay relative.
            let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            let next = Kubeconfig::parse(&bytes, absolute.parent().unwrap_or(Path::new("")))
                .map_err(|error| error.in_file(path))?;
            merged = Some(match merged {
                Some(earlier) => earlier.merge(next),
                None => next,
            });
        }
        Ok(merged)
    }

    /// Parses one file. Relative paths in it are relative to `folder`.
    pub(super) fn parse(bytes: &[u8], folder: &Path) -> Result<Kubeconfig, ParseError> {
        let root = parse_yaml(&decode_text(bytes).ok_or(SyntaxError::default())?)?;
        if !(root.is_object() || root.is_null()) {
            return Err(FieldError::new("the document", "expected a mapping").into());
        }
        CONFIG.check(&root, "")?;
        let root = Fields::new(String::new(), Some(&root));
        for (field, expected) in [("kind", "Config"), ("apiVersion", "v1")] {
            if root.has(field) && root.text(field) != expected {
                return Err(root.error(field, format!("expected {expected}")).into());
            }
        }
        let mut config = Kubeconfig {
            contexts: named(&root, "context"),
            clusters: named(&root, "cluster"),
            users: named(&root, "user"),
            current_context: root.text("current-context").to_owned(),
        };
        for (_, cluster) in &mut config.clusters {
            cluster.resolve("certificate-authority", folder);
        }
        for (_, user) in &mut config.users {
            for field in ["client-certificate", "client-key", "tokenFile"] {
                user.resolve(field, folder);
            }
            // A command without a slash is searched in PATH.
            if let Some(mut exec) = user.object("exec").filter(|exec| exec.text("command").contains('/')) {
                exec.resolve("command", folder);
                user.set_object("exec", exec);
            }
        }
        Ok(config)
    }

    /// Adds the entries of a further file. The first entry of a name stays, and so does the first current context.
    fn merge(mut self, next: Kubeconfig) -> Kubeconfig {
        let add = |entries: &mut Vec<(String, Fields)>, more: Vec<(String, Fields)>| {
            for (name, fields) in more {
                if find(entries, &name).is_none() {
                    entries.push((name, fields));
                }
            }
        };
        add(&mut self.contexts, next.contexts);
        add(&mut self.clusters, next.clusters);
        add(&mut self.users, next.users);
        if self.current_context.is_empty() {
            self.current_context = next.current_context;
        }
        self
    }

    /// Returns the name of the context to use: `wanted`, or the current one.
    pub(super) fn context_name(&self, wanted: Option<&str>) -> Result<String, Error> {
        let known = || known_contexts(self.contexts.iter().map(|(name, _)| name.as_str()));
        let current = Some(self.current_context.as_str()).filter(|name| !name.is_empty());
        let name = wanted.or(current).ok_or_else(|| Error::NoContext { known: known() })?;
        if find(&self.contexts, name).is_none() {
            return Err(Error::UnknownContext { wanted: shown_name(name), known: known() });
        }
        Ok(name.to_owned())
    }

    /// Returns the cluster and the user of a context. A user that does not exist has no fields, as in client-go.
    ///
    /// # Errors
    /// When the cluster does not exist.
    pub(super) fn cluster_and_user(&self, context: &str) -> Result<(Fields, Fields), FieldError> {
        let empty = Fields::new(format!("context `{}`", shown_name(context)), None);
        let context = find(&self.contexts, context).unwrap_or(&empty);
        let (cluster, user) = (context.text("cluster"), context.text("user"));
        if cluster.is_empty() {
            return Err(context.error("cluster", "the field is missing"));
        }
        let Some(cluster) = find(&self.clusters, cluster) else {
            return Err(context.error("cluster", format!("the kubeconfig has no cluster `{}`", shown_name(cluster))));
        };
        let user = match find(&self.users, user) {
            Some(user) => user.clone(),
            None => Fields::new(format!("user `{}`", shown_name(user)), None),
        };
        Ok((cluster.clone(), user))
    }
}

/// Why a file cannot be used.
#[derive(Debug)]
pub(super) enum ParseError {
    /// It is not YAML.
    Syntax(SyntaxError),
    /// A field has a wrong value.
    Field(FieldError),
}

impl From<FieldError> for ParseError {
    fn from(error: FieldError) -> ParseError {
        ParseError::Field(error)
    }
}

impl From<SyntaxError> for ParseError {
    fn from(error: SyntaxError) -> ParseError {
        ParseError::Syntax(error)
    }
}

impl ParseError {
    pub(super) fn in_file(self, path: &Path) -> Error {
        match self {
            ParseError::Syntax(SyntaxError { line, column }) => {
                Error::Malformed { path: path.to_owned(), line, column }
            }
            ParseError::Field(source) => Error::Invalid { path: path.to_owned(), source },
        }
    }
}

/// Reads a file of at most [`MAX_FILE_BYTES`].
pub(super) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {} MiB", MAX_FILE_BYTES >> 20)));
    }
    Ok(bytes)
}

/// Returns the possible paths of the kubeconfig: only the explicit file, or the files of `KUBECONFIG`, or the file in the home
/// directory.
pub(super) fn search_paths(explicit: Option<&Path>, variable: Option<OsString>, home: Option<PathBuf>) -> Vec<PathBuf> {
    if let Some(path) = explicit {
        return vec![path.to_owned()];
    }
    let split = |value| std::env::split_paths(&value).filter(|path| !path.as_os_str().is_empty()).collect();
    match variable.map(split) {
        Some(listed) if !Vec::is_empty(&listed) => listed,
        _ => home.map(|home| home.join(".kube/config")).into_iter().collect(),
    }
}

/// Decodes UTF-8 and, after a byte order mark, UTF-16.
fn decode_text(bytes: &[u8]) -> Option<String> {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let (pairs, rest) = bytes.as_chunks();
        let units: Vec<u16> = pairs.iter().map(|pair| unit(*pair)).collect();
        String::from_utf16(&units).ok().filter(|_| rest.is_empty())
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] | rest => String::from_utf8(rest.to_vec()).ok(),
    }
}

/// Returns the entries of a list of `{name, <field>}`.
fn named(root: &Fields, field: &str) -> Vec<(String, Fields)> {
    let items = root.value(&format!("{field}s")).and_then(Value::as_array);
    let entry = |item: &Value| {
        let name = item.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let fields = Fields::new(format!("{field} `{}`", shown_name(&name)), item.get(field));
        (name, fields)
    };
    items.into_iter().flatten().map(entry).collect()
}

fn find<'a>(entries: &'a [(String, Fields)], name: &str) -> Option<&'a Fields> {
    entries.iter().find(|(known, _)| known == name).map(|(_, fields)| fields)
}
