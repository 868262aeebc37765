package bridge

import (
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"net/http"
	"time"
)

// Stream is a stream of events across connections. One goroutine at a time can use it.
type Stream struct {
	client  *Client
	conn    *connection
	backoff backoff
	dedupe  dedupe
	// retryAt is when the next connection is tried.
	retryAt time.Time
	// end is the final error.
	end error
	// wasUnauthorized: a 401 was answered with another token. A connection that works clears it.
	wasUnauthorized bool
	// replacement is the token that was read after a 401, for the next connection.
	replacement string
	// connections is the number of connections that have worked, and opened that of all.
	connections, opened int
	// settlesAt is when the open connection counts although no event has come. It is zero if the connection counts.
	settlesAt time.Time
}

// settle is the time after which a connection without an event counts. A bridge ends a stream that only refuses a request
// within this time.
const settle = time.Second

// Next returns the next event, or an error. After a final error ([IsFinal]) it returns the same error again. After any
// other error the stream continues, with a new connection where it is needed.
//
// When ctx ends, Next returns its error, and the stream stays as it is: an open connection stays open, and a later Next
// loses nothing. Only a connection that is being established starts again.
func (s *Stream) Next(ctx context.Context) (Event, error) {
	for {
		if s.end != nil {
			return Event{}, s.end
		}
		if err := ctx.Err(); err != nil {
			return Event{}, err
		}
		if event, ok := s.dedupe.next(); ok {
			return event, nil
		}
		if s.conn == nil {
			if err := s.connect(ctx); err != nil {
				return Event{}, err
			}
			continue
		}
		item, err := s.read(ctx)
		if err != nil {
			return Event{}, err
		}
		if err := s.onError(item); err != nil {
			return Event{}, err
		}
		// A bridge refuses some requests of SSE with a stream that has only this event.
		if _, isClosing := item.event.Payload.(*StreamClosing); !isClosing {
			s.backoff.reset()
			s.count()
		}
		s.dedupe.accept(item.event)
	}
}

// read returns the next item of the open connection. Meanwhile the connection can begin to count.
func (s *Stream) read(ctx context.Context) (item, error) {
	var settled <-chan time.Time
	if !s.settlesAt.IsZero() {
		timer := time.NewTimer(time.Until(s.settlesAt))
		defer timer.Stop()
		settled = timer.C
	}
	for {
		select {
		case <-ctx.Done():
			return item{}, ctx.Err()
		case item := <-s.conn.items:
			return item, nil
		case <-settled:
			s.count()
		}
	}
}

// count records that the connection works.
func (s *Stream) count() {
	if !s.settlesAt.IsZero() {
		s.connections++
		s.wasUnauthorized, s.settlesAt = false, time.Time{}
	}
}

// Events returns the events from now on. A pair has an event or an error. The sequence ends after a final error
// ([IsFinal]) and with the context, whose error comes last. It does not close the stream.
func (s *Stream) Events(ctx context.Context) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for {
			event, err := s.Next(ctx)
			if !yield(event, err) || IsFinal(err) {
				return
			}
		}
	}
}

// Cursor returns the cursor up to which events were read, for [Options.Since]. It is empty before the first id.
func (s *Stream) Cursor() string { return s.dedupe.cursor }

// Connections returns the number of connections that have worked so far: they have sent an event other than stream.closing,
// or have stayed open for 1 s while Next was waiting.
func (s *Stream) Connections() int { return s.connections }

// RetryAt returns when the next connection is tried. It is zero while a connection is open, before the first one and after
// the end.
func (s *Stream) RetryAt() time.Time {
	if s.conn != nil || s.end != nil {
		return time.Time{}
	}
	return s.retryAt
}

// Close ends the stream. It waits until the connection and its goroutine have ended.
func (s *Stream) Close() {
	s.disconnect()
	if s.end == nil {
		s.end = ErrStreamClosed
	}
}

func (s *Stream) disconnect() {
	if s.conn != nil {
		s.conn.close()
		s.conn = nil
		s.dedupe.forget()
	}
}

// connect waits until the next try is due, and tries once. It returns nil if the caller must look again.
func (s *Stream) connect(ctx context.Context) error {
	if err := sleepUntil(ctx, s.retryAt); err != nil {
		return err
	}
	token, err := s.replacement, error(nil)
	s.replacement = ""
	if token == "" {
		token, err = s.client.token(ctx)
	}
	if err == nil {
		s.conn, err = s.client.open(ctx, s.dedupe.cursor, token, s.opened+1)
	}
	switch {
	case err == nil:
		s.opened++
		s.retryAt, s.settlesAt = time.Time{}, time.Now().Add(settle)
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return s.onRejection(ctx, err, token)
}

// onRejection handles a connection that was not established. It returns nil if the next one is tried at once.
func (s *Stream) onRejection(ctx context.Context, err error, token string) error {
	var status *StatusError
	if errors.As(err, &status) && status.Parameter == "lastEventId" && s.dedupe.cursor != "" {
		// The release does not accept the encoding of the cursor (docs/protocol.md#what-clients-must-do).
		s.dedupe = dedupe{}
		return &CursorRejectedError{status.Message}
	}
	if IsUnauthorized(err) && !s.wasUnauthorized {
		// The token can have been replaced since it was read. Another try with the same one does not help.
		again, tokenErr := s.client.token(ctx)
		if tokenErr == nil && again != token {
			s.wasUnauthorized, s.replacement = true, again
			return nil
		}
	}
	if s.connections > 0 {
		err = retrying(err)
	}
	if IsFinal(err) {
		s.end = err
	} else {
		s.reconnectAfter(err)
	}
	return err
}

// retrying marks an error that is not final after a connection has worked: the settings are right, and a proxy or a file is
// in the way for a while.
func retrying(err error) error {
	switch err := err.(type) {
	case *TokenError:
		err.Retries = true
	case *RedirectError:
		err.Retries = true
	case *NotStreamError:
		err.Retries = true
	case *StatusError:
		err.Retries = err.Status == http.StatusNotFound
	}
	return err
}

// onError handles the error of an open connection.
func (s *Stream) onError(item item) error {
	var malformed *MalformedError
	if item.err == nil {
		return nil
	}
	if errors.As(item.err, &malformed) {
		s.count()
		return item.err
	}
	s.dedupe.connectionEnded(item.lastID, item.hasLastID)
	s.disconnect()
	s.reconnectAfter(item.err)
	return item.err
}

func (s *Stream) reconnectAfter(err error) {
	var asked time.Duration
	switch err := err.(type) {
	case *StatusError:
		asked = err.RetryAfter
	case *ClosedError:
		asked = err.RetryAfter
	}
	s.retryAt = time.Now().Add(s.backoff.next(asked, rand.Float64()))
}

// sleepUntil waits until a time, or returns the error of the context.
func sleepUntil(ctx context.Context, at time.Time) error {
	delay := time.Until(at)
	if delay <= 0 {
		return nil
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
