//! A response body that ends with an error when its client reads too slowly, so that a slow client holds the memory of a
//! large body for a bounded time (docs/limits.md).
//!
//! hyper takes the next chunk when it has written most of the last one. The write timeout of the connection covers a client
//! that reads nothing.
//!
//! Must not import: any other module of this crate.

use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::time::Instant;

/// Bytes of a chunk. A smaller body is one chunk.
const CHUNK_BYTES: usize = 64 << 10;

/// The minimum pace of a reader.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Bytes per second that the client must read on average, after `grace`. Default: 8 KiB.
    pub min_bytes_per_second: u32,
    /// Time after the start of the body in which the pace does not count. Default: 10 s.
    pub grace: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config { min_bytes_per_second: 8 << 10, grace: Duration::from_secs(10) }
    }
}

/// The client has read fewer bytes than [`Config::min_bytes_per_second`] requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the client reads too slowly")]
pub struct ReadsTooSlowly;

/// The chunks of a body. An error ends the connection.
#[derive(Debug)]
pub struct PacedChunks {
    rest: Bytes,
    config: Config,
    started_at: Option<Instant>,
    taken: u64,
}

impl PacedChunks {
    /// Divides `body` into chunks.
    #[must_use]
    pub fn new(body: Bytes, config: Config) -> PacedChunks {
        PacedChunks { rest: body, config, started_at: None, taken: 0 }
    }
}

impl Iterator for PacedChunks {
    type Item = Result<Bytes, ReadsTooSlowly>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let elapsed = self.started_at.get_or_insert_with(Instant::now).elapsed();
        let required = u64::from(self.config.min_bytes_per_second) * elapsed.as_secs();
        if elapsed > self.config.grace && self.taken < required {
            self.rest = Bytes::new();
            return Some(Err(ReadsTooSlowly));
        }
        let chunk = self.rest.split_to(CHUNK_BYTES.min(self.rest.len()));
        self.taken += chunk.len() as u64;
        Some(Ok(chunk))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn chunks(bytes: usize) -> PacedChunks {
        PacedChunks::new(vec![7; bytes].into(), Config::default())
    }

    #[tokio::test(start_paused = true)]
    async fn chunks_are_the_body_in_order() {
        let body: Bytes = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let parts: Result<Vec<_>, _> = PacedChunks::new(body.clone(), Config::default()).collect();
        let parts = parts.unwrap();
        assert!(parts.iter().all(|part| part.len() <= CHUNK_BYTES));
        assert_eq!(parts.concat(), body);
        assert_eq!(chunks(0).next(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn reader_below_the_minimum_pace_gets_an_error_after_the_grace() {
        // Seconds between two chunks of 64 KiB: 8 s are exactly the minimum of 8 KiB a second.
        for (pause, ends) in [(1, false), (7, false), (9, true), (30, true)] {
            let mut results = Vec::new();
            for result in chunks(4 << 20) {
                results.push(result);
                advance(Duration::from_secs(pause)).await;
            }
            assert_eq!(results.last() == Some(&Err(ReadsTooSlowly)), ends, "a pause of {pause} s");
            assert!(results.iter().rev().skip(1).all(Result::is_ok), "nothing follows the error");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pace_does_not_count_during_the_grace() {
        let mut body = chunks(1 << 20);
        assert!(body.next().unwrap().is_ok());
        advance(Config::default().grace).await;
        assert!(body.next().unwrap().is_ok());
        advance(Duration::from_secs(10)).await;
        assert_eq!(body.next(), Some(Err(ReadsTooSlowly)));
    }
}
