//! Where promises are tried: one cluster, a bridge of every kind that watches it, and those who listen.

use serde_json::Value;

use super::{
    bridge_process::BridgeProcess,
    cluster::Cluster,
    http_client::{self, WsClient},
};

/// Who serves a `/ws` connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum WatchMode {
    /// The hub, which all connections share.
    Shared,
    /// kube-runtime watchers, a pair for each connection.
    Dedicated,
}

/// Every engine that there is.
const WATCH_MODES: &[WatchMode] = &[WatchMode::Shared, WatchMode::Dedicated];

impl WatchMode {
    /// What has a bridge serve its first connections so.
    fn args(self) -> &'static [&'static str] {
        match self {
            WatchMode::Shared => &["--own-watchers", "0"],
            WatchMode::Dedicated => &["--own-watchers", "50"],
        }
    }
}

/// A cluster and the bridges on it. They start when somebody wants to listen.
pub(crate) struct WsMatrix<'a> {
    pub(crate) cluster: &'a mut Cluster,
    modes: &'static [WatchMode],
    bridges: Vec<(WatchMode, BridgeProcess)>,
    marks: u32,
}

/// Listeners to one path, one for each engine.
pub(crate) struct Listeners {
    pub(crate) clients: Vec<(WatchMode, WsClient)>,
    /// The event of a mark that each of the two resources ends with, as far as it is among the types asked for.
    mark_types: Vec<&'static str>,
}

impl<'a> WsMatrix<'a> {
    /// With every engine.
    pub(crate) fn new(cluster: &'a mut Cluster) -> Self {
        Self::of(cluster, WATCH_MODES)
    }

    /// With these engines.
    pub(crate) fn of(cluster: &'a mut Cluster, modes: &'static [WatchMode]) -> Self {
        Self { cluster, modes, bridges: Vec::new(), marks: 0 }
    }

    /// The bridges, ready.
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

    /// Connects to a path that asks for all types.
    pub(crate) async fn listen(&mut self, path: &str) -> Listeners {
        self.listen_to(path, &["pool.instance.ready", "tenant.claimed"]).await
    }

    /// Connects to a path that asks for some types, of which these tell of marks, the last one of each resource.
    pub(crate) async fn listen_to(&mut self, path: &str, mark_types: &[&'static str]) -> Listeners {
        let mut clients = Vec::new();
        for (mode, bridge) in self.bridges().await {
            clients.push((*mode, bridge.listen(path).await));
            assert_eq!(dedicated_watcher_count(bridge).await > 0, *mode == WatchMode::Dedicated, "{mode:?}");
        }
        Listeners { clients, mark_types: mark_types.to_vec() }
    }

    /// Makes a mark in both resources: what happened before it has been told when it is.
    async fn mark(&mut self) -> String {
        self.marks += 1;
        let name = format!("mark-{}", self.marks);
        self.cluster.create_pod(&name, "pool-status=ready").await;
        self.cluster.create_claim(&name, "nobody").await;
        self.cluster.claim_phase(&name, "Active").await;
        name
    }

    /// What each in the audience has been told since the last time.
    pub(crate) async fn received(&mut self, listeners: &mut Listeners) -> Vec<(WatchMode, Vec<String>)> {
        let mark = self.mark().await;
        let mut all = Vec::new();
        for (mode, listener) in &mut listeners.clients {
            all.push((*mode, until_mark(listener, &mark, &listeners.mark_types).await));
        }
        all
    }

    /// Everybody in the audience has been told exactly this since the last time: of Pods, and of claims, each in order.
    pub(crate) async fn expect(&mut self, listeners: &mut Listeners, instances: &[&str], tenants: &[&str]) {
        for (mode, received) in self.received(listeners).await {
            let (of_pods, of_claims): (Vec<_>, Vec<_>) =
                received.into_iter().partition(|line| !line.starts_with("tenant."));
            assert_eq!(of_pods, instances, "of Pods, {mode:?}");
            assert_eq!(of_claims, tenants, "of claims, {mode:?}");
        }
    }

    /// Everybody is told exactly this next, in this one order.
    pub(crate) async fn expect_in_order(&self, listeners: &mut Listeners, lines: &[&str]) {
        for (mode, listener) in &mut listeners.clients {
            let mut received = Vec::new();
            while received.len() < lines.len() {
                received.push(compact_line(&listener.text().await));
            }
            assert_eq!(received, lines, "{mode:?}");
        }
    }

    /// The API server dies and comes back with the history of its watches lost, and then all this happens before any
    /// bridge looks at it again.
    pub(crate) async fn while_disconnected(&mut self, changes: impl AsyncFnOnce(&Cluster)) {
        self.pause().await;
        self.cluster.down().await;
        self.cluster.up().await;
        changes(self.cluster).await;
        self.resume().await;
    }

    /// Has all bridges notice nothing.
    pub(crate) async fn pause(&self) {
        for (_, bridge) in &self.bridges {
            bridge.pause().await;
        }
    }

    /// Has all bridges go on.
    pub(crate) async fn resume(&self) {
        for (_, bridge) in &self.bridges {
            bridge.resume().await;
        }
    }
}

impl Listeners {
    /// Takes more listeners to the same path in.
    pub(crate) fn join(&mut self, others: Listeners) {
        self.clients.extend(others.clients);
    }
}

/// How many connections the bridge says have watchers of their own.
async fn dedicated_watcher_count(bridge: &BridgeProcess) -> u64 {
    let metrics = http_client::get(bridge.address, "/metrics").await.body;
    let gauge = metrics.lines().find_map(|line| line.strip_prefix("bridge_dedicated_watcher_connections "));
    gauge.unwrap_or_else(|| panic!("no such metric: {metrics}")).parse().unwrap()
}

/// Reads up to the mark: what was told, without any marks.
async fn until_mark(listener: &mut WsClient, mark: &str, mark_types: &[&str]) -> Vec<String> {
    let mut missing = mark_types.to_vec();
    let received = listener.until(|event| {
        missing.retain(|kind| !(event["name"] == mark && event["type"] == *kind));
        missing.is_empty()
    });
    let received = received.await.into_iter().map(|text| compact_line(&text));
    received.filter(|line| !line.split(' ').nth(1).is_some_and(|name| name.starts_with("mark-"))).collect()
}

/// A message in one short line that leaves nothing out: type, name, phase, the other keys in alphabetical order.
fn compact_line(text: &str) -> String {
    let mut event: Value = serde_json::from_str(text).unwrap();
    let event = event.as_object_mut().unwrap();
    let mut words: Vec<_> = ["type", "name", "phase"].into_iter().filter_map(|key| event.remove(key)).collect();
    for (key, value) in event {
        words.push(format!("{key}={}", value.as_str().unwrap()).into());
    }
    words.iter().map(|word| word.as_str().unwrap()).collect::<Vec<_>>().join(" ")
}
