package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"time"
)

// connection is one open stream. A goroutine reads it: it parses one event ahead, and ends with the connection.
type connection struct {
	number int
	items  chan item
	cancel context.CancelFunc
	done   chan struct{}
}

// item is an event, or an error. After an error other than [MalformedError] the connection has ended.
type item struct {
	event Event
	err   error
	// lastID is the last id of an SSE stream, with the error that ends it. hasLastID: there was one.
	lastID    string
	hasLastID bool
}

// source is where blocks come from.
type source interface {
	// next returns the next block.
	next() (block, error)
	// lastID returns the last id that the transport itself has, if there was one.
	lastID() (string, bool)
	close()
}

// open connects. The connection outlives ctx, which bounds only the connecting.
func (c *Client) open(ctx context.Context, cursor, token string, number int) (*connection, error) {
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	timer := time.AfterFunc(c.options.ConnectTimeout, cancel)
	silence := newSilence(c.options.Silence)
	source, err := c.dial(life, cursor, token, silence)
	hasTime, isWanted := timer.Stop(), stop()
	if err == nil && hasTime && isWanted {
		connection := &connection{number: number, items: make(chan item), cancel: cancel, done: make(chan struct{})}
		go connection.run(life, source, silence)
		return connection, nil
	}
	cancel()
	if err == nil {
		source.close()
	}
	var unanswered *ConnectError
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case !hasTime && (err == nil || errors.As(err, &unanswered)):
		return nil, c.connectError(fmt.Errorf("no answer within %v", c.options.ConnectTimeout))
	}
	return nil, err
}

func (c *Client) connectError(err error) error {
	return &ConnectError{Address: c.endpoint.address(), Err: err}
}

// dial sends the request and returns the stream of the response.
func (c *Client) dial(ctx context.Context, cursor, token string, silence *silence) (source, error) {
	header := http.Header{"User-Agent": {c.options.UserAgent}}
	if token != "" {
		header.Set("Authorization", "Bearer "+token)
	}
	client := &http.Client{
		Transport:     c.transport(silence, token != ""),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	var source source
	var err error
	if c.endpoint.transport == SSE {
		if cursor != "" {
			header.Set("Last-Event-ID", cursor)
		}
		source, err = openSSE(ctx, client, c.endpoint.target(c.parameters), header)
	} else {
		parameters := maps.Clone(c.parameters)
		if cursor != "" {
			parameters.Set("lastEventId", cursor)
		}
		source, err = openWebSocket(ctx, client, c.endpoint.target(parameters), header)
	}
	if err == nil {
		return source, nil
	}
	client.CloseIdleConnections()
	var setting *SettingError
	if errors.As(err, &setting) {
		return nil, setting
	}
	var request *url.Error
	if errors.As(err, &request) {
		// Its text repeats the URL, whose query can have a ticket.
		return nil, c.connectError(request.Err)
	}
	return nil, err
}

// transport returns an HTTP transport for one connection.
func (c *Client) transport(silence *silence, hasToken bool) *http.Transport {
	protocols := new(http.Protocols)
	// HTTP/2 has no upgrade, and a stream uses its connection alone in any case.
	protocols.SetHTTP1(true)
	transport := &http.Transport{
		Protocols:          protocols,
		DisableKeepAlives:  true,
		DisableCompression: true,
		TLSClientConfig:    c.options.TLS.Clone(),
	}
	dial := c.options.Dial
	if dial == nil {
		dial = (&net.Dialer{KeepAlive: 15 * time.Second}).DialContext
		if c.endpoint.isLoopback() {
			// A proxy is another host: it would receive the credential. The names of loopback must not lead there either.
			mustStay := (hasToken || c.endpoint.hasTicket()) && c.endpoint.url.Scheme == "http" && !c.options.AllowInsecure
			dial = loopbackOnly(dial, mustStay)
		} else {
			transport.Proxy = http.ProxyFromEnvironment
		}
	}
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &watchedConn{conn, silence}, nil
	}
	return transport
}

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// loopbackOnly returns a dialer that refuses a name that does not lead to loopback, if it must stay there.
func loopbackOnly(dial dialFunc, mustStay bool) dialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil || !mustStay {
			return conn, err
		}
		if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
			_ = conn.Close()
			return nil, &SettingError{fmt.Sprintf("%s leads to %s, which is not loopback: a credential is not sent there over "+
				"plain HTTP", address, tcp.IP)}
		}
		return conn, nil
	}
}

// run reads until the connection ends.
func (c *connection) run(life context.Context, source source, silence *silence) {
	defer close(c.done)
	defer source.close()
	send := func(item item) bool {
		select {
		case c.items <- item:
			return true
		case <-life.Done():
			return false
		}
	}
	var closing *StreamClosing
	for number := 1; ; number++ {
		block, err := source.next()
		if err != nil {
			lastID, hasLastID := source.lastID()
			send(item{err: endError(err, closing, silence), lastID: lastID, hasLastID: hasLastID})
			return
		}
		event, err := parseEvent(block)
		if err != nil {
			// A character has at most 4 bytes.
			start := block.data[:min(len(block.data), 4*MaxLineChars)]
			err = &MalformedError{Number: number, Reason: err.Error(), Text: startOf(valid(start))}
			event = Event{}
		}
		switch payload := event.Payload.(type) {
		case *Heartbeat:
			silence.onHeartbeat(time.Now())
		case *StreamClosing:
			closing = payload
		}
		event.Connection = c.number
		if !send(item{event: event, err: err}) {
			return
		}
	}
}

// close ends the connection and waits for its goroutine.
func (c *connection) close() {
	c.cancel()
	<-c.done
}

// endError returns the error for the end of a connection. What stream.closing said is the reason.
func endError(err error, closing *StreamClosing, silence *silence) error {
	if silence.expired.Load() {
		return &SilentError{Limit: silence.limit()}
	}
	var closed *ClosedError
	var lost *LostError
	isEnd := errors.As(err, &closed) || errors.As(err, &lost)
	if closing == nil || !isEnd {
		return err
	}
	end := &ClosedError{Reason: closing.Reason, Detail: closing.Detail, RetryAfter: milliseconds(closing.RetryAfterMS)}
	if closed != nil {
		end.Code = closed.Code
	}
	return end
}

// milliseconds returns a duration of at most MaxDelay, which bounds every delay.
func milliseconds(count uint64) time.Duration {
	return time.Duration(min(count, uint64(MaxDelay/time.Millisecond))) * time.Millisecond
}
