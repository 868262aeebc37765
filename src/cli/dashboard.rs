//! `dashboard`: a port on this machine that leads to the dashboard of a bridge in a cluster (docs/protocol.md#dashboard-1).

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    process::Stdio,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    process::Command,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::sleep,
};

use super::{
    connection::ServiceArgs,
    exit::{CANNOT_CONNECT, CliError, INTERRUPTED, print},
    logging::report,
    parsers::{PORTS, duration, integer_in},
    server,
};
use crate::{client::CONNECT_TIMEOUT, source::port_forward::PortForward};

/// Connections at the same time. A browser has at most six to one host, and one for each WebSocket.
const MAX_CONNECTIONS: usize = 64;
/// Pause after a connection that cannot be accepted: without a free file, the next try would fail at once.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// The program that opens a URL in the browser.
const OPENER: &str = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };

/// Arguments of `dashboard`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  boilerhouse-bridge dashboard --open
  boilerhouse-bridge dashboard --context staging -n boilerhouse --port 8080

Exit codes: 0 success, 1 failure, 2 wrong usage, 5 no bridge found, 130 interrupted.")]
pub(super) struct DashboardCommand {
    /// Port on this machine; 0 takes a free port
    #[arg(long, env = "BRIDGE_DASHBOARD_PORT", default_value_t = 0, value_parser = integer_in::<u16>(PORTS))]
    port: u16,

    /// Open the dashboard in the browser
    #[arg(long, env = "BRIDGE_OPEN")]
    open: bool,

    #[command(flatten)]
    service: ServiceArgs,

    /// Time to find the bridge
    #[arg(long, env = "BRIDGE_CONNECT_TIMEOUT", default_value = "15s", value_name = "TIME", value_parser = duration)]
    connect_timeout: Duration,
}

impl DashboardCommand {
    pub(super) async fn run(self) -> Result<u8, CliError> {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        tokio::select! {
            outcome = self.serve() => outcome,
            _ = interrupt.recv() => Ok(INTERRUPTED),
            _ = terminate.recv() => Ok(0),
        }
    }

    /// Forwards connections until the command ends.
    async fn serve(&self) -> Result<u8, CliError> {
        let forward = self.service.port_forward(self.connect_timeout).await?;
        // A refusal is one clear sentence now, and an empty page in the browser later.
        let first = forward.open().await;
        drop(first.map_err(|error| CliError { code: CANNOT_CONNECT, error: error.into() })?);
        let (listener, address) = server::bind(&Ipv4Addr::LOCALHOST.to_string(), self.port, "--port").await?;
        let url = url(&forward, address);
        print(&format!("{url}\n"))?;
        if self.open {
            open_browser(&url);
        }
        // `--connect-timeout` is the time to find the bridge. A later connection can take longer.
        match accept(&listener, &forward.with_limit(self.connect_timeout.max(CONNECT_TIMEOUT))).await {}
    }
}

/// Returns the URL on this machine.
fn url(forward: &PortForward, address: SocketAddr) -> String {
    let scheme = if forward.url().starts_with("https:") { "https" } else { "http" };
    format!("{scheme}://{address}/")
}

/// Starts the browser. The URL is printed already, so that a failure is reported only.
fn open_browser(url: &str) {
    let started =
        Command::new(OPENER).arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    if let Err(error) = started {
        report(&format!("cannot start {OPENER}: {error}; open the URL in a browser"));
    }
}

/// Forwards all connections. An error ends none but its own.
async fn accept(listener: &TcpListener, forward: &PortForward) -> Infallible {
    let (mut connections, mut is_failing) = (JoinSet::new(), false);
    loop {
        while connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        let socket = match listener.accept().await {
            Ok((socket, _)) => {
                is_failing = false;
                socket
            }
            Err(error) => {
                // A client can reset its connection before it is accepted, and the limit of open files can be reached for a while.
                if !std::mem::replace(&mut is_failing, true) {
                    report(&format!("cannot accept a connection: {error}; the command tries again"));
                }
                sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        connections.spawn(forward_connection(socket, forward.clone()));
    }
}

/// Forwards one connection of the browser. An error ends this connection only.
async fn forward_connection(mut socket: TcpStream, forward: PortForward) {
    let mut pod = match forward.open().await {
        Ok(pod) => pod,
        Err(error) => return report(&error.to_string()),
    };
    // Both sides close connections whenever they like.
    let _ = copy_bidirectional(&mut socket, &mut pod).await;
}
