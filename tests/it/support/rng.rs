//! A small generator of our own, so that a seed means the same for ever (splitmix64).

use std::time::Duration;

#[derive(Debug)]
pub(crate) struct SeededRng(pub(crate) u64);

impl SeededRng {
    /// A number below `sides`.
    pub(crate) fn below(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    pub(crate) fn choose<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }

    /// A time of whole milliseconds below `limit`.
    pub(crate) fn duration_up_to(&mut self, limit: Duration) -> Duration {
        Duration::from_millis(self.below(u64::try_from(limit.as_millis()).unwrap().max(1)))
    }

    /// Another one, whose rolls do not move this one.
    pub(crate) fn fork(&mut self) -> SeededRng {
        SeededRng(self.below(u64::MAX))
    }
}
