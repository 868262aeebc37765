//! Checks of single parts, and of the short scenarios other than `fan-out`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::{Value, json};

use super::report_of;
use crate::{
    baseline::{RETAINED_FRAMES, RecentFrames},
    clock::{TIMESTAMP_MARKER as MARKER, timestamps},
    latency::{Latencies, median},
    proc_stats::ProcessCpu,
    scenarios::performance::goals::{Gate, Goals},
};

pub(super) fn time_stamps_are_found_when_they_are_complete() -> Result<()> {
    let text = format!("{{{MARKER}12\",\"previousPhase\":\"t11\",{MARKER}13\"}}{MARKER}x{MARKER}14");
    let found: Vec<_> = timestamps(text.as_bytes()).collect();
    ensure!(found == [12, 13], "{found:?}");
    Ok(())
}

pub(super) fn ended_threads_do_not_reduce_processor_time() -> Result<()> {
    let cpu = |threads: &[(&str, u64)]| {
        ProcessCpu(threads.iter().map(|(thread, nanos)| ((*thread).to_owned(), *nanos)).collect())
    };
    let (before, after) = (cpu(&[("1", 100), ("2", 900)]), cpu(&[("1", 150), ("3", 7)]));
    let used = after.since(&before);
    ensure!(used == Duration::from_nanos(57), "{used:?}");
    Ok(())
}

pub(super) fn late_baseline_tasks_get_the_retained_frames() -> Result<()> {
    let mut recent = RecentFrames::default();
    ensure!(recent.after(0).is_none(), "there is a frame before the first one");
    for number in 0..3u8 {
        recent.push(Bytes::copy_from_slice(&[number]));
    }
    let found: Vec<_> = (0..4).map(|written| recent.after(written).map(|frames| frames[0])).collect();
    ensure!(found == [Some(0), Some(1), Some(2), None], "{found:?}");
    (0..RETAINED_FRAMES).for_each(|_| recent.push(Bytes::from_static(&[9])));
    let oldest = recent.after(0).context("the oldest retained frame")?;
    ensure!(oldest[..] == [9], "{oldest:?}");
    Ok(())
}

pub(super) fn latencies_survive_serialization() -> Result<()> {
    let mut latencies = Latencies::default();
    ensure!(latencies.quantile(0.5).is_none() && latencies.max() == 0, "no latency has a quantile");
    (1..=1000).for_each(|micros| latencies.record(micros));
    let mut read: Latencies = serde_json::from_str(&serde_json::to_string(&latencies)?)?;
    let of = |of: &Latencies| (of.count(), of.max(), of.quantile(0.5), of.quantile(0.99), of.quantile(1.0));
    ensure!(of(&read) == (1000, 1000, Some(500), Some(990), Some(1000)), "{:?}", of(&read));
    latencies.record(60_000_000);
    read.merge(&latencies);
    let max = read.max();
    ensure!(read.count() == 2001 && (60_000_000..60_060_000).contains(&max), "{}, {max}", read.count());
    ensure!(median(vec![3.0, f64::NAN, 1.0, 2.0, 4.0]) == Some(3.0) && median(Vec::new()).is_none(), "median");
    Ok(())
}

pub(super) fn goals_compare_values_with_gates() -> Result<()> {
    let mut goals = Goals::default();
    let values = |values: &[Option<f64>]| values.iter().map(|value| ("x".to_owned(), *value)).collect();
    goals.add("met", &Gate::Max(2.0), &values(&[Some(1.0), Some(2.0)]), " ms", 1);
    goals.add("compared", &Gate::None, &values(&[Some(1.0)]), "", 0);
    ensure!(goals.are_met(), "{goals:?}");
    goals.add("missed", &Gate::Max(2.0), &values(&[Some(1.0), Some(2.5)]), " ms", 1);
    goals.add("custom", &Gate::Custom("two", false), &values(&[Some(1.0)]), "", 0);
    goals.add("missing", &Gate::None, &values(&[Some(1.0), None]), "", 0);
    goals.add("empty", &Gate::Max(1.0), &values(&[]), "", 0);
    let met: Vec<_> = goals.0.iter().map(|goal| goal.met).collect();
    ensure!(met == ["yes", "", "NO", "NO", "NOT MEASURED", "NOT MEASURED"], "{met:?}");
    let table = goals.table();
    ensure!(table.contains("met       <= 2 ms  yes           1.0 ms x, 2.0 ms x\n"), "{table}");
    Ok(())
}

pub(super) fn idle_memory_reports_each_path() -> Result<()> {
    let report = report_of("idle-memory --tls --connections 20", &[])?;
    ensure!(report["connections"] == 20 && report["tls"] == true, "{report}");
    let rows = report["rows"].as_array().context("rows")?;
    let paths: Vec<&Value> = rows.iter().map(|row| &row["path"]).collect();
    ensure!(paths == [&json!("/ws"), &json!("/api/sse")], "{paths:?}");
    for row in rows {
        for moment in ["before", "open", "closed"] {
            ensure!(row[moment]["privateDirty"].as_u64() > Some(1 << 20), "{row}");
        }
        ensure!(row["privateDirtyPerConnection"].is_number(), "{row}");
    }
    Ok(())
}
