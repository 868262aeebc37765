//! The full stream on the real API server: clients that are cut off and switch between replicas and transports receive
//! every event once. After a lost history they receive a difference or a snapshot with its reason.

mod write_ledger;

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use boilerhouse_bridge::test_support::{ReplayCommand, SeededRng, seed_to_run};
use serde_json::Value;
use tokio::time::Instant;

use self::write_ledger::{WriteLedger, Writer, is_state};
use crate::oracle::{
    fold::Fold,
    full_stream::{Entry, ProjectedHistory, ReceivedEvent, ReplicaKnowledge, Start, StreamValidator},
    mutations::full_stream as mutations,
    visibility::ExpectedProjection,
};
use crate::support::{
    self,
    bridge_process::BridgeProcess,
    cluster::Cluster,
    control_plane::{ControlPlane, Options},
    full_stream_client::FullStreamClient,
    http_client::TEST_TIMEOUT,
};

/// How often the client is cut off in the short form and in the long form.
const CUTS: [usize; 2] = [100, 300];
/// The number of writers, and the time between two writes of each: together 100 writes a second.
const WRITERS: usize = 4;
const PAUSE: Duration = Duration::from_millis(40);
/// Writes during a connection, on average, that the test must reach. It has about six at 100 writes a second.
const MIN_WRITES_PER_CONNECTION: f64 = 3.0;

/// Mutations that the record allows. The others need a difference, a filter, several parts, or a recorded replica.
const MIN_APPLICABLE: u64 = 15;

/// What a client keeps across its connections.
#[derive(Default)]
struct Client {
    last_id: Option<String>,
    fold: Fold,
    /// Everything but `upstream.*`: the API server of these tests may be slow at any time.
    record: Vec<Entry>,
    /// Whether a `state.initial` has more parts.
    has_more: bool,
    /// Whether events came after the last id.
    has_pending: bool,
    coalesced: usize,
    /// The reasons of `state.initial`.
    snapshot_reasons: Vec<String>,
    connections: usize,
}

impl Client {
    fn receive(&mut self, event: Value) {
        if event["coalesced"] == true && event["type"] != "heartbeat" {
            self.coalesced += 1;
        }
        if event["type"] == "state.initial" {
            if !self.has_more {
                self.snapshot_reasons.push(event["reason"].as_str().unwrap().to_owned());
                self.fold = Fold::default();
            }
            self.has_more = event["more"] == true;
            self.fold.add_part(&event).unwrap_or_else(|violation| panic!("{violation}"));
        }
        self.fold.apply(&event);
        self.has_pending |= event["key"].is_string();
        if let Some(id) = event["id"].as_str() {
            (self.last_id, self.has_pending) = (Some(id.to_owned()), false);
        }
        let received = ReceivedEvent::new(event, now_ms(), false);
        if !received.name().starts_with("upstream.") {
            self.record.push(Entry::Event(received));
        }
    }

    /// Connects and reads for this time.
    async fn connect(&mut self, address: SocketAddr, sse: bool, duration: Duration) {
        let Some(mut stream) = FullStreamClient::connect(address, sse, "", self.last_id.as_deref()).await else {
            return;
        };
        self.connections += 1;
        let start = match self.last_id.clone() {
            Some(id) => Start::Resume { id, projection: 0, is_forged: false },
            None => Start::Snapshot,
        };
        self.record.push(Entry::Connect { at: now_ms(), replica: 0, projection: 0, start });
        self.has_more = false;
        stream.read_for(duration, |event| self.receive(event)).await;
        self.record.push(Entry::Disconnect { at: now_ms() });
    }

    /// Reads until it holds what the cluster holds.
    async fn settle(&mut self, address: SocketAddr, ledger: &WriteLedger) {
        let end = Instant::now() + TEST_TIMEOUT;
        while self.has_pending || !ledger.is_state(&self.fold) {
            assert!(Instant::now() < end, "the fold does not converge: {:#?}\n{:#?}", self.fold, ledger.state());
            self.connect(address, true, Duration::from_millis(500)).await;
        }
    }

