//! The keys file: the first read at start, and the detection of changes until shutdown.
//!
//! Owns: the path of the file and the fingerprints of the contents that were read last and applied last.
//!
//! Guarantees:
//! - A change is reported only when two consecutive reads find the same content. A single read may find a file that is
//!   not complete. A part of a YAML file often is valid YAML, and its last key may then permit more than intended.
//! - Each invalid version is reported once.
//! - A file that is not regular, such as a pipe, is read once, at start.
//!
//! Must not import: any sibling except `keys` and `secret`.
//!
//! Specification: docs/protocol.md#access, "Keys file".

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    keys::{ApiKeys, KeysFileError},
    secret::Fingerprint,
};

/// Maximum size of a keys file in bytes: sufficient for `MAX_KEYS` keys with long names.
pub const MAX_KEYS_FILE_BYTES: u64 = 1 << 20;

/// A keys file and the state of its change detection.
#[derive(Debug)]
pub(super) struct KeysFile {
    path: PathBuf,
    /// Whether the file can be read more than once.
    is_regular: bool,
    /// Reads the file again. Tests replace it with a function that does not return.
    read: fn(&Path) -> Result<String, KeysFileError>,
    changes: Mutex<ChangeDetector>,
}

/// Detects changes by fingerprint, so that `Debug` output contains nothing of the file.
#[derive(Debug)]
struct ChangeDetector {
    /// The content, or the read error, of the last read.
    last_seen: Fingerprint,
    /// The content, or the read error, that was reported last.
    last_applied: Fingerprint,
}

impl KeysFile {
    /// Reads and parses the file for the first time.
    ///
    /// # Errors
    /// See [`KeysFileError`].
    pub(super) fn open(path: &Path) -> Result<(KeysFile, ApiKeys), KeysFileError> {
        let (is_regular, text) = read_initial(path)?;
        let keys = ApiKeys::parse(&text)?;
        let fingerprint = Fingerprint::of(text.as_bytes());
        let changes = Mutex::new(ChangeDetector { last_seen: fingerprint, last_applied: fingerprint });
        Ok((KeysFile { path: path.to_owned(), is_regular, read: reread, changes }, keys))
    }

    /// Returns the path of the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file again, or returns `None` if it can be read only once. It blocks until the file system answers.
    pub(super) fn read(&self) -> Option<Result<String, KeysFileError>> {
        self.is_regular.then(|| (self.read)(&self.path))
    }

    /// Evaluates the result of a read. Returns the new keys, or why they are rejected, at the second consecutive read that
    /// finds the same new content; otherwise `None`.
    pub(super) fn confirm_change(
        &self,
        content: Result<String, KeysFileError>,
    ) -> Option<Result<ApiKeys, KeysFileError>> {
        let text = content.as_ref().map_or_else(ToString::to_string, Clone::clone);
        let is_confirmed = self.lock().confirm(Fingerprint::of(text.as_bytes()));
        is_confirmed.then(|| content.and_then(|text| ApiKeys::parse(&text)))
    }

    /// Replaces the function that reads the file.
    #[cfg(test)]
    pub(super) fn with_read(self, read: fn(&Path) -> Result<String, KeysFileError>) -> KeysFile {
        KeysFile { read, ..self }
    }

    fn lock(&self) -> MutexGuard<'_, ChangeDetector> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ChangeDetector {
    /// Records the fingerprint of a read. Returns whether it is the second consecutive read of a content that has not
    /// been reported yet.
    fn confirm(&mut self, fingerprint: Fingerprint) -> bool {
        let confirmed = fingerprint == self.last_seen && fingerprint != self.last_applied;
        self.last_seen = fingerprint;
        if confirmed {
            self.last_applied = fingerprint;
        }
        confirmed
    }
}

fn read_initial(path: &Path) -> Result<(bool, String), KeysFileError> {
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?.is_file(), file)));
    let (is_regular, file) = opened.map_err(unreadable)?;
    Ok((is_regular, read_text(file)?))
}

/// Reads a file that was regular at start.
///
/// # Errors
/// See [`KeysFileError`].
pub(super) fn reread(path: &Path) -> Result<String, KeysFileError> {
    // Opening a named pipe would block until another process opens it for writing.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(KeysFileError::NotRegular);
    }
    File::open(path).map_err(unreadable).and_then(read_text)
}

