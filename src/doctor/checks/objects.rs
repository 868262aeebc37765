//! Checks of the objects: definition, lists and watches, as the bridge reads them.

use std::time::Instant;

use futures::future::{BoxFuture, try_join, try_join_all};

use super::cluster::{SHOW_READY, with_diagnosis};
use crate::{
    doctor::check::{Outcome, Subject},
    event::Resource,
    source::{
        diagnose::{ClaimResource, Diagnosis, ListFound, WatchItem},
        error::UpstreamError,
    },
};

/// Time of the watches of `bookmarks`. Below 12 s an API server sends no bookmark; it sends one about 2 s before the end
/// (docs/kubernetes-behavior.md).
pub(super) const WATCH_SECONDS: u32 = 15;
/// Seconds from the start of a watch in which an event makes a bookmark due. The writes of other resources make none due.
const BOOKMARK_DUE_SECONDS: u32 = WATCH_SECONDS - 5;
/// Time of the other watches, which are dropped before.
const SHORT_WATCH_SECONDS: u32 = 10;

pub(super) fn crd<'a>(subject: &'a Subject) -> BoxFuture<'a, Outcome> {
    with_diagnosis(subject, move |diagnosis: &'a Diagnosis| async move {
        let found = diagnosis.claim_resource().await?;
        Ok(judge_claims(&found, subject.kubectl("explain boilerhouseclaims --recursive")))
    })
}

fn judge_claims(found: &ClaimResource, hint: String) -> Outcome {
    match found {
        ClaimResource { errors, .. } if !errors.is_empty() => {
            Outcome::failed(format!("the bridge cannot read BoilerhouseClaims: {}", errors.join("; ")), hint)
        }
        ClaimResource { differences: None, .. } => {
            Outcome::warning("BoilerhouseClaims are served, but their schema cannot be read", hint)
        }
        ClaimResource { differences: Some(differences), .. } if !differences.is_empty() => Outcome::warning(
            format!("events will lack fields, because the schema differs: {}", differences.join("; ")),
            hint,
        ),
        ClaimResource { .. } => Outcome::passed("BoilerhouseClaims are served, and their schema is compatible"),
    }
}

pub(super) fn list<'a>(subject: &'a Subject) -> BoxFuture<'a, Outcome> {
    with_diagnosis(subject, move |diagnosis: &'a Diagnosis| async move {
        let start = Instant::now();
        let [pods, claims] = lists(diagnosis).await?;
        let count = |(objects, is_complete): (usize, bool)| {
            if is_complete { objects.to_string() } else { format!("more than {objects}") }
        };
        Ok(Outcome::passed(format!(
            "{} instances and {} claims, within {} ms",
            count((pods.objects, pods.is_complete)),
            count((claims.objects, claims.is_complete)),
            start.elapsed().as_millis()
        )))
    })
}

async fn lists(diagnosis: &Diagnosis) -> Result<[ListFound; 2], UpstreamError> {
    let (pods, claims) = try_join(diagnosis.list(Resource::Pods), diagnosis.list(Resource::Claims)).await?;
    Ok([pods, claims])
}

pub(super) fn watch<'a>(subject: &'a Subject) -> BoxFuture<'a, Outcome> {
    with_diagnosis(subject, move |diagnosis: &'a Diagnosis| async move {
        let versions = lists(diagnosis).await?.map(|found| found.version);
        let start = Instant::now();
        let watches = Resource::ALL.into_iter().zip(versions);
        try_join_all(watches.map(|(resource, from)| diagnosis.watch(resource, Some(from), SHORT_WATCH_SECONDS)))
            .await?;
        Ok(Outcome::passed(format!("both watches start, within {} ms", start.elapsed().as_millis())))
    })
}

