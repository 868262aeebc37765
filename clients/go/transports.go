package bridge

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	"net/http"

	"github.com/coder/websocket"
)

// readBytes is the size of the buffer of an SSE connection.
const readBytes = 32 << 10

// sseSource reads the body of a response.
type sseSource struct {
	client *http.Client
	body   io.ReadCloser
	parser parser
	blocks []block
	buffer []byte
}

func openSSE(ctx context.Context, client *http.Client, target string, header http.Header) (source, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, &SettingError{"the URL cannot be used"}
	}
	request.Header = header
	request.Header.Set("Accept", "text/event-stream")
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	kind, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if response.StatusCode == http.StatusOK && kind == "text/event-stream" {
		return &sseSource{client: client, body: response.Body, buffer: make([]byte, readBytes)}, nil
	}
	defer response.Body.Close()
	return nil, responseError(response, readStart(response.Body), "an event stream")
}

func (s *sseSource) next() (block, error) {
	for len(s.blocks) == 0 {
		if s.parser.heldBytes() > MaxEventBytes {
			return block{}, &TooLargeError{MaxEventBytes}
		}
		n, err := s.body.Read(s.buffer)
		s.parser.push(s.buffer[:n], func(b block) { s.blocks = append(s.blocks, b) })
		switch {
		case len(s.blocks) > 0 || err == nil:
		case errors.Is(err, io.EOF):
			return block{}, &ClosedError{Reason: "end of the response", RetryAfter: s.parser.retry}
		default:
			return block{}, &LostError{err}
		}
	}
	first := s.blocks[0]
	// The array of the slice must not keep the data.
	s.blocks[0] = block{}
	s.blocks = s.blocks[1:]
	return first, nil
}

func (s *sseSource) lastID() (string, bool) { return s.parser.lastID, s.parser.hasLastID }

func (s *sseSource) close() {
	_ = s.body.Close()
	s.client.CloseIdleConnections()
}

// webSocketSource reads text messages.
type webSocketSource struct {
	ctx    context.Context
	client *http.Client
	conn   *websocket.Conn
}

// answer remembers the response to an upgrade: the WebSocket package returns only the start of its body.
type answer struct {
	http.RoundTripper
	response *http.Response
	body     []byte
}

func (a *answer) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := a.RoundTripper.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	if upgraded, ok := response.Body.(io.ReadWriteCloser); ok && response.StatusCode == http.StatusSwitchingProtocols {
		response.Body = upgradedConn{upgraded}
		a.response = response
		return response, nil
	}
	a.body = readStart(response.Body)
	_ = response.Body.Close()
	response.Body = io.NopCloser(bytes.NewReader(a.body))
	a.response = response
	return response, nil
}

// upgradedConn reports the end of a connection as an error. The WebSocket package takes io.EOF inside a message for the end
// of the message, and would return a message that was cut. An orderly end has a close frame, after which nothing is read.
type upgradedConn struct{ io.ReadWriteCloser }

func (c upgradedConn) Read(p []byte) (int, error) {
	n, err := c.ReadWriteCloser.Read(p)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func openWebSocket(ctx context.Context, client *http.Client, target string, header http.Header) (source, error) {
	upgrade := &answer{RoundTripper: client.Transport}
	dialer := &http.Client{Transport: upgrade, CheckRedirect: client.CheckRedirect}
	conn, _, err := websocket.Dial(ctx, target, &websocket.DialOptions{HTTPClient: dialer, HTTPHeader: header})
	if err != nil {
		if upgrade.response != nil {
			return nil, responseError(upgrade.response, upgrade.body, "a WebSocket")
		}
		return nil, err
	}
	conn.SetReadLimit(MaxEventBytes)
	return &webSocketSource{ctx, client, conn}, nil
}

func (s *webSocketSource) next() (block, error) {
	for {
		kind, data, err := s.conn.Read(s.ctx)
		var closed websocket.CloseError
		switch {
		case errors.As(err, &closed):
			reason := closed.Reason
			if reason == "" {
				reason = "end of the WebSocket"
			}
			return block{}, &ClosedError{Reason: reason, Code: int(closed.Code)}
		case errors.Is(err, websocket.ErrMessageTooBig):
			return block{}, &TooLargeError{MaxEventBytes}
		case err != nil:
			return block{}, &LostError{err}
		case kind == websocket.MessageText:
			return block{data: data}, nil
		}
	}
}

func (*webSocketSource) lastID() (string, bool) { return "", false }

func (s *webSocketSource) close() {
	_ = s.conn.CloseNow()
	s.client.CloseIdleConnections()
}
