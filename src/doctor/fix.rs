//! `--fix`: files that the flags name and that do not exist, and commands for the cluster.
//!
//! Guarantees: an existing file is never opened for writing. A file that cannot be written completely is removed. Files with a secret have mode 0600, new folders 0700. Nothing
//! in a cluster is changed.

use std::{
    fmt::Write as _,
    fs::{DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::{
    digest::{SHA256, digest},
    rand::{SecureRandom as _, SystemRandom},
};

use serde_json::{Value, json};

use super::{
    command::shell_word,
    report::{CheckResult, Repair},
};
use crate::source::diagnose::{Access, NAMESPACE_ACCESS, Place};

/// Random bytes of a key: 256 bits.
const KEY_BYTES: usize = 32;
/// Name of the Role, and first part of the name of each binding.
const NAME: &str = "boilerhouse-bridge-doctor";
/// Bytes of the hash of an account in the name of its bindings.
const ACCOUNT_HASH: usize = 8;
const RBAC: &str = "rbac.authorization.k8s.io";

/// The files that the flags name.
#[derive(Clone, Debug, Default)]
pub struct LocalFiles {
    /// `--config`
    pub config: Option<PathBuf>,
    /// The text of a configuration in which every line is a comment.
    pub example: String,
    /// `--keys-file`
    pub keys: Option<PathBuf>,
    /// `--session-key-file`
    pub session_key: Option<PathBuf>,
}

/// Creates each file that is missing, and its folder. Returns what was done, and what was not possible.
#[must_use]
pub fn create_missing_files(files: &LocalFiles) -> Vec<Repair> {
    let mut repairs = Vec::new();
    let mut create = |id, path: &Option<PathBuf>, write: &dyn Fn(&Path) -> io::Result<String>| {
        let Some(path) = path.as_ref().filter(|path| is_missing(path)) else { return };
        let created = create_folder(path).and_then(|()| write(path));
        repairs.push(match created {
            Ok(text) => Repair { id, done: true, text },
            // The check fails with the same reason; this line says that the repair was tried.
            Err(error) => Repair { id, done: false, text: format!("# cannot create {}: {error}", path.display()) },
        });
    };
    create("config", &files.config, &|path| {
        create_file(path, 0o644, &files.example)?;
        Ok(format!("created the example configuration {}; all of its lines are comments", path.display()))
    });
    create("credentials", &files.keys, &create_keys_file);
    create("credentials", &files.session_key, &|path| {
        create_file(path, 0o600, &(random_key()? + "\n"))?;
        Ok(format!("created the session key {} with mode 0600", path.display()))
    });
    repairs
}

/// Returns whether nothing has this name, not even a link to a missing file.
fn is_missing(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn create_folder(path: &Path) -> io::Result<()> {
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => DirBuilder::new().recursive(true).mode(0o700).create(folder),
        None => Ok(()),
    }
}

fn create_file(path: &Path, mode: u32, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    if written.is_err() {
        // A file without its content would never be repaired. The error of the write says more than that of the removal.
        let _ = std::fs::remove_file(path);
    }
    written
}

/// Creates a keys file with the hash of one new key, and a file with the key itself.
fn create_keys_file(path: &Path) -> io::Result<String> {
    let key = random_key()?;
    let mut name = path.as_os_str().to_owned();
    name.push(".key");
    let key_path = PathBuf::from(name);
    create_file(&key_path, 0o600, &format!("{key}\n"))?;
    let hash = sha256_hex(&key);
    let text = format!("# The key is in {}.\nkeys:\n  - name: doctor\n    sha256: {hash}\n", key_path.display());
    if let Err(error) = create_file(path, 0o600, &text) {
        // Without the hash the key is of no use.
        let _ = std::fs::remove_file(&key_path);
        return Err(error);
    }
    Ok(format!(
        "created the keys file {} with one key, and the key for --token-file in {}, both with mode 0600",
        path.display(),
        key_path.display()
    ))
}

/// Returns the SHA-256 of a text, in lower-case hexadecimal digits.
fn sha256_hex(text: &str) -> String {
    digest(&SHA256, text.as_bytes()).as_ref().iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn random_key() -> io::Result<String> {
    let mut bytes = [0; KEY_BYTES];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| io::Error::other("the operating system provides no random bytes"))?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

/// Returns the commands that repair the cluster, from the checks that failed, each once.
#[must_use]
pub fn cluster_repairs(results: &[CheckResult]) -> Vec<Repair> {
    let mut repairs: Vec<Repair> = Vec::new();
    for result in results.iter().filter(|result| result.has_failed() && result.is_cluster_command) {
        let Some(text) = &result.repair_hint else { continue };
        if !repairs.iter().any(|repair| repair.text == *text) {
            repairs.push(Repair { id: result.id, done: false, text: text.clone() });
        }
    }
    repairs
}

/// Returns a command that gives this account a permission. `kubectl` is the command with its flags for the cluster.
///
/// In the namespace, that is a Role with everything that the bridge needs there, so that applying it again takes no
/// permission away. The name of a binding has a hash of the account, so that each account keeps its own.
pub(super) fn grant_command(place: Place, namespace: &str, user: &str, kubectl: &str) -> String {
    let hash = &sha256_hex(user)[..ACCOUNT_HASH];
    let subject = match user.strip_prefix("system:serviceaccount:").and_then(|account| account.split_once(':')) {
        Some((namespace, name)) => json!({ "kind": "ServiceAccount", "name": name, "namespace": namespace }),
        None => json!({ "apiGroup": RBAC, "kind": "User", "name": user }),
    };
    let binding = |kind: &str, metadata: Value, role_kind: &str, role: &str| {
        json!({
            "apiVersion": format!("{RBAC}/v1"), "kind": kind, "metadata": metadata,
            "roleRef": { "apiGroup": RBAC, "kind": role_kind, "name": role },
            "subjects": [subject],
        })
    };
    let name = format!("{NAME}-{hash}");
    let objects = match place {
        Place::Cluster => {
            binding("ClusterRoleBinding", json!({ "name": name }), "ClusterRole", "system:auth-delegator")
        }
        Place::Namespace | Place::NamespaceObject => {
            let metadata = |name: &str| json!({ "name": name, "namespace": namespace });
            let role = json!({
                "apiVersion": format!("{RBAC}/v1"), "kind": "Role", "metadata": metadata(NAME),
                "rules": NAMESPACE_ACCESS.map(|access| rule(&access, namespace)),
            });
            let binding = binding("RoleBinding", metadata(&name), "Role", NAME);
            json!({ "apiVersion": "v1", "kind": "List", "items": [role, binding] })
        }
    };
    format!("printf %s {} | {kubectl} apply -f -", shell_word(&objects.to_string()))
}

fn rule(access: &Access, namespace: &str) -> Value {
    let Access { verb, group, resource, place } = access;
    let mut rule = json!({ "apiGroups": [group], "resources": [resource], "verbs": [verb] });
    if *place == Place::NamespaceObject {
        rule["resourceNames"] = json!([namespace]);
    }
    rule
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn missing_files_are_created_once_with_their_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| Some(folder.path().join("state").join(name));
        let files = LocalFiles {
            config: path("config.yaml"),
            example: "# port: 3000\n".to_owned(),
            keys: path("keys.yaml"),
            session_key: path("session"),
        };
        let repairs = create_missing_files(&files);
        assert!(repairs.len() == 3 && repairs.iter().all(|repair| repair.done), "{repairs:#?}");
        let contents = || {
            let entries = std::fs::read_dir(folder.path().join("state")).unwrap().map(Result::unwrap);
            let mut all: Vec<_> = entries
                .map(|entry| {
                    let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
                    (entry.file_name().into_string().unwrap(), mode, std::fs::read_to_string(entry.path()).unwrap())
                })
                .collect();
            all.sort();
            all
        };
        let created = contents();
        let modes: Vec<_> = created.iter().map(|(name, mode, _)| (name.as_str(), *mode)).collect();
        assert_eq!(modes, [("config.yaml", 0o644), ("keys.yaml", 0o600), ("keys.yaml.key", 0o600), ("session", 0o600)]);
        let key = created[2].2.trim();
        assert!(key.len() == 43 && !created[1].2.contains(key), "the keys file has a hash only");
        assert!(repairs.iter().all(|repair| !repair.text.contains(key)), "no report has the key");

        assert_eq!(create_missing_files(&files), [], "the second run finds nothing to do");
        assert_eq!(contents(), created);
    }

    #[test]
    fn existing_files_stay_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("keys.yaml");
        // The file for the key exists, so that no key can be created.
        std::fs::write(folder.path().join("keys.yaml.key"), "mine").unwrap();
        let repairs = create_missing_files(&LocalFiles { keys: Some(keys.clone()), ..LocalFiles::default() });
        assert!(repairs.len() == 1 && !repairs[0].done, "{repairs:?}");
        assert!(!keys.exists());
        assert_eq!(std::fs::read_to_string(folder.path().join("keys.yaml.key")).unwrap(), "mine");
        // A dangling link is not a missing file.
        std::os::unix::fs::symlink(folder.path().join("nothing"), &keys).unwrap();
        assert_eq!(create_missing_files(&LocalFiles { keys: Some(keys), ..LocalFiles::default() }), []);
    }

    /// Returns the object of a command.
    fn applied(command: &str) -> Value {
        let text =
            command.strip_prefix("printf %s '").unwrap().strip_suffix("' | kubectl --context c apply -f -").unwrap();
        serde_json::from_str(&text.replace(r"'\''", "'")).unwrap()
    }

    #[test]
    fn each_account_gets_a_binding_of_its_own_to_one_complete_role() {
        let grant = |place, user: &str| applied(&grant_command(place, "ns", user, "kubectl --context c"));
        let [first, second] =
            ["a", "b"].map(|name| grant(Place::Namespace, format!("system:serviceaccount:ns:{name}").as_str()));
        let [role, binding] = [0, 1].map(|at| &first["items"][at]);
        assert_eq!(role["rules"].as_array().unwrap().len(), NAMESPACE_ACCESS.len());
        assert_eq!(role["rules"][4]["resourceNames"], json!(["ns"]));
        assert_eq!(binding["subjects"], json!([{"kind": "ServiceAccount", "name": "a", "namespace": "ns"}]));
        assert_eq!(role, &second["items"][0], "both have the same Role");
        assert_ne!(binding["metadata"]["name"], second["items"][1]["metadata"]["name"]);
        let [first, second] = ["it's; rm", "b"].map(|user| grant(Place::Cluster, user));
        assert_eq!(first["subjects"][0]["name"], "it's; rm");
        assert_eq!(first["roleRef"]["name"], "system:auth-delegator");
        assert_ne!(first["metadata"]["name"], second["metadata"]["name"]);
    }
}
