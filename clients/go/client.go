package bridge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
)

// Snapshot is how a stream starts.
type Snapshot int

const (
	// SnapshotDefault is the default of the endpoint.
	SnapshotDefault Snapshot = iota
	// SnapshotState starts with the current state.
	SnapshotState
	// SnapshotNone starts with the first change.
	SnapshotNone
)

// Options are the settings of a client. The zero value reads everything over WebSocket without a credential.
type Options struct {
	// Transport is WebSocket or SSE. The default is WebSocket, unless the URL names an SSE stream of the bridge.
	Transport Transport

	// Token is an API key or a Kubernetes token, which is sent as Authorization: Bearer.
	Token string
	// TokenFile is a file with the token. It is read before each connection, and once more after a 401.
	TokenFile string
	// TokenFunc returns the token. It is called before each connection, and once more after a 401. Its context ends with
	// the one of [Stream.Next].
	TokenFunc func(ctx context.Context) (string, error)
	// AllowInsecure sends the credential over plain HTTP to any host. The default allows loopback only.
	AllowInsecure bool
	// TLS replaces the TLS settings: for another CA, for example.
	TLS *tls.Config
	// Dial replaces the TCP dialer and the proxy of the environment: for a tunnel, for example. TLS follows if the URL is
	// one of https. The function is responsible for the secrecy of plain HTTP, so that a credential is sent too.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Instances and Claims select objects. The bridge filters.
	Instances InstanceFilter
	Claims    ClaimFilter
	// Types selects exact event types or families: instance, claim, tenant, pool, telemetry, mqtt. The bridge filters. Control
	// events always come.
	Types []string
	// Snapshot is whether the stream starts with the current state.
	Snapshot Snapshot
	// Since is the cursor to resume after: that of an earlier [Stream.Cursor], or the Event-Cursor of a GET.
	Since string

	// ConnectTimeout replaces [DefaultConnectTimeout].
	ConnectTimeout time.Duration
	// Silence is how long a connection may be without a byte. The default follows from the heartbeats: two intervals and
	// 10 s.
	Silence time.Duration
	// UserAgent is the header User-Agent.
	UserAgent string
}

// Client has the settings of a stream. It connects when events are read. Several goroutines can use it.
type Client struct {
	endpoint   endpoint
	options    Options
	parameters url.Values
	// backoff is copied into each stream.
	backoff backoff
}

// New returns a client of a bridge (http://localhost:3000, https://host/prefix/) or of one stream
// (https://host/events/stream). It returns a [*SettingError] for a setting that cannot be used.
func New(rawURL string, options Options) (*Client, error) {
	endpoint, err := parseEndpoint(rawURL, options.Transport)
	if err != nil {
		return nil, err
	}
	if err := options.check(); err != nil {
		return nil, err
	}
	hasCredential := options.hasToken() || endpoint.hasTicket()
	if hasCredential && !options.AllowInsecure && options.Dial == nil {
		if err := endpoint.checkCredential(); err != nil {
			return nil, err
		}
	}
	if options.ConnectTimeout <= 0 {
		options.ConnectTimeout = DefaultConnectTimeout
	}
	if options.UserAgent == "" {
		options.UserAgent = "boilerhouse-bridge-go"
	}
	parameters := url.Values{}
	if len(options.Types) > 0 {
		parameters.Set("types", strings.Join(options.Types, ","))
	}
	if filter := params(options.Instances, options.Claims); filter != "" {
		parameters.Set("params", filter)
	}
	switch options.Snapshot {
	case SnapshotState:
		parameters.Set("snapshot", "state")
	case SnapshotNone:
		parameters.Set("snapshot", "none")
	}
	return &Client{endpoint, options, parameters, backoff{min: MinDelay, max: MaxDelay}}, nil
}

// URL returns the URL of the stream, without its query.
func (c *Client) URL() string { return c.endpoint.withoutQuery() }

// Stream returns a stream of events. The first [Stream.Next] connects. The caller must call [Stream.Close].
func (c *Client) Stream() *Stream {
	return &Stream{client: c, backoff: c.backoff, dedupe: dedupe{cursor: c.options.Since}}
}

// Events returns the events of a new stream. A pair has an event or an error. The sequence ends after a final error
// ([IsFinal]), with the context, whose error comes last, and with the loop, which then leaves no goroutine behind.
func (c *Client) Events(ctx context.Context) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		stream := c.Stream()
		defer stream.Close()
		stream.Events(ctx)(yield)
	}
}

func (o *Options) hasToken() bool { return o.Token != "" || o.TokenFile != "" || o.TokenFunc != nil }

func (o *Options) check() error {
	tokens := []bool{o.Token != "", o.TokenFile != "", o.TokenFunc != nil}
	if len(slices.DeleteFunc(tokens, func(isSet bool) bool { return !isSet })) > 1 {
		return &SettingError{"Token, TokenFile and TokenFunc exclude each other"}
	}
	if !isHeaderValue(o.Token) {
		return &SettingError{"Token has characters that HTTP does not allow"}
	}
	if !isHeaderValue(o.UserAgent) {
		return &SettingError{"UserAgent has characters that HTTP does not allow"}
	}
	if err := checkCursor(o.Since); err != nil {
		return &SettingError{"Since is no cursor: " + err.Error()}
	}
	return nil
}

// token returns the token for a connection, or an empty text if the client has no credential.
func (c *Client) token(ctx context.Context) (string, error) {
	options := &c.options
	var token string
	var err error
	switch {
	case options.TokenFile != "":
		token, err = readToken(options.TokenFile)
	case options.TokenFunc != nil:
		token, err = options.TokenFunc(ctx)
	default:
		return options.Token, nil
	}
	if err == nil && token == "" {
		err = errors.New("it is empty")
	}
	if err == nil && !isHeaderValue(token) {
		err = errors.New("it has characters that HTTP does not allow")
	}
	if err != nil {
		return "", &TokenError{Path: options.TokenFile, Err: err}
	}
	return token, nil
}

// readToken returns the content of a file without surrounding white space.
func readToken(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		// The error of the package names the path too.
		var cause *os.PathError
		if errors.As(err, &cause) {
			return "", cause.Err
		}
		return "", err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, MaxTokenBytes+1))
	if err != nil {
		return "", err
	}
	if len(text) > MaxTokenBytes {
		return "", fmt.Errorf("it has more than %d bytes", MaxTokenBytes)
	}
	return strings.TrimSpace(string(text)), nil
}
