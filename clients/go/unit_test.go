package bridge

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// stream has every form of a line, a byte order mark, characters of several bytes and a block that is cut.
const stream = "\uFEFFretry: 1500\nid: a\nevent: x\ndata: 1\n\n: comment\n\ndata\n\ndata:2\ndata: 3\r\n\r\nid\r\rdata:  é€😀\n\n" +
	"event: y\n\ndata: 5\n\ndata: cut"

var streamBlocks = []block{
	{"a", "x", []byte("1"), true},
	{"", "", []byte{}, true},
	{"", "", []byte("2\n3"), true},
	{"", "", []byte(" é€😀"), true},
	{"", "", []byte("5"), true},
}

func parseChunks(chunks ...[]byte) ([]block, *parser) {
	var blocks []block
	p := &parser{}
	for _, chunk := range chunks {
		p.push(chunk, func(b block) { blocks = append(blocks, b) })
	}
	return blocks, p
}

func checkBlocks(t *testing.T, where string, blocks []block, p *parser) {
	t.Helper()
	isEqual := func(a, b block) bool { return a.id == b.id && a.name == b.name && bytes.Equal(a.data, b.data) }
	if !slices.EqualFunc(blocks, streamBlocks, isEqual) {
		t.Fatalf("%s: found %+v", where, blocks)
	}
	if p.retry != 1500*time.Millisecond || p.lastID != "" || !p.hasLastID || p.heldBytes() != len("data: cut") {
		t.Fatalf("%s: retry %v, last id %q, %d bytes held", where, p.retry, p.lastID, p.heldBytes())
	}
}

func TestEverySplitOfAStreamGivesTheSameEvents(t *testing.T) {
	all := []byte(stream)
	for first := 0; first <= len(all); first++ {
		for second := first; second <= len(all); second++ {
			blocks, p := parseChunks(all[:first], all[first:second], all[second:])
			checkBlocks(t, fmt.Sprintf("cuts at %d and %d", first, second), blocks, p)
		}
	}
	var single [][]byte
	for i := range all {
		single = append(single, all[i:i+1])
	}
	blocks, p := parseChunks(single...)
	checkBlocks(t, "single bytes", blocks, p)
}

func TestParserIgnoresWhatIsNoField(t *testing.T) {
	blocks, p := parseChunks([]byte("retry: 1x\nretry: -1\nid: a\x00b\nunknown: 1\ndata: \xff\n\nid: 7\n\n"))
	if len(blocks) != 1 || blocks[0].id != "" || p.retry != 0 || p.lastID != "7" {
		t.Fatalf("found %+v, retry %v, last id %q", blocks, p.retry, p.lastID)
	}
}

func TestDelaysDoubleToTheMaximumAndHonorTheServer(t *testing.T) {
	b := backoff{min: MinDelay, max: MaxDelay}
	for i, seconds := range []time.Duration{1, 2, 4, 8, 16, 30, 30, 30, 30, 30, 30} {
		if delay := b.next(0, 1); delay != seconds*time.Second {
			t.Fatalf("delay %d is %v, not %d s", i, delay, seconds)
		}
	}
	b.reset()
	for _, c := range []struct{ asked, expected time.Duration }{
		{0, 500 * time.Millisecond}, {7 * time.Second, 7 * time.Second}, {time.Hour, MaxDelay},
	} {
		if delay := b.next(c.asked, 0); delay != c.expected {
			t.Fatalf("asked %v: %v, not %v", c.asked, delay, c.expected)
		}
	}
}

func TestSilenceFollowsTheHeartbeats(t *testing.T) {
	s, start := newSilence(0), time.Now()
	s.onHeartbeat(start)
	s.onHeartbeat(start.Add(100 * time.Millisecond))
	if s.limit() != initialSilence {
		t.Fatalf("two heartbeats of a resume gave %v", s.limit())
	}
	s.onHeartbeat(start.Add(15_100 * time.Millisecond))
	if s.limit() != 40*time.Second {
		t.Fatalf("15 s gave %v", s.limit())
	}
	s.onHeartbeat(start.Add(time.Hour))
	if s.limit() != initialSilence {
		t.Fatalf("the limit is not bounded: %v", s.limit())
	}
	if fixed := newSilence(time.Second); fixed.limit() != time.Second {
		t.Fatalf("fixed: %v", fixed.limit())
	}
}

