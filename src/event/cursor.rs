//! The cursor: how far a reader has come in each resource, opaque to clients (protocol.md section 3).
