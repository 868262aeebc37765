package bridge

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"reflect"
	"sync"
	"testing"
	"time"
)

const (
	label          = "boilerhouse.dev/"
	managedLabel   = label + "managed"
	poolLabel      = label + "pool-status"
	writtenPods    = 8
	writtenClaims  = 5
	pauseOfWrites  = 40 * time.Millisecond
	podVersion     = `"apiVersion":"v1","kind":"Pod"`
	claimVersion   = `"apiVersion":"boilerhouse.dev/v1alpha1","kind":"BoilerhouseClaim"`
	podSpec        = `"spec":{"containers":[{"name":"main","image":"none"}]}`
	managedObjects = "?labelSelector=" + label + "managed%3Dtrue"
)

// object is what a watch of the API server says about a Pod or a claim.
type object struct {
	Metadata struct {
		Name            string            `json:"name"`
		UID             string            `json:"uid"`
		ResourceVersion string            `json:"resourceVersion"`
		Labels          map[string]string `json:"labels"`
	} `json:"metadata"`
	Spec   json.RawMessage `json:"spec"`
	Status struct {
		Phase      string `json:"phase"`
		InstanceID string `json:"instanceId"`
	} `json:"status"`
}

// reference reads the watches of the API server, uncut, and knows the key of every event that a client must receive. It
// shares no code with the client.
type reference struct {
	mutex sync.Mutex
	keys  map[string]bool
	known map[string]object
}

// startReference watches from now on.
func startReference(ctx context.Context, t *testing.T, plane *controlPlane) *reference {
	t.Helper()
	r := &reference{keys: map[string]bool{}, known: map[string]object{}}
	for kind, path := range map[string]string{"instance": podsPath + managedObjects, "claim": claimsPath + "?"} {
		var list struct {
			Metadata struct {
				ResourceVersion string `json:"resourceVersion"`
			} `json:"metadata"`
			Items []object `json:"items"`
		}
		if err := json.Unmarshal(plane.call(t, http.MethodGet, path, "", nil), &list); err != nil {
			t.Fatal(err)
		}
		for _, item := range list.Items {
			r.known[item.Metadata.UID] = item
		}
		from := fmt.Sprintf("%s&watch=true&resourceVersion=%s", path, list.Metadata.ResourceVersion)
		response, err := plane.open(ctx, http.MethodGet, from, "", nil)
		if err != nil || response.StatusCode != http.StatusOK {
			t.Fatalf("%s: %v", from, err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer response.Body.Close()
			r.read(ctx, t, kind, json.NewDecoder(response.Body))
		}()
		t.Cleanup(func() { <-done })
	}
	return r
}

func (r *reference) read(ctx context.Context, t *testing.T, kind string, lines *json.Decoder) {
	for {
		var change struct {
			Type   string `json:"type"`
			Object object `json:"object"`
		}
		if err := lines.Decode(&change); err != nil {
			if ctx.Err() == nil {
				t.Errorf("the watch of the reference ends: %v", err)
			}
			return
		}
		r.add(kind, change.Type, change.Object)
	}
}

// add adds the keys of the events for one change.
func (r *reference) add(kind, change string, after object) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	before, existed := r.known[after.Metadata.UID]
	r.known[after.Metadata.UID] = after
	expect := func(event string) {
		r.keys[after.Metadata.UID+"."+after.Metadata.ResourceVersion+"."+event] = true
	}
	isDeleted := change == "DELETED"
	isSame := existed && before.Status == after.Status && reflect.DeepEqual(before.Metadata.Labels, after.Metadata.Labels)
	if isDeleted || !isSame {
		expect(kind + ".state")
	}
	if kind == "instance" {
		if after.Metadata.Labels[poolLabel] == "ready" && before.Metadata.Labels[poolLabel] != "ready" && !isDeleted {
			expect("pool.instance.ready")
		}
		return
	}
	wasReleased := existed && before.Status.Phase == "Released"
	switch {
	case isDeleted && !wasReleased, !isDeleted && existed && !wasReleased && after.Status.Phase == "Released":
		expect("tenant.released")
	case !isDeleted && after.Status.Phase == "Active" && before.Status.Phase != "Active":
		expect("tenant.claimed")
	}
}