func TestFiltersBecomeTheJSONOfTheProtocol(t *testing.T) {
	running := Instances().Phase("Running").Workload("web")
	for expected, found := range map[string]string{
		``: params(InstanceFilter{}, Claims()),
		`{"instances":{"labels":{"team":"a","x":null},"phase":"Running","workloadRef":"web"}}`: params(
			running.Label("team", "a").HasLabel("x"), ClaimFilter{}),
		`{"instances":{"name":"n","phase":"Pending","poolStatus":"ready","tenantId":"t","workloadRef":"web"}}`: params(
			running.Name("n").Tenant("t").PoolStatus("ready").Phase("Pending"), ClaimFilter{}),
		`{"instances":{"phase":"Running","workloadRef":"web"}}`: params(running, ClaimFilter{}),
		`{"claims":{"labels":{"a":null},"name":"n","phase":"Active","source":"pool","tenantId":"t","workloadRef":"w"}}`: params(
			InstanceFilter{}, Claims().Name("n").Phase("Active").Tenant("t").Workload("w").Source("pool").Label("a", "b").HasLabel("a")),
	} {
		if found != expected {
			t.Errorf("found %s, expected %s", found, expected)
		}
	}
}

func event(t *testing.T, data string) Event {
	t.Helper()
	event, err := ParseEvent([]byte(data))
	if err != nil {
		t.Fatalf("%s: %v", data, err)
	}
	return event
}

const (
	firstOfTwo = `{"type":"a","key":"u.1.a"}`
	lastOfTwo  = `{"type":"b","key":"u.1.b","id":"2"}`
)

// accepted returns the types of the events that are returned next.
func accepted(t *testing.T, d *dedupe, data string) string {
	t.Helper()
	d.accept(event(t, data))
	types := ""
	for event, ok := d.next(); ok; event, ok = d.next() {
		types += event.Type
	}
	return types
}

func TestEventsAreHeldBackUntilTheirIDHasCome(t *testing.T) {
	var d dedupe
	accept := func(data, expected string) {
		t.Helper()
		if found := accepted(t, &d, data); found != expected {
			t.Fatalf("%s: found %q, expected %q", data, found, expected)
		}
	}
	// A server without ids.
	accept(firstOfTwo, "a")
	d.cursor = "1"
	accept(`{"type":"pool.depth","workloadRef":"w"}`, "pool.depth")
	accept(firstOfTwo, "")
	// The order stays.
	accept(`{"type":"c"}`, "")
	if d.cursor != "1" {
		t.Fatalf("the cursor is %q before the id has come", d.cursor)
	}
	accept(lastOfTwo, "acb")
	if d.cursor != "2" || len(d.held) != 0 || d.heldBytes != 0 {
		t.Fatalf("found %+v", d)
	}
	d.heldBytes = MaxHeldBytes
	accept(firstOfTwo, "a")
	accept(firstOfTwo, "")
	// Any id releases them.
	accept(`{"type":"heartbeat","id":"2"}`, "aheartbeat")
}

func TestEventsWhoseIDHasNotComeAreForgottenWithTheConnection(t *testing.T) {
	d := dedupe{cursor: "1"}
	accept := func(data, expected string) {
		t.Helper()
		if found := accepted(t, &d, data); found != expected {
			t.Fatalf("%s: found %q, expected %q", data, found, expected)
		}
	}
	accept(firstOfTwo, "")
	d.connectionEnded("7", true)
	if d.cursor != "1" {
		t.Fatalf("the id of a block covers what is forgotten: %q", d.cursor)
	}
	// A resume that is cut before the repetition, one that is cut inside it, and one that sends it in another order.
	accept(`{"type":"heartbeat","id":"1"}`, "heartbeat")
	d.connectionEnded("1", true)
	accept(`{"type":"heartbeat","id":"1"}`, "heartbeat")
	accept(firstOfTwo, "")
	d.connectionEnded("", false)
	accept(`{"type":"c","key":"u.2.c","id":"3"}`, "c")
	accept(firstOfTwo, "")
	accept(lastOfTwo, "ab")
	for _, id := range []string{"4", ""} {
		d.connectionEnded(id, true)
		if d.cursor != id {
			t.Fatalf("the cursor is %q", d.cursor)
		}
	}
}

