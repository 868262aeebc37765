//! How long things are underway in a history, so that it is the seed and not chance who comes first.

use std::time::Duration;

use boilerhouse_bridge::event::Resource;
use tokio::time::{Instant, sleep, sleep_until};

/// How long things are underway, so that it is the seed and not chance who comes first and meets what is armed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// How long a request takes, another time for each client.
    way: Duration,
    beat: Option<Beat>,
}

/// A client with moments of its own: at each, one thing of one resource reaches one end. Whoever is woken by it is woken
/// by nothing else.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beat {
    pub(super) begun: Instant,
    /// Milliseconds behind the beat, pods and claims.
    pub(super) phases: [u64; 2],
    /// How much later than that each thing comes that a watch tells.
    pub(super) lag: [Duration; 2],
}

impl Pace {
    pub(super) fn way(ms: u64) -> Pace {
        Pace { way: Duration::from_millis(ms), beat: None }
    }

    pub(super) fn beat(beat: Beat) -> Pace {
        Pace { way: Duration::ZERO, beat: Some(beat) }
    }

    pub(super) async fn request(self, kind: Option<Resource>) {
        match self.beat {
            None => sleep(self.way).await,
            Some(beat) => beat.wait(kind.unwrap_or(Resource::Instance), Duration::ZERO).await,
        }
    }

    pub(super) async fn line(self, kind: Resource) {
        if let Some(beat) = self.beat {
            beat.wait(kind, beat.lag[kind as usize]).await;
        }
    }
}

impl Beat {
    /// Milliseconds from beat to beat: all times of the bridge are multiples of it.
    const MS: u128 = 50;

    /// The first moment of a phase, after now, when so much time has passed.
    pub(super) fn next(begun: Instant, time: Duration, phase: u64) -> Instant {
        let at = (begun.elapsed() + time).as_millis().max(begun.elapsed().as_millis() + 1);
        let beats = (at + Self::MS - 1 - u128::from(phase)).div_euclid(Self::MS);
        begun + Duration::from_millis(u64::try_from(beats * Self::MS).unwrap() + phase)
    }

    async fn wait(self, kind: Resource, time: Duration) {
        sleep_until(Beat::next(self.begun, time, self.phases[kind as usize])).await;
    }
}
