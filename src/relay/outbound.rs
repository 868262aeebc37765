//! What one client of a relay receives: its position in the history.
//!
//! Guarantees:
//! - It uses the same memory however many events the client has not read. The frame of a large event exists once for all
//!   clients with one format.
//! - A client that reads too slowly for the history continues with the oldest event, after `relay.gap` if it misses any.
//! - A client gets the newest `matrix-down` while the upstream is down, and none that is over.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    entry::{Entry, GapReason, Kind},
    history::{Group, History, Start},
};
use crate::feed::{FrameFormat, ReadResult, SharedBatch};

/// The position of one client.
pub struct Outbound {
    history: History,
    format: FrameFormat,
    position: u64,
    /// What is sent before the next event.
    gap: Option<GapReason>,
    /// Boxed, because most clients are live.
    catch_up: Option<Box<CatchUp>>,
    log_end: watch::Receiver<u64>,
    /// Its fan-out group delivers new entries to it.
    in_fan_out: bool,
    /// What it waits for, if it waits by itself.
    wake_future: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// The part of the history that precedes the present.
struct CatchUp {
    until: u64,
    /// The status of the upstream at that position, if the client must learn it.
    status: Option<Arc<Entry>>,
}

/// Complete frames in their order.
struct Frames {
    format: FrameFormat,
    /// All frames but the last ones. Those of large events are shared with other clients.
    shared: Vec<Bytes>,
    /// The frames since the last one that is shared.
    last: Vec<u8>,
    /// The bytes of all frames.
    len: usize,
}

impl Frames {
    fn push(&mut self, entry: &Entry) {
        let before = self.last.len();
        if let Some(frame) = entry.shared_frame(self.format) {
            self.end_copied();
            self.len += frame.len();
            self.shared.push(frame);
        } else {
            entry.append_frame(&mut self.last, self.format);
            self.len += self.last.len() - before;
        }
    }

    fn end_copied(&mut self) {
        if !self.last.is_empty() {
            self.shared.push(std::mem::take(&mut self.last).into());
        }
    }

    fn into_bytes(mut self) -> Vec<Bytes> {
        self.end_copied();
        self.shared
    }
}

impl Outbound {
    /// Creates the output of a client that has read the event with this id; without an id, of a new client.
    #[must_use]
    pub fn new(history: History, format: FrameFormat, after: Option<&str>) -> Outbound {
        let log_end = history.log_end();
        let Start { position, gap, end, status } = history.start(after);
        let catch_up = CatchUp { until: end, status: status.filter(|status| status.kind == Kind::Down) };
        Outbound {
            history,
            format,
            position,
            gap,
            catch_up: Some(catch_up.into()),
            log_end,
            in_fan_out: false,
            wake_future: None,
        }
    }

    /// Returns the framing of the stream.
    #[must_use]
    pub fn format(&self) -> FrameFormat {
        self.format
    }

    /// Returns the next complete frames, about `max_bytes` of them. It never waits.
    pub fn read(&mut self, max_bytes: usize) -> ReadResult {
        self.wake_future = None;
        let mut out = Frames { format: self.format, shared: Vec::new(), last: Vec::new(), len: 0 };
        if let Some(reason) = self.gap.take() {
            out.push(&Entry::gap(reason));
        }
        while out.len < max_bytes {
            let Some(entries) = self.history.read(self.position) else {
                self.restart(&mut out);
                continue;
            };
            if entries.is_empty() && self.catch_up.is_none() {
                break;
            }
            for entry in &entries {
                self.end_catch_up(&mut out);
                if self.catch_up.is_none() || !matches!(entry.kind, Kind::Down | Kind::Up) {
                    out.push(entry);
                }
                self.position += 1;
                if out.len >= max_bytes {
                    break;
                }
            }
            self.end_catch_up(&mut out);
        }
        if out.len == 0 { ReadResult::Idle } else { ReadResult::Batch(out.into_bytes()) }
    }

    /// Ends the catch-up at its end, with the status that the client must learn.
    fn end_catch_up(&mut self, out: &mut Frames) {
        if let Some(catch_up) = self.catch_up.take_if(|catch_up| self.position >= catch_up.until)
            && let Some(status) = catch_up.status
        {
            out.push(&status);
        }
    }

