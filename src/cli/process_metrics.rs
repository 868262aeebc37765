//! Metrics of the process itself: `bridge_build_info`, and the `process_*` metrics that Prometheus client libraries share
//! (<https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>), read from `/proc` on Linux.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        counter::ConstCounter,
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::{Registry, Unit},
};

/// The revision that the build was made from, where the build names it.
const REVISION: &str = match option_env!("BRIDGE_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
    revision: &'static str,
}

/// Registers `bridge_build_info` in the prefixed registry.
pub(super) fn register_build_info(registry: &mut Registry) {
    let build = Family::<BuildLabels, Gauge>::default();
    build.get_or_create(&BuildLabels { version: env!("CARGO_PKG_VERSION"), revision: REVISION }).set(1);
    registry.register("build_info", "Build of the running binary; always 1", build);
}

/// Registers the `process_*` metrics in a registry without a prefix.
pub(super) fn register_process(registry: &mut Registry) {
    registry.register_collector(Box::new(ProcessCollector));
}

/// Reads `/proc/self` for each scrape. On systems without it, it reports nothing.
#[derive(Debug)]
struct ProcessCollector;

/// What one scrape reports.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sample {
    cpu_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    start_time_seconds: f64,
}

/// Fields of `/proc/<pid>/stat` (proc_pid_stat(5)), counted from the one after the command name, which may hold spaces.
mod field {
    pub(super) const UTIME: usize = 11;
    pub(super) const STIME: usize = 12;
    pub(super) const START_TIME: usize = 19;
    pub(super) const VSIZE: usize = 20;
    pub(super) const RSS: usize = 21;
}

impl Sample {
    /// Reads `/proc/self/stat`; `boot_time` is `btime` of `/proc/stat`, in seconds since the Unix epoch.
    fn parse(stat: &str, boot_time: f64, ticks_per_second: f64, page_bytes: u64) -> Option<Sample> {
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        let seconds = |at: usize| Some(number(at)? as f64 / ticks_per_second);
        Some(Sample {
            cpu_seconds: seconds(field::UTIME)? + seconds(field::STIME)?,
            resident_bytes: number(field::RSS)? * page_bytes,
            virtual_bytes: number(field::VSIZE)?,
            start_time_seconds: boot_time + seconds(field::START_TIME)?,
        })
    }

    fn read() -> Option<Sample> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let system = std::fs::read_to_string("/proc/stat").ok()?;
        let boot_time = system.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        Sample::parse(&stat, boot_time, ticks, rustix::param::page_size() as u64)
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(sample) = Sample::read() else { return Ok(()) };
        let cpu = ConstCounter::new(sample.cpu_seconds);
        cpu.encode(encoder.encode_descriptor(
            "process_cpu",
            "Total user and system CPU time",
            Some(&Unit::Seconds),
            cpu.metric_type(),
        )?)?;
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)
        };
        gauge("process_resident_memory", "Resident memory size", Some(&Unit::Bytes), sample.resident_bytes as f64)?;
        gauge("process_virtual_memory", "Virtual memory size", Some(&Unit::Bytes), sample.virtual_bytes as f64)?;
        let start = "Start time of the process since the Unix epoch";
        gauge("process_start_time", start, Some(&Unit::Seconds), sample.start_time_seconds)?;
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            gauge("process_open_fds", "Open file descriptors", None, files.count() as f64)?;
        }
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        gauge(
            "process_max_fds",
            "Limit of open file descriptors",
            None,
            limit.map_or(f64::INFINITY, |limit| limit as f64),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_line_with_spaces_in_the_name_is_read() {
        let stat =
            "42 (a (b) c) S 1 42 42 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 4 0 1000 8192000 300 18446744073709551615";
        let sample = Sample::parse(stat, 1_000_000.0, 100.0, 4096).unwrap();
        let expected = Sample {
            cpu_seconds: 4.0,
            resident_bytes: 300 * 4096,
            virtual_bytes: 8_192_000,
            start_time_seconds: 1_000_010.0,
        };
        assert_eq!(sample, expected);
        for bad in ["", "42 (x", "42 (x) S 1 2"] {
            assert_eq!(Sample::parse(bad, 0.0, 100.0, 4096), None, "{bad}");
        }
    }

    #[test]
    fn metrics_of_this_process_are_encoded() {
        let mut registry = Registry::default();
        register_process(&mut registry);
        register_build_info(registry.sub_registry_with_prefix("bridge"));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for name in
            ["process_cpu_seconds_total ", "process_resident_memory_bytes ", "process_open_fds ", "process_max_fds "]
        {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name}in\n{text}");
        }
        assert!(text.contains("bridge_build_info{version=\""), "{text}");
    }
}
