package bridge

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// bound is how long a test waits for one step.
const bound = 20 * time.Second

// bothTransports runs a test over both transports.
func bothTransports(t *testing.T, test func(t *testing.T, transport Transport)) {
	for _, transport := range []Transport{SSE, WebSocket} {
		t.Run(transport.String(), func(t *testing.T) {
			checkLeaks(t)
			test(t, transport)
		})
	}
}

// checkLeaks fails the test if goroutines of the client or of its HTTP transport outlive it.
func checkLeaks(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		buffer := make([]byte, 4<<20)
		var left []string
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			left = nil
			for goroutine := range strings.SplitSeq(string(buffer[:runtime.Stack(buffer, true)]), "\n\n") {
				// A WebSocket connection of the client has no goroutine but that of the connection.
				for _, name := range []string{"bridge.(*connection)", "clients/go.(*connection)", "http.(*persistConn)"} {
					if strings.Contains(goroutine, name) {
						left = append(left, goroutine)
						break
					}
				}
			}
			if len(left) == 0 {
				return
			}
		}
		t.Errorf("%d goroutines are left:\n%s", len(left), strings.Join(left, "\n\n"))
	})
}

// ending is how a scripted stream ends.
type ending int

const (
	stays ending = iota
	cut
	ends
)

// sender sends the data of one event.
type sender func(data string)

// scripted is a server that misbehaves.
type scripted struct {
	*httptest.Server
	// stream writes one stream. The cursor is that of the request.
	stream func(send sender, cursor string) ending
	// intercept answers a request itself, if it returns true.
	intercept func(w http.ResponseWriter, r *http.Request) bool

	mutex    sync.Mutex
	requests []*http.Request
}

func newScripted(t *testing.T) *scripted {
	s := &scripted{}
	s.stream = func(send sender, _ string) ending {
		send(`{"type":"state.initial","id":"c1","reason":"connect","instances":[],"claims":[],"pools":[]}`)
		return stays
	}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func (s *scripted) seen() []*http.Request {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return append([]*http.Request(nil), s.requests...)
}

func (s *scripted) serve(w http.ResponseWriter, r *http.Request) {
	s.mutex.Lock()
	s.requests = append(s.requests, r)
	s.mutex.Unlock()
	if s.intercept != nil && s.intercept(w, r) {
		return
	}
	if r.Header.Get("Upgrade") == "" {
		s.serveSSE(w, r)
		return
	}
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer conn.CloseNow()
	ctx := conn.CloseRead(context.Background())
	send := func(data string) { _ = conn.Write(ctx, websocket.MessageText, []byte(data)) }
	switch s.stream(send, r.URL.Query().Get("lastEventId")) {
	case stays:
		<-ctx.Done()
	case ends:
		_ = conn.Close(websocket.StatusServiceRestart, "draining")
	}
}

func (s *scripted) serveSSE(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	_ = http.NewResponseController(w).Flush()
	send := func(data string) {
		var event struct{ ID string }
		if json.Unmarshal([]byte(data), &event) == nil && event.ID != "" {
			_, _ = fmt.Fprintf(w, "id: %s\n", event.ID)
		}
		_, _ = fmt.Fprintf(w, "data: %s\n\n", data)
		_ = http.NewResponseController(w).Flush()
	}
	switch s.stream(send, r.Header.Get("Last-Event-ID")) {
	case stays:
		<-r.Context().Done()
	case cut:
		panic(http.ErrAbortHandler)
	}
}

// change returns an instance.state.
func change(uid, id string) string {
	event := map[string]any{"type": "instance.state", "phase": "Running", "name": uid, "key": uid + ".1.instance.state",
		"instance": map[string]any{"uid": uid, "name": uid}}
	if id != "" {
		event["id"] = id
	}
	text, _ := json.Marshal(event)
	return string(text)
}

// newStream returns a stream with short delays.
func newStream(t *testing.T, url string, options Options) *Stream {
	t.Helper()
	client, err := New(url, options)
	if err != nil {
		t.Fatal(err)
	}
	client.backoff = backoff{min: 10 * time.Millisecond, max: MaxDelay}
	stream := client.Stream()
	t.Cleanup(stream.Close)
	return stream
}

// next returns the next event or error of the stream, in time.
func next(t *testing.T, stream *Stream) (Event, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	event, err := stream.Next(ctx)
	if ctx.Err() != nil {
		t.Fatal("nothing arrives in time")
	}
	return event, err
}

// nextEvent returns the next event. An error fails the test.
func nextEvent(t *testing.T, stream *Stream) Event {
	t.Helper()
	event, err := next(t, stream)
	if err != nil {
		t.Fatalf("expected an event, found %v", err)
	}
	return event
}

// nextError returns the next error of a type. An event fails the test.
func nextError[T error](t *testing.T, stream *Stream) T {
	t.Helper()
	event, err := next(t, stream)
	typed, ok := err.(T)
	if !ok {
		t.Fatalf("expected a %T, found %v and the event %s", typed, err, event.JSON)
	}
	return typed
}
