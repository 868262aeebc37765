//! Counts and measures the reviews that a [`ReviewBackend`] sends.

use std::sync::Arc;

use futures::FutureExt;
use tokio::time::Instant;

use super::{
    metrics::{Metrics, ReviewKind, ReviewResult},
    review_cache::{AccessDecision, ReviewBackend, ReviewUnavailable},
    secret::Secret,
    user::KubernetesUser,
};

/// Returns a backend that counts each review of `backend` and its duration. A cancelled review is not counted.
pub(super) fn measure(backend: ReviewBackend, metrics: &Metrics) -> ReviewBackend {
    let ReviewBackend { token, access } = backend;
    let (token_metrics, access_metrics) = (metrics.clone(), metrics.clone());
    ReviewBackend {
        token: Box::new(move |secret: Secret| {
            let (review, metrics, start) = (token(secret), token_metrics.clone(), Instant::now());
            async move {
                let user = review.await;
                let result = match &user {
                    Ok(Some(_)) => ReviewResult::Allowed,
                    Ok(None) => ReviewResult::Denied,
                    Err(ReviewUnavailable) => ReviewResult::Error,
                };
                metrics.count_review(ReviewKind::Token, result, start.elapsed());
                user
            }
            .boxed()
        }),
        access: Box::new(move |user: Arc<KubernetesUser>| {
            let (review, metrics, start) = (access(user), access_metrics.clone(), Instant::now());
            async move {
                let decision = review.await;
                let result = match &decision {
                    Ok(AccessDecision::Granted) => ReviewResult::Allowed,
                    Ok(AccessDecision::Denied(_)) => ReviewResult::Denied,
                    Err(ReviewUnavailable) => ReviewResult::Error,
                };
                metrics.count_review(ReviewKind::Access, result, start.elapsed());
                decision
            }
            .boxed()
        }),
    }
}
