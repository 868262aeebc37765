//! The validator: compares what one client received with what it had to receive, message by message.
//!
//! A watch line moves a watcher over every version up to it. Each version is sent once and in order. A list after the
//! first one moves the watcher by the net difference. So a version that the watcher or its watch skipped is missing in
//! the record, and a list needs a reason, because it may skip versions.

use boilerhouse_bridge::event::{PerResource, Resource, ResourceVersion};
use boilerhouse_bridge::wire::CloseReason;

use crate::oracle::history::{History, State, difference};
use crate::oracle::recording::{RecordedResponse, ResponseKind};
use crate::oracle::violation::{Guarantee, Validation, Violation, ensure};

use super::expected::{events_of, initial_events};
use super::record::{End, Record, Start, WatchMode, WsEvent};

/// Checks that each list of a watcher was the only way to continue.
///
/// The hub lists again only after a 410, after a line that it could not parse, or after a probe that showed an older
/// version. Dedicated watchers do the same, because they are restarted in each of these cases. After everything else (a
/// cut, half a line, silence, 429, 403, 5xx) kube-runtime resumes the watch at the list's version.
///
/// # Errors
/// The first list without a reason.
fn lists_have_reasons(mode: WatchMode, responses: &[RecordedResponse]) -> Validation {
    let (mut has_reason, mut is_first, mut last_version, mut epoch) = (false, true, 0, 0);
    // The hub signals a history reset to dedicated watchers, once for each resource.
    let mut signals = 0;
    for response in responses {
        if response.epoch != epoch {
            (epoch, signals) = (response.epoch, if mode == WatchMode::Dedicated { 2 } else { 0 });
        }
        match response.kind {
            ResponseKind::Line(version) | ResponseKind::Bookmark(version) => {
                (has_reason, last_version) = (false, version);
            }
            ResponseKind::Gone | ResponseKind::Garbage => has_reason = true,
            ResponseKind::Probe(version) => has_reason |= version < last_version,
            ResponseKind::List(version) => {
                if !has_reason && !is_first {
                    ensure(signals > 0, Guarantee::Reliable, || {
                        format!("{mode:?} listed at {version}, but the watch could continue from {last_version}")
                    })?;
                    signals -= 1;
                }
                (has_reason, is_first, last_version) = (false, false, version);
            }
            // Clients of `/ws` never need a backfill.
            ResponseKind::BackfillList(_)
            | ResponseKind::BackfillListFailed
            | ResponseKind::BackfillListGone(_)
            | ResponseKind::BackfillWatchFailed => {}
        }
    }
    Ok(())
}

/// Compares a connection with the history. `complete`: everything is at rest, so nothing may be missing at the end.
///
/// # Errors
/// The first message that is wrong.
pub(crate) fn validate(history: &History, record: &Record, complete: bool) -> Validation {
    for resource in Resource::ALL {
        lists_have_reasons(record.mode, &record.responses[resource])?;
    }
    let at = record.start.received();
    // The feed may not have applied the last response before the connection started.
    let before = PerResource::from_fn(|resource| {
        let (responses, at) = (&record.responses[resource], at[resource]);
        if responses[..at - 1].iter().any(RecordedResponse::is_list) { at - 1 } else { at }
    });
    let mut first_violation = None;
    for pods_at in [at[Resource::Pods], before[Resource::Pods]] {
        for claims_at in [at[Resource::Claims], before[Resource::Claims]] {
            match validate_from(history, record, PerResource::new(pods_at, claims_at), complete) {
                Ok(()) => return Ok(()),
                Err(violation) => drop(first_violation.get_or_insert(violation)),
            }
        }
    }
    first_violation.map_or(Ok(()), Err)
}

