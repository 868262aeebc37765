//! The client library as a reader of a history. It connects to [`LibraryServer`], which records what was written
//! completely. The oracle validates that record like the records of all clients, so it proves that the library resumes
//! with its last id. This module proves that the library returns exactly these events.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::client::{Client, Error, State, Transport};
use boilerhouse_bridge::event::{Resource, ResourceVersion};
use boilerhouse_bridge::test_support::SeededRng;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::deployment::SimulatedDeployment;
use super::library_server::{LibraryServer, Opening};
use super::projections::PROJECTIONS;
use super::session::{ClientBehavior, Seat};
use crate::oracle::full_stream::ProjectedHistory;
use crate::oracle::violation::{Guarantee, Validation, Violation, ensure};

/// Longer than the server ever waits before it accepts a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3600);

/// What happens at one end of a stream.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Item {
    /// The JSON of an event.
    Event(String),
    End(Outcome),
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Outcome {
    Cut,
    /// The server stopped writing, and the library gave up.
    Silent,
    NotConnected,
    /// 503
    Refused,
    /// 400 for the cursor
    CursorRejected,
    /// Must not happen.
    Violation(&'static str),
}

/// Both ends of all connections of one library.
#[derive(Debug, Default)]
pub(super) struct LibraryLog {
    /// What was written completely.
    pub(super) sent: Vec<Item>,
    /// What [`Events::next`](boilerhouse_bridge::client::Events::next) has returned.
    returned: Vec<Item>,
    state: State,
    /// The first thing that a library must not do.
    unexpected: Option<String>,
}

/// What a library has gone through, so that the test can assert that it tested something.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LibraryCoverage {
    pub(super) events: u64,
    /// Events that were sent and not returned, because a cut came before their id.
    pub(super) forgotten: u64,
    pub(super) cuts: u64,
    pub(super) silences: u64,
    pub(super) refusals: u64,
    pub(super) rejected_cursors: u64,
    /// States that were compared with the store.
    pub(super) states: u64,
}

/// The library in one history.
#[derive(Debug)]
pub(super) struct LibraryReader {
    transport: Transport,
    behavior: ClientBehavior,
    log: Arc<Mutex<LibraryLog>>,
}

impl LibraryReader {
    /// Starts one reader for each transport.
    pub(super) fn start_all(
        deployment: &Arc<SimulatedDeployment>,
        seed: u64,
        tasks: &mut JoinSet<()>,
    ) -> Vec<LibraryReader> {
        // A generator of their own: the writes and faults of a seed do not depend on these readers.
        let mut rng = SeededRng(!seed);
        [Transport::Sse, Transport::WebSocket].map(|transport| start(deployment, transport, &mut rng, tasks)).into()
    }

    /// Compares what was returned with what was sent, and the state with the store. Everything is at rest.
    ///
    /// # Errors
    /// The first difference.
    pub(super) fn validate(&self, expected: &ProjectedHistory) -> Result<LibraryCoverage, Violation> {
        let log = self.log.lock().unwrap();
        let name = format!("the library on {:?}", self.transport);
        let mut coverage = compare(&log).map_err(|violation| violation.at(&name))?;
        // A stream that starts without the state may have no complete one.
        if self.behavior.snapshot {
            self.validate_state(&log, expected).map_err(|violation| violation.at(&name))?;
            coverage.states += 1;
        }
        Ok(coverage)
    }

