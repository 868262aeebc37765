//! Checks of the flags, and of what they mean on this machine.

use std::{io::ErrorKind, time::Duration};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use tokio::{
    net::{TcpListener, lookup_host},
    time::timeout,
};

use crate::{
    client::tls_config,
    doctor::{
        check::{Listener, Outcome, Subject},
        command::{CommandLine, shell_word},
        get::get,
    },
};

/// Names that are resolved at the same time.
const MAX_LOOKUPS: usize = 16;
/// Time for one name. It is below the limit of the check, so that the report names the one that has no answer.
const LOOKUP: Duration = Duration::from_secs(4);
/// Time for the answers that identify a bridge. For both listeners together it is below the limit of the check, so that the
/// report says that another program uses the port, also if that program never answers.
const ANSWER: Duration = Duration::from_secs(2);
/// What is added to a port that the system reserves, for a port to suggest: 80 gives 8080, 443 gives 8443.
const PORT_OFFSET: u16 = 8000;

pub(super) fn config(subject: &Subject) -> BoxFuture<'_, Outcome> {
    (subject.local.config)()
}

pub(super) fn credentials(subject: &Subject) -> BoxFuture<'_, Outcome> {
    (subject.local.credentials)()
}

pub(super) fn tls(subject: &Subject) -> BoxFuture<'_, Outcome> {
    (subject.local.tls)()
}

pub(super) fn origins(subject: &Subject) -> BoxFuture<'_, Outcome> {
    (subject.local.origins)()
}

pub(super) fn schema_pack(subject: &Subject) -> BoxFuture<'_, Outcome> {
    (subject.local.schema_pack)()
}

pub(super) fn wasm(subject: &Subject) -> BoxFuture<'_, Outcome> {
    (subject.local.wasm)()
}

pub(super) fn mqtt(subject: &Subject) -> BoxFuture<'_, Outcome> {
    (subject.local.mqtt)()
}

pub(super) fn nats(subject: &Subject) -> BoxFuture<'_, Outcome> {
    (subject.local.nats)()
}

/// A name that does not resolve here can still resolve for clients, so a failure is a warning.
pub(super) fn allowed_hosts(subject: &Subject) -> BoxFuture<'_, Outcome> {
    async {
        let names = &subject.allowed_hosts;
        let lookups = stream::iter(names.clone()).map(|name| async move {
            let is_found = matches!(timeout(LOOKUP, lookup_host((name.as_str(), 0))).await, Ok(Ok(_)));
            (!is_found).then_some(name)
        });
        let unknown: Vec<Option<String>> = lookups.buffered(MAX_LOOKUPS).collect().await;
        let unknown: Vec<String> = unknown.into_iter().flatten().collect();
        match (names.is_empty(), unknown.first()) {
            (true, _) => {
                Outcome::passed("localhost, IP addresses and names of Services are accepted, and no other name")
            }
            (false, None) => Outcome::passed(format!("these names are accepted and resolve: {}", names.join(", "))),
            (false, Some(first)) => Outcome::warning(
                format!("these names of --allowed-hosts do not resolve on this machine: {}", unknown.join(", ")),
                format!("getent hosts {}", shell_word(first)),
            ),
        }
    }
    .boxed()
}

pub(super) fn port(subject: &Subject) -> BoxFuture<'_, Outcome> {
    async {
        let mut found = Vec::new();
        for listener in &subject.listeners {
            match listen(listener, &subject.command).await {
                Ok(detail) => found.push(detail),
                Err(outcome) => return *outcome,
            }
        }
        Outcome::passed(found.join("; "))
    }
    .boxed()
}

/// Returns how an address can be used, or what prevents it.
async fn listen(listener: &Listener, command: &CommandLine) -> Result<String, Box<Outcome>> {
    let Listener { flag, host, port, is_tls } = listener;
    if *port == 0 {
        return Ok(format!("--{flag} takes a free port"));
    }
    let Err(error) = TcpListener::bind((host.as_str(), *port)).await else {
        return Ok(format!("{host} port {port} is free"));
    };
    let show = format!("ss -ltnp 'sport = :{port}'");
    Err(Box::new(match error.kind() {
        ErrorKind::AddrInUse if *is_tls => Outcome::warning(
            format!("{host} port {port} is in use; with TLS, this check cannot find out whether by a bridge"),
            show,
        ),
        ErrorKind::AddrInUse if timeout(ANSWER, is_bridge(host, *port)).await.unwrap_or(false) => Outcome::warning(
            format!(
                "a bridge listens on {host} port {port}: another one cannot start there, and needs another --{flag}"
            ),
            show,
        ),
        ErrorKind::AddrInUse => {
            Outcome::failed(format!("another program uses {host} port {port}; choose another port with --{flag}"), show)
        }
        ErrorKind::PermissionDenied => Outcome::failed(
            format!("the system reserves port {port}; choose a port above 1023 with --{flag}"),
            command.with(&[("only", Some("port")), (flag, Some(&listener.value(port.saturating_add(PORT_OFFSET))))]),
        ),
        _ => Outcome::failed(format!("{host} is not an address of this machine: {error}"), "ip address show"),
    }))
}

/// Returns whether a bridge answers at this address: its probes have these exact answers.
async fn is_bridge(host: &str, port: u16) -> bool {
    // A listener on all addresses is reached over loopback.
    let host = match host {
        "0.0.0.0" => "127.0.0.1".to_owned(),
        "::" => "[::1]".to_owned(),
        host if host.contains(':') => format!("[{host}]"),
        host => host.to_owned(),
    };
    let Ok(tls) = tls_config(false, None) else { return false };
    let answer = async |path: &str| get(&format!("http://{host}:{port}{path}"), tls.clone(), None).await;
    let body = async |path| answer(path).await.map(|response| response.body).unwrap_or_default();
    body("/livez").await == "ok\n" && body("/api/v1/health").await == r#"{"status":"ok"}"#
}