    /// Continues with the oldest entry, because the history has evicted the position. Messages that were evicted are no gap.
    fn restart(&mut self, out: &mut Frames) {
        let Start { position, gap, end, status } = self.history.restart(self.position);
        if let Some(reason) = gap {
            out.push(&Entry::gap(reason));
        }
        self.position = position;
        // The client may have missed the end of an outage: it gets the newest status, whatever it is.
        self.catch_up = Some(CatchUp { until: end, status }.into());
    }

    /// Polls until a read may return something else than [`ReadResult::Idle`]. A live member of a [`Group`] is not woken
    /// for entries that its group delivers.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.in_fan_out && self.is_live() {
            return Poll::Pending;
        }
        // Boxed, because the groups wake most streams, and this future would be most of their memory.
        let wake_future = self.wake_future.get_or_insert_with(|| {
            let mut log_end = self.log_end.clone();
            // Cannot fail: the history holds the sender.
            Box::pin(async move { drop(log_end.changed().await) })
        });
        ready!(wake_future.as_mut().poll(cx));
        self.wake_future = None;
        self.log_end.borrow_and_update();
        Poll::Ready(())
    }

    fn is_live(&self) -> bool {
        self.catch_up.is_none() && self.gap.is_none()
    }

    /// Joins the fan-out group of its format. From now on the owner of the group must deliver new entries to this client.
    /// `None` while the client catches up.
    pub fn join_group(&mut self) -> Option<Group> {
        self.is_live().then(|| {
            self.in_fan_out = true;
            self.history.group(self.format)
        })
    }

    /// Advances past a batch that the group delivers instead of a read. Returns false, and does nothing, if the client is
    /// not at the start of the batch.
    pub fn accept_batch(&mut self, batch: &SharedBatch) -> bool {
        let is_next = self.is_live() && self.position == batch.start();
        if is_next {
            self.position = batch.end();
        }
        is_next
    }
}