    /// Validates the record: every event of the ledger once, in order, and no difference or second snapshot. All
    /// replicas count as undisturbed.
    fn validate(&self, ledger: &WriteLedger) -> StreamValidator {
        assert_eq!(self.coalesced, 0, "a difference replaces changes that the API server still has");
        let record = self.settled_record();
        let history = ledger.history(record).unwrap_or_else(|violation| panic!("{violation}"));
        let expected = ProjectedHistory::new(history, vec![ExpectedProjection::EVERYTHING]);
        let replicas = vec![ReplicaKnowledge::Undisturbed];
        let validator = StreamValidator { expected, replicas, resumes: Vec::new() };
        validator.validate(record).unwrap_or_else(|violation| panic!("{violation}"));
        validator
    }

    /// The record up to its last event.
    fn settled_record(&self) -> &[Entry] {
        let end = self.record.iter().rposition(|entry| matches!(entry, Entry::Event(_))).map_or(0, |last| last + 1);
        &self.record[..end]
    }
}

/// Milliseconds since the Unix epoch.
fn now_ms() -> u64 {
    u64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap()
}

/// Two bridges, both ready.
async fn replicas(cluster: &Cluster, args: &[&str]) -> Vec<BridgeProcess> {
    let kubeconfig = cluster.kubeconfig();
    let mut bridges = Vec::new();
    for _ in 0..2 {
        let bridge = BridgeProcess::start(&kubeconfig.to_string_lossy(), &cluster.namespace, args).await;
        bridge.wait_ready().await;
        bridges.push(bridge);
    }
    bridges
}

#[tokio::test]
async fn disconnects_under_100_writes_per_second_lose_and_repeat_nothing() {
    let (cluster, cuts) = (Cluster::shared().await, CUTS[usize::from(support::long_form())]);
    let seed = seed_to_run(5);
    let _replay = ReplayCommand::on_panic(boilerhouse_bridge::test_name!(), seed);
    let bridges = replicas(&cluster, &["--own-watchers", "0"]).await;
    let (ledger, mut client, mut rng) = (WriteLedger::default(), Client::default(), SeededRng(seed));
    client.connect(bridges[0].address, true, Duration::from_millis(300)).await;
    assert_eq!(client.snapshot_reasons, ["connect"]);
    let started = Instant::now();
    let writing = async {
        let writers = (0..WRITERS).map(|n| Writer::new(n as u64).run(&cluster, &ledger, PAUSE));
        futures::future::join_all(writers).await;
    };
    let reading = async {
        for _ in 0..cuts {
            let (which, sse) = (rng.below(2) as usize, rng.below(2) == 0);
            let duration = Duration::from_millis(5 + rng.below(120));
            client.connect(bridges[which].address, sse, duration).await;
        }
    };
    tokio::select! { () = writing => unreachable!("writers do not end"), () = reading => {} }
    let (writes, took) = (ledger.writes(), started.elapsed());
    ledger.finish(&cluster).await;
    client.settle(bridges[0].address, &ledger).await;
    let validator = client.validate(&ledger);
    assert_eq!(client.snapshot_reasons, ["connect"], "the client received a second snapshot");
    assert!(client.connections > cuts, "only {} connections", client.connections);
    let rate = writes as f64 / took.as_secs_f64();
    println!("{writes} writes at {rate:.0} a second, {} connections", client.connections);
    // Not a rate: on a loaded machine everything takes longer.
    let per_connection = writes as f64 / client.connections as f64;
    assert!(per_connection >= MIN_WRITES_PER_CONNECTION, "{per_connection:.1} writes during a connection");
    let (mut generators, mut applied) = (mutations::Generators::new(seed), mutations::none_applied());
    mutations::reject_all(&validator, client.settled_record(), &mut generators, 1, &mut applied);
    assert!(applied.applicable() >= MIN_APPLICABLE, "too few mutations were applied: {applied:?}");
}

