//! Pairs of kube-runtime watchers and nothing else: what a `/ws` connection's own watchers are measured against.
//!
//! The same projections, the same client settings and the same selector as the bridge's, but neither feed nor socket.
//! Reads numbers of pairs from its input, opens as many as are missing, one after the other, and prints the number once
//! all of them have listed everything. Ends with its input. `tests/scripts/own-memory` drives it.
//!
//! `cargo run --release --example bare_watchers -- KUBECONFIG NAMESPACE`

use std::{future::pending, io::BufRead, path::PathBuf};

use boilerhouse_bridge::{
    api::MANAGED_SELECTOR,
    source::{
        connect::{self, ClusterConnection},
        decode::{Decode, DecodedClaim, DecodedPod},
    },
};
use futures::{StreamExt, future::join};
use kube::{
    Api,
    runtime::watcher::{self, Event},
};
use tokio::{
    sync::oneshot,
    task::{JoinSet, block_in_place},
};

/// What the bridge's own watchers ask for as `timeoutSeconds`.
const WATCH_SECONDS: u32 = 30;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let (Some(kubeconfig), Some(namespace), None) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: bare_watchers KUBECONFIG NAMESPACE".into());
    };
    let config =
        connect::Config { kubeconfig: Some(PathBuf::from(kubeconfig)), namespace, ..connect::Config::default() };
    let connection = connect::connect(&config).await?;
    let mut pairs = JoinSet::new();
    while let Some(wanted) = block_in_place(next_number)? {
        while pairs.len() < wanted {
            let (pods_listed, pods) = oneshot::channel();
            let (claims_listed, claims) = oneshot::channel();
            let pods_watched = watch::<DecodedPod>(&connection, MANAGED_SELECTOR, pods_listed);
            let claims_watched = watch::<DecodedClaim>(&connection, "", claims_listed);
            pairs.spawn(join(pods_watched, claims_watched));
            pods.await?;
            claims.await?;
        }
        #[expect(clippy::print_stdout, reason = "its only output")]
        {
            println!("{wanted}");
        }
    }
    Ok(())
}

fn next_number() -> Result<Option<usize>, Failure> {
    let mut line = String::new();
    match std::io::stdin().lock().read_line(&mut line)? {
        0 => Ok(None),
        _ => Ok(Some(line.trim().parse()?)),
    }
}

/// One watcher, for ever; says when it has listed everything.
fn watch<T: Decode>(
    connection: &ClusterConnection,
    selector: &str,
    listed: oneshot::Sender<()>,
) -> impl Future<Output = ()> + use<T> {
    let api = Api::<T>::namespaced(connection.client.clone(), &connection.namespace);
    let config = watcher::Config::default().labels(selector).timeout(WATCH_SECONDS);
    let mut events = kube::runtime::watcher(api, config).boxed();
    async move {
        let mut listed = Some(listed);
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::InitDone) => drop(listed.take().map(|listed| listed.send(()))),
                Ok(Event::Init | Event::InitApply(_) | Event::Apply(_) | Event::Delete(_)) => {}
                // Nothing is measured by a pair that failed: it stays as it is, and the script's time runs out.
                Err(_) => pending().await,
            }
        }
    }
}
