package bridge

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

// cuts returns how many connections of each client are cut.
func cuts(t *testing.T) int {
	t.Helper()
	text := os.Getenv("BRIDGE_TEST_CUTS")
	if text == "" {
		return 20
	}
	count, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal("BRIDGE_TEST_CUTS is no number")
	}
	return count
}

// follower is a client behind a proxy that cuts its connections, and what it has received.
type follower struct {
	transport Transport
	cutter    *cutter
	stream    *Stream
	state     State
	keys      map[string]bool
	// differences are the keys of events of differences.
	differences map[string]bool
	// events, initial and coalesced count events, complete states and events of differences.
	events, initial, coalesced int
	repeated                   []string
	errors                     map[string]int
}

func newFollower(t *testing.T, transport Transport, targets ...string) *follower {
	t.Helper()
	f := &follower{transport: transport, keys: map[string]bool{}, differences: map[string]bool{},
		errors: map[string]int{}}
	f.cutter = newCutter(t, uint64(transport), targets...)
	f.stream = newStream(t, f.cutter.url, Options{Transport: transport})
	return f
}

// step applies the next event. It fails if nothing arrives before the end of the context.
func (f *follower) step(ctx context.Context, t *testing.T) bool {
	event, err := f.stream.Next(ctx)
	switch {
	case ctx.Err() != nil:
		return false
	case IsFinal(err):
		t.Errorf("%v: final: %v", f.transport, err)
		return false
	case err != nil:
		if _, isMalformed := err.(*MalformedError); isMalformed {
			t.Errorf("%v: %v", f.transport, err)
		}
		f.errors[fmt.Sprintf("%T", err)]++
		return true
	}
	f.events++
	f.state.Apply(event)
	var flags struct{ Coalesced bool }
	_ = json.Unmarshal(event.JSON, &flags)
	if flags.Coalesced {
		f.coalesced++
	}
	if initial, ok := event.Payload.(*StateInitial); ok && !initial.More {
		f.initial++
	}
	if event.Key != "" {
		if f.keys[event.Key] {
			f.repeated = append(f.repeated, event.Key)
		}
		f.keys[event.Key] = true
		if flags.Coalesced {
			f.differences[event.Key] = true
		}
	}
	return true
}

// until reads until a condition holds.
func (f *follower) until(t *testing.T, what string, bound time.Duration, condition func() bool) bool {
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	for !condition() {
		if !f.step(ctx, t) {
			t.Errorf("%v: not within %v: %s; %d events, errors %v", f.transport, bound, what, f.events, f.errors)
			return false
		}
	}
	return true
}

// each runs a function for all followers at once.
func each(followers []*follower, function func(f *follower)) {
	var group sync.WaitGroup
	for _, f := range followers {
		group.Go(func() { function(f) })
	}
	group.Wait()
}

// get reads a snapshot, and returns its cursor.
func get(t *testing.T, url string, into any) string {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(into); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, response.Status, err)
	}
	return response.Header.Get("Event-Cursor")
}

// snapshot is what the GETs of one bridge say, by the keys of the fold.
type snapshot struct {
	instances map[string]*Instance
	claims    map[string]*Claim
	pools     map[string]*Pool
}

// readSnapshot returns the GETs and their cursor. ok is false if they have different cursors.
func readSnapshot(t *testing.T, url string) (found snapshot, cursor string, ok bool) {
	t.Helper()
	var instances []Instance
	var tenants []struct{ Claims []Claim }
	var pools []Pool
	cursors := []string{get(t, url+"/api/v1/instances", &instances), get(t, url+"/api/v1/tenants", &tenants),
		get(t, url+"/api/v1/pools", &pools)}
	var claims []Claim
	for _, tenant := range tenants {
		claims = append(claims, tenant.Claims...)
	}
	found.instances = byKey(instances, func(instance *Instance) string { return instance.UID })
	found.claims = byKey(claims, func(claim *Claim) string { return claim.UID })
	found.pools = byKey(pools, func(pool *Pool) string { return pool.WorkloadRef })
	// The fold has no pool whose counts are 0.
	maps.DeleteFunc(found.pools, func(_ string, pool *Pool) bool { return pool.Warming+pool.Ready+pool.Acquired == 0 })
	return found, cursors[0], cursors[0] == cursors[1] && cursors[1] == cursors[2]
}

