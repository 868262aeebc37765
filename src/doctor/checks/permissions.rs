//! Checks of the permissions, by a review of the API server for each.

use futures::{FutureExt as _, future::BoxFuture};

use super::cluster::with_diagnosis;
use crate::{
    doctor::{
        check::{Outcome, Subject},
        fix::grant_command,
    },
    source::diagnose::{Access, Diagnosis, NAMESPACE_ACCESS, Place, REVIEW_ACCESS},
};

pub(super) fn pods_list(subject: &Subject) -> BoxFuture<'_, Outcome> {
    check(subject, &NAMESPACE_ACCESS[0..1])
}

pub(super) fn pods_watch(subject: &Subject) -> BoxFuture<'_, Outcome> {
    check(subject, &NAMESPACE_ACCESS[1..2])
}

pub(super) fn claims_list(subject: &Subject) -> BoxFuture<'_, Outcome> {
    check(subject, &NAMESPACE_ACCESS[2..3])
}

pub(super) fn claims_watch(subject: &Subject) -> BoxFuture<'_, Outcome> {
    check(subject, &NAMESPACE_ACCESS[3..4])
}

pub(super) fn namespace_get(subject: &Subject) -> BoxFuture<'_, Outcome> {
    check(subject, &NAMESPACE_ACCESS[4..5])
}

pub(super) fn reviews(subject: &Subject) -> BoxFuture<'_, Outcome> {
    if !subject.reviews_tokens {
        return async { Outcome::skipped("only --token-audience needs it, and it is not set") }.boxed();
    }
    check(subject, &REVIEW_ACCESS)
}

/// Asks for each permission. The first one that is missing fails the check.
fn check<'a>(subject: &'a Subject, needed: &'static [Access]) -> BoxFuture<'a, Outcome> {
    with_diagnosis(subject, move |diagnosis: &'a Diagnosis| async move {
        let namespace = diagnosis.namespace();
        for access in needed {
            if !diagnosis.can(access).await? {
                let user = diagnosis.user().await.ok();
                let who = user.as_deref().unwrap_or("the account");
                let detail = format!("{who} cannot {} {}", access.verb, place(access, namespace));
                return Ok(match &user {
                    Some(user) => {
                        let command = grant_command(access.place, namespace, user, &subject.kubectl_command());
                        let detail = format!("{detail}. The command needs an account that may grant it");
                        Outcome::failed(detail, command).with_cluster_command()
                    }
                    None => Outcome::failed(detail, subject.kubectl("auth whoami")),
                });
            }
        }
        let may = needed.iter().map(|access| format!("{} {}", access.verb, place(access, namespace)));
        Ok(Outcome::passed(format!("the account can {}", may.collect::<Vec<_>>().join(" and "))))
    })
}

/// Returns the resource and its place, as in `pods in namespace a`.
fn place(access: &Access, namespace: &str) -> String {
    let Access { group, resource, place, .. } = access;
    let resource = if group.is_empty() { (*resource).to_owned() } else { format!("{resource}.{group}") };
    match place {
        Place::Namespace => format!("{resource} in namespace {namespace}"),
        Place::NamespaceObject => format!("{resource} {namespace}"),
        Place::Cluster => resource,
    }
}
