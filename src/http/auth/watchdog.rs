//! Users who have streams: the cluster is asked about them again and again, for as long as one of those lives.
//!
//! One loop passes over all of them, another asks once more about those whom it was told no of: an API server that has
//! just started does not know all its roles yet, and says no to people who may. Neither waits for the other. Nothing here
//! ends a stream because nobody answers: that is a matter of time, and the time's loop looks at it ([`super::lease`]).

use std::{collections::HashMap, convert::Infallible, pin::pin, sync::Arc, time::Duration};

use futures::{StreamExt, future, stream};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{
    Auth,
    lease::{Lease, Standing},
    review_cache::{Subject, Unavailable, Verdict, Verdicts},
    signed_token::Holder,
};
use crate::wire::Close;

/// What came of asking about a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// When the cluster last said yes.
    yes: Instant,
    /// When it was last asked, whatever came of it.
    tried: Instant,
    /// Since when it says no.
    no: Option<Instant>,
}

impl Asked {
    /// About somebody who has just been admitted.
    pub(super) fn admitted(now: Instant) -> Asked {
        Asked { yes: now, tried: now, no: None }
    }

    /// Whether the last yes is too old to live by.
    pub(super) fn is_stale(&self, now: Instant, most: Duration) -> bool {
        now - self.yes >= most
    }

    /// Takes an answer in; whether it is a no that counts.
    fn answered(&mut self, verdict: &Result<Verdict, Unavailable>, now: Instant, confirm: Duration) -> bool {
        self.tried = now;
        match verdict {
            Ok(Verdict::May(_)) => *self = Asked::admitted(now),
            Ok(Verdict::MayNot(..) | Verdict::Unknown) => return now - *self.no.get_or_insert(now) >= confirm,
            // What was said before an outage is not confirmed by what is said after it.
            Err(Unavailable) => self.no = None,
        }
        false
    }

    /// Whether a no is to be asked about once more.
    fn is_doubted(&self, now: Instant, confirm: Duration) -> bool {
        self.no.is_some_and(|no| now - no >= confirm)
    }

    /// The least is asked about first: whoever waits longest, and last of all whom there was no yes about. So neither does a
    /// pass that is cut short always leave the same ones out, nor do those hold others up about whom nobody can say anything.
    fn turn(&self) -> (bool, Instant) {
        (self.tried != self.yes, self.tried)
    }
}

impl Auth {
    /// Asks about all who have streams, for ever.
    pub(super) async fn ask_again(&self, verdicts: &Verdicts) -> Infallible {
        let every = |period| {
            let mut every = interval(period);
            every.set_missed_tick_behavior(MissedTickBehavior::Delay);
            every
        };
        let passes = async {
            let mut again = every(self.config.recheck);
            loop {
                again.tick().await;
                self.ask_about(verdicts, |_| true).await;
            }
        };
        let confirmations = async {
            let (mut again, confirm) = (every(self.config.tick), self.config.confirm);
            loop {
                // Whoever has been asked about is doubted no more: as long as there is somebody, there is no pause.
                while self.ask_about(verdicts, |asked| asked.is_doubted(Instant::now(), confirm)).await {}
                again.tick().await;
            }
        };
        future::select(pin!(passes), pin!(confirmations)).await.factor_first().0
    }

    /// Asks about these, once about each subject, some at a time. When as many as that have not been answered in a row, the
    /// rest is left for another time: each of them would wait just as long. Whether there was anybody to ask about.
    async fn ask_about(&self, verdicts: &Verdicts, whom: impl Fn(&Asked) -> bool) -> bool {
        let (subjects, at_a_time) = (self.subjects(whom), self.config.verdicts.questions);
        let somebody = !subjects.is_empty();
        let questions = stream::iter(subjects);
        let questions = questions.map(async |(subject, leases)| (verdicts.afresh(&subject).await, leases));
        let mut answers = pin!(questions.buffer_unordered(at_a_time));
        let mut in_vain = 0;
        while in_vain < at_a_time
            && let Some((verdict, leases)) = answers.next().await
        {
            in_vain = if verdict.is_err() { in_vain + 1 } else { 0 };
            for lease in leases {
                if lease.asked().answered(&verdict, Instant::now(), self.config.confirm) {
                    self.set(&lease, Standing::Ended(Close::AccessRevoked));
                }
            }
        }
        somebody
    }

    /// Those of whom this is true, in the order in which they are asked about.
    fn subjects(&self, whom: impl Fn(&Asked) -> bool) -> Vec<(Subject, Vec<Arc<Lease>>)> {
        let mut subjects: HashMap<Subject, Vec<Arc<Lease>>> = HashMap::new();
        for lease in self.leases.all() {
            let Some(Holder::User(user)) = &lease.grounds.holder else { continue };
            if lease.is_over() || !whom(&lease.asked()) {
                continue;
            }
            let token = lease.grounds.token.clone();
            let subject = token.map_or_else(|| Subject::User(user.clone()), Subject::Token);
            subjects.entry(subject).or_default().push(lease);
        }
        let mut subjects: Vec<_> = subjects.into_iter().collect();
        subjects.sort_by_cached_key(|(_, leases)| leases.iter().map(|lease| lease.asked().turn()).min());
        subjects
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIRM: Duration = Duration::from_secs(2);

    fn may() -> Result<Verdict, Unavailable> {
        Ok(Verdict::May(Arc::default()))
    }

    #[test]
    fn a_no_counts_once_it_is_said_again_and_nothing_between_says_otherwise() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let no = || Ok(Verdict::Unknown);
        for (between, counts) in [(no(), true), (may(), false), (Err(Unavailable), false)] {
            let mut asked = Asked::admitted(start);
            assert!(!asked.answered(&no(), at(20), CONFIRM));
            assert!(!asked.is_doubted(at(21), CONFIRM) && asked.is_doubted(at(22), CONFIRM));
            assert!(!asked.answered(&between, at(21), CONFIRM), "too early to count");
            assert_eq!(asked.answered(&no(), at(22), CONFIRM), counts, "{between:?}");
        }
    }

    #[test]
    fn only_a_yes_is_lived_by() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut asked = Asked::admitted(start);
        asked.answered(&may(), at(20), CONFIRM);
        asked.answered(&Err(Unavailable), at(40), CONFIRM);
        asked.answered(&Ok(Verdict::Unknown), at(60), CONFIRM);
        let most = Duration::from_secs(320);
        assert!(!asked.is_stale(at(339), most) && asked.is_stale(at(340), most));
    }

    #[test]
    fn who_waits_longest_is_first_and_who_was_asked_about_in_vain_is_last() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let asked = |verdict, seconds| {
            let mut asked = Asked::admitted(start);
            asked.answered(&verdict, at(seconds), CONFIRM);
            asked
        };
        let order = [Asked::admitted(start), asked(may(), 2), asked(may(), 3), asked(Err(Unavailable), 1)];
        assert!(order.is_sorted_by_key(Asked::turn), "{order:?}");
    }
}
