//! Webhooks: POSTs the events of a stream to receivers, in order and at least once (docs/protocol.md#deliveries).
//!
//! Each receiver has a stream of its own, so that receivers are independent: a slow one does not delay the others, and its
//! cursor moves when it has accepted an event. A receiver that is down for long fills its queue. Its stream then pauses, and
//! resumes by its cursor; what the bridge no longer has is reported as `stream.gap`.
//!
//! Guarantees:
//! - An event is delivered again until the receiver accepts it. The next one follows only then.
//! - No error of a receiver ends the others.
//! - Queues, response bodies, times and the state file have bounds (docs/limits.md#webhooks).
//!
//! Must not import: any module but `client`.

mod intake;
mod message;
mod queue;
mod receiver;
mod retry;
mod send;
mod signature;
mod state_file;
mod worker;

pub use self::{
    message::NEVER_FORWARDED,
    queue::Backlog,
    receiver::Receiver,
    send::{Outcome, Sender},
    signature::Secrets,
    state_file::StateFile,
    worker::{Attempt, Feeder, Observer, SecretsFile, Worker},
};
