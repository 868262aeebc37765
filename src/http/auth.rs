//! Who asks.
pub mod keys;
pub mod seal;
pub mod secret;
