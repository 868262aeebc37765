//! `--fix`: files that the flags name and that do not exist, and commands for the cluster.
//!
//! Guarantees: an existing file is never opened for writing. Files with a secret have mode 0600, new folders 0700. Nothing
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

use super::report::{CheckResult, Repair};
use crate::source::diagnose::{Access, NAMESPACE_ACCESS, Place};

/// Random bytes of a key: 256 bits.
const KEY_BYTES: usize = 32;
/// Name of the objects that the commands create.
const NAME: &str = "boilerhouse-bridge-doctor";
/// Prints the name of the user, where it is not known.
const WHOAMI: &str = "\"$(kubectl auth whoami -o jsonpath='{.status.userInfo.username}')\"";

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
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Creates a keys file with the hash of one new key, and a file with the key itself.
fn create_keys_file(path: &Path) -> io::Result<String> {
    let key = random_key()?;
    let mut name = path.as_os_str().to_owned();
    name.push(".key");
    let key_path = PathBuf::from(name);
    create_file(&key_path, 0o600, &format!("{key}\n"))?;
    let hash = digest(&SHA256, key.as_bytes()).as_ref().iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    });
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

fn random_key() -> io::Result<String> {
    let mut bytes = [0; KEY_BYTES];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| io::Error::other("the operating system provides no random bytes"))?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

/// Returns the commands that repair the cluster, from the checks that failed.
#[must_use]
pub fn cluster_repairs(results: &[CheckResult], namespace: &str, user: Option<&str>) -> Vec<Repair> {
    let mut repairs: Vec<Repair> = Vec::new();
    for result in results.iter().filter(|result| result.has_failed()) {
        let text = match (&result.missing, &result.repair_hint) {
            (Some(Access { place: Place::Cluster, .. }), Some(hint)) => hint.clone(),
            (Some(_), _) => apply_role(namespace, user),
            (None, Some(hint)) if result.is_cluster_command => hint.clone(),
            (None, _) => continue,
        };
        // One Role has all permissions in the namespace.
        if !repairs.iter().any(|repair| repair.text == text) {
            repairs.push(Repair { id: result.id, done: false, text });
        }
    }
    repairs
}

/// Returns a command that grants one permission, or the reviews.
pub(super) fn grant_command(access: &Access, namespace: &str, user: Option<&str>) -> String {
    let Access { verb, group, resource, place } = access;
    let subject = subject_flag(user);
    let of_group = if group.is_empty() { (*resource).to_owned() } else { format!("{resource}.{group}") };
    let object = if *place == Place::NamespaceObject { format!(" --resource-name={namespace}") } else { String::new() };
    match place {
        Place::Cluster => {
            format!("kubectl create clusterrolebinding {NAME} --clusterrole=system:auth-delegator {subject}")
        }
        Place::Namespace | Place::NamespaceObject => {
            let name = format!("{NAME}-{verb}-{resource}");
            format!(
                "kubectl -n {namespace} create role {name} --verb={verb} --resource={of_group}{object} && \
                 kubectl -n {namespace} create rolebinding {name} --role={name} {subject}"
            )
        }
    }
}

/// Returns a command that grants everything that the bridge needs in its namespace. It is complete, so that applying it
/// again never takes a permission away.
fn apply_role(namespace: &str, user: Option<&str>) -> String {
    let mut rules = String::new();
    for access in NAMESPACE_ACCESS {
        let Access { verb, group, resource, place } = access;
        let names = if place == Place::NamespaceObject {
            format!("\n    resourceNames: [\"{namespace}\"]")
        } else {
            String::new()
        };
        let _ =
            write!(rules, "\n  - apiGroups: [\"{group}\"]\n    resources: [{resource}]{names}\n    verbs: [{verb}]");
    }
    let subject = match service_account(user) {
        Some((namespace, name)) => {
            format!("kind: ServiceAccount\n    name: \"{name}\"\n    namespace: \"{namespace}\"")
        }
        None => {
            // A JSON string is a YAML string.
            let name = user.map_or_else(|| WHOAMI.to_owned(), |user| serde_json::Value::from(user).to_string());
            format!("kind: User\n    apiGroup: rbac.authorization.k8s.io\n    name: {name}")
        }
    };
    // In a here-document whose delimiter is quoted, the shell runs nothing.
    let delimiter = if user.is_some() { "'END'" } else { "END" };
    format!(
        "kubectl apply -f - <<{delimiter}
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {NAME}
  namespace: \"{namespace}\"
rules:{rules}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {NAME}
  namespace: \"{namespace}\"
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {NAME}
subjects:
  - {subject}
END"
    )
}

/// Returns namespace and name of a service account. Only names that need no quotes are accepted.
fn service_account(user: Option<&str>) -> Option<(&str, &str)> {
    let (namespace, name) = user?.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let is_plain = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c));
    (is_plain(namespace) && is_plain(name)).then_some((namespace, name))
}

/// Returns the flag of `kubectl create rolebinding` for a user.
fn subject_flag(user: Option<&str>) -> String {
    match (service_account(user), user) {
        (Some((namespace, name)), _) => format!("--serviceaccount={namespace}:{name}"),
        (None, Some(user)) => format!("--user='{}'", user.replace('\'', r"'\''")),
        (None, None) => format!("--user={WHOAMI}"),
    }
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

    #[test]
    fn commands_name_the_account_and_quote_other_users() {
        let [list_pods, .., get_namespace] = &NAMESPACE_ACCESS;
        let account = Some("system:serviceaccount:ns:bridge");
        let command = grant_command(list_pods, "ns", account);
        assert!(command.contains("--verb=list --resource=pods && "), "{command}");
        assert!(
            command.ends_with("--role=boilerhouse-bridge-doctor-list-pods --serviceaccount=ns:bridge"),
            "{command}"
        );
        let command = grant_command(get_namespace, "ns", Some("it's; rm"));
        assert!(command.contains("--resource=namespaces --resource-name=ns && "), "{command}");
        assert!(command.ends_with(r"--user='it'\''s; rm'"), "{command}");
        assert!(grant_command(list_pods, "ns", None).contains("kubectl auth whoami"));
        let reviews = Access { place: Place::Cluster, ..*list_pods };
        assert!(grant_command(&reviews, "ns", account).contains("--clusterrole=system:auth-delegator"));

        let role = apply_role("ns", account);
        assert!(role.starts_with("kubectl apply -f - <<'END'\n") && role.ends_with("\nEND"), "{role}");
        assert!(role.contains("kind: ServiceAccount\n    name: \"bridge\"\n    namespace: \"ns\""), "{role}");
        assert!(apply_role("ns", Some("a`b$(c)\n")).contains(r#"name: "a`b$(c)\n""#));
        assert!(apply_role("ns", None).starts_with("kubectl apply -f - <<END\n"));
    }
}
