// Runs one Go client against the bridge. Prints one JSON line for each message and each change of the client's state,
// as tests/clients/run describes.
//
// usage: client CLIENT BASE_URL
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	coder "github.com/coder/websocket"
	donovanhide "github.com/donovanhide/eventsource"
	fasthttp "github.com/fasthttp/websocket"
	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
	gorilla "github.com/gorilla/websocket"
	launchdarkly "github.com/launchdarkly/eventsource"
	"github.com/lxzan/gws"
	r3labs "github.com/r3labs/sse/v2"
	tmaxmax "github.com/tmaxmax/go-sse"
	xnet "golang.org/x/net/websocket"
	nhooyr "nhooyr.io/websocket"
	resty "resty.dev/v3"
)

const retry = time.Second

var (
	base        string
	lock        sync.Mutex
	lastEventID string
	out         = json.NewEncoder(os.Stdout)
)

type line struct {
	T       float64 `json:"t"`
	Message *string `json:"message,omitempty"`
	State   string  `json:"state,omitempty"`
	Detail  string  `json:"detail,omitempty"`
}

func show(l line) {
	l.T = float64(time.Now().UnixMicro()) / 1000
	lock.Lock()
	defer lock.Unlock()
	out.Encode(l)
}

func state(kind, detail string) { show(line{State: kind, Detail: detail}) }

// message prints a message and remembers its cursor.
func message(text string) {
	show(line{Message: &text})
	var event struct{ ID string }
	if json.Unmarshal([]byte(text), &event) == nil && event.ID != "" {
		lastEventID = event.ID
	}
}

func closed(code int, reason string) error {
	state("close", strings.TrimSpace(fmt.Sprintf("%d %s", code, reason)))
	return errSeen
}

// errSeen tells loop that the end is printed already.
var errSeen = errors.New("seen")

func sseURL() string { return base + "/api/sse" }

func wsURL() string {
	url := strings.Replace(base, "http", "ws", 1) + "/api/websocket"
	if lastEventID != "" {
		url += "?lastEventId=" + lastEventID
	}
	return url
}

// loop connects again after each end, as programs do whose library does not.
func loop(readOneStream func() error) {
	for {
		state("connect", lastEventID)
		err := readOneStream()
		switch {
		case err == nil || err == io.EOF:
			state("end", "")
		case err != errSeen:
			state("error", err.Error())
		}
		time.Sleep(retry)
	}
}

func request() *http.Request {
	request, err := http.NewRequest("GET", sseURL(), nil)
	if err != nil {
		panic(err)
	}
	if lastEventID != "" {
		request.Header.Set("Last-Event-ID", lastEventID)
	}
	return request
}

func get() (*http.Response, error) {
	response, err := http.DefaultClient.Do(request())
	if err == nil && response.StatusCode != 200 {
		err = errors.New(response.Status)
	}
	if err == nil {
		state("open", "")
	}
	return response, err
}

func scanner() error {
	response, err := get()
	if err != nil {
		return err
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		if data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: ")); ok {
			message(string(data))
		}
	}
	return lines.Err()
}

func reader() error {
	response, err := get()
	if err != nil {
		return err
	}
	defer response.Body.Close()
	lines := bufio.NewReader(response.Body)
	for {
		text, err := lines.ReadString('\n')
		if err != nil {
			return err
		}
		if data, ok := strings.CutPrefix(text, "data: "); ok {
			message(strings.TrimSuffix(data, "\n"))
		}
	}
}

func r3labsSSE() error {
	client := r3labs.NewClient(sseURL())
	if lastEventID != "" {
		client.LastEventID.Store([]byte(lastEventID))
	}
	client.ReconnectNotify = func(err error, _ time.Duration) { state("error", err.Error()) }
	return client.SubscribeRaw(func(event *r3labs.Event) { message(string(event.Data)) })
}

func tmaxmaxConnection() error {
	client := tmaxmax.Client{OnRetry: func(err error, _ time.Duration) { state("error", err.Error()) }}
	connection := client.NewConnection(request())
	connection.SubscribeToAll(func(event tmaxmax.Event) { message(event.Data) })
	return connection.Connect()
}

func tmaxmaxRead() error {
	response, err := get()
	if err != nil {
		return err
	}
	defer response.Body.Close()
	for event, err := range tmaxmax.Read(response.Body, nil) {
		if err != nil {
			return err
		}
		message(event.Data)
	}
	return nil
}

func donovanhideStream() error {
	stream, err := donovanhide.Subscribe(sseURL(), lastEventID)
	if err != nil {
		return err
	}
	for {
		select {
		case event := <-stream.Events:
			message(event.Data())
		case err := <-stream.Errors:
			if err == io.EOF {
				state("end", "")
			} else {
				state("error", err.Error())
			}
		}
	}
}

func launchdarklyStream() error {
	stream, err := launchdarkly.SubscribeWithURL(sseURL(), launchdarkly.StreamOptionLastEventID(lastEventID))
	if err != nil {
		return err
	}
	for {
		select {
		case event := <-stream.Events:
			message(event.Data())
		case err := <-stream.Errors:
			if err == io.EOF {
				state("end", "")
			} else {
				state("error", err.Error())
			}
		}
	}
}

func restySource(options func(*resty.SSESource)) func() error {
	return func() error {
		source := resty.NewSSESource().SetURL(sseURL())
		if lastEventID != "" {
			source.SetHeader("Last-Event-ID", lastEventID)
		}
		source.OnOpen(func(string, http.Header) { state("open", "") })
		source.OnMessage(func(event any) { message(event.(*resty.SSE).Data) }, nil)
		options(source)
		return source.Get()
	}
}