func TestKnownTypesAreParsedAndUnknownOnesArePassedOn(t *testing.T) {
	e := event(t, `{"type":"instance.state","id":"c1","key":"u.1.instance.state","name":"a","phase":"Running",`+
		`"instance":{"uid":"u","labels":{"team":"x"},"new":1}}`)
	state, ok := e.Payload.(*InstanceState)
	if !ok || e.ID != "c1" || state.Name != "a" || state.Instance.UID != "u" || state.Instance.Labels["team"] != "x" {
		t.Fatalf("found %+v", e)
	}
	data := `{"color":"red"}`
	e, err := parseEvent(block{"sse", "named", []byte(data), true})
	if _, ok := e.Payload.(*Unknown); err != nil || !ok || e.ID != "sse" || e.Type != "named" || string(e.JSON) != data {
		t.Fatalf("found %+v, %v", e, err)
	}
	// The members of another server have other meanings.
	e, err = parseEvent(block{"sse", "named", []byte(`{"type":1,"id":"order-1","key":7}`), true})
	if err != nil || e.ID != "sse" || e.Type != "named" || e.Key != "" {
		t.Fatalf("found %+v, %v", e, err)
	}
	if e := event(t, `{"type":"a","id":17}`); e.ID != "" || e.Type != "a" {
		t.Fatalf("found %+v", e)
	}
	if _, ok := event(t, `{"type":"matrix-down","status":503,"retryAt":"x","reason":"error answer"}`).Payload.(*UpstreamDown); !ok {
		t.Fatal("matrix-down of a relay is not known")
	}
	if _, ok := event(t, `{"type":"matrix-down","status":"text"}`).Payload.(*Unknown); !ok {
		t.Fatal("matrix-down of another server is not passed on")
	}
	for kind, expected := range map[string]Payload{
		"claim.state":         &ClaimState{},
		"pool.instance.ready": &PoolReady{},
		"pool.depth":          &PoolDepth{},
		"telemetry":           &Telemetry{},
		"mqtt.message":        &MQTTMessage{},
		"tenant.claimed":      &TenantClaimed{},
		"tenant.released":     &TenantReleased{},
		"heartbeat":           &Heartbeat{},
		"upstream.up":         &UpstreamUp{},
		"auth.expiring":       &AuthExpiring{},
		"stream.closing":      &StreamClosing{},
		"relay.gap":           &RelayGap{},
		"constructor":         &Unknown{},
	} {
		found := event(t, fmt.Sprintf(`{"type":%q,"workloadRef":"w","claim":{"uid":"u"}}`, kind)).Payload
		if reflect.TypeOf(found) != reflect.TypeOf(expected) {
			t.Errorf("%s is a %T", kind, found)
		}
	}
}

func TestMalformedEventsAreErrors(t *testing.T) {
	long, _ := json.Marshal(strings.Repeat("x", MaxCursorBytes+1))
	for _, data := range []string{
		``, `[]`, `1`, `null`, `{`, `<html>`, `{} {}`,
		`{"type":"heartbeat","upstreamAgeMs":"x"}`,
		`{"type":"instance.state","phase":"Running"}`,
		`{"type":"claim.state","phase":"Active","claim":{"uid":1}}`,
		`{"type":"state.initial","instances":{}}`,
		`{"type":"pool.depth","workloadRef":"w","ready":1.5}`,
		`{"type":"x","id":"a\nb"}`,
		`{"type":"x","id":` + string(long) + `}`,
	} {
		if e, err := ParseEvent([]byte(data)); err == nil {
			t.Errorf("%.80s: %+v", data, e)
		}
	}
}

