//! The keys file: read at the start, and looked at again for as long as the bridge lives.
//!
//! Always: a look may find a file that somebody is still writing, and a part of a YAML file mostly is a YAML file, whose
//! last key sees more than it should. So a change counts at the second look that finds the same. What is no regular
//! file, such as a pipe, is read once and never again.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{
    keys::{ApiKeys, KeysFileError},
    secret::Fingerprint,
};

/// Bytes of a keys file: [`super::keys::MAX_KEYS`] keys with room.
const MAX_BYTES: u64 = 1 << 20;

/// A keys file, and what was found in it.
#[derive(Debug)]
pub(super) struct KeysFile {
    path: PathBuf,
    /// Whether it can be looked at again.
    is_regular: bool,
    changes: ChangeDetector,
}

/// What was found, by its fingerprint: what stands in the file is for nobody to see.
#[derive(Debug)]
struct ChangeDetector {
    last_seen: Fingerprint,
    /// What was last taken, or found to be of no use.
    last_applied: Fingerprint,
}

impl KeysFile {
    /// Reads it for the first time.
    ///
    /// # Errors
    /// See [`KeysFileError`].
    pub(super) fn open(path: &Path) -> Result<(KeysFile, ApiKeys), KeysFileError> {
        let (is_regular, text) = read_initial(path)?;
        let keys = ApiKeys::parse(&text)?;
        let fingerprint = Fingerprint::of(text.as_bytes());
        let changes = ChangeDetector { last_seen: fingerprint, last_applied: fingerprint };
        Ok((KeysFile { path: path.to_owned(), is_regular, changes }, keys))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Looks at it again; `None`: there is nothing new that counts. What is of no use is told once.
    pub(super) fn poll_change(&mut self) -> Option<Result<ApiKeys, KeysFileError>> {
        if !self.is_regular {
            return None;
        }
        // A small file, mostly in memory: not worth a thread.
        let read = reread(&self.path);
        let text = read.as_ref().map_or_else(ToString::to_string, Clone::clone);
        self.changes
            .confirm_change(Fingerprint::of(text.as_bytes()))
            .then(|| read.and_then(|text| ApiKeys::parse(&text)))
    }
}

impl ChangeDetector {
    /// Whether what a look has found is news that counts.
    fn confirm_change(&mut self, fingerprint: Fingerprint) -> bool {
        let counts = fingerprint == self.last_seen && fingerprint != self.last_applied;
        self.last_seen = fingerprint;
        if counts {
            self.last_applied = fingerprint;
        }
        counts
    }
}

fn read_initial(path: &Path) -> Result<(bool, String), KeysFileError> {
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?.is_file(), file)));
    let (is_regular, file) = opened.map_err(unreadable)?;
    Ok((is_regular, text(file)?))
}

fn reread(path: &Path) -> Result<String, KeysFileError> {
    // Opening a pipe would wait for somebody who writes.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(KeysFileError::NotRegular);
    }
    File::open(path).map_err(unreadable).and_then(text)
}

fn text(file: File) -> Result<String, KeysFileError> {
    let mut text = String::new();
    let bytes = file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
    if bytes as u64 > MAX_BYTES { Err(KeysFileError::TooLong(MAX_BYTES)) } else { Ok(text) }
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err hands it over")]
fn unreadable(error: io::Error) -> KeysFileError {
    KeysFileError::Unreadable(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const ALICE: &str = "keys:\n- name: alice\n  sha256: \
                         ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n  tenantId: alice\n";
    const NONE: &str = "keys: []\n";

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        file
    }

    /// What three looks at one text come to.
    fn polls(keys: &mut KeysFile, path: &Path, text: &str) -> [Option<Result<usize, KeysFileError>>; 3] {
        fs::write(path, text).unwrap();
        [(); 3].map(|()| keys.poll_change().map(|parsed| parsed.map(|keys| keys.len())))
    }

    #[test]
    fn change_is_applied_once_after_two_equal_polls() {
        let file = file(ALICE);
        let (mut keys, parsed) = KeysFile::open(file.path()).unwrap();
        assert_eq!(parsed.len(), 1);
        assert_eq!(polls(&mut keys, file.path(), ALICE), [None, None, None]);
        assert_eq!(polls(&mut keys, file.path(), NONE), [None, Some(Ok(0)), None]);
        assert_eq!(polls(&mut keys, file.path(), ALICE), [None, Some(Ok(1)), None]);
    }

    /// Whoever writes in place is met half way: at every byte, and at every look.
    #[test]
    fn partially_written_file_is_not_applied() {
        let file = file(NONE);
        let (mut keys, _) = KeysFile::open(file.path()).unwrap();
        for written in 0..ALICE.len() {
            fs::write(file.path(), &ALICE[..written]).unwrap();
            assert_eq!(keys.poll_change().map(|parsed| parsed.is_ok()), None, "{written}");
        }
        assert_eq!(polls(&mut keys, file.path(), ALICE), [None, Some(Ok(1)), None]);
    }

    #[test]
    fn invalid_version_is_reported_once_and_the_previous_one_can_return() {
        let file = file(ALICE);
        let (mut keys, _) = KeysFile::open(file.path()).unwrap();
        for bad in ["", "# keys\n", "keys:\n", "null\n", "{}"] {
            assert_eq!(polls(&mut keys, file.path(), bad), [None, Some(Err(KeysFileError::NoList)), None], "{bad:?}");
            assert_eq!(polls(&mut keys, file.path(), ALICE), [None, Some(Ok(1)), None]);
        }
        let long = format!("{ALICE}#{}", "x".repeat(1 << 20));
        assert_eq!(polls(&mut keys, file.path(), &long), [None, Some(Err(KeysFileError::TooLong(MAX_BYTES))), None]);
        let path = file.path().to_owned();
        drop(file);
        let gone = [(); 3].map(|()| keys.poll_change());
        assert!(matches!(gone, [None, Some(Err(KeysFileError::Unreadable(_))), None]), "{gone:?}");
        fs::create_dir(&path).unwrap();
        let directory = [(); 3].map(|()| keys.poll_change());
        fs::remove_dir(&path).unwrap();
        assert_eq!(directory, [None, Some(Err(KeysFileError::NotRegular)), None]);
    }

    #[test]
    fn open_fails_on_an_unusable_file() {
        for bad in ["", "# keys\n", "keys:\n", "null\n", "{}"] {
            assert_eq!(KeysFile::open(file(bad).path()).err(), Some(KeysFileError::NoList), "{bad:?}");
        }
        assert!(KeysFile::open(file(NONE).path()).unwrap().1.is_empty());
        for path in ["/nowhere/keys.yaml", "/"] {
            assert!(matches!(KeysFile::open(Path::new(path)), Err(KeysFileError::Unreadable(_))), "{path}");
        }
    }

    /// As of a shell's `<(command)`: it is empty when read again.
    #[test]
    fn pipe_is_read_once_and_its_keys_remain_valid() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(ALICE.as_bytes()).unwrap();
        drop(writer);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
        let (mut keys, parsed) = KeysFile::open(Path::new(&path)).unwrap();
        assert_eq!((parsed.len(), keys.poll_change(), keys.poll_change()), (1, None, None));
    }

    #[test]
    fn debug_output_hides_file_content() {
        let (keys, _) = KeysFile::open(file(ALICE).path()).unwrap();
        assert!(!format!("{keys:?}").contains("alice"), "{keys:?}");
    }
}
