//! The rows of a view, in their order. Rows borrow from the data; nothing is formatted before it is shown.

use std::{
    borrow::Cow,
    cmp::{Ordering, Reverse},
};

use super::{
    columns::View,
    data::{Clock, Data, Depth, Logged},
};
use crate::{
    cli::event_text::{Tone, phase_tone},
    client::{Claim, Instance},
};

impl View {
    /// Returns all rows, in any order.
    pub(super) fn all<'a>(self, data: &'a Data) -> Box<dyn Iterator<Item = Row<'a>> + 'a> {
        match self {
            View::Instances => Box::new(data.state().instances().values().map(Row::Instance)),
            View::Tenants => Box::new(data.state().claims().values().map(Row::Claim)),
            View::Pools => Box::new(data.pools().iter().map(|(workload, depth)| Row::Pool(workload, depth))),
            View::Events => Box::new(data.events().iter().map(Row::Event)),
        }
    }

    /// Returns the rows that the filter selects, in any order.
    pub(super) fn filtered<'a>(self, data: &'a Data, filter: &str) -> Vec<Row<'a>> {
        let filter = Filter::new(filter);
        self.all(data).filter(|row| filter.selects(row)).collect()
    }

    /// Returns the rows that the filter selects, in order.
    pub(super) fn rows<'a>(self, data: &'a Data, filter: &str, order: Order) -> Vec<Row<'a>> {
        let mut rows = self.filtered(data, filter);
        rows.sort_unstable_by(|one, other| order.compare(one, other));
        rows
    }

    /// Returns the order of a view at the start: by name, and the newest event first.
    pub(super) fn first_order(self) -> Order {
        Order { column: 0, is_descending: self == View::Events }
    }
}

/// The column that sorts, and its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) column: usize,
    pub(super) is_descending: bool,
}

impl Order {
    /// Compares two rows of one view. Different rows are never equal.
    pub(super) fn compare(self, one: &Row<'_>, other: &Row<'_>) -> Ordering {
        let ordering = one.sort_key(self.column).cmp(&other.sort_key(self.column));
        let ordering = if self.is_descending { ordering.reverse() } else { ordering };
        ordering.then_with(|| one.tie_break().cmp(&other.tie_break()))
    }

    /// Reduces rows to those from `top` on that fit into `height` rows, in order. The others are not sorted.
    pub(super) fn window(self, rows: &mut Vec<Row<'_>>, top: usize, height: usize) {
        let compare = |one: &Row<'_>, other: &Row<'_>| self.compare(one, other);
        if 0 < top && top < rows.len() {
            rows.select_nth_unstable_by(top, compare);
        }
        rows.drain(..top.min(rows.len()));
        if height < rows.len() {
            rows.select_nth_unstable_by(height, compare);
            rows.truncate(height);
        }
        rows.sort_unstable_by(compare);
    }
}

/// What identifies a row while rows move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// The uid of an object, or the workload of a pool.
    Object(String),
    /// The number of an event.
    Event(u64),
}

