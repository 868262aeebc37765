//! The full stream against the real API server: clients that are cut off, switch between replicas and transports, and
//! miss nothing; and what they are told where the world itself breaks.

mod book;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::time::Instant;

use self::book::{Book, Writer};
use crate::support::{
    self,
    bridge::Bridge,
    cluster::Cluster,
    dice::Dice,
    full::Full,
    plane::{ControlPlane, Options},
    web::BOUND,
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
    told: BTreeMap<String, Vec<(String, String)>>,
    coalesced: usize,
    /// Reasons of `state.initial`.
    pictures: Vec<String>,
    connections: usize,
}

impl Client {
    fn take(&mut self, event: &Value) {
        let text = |key: &str| event[key].as_str();
        let kind = text("type").unwrap();
        if event["coalesced"] == true {
            self.coalesced += 1;
        }
        match kind {
            "state.initial" => {
                self.pictures.push(text("reason").unwrap().to_owned());
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
        self.told.entry(uid.to_owned()).or_default().push((rv.to_owned(), kind.to_owned()));
    }

    /// Connects and reads for so long.
    async fn visit(&mut self, address: SocketAddr, sse: bool, long: Duration) {
        let Some(mut on) = Full::connect(address, sse, "", self.last.as_deref()).await else { return };
        self.connections += 1;
        on.read_for(long, |event| self.take(&event)).await;
    }

    /// Reads until it holds what the cluster holds.
    async fn settle(&mut self, address: SocketAddr, book: &Book) {
        let end = Instant::now() + BOUND;
        while !book.is_state(&self.fold) {
            assert!(Instant::now() < end, "it does not converge: {:#?}\n{:#?}", self.fold, book.state());
            self.visit(address, true, Duration::from_millis(500)).await;
        }
    }

    /// What came since everything was as it should be is exactly what the book says.
    fn exact(&self, book: &Book) {
        assert_eq!(self.coalesced, 0, "nothing was skipped");
        // In the book's words, which only the finished book has for all.
        let word = |rv: &str| if book.knows(rv) { rv.to_owned() } else { "end".to_owned() };
        let line = |(rv, kind): &(String, String)| format!("{} {kind}", word(rv));
        let lines = |(uid, told): (&String, &Vec<(String, String)>)| (uid.clone(), told.iter().map(line).collect());
        assert_eq!(
            self.told.iter().map(lines).collect::<BTreeMap<_, Vec<_>>>(),
            book.expected(),
            "every transition once"
        );
    }
}

async fn replicas(cluster: &Cluster, args: &[&str]) -> Vec<Bridge> {
    let kubeconfig = cluster.kubeconfig();
    let mut bridges = Vec::new();
    for _ in 0..2 {
        let bridge = Bridge::start(&kubeconfig.to_string_lossy(), &cluster.namespace, args).await;
        bridge.wait_ready().await;
        bridges.push(bridge);
    }
    bridges
}

#[tokio::test]
async fn cuts_under_a_hundred_writes_a_second_lose_and_repeat_nothing() {
    let (cluster, cuts) = (Cluster::shared().await, CUTS[usize::from(support::full())]);
    let bridges = replicas(&cluster, &["--own-watchers", "0"]).await;
    let (book, mut client, mut dice) = (Book::default(), Client::default(), Dice(5));
    client.visit(bridges[0].address, true, Duration::from_millis(300)).await;
    assert_eq!(client.pictures, ["connect"]);
    let began = Instant::now();
    let writing = async {
        let writers = (0..WRITERS).map(|n| Writer::new(n as u64).run(&cluster, &book, PAUSE));
        futures::future::join_all(writers).await;
    };
    let reading = async {
        for _ in 0..cuts {
            let (which, sse) = (dice.roll(2) as usize, dice.roll(2) == 0);
            let long = Duration::from_millis(5 + dice.roll(120));
            client.visit(bridges[which].address, sse, long).await;
        }
    };
    tokio::select! { () = writing => unreachable!("writers go on"), () = reading => {} }
    let (writes, took) = (book.writes(), began.elapsed());
    book.finish(&cluster).await;
    client.settle(bridges[0].address, &book).await;
    client.exact(&book);
    assert_eq!(client.pictures, ["connect"], "no further picture");
    assert!(client.connections > cuts, "{} connections", client.connections);
    let rate = writes as f64 / took.as_secs_f64();
    println!("{writes} writes at {rate:.0} a second, {} connections", client.connections);
    assert!(rate >= RATE, "{rate:.0} writes a second are too few");
}

#[tokio::test]
async fn kills_are_outlived_by_history_or_by_a_difference() {
    let mut cluster = Cluster::real().await;
    let mut bridges = replicas(&cluster, &["--own-watchers", "0"]).await;
    let (book, mut client) = (Book::default(), Client::default());
    let mut writer = Writer::new(9);
    client.visit(bridges[0].address, true, Duration::from_millis(300)).await;

    // kill -9 of the bridge: the next one reads the past.
    writer.some(&cluster, &book, 20).await;
    client.settle(bridges[1].address, &book).await;
    drop(bridges);
    writer.some(&cluster, &book, 20).await;
    bridges = replicas(&cluster, &["--own-watchers", "0"]).await;
    client.settle(bridges[0].address, &book).await;
    client.exact(&book);

    // Of the API server, while the bridges look away: a difference. And of both.
    for both in [false, true] {
        for bridge in &bridges {
            bridge.pause().await;
        }
        writer.some(&cluster, &book, 20).await;
        if both {
            drop(std::mem::take(&mut bridges));
        }
        cluster.down().await;
        cluster.up().await;
        writer.some(&cluster, &book, 20).await;
        if both {
            bridges = replicas(&cluster, &["--own-watchers", "0"]).await;
        }
        for bridge in &bridges {
            bridge.resume().await;
        }
        let before = client.coalesced;
        client.settle(bridges[1].address, &book).await;
        assert!(client.coalesced > before, "it was a difference, and is marked so (both: {both})");
    }
    assert_eq!(client.pictures, ["connect"], "no further picture");
}

/// On a control plane whose API server knows of a compaction at once; that the usual one answers the same when it comes to
/// know of it, `plane::both_servers_survive_kill_9` shows.
#[tokio::test]
async fn losses_of_history_are_told() {
    let flag = "--feature-gates=ListFromCacheSnapshot=false".to_owned();
    let options = Options { api_server_flags: vec![flag], ..Options::default() };
    let mut cluster = Cluster::of(ControlPlane::start_with(&options).await).await;
    let mut bridges = replicas(&cluster, &["--own-watchers", "0"]).await;
    let (book, mut client) = (Book::default(), Client::default());
    let mut writer = Writer::new(9);
    client.visit(bridges[0].address, true, Duration::from_millis(300)).await;
    writer.some(&cluster, &book, 20).await;
    client.settle(bridges[1].address, &book).await;
    assert_eq!(client.pictures, ["connect"]);

    // Across a compaction, with nobody there who knows the history: the state, with the reason.
    drop(bridges);
    writer.some(&cluster, &book, 20).await;
    cluster.plane().compact().await;
    bridges = replicas(&cluster, &["--own-watchers", "0"]).await;
    client.settle(bridges[0].address, &book).await;
    assert_eq!(client.pictures, ["connect", "expired"]);

    // An older copy put back: noticed by itself, under a client that is there and for one that comes.
    cluster.keep().await;
    let kept = book.state();
    writer.some(&cluster, &book, 20).await;
    client.settle(bridges[0].address, &book).await;
    cluster.put_back().await;
    let foreign = async {
        while client.pictures.len() < 3 {
            client.visit(bridges[0].address, true, Duration::from_millis(300)).await;
        }
    };
    tokio::time::timeout(2 * BOUND, foreign).await.expect("it is noticed");
    assert_eq!(client.pictures, ["connect", "expired", "foreign"]);
    let end = Instant::now() + BOUND;
    while client.fold != kept {
        assert!(Instant::now() < end, "the older state: {:#?}\n{kept:#?}", client.fold);
        client.visit(bridges[0].address, false, Duration::from_millis(300)).await;
    }
}
