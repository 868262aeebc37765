//! A command under a pseudo terminal, and what its terminal shows.
//!
//! Owns the process and the terminal. The process is killed when the value is dropped. The emulator knows the sequences
//! that `top` writes; every character has the width 1.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::{
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use super::{
    bridge_process::command,
    http_client::{TEST_TIMEOUT, poll_until},
};

/// A command that runs in a terminal.
#[derive(Debug)]
pub(crate) struct Pty {
    child: Child,
    controller: File,
    /// Kept open, so that the modes can be read after the process has ended.
    terminal: OwnedFd,
    screen: Arc<Mutex<Screen>>,
}

impl Pty {
    /// Starts the binary with these arguments and variables in a terminal of this size. It is a session of its own.
    pub(crate) fn start(args: &[&str], variables: &[(&str, &str)], size: (u16, u16)) -> Pty {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let terminal = ioctl_tiocgptpeer(&controller, flags).unwrap();
        let plain = command(args);
        // Of util-linux, which every Debian has. It replaces itself by the binary.
        let mut session = Command::new("setsid");
        session.arg("--ctty").arg(plain.as_std().get_program()).args(args);
        for (name, _) in plain.as_std().get_envs() {
            session.env_remove(name);
        }
        session.env("TERM", "xterm-256color").env_remove("NO_COLOR").envs(variables.iter().copied());
        let stream = || Stdio::from(terminal.try_clone().unwrap());
        session.stdin(stream()).stdout(stream()).stderr(stream()).kill_on_drop(true);
        let controller = File::from(controller);
        let screen = Arc::new(Mutex::new(Screen::new(size)));
        let pty = Pty { child: session.spawn().unwrap(), controller, terminal, screen };
        pty.set_size(size);
        let (mut output, screen) = (pty.controller.try_clone().unwrap(), pty.screen.clone());
        // It ends when the terminal is closed.
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = output.read(&mut bytes) {
                screen.lock().unwrap().write(&bytes[..read]);
            }
        });
        pty
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Types this text.
    pub(crate) fn press(&self, keys: &str) {
        (&self.controller).write_all(keys.as_bytes()).unwrap();
    }

    /// Changes the size of the terminal. The system sends SIGWINCH.
    pub(crate) fn resize(&self, size: (u16, u16)) {
        self.screen.lock().unwrap().resize(size);
        self.set_size(size);
    }

    fn set_size(&self, (width, height): (u16, u16)) {
        let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.controller, size).unwrap();
    }

    /// Sends a signal by its name without `SIG`.
    pub(crate) async fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status().await.unwrap();
        assert!(sent.success());
    }

    /// Returns what the terminal shows.
    pub(crate) fn text(&self) -> String {
        self.screen.lock().unwrap().text()
    }

    /// Waits until the terminal shows this text, and returns everything that it shows.
    pub(crate) async fn wait_for(&self, text: &str) -> String {
        let shown = timeout(TEST_TIMEOUT, async {
            loop {
                let shown = self.text();
                if shown.contains(text) {
                    return shown;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        shown.await.unwrap_or_else(|_| panic!("the terminal does not show {text:?}:\n{}", self.text()))
    }

    /// Waits until the terminal does not show this text any more.
    pub(crate) async fn wait_without(&self, text: &str) {
        poll_until(|| (!self.text().contains(text)).then_some(())).await;
    }

    /// Waits until the program has entered or left the alternate screen.
    pub(crate) async fn wait_for_alternate(&self, is_alternate: bool) {
        poll_until(|| (self.screen.lock().unwrap().is_alternate == is_alternate).then_some(())).await;
    }

    /// Returns the frames and the bytes that were written so far. Each frame hides the cursor.
    pub(crate) fn written(&self) -> (usize, usize) {
        let screen = self.screen.lock().unwrap();
        (screen.frames, screen.bytes)
    }

    /// Returns whether a sequence has selected a color.
    pub(crate) fn is_colored(&self) -> bool {
        self.screen.lock().unwrap().is_colored
    }

    /// Waits until the process ends.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        timeout(TEST_TIMEOUT, self.child.wait())
            .await
            .unwrap_or_else(|_| panic!("the process still runs:\n{}", self.text()))
            .unwrap()
    }

    /// Waits until the terminal is as a shell needs it: the main screen, a visible cursor, echo and lines.
    pub(crate) async fn restored(&self) {
        poll_until(|| {
            let screen = self.screen.lock().unwrap();
            let modes = tcgetattr(&self.terminal).unwrap().local_modes;
            let is_restored = !screen.is_alternate
                && screen.is_cursor_visible
                && modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
            is_restored.then_some(())
        })
        .await;
    }
}

/// The emulator.
#[derive(Debug)]
struct Screen {
    width: usize,
    lines: Vec<Vec<char>>,
    main: Vec<Vec<char>>,
    x: usize,
    y: usize,
    is_alternate: bool,
    is_cursor_visible: bool,
    is_colored: bool,
    frames: usize,
    bytes: usize,
    /// The start of a character or of a sequence that is not complete.
    rest: Vec<u8>,
}

impl Screen {
    fn new((width, height): (u16, u16)) -> Screen {
        let (width, height) = (usize::from(width), usize::from(height));
        let lines = vec![vec![' '; width]; height];
        Screen {
            width,
            main: lines.clone(),
            lines,
            x: 0,
            y: 0,
            is_alternate: false,
            is_cursor_visible: true,
            is_colored: false,
            frames: 0,
            bytes: 0,
            rest: Vec::new(),
        }
    }

    fn resize(&mut self, (width, height): (u16, u16)) {
        self.width = usize::from(width);
        for lines in [&mut self.lines, &mut self.main] {
            lines.resize(usize::from(height), Vec::new());
            lines.iter_mut().for_each(|line| line.resize(usize::from(width), ' '));
        }
    }

    fn text(&self) -> String {
        self.lines.iter().map(|line| line.iter().collect::<String>().trim_end().to_owned() + "\n").collect()
    }

    fn write(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        self.rest.extend_from_slice(bytes);
        let all = std::mem::take(&mut self.rest);
        let valid = match std::str::from_utf8(&all) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&all[..error.valid_up_to()]).unwrap(),
        };
        let mut at = 0;
        while let Some(c) = valid[at..].chars().next() {
            if c != '\x1b' {
                self.put(c);
                at += c.len_utf8();
                continue;
            }
            let sequence = &valid[at..];
            let Some(length) = length_of(sequence) else { break };
            self.control(&sequence[1..length]);
            at += length;
        }
        self.rest = all[at..].to_vec();
    }

    fn put(&mut self, c: char) {
        match c {
            '\r' => self.x = 0,
            '\n' => self.new_line(),
            c if c.is_control() => {}
            c => {
                if self.x >= self.width {
                    self.x = 0;
                    self.new_line();
                }
                if let Some(cell) = self.lines.get_mut(self.y).and_then(|line| line.get_mut(self.x)) {
                    *cell = c;
                }
                self.x += 1;
            }
        }
    }

    fn new_line(&mut self) {
        if self.y + 1 < self.lines.len() {
            self.y += 1;
        } else {
            self.lines.remove(0);
            self.lines.push(vec![' '; self.width]);
        }
    }

    fn control(&mut self, sequence: &str) {
        match sequence {
            "[?1049h" => {
                self.is_alternate = true;
                self.main = self.lines.clone();
                self.clear();
            }
            "[?1049l" => {
                self.is_alternate = false;
                self.lines = self.main.clone();
            }
            "[?25h" => self.is_cursor_visible = true,
            "[?25l" => {
                self.is_cursor_visible = false;
                self.frames += 1;
            }
            "[2J" => self.clear(),
            _ => {}
        }
        let Some((parameters, last)) =
            sequence.strip_prefix('[').and_then(|rest| rest.split_at_checked(rest.len() - 1))
        else {
            return;
        };
        let numbers: Vec<usize> = parameters.split(';').map(|number| number.parse().unwrap_or(0)).collect();
        match last {
            "H" => {
                self.y = numbers[0].max(1) - 1;
                self.x = numbers.get(1).copied().unwrap_or(1).max(1) - 1;
            }
            "m" => self.is_colored |= numbers.iter().any(|n| (30..=38).contains(n) || (90..=97).contains(n)),
            _ => {}
        }
    }

    fn clear(&mut self) {
        self.lines.iter_mut().for_each(|line| line.fill(' '));
    }
}

/// Returns the length of the sequence at the start of a text, or nothing if the sequence is not complete.
fn length_of(text: &str) -> Option<usize> {
    match text.as_bytes().get(1)? {
        b'[' => text[2..].find(|c: char| ('@'..='~').contains(&c)).map(|at| at + 3),
        _ => Some(2),
    }
}