/// A watch without a version starts with the objects that exist, so that no change is needed.
pub(super) fn first_event<'a>(subject: &'a Subject) -> BoxFuture<'a, Outcome> {
    with_diagnosis(subject, move |diagnosis: &'a Diagnosis| async move {
        let mut resources = Resource::ALL.into_iter().zip(lists(diagnosis).await?);
        let Some((resource, _)) = resources.find(|(_, found)| found.objects > 0) else {
            return Ok(Outcome::skipped("there are no instances and no claims, so that no event is due"));
        };
        let start = Instant::now();
        let mut watch = diagnosis.watch(resource, None, SHORT_WATCH_SECONDS).await?;
        loop {
            match watch.next().await {
                Ok(WatchItem::Event) => {
                    let millis = start.elapsed().as_millis();
                    let detail = format!("the first event of {} comes after {millis} ms", resource.plural());
                    return Ok(Outcome::passed(detail));
                }
                Ok(WatchItem::Bookmark) => {}
                Err(UpstreamError::WatchEnded) => {
                    let detail = format!("the watch of {} ends without an event", resource.plural());
                    return Ok(Outcome::failed(detail, subject.kubectl(SHOW_READY)));
                }
                Err(error) => return Err(error),
            }
        }
    })
}

pub(super) fn bookmarks<'a>(subject: &'a Subject) -> BoxFuture<'a, Outcome> {
    with_diagnosis(subject, move |diagnosis: &'a Diagnosis| async move {
        let versions = lists(diagnosis).await?.map(|found| found.version);
        let watches = Resource::ALL.into_iter().zip(versions);
        let read = watches.map(|(resource, from)| read_bookmarks(diagnosis, resource, from));
        let read = try_join_all(read).await?;
        let count: usize = read.iter().map(|(count, _)| count).sum();
        Ok(match read.iter().any(|(count, is_due)| *is_due && *count == 0) {
            true => Outcome::warning(
                format!(
                    "a watch sent events and no bookmark within {WATCH_SECONDS} s: cursors of quiet clients become too old, \
                     and their resumes start with a new state"
                ),
                subject.kubectl(SHOW_READY),
            ),
            false if count == 0 => Outcome::skipped("no object changed meanwhile, so that no bookmark was due"),
            false => Outcome::passed(format!("the watches sent {count} within {WATCH_SECONDS} s")),
        })
    })
}

/// Returns the bookmarks of a watch, and whether one was due: an event came well before the time of the last bookmark.
async fn read_bookmarks(diagnosis: &Diagnosis, resource: Resource, from: u64) -> Result<(usize, bool), UpstreamError> {
    let start = Instant::now();
    let mut watch = diagnosis.watch(resource, Some(from), WATCH_SECONDS).await?;
    let (mut count, mut is_due) = (0, false);
    loop {
        match watch.next().await {
            Ok(WatchItem::Bookmark) => count += 1,
            Ok(WatchItem::Event) => is_due |= start.elapsed().as_secs() < u64::from(BOOKMARK_DUE_SECONDS),
            Err(UpstreamError::WatchEnded) => return Ok((count, is_due)),
            Err(error) => return Err(error),
        }
    }
}

pub(super) fn exact_list<'a>(subject: &'a Subject) -> BoxFuture<'a, Outcome> {
    with_diagnosis(subject, move |diagnosis: &'a Diagnosis| async move {
        let versions = lists(diagnosis).await?.map(|found| found.version);
        for (resource, version) in Resource::ALL.into_iter().zip(versions) {
            match diagnosis.list_exactly(resource, version).await {
                Ok(()) => {}
                Err(UpstreamError::Expired) => {
                    let detail = format!(
                        "the API server no longer has {} at a version that it has just answered with: resumes start with a \
                         new state",
                        resource.plural()
                    );
                    let hint = subject.kubectl("-n kube-system get pods -l component=etcd -o yaml | grep compaction");
                    return Ok(Outcome::warning(detail, hint));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Outcome::passed("both resources can be listed at an exact version, so that clients resume"))
    })
}
