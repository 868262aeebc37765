//! From a step and a lens to events.
