//! The health of the resource of a watch loop: when it is live, when it is down, and what is logged about it.

use std::{pin::pin, sync::Arc};

use tokio::time::{Instant, sleep_until};

use super::WatchLoop;
use crate::{
    feed::Health,
    source::{
        decode::Decode,
        error::UpstreamError,
        hub::event::{SourceEvent, emit},
        retry::is_outage,
    },
};

impl<T: Decode> WatchLoop<'_, T> {
    /// Waits for an answer of the API server. Reports the resource as down when no useful byte has been received for
    /// `down_after`: the API server may take any time for a list, and sends its pages meanwhile.
    pub(super) async fn await_answer<R>(&mut self, verb: &'static str, answer: impl Future<Output = R>) -> R {
        let (config, mut answer) = (self.api.config, pin!(answer));
        tokio::select! {
            biased;
            answer = &mut answer => return answer,
            () = sleep_until(self.last_byte_at + config.down_after), if self.health == Health::Live => {}
        }
        let request_info = self.api.request_info(verb);
        let error = UpstreamError::Timeout { request_info, limit: config.down_after };
        self.log(&error);
        self.report_down(&error);
        answer.await
    }

    pub(super) fn record_received(&mut self) {
        self.last_byte_at = Instant::now();
        self.api.metrics.record_received(T::RESOURCE);
        emit(self.sink, SourceEvent::BytesReceived(T::RESOURCE));
    }

    pub(super) fn mark_live(&mut self) {
        self.last_logged = None;
        if self.health != Health::Live {
            tracing::info!(resource = T::RESOURCE.plural(), version = self.last_version, "live");
            self.set_health(Health::Live);
        }
    }

    /// Counts and logs an error. Unless it is expected, reports the upstream as down and waits before the next attempt.
    pub(super) async fn on_error(&mut self, error: &UpstreamError) {
        self.api.metrics.record_interruption(T::RESOURCE, error);
        if let UpstreamError::Decode(_) = error {
            self.api.metrics.decode_errors[T::RESOURCE].inc();
        }
        self.just_listed = false;
        self.failures = self.failures.saturating_add(1);
        let is_expected = !is_outage(error, self.failures);
        let is_silent = is_expected
            && matches!(error, UpstreamError::WatchEnded | UpstreamError::ConnectionLost(_) | UpstreamError::Expired);
        if !is_silent {
            self.log(error);
        }
        if is_expected {
            return;
        }
        self.report_down(error);
        self.api.config.backoff.wait(self.failures, error).await;
    }

    /// Logs an error, unless it is the last logged one.
    fn log(&mut self, error: &UpstreamError) {
        if self.last_logged.as_ref() != Some(error) {
            tracing::warn!(resource = T::RESOURCE.plural(), %error, "list or watch failed");
            self.last_logged = Some(error.clone());
        }
    }

    /// Reports the resource as down, unless it is down for this reason.
    fn report_down(&mut self, error: &UpstreamError) {
        let reason = error.reason();
        let is_reported = matches!(&self.health, Health::Down { reason: reported, .. } if **reported == *reason);
        if !is_reported {
            self.set_health(Health::Down { since: self.last_byte_at, reason: Arc::from(reason) });
        }
    }

    fn set_health(&mut self, health: Health) {
        self.api.metrics.up[T::RESOURCE].set(i64::from(health == Health::Live));
        self.health = health.clone();
        emit(self.sink, SourceEvent::Health(T::RESOURCE, health));
    }
}
