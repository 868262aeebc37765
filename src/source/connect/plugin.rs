//! Credential plugins: the field `exec` of a user (Kubernetes, "client-go credential plugins").
//!
//! Owns: the process of the plugin.
//!
//! Guarantees: a plugin has a time limit and a limit of its output. A plugin without a terminal has a process group of its own;
//! at a limit, all processes of the group are killed. No error and no log
//! line contains its arguments, its environment or its output, because each may contain a secret.

use std::{io::IsTerminal, path::Path, process::Stdio, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderValue;
use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    time::timeout,
};

use super::{
    field::{FieldError, Fields},
    headers::bearer,
    server_url::ServerUrl,
    yaml::parse_yaml,
};

/// Maximum bytes of the output of a plugin: 1 MiB. An ExecCredential with a certificate and its key has a few KiB.
const MAX_OUTPUT_BYTES: u64 = 1 << 20;

/// The versions of ExecCredential that kubectl accepts.
const API_VERSIONS: [&str; 2] = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];

/// The extension of a cluster that contains `spec.cluster.config` for plugins.
const CLUSTER_CONFIG: &str = "client.authentication.k8s.io/exec";

/// A credential plugin.
pub(super) struct Plugin {
    /// The name of the field in errors.
    place: String,
    command: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    api_version: String,
    install_hint: String,
    /// Whether the plugin may ask the user.
    may_ask: bool,
    /// `spec.cluster` without the certificates, if `provideClusterInfo` is set.
    cluster: Option<Value>,
}

/// What a plugin returned.
#[derive(Clone)]
pub(super) struct Credential {
    /// The header for the token.
    pub(super) authorization: Option<HeaderValue>,
    /// The client certificate and its key, in PEM.
    pub(super) identity: Option<Arc<[Vec<u8>; 2]>>,
    /// When the credential ends. Without it, the credential counts until the API server rejects it.
    pub(super) expires_at: Option<Timestamp>,
}

impl Credential {
    /// Returns a credential that is only a certificate.
    pub(super) fn of_identity(identity: Arc<[Vec<u8>; 2]>) -> Credential {
        Credential { authorization: None, identity: Some(identity), expires_at: None }
    }
}

/// Time limits of a plugin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Time after which a log line reports that the plugin runs.
    pub(super) notice: Duration,
    /// Time after which a plugin that cannot ask the user is killed.
    pub(super) timeout: Duration,
    /// The same for a plugin that can ask the user, because the bridge runs in a terminal.
    pub(super) interactive_timeout: Duration,
}

impl Plugin {
    /// Reads the field `exec` of a user, with the rules of client-go's `validateAuthInfo`.
    ///
    /// # Errors
    /// The first field that kubectl refuses.
    pub(super) fn new(exec: &Fields, cluster: &Fields, server: &ServerUrl) -> Result<Plugin, FieldError> {
        for field in ["command", "apiVersion"] {
            if !exec.has(field) {
                return Err(exec.error(field, "the field is missing"));
            }
        }
        let api_version = exec.text("apiVersion");
        if !API_VERSIONS.contains(&api_version) {
            return Err(exec.error("apiVersion", format!("expected {}", API_VERSIONS.join(" or "))));
        }
        let mode = match exec.text("interactiveMode") {
            "" if api_version == API_VERSIONS[1] => "IfAvailable",
            mode => mode,
        };
        let environment = exec.objects("env").into_iter().map(|variable| {
            let name = variable.text("name");
            match name.is_empty() {
                true => Err(variable.error("name", "the field is missing")),
                false => Ok((name.to_owned(), variable.text("value").to_owned())),
            }
        });
        Ok(Plugin {
            place: exec.entry().to_owned(),
            command: exec.text("command").to_owned(),
            arguments: exec.texts("args").into_iter().map(str::to_owned).collect(),
            environment: environment.collect::<Result<_, _>>()?,
            api_version: api_version.to_owned(),
            install_hint: exec.text("installHint").to_owned(),
            may_ask: match mode {
                "Never" => false,
                "IfAvailable" => std::io::stdin().is_terminal(),
                "Always" if std::io::stdin().is_terminal() => true,
                "Always" => {
                    let problem = "the plugin needs a terminal, and the bridge has none; use IfAvailable or Never";
                    return Err(exec.error("interactiveMode", problem));
                }
                _ => return Err(exec.error("interactiveMode", "expected Never, IfAvailable or Always")),
            },
            cluster: exec.flag("provideClusterInfo").then(|| cluster_info(cluster, server)),
        })
    }