// checkGets reads until the GETs have the cursor of the client, and compares them with the fold.
func (f *follower) checkGets(t *testing.T, url string) {
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); {
		found, cursor, ok := readSnapshot(t, url)
		if !ok {
			continue
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		for f.stream.Cursor() != cursor && f.step(ctx, t) {
		}
		cancel()
		if f.stream.Cursor() != cursor {
			continue
		}
		if !reflect.DeepEqual(f.state.Instances(), found.instances) || !reflect.DeepEqual(f.state.Claims(), found.claims) {
			t.Errorf("%v: the fold differs from the GETs at %s", f.transport, cursor)
		}
		// Pools are sent at most 4 times a second, without an id.
		f.until(t, "the pools equal those of the GETs", 5*time.Second, func() bool {
			found, _, _ := readSnapshot(t, url)
			return reflect.DeepEqual(f.state.Pools(), found.pools)
		})
		return
	}
	t.Errorf("%v: the client and the GETs never had the same cursor", f.transport)
}

func (f *follower) report(t *testing.T) {
	cuts, switches := f.cutter.counts()
	t.Logf("%v: %d cuts, %d changes of the replica, %d connections, %d events, %d keys, %d complete states, %d coalesced, errors %v",
		f.transport, cuts, switches, f.stream.Connections(), f.events, len(f.keys), f.initial, f.coalesced, f.errors)
}

// Two bridges on one API server. Each connection leads to one of them at random and is cut after a random number of bytes.
// The keys that the clients must receive come from a watch of the API server itself. One bridge is killed. Then the API
// server is killed: from there on, the bridges can only report that events are missing.
func TestEveryEventComesOnceThroughCutsAcrossTwoReplicas(t *testing.T) {
	bridgeBinary(t)
	checkLeaks(t)
	plane := startControlPlane(t)
	killed, url := plane.startBridge(t)
	replicas := []string{url, plane.serve(t)}
	writer := newWriter(plane, 7)
	for range 30 {
		writer.write(t)
	}
	plane.fence(t, "start")
	followers := []*follower{newFollower(t, WebSocket, replicas...), newFollower(t, SSE, replicas...)}
	each(followers, func(f *follower) {
		// The first state can be older than the newest write before.
		f.until(t, "the writes before", bound, f.has("start"))
		f.keys, f.repeated = map[string]bool{}, nil
	})
	if t.Failed() {
		return
	}
	// The watches end before the cleanup waits for them.
	watching, stopWatching := context.WithCancel(context.Background())
	reference := startReference(watching, t, plane)
	t.Cleanup(stopWatching)
	count := cuts(t)
	cutAndWrite(t, followers, writer, count/3)
	killed.stop()
	replicas[0] = plane.serve(t)
	each(followers, func(f *follower) { f.cutter.setTargets(replicas...) })
	cutAndWrite(t, followers, writer, 2*count/3)
	// What is repeated arrives before this change.
	plane.fence(t, "end")
	each(followers, func(f *follower) {
		f.until(t, "the last change", time.Minute, f.has("end"))
		f.until(t, "all changes", time.Minute, func() bool { return len(f.keys) >= len(reference.expected()) })
	})
	waitFor(t, "the reference has the last change", bound, func() bool {
		return len(reference.expected()) >= len(followers[0].keys)
	})
	expected := reference.expected()
	for _, f := range followers {
		f.report(t)
		if len(f.repeated) > 0 || !maps.Equal(f.keys, expected) {
			t.Errorf("%v: %d repeated %v, missing %v, not expected %v", f.transport, len(f.repeated), first(f.repeated),
				without(expected, f.keys), without(f.keys, expected))
		}
		if _, switches := f.cutter.counts(); f.initial != 1 || f.coalesced != 0 || switches < count/6 {
			t.Errorf("%v: %d complete states, %d coalesced, %d switches", f.transport, f.initial, f.coalesced, switches)
		}
		for _, url := range replicas {
			f.checkGets(t, url)
		}
	}
	t.Logf("%d keys expected, of %d objects", len(expected), len(reference.known))

	stopWatching()
	plane.server.stop()
	plane.startServer(t)
	plane.waitClaims(t)
	watching, stopWatching = context.WithCancel(context.Background())
	reference = startReference(watching, t, plane)
	t.Cleanup(stopWatching)
	// Between the kill and this change, the bridges may only report that something is missing.
	plane.fence(t, "back")
	each(followers, func(f *follower) {
		f.until(t, "the API server", time.Minute, f.has("back"))
	})
	waitFor(t, "the reference has the change after the restart", bound, func() bool { return reference.has("back") })
	before := reference.expected()
	maps.Copy(expected, before)
	for _, f := range followers {
		missing, invented := without(expected, f.keys), without(f.keys, expected, f.differences)
		isReported := f.initial > 1 || f.coalesced > 0
		if len(f.repeated) > 0 || len(missing) > 0 && !isReported || len(invented) > 0 {
			t.Errorf("%v: after the restart: repeated %v, missing %v, not expected %v", f.transport, first(f.repeated), missing, invented)
		}
		f.keys, f.repeated, f.initial, f.coalesced = map[string]bool{}, nil, 0, 0
	}
	// From here on, every event comes once again.
	cutAndWrite(t, followers, writer, count)
	plane.fence(t, "restarted")
	each(followers, func(f *follower) {
		f.until(t, "the last change", time.Minute, f.has("restarted"))
	})
	waitFor(t, "the reference has the last change", bound, func() bool { return reference.has("restarted") })
	expected = reference.expected()
	maps.DeleteFunc(expected, func(key string, _ bool) bool { return before[key] })
	each(followers, func(f *follower) {
		f.until(t, "all changes", time.Minute, func() bool { return len(f.keys) >= len(expected) })
	})
	for _, f := range followers {
		f.report(t)
		if len(f.repeated) > 0 || !maps.Equal(f.keys, expected) || f.initial > 0 || f.coalesced > 0 {
			t.Errorf("%v: after the restart: repeated %v, missing %v, not expected %v, %d complete states, %d coalesced",
				f.transport, first(f.repeated), without(expected, f.keys), without(f.keys, expected), f.initial, f.coalesced)
		}
		f.until(t, "the phases of the API server", bound, func() bool { return maps.Equal(f.phases(), plane.phases(t)) })
		for _, url := range replicas {
			f.checkGets(t, url)
		}
	}
}

