//! The validator: what one reader was told against what it had to be told.
//!
//! Exact, message by message. A watch's line moves an engine over every version up to it, each told once and in order;
//! a list after the first moves it by the net difference. So a version that was skipped, by the engine or by the watch
//! it asked for, is missing in the record; and a list is a loss that must have had a reason.

use std::collections::BTreeMap;

use boilerhouse_bridge::event::{Resource, ResourceVersion};
use boilerhouse_bridge::wire::Close;

use super::truth::{Said, State, Truth, Type, apply, burst, difference, step};
use super::witness::{Heard, What};

/// Who fed the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Engine {
    Hub,
    Own,
}

/// How the reader began, and how much its engine had heard then, pods and claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// `?snapshot=none`
    Now([usize; 2]),
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
    Closed(Close),
}

/// One connection from its first message to its last.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) engine: Engine,
    pub(super) heard: [Vec<Heard>; 2],
    pub(super) start: Start,
    pub(super) told: Vec<Said>,
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
pub(super) fn lists_have_reasons(engine: Engine, heard: &[Heard]) -> Result<(), String> {
    let (mut reason, mut first, mut known, mut epoch) = (false, true, 0, 0);
    // The hub tells own watchers that versions went back, once for each resource.
    let mut signals = 0;
    for Heard { epoch: at, what, .. } in heard {
        if *at != epoch {
            (epoch, signals) = (*at, if engine == Engine::Own { 2 } else { 0 });
        }
        match what {
            What::Line(rv) | What::Bookmark(rv) => {
                (reason, known) = (false, *rv);
            }
            What::Gone | What::Garbage => reason = true,
            What::Probe(rv) => reason |= *rv < known,
            What::List(rv) => {
                if !reason && !first {
                    if signals == 0 {
                        return Err(format!(
                            "{engine:?} listed again at {rv} though the watch could go on from {known}"
                        ));
                    }
                    signals -= 1;
                }
                (reason, first, known) = (false, false, *rv);
            }
            // No `/ws` client asks for it.
            What::Past(_) | What::PastUnlisted | What::PastUnwatched => {}
        }
    }
    Ok(())
}

/// Holds a connection against the truth. `complete`: everything has come to rest, so nothing may be missing at its end.
///
/// # Errors
/// A sentence about the first message that is wrong.
pub(super) fn judge(truth: &Truth, record: &Record, complete: bool) -> Result<(), String> {
    for kind in Resource::ALL {
        lists_have_reasons(record.engine, &record.heard[kind as usize])?;
    }
    let (Start::Now(at) | Start::Burst(at)) = record.start;
    let mut worst = String::new();
    // What was heard last may still have been on its way into the feed when the reader came.
    let before = Resource::ALL.map(|kind| {
        let (heard, at) = (&record.heard[kind as usize], at[kind as usize]);
        if heard[..at - 1].iter().any(Heard::is_list) { at - 1 } else { at }
    });
    for pods_at in [at[0], before[0]] {
        for claims_at in [at[1], before[1]] {
            match judge_from(truth, record, [pods_at, claims_at], complete) {
                Ok(()) => return Ok(()),
                Err(why) if worst.is_empty() => worst = why,
                Err(_) => {}
            }
        }
    }
    Err(worst)
}

