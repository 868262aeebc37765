//! What has been measured, as a table or as JSON: medians over the rounds.

use std::{fmt::Write as _, time::Duration};

use anyhow::Result;
use serde::Serialize;

use super::{Bench, Mode, Subject, clients::Report, first::First};

/// One server in one round.
pub(super) struct Sample {
    pub(super) changes: u64,
    pub(super) deliveries: u64,
    pub(super) bytes: u64,
    /// The server's processor time.
    pub(super) cpu: Option<Duration>,
    pub(super) report: Report,
    /// GETs that were answered meanwhile, where somebody asked.
    pub(super) gets: Option<u64>,
}

/// What became of the simulated cluster.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Api {
    pub(super) bridges: usize,
    /// Open before the first client came, and with all of them.
    pub(super) watches_before: u64,
    pub(super) watches: u64,
    pub(super) requests_in_storms: u64,
}

/// A server's line, in one mode. Times in microseconds, memory in bytes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    name: String,
    is_floor: bool,
    is_encrypted: bool,
    #[serde(skip)]
    mode: Mode,
    deliveries: u64,
    /// Expected by the number of changes and connections; none where filters decide.
    expected: Option<u64>,
    bytes_an_event: usize,
    /// Reads of the clients for each event: less than 1 where events came together.
    reads_a_delivery: f64,
    cpu_a_delivery: Option<f64>,
    /// Of the floor's, of the same mode and equally encrypted.
    times_floor: Option<f64>,
    cpu_a_change: Option<f64>,
    p50: Option<u64>,
    p99: Option<u64>,
    max: u64,
    /// 99 of 100 changes had reached all clients by then.
    last_p99: Option<u64>,
    memory_a_connection: Option<f64>,
    /// What all connections together added to a server that had none.
    memory_beyond_empty: Option<u64>,
    memory: Option<u64>,
    storm_millis: Option<u64>,
    storm_new_states: Option<u64>,
    gets_a_second: Option<f64>,
}

impl Row {
    /// One for each subject and mode.
    pub(super) fn all(subjects: &[Subject], bench: &Bench) -> Vec<Row> {
        let each = |subject| bench.modes(subject).into_iter().map(move |mode| Row::of(subject, mode, bench));
        let mut rows: Vec<Row> = subjects.iter().flat_map(each).collect();
        let floors: Vec<_> = rows
            .iter()
            .filter(|row| row.is_floor)
            .map(|row| (row.mode, row.is_encrypted, row.cpu_a_delivery))
            .collect();
        for row in &mut rows {
            // Of several the first.
            let floor = floors.iter().find(|(mode, tls, _)| (*mode, *tls) == (row.mode, row.is_encrypted));
            row.times_floor = row.cpu_a_delivery.zip(floor.and_then(|floor| floor.2)).map(|(own, floor)| own / floor);
        }
        rows
    }

    fn of(subject: &Subject, mode: Mode, bench: &Bench) -> Row {
        let all = || subject.samples.iter().filter(|(measured, _)| *measured == mode).map(|(_, sample)| sample);
        let is_floor = subject.is_floor();
        let expected = (is_floor || bench.filters == 0)
            .then(|| all().map(|sample| sample.changes * bench.connections).sum())
            .filter(|expected| *expected > 0);
        let part = |what: fn(&Sample) -> Option<f64>| median(all().filter_map(what).collect());
        let micros =
            |what: fn(&Sample) -> Option<u64>| part_of(all().filter_map(what).map(|micros| micros as f64).collect());
        // What is of the whole run stands in one row.
        let whole = (mode == Mode::AsAsked).then_some(subject);
        let storm = whole.and_then(|subject| subject.storm.as_ref());
        Row {
            name: format!("{}{}", subject.name, mode.suffix()),
            is_floor,
            is_encrypted: subject.is_encrypted,
            mode,
            deliveries: all().map(|sample| sample.deliveries).sum(),
            expected,
            bytes_an_event: subject.bytes,
            reads_a_delivery: part(|s| Some(s.report.reads as f64 / s.deliveries as f64)).unwrap_or_default(),
            cpu_a_delivery: part(|s| Some(s.cpu?.as_secs_f64() * 1e6 / s.deliveries as f64)),
            times_floor: None,
            cpu_a_change: part(|s| Some(s.cpu?.as_secs_f64() * 1e6 / s.changes as f64)),
            p50: micros(|s| s.report.latency.quantile(0.5)),
            p99: micros(|s| s.report.latency.quantile(0.99)),
            max: all().map(|sample| sample.report.latency.max()).max().unwrap_or_default(),
            last_p99: micros(|s| s.report.last.quantile(0.99)),
            memory_a_connection: whole.and_then(|subject| subject.memory),
            memory_beyond_empty: whole.and_then(|subject| subject.beyond_empty),
            memory: whole.and_then(|subject| super::process::memory(subject.pid?).ok()),
            storm_millis: storm.map(|storm| storm.millis),
            storm_new_states: storm.map(|storm| storm.new_states),
            gets_a_second: part(|s| Some(s.gets? as f64)).map(|count| count / bench.seconds as f64),
        }
    }
}

