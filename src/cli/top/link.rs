//! The state of the connection, as the header shows it. A function of what the client has reported.

use tokio::time::Instant;

use crate::client::{Error, Event, Payload};

/// What the client has reported, and its state afterwards.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) item: Result<Event, Error>,
    /// The number of connections so far.
    pub(super) connections: u64,
    /// When the next connection is tried.
    pub(super) retry_at: Option<Instant>,
}

/// How a connection has started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Nothing but heartbeats has arrived.
    Unknown,
    /// It continues after the last event.
    Resumed,
    /// It has sent a new state, for this reason.
    NewState(String),
}

/// The connection to the bridge.
#[derive(Clone, Debug)]
pub(super) enum Link {
    /// The first connection is being established.
    Connecting,
    /// There is a connection.
    Open(Start),
    /// There is none, for this reason.
    Lost { reason: String, retry_at: Option<Instant> },
}

/// Follows the connections.
#[derive(Clone, Debug)]
pub(super) struct Links {
    pub(super) link: Link,
    connections: u64,
    /// Events that could not be parsed.
    pub(super) malformed: u64,
    /// What the bridge cannot watch, each with its reason.
    outages: Vec<(String, String)>,
}

/// A bridge reports two resources and NATS.
const MAX_OUTAGES: usize = 8;

impl Links {
    pub(super) fn new() -> Links {
        Links { link: Link::Connecting, connections: 0, malformed: 0, outages: Vec::new() }
    }

    /// Returns the resources that the bridge cannot watch, each with its reason.
    pub(super) fn outages(&self) -> &[(String, String)] {
        &self.outages
    }

    /// Returns whether there has been a connection.
    pub(super) fn was_open(&self) -> bool {
        self.connections > 0
    }

    /// Records how many connections there have been so far.
    pub(super) fn connected(&mut self, connections: u64) {
        if connections > self.connections {
            self.connections = connections;
            self.link = Link::Open(Start::Unknown);
            // A stream starts with what is down.
            self.outages.clear();
        }
    }

    fn record_outage(&mut self, payload: &Payload) {
        match payload {
            Payload::Heartbeat(heartbeat) if heartbeat.upstream == "live" => {
                self.outages.retain(|(name, _)| name == "nats")
            }
            Payload::UpstreamDown(event) | Payload::UpstreamUp(event) => {
                self.outages.retain(|(resource, _)| *resource != event.resource);
                if let (Payload::UpstreamDown(_), true) = (payload, self.outages.len() < MAX_OUTAGES) {
                    self.outages.push((event.resource.clone(), event.reason.clone().unwrap_or_default()));
                }
            }
            _ => {}
        }
    }

    /// Applies what the client has reported.
    pub(super) fn apply(&mut self, update: &Update) {
        self.connected(update.connections);
        match &update.item {
            Ok(event) => {
                if let Link::Open(start @ Start::Unknown) = &mut self.link {
                    *start = match &event.payload {
                        Payload::StateInitial(state) => Start::NewState(state.reason.clone()),
                        // Every stream can start with them.
                        Payload::Heartbeat(_) | Payload::UpstreamDown(_) | Payload::UpstreamUp(_) => Start::Unknown,
                        _ => Start::Resumed,
                    };
                }
                self.record_outage(&event.payload);
            }
            Err(Error::Malformed { .. }) => self.malformed += 1,
            Err(error) => self.link = Link::Lost { reason: error.to_string(), retry_at: update.retry_at },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_says_how_it_started_and_why_it_was_lost() {
        let mut links = Links::new();
        let event = |json: &str, connections| {
            let item = Ok(Event::from_json(json).unwrap());
            Update { item, connections, retry_at: None }
        };
        let starts = |links: &Links, expected: Start| matches!(&links.link, Link::Open(start) if *start == expected);
        links.apply(&event(r#"{"type":"state.initial","reason":"connect"}"#, 1));
        links.apply(&event(r#"{"type":"instance.state"}"#, 1));
        assert!(starts(&links, Start::NewState("connect".to_owned())), "{links:?}");
        let at = Some(Instant::now());
        links.apply(&Update { item: Err(Error::Lost("reset".to_owned())), connections: 1, retry_at: at });
        assert!(
            matches!(&links.link, Link::Lost { reason, retry_at } if reason.contains("reset") && *retry_at == at),
            "{links:?}"
        );
        links.apply(&event(r#"{"type":"upstream.down","resource":"pods","reason":"forbidden"}"#, 1));
        links.apply(&event(r#"{"type":"upstream.down","resource":"boilerhouseclaims","reason":"forbidden"}"#, 1));
        links.apply(&event(r#"{"type":"upstream.up","resource":"boilerhouseclaims"}"#, 1));
        assert_eq!(links.outages(), [("pods".to_owned(), "forbidden".to_owned())]);
        links.apply(&event(r#"{"type":"heartbeat"}"#, 2));
        assert_eq!(links.outages(), [], "the new stream says what is down");
        assert!(starts(&links, Start::Unknown), "{links:?}");
        links.apply(&event(r#"{"type":"instance.state"}"#, 2));
        assert!(starts(&links, Start::Resumed), "{links:?}");
        let malformed = Error::Malformed { number: 1, reason: String::new(), text: String::new() };
        links.apply(&Update { item: Err(malformed), connections: 2, retry_at: None });
        assert!(starts(&links, Start::Resumed) && links.malformed == 1, "{links:?}");
    }
}
