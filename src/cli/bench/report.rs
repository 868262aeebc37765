//! What has been measured, as a table or as JSON: medians over the rounds.

use std::{fmt::Write as _, time::Duration};

use anyhow::Result;
use serde::Serialize;

use super::{Bench, Source, Subject, clients::Report, first::First};

/// One server in one round.
pub(super) struct Sample {
    pub(super) changes: u64,
    pub(super) deliveries: u64,
    pub(super) bytes: u64,
    /// The server's processor time.
    pub(super) cpu: Option<Duration>,
    pub(super) report: Report,
}

/// What became of the simulated cluster.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Api {
    pub(super) watches: u64,
    pub(super) lists_during_storm: u64,
}

/// A server's line. Times in microseconds, memory in bytes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    name: String,
    is_floor: bool,
    deliveries: u64,
    /// Expected by the number of changes and connections; none where filters decide.
    expected: Option<u64>,
    bytes_an_event: usize,
    /// Reads of the clients for each event: less than 1 where events came together.
    reads_a_delivery: f64,
    cpu_a_delivery: Option<f64>,
    cpu_a_change: Option<f64>,
    p50: Option<u64>,
    p99: Option<u64>,
    max: u64,
    /// 99 of 100 changes had reached all clients by then.
    last_p99: Option<u64>,
    memory_a_connection: Option<f64>,
    memory: Option<u64>,
    storm_millis: Option<u64>,
    storm_new_states: Option<u64>,
}

impl Row {
    pub(super) fn of(subject: &Subject, bench: &Bench) -> Row {
        let all = &subject.samples;
        let is_floor = matches!(subject.source, Source::Floor(_));
        let expected = (is_floor || bench.filters == 0)
            .then(|| all.iter().map(|sample| sample.changes * bench.connections).sum())
            .filter(|expected| *expected > 0);
        let part = |what: fn(&Sample) -> Option<f64>| median(all.iter().filter_map(what).collect());
        let micros = |what: fn(&Sample) -> Option<u64>| {
            part_of(all.iter().filter_map(what).map(|micros| micros as f64).collect())
        };
        Row {
            name: subject.name.clone(),
            is_floor,
            deliveries: all.iter().map(|sample| sample.deliveries).sum(),
            expected,
            bytes_an_event: subject.bytes,
            reads_a_delivery: part(|s| Some(s.report.reads as f64 / s.deliveries as f64)).unwrap_or_default(),
            cpu_a_delivery: part(|s| Some(s.cpu?.as_secs_f64() * 1e6 / s.deliveries as f64)),
            cpu_a_change: part(|s| Some(s.cpu?.as_secs_f64() * 1e6 / s.changes as f64)),
            p50: micros(|s| s.report.latency.quantile(0.5)),
            p99: micros(|s| s.report.latency.quantile(0.99)),
            max: all.iter().map(|sample| sample.report.latency.max()).max().unwrap_or_default(),
            last_p99: micros(|s| s.report.last.quantile(0.99)),
            memory_a_connection: subject.memory,
            memory: subject.pid.and_then(|pid| super::process::memory(pid).ok()),
            storm_millis: subject.storm.as_ref().map(|storm| storm.millis),
            storm_new_states: subject.storm.as_ref().map(|storm| storm.new_states),
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
    let floor = rows.iter().find(|row| row.is_floor);
    let mut out = String::new();
    let Bench { connections, rate, burst, seconds, rounds, filters, .. } = bench;
    write!(out, "{connections} clients each, {rate} changes a second in bursts of {burst}, ")?;
    writeln!(out, "medians of {rounds} interleaved rounds of {seconds} s")?;
    if *filters > 0 {
        writeln!(out, "{filters} different filters")?;
    }
    writeln!(
        out,
        "\n{:<28}{:>12}{:>7}{:>10}{:>9}{:>11}{:>9}{:>9}{:>9}{:>10}{:>10}",
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
        let times =
            row.cpu_a_delivery.zip(floor.and_then(|floor| floor.cpu_a_delivery)).map(|(own, floor)| own / floor);
        let millis = |micros: Option<u64>| number(micros.map(|micros| micros as f64 / 1000.0));
        writeln!(
            out,
            "{:<28}{:>12}{:>7}{:>10}{:>9}{:>11}{:>9}{:>9}{:>9}{:>10}{:>10}",
            row.name,
            row.deliveries,
            row.bytes_an_event,
            number(row.cpu_a_delivery),
            number(times),
            number(row.cpu_a_change),
            millis(row.p50),
            millis(row.p99),
            millis(Some(row.max)),
            millis(row.last_p99),
            number(row.memory_a_connection.map(|bytes| bytes / 1024.0)),
        )?;
        if let Some(expected) = row.expected.filter(|expected| *expected != row.deliveries) {
            writeln!(out, "{:<28}  {expected} were expected", "")?;
        }
    }
    writeln!(out)?;
    for row in rows.iter().filter(|row| row.storm_millis.is_some()) {
        let (millis, states) = (row.storm_millis.unwrap_or_default(), row.storm_new_states.unwrap_or_default());
        writeln!(out, "{}: all clients cut at once, back in {millis} ms, {states} with a new state", row.name)?;
    }
    if let Some(first) = first {
        writeln!(out, "{first}")?;
    }
    if let Some(Api { watches, lists_during_storm }) = api {
        writeln!(
            out,
            "simulated cluster: {watches} watches open, for two bridges; {lists_during_storm} lists in the storms"
        )?;
    }
    Ok(out)
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"))
}
