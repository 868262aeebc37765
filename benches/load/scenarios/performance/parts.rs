//! The parts of `performance`: each runs scenarios and adds goals.

use super::{
    Run,
    goals::{Gate, Values},
};
use crate::{
    latency::median,
    processes::BRIDGE,
    report::{FanOutReport, Row},
    scenarios::{dedicated_memory::DedicatedMemory, idle_memory::IdleMemory, nchan::Nchan, stalled::Stalled},
    tls::CertificateFiles,
};

const TRANSPORTS: [&str; 2] = ["WebSocket", "SSE"];
const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * 1024.0;

/// Returns a value of both transports' rows whose names end with `suffix`.
fn both(report: Option<&FanOutReport>, suffix: &str, value: impl Fn(&Row) -> Option<f64>) -> Values {
    let of_transport = |name: &str| report?.row(&format!("{name}{suffix}")).and_then(&value);
    TRANSPORTS.map(|name| (name.to_owned(), of_transport(name))).to_vec()
}

/// Returns a value of one row.
fn of(report: Option<&FanOutReport>, name: &str, value: impl Fn(&Row) -> Option<f64>) -> Option<f64> {
    report?.row(name).and_then(value)
}

/// Returns a single value without a name.
fn single(value: Option<f64>) -> Values {
    vec![(String::new(), value)]
}

/// Divides the values by one divisor.
fn divided(values: Values, divisor: Option<f64>) -> Values {
    values.into_iter().map(|(name, value)| (name, value.zip(divisor).map(|(value, by)| value / by))).collect()
}

/// Divides each value by the one with the same position.
fn ratios(values: Values, divisors: &Values) -> Values {
    let pairs = values.into_iter().zip(divisors);
    pairs.map(|((name, value), (_, by))| (name, value.zip(*by).map(|(value, by)| value / by))).collect()
}

fn millis(micros: Option<u64>) -> Option<f64> {
    micros.map(|micros| micros as f64 / 1000.0)
}

impl Run {
    pub(super) fn hub(&mut self, certificate: &CertificateFiles) {
        let tls = certificate.flags().join(" ");
        let thousand = self.fan_out(&format!("--connections 1000 {tls}"), self.rounds, self.seconds);
        let five = self.fan_out("--connections 5000 --rate 5", self.rounds, self.seconds);
        let two = self.fan_out("--connections 2000 --rate 5 --reconnect-storm", self.rounds, self.seconds);
        let [thousand, two, five] = [&thousand, &two, &five].map(Option::as_ref);
        let mut values = Values::new();
        for (report, connections) in [(thousand, "1,000"), (two, "2,000"), (five, "5,000")] {
            let named = both(report, "", |row| row.vs_baseline).into_iter();
            values.extend(named.map(|(name, value)| (format!("{name} {connections}"), value)));
        }
        let goals = &mut self.goals;
        goals.add("CPU per delivery, vs baseline", &Gate::Max(1.5), &values, "", 2);
        let encrypted = both(thousand, " over TLS", |row| row.vs_baseline);
        goals.add("... over TLS, vs a baseline that encrypts", &Gate::None, &encrypted, "", 2);
        let plain = both(thousand, "", |row| row.cpu_per_delivery);
        let encrypted = ratios(both(thousand, " over TLS", |row| row.cpu_per_delivery), &plain);
        goals.add("... over TLS, x the same without", &Gate::None, &encrypted, "", 2);
        let last = of(thousand, "baseline: one loop", |row| millis(row.last_client_p99));
        let last = divided(both(thousand, "", |row| millis(row.last_client_p99)), last);
        let requests = two.and_then(|report| report.api).map(|api| api.requests_in_reconnect_storms as f64);
        let states = both(two, "", |row| row.reconnect_storm_initial_states.map(|count| count as f64));
        let seconds = both(two, "", |row| millis(row.reconnect_storm_millis));

        let burst = self.fan_out("--connections 1000 --rate 160 --burst 16", self.rounds, self.seconds);
        let burst = burst.as_ref();
        let one = both(burst, ", unbatched", |row| row.cpu_per_delivery);
        let sixteen = ratios(both(burst, "", |row| row.cpu_per_delivery), &one);
        let goals = &mut self.goals;
        goals.add("16 waiting events, each, x one alone", &Gate::Max(0.15), &sixteen, "", 2);
        goals.add("last of 1,000 clients, p99, vs baseline", &Gate::Max(2.0), &last, "", 2);
        goals.add("reconnect storm of 2,000: requests to the API server", &Gate::Max(0.0), &single(requests), "", 0);
        goals.add("... clients with an initial state", &Gate::Max(0.0), &states, "", 0);
        goals.add("... all resumed", &Gate::Max(5.0), &seconds, " s", 2);
    }