    /// Returns the name of the program without its folder, for logs and errors.
    fn program(&self) -> String {
        Path::new(&self.command).file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Returns the name of the field in errors.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Runs the plugin and returns its credential. `authority` contains the certificates that verify the server.
    ///
    /// # Errors
    /// What failed. Dropping the future kills the process.
    pub(super) async fn run(&self, authority: Option<&[u8]>, limits: Limits) -> Result<Credential, String> {
        let limit = if self.may_ask { limits.interactive_timeout } else { limits.timeout };
        let (program, limit_s) = (self.program(), limit.as_secs());
        let finish = self.output(authority);
        let finish = timeout(limit, async {
            let mut finish = std::pin::pin!(finish);
            match timeout(limits.notice, &mut finish).await {
                Ok(output) => output,
                Err(_) => {
                    tracing::warn!(program, limit_s, "waiting for the credential plugin of the kubeconfig");
                    finish.await
                }
            }
        });
        let output = finish.await.unwrap_or_else(|_| {
            Err(format!(
                "it did not end within {limit_s} s and was killed; run `kubectl get pods` to see what it waits for"
            ))
        });
        output
            .and_then(|output| self.parse(&output))
            .map_err(|problem| format!("{}: the credential plugin `{program}` failed: {problem}", self.place))
    }

    /// Runs the plugin and returns its standard output.
    async fn output(&self, authority: Option<&[u8]>) -> Result<Vec<u8>, String> {
        let mut process = self.start(authority).map_err(|error| match self.install_hint.as_str() {
            "" => format!("cannot start it: {error}"),
            hint => format!("cannot start it: {error}; {hint}"),
        })?;
        let mut output = Vec::new();
        if let Some(stdout) = process.child.stdout.take() {
            let read = stdout.take(MAX_OUTPUT_BYTES + 1).read_to_end(&mut output).await;
            read.map_err(|error| format!("cannot read its output: {error}"))?;
        }
        if output.len() as u64 > MAX_OUTPUT_BYTES {
            return Err(format!("its output has more than {} MiB", MAX_OUTPUT_BYTES >> 20));
        }
        let status = process.child.wait().await.map_err(|error| format!("cannot wait for it: {error}"))?;
        process.group = None;
        match status.success() {
            true => Ok(output),
            false => Err(format!("{status}; run `kubectl get pods` to see its output")),
        }
    }

    fn start(&self, authority: Option<&[u8]>) -> std::io::Result<Process> {
        let mut command = Command::new(&self.command);
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.env("KUBERNETES_EXEC_INFO", self.exec_info(authority).to_string());
        command.stdout(Stdio::piped()).kill_on_drop(true);
        if self.may_ask {
            // A process in another group cannot read from the terminal.
            command.stdin(Stdio::inherit()).stderr(Stdio::inherit());
        } else {
            // Its messages are not logged, because they may contain secrets.
            command.stdin(Stdio::null()).stderr(Stdio::null()).process_group(0);
        }
        let child = command.spawn()?;
        let id = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Ok(Process { child, group: id.filter(|_| !self.may_ask) })
    }

    /// Returns the content of `KUBERNETES_EXEC_INFO`.
    pub(super) fn exec_info(&self, authority: Option<&[u8]>) -> Value {
        let mut spec = json!({ "interactive": self.may_ask });
        if let Some(cluster) = &self.cluster {
            spec["cluster"] = cluster.clone();
            if let Some(authority) = authority {
                spec["cluster"]["certificate-authority-data"] = STANDARD.encode(authority).into();
            }
        }
        json!({ "kind": "ExecCredential", "apiVersion": self.api_version, "spec": spec })
    }

    /// Reads an ExecCredential, with the rules of client-go's exec authenticator.
    pub(super) fn parse(&self, output: &[u8]) -> Result<Credential, String> {
        let text = std::str::from_utf8(output).ok().and_then(|text| parse_yaml(text).ok());
        let answer = text.filter(Value::is_object).ok_or("it does not print an ExecCredential")?;
        for (field, expected) in [("kind", "ExecCredential"), ("apiVersion", self.api_version.as_str())] {
            if answer[field] != expected {
                return Err(format!("it prints an object whose {field} is not {expected}"));
            }
        }
        let status = |field: &str| match &answer["status"][field] {
            Value::Null => Ok(""),
            Value::String(text) => Ok(text.as_str()),
            _ => Err(format!("status.{field} is not a text")),
        };
        let (certificate, key) = (status("clientCertificateData")?, status("clientKeyData")?);
        let identity = match (certificate.is_empty(), key.is_empty()) {
            (true, true) => None,
            (false, false) => Some(Arc::new([certificate.into(), key.into()])),
            _ => return Err("it prints only one of status.clientCertificateData and status.clientKeyData".to_owned()),
        };
        let authorization = match status("token")? {
            "" => None,
            token => Some(bearer(token.as_bytes()).ok_or("status.token contains a line break")?),
        };
        if identity.is_none() && authorization.is_none() {
            return Err("it prints neither status.token nor status.clientCertificateData".to_owned());
        }
        let expires_at = match status("expirationTimestamp")? {
            "" => None,
            time => Some(time.parse().map_err(|_| "status.expirationTimestamp is not a time in RFC 3339")?),
        };
        Ok(Credential { authorization, identity, expires_at })
    }
}

/// Returns `spec.cluster` of an ExecCredential, without the certificates.
fn cluster_info(cluster: &Fields, server: &ServerUrl) -> Value {
    let mut info = json!({ "server": server.to_string() });
    for field in ["tls-server-name", "insecure-skip-tls-verify", "disable-compression"] {
        if cluster.has(field) || cluster.flag(field) {
            info[field] = cluster.value(field).cloned().unwrap_or_default();
        }
    }
    let config = cluster.objects("extensions").into_iter().find(|extension| extension.text("name") == CLUSTER_CONFIG);
    if let Some(config) = config.as_ref().and_then(|extension| extension.value("extension")) {
        info["config"] = config.clone();
    }
    info
}

/// The process of a plugin. It and the processes that it started in its group are killed when the value is dropped.
struct Process {
    child: Child,
    /// The group, until the plugin has ended.
    group: Option<Pid>,
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            // It fails if no process of the group runs.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}
