//! The baseline: a server that only calls `write(2)` with a prepared frame for each of its sockets, once per command.
//!
//! It has two modes. `loop` writes to one socket after the other: the cost of the system call, and with a certificate
//! the cost of rustls too. `tasks` has one tokio task per connection that waits for the next frame: the minimum cost of
//! that structure.

use std::{
    collections::VecDeque,
    io::{BufRead, ErrorKind, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Args;
use rustls::{ServerConfig, ServerConnection};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    clock::{TIMESTAMP_MARKER, now_micros},
    multi_thread_runtime, tls,
};

/// A task that is later than this many frames misses some. Correctness is not needed here: the number of deliveries
/// shows the loss.
pub(crate) const RETAINED_FRAMES: usize = 64;

/// Arguments of the baseline's process.
#[derive(Debug, Args)]
pub(crate) struct BaselineOptions {
    /// How frames reach the sockets
    #[arg(long, default_value = "loop")]
    baseline_mode: BaselineMode,

    /// Certificate in PEM; without it, the baseline does not encrypt
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// Private key of the certificate in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

/// How frames reach the sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum BaselineMode {
    /// One thread, one socket after the other
    Loop,
    /// One task per connection, without TLS
    Tasks,
}

/// Writes this many frames of this size to each socket, in one write.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct WriteCommand {
    pub(crate) frames: u64,
    pub(crate) bytes: usize,
}

impl BaselineOptions {
    /// Prints its address, then executes commands until stdin ends.
    pub(crate) fn run(self) -> Result<()> {
        let certificate = self.tls_cert.as_ref().zip(self.tls_key.as_ref());
        let tls = certificate.map(|(file, key)| tls::server(file, key)).transpose()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{}", serde_json::to_string(&listener.local_addr()?)?)?;
        stdout.flush()?;
        match self.baseline_mode {
            BaselineMode::Loop => run_loop(listener, tls),
            BaselineMode::Tasks => run_tasks(listener),
        }
    }
}

fn commands() -> impl Iterator<Item = Result<WriteCommand>> {
    std::io::stdin().lock().lines().map(|line| Ok(serde_json::from_str(&line?)?))
}

/// A client of the loop.
struct Socket {
    stream: TcpStream,
    session: Option<ServerConnection>,
}

impl Socket {
    /// Waits for a client and answers its request.
    fn accept(listener: &TcpListener, tls: Option<&Arc<ServerConfig>>) -> Result<Socket> {
        let (mut stream, _) = listener.accept()?;
        let mut session = tls.map(|tls| ServerConnection::new(tls.clone())).transpose()?;
        match &mut session {
            Some(session) => answer(&mut rustls::Stream::new(session, &mut stream))?,
            None => answer(&mut stream)?,
        }
        set_nonblocking(&stream)?;
        Ok(Socket { stream, session })
    }

    fn write(&mut self, frames: &[u8]) -> std::io::Result<()> {
        let Some(session) = &mut self.session else { return self.stream.write(frames).map(drop) };
        session.writer().write_all(frames)?;
        while session.wants_write() {
            session.write_tls(&mut self.stream)?;
        }
        Ok(())
    }
}

fn run_loop(listener: TcpListener, tls: Option<Arc<ServerConfig>>) -> Result<()> {
    let sockets = Arc::new(Mutex::new(Vec::new()));
    let accepted = sockets.clone();
    std::thread::spawn(move || {
        while let Ok(socket) = Socket::accept(&listener, tls.as_ref()) {
            accepted.lock().unwrap_or_else(PoisonError::into_inner).push(socket);
        }
    });
    for command in commands() {
        let frames = frames(command?);
        for socket in sockets.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            match socket.write(&frames) {
                Ok(()) => {}
                // The client has closed the connection, or it reads too slowly. Correctness is not needed here.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::BrokenPipe) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                Err(error) => return Err(error).context("the baseline cannot write"),
            }
        }
    }
    Ok(())
}

/// The last frames of the server with tasks, and the number of the next one.
#[derive(Debug, Default)]
pub(crate) struct RecentFrames {
    next: u64,
    frames: VecDeque<Bytes>,
}

impl RecentFrames {
    pub(crate) fn push(&mut self, frames: Bytes) {
        self.frames.truncate(RETAINED_FRAMES - 1);
        self.frames.push_front(frames);
        self.next += 1;
    }

    /// Returns the element after the first `written` ones, or the oldest retained one.
    pub(crate) fn after(&self, written: u64) -> Option<Bytes> {
        let back = self.next.checked_sub(written + 1)?;
        self.frames.get(usize::try_from(back).unwrap_or(usize::MAX).min(RETAINED_FRAMES - 1)).cloned()
    }
}

fn run_tasks(listener: TcpListener) -> Result<()> {
    let runtime = multi_thread_runtime()?;
    let (send, receive) = watch::channel(RecentFrames::default());
    let handle = runtime.handle().clone();
    std::thread::spawn(move || {
        while let Ok(stream) = accept(&listener) {
            let mut receive = receive.clone();
            let _context = handle.enter();
            let Ok(stream) = tokio::net::TcpStream::from_std(stream) else { continue };
            let mut written = receive.borrow_and_update().next;
            handle.spawn(async move {
                while receive.changed().await.is_ok() {
                    // A late task has several elements to write.
                    loop {
                        let Some(frames) = receive.borrow_and_update().after(written) else { break };
                        written += 1;
                        if stream.writable().await.is_err() || stream.try_write(&frames).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    for command in commands() {
        let frames = frames(command?);
        send.send_modify(|recent| recent.push(frames));
    }
    Ok(())
}

/// Waits for a client and answers its request.
fn accept(listener: &TcpListener) -> std::io::Result<TcpStream> {
    let (mut stream, _) = listener.accept()?;
    answer(&mut stream)?;
    set_nonblocking(&stream)?;
    Ok(stream)
}

/// Reads a request and answers it. The answer is always the same, as clients only search for time stamps.
fn answer(stream: &mut (impl Read + Write)) -> std::io::Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? > 0 {
        head.push(byte[0]);
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")?;
    stream.flush()
}

fn set_nonblocking(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)
}

fn frames(WriteCommand { frames, bytes }: WriteCommand) -> Bytes {
    let mut out = Vec::with_capacity(bytes * frames as usize);
    for _ in 0..frames {
        let end = out.len() + bytes;
        write!(out, "{{{TIMESTAMP_MARKER}{}\",\"rest\":\"", now_micros()).unwrap_or_default();
        out.resize(end.max(out.len() + 3), b'x');
        let at = out.len() - 3;
        out[at..].copy_from_slice(b"\"}\n");
    }
    out.into()
}
