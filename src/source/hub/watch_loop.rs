//! One resource, followed: list, watch, and what to do when either fails. `NextStep` is the phase; an `UpstreamError` ends it.

use std::{convert::Infallible, pin::pin, sync::Arc};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use http_body_util::BodyExt;
use kube::{client::Body, core::WatchEvent};
use tokio::{
    task::coop::consume_budget,
    time::{Instant, sleep_until},
};

use super::{
    EventSink, SourceEvent,
    api_client::{self, ResourceApi},
    back_off, emit,
    line_splitter::{LineSplitter, LineTooLong},
    metrics::InterruptionLabels,
};
use crate::{
    event::ResourceVersion,
    feed::Health,
    source::{decode::Decode, error::UpstreamError},
};

/// Routine troubles in a row that are answered at once and count as nothing: a watch is cut, and the next one finds its
/// history gone, as after a restart of the API server.
const EXPECTED_FAILURES: u32 = 2;

/// What to do next.
enum NextStep {
    List,
    Watch,
}

/// A watch taken up again after trouble is live only when what was missed has come.
enum CatchUp {
    /// Nothing was missed.
    Done,
    /// The API server is being asked for its version.
    Probing,
    /// That version must be reached, or the watch be quiet until then.
    Until { version: ResourceVersion, quiet: Instant },
}

/// A watch while it is read.
struct WatchRead<'a> {
    lines: LineSplitter,
    catch_up: CatchUp,
    /// A list of one object, on its way.
    probe: Option<BoxFuture<'a, Result<ResourceVersion, UpstreamError>>>,
    /// When the last one was sent, and what was known then: what has come since may be newer than its answer.
    last_probe: (Instant, ResourceVersion),
    /// When the connection counts as dead.
    end_by: Instant,
}

/// Follows one resource.
pub(super) struct WatchLoop<'a, T> {
    api: &'a ResourceApi<'a, T>,
    out: EventSink<'a>,
    /// The newest version told.
    last_version: ResourceVersion,
    /// That version comes from a list just made: the next watch can have missed nothing.
    just_listed: bool,
    /// When the last byte came.
    last_byte_at: Instant,
    /// Failures since a watch last worked.
    failures: u32,
    health: Health,
    /// The trouble that was logged last, until it is over.
    last_logged: Option<UpstreamError>,
}

impl<'a, T: Decode> WatchLoop<'a, T> {
    pub(super) fn new(api: &'a ResourceApi<'a, T>, out: EventSink<'a>) -> Self {
        WatchLoop {
            api,
            out,
            last_version: 0,
            just_listed: false,
            last_byte_at: Instant::now(),
            failures: 0,
            health: Health::Connecting,
            last_logged: None,
        }
    }

    pub(super) async fn run(mut self) -> Infallible {
        let mut next = NextStep::List;
        loop {
            let error = match next {
                NextStep::List => self.list().await.err(),
                NextStep::Watch => Some(self.watch().await),
            };
            next = match error {
                None => NextStep::Watch,
                Some(error) => {
                    self.on_error(&error).await;
                    if matches!(next, NextStep::List) || error.requires_relist() {
                        NextStep::List
                    } else {
                        NextStep::Watch
                    }
                }
            };
        }
    }

    async fn list(&mut self) -> Result<(), UpstreamError> {
        let (views, rv) = self.api.list().await?;
        self.record_received();
        if rv < self.last_version {
            // It may be another cluster behind the old address: ask again whose history this is.
            emit(self.out, SourceEvent::Namespace(self.api.namespace_uid().await?));
        }
        self.last_version = rv;
        self.just_listed = true;
        emit(self.out, SourceEvent::Replace(T::KIND, views, rv));
        Ok(())
    }

    async fn watch(&mut self) -> UpstreamError {
        let (from, started) = (self.last_version, Instant::now());
        let error = match self.api.watch(from, self.api.config.watch_timeout).await {
            Ok(body) => self.read(body).await,
            Err(error) => return error,
        };
        if self.last_version > from || started.elapsed() >= self.api.config.min_watch_duration {
            self.failures = 0;
        }
        error
    }

