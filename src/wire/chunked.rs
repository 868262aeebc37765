//! Chunked transfer coding (RFC 9112 section 7.1).
//!
//! Guarantees: each function appends complete chunks, so that bytes with their chunk framing can be shared and
//! concatenated.

/// The chunk that ends a body. A body that ends without it is incomplete (RFC 9112 section 8).
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Appends what `write` appends, as one chunk. Appends nothing if `write` appends nothing, because an empty chunk would end
/// the body.
pub fn chunk(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    write(out);
    let len = out.len() - start;
    if len > 0 {
        out.splice(start..start, format!("{len:x}\r\n").into_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_follow_the_http_specification() {
        let mut out = Vec::new();
        chunk(&mut out, |out| out.extend_from_slice(b"data: 1\n\n"));
        chunk(&mut out, |_| {});
        chunk(&mut out, |out| out.extend(std::iter::repeat_n(b'x', 300)));
        out.extend_from_slice(LAST_CHUNK);
        let expected = format!("9\r\ndata: 1\n\n\r\n12c\r\n{}\r\n0\r\n\r\n", "x".repeat(300));
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
