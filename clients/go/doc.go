// Package bridge reads the event stream of boilerhouse-bridge over WebSocket or SSE. It reconnects and resumes by itself.
//
// It is written against docs/protocol.md of boilerhouse-bridge, and reads the streams of other releases too.
//
//	client, err := bridge.New("http://127.0.0.1:3000", bridge.Options{})
//	if err != nil {
//		return err
//	}
//	for event, err := range client.Events(ctx) {
//		switch {
//		case err != nil && bridge.IsFinal(err):
//			return err
//		case err != nil:
//			log.Print(err) // The stream reconnects or continues.
//		default:
//			state.Apply(event)
//		}
//	}
//
// # Guarantees
//
//   - A new connection continues after the last id, so that no event is lost or delivered twice, except upstream.down,
//     which each stream repeats during an outage. Events whose id has not come
//     are held back until then. Where the bridge cannot resume, it sends state.initial with a reason.
//   - A connection without a byte for two heartbeats and 10 s counts as dead.
//   - A credential is not sent over plain HTTP to a host that is not loopback, unless [Options.AllowInsecure] is set.
//     Redirects are not followed.
//   - An unknown type, key or value is no error. A malformed event is reported and skipped.
//   - Every buffer has a bound: see the constants.
//   - No goroutine outlives [Client.Events] or [Stream.Close].
package bridge

import "time"

// Bounds and times.
const (
	// MaxEventBytes is the maximum size of one event. A bridge sends less than 32 KiB, unless one object alone is larger.
	// Kubernetes bounds an object at 1.5 MiB.
	MaxEventBytes = 4 << 20
	// MaxErrorBytes is how much of an error response is read.
	MaxErrorBytes = 64 << 10
	// MaxTokenBytes is the maximum size of a file with a token.
	MaxTokenBytes = 64 << 10
	// MaxCursorBytes is the maximum length of a cursor. The protocol requires 255.
	MaxCursorBytes = 4 << 10
	// MaxHeldBytes bounds the events that are held back until their id has come. A difference of a large namespace has fewer
	// bytes. Beyond them, events are returned although their id has not come.
	MaxHeldBytes = 64 << 20
	// MinDelay is the delay before the first reconnect. Each delay is drawn from its upper half.
	MinDelay = time.Second
	// MaxDelay is the longest delay before a reconnect.
	MaxDelay = 30 * time.Second
	// DefaultConnectTimeout bounds one connection, from the lookup of the name to the head of the response. A bridge waits
	// for its first lists for at most 10 s, then it answers.
	DefaultConnectTimeout = 15 * time.Second
	// MaxLineChars is how many characters of a response or of a malformed event an error repeats.
	MaxLineChars = 200
)
