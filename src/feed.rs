//! What a transport reads from a feed. Placeholder for the lead's module, so that this branch compiles alone.
use bytes::Bytes;

use crate::wire::Close;

/// What a reader gets from its place in a feed.
#[derive(Debug)]
pub enum Read {
    /// Complete frames, already framed for the wire.
    Batch(Vec<Bytes>),
    /// Everything has been read.
    Idle,
    /// The stream ends, and why.
    End(Close),
}