// cutAndWrite writes, and cuts the connections of the clients, until each client has so many cuts.
func cutAndWrite(t *testing.T, followers []*follower, writer *writer, count int) {
	t.Helper()
	writing, stopWriting := context.WithCancel(t.Context())
	written := make(chan struct{})
	go func() {
		defer close(written)
		writer.run(writing, t)
	}()
	start := time.Now()
	each(followers, func(f *follower) {
		f.cutter.setActive(true)
		// The connections that are open have no limit yet.
		f.stream.disconnect()
		f.until(t, "enough cuts", 5*time.Minute, func() bool {
			cuts, _ := f.cutter.counts()
			// Without a writer, nothing is sent that could be cut.
			return cuts >= count || t.Failed()
		})
		f.cutter.setActive(false)
	})
	stopWriting()
	<-written
	t.Logf("%d writes; the last after %v", writer.writes, time.Since(start).Round(time.Second))
}

// fence writes a Pod and a claim with this name.
func (p *controlPlane) fence(t *testing.T, name string) {
	t.Helper()
	p.call(t, http.MethodPost, podsPath, jsonType, fmt.Appendf(nil, `{%s,"metadata":{"name":%q,"labels":{%q:"true"}},%s}`,
		podVersion, name, managedLabel, podSpec))
	p.call(t, http.MethodPost, claimsPath, jsonType, fmt.Appendf(nil,
		`{%s,"metadata":{"name":%q},"spec":{"tenantId":"t","workloadRef":"w"}}`, claimVersion, name))
}

// has returns a condition that holds when the fold has a fence.
func (f *follower) has(name string) func() bool {
	return func() bool { return f.state.Instance(name) != nil && f.state.Claim(name) != nil }
}

