package bridge

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestNextKeepsTheConnectionWhenItsContextEnds(t *testing.T) {
	bothTransports(t, func(t *testing.T, transport Transport) {
		server := newScripted(t)
		goOn := make(chan struct{})
		server.stream = func(send sender, _ string) ending {
			send(change("a", "c1"))
			<-goOn
			send(change("b", "c2"))
			return stays
		}
		stream := newStream(t, server.URL, Options{Transport: transport})
		nextEvent(t, stream)
		short, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		if _, err := stream.Next(short); !errors.Is(err, context.DeadlineExceeded) || !IsFinal(err) {
			t.Fatalf("found %v", err)
		}
		close(goOn)
		if event := nextEvent(t, stream); event.ID != "c2" || stream.Connections() != 1 {
			t.Fatalf("found %+v on connection %d", event, stream.Connections())
		}
		stream.Close()
		stream.Close()
		if _, err := next(t, stream); err != ErrStreamClosed {
			t.Fatalf("after Close: %v", err)
		}
	})
}

func TestTheSequenceEndsWithTheLoopTheContextAndAFinalError(t *testing.T) {
	bothTransports(t, func(t *testing.T, transport Transport) {
		server := newScripted(t)
		client, err := New(server.URL, Options{Transport: transport})
		if err != nil {
			t.Fatal(err)
		}
		for event, err := range client.Events(t.Context()) {
			if err != nil || event.Type != "state.initial" {
				t.Fatalf("found %+v, %v", event, err)
			}
			break
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var last error
		for _, err := range client.Events(ctx) {
			last = err
			cancel()
		}
		if !errors.Is(last, context.Canceled) {
			t.Fatalf("the last error is %v", last)
		}
		server.intercept = func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		count := 0
		for _, err := range client.Events(t.Context()) {
			last = err
			count++
		}
		if status, ok := last.(*StatusError); !ok || status.Status != 403 || count != 1 {
			t.Fatalf("found %v after %d pairs", last, count)
		}
	})
}

func TestCloseEndsAReaderThatIsBehind(t *testing.T) {
	bothTransports(t, func(t *testing.T, transport Transport) {
		server := newScripted(t)
		server.stream = func(send sender, _ string) ending {
			for i := range 10_000 {
				send(change(fmt.Sprint(i), fmt.Sprint(i)))
			}
			return ends
		}
		stream := newStream(t, server.URL, Options{Transport: transport})
		nextEvent(t, stream)
		start := time.Now()
		stream.Close()
		if took := time.Since(start); took > 2*time.Second {
			t.Fatalf("Close took %v", took)
		}
	})
}

func TestConnectionsThatAreNotEstablishedAreTriedAgain(t *testing.T) {
	bothTransports(t, func(t *testing.T, transport Transport) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		answer := make(chan string, 1)
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				// The HTTP package reports bytes that precede the request in another way.
				_, _ = http.ReadRequest(bufio.NewReader(conn))
				if text := <-answer; text != "" {
					_, _ = conn.Write([]byte(text))
					_ = conn.Close()
				} else {
					defer conn.Close()
				}
			}
		}()
		options := Options{Transport: transport, ConnectTimeout: 2 * time.Second}
		stream := newStream(t, "http://"+listener.Addr().String(), options)
		for _, c := range []struct{ text, words string }{{"", "no answer within 2s"}, {"no HTTP\r\n\r\n", "malformed"}} {
			answer <- c.text
			if err := nextError[*ConnectError](t, stream); !strings.Contains(err.Error(), c.words) || IsFinal(err) {
				t.Fatalf("found %v", err)
			}
		}
		_ = listener.Close()
		if err := nextError[*ConnectError](t, stream); !strings.Contains(err.Error(), "refused") {
			t.Fatalf("found %v", err)
		}
	})
}