fn validate_from(history: &History, record: &Record, at: PerResource<usize>, complete: bool) -> Validation {
    let mut received = &record.received[..];
    if let Start::Burst(_) = record.start {
        let state = |resource: Resource| {
            replay(history, resource, &record.responses[resource][..at[resource]], 0).map(|(state, _)| state)
        };
        let expected = initial_events(&state(Resource::Pods)?, &state(Resource::Claims)?);
        for (nth, expected) in expected.iter().enumerate() {
            match received.get(nth) {
                Some(received) if received == expected => {}
                // A client that disconnected before its first read.
                None if received.is_empty() && record.end == End::Disconnected => return Ok(()),
                other => {
                    let message = format!("{other:?} instead of {expected:?}");
                    return Err(Violation::new(Guarantee::Atomic, message).at(format!("burst, message {nth}")));
                }
            }
        }
        received = &received[expected.len()..];
    }
    for resource in Resource::ALL {
        let own: Vec<&WsEvent> = received.iter().filter(|event| event.r#type.resource() == resource).collect();
        validate_resource(history, record, resource, at[resource], &own, complete)?;
    }
    Ok(())
}

fn validate_resource(
    history: &History,
    record: &Record,
    resource: Resource,
    at: usize,
    received: &[&WsEvent],
    complete: bool,
) -> Validation {
    let mut first_violation = None;
    for responses in possibly_applied(&record.responses[resource]) {
        let (state, expected) = replay(history, resource, &responses, at)?;
        let expected: Vec<WsEvent> = expected.into_iter().map(|(_, event)| event).collect();
        let differs = expected.iter().zip(received).position(|(expected, received)| expected != *received);
        let (guarantee, message) = match differs {
            Some(nth) => {
                (Guarantee::Reliable, format!("message {nth}: {:?} instead of {:?}", received[nth], expected[nth]))
            }
            None if received.len() > expected.len() => {
                (Guarantee::Unique, format!("{:?} did not happen", received[expected.len()]))
            }
            None if !complete && may_miss(record, expected.len() - received.len()) => return Ok(()),
            None if received.len() < expected.len() => {
                (Guarantee::Reliable, format!("{:?} is missing at the end", expected[received.len()]))
            }
            None if versions(&state) != versions(history.final_state(resource)) => {
                (Guarantee::Convergent, "the watcher has not received everything".to_owned())
            }
            None => return Ok(()),
        };
        first_violation.get_or_insert_with(|| Violation::new(guarantee, message).at(resource.plural()));
    }
    first_violation.map_or(Ok(()), Err)
}

/// Whether a connection may have ended before this number of messages was delivered.
fn may_miss(record: &Record, missing: usize) -> bool {
    match record.end {
        End::Open | End::Disconnected => true,
        // Dedicated watchers wait for their client.
        End::Closed(CloseReason::Lagged) => record.mode == WatchMode::Shared,
        // The stream delivers all entries before the close. One watch line, which makes at most two messages, may still
        // be on its way to the feed.
        End::Closed(CloseReason::UpstreamUnavailable) => missing <= 2,
        End::Closed(_) => false,
    }
}

fn versions(state: &State) -> Vec<(&String, ResourceVersion)> {
    state.iter().map(|(name, object)| (name, object.version)).collect()
}

/// The responses in each way in which they can have been applied. Of two lists with nothing between them the first may
/// have been dropped, because the watcher that requested it was restarted.
fn possibly_applied(responses: &[RecordedResponse]) -> Vec<Vec<RecordedResponse>> {
    let matters = |response: &&RecordedResponse| matches!(response.kind, ResponseKind::List(_) | ResponseKind::Line(_));
    let may_be_dropped = |at: usize| {
        responses[at].is_list()
            && at > 0
            && responses[at + 1..].iter().find(matters).is_some_and(RecordedResponse::is_list)
    };
    let all = responses.to_vec();
    let mut without_dropped = all.clone();
    for (at, response) in without_dropped.iter_mut().enumerate() {
        if may_be_dropped(at) {
            // A response without effect in its place, so that the places of the others stay the same.
            response.kind = ResponseKind::Garbage;
        }
    }
    if without_dropped == all { vec![all] } else { vec![all, without_dropped] }
}

/// The state of a watcher that applied these responses, and the messages that follow from all but the first `from`
/// responses. Each message has the number of its response.
///
/// # Errors
/// If the watch continued in another epoch with objects that do not exist there.
pub(crate) fn replay(
    history: &History,
    resource: Resource,
    responses: &[RecordedResponse],
    from: usize,
) -> Result<(State, Vec<(usize, WsEvent)>), Violation> {
    let mut state = State::new();
    let (mut epoch, mut position, mut is_listed) = (0, 0, false);
    let mut messages = Vec::new();
    for (nth, response) in responses.iter().enumerate() {
        let mut events = Vec::new();
        match response.kind {
            ResponseKind::List(version) => {
                let new = history.state(response.epoch, resource, version);
                if is_listed {
                    events.extend(difference(&state, new).flat_map(events_of));
                }
                (state, epoch, position, is_listed) = (new.clone(), response.epoch, version, true);
            }
            ResponseKind::Line(version) => {
                let exists =
                    |version| !history.changes_between(response.epoch, resource, version - 1, version).is_empty();
                ensure(
                    response.epoch == epoch || state.values().all(|object| exists(object.version)),
                    Guarantee::Reliable,
                    || format!("{} were watched on at {version} in another epoch", resource.plural()),
                )?;
                epoch = response.epoch;
                for change in history.changes_between(epoch, resource, position, version) {
                    events.extend(events_of((change.before.as_ref(), change.after.as_ref())));
                    change.apply(&mut state);
                }
                position = position.max(version);
            }
            ResponseKind::Bookmark(_) | ResponseKind::Probe(_) | ResponseKind::Gone | ResponseKind::Garbage => {}
            ResponseKind::BackfillList(_)
            | ResponseKind::BackfillListFailed
            | ResponseKind::BackfillListGone(_)
            | ResponseKind::BackfillWatchFailed => {}
        }
        if nth >= from {
            messages.extend(events.into_iter().map(|event| (nth, event)));
        }
    }
    Ok((state, messages))
}
