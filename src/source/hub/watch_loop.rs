//! One resource, followed: list, watch, and what to do when either fails. `Next` is the phase; `Trouble` ends it.

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
    Fact, Out,
    api_client::{self, Api},
    line_splitter::{Lines, TooLong},
    metrics::Restart,
    pause, tell,
};
use crate::{
    event::ResourceVersion,
    feed::Health,
    source::{decode::Row, error::Trouble},
};

/// Routine troubles in a row that are answered at once and count as nothing: a watch is cut, and the next one finds its
/// history gone, as after a restart of the API server.
const ROUTINE_TRIES: u32 = 2;

/// What to do next.
enum Next {
    List,
    Watch,
}

/// A watch taken up again after trouble is live only when what was missed has come.
enum CatchUp {
    /// Nothing was missed.
    No,
    /// The API server is being asked for its version.
    Asking,
    /// That version must be reached, or the watch be quiet until then.
    Until { version: ResourceVersion, quiet: Instant },
}

/// A watch while it is read.
struct Reading<'a> {
    lines: Lines,
    catch_up: CatchUp,
    /// A list of one object, on its way.
    probe: Option<BoxFuture<'a, Result<ResourceVersion, Trouble>>>,
    /// When the last one was sent, and what was known then: what has come since may be newer than its answer.
    probed: (Instant, ResourceVersion),
    /// When the connection counts as dead.
    end_by: Instant,
}

/// Follows one resource.
pub(super) struct Follower<'a, T> {
    api: &'a Api<'a, T>,
    out: Out<'a>,
    /// The newest version told.
    known: ResourceVersion,
    /// That version comes from a list just made: the next watch can have missed nothing.
    fresh: bool,
    /// When the last byte came.
    heard: Instant,
    /// Failures since a watch last worked.
    tries: u32,
    health: Health,
    /// The trouble that was logged last, until it is over.
    logged: Option<Trouble>,
}

impl<'a, T: Row> Follower<'a, T> {
    pub(super) fn new(api: &'a Api<'a, T>, out: Out<'a>) -> Self {
        Follower {
            api,
            out,
            known: 0,
            fresh: false,
            heard: Instant::now(),
            tries: 0,
            health: Health::Connecting,
            logged: None,
        }
    }

    pub(super) async fn run(mut self) -> Infallible {
        let mut next = Next::List;
        loop {
            let trouble = match next {
                Next::List => self.list().await.err(),
                Next::Watch => Some(self.watch().await),
            };
            next = match trouble {
                None => Next::Watch,
                Some(trouble) => {
                    self.setback(&trouble).await;
                    if matches!(next, Next::List) || trouble.needs_list() { Next::List } else { Next::Watch }
                }
            };
        }
    }

    async fn list(&mut self) -> Result<(), Trouble> {
        let (views, rv) = self.api.list().await?;
        self.heard();
        if rv < self.known {
            // It may be another cluster behind the old address: ask again whose history this is.
            tell(self.out, Fact::Home(self.api.home().await?));
        }
        self.known = rv;
        self.fresh = true;
        tell(self.out, Fact::Replace(T::KIND, views, rv));
        Ok(())
    }

    async fn watch(&mut self) -> Trouble {
        let (from, started) = (self.known, Instant::now());
        let trouble = match self.api.watch(from, self.api.config.watch_time).await {
            Ok(body) => self.read(body).await,
            Err(trouble) => return trouble,
        };
        if self.known > from || started.elapsed() >= self.api.config.short_watch {
            self.tries = 0;
        }
        trouble
    }

    /// Reads a watch to its end.
    async fn read(&mut self, body: Body) -> Trouble {
        let api = self.api;
        let mut body = body.into_data_stream();
        let mut reading = self.begin();
        let mut timer = pin!(sleep_until(self.wake(&reading)));
        loop {
            let heard = tokio::select! {
                biased;
                chunk = body.next() => match chunk {
                    Some(Ok(chunk)) => {
                        let heard = self.chunk(&mut reading, &chunk);
                        // A stream that always has more must leave the other resource its turn.
                        consume_budget().await;
                        heard
                    }
                    Some(Err(error)) => Err(Trouble::Cut(cause(&error))),
                    None => Err(Trouble::Ended),
                },
                answer = answer(&mut reading.probe) => {
                    let heard = self.probed(&mut reading, answer);
                    timer.as_mut().reset(self.wake(&reading));
                    heard
                }
                () = timer.as_mut() => {
                    let heard = self.woken(&mut reading, api);
                    timer.as_mut().reset(self.wake(&reading));
                    heard
                }
            };
            if let Err(trouble) = heard {
                return trouble;
            }
        }
    }