    pub(super) fn one_client(&mut self) {
        let report = self.fan_out("--connections 1 --rate 50 --raw-watch", self.rounds, self.seconds);
        let report = report.as_ref();
        for (name, gate) in [("p50", 0.3), ("p99", 1.0)] {
            let quantile = |row: &Row| millis(if name == "p50" { row.p50 } else { row.p99 });
            let raw = of(report, "raw watch per client", quantile);
            let added = both(report, "", |row| quantile(row).zip(raw).map(|(ours, raw)| ours - raw));
            let goal = format!("one client, {name}, added to a raw watch");
            self.goals.add(&goal, &Gate::Max(gate), &added, " ms", 2);
        }
    }

    pub(super) fn memory(&mut self) {
        // One short round: memory is a sum over all connections, and the round only shows that they receive events.
        let ten = self.fan_out("--connections 10000 --rate 1", 1, 2.0);
        let ten = ten.as_ref();
        let each = both(ten, "", |row| row.memory_per_connection.map(|bytes| bytes / KIB));
        let above = both(ten, "", |row| row.memory_above_empty.map(|bytes| bytes as f64 / MIB));
        let api = ten.and_then(|report| report.api);
        let per_bridge = |count: Option<u64>| api.zip(count).map(|(api, count)| count as f64 / api.bridges as f64);
        let watches = [
            ("each".to_owned(), per_bridge(api.map(|api| api.watches))),
            ("each without clients".to_owned(), per_bridge(api.map(|api| api.watches_without_clients))),
        ];
        let is_two = watches.iter().all(|(_, watches)| *watches == Some(2.0));
        let goals = &mut self.goals;
        goals.add("idle connection, of 10,000", &Gate::Max(2.5), &each, " KiB", 2);
        goals.add("10,000 connections above the empty server", &Gate::Max(40.0), &above, " MiB", 1);
        let gate = Gate::Custom("2, as without clients", is_two);
        goals.add("... API server watches of a bridge", &gate, &watches.to_vec(), "", 0);
        self.idle_memory();
        self.dedicated_memory();
    }

    fn idle_memory(&mut self) {
        let connections = if self.is_quick { 500 } else { 1500 };
        let report = self.step(&format!("idle-memory --tls --connections {connections}"), || {
            let report = IdleMemory { connections, tls: true, binary: BRIDGE.into(), json: false }.measure()?;
            self.show(&report.table());
            Ok(report)
        });
        let rows = report.iter().flat_map(|report| &report.rows);
        let values = rows.map(|row| (row.path.to_owned(), Some(row.private_dirty_per_connection / KIB))).collect();
        self.goals.add("idle connection with TLS", &Gate::Max(12.0), &values, " KiB", 2);
    }

    fn dedicated_memory(&mut self) {
        let count = if self.is_quick { 100 } else { 200 };
        let report = self.step(&format!("dedicated-memory --connections {count} --objects {count}"), || {
            let flags = DedicatedMemory { connections: count, objects: count, binary: BRIDGE.into(), json: false };
            let report = flags.measure()?;
            self.show(&report.table());
            Ok(report)
        });
        let rows = || report.iter().flat_map(|report| &report.rows);
        let is_met = rows().all(|row| row.per_connection <= row.gate);
        let values = rows().map(|row| {
            let name = format!("of {:.1} KiB, {} objects, {}", row.gate / KIB, row.objects, row.moment);
            (name, Some(row.per_connection / KIB))
        });
        let goal = "/ws with dedicated watchers: 1.25 x a bare pair + 1 KiB per object";
        self.goals.add(goal, &Gate::Custom("see values", is_met), &values.collect(), "", 1);
    }

