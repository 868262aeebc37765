//! The fixture of the `/ws` contract tests: one cluster, one bridge per watch mode, and clients of all bridges.
//!
//! Owns the bridges. They start at the first use.
//!
//! Guarantees: all clients are compared with the same expected messages. A pair of marker objects ends each comparison,
//! so that no test waits for silence.

use serde_json::Value;

use super::{
    bridge_process::BridgeProcess,
    cluster::Cluster,
    http_client::{self, WsClient},
};

/// How a bridge watches the cluster for a `/ws` connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum WatchMode {
    /// By the hub, which all connections share.
    Shared,
    /// By a pair of dedicated kube-runtime watchers for each connection.
    Dedicated,
}

/// All watch modes.
const WATCH_MODES: &[WatchMode] = &[WatchMode::Shared, WatchMode::Dedicated];

impl WatchMode {
    /// Returns the flags of a bridge that serves its first connections in this mode.
    fn args(self) -> &'static [&'static str] {
        match self {
            WatchMode::Shared => &["--dedicated-watchers", "0"],
            WatchMode::Dedicated => &["--dedicated-watchers", "50"],
        }
    }
}

/// A cluster and the bridges on it.
pub(crate) struct WsMatrix<'a> {
    pub(crate) cluster: &'a mut Cluster,
    modes: &'static [WatchMode],
    bridges: Vec<(WatchMode, BridgeProcess)>,
    marks: u32,
}

/// Clients of one path, one for each watch mode.
pub(crate) struct Listeners {
    pub(crate) clients: Vec<(WatchMode, WsClient)>,
    /// The requested event types that end the messages of a mark: the last type of each resource.
    mark_types: Vec<&'static str>,
}

impl<'a> WsMatrix<'a> {
    /// Creates a fixture with all watch modes.
    pub(crate) fn new(cluster: &'a mut Cluster) -> Self {
        Self::of(cluster, WATCH_MODES)
    }

    /// Creates a fixture with these watch modes.
    pub(crate) fn of(cluster: &'a mut Cluster, modes: &'static [WatchMode]) -> Self {
        Self { cluster, modes, bridges: Vec::new(), marks: 0 }
    }

    /// Returns the bridges. Starts them if necessary, and waits until they are ready.
    pub(crate) async fn bridges(&mut self) -> &[(WatchMode, BridgeProcess)] {
        if self.bridges.is_empty() {
            let kubeconfig = self.cluster.kubeconfig();
            for &mode in self.modes {
                let kubeconfig = kubeconfig.to_string_lossy();
                let bridge = BridgeProcess::start(&kubeconfig, &self.cluster.namespace, mode.args()).await;
                bridge.wait_ready().await;
                self.bridges.push((mode, bridge));
            }
        }
        &self.bridges
    }

    /// Connects to a path that requests all event types.
    pub(crate) async fn listen(&mut self, path: &str) -> Listeners {
        self.listen_to(path, &["pool.instance.ready", "tenant.claimed"]).await
    }

