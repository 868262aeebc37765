//! Latencies in buckets a sixty-fourth wide: what is printed is that exact, however many there are.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Buckets between one power of two and the next; below twice as many microseconds each has its own.
const STEPS: u32 = 64;

/// How often each latency was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Histogram {
    counts: BTreeMap<u32, u64>,
    max: u64,
}

impl Histogram {
    /// Counts a latency in microseconds.
    pub(super) fn add(&mut self, micros: u64) {
        *self.counts.entry(bucket(micros)).or_default() += 1;
        self.max = self.max.max(micros);
    }

    pub(super) fn count(&self) -> u64 {
        self.counts.values().sum()
    }

    pub(super) fn max(&self) -> u64 {
        self.max
    }

    /// Microseconds that `part` of all latencies do not exceed, a bucket's width too large at most; none of nothing.
    pub(super) fn quantile(&self, part: f64) -> Option<u64> {
        let wanted = (self.count() as f64 * part).ceil().max(1.0) as u64;
        let mut seen = 0;
        self.counts.iter().find_map(|(bucket, count)| {
            seen += count;
            (seen >= wanted).then(|| upper(*bucket).min(self.max))
        })
    }
}

fn bucket(micros: u64) -> u32 {
    let octave = micros.max(1).ilog2().saturating_sub(STEPS.ilog2());
    let within = (micros >> octave) as u32;
    octave * STEPS + within
}

/// The largest value in a bucket.
fn upper(bucket: u32) -> u64 {
    let octave = (bucket / STEPS).saturating_sub(1);
    let within = u64::from(bucket - octave * STEPS);
    ((within + 1) << octave) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_width_is_at_most_one_64th_of_its_value() {
        for micros in (0..300).chain((0..50).map(|at| 1 << at)).chain([12_345, 999_999, 86_400_000_000]) {
            let upper = upper(bucket(micros));
            assert!(upper >= micros && upper - micros <= micros / u64::from(STEPS), "{micros}: {upper}");
        }
    }

    #[test]
    fn quantiles_match_counted_values() {
        let mut all = Histogram::default();
        assert_eq!(all.quantile(0.5), None);
        (1..=1000).for_each(|micros| all.add(micros));
        assert_eq!((all.count(), all.max(), all.quantile(1.0)), (1000, 1000, Some(1000)));
        let median = all.quantile(0.5).unwrap();
        assert!((500..=508).contains(&median), "{median}");
    }
}
