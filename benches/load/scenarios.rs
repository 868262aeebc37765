//! One file per scenario. A scenario's flags are its fields; `run` measures and prints.

pub(crate) mod dedicated_memory;
pub(crate) mod fan_out;
pub(crate) mod get_load;
pub(crate) mod idle_memory;
pub(crate) mod initial_state;
pub(crate) mod nchan;
pub(crate) mod performance;
pub(crate) mod stalled;