    fn begin(&mut self) -> Reading<'a> {
        let (api, now) = (self.api, Instant::now());
        self.heard();
        let missed = !self.fresh && self.health != Health::Live;
        self.fresh = false;
        if !missed {
            self.live();
        }
        Reading {
            lines: Lines::new(api.config.line_bytes),
            catch_up: if missed { CatchUp::Asking } else { CatchUp::No },
            probe: missed.then(|| api.version().boxed()),
            probed: (now, self.known),
            end_by: now + api.config.watch_time + api.config.watch_grace,
        }
    }

    fn chunk(&mut self, reading: &mut Reading<'_>, chunk: &Bytes) -> Result<(), Trouble> {
        self.heard();
        reading.lines.push(chunk);
        loop {
            match reading.lines.next() {
                Ok(Some(line)) => self.line(&line)?,
                Ok(None) => break,
                Err(TooLong) => {
                    let limit = self.api.config.line_bytes;
                    return Err(Trouble::Unreadable(format!("a line of more than {limit} bytes")));
                }
            }
        }
        if let CatchUp::Until { version, ref mut quiet } = reading.catch_up {
            *quiet = self.heard + self.api.config.settle;
            self.caught_up(reading, self.known >= version);
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Trouble> {
        let view = |row| self.api.view(row);
        let fact = match api_client::line::<T>(line)? {
            WatchEvent::Added(row) | WatchEvent::Modified(row) => Fact::Upsert(view(row)),
            WatchEvent::Deleted(row) => Fact::Remove(view(row)),
            WatchEvent::Bookmark(bookmark) => {
                let rv = bookmark.metadata.resource_version.parse();
                Fact::Bookmark(T::KIND, rv.map_err(|_| Trouble::Unreadable("a bookmark's version".to_owned()))?)
            }
            WatchEvent::Error(status) => return Err(Trouble::line(&status, &self.api.ask("watch"))),
        };
        let (rv, is_bookmark) = match &fact {
            Fact::Upsert(view) | Fact::Remove(view) => (view.rv(), false),
            Fact::Bookmark(_, rv) => (*rv, true),
            Fact::Home(_) | Fact::Replace(..) | Fact::Heard(_) | Fact::Health(..) => return Ok(()),
        };
        if rv > self.known {
            self.known = rv;
            tell(self.out, fact);
        } else if !is_bookmark {
            // No API server does this; whoever does must not make time go back (quality.md, G1 and G2).
            self.api.metrics.stale.get_or_create(&self.api.label()).inc();
        }
        Ok(())
    }

    fn probed(&mut self, reading: &mut Reading<'_>, answer: Result<ResourceVersion, Trouble>) -> Result<(), Trouble> {
        reading.probe = None;
        let now = match answer {
            Ok(version) => version,
            // Too busy to list is not gone.
            Err(Trouble::Busy { .. }) => return Ok(()),
            Err(trouble) => return Err(trouble),
        };
        self.heard();
        let (_, known) = reading.probed;
        if now < known {
            return Err(Trouble::Older { known, now });
        }
        if matches!(reading.catch_up, CatchUp::Asking) {
            reading.catch_up = CatchUp::Until { version: now, quiet: self.heard + self.api.config.settle };
            self.caught_up(reading, self.known >= now);
        }
        Ok(())
    }

    fn woken(&mut self, reading: &mut Reading<'a>, api: &'a Api<'a, T>) -> Result<(), Trouble> {
        let now = Instant::now();
        if now >= reading.end_by {
            return Err(Trouble::Overdue);
        }
        if let CatchUp::Until { quiet, .. } = reading.catch_up {
            self.caught_up(reading, now >= quiet);
        }
        if reading.probe.is_none() && now >= self.heard.max(reading.probed.0) + api.config.silence {
            reading.probed = (now, self.known);
            reading.probe = Some(api.version().boxed());
        }
        Ok(())
    }

    /// When there may be something to do though no byte came. Too early is harmless: bytes only put it off.
    fn wake(&self, reading: &Reading<'_>) -> Instant {
        let silent = match reading.probe {
            Some(_) => reading.end_by,
            None => self.heard.max(reading.probed.0) + self.api.config.silence,
        };
        let quiet = match reading.catch_up {
            CatchUp::Until { quiet, .. } => quiet,
            CatchUp::No | CatchUp::Asking => reading.end_by,
        };
        reading.end_by.min(silent).min(quiet)
    }

    fn caught_up(&mut self, reading: &mut Reading<'_>, is: bool) {
        if is {
            reading.catch_up = CatchUp::No;
            self.live();
        }
    }

    fn heard(&mut self) {
        self.heard = Instant::now();
        self.api.metrics.heard(T::KIND, self.heard);
        tell(self.out, Fact::Heard(T::KIND));
    }

    fn live(&mut self) {
        self.logged = None;
        if self.health != Health::Live {
            tracing::info!(resource = T::KIND.resource(), version = self.known, "live");
            self.tell_health(Health::Live);
        }
    }

    /// What a failure means: nothing yet where it is routine, else that the upstream is down, and a pause.
    async fn setback(&mut self, trouble: &Trouble) {
        let (resource, reason) = (T::KIND.resource(), trouble.brief());
        self.api.metrics.restarts.get_or_create(&Restart { resource, reason }).inc();
        if let Trouble::Unreadable(_) = trouble {
            self.api.metrics.unreadable.get_or_create(&self.api.label()).inc();
        }
        self.fresh = false;
        self.tries = self.tries.saturating_add(1);
        let routine = trouble.is_routine() && self.tries <= ROUTINE_TRIES;
        let quiet = routine && matches!(trouble, Trouble::Ended | Trouble::Cut(_) | Trouble::Expired);
        if !quiet && self.logged.as_ref() != Some(trouble) {
            tracing::warn!(resource, "{trouble}");
            self.logged = Some(trouble.clone());
        }
        if routine {
            return;
        }
        let told = matches!(&self.health, Health::Down { reason: told, .. } if **told == *reason);
        if !told {
            self.tell_health(Health::Down { since: self.heard, reason: Arc::from(reason) });
        }
        pause(self.api.config, self.tries, trouble).await;
    }

    fn tell_health(&mut self, health: Health) {
        self.api.metrics.live.get_or_create(&self.api.label()).set(i64::from(health == Health::Live));
        self.health = health.clone();
        tell(self.out, Fact::Health(T::KIND, health));
    }
}

/// The answer to a probe, if there is one under way; otherwise never.
async fn answer(
    probe: &mut Option<BoxFuture<'_, Result<ResourceVersion, Trouble>>>,
) -> Result<ResourceVersion, Trouble> {
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