// expected returns the keys so far.
func (r *reference) expected() map[string]bool {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	keys := make(map[string]bool, len(r.keys))
	for key := range r.keys {
		keys[key] = true
	}
	return keys
}

// has returns whether a Pod and a claim with this name were seen.
func (r *reference) has(name string) bool {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	count := 0
	for _, known := range r.known {
		if known.Metadata.Name == name {
			count++
		}
	}
	return count == 2
}

// writer changes the objects of the namespace at random.
type writer struct {
	plane  *controlPlane
	random *rand.Rand
	exists map[string]bool
	writes int
}

func newWriter(plane *controlPlane, seed uint64) *writer {
	return &writer{plane: plane, random: rand.New(rand.NewPCG(seed, 1)), exists: map[string]bool{}}
}

// run writes until the context ends.
func (w *writer) run(ctx context.Context, t *testing.T) {
	for ctx.Err() == nil {
		w.write(t)
		time.Sleep(pauseOfWrites)
	}
}

func (w *writer) write(t *testing.T) {
	w.writes++
	if w.random.IntN(3) == 0 {
		w.writeClaim(t, w.random.IntN(writtenClaims))
	} else {
		w.writePod(t, w.random.IntN(writtenPods))
	}
}

func (w *writer) pick(values ...string) string { return values[w.random.IntN(len(values))] }

func (w *writer) writePod(t *testing.T, n int) {
	name := fmt.Sprintf("pod-%d", n)
	path := podsPath + "/" + name
	switch choice := w.random.IntN(8); {
	case !w.exists[name]:
		w.exists[name] = true
		labels := fmt.Sprintf(`{%q:"true",%q:"warming",%q:"w%d"}`, managedLabel, poolLabel, label+"workload", n%3)
		w.plane.call(t, http.MethodPost, podsPath, jsonType,
			fmt.Appendf(nil, `{%s,"metadata":{"name":%q,"labels":%s},%s}`, podVersion, name, labels, podSpec))
	case choice == 0:
		w.exists[name] = false
		w.plane.call(t, http.MethodDelete, path, jsonType, []byte(`{"gracePeriodSeconds":0}`))
	case choice < 4:
		w.plane.call(t, http.MethodPatch, path+"/status", patchType,
			fmt.Appendf(nil, `{"status":{"phase":%q}}`, w.pick("Pending", "Running", "Failed")))
	default:
		w.plane.call(t, http.MethodPatch, path, patchType, fmt.Appendf(nil, `{"metadata":{"labels":{%q:%q,%q:%q}}}`,
			poolLabel, w.pick("warming", "ready", "ready", "acquired"), label+"tenant", w.pick("alice", "bob")))
	}
}

func (w *writer) writeClaim(t *testing.T, n int) {
	name := fmt.Sprintf("claim-%d", n)
	path := claimsPath + "/" + name
	switch choice := w.random.IntN(6); {
	case !w.exists[name]:
		w.exists[name] = true
		w.plane.call(t, http.MethodPost, claimsPath, jsonType, fmt.Appendf(nil,
			`{%s,"metadata":{"name":%q},"spec":{"tenantId":%q,"workloadRef":"w0"}}`, claimVersion, name, w.pick("alice", "bob")))
	case choice == 0:
		w.exists[name] = false
		w.plane.call(t, http.MethodDelete, path, jsonType, []byte(`{}`))
	default:
		phase := w.pick("Pending", "Active", "Active", "Releasing", "Released")
		w.plane.call(t, http.MethodPatch, path+"/status", patchType, fmt.Appendf(nil,
			`{"status":{"phase":%q,"instanceId":"pod-%d","source":"pool"}}`, phase, w.random.IntN(writtenPods)))
	}
}
