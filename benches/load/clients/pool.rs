//! The process with the clients: it reads commands from stdin and executes them.

use std::{
    io::{self, BufRead},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustls::ClientConfig;
use serde::Serialize;
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{ClientCommand, ClientOptions, ReconnectStorm, connection, measurements::Measurements};
use crate::{print, tls};

/// No step takes longer, or the run fails: 60 s.
pub(super) const TIMEOUT: Duration = Duration::from_secs(60);

/// What the clients of this process share.
pub(super) struct ClientPool {
    pub(super) options: ClientOptions,
    /// The trusted certificates; plain TCP without them.
    pub(super) trust: Option<Arc<ClientConfig>>,
    measurements: Mutex<Measurements>,
    /// Wakes the pool after a change of the measurements.
    pub(super) changed: Notify,
    /// The number of reconnects of all clients.
    pub(super) reconnects: watch::Sender<u64>,
    pub(super) connecting: Semaphore,
}

impl ClientPool {
    /// Returns path and query of this client's request.
    pub(super) fn path(&self, index: usize, cursor: Option<&str>) -> String {
        let mut path = self.options.url.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let mut add = |key: &str, value: &str| {
            path += if path.contains('?') { "&" } else { "?" };
            path += &format!("{key}={value}");
        };
        if let Some(cursor) = cursor {
            add("lastEventId", cursor);
        }
        if self.options.filters > 0 {
            let filter = format!("{{\"instances\":{{\"name\":\"bench-{}\"}}}}", index % self.options.filters);
            let encoded = percent_encoding::utf8_percent_encode(&filter, percent_encoding::NON_ALPHANUMERIC);
            add("params", &encoded.to_string());
        }
        path
    }

    pub(super) fn measurements(&self) -> MutexGuard<'_, Measurements> {
        self.measurements.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a condition holds. Returns whether it holds in time.
    async fn wait_until(&self, limit: Duration, condition: impl Fn(&Measurements) -> bool) -> bool {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if condition(&self.measurements()) {
                    return;
                }
                changed.await;
            }
        };
        timeout(limit, wait).await.is_ok()
    }

    /// Waits until a condition holds. Fails when a client ends, or after [`TIMEOUT`].
    async fn require(
        &self,
        clients: &mut JoinSet<Result<()>>,
        condition: impl Fn(&Measurements) -> bool,
    ) -> Result<()> {
        tokio::select! {
            in_time = self.wait_until(TIMEOUT, condition) => {
                if in_time { Ok(()) } else { bail!("not all of them within {TIMEOUT:?}") }
            }
            Some(ended) = clients.join_next() => ended?,
        }
    }

    async fn execute(self: &Arc<Self>, clients: &mut JoinSet<Result<()>>, command: ClientCommand) -> Result<String> {
        match command {
            ClientCommand::Connect(count) => {
                let before = self.measurements().connections;
                for index in before..before + count {
                    clients.spawn(connection::run(self.clone(), index));
                }
                let connected = self.require(clients, |now| now.connections == before + count).await;
                connected.context("the clients cannot connect")?;
                answer(&true)
            }
            ClientCommand::Start => {
                self.measurements().start();
                answer(&true)
            }
            ClientCommand::Finish { deliveries, timeout } => {
                self.measurements().awaited = deliveries;
                self.wait_until(Duration::from_millis(timeout), |now| now.deliveries >= deliveries).await;
                answer(&self.measurements().finish())
            }
            ClientCommand::ReconnectAll => {
                let (start, all) = (Instant::now(), self.measurements().connections);
                self.reconnects.send_modify(|count| *count += 1);
                let resumed = self.require(clients, |now| now.resumed == all).await;
                resumed.context("the clients cannot reconnect")?;
                let mut measurements = self.measurements();
                measurements.resumed = 0;
                let initial_states = std::mem::take(&mut measurements.initial_states);
                let millis = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
                answer(&ReconnectStorm { millis, initial_states })
            }
        }
    }
}

fn answer(message: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string(message)? + "\n")
}

/// Executes commands until stdin ends.
pub(super) fn run(options: ClientOptions) -> Result<()> {
    let trust = options.ca_file.as_deref().map(tls::client).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (send, mut commands) = mpsc::channel::<ClientCommand>(1);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            let Ok(command) = serde_json::from_str(&line) else { return };
            if send.blocking_send(command).is_err() {
                return;
            }
        }
    });
    let connecting = Semaphore::new(options.concurrent_connects);
    let pool = Arc::new(ClientPool {
        options,
        trust,
        measurements: Mutex::default(),
        changed: Notify::new(),
        reconnects: watch::Sender::new(0),
        connecting,
    });
    runtime.block_on(async {
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => print(&pool.execute(&mut clients, command).await?)?,
                    None => return Ok(()),
                },
                Some(ended) = clients.join_next() => {
                    ended?.context("a client of the measurement has ended")?;
                }
            }
        }
    })
}
