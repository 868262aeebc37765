//! A stand-in for the feed, until the real one is merged: it takes what the hub says and keeps nothing.

use std::sync::Arc;

use crate::event::{Kind, Rv, View};

/// See the real one.
#[derive(Debug, Default)]
pub struct Writer;

impl Writer {
    /// See the real one.
    pub fn home(&mut self, _: &str) {}
    /// See the real one.
    pub fn replace(&mut self, _: Kind, _: Vec<View>, _: Rv) {}
    /// See the real one.
    pub fn upsert(&mut self, _: View) {}
    /// See the real one.
    pub fn remove(&mut self, _: Kind, _: &str, _: &str, _: Rv) {}
    /// See the real one.
    pub fn bookmark(&mut self, _: Kind, _: Rv) {}
    /// See the real one.
    pub fn health(&mut self, _: Kind, _: Health) {}
}

/// What a source says of itself, for one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// Not yet listed for the first time.
    #[default]
    Connecting,
    /// Listed, and watched without a gap since.
    Live,
    /// Re-watching failed, or the watch has been silent past the idle limit.
    Down {
        /// When its last byte came.
        since: tokio::time::Instant,
        /// A sentence for people.
        reason: Arc<str>,
    },
}
