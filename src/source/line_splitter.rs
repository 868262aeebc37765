//! Splits the chunks of a watch into lines. A watch sends one JSON object per line.
//!
//! Guarantees: each byte is searched once. At most the limit and one chunk are buffered.

use bytes::BytesMut;

/// Splits at newlines and buffers the incomplete last line.
#[derive(Debug)]
pub(super) struct LineSplitter {
    rest: BytesMut,
    /// Length of the prefix of `rest` that was searched and contains no newline.
    searched: usize,
    /// Maximum bytes of a line.
    limit: usize,
}

/// A line longer than the limit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LineTooLong;

impl LineSplitter {
    /// Creates a splitter for lines of at most `limit` bytes.
    pub(super) fn new(limit: usize) -> LineSplitter {
        LineSplitter { rest: BytesMut::new(), searched: 0, limit }
    }

    /// Appends a chunk.
    pub(super) fn push(&mut self, chunk: &[u8]) {
        self.rest.extend_from_slice(chunk);
    }

    /// Returns the bytes of the incomplete last line, after [`LineSplitter::next`] has returned `None`.
    pub(super) fn buffered(&self) -> usize {
        self.rest.len()
    }

    /// Returns the next complete line that is not empty, without its newline.
    ///
    /// # Errors
    /// When a line is longer than the limit. The splitter must not be used afterwards.
    pub(super) fn next(&mut self) -> Result<Option<BytesMut>, LineTooLong> {
        while let Some(at) = memchr::memchr(b'\n', &self.rest[self.searched..]) {
            let mut line = self.rest.split_to(self.searched + at + 1);
            self.searched = 0;
            line.truncate(line.len() - 1);
            if line.len() > self.limit {
                return Err(LineTooLong);
            }
            if !line.is_empty() {
                return Ok(Some(line));
            }
        }
        self.searched = self.rest.len();
        if self.searched > self.limit { Err(LineTooLong) } else { Ok(None) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lines_are_independent_of_chunk_boundaries(text in "[ab\n]{0,60}", cuts in prop::collection::vec(0_usize..60, 0..8)) {
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut <= text.len()).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut lines = LineSplitter::new(100);
            let mut found = Vec::new();
            for pair in cuts.windows(2) {
                lines.push(&text.as_bytes()[pair[0]..pair[1]]);
                while let Some(line) = lines.next().unwrap() {
                    found.push(String::from_utf8(line.to_vec()).unwrap());
                }
            }
            let complete = text.rfind('\n').map_or("", |end| &text[..end]);
            let expected: Vec<String> = complete.split('\n').filter(|line| !line.is_empty()).map(str::to_owned).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn line_over_the_limit_is_an_error() {
        let mut lines = LineSplitter::new(4);
        lines.push(b"1234\n12345");
        assert_eq!(lines.next().unwrap().unwrap(), "1234");
        assert_eq!(lines.next(), Err(LineTooLong));
        let mut lines = LineSplitter::new(4);
        lines.push(b"12345\n");
        assert_eq!(lines.next(), Err(LineTooLong));
    }
}
