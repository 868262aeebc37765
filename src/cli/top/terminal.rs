//! The terminal: the alternate screen, raw mode, and the keys.
//!
//! Guarantees: the terminal is restored when [`Screen`] is dropped, and before the message of a panic.

use std::{
    io::{self, BufWriter, IsTerminal as _, Stdout, Write as _},
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
};

use ratatui::{
    Frame, Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor::{Hide, Show},
        event::{Event, KeyEvent, read},
        execute,
        terminal::{Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
    },
};
use tokio::sync::mpsc;

/// Keys that wait to be handled. Further ones wait in the terminal.
pub(super) const MAX_INPUTS: usize = 64;
/// Bytes that are collected for one write.
pub(super) const WRITE_BUFFER: usize = 64 << 10;

/// Whether the terminal has to be restored.
static IS_ENTERED: AtomicBool = AtomicBool::new(false);
static PANIC_HOOK: Once = Once::new();

/// Returns whether a screen can be shown.
pub(super) fn is_available() -> bool {
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    io::stdin().is_terminal() && io::stdout().is_terminal() && !is_dumb
}

/// The terminal while it shows the screen.
#[derive(Debug)]
pub(super) struct Screen(Terminal<CrosstermBackend<BufWriter<Stdout>>>);

impl Screen {
    /// Takes the terminal over.
    pub(super) fn enter() -> io::Result<Screen> {
        PANIC_HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                leave();
                before(info);
            }));
        });
        IS_ENTERED.store(true, Ordering::SeqCst);
        let entered = enable_raw_mode()
            .and_then(|()| execute!(io::stdout(), EnterAlternateScreen, Clear(ClearType::All), Hide))
            .and_then(|()| {
                let writer = BufWriter::with_capacity(WRITE_BUFFER, io::stdout());
                Terminal::new(CrosstermBackend::new(writer))
            });
        if entered.is_err() {
            leave();
        }
        entered.map(Screen)
    }

    /// Draws a frame. Only what has changed is written.
    pub(super) fn draw(&mut self, render: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.0.draw(render).map(|_| ())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave();
    }
}

/// Restores the terminal, once. Nothing can be done when the terminal is gone.
fn leave() {
    if IS_ENTERED.swap(false, Ordering::SeqCst) {
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
        let _ = io::stdout().flush();
    }
}

/// What comes from the terminal.
#[derive(Clone, Copy, Debug)]
pub(super) enum Input {
    Key(KeyEvent),
    /// The size has changed, or something else that needs a redraw.
    Other,
}

/// Starts a thread that reads the terminal until the process ends. The queue is closed when the terminal is gone.
pub(super) fn inputs() -> io::Result<mpsc::Receiver<Input>> {
    let (sender, receiver) = mpsc::channel(MAX_INPUTS);
    std::thread::Builder::new().name("terminal".to_owned()).spawn(move || {
        while let Ok(event) = read() {
            let input = match event {
                Event::Key(key) => Input::Key(key),
                Event::FocusGained | Event::FocusLost | Event::Mouse(_) | Event::Paste(_) | Event::Resize(..) => {
                    Input::Other
                }
            };
            if sender.blocking_send(input).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}
