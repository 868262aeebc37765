//! `--config`: a YAML file whose keys are flags. Its values become the defaults of those flags, so that clap's own order
//! applies: flags, then environment variables, then the file, then the built-in defaults.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fmt,
    path::PathBuf,
};

use anyhow::Context;
use clap::{ArgAction, ArgMatches, Command};
use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, MapAccess, Visitor},
};

use super::exit::CliError;

/// Environment variable of `--config`.
pub(super) const ENV: &str = "BRIDGE_CONFIG";

/// Parses the arguments of `serve` or `doctor` again with the values of the file that `--config` names. `matches` is the result of the arguments
/// alone, and is returned when there is no such file.
pub(super) fn apply_config_file(
    command: Command,
    args: Vec<OsString>,
    matches: ArgMatches,
) -> Result<ArgMatches, CliError> {
    let Some((name @ ("serve" | "doctor"), serve)) = matches.subcommand() else { return Ok(matches) };
    let Some(path) = serve.get_one::<PathBuf>("config") else { return Ok(matches) };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the config file {}", path.display()));
    let text = text.map_err(|error| CliError { error, ..CliError::usage("") })?;
    parse(command, name, args, &text).map_err(|error| CliError::usage(format!("{}: {error}", path.display())))
}

/// Parses the arguments of the subcommand `name` with the values of the text. The keys are the flags of `serve`, which that
/// subcommand has too.
fn parse(command: Command, name: &str, args: Vec<OsString>, text: &str) -> Result<ArgMatches, String> {
    let serve = command.find_subcommand("serve").ok_or("there is no serve command")?;
    let (mut ids, mut flags) = (BTreeMap::new(), Vec::new());
    let mut lists = BTreeSet::new();
    for arg in serve.get_arguments() {
        let Some(flag) = arg.get_long().filter(|long| !["config", "help", "version"].contains(long)) else { continue };
        flags.push(flag.to_owned());
        for name in arg.get_all_aliases().into_iter().flatten().chain([flag]) {
            ids.insert(name.to_owned(), arg.get_id().clone());
        }
        if matches!(arg.get_action(), ArgAction::Append) {
            lists.insert(flag.to_owned());
        }
    }
    let mut command = command;
    for (flag, value) in parse_values(text, &lists)? {
        let Some(id) = ids.get(&flag) else {
            flags.sort_unstable();
            return Err(format!("unknown key '{flag}'; accepted: {}", flags.join(", ")));
        };
        // clap does not read this variable, because it may name several files.
        let is_overridden =
            flag == "kubeconfig" && std::env::var_os("KUBECONFIG").is_some_and(|names| !names.is_empty());
        // An empty value counts as unset, as in the environment.
        if !value.is_empty() && !is_overridden {
            command = command.mut_subcommand(name, |serve| serve.mut_arg(id, |arg| arg.default_value(value)));
        }
    }
    // The arguments alone were accepted, so the error is in the file.
    command.try_get_matches_from(args).map_err(|error| {
        let text = error.to_string();
        let text = text.split("\n\nFor more information").next().unwrap_or(&text);
        text.strip_prefix("error: ").unwrap_or(text).trim_end().to_owned()
    })
}

/// Parses `flag: value` lines. The value of a flag in `lists` may be a list.
fn parse_values(text: &str, lists: &BTreeSet<String>) -> Result<BTreeMap<String, String>, String> {
    let read = |file: serde_saphyr::Deserializer<'_, '_>| FlagValues { lists }.deserialize(file);
    serde_saphyr::with_deserializer_from_str(text, read).map_err(|error| {
        // The parser's own message uses terms of YAML parsers, so only its location is reported.
        let at = error.location().map(|at| format!(" at line {}, column {}", at.line(), at.column()));
        format!(
            "the file cannot be parsed{}: expected each flag once, on a line like `port: 3000` or `allowed-hosts: [a.example, \
             b.example]`",
            at.unwrap_or_default()
        )
    })
}

/// Reads values as the text in the file: `1.50` stays these four characters, although YAML reads it as a number.
struct FlagValues<'a> {
    lists: &'a BTreeSet<String>,
}

/// The value of a list flag.
#[derive(Deserialize)]
#[serde(untagged)]
enum ScalarOrList {
    One(String),
    More(Vec<String>),
}

