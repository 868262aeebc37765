//! What the cluster says of tokens and users: asked by function values, remembered for a little while.
//!
//! Always: one question at a time about one subject, whoever asks, and only so many at once about all who come (those who
//! have streams do not queue with them); a bounded number of subjects is remembered. That nobody could be asked is no
//! verdict, and hardly remembered.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use futures::future::BoxFuture;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::{
    sync::{Mutex as Turn, Semaphore},
    time::{Instant, timeout_at},
};

use super::{
    secret::{Fingerprint, Secret},
    signed_token::User,
};

/// Asks the cluster. Made by whoever knows it.
pub struct Reviews {
    /// Whose token this is, for our audience; `None`: nobody's.
    pub token: Ask<Secret, Option<User>>,
    /// Whether a user may list and watch all that is read here; if not, what it may not, in a few words.
    pub access: Ask<Arc<User>, Access>,
}

/// A question to the cluster, as a function value. It ends by itself, within seconds.
pub type Ask<Q, A> = Box<dyn Fn(Q) -> BoxFuture<'static, Result<A, Unavailable>> + Send + Sync>;

/// The cluster could not be asked. Why is said in the log by whoever tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unavailable;

/// A user's rights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// To everything that is read here.
    Granted,
    /// Not to this: `list pods`.
    Denied(Arc<str>),
}

/// What a question came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// This user, who may.
    May(Arc<User>),
    /// This user, who may not do this.
    MayNot(Arc<User>, Arc<str>),
    /// Nobody's token.
    Unknown,
}

impl Verdict {
    /// Whether it is a no.
    pub(super) fn refuses(&self) -> bool {
        !matches!(self, Verdict::May(_))
    }
}

/// Whom a question is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    /// Whoever holds this token.
    Token(Secret),
    /// A user who was known by a token before.
    User(Arc<User>),
}

/// For how long what is remembered.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// That somebody may (protocol.md: at most 60 s).
    pub granted_for: Duration,
    /// That somebody may not (10 s: whoever has just been granted a right should not wait for long).
    pub refused_for: Duration,
    /// That nobody could be asked (1 s: the next one need not find out by himself).
    pub unavailable_for: Duration,
    /// Subjects that are remembered: 4096, each of a few hundred bytes.
    pub subjects: usize,
    /// Questions to the API server at once: 8, a small part of what it serves. As many about those who have streams, and as
    /// many about a no, so that neither a crowd that comes nor the other keeps them waiting.
    pub questions: usize,
    /// How long one waits for its turn (5 s, a half of what a stream's client may wait for its head); then it counts as not
    /// asked.
    pub queue: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            granted_for: Duration::from_secs(60),
            refused_for: Duration::from_secs(10),
            unavailable_for: Duration::from_secs(1),
            subjects: 4096,
            questions: 8,
            queue: Duration::from_secs(5),
        }
    }
}

type Known = Option<(Instant, Result<Verdict, Unavailable>)>;

/// What is remembered of a subject.
#[derive(Default)]
struct Memory {
    /// Its turn, and what came of the last question.
    turn: Turn<Known>,
    /// Whether it was somebody when the cluster last said, however long ago. Beside the turn, as it is looked at while
    /// somebody has that.
    somebody: AtomicBool,
}

/// What is remembered.
pub(super) struct Verdicts {
    config: Config,
    reviews: Reviews,
    known: Mutex<HashMap<Fingerprint, Arc<Memory>>>,
    questions: Semaphore,
}

impl Verdicts {
    pub(super) fn new(config: Config, reviews: Reviews) -> Verdicts {
        let questions = Semaphore::new(config.questions);
        Verdicts { config, reviews, known: Mutex::default(), questions }
    }