    fn validate_state(&self, log: &LibraryLog, expected: &ProjectedHistory) -> Validation {
        ensure(log.state.is_complete(), Guarantee::Convergent, || "the state is not complete".to_owned())?;
        let (projection, epoch) = (self.behavior.projection[0], expected.history.epoch_at(u64::MAX));
        let views = |resource| expected.fold(projection, epoch, resource, ResourceVersion::MAX);
        same("instances", &typed(views(Resource::Pods)), log.state.instances())?;
        same("claims", &typed(views(Resource::Claims)), log.state.claims())?;
        if !PROJECTIONS[projection].has("pool.depth") {
            return Ok(());
        }
        // A pool without instances in a pool state may be left out.
        let counts = |[warming, ready, acquired]: [u64; 3]| warming + ready + acquired > 0;
        let expected = expected.pools(projection, epoch, ResourceVersion::MAX);
        let expected: BTreeMap<_, _> = expected.into_iter().filter(|(_, pool)| counts(*pool)).collect();
        let pools = log.state.pools().iter();
        let pools = pools.map(|(workload, pool)| (workload.clone(), [pool.warming, pool.ready, pool.acquired]));
        same("pools", &expected, &pools.filter(|(_, pool)| counts(*pool)).collect())
    }
}

/// Starts the library and its server.
fn start(
    deployment: &Arc<SimulatedDeployment>,
    transport: Transport,
    rng: &mut SeededRng,
    tasks: &mut JoinSet<()>,
) -> LibraryReader {
    let secs = Duration::from_secs;
    let behavior = ClientBehavior {
        // In half of the histories everything.
        projection: [rng.below(2) as usize * rng.below(PROJECTIONS.len() as u64) as usize; 2],
        snapshot: rng.below(5) > 0,
        starts_after: rng.duration_up_to(secs(20)),
        max_session: *rng.choose(&[secs(10), secs(60), secs(3600)]),
        max_pause: *rng.choose(&[Duration::ZERO, Duration::ZERO, secs(10)]),
        batch_bytes: *rng.choose(&[1, 300, 1 << 16]),
        joins_group: rng.below(2) == 0,
    };
    let (openings, accepted) = mpsc::unbounded_channel::<Opening>();
    let connector = move || {
        let (opening, opened) = oneshot::channel();
        let _ = openings.send(opening);
        async move { opened.await.unwrap_or_else(|_| Err(std::io::ErrorKind::ConnectionAborted.into())) }
    };
    let client = Client::builder("http://bridge.test").transport(transport).connector(connector);
    let client = client.connect_timeout(CONNECT_TIMEOUT).build().unwrap();
    let log = Arc::<Mutex<LibraryLog>>::default();
    let seat = Seat::new(deployment);
    tasks.spawn(LibraryServer::new(seat, behavior, transport, rng.fork(), accepted, log.clone()).run());
    tasks.spawn(read(client, log.clone()));
    LibraryReader { transport, behavior, log }
}

/// An application: it reads all events and maintains the state.
async fn read(client: Client, log: Arc<Mutex<LibraryLog>>) {
    let mut events = client.events();
    loop {
        let before = events.cursor().map(str::to_owned);
        let Some(next) = events.next().await else { return };
        let mut log = log.lock().unwrap();
        match next {
            Ok(event) => {
                // What an application stores with its state. After a rejected cursor there is none.
                let is_right = match (&event.id, events.cursor()) {
                    (Some(id), cursor) => cursor == Some(id),
                    (None, cursor) => cursor.is_none() || cursor == before.as_deref(),
                };
                if !is_right {
                    log.unexpected.get_or_insert(format!("the cursor {:?} with {event:?}", events.cursor()));
                }
                log.state.apply(&event);
                log.returned.push(Item::Event(event.json.get().to_owned()));
            }
            Err(error) => {
                log.state.connection_ended();
                let outcome = outcome(&error);
                if let Outcome::Violation(_) = outcome {
                    log.unexpected.get_or_insert(error.to_string());
                }
                log.returned.push(Item::End(outcome));
            }
        }
    }
}

/// What an error says about the connection.
fn outcome(error: &Error) -> Outcome {
    match error {
        Error::Lost(_) | Error::Closed { .. } => Outcome::Cut,
        Error::Silent(_) => Outcome::Silent,
        Error::Connect { .. } => Outcome::NotConnected,
        Error::Status { status: 503, .. } => Outcome::Refused,
        Error::CursorRejected(_) => Outcome::CursorRejected,
        _ => Outcome::Violation("the library returns another error"),
    }
}

