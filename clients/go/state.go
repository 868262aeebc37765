package bridge

import "reflect"

// State is the current state of everything that a stream contains: the fold of its events
// (docs/protocol.md#fold). The zero value is an empty state. A State must not be used by several goroutines at once.
type State struct {
	instances map[string]*Instance
	claims    map[string]*Claim
	pools     map[string]*Pool
	// parts are those of a state that is not complete.
	parts *StateInitial
	// connection is that of the last event.
	connection int
	isComplete bool
}

// Apply applies an event, and returns whether the state has changed. A state in parts replaces the old one with its last
// part.
//
// The first event of another connection forgets what that connection sends again: the parts of a state whose last part has
// not come, and the pools. A resumed stream sends all pools that there are, and does not name the others
// (docs/protocol.md#resume).
func (s *State) Apply(event Event) bool {
	hadPools := false
	if event.Connection != s.connection {
		hadPools = len(s.pools) > 0
		s.connection, s.parts = event.Connection, nil
		clear(s.pools)
	}
	return s.apply(event) || hadPools
}

func (s *State) apply(event Event) bool {
	switch payload := event.Payload.(type) {
	case *StateInitial:
		return s.addPart(payload)
	case *InstanceState:
		if payload.Phase == phaseDeleted {
			return remove(s.instances, payload.Instance.UID)
		}
		return put(&s.instances, payload.Instance.UID, &payload.Instance)
	case *ClaimState:
		if payload.Phase == phaseDeleted {
			return remove(s.claims, payload.Claim.UID)
		}
		return put(&s.claims, payload.Claim.UID, &payload.Claim)
	case *PoolDepth:
		// A workload without an instance is sent once, with all counts 0.
		if payload.Warming+payload.Ready+payload.Acquired == 0 {
			return remove(s.pools, payload.WorkloadRef)
		}
		return put(&s.pools, payload.WorkloadRef, &payload.Pool)
	case *RelayGap:
		// The next state.initial completes the state again.
		wasComplete := s.isComplete
		s.parts, s.isComplete = nil, false
		return wasComplete
	}
	return false
}

// IsComplete returns whether a complete state.initial has been applied, and no relay.gap since.
func (s *State) IsComplete() bool { return s.isComplete }

// Instances returns the instances by uid. The map belongs to the state: it changes with Apply and must not be modified.
// An Instance is never changed, only replaced.
func (s *State) Instances() map[string]*Instance { return s.instances }

// Claims returns the claims by uid. The map belongs to the state: it changes with Apply and must not be modified. A Claim
// is never changed, only replaced.
func (s *State) Claims() map[string]*Claim { return s.claims }

// Pools returns the pools by workload. The map belongs to the state: it changes with Apply and must not be modified. A
// pool whose counts have become 0 is left out. After a cut there is none until the resumed stream has sent them.
func (s *State) Pools() map[string]*Pool { return s.pools }

// Instance returns the instance with this name, or nil.
func (s *State) Instance(name string) *Instance {
	for _, instance := range s.instances {
		if instance.Name == name {
			return instance
		}
	}
	return nil
}

// Claim returns the claim with this name, or nil.
func (s *State) Claim(name string) *Claim {
	for _, claim := range s.claims {
		if claim.Name == name {
			return claim
		}
	}
	return nil
}

func (s *State) addPart(part *StateInitial) bool {
	if s.parts == nil {
		s.parts = &StateInitial{}
	}
	all := s.parts
	all.Instances = append(all.Instances, part.Instances...)
	all.Claims = append(all.Claims, part.Claims...)
	all.Pools = append(all.Pools, part.Pools...)
	if part.More {
		return false
	}
	s.instances = byKey(all.Instances, func(instance *Instance) string { return instance.UID })
	s.claims = byKey(all.Claims, func(claim *Claim) string { return claim.UID })
	s.pools = byKey(all.Pools, func(pool *Pool) string { return pool.WorkloadRef })
	s.parts, s.isComplete = nil, true
	return true
}

// byKey returns copies, so that one object does not keep the list of its part in memory.
func byKey[T any](list []T, key func(*T) string) map[string]*T {
	objects := make(map[string]*T, len(list))
	for i := range list {
		object := list[i]
		objects[key(&object)] = &object
	}
	return objects
}

func put[T any](objects *map[string]*T, key string, object *T) bool {
	if *objects == nil {
		*objects = map[string]*T{}
	}
	before := (*objects)[key]
	(*objects)[key] = object
	return before == nil || !reflect.DeepEqual(before, object)
}

func remove[T any](objects map[string]*T, key string) bool {
	_, exists := objects[key]
	delete(objects, key)
	return exists
}
