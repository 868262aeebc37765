//! The validator: what one reader was told against what it had to be told.
//!
//! Exact, message by message. A watch's line moves an engine over every version up to it, each told once and in order;
//! a list after the first moves it by the net difference. So a version that was skipped, by the engine or by the watch
//! it asked for, is missing in the record; and a list is a loss that must have had a reason.

use std::collections::BTreeMap;

use boilerhouse_bridge::event::{Resource, ResourceVersion};
use boilerhouse_bridge::wire::CloseReason;

use super::api_recorder::{RecordedResponse, ResponseKind};
use super::history::{History, State, WsEvent, WsEventType, apply, difference, initial_events, step};

/// Who fed the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum WatchMode {
    Shared,
    Dedicated,
}

/// How the reader began, and how much its engine had heard then, pods and claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// `?snapshot=none`
    Live([usize; 2]),
    Burst([usize; 2]),
}

/// How the reader's connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Not yet.
    Open,
    /// The client left.
    Left,
    /// The bridge ended it.
    Closed(CloseReason),
}

/// One connection from its first message to its last.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) mode: WatchMode,
    pub(super) responses: [Vec<RecordedResponse>; 2],
    pub(super) start: Start,
    pub(super) received: Vec<WsEvent>,
    pub(super) end: End,
}

/// Whether a list that its engine began was the only way to go on.
///
/// The hub lists again only when the API server said 410, when a line could not be read, or when a list of one object
/// showed that versions have gone back. Own watchers the same, because they are built anew for each of these; they go
/// back to the list's version by kube-runtime after everything else (a cut, half a line, silence, 429, 403, 5xx).
///
/// # Errors
/// A sentence that names the first list without a reason.
pub(super) fn lists_have_reasons(mode: WatchMode, responses: &[RecordedResponse]) -> Result<(), String> {
    let (mut reason, mut first, mut known, mut epoch) = (false, true, 0, 0);
    // The hub tells own watchers that versions went back, once for each resource.
    let mut signals = 0;
    for RecordedResponse { epoch: at, what, .. } in responses {
        if *at != epoch {
            (epoch, signals) = (*at, if mode == WatchMode::Dedicated { 2 } else { 0 });
        }
        match what {
            ResponseKind::Line(rv) | ResponseKind::Bookmark(rv) => {
                (reason, known) = (false, *rv);
            }
            ResponseKind::Gone | ResponseKind::Garbage => reason = true,
            ResponseKind::Probe(rv) => reason |= *rv < known,
            ResponseKind::List(rv) => {
                if !reason && !first {
                    if signals == 0 {
                        return Err(format!("{mode:?} listed again at {rv} though the watch could go on from {known}"));
                    }
                    signals -= 1;
                }
                (reason, first, known) = (false, false, *rv);
            }
            // No `/ws` client asks for it.
            ResponseKind::Past(_) | ResponseKind::PastUnlisted | ResponseKind::PastUnwatched => {}
        }
    }
    Ok(())
}

/// Holds a connection against the truth. `complete`: everything has come to rest, so nothing may be missing at its end.
///
/// # Errors
/// A sentence about the first message that is wrong.
pub(super) fn validate(history: &History, record: &Record, complete: bool) -> Result<(), String> {
    for kind in Resource::ALL {
        lists_have_reasons(record.mode, &record.responses[kind as usize])?;
    }
    let (Start::Live(at) | Start::Burst(at)) = record.start;
    let mut worst = String::new();
    // What was heard last may still have been on its way into the feed when the reader came.
    let before = Resource::ALL.map(|kind| {
        let (responses, at) = (&record.responses[kind as usize], at[kind as usize]);
        if responses[..at - 1].iter().any(RecordedResponse::is_list) { at - 1 } else { at }
    });
    for pods_at in [at[0], before[0]] {
        for claims_at in [at[1], before[1]] {
            match validate_from(history, record, [pods_at, claims_at], complete) {
                Ok(()) => return Ok(()),
                Err(why) if worst.is_empty() => worst = why,
                Err(_) => {}
            }
        }
    }
    Err(worst)
}

