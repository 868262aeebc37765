//! `--config`: a YAML file whose keys are flags. What it says becomes the default of those flags, so that clap's own
//! order does the rest: flags, then environment, then file, then the built-in defaults.

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf};

use anyhow::Context;
use clap::{Arg, Command};
use serde::Deserialize;

use super::Failure;

/// Environment name of `--config`.
pub(super) const ENV: &str = "BRIDGE_CONFIG";

/// A value of the file: what a flag's text can be.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Value {
    Bool(bool),
    Number(u64),
    Text(String),
    List(Vec<String>),
}

impl Value {
    fn text(self) -> String {
        match self {
            Value::Bool(yes) => yes.to_string(),
            Value::Number(number) => number.to_string(),
            Value::Text(text) => text,
            Value::List(list) => list.join(","),
        }
    }
}

/// The command with the file's values as defaults, if the arguments or the environment name a file.
pub(super) fn with_file(command: Command, args: impl Iterator<Item = OsString>) -> Result<Command, Failure> {
    let Some(path) = named(args).or_else(|| std::env::var_os(ENV).map(PathBuf::from)) else { return Ok(command) };
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("cannot read the config file {}", path.display()));
    let text = text.map_err(usage)?;
    let values: BTreeMap<String, Value> = serde_saphyr::from_str(&text)
        .with_context(|| format!("{} is not a list of `flag: value`", path.display()))
        .map_err(usage)?;
    apply(command, values).map_err(|problem| Failure::usage(format!("{}: {problem}", path.display())))
}

fn usage(error: anyhow::Error) -> Failure {
    Failure { error, ..Failure::usage("") }
}

/// `--config FILE` or `--config=FILE`, before clap reads the rest.
fn named(args: impl Iterator<Item = OsString>) -> Option<PathBuf> {
    let mut args = args.skip_while(|arg| !arg.to_string_lossy().starts_with("--config"));
    let first = args.next()?;
    match first.to_str()?.strip_prefix("--config=") {
        Some(path) => Some(path.into()),
        None if first == "--config" => args.next().map(Into::into),
        None => None,
    }
}

fn apply(command: Command, values: BTreeMap<String, Value>) -> Result<Command, String> {
    let serve = command.find_subcommand("serve").ok_or("there is no serve command")?;
    let flags =
        |arg: &Arg| arg.get_long().filter(|long| !["config", "help", "version"].contains(long)).map(str::to_owned);
    let known: BTreeMap<String, clap::Id> =
        serve.get_arguments().filter_map(|arg| Some((flags(arg)?, arg.get_id().clone()))).collect();
    let mut command = command;
    for (key, value) in values {
        let Some(id) = known.get(&key) else {
            let accepted: Vec<&str> = known.keys().map(String::as_str).collect();
            return Err(format!("unknown key '{key}': accepted are {}", accepted.join(", ")));
        };
        let value = value.text();
        command = command.mut_subcommand("serve", |serve| serve.mut_arg(id, |arg| arg.default_value(value)));
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};

    use super::super::{Cli, Command as Ours};
    use super::*;

    fn port(file: &str, args: &[&str]) -> Result<u16, String> {
        let values = serde_saphyr::from_str(file).map_err(|e| e.to_string())?;
        let matches = apply(Cli::command(), values)?.try_get_matches_from(args).map_err(|e| e.to_string())?;
        match Cli::from_arg_matches(&matches).map_err(|e| e.to_string())?.command {
            Ours::Serve(serve) => Ok(serve.port),
            _ => Err("another command".into()),
        }
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let serve = ["boilerhouse-bridge", "serve"];
        assert_eq!(port("drain: 3", &serve), Ok(3000));
        assert_eq!(port("port: 4000", &serve), Ok(4000));
        assert_eq!(port("port: 4000", &[serve[0], serve[1], "--port", "5000"]), Ok(5000));
        assert!(port("port: many", &serve).is_err());
        let unknown = port("prot: 4000", &serve).unwrap_err();
        assert!(unknown.contains("unknown key 'prot'") && unknown.contains("port"), "{unknown}");
    }

    #[test]
    fn the_file_is_found_in_both_spellings() {
        let args = |list: &[&str]| named(list.iter().map(OsString::from).collect::<Vec<_>>().into_iter());
        assert_eq!(args(&["x", "serve", "--config", "a.yaml"]), Some("a.yaml".into()));
        assert_eq!(args(&["x", "serve", "--config=a.yaml", "--port", "1"]), Some("a.yaml".into()));
        assert_eq!(args(&["x", "serve"]), None);
    }
}