/// A row.
#[derive(Clone, Copy, Debug)]
pub(super) enum Row<'a> {
    Instance(&'a Instance),
    Claim(&'a Claim),
    Pool(&'a str, &'a Depth),
    Event(&'a Logged),
}

/// What a column sorts by.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SortKey<'a> {
    Text(&'a str),
    Number(u64),
    /// A time (RFC 3339, UTC): the smallest age comes first.
    Age(Reverse<&'a str>),
}

impl<'a> Row<'a> {
    pub(super) fn key(&self) -> Key {
        match self {
            Row::Instance(instance) => Key::Object(instance.uid.clone()),
            Row::Claim(claim) => Key::Object(claim.uid.clone()),
            Row::Pool(workload, _) => Key::Object((*workload).to_owned()),
            Row::Event(event) => Key::Event(event.number),
        }
    }

    pub(super) fn is(&self, key: &Key) -> bool {
        match (self, key) {
            (Row::Instance(instance), Key::Object(uid)) => instance.uid == *uid,
            (Row::Claim(claim), Key::Object(uid)) => claim.uid == *uid,
            (Row::Pool(workload, _), Key::Object(name)) => workload == name,
            (Row::Event(event), Key::Event(number)) => event.number == *number,
            _ => false,
        }
    }

    /// Returns what the cell shows. It is not escaped. `width` is that of the column.
    pub(super) fn cell(&self, column: usize, width: u16, clock: Clock) -> Cow<'a, str> {
        let text = |text: &'a str| Cow::Borrowed(text);
        let optional = |text: &'a Option<String>| Cow::Borrowed(text.as_deref().unwrap_or_default());
        match (self, column) {
            (Row::Instance(instance), 0) => text(&instance.name),
            (Row::Instance(instance), 1) => text(&instance.phase),
            (Row::Instance(instance), 2) => optional(&instance.workload_ref),
            (Row::Instance(instance), 3) => optional(&instance.tenant_id),
            (Row::Instance(instance), 4) => optional(&instance.pool_status),
            (Row::Instance(instance), 5) => age(&instance.created_at, clock).into(),
            (Row::Instance(instance), _) => optional(&instance.ip),
            (Row::Claim(claim), 0) => text(&claim.tenant_id),
            (Row::Claim(claim), 1) => text(&claim.name),
            (Row::Claim(claim), 2) => text(&claim.phase),
            (Row::Claim(claim), 3) => text(&claim.workload_ref),
            (Row::Claim(claim), 4) => optional(&claim.instance_id),
            (Row::Claim(claim), 5) => optional(&claim.source),
            (Row::Claim(claim), _) => age(claim.claimed_at.as_deref().unwrap_or_default(), clock).into(),
            (Row::Pool(workload, _), 0) => text(workload),
            (Row::Pool(_, depth), 1) => depth.counts.warming.to_string().into(),
            (Row::Pool(_, depth), 2) => depth.counts.ready.to_string().into(),
            (Row::Pool(_, depth), 3) => depth.counts.acquired.to_string().into(),
            (Row::Pool(_, depth), _) => sparkline(depth, width).into(),
            (Row::Event(event), 0) => text(&event.time),
            (Row::Event(event), 1) => text(&event.kind),
            (Row::Event(event), _) => text(&event.text),
        }
    }

    fn sort_key(&self, column: usize) -> SortKey<'a> {
        let optional = |text: &'a Option<String>| SortKey::Text(text.as_deref().unwrap_or_default());
        match (self, column) {
            (Row::Instance(instance), 0) => SortKey::Text(&instance.name),
            (Row::Instance(instance), 1) => SortKey::Text(&instance.phase),
            (Row::Instance(instance), 2) => optional(&instance.workload_ref),
            (Row::Instance(instance), 3) => optional(&instance.tenant_id),
            (Row::Instance(instance), 4) => optional(&instance.pool_status),
            (Row::Instance(instance), 5) => SortKey::Age(Reverse(&instance.created_at)),
            (Row::Instance(instance), _) => optional(&instance.ip),
            (Row::Claim(claim), 0) => SortKey::Text(&claim.tenant_id),
            (Row::Claim(claim), 1) => SortKey::Text(&claim.name),
            (Row::Claim(claim), 2) => SortKey::Text(&claim.phase),
            (Row::Claim(claim), 3) => SortKey::Text(&claim.workload_ref),
            (Row::Claim(claim), 4) => optional(&claim.instance_id),
            (Row::Claim(claim), 5) => optional(&claim.source),
            (Row::Claim(claim), _) => SortKey::Age(Reverse(claim.claimed_at.as_deref().unwrap_or_default())),
            (Row::Pool(workload, _), 0) => SortKey::Text(workload),
            (Row::Pool(_, depth), 1) => SortKey::Number(depth.counts.warming),
            (Row::Pool(_, depth), 3) => SortKey::Number(depth.counts.acquired),
            (Row::Pool(_, depth), _) => SortKey::Number(depth.counts.ready),
            (Row::Event(event), 0) => SortKey::Number(event.number),
            (Row::Event(event), 1) => SortKey::Text(&event.kind),
            (Row::Event(event), _) => SortKey::Text(&event.text),
        }
    }

    /// Orders rows that are equal in the column that sorts. The newest event comes first.
    fn tie_break(&self) -> (&'a str, &'a str, Reverse<u64>) {
        match self {
            Row::Instance(instance) => (&instance.name, &instance.uid, Reverse(0)),
            Row::Claim(claim) => (&claim.name, &claim.uid, Reverse(0)),
            Row::Pool(workload, _) => (workload, "", Reverse(0)),
            Row::Event(event) => ("", "", Reverse(event.number)),
        }
    }

    /// Returns the column that has the tone of the row, and the tone.
    pub(super) fn tone(&self) -> (usize, Tone) {
        match self {
            Row::Instance(instance) => (1, phase_tone(&instance.phase)),
            Row::Claim(claim) => (2, phase_tone(&claim.phase)),
            Row::Pool(..) => (4, Tone::Pool),
            Row::Event(event) => (1, event.tone),
        }
    }

    /// Calls `found` with each text that a filter looks at, until it returns true. `has_pairs` adds each label as
    /// `KEY=VALUE`.
    fn any_text(&self, has_pairs: bool, mut found: impl FnMut(&str) -> bool) -> bool {
        let mut any = |texts: &[&str]| texts.iter().any(|text| found(text));
        let option = |text: &'a Option<String>| text.as_deref().unwrap_or_default();
        let labels = match self {
            Row::Instance(instance) => {
                let Instance { name, workload_ref, tenant_id, phase, .. } = instance;
                if any(&[name, option(workload_ref), option(tenant_id), phase]) {
                    return true;
                }
                &instance.labels
            }
            Row::Claim(claim) => {
                let Claim { name, workload_ref, tenant_id, phase, instance_id, .. } = claim;
                if any(&[name, workload_ref, tenant_id, phase, option(instance_id)]) {
                    return true;
                }
                &claim.labels
            }
            Row::Pool(workload, _) => return any(&[workload]),
            Row::Event(event) => return any(&[&event.kind, &event.text]),
        };
        let mut pair = |name: &str, value: &str| has_pairs && any(&[&format!("{name}={value}")]);
        labels.iter().any(|(name, value)| pair(name, value)) || labels.iter().any(|(name, value)| any(&[name, value]))
    }
}

/// A text that selects rows. `!` before it selects the others.
struct Filter<'a> {
    text: &'a [u8],
    is_inverse: bool,
}

