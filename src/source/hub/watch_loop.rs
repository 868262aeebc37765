//! The list-and-watch loop of one resource: list, watch, and what each error leads to.
//!
//! Owns: the last version, the failures in a row and the health of the resource.
//!
//! Guarantees:
//! - Versions never go back, except by a list that found a history reset.
//! - After an error the resource is live only when the missed changes have been written.
//! - A resource without a useful byte for `down_after` is down, also while a list or the start of a watch is awaited.
//! - An error never ends the loop.
//!
//! `NextStep` is the state of the loop; an `UpstreamError` ends each step.

mod health;

use std::{convert::Infallible, pin::pin};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use http_body_util::BodyExt;
use kube::client::Body;
use tokio::{
    task::coop::consume_budget,
    time::{Instant, sleep_until},
};

use super::{
    api_client::ResourceApi,
    event::{EventSink, SourceEvent, emit},
};
use crate::{
    event::ResourceVersion,
    feed::Health,
    source::{
        answer::{self, WatchLine, innermost_cause},
        decode::Decode,
        error::UpstreamError,
        line_splitter::LineSplitter,
    },
};

/// The next step of the loop.
enum NextStep {
    List,
    Watch,
}

/// Whether a resumed watch has delivered the changes that were missed during an error.
enum CatchUp {
    /// Nothing is missing.
    Done,
    /// The API server was asked for its current version.
    Probing,
    /// The watch must reach `version`, or receive nothing until `quiet`.
    Until { version: ResourceVersion, quiet: Instant },
}

/// The state of a watch while it is read.
struct WatchRead<'a> {
    lines: LineSplitter,
    catch_up: CatchUp,
    /// The pending request for the current version.
    probe: Option<BoxFuture<'a, Result<ResourceVersion, UpstreamError>>>,
    /// When the last probe was sent, and the last version at that time. Lines received since then may be newer than the
    /// response to the probe.
    last_probe: (Instant, ResourceVersion),
    /// When a throttled probe is repeated, while the watch must show that nothing is missing.
    retry_probe_at: Option<Instant>,
    /// When the connection counts as dead.
    end_by: Instant,
}

/// Lists and watches one resource.
pub(super) struct WatchLoop<'a, T> {
    api: &'a ResourceApi<'a, T>,
    sink: EventSink<'a>,
    /// The newest version that was written.
    last_version: ResourceVersion,
    /// The last step was a list, so the next watch cannot have missed a change.
    just_listed: bool,
    /// When the last useful byte was received: of a complete list, of a watch and its complete lines, or of the answer to a
    /// probe. An error is not useful.
    last_byte_at: Instant,
    /// Failures in a row since a watch worked.
    failures: u32,
    health: Health,
    /// The last logged error, until the resource is live.
    last_logged: Option<UpstreamError>,
}

impl<'a, T: Decode> WatchLoop<'a, T> {
    pub(super) fn new(api: &'a ResourceApi<'a, T>, sink: EventSink<'a>) -> Self {
        WatchLoop {
            api,
            sink,
            last_version: 0,
            just_listed: false,
            last_byte_at: Instant::now(),
            failures: 0,
            health: Health::Connecting,
            last_logged: None,
        }
    }

    /// Runs the loop until the future is dropped. It starts with a list, and continues with the last version and the health
    /// of an earlier run.
    pub(super) async fn run(&mut self) -> Infallible {
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
        let api = self.api;
        let (views, version) = self.await_answer("list", api.list()).await?;
        self.record_received();
        if version < self.last_version {
            // Another cluster may answer at the same address, so the namespace id is read again.
            emit(self.sink, SourceEvent::Namespace(self.api.namespace_uid().await?));
        }
        self.set_last_version(version);
        self.just_listed = true;
        emit(self.sink, SourceEvent::Replace(T::RESOURCE, views, version));
        self.api.metrics.synced[T::RESOURCE].set(1);
        Ok(())
    }

