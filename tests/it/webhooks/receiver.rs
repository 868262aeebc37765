//! A receiver of webhooks with scripted faults.
//!
//! Owns its listener and connections. They end when the value is dropped.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::{JoinHandle, JoinSet},
    time::{Instant, timeout},
};

use crate::support::{http_client::TEST_TIMEOUT, sim_cluster::SimCluster};

/// The start of the names of Pods that no test looks at.
const WARM_UP: &str = "warm-up";

/// The number of such Pods in this process.
static WARM_UPS: AtomicU32 = AtomicU32::new(0);

/// Creates Pods until each receiver gets requests. The state with which a stream starts can contain the first of them, so
/// that there is no event about it.
pub(super) async fn start_forwarding(cluster: &SimCluster, receivers: &[&Receiver]) {
    let started = async {
        loop {
            let name = format!("{WARM_UP}-{}", WARM_UPS.fetch_add(1, Ordering::Relaxed));
            cluster.create_pod(&name);
            tokio::time::sleep(Duration::from_millis(100)).await;
            if receivers.iter().all(|receiver| receiver.attempts() > 0) {
                return name;
            }
        }
    };
    let last = timeout(TEST_TIMEOUT, started).await.expect("the streams start in time");
    for receiver in receivers.iter().filter(|receiver| receiver.state().always.is_none()) {
        receiver.wait_for_last(&last).await;
    }
}

/// How a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// With this status.
    Status(u16),
    /// With 429 and `Retry-After` in seconds.
    RetryAfter(u64),
    /// Not at all.
    Hang,
    /// The connection is closed after the request.
    Cut,
    /// The event is taken, and the connection is closed before the answer: the sender must deliver it again.
    TakeAndCut,
}

#[derive(Default)]
struct State {
    script: VecDeque<Answer>,
    always: Option<Answer>,
    arrived: Vec<Instant>,
    accepted: Vec<Value>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

/// A running receiver.
pub(super) struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: Mutex<JoinHandle<()>>,
}

impl Receiver {
    /// Starts a receiver that accepts everything.
    pub(super) async fn start() -> Receiver {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (address, shared) = (listener.local_addr().unwrap(), Arc::<Shared>::default());
        let serving = Mutex::new(tokio::spawn(serve(listener, shared.clone())));
        Receiver { address, shared, serving }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    /// Answers the next requests in this way, and accepts what follows.
    pub(super) fn answer_next(&self, answers: impl IntoIterator<Item = Answer>) {
        self.state().script.extend(answers);
    }

    pub(super) fn always(&self, answer: Answer) {
        self.state().always = Some(answer);
    }

    /// Refuses all connections for this time.
    pub(super) async fn go_down(&self, time: Duration) {
        // A socket that is bound and does not listen keeps the port.
        self.serving.lock().unwrap().abort();
        let free = async {
            loop {
                let socket = tokio::net::TcpSocket::new_v4().unwrap();
                socket.set_reuseaddr(true).unwrap();
                if socket.bind(self.address).is_ok() {
                    return socket;
                }
                tokio::task::yield_now().await;
            }
        };
        let socket = timeout(TEST_TIMEOUT, free).await.expect("the port is free in time");
        tokio::time::sleep(time).await;
        let listener = socket.listen(128).unwrap();
        *self.serving.lock().unwrap() = tokio::spawn(serve(listener, self.shared.clone()));
    }

    pub(super) fn attempts(&self) -> usize {
        self.state().arrived.len()
    }

    /// Returns when a request has arrived, counted from 0.
    pub(super) fn arrived_at(&self, request: usize) -> Instant {
        self.state().arrived[request]
    }

    /// Returns the bodies that were accepted.
    pub(super) fn accepted(&self) -> Vec<Value> {
        self.state().accepted.clone()
    }

    /// Returns the names in the accepted bodies, without those of [`start_forwarding`].
    pub(super) fn accepted_names(&self) -> Vec<String> {
        let names = self.accepted();
        let names = names.iter().map(|body| body["name"].as_str().unwrap_or_default().to_owned());
        names.filter(|name| !name.starts_with(WARM_UP)).collect()
    }

    /// Waits until so many events are accepted, those of [`start_forwarding`] included.
    pub(super) async fn wait_for(&self, count: usize) {
        self.wait_until(|state| state.accepted.len() >= count).await;
    }

    /// Waits until the event about this Pod is accepted.
    pub(super) async fn wait_for_last(&self, name: &str) {
        self.wait_until(|state| state.accepted.iter().any(|body| body["name"] == name)).await;
    }

    async fn wait_until(&self, is_enough: impl Fn(&State) -> bool) {
        let enough = async {
            loop {
                let changed = self.shared.changed.notified();
                if is_enough(&self.state()) {
                    return;
                }
                changed.await;
            }
        };
        // Retries wait up to 30 s, and a receiver that was down for a minute is tried again after that.
        assert!(timeout(4 * TEST_TIMEOUT, enough).await.is_ok(), "accepted: {:?}", self.accepted_names());
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.lock().unwrap().abort();
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        while connections.try_join_next().is_some() {}
        connections.spawn(answer_all(socket, shared.clone()));
    }
}

/// Answers the requests of one connection.
async fn answer_all(mut socket: TcpStream, shared: Arc<Shared>) {
    let mut received = Vec::new();
    while let Some(body) = read_request(&mut socket, &mut received).await {
        let answer = {
            let mut state = shared.state.lock().unwrap();
            state.arrived.push(Instant::now());
            let answer = state.script.pop_front().or(state.always).unwrap_or(Answer::Status(200));
            if matches!(answer, Answer::Status(200) | Answer::TakeAndCut) {
                state.accepted.push(serde_json::from_slice(&body).unwrap());
            }
            answer
        };
        shared.changed.notify_waiters();
        let (status, header) = match answer {
            Answer::Status(status) => (status, String::new()),
            Answer::RetryAfter(seconds) => (429, format!("Retry-After: {seconds}\r\n")),
            Answer::Hang => std::future::pending().await,
            Answer::Cut | Answer::TakeAndCut => return,
        };
        let head = format!("HTTP/1.1 {status} Scripted\r\nContent-Length: 0\r\n{header}\r\n");
        if socket.write_all(head.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Returns the body of the next request, or `None` at the end.
async fn read_request(socket: &mut TcpStream, received: &mut Vec<u8>) -> Option<Vec<u8>> {
    loop {
        if let Some(end) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&received[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            let length: usize = length.expect("a request has a length");
            if received.len() >= end + 4 + length {
                let body = received[end + 4..end + 4 + length].to_vec();
                received.drain(..end + 4 + length);
                return Some(body);
            }
        }
        if socket.read_buf(received).await.ok()? == 0 {
            return None;
        }
    }
}
