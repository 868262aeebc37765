//! `doctor`: checks the configuration that `serve` would use, the cluster, and a running bridge (docs/protocol.md#doctor).

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _},
    path::Path,
    sync::Arc,
};

use clap::{Arg, ArgMatches, Args, Command, ValueEnum, parser::ValueSource};
use futures::{FutureExt as _, future::BoxFuture};

use super::{
    access,
    connection::CredentialArgs,
    exit::{CliError, FAILED, print},
    logging::{color_for, escape, escape_json_line},
    serve::Serve,
};
use crate::{
    client::{Client, tls_config, without_credential},
    doctor::{
        self, CHECKS, CommandLine, Flag, Listener, LocalCheck, LocalChecks, LocalFiles, Outcome, Report, Subject,
        Target, shell_path, shell_word,
    },
};

mod inputs;

/// Path of the stream that a URL without a path leads to.
const STREAM_PATH: &str = "/api/websocket";

/// The form of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Lines for people
    Table,
    /// JSON
    Json,
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  boilerhouse-bridge doctor
  boilerhouse-bridge doctor --only rbac-pods-list,rbac-pods-watch -n boilerhouse
  boilerhouse-bridge doctor --url https://bridge.example --token-file token -o json

Exit codes: 0 no error, 1 a check failed with an error, 2 wrong usage.")]
pub(super) struct DoctorCommand {
    /// Form of the report
    #[arg(short, long, env = "BRIDGE_DOCTOR_OUTPUT", value_enum, value_name = "table|json", default_value_t = Output::Table)]
    #[arg(hide_possible_values = true)]
    output: Output,

    /// Create files that the flags name and that do not exist, and print the commands that repair the cluster
    #[arg(long, env = "BRIDGE_DOCTOR_FIX")]
    fix: bool,

    /// Ids of the checks to run. Checks that they need run too, and are reported if they fail
    #[arg(long, env = "BRIDGE_DOCTOR_ONLY", value_name = "ID,...", value_delimiter = ',')]
    only: Vec<String>,

    /// A running bridge to check, such as http://localhost:3000
    #[arg(long, env = "BRIDGE_URL", value_name = "URL")]
    url: Option<String>,

    #[command(flatten)]
    credential: CredentialArgs,

    #[command(flatten, next_help_heading = "Configuration of serve")]
    serve: Serve,
}

impl DoctorCommand {
    /// Runs the checks and prints the report. `command` is the definition of the whole command line, `matches` what was given;
    /// `config_error` says why the file of `--config` cannot be used.
    pub(super) async fn run(
        self,
        command: &Command,
        matches: &ArgMatches,
        config_error: Option<CliError>,
    ) -> Result<u8, CliError> {
        // An empty variable gives one empty id.
        let only: Vec<String> = self.only.iter().filter(|id| !id.is_empty()).cloned().collect();
        let checks = doctor::select(CHECKS, &only).map_err(|unknown| {
            let ids: Vec<&str> = CHECKS.iter().map(|check| check.id).collect();
            CliError::usage(format!("there is no check '{unknown}'; accepted: {}", ids.join(", ")))
        })?;
        let bridge = self.target()?;
        let mut config_error = config_error.map(|error| error.text());
        let mut repairs = Vec::new();
        if self.fix {
            repairs = doctor::create_missing_files(&self.files(command));
            // All lines of the new file are comments, so that the flags stay as they are.
            if repairs.iter().any(|repair| repair.id == "config" && repair.done) {
                config_error = None;
            }
        }
        let base_url = bridge.as_ref().map(|target| target.base_url.clone());
        let subject = self.subject(config_error, bridge, command_line(command, matches));
        let mut results = doctor::run(&subject, &checks).await;
        if self.fix {
            repairs.extend(doctor::cluster_repairs(&results));
        }
        results.retain(|result| only.is_empty() || only.iter().any(|id| id == result.id) || result.has_failed());
        self.print(&Report::new(base_url, results, repairs))
    }

    fn print(&self, report: &Report) -> Result<u8, CliError> {
        let text = match self.output {
            Output::Table => report.to_text(color_for(io::stdout().is_terminal()), escape),
            Output::Json => escape_json_line(&(serde_json::to_string(report)? + "\n")).into_owned(),
        };
        print(&text)?;
        Ok(if report.ok { 0 } else { FAILED })
    }