impl<'de> DeserializeSeed<'de> for FlagValues<'_> {
    type Value = BTreeMap<String, String>;

    fn deserialize<D: Deserializer<'de>>(self, file: D) -> Result<Self::Value, D::Error> {
        file.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FlagValues<'_> {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("flags and their values")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut values = BTreeMap::new();
        while let Some(flag) = map.next_key::<String>()? {
            let value = if self.lists.contains(&flag) {
                map.next_value::<Option<ScalarOrList>>()?.map(|value| match value {
                    ScalarOrList::One(text) => text,
                    ScalarOrList::More(list) => list.join(","),
                })
            } else {
                map.next_value::<Option<String>>()?
            };
            values.insert(flag, value.unwrap_or_default());
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};

    use super::super::{Cli, Command as Ours};
    use super::*;

    fn port(text: &str, args: &[&str]) -> Result<u16, String> {
        let args = ["boilerhouse-bridge", "serve"].iter().chain(args).map(OsString::from).collect();
        let matches = parse(Cli::command(), "serve", args, text)?;
        match Cli::from_arg_matches(&matches).map_err(|error| error.to_string())?.command {
            Ours::Serve(serve) => Ok(serve.port),
            _ => Err("another command".into()),
        }
    }

    #[test]
    fn flag_overrides_file_and_file_overrides_default() {
        assert_eq!(port("drain: 3", &[]), Ok(3000));
        assert_eq!(port("port: 4000", &[]), Ok(4000));
        assert_eq!(port("port: 4000", &["--port", "5000"]), Ok(5000));
        assert!(port("port: many", &[]).is_err());
        let unknown = port("prot: 4000", &[]).unwrap_err();
        assert!(unknown.contains("unknown key 'prot'") && unknown.contains("port"), "{unknown}");
        assert!(!unknown.contains("own-watchers"), "former names are not offered: {unknown}");
        assert_eq!(port("own-watchers: 3", &[]), Ok(3000), "the former name of a flag is accepted");
    }

    #[test]
    fn empty_file_value_equals_an_absent_key() {
        for text in ["", "# port: 1", "{}", "port:", "port: ''", "port: ~", "allowed-hosts: []\ntls-cert:"] {
            assert_eq!(port(text, &[]), Ok(3000), "{text}");
        }
    }

    #[test]
    fn file_values_keep_their_written_text() {
        let lists = ["allowed-hosts".to_owned()].into();
        let texts = parse_values("context: 1.50\nport: 007\nnamespace: true\nallowed-hosts: [a, b]\n", &lists).unwrap();
        let texts: Vec<&str> = texts.values().map(String::as_str).collect();
        assert_eq!(texts, ["a,b", "1.50", "true", "007"]);
        for text in
            ["port", "- port", "port: [1]", "port: {a: b}", "port: 1\nport: 1", "port: [", "allowed-hosts: {a: b}"]
        {
            assert!(parse_values(text, &lists).is_err(), "{text}");
        }
    }

    #[test]
    fn mutated_config_file_causes_no_panic() {
        use crate::test_support::{ReplayCommand, SeededRng, seeds_to_run};
        const LINES: [&str; 12] = [
            "port: 3000",
            "drain: 3",
            "allowed-hosts: [a, b]",
            "tls-cert: x",
            "stream-rate: -1",
            "namespace: 'a",
            "? b",
            "- c",
            "&a: *a",
            "kubeconfig: |",
            "  \t",
            "max-connections: 99999999999999999999",
        ];
        for seed in seeds_to_run(0..200) {
            let _hint = ReplayCommand::on_panic(crate::test_name!(), seed);
            let mut rng = SeededRng(seed);
            let mut lines: Vec<String> = (0..rng.below(6)).map(|_| (*rng.choose(&LINES)).to_owned()).collect();
            for line in &mut lines {
                let mut chars: Vec<char> = line.chars().collect();
                let at = rng.below(chars.len() as u64 + 1) as usize;
                chars.splice(at..at, [*rng.choose(&['x', ':', '[', '}', '"', '\u{0}', '\u{feff}', '\n', '!', '9'])]);
                *line = chars.into_iter().collect();
            }
            // Any result is fine.
            let _ = port(&lines.join("\n"), &[]);
        }
    }
}
