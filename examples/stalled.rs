//! What clients that have stopped reading cost those that read: delivery times and the bridge's memory, with and without.
//!
//! A simulated cluster, its writer and all clients live in this process, so that one clock says when a change was
//! written and when each client had it; the bridge is the binary. Rounds without and with stalled clients alternate.
//! A stalled one connects with a small kernel buffer, reads nothing for longer than the bridge has patience (10 s),
//! and comes back: there are always as many. Nothing is asserted about time. `tests/scripts/stalled` runs it.

#![expect(clippy::print_stdout, reason = "its output")]

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use boilerhouse_bridge::sim::{ApiResource, Sim, SimConfig};
use clap::Parser;
use memchr::memmem;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpSocket, TcpStream},
    process::{Child, Command},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

const NAMESPACE: &str = "boilerhouse";
/// Pods that change in turn.
const PODS: usize = 20;
/// Changes at most, over all rounds: those that fill the log, and a thousand a second for ten minutes.
const CHANGES: usize = 1_000_000;
/// Characters of a phase: an event is some 1.5 KB, so that a client that does not read is soon stuck.
const PHASE: usize = 400;
/// What comes before a phase's number.
const MARK: &[u8] = b"\"phase\":\"s";
/// Changes between two looks while the log is filled.
const FILL: usize = 1000;
/// A stalled client stays this long: a second past the bridge's patience.
const HOLD: Duration = Duration::from_secs(11);
/// The kernel's buffer of a stalled client, in bytes, as asked for.
const NARROW: u32 = 4096;
/// An unasked pong (RFC 6455 section 5.5.3): without a byte for 45 s the bridge would take the client for gone.
const PONG: &[u8] = b"\x8a\x80\0\0\0\0";
const PONG_EVERY: Duration = Duration::from_secs(15);
/// How many clients are there.
const STREAMS: &str = "bridge_streams";
/// No step takes longer, or the run fails.
const BOUND: Duration = Duration::from_secs(120);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Options.
#[derive(Debug, Parser)]
struct Options {
    /// The bridge
    #[arg(long, default_value = "target/release/boilerhouse-bridge")]
    binary: PathBuf,
    /// Clients that read, half of them on SSE and half on WebSocket
    #[arg(long, default_value_t = 100)]
    good: usize,
    /// Clients that do not
    #[arg(long, default_value_t = 500)]
    stalled: usize,
    /// Changes a second
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rate: u64,
    /// Seconds that are measured in each half of a round
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Rounds
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
}

/// When changes were written, and what clients have.
#[derive(Debug)]
struct Board {
    written: Vec<OnceLock<Instant>>,
    /// Number of the last change.
    last: AtomicUsize,
    /// Microseconds from write to receipt.
    late: Mutex<Vec<u32>>,
}

impl Board {
    fn note(&self, numbers: &[usize], now: Instant) {
        let late = |number: &usize| Some((now - *self.written.get(*number)?.get()?).as_micros() as u32);
        let mut all = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(numbers.iter().filter_map(late));
    }

