package bridge

import (
	"fmt"
	"maps"
	"slices"
	"testing"
)

func TestPartsReplaceTheStateTogetherAndEventsChangeIt(t *testing.T) {
	var state State
	apply := func(data string, connection int, expected bool) {
		t.Helper()
		e := event(t, data)
		e.Connection = connection
		if state.Apply(e) != expected {
			t.Fatalf("%s: expected %v", data, expected)
		}
	}
	part := func(more bool, uid string) string {
		return fmt.Sprintf(`{"type":"state.initial","reason":"connect","more":%v,"instances":[{"uid":%q}],"pools":[]}`, more, uid)
	}
	apply(part(true, "a"), 1, false)
	if state.IsComplete() || len(state.Instances()) != 0 {
		t.Fatal("a part has changed the state")
	}
	// The connection ends, and the state starts again.
	apply(part(true, "b"), 2, false)
	apply(part(false, "c"), 2, true)
	if uids := slices.Sorted(maps.Keys(state.Instances())); !slices.Equal(uids, []string{"b", "c"}) {
		t.Fatalf("found %v", uids)
	}
	change := `{"type":"instance.state","phase":"Running","instance":{"uid":"d","name":"n","phase":"Running"}}`
	apply(change, 2, true)
	apply(change, 2, false)
	if state.Instance("n") == nil || state.Instance("n").UID != "d" || state.Instance("other") != nil {
		t.Fatal("the instance is not found by its name")
	}
	apply(`{"type":"instance.state","phase":"Deleted","instance":{"uid":"d"}}`, 2, true)
	apply(`{"type":"instance.state","phase":"Deleted","instance":{"uid":"d"}}`, 2, false)
	apply(`{"type":"claim.state","phase":"Active","claim":{"uid":"e","name":"c","endpoint":{"host":"h","port":1}}}`, 2, true)
	apply(`{"type":"claim.state","phase":"Active","claim":{"uid":"e","name":"c","endpoint":{"host":"h","port":1}}}`, 2, false)
	apply(`{"type":"claim.state","phase":"Active","claim":{"uid":"e","name":"c","endpoint":{"host":"h","port":2}}}`, 2, true)
	if claim := state.Claim("c"); claim == nil || claim.Endpoint.Port != 2 {
		t.Fatalf("found %+v", claim)
	}
	apply(`{"type":"pool.depth","workloadRef":"w","ready":1}`, 2, true)
	if pool := state.Pools()["w"]; *pool != (Pool{WorkloadRef: "w", Ready: 1}) {
		t.Fatalf("found %+v", pool)
	}
	apply(`{"type":"pool.depth","workloadRef":"w","ready":0}`, 2, true)
	apply(`{"type":"heartbeat"}`, 2, false)
	apply(`{"type":"new"}`, 2, false)
	if len(state.Instances()) != 2 || len(state.Claims()) != 1 || len(state.Pools()) != 0 {
		t.Fatalf("found %+v", state)
	}
	apply(`{"type":"relay.gap","reason":"expired"}`, 2, true)
	apply(`{"type":"relay.gap","reason":"expired"}`, 2, false)
	if state.IsComplete() {
		t.Fatal("the state is complete after a gap")
	}
}

func TestThePoolsAreForgottenWithTheFirstEventOfAnotherConnection(t *testing.T) {
	var state State
	apply := func(data string, connection int) bool {
		t.Helper()
		e := event(t, data)
		e.Connection = connection
		return state.Apply(e)
	}
	apply(`{"type":"instance.state","phase":"Running","instance":{"uid":"d"}}`, 1)
	apply(`{"type":"pool.depth","workloadRef":"gone","ready":1}`, 1)
	apply(`{"type":"pool.depth","workloadRef":"w","ready":1}`, 1)
	if !apply(`{"type":"heartbeat"}`, 2) || len(state.Pools()) != 0 || len(state.Instances()) != 1 {
		t.Fatalf("found %+v", state)
	}
	if !apply(`{"type":"pool.depth","workloadRef":"w","ready":1}`, 2) || apply(`{"type":"heartbeat"}`, 2) ||
		!apply(`{"type":"heartbeat"}`, 3) || apply(`{"type":"heartbeat"}`, 3) {
		t.Fatalf("found %+v", state)
	}
}

func TestAnEmptyStateAcceptsEveryEvent(t *testing.T) {
	var state State
	for _, data := range []string{
		`{"type":"instance.state","phase":"Deleted","instance":{"uid":"d"}}`,
		`{"type":"claim.state","phase":"Deleted","claim":{"uid":"d"}}`,
		`{"type":"pool.depth","workloadRef":"w"}`,
	} {
		if state.Apply(event(t, data)) {
			t.Errorf("%s changed an empty state", data)
		}
	}
}
