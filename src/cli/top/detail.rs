//! All fields of one object, as names and values.

use serde_json::Value;

use super::{
    data::{Clock, Logged},
    rows::{Row, age, sparkline},
};
use crate::{
    cli::logging::escape,
    client::{Claim, Instance},
};

/// The least width of the column of the names.
const NAME_WIDTH: usize = 14;

/// Names and values.
pub(super) type Fields = Vec<(String, String)>;

/// Names and values as lines that fit on the screen, escaped. A long value continues on lines without a name.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines {
    pub(super) name_width: u16,
    pub(super) lines: Fields,
}

impl Lines {
    /// Wraps values to a screen of this width.
    pub(super) fn new<T: AsRef<str>>(fields: &[(T, T)], width: u16) -> Lines {
        let longest = fields.iter().map(|(name, _)| name.as_ref().chars().count()).max().unwrap_or(0);
        let half = usize::from(width / 2);
        let name_width = longest.max(NAME_WIDTH).min(half.max(1));
        let room = usize::from(width).saturating_sub(name_width + 1).max(1);
        let mut lines = Vec::new();
        for (name, value) in fields {
            let value: Vec<char> = escape(value.as_ref()).chars().collect();
            let mut parts = value.chunks(room).map(|part| part.iter().collect::<String>());
            lines.push((escape(name.as_ref()).into_owned(), parts.next().unwrap_or_default()));
            lines.extend(parts.map(|part| (String::new(), part)));
        }
        Lines { name_width: u16::try_from(name_width).unwrap_or(u16::MAX), lines }
    }
}

/// Returns the fields of a row, not escaped. `width` is that of the graph.
pub(super) fn fields(row: &Row<'_>, width: u16, clock: Clock) -> Fields {
    match row {
        Row::Instance(instance) => instance_fields(instance, clock),
        Row::Claim(claim) => claim_fields(claim, clock),
        Row::Pool(workload, depth) => [
            ("workload", (*workload).to_owned()),
            ("warming", depth.counts.warming.to_string()),
            ("ready", depth.counts.ready.to_string()),
            ("acquired", depth.counts.acquired.to_string()),
            ("ready, least", depth.ready.iter().min().map_or_else(String::new, u64::to_string)),
            ("ready, most", depth.ready.iter().max().map_or_else(String::new, u64::to_string)),
            ("ready, 120 s", sparkline(depth, width)),
        ]
        .map(named)
        .into(),
        Row::Event(event) => event_fields(event),
    }
}

fn named((name, value): (&str, String)) -> (String, String) {
    (name.to_owned(), value)
}

fn with_age(time: &str, clock: Clock) -> String {
    match age(time, clock).as_str() {
        "" => time.to_owned(),
        age => format!("{time} ({age} ago)"),
    }
}

fn instance_fields(instance: &Instance, clock: Clock) -> Fields {
    let optional = |text: &Option<String>| text.clone().unwrap_or_default();
    let mut fields: Fields = [
        ("name", instance.name.clone()),
        ("uid", instance.uid.clone()),
        ("phase", instance.phase.clone()),
        ("workload", optional(&instance.workload_ref)),
        ("tenant", optional(&instance.tenant_id)),
        ("pool status", optional(&instance.pool_status)),
        ("ip", optional(&instance.ip)),
        ("created", with_age(&instance.created_at, clock)),
    ]
    .map(named)
    .into();
    fields.extend(instance.labels.iter().map(|(name, value)| (format!("label {name}"), value.clone())));
    fields
}

fn claim_fields(claim: &Claim, clock: Clock) -> Fields {
    let optional = |text: &Option<String>| text.clone().unwrap_or_default();
    let endpoint = claim.endpoint.as_ref().map_or_else(String::new, |at| format!("{}:{}", at.host, at.port));
    let mut fields: Fields = [
        ("name", claim.name.clone()),
        ("uid", claim.uid.clone()),
        ("tenant", claim.tenant_id.clone()),
        ("workload", claim.workload_ref.clone()),
        ("phase", claim.phase.clone()),
        ("instance", optional(&claim.instance_id)),
        ("endpoint", endpoint),
        ("source", optional(&claim.source)),
        ("claimed", claim.claimed_at.as_ref().map_or_else(String::new, |time| with_age(time, clock))),
        ("detail", optional(&claim.detail)),
    ]
    .map(named)
    .into();
    fields.extend(claim.labels.iter().map(|(name, value)| (format!("label {name}"), value.clone())));
    fields
}

/// Returns the members of an event. JSON that was cut is shown as it is.
fn event_fields(event: &Logged) -> Fields {
    let mut fields: Fields = [("time", event.time.clone()), ("event", event.text.clone())].map(named).into();
    match serde_json::from_str(&event.json) {
        Ok(Value::Object(members)) => {
            for (name, value) in members {
                match value {
                    Value::Object(inner) => {
                        fields.extend(inner.into_iter().map(|(key, value)| (format!("{name}.{key}"), plain(value))));
                    }
                    value => fields.push((name, plain(value))),
                }
            }
        }
        _ => fields.push(named(("json", event.json.clone()))),
    }
    fields
}

/// Returns a value without the quotes of a string.
fn plain(value: Value) -> String {
    match value {
        Value::String(text) => text,
        value => value.to_string(),
    }
}
