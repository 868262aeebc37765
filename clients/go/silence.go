package bridge

import (
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"
)

const (
	// initialSilence holds until the interval of the heartbeats is known: twice the longest interval of a bridge (60 s),
	// and the margin.
	initialSilence = 130 * time.Second
	silenceMargin  = 10 * time.Second
	// minHeartbeat is below the shortest interval of a bridge (5 s). After a resume two heartbeats can follow each other at
	// once; they say nothing about the interval.
	minHeartbeat = 4 * time.Second
)

// silence is how long one connection may be without a byte: two heartbeats and a margin.
type silence struct {
	fixed time.Duration
	// lastHeartbeat and interval belong to the goroutine that reads events.
	lastHeartbeat time.Time
	interval      time.Duration
	// current is read by the goroutines of the HTTP transport.
	current atomic.Int64
	expired atomic.Bool
}

// newSilence returns a limit that is fixed, or learned from the heartbeats if fixed is 0.
func newSilence(fixed time.Duration) *silence {
	s := &silence{fixed: fixed}
	s.current.Store(int64(initialSilence))
	if fixed > 0 {
		s.current.Store(int64(fixed))
	}
	return s
}

// onHeartbeat records a heartbeat. The longest interval between two of them counts.
func (s *silence) onHeartbeat(now time.Time) {
	last := s.lastHeartbeat
	s.lastHeartbeat = now
	if last.IsZero() || s.fixed > 0 {
		return
	}
	s.interval = max(s.interval, now.Sub(last))
	if s.interval >= minHeartbeat {
		s.current.Store(int64(min(2*s.interval+silenceMargin, initialSilence)))
	}
}

func (s *silence) limit() time.Duration { return time.Duration(s.current.Load()) }

// watchedConn ends a read that is silent for too long.
type watchedConn struct {
	net.Conn
	silence *silence
}

func (c *watchedConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.silence.limit())); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.silence.expired.Store(true)
	}
	return n, err
}
