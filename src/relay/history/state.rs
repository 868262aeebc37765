//! The log of the history: its entries, their ids, and where a client starts. It has no lock and no clock.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use crate::{
    relay::entry::{Entry, GapReason, Kind},
    ring::{self, RingLog},
};

/// Ids that are remembered after their events were evicted, as hashes: a client with one of them is `expired`, not
/// `foreign`. They take about 3 MiB.
const EXPIRED_IDS: usize = 65_536;

/// Bounds of the history. The newest entry is always retained, whatever it is.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of events of the upstream (`--history`).
    pub events: usize,
    /// Maximum number of bytes, as charged: the text of an event and 256 bytes (`--history-memory`).
    pub bytes: usize,
}

/// The entries of the history, and the places of their ids.
#[derive(Debug)]
pub(super) struct State {
    pub(super) log: RingLog<Entry>,
    /// The number of events of the upstream in the log.
    pub(super) events: usize,
    /// The ids of the entries in the log, and the last id of the upstream, also when its entries were evicted.
    ids: HashMap<Box<str>, IdPlace>,
    /// The last id of the upstream.
    last_id: Option<Box<str>>,
    expired: ExpiredIds,
    /// The newest `matrix-down` or `matrix-up`.
    pub(super) status: Option<Arc<Entry>>,
    /// The last position of an event of the upstream, or of a report that events may be missing, that was evicted. A client that
    /// continues at it or before it misses something.
    last_evicted: Option<u64>,
}

/// Where an id is in the log.
#[derive(Clone, Copy, Debug)]
struct IdPlace {
    /// The first event of those in a row that have the id.
    first: u64,
    /// The last of them.
    last: u64,
    /// The upstream has used the id for an earlier place too.
    is_ambiguous: bool,
}

/// Hashes of the last [`EXPIRED_IDS`] evicted ids.
#[derive(Debug, Default)]
struct ExpiredIds {
    hasher: RandomState,
    order: VecDeque<u64>,
    /// How often each of them is in `order`.
    counts: HashMap<u64, u32>,
}

/// Where a client starts.
#[derive(Debug)]
pub(in crate::relay) struct Start {
    pub(in crate::relay) position: u64,
    /// What the client may miss.
    pub(in crate::relay) gap: Option<GapReason>,
    /// The end of the log now. Before it, a change of the upstream's status is history.
    pub(in crate::relay) end: u64,
    /// The newest status.
    pub(in crate::relay) status: Option<Arc<Entry>>,
}

impl ExpiredIds {
    fn insert(&mut self, id: &str) {
        let hash = self.hasher.hash_one(id);
        *self.counts.entry(hash).or_default() += 1;
        if self.order.len() == EXPIRED_IDS
            && let Some(oldest) = self.order.pop_front()
            && let Some(count) = self.counts.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
            }
        }
        self.order.push_back(hash);
    }

    fn contains(&self, id: &str) -> bool {
        self.counts.contains_key(&self.hasher.hash_one(id))
    }
}

impl State {
    pub(super) fn new() -> State {
        // The limits of the log itself are not used: it holds events of the relay too, which do not count.
        let unlimited = ring::Limits { items: usize::MAX, bytes: usize::MAX, age_ms: u64::MAX };
        State {
            log: RingLog::new(unlimited),
            events: 0,
            ids: HashMap::new(),
            last_id: None,
            expired: ExpiredIds::default(),
            status: None,
            last_evicted: None,
        }
    }

    pub(super) fn push(&mut self, entry: Entry) {
        if entry.kind == Kind::Event {
            self.events += 1;
        }
        if let Some(id) = entry.id() {
            self.push_id(id);
        }
        let (charge, entry) = (entry.charge(), Arc::new(entry));
        if matches!(entry.kind, Kind::Down | Kind::Up) {
            self.status = Some(entry.clone());
        }
        self.log.push(entry, charge, 0);
    }

    /// Records that the next position has this id.
    fn push_id(&mut self, id: &str) {
        let position = self.log.end_position();
        if self.last_id.as_deref() == Some(id)
            && let Some(place) = self.ids.get_mut(id)
        {
            place.last = position;
            return;
        }
        if let Some(earlier) = self.last_id.replace(id.into()) {
            self.forget_if_evicted(&earlier);
        }
        let is_ambiguous = self.ids.contains_key(id) || self.expired.contains(id);
        self.ids.insert(id.into(), IdPlace { first: position, last: position, is_ambiguous });
    }

    /// Removes an id whose entries were evicted, unless it is the last one: its place can still grow.
    fn forget_if_evicted(&mut self, id: &str) {
        let is_last = self.last_id.as_deref() == Some(id);
        if !is_last && self.ids.get(id).is_some_and(|place| place.last < self.log.first_position()) {
            self.ids.remove(id);
            self.expired.insert(id);
        }
    }