    /// Returns the running bridge.
    ///
    /// # Errors
    /// A usage error for a URL or a file of certificates that cannot be used.
    fn target(&self) -> Result<Option<Target>, CliError> {
        let Some(url) = self.url.as_ref().filter(|url| !url.is_empty()) else { return Ok(None) };
        let usage = |error: crate::client::Error| CliError::usage(format!("--url: {error}"));
        let not_alone = |part: &str| {
            let url = without_credential(url);
            CliError::usage(format!("--url: {url} has a {part}; name the bridge alone, such as http://localhost:3000"))
        };
        // Without the credential, so that a URL that must not carry it is a failed check.
        let builder = Client::builder(url);
        let builder = self.credential.ca_file().into_iter().fold(builder, |builder, file| builder.ca_file(file));
        let stream = builder.build().map_err(usage)?.url();
        let base_url = stream.strip_suffix(STREAM_PATH).ok_or_else(|| not_alone("path"))?;
        // The requests would not send it, and a query can contain a credential.
        if url.contains(['?', '#']) {
            return Err(not_alone("query"));
        }
        let tls = tls_config(base_url.starts_with("https://"), self.credential.ca_file()).map_err(usage)?;
        let client = self.credential.apply(Client::builder(base_url));
        let [ca_file, token_file] =
            [self.credential.ca_file(), self.credential.token_file()].map(|file| file.map(Path::to_owned));
        Ok(Some(Target { base_url: base_url.to_owned(), client, tls, ca_file, token_file }))
    }

    /// Returns the files that `--fix` may create.
    fn files(&self, command: &Command) -> LocalFiles {
        let [keys, session_key] = self.serve.access.secret_files();
        LocalFiles { config: self.serve.config.clone(), example: example_configuration(command), keys, session_key }
    }

    fn subject(&self, config_error: Option<String>, bridge: Option<Target>, command: CommandLine) -> Subject {
        let Serve { access, cluster, namespace, .. } = &self.serve;
        let local = self.local_checks(config_error, &command);
        let mut subject = Subject::new(local, self.listeners(), cluster.config(namespace));
        subject.allowed_hosts = access.host_names();
        subject.reviews_tokens = access.reviews_tokens();
        subject.bridge = bridge;
        subject.command = command;
        subject
    }

    fn listeners(&self) -> Vec<Listener> {
        let Serve { port, listen_host, probe_listen, access, .. } = &self.serve;
        let is_tls = access.has_tls();
        let mut listeners = vec![Listener { flag: "port", host: listen_host.clone(), port: *port, is_tls }];
        if let Some((host, port)) = probe_listen {
            listeners.push(Listener { flag: "probe-listen", host: host.clone(), port: *port, is_tls: false });
        }
        listeners
    }

    fn local_checks(&self, config_error: Option<String>, command: &CommandLine) -> LocalChecks {
        let serve = Arc::new(self.serve.clone());
        let (of_config, of_mqtt, of_nats) = (serve.clone(), serve.clone(), serve.clone());
        let blocking = |check| blocking(&serve, command, check);
        let command = command.clone();
        LocalChecks {
            config: Arc::new(move || check_config(of_config.clone(), config_error.clone(), command.clone()).boxed()),
            origins: blocking(|serve, _, command| serve.access.check_origins(command)),
            credentials: blocking(|serve, is_loopback, command| {
                serve.access.check_credentials(&serve.listen_host, is_loopback, command)
            }),
            tls: blocking(|serve, _, command| serve.access.check_tls(command)),
            schema_pack: blocking(|serve, _, _| inputs::schema_pack(serve)),
            wasm: blocking(|serve, _, _| inputs::wasm(serve)),
            mqtt: Arc::new(move || inputs::mqtt(of_mqtt.clone()).boxed()),
            nats: Arc::new(move || inputs::nats(of_nats.clone()).boxed()),
        }
    }
}

/// Returns the flags that the user has given.
fn command_line(command: &Command, matches: &ArgMatches) -> CommandLine {
    let Some((name, matches)) = matches.subcommand() else { return CommandLine::default() };
    let mut flags = Vec::new();
    for arg in command.find_subcommand(name).into_iter().flat_map(Command::get_arguments) {
        let (id, Some(long)) = (arg.get_id().as_str(), arg.get_long()) else { continue };
        // Other arguments than those of `matches` have no source: `help` is one.
        let is_known = matches.ids().any(|other| other.as_str() == id);
        if !is_known || matches.value_source(id) != Some(ValueSource::CommandLine) {
            continue;
        }
        let (requires_equals, is_url) = (arg.is_require_equals_set(), is_url(arg));
        let flag = |value| Flag { name: long.to_owned(), value, requires_equals, is_url };
        if arg.get_action().takes_values() {
            let values = matches.get_raw(id).into_iter().flatten();
            flags.extend(values.map(|value| flag(Some(value.to_string_lossy().into_owned()))));
        } else {
            flags.push(flag(None));
        }
    }
    CommandLine::new(flags)
}

/// Returns whether the value of a flag is a URL, or a list of URLs.
fn is_url(arg: &Arg) -> bool {
    arg.get_value_names().is_some_and(|names| names.iter().any(|name| name.as_str() == "URL"))
}

