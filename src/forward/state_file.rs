//! The state file: for each receiver the cursor up to which it has accepted everything.
//!
//! Guarantees: the file is replaced as a whole, so that a process that is killed leaves the old or the new content. One
//! process at a time uses it.

use std::{
    collections::{BTreeMap, btree_map},
    fs::{File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, task::spawn_blocking, time::sleep};

use super::receiver::Receiver;

/// The version of the format.
const VERSION: u32 = 1;
/// The shortest time between two writes.
const WRITE_INTERVAL: Duration = Duration::from_millis(200);
/// Bytes of a file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    version: u32,
    /// By the URL of the receiver without its query.
    receivers: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// None before the first cursor of the stream, and always if the stream has none.
    cursor: Option<String>,
}

/// The state of all receivers, in memory and, with a path, in a file.
#[derive(Clone, Debug)]
pub struct StateFile(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: Option<PathBuf>,
    content: Mutex<Content>,
    changed: Notify,
    /// One write at a time: they share the name of the new file.
    writing: Mutex<()>,
    /// Held while the process runs.
    _lock: Option<File>,
}

impl StateFile {
    /// Reads the state. Without a path it is empty and never written. A file that does not exist is an empty state.
    ///
    /// # Errors
    /// The file cannot be read or locked, or is no state file. It is never replaced then.
    pub fn open(path: Option<&Path>) -> Result<StateFile, String> {
        let Some(path) = path else { return Ok(StateFile::new(None, Content::default(), None)) };
        let failed = |reason: String| format!("{}: {reason}", path.display());
        // A link would be replaced by the file. All names of a file have one lock.
        let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let lock = lock(path).map_err(failed)?;
        let content = match read(path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Content::default(),
            Err(error) => return Err(failed(format!("cannot read the state: {error}"))),
        };
        let state = StateFile::new(Some(path.to_owned()), content, Some(lock));
        // A folder that does not exist or cannot be written is reported at start.
        state.write().map_err(|error| failed(format!("cannot write the state: {error}")))?;
        Ok(state)
    }

    fn new(path: Option<PathBuf>, content: Content, lock: Option<File>) -> StateFile {
        let content = Mutex::new(Content { version: VERSION, ..content });
        StateFile(Arc::new(Shared { path, content, changed: Notify::new(), writing: Mutex::new(()), _lock: lock }))
    }

    /// Returns the cursor of a receiver.
    #[must_use]
    pub fn cursor(&self, receiver: &Receiver) -> Option<String> {
        self.content().receivers.get(&receiver.name())?.cursor.clone()
    }

    /// Returns whether a stream for this receiver was open before.
    pub(super) fn is_started(&self, receiver: &Receiver) -> bool {
        self.content().receivers.contains_key(&receiver.name())
    }

    /// Records that a stream for this receiver is open.
    pub(super) fn set_started(&self, receiver: &Receiver) {
        let mut content = self.content();
        if let btree_map::Entry::Vacant(vacant) = content.receivers.entry(receiver.name()) {
            vacant.insert(Entry::default());
            self.0.changed.notify_one();
        }
    }

    /// Records that a receiver has accepted everything up to `cursor`.
    pub(super) fn set_cursor(&self, receiver: &Receiver, cursor: String) {
        self.content().receivers.insert(receiver.name(), Entry { cursor: Some(cursor) });
        self.0.changed.notify_one();
    }

    /// Writes changes until it is dropped, at most one in `WRITE_INTERVAL`. `report` gets errors, each change of them once.
    pub async fn run(&self, report: impl Fn(&str)) -> std::convert::Infallible {
        let mut reported = None;
        loop {
            self.0.changed.notified().await;
            let state = self.clone();
            let written = spawn_blocking(move || state.write().map_err(|error| error.to_string())).await;
            let error = written.unwrap_or_else(|error| Err(error.to_string())).err();
            if let Some(error) = error.as_ref().filter(|error| reported.as_ref() != Some(*error)) {
                report(&format!("cannot write the state file, so that a restart delivers again: {error}"));
            }
            if error.is_some() {
                // Tried again, also without a further change.
                self.0.changed.notify_one();
            }
            reported = error;
            sleep(WRITE_INTERVAL).await;
        }
    }

    /// Writes the state now.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self) -> io::Result<()> {
        let Some(path) = &self.0.path else { return Ok(()) };
        let _writing = self.0.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let text = serde_json::to_vec_pretty(&*self.content())?;
        let new = sibling(path, ".new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Locks a file beside the state, which is replaced.
fn lock(path: &Path) -> Result<File, String> {
    let path = sibling(path, ".lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(|error| format!("cannot create {}: {error}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err("another process uses this state file".to_owned()),
        Err(TryLockError::Error(error)) => Err(format!("cannot lock {}: {error}", path.display())),
    }
}

fn read(path: &Path) -> io::Result<Content> {
    use std::io::Read as _;
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("not a state file (more than {} MiB)", MAX_FILE_BYTES >> 20)));
    }
    let content: Content = serde_json::from_str(&text)
        .map_err(|error| io::Error::other(format!("not a state file ({error}); remove it to start without a state")))?;
    if content.version != VERSION {
        return Err(io::Error::other(format!("version {} is not supported; accepted: {VERSION}", content.version)));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_survive_a_restart_and_the_url_is_not_stored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let [one, two] = ["http://h/a?key=secret", "http://h/b"].map(|url| Receiver::parse(url).unwrap());
        let state = StateFile::open(Some(&path)).unwrap();
        assert_eq!(state.cursor(&one), None);
        state.set_started(&one);
        assert!(state.is_started(&one) && !state.is_started(&two) && state.cursor(&one).is_none());
        state.set_cursor(&one, "c1".to_owned());
        state.write().unwrap();
        let link = folder.path().join("link.json");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(StateFile::open(Some(&link)).unwrap_err().contains("another process"));
        assert!(StateFile::open(Some(&path)).unwrap_err().contains("another process uses this state file"));
        drop(state);
        let state = StateFile::open(Some(&path)).unwrap();
        let rotated = Receiver::parse("http://h/a?key=other").unwrap();
        assert_eq!((state.cursor(&rotated).as_deref(), state.cursor(&two)), (Some("c1"), None));
        assert!(!std::fs::read_to_string(&path).unwrap().contains("secret"));
    }

    #[test]
    fn a_file_that_is_no_state_is_reported_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let max = usize::try_from(MAX_FILE_BYTES).unwrap();
        let long = r#"{"version":1,"receivers":{}}"#.to_owned() + &" ".repeat(max);
        for (text, words) in [
            ("{", "not a state file"),
            (r#"{"version":2,"receivers":{}}"#, "version 2 is not supported"),
            (&long, "not a state file (more than 1 MiB)"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = StateFile::open(Some(&path)).unwrap_err();
            assert!(error.contains(words), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert!(
            StateFile::open(Some(&folder.path().join("missing/state.json"))).unwrap_err().contains("cannot create")
        );
    }
}