/// Of an even number the upper one; of nothing, or of what has no value, none.
fn median(mut all: Vec<f64>) -> Option<f64> {
    all.retain(|value| value.is_finite());
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied()
}

fn part_of(all: Vec<f64>) -> Option<u64> {
    median(all).map(|micros| micros as u64)
}

pub(super) fn text(rows: &[Row], api: Option<Api>, first: Option<First>, bench: &Bench) -> Result<String> {
    if bench.json {
        let Bench { connections, rate, burst, seconds, rounds, filters, .. } = bench;
        let whole = serde_json::json!({
            "connections": connections, "rate": rate, "burst": burst, "seconds": seconds, "rounds": rounds,
            "filters": filters, "rows": rows, "api": api, "first": first,
        });
        return Ok(serde_json::to_string_pretty(&whole)? + "\n");
    }
    let mut out = String::new();
    let Bench { connections, rate, burst, seconds, rounds, filters, .. } = bench;
    write!(out, "{connections} clients each, {rate} changes a second in bursts of {burst}, ")?;
    writeln!(out, "medians of {rounds} interleaved rounds of {seconds} s")?;
    if *filters > 0 {
        writeln!(out, "{filters} different filters")?;
    }
    writeln!(
        out,
        "\n{:<43}{:>12}{:>7}{:>10}{:>9}{:>11}{:>9}{:>9}{:>9}{:>10}{:>10}",
        "",
        "deliveries",
        "bytes",
        "us each",
        "x floor",
        "us/change",
        "p50 ms",
        "p99 ms",
        "max ms",
        "last p99",
        "KiB/conn"
    )?;
    for row in rows {
        let millis = |micros: Option<u64>| number(micros.map(|micros| micros as f64 / 1000.0));
        writeln!(
            out,
            "{:<43}{:>12}{:>7}{:>10}{:>9}{:>11}{:>9}{:>9}{:>9}{:>10}{:>10}",
            row.name,
            row.deliveries,
            row.bytes_an_event,
            number(row.cpu_a_delivery),
            number(row.times_floor),
            number(row.cpu_a_change),
            millis(row.p50),
            millis(row.p99),
            millis(Some(row.max)),
            millis(row.last_p99),
            number(row.memory_a_connection.map(|bytes| bytes / 1024.0)),
        )?;
        if let Some(expected) = row.expected.filter(|expected| *expected != row.deliveries) {
            writeln!(out, "{:<43}  {expected} were expected", "")?;
        }
    }
    writeln!(out)?;
    for row in rows {
        out += &notes(row)?;
    }
    if let Some(first) = first {
        writeln!(out, "{first}")?;
    }
    if let Some(Api { bridges, watches_before, watches, requests_in_storms }) = api {
        write!(out, "simulated cluster: {watches} watches open for {bridges} bridges and all clients, ")?;
        writeln!(out, "{watches_before} without clients; {requests_in_storms} requests in the storms")?;
    }
    Ok(out)
}

/// What of a row is no column.
fn notes(row: &Row) -> Result<String> {
    let (mut out, name) = (String::new(), &row.name);
    if let Some(bytes) = row.memory_beyond_empty {
        writeln!(out, "{name}: {:.1} MiB beyond the empty server", bytes as f64 / f64::from(1 << 20))?;
    }
    if let Some(gets) = row.gets_a_second {
        writeln!(out, "{name}: {gets:.0} a second")?;
    }
    if let (Some(millis), Some(states)) = (row.storm_millis, row.storm_new_states) {
        writeln!(out, "{name}: all clients cut at once, back in {millis} ms, {states} with a new state")?;
    }
    Ok(out)
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"))
}