    fn take(&self) -> Vec<u32> {
        std::mem::take(&mut *self.late.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One half of a round.
#[derive(Debug)]
struct Half {
    /// Sorted.
    late: Vec<u32>,
    /// Most resident memory of the bridge, in bytes.
    memory: u64,
    /// Stalled clients that the bridge has ended meanwhile, and how many were there at the end.
    ended: u64,
    there: u64,
}

impl Half {
    fn quantile(&self, part: f64) -> f64 {
        let index = ((self.late.len() as f64 * part) as usize).min(self.late.len().saturating_sub(1));
        self.late.get(index).map_or(f64::NAN, |late| f64::from(*late) / 1000.0)
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let sim = Sim::new(SimConfig::default());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let kubeconfig = kubeconfig(&format!("http://{}", listener.local_addr()?))?;
    let mut tasks = JoinSet::new();
    let served = sim.clone();
    tasks.spawn(async move {
        served.serve(listener, std::future::pending()).await;
        Ok(())
    });
    let written = (0..CHANGES).map(|_| OnceLock::new()).collect();
    let board = Arc::new(Board { written, last: AtomicUsize::new(0), late: Mutex::default() });
    let (bridge, address) = start(&options.binary, &kubeconfig, &mut tasks).await?;
    let pid = bridge.id().ok_or("the bridge has ended")?;
    until("/readyz says so", async || Ok(get(address, "/readyz").await?.starts_with("HTTP/1.1 200"))).await?;
    tasks.spawn(good(address, 0, board.clone()));
    streams(address, 1).await?;
    beside(&mut tasks, fill(&sim, &board, address)).await?;
    for index in 1..options.good {
        tasks.spawn(good(address, index, board.clone()));
    }
    tasks.spawn(write(sim, board.clone(), options.rate));
    beside(&mut tasks, rounds(&options, address, pid, &board)).await
}

/// Does this work, unless one of the tasks ends, which none should.
async fn beside(
    tasks: &mut JoinSet<Result<(), Failure>>,
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    tokio::select! {
        done = work => done,
        Some(ended) = tasks.join_next() => ended?.and(Err("something has ended that should not".into())),
    }
}

/// Measures and prints.
async fn rounds(options: &Options, address: SocketAddr, pid: u32, board: &Board) -> Result<(), Failure> {
    let Options { good, stalled, rate, seconds, rounds, .. } = options;
    streams(address, *good).await?;
    println!("{good} clients that read, {rate} changes a second, {seconds} s each; ms from write to receipt\n");
    println!("round  stalled  received     p50     p99     max  memory MiB  ended");
    let mut p99 = [Vec::new(), Vec::new()];
    for round in 1..=*rounds {
        // In turns, and after the same wait: what comes second, or later, must not be what is compared.
        let mut halves = [(0, 0), (1, *stalled)];
        halves.rotate_left((round % 2) as usize);
        for (which, count) in halves {
            let mut clients = JoinSet::new();
            for index in 0..count {
                clients.spawn(stall(address, index, HOLD.mul_f64(index as f64 / count as f64)));
            }
            // Then all have come, evenly spread over the time that each stays.
            sleep(HOLD).await;
            let half = tokio::select! {
                half = measure(address, pid, *good as u64, Duration::from_secs(*seconds), board) => half?,
                Some(ended) = clients.join_next() => return Err(format!("a stalled client: {ended:?}").into()),
            };
            p99[which].push(half.quantile(0.99));
            println!(
                "{round:>5} {:>8} {:>9} {:>7.2} {:>7.2} {:>7.2} {:>11.1} {:>6}",
                half.there,
                half.late.len(),
                half.quantile(0.5),
                half.quantile(0.99),
                half.quantile(1.0),
                half.memory as f64 / f64::from(1 << 20),
                half.ended,
            );
            drop(clients);
            streams(address, *good).await?;
        }
    }
    let [without, with] = p99.map(|mut all| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    });
    println!("\nmedian p99: {without:.2} ms without, {with:.2} ms with: {:.2} times", with / without);
    println!("clients told `lagged`: {}", metric(address, "bridge_feed_lagged_total").await?);
    Ok(())
}

async fn measure(address: SocketAddr, pid: u32, good: u64, long: Duration, board: &Board) -> Result<Half, Failure> {
    let slow = async || {
        let metrics = get(address, "/metrics").await?;
        let samples = metrics.lines().filter_map(|line| line.strip_prefix("bridge_streams_closed_total{"));
        let slow = samples.filter_map(|sample| sample.split_once(r#"reason="slow_consumer"} "#)?.1.parse::<u64>().ok());
        Ok::<_, Failure>(slow.sum::<u64>())
    };
    let before = slow().await?;
    board.take();
    let (end, mut memory) = (Instant::now() + long, 0);
    while Instant::now() < end {
        memory = memory.max(resident(pid)?);
        sleep(Duration::from_millis(250)).await;
    }
    let mut late = board.take();
    late.sort_unstable();
    let there = metric(address, STREAMS).await?.saturating_sub(good);
    Ok(Half { late, memory, ended: slow().await? - before, there })
}

/// Resident memory of a process in bytes.
fn resident(pid: u32) -> Result<u64, Failure> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// Makes the next change.
fn change(sim: &Sim, board: &Board) -> Result<(), Failure> {
    let number = board.last.load(Relaxed) + 1;
    let name = format!("pod-{}", number % PODS);
    let phase = json!({"status": {"phase": format!("s{number}-{}", "x".repeat(PHASE))}});
    let changed = sim.store(|store| {
        if number.is_multiple_of(FILL) {
            // More than a watch that keeps up has not yet read.
            store.discard_before(store.revision().saturating_sub(10 * FILL as u64));
        }
        if store.get(ApiResource::Pods, NAMESPACE, &name).is_none() {
            let labels = json!({"boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": "web"});
            let pod = json!({"metadata": {"name": name, "namespace": NAMESPACE, "labels": labels}});
            store.create(ApiResource::Pods, pod)?;
        }
        board.written.get(number).map(|written| written.set(Instant::now()));
        store.patch(ApiResource::Pods, NAMESPACE, &name, &phase)
    });
    changed.map_err(|refused| format!("{refused:?}"))?;
    board.last.store(number, Relaxed);
    Ok(())
}

/// Changes until the log is full: what it holds is no client's cost.
async fn fill(sim: &Sim, board: &Board, address: SocketAddr) -> Result<(), Failure> {
    let mut held = 0;
    loop {
        for _ in 0..FILL {
            change(sim, board)?;
            tokio::task::yield_now().await;
        }
        // The client that reads has kept up.
        let all = async {
            let mut had = 0;
            while had < FILL {
                had += board.take().len();
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(BOUND, all).await.map_err(|_| "a client that reads does not keep up")?;
        let holds = metric(address, "bridge_feed_log_bytes").await?;
        if holds <= held {
            println!("the log is full after {} changes: {} MiB as charged", board.last.load(Relaxed), holds >> 20);
            return Ok(());
        }
        held = holds;
    }
}

/// Changes at this rate, for ever.
async fn write(sim: Sim, board: Arc<Board>, rate: u64) -> Result<(), Failure> {
    let mut ticks = interval(Duration::from_secs(1) / u32::try_from(rate)?);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        change(&sim, &board)?;
    }
}

fn request(address: SocketAddr, index: usize, snapshot: &str) -> String {
    let (path, more) = if index.is_multiple_of(2) {
        ("/api/sse", "")
    } else {
        let key = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        ("/api/websocket", key)
    };
    format!("GET {path}?types=instance.state&snapshot={snapshot} HTTP/1.1\r\nHost: {address}\r\n{more}\r\n")
}

/// A client that reads; it fails when it misses anything.
async fn good(address: SocketAddr, index: usize, board: Arc<Board>) -> Result<(), Failure> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request(address, index, "none").as_bytes()).await?;
    let (mut bytes, mut last, mut pongs) = (Vec::with_capacity(1 << 16), None, interval(PONG_EVERY));
    loop {
        tokio::select! {
            read = stream.read_buf(&mut bytes) => if read? == 0 {
                return Err("the bridge has ended a client that reads".into());
            },
            _ = pongs.tick(), if !index.is_multiple_of(2) => {
                stream.write_all(PONG).await?;
                continue;
            }
        }
        let now = Instant::now();
        let (mut numbers, used) = numbers(&bytes);
        bytes.drain(..used);
        // Each event says its phase twice: its own, and its instance's.
        numbers.dedup();
        numbers.retain(|number| Some(*number) != last);
        for number in &numbers {
            if last.is_some_and(|last| *number != last + 1) {
                return Err(format!("a client that reads has {number} after {last:?}").into());
            }
            last = Some(*number);
        }
        board.note(&numbers, now);
    }
}

/// The numbers of the phases in these bytes, and how many bytes need not be looked at again.
fn numbers(bytes: &[u8]) -> (Vec<usize>, usize) {
    let mut numbers = Vec::new();
    for at in memmem::find_iter(bytes, MARK) {
        let digits = &bytes[at + MARK.len()..];
        let Some(end) = memchr::memchr(b'-', digits) else { return (numbers, at) };
        numbers.extend(std::str::from_utf8(&digits[..end]).ok().and_then(|digits| digits.parse::<usize>().ok()));
    }
    (numbers, bytes.len().saturating_sub(MARK.len()))
}

/// A client that reads nothing, over and over.
async fn stall(address: SocketAddr, index: usize, first: Duration) -> Result<(), Failure> {
    sleep(first).await;
    loop {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(NARROW)?;
        let mut stream = socket.connect(address).await?;
        stream.write_all(request(address, index, "state").as_bytes()).await?;
        sleep(HOLD).await;
    }
}

async fn get(address: SocketAddr, path: &str) -> Result<String, Failure> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    timeout(BOUND, stream.read_to_string(&mut answer)).await??;
    Ok(answer)
}

/// A metric of the bridge by its name and labels; 0 where it has not been counted yet.
async fn metric(address: SocketAddr, name: &str) -> Result<u64, Failure> {
    let answer = get(address, "/metrics").await?;
    // A metric with labels has a sample for each label set.
    let values = answer.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.strip_prefix(' ').or_else(|| Some(rest.strip_prefix('{')?.rsplit_once("} ")?.1))
    });
    Ok(values.map(str::parse::<u64>).sum::<Result<_, _>>()?)
}

async fn streams(address: SocketAddr, count: usize) -> Result<(), Failure> {
    let there = async || Ok(metric(address, STREAMS).await? == count as u64);
    until(&format!("{count} streams are there"), there).await
}

async fn until(what: &str, is_it: impl AsyncFn() -> Result<bool, Failure>) -> Result<(), Failure> {
    let wait = async {
        while !is_it().await? {
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    };
    timeout(BOUND, wait).await.map_err(|_| format!("waited for too long until {what}"))?
}

/// The bridge, listening; it ends with this process.
async fn start(
    binary: &PathBuf,
    kubeconfig: &tempfile::NamedTempFile,
    tasks: &mut JoinSet<Result<(), Failure>>,
) -> Result<(Child, SocketAddr), Failure> {
    let mut command = Command::new(binary);
    command.args(["serve", "--port", "0", "--namespace", NAMESPACE, "--kubeconfig"]).arg(kubeconfig.path());
    let mut child = command.env_clear().stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(child.stderr.take().ok_or("no stderr")?).lines();
    let address = loop {
        let line = lines.next_line().await?.ok_or("the bridge has not started")?;
        if let Some((_, rest)) = line.split_once("listening on http://") {
            break rest.split(',').next().unwrap_or(rest).parse()?;
        }
    };
    // It must never wait for somebody to read what it logs.
    tasks.spawn(async move {
        while let Some(_line) = lines.next_line().await? {}
        Err("the bridge has ended".into())
    });
    Ok((child, address))
}

fn kubeconfig(server: &str) -> Result<tempfile::NamedTempFile, Failure> {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "simulated",
        "clusters": [{"name": "simulated", "cluster": {"server": server}}],
        "users": [{"name": "simulated", "user": {}}],
        "contexts": [{"name": "simulated", "context": {"cluster": "simulated", "user": "simulated"}}],
    });
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), config.to_string())?;
    Ok(file)
}