    /// Connects to a path that requests some event types. `mark_types` are those of them that end the messages of a mark.
    pub(crate) async fn listen_to(&mut self, path: &str, mark_types: &[&'static str]) -> Listeners {
        let mut clients = Vec::new();
        for (mode, bridge) in self.bridges().await {
            clients.push((*mode, bridge.listen(path).await));
            assert_eq!(dedicated_watcher_count(bridge).await > 0, *mode == WatchMode::Dedicated, "{mode:?}");
        }
        Listeners { clients, mark_types: mark_types.to_vec() }
    }

    /// Creates marker objects in both resources and returns their name. A client that has received their events has
    /// received all earlier ones.
    async fn mark(&mut self) -> String {
        self.marks += 1;
        let name = format!("mark-{}", self.marks);
        self.cluster.create_pod(&name, "pool-status=ready").await;
        self.cluster.create_claim(&name, "marker").await;
        self.cluster.claim_phase(&name, "Active").await;
        name
    }

    /// Returns the messages that each client has received since the last call.
    pub(crate) async fn received(&mut self, listeners: &mut Listeners) -> Vec<(WatchMode, Vec<String>)> {
        let mark = self.mark().await;
        let mut all = Vec::new();
        for (mode, listener) in &mut listeners.clients {
            all.push((*mode, until_mark(listener, &mark, &listeners.mark_types).await));
        }
        all
    }

    /// Expects that each client has received exactly these messages since the last call: those of Pods in this order,
    /// and those of claims in this order.
    pub(crate) async fn expect(&mut self, listeners: &mut Listeners, instances: &[&str], tenants: &[&str]) {
        for (mode, received) in self.received(listeners).await {
            let (of_pods, of_claims): (Vec<_>, Vec<_>) =
                received.into_iter().partition(|line| !line.starts_with("tenant."));
            assert_eq!(of_pods, instances, "messages of Pods, {mode:?}");
            assert_eq!(of_claims, tenants, "messages of claims, {mode:?}");
        }
    }

    /// Expects that each client receives exactly these messages next, in this order.
    pub(crate) async fn expect_in_order(&self, listeners: &mut Listeners, lines: &[&str]) {
        for (mode, listener) in &mut listeners.clients {
            let mut received = Vec::new();
            while received.len() < lines.len() {
                received.push(compact_line(&listener.text().await));
            }
            assert_eq!(received, lines, "{mode:?}");
        }
    }

    /// Restarts the API server, which loses the watch history, and makes these changes. The bridges are stopped
    /// meanwhile, so they find all changes at once.
    pub(crate) async fn while_disconnected(&mut self, changes: impl AsyncFnOnce(&Cluster)) {
        self.pause().await;
        self.cluster.down().await;
        self.cluster.up().await;
        changes(self.cluster).await;
        self.resume().await;
    }

    /// Stops all bridges with SIGSTOP.
    pub(crate) async fn pause(&self) {
        for (_, bridge) in &self.bridges {
            bridge.pause().await;
        }
    }

    /// Continues all stopped bridges.
    pub(crate) async fn resume(&self) {
        for (_, bridge) in &self.bridges {
            bridge.resume().await;
        }
    }
}

impl Listeners {
    /// Adds clients of the same path.
    pub(crate) fn join(&mut self, others: Listeners) {
        self.clients.extend(others.clients);
    }
}

/// Returns the number of connections with dedicated watchers, from the metrics of the bridge.
async fn dedicated_watcher_count(bridge: &BridgeProcess) -> u64 {
    let metrics = http_client::get(bridge.address, "/metrics").await.body;
    let gauge = metrics.lines().find_map(|line| line.strip_prefix("bridge_dedicated_watcher_connections "));
    gauge.unwrap_or_else(|| panic!("the metric is missing: {metrics}")).parse().unwrap()
}

/// Reads up to the mark. Returns the messages without those of marks.
async fn until_mark(listener: &mut WsClient, mark: &str, mark_types: &[&str]) -> Vec<String> {
    let mut missing = mark_types.to_vec();
    let received = listener.until(|event| {
        missing.retain(|kind| !(event["name"] == mark && event["type"] == *kind));
        missing.is_empty()
    });
    let received = received.await.into_iter().map(|text| compact_line(&text));
    received.filter(|line| !line.split(' ').nth(1).is_some_and(|name| name.starts_with("mark-"))).collect()
}

/// Formats a message as one line with all of its keys: type, name and phase, then the others in alphabetical order.
fn compact_line(text: &str) -> String {
    let mut event: Value = serde_json::from_str(text).unwrap();
    let event = event.as_object_mut().unwrap();
    let mut words: Vec<_> = ["type", "name", "phase"].into_iter().filter_map(|key| event.remove(key)).collect();
    for (key, value) in event {
        words.push(format!("{key}={}", value.as_str().unwrap()).into());
    }
    words.iter().map(|word| word.as_str().unwrap()).collect::<Vec<_>>().join(" ")
}
