//! The queue between the stream of a receiver and its deliveries.
//!
//! Guarantees: at most [`MAX_ITEMS`] and [`MAX_BYTES`], or one larger message. The order is that of the stream.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::intake::Item;

/// Messages that wait for one receiver. When they are reached, its stream pauses.
const MAX_ITEMS: usize = 10_000;
/// Bytes of these messages.
const MAX_BYTES: usize = 32 << 20;

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    bytes: usize,
    is_closed: bool,
}

impl State {
    /// Replaces the cursor of the last item, unless there is no new one.
    fn replace_last_cursor(&mut self, cursor: Option<String>) {
        if let (Some(last), Some(cursor)) = (self.items.back_mut(), cursor) {
            let before = size(last);
            last.cursor = Some(cursor);
            self.bytes = self.bytes - before + size(last);
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    filled: Notify,
    freed: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of the queue that the stream fills.
#[derive(Debug)]
pub(super) struct Input(Arc<Shared>);

/// The end of the queue that the deliveries empty.
#[derive(Debug)]
pub(super) struct Output(Arc<Shared>);

/// Returns the two ends of a new queue.
pub(super) fn queue() -> (Input, Output) {
    let shared = Arc::new(Shared::default());
    (Input(shared.clone()), Output(shared))
}

fn size(item: &Item) -> usize {
    let message = item.message.as_ref();
    let bytes = message.map_or(0, |message| message.body.len() + message.id.len() + message.kind.len());
    bytes + item.cursor.as_ref().map_or(0, String::len)
}

impl Input {
    /// Waits for space, and adds an item. Returns false if no more deliveries follow.
    pub(super) async fn push(&self, item: Item) -> bool {
        loop {
            {
                let mut state = self.0.lock();
                if state.is_closed {
                    return false;
                }
                // A cursor alone belongs to what is before it.
                if item.message.is_none() && !state.items.is_empty() {
                    state.replace_last_cursor(item.cursor);
                    return true;
                }
                let bytes = state.bytes + size(&item);
                if state.items.is_empty() || (state.items.len() < MAX_ITEMS && bytes <= MAX_BYTES) {
                    state.bytes = bytes;
                    state.items.push_back(item);
                    self.0.filled.notify_one();
                    return true;
                }
            }
            self.0.freed.notified().await;
        }
    }
}

impl Output {
    /// Waits for an item, and returns its message. The item stays in the queue.
    pub(super) async fn first(&self) -> Item {
        loop {
            if let Some(item) = self.0.lock().items.front() {
                return item.clone();
            }
            self.0.filled.notified().await;
        }
    }

    /// Removes the first item, and returns its cursor.
    pub(super) fn remove_first(&self) -> Option<String> {
        let mut state = self.0.lock();
        let item = state.items.pop_front()?;
        state.bytes -= size(&item);
        self.0.freed.notify_one();
        item.cursor
    }

    /// Returns the number of items.
    pub(super) fn backlog(&self) -> Backlog {
        Backlog(self.0.clone())
    }
}

/// How many messages wait for one receiver, the one that is being delivered included.
#[derive(Clone, Debug, Default)]
pub struct Backlog(Arc<Shared>);

impl Backlog {
    /// Returns the number of messages.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.0.lock().items.iter().filter(|item| item.message.is_some()).count()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::{super::message::Message, *};

    fn item(bytes: usize, cursor: Option<&str>) -> Item {
        let message = Message { id: String::new(), kind: "a".to_owned(), reason: None, body: "x".repeat(bytes) };
        Item { message: Some(message), cursor: cursor.map(str::to_owned) }
    }

    fn cursor(cursor: &str) -> Item {
        Item { message: None, cursor: Some(cursor.to_owned()) }
    }

    #[tokio::test]
    async fn a_cursor_alone_joins_the_message_before_it() {
        let (input, output) = queue();
        input.push(item(1, Some("a"))).await;
        assert_eq!(output.first().await.cursor.as_deref(), Some("a"));
        input.push(cursor("b")).await;
        assert_eq!((output.backlog().messages(), output.remove_first().as_deref()), (1, Some("b")));
        input.push(cursor("c")).await;
        assert_eq!((output.first().await.message, output.remove_first().as_deref()), (None, Some("c")));
    }

    #[tokio::test]
    async fn a_full_queue_waits_for_space_and_for_the_end() {
        let (input, output) = queue();
        assert!(input.push(item(MAX_BYTES + 1, None)).await, "one larger message is accepted");
        let mut waiting = Box::pin(input.push(item(1, None)));
        assert!(waiting.as_mut().now_or_never().is_none());
        output.remove_first();
        assert!(waiting.await);
        for _ in 1..MAX_ITEMS {
            assert!(input.push(item(1, None)).await);
        }
        let mut waiting = Box::pin(input.push(item(1, None)));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(output);
        assert!(!waiting.await);
    }
}
