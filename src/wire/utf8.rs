//! UTF-8 checked as it comes: in any split, refused at the first byte that cannot be part of a character.

/// What is remembered between two pieces of one text: a character that has begun, at most 3 of its bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Utf8Validator {
    // The fourth byte is there only while it is being looked at: with it a character is whole or wrong.
    partial: [u8; 4],
    len: u8,
}

/// The text cannot be UTF-8 any more, whatever follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotUtf8;

impl Utf8Validator {
    /// Looks at the next part of the text.
    pub(super) fn push(&mut self, mut part: &[u8]) -> Result<(), NotUtf8> {
        while !self.is_complete() {
            let Some((&byte, rest)) = part.split_first() else { return Ok(()) };
            part = rest;
            self.partial[usize::from(self.len)] = byte;
            self.len += 1;
            match std::str::from_utf8(&self.partial[..usize::from(self.len)]) {
                Ok(_) => self.len = 0,
                Err(error) if error.error_len().is_none() => {}
                Err(_) => return Err(NotUtf8),
            }
        }
        match std::str::from_utf8(part) {
            Ok(_) => Ok(()),
            Err(error) if error.error_len().is_none() => {
                let partial = &part[error.valid_up_to()..];
                self.partial[..partial.len()].copy_from_slice(partial);
                self.len = partial.len() as u8;
                Ok(())
            }
            Err(_) => Err(NotUtf8),
        }
    }

    /// Whether the text may end here: not in the middle of a character.
    pub(super) fn is_complete(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::{NotUtf8, Utf8Validator};

    #[test]
    fn valid_text_passes_at_every_split() {
        let text = "aé€😀\u{7ff}\u{800}\u{ffff}\u{10000}\u{10ffff}z".as_bytes();
        for first in 0..=text.len() {
            for second in first..=text.len() {
                let mut utf8 = Utf8Validator::default();
                for part in [&text[..first], &text[first..second], &[], &text[second..]] {
                    utf8.push(part).unwrap();
                }
                assert!(utf8.is_complete(), "split at {first} and {second}");
            }
        }
    }

    #[test]
    fn invalid_text_is_rejected_at_its_first_invalid_byte() {
        // (bytes, how many of them may still be the beginning of a text)
        let wrong: [(&[u8], usize); 9] = [
            (b"\x80", 0),                 // a continuation without a beginning
            (b"ab\xff", 2),               // never a byte of UTF-8
            (b"\xc0\xaf", 0),             // overlong in two bytes
            (b"\xe0\x80\xaf", 1),         // overlong in three
            (b"\xf0\x80\x80\xaf", 1),     // overlong in four
            (b"\xed\xa0\x80", 1),         // half a surrogate pair
            (b"\xf4\x90\x80\x80", 1),     // past U+10FFFF
            (b"\xe2\x82a", 2),            // cut off by another character
            (b"\xf0\x9f\x98\xe2\x82", 3), // cut off one byte before its end
        ];
        for (bytes, good) in wrong {
            assert_eq!(Utf8Validator::default().push(bytes), Err(NotUtf8), "{bytes:x?} at once");
            let mut utf8 = Utf8Validator::default();
            let taken = bytes.iter().take_while(|&&byte| utf8.push(&[byte]).is_ok()).count();
            assert_eq!(taken, good, "{bytes:x?} byte by byte");
        }
    }

    #[test]
    fn partial_character_is_incomplete() {
        let mut utf8 = Utf8Validator::default();
        utf8.push(b"ok \xf0\x9f").unwrap();
        assert!(!utf8.is_complete());
        utf8.push(b"\x98\x80").unwrap();
        assert!(utf8.is_complete());
    }
}