fn judge_from(truth: &Truth, record: &Record, at: [usize; 2], complete: bool) -> Result<(), String> {
    let mut told = &record.told[..];
    if let Start::Burst(_) = record.start {
        let [pods, claims] = Resource::ALL.map(|kind| {
            let heard = &record.heard[kind as usize];
            walk(truth, kind, &heard[..at[kind as usize]], 0).map(|(state, _)| state)
        });
        let burst = burst(&pods?, &claims?);
        for (nth, expected) in burst.iter().enumerate() {
            match told.get(nth) {
                Some(told) if told == expected => {}
                // A client that left before its first read.
                None if told.is_empty() && record.end == End::Left => return Ok(()),
                other => return Err(format!("burst, message {nth}: {other:?} instead of {expected:?}")),
            }
        }
        told = &told[burst.len()..];
    }
    for kind in Resource::ALL {
        let mine: Vec<&Said> = told.iter().filter(|said| said.r#type.kind() == kind).collect();
        judge_kind(truth, record, kind, at[kind as usize], &mine, complete)?;
    }
    Ok(())
}

fn judge_kind(
    truth: &Truth,
    record: &Record,
    kind: Resource,
    at: usize,
    told: &[&Said],
    complete: bool,
) -> Result<(), String> {
    let mut worst = String::new();
    for heard in applied(&record.heard[kind as usize]) {
        let (state, expected) = walk(truth, kind, &heard, at)?;
        let expected: Vec<Said> = expected.into_iter().map(|(_, said)| said).collect();
        let differs = expected.iter().zip(told).position(|(expected, told)| expected != *told);
        let why = match differs {
            Some(nth) => format!("message {nth}: {:?} instead of {:?}", told[nth], expected[nth]),
            None if told.len() > expected.len() => format!("{:?} never happened", told[expected.len()]),
            None if !complete && missing_is_explained(record, expected.len() - told.len()) => return Ok(()),
            None if told.len() < expected.len() => format!("{:?} is missing at the end", expected[told.len()]),
            None if versions(&state) != versions(&truth.now(kind)) => "the engine has not heard everything".to_owned(),
            None => return Ok(()),
        };
        if worst.is_empty() {
            worst = format!("{} {why}", kind.resource());
        }
    }
    Err(worst)
}

/// Whether a connection may have ended with so many messages untold.
fn missing_is_explained(record: &Record, missing: usize) -> bool {
    match record.end {
        End::Open | End::Left => true,
        // An own watcher waits for its reader.
        End::Closed(Close::Lagged) => record.engine == Engine::Hub,
        // It reads everything there is before it is sent away; one line, which says at most two messages, may be on its way.
        End::Closed(Close::UpstreamUnavailable) => missing <= 2,
        End::Closed(_) => false,
    }
}

fn versions(state: &State) -> Vec<(&String, ResourceVersion)> {
    state.iter().map(|(name, face)| (name, face.rv)).collect()
}

/// What was heard, in each way it can have been taken in: of two lists with nothing between them the first may have been
/// dropped on its way, because the watcher that made it was built anew.
fn applied(heard: &[Heard]) -> Vec<Vec<Heard>> {
    let counts = |heard: &&Heard| matches!(heard.what, What::List(_) | What::Line(_));
    let all: Vec<Heard> = heard.to_vec();
    let dropped =
        |at: usize| heard[at].is_list() && at > 0 && heard[at + 1..].iter().find(counts).is_some_and(Heard::is_list);
    let without = |mut heard: Vec<Heard>| {
        let mut at = 0;
        heard.retain_mut(|item| {
            if dropped(at) {
                // Something stays in its place, so that places go on meaning what they did.
                item.what = What::Garbage;
            }
            at += 1;
            true
        });
        heard
    };
    if (0..heard.len()).any(dropped) { vec![all.clone(), without(all)] } else { vec![all] }
}

/// The state of an engine that has heard all this, and what it had to tell after its first `from` items, each message
/// with the item that it comes from.
pub(super) fn walk(
    truth: &Truth,
    kind: Resource,
    heard: &[Heard],
    from: usize,
) -> Result<(State, Vec<(usize, Said)>), String> {
    let mut state = State::new();
    let (mut epoch, mut position, mut listed) = (0, 0, false);
    let mut told = Vec::new();
    for (nth, item) in heard.iter().enumerate() {
        let mut say = Vec::new();
        match item.what {
            What::List(rv) => {
                let new = truth.state_at(item.epoch, kind, rv);
                if listed {
                    difference(&state, &new, &mut say);
                }
                (state, epoch, position, listed) = (new, item.epoch, rv, true);
            }
            What::Line(rv) => {
                if item.epoch != epoch && state.values().any(|face| !exists(truth, item.epoch, kind, face.rv)) {
                    return Err(format!("{} watched on at {rv} in another history", kind.resource()));
                }
                epoch = item.epoch;
                let branch = truth.branch(epoch, kind);
                let next = branch.partition_point(|version| version.rv <= position);
                for version in branch[next..].iter().take_while(|version| version.rv <= rv) {
                    step(version, &mut say);
                    apply(&mut state, version);
                }
                position = position.max(rv);
            }
            What::Bookmark(_) | What::Probe(_) | What::Gone | What::Garbage => {}
            What::Past(_) | What::PastUnlisted | What::PastUnwatched => {}
        }
        if nth >= from {
            told.extend(say.into_iter().map(|said| (nth, said)));
        }
    }
    Ok((state, told))
}

fn exists(truth: &Truth, epoch: usize, kind: Resource, rv: ResourceVersion) -> bool {
    truth.branch(epoch, kind).iter().any(|version| version.rv == rv)
}

/// The picture of a client that folds what it is told, against the store: instances by name, and of each claim the last
/// edge. It needs no witness.
///
/// # Errors
/// A sentence about the first difference.
pub(super) fn fold(truth: &Truth, told: &[Said]) -> Result<(), String> {
    let (mut pods, mut edges) = (BTreeMap::new(), BTreeMap::new());
    for said in told {
        match said.r#type {
            Type::State if said.phase.as_deref() == Some("Deleted") => drop(pods.remove(said.name.as_str())),
            Type::State => {
                let face = (said.phase.as_deref(), said.workload_ref.as_deref(), said.tenant_id.as_deref());
                pods.insert(said.name.as_str(), face);
            }
            Type::Ready => {}
            Type::Claimed | Type::Released => drop(edges.insert(said.name.as_str(), said.r#type)),
        }
    }
    let (now, claims) = (truth.now(Resource::Instance), truth.now(Resource::Claim));
    let faces = now.values().map(|face| {
        (face.name.as_str(), (Some(face.phase.as_str()), face.workload.as_deref(), face.tenant.as_deref()))
    });
    let really: BTreeMap<_, _> = faces.collect();
    if pods != really {
        return Err(format!("the fold is {pods:?}, the store {really:?}"));
    }
    for name in edges.keys().copied().chain(claims.keys().map(String::as_str)) {
        let phase = claims.get(name).map(|face| face.phase.as_str());
        let edge = edges.get(name);
        let fits = match phase {
            Some("Active") => edge == Some(&Type::Claimed),
            Some("Released") | None => edge != Some(&Type::Claimed),
            Some(_) => true,
        };
        if !fits {
            return Err(format!("claim {name} is {phase:?}, its last edge {edge:?}"));
        }
    }
    Ok(())
}
