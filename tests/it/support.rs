//! What the integration tests speak the protocol with (style.md, 14): everything here waits for a state with a bound.

pub(crate) mod bridge;
pub(crate) mod golden;
pub(crate) mod plane;
pub(crate) mod web;
