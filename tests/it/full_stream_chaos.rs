//! The full stream against the real API server: clients that are cut off, switch between replicas and transports, and
//! miss nothing; and what they are told where the world itself breaks.

mod write_ledger;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::time::Instant;

use self::write_ledger::{WriteLedger, Writer};
use crate::support::{
    self,
    bridge_process::BridgeProcess,
    cluster::Cluster,
    control_plane::{ControlPlane, Options},
    full_stream_client::FullStreamClient,
    http_client::TEST_TIMEOUT,
    rng::SeededRng,
    seeds::{self, ReplayCommand, test_name},
};

/// How often the client is cut off in the ordinary run, and in the full one.
const CUTS: [usize; 2] = [100, 300];
/// Writers, and the pause of each between two writes: together 100 a second.
const WRITERS: usize = 4;
const PAUSE: Duration = Duration::from_millis(40);
/// The rate that must have been reached, on a machine that does other things, too.
const RATE: f64 = 80.0;

/// What a client holds across its connections.
#[derive(Default)]
struct Client {
    last: Option<String>,
    /// By uid, as `state.initial` and the events say.
    fold: BTreeMap<String, Value>,
    /// By uid: version and type of what was told.
    received: BTreeMap<String, Vec<(String, String)>>,
    coalesced: usize,
    /// Reasons of `state.initial`.
    snapshot_reasons: Vec<String>,
    connections: usize,
}

impl Client {
    fn apply(&mut self, event: &Value) {
        let text = |key: &str| event[key].as_str();
        let kind = text("type").unwrap();
        if event["coalesced"] == true {
            self.coalesced += 1;
        }
        match kind {
            "state.initial" => {
                self.snapshot_reasons.push(text("reason").unwrap().to_owned());
                self.fold.clear();
                let views = ["instances", "claims"].into_iter().flat_map(|array| event[array].as_array().unwrap());
                for view in views {
                    self.fold.insert(view["uid"].as_str().unwrap().into(), view.clone());
                }
            }
            "instance.state" | "claim.state" => {
                let view = &event[if kind == "claim.state" { "claim" } else { "instance" }];
                let uid = view["uid"].as_str().unwrap().to_owned();
                if text("phase") == Some("Deleted") {
                    self.fold.remove(&uid);
                } else {
                    self.fold.insert(uid.clone(), view.clone());
                }
                self.note(event);
            }
            "tenant.claimed" | "tenant.released" | "pool.instance.ready" => self.note(event),
            _ => {}
        }
        if let Some(id) = text("id") {
            self.last = Some(id.to_owned());
        }
    }

    fn note(&mut self, event: &Value) {
        let key = event["key"].as_str().unwrap();
        let mut parts = key.splitn(3, '.');
        let [uid, rv, kind] = [(); 3].map(|()| parts.next().unwrap());
        self.received.entry(uid.to_owned()).or_default().push((rv.to_owned(), kind.to_owned()));
    }

    /// Connects and reads for so long.
    async fn visit(&mut self, address: SocketAddr, sse: bool, long: Duration) {
        let Some(mut on) = FullStreamClient::connect(address, sse, "", self.last.as_deref()).await else { return };
        self.connections += 1;
        on.read_for(long, |event| self.apply(&event)).await;
    }

    /// Reads until it holds what the cluster holds.
    async fn settle(&mut self, address: SocketAddr, ledger: &WriteLedger) {
        let end = Instant::now() + TEST_TIMEOUT;
        while !ledger.is_state(&self.fold) {
            assert!(Instant::now() < end, "it does not converge: {:#?}\n{:#?}", self.fold, ledger.state());
            self.visit(address, true, Duration::from_millis(500)).await;
        }
    }

    /// What came since everything was as it should be is exactly what the book says.
    fn exact(&self, ledger: &WriteLedger) {
        assert_eq!(self.coalesced, 0, "nothing was skipped");
        // In the book's words, which only the finished book has for all.
        let word = |rv: &str| if ledger.knows(rv) { rv.to_owned() } else { "end".to_owned() };
        let line = |(rv, kind): &(String, String)| format!("{} {kind}", word(rv));
        let lines =
            |(uid, received): (&String, &Vec<(String, String)>)| (uid.clone(), received.iter().map(line).collect());
        assert_eq!(
            self.received.iter().map(lines).collect::<BTreeMap<_, Vec<_>>>(),
            ledger.expected(),
            "every transition once"
        );
    }
}

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
    let seed = seeds::seed(5);
    let _replay = ReplayCommand::on_panic(test_name!(), seed);
    let bridges = replicas(&cluster, &["--own-watchers", "0"]).await;
    let (ledger, mut client, mut rng) = (WriteLedger::default(), Client::default(), SeededRng(seed));
    client.visit(bridges[0].address, true, Duration::from_millis(300)).await;
    assert_eq!(client.snapshot_reasons, ["connect"]);
    let started = Instant::now();
    let writing = async {
        let writers = (0..WRITERS).map(|n| Writer::new(n as u64).run(&cluster, &ledger, PAUSE));
        futures::future::join_all(writers).await;
    };
    let reading = async {
        for _ in 0..cuts {
            let (which, sse) = (rng.below(2) as usize, rng.below(2) == 0);
            let long = Duration::from_millis(5 + rng.below(120));
            client.visit(bridges[which].address, sse, long).await;
        }
    };
    tokio::select! { () = writing => unreachable!("writers go on"), () = reading => {} }
    let (writes, took) = (ledger.writes(), started.elapsed());
    ledger.finish(&cluster).await;
    client.settle(bridges[0].address, &ledger).await;
    client.exact(&ledger);
    assert_eq!(client.snapshot_reasons, ["connect"], "no further picture");
    assert!(client.connections > cuts, "{} connections", client.connections);
    let rate = writes as f64 / took.as_secs_f64();
    println!("{writes} writes at {rate:.0} a second, {} connections", client.connections);
    assert!(rate >= RATE, "{rate:.0} writes a second are too few");
}

