//! Incremental validation of UTF-8.
//!
//! Guarantees: the result does not depend on where the text is split. Invalid text is rejected at the first byte that
//! cannot be part of a character.

/// The state between two parts of one text: at most 3 bytes of an incomplete character.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Utf8Validator {
    // The fourth byte is set only inside `push`: with four bytes, a character is complete or invalid.
    partial: [u8; 4],
    len: u8,
}

/// The text is not UTF-8. No further bytes can make it valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotUtf8;

impl Utf8Validator {
    /// Validates the next part of the text.
    ///
    /// # Errors
    /// Returns [`NotUtf8`] if the text so far is not the start of a valid text.
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

    /// Returns whether the text may end here, which is not inside a character.
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
        // (bytes, number of bytes that can be the start of a valid text)
        let rows: [(&[u8], usize); 9] = [
            (b"\x80", 0),                 // a continuation byte without a first byte
            (b"ab\xff", 2),               // not a byte of UTF-8
            (b"\xc0\xaf", 0),             // overlong, two bytes
            (b"\xe0\x80\xaf", 1),         // overlong, three bytes
            (b"\xf0\x80\x80\xaf", 1),     // overlong, four bytes
            (b"\xed\xa0\x80", 1),         // half of a surrogate pair
            (b"\xf4\x90\x80\x80", 1),     // greater than U+10FFFF
            (b"\xe2\x82a", 2),            // interrupted by another character
            (b"\xf0\x9f\x98\xe2\x82", 3), // interrupted one byte before the end
        ];
        for (bytes, valid) in rows {
            assert_eq!(Utf8Validator::default().push(bytes), Err(NotUtf8), "{bytes:x?} in one part");
            let mut utf8 = Utf8Validator::default();
            let accepted = bytes.iter().take_while(|&&byte| utf8.push(&[byte]).is_ok()).count();
            assert_eq!(accepted, valid, "{bytes:x?} byte by byte");
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
