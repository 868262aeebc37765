package bridge

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// ErrStreamClosed is returned by [Stream.Next] after [Stream.Close].
var ErrStreamClosed = errors.New("the stream was closed by its owner")

// IsFinal returns whether a stream has ended with this error. After every other error it reconnects or continues. An error
// that is not of this package is final: that of a context, for example.
func IsFinal(err error) bool {
	var own interface{ isFinal() bool }
	if errors.As(err, &own) {
		return own.isFinal()
	}
	return err != nil
}

// IsUnauthorized returns whether the bridge does not accept the credential, or none.
func IsUnauthorized(err error) bool {
	var status *StatusError
	return errors.As(err, &status) && status.Status == http.StatusUnauthorized
}

// SettingError reports a URL, a filter or another setting that cannot be used. It is final.
type SettingError struct {
	// Reason says what is accepted.
	Reason string
}

// Error returns the reason.
func (e *SettingError) Error() string { return e.Reason }
func (*SettingError) isFinal() bool   { return true }

// TokenError reports that there is no token to send. It is final unless a connection has worked before.
type TokenError struct {
	// Path is the file, or empty.
	Path string
	// Err is why it cannot be used.
	Err error
	// Retries is true if the stream tries again, because a connection has worked before.
	Retries bool
}

// Error names the file and the cause, never the token.
func (e *TokenError) Error() string {
	if e.Path == "" {
		return fmt.Sprintf("cannot get the token: %v", e.Err)
	}
	return fmt.Sprintf("cannot read the token from %s: %v", e.Path, e.Err)
}

// Unwrap returns the cause.
func (e *TokenError) Unwrap() error { return e.Err }
func (e *TokenError) isFinal() bool { return !e.Retries }

// ConnectError reports that there is no connection. The stream tries again.
type ConnectError struct {
	// Address is host and port.
	Address string
	// Err is the error of the network, of TLS or of HTTP.
	Err error
}

// Error names the address and the cause.
func (e *ConnectError) Error() string {
	return fmt.Sprintf("cannot connect to %s: %v", e.Address, e.Err)
}

// Unwrap returns the cause.
func (e *ConnectError) Unwrap() error { return e.Err }
func (*ConnectError) isFinal() bool   { return false }

// StatusError reports an error status of the bridge, or of a proxy before it. A 4xx other than 408, 425 and 429 is final.
type StatusError struct {
	// Status is the HTTP status.
	Status int
	// Code is the code of the bridge's error body, for example UNAUTHORIZED. It is empty for another body.
	Code string
	// Message is the message of the bridge, or the first line of another body.
	Message string
	// Parameter is the query parameter that the bridge rejects, or empty.
	Parameter string
	// RetryAfter is the delay that the server asks for, or 0.
	RetryAfter time.Duration
	// Retries is true for a 404 after a connection has worked: a proxy answers in place of the bridge for a while.
	Retries bool
}

// Error returns status and message.
func (e *StatusError) Error() string { return fmt.Sprintf("HTTP %d: %s", e.Status, e.Message) }
func (e *StatusError) isFinal() bool {
	switch e.Status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	}
	return e.Status >= 400 && e.Status < 500 && !e.Retries
}

// CursorRejectedError reports that the server does not accept the cursor. The stream starts again without one, so events may
// be missing.
type CursorRejectedError struct {
	// Message is the message of the server.
	Message string
}

// Error names the message.
func (e *CursorRejectedError) Error() string {
	return fmt.Sprintf("the server does not accept the cursor (%s); the stream starts again without one", e.Message)
}
func (*CursorRejectedError) isFinal() bool { return false }

// RedirectError reports a redirect. It is not followed, because it could lead a credential to another host. It is final
// unless a connection has worked before.
type RedirectError struct {
	// Status is the HTTP status.
	Status int
	// Target is the target without its query.
	Target string
	// Retries is true if the stream tries again, because a connection has worked before.
	Retries bool
}

// Error names the target.
func (e *RedirectError) Error() string {
	return fmt.Sprintf("the server redirects to %s: use that URL; redirects are not followed", e.Target)
}
func (e *RedirectError) isFinal() bool { return !e.Retries }

// NotStreamError reports a response that is no event stream and no WebSocket: a sign-in page, for example. It is final
// unless a connection has worked before.
type NotStreamError struct {
	// Status is the HTTP status.
	Status int
	// Expected is what the client asked for.
	Expected string
	// Found is the status and the content type of the response.
	Found string
	// FirstLine is the first line of the body.
	FirstLine string
	// Retries is true if the stream tries again, because a connection has worked before.
	Retries bool
}

// Error names what was found, and the first line of the body.
func (e *NotStreamError) Error() string {
	return fmt.Sprintf("the response is %s, not %s: %q", e.Found, e.Expected, e.FirstLine)
}
func (e *NotStreamError) isFinal() bool { return !e.Retries }

// MalformedError reports one event that cannot be used. The stream continues with the next one, on the same connection.
type MalformedError struct {
	// Number is the number of the event on its connection, from 1.
	Number int
	// Reason is why.
	Reason string
	// Text is the start of the data.
	Text string
}

// Error names the event and the reason.
func (e *MalformedError) Error() string {
	return fmt.Sprintf("event %d of this connection is malformed (%s): %q", e.Number, e.Reason, e.Text)
}
func (*MalformedError) isFinal() bool { return false }

// TooLargeError reports an event of more than [MaxEventBytes]. The stream reconnects.
type TooLargeError struct {
	// Limit is the maximum, in bytes.
	Limit int
}

// Error names the limit.
func (e *TooLargeError) Error() string {
	return fmt.Sprintf("an event is larger than %d bytes", e.Limit)
}
func (*TooLargeError) isFinal() bool { return false }

// ClosedError reports that the bridge has ended the stream in an orderly way. The stream reconnects.
type ClosedError struct {
	// Reason is that of stream.closing or of the close frame.
	Reason string
	// Detail is what stream.closing adds to the reason, or empty.
	Detail string
	// Code is the close code of a WebSocket, or 0.
	Code int
	// RetryAfter is the delay that the bridge asks for, or 0.
	RetryAfter time.Duration
}

// Error names the reason.
func (e *ClosedError) Error() string {
	if e.Detail == "" {
		return "the bridge closed the stream: " + e.Reason
	}
	return fmt.Sprintf("the bridge closed the stream: %s (%s)", e.Reason, e.Detail)
}
func (*ClosedError) isFinal() bool { return false }

// LostError reports that the connection was cut. The stream reconnects.
type LostError struct {
	// Err is the error of the connection.
	Err error
}

// Error names the cause.
func (e *LostError) Error() string { return fmt.Sprintf("the connection was lost: %v", e.Err) }

// Unwrap returns the cause.
func (e *LostError) Unwrap() error { return e.Err }
func (*LostError) isFinal() bool   { return false }

// SilentError reports that nothing has arrived for too long, although heartbeats must. The stream reconnects.
type SilentError struct {
	// Limit is the silence that was exceeded.
	Limit time.Duration
}

// Error names the limit.
func (e *SilentError) Error() string { return fmt.Sprintf("no byte for %v", e.Limit) }
func (*SilentError) isFinal() bool   { return false }