func TestATokenThatWasReplacedIsReadAgainOnce(t *testing.T) {
	bothTransports(t, func(t *testing.T, transport Transport) {
		path := filepath.Join(t.TempDir(), "token")
		write := func(token string) {
			if err := os.WriteFile(path, []byte(token), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		server := newScripted(t)
		server.stream = func(send sender, _ string) ending {
			send(`{"type":"heartbeat","id":"c1"}`)
			return cut
		}
		var rejected, replacement string
		server.intercept = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Authorization") != "Bearer "+rejected {
				return false
			}
			if replacement != "" {
				write(replacement)
			}
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		write("  k1\n")
		stream := newStream(t, server.URL, Options{Transport: transport, TokenFile: path})
		nextEvent(t, stream)
		nextError[*LostError](t, stream)
		// The file changes between two connections, and again between the read and the answer.
		write("k2")
		rejected, replacement = "k2", "k3"
		nextEvent(t, stream)
		nextError[*LostError](t, stream)
		// Without another token, the 401 is final.
		rejected, replacement = "k3", ""
		if err := nextError[*StatusError](t, stream); !IsUnauthorized(err) || !IsFinal(err) {
			t.Fatalf("found %v", err)
		}
		var tokens []string
		for _, request := range server.seen() {
			tokens = append(tokens, strings.TrimPrefix(request.Header.Get("Authorization"), "Bearer "))
		}
		if found := strings.Join(tokens, " "); found != "k1 k2 k3 k3" {
			t.Fatalf("the tokens are %s", found)
		}
	})
}

func TestATokenFunctionIsAskedAgainOnceForA401(t *testing.T) {
	checkLeaks(t)
	server := newScripted(t)
	server.intercept = func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	asked := 0
	stream := newStream(t, server.URL, Options{TokenFunc: func(context.Context) (string, error) {
		asked++
		return fmt.Sprintf("k%d", asked), nil
	}})
	if err := nextError[*StatusError](t, stream); !IsFinal(err) || asked != 2 || len(server.seen()) != 2 {
		t.Fatalf("found %v, asked %d times, %d requests", err, asked, len(server.seen()))
	}
}

func TestTokensThatCannotBeSentAreErrors(t *testing.T) {
	folder := t.TempDir()
	for name, text := range map[string]string{"empty": "\n", "lines": "secret\nline", "large": strings.Repeat("s", MaxTokenBytes+1)} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	server := newScripted(t)
	for name, words := range map[string]string{
		"empty": "it is empty", "lines": "does not allow", "large": "more than", "missing": "no such file",
	} {
		stream := newStream(t, server.URL, Options{TokenFile: filepath.Join(folder, name)})
		err := nextError[*TokenError](t, stream)
		if !strings.Contains(err.Error(), words) || !IsFinal(err) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if requests := server.seen(); len(requests) != 0 {
		t.Errorf("%d requests", len(requests))
	}
}

// addressConn has another address than that of its connection.
type addressConn struct{ net.Conn }

func (addressConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 80} }

func TestACredentialStaysOnLoopback(t *testing.T) {
	client, err := New("http://a.localhost", Options{Token: "t"})
	if err != nil {
		t.Fatal(err)
	}
	if client.transport(newSilence(0), true).Proxy != nil {
		t.Error("a proxy of the environment is used for loopback")
	}
	elsewhere := func(context.Context, string, string) (net.Conn, error) {
		conn, _ := net.Pipe()
		return addressConn{conn}, nil
	}
	if _, err := loopbackOnly(elsewhere, true)(t.Context(), "tcp", "a.localhost:80"); err == nil || !IsFinal(err) {
		t.Errorf("a name that leads to another host: %v", err)
	}
	if _, err := loopbackOnly(elsewhere, false)(t.Context(), "tcp", "a.localhost:80"); err != nil {
		t.Errorf("without a credential: %v", err)
	}
}

func TestTLSUsesTheGivenRootsAndHTTP1(t *testing.T) {
	bothTransports(t, func(t *testing.T, transport Transport) {
		plain := newScripted(t)
		server := httptest.NewUnstartedServer(http.HandlerFunc(plain.serve))
		server.EnableHTTP2 = true
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		server.StartTLS()
		t.Cleanup(func() {
			server.CloseClientConnections()
			server.Close()
		})
		untrusted := nextError[*ConnectError](t, newStream(t, server.URL, Options{Transport: transport}))
		if !strings.Contains(untrusted.Error(), "certificate") {
			t.Fatalf("found %v", untrusted)
		}
		roots := x509.NewCertPool()
		roots.AddCert(server.Certificate())
		stream := newStream(t, server.URL, Options{Transport: transport, TLS: &tls.Config{RootCAs: roots}})
		nextEvent(t, stream)
		if request := plain.seen()[0]; request.ProtoMajor != 1 {
			t.Fatalf("the request has HTTP/%d", request.ProtoMajor)
		}
	})
}

func TestAConnectionWithoutAnEventCountsAfterASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial := func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			go func() {
				defer server.Close()
				if _, err := http.ReadRequest(bufio.NewReader(server)); err != nil {
					return
				}
				_, _ = io.WriteString(server, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
				_, _ = io.Copy(io.Discard, server)
			}()
			return client, nil
		}
		client, err := New("http://bridge.example", Options{Transport: SSE, Dial: dial})
		if err != nil {
			t.Fatal(err)
		}
		stream := client.Stream()
		defer stream.Close()
		for expected, wait := range []time.Duration{settle - time.Millisecond, 2 * time.Millisecond} {
			ctx, cancel := context.WithTimeout(t.Context(), wait)
			_, err := stream.Next(ctx)
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) || stream.Connections() != expected {
				t.Fatalf("found %v, %d connections, expected %d", err, stream.Connections(), expected)
			}
		}
		stream.Close()
		// The goroutines of the server end.
		time.Sleep(time.Minute)
	})
}

// The real durations of silence and backoff, on the clock of a synctest bubble.
func TestTwoHeartbeatsAndTenSecondsOfSilenceEndAConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial := func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			go func() {
				defer server.Close()
				if _, err := http.ReadRequest(bufio.NewReader(server)); err != nil {
					return
				}
				_, _ = io.WriteString(server, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
				for range 3 {
					_, _ = io.WriteString(server, "data: {\"type\":\"heartbeat\",\"id\":\"c\"}\n\n")
					time.Sleep(15 * time.Second)
				}
				_, _ = io.Copy(io.Discard, server)
			}()
			return client, nil
		}
		client, err := New("http://bridge.example", Options{Transport: SSE, Dial: dial})
		if err != nil {
			t.Fatal(err)
		}
		stream := client.Stream()
		defer stream.Close()
		var last time.Time
		for range 3 {
			if _, err := stream.Next(t.Context()); err != nil {
				t.Fatal(err)
			}
			last = time.Now()
		}
		_, err = stream.Next(t.Context())
		silent, ok := err.(*SilentError)
		if !ok || silent.Limit != 40*time.Second || time.Since(last) != 40*time.Second {
			t.Fatalf("after %v: %v", time.Since(last), err)
		}
		start := time.Now()
		if _, err := stream.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
		if delay := time.Since(start); delay < MinDelay/2 || delay > MinDelay {
			t.Fatalf("the first delay is %v", delay)
		}
		stream.Close()
		// The goroutines of the servers end.
		time.Sleep(time.Minute)
	})
}
