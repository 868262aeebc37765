//! One connection to NATS, for `doctor` (docs/protocol.md#doctor).

use std::sync::Arc;

use async_nats::jetstream::{self, ErrorCode, context::GetStreamErrorKind};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;

use super::connection::{Config, REQUEST_TIMEOUT, connect};
use crate::broker::MAX_REASON_CHARS;

/// Connects, and reads the bucket as a replica does. Nothing is created or changed. Returns whether the bucket exists. The
/// caller limits the time.
///
/// # Errors
/// Why NATS cannot be used, in words for operators.
pub async fn check(config: &Config) -> Result<bool, String> {
    read(config).await.map_err(|reason| reason.chars().take(MAX_REASON_CHARS).collect())
}

async fn read(config: &Config) -> Result<bool, String> {
    let client = connect(config, Arc::new(watch::Sender::new(None)), Counter::default()).await?;
    let mut context = jetstream::new(client);
    context.set_timeout(REQUEST_TIMEOUT);
    // The stream of a bucket has this name, by the design of key-value buckets.
    if let Err(error) = context.get_stream(format!("KV_{}", config.bucket)).await {
        return match error.kind() {
            GetStreamErrorKind::JetStream(answer) if answer.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(false),
            _ => Err(format!("JetStream: {error}")),
        };
    }
    let failed = |error: &dyn std::fmt::Display| format!("bucket '{}': {error}", config.bucket);
    let store = context.get_key_value(&config.bucket).await.map_err(|error| failed(&error))?;
    store.watch_with_history(">").await.map_err(|error| failed(&error))?;
    Ok(true)
}