    async fn watch(&mut self) -> UpstreamError {
        let (api, from, started) = (self.api, self.last_version, Instant::now());
        let body = match self.await_answer("watch", api.watch(from, api.config.watch_timeout)).await {
            Ok(body) => body,
            Err(error) => return error,
        };
        let last_byte_before = self.last_byte_at;
        self.record_received();
        let watch_started_at = self.last_byte_at;
        let error = self.read(body).await;
        if error.requires_relist() && self.last_byte_at == watch_started_at {
            // All that this watch has shown is that a list is needed.
            self.last_byte_at = last_byte_before;
        }
        if self.last_version > from || started.elapsed() >= self.api.config.min_watch_duration {
            self.failures = 0;
        }
        error
    }

    /// Reads a watch until it ends, and returns why.
    async fn read(&mut self, body: Body) -> UpstreamError {
        let api = self.api;
        let mut body = body.into_data_stream();
        let mut read = self.start_read();
        let mut timer = pin!(sleep_until(self.next_wake(&read)));
        loop {
            let result = tokio::select! {
                biased;
                chunk = body.next() => match chunk {
                    Some(Ok(chunk)) => {
                        let result = self.on_chunk(&mut read, &chunk);
                        // Yields now and then: a body that always has data must not starve the loop of the other resource.
                        consume_budget().await;
                        result
                    }
                    Some(Err(error)) => Err(UpstreamError::ConnectionLost(innermost_cause(&error))),
                    None => Err(UpstreamError::WatchEnded),
                },
                response = probe_response(&mut read.probe) => {
                    let result = self.on_probe(&mut read, response);
                    timer.as_mut().reset(self.next_wake(&read));
                    result
                }
                () = timer.as_mut() => {
                    let result = self.on_timer(&mut read, api);
                    timer.as_mut().reset(self.next_wake(&read));
                    result
                }
            };
            if let Err(error) = result {
                return error;
            }
        }
    }