fn validate_from(history: &History, record: &Record, at: [usize; 2], complete: bool) -> Result<(), String> {
    let mut received = &record.received[..];
    if let Start::Burst(_) = record.start {
        let [pods, claims] = Resource::ALL.map(|kind| {
            let responses = &record.responses[kind as usize];
            walk(history, kind, &responses[..at[kind as usize]], 0).map(|(state, _)| state)
        });
        let initial_events = initial_events(&pods?, &claims?);
        for (nth, expected) in initial_events.iter().enumerate() {
            match received.get(nth) {
                Some(received) if received == expected => {}
                // A client that left before its first read.
                None if received.is_empty() && record.end == End::Left => return Ok(()),
                other => return Err(format!("burst, message {nth}: {other:?} instead of {expected:?}")),
            }
        }
        received = &received[initial_events.len()..];
    }
    for kind in Resource::ALL {
        let mine: Vec<&WsEvent> = received.iter().filter(|event| event.r#type.kind() == kind).collect();
        validate_resource(history, record, kind, at[kind as usize], &mine, complete)?;
    }
    Ok(())
}

fn validate_resource(
    history: &History,
    record: &Record,
    kind: Resource,
    at: usize,
    received: &[&WsEvent],
    complete: bool,
) -> Result<(), String> {
    let mut worst = String::new();
    for responses in applied(&record.responses[kind as usize]) {
        let (state, expected) = walk(history, kind, &responses, at)?;
        let expected: Vec<WsEvent> = expected.into_iter().map(|(_, event)| event).collect();
        let differs = expected.iter().zip(received).position(|(expected, received)| expected != *received);
        let why = match differs {
            Some(nth) => format!("message {nth}: {:?} instead of {:?}", received[nth], expected[nth]),
            None if received.len() > expected.len() => format!("{:?} never happened", received[expected.len()]),
            None if !complete && missing_is_explained(record, expected.len() - received.len()) => return Ok(()),
            None if received.len() < expected.len() => format!("{:?} is missing at the end", expected[received.len()]),
            None if versions(&state) != versions(&history.now(kind)) => {
                "the engine has not heard everything".to_owned()
            }
            None => return Ok(()),
        };
        if worst.is_empty() {
            worst = format!("{} {why}", kind.plural());
        }
    }
    Err(worst)
}

/// Whether a connection may have ended with so many messages untold.
fn missing_is_explained(record: &Record, missing: usize) -> bool {
    match record.end {
        End::Open | End::Left => true,
        // An own watcher waits for its reader.
        End::Closed(CloseReason::Lagged) => record.mode == WatchMode::Shared,
        // It reads everything there is before it is sent away; one line, which says at most two messages, may be on its way.
        End::Closed(CloseReason::UpstreamUnavailable) => missing <= 2,
        End::Closed(_) => false,
    }
}

fn versions(state: &State) -> Vec<(&String, ResourceVersion)> {
    state.iter().map(|(name, snapshot)| (name, snapshot.rv)).collect()
}

/// What was heard, in each way it can have been taken in: of two lists with nothing between them the first may have been
/// dropped on its way, because the watcher that made it was built anew.
fn applied(responses: &[RecordedResponse]) -> Vec<Vec<RecordedResponse>> {
    let counts = |response: &&RecordedResponse| matches!(response.what, ResponseKind::List(_) | ResponseKind::Line(_));
    let all: Vec<RecordedResponse> = responses.to_vec();
    let dropped = |at: usize| {
        responses[at].is_list()
            && at > 0
            && responses[at + 1..].iter().find(counts).is_some_and(RecordedResponse::is_list)
    };
    let without = |mut responses: Vec<RecordedResponse>| {
        let mut at = 0;
        responses.retain_mut(|item| {
            if dropped(at) {
                // Something stays in its place, so that places go on meaning what they did.
                item.what = ResponseKind::Garbage;
            }
            at += 1;
            true
        });
        responses
    };
    if (0..responses.len()).any(dropped) { vec![all.clone(), without(all)] } else { vec![all] }
}

/// The state of an engine that has heard all this, and what it had to tell after its first `from` items, each message
/// with the item that it comes from.
pub(super) fn walk(
    history: &History,
    kind: Resource,
    responses: &[RecordedResponse],
    from: usize,
) -> Result<(State, Vec<(usize, WsEvent)>), String> {
    let mut state = State::new();
    let (mut epoch, mut position, mut listed) = (0, 0, false);
    let mut received = Vec::new();
    for (nth, item) in responses.iter().enumerate() {
        let mut events = Vec::new();
        match item.what {
            ResponseKind::List(rv) => {
                let new = history.state_at(item.epoch, kind, rv);
                if listed {
                    difference(&state, &new, &mut events);
                }
                (state, epoch, position, listed) = (new, item.epoch, rv, true);
            }
            ResponseKind::Line(rv) => {
                if item.epoch != epoch && state.values().any(|snapshot| !exists(history, item.epoch, kind, snapshot.rv))
                {
                    return Err(format!("{} watched on at {rv} in another history", kind.plural()));
                }
                epoch = item.epoch;
                let branch = history.changes(epoch, kind);
                let next = branch.partition_point(|version| version.rv <= position);
                for version in branch[next..].iter().take_while(|version| version.rv <= rv) {
                    step(version, &mut events);
                    apply(&mut state, version);
                }
                position = position.max(rv);
            }
            ResponseKind::Bookmark(_) | ResponseKind::Probe(_) | ResponseKind::Gone | ResponseKind::Garbage => {}
            ResponseKind::Past(_) | ResponseKind::PastUnlisted | ResponseKind::PastUnwatched => {}
        }
        if nth >= from {
            received.extend(events.into_iter().map(|event| (nth, event)));
        }
    }
    Ok((state, received))
}

fn exists(history: &History, epoch: usize, kind: Resource, rv: ResourceVersion) -> bool {
    history.changes(epoch, kind).iter().any(|version| version.rv == rv)
}

/// The picture of a client that folds what it is told, against the store: instances by name, and of each claim the last
/// edge. It needs no witness.
///
/// # Errors
/// A sentence about the first difference.
pub(super) fn fold(history: &History, received: &[WsEvent]) -> Result<(), String> {
    let (mut pods, mut edges) = (BTreeMap::new(), BTreeMap::new());
    for event in received {
        match event.r#type {
            WsEventType::State if event.phase.as_deref() == Some("Deleted") => drop(pods.remove(event.name.as_str())),
            WsEventType::State => {
                let snapshot = (event.phase.as_deref(), event.workload_ref.as_deref(), event.tenant_id.as_deref());
                pods.insert(event.name.as_str(), snapshot);
            }
            WsEventType::Ready => {}
            WsEventType::Claimed | WsEventType::Released => drop(edges.insert(event.name.as_str(), event.r#type)),
        }
    }
    let (now, claims) = (history.now(Resource::Pods), history.now(Resource::Claims));
    let snapshots = now.values().map(|snapshot| {
        (
            snapshot.name.as_str(),
            (Some(snapshot.phase.as_str()), snapshot.workload.as_deref(), snapshot.tenant.as_deref()),
        )
    });
    let really: BTreeMap<_, _> = snapshots.collect();
    if pods != really {
        return Err(format!("the fold is {pods:?}, the store {really:?}"));
    }
    for name in edges.keys().copied().chain(claims.keys().map(String::as_str)) {
        let phase = claims.get(name).map(|snapshot| snapshot.phase.as_str());
        let edge = edges.get(name);
        let fits = match phase {
            Some("Active") => edge == Some(&WsEventType::Claimed),
            Some("Released") | None => edge != Some(&WsEventType::Claimed),
            Some(_) => true,
        };
        if !fits {
            return Err(format!("claim {name} is {phase:?}, its last edge {edge:?}"));
        }
    }
    Ok(())
}