impl std::fmt::Debug for Outbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbound").field("position", &self.position).field("gap", &self.gap).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::Block,
        event::MqttMessage,
        relay::{Limits, Metrics, Writer},
    };

    const FORMAT: FrameFormat = FrameFormat::Sse { named: true, chunked: false };

    fn history(events: usize) -> (Writer, History) {
        History::new(Limits { events, bytes: 1 << 20 }, Metrics::default())
    }

    fn event(id: &str) -> Entry {
        Entry::event(Block { id: Some(id.to_owned()), name: None, data: format!("data of {id}") })
    }

    /// Reads everything in batches of this size, and returns the id or the name of each event.
    fn read(client: &mut Outbound, max_bytes: usize) -> Vec<String> {
        let mut text = String::new();
        while let ReadResult::Batch(frames) = client.read(max_bytes) {
            frames.iter().for_each(|frame| text += std::str::from_utf8(frame).unwrap());
        }
        let fields = |block: &str| block.lines().next().unwrap().split_once(": ").unwrap().1.to_owned();
        text.split_terminator("\n\n").map(fields).collect()
    }

    #[test]
    fn a_client_gets_the_outage_of_now_and_no_earlier_one() {
        for max_bytes in [1, 1 << 20] {
            let (mut writer, history) = history(10);
            let down = || Entry::down(None, "silent", "t");
            writer.append([event("1"), down(), Entry::up(), event("2"), down(), event("3")]);
            let mut client = Outbound::new(history.clone(), FORMAT, None);
            // The outage goes on while the client reads.
            writer.append([event("4"), Entry::up()]);
            assert_eq!(read(&mut client, max_bytes), ["1", "2", "3", "matrix-down", "4", "matrix-up"]);
            let mut late = Outbound::new(history, FORMAT, Some("3"));
            assert_eq!(read(&mut late, max_bytes), ["4"]);
            writer.append([down(), down()]);
            assert_eq!(read(&mut late, max_bytes), ["matrix-down", "matrix-down"]);
        }
    }

    #[test]
    fn a_client_that_misses_the_end_of_an_outage_gets_the_newest_status() {
        let (mut writer, history) = history(2);
        let mut client = Outbound::new(history.clone(), FORMAT, None);
        writer.append([event("1"), Entry::down(None, "silent", "t")]);
        assert_eq!(read(&mut client, 1), ["1", "matrix-down"]);
        writer.append([Entry::up(), event("2"), event("3"), event("4")]);
        assert_eq!(read(&mut client, 1), ["relay.gap", "3", "4", "matrix-up"]);
    }

    #[test]
    fn evicted_messages_are_no_gap_for_a_slow_client() {
        let message = || Entry::message(&MqttMessage { topic: "a".to_owned(), payload: "x".repeat(400).into() }, "t");
        let limits = Limits { events: 10, bytes: 2 * message().charge() };
        for (missed, expected) in
            [(None, vec!["mqtt.message"; 2]), (Some("2"), vec!["relay.gap", "mqtt.message", "mqtt.message"])]
        {
            let (mut writer, history) = History::new(limits, Metrics::default());
            let mut client = Outbound::new(history, FORMAT, None);
            writer.append([event("1")]);
            assert_eq!(read(&mut client, 1 << 20), ["1"]);
            writer.append(missed.map(event).into_iter().chain([message(), message(), message()]));
            assert_eq!(read(&mut client, 1 << 20), expected);
        }
    }

    #[test]
    fn clients_with_one_format_share_the_frame_of_a_large_event() {
        let (mut writer, history) = history(10);
        let data = "x".repeat(100 << 10);
        writer.append([event("1"), Entry::event(Block { data: data.clone(), ..Block::default() }), event("3")]);
        let frames = |format| {
            let ReadResult::Batch(frames) = Outbound::new(history.clone(), format, None).read(1 << 20) else {
                panic!("there are events")
            };
            frames
        };
        let (first, second, websocket) = (frames(FORMAT), frames(FORMAT), frames(FrameFormat::WebSocket));
        let text = format!("id: 1\ndata: data of 1\n\ndata: {data}\n\nid: 3\ndata: data of 3\n\n");
        assert_eq!(first.concat(), text.as_bytes());
        assert_eq!(first, second);
        assert_eq!((first.len(), first[1].as_ptr()), (3, second[1].as_ptr()), "framed once");
        assert!(websocket[1].ends_with(data.as_bytes()) && websocket[1].len() < data.len() + 16);
        // A group does not frame it.
        let mut client = Outbound::new(history.clone(), FORMAT, Some("3"));
        assert!(matches!(client.read(1 << 20), ReadResult::Idle));
        let group = client.join_group().unwrap();
        assert!(group.batch_from(group.end() - 1, 1 << 20).is_some());
        assert!(group.batch_from(group.end() - 2, 1 << 20).is_none());
    }

    #[test]
    fn the_members_of_a_group_share_a_batch_up_to_the_end() {
        let (mut writer, history) = history(1000);
        let mut clients = [(); 2].map(|()| Outbound::new(history.clone(), FORMAT, None));
        for client in &mut clients {
            assert!(client.join_group().is_none(), "the client has not caught up");
            assert!(matches!(client.read(1 << 20), ReadResult::Idle));
        }
        let group = clients[0].join_group().unwrap();
        let from = group.end();
        assert!(group.batch_from(from, 1 << 20).is_none());
        // More than one read of the log.
        writer.append((0..600).map(|n| event(&n.to_string())));
        let batch = group.batch_from(from, 1 << 20).unwrap();
        assert_eq!((batch.start(), batch.end()), (from, from + 600));
        assert!(group.batch_from(from, 1 << 20).unwrap().bytes.as_ptr() == batch.bytes.as_ptr(), "framed once");
        assert!(group.batch_from(from, 1 << 10).is_none() && group.batch_from(from - 1, 1 << 20).is_none());
        for client in &mut clients {
            assert!(client.accept_batch(&batch) && !client.accept_batch(&batch));
            assert!(matches!(client.read(1 << 20), ReadResult::Idle));
        }
    }
}
