//! What the oracle reports: which guarantee a stream violates, where, and how.

use std::fmt::{self, Display, Formatter};

/// The guarantee that a check belongs to (docs/guarantees.md#guarantees).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guarantee {
    /// G1: events of one resource come in resourceVersion order.
    Ordered,
    /// G2: no event comes twice for one cursor.
    Unique,
    /// G3: no silent gap.
    Reliable,
    /// G4: a snapshot is one consistent state.
    Atomic,
    /// G5: a cursor works on every replica.
    Resumable,
    /// G6: the cursor of a quiet stream stays fresh.
    Bookmarked,
    /// G7: a client receives exactly what its filter selects.
    Filtered,
    /// G8: ready, claimed and released are sent once for each real transition.
    ExactTransitions,
    /// G9: the client's fold equals the state of the API server at rest.
    Convergent,
    /// G10: the loss of the API server is reported, and only then.
    Honest,
    /// The wire format of docs/protocol.md#full-stream or docs/protocol.md#boilerhouse-stream.
    WireFormat,
}

impl Guarantee {
    fn name(self) -> &'static str {
        match self {
            Guarantee::Ordered => "G1 (ordered)",
            Guarantee::Unique => "G2 (unique)",
            Guarantee::Reliable => "G3 (reliable)",
            Guarantee::Atomic => "G4 (atomic)",
            Guarantee::Resumable => "G5 (resumable)",
            Guarantee::Bookmarked => "G6 (bookmarked)",
            Guarantee::Filtered => "G7 (filtered)",
            Guarantee::ExactTransitions => "G8 (exact transitions)",
            Guarantee::Convergent => "G9 (convergent)",
            Guarantee::Honest => "G10 (honest)",
            Guarantee::WireFormat => "wire format",
        }
    }
}

/// One violation: the guarantee, the place in the record (seed, client, event), and what is wrong there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) guarantee: Guarantee,
    /// From the outside to the inside, such as `seed 7`, `client 2`, `entry 31: …`.
    place: Vec<String>,
    message: String,
}

impl Violation {
    pub(crate) fn new(guarantee: Guarantee, message: impl Into<String>) -> Violation {
        Violation { guarantee, place: Vec::new(), message: message.into() }
    }

    /// Adds the next outer part of the place.
    pub(crate) fn at(mut self, place: impl Display) -> Violation {
        self.place.insert(0, place.to_string());
        self
    }
}

impl Display for Violation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} is violated", self.guarantee.name())?;
        self.place.iter().try_for_each(|place| write!(f, ", {place}"))?;
        write!(f, ": {}", self.message)
    }
}

/// A check of the oracle.
pub(crate) type Validation = Result<(), Violation>;

/// Returns a violation if a check fails.
pub(crate) fn ensure(holds: bool, guarantee: Guarantee, message: impl FnOnce() -> String) -> Validation {
    if holds { Ok(()) } else { Err(Violation::new(guarantee, message())) }
}
