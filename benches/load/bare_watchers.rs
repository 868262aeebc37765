//! Pairs of kube-runtime watchers and nothing else: the comparison for the dedicated watchers of a `/ws` connection.
//!
//! They use the decoder, the client settings and the selector of the bridge, but neither a feed nor a socket. The
//! process reads the number of pairs from stdin, opens the missing ones one after the other, and prints the number
//! after all of them have listed everything. It ends when stdin ends.

use std::{future::pending, io::BufRead, path::PathBuf};

use anyhow::Result;
use boilerhouse_bridge::{
    api::MANAGED_SELECTOR,
    source::{
        connect::{self, ClusterConnection},
        decode::{Decode, DecodedClaim, DecodedPod},
    },
};
use clap::Args;
use futures::{StreamExt, future::join};
use kube::{
    Api,
    runtime::watcher::{self, Event},
};
use tokio::{
    sync::oneshot,
    task::{JoinSet, block_in_place},
};

use crate::{multi_thread_runtime, print};

/// The `timeoutSeconds` of the bridge's dedicated watchers.
const WATCH_SECONDS: u32 = 30;

/// Arguments of the process.
#[derive(Debug, Args)]
pub(crate) struct BareWatcherOptions {
    /// Kubeconfig of the cluster
    kubeconfig: PathBuf,
    /// Namespace to watch
    namespace: String,
}

impl BareWatcherOptions {
    pub(crate) fn run(self) -> Result<()> {
        multi_thread_runtime()?.block_on(self.serve())
    }

    async fn serve(self) -> Result<()> {
        let config = connect::Config {
            kubeconfig: Some(self.kubeconfig),
            namespace: self.namespace,
            ..connect::Config::default()
        };
        let connection = connect::connect(&config).await?;
        let mut pairs = JoinSet::new();
        while let Some(wanted) = block_in_place(next_number)? {
            while pairs.len() < wanted {
                let (pods_listed, pods) = oneshot::channel();
                let (claims_listed, claims) = oneshot::channel();
                let pod_watcher = watch::<DecodedPod>(&connection, MANAGED_SELECTOR, pods_listed);
                let claim_watcher = watch::<DecodedClaim>(&connection, "", claims_listed);
                pairs.spawn(join(pod_watcher, claim_watcher));
                pods.await?;
                claims.await?;
            }
            print(&format!("{wanted}\n"))?;
        }
        Ok(())
    }
}

fn next_number() -> Result<Option<usize>> {
    let mut line = String::new();
    match std::io::stdin().lock().read_line(&mut line)? {
        0 => Ok(None),
        _ => Ok(Some(line.trim().parse()?)),
    }
}

/// Runs one watcher until the process ends. Sends a message after its first complete list.
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
                // A failed pair says nothing about memory. It stops here, and the measurement then times out.
                Err(_) => pending().await,
            }
        }
    }
}
