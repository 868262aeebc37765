"""Clients and processes of tests/scripts/abuse: requests, streams, the bridge, the fake API server, measurements.

Clients that measure, and clients that send much, run in processes of their own:

    abuse_clients.py observe BRIDGE API    changes 20 Pods a second, measures the delay of each event at one SSE client
    abuse_clients.py poll ADDRESS PATH     sends 20 GETs a second, measures the time of each answer
    abuse_clients.py flood BRIDGE N        sends 1-byte WebSocket frames on N connections without a pause

Each prints `ready`, measures until its standard input ends, then prints its results as JSON.
"""
import base64
import http.client
import json
import os
import pathlib
import re
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time

FOLDER = pathlib.Path(__file__).parent
# Clients that do no harm have an address of their own, and thus budgets of their own.
ATTACKER, OTHER = "127.0.0.1", "127.0.0.2"
# An answer that takes longer counts as none.
PATIENCE_SECONDS = 5
CHANGES_PER_SECOND = 20


def split(address):
    host, port = address.rsplit(":", 1)
    return host, int(port)


def connect(address, source=ATTACKER, small=False, seconds=PATIENCE_SECONDS):
    """Opens a TCP connection; `small`: with the smallest receive buffer, for a client that does not read."""
    client = socket.socket()
    client.settimeout(seconds)
    if small:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.bind((source, 0))
    client.connect(split(address))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def send_get(address, path, headers=None, source=ATTACKER, small=False):
    """Sends a GET whose answer is not read. Returns the socket."""
    client = connect(address, source, small)
    fields = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n".encode())
    return client


