package bridge

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// startBound is how long a server may take to be ready beside a compiler.
const startBound = 90 * time.Second

// process is a program that ends with the test.
type process struct {
	name string
	// found receives the URL that the program prints, once.
	found chan string
	// stop kills the program and returns when it has ended.
	stop func()

	mutex sync.Mutex
	log   []string
}

// printedURL is the URL that `demo` prints and `serve` logs.
var printedURL = regexp.MustCompile(`listening on (https?://[0-9.:]+)`)

// startProcess starts a program. A shell kills it when its own input ends: at the end of the test, and when the test
// process has ended for any other reason.
func startProcess(t *testing.T, environment []string, binary string, arguments ...string) *process {
	t.Helper()
	const script = `"$@" </dev/null & pid=$!; cat >/dev/null; kill -9 "$pid"; wait "$pid"`
	command := exec.Command("sh", append([]string{"-c", script, "sh", binary}, arguments...)...)
	command.Env = append(os.Environ(), environment...)
	input, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	reader, writer := io.Pipe()
	command.Stdout, command.Stderr = writer, writer
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{name: binary, found: make(chan string, 1), stop: sync.OnceFunc(func() {
		_ = input.Close()
		_ = command.Wait()
		_ = writer.Close()
	})}
	go p.read(reader)
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("the end of the log of %s:\n%s", p.name, p.tail())
		}
	})
	return p
}

// read keeps the last lines of the output.
func (p *process) read(output io.Reader) {
	lines := bufio.NewScanner(output)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		p.mutex.Lock()
		p.log = append(p.log, lines.Text())
		p.log = p.log[max(0, len(p.log)-20):]
		p.mutex.Unlock()
		if match := printedURL.FindStringSubmatch(lines.Text()); match != nil {
			select {
			case p.found <- match[1]:
			default:
			}
		}
	}
	_, _ = io.Copy(io.Discard, output)
}

func (p *process) tail() string {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return strings.Join(p.log, "\n")
}

// url returns the URL that the program prints.
func (p *process) url(t *testing.T) string {
	t.Helper()
	select {
	case url := <-p.found:
		return url
	case <-time.After(startBound):
		t.Fatalf("%s prints no URL:\n%s", p.name, p.tail())
		return ""
	}
}

// bridgeBinary returns the bridge, or skips the test.
func bridgeBinary(t *testing.T) string {
	t.Helper()
	binary := os.Getenv("BRIDGE_BINARY")
	if binary == "" {
		t.Skip("BRIDGE_BINARY is not set: it must name a boilerhouse-bridge binary")
	}
	return binary
}

// freePort returns a port below the range of local ports. A client that tries a killed server again could otherwise get
// the server's port as its own and connect to itself.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 20_000 + rand.IntN(12_000)
		if listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			_ = listener.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// cutter is a TCP proxy. It cuts connections after a random number of bytes of the server: half of them with a reset.
type cutter struct {
	url string

	mutex    sync.Mutex
	random   *rand.Rand
	targets  []string
	last     int
	isActive bool
	// cuts and switches count cut connections, and connections to another target than the one before.
	cuts, switches int
}

// cutAfter is the number of bytes after which a connection is cut: the minimum, and the size of the range above it. Some
// connections end inside the head of the response, some between the first heartbeat and the events after the cursor.
var cutAfter = [2]int64{100, 10_000}

func newCutter(t *testing.T, seed uint64, targets ...string) *cutter {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{url: "http://" + listener.Addr().String(), targets: targets, random: rand.New(rand.NewPCG(seed, 0))}
	var forwarding sync.WaitGroup
	forwarding.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			forwarding.Go(func() { c.forward(client.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		forwarding.Wait()
	})
	return c
}

// setTargets selects where new connections lead.
func (c *cutter) setTargets(targets ...string) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.targets = targets
}

// setActive selects whether new connections are cut.
func (c *cutter) setActive(isActive bool) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.isActive = isActive
}

func (c *cutter) counts() (cuts, switches int) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return c.cuts, c.switches
}

// choose returns the target, the number of bytes and whether the connection ends with a reset.
func (c *cutter) choose() (target string, limit int64, isReset bool) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	index := c.random.IntN(len(c.targets))
	if index != c.last {
		c.switches++
	}
	c.last = index
	limit = 1 << 40
	if c.isActive {
		limit = cutAfter[0] + c.random.Int64N(cutAfter[1])
	}
	return c.targets[index], limit, c.random.IntN(2) == 0
}

func (c *cutter) forward(client *net.TCPConn) {
	target, limit, isReset := c.choose()
	server, err := net.Dial("tcp", strings.TrimPrefix(target, "http://"))
	if err != nil {
		_ = client.Close()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(server, client)
		_ = server.Close()
	}()
	if n, _ := io.CopyN(client, server, limit); n == limit {
		c.mutex.Lock()
		c.cuts++
		c.mutex.Unlock()
		if isReset {
			_ = client.SetLinger(0)
		}
	}
	_ = client.Close()
	_ = server.Close()
	<-done
}