impl<'a> Filter<'a> {
    fn new(text: &'a str) -> Filter<'a> {
        let inverse = text.strip_prefix('!');
        Filter { text: inverse.unwrap_or(text).as_bytes(), is_inverse: inverse.is_some() }
    }

    fn selects(&self, row: &Row<'_>) -> bool {
        // ASCII letters match in both cases.
        let contains =
            |text: &str| text.as_bytes().windows(self.text.len()).any(|part| part.eq_ignore_ascii_case(self.text));
        // Only a text with `=` can be in a pair and in neither of its halves.
        let has_pairs = self.text.contains(&b'=');
        self.text.is_empty() || row.any_text(has_pairs, contains) != self.is_inverse
    }
}

/// Returns the age of a time (RFC 3339), such as `12s`, `5m`, `3h` or `2d`.
pub(super) fn age(time: &str, clock: Clock) -> String {
    let Ok(time) = time.parse::<jiff::Timestamp>() else { return String::new() };
    // The clock of the cluster may be ahead.
    let seconds = (clock.wall.as_second() - time.as_second()).max(0);
    let (minute, hour, day) = (60, 3600, 86_400);
    match seconds {
        _ if seconds < 2 * minute => format!("{seconds}s"),
        _ if seconds < 2 * hour => format!("{}m", seconds / minute),
        _ if seconds < 2 * day => format!("{}h", seconds / hour),
        _ => format!("{}d", seconds / day),
    }
}

/// Returns the depth of a pool over time, the newest second last, as bars up to the largest value.
pub(super) fn sparkline(depth: &Depth, width: u16) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let max = depth.ready.iter().copied().max().unwrap_or(0).max(1);
    let shown = depth.ready.len().min(usize::from(width));
    let samples = depth.ready.iter().skip(depth.ready.len() - shown);
    let bar = |ready: u64| BARS[usize::try_from(ready.saturating_mul(7).div_ceil(max)).unwrap_or(7).min(7)];
    samples.map(|ready| bar(*ready)).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::Event;