/// Returns a check that reads files, on a thread that may block. It gets whether the bridge listens on loopback only.
fn blocking(serve: &Arc<Serve>, command: &CommandLine, check: fn(&Serve, bool, &CommandLine) -> Outcome) -> LocalCheck {
    let (serve, command) = (serve.clone(), command.clone());
    Arc::new(move || -> BoxFuture<'static, Outcome> {
        let (serve, command) = (serve.clone(), command.clone());
        async move {
            // The check `config` reports a name that cannot be resolved.
            let is_loopback =
                access::is_loopback(&serve.listen_host, serve.port, "--listen-host").await.unwrap_or(false);
            let outcome = tokio::task::spawn_blocking(move || check(&serve, is_loopback, &command)).await;
            outcome.unwrap_or_else(|error| Outcome::failed(error.to_string(), "boilerhouse-bridge --version"))
        }
        .boxed()
    })
}

async fn check_config(serve: Arc<Serve>, config_error: Option<String>, command: CommandLine) -> Outcome {
    let path = serve.config.as_deref();
    if let Some(error) = config_error {
        let path = path.unwrap_or(Path::new("config.yaml"));
        return match path.exists() {
            true => Outcome::failed(error, format!("${{EDITOR:-vi}} {}", shell_path(path))),
            false => {
                let hint = command.with(&[("config", Some(&path.to_string_lossy())), ("fix", None)]);
                Outcome::failed(error, hint)
                    .with_fix("creates an example configuration, in which all lines are comments")
            }
        };
    }
    if let Err(error) = access::is_loopback(&serve.listen_host, serve.port, "--listen-host").await {
        return Outcome::failed(error.text(), format!("getent hosts {}", shell_word(&serve.listen_host)));
    }
    if let Err(error) = inputs::check_flags(serve.clone()).await {
        return Outcome::failed(error, "boilerhouse-bridge serve --help");
    }
    Outcome::passed(match path {
        Some(path) => format!("flags, environment and {} can be used", path.display()),
        None => "flags and environment can be used; there is no --config file".to_owned(),
    })
}

/// Returns a configuration file with all flags of `serve`, in which every line is a comment.
fn example_configuration(command: &Command) -> String {
    let mut text =
        "# Configuration of `boilerhouse-bridge serve --config FILE`. Flags and environment variables override it.\n"
            .to_owned();
    let flags = command.find_subcommand("serve").into_iter().flat_map(Command::get_arguments);
    for arg in flags.filter(|arg| !arg.is_hide_set()) {
        let Some(name) = arg.get_long().filter(|name| !["config", "help", "version"].contains(name)) else { continue };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let help = help.split(" [env:").next().unwrap_or_default().replace('\n', " ");
        // Writing to a string cannot fail.
        let _ = write!(text, "\n# {help}\n# {name}: {}\n", example_value(arg));
    }
    text
}

fn example_value(arg: &Arg) -> String {
    match arg.get_default_values().first() {
        Some(value) => value.to_string_lossy().into_owned(),
        None => arg.get_value_names().and_then(<[_]>::first).map(ToString::to_string).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_the_report_have_no_credential_of_any_url() {
        let command = crate::cli::command();
        let doctor = command.find_subcommand("doctor").unwrap();
        let urls: Vec<&str> = doctor.get_arguments().filter(|arg| is_url(arg)).filter_map(Arg::get_long).collect();
        for name in ["url", "mqtt-url", "nats-url", "otlp-endpoint"] {
            assert!(urls.contains(&name), "--{name} is not known as a URL; known: {urls:?}");
        }
        let is_shown = |name: &str, value: &str| {
            let flag = format!("--{name}");
            let matches = command.clone().get_matches_from(["bridge", "doctor", &flag, value]);
            let shown = command_line(&command, &matches).with(&[]);
            assert!(shown.contains(&format!(" {flag} ")) && !shown.contains("canary"), "{shown}");
        };
        for name in urls {
            is_shown(name, "https://user:canary@h");
            is_shown(name, "user:canary@h:1");
            is_shown(name, "https://h/?token=canary");
        }
        // A URL in the wrong place.
        is_shown("kubeconfig", "https://user:canary@h");
    }

    #[test]
    fn example_configuration_names_each_flag_and_sets_none() {
        let text = example_configuration(&crate::cli::command());
        assert!(text.lines().all(|line| line.is_empty() || line.starts_with('#')), "{text}");
        for line in ["\n# port: 3000\n", "\n# namespace: boilerhouse\n", "\n# keys-file: FILE\n"] {
            assert!(text.contains(line), "{line:?} is not in {text}");
        }
        assert!(!text.contains("own-watchers") && !text.contains("# config:"), "{text}");
    }
}
