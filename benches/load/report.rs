//! The result of the scenario `fan-out`, as a table or as JSON: medians over the rounds.
//!
//! Keys of the JSON object: the flags `connections`, `rate`, `burst`, `seconds`, `rounds`, `filters`; `rows`, one
//! object per target and mode with the keys of [`Row`]; `api`, the simulated API server with the keys of [`ApiUsage`],
//! or null; `initialState` with the keys of [`InitialStateTiming`], or null. Times are in microseconds and memory is in
//! bytes, except where the key says otherwise. A key without a value is null.

use std::{fmt::Write as _, time::Duration};

use anyhow::Result;
use serde::Serialize;

use crate::{
    clients::ClientReport,
    latency::median,
    proc_stats::Memory,
    scenarios::{fan_out::FanOut, initial_state::InitialStateTiming},
    target::{Mode, Target},
};

/// Width of the first column.
const NAME_WIDTH: usize = 46;

/// One target in one round.
pub(crate) struct Sample {
    pub(crate) changes: u64,
    pub(crate) deliveries: u64,
    pub(crate) bytes: u64,
    /// Processor time of the server.
    pub(crate) cpu: Option<Duration>,
    pub(crate) clients: ClientReport,
    /// GETs that were answered in the round.
    pub(crate) gets: Option<u64>,
}

/// What the simulated API server has counted.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ApiUsage {
    pub(crate) bridges: usize,
    /// Watches that were open before the first client connected.
    pub(crate) watches_without_clients: u64,
    /// Watches that were open with all clients.
    pub(crate) watches: u64,
    pub(crate) requests_in_reconnect_storms: u64,
}

/// A target in one mode.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) is_baseline: bool,
    pub(crate) is_encrypted: bool,
    #[serde(skip)]
    mode: Mode,
    /// Changes times clients that received them, over all rounds.
    pub(crate) deliveries: u64,
    /// The number of changes times the number of connections, over all rounds. Null where filters decide.
    pub(crate) expected: Option<u64>,
    pub(crate) bytes_per_event: usize,
    /// Reads of the clients per event. Less than 1 where events arrived together.
    pub(crate) reads_per_delivery: Option<f64>,
    /// Processor time of the server.
    pub(crate) cpu_per_delivery: Option<f64>,
    /// `cpu_per_delivery`, relative to the baseline with the same mode and the same encryption.
    pub(crate) vs_baseline: Option<f64>,
    pub(crate) cpu_per_change: Option<f64>,
    /// Latency from a change to its receipt by a client.
    pub(crate) p50: Option<u64>,
    pub(crate) p99: Option<u64>,
    /// Over all rounds.
    pub(crate) max: u64,
    /// 99 of 100 changes had reached all clients after this time.
    pub(crate) last_client_p99: Option<u64>,
    pub(crate) memory_per_connection: Option<f64>,
    /// What all connections together add to a server without connections.
    pub(crate) memory_above_empty: Option<u64>,
    pub(crate) memory: Option<u64>,
    pub(crate) reconnect_storm_millis: Option<u64>,
    /// Clients that received a complete initial state after the storm.
    pub(crate) reconnect_storm_initial_states: Option<u64>,
    pub(crate) gets_per_second: Option<f64>,
}

/// The complete result.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FanOutReport {
    pub(crate) connections: u64,
    pub(crate) rate: f64,
    pub(crate) burst: u64,
    pub(crate) seconds: f64,
    pub(crate) rounds: u64,
    pub(crate) filters: usize,
    pub(crate) rows: Vec<Row>,
    pub(crate) api: Option<ApiUsage>,
    pub(crate) initial_state: Option<InitialStateTiming>,
}

impl Row {
    /// Returns a row for each target and mode.
    pub(crate) fn all(targets: &[Target], scenario: &FanOut) -> Vec<Row> {
        let of_target = |target: &Target| {
            let rows = target.modes(scenario).into_iter().map(|mode| Row::of(target, mode, scenario));
            rows.collect::<Vec<_>>()
        };
        let mut rows: Vec<Row> = targets.iter().flat_map(of_target).collect();
        let baselines: Vec<_> = rows
            .iter()
            .filter(|row| row.is_baseline)
            .map(|row| (row.mode, row.is_encrypted, row.cpu_per_delivery))
            .collect();
        for row in &mut rows {
            // The first one is the loop.
            let baseline = baselines.iter().find(|(mode, tls, _)| (*mode, *tls) == (row.mode, row.is_encrypted));
            let baseline = baseline.and_then(|(_, _, cpu)| *cpu);
            row.vs_baseline = row.cpu_per_delivery.zip(baseline).map(|(cpu, baseline)| cpu / baseline);
        }
        rows
    }

