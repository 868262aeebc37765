//! What the kernel reports about a process (proc(5)), and the limit of open files.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

/// Open files of a process besides one for each connection: listeners, watches, files of the runtime.
const OTHER_FILES: usize = 256;
/// Memory is read this often until it is stable.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Processor time of a process so far, system calls included: nanoseconds of each thread (`schedstat`) by thread id.
#[derive(Debug)]
pub(crate) struct ProcessCpu(pub(crate) BTreeMap<String, u64>);

impl ProcessCpu {
    pub(crate) fn now(pid: u32) -> Result<ProcessCpu> {
        let mut threads = BTreeMap::new();
        for thread in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("no process {pid}"))? {
            let thread = thread?;
            // A thread may end between the two reads.
            let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) else { continue };
            let nanos = text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0);
            threads.insert(thread.file_name().to_string_lossy().into_owned(), nanos);
        }
        Ok(ProcessCpu(threads))
    }

    /// Returns the time since `earlier`. The time of a thread that has ended in between is not included: the runtime
    /// ends a thread only after seconds without work.
    pub(crate) fn since(&self, earlier: &ProcessCpu) -> Duration {
        let of_thread = |(thread, nanos): (&String, &u64)| nanos.saturating_sub(*earlier.0.get(thread).unwrap_or(&0));
        Duration::from_nanos(self.0.iter().map(of_thread).sum())
    }
}

/// Memory of a process in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Memory {
    /// All pages in memory, shared ones included.
    pub(crate) resident: u64,
    /// Changed pages that only this process uses.
    pub(crate) private_dirty: u64,
    /// Pages without a file. Unlike `private_dirty`, this excludes a binary that is not yet written to the disk.
    pub(crate) anonymous: u64,
}

impl Memory {
    pub(crate) fn now(pid: u32) -> Result<Memory> {
        let [resident, private_dirty, anonymous] =
            memory_lines(pid, "smaps_rollup", ["Rss:", "Private_Dirty:", "Anonymous:"])?;
        Ok(Memory { resident, private_dirty, anonymous })
    }
}

/// Returns the resident memory of a process in bytes. Unlike [`Memory::now`], it does not stop the process for a walk
/// over its pages.
pub(crate) fn resident_memory(pid: u32) -> Result<u64> {
    let [bytes] = memory_lines(pid, "status", ["VmRSS:"])?;
    Ok(bytes)
}

/// Reads these lines of a file about a process, in bytes.
fn memory_lines<const N: usize>(pid: u32, file: &str, names: [&str; N]) -> Result<[u64; N]> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let mut values = [0; N];
    for (name, value) in names.iter().zip(&mut values) {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let line = line.with_context(|| format!("no {name} in {path}"))?;
        *value = line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024;
    }
    Ok(values)
}

/// Reads a value until it has been the same for `stable_for`, or until `limit` is over. Returns the last value.
pub(crate) fn stable<T: PartialEq>(stable_for: Duration, limit: Duration, read: impl Fn() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let (mut last, mut since) = (read()?, start);
    while since.elapsed() < stable_for && start.elapsed() < limit {
        std::thread::sleep(POLL_INTERVAL);
        let now = read()?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}

/// Returns the child processes of a process.
pub(crate) fn children(parent: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // The process may have ended. Its name is in parentheses; its state and its parent follow.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let of = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        if of == Some(parent.to_string().as_str()) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Lets this process and its children open a file for each of these connections.
pub(crate) fn raise_file_limit(connections: usize) -> Result<()> {
    let needed = (connections + OTHER_FILES) as u64;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if limit.maximum.is_some_and(|maximum| maximum < needed)
        || setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum: limit.maximum }).is_err()
    {
        bail!(
            "cannot open {needed} files at once: the hard limit is {}; raise it (as root: ulimit -Hn {needed}; in a \
             container: --ulimit nofile={needed}) or use fewer connections",
            limit.maximum.unwrap_or_default()
        );
    }
    Ok(())
}