fn read_text(file: File) -> Result<String, KeysFileError> {
    let mut text = String::new();
    let bytes = file.take(MAX_KEYS_FILE_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
    if bytes as u64 > MAX_KEYS_FILE_BYTES { Err(KeysFileError::TooLong(MAX_KEYS_FILE_BYTES)) } else { Ok(text) }
}

#[expect(clippy::needless_pass_by_value, reason = "map_err passes the error by value")]
fn unreadable(error: io::Error) -> KeysFileError {
    KeysFileError::Unreadable(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const KEY_OF_ALICE: &str = "keys:\n- name: alice\n  sha256: \
                         ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n  tenantId: alice\n";
    const NO_KEYS: &str = "keys: []\n";

    impl KeysFile {
        fn poll_change(&self) -> Option<Result<ApiKeys, KeysFileError>> {
            self.read().and_then(|content| self.confirm_change(content))
        }
    }

    fn temporary_file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        file
    }

    /// Writes `text` and returns the results of three polls.
    fn write_and_poll(keys: &KeysFile, path: &Path, text: &str) -> [Option<Result<usize, KeysFileError>>; 3] {
        fs::write(path, text).unwrap();
        [(); 3].map(|()| keys.poll_change().map(|parsed| parsed.map(|keys| keys.len())))
    }

    #[test]
    fn change_is_applied_once_after_two_equal_polls() {
        let file = temporary_file(KEY_OF_ALICE);
        let (keys, parsed) = KeysFile::open(file.path()).unwrap();
        assert_eq!(parsed.len(), 1);
        assert_eq!(write_and_poll(&keys, file.path(), KEY_OF_ALICE), [None, None, None]);
        assert_eq!(write_and_poll(&keys, file.path(), NO_KEYS), [None, Some(Ok(0)), None]);
        assert_eq!(write_and_poll(&keys, file.path(), KEY_OF_ALICE), [None, Some(Ok(1)), None]);
    }

    /// Another process writes the file in place, byte by byte, and a poll follows each byte.
    #[test]
    fn partially_written_file_is_not_applied() {
        let file = temporary_file(NO_KEYS);
        let (keys, _) = KeysFile::open(file.path()).unwrap();
        for written in 0..KEY_OF_ALICE.len() {
            fs::write(file.path(), &KEY_OF_ALICE[..written]).unwrap();
            let result = keys.poll_change().map(|parsed| parsed.is_ok());
            assert_eq!(result, None, "expected no change after {written} bytes");
        }
        assert_eq!(write_and_poll(&keys, file.path(), KEY_OF_ALICE), [None, Some(Ok(1)), None]);
    }

    #[test]
    fn invalid_version_is_reported_once_and_the_previous_one_can_return() {
        let file = temporary_file(KEY_OF_ALICE);
        let (keys, _) = KeysFile::open(file.path()).unwrap();
        for invalid in ["", "# keys\n", "keys:\n", "null\n", "{}"] {
            let results = write_and_poll(&keys, file.path(), invalid);
            assert_eq!(results, [None, Some(Err(KeysFileError::NoList)), None], "{invalid:?}");
            assert_eq!(write_and_poll(&keys, file.path(), KEY_OF_ALICE), [None, Some(Ok(1)), None]);
        }
        let too_long = format!("{KEY_OF_ALICE}#{}", "x".repeat(1 << 20));
        assert_eq!(
            write_and_poll(&keys, file.path(), &too_long),
            [None, Some(Err(KeysFileError::TooLong(MAX_KEYS_FILE_BYTES))), None]
        );
        let path = file.path().to_owned();
        drop(file);
        let removed = [(); 3].map(|()| keys.poll_change());
        assert!(
            matches!(removed, [None, Some(Err(KeysFileError::Unreadable(_))), None]),
            "expected one error for a removed file, found: {removed:?}"
        );
        fs::create_dir(&path).unwrap();
        let directory = [(); 3].map(|()| keys.poll_change());
        fs::remove_dir(&path).unwrap();
        assert_eq!(directory, [None, Some(Err(KeysFileError::NotRegular)), None]);
    }

    #[test]
    fn open_fails_on_an_unusable_file() {
        for invalid in ["", "# keys\n", "keys:\n", "null\n", "{}"] {
            let error = KeysFile::open(temporary_file(invalid).path()).err();
            assert_eq!(error, Some(KeysFileError::NoList), "{invalid:?}");
        }
        assert!(KeysFile::open(temporary_file(NO_KEYS).path()).unwrap().1.is_empty());
        for path in ["/nowhere/keys.yaml", "/"] {
            assert!(matches!(KeysFile::open(Path::new(path)), Err(KeysFileError::Unreadable(_))), "{path}");
        }
    }

    /// A pipe, such as `<(command)` of a shell, is empty when it is read again.
    #[test]
    fn pipe_is_read_once_and_its_keys_remain_valid() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(KEY_OF_ALICE.as_bytes()).unwrap();
        drop(writer);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
        let (keys, parsed) = KeysFile::open(Path::new(&path)).unwrap();
        assert_eq!((parsed.len(), keys.poll_change(), keys.poll_change()), (1, None, None));
    }

    #[test]
    fn debug_output_hides_file_content() {
        let (keys, _) = KeysFile::open(temporary_file(KEY_OF_ALICE).path()).unwrap();
        assert!(!format!("{keys:?}").contains("alice"), "{keys:?}");
    }
}