// phases returns the phases of all Pods by name.
func (f *follower) phases() map[string]string {
	phases := map[string]string{}
	for _, instance := range f.state.Instances() {
		phases[instance.Name] = instance.Phase
	}
	return phases
}

// phases returns the phases of all Pods by name, as the API server lists them.
func (p *controlPlane) phases(t *testing.T) map[string]string {
	t.Helper()
	var list struct{ Items []object }
	if err := json.Unmarshal(p.call(t, http.MethodGet, podsPath+managedObjects, "", nil), &list); err != nil {
		t.Fatal(err)
	}
	phases := map[string]string{}
	for _, item := range list.Items {
		phases[item.Metadata.Name] = item.Status.Phase
	}
	return phases
}

// without returns the first elements of a that none of the others has.
func without(a map[string]bool, others ...map[string]bool) []string {
	var missing []string
	for key := range a {
		if !slices.ContainsFunc(others, func(other map[string]bool) bool { return other[key] }) {
			missing = append(missing, key)
		}
	}
	slices.Sort(missing)
	return first(missing)
}

// first returns the first elements of a list, for a message.
func first(list []string) []string { return list[:min(len(list), 5)] }

func TestTheStateOfADemoEqualsTheGetsAfterCuts(t *testing.T) {
	binary := bridgeBinary(t)
	bothTransports(t, func(t *testing.T, transport Transport) {
		url := startProcess(t, nil, binary, "demo", "--port", "0", "--speed", "40").url(t)
		f := newFollower(t, transport, url)
		f.until(t, "the first state", bound, func() bool { return f.state.IsComplete() })
		f.cutter.setActive(true)
		f.stream.disconnect()
		count := min(cuts(t), 30)
		f.until(t, "enough cuts", 2*time.Minute, func() bool { cuts, _ := f.cutter.counts(); return cuts >= count })
		f.cutter.setActive(false)
		f.report(t)
		if len(f.repeated) > 0 || f.initial != 1 {
			t.Errorf("repeated %v, %d complete states", f.repeated, f.initial)
		}
		f.checkGets(t, url)
	})
}

func TestFiltersTypesAndCredentialsAreThoseOfTheBridge(t *testing.T) {
	bridgeBinary(t)
	plane := startControlPlane(t)
	url := plane.serve(t, "BOILERHOUSE_API_KEY=the-right-key")
	writer := newWriter(plane, 3)
	for n := range 3 {
		writer.writePod(t, n)
	}
	bothTransports(t, func(t *testing.T, transport Transport) {
		t.Cleanup(plane.client.CloseIdleConnections)
		t.Cleanup(http.DefaultClient.CloseIdleConnections)
		path := filepath.Join(t.TempDir(), "token")
		writeFile(t, path, []byte("wrong"))
		options := Options{Transport: transport, TokenFile: path, Types: []string{"instance"}, Instances: Instances().Name("pod-1")}
		if err := nextError[*StatusError](t, newStream(t, url, options)); err.Code != "UNAUTHORIZED" || !IsFinal(err) {
			t.Fatalf("found %+v", err)
		}
		writeFile(t, path, []byte("  the-right-key\n"))
		stream := newStream(t, url, options)
		var state State
		state.Apply(nextEvent(t, stream))
		if state.Instance("pod-1") == nil || len(state.Instances()) != 1 || !state.IsComplete() || stream.Cursor() == "" {
			t.Fatalf("found %+v", state.Instances())
		}
		for _, name := range []string{"pod-2", "pod-1"} {
			plane.call(t, http.MethodPatch, podsPath+"/"+name, patchType,
				fmt.Appendf(nil, `{"metadata":{"labels":{"changed":%q}}}`, transport))
		}
		if changed := nextEvent(t, stream); !state.Apply(changed) || state.Instance("pod-1").Labels["changed"] != transport.String() {
			t.Fatalf("found %s", changed.JSON)
		}
		options.Types = []string{"unknown"}
		if err := nextError[*StatusError](t, newStream(t, url, options)); err.Parameter != "types" || err.Status != 400 {
			t.Fatalf("found %+v", err)
		}
	})
}
