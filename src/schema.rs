//! The published schemas: a JSON Schema of each message of a stream, an OpenAPI document of the HTTP interface, and an
//! AsyncAPI document of the streams.
//!
//! Owns: the description of messages and bodies as Rust types, and the table of endpoints in the two documents. It makes no
//! message: `event::render` and the endpoints do. The tests validate what they receive against these schemas.
//!
//! Guarantees: the functions are pure, and all documents of one release are equal on every replica.
//!
//! Must not import: other modules of this crate, except `event` for the views of objects and `wire` for the codes of errors.
//!
//! Implements `docs/protocol.md#schemas`.

pub mod asyncapi;
pub mod messages;
pub mod openapi;

mod bodies;
mod generate;
mod keys;
mod parameters;
mod streams;
