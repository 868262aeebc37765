//! `nchan`: what nchan (nginx) costs under the load that `fan-out` puts on a bridge: the same clients, the same
//! baseline in the same run, and messages of the same size, published by POST.
//!
//! It needs nginx with the nchan module (Debian: `apt-get install nginx-light libnginx-mod-nchan`).
//!
//! JSON: one object as that of `fan-out` for WebSocket, and one for SSE.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, FromArgMatches};
use tempfile::TempDir;

use super::fan_out::FanOut;
use crate::{
    print,
    proc_stats::children,
    processes::{end, interrupt, spawn},
    report::FanOutReport,
};

const MODULE: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";
const NGINX: &str = "nginx";
/// nginx listens within 5 s, or the run fails.
const START_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Flags of `nchan`.
#[derive(Debug, Args)]
pub(crate) struct Nchan {
    /// Flags of `fan-out` for each run, such as --connections, --rounds, --message-bytes and --json
    #[arg(value_name = "FLAGS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) flags: Vec<String>,
}

impl Nchan {
    /// Measures and prints.
    pub(crate) fn run(&self) -> Result<()> {
        let is_json = self.flags.iter().any(|flag| flag == "--json");
        for report in self.measure()? {
            print(&if is_json { serde_json::to_string_pretty(&report)? + "\n" } else { report.table()? })?;
        }
        Ok(())
    }

    /// Returns whether nginx and its module are installed.
    pub(crate) fn is_installed() -> bool {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        Path::new(MODULE).exists() && std::env::split_paths(&paths).any(|folder| folder.join(NGINX).is_file())
    }

    /// Returns a report for WebSocket and one for SSE.
    pub(crate) fn measure(&self) -> Result<[FanOutReport; 2]> {
        ensure!(Nchan::is_installed(), "nchan is missing: install nginx-light and libnginx-mod-nchan (Debian)");
        Ok([self.of_transport("ws")?, self.of_transport("http")?])
    }

    /// Each transport has a server of its own. Otherwise the second one would reuse the memory of the first one.
    fn of_transport(&self, scheme: &str) -> Result<FanOutReport> {
        let nginx = Nginx::start()?;
        let port = nginx.port;
        let target = [
            "fan-out",
            &format!("{scheme}://127.0.0.1:{port}/subscribe"),
            &format!("--publish-url=http://127.0.0.1:{port}/publish"),
            &format!("--pid={}", nginx.worker),
        ];
        let args = target.into_iter().chain(self.flags.iter().map(String::as_str));
        let matches = FanOut::augment_args(clap::Command::new("fan-out")).try_get_matches_from(args)?;
        FanOut::from_arg_matches(&matches)?.measure()
    }
}

/// A running nginx. It ends with this value.
struct Nginx {
    child: Child,
    port: u16,
    worker: u32,
    _folder: TempDir,
}

impl Nginx {
    fn start() -> Result<Nginx> {
        let folder = tempfile::tempdir()?;
        // The port is free again when nginx binds it.
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, configuration(folder.path(), port))?;
        let mut command = Command::new(NGINX);
        command.arg("-c").arg(&file).arg("-p").arg(folder.path());
        let child = spawn(command, &PathBuf::from(NGINX))?;
        let mut nginx = Nginx { child, port, worker: 0, _folder: folder };
        let limit = Instant::now() + START_TIMEOUT;
        while Instant::now() < limit {
            if let Some(worker) = children(nginx.child.id())?.first() {
                nginx.worker = *worker;
                return Ok(nginx);
            }
            sleep(POLL_INTERVAL);
        }
        let log = std::fs::read_to_string(nginx._folder.path().join("error.log")).context("nginx has no log")?;
        bail!("nginx did not start:\n{log}");
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        interrupt(&self.child);
        end(&mut self.child);
    }
}

fn configuration(folder: &Path, port: u16) -> String {
    let folder = folder.display();
    format!(
        "load_module {MODULE};
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
worker_processes 1;
worker_rlimit_nofile 30000;
events {{ worker_connections 15000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location = /publish {{ nchan_publisher; nchan_channel_id bench; nchan_message_buffer_length 0; }}
        location = /subscribe {{
            nchan_subscriber websocket eventsource;
            nchan_channel_id bench;
            nchan_subscriber_first_message newest;
        }}
    }}
}}
"
    )
}