    /// Removes the oldest entry if a limit is exceeded. Returns whether it has.
    pub(super) fn evict(&mut self, limits: Limits) -> bool {
        let first = self.log.first_position();
        let is_exceeded = self.events > limits.events || self.log.bytes() > limits.bytes;
        if !is_exceeded || first + 1 >= self.log.end_position() {
            return false;
        }
        let oldest = self.log.read_from(first, 1).and_then(|mut entries| entries.next().cloned());
        self.log.discard_before(first + 1);
        let Some(oldest) = oldest else { return false };
        if oldest.kind == Kind::Event {
            self.events -= 1;
        }
        if matches!(oldest.kind, Kind::Event | Kind::Gap) {
            self.last_evicted = Some(first);
        }
        if let Some(id) = oldest.id() {
            self.forget_if_evicted(id);
        }
        true
    }

    /// Returns whether an entry has had this id, as far as the history remembers.
    pub(super) fn has_seen(&self, id: &str) -> bool {
        self.ids.contains_key(id) || self.expired.contains(id)
    }

    /// Returns where a client starts that has read the event with this id.
    pub(super) fn start(&self, after: Option<&str>) -> Start {
        let first = self.log.first_position();
        let place = after.map(|id| (id, self.ids.get(id)));
        match place {
            None => self.start_at(0),
            Some((_, Some(place))) if !place.is_ambiguous => self.start_at(place.first + 1),
            Some((_, Some(_))) => self.start_with(first, Some(GapReason::Upstream)),
            Some((id, None)) if self.expired.contains(id) => self.start_with(first, Some(GapReason::Expired)),
            Some((_, None)) => self.start_with(first, Some(GapReason::Foreign)),
        }
    }

    /// Returns where a client starts that continues at this position.
    pub(super) fn start_at(&self, position: u64) -> Start {
        let first = self.log.first_position();
        if self.last_evicted.is_some_and(|evicted| evicted >= position) {
            return self.start_with(first, Some(GapReason::Expired));
        }
        self.start_with(position.max(first), None)
    }

