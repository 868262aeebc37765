//! Checks of the flags, and of what they mean on this machine.

use std::io::ErrorKind;

use futures::{FutureExt as _, future::BoxFuture};
use tokio::net::{TcpListener, lookup_host};

use crate::{
    client::tls_config,
    doctor::{
        check::{Listener, Outcome, Subject},
        get::get,
    },
};

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

/// A name that does not resolve here can still resolve for clients, so a failure is a warning.
pub(super) fn allowed_hosts(subject: &Subject) -> BoxFuture<'_, Outcome> {
    async {
        let names = &subject.allowed_hosts;
        let mut unknown = Vec::new();
        for name in names {
            if lookup_host((name.as_str(), 0)).await.is_err() {
                unknown.push(name.as_str());
            }
        }
        match (names.is_empty(), unknown.first()) {
            (true, _) => {
                Outcome::passed("localhost, IP addresses and names of Services are accepted, and no other name")
            }
            (false, None) => Outcome::passed(format!("these names are accepted and resolve: {}", names.join(", "))),
            (false, Some(first)) => Outcome::warning(
                format!("these names of --allowed-hosts do not resolve on this machine: {}", unknown.join(", ")),
                format!("getent hosts {first}"),
            ),
        }
    }
    .boxed()
}

pub(super) fn port(subject: &Subject) -> BoxFuture<'_, Outcome> {
    async {
        let mut found = Vec::new();
        for listener in &subject.listeners {
            match listen(listener).await {
                Ok(detail) => found.push(detail),
                Err(outcome) => return *outcome,
            }
        }
        Outcome::passed(found.join("; "))
    }
    .boxed()
}

/// Returns how an address can be used, or what prevents it.
async fn listen(listener: &Listener) -> Result<String, Box<Outcome>> {
    let Listener { flag, host, port, is_tls } = listener;
    if *port == 0 {
        return Ok(format!("{flag} takes a free port"));
    }
    let Err(error) = TcpListener::bind((host.as_str(), *port)).await else {
        return Ok(format!("{host} port {port} is free"));
    };
    let other = format!("boilerhouse-bridge serve {flag} ...");
    Err(Box::new(match error.kind() {
        ErrorKind::AddrInUse if *is_tls => Outcome::warning(
            format!("{host} port {port} is in use; with TLS, this check cannot find out whether by a bridge"),
            format!("ss -ltnp 'sport = :{port}'"),
        ),
        ErrorKind::AddrInUse if is_bridge(host, *port).await => {
            return Ok(format!("a bridge listens on {host} port {port}"));
        }
        ErrorKind::AddrInUse => Outcome::failed(
            format!("another program uses {host} port {port}; choose another port with {flag}"),
            format!("ss -ltnp 'sport = :{port}'"),
        ),
        ErrorKind::PermissionDenied => {
            Outcome::failed(format!("the system reserves port {port}; choose a port above 1023 with {flag}"), other)
        }
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