    fn data() -> Data {
        let clock = Clock { wall: "2026-01-02T03:04:05Z".parse().unwrap(), ..Clock::read() };
        let mut data = Data::new(clock);
        let state = r#"{"type":"state.initial","reason":"connect","instances":[
            {"uid":"1","name":"b","phase":"Running","createdAt":"2026-01-02T03:04:00Z","labels":{"team":"Blue"}},
            {"uid":"2","name":"a","phase":"Running","createdAt":"2026-01-01T00:00:00Z","tenantId":"alice"},
            {"uid":"3","name":"c","phase":"Failed","createdAt":"2026-01-02T03:00:00Z","workloadRef":"web"}],
            "claims":[],"pools":[{"workloadRef":"web","ready":2}]}"#;
        data.apply(&Event::from_json(state).unwrap(), clock);
        data
    }

    fn names(data: &Data, filter: &str, column: usize, is_descending: bool) -> String {
        let rows = View::Instances.rows(data, filter, Order { column, is_descending });
        rows.iter().map(|row| row.cell(0, 10, data.clock)).collect()
    }

    #[test]
    fn rows_are_sorted_and_filtered() {
        let data = data();
        assert_eq!(names(&data, "", 0, false), "abc");
        assert_eq!(names(&data, "", 0, true), "cba");
        assert_eq!(names(&data, "", 1, false), "cab", "by phase, then by name");
        assert_eq!(names(&data, "", 5, false), "bca", "by age");
        let filters = [
            ("TEAM=blue", "b"),
            ("m=B", "b"),
            ("blue", "b"),
            ("team", "b"),
            ("alice", "a"),
            ("web", "c"),
            ("running", "ab"),
            ("!running", "c"),
            ("x", ""),
        ];
        for (filter, expected) in filters {
            assert_eq!(names(&data, filter, 0, false), expected, "{filter}");
        }
        for (top, height, expected) in [(0, 2, "ab"), (1, 1, "b"), (1, 9, "bc"), (3, 2, ""), (0, 0, "")] {
            let mut rows = View::Instances.filtered(&data, "");
            View::Instances.first_order().window(&mut rows, top, height);
            let names: String = rows.iter().map(|row| row.cell(0, 10, data.clock)).collect();
            assert_eq!(names, expected, "{height} rows from {top}");
        }
        let events = View::Events.rows(&data, "", View::Events.first_order());
        assert!(events.len() == 1 && events[0].is(&Key::Event(1)));
    }

    #[test]
    fn ages_are_short() {
        let clock = data().clock;
        let times = ["2026-01-02T03:04:00Z", "2026-01-02T03:00:00Z", "2026-01-01T00:00:00Z", "2025-01-01T00:00:00Z"];
        assert_eq!(times.map(|time| age(time, clock)), ["5s", "4m", "27h", "366d"]);
        assert_eq!((age("", clock), age("2027-01-01T00:00:00Z", clock)), (String::new(), "0s".to_owned()));
    }

    #[test]
    fn a_sparkline_shows_the_newest_samples() {
        let mut data = data();
        for second in 1..=3 {
            let event = format!(r#"{{"type":"pool.depth","workloadRef":"web","ready":{second}}}"#);
            data.apply(&Event::from_json(&event).unwrap(), data.clock);
            data.tick(Clock { now: data.clock.now + Duration::from_secs(1), ..data.clock });
        }
        assert_eq!(sparkline(&data.pools()["web"], 10), "▄▆█");
        assert_eq!(sparkline(&data.pools()["web"], 2), "▆█");
    }
}