    /// What is remembered of a subject and still counts; asks nobody.
    pub(super) fn remembered(&self, subject: &Subject) -> Option<Verdict> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = known.get(&subject.fingerprint())?.clone();
        drop(known);
        let known = memory.turn.try_lock().ok()?;
        self.current(&known).and_then(Result::ok)
    }

    /// Whether a subject was somebody when the cluster last said, as long as there is room to remember it.
    pub(super) fn was_somebody(&self, subject: &Subject) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&subject.fingerprint()).is_some_and(|memory| memory.somebody.load(Relaxed))
    }

    /// What is remembered, or else what the cluster says now.
    pub(super) async fn of(&self, subject: &Subject) -> Result<Verdict, Unavailable> {
        let (memory, by) = (self.memory(subject), Instant::now() + self.config.queue);
        let mut known = timeout_at(by, memory.turn.lock()).await.map_err(|_| Unavailable)?;
        if let Some(verdict) = self.current(&known) {
            return verdict;
        }
        // It is never closed: that could be the other error.
        let _one = timeout_at(by, self.questions.acquire()).await.map_err(|_| Unavailable)?.map_err(|_| Unavailable)?;
        self.ask(subject, &memory, &mut known).await
    }

    /// What the cluster says now, whatever is remembered; and from now on that is remembered. How many ask so at once is
    /// up to the caller.
    pub(super) async fn afresh(&self, subject: &Subject) -> Result<Verdict, Unavailable> {
        let (memory, by) = (self.memory(subject), Instant::now() + self.config.queue);
        let mut known = timeout_at(by, memory.turn.lock()).await.map_err(|_| Unavailable)?;
        self.ask(subject, &memory, &mut known).await
    }

    fn current(&self, known: &Known) -> Option<Result<Verdict, Unavailable>> {
        let (at, verdict) = known.as_ref()?;
        let counts_for = match verdict {
            Ok(verdict) if verdict.refuses() => self.config.refused_for,
            Ok(_) => self.config.granted_for,
            Err(Unavailable) => self.config.unavailable_for,
        };
        (at.elapsed() < counts_for).then(|| verdict.clone())
    }

    async fn ask(&self, subject: &Subject, memory: &Memory, known: &mut Known) -> Result<Verdict, Unavailable> {
        let verdict = self.review(subject).await;
        if let Ok(verdict) = &verdict {
            memory.somebody.store(*verdict != Verdict::Unknown, Relaxed);
        }
        *known = Some((Instant::now(), verdict.clone()));
        verdict
    }

    async fn review(&self, subject: &Subject) -> Result<Verdict, Unavailable> {
        let user = match subject {
            Subject::User(user) => user.clone(),
            Subject::Token(token) => match (self.reviews.token)(token.clone()).await? {
                Some(user) => Arc::new(user),
                None => return Ok(Verdict::Unknown),
            },
        };
        Ok(match (self.reviews.access)(user.clone()).await? {
            Access::Granted => Verdict::May(user),
            Access::Denied(what) => Verdict::MayNot(user, what),
        })
    }

    fn memory(&self, subject: &Subject) -> Arc<Memory> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let fingerprint = subject.fingerprint();
        if let Some(memory) = known.get(&fingerprint) {
            return memory.clone();
        }
        let in_use = |memory: &Arc<Memory>| Arc::strong_count(memory) > 1;
        let counts = |memory: &Arc<Memory>| memory.turn.try_lock().is_ok_and(|known| self.current(&known).is_some());
        let is_full = |known: &HashMap<_, _>| known.len() >= self.config.subjects;
        // Room is made by those whose answer does not count any more, first of them by those who were nobody.
        if is_full(&known) {
            known.retain(|_, memory| in_use(memory) || memory.somebody.load(Relaxed) || counts(memory));
        }
        if is_full(&known) {
            known.retain(|_, memory| in_use(memory) || counts(memory));
        }
        // Where all of them count, some are asked about once more; those that somebody waits for stay.
        if is_full(&known) {
            let mut over = known.len() + 1 - self.config.subjects;
            known.retain(|_, memory| {
                let goes = over > 0 && !in_use(memory);
                over -= usize::from(goes);
                !goes
            });
        }
        known.entry(fingerprint).or_default().clone()
    }
}

impl fmt::Debug for Verdicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verdicts").field("config", &self.config).finish_non_exhaustive()
    }
}

impl fmt::Debug for Reviews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reviews")
    }
}

impl Subject {
    /// What it is remembered by: the hash of a token, not the token.
    fn fingerprint(&self) -> Fingerprint {
        match self {
            Subject::Token(token) => Fingerprint::of(format!("token {}", token.reveal()).as_bytes()),
            Subject::User(user) => {
                // Strings only: this cannot fail.
                let user = serde_json::to_string(user).unwrap_or_default();
                Fingerprint::of(format!("user {user}").as_bytes())
            }
        }
    }
}

/// When a token ends by itself: `exp` of a JWT (RFC 7519, section 4.1.4), which only a token that has been reviewed is
/// asked for. Other tokens do not say.
pub(super) fn expiry(token: &Secret) -> Option<Timestamp> {
    #[derive(Deserialize)]
    struct Claims {
        exp: Option<f64>,
    }
    let payload = token.reveal().split('.').nth(1)?;
    let claims: Claims = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    // Whole seconds, rounded down: a token ends rather too early than too late.
    Timestamp::from_second(claims.exp?.floor() as i64).ok()
}

#[cfg(test)]
mod tests;