    fn start_read(&mut self) -> WatchRead<'a> {
        let (api, now) = (self.api, Instant::now());
        let may_have_missed = !self.just_listed && self.health != Health::Live;
        self.just_listed = false;
        if !may_have_missed {
            self.mark_live();
        }
        WatchRead {
            lines: LineSplitter::new(api.config.line_bytes),
            catch_up: if may_have_missed { CatchUp::Probing } else { CatchUp::Done },
            probe: may_have_missed.then(|| api.current_version().boxed()),
            last_probe: (now, self.last_version),
            retry_probe_at: None,
            end_by: now + api.config.watch_timeout + api.config.watch_grace,
        }
    }

    fn on_chunk(&mut self, read: &mut WatchRead<'_>, chunk: &Bytes) -> Result<(), UpstreamError> {
        read.lines.push(chunk);
        let mut has_line = false;
        while let Some(line) = read.lines.next().map_err(|_| answer::line_too_long(self.api.config.line_bytes))? {
            self.on_line(&line)?;
            has_line = true;
        }
        if has_line {
            self.record_received();
        }
        if let CatchUp::Until { version, ref mut quiet } = read.catch_up {
            // Also a part of a line shows that the missed changes are not complete.
            *quiet = Instant::now() + self.api.config.catch_up_quiet_period;
            self.set_caught_up(read, self.last_version >= version);
        }
        Ok(())
    }

    fn on_line(&mut self, line: &[u8]) -> Result<(), UpstreamError> {
        let (api, counters) = (self.api, &self.api.metrics.events[T::RESOURCE]);
        let line = answer::parse_line::<T>(line, || api.request_info("watch")).inspect_err(|error| {
            // Every error except this one is the content of an `ERROR` line.
            if !matches!(error, UpstreamError::Decode(_)) {
                counters.error.inc();
            }
        })?;
        let (version, event) = match line {
            WatchLine::Added(object) => {
                counters.added.inc();
                let view = api.view(object);
                (view.resource_version(), SourceEvent::Upsert(view))
            }
            WatchLine::Modified(object) => {
                counters.modified.inc();
                let view = api.view(object);
                (view.resource_version(), SourceEvent::Upsert(view))
            }
            WatchLine::Deleted(object) => {
                counters.deleted.inc();
                let view = api.view(object);
                (view.resource_version(), SourceEvent::Remove(view))
            }
            WatchLine::Bookmark(version) => {
                counters.bookmark.inc();
                (version, SourceEvent::Bookmark(T::RESOURCE, version))
            }
        };
        if version > self.last_version {
            self.set_last_version(version);
            emit(self.sink, event);
        } else if !matches!(event, SourceEvent::Bookmark(..)) {
            // API servers do not send older versions. If one did, the order would break (docs/guarantees.md, G1 and G2).
            api.metrics.stale_events[T::RESOURCE].inc();
        }
        Ok(())
    }

    fn on_probe(
        &mut self,
        read: &mut WatchRead<'_>,
        response: Result<ResourceVersion, UpstreamError>,
    ) -> Result<(), UpstreamError> {
        read.probe = None;
        let now = match response {
            Ok(version) => version,
            // An API server that is too busy for a list still answers.
            Err(UpstreamError::Throttled { retry_after, .. }) => {
                if matches!(read.catch_up, CatchUp::Probing) {
                    let config = self.api.config;
                    let delay = retry_after.unwrap_or_default().max(config.backoff.max).min(config.probe_retry_max);
                    read.retry_probe_at = Some(Instant::now() + delay);
                }
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.record_received();
        let (_, known) = read.last_probe;
        if now < known {
            return Err(UpstreamError::VersionWentBack { known, now });
        }
        if matches!(read.catch_up, CatchUp::Probing) {
            read.catch_up =
                CatchUp::Until { version: now, quiet: self.last_byte_at + self.api.config.catch_up_quiet_period };
            self.set_caught_up(read, self.last_version >= now);
        }
        Ok(())
    }

    fn on_timer(&mut self, read: &mut WatchRead<'a>, api: &'a ResourceApi<'a, T>) -> Result<(), UpstreamError> {
        let now = Instant::now();
        if now >= read.end_by {
            return Err(UpstreamError::WatchOverdue);
        }
        if let CatchUp::Until { quiet, .. } = read.catch_up {
            self.set_caught_up(read, now >= quiet);
        }
        if read.probe.is_none() && now >= self.next_probe_at(read) {
            (read.last_probe, read.retry_probe_at) = ((now, self.last_version), None);
            read.probe = Some(api.current_version().boxed());
        }
        Ok(())
    }

    /// Returns when the next probe is due, if none is pending.
    fn next_probe_at(&self, read: &WatchRead<'_>) -> Instant {
        let silent = self.last_byte_at.max(read.last_probe.0) + self.api.config.probe_after_silence;
        read.retry_probe_at.map_or(silent, |retry_at| retry_at.min(silent))
    }

    /// Returns when `on_timer` may have work although no byte was received. A call that is too early is harmless: received
    /// bytes only move the deadlines later.
    fn next_wake(&self, read: &WatchRead<'_>) -> Instant {
        let silent = match read.probe {
            Some(_) => read.end_by,
            None => self.next_probe_at(read),
        };
        let quiet = match read.catch_up {
            CatchUp::Until { quiet, .. } => quiet,
            CatchUp::Done | CatchUp::Probing => read.end_by,
        };
        read.end_by.min(silent).min(quiet)
    }

    fn set_caught_up(&mut self, read: &mut WatchRead<'_>, is_caught_up: bool) {
        if is_caught_up {
            read.catch_up = CatchUp::Done;
            self.mark_live();
        }
    }

    fn set_last_version(&mut self, version: ResourceVersion) {
        self.last_version = version;
        self.api.metrics.record_version(T::RESOURCE, version);
    }
}

/// Waits for the response to the pending probe; forever if there is none. Cancel safe: the probe stays pending.
async fn probe_response(
    probe: &mut Option<BoxFuture<'_, Result<ResourceVersion, UpstreamError>>>,
) -> Result<ResourceVersion, UpstreamError> {
    match probe {
        Some(probe) => probe.await,
        None => std::future::pending().await,
    }
}
