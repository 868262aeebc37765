//! Latencies in microseconds, and medians over rounds.
//!
//! The histogram crate has no serde support without its own binary format. A few hundred pairs of value and count are
//! enough here: client processes send them as JSON.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longer latencies count as this one: 10 minutes.
const MAX_MICROS: u64 = 600_000_000;
/// Each bucket is at most a thousandth of its value wide.
const SIGNIFICANT_DIGITS: u8 = 3;

/// Counts latencies.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(into = "Vec<(u64, u64)>", from = "Vec<(u64, u64)>")]
pub(crate) struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, MAX_MICROS, SIGNIFICANT_DIGITS);
        Latencies(histogram.expect("the bounds and the number of digits are valid"))
    }
}

impl Latencies {
    pub(crate) fn record(&mut self, micros: u64) {
        self.0.saturating_record(micros);
    }

    pub(crate) fn merge(&mut self, other: &Latencies) {
        self.0.add(&other.0).expect("all histograms have the same bounds");
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// Returns the largest latency, or 0 when there is none.
    pub(crate) fn max(&self) -> u64 {
        if self.0.is_empty() { 0 } else { self.0.max() }
    }

    /// Returns the latency that this fraction of all latencies does not exceed, or `None` when there is none.
    pub(crate) fn quantile(&self, fraction: f64) -> Option<u64> {
        (!self.0.is_empty()).then(|| self.0.value_at_quantile(fraction))
    }
}

impl From<Latencies> for Vec<(u64, u64)> {
    fn from(latencies: Latencies) -> Self {
        latencies.0.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
    }
}

impl From<Vec<(u64, u64)>> for Latencies {
    fn from(counts: Vec<(u64, u64)>) -> Self {
        let mut latencies = Latencies::default();
        for (micros, count) in counts {
            latencies.0.saturating_record_n(micros, count);
        }
        latencies
    }
}

/// Returns the median of the finite values: the upper one of the two middle values when their number is even.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