    fn of(target: &Target, mode: Mode, scenario: &FanOut) -> Row {
        let all = || target.samples.iter().filter(|(measured, _)| *measured == mode).map(|(_, sample)| sample);
        let is_baseline = target.is_baseline();
        let expected = (is_baseline || scenario.filters == 0)
            .then(|| all().map(|sample| sample.changes * scenario.connections).sum())
            .filter(|expected| *expected > 0);
        let value = |of: fn(&Sample) -> Option<f64>| median(all().filter_map(of).collect());
        let micros = |of: fn(&Sample) -> Option<u64>| {
            median(all().filter_map(of).map(|micros| micros as f64).collect()).map(|micros| micros as u64)
        };
        // Values of the complete run are in one row only.
        let once = (mode == Mode::Default).then_some(target);
        let storm = once.and_then(|target| target.storm.as_ref());
        Row {
            name: format!("{}{}", target.name, mode.suffix()),
            is_baseline,
            is_encrypted: target.is_encrypted,
            mode,
            deliveries: all().map(|sample| sample.deliveries).sum(),
            expected,
            bytes_per_event: target.event_bytes,
            reads_per_delivery: value(|sample| Some(sample.clients.reads as f64 / sample.deliveries as f64)),
            cpu_per_delivery: value(|sample| Some(sample.cpu?.as_secs_f64() * 1e6 / sample.deliveries as f64)),
            vs_baseline: None,
            cpu_per_change: value(|sample| Some(sample.cpu?.as_secs_f64() * 1e6 / sample.changes as f64)),
            p50: micros(|sample| sample.clients.latency.quantile(0.5)),
            p99: micros(|sample| sample.clients.latency.quantile(0.99)),
            max: all().map(|sample| sample.clients.latency.max()).max().unwrap_or_default(),
            last_client_p99: micros(|sample| sample.clients.last_client.quantile(0.99)),
            memory_per_connection: once.and_then(|target| target.memory_per_connection),
            memory_above_empty: once.and_then(|target| target.memory_above_empty),
            memory: once.and_then(|target| Some(Memory::now(target.pid?).ok()?.private_dirty)),
            reconnect_storm_millis: storm.map(|storm| storm.millis),
            reconnect_storm_initial_states: storm.map(|storm| storm.initial_states),
            gets_per_second: value(|sample| Some(sample.gets? as f64)).map(|count| count / scenario.seconds),
        }
    }

    /// Returns the values that have no column.
    fn notes(&self) -> Result<String> {
        let (mut out, name) = (String::new(), &self.name);
        if let Some(bytes) = self.memory_above_empty {
            writeln!(out, "{name}: {:.1} MiB above the empty server", bytes as f64 / f64::from(1 << 20))?;
        }
        if let Some(gets) = self.gets_per_second {
            writeln!(out, "{name}: {gets:.0} GETs a second")?;
        }
        if let (Some(millis), Some(states)) = (self.reconnect_storm_millis, self.reconnect_storm_initial_states) {
            writeln!(out, "{name}: all clients reconnected within {millis} ms, {states} with an initial state")?;
        }
        Ok(out)
    }
}

impl FanOutReport {
    /// Returns the row with this name.
    pub(crate) fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    pub(crate) fn table(&self) -> Result<String> {
        let mut out = String::new();
        let FanOutReport { connections, rate, burst, seconds, rounds, filters, .. } = self;
        write!(out, "{connections} clients per server, {rate} changes a second in bursts of {burst}, ")?;
        writeln!(out, "medians of {rounds} interleaved rounds of {seconds} s")?;
        if *filters > 0 {
            writeln!(out, "{filters} different filters")?;
        }
        writeln!(
            out,
            "\n{:<NAME_WIDTH$}{:>12}{:>7}{:>13}{:>13}{:>11}{:>9}{:>9}{:>9}{:>17}{:>10}",
            "",
            "deliveries",
            "bytes",
            "us/delivery",
            "vs baseline",
            "us/change",
            "p50 ms",
            "p99 ms",
            "max ms",
            "last client p99",
            "KiB/conn"
        )?;
        for row in &self.rows {
            let millis = |micros: Option<u64>| number(micros.map(|micros| micros as f64 / 1000.0));
            writeln!(
                out,
                "{:<NAME_WIDTH$}{:>12}{:>7}{:>13}{:>13}{:>11}{:>9}{:>9}{:>9}{:>17}{:>10}",
                row.name,
                row.deliveries,
                row.bytes_per_event,
                number(row.cpu_per_delivery),
                number(row.vs_baseline),
                number(row.cpu_per_change),
                millis(row.p50),
                millis(row.p99),
                millis(Some(row.max)),
                millis(row.last_client_p99),
                number(row.memory_per_connection.map(|bytes| bytes / 1024.0)),
            )?;
            if let Some(expected) = row.expected.filter(|expected| *expected != row.deliveries) {
                writeln!(out, "{:<NAME_WIDTH$}  {expected} were expected", "")?;
            }
        }
        writeln!(out)?;
        for row in &self.rows {
            out += &row.notes()?;
        }
        if let Some(timing) = self.initial_state {
            writeln!(out, "{timing}")?;
        }
        if let Some(api) = self.api {
            let ApiUsage { bridges, watches_without_clients, watches, requests_in_reconnect_storms } = api;
            write!(out, "simulated cluster: {watches} watches open for {bridges} bridges and all clients, ")?;
            write!(out, "{watches_without_clients} without clients; ")?;
            writeln!(out, "{requests_in_reconnect_storms} requests in the reconnect storms")?;
        }
        Ok(out)
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"))
}
