//! Commands of the report: what a user can paste to repeat a check, or to see more. They reach the same cluster and the same
//! bridge as this run. Pure.

use std::path::Path;

use crate::{client::without_credential, source::connect};

/// Flags about the report, which a command of the report does not repeat.
const REPORT_FLAGS: [&str; 3] = ["only", "output", "fix"];

/// The flags that the user has given to this run. Variables and the file of `--config` apply to a pasted command by
/// themselves.
#[derive(Clone, Debug, Default)]
pub struct CommandLine {
    flags: Vec<Flag>,
}

/// A flag of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// The long name, without `--`.
    pub name: String,
    /// The value, for a flag that has one.
    pub value: Option<String>,
    /// The value is accepted after `=` only.
    pub requires_equals: bool,
    /// The value is a URL, or a list of URLs.
    pub is_url: bool,
}

impl CommandLine {
    /// Creates it. User, password and query of a URL are left out, because a report has no credential. A URL that is the value
    /// of another flag by mistake is one too.
    #[must_use]
    pub fn new(flags: impl IntoIterator<Item = Flag>) -> CommandLine {
        let is_kept = |flag: &Flag| !REPORT_FLAGS.contains(&flag.name.as_str());
        let flags = flags.into_iter().filter(is_kept).map(|flag| match flag.value {
            Some(value) if flag.is_url || value.contains("://") => {
                Flag { value: Some(without_credential(&value)), ..flag }
            }
            _ => flag,
        });
        CommandLine { flags: flags.collect() }
    }

    /// Returns `boilerhouse-bridge doctor` with the flags of this run. Those of `changed` replace flags of the same name, or
    /// are added; a flag without a value has `None`.
    #[must_use]
    pub fn with(&self, changed: &[(&str, Option<&str>)]) -> String {
        let is_kept = |flag: &&Flag| !changed.iter().any(|(name, _)| *name == flag.name);
        let kept = self.flags.iter().filter(is_kept).map(|Flag { name, value, requires_equals, .. }| match value {
            None => format!(" --{name}"),
            Some(value) if *requires_equals => format!(" --{name}={}", shell_word(value)),
            Some(value) => format!(" --{name} {}", shell_word(value)),
        });
        let added = changed.iter().map(|(name, value)| match value {
            None => format!(" --{name}"),
            Some(value) => format!(" --{name} {}", shell_word(value)),
        });
        kept.chain(added).fold("boilerhouse-bridge doctor".to_owned(), |command, flag| command + &flag)
    }
}

/// Returns a text as one word of a POSIX shell.
#[must_use]
pub fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@,=%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Returns a path as one word of a POSIX shell.
#[must_use]
pub fn shell_path(path: &Path) -> String {
    shell_word(&path.to_string_lossy())
}

/// Returns `kubectl` with the kubeconfig and the context of this run.
pub(super) fn kubectl(cluster: &connect::Config) -> String {
    let mut command = "kubectl".to_owned();
    if let Some(file) = &cluster.kubeconfig {
        command += &format!(" --kubeconfig {}", shell_path(file));
    }
    if let Some(context) = &cluster.context {
        command += &format!(" --context {}", shell_word(context));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flag(name: &str, value: Option<&str>) -> Flag {
        Flag { name: name.to_owned(), value: value.map(str::to_owned), requires_equals: false, is_url: false }
    }

    #[test]
    fn commands_have_the_flags_of_the_run_and_no_password() {
        let equals = Flag { requires_equals: true, ..flag("allow-anonymous", Some("true")) };
        let line = CommandLine::new([
            flag("only", Some("port")),
            flag("fix", None),
            flag("output", Some("json")),
            flag("kubeconfig", Some("/a b")),
            equals,
            flag("mqtt-url", Some("mqtt://user:se/c@ret@host")),
            Flag { is_url: true, ..flag("nats-url", Some("user:secret@host")) },
            Flag { is_url: true, ..flag("otlp-endpoint", Some("https://user:secret@host/a?key=secret")) },
            flag("allow-insecure", None),
        ]);
        let expected = "boilerhouse-bridge doctor --kubeconfig '/a b' --allow-anonymous=true --mqtt-url mqtt://host \
                        --nats-url host --otlp-endpoint https://host/a --allow-insecure --only tls";
        assert_eq!(line.with(&[("only", Some("tls"))]), expected);
        let changed = line.with(&[("allow-insecure", None), ("kubeconfig", Some("it's"))]);
        assert!(
            changed.ends_with(r"--otlp-endpoint https://host/a --allow-insecure --kubeconfig 'it'\''s'"),
            "{changed}"
        );
    }

    #[test]
    fn words_of_a_shell_are_quoted_where_needed() {
        assert_eq!(shell_word("/etc/a.yaml"), "/etc/a.yaml");
        assert_eq!(shell_word("a b'c"), r"'a b'\''c'");
        assert_eq!(shell_word("http://a/b?c"), "'http://a/b?c'");
        assert_eq!(shell_word(""), "''");
    }

    #[test]
    fn kubectl_gets_the_cluster_of_the_run() {
        assert_eq!(kubectl(&connect::Config::default()), "kubectl");
        let config = connect::Config {
            kubeconfig: Some("/a b".into()),
            context: Some("prod".to_owned()),
            ..connect::Config::default()
        };
        assert_eq!(kubectl(&config), "kubectl --kubeconfig '/a b' --context prod");
    }
}
