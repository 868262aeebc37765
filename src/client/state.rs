//! The fold: the state that a client computes from the events (docs/protocol.md#fold).

use std::collections::BTreeMap;

use super::event::{Claim, Event, Instance, Payload, Pool, StateInitial};

/// The phase of an object that does not exist any more.
const DELETED: &str = "Deleted";

/// The current state of everything that the stream contains.
#[derive(Clone, Debug, Default)]
pub struct State {
    instances: BTreeMap<String, Instance>,
    claims: BTreeMap<String, Claim>,
    pools: BTreeMap<String, Pool>,
    /// The parts of a state that is not complete.
    parts: Option<StateInitial>,
    is_complete: bool,
}

impl State {
    /// Applies an event. Returns true if the state has changed.
    ///
    /// A state that comes in parts replaces the old one with its last part.
    pub fn apply(&mut self, event: &Event) -> bool {
        match &event.payload {
            Payload::StateInitial(part) => self.add_part(part),
            Payload::InstanceState(event) => {
                let uid = event.instance.uid.clone();
                if event.phase == DELETED {
                    return self.instances.remove(&uid).is_some();
                }
                self.instances.insert(uid, event.instance.clone()).as_ref() != Some(&event.instance)
            }
            Payload::ClaimState(event) => {
                let uid = event.claim.uid.clone();
                if event.phase == DELETED {
                    return self.claims.remove(&uid).is_some();
                }
                self.claims.insert(uid, event.claim.clone()).as_ref() != Some(&event.claim)
            }
            Payload::PoolDepth(pool) => {
                let workload = pool.workload_ref.clone();
                if pool.warming + pool.ready + pool.acquired == 0 {
                    return self.pools.remove(&workload).is_some();
                }
                self.pools.insert(workload, pool.clone()).as_ref() != Some(pool)
            }
            // The next `state.initial` completes the state again.
            Payload::RelayGap(_) => {
                self.parts = None;
                std::mem::take(&mut self.is_complete)
            }
            _ => false,
        }
    }

    /// Forgets what the next connection sends again: the parts of a state whose last part has not come, and the pools. A
    /// resumed stream sends all pools that there are, and does not name the others (docs/protocol.md#resume).
    pub fn connection_ended(&mut self) {
        self.parts = None;
        self.pools.clear();
    }

    fn add_part(&mut self, part: &StateInitial) -> bool {
        let mut all = self.parts.take().unwrap_or_default();
        all.instances.extend_from_slice(&part.instances);
        all.claims.extend_from_slice(&part.claims);
        all.pools.extend_from_slice(&part.pools);
        if part.more {
            self.parts = Some(all);
            return false;
        }
        self.instances = all.instances.into_iter().map(|instance| (instance.uid.clone(), instance)).collect();
        self.claims = all.claims.into_iter().map(|claim| (claim.uid.clone(), claim)).collect();
        self.pools = all.pools.into_iter().map(|pool| (pool.workload_ref.clone(), pool)).collect();
        self.is_complete = true;
        true
    }

    /// Returns true if a complete `state.initial` has been received, and no `relay.gap` since.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Returns the instances by uid.
    #[must_use]
    pub fn instances(&self) -> &BTreeMap<String, Instance> {
        &self.instances
    }

    /// Returns the claims by uid.
    #[must_use]
    pub fn claims(&self) -> &BTreeMap<String, Claim> {
        &self.claims
    }

    /// Returns the pools by workload. A pool without an instance in a pool state is left out after its counts changed. After a
    /// cut there is none until a resumed stream has sent them.
    #[must_use]
    pub fn pools(&self) -> &BTreeMap<String, Pool> {
        &self.pools
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(state: &mut State, data: &str) -> bool {
        state.apply(&Event::from_json(data).unwrap())
    }

    #[test]
    fn parts_replace_the_state_together_and_events_change_it() {
        let mut state = State::default();
        let part = |more: bool, uid: &str| {
            format!(
                r#"{{"type":"state.initial","reason":"connect","more":{more},"instances":[{{"uid":"{uid}"}}],"pools":[]}}"#
            )
        };
        assert!(!apply(&mut state, &part(true, "a")));
        assert!(!state.is_complete() && state.instances().is_empty());
        state.connection_ended();
        assert!(!apply(&mut state, &part(true, "b")));
        assert!(apply(&mut state, &part(false, "c")));
        assert_eq!(state.instances().keys().collect::<Vec<_>>(), ["b", "c"]);
        let change = r#"{"type":"instance.state","phase":"Running","instance":{"uid":"d","phase":"Running"}}"#;
        assert!(apply(&mut state, change));
        assert!(!apply(&mut state, change), "the same view again");
        assert!(apply(&mut state, r#"{"type":"instance.state","phase":"Deleted","instance":{"uid":"d"}}"#));
        assert!(apply(&mut state, r#"{"type":"claim.state","phase":"Active","claim":{"uid":"e"}}"#));
        assert!(apply(&mut state, r#"{"type":"pool.depth","workloadRef":"w","ready":1}"#));
        assert!(apply(&mut state, r#"{"type":"pool.depth","workloadRef":"w","ready":0}"#));
        assert!(!apply(&mut state, r#"{"type":"heartbeat"}"#) && !apply(&mut state, r#"{"type":"new"}"#));
        assert_eq!((state.instances().len(), state.claims().len(), state.pools().len()), (2, 1, 0));
        assert!(apply(&mut state, r#"{"type":"pool.depth","workloadRef":"w","ready":1}"#));
        state.connection_ended();
        assert_eq!((state.instances().len(), state.pools().len()), (2, 0), "a resumed stream sends the pools again");
        assert!(state.is_complete() && apply(&mut state, r#"{"type":"relay.gap","reason":"expired"}"#));
        assert!(!state.is_complete() && !apply(&mut state, r#"{"type":"relay.gap","reason":"expired"}"#));
    }
}