    pub(super) fn many_pods(&mut self) {
        let flags = "--connections 20 --rate 100 --static-pods 10000 --with-gets";
        let report = self.fan_out(flags, self.rounds, self.short_seconds);
        let report = report.as_ref();
        let timing = report.and_then(|report| report.initial_state);
        let values = vec![
            ("rendered".to_owned(), timing.map(|timing| timing.rendered / timing.list)),
            ("for the next client".to_owned(), timing.map(|timing| timing.cached / timing.list)),
        ];
        let goals = &mut self.goals;
        goals.add("initial state of 10,000 Pods, x the plain LIST", &Gate::Max(1.5), &values, "", 2);
        let memory = both(report, "", |row| row.memory.map(|bytes| bytes as f64 / MIB));
        goals.add("... memory of the bridge", &Gate::None, &memory, " MiB", 0);
        for suffix in ["", ", GETs on other", ", GETs on same"] {
            let late = both(report, suffix, |row| millis(row.p99));
            goals.add(&format!("10,000 Pods, p99 of 100 events/s{suffix}"), &Gate::None, &late, " ms", 2);
        }
    }

    pub(super) fn stalled(&mut self) {
        let (rounds, seconds) = (self.rounds, self.seconds as u64);
        let mut late = Values::new();
        for stalled in if self.is_quick { &[500][..] } else { &[500, 1] } {
            let stalled = *stalled;
            let command = format!("stalled --stalled {stalled} --rounds {rounds} --seconds {seconds}");
            let result = self.step(&command, || {
                let (binary, json) = (BRIDGE.into(), false);
                let flags = Stalled { binary, readers: 100, stalled, rate: 100, seconds, rounds, json };
                let report = flags.measure()?;
                self.show(&report.table());
                let memory = |with_stalled: bool| {
                    let of_kind = report.windows.iter().filter(|window| window.with_stalled == with_stalled);
                    median(of_kind.map(|window| window.max_memory as f64).collect())
                };
                let added = memory(true).zip(memory(false)).map(|(with, without)| with - without);
                Ok((report.p99_ratio, added))
            });
            late.push((format!("with {stalled}"), result.map(|(ratio, _)| ratio)));
            if stalled == 500 {
                let each = result.and_then(|(_, added)| added).map(|bytes| bytes / KIB / stalled as f64);
                self.goals.add("a stalled client, of 500", &Gate::Max(64.0), &single(each), " KiB", 1);
            }
        }
        self.goals.add("... p99 of 100 others, x without", &Gate::Max(1.1), &late, "", 2);
    }

    pub(super) fn instructions(&mut self) {
        let text = self.script("instructions").unwrap_or_default();
        // Such as `line to SSE frame   59,387   0.30`: the last column is relative to `serde_json::IgnoredAny`.
        let value = |line: &str| {
            let (name, _) = line.strip_prefix("line to ")?.split_once(" frame")?;
            Some((format!("line to {name}"), line.split_whitespace().next_back()?.parse().ok()))
        };
        let values = text.lines().filter_map(value).collect();
        self.goals.add("instructions from line to frame, x IgnoredAny", &Gate::Max(1.2), &values, "", 2);
    }

    pub(super) fn nchan(&mut self) {
        if !Nchan::is_installed() {
            self.show("\nnchan is not installed (Debian: libnginx-mod-nchan): no comparison\n");
            return;
        }
        let command = format!("--connections 1000 --rounds {} --seconds {}", self.rounds, self.short_seconds);
        let flags = command.split(' ').map(str::to_owned).collect();
        let reports = self.step(&format!("nchan {command}"), || {
            let reports = Nchan { flags }.measure()?;
            reports.iter().try_for_each(|report| report.table().map(|table| self.show(&table)))?;
            Ok(reports)
        });
        let values = |value: fn(&Row) -> Option<f64>| -> Values {
            let rows = reports.iter().flatten().filter_map(|report| report.rows.first());
            rows.map(|row| (row.name.split(':').next().unwrap_or_default().to_owned(), value(row))).collect()
        };
        let (cpu, memory) = (values(|row| row.vs_baseline), values(|row| Some(row.memory_per_connection? / KIB)));
        self.goals.add("nchan: CPU per delivery, vs baseline", &Gate::None, &cpu, "", 2);
        self.goals.add("nchan: idle connection", &Gate::None, &memory, " KiB", 2);
    }

    pub(super) fn filters(&mut self) {
        for (count, text) in [(1, "1"), (10, "10"), (100, "100"), (1000, "1,000")] {
            if self.is_quick && count != 1000 {
                continue;
            }
            let flags = format!("--connections 5000 --rate 20 --filters {count}");
            let report = self.fan_out(&flags, self.rounds, f64::min(self.seconds, 2.0));
            let cpu = both(report.as_ref(), "", |row| row.cpu_per_change.map(|micros| micros / 1000.0));
            let goal = format!("5,000 clients, {text} filters, CPU per change");
            self.goals.add(&goal, &Gate::None, &cpu, " ms", 2);
        }
    }
}
