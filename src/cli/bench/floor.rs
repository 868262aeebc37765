//! The floor: a server that does nothing but write(2) a prepared frame to each of its sockets, as often as it is told.
//!
//! Two styles. A *loop* writes to one socket after the other: what the system call costs, and with a certificate what
//! rustls costs, too. *Tasks* have one tokio task a connection that waits for the next frame: what that way to organise
//! it costs at the least.

use std::{
    collections::VecDeque,
    io::{BufRead, ErrorKind, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use rustls::{ServerConfig, ServerConnection};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{MARK, now_micros};

/// Frames that a task may be late by. Beyond that it misses some: this server is not asked to be correct, only to be told
/// apart from one that writes less.
const KEPT: usize = 64;

/// How the frames get to the sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Style {
    /// One thread, one socket after the other.
    Loop,
    /// One task a connection.
    Tasks,
}

/// Write this many frames of this size, in one write, to each socket.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Tick {
    pub(super) frames: u64,
    pub(super) bytes: usize,
}

/// Runs until stdin ends. First says its address. Tasks know no TLS.
pub(super) fn run(style: Style, tls: Option<Arc<ServerConfig>>) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", serde_json::to_string(&listener.local_addr()?)?)?;
    stdout.flush()?;
    match style {
        Style::Loop => run_loop(listener, tls),
        Style::Tasks => run_tasks(listener),
    }
}

fn ticks() -> impl Iterator<Item = Result<Tick>> {
    std::io::stdin().lock().lines().map(|line| Ok(serde_json::from_str(&line?)?))
}

/// A client of the loop.
struct Socket {
    stream: TcpStream,
    session: Option<ServerConnection>,
}

impl Socket {
    /// The next client, asked and answered.
    fn accept(listener: &TcpListener, tls: Option<&Arc<ServerConfig>>) -> Result<Socket> {
        let (mut stream, _) = listener.accept()?;
        let mut session = tls.map(|tls| ServerConnection::new(tls.clone())).transpose()?;
        match &mut session {
            Some(session) => answer(&mut rustls::Stream::new(session, &mut stream))?,
            None => answer(&mut stream)?,
        }
        unblock(&stream)?;
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
    let all = sockets.clone();
    std::thread::spawn(move || {
        while let Ok(socket) = Socket::accept(&listener, tls.as_ref()) {
            all.lock().unwrap_or_else(PoisonError::into_inner).push(socket);
        }
    });
    for tick in ticks() {
        let frames = frames(tick?);
        for socket in sockets.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            match socket.write(&frames) {
                // Gone, or its reader is behind: this server is not asked to be correct.
                Ok(()) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::BrokenPipe) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                Err(error) => return Err(error).context("the floor could not write"),
            }
        }
    }
    Ok(())
}

/// The last frames of the tasks' server, and the number of the one that comes next.
#[derive(Debug, Default)]
struct Recent {
    next: u64,
    frames: VecDeque<Bytes>,
}

impl Recent {
    fn push(&mut self, frames: Bytes) {
        self.frames.truncate(KEPT - 1);
        self.frames.push_front(frames);
        self.next += 1;
    }

    /// What follows the first `told`, which were told already.
    fn after(&self, told: u64) -> Option<Bytes> {
        let back = self.next.checked_sub(told + 1)?;
        self.frames.get(usize::try_from(back).unwrap_or(usize::MAX).min(KEPT - 1)).cloned()
    }
}

fn run_tasks(listener: TcpListener) -> Result<()> {
    let runtime = super::super::runtime()?;
    let (send, receive) = watch::channel(Recent::default());
    let handle = runtime.handle().clone();
    std::thread::spawn(move || {
        while let Ok(stream) = accept(&listener) {
            let mut receive = receive.clone();
            let _inside = handle.enter();
            let Ok(stream) = tokio::net::TcpStream::from_std(stream) else { continue };
            let mut told = receive.borrow_and_update().next;
            handle.spawn(async move {
                while receive.changed().await.is_ok() {
                    // A task that was late has several to write.
                    loop {
                        let Some(frames) = receive.borrow_and_update().after(told) else { break };
                        told += 1;
                        if stream.writable().await.is_err() || stream.try_write(&frames).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    for tick in ticks() {
        let frames = frames(tick?);
        send.send_modify(|recent| recent.push(frames));
    }
    Ok(())
}

/// A connection whose request has been read and answered.
fn accept(listener: &TcpListener) -> std::io::Result<TcpStream> {
    let (mut stream, _) = listener.accept()?;
    answer(&mut stream)?;
    unblock(&stream)?;
    Ok(stream)
}

/// Any request is answered the same: clients look for frames only.
fn answer(stream: &mut (impl Read + Write)) -> std::io::Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? > 0 {
        head.push(byte[0]);
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")?;
    stream.flush()
}

fn unblock(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)
}

fn frames(Tick { frames, bytes }: Tick) -> Bytes {
    let mut out = Vec::with_capacity(bytes * frames as usize);
    for _ in 0..frames {
        let end = out.len() + bytes;
        write!(out, "{{{MARK}{}\",\"rest\":\"", now_micros()).unwrap_or_default();
        out.resize(end.max(out.len() + 3), b'x');
        let at = out.len() - 3;
        out[at..].copy_from_slice(b"\"}\n");
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_client_receives_all_retained_frames() {
        let mut recent = Recent::default();
        assert_eq!(recent.after(0), None);
        for number in 0..3u8 {
            recent.push(Bytes::copy_from_slice(&[number]));
        }
        let told: Vec<_> = (0..4).map(|told| recent.after(told).map(|frames| frames[0])).collect();
        assert_eq!(told, [Some(0), Some(1), Some(2), None]);
        (0..KEPT).for_each(|_| recent.push(Bytes::from_static(&[9])));
        assert_eq!((recent.frames.len(), recent.after(0).unwrap()[0]), (KEPT, 9));
    }
}