def get(address, path, headers=None, source=ATTACKER):
    """Returns status, headers and body of an answer. Raises OSError or HTTPException if there is none."""
    connection = http.client.HTTPConnection(*split(address), timeout=PATIENCE_SECONDS, source_address=(source, 0))
    try:
        connection.request("GET", path, headers={"Host": "localhost", "Connection": "close", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def upgrade(address, path, headers=None, source=ATTACKER):
    """Requests a WebSocket. Returns the socket and the status, 0 if there is no answer."""
    keys = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode()}
    client = send_get(address, path, {**keys, **(headers or {})}, source)
    client.settimeout(15)
    head = b""
    try:
        while b"\r\n" not in head and (part := client.recv(4096)):
            head += part
    except OSError:
        pass
    return client, int(head.split(b" ", 2)[1]) if head.count(b" ") > 1 else 0


class Events:
    """The events of one SSE stream."""

    def __init__(self, address, path, headers=None, source=ATTACKER):
        self.client = send_get(address, path, headers, source)
        self.lines = self.client.makefile("rb")

    def next(self, seconds):
        """Returns id and data of the next event. Raises TimeoutError, or EOFError at the end of the stream."""
        event_id, end = None, time.monotonic() + seconds
        while True:
            self.client.settimeout(max(end - time.monotonic(), 0.001))
            line = self.lines.readline()
            if not line:
                raise EOFError("the stream has ended")
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "id":
                event_id = value
            elif name == "data":
                return event_id, json.loads(value)

    def close(self):
        self.lines.close()
        self.client.close()


class Helper:
    """A process of this file or of abuse_api.py. Its first line of output is its `greeting`."""

    def __init__(self, *command):
        command = [sys.executable, "-B", str(FOLDER / command[0]), *map(str, command[1:])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.greeting = self.process.stdout.readline().strip()
        if not self.greeting:
            raise RuntimeError(f"{command[-2:]} does not start")

    def result(self):
        """Ends the process and returns its results."""
        return json.loads(self.process.communicate(timeout=30)[0] or "{}")

    def close(self):
        self.process.kill()
        self.process.wait()


class FakeApi(Helper):
    """The fake API server."""

    def __init__(self, pods):
        super().__init__("abuse_api.py", pods)
        self.address = f"127.0.0.1:{self.greeting}"

    def control(self, do="counts", **arguments):
        connection = http.client.HTTPConnection(*split(self.address), timeout=PATIENCE_SECONDS)
        connection.request("POST", "/control", json.dumps({"do": do, **arguments}))
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer


class Bridge:
    """A process of the bridge, with a limit on its data memory."""

    def __init__(self, binary, api, folder, limit_mib, arguments=(), environment=None, files=None):
        kubeconfig = pathlib.Path(folder, "kubeconfig.json")
        kubeconfig.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "abuse",
            "clusters": [{"name": "abuse", "cluster": {"server": f"http://{api.address}"}}],
            "users": [{"name": "abuse", "user": {}}],
            "contexts": [{"name": "abuse", "context": {"cluster": "abuse", "user": "abuse"}}]}))
        known = subprocess.run([binary, "serve", "--help"], capture_output=True, text=True, check=True).stdout
        probe = ["--probe-listen", "127.0.0.1:0"] if "--probe-listen" in known else []
        command = [binary, "serve", "--port", "0", "--kubeconfig", str(kubeconfig), "--namespace", "boilerhouse"]
        own = re.compile("BRIDGE_|BOILERHOUSE_|PORT$|LISTEN_HOST$|K8S_|CORS_|KUBECONFIG$|LOG_LEVEL$|RUST_LOG$")
        variables = {name: value for name, value in os.environ.items() if not own.match(name)}

        def limits():
            resource.setrlimit(resource.RLIMIT_DATA, (limit_mib << 20, limit_mib << 20))
            hard = files or resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

        self.process = subprocess.Popen([*command, *probe, *arguments], env={**variables, **(environment or {})},
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                        text=True, preexec_fn=limits)
        self.log = []
        self.reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
        self.reader.start()
        try:
            self.address = self.find(r"listening on http://([^/,\s]+)")
            self.probe_address = self.find(r"probes at http://([^/,\s]+)") if probe else self.address
            self.wait_for(lambda: get(self.address, "/readyz", source=OTHER)[0] == 200)
        except BaseException:
            self.close()
            raise

    def wait_for(self, condition, seconds=20):
        end = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > end or self.process.poll() is not None:
                raise RuntimeError(f"the bridge does not start: {''.join(self.log[-5:])}")
            time.sleep(0.02)
        return found

    def find(self, pattern):
        return self.wait_for(lambda: re.search(pattern, "".join(self.log))).group(1)

    def memory(self, field="VmRSS"):
        """Returns resident memory in MiB; `VmHWM`: its maximum since the last call of `reset_peak`."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(field + r":\s+(\d+)", status).group(1)) / 1024

    def has_ended(self):
        return self.process.poll() is not None

    def growth(self, before, field="VmRSS"):
        """Returns by how many MiB the memory has grown, or a text if the process has ended."""
        return "process ended" if self.has_ended() else self.memory(field) - before

    def reset_peak(self):
        """Starts a new maximum and returns the resident memory in MiB (proc_pid_clear_refs(5))."""
        pathlib.Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self.memory()

    def processor_ms(self):
        """Returns the processor time of all threads, in ms, finer than the 10 ms of /proc/PID/stat."""
        tasks = pathlib.Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6

    def close(self):
        self.process.kill()
        self.process.wait()
        self.reader.join(2)


def observe(bridge, api):
    """Measures delays from the change of a Pod to its event at a client, in ms."""
    stream = Events(bridge, "/api/sse?snapshot=none&types=instance.state", source=OTHER)
    while stream.next(20)[1]["type"] != "heartbeat":
        pass
    print("ready", flush=True)
    ended, lost, pending, delays = threading.Event(), threading.Event(), {}, []

    def change():
        connection = http.client.HTTPConnection(*split(api), timeout=PATIENCE_SECONDS)
        number = 0
        while not ended.wait(1 / CHANGES_PER_SECOND):
            connection.request("POST", "/control", json.dumps({"do": "modify", "pod": number % 50}))
            stamp = json.loads(connection.getresponse().read())["stamp"]
            pending[stamp] = float(stamp)
            number += 1

    def receive():
        try:
            while True:
                event = stream.next(60)[1]
                if event["type"] == "instance.state":
                    stamp = event["instance"]["labels"]["stamp"]
                    delays.append((stamp, 1000 * (time.monotonic() - float(stamp))))
        except (OSError, EOFError):
            lost.set()

    for target in (change, receive):
        threading.Thread(target=target, daemon=True).start()
    sys.stdin.read()
    ended.set()
    end = time.monotonic() + 10
    while (missing := pending.keys() - {stamp for stamp, _ in delays}) and time.monotonic() < end:
        if lost.wait(0.05):
            break
    times = [delay for _, delay in delays] or [float("inf")]
    return {"events": len(delays), "missing": len(missing), "median": statistics.median(times),
            "max": float("inf") if missing else max(times)}


def poll(address, path):
    """Measures the time of answers to a client with an address of its own, in ms."""
    print("ready", flush=True)
    ended, times, failures = threading.Event(), [], 0
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    while not ended.wait(1 / CHANGES_PER_SECOND):
        start = time.monotonic()
        try:
            failures += get(address, path, source=OTHER)[0] != 200
        except (OSError, http.client.HTTPException):
            failures += 1
        times.append(1000 * (time.monotonic() - start))
    return {"answers": len(times) - failures, "unanswered": failures, "max": max(times, default=float("inf"))}


def flood(bridge, connections):
    """Sends frames of one byte as fast as the bridge reads them (RFC 6455: text, masked with zeros)."""
    frames = (b"\x81\x81\0\0\0\0x") * 10_000

    def send(client):
        client.settimeout(None)
        try:
            while True:
                client.sendall(frames)
        except OSError:
            pass

    for _ in range(int(connections)):
        client, status = upgrade(bridge, "/api/websocket?snapshot=none&types=claim.state")
        if status != 101:
            raise SystemExit(f"status {status}")
        threading.Thread(target=send, args=(client,), daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()
    return {}


if __name__ == "__main__":
    results = {"observe": observe, "poll": poll, "flood": flood}[sys.argv[1]](*sys.argv[2:])
    print(json.dumps(results), flush=True)
    # Threads of clients may wait for a socket.
    os._exit(0)