#[tokio::test]
async fn killed_processes_lead_to_history_or_diff_without_loss() {
    let mut cluster = Cluster::real().await;
    let mut bridges = replicas(&cluster, &["--own-watchers", "0"]).await;
    let (ledger, mut client) = (WriteLedger::default(), Client::default());
    let seed = seed_to_run(9);
    let _replay = ReplayCommand::on_panic(boilerhouse_bridge::test_name!(), seed);
    let mut writer = Writer::new(seed);
    client.connect(bridges[0].address, true, Duration::from_millis(300)).await;

    // kill -9 of both bridges: the next ones read the history with a backfill.
    writer.write_some(&cluster, &ledger, 20).await;
    client.settle(bridges[1].address, &ledger).await;
    drop(bridges);
    writer.write_some(&cluster, &ledger, 20).await;
    bridges = replicas(&cluster, &["--own-watchers", "0"]).await;
    client.settle(bridges[0].address, &ledger).await;
    client.validate(&ledger);

    // kill -9 of the API server while the bridges are stopped leads to a difference. Then of the bridges as well.
    for both in [false, true] {
        for bridge in &bridges {
            bridge.pause().await;
        }
        writer.write_some(&cluster, &ledger, 20).await;
        if both {
            drop(std::mem::take(&mut bridges));
        }
        cluster.down().await;
        cluster.up().await;
        writer.write_some(&cluster, &ledger, 20).await;
        if both {
            bridges = replicas(&cluster, &["--own-watchers", "0"]).await;
        }
        for bridge in &bridges {
            bridge.resume().await;
        }
        let before = client.coalesced;
        client.settle(bridges[1].address, &ledger).await;
        assert!(client.coalesced > before, "no event is marked as part of a difference (both: {both})");
    }
    assert_eq!(client.snapshot_reasons, ["connect"], "the client received a second snapshot");
}

/// This control plane has an API server that notices a compaction at once.
/// `control_plane::etcd_and_api_server_recover_after_kill_9` shows that the usual one gives the same response once it
/// has noticed.
#[tokio::test]
async fn lost_history_is_reported_as_expired_or_foreign() {
    let flag = "--feature-gates=ListFromCacheSnapshot=false".to_owned();
    let options = Options { api_server_flags: vec![flag], ..Options::default() };
    let mut cluster = Cluster::of(ControlPlane::start_with(&options).await).await;
    let mut bridges = replicas(&cluster, &["--own-watchers", "0"]).await;
    let (ledger, mut client) = (WriteLedger::default(), Client::default());
    let seed = seed_to_run(9);
    let _replay = ReplayCommand::on_panic(boilerhouse_bridge::test_name!(), seed);
    let mut writer = Writer::new(seed);
    client.connect(bridges[0].address, true, Duration::from_millis(300)).await;
    writer.write_some(&cluster, &ledger, 20).await;
    client.settle(bridges[1].address, &ledger).await;
    assert_eq!(client.snapshot_reasons, ["connect"]);

    // A compaction while no bridge runs: a snapshot with the reason.
    drop(bridges);
    writer.write_some(&cluster, &ledger, 20).await;
    cluster.plane().compact().await;
    bridges = replicas(&cluster, &["--own-watchers", "0"]).await;
    client.settle(bridges[0].address, &ledger).await;
    assert_eq!(client.snapshot_reasons, ["connect", "expired"]);

    // The bridges detect the restore of an older copy of etcd, for connected clients and for those that resume.
    cluster.backup().await;
    let restored = ledger.state();
    writer.write_some(&cluster, &ledger, 20).await;
    client.settle(bridges[0].address, &ledger).await;
    cluster.restore_backup().await;
    let foreign = async {
        while client.snapshot_reasons.len() < 3 {
            client.connect(bridges[0].address, true, Duration::from_secs(2)).await;
        }
    };
    tokio::time::timeout(2 * TEST_TIMEOUT, foreign).await.expect("the restore is not detected");
    assert_eq!(client.snapshot_reasons, ["connect", "expired", "foreign"]);
    let end = Instant::now() + TEST_TIMEOUT;
    while !is_state(&restored, &client.fold) {
        assert!(Instant::now() < end, "the fold is not the restored state: {:#?}\n{restored:#?}", client.fold);
        client.connect(bridges[0].address, false, Duration::from_millis(300)).await;
    }
}
