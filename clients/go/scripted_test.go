package bridge

import (
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestFiltersTypesAndCursorAreInTheRequest(t *testing.T) {
	bothTransports(t, func(t *testing.T, transport Transport) {
		server := newScripted(t)
		stream := newStream(t, server.URL+"/prefix/?a=1", Options{
			Transport: transport, Types: []string{"instance", "pool.depth"}, Instances: Instances().HasLabel("team"),
			Since: "c0", Snapshot: SnapshotNone, Token: "key", UserAgent: "test",
		})
		nextEvent(t, stream)
		request := server.seen()[0]
		query := request.URL.Query()
		cursor := map[Transport]string{SSE: request.Header.Get("Last-Event-ID"), WebSocket: query.Get("lastEventId")}[transport]
		found := []string{request.URL.Path, query.Get("a"), query.Get("types"), query.Get("params"), query.Get("snapshot"),
			cursor, request.Header.Get("Authorization"), request.Header.Get("User-Agent")}
		path := map[Transport]string{SSE: "/prefix/api/sse", WebSocket: "/prefix/api/websocket"}[transport]
		expected := []string{path, "1", "instance,pool.depth", `{"instances":{"labels":{"team":null}}}`, "none", "c0",
			"Bearer key", "test"}
		if !slices.Equal(found, expected) {
			t.Fatalf("found %q", found)
		}
	})
}

// The second connection ends after its heartbeat, before it repeats the event that came without an id.
func TestACutIsResumedAtTheNewestIDWithoutADuplicate(t *testing.T) {
	bothTransports(t, func(t *testing.T, transport Transport) {
		server := newScripted(t)
		var connections atomic.Int32
		server.stream = func(send sender, cursor string) ending {
			connection := connections.Add(1)
			if connection == 1 {
				send(`{"type":"state.initial","id":"c1","reason":"connect"}`)
				send(change("a", ""))
				return cut
			}
			send(fmt.Sprintf(`{"type":"heartbeat","id":%q}`, cursor))
			if connection == 2 {
				return cut
			}
			send(change("a", ""))
			send(change("b", "c2"))
			return stays
		}
		stream := newStream(t, server.URL, Options{Transport: transport})
		var found []string
		for len(found) == 0 || found[len(found)-1] != "b" {
			event, err := next(t, stream)
			switch payload := event.Payload.(type) {
			case nil:
				if _, ok := err.(*LostError); !ok {
					t.Fatal(err)
				}
				found = append(found, "lost")
			case *InstanceState:
				found = append(found, payload.Name)
			default:
				found = append(found, event.Type)
			}
		}
		expected := []string{"state.initial", "lost", "heartbeat", "lost", "heartbeat", "a", "b"}
		if !slices.Equal(found, expected) || stream.Cursor() != "c2" || stream.Connections() != 3 {
			t.Fatalf("found %q, cursor %q, %d connections", found, stream.Cursor(), stream.Connections())
		}
	})
}

func TestMalformedAndUnknownEventsDoNotEndTheStream(t *testing.T) {
	bothTransports(t, func(t *testing.T, transport Transport) {
		server := newScripted(t)
		server.stream = func(send sender, _ string) ending {
			for _, data := range []string{`{"type":"new","id":"c1"}`, "<html>", "[]", `{"type":"instance.state"}`} {
				send(data)
			}
			send(change("a", "c3"))
			return stays
		}
		stream := newStream(t, server.URL, Options{Transport: transport})
		unknown := nextEvent(t, stream)
		if _, ok := unknown.Payload.(*Unknown); !ok || unknown.Type != "new" || stream.Cursor() != "c1" {
			t.Fatalf("found %+v", unknown)
		}
		for number, text := range []string{"<html>", "[]", `{"type":"instance.state"}`} {
			err := nextError[*MalformedError](t, stream)
			if err.Number != number+2 || err.Text != text || IsFinal(err) {
				t.Fatalf("found %+v", err)
			}
		}
		if event := nextEvent(t, stream); event.ID != "c3" || event.Connection != 1 || stream.Connections() != 1 {
			t.Fatalf("found %+v", event)
		}
	})
}

func TestStreamClosingGivesTheReasonAndTheDelay(t *testing.T) {
	bothTransports(t, func(t *testing.T, transport Transport) {
		server := newScripted(t)
		server.stream = func(send sender, cursor string) ending {
			if cursor != "" {
				return stays
			}
			send(`{"type":"state.initial","id":"c1"}`)
			send(`{"type":"stream.closing","reason":"draining","detail":"a roll-out","retryAfterMs":2500}`)
			return ends
		}
		stream := newStream(t, server.URL, Options{Transport: transport})
		nextEvent(t, stream)
		nextEvent(t, stream)
		err := nextError[*ClosedError](t, stream)
		code := map[Transport]int{SSE: 0, WebSocket: 1012}[transport]
		if err.Reason != "draining" || err.RetryAfter != 2500*time.Millisecond || err.Code != code || IsFinal(err) {
			t.Fatalf("found %+v", err)
		}
		if text := err.Error(); text != "the bridge closed the stream: draining (a roll-out)" {
			t.Fatal(text)
		}
		// The own delay has at most 10 ms, so that the bound is no matter of speed.
		if delay := time.Until(stream.RetryAt()); delay < time.Second || delay > 2500*time.Millisecond {
			t.Fatalf("the delay is %v", delay)
		}
	})
}

func TestAStreamThatOnlyClosesIsNoConnection(t *testing.T) {
	bothTransports(t, func(t *testing.T, transport Transport) {
		const refusals = 3
		server := newScripted(t)
		server.stream = func(send sender, _ string) ending {
			if len(server.seen()) <= refusals {
				send(`{"type":"stream.closing","reason":"not ready"}`)
				return ends
			}
			send(`{"type":"heartbeat"}`)
			return stays
		}
		stream := newStream(t, server.URL, Options{Transport: transport})
		for refusal := 1; refusal <= refusals; refusal++ {
			event := nextEvent(t, stream)
			if _, ok := event.Payload.(*StreamClosing); !ok || event.Connection != refusal {
				t.Fatalf("found %+v", event)
			}
			if err := nextError[*ClosedError](t, stream); err.Reason != "not ready" {
				t.Fatalf("found %v", err)
			}
			if stream.Connections() != 0 || stream.backoff.failures != refusal {
				t.Fatalf("%d connections, %d failures after refusal %d", stream.Connections(), stream.backoff.failures, refusal)
			}
		}
		if event := nextEvent(t, stream); event.Type != "heartbeat" || stream.Connections() != 1 || stream.backoff.failures != 0 {
			t.Fatalf("found %+v, %d connections", event, stream.Connections())
		}
	})
}

func TestAnswersThatAreNoStreamAreTypedErrors(t *testing.T) {
	const html = "\n<html><title>Sign in</title>\n<b>more</b></html>"
	bothTransports(t, func(t *testing.T, transport Transport) {
		for _, c := range []struct {
			status  int
			body    string
			isFinal bool
			check   func(err error) bool
		}{
			{401, `{"code":"UNAUTHORIZED","message":"invalid API key"}`, true, func(err error) bool {
				status, ok := err.(*StatusError)
				return ok && status.Code == "UNAUTHORIZED" && status.Message == "invalid API key" && IsUnauthorized(err)
			}},
			{403, `{"code":"FORBIDDEN","message":"no"}`, true, func(err error) bool {
				status, ok := err.(*StatusError)
				return ok && status.Code == "FORBIDDEN" && status.RetryAfter == 3*time.Second && !IsUnauthorized(err)
			}},
			// The message is longer than what the WebSocket package keeps of a body.
			{400, `{"code":"BAD_REQUEST","message":"` + strings.Repeat("x", 3000) + `","details":{"parameter":"types"}}`, true,
				func(err error) bool {
					status, ok := err.(*StatusError)
					return ok && status.Parameter == "types" && len(status.Message) == 3000
				}},
			{426, `{"code":"UPGRADE_REQUIRED","message":"no upgrade"}`, true, func(err error) bool {
				status, ok := err.(*StatusError)
				return ok && status.Code == "UPGRADE_REQUIRED"
			}},
			{503, `{"code":"NOT_READY","message":"wait"}`, false, func(err error) bool {
				status, ok := err.(*StatusError)
				return ok && status.Code == "NOT_READY" && status.RetryAfter == 3*time.Second
			}},
			{502, html, false, func(err error) bool {
				status, ok := err.(*StatusError)
				return ok && status.Code == "" && status.Message == "<html><title>Sign in</title>"
			}},
			{429, "", false, func(err error) bool {
				status, ok := err.(*StatusError)
				return ok && status.Message == "Too Many Requests"
			}},
			{200, html, true, func(err error) bool {
				page, ok := err.(*NotStreamError)
				return ok && page.FirstLine == "<html><title>Sign in</title>" && page.Found == "200 OK with text/html"
			}},
			{302, "", true, func(err error) bool {
				redirect, ok := err.(*RedirectError)
				return ok && redirect.Target == "/login" && redirect.Status == 302
			}},
		} {
			t.Run(fmt.Sprint(c.status), func(t *testing.T) {
				server := newScripted(t)
				server.intercept = func(w http.ResponseWriter, _ *http.Request) bool {
					w.Header().Set("Content-Type", "text/html")
					w.Header().Set("Retry-After", "3")
					w.Header().Set("Location", "/login?secret")
					w.WriteHeader(c.status)
					_, _ = w.Write([]byte(c.body))
					return true
				}
				stream := newStream(t, server.URL, Options{Transport: transport, Token: "secret"})
				_, err := next(t, stream)
				if !c.check(err) || IsFinal(err) != c.isFinal || strings.Contains(err.Error(), "secret") {
					t.Fatalf("found %T %v", err, err)
				}
				if c.isFinal {
					if _, again := next(t, stream); again != err {
						t.Fatalf("after the final error: %v", again)
					}
				} else if delay := time.Until(stream.RetryAt()); delay < time.Second {
					t.Fatalf("the delay is %v", delay)
				}
				if requests := server.seen(); len(requests) != 1 {
					t.Fatalf("%d requests: a redirect is followed", len(requests))
				}
			})
		}
	})
}

func TestAnAnswerInPlaceOfTheStreamIsNotFinalAfterAConnectionHasWorked(t *testing.T) {
	bothTransports(t, func(t *testing.T, transport Transport) {
		server := newScripted(t)
		server.stream = func(send sender, cursor string) ending {
			send(`{"type":"heartbeat","id":"c1"}`)
			if cursor == "" {
				return cut
			}
			return stays
		}
		server.intercept = func(w http.ResponseWriter, _ *http.Request) bool {
			switch len(server.seen()) {
			case 2:
				_, _ = w.Write([]byte("<html>maintenance"))
				return true
			case 3:
				w.WriteHeader(http.StatusNotFound)
				return true
			}
			return false
		}
		stream := newStream(t, server.URL, Options{Transport: transport})
		nextEvent(t, stream)
		nextError[*LostError](t, stream)
		if err := nextError[*NotStreamError](t, stream); IsFinal(err) || err.FirstLine != "<html>maintenance" {
			t.Fatalf("found %+v", err)
		}
		if err := nextError[*StatusError](t, stream); IsFinal(err) || err.Status != 404 {
			t.Fatalf("found %+v", err)
		}
		nextEvent(t, stream)
	})
}

func TestACursorThatTheReleaseDoesNotAcceptIsDiscarded(t *testing.T) {
	bothTransports(t, func(t *testing.T, transport Transport) {
		server := newScripted(t)
		server.intercept = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Last-Event-ID") != "old" && r.URL.Query().Get("lastEventId") != "old" {
				return false
			}
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"code":"BAD_REQUEST","message":"no","details":{"parameter":"lastEventId"}}`))
			return true
		}
		stream := newStream(t, server.URL, Options{Transport: transport, Since: "old"})
		if err := nextError[*CursorRejectedError](t, stream); IsFinal(err) || err.Message != "no" {
			t.Fatalf("found %v", err)
		}
		if event := nextEvent(t, stream); event.Type != "state.initial" || stream.Cursor() != "c1" {
			t.Fatalf("found %+v", event)
		}
	})
}

func TestAnEventThatIsTooLargeEndsTheConnection(t *testing.T) {
	bothTransports(t, func(t *testing.T, transport Transport) {
		server := newScripted(t)
		server.stream = func(send sender, _ string) ending {
			fill := strings.Repeat("x", MaxEventBytes-100)
			send(fmt.Sprintf(`{"type":"large","fill":%q}`, fill))
			send(fmt.Sprintf(`{"type":"too large","fill":%q}`, strings.Repeat("x", MaxEventBytes+readBytes)))
			return stays
		}
		stream := newStream(t, server.URL, Options{Transport: transport})
		if event := nextEvent(t, stream); event.Type != "large" || len(event.JSON) < MaxEventBytes-100 {
			t.Fatalf("found %d bytes", len(event.JSON))
		}
		if err := nextError[*TooLargeError](t, stream); err.Limit != MaxEventBytes || IsFinal(err) {
			t.Fatalf("found %+v", err)
		}
	})
}

func TestASlowReaderGetsEveryEventInOrder(t *testing.T) {
	bothTransports(t, func(t *testing.T, transport Transport) {
		const count = 20_000
		server := newScripted(t)
		server.stream = func(send sender, _ string) ending {
			for i := range count {
				send(change(fmt.Sprint(i), fmt.Sprint(i)))
			}
			return stays
		}
		stream := newStream(t, server.URL, Options{Transport: transport})
		for i := range count {
			if i%5000 == 0 {
				time.Sleep(200 * time.Millisecond)
			}
			if event := nextEvent(t, stream); event.ID != fmt.Sprint(i) {
				t.Fatalf("event %d is %s", i, event.ID)
			}
		}
		if stream.Connections() != 1 {
			t.Fatalf("%d connections", stream.Connections())
		}
	})
}

func TestSilenceEndsAConnection(t *testing.T) {
	bothTransports(t, func(t *testing.T, transport Transport) {
		// The first event must arrive within this time, also on a busy machine.
		const limit = 2 * time.Second
		stream := newStream(t, newScripted(t).URL, Options{Transport: transport, Silence: limit})
		nextEvent(t, stream)
		if err := nextError[*SilentError](t, stream); err.Limit != limit || IsFinal(err) {
			t.Fatalf("found %+v", err)
		}
		nextEvent(t, stream)
	})
}

func TestTheIDOfABlockWithoutDataCounts(t *testing.T) {
	checkLeaks(t)
	server := newScripted(t)
	server.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = w.Write([]byte("retry: 50\nid: 1\ndata: {\"type\":\"x\"}\n\nid: 2\n\n"))
		return r.Header.Get("Last-Event-ID") == ""
	}
	stream := newStream(t, server.URL, Options{Transport: SSE})
	nextEvent(t, stream)
	if err := nextError[*ClosedError](t, stream); err.Reason != "end of the response" || err.RetryAfter != 50*time.Millisecond {
		t.Fatalf("found %+v", err)
	}
	if stream.Cursor() != "2" {
		t.Fatalf("the cursor is %q", stream.Cursor())
	}
	// An event that comes before the answer of serve: the head is the same.
	nextEvent(t, stream)
	if found := server.seen()[1].Header.Get("Last-Event-ID"); found != "2" {
		t.Fatalf("the second request has %q", found)
	}
}

func TestAnIDThatCannotBeSentBackIsNoCursor(t *testing.T) {
	checkLeaks(t)
	for _, wrong := range []string{"a\x01b", strings.Repeat("x", MaxCursorBytes+1)} {
		server := newScripted(t)
		server.intercept = func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = fmt.Fprintf(w, "id: 1\ndata: {\"type\":\"x\"}\n\nid: %s\ndata: {\"type\":\"x\"}\n\n", wrong)
			return r.Header.Get("Last-Event-ID") == ""
		}
		stream := newStream(t, server.URL, Options{Transport: SSE})
		nextEvent(t, stream)
		nextError[*MalformedError](t, stream)
		nextError[*ClosedError](t, stream)
		if stream.Cursor() != "1" {
			t.Fatalf("the cursor is %.20q", stream.Cursor())
		}
		nextEvent(t, stream)
		if found := server.seen()[1].Header.Get("Last-Event-ID"); found != "1" {
			t.Fatalf("the second request has %.20q", found)
		}
	}
}

// The WebSocket package returns a message that is cut after as many bytes as it reads at once as if it were complete.
func TestAWebSocketMessageThatIsCutIsNotDelivered(t *testing.T) {
	checkLeaks(t)
	const size = 1200
	server := newScripted(t)
	sent := 0
	server.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return true
		}
		defer conn.Close()
		hash := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		_, _ = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
			"Sec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(hash[:]))
		frame := append([]byte{0x81, 126, size >> 8, size & 0xFF}, strings.Repeat("x", sent)...)
		_, _ = conn.Write(frame)
		return true
	}
	for sent = range size {
		stream := newStream(t, server.URL, Options{})
		nextError[*LostError](t, stream)
		stream.Close()
	}
}
