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
    keys::{Keys, Problem},
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
    looks: Looks,
}

/// What was found, by its fingerprint: what stands in the file is for nobody to see.
#[derive(Debug)]
struct Looks {
    last: Fingerprint,
    /// What was last taken, or found to be of no use.
    judged: Fingerprint,
}

impl KeysFile {
    /// Reads it for the first time.
    ///
    /// # Errors
    /// See [`Problem`].
    pub(super) fn open(path: &Path) -> Result<(KeysFile, Keys), Problem> {
        let (is_regular, text) = first(path)?;
        let keys = Keys::parse(&text)?;
        let found = Fingerprint::of(text.as_bytes());
        let looks = Looks { last: found, judged: found };
        Ok((KeysFile { path: path.to_owned(), is_regular, looks }, keys))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Looks at it again; `None`: there is nothing new that counts. What is of no use is told once.
    pub(super) fn look(&mut self) -> Option<Result<Keys, Problem>> {
        if !self.is_regular {
            return None;
        }
        // A small file, mostly in memory: not worth a thread.
        let read = again(&self.path);
        let text = read.as_ref().map_or_else(ToString::to_string, Clone::clone);
        self.looks.count(Fingerprint::of(text.as_bytes())).then(|| read.and_then(|text| Keys::parse(&text)))
    }
}

impl Looks {
    /// Whether what a look has found is news that counts.
    fn count(&mut self, found: Fingerprint) -> bool {
        let counts = found == self.last && found != self.judged;
        self.last = found;
        if counts {
            self.judged = found;
        }
        counts
    }
}

fn first(path: &Path) -> Result<(bool, String), Problem> {
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?.is_file(), file)));
    let (is_regular, file) = opened.map_err(unreadable)?;
    Ok((is_regular, text(file)?))
}

fn again(path: &Path) -> Result<String, Problem> {
    // Opening a pipe would wait for somebody who writes.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(Problem::NotRegular);
    }
    File::open(path).map_err(unreadable).and_then(text)
}

fn text(file: File) -> Result<String, Problem> {
    let mut text = String::new();
    let bytes = file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
    if bytes as u64 > MAX_BYTES { Err(Problem::TooLong(MAX_BYTES)) } else { Ok(text) }
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err hands it over")]
fn unreadable(error: io::Error) -> Problem {
    Problem::Unreadable(error.to_string())
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
    fn looks(keys: &mut KeysFile, path: &Path, text: &str) -> [Option<Result<usize, Problem>>; 3] {
        fs::write(path, text).unwrap();
        [(); 3].map(|()| keys.look().map(|found| found.map(|keys| keys.len())))
    }

    #[test]
    fn a_change_counts_at_the_second_look_that_finds_the_same_and_once() {
        let file = file(ALICE);
        let (mut keys, found) = KeysFile::open(file.path()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(looks(&mut keys, file.path(), ALICE), [None, None, None]);
        assert_eq!(looks(&mut keys, file.path(), NONE), [None, Some(Ok(0)), None]);
        assert_eq!(looks(&mut keys, file.path(), ALICE), [None, Some(Ok(1)), None]);
    }

    /// Whoever writes in place is met half way: at every byte, and at every look.
    #[test]
    fn nothing_of_a_file_that_is_being_written_counts_until_it_is_whole() {
        let file = file(NONE);
        let (mut keys, _) = KeysFile::open(file.path()).unwrap();
        for written in 0..ALICE.len() {
            fs::write(file.path(), &ALICE[..written]).unwrap();
            assert_eq!(keys.look().map(|found| found.is_ok()), None, "{written}");
        }
        assert_eq!(looks(&mut keys, file.path(), ALICE), [None, Some(Ok(1)), None]);
    }

    #[test]
    fn a_version_of_no_use_is_told_once_and_the_one_before_may_come_back() {
        let file = file(ALICE);
        let (mut keys, _) = KeysFile::open(file.path()).unwrap();
        for bad in ["", "# keys\n", "keys:\n", "null\n", "{}"] {
            assert_eq!(looks(&mut keys, file.path(), bad), [None, Some(Err(Problem::NoList)), None], "{bad:?}");
            assert_eq!(looks(&mut keys, file.path(), ALICE), [None, Some(Ok(1)), None]);
        }
        let long = format!("{ALICE}#{}", "x".repeat(1 << 20));
        assert_eq!(looks(&mut keys, file.path(), &long), [None, Some(Err(Problem::TooLong(MAX_BYTES))), None]);
        let path = file.path().to_owned();
        drop(file);
        let gone = [(); 3].map(|()| keys.look());
        assert!(matches!(gone, [None, Some(Err(Problem::Unreadable(_))), None]), "{gone:?}");
        fs::create_dir(&path).unwrap();
        let directory = [(); 3].map(|()| keys.look());
        fs::remove_dir(&path).unwrap();
        assert_eq!(directory, [None, Some(Err(Problem::NotRegular)), None]);
    }

    #[test]
    fn what_cannot_be_used_is_no_start() {
        for bad in ["", "# keys\n", "keys:\n", "null\n", "{}"] {
            assert_eq!(KeysFile::open(file(bad).path()).err(), Some(Problem::NoList), "{bad:?}");
        }
        assert!(KeysFile::open(file(NONE).path()).unwrap().1.is_empty());
        for path in ["/nowhere/keys.yaml", "/"] {
            assert!(matches!(KeysFile::open(Path::new(path)), Err(Problem::Unreadable(_))), "{path}");
        }
    }

    /// As of a shell's `<(command)`: it is empty when read again.
    #[test]
    fn a_pipe_is_read_once_and_its_keys_stay() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(ALICE.as_bytes()).unwrap();
        drop(writer);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
        let (mut keys, found) = KeysFile::open(Path::new(&path)).unwrap();
        assert_eq!((found.len(), keys.look(), keys.look()), (1, None, None));
    }

    #[test]
    fn what_stands_in_the_file_is_not_shown() {
        let (keys, _) = KeysFile::open(file(ALICE).path()).unwrap();
        assert!(!format!("{keys:?}").contains("alice"), "{keys:?}");
    }
}