/// Compares both ends.
fn compare(log: &LibraryLog) -> Result<LibraryCoverage, Violation> {
    ensure(log.unexpected.is_none(), Guarantee::Resumable, || format!("{:?}", log.unexpected))?;
    let expected = Expected::of(&log.sent)?;
    let both = expected.items.iter().copied().map(Some).chain([None]).zip(log.returned.iter().map(Some).chain([None]));
    for (nth, (expected, returned)) in both.enumerate() {
        ensure(expected == returned, Guarantee::Unique, || {
            format!("item {nth} must be {expected:?}, the library returns {returned:?}")
        })?;
    }
    let events = expected.items.iter().filter(|item| matches!(item, Item::Event(_))).count() as u64;
    Ok(LibraryCoverage { events, ..expected.coverage })
}

/// What the library must return: the events that an id covers, and those that never get an id. What has a `key` gets an id
/// with the last event of its version or of its difference. If that does not arrive, everything comes again, on another
/// replica perhaps in another form.
#[derive(Default)]
struct Expected<'a> {
    items: Vec<&'a Item>,
    waiting: Vec<(&'a Item, String)>,
    /// The keys of the events since the client started without a cursor, or with that of another history.
    keys: HashSet<String>,
    coverage: LibraryCoverage,
}

impl<'a> Expected<'a> {
    fn of(sent: &'a [Item]) -> Result<Expected<'a>, Violation> {
        let mut expected = Expected::default();
        for item in sent {
            match item {
                Item::Event(json) => expected.event(item, &serde_json::from_str(json).unwrap())?,
                Item::End(outcome) => expected.end(item, *outcome)?,
            }
        }
        Ok(expected)
    }

    fn event(&mut self, item: &'a Item, event: &Value) -> Validation {
        if event["type"] == "state.initial" {
            self.keys.clear();
        }
        match event["key"].as_str() {
            Some(key) => self.waiting.push((item, key.to_owned())),
            None => self.items.push(item),
        }
        ensure(event["key"].is_string() || self.waiting.is_empty(), Guarantee::WireFormat, || {
            format!("{event} is between the events of one version")
        })?;
        if event["id"].is_string() {
            for (item, key) in self.waiting.drain(..) {
                self.items.push(item);
                ensure(!self.keys.contains(&key), Guarantee::Unique, || format!("{key} is returned twice"))?;
                self.keys.insert(key);
            }
        }
        Ok(())
    }

    fn end(&mut self, item: &'a Item, outcome: Outcome) -> Validation {
        let coverage = &mut self.coverage;
        coverage.forgotten += self.waiting.len() as u64;
        self.waiting.clear();
        match outcome {
            Outcome::Cut => coverage.cuts += 1,
            Outcome::Silent => coverage.silences += 1,
            Outcome::NotConnected | Outcome::Refused => coverage.refusals += 1,
            Outcome::CursorRejected => {
                coverage.rejected_cursors += 1;
                self.keys.clear();
            }
            Outcome::Violation(message) => return Err(Violation::new(Guarantee::Resumable, message)),
        }
        self.items.push(item);
        Ok(())
    }
}

/// The views as the library reads them.
fn typed<T: DeserializeOwned>(views: BTreeMap<&str, &Value>) -> BTreeMap<String, T> {
    let typed = |view: &Value| serde_json::from_value(view.clone()).unwrap();
    views.into_iter().map(|(uid, view)| (uid.to_owned(), typed(view))).collect()
}

fn same<T: PartialEq + Debug>(what: &str, expected: &T, found: &T) -> Validation {
    ensure(expected == found, Guarantee::Convergent, || format!("the {what} are {found:?} instead of {expected:?}"))
}