func coderWebSocket(options func(*coder.Conn)) func() error {
	return func() error {
		connection, _, err := coder.Dial(context.Background(), wsURL(), nil)
		if err != nil {
			return err
		}
		defer connection.CloseNow()
		options(connection)
		state("open", "")
		for {
			_, text, err := connection.Read(context.Background())
			var end coder.CloseError
			if errors.As(err, &end) {
				return closed(int(end.Code), end.Reason)
			}
			if err != nil {
				return err
			}
			message(string(text))
		}
	}
}

func nhooyrWebSocket(options func(*nhooyr.Conn)) func() error {
	return func() error {
		connection, _, err := nhooyr.Dial(context.Background(), wsURL(), nil)
		if err != nil {
			return err
		}
		defer connection.CloseNow()
		options(connection)
		state("open", "")
		for {
			_, text, err := connection.Read(context.Background())
			var end nhooyr.CloseError
			if errors.As(err, &end) {
				return closed(int(end.Code), end.Reason)
			}
			if err != nil {
				return err
			}
			message(string(text))
		}
	}
}

// messageReader is the API that gorilla/websocket and its fork share.
type messageReader interface {
	ReadMessage() (int, []byte, error)
	Close() error
}

func readMessages(connection messageReader, closeFrame func(error) (int, string, bool)) error {
	defer connection.Close()
	state("open", "")
	for {
		_, text, err := connection.ReadMessage()
		if code, reason, isClose := closeFrame(err); isClose {
			return closed(code, reason)
		}
		if err != nil {
			return err
		}
		message(string(text))
	}
}

func gorillaWebSocket() error {
	connection, _, err := gorilla.DefaultDialer.Dial(wsURL(), nil)
	if err != nil {
		return err
	}
	return readMessages(connection, func(err error) (int, string, bool) {
		var end *gorilla.CloseError
		if errors.As(err, &end) {
			return end.Code, end.Text, true
		}
		return 0, "", false
	})
}

func fasthttpWebSocket() error {
	connection, _, err := fasthttp.DefaultDialer.Dial(wsURL(), nil)
	if err != nil {
		return err
	}
	return readMessages(connection, func(err error) (int, string, bool) {
		var end *fasthttp.CloseError
		if errors.As(err, &end) {
			return end.Code, end.Text, true
		}
		return 0, "", false
	})
}

// buffered reads the bytes that arrived together with the response head first.
type buffered struct {
	net.Conn
	io.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.Reader.Read(p) }

func gobwasWebSocket() error {
	connection, early, _, err := ws.Dial(context.Background(), wsURL())
	if err != nil {
		return err
	}
	defer connection.Close()
	if early != nil {
		connection = buffered{connection, io.MultiReader(early, connection)}
	}
	state("open", "")
	for {
		text, err := wsutil.ReadServerText(connection)
		var end wsutil.ClosedError
		if errors.As(err, &end) {
			return closed(int(end.Code), end.Reason)
		}
		if err == io.EOF {
			return closed(1006, "EOF")
		}
		if err != nil {
			return err
		}
		message(string(text))
	}
}

func xnetWebSocket() error {
	connection, err := xnet.Dial(wsURL(), "", base)
	if err != nil {
		return err
	}
	defer connection.Close()
	state("open", "")
	for {
		var text string
		if err := xnet.Message.Receive(connection, &text); err != nil {
			return err
		}
		message(text)
	}
}

type gwsHandler struct {
	gws.BuiltinEventHandler
}

func (gwsHandler) OnOpen(*gws.Conn) { state("open", "") }

func (gwsHandler) OnMessage(_ *gws.Conn, text *gws.Message) {
	defer text.Close()
	message(string(text.Bytes()))
}

func (gwsHandler) OnClose(_ *gws.Conn, err error) {
	var end *gws.CloseError
	if errors.As(err, &end) {
		closed(int(end.Code), string(end.Reason))
	} else {
		state("error", err.Error())
	}
}

func gwsWebSocket() error {
	connection, _, err := gws.NewClient(gwsHandler{}, &gws.ClientOption{Addr: wsURL()})
	if err != nil {
		return err
	}
	connection.ReadLoop()
	return errSeen
}

var clients = map[string]func() error{
	"net/http, Scanner":    scanner,
	"net/http, Reader":     reader,
	"r3labs/sse":           r3labsSSE,
	"tmaxmax/go-sse":       tmaxmaxConnection,
	"tmaxmax/go-sse, Read": tmaxmaxRead,
	"donovanhide":          donovanhideStream,
	"launchdarkly":         launchdarklyStream,
	"resty":                restySource(func(*resty.SSESource) {}),
	"resty, buffer":        restySource(func(source *resty.SSESource) { source.SetSizeMaxBuffer(1 << 20) }),
	"coder/websocket":      coderWebSocket(func(*coder.Conn) {}),
	"coder, limit":         coderWebSocket(func(connection *coder.Conn) { connection.SetReadLimit(1 << 20) }),
	"nhooyr.io/websocket":  nhooyrWebSocket(func(*nhooyr.Conn) {}),
	"gorilla/websocket":    gorillaWebSocket,
	"fasthttp/websocket":   fasthttpWebSocket,
	"gobwas/ws":            gobwasWebSocket,
	"lxzan/gws":            gwsWebSocket,
	"x/net/websocket":      xnetWebSocket,
}

func main() {
	base = os.Args[2]
	client, ok := clients[os.Args[1]]
	if !ok {
		fmt.Fprintf(os.Stderr, "unknown client: %s\n", os.Args[1])
		os.Exit(1)
	}
	loop(client)
}
