//! Child processes of a measurement, and what a process has cost so far (proc(5)).

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::{Serialize, de::DeserializeOwned};

/// A child has this long to end by itself once its input is closed: 2 s, longer than any of them needs.
const PATIENCE: Duration = Duration::from_secs(2);
/// Memory counts as settled when it has been the same for a second...
const SETTLED: Duration = Duration::from_secs(1);
/// ...or after 20 s, whatever it is then.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);

/// This program in another role, which answers each line of JSON with one. It ends with its handle.
#[derive(Debug)]
pub(super) struct Role {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Role {
    pub(super) fn start(args: &[String]) -> Result<Role> {
        let program = std::env::current_exe().context("this program does not know its own file")?;
        let mut command = Command::new(program);
        command.arg("bench").args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("a process of the measurement did not start")?;
        let (input, output) = (child.stdin.take(), child.stdout.take().context("no output")?);
        Ok(Role { child, input, output: BufReader::new(output) })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Says something that is not answered.
    pub(super) fn tell(&mut self, what: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(what)?;
        line.push(b'\n');
        let input = self.input.as_mut().context("its input is closed")?;
        input.write_all(&line).context("a process of the measurement has ended")
    }

    /// Reads the next answer.
    pub(super) fn hear<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("a process of the measurement has ended: see what it wrote");
        }
        Ok(serde_json::from_str(&line)?)
    }

    pub(super) fn ask<T: DeserializeOwned>(&mut self, what: &impl Serialize) -> Result<T> {
        self.tell(what)?;
        self.hear()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        self.input = None;
        end(&mut self.child);
    }
}

/// A bridge that has been started for a measurement. It ends with its handle.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    pub(super) address: String,
}

impl Server {
    /// Starts `serve` on a free port, with a kubeconfig that is never written to a file.
    pub(super) fn start(binary: &std::path::Path, args: &[String], kubeconfig: &str) -> Result<Server> {
        let mut command = Command::new(binary);
        command.args(["serve", "--port", "0", "--kubeconfig", "/dev/stdin"]).args(args);
        command.env_clear().stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("{} did not start", binary.display()))?;
        child.stdin.take().context("no input")?.write_all(kubeconfig.as_bytes())?;
        let mut lines = BufReader::new(child.stderr.take().context("no log")?).lines();
        let mut log = String::new();
        let address = loop {
            let Some(line) = lines.next().transpose()? else {
                end(&mut child);
                bail!("the bridge did not start:\n{log}");
            };
            if let Some((_, rest)) = line.split_once("listening on ") {
                let address = rest.split(',').next().unwrap_or(rest);
                break address.split_once("://").map_or(address, |(_, address)| address).to_owned();
            }
            log += &line;
            log.push('\n');
        };
        // It must never wait for somebody to read what it logs; warnings are shown.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok).filter(|line| line.contains("WARN") || line.contains("ERROR")) {
                // Without stderr there is nobody to show it to.
                let _ = writeln!(std::io::stderr(), "the bridge: {line}");
            }
        });
        Ok(Server { child, address })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            // It may have ended already.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    let limit = Instant::now() + PATIENCE;
    while Instant::now() < limit {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // Both fail only for a process that is gone.
    let _ = child.kill();
    let _ = child.wait();
}

/// Processor time of a process so far, system calls included: each thread's nanoseconds (`schedstat`), by its id.
#[derive(Debug)]
pub(super) struct Cpu(BTreeMap<String, u64>);

impl Cpu {
    /// Reads it.
    pub(super) fn now(pid: u32) -> Result<Cpu> {
        let mut threads = BTreeMap::new();
        for thread in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("no process {pid}"))? {
            let thread = thread?;
            // A thread may end while this is read.
            let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) else { continue };
            let nanos = text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0);
            threads.insert(thread.file_name().to_string_lossy().into_owned(), nanos);
        }
        Ok(Cpu(threads))
    }

    /// What has come since. A thread that has ended meanwhile takes what it did with it: those of the runtime that do so
    /// have been idle for seconds before.
    pub(super) fn since(&self, before: &Cpu) -> Duration {
        let of_one = |(thread, nanos): (&String, &u64)| nanos.saturating_sub(*before.0.get(thread).unwrap_or(&0));
        Duration::from_nanos(self.0.iter().map(of_one).sum())
    }
}

/// Resident memory that belongs to the process alone, in bytes.
pub(super) fn memory(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).with_context(|| format!("process {pid}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).context("no Private_Dirty")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// The same once it no longer changes.
pub(super) fn settled_memory(pid: u32) -> Result<u64> {
    let began = Instant::now();
    let (mut last, mut since) = (memory(pid)?, began);
    while since.elapsed() < SETTLED && began.elapsed() < SETTLE_LIMIT {
        std::thread::sleep(Duration::from_millis(50));
        let now = memory(pid)?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ended_thread_does_not_reduce_cpu_time_of_others() {
        let cpu = |threads: &[(&str, u64)]| Cpu(threads.iter().map(|(id, nanos)| ((*id).to_owned(), *nanos)).collect());
        let (before, after) = (cpu(&[("1", 100), ("2", 900)]), cpu(&[("1", 150), ("3", 7)]));
        assert_eq!(after.since(&before), Duration::from_nanos(57));
    }
}
