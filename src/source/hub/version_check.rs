//! Asks the API server for its newest versions, for clients whose cursors are ahead of this replica
//! (docs/architecture.md#feed-contract, item 3).
//!
//! Guarantees: one check serves all waiting clients, and the number of checks per minute is bounded.

use std::convert::Infallible;

use futures::future::try_join;
use tokio::time::timeout;

use super::{api_client::ResourceApi, round_budget::RoundBudget};
use crate::{
    event::{PerResource, ResourceVersion},
    feed::BackfillHandle,
    source::decode::{DecodedClaim, DecodedPod},
};

/// Runs version checks until the future is dropped.
pub(super) async fn run(
    pods: &ResourceApi<'_, DecodedPod>,
    claims: &ResourceApi<'_, DecodedClaim>,
    backfills: &BackfillHandle,
) -> Infallible {
    let config = pods.config;
    let mut budget = RoundBudget::per_minute(config.version_checks_per_minute);
    loop {
        backfills.wait_for_version_check().await;
        budget.ready().await;
        budget.start();
        backfills.start_version_check();
        let versions = timeout(config.version_check_timeout, newest_versions(pods, claims)).await.ok();
        if versions.is_none() {
            let limit = config.version_check_timeout;
            tracing::info!(?limit, "version check timed out; it is repeated, and clients wait for it");
        }
        backfills.complete_version_check(versions);
    }
}

/// Returns the newest versions of the API server. It repeats the requests until both succeed: the watch loops report the
/// error, and nothing is known about the waiting clients before.
async fn newest_versions(
    pods: &ResourceApi<'_, DecodedPod>,
    claims: &ResourceApi<'_, DecodedClaim>,
) -> PerResource<ResourceVersion> {
    let mut failures = 0;
    loop {
        match try_join(pods.current_version(), claims.current_version()).await {
            Ok((pods, claims)) => return PerResource::new(pods, claims),
            Err(error) => {
                failures += 1;
                pods.config.backoff.wait(failures, &error).await;
            }
        }
    }
}