    /// Reads a watch to its end.
    async fn read(&mut self, body: Body) -> UpstreamError {
        let api = self.api;
        let mut body = body.into_data_stream();
        let mut reading = self.start_read();
        let mut timer = pin!(sleep_until(self.next_wake(&reading)));
        loop {
            let heard = tokio::select! {
                biased;
                chunk = body.next() => match chunk {
                    Some(Ok(chunk)) => {
                        let heard = self.on_chunk(&mut reading, &chunk);
                        // A stream that always has more must leave the other resource its turn.
                        consume_budget().await;
                        heard
                    }
                    Some(Err(error)) => Err(UpstreamError::ConnectionLost(cause(&error))),
                    None => Err(UpstreamError::WatchEnded),
                },
                answer = answer(&mut reading.probe) => {
                    let heard = self.on_probe(&mut reading, answer);
                    timer.as_mut().reset(self.next_wake(&reading));
                    heard
                }
                () = timer.as_mut() => {
                    let heard = self.on_timer(&mut reading, api);
                    timer.as_mut().reset(self.next_wake(&reading));
                    heard
                }
            };
            if let Err(error) = heard {
                return error;
            }
        }
    }

    fn start_read(&mut self) -> WatchRead<'a> {
        let (api, now) = (self.api, Instant::now());
        self.record_received();
        let missed = !self.just_listed && self.health != Health::Live;
        self.just_listed = false;
        if !missed {
            self.mark_live();
        }
        WatchRead {
            lines: LineSplitter::new(api.config.line_bytes),
            catch_up: if missed { CatchUp::Probing } else { CatchUp::Done },
            probe: missed.then(|| api.current_version().boxed()),
            last_probe: (now, self.last_version),
            end_by: now + api.config.watch_timeout + api.config.watch_grace,
        }
    }

    fn on_chunk(&mut self, reading: &mut WatchRead<'_>, chunk: &Bytes) -> Result<(), UpstreamError> {
        self.record_received();
        reading.lines.push(chunk);
        loop {
            match reading.lines.next() {
                Ok(Some(line)) => self.on_line(&line)?,
                Ok(None) => break,
                Err(LineTooLong) => {
                    let limit = self.api.config.line_bytes;
                    return Err(UpstreamError::Decode(format!("a line of more than {limit} bytes")));
                }
            }
        }
        if let CatchUp::Until { version, ref mut quiet } = reading.catch_up {
            *quiet = self.last_byte_at + self.api.config.catch_up_quiet_period;
            self.set_caught_up(reading, self.last_version >= version);
        }
        Ok(())
    }

    fn on_line(&mut self, line: &[u8]) -> Result<(), UpstreamError> {
        let view = |row| self.api.view(row);
        let fact = match api_client::parse_line::<T>(line)? {
            WatchEvent::Added(row) | WatchEvent::Modified(row) => SourceEvent::Upsert(view(row)),
            WatchEvent::Deleted(row) => SourceEvent::Remove(view(row)),
            WatchEvent::Bookmark(bookmark) => {
                let rv = bookmark.metadata.resource_version.parse();
                SourceEvent::Bookmark(
                    T::KIND,
                    rv.map_err(|_| UpstreamError::Decode("a bookmark's version".to_owned()))?,
                )
            }
            WatchEvent::Error(status) => {
                return Err(UpstreamError::from_watch_status(&status, &self.api.request_info("watch")));
            }
        };
        let (rv, is_bookmark) = match &fact {
            SourceEvent::Upsert(view) | SourceEvent::Remove(view) => (view.resource_version(), false),
            SourceEvent::Bookmark(_, rv) => (*rv, true),
            SourceEvent::Namespace(_)
            | SourceEvent::Replace(..)
            | SourceEvent::BytesReceived(_)
            | SourceEvent::Health(..) => return Ok(()),
        };
        if rv > self.last_version {
            self.last_version = rv;
            emit(self.out, fact);
        } else if !is_bookmark {
            // No API server does this; whoever does must not make time go back (docs/guarantees.md, G1 and G2).
            self.api.metrics.stale.get_or_create(&self.api.resource_label()).inc();
        }
        Ok(())
    }

    fn on_probe(
        &mut self,
        reading: &mut WatchRead<'_>,
        answer: Result<ResourceVersion, UpstreamError>,
    ) -> Result<(), UpstreamError> {
        reading.probe = None;
        let now = match answer {
            Ok(version) => version,
            // Too busy to list is not gone.
            Err(UpstreamError::Throttled { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        self.record_received();
        let (_, known) = reading.last_probe;
        if now < known {
            return Err(UpstreamError::VersionWentBack { known, now });
        }
        if matches!(reading.catch_up, CatchUp::Probing) {
            reading.catch_up =
                CatchUp::Until { version: now, quiet: self.last_byte_at + self.api.config.catch_up_quiet_period };
            self.set_caught_up(reading, self.last_version >= now);
        }
        Ok(())
    }

    fn on_timer(&mut self, reading: &mut WatchRead<'a>, api: &'a ResourceApi<'a, T>) -> Result<(), UpstreamError> {
        let now = Instant::now();
        if now >= reading.end_by {
            return Err(UpstreamError::WatchOverdue);
        }
        if let CatchUp::Until { quiet, .. } = reading.catch_up {
            self.set_caught_up(reading, now >= quiet);
        }
        if reading.probe.is_none()
            && now >= self.last_byte_at.max(reading.last_probe.0) + api.config.probe_after_silence
        {
            reading.last_probe = (now, self.last_version);
            reading.probe = Some(api.current_version().boxed());
        }
        Ok(())
    }

    /// When there may be something to do though no byte came. Too early is harmless: bytes only put it off.
    fn next_wake(&self, reading: &WatchRead<'_>) -> Instant {
        let silent = match reading.probe {
            Some(_) => reading.end_by,
            None => self.last_byte_at.max(reading.last_probe.0) + self.api.config.probe_after_silence,
        };
        let quiet = match reading.catch_up {
            CatchUp::Until { quiet, .. } => quiet,
            CatchUp::Done | CatchUp::Probing => reading.end_by,
        };
        reading.end_by.min(silent).min(quiet)
    }

    fn set_caught_up(&mut self, reading: &mut WatchRead<'_>, is: bool) {
        if is {
            reading.catch_up = CatchUp::Done;
            self.mark_live();
        }
    }

    fn record_received(&mut self) {
        self.last_byte_at = Instant::now();
        self.api.metrics.record_received(T::KIND, self.last_byte_at);
        emit(self.out, SourceEvent::BytesReceived(T::KIND));
    }

    fn mark_live(&mut self) {
        self.last_logged = None;
        if self.health != Health::Live {
            tracing::info!(resource = T::KIND.plural(), version = self.last_version, "live");
            self.set_health(Health::Live);
        }
    }

    /// What a failure means: nothing yet where it is routine, else that the upstream is down, and a pause.
    async fn on_error(&mut self, error: &UpstreamError) {
        let (resource, reason) = (T::KIND.plural(), error.reason());
        self.api.metrics.restarts.get_or_create(&InterruptionLabels { resource, reason }).inc();
        if let UpstreamError::Decode(_) = error {
            self.api.metrics.unreadable.get_or_create(&self.api.resource_label()).inc();
        }
        self.just_listed = false;
        self.failures = self.failures.saturating_add(1);
        let routine = error.is_expected() && self.failures <= EXPECTED_FAILURES;
        let quiet = routine
            && matches!(error, UpstreamError::WatchEnded | UpstreamError::ConnectionLost(_) | UpstreamError::Expired);
        if !quiet && self.last_logged.as_ref() != Some(error) {
            tracing::warn!(resource, "{error}");
            self.last_logged = Some(error.clone());
        }
        if routine {
            return;
        }
        let told = matches!(&self.health, Health::Down { reason: told, .. } if **told == *reason);
        if !told {
            self.set_health(Health::Down { since: self.last_byte_at, reason: Arc::from(reason) });
        }
        back_off(self.api.config, self.failures, error).await;
    }

    fn set_health(&mut self, health: Health) {
        self.api.metrics.live.get_or_create(&self.api.resource_label()).set(i64::from(health == Health::Live));
        self.health = health.clone();
        emit(self.out, SourceEvent::Health(T::KIND, health));
    }
}

/// The answer to a probe, if there is one under way; otherwise never.
async fn answer(
    probe: &mut Option<BoxFuture<'_, Result<ResourceVersion, UpstreamError>>>,
) -> Result<ResourceVersion, UpstreamError> {
    match probe {
        Some(probe) => probe.await,
        None => std::future::pending().await,
    }
}

/// The innermost words of an error: the outer ones only say that a body was read.
fn cause(error: &kube::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