#[tokio::test]
async fn killed_processes_lead_to_history_or_diff_without_loss() {
    let mut cluster = Cluster::real().await;
    let mut bridges = replicas(&cluster, &["--own-watchers", "0"]).await;
    let (ledger, mut client) = (WriteLedger::default(), Client::default());
    let seed = seeds::seed(9);
    let _replay = ReplayCommand::on_panic(test_name!(), seed);
    let mut writer = Writer::new(seed);
    client.visit(bridges[0].address, true, Duration::from_millis(300)).await;

    // kill -9 of the bridge: the next one reads the past.
    writer.some(&cluster, &ledger, 20).await;
    client.settle(bridges[1].address, &ledger).await;
    drop(bridges);
    writer.some(&cluster, &ledger, 20).await;
    bridges = replicas(&cluster, &["--own-watchers", "0"]).await;
    client.settle(bridges[0].address, &ledger).await;
    client.exact(&ledger);

    // Of the API server, while the bridges look away: a difference. And of both.
    for both in [false, true] {
        for bridge in &bridges {
            bridge.pause().await;
        }
        writer.some(&cluster, &ledger, 20).await;
        if both {
            drop(std::mem::take(&mut bridges));
        }
        cluster.down().await;
        cluster.up().await;
        writer.some(&cluster, &ledger, 20).await;
        if both {
            bridges = replicas(&cluster, &["--own-watchers", "0"]).await;
        }
        for bridge in &bridges {
            bridge.resume().await;
        }
        let before = client.coalesced;
        client.settle(bridges[1].address, &ledger).await;
        assert!(client.coalesced > before, "it was a difference, and is marked so (both: {both})");
    }
    assert_eq!(client.snapshot_reasons, ["connect"], "no further picture");
}

/// On a control plane whose API server knows of a compaction at once; that the usual one answers the same when it comes to
/// know of it, `control_plane::etcd_and_api_server_recover_after_kill_9` shows.
#[tokio::test]
async fn lost_history_is_reported_as_expired_or_foreign() {
    let flag = "--feature-gates=ListFromCacheSnapshot=false".to_owned();
    let options = Options { api_server_flags: vec![flag], ..Options::default() };
    let mut cluster = Cluster::of(ControlPlane::start_with(&options).await).await;
    let mut bridges = replicas(&cluster, &["--own-watchers", "0"]).await;
    let (ledger, mut client) = (WriteLedger::default(), Client::default());
    let seed = seeds::seed(9);
    let _replay = ReplayCommand::on_panic(test_name!(), seed);
    let mut writer = Writer::new(seed);
    client.visit(bridges[0].address, true, Duration::from_millis(300)).await;
    writer.some(&cluster, &ledger, 20).await;
    client.settle(bridges[1].address, &ledger).await;
    assert_eq!(client.snapshot_reasons, ["connect"]);

    // Across a compaction, with nobody there who knows the history: the state, with the reason.
    drop(bridges);
    writer.some(&cluster, &ledger, 20).await;
    cluster.plane().compact().await;
    bridges = replicas(&cluster, &["--own-watchers", "0"]).await;
    client.settle(bridges[0].address, &ledger).await;
    assert_eq!(client.snapshot_reasons, ["connect", "expired"]);

    // An older copy put back: noticed by itself, under a client that is there and for one that comes.
    cluster.backup().await;
    let kept = ledger.state();
    writer.some(&cluster, &ledger, 20).await;
    client.settle(bridges[0].address, &ledger).await;
    cluster.restore_backup().await;
    let foreign = async {
        while client.snapshot_reasons.len() < 3 {
            client.visit(bridges[0].address, true, Duration::from_millis(300)).await;
        }
    };
    tokio::time::timeout(2 * TEST_TIMEOUT, foreign).await.expect("it is noticed");
    assert_eq!(client.snapshot_reasons, ["connect", "expired", "foreign"]);
    let end = Instant::now() + TEST_TIMEOUT;
    while client.fold != kept {
        assert!(Instant::now() < end, "the older state: {:#?}\n{kept:#?}", client.fold);
        client.visit(bridges[0].address, false, Duration::from_millis(300)).await;
    }
}
