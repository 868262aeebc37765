package bridge

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// Transport is how events are transported.
type Transport int

const (
	// Auto uses SSE if the URL names an SSE stream of the bridge, and WebSocket otherwise.
	Auto Transport = iota
	// WebSocket uses WebSocket text messages.
	WebSocket
	// SSE uses server-sent events.
	SSE
)

// String returns the name of the transport.
func (t Transport) String() string {
	switch t {
	case WebSocket:
		return "WebSocket"
	case SSE:
		return "SSE"
	}
	return "Auto"
}

// ssePaths are the ends of the paths that are SSE streams of a bridge.
var ssePaths = []string{"/api/sse", "/api/events/stream", "/events/stream", "/events"}

// endpoint is a stream to connect to.
type endpoint struct {
	url       *url.URL
	transport Transport
}

// parseEndpoint parses the URL of a bridge or of a stream. A path that is empty or ends with a slash is a bridge. Another
// path is the stream itself. No scheme means http.
func parseEndpoint(text string, transport Transport) (endpoint, error) {
	invalid := func(reason string) (endpoint, error) {
		return endpoint{}, &SettingError{withoutCredential(text) + ": " + reason}
	}
	full := text
	if !strings.Contains(text, "://") {
		full = "http://" + text
	}
	parsed, err := url.Parse(full)
	if err != nil || strings.ContainsAny(full, " \t\r\n") {
		return invalid("not a URL; accepted: http://HOST:PORT, https://HOST")
	}
	isWebSocket := parsed.Scheme == "ws" || parsed.Scheme == "wss"
	switch parsed.Scheme {
	case "http", "https":
	case "ws":
		parsed.Scheme = "http"
	case "wss":
		parsed.Scheme = "https"
	default:
		return invalid("accepted schemes: http, https, ws, wss")
	}
	switch {
	case parsed.User != nil:
		return invalid("a URL must not contain a credential; use Options.Token or Options.TokenFile")
	case parsed.Hostname() == "":
		return invalid("the host is missing")
	case isWebSocket && transport == SSE:
		return invalid("ws and wss are WebSocket; use http or https for SSE")
	case transport < Auto || transport > SSE:
		return invalid("unknown transport; accepted: Auto, WebSocket, SSE")
	}
	if transport == Auto {
		transport = WebSocket
		isSSE := func(end string) bool { return strings.HasSuffix(parsed.Path, end) }
		if !isWebSocket && slices.ContainsFunc(ssePaths, isSSE) {
			transport = SSE
		}
	}
	parsed.Fragment, parsed.RawFragment = "", ""
	if parsed.Path == "" || strings.HasSuffix(parsed.Path, "/") {
		stream := "api/websocket"
		if transport == SSE {
			stream = "api/sse"
		}
		parsed = parsed.JoinPath(stream)
	}
	return endpoint{parsed, transport}, nil
}

// checkCredential returns an error for plain HTTP to a host that is not loopback.
func (e endpoint) checkCredential() error {
	if e.url.Scheme == "https" || e.isLoopback() {
		return nil
	}
	return &SettingError{fmt.Sprintf(
		"a credential is not sent over plain HTTP to %s: use https, or allow it with Options.AllowInsecure", e.url.Host)}
}

// isLoopback returns whether the name or address is that of this machine.
func (e endpoint) isLoopback() bool {
	name := strings.ToLower(e.url.Hostname())
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return true
	}
	address, err := netip.ParseAddr(name)
	return err == nil && address.Unmap().IsLoopback()
}

// hasTicket returns whether the query has a stream ticket, which is a credential.
func (e endpoint) hasTicket() bool {
	query := e.url.Query()
	return query.Has("token") || query.Has("rstream.token")
}

// address returns host and port.
func (e endpoint) address() string {
	port := e.url.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[e.url.Scheme]
	}
	return net.JoinHostPort(e.url.Hostname(), port)
}

// target returns the URL with these parameters in addition.
func (e endpoint) target(parameters url.Values) string {
	target := *e.url
	if len(parameters) > 0 {
		target.RawQuery = strings.TrimPrefix(target.RawQuery+"&"+parameters.Encode(), "&")
	}
	return target.String()
}

// withoutQuery returns the URL without what may be a secret.
func (e endpoint) withoutQuery() string {
	shown := *e.url
	shown.RawQuery = ""
	return shown.String()
}

// withoutCredential returns a text that should be a URL, without user information and query.
func withoutCredential(text string) string {
	text, _, _ = strings.Cut(text, "?")
	text, _, _ = strings.Cut(text, "#")
	at := strings.LastIndex(text, "@")
	if at < 0 {
		return text
	}
	scheme, _, found := strings.Cut(text[:at], "://")
	if !found {
		return "..." + text[at:]
	}
	return scheme + "://..." + text[at:]
}
