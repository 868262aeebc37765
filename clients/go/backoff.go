package bridge

import "time"

// backoff computes the delays before reconnects: from 1 s on, doubling to 30 s. Each is drawn from its upper half, so that
// clients spread.
type backoff struct {
	failures int
	// min and max replace the constants in tests.
	min, max time.Duration
}

// next returns the next delay. random is between 0 and 1. A longer delay that the server asks for wins, up to the maximum.
func (b *backoff) next(asked time.Duration, random float64) time.Duration {
	own := b.max
	// A larger shift exceeds the maximum in any case.
	if b.failures < 8 {
		own = min(b.min<<b.failures, b.max)
	}
	b.failures++
	own = time.Duration(float64(own) * (0.5 + random/2))
	return max(own, min(asked, b.max))
}

// reset starts again at the minimum, because a connection has delivered an event.
func (b *backoff) reset() { b.failures = 0 }
