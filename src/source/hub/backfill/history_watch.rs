//! A watch of missed changes, and whether its end is their end.

use std::pin::Pin;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout};

use crate::{
    event::ResourceVersion,
    source::{
        answer::{self, WatchLine},
        decode::Decode,
        error::UpstreamError,
        hub::api_client::ResourceApi,
        line_splitter::LineSplitter,
    },
};

/// A watch of one resource, of the duration [`Config::backfill_watch_timeout`](crate::source::hub::Config).
pub(super) struct HistoryWatch<'a, T> {
    pub(super) api: &'a ResourceApi<'a, T>,
    body: Pin<Box<dyn Stream<Item = Result<Bytes, ()>> + Send>>,
    lines: LineSplitter,
    started: Instant,
    /// When the watch started, or its last byte arrived.
    pub(super) last_chunk_at: Instant,
}

/// What a watch of missed changes delivers next.
pub(super) enum HistoryItem<T> {
    Line(WatchLine<T>),
    /// The watch ended in the regular way: after its duration, and after a silence. Nothing is missing.
    End,
    /// The watch ended early, or while it still delivered changes. Some may be missing.
    Cut,
}

impl<'a, T: Decode> HistoryWatch<'a, T> {
    /// Starts a watch after this version.
    ///
    /// # Errors
    /// The API server does not accept the request: [`UpstreamError::Expired`] if the history after the version is gone.
    pub(super) async fn start(
        api: &'a ResourceApi<'a, T>,
        from: ResourceVersion,
    ) -> Result<HistoryWatch<'a, T>, UpstreamError> {
        let started = Instant::now();
        let body = api.watch(from, api.config.backfill_watch_timeout).await?.into_data_stream().map_err(drop);
        let lines = LineSplitter::new(api.config.line_bytes);
        Ok(HistoryWatch { api, body: Box::pin(body), lines, started, last_chunk_at: started })
    }

    /// Returns the next item. Cancel safe.
    ///
    /// # Errors
    /// The line reports an error ([`UpstreamError::Expired`] for 410), cannot be parsed, or is too long.
    pub(super) async fn next(&mut self) -> Result<HistoryItem<T>, UpstreamError> {
        let config = self.api.config;
        let duration = config.backfill_watch_timeout;
        loop {
            if let Some(line) = self.lines.next().map_err(|_| answer::line_too_long(config.line_bytes))? {
                return answer::parse_line(&line, || self.api.request_info("watch")).map(HistoryItem::Line);
            }
            match timeout(duration + config.watch_grace, self.body.next()).await {
                Ok(Some(Ok(chunk))) => {
                    self.last_chunk_at = Instant::now();
                    self.lines.push(&chunk);
                }
                Ok(Some(Err(()))) | Err(_) => return Ok(HistoryItem::Cut),
                Ok(None) => {
                    let is_regular = self.started.elapsed() >= duration
                        && self.last_chunk_at.elapsed() >= config.catch_up_quiet_period;
                    return Ok(if is_regular { HistoryItem::End } else { HistoryItem::Cut });
                }
            }
        }
    }
}