func TestURLsNameABridgeOrAStream(t *testing.T) {
	for _, c := range []struct {
		text      string
		transport Transport
		expected  string
	}{
		{"localhost:3000", Auto, "http://localhost:3000/api/websocket"},
		{"https://bridge.example", Auto, "https://bridge.example/api/websocket"},
		{"https://bridge.example/prefix/?a=1", SSE, "https://bridge.example/prefix/api/sse"},
		{"ws://[::1]:3000/events/ws?a=1", Auto, "http://[::1]:3000/events/ws"},
		{"https://h/", SSE, "https://h/api/sse"},
		{"h/events", WebSocket, "http://h/events"},
	} {
		e, err := parseEndpoint(c.text, c.transport)
		if err != nil || e.withoutQuery() != c.expected {
			t.Errorf("%s: %v, %v", c.text, e.url, err)
		}
	}
	for path, expected := range map[string]Transport{
		"/api/sse": SSE, "/p/events": SSE, "/events/stream": SSE, "/api/events/stream": SSE, "/events/ws": WebSocket, "/x": WebSocket,
	} {
		if e, err := parseEndpoint("https://h"+path, Auto); err != nil || e.transport != expected {
			t.Errorf("%s: %v, %v", path, e.transport, err)
		}
	}
	for text, words := range map[string]string{
		"ftp://h":                  "accepted schemes",
		"http://user:secret@h/":    "must not contain a credential",
		"http://":                  "host is missing",
		"a b":                      "not a URL",
		"http://h:x?token=secret":  "not a URL",
		"http://u:secret@h:x#frag": "not a URL",
	} {
		_, err := New(text, Options{})
		var setting *SettingError
		if !errors.As(err, &setting) || !IsFinal(err) || !strings.Contains(err.Error(), words) ||
			strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := New("ws://h", Options{Transport: SSE}); err == nil {
		t.Error("ws with SSE is accepted")
	}
}

func TestParametersAreAddedToTheQuery(t *testing.T) {
	e, _ := parseEndpoint("http://h/events?a=1", Auto)
	if found := e.target(url.Values{}); found != "http://h/events?a=1" {
		t.Error(found)
	}
	found := e.target(url.Values{"params": {`{"a":"é"}`}})
	if found != "http://h/events?a=1&params=%7B%22a%22%3A%22%C3%A9%22%7D" {
		t.Error(found)
	}
}

func TestCredentialsNeedTLSOrLoopback(t *testing.T) {
	allowed := []string{"https://h", "wss://10.0.0.1", "http://127.1.2.3:80", "http://[::1]", "http://[::ffff:127.0.0.1]",
		"localhost", "http://a.localhost"}
	for _, text := range allowed {
		if _, err := New(text, Options{Token: "t"}); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	options := []Options{{Token: "secret"}, {TokenFile: "secret"}}
	for _, text := range []string{"http://10.0.0.1", "http://localhost.example", "ws://bridge", "http://[::2]"} {
		for _, options := range options {
			_, err := New(text, options)
			if err == nil || !strings.Contains(err.Error(), "not sent over plain HTTP") || strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: %v", text, err)
			}
			options.AllowInsecure = true
			if _, err := New(text, options); err != nil {
				t.Errorf("%s: %v", text, err)
			}
		}
		if _, err := New(text+"?token=ticket", Options{}); err == nil {
			t.Errorf("%s: a ticket is accepted", text)
		}
	}
	for _, wrong := range []Options{{Token: "a\nb"}, {Token: "a", TokenFile: "b"}, {Since: "a\nb"}, {UserAgent: "\x7f"}} {
		if _, err := New("localhost", wrong); err == nil {
			t.Errorf("%+v is accepted", wrong)
		}
	}
}

func TestFirstLineIsCut(t *testing.T) {
	if found := firstLine([]byte("\n\r\n  <title>Sign in</title>\nmore")); found != "<title>Sign in</title>" {
		t.Error(found)
	}
	if found := firstLine([]byte(strings.Repeat("é", 500))); found != strings.Repeat("é", MaxLineChars) {
		t.Error(found)
	}
	if found := firstLine([]byte(" \n")); found != "" {
		t.Error(found)
	}
}
