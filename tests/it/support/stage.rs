//! Where promises are tried: one cluster, a bridge of every kind that watches it, and those who listen.

use serde_json::Value;

use super::{
    bridge::Bridge,
    cluster::Cluster,
    web::{self, Listener},
};

/// Who serves a `/ws` connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Engine {
    /// The hub, which all connections share.
    Hub,
    /// kube-runtime watchers, a pair for each connection.
    Own,
}

/// Every engine that there is.
const ENGINES: &[Engine] = &[Engine::Hub, Engine::Own];

impl Engine {
    /// What has a bridge serve its first connections so.
    fn args(self) -> &'static [&'static str] {
        match self {
            Engine::Hub => &["--own-watchers", "0"],
            Engine::Own => &["--own-watchers", "50"],
        }
    }
}

/// A cluster and the bridges on it. They start when somebody wants to listen.
pub(crate) struct Stage<'a> {
    pub(crate) cluster: &'a mut Cluster,
    engines: &'static [Engine],
    bridges: Vec<(Engine, Bridge)>,
    marks: u32,
}

/// Listeners to one path, one for each engine.
pub(crate) struct Audience {
    pub(crate) ears: Vec<(Engine, Listener)>,
    /// The event of a mark that each of the two resources ends with, as far as it is among the types asked for.
    mark_types: Vec<&'static str>,
}

impl<'a> Stage<'a> {
    /// With every engine.
    pub(crate) fn new(cluster: &'a mut Cluster) -> Self {
        Self::of(cluster, ENGINES)
    }

    /// With these engines.
    pub(crate) fn of(cluster: &'a mut Cluster, engines: &'static [Engine]) -> Self {
        Self { cluster, engines, bridges: Vec::new(), marks: 0 }
    }

    /// The bridges, ready.
    pub(crate) async fn bridges(&mut self) -> &[(Engine, Bridge)] {
        if self.bridges.is_empty() {
            let kubeconfig = self.cluster.kubeconfig();
            for &engine in self.engines {
                let kubeconfig = kubeconfig.to_string_lossy();
                let bridge = Bridge::start(&kubeconfig, &self.cluster.namespace, engine.args()).await;
                bridge.wait_ready().await;
                self.bridges.push((engine, bridge));
            }
        }
        &self.bridges
    }

    /// Connects to a path that asks for all types.
    pub(crate) async fn listen(&mut self, path: &str) -> Audience {
        self.listen_to(path, &["pool.instance.ready", "tenant.claimed"]).await
    }

    /// Connects to a path that asks for some types, of which these tell of marks, the last one of each resource.
    pub(crate) async fn listen_to(&mut self, path: &str, mark_types: &[&'static str]) -> Audience {
        let mut ears = Vec::new();
        for (engine, bridge) in self.bridges().await {
            ears.push((*engine, bridge.listen(path).await));
            assert_eq!(own_watchers(bridge).await > 0, *engine == Engine::Own, "{engine:?}");
        }
        Audience { ears, mark_types: mark_types.to_vec() }
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
    pub(crate) async fn told(&mut self, audience: &mut Audience) -> Vec<(Engine, Vec<String>)> {
        let mark = self.mark().await;
        let mut all = Vec::new();
        for (engine, listener) in &mut audience.ears {
            all.push((*engine, until_mark(listener, &mark, &audience.mark_types).await));
        }
        all
    }

    /// Everybody in the audience has been told exactly this since the last time: of Pods, and of claims, each in order.
    pub(crate) async fn expect(&mut self, audience: &mut Audience, instances: &[&str], tenants: &[&str]) {
        for (engine, told) in self.told(audience).await {
            let (of_pods, of_claims): (Vec<_>, Vec<_>) =
                told.into_iter().partition(|line| !line.starts_with("tenant."));
            assert_eq!(of_pods, instances, "of Pods, {engine:?}");
            assert_eq!(of_claims, tenants, "of claims, {engine:?}");
        }
    }

    /// Everybody is told exactly this next, in this one order.
    pub(crate) async fn expect_in_order(&self, audience: &mut Audience, lines: &[&str]) {
        for (engine, listener) in &mut audience.ears {
            let mut told = Vec::new();
            while told.len() < lines.len() {
                told.push(line(&listener.text().await));
            }
            assert_eq!(told, lines, "{engine:?}");
        }
    }

    /// The API server dies and comes back with the history of its watches lost, and then all this happens before any
    /// bridge looks at it again.
    pub(crate) async fn unseen(&mut self, changes: impl AsyncFnOnce(&Cluster)) {
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

impl Audience {
    /// Takes more listeners to the same path in.
    pub(crate) fn join(&mut self, others: Audience) {
        self.ears.extend(others.ears);
    }
}

/// How many connections the bridge says have watchers of their own.
async fn own_watchers(bridge: &Bridge) -> u64 {
    let metrics = web::get(bridge.address, "/metrics").await.body;
    let gauge = metrics.lines().find_map(|line| line.strip_prefix("bridge_own_watchers "));
    gauge.unwrap_or_else(|| panic!("no such metric: {metrics}")).parse().unwrap()
}

/// Reads up to the mark: what was told, without any marks.
async fn until_mark(listener: &mut Listener, mark: &str, mark_types: &[&str]) -> Vec<String> {
    let mut missing = mark_types.to_vec();
    let told = listener.until(|event| {
        missing.retain(|kind| !(event["name"] == mark && event["type"] == *kind));
        missing.is_empty()
    });
    let told = told.await.into_iter().map(|text| line(&text));
    told.filter(|line| !line.split(' ').nth(1).is_some_and(|name| name.starts_with("mark-"))).collect()
}

/// A message in one short line that leaves nothing out: type, name, phase, the other keys in alphabetical order.
fn line(text: &str) -> String {
    let mut event: Value = serde_json::from_str(text).unwrap();
    let event = event.as_object_mut().unwrap();
    let mut words: Vec<_> = ["type", "name", "phase"].into_iter().filter_map(|key| event.remove(key)).collect();
    for (key, value) in event {
        words.push(format!("{key}={}", value.as_str().unwrap()).into());
    }
    words.iter().map(|word| word.as_str().unwrap()).collect::<Vec<_>>().join(" ")
}
