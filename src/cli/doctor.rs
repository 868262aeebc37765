//! `doctor`: checks the configuration that `serve` would use, the cluster, and a running bridge (docs/protocol.md#doctor).

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _},
    path::Path,
    sync::Arc,
};

use clap::{Arg, Args, Command, ValueEnum};
use futures::{FutureExt as _, future::BoxFuture};

use super::{
    access,
    connection::CredentialArgs,
    exit::{CliError, FAILED, print},
    logging::{color_for, escape, escape_json_line},
    serve::Serve,
};
use crate::{
    client::{Client, tls_config},
    doctor::{self, CHECKS, Listener, LocalCheck, LocalChecks, LocalFiles, Outcome, Report, Subject, Target},
};

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
    /// Runs the checks and prints the report. `command` is the whole command line; `config_error` says why the file of
    /// `--config` cannot be used.
    pub(super) async fn run(self, command: Command, config_error: Option<CliError>) -> Result<u8, CliError> {
        // An empty variable gives one empty id.
        let only: Vec<String> = self.only.iter().filter(|id| !id.is_empty()).cloned().collect();
        let checks = doctor::select(CHECKS, &only).map_err(|unknown| {
            let ids: Vec<&str> = CHECKS.iter().map(|check| check.id).collect();
            CliError::usage(format!("there is no check '{unknown}'; accepted: {}", ids.join(", ")))
        })?;
        let bridge = self.target()?;
        let mut config_error = config_error.map(|error| format!("{:#}", error.error));
        let mut repairs = Vec::new();
        if self.fix {
            repairs = doctor::create_missing_files(&self.files(&command));
            // All lines of the new file are comments, so that the flags stay as they are.
            if repairs.iter().any(|repair| repair.id == "config" && repair.done) {
                config_error = None;
            }
        }
        let base_url = bridge.as_ref().map(|target| target.base_url.clone());
        let subject = self.subject(config_error, bridge);
        let mut results = doctor::run(&subject, &checks).await;
        if self.fix {
            let namespace = &self.serve.namespace;
            repairs.extend(doctor::cluster_repairs(&results, namespace, subject.user().await.as_deref()));
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
        // Without the credential, so that a URL that must not carry it is a failed check.
        let builder = Client::builder(url);
        let builder = self.credential.ca_file().into_iter().fold(builder, |builder, file| builder.ca_file(file));
        let stream = builder.build().map_err(usage)?.url();
        let base_url = stream.strip_suffix(STREAM_PATH).ok_or_else(|| {
            CliError::usage(format!("--url: {url} has a path; name the bridge alone, such as http://localhost:3000"))
        })?;
        let tls = tls_config(base_url.starts_with("https://"), self.credential.ca_file()).map_err(usage)?;
        let client = self.credential.apply(Client::builder(base_url));
        Ok(Some(Target { base_url: base_url.to_owned(), client, tls }))
    }

    /// Returns the files that `--fix` may create.
    fn files(&self, command: &Command) -> LocalFiles {
        let [keys, session_key] = self.serve.access.secret_files();
        LocalFiles { config: self.serve.config.clone(), example: example_configuration(command), keys, session_key }
    }

    fn subject(&self, config_error: Option<String>, bridge: Option<Target>) -> Subject {
        let Serve { access, cluster, namespace, .. } = &self.serve;
        let mut subject = Subject::new(self.local_checks(config_error), self.listeners(), cluster.config(namespace));
        subject.allowed_hosts = access.host_names();
        subject.reviews_tokens = access.reviews_tokens();
        subject.bridge = bridge;
        subject
    }

    fn listeners(&self) -> Vec<Listener> {
        let Serve { port, listen_host, probe_listen, access, .. } = &self.serve;
        let is_tls = access.has_tls();
        let mut listeners = vec![Listener { flag: "--port", host: listen_host.clone(), port: *port, is_tls }];
        if let Some((host, port)) = probe_listen {
            listeners.push(Listener { flag: "--probe-listen", host: host.clone(), port: *port, is_tls: false });
        }
        listeners
    }

    fn local_checks(&self, config_error: Option<String>) -> LocalChecks {
        let serve = Arc::new(self.serve.clone());
        let of_config = serve.clone();
        LocalChecks {
            config: Arc::new(move || check_config(of_config.clone(), config_error.clone()).boxed()),
            origins: blocking(&serve, |serve, _| serve.access.check_origins()),
            credentials: blocking(&serve, |serve, is_loopback| {
                serve.access.check_credentials(&serve.listen_host, is_loopback)
            }),
            tls: blocking(&serve, |serve, _| serve.access.check_tls()),
        }
    }
}

/// Returns a check that reads files, on a thread that may block. It gets whether the bridge listens on loopback only.
fn blocking(serve: &Arc<Serve>, check: fn(&Serve, bool) -> Outcome) -> LocalCheck {
    let serve = serve.clone();
    Arc::new(move || -> BoxFuture<'static, Outcome> {
        let serve = serve.clone();
        async move {
            // The check `config` reports a name that cannot be resolved.
            let is_loopback =
                access::is_loopback(&serve.listen_host, serve.port, "--listen-host").await.unwrap_or(false);
            let outcome = tokio::task::spawn_blocking(move || check(&serve, is_loopback)).await;
            outcome.unwrap_or_else(|error| Outcome::failed(error.to_string(), "boilerhouse-bridge --version"))
        }
        .boxed()
    })
}

async fn check_config(serve: Arc<Serve>, config_error: Option<String>) -> Outcome {
    let path = serve.config.as_deref();
    if let Some(error) = config_error {
        let path = path.unwrap_or(Path::new("config.yaml"));
        return match path.exists() {
            true => Outcome::failed(error, format!("${{EDITOR:-vi}} '{}'", path.display())),
            false => {
                let hint = format!("boilerhouse-bridge doctor --fix --config '{}'", path.display());
                Outcome::failed(error, hint)
                    .with_fix("creates an example configuration, in which all lines are comments")
            }
        };
    }
    if let Err(error) = access::is_loopback(&serve.listen_host, serve.port, "--listen-host").await {
        return Outcome::failed(format!("{:#}", error.error), format!("getent hosts '{}'", serve.listen_host));
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
    fn example_configuration_names_each_flag_and_sets_none() {
        let text = example_configuration(&crate::cli::command());
        assert!(text.lines().all(|line| line.is_empty() || line.starts_with('#')), "{text}");
        for line in ["\n# port: 3000\n", "\n# namespace: boilerhouse\n", "\n# keys-file: FILE\n"] {
            assert!(text.contains(line), "{line:?} is not in {text}");
        }
        assert!(!text.contains("own-watchers") && !text.contains("# config:"), "{text}");
    }
}