    pub(super) fn start_with(&self, position: u64, gap: Option<GapReason>) -> Start {
        Start { position, gap, end: self.log.end_position(), status: self.status.clone() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::client::Block;

    const IDS: [&str; 4] = ["1", "2", "3", "4"];

    fn entry(kind: Kind, id: Option<&str>, bytes: usize) -> Entry {
        let block = Block { id: id.map(str::to_owned), name: None, data: "x".repeat(bytes) };
        Entry::new(kind, block)
    }

    fn state(limits: Limits, entries: impl IntoIterator<Item = Entry>) -> State {
        let mut state = State::new();
        for entry in entries {
            state.push(entry);
            while state.evict(limits) {}
        }
        state
    }

    /// The position that this number of entries precedes, and the gap.
    fn start(state: &State, after: Option<&str>) -> (u64, Option<GapReason>) {
        let start = state.start(after);
        (start.position - State::new().log.end_position(), start.gap)
    }

    #[test]
    fn evicted_events_after_an_id_are_a_gap_while_heartbeats_repeat_it() {
        let limits = Limits { events: 3, bytes: 1 << 20 };
        let event = |id| entry(Kind::Event, id, 1);
        let (one, none) = (Some("1"), None);
        let events = [one, none, none, one, one];
        assert_eq!(
            start(&state(limits, events[..4].iter().copied().map(event)), one),
            (1, None),
            "only `1` is evicted"
        );
        assert_eq!(start(&state(limits, events.map(event)), one), (2, Some(GapReason::Expired)));
        // All events with the id are evicted, and then a heartbeat has it again.
        let events = [one, none, none, none, none, one];
        assert_eq!(start(&state(limits, events[..5].iter().copied().map(event)), one), (2, Some(GapReason::Expired)));
        assert_eq!(start(&state(limits, events.map(event)), one), (3, Some(GapReason::Expired)));
    }

    #[test]
    fn id_that_is_used_again_after_its_eviction_leads_to_no_position() {
        let limits = Limits { events: 2, bytes: 1 << 20 };
        let event = |id| entry(Kind::Event, Some(id), 1);
        let state = state(limits, ["1", "2", "3", "4", "1", "2"].map(event));
        assert_eq!(start(&state, Some("1")), (4, Some(GapReason::Upstream)));
        assert_eq!(start(&state, Some("3")), (4, Some(GapReason::Expired)));
    }

    #[test]
    fn client_of_the_newest_event_lacks_nothing_when_a_report_evicts_it() {
        let limits = Limits { events: 9, bytes: 4096 };
        for kind in [Kind::Message, Kind::Down] {
            let state = state(limits, [entry(Kind::Event, Some("1"), 4096), entry(kind, None, 1)]);
            assert_eq!(start(&state, Some("1")), (1, None));
            assert_eq!(start(&state, None), (1, Some(GapReason::Expired)));
        }
        // A report that events are missing is not left out.
        let entries = [(Kind::Event, Some("1"), 1), (Kind::Gap, None, 1), (Kind::Message, None, 4096)];
        let state = state(limits, entries.map(|(kind, id, bytes)| entry(kind, id, bytes)));
        assert_eq!(start(&state, Some("1")), (2, Some(GapReason::Expired)));
    }

    #[test]
    fn the_last_evicted_ids_are_remembered() {
        let mut expired = ExpiredIds::default();
        expired.insert("again");
        (1..EXPIRED_IDS).for_each(|id| expired.insert(&id.to_string()));
        expired.insert("again");
        (1..EXPIRED_IDS).for_each(|_| expired.insert("other"));
        assert!(expired.contains("again") && !expired.contains("1"));
        expired.insert("other");
        assert!(!expired.contains("again"));
        assert_eq!((expired.order.len(), expired.counts.len()), (EXPIRED_IDS, 1));
    }

    /// Every entry that a history has had.
    #[derive(Default)]
    struct Model {
        entries: Vec<(Kind, Option<&'static str>)>,
        /// The first and the last entry of those in a row that have an id, in their order.
        runs: Vec<(&'static str, usize, usize)>,
    }

    impl Model {
        fn push(&mut self, kind: Kind, id: Option<&'static str>) {
            let at = self.entries.len();
            self.entries.push((kind, id));
            match (id, self.runs.last_mut()) {
                (None, _) => {}
                (Some(id), Some((last_id, _, last))) if *last_id == id => *last = at,
                (Some(id), _) => self.runs.push((id, at, at)),
            }
        }

        /// Whether a client that continues at this entry lacks one of those that were evicted.
        fn lacks(&self, at: usize, evicted: usize) -> bool {
            (at..evicted).any(|at| matches!(self.entries[at].0, Kind::Event | Kind::Gap))
        }

        /// Returns the first entry that a client receives, and the gap before it.
        fn start(&self, after: Option<&str>, evicted: usize) -> (usize, Option<GapReason>) {
            let Some(id) = after else { return (evicted, self.lacks(0, evicted).then_some(GapReason::Expired)) };
            let runs: Vec<_> = self.runs.iter().filter(|(run, ..)| *run == id).collect();
            let Some((_, first, last)) = runs.last() else { return (evicted, Some(GapReason::Foreign)) };
            let is_last = self.runs.last().is_some_and(|(run, ..)| *run == id);
            let gap = if *last < evicted && !is_last {
                Some(GapReason::Expired)
            } else if runs.len() > 1 {
                Some(GapReason::Upstream)
            } else {
                self.lacks(first + 1, evicted).then_some(GapReason::Expired)
            };
            (if gap.is_some() { evicted } else { evicted.max(first + 1) }, gap)
        }
    }

    fn kind() -> impl Strategy<Value = Kind> {
        let own = prop::sample::select(vec![Kind::Down, Kind::Up, Kind::Gap, Kind::Message]);
        prop_oneof![3 => Just(Kind::Event), 1 => own]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        /// A client that resumes gets every event and every report after its id, or a gap, whatever the ids are.
        #[test]
        fn clients_start_where_they_lack_nothing_or_with_a_gap(
            (events, bytes) in (1..5usize, 500..4000usize),
            pushed in prop::collection::vec((kind(), prop::option::of(prop::sample::select(IDS.to_vec())), 0..1000usize), 0..40),
        ) {
            let limits = Limits { events, bytes };
            let (mut state, mut model) = (State::new(), Model::default());
            let zero = state.log.first_position();
            for (kind, id, bytes) in pushed {
                let id = id.filter(|_| kind == Kind::Event);
                model.push(kind, id);
                state.push(entry(kind, id, bytes));
                while state.evict(limits) {}

                let evicted = (state.log.first_position() - zero) as usize;
                let retained = &model.entries[evicted..];
                let events = retained.iter().filter(|(kind, _)| *kind == Kind::Event).count();
                prop_assert_eq!(events, state.events);
                let is_within = events <= limits.events && state.log.bytes() <= limits.bytes;
                prop_assert!(is_within || retained.len() == 1);
                for after in std::iter::once(None).chain(IDS.map(Some)) {
                    let (at, gap) = model.start(after, evicted);
                    prop_assert_eq!(start(&state, after), (at as u64, gap), "after {:?}", after);
                }
                for at in 0..evicted {
                    let gap = model.lacks(at, evicted).then_some(GapReason::Expired);
                    prop_assert_eq!(state.start_at(zero + at as u64).gap, gap);
                }
                let is_run = |id: &str| model.runs.iter().any(|(run, ..)| *run == id);
                prop_assert!(IDS.iter().all(|id| is_run(id) == (state.ids.contains_key(*id) || state.expired.contains(id))));
                prop_assert!(state.ids.len() <= retained.len() + 1);
            }
        }
    }
}
