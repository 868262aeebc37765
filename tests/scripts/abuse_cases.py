"""The cases of tests/scripts/abuse. Each starts a fake API server and a bridge, and records values with their bounds.

A bound is the largest value that is allowed, or the text that is expected. Values without a bound are information.
"""
import base64
import concurrent.futures
import http.client
import json
import secrets
import threading
import time
import urllib.parse

from abuse_api import AUDIENCE, VALID_TOKEN
from abuse_clients import OTHER, Events, connect, get, send_get, upgrade

PODS = 10_000
INSTANCES, STATS = "/api/v1/instances", "/api/v1/stats"
# Events of other clients may be this late, in ms, and answers to other callers.
EVENT_DELAY, ANSWER_TIME = 250, 100
# The time limit of a Kubernetes probe, in ms.
PROBE_TIME = 1000
CASES = {}


def case(function):
    CASES[function.__name__.replace("_", "-")] = function
    return function


def with_params(path, params, **query):
    return f"{path}?{urllib.parse.urlencode({'params': json.dumps(params), **query})}"


def keep_open(run, clients):
    """Closes these sockets at the end of the case."""
    run.stack.callback(lambda: [client.close() for client in clients])
    return clients


def close_all(clients):
    while clients:
        clients.pop().close()


@case
def unread_gets(run):
    """400 connections send GETs of 10,000 instances and read nothing; then again while Pods change."""
    for label, changes in (("", False), (", Pods change", True)):
        api = run.api(PODS)
        bridge = run.bridge(api)
        other = run.helper("poll", bridge.address, STATS)
        observer = run.helper("observe", bridge.address, api.address) if changes else None
        before = bridge.reset_peak()
        clients = keep_open(run, [])
        for _ in range(400):
            clients.append(send_get(bridge.address, INSTANCES, small=True))
            time.sleep(0.005 if changes else 0)
        time.sleep(run.seconds)
        run.record(f"growth{label}", bridge.growth(before, "VmHWM"), "MiB", 64)
        run.record_answers(f"another caller's GET{label}", other.result(), ANSWER_TIME)
        if observer:
            run.record_events("other client's events", observer.result(), EVENT_DELAY)
        if bridge.has_ended():
            return
        close_all(clients)


def stall(bridge, count, clients):
    """Opens streams with different filters that match all instances."""
    for n in range(count):
        path = with_params("/api/sse", {"claims": {"name": f"none-{count}-{n}"}})
        clients.append(send_get(bridge.address, path, small=True))


@case
def stalled_streams(run):
    """SSE streams with different filters read nothing: 400, then 1,000 after those have left."""
    api = run.api(PODS)
    bridge = run.bridge(api)
    clients = keep_open(run, [])
    observer = run.helper("observe", bridge.address, api.address)
    before = bridge.reset_peak()
    stall(bridge, 400, clients)
    time.sleep(run.seconds)
    run.record("growth, 400 streams", bridge.growth(before, "VmHWM"), "MiB", 100)
    run.record_events("other client's events, 400 streams", observer.result(), EVENT_DELAY)
    if bridge.has_ended():
        return
    close_all(clients)
    time.sleep(12)
    run.record("growth 12 s after they left", bridge.growth(before), "MiB", 64)
    observer = run.helper("observe", bridge.address, api.address)
    bridge.reset_peak()
    stall(bridge, 1000, clients)
    time.sleep(run.seconds)
    run.record("growth, 1,000 streams", bridge.growth(before, "VmHWM"), "MiB", 100)
    run.record_events("other client's events, 1,000 streams", observer.result(), EVENT_DELAY)


@case
def half_heads(run):
    """6,000 connections from one address send half a request head. The bridge may open 4,096 files."""
    bridge = run.bridge(run.api(PODS), files=4096)
    probe = run.helper("poll", bridge.probe_address, "/readyz")
    other = run.helper("poll", bridge.address, STATS)
    clients = keep_open(run, [])
    refused = 0
    for _ in range(6000):
        try:
            clients.append(connect(bridge.address))
            clients[-1].sendall(b"GET /api/v1/stats HTTP/1.1\r\nHost: loc")
        except OSError:
            refused += 1
    time.sleep(min(run.seconds, 3))
    run.record_answers("/readyz", probe.result(), PROBE_TIME)
    run.record_answers("another caller's GET", other.result(), PROBE_TIME)
    run.record("half heads that were refused", refused, "of 6,000")


def encode_cursor(cursor, versions):
    """Returns the cursor with other versions (docs/protocol.md#cursor)."""
    content = bytearray(base64.urlsafe_b64decode(cursor + "==")[:17])
    for version in versions:
        while version >= 0x80:
            content.append(version & 0x7f | 0x80)
            version >>= 7
        content.append(version)
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def resume(bridge, cursor, expected, source=OTHER):
    """Resumes a stream. Returns the reason of a new initial state, else `exact` or what was received."""
    received, reason = [], None
    try:
        stream = Events(bridge.address, "/api/sse", {"Last-Event-ID": cursor}, source)
        end = time.monotonic() + 30
        while reason is None and len(received) < len(expected) and time.monotonic() < end:
            event = stream.next(end - time.monotonic())[1]
            if event["type"] == "state.initial":
                reason = event["reason"]
            elif event["type"] == "instance.state":
                received.append(event["instance"]["labels"]["stamp"])
        stream.close()
    except (OSError, EOFError):
        pass
    return reason or ("exact" if received == expected else f"{len(received)} of {len(expected)} events")


@case
def old_cursors(run):
    """Clients resume with valid cursors after a restart, while a client at another address invents old cursors."""
    api = run.api(PODS)
    first = run.bridge(api)
    stream = Events(first.address, "/api/sse?snapshot=none&types=instance,claim", source=OTHER)
    cursors, stamps = [stream.next(10)[0]], []
    for n in range(20):
        stamps.append(api.control("modify", pod=n)["stamp"])
        event_id, event = None, {}
        while event.get("type") != "instance.state":
            event_id, event = stream.next(10)
        cursors.append(event_id)
    stream.close()
    first.close()
    stamps.append(api.control("modify", pod=100)["stamp"])
    bridge = run.bridge(api)
    ended, invented = threading.Event(), []

    def invent():
        version = api.control()["floor"] - 2
        while not ended.wait(0.1):
            version -= 1
            cursor = encode_cursor(cursors[0], (version, version))
            invented.append(send_get(bridge.address, "/api/sse", {"Last-Event-ID": cursor}))

    with concurrent.futures.ThreadPoolExecutor() as pool:
        attack = pool.submit(invent)
        time.sleep(0.3)
        start = time.monotonic()
        results = list(pool.map(lambda n: resume(bridge, cursors[n], stamps[n:]), range(20)))
        seconds = time.monotonic() - start
        ended.set()
        attack.result()
    close_all(invented)
    run.record("valid cursors that do not resume exactly", sum(result != "exact" for result in results), "of 20", 0)
    run.record("time until the last one has resumed", seconds, "s")
    run.record("their results", ", ".join(sorted(set(results))), "")


@case
def token_guesses(run):
    """40 clients of one address guess tokens for 15 s."""
    api = run.api(100)
    bridge = run.bridge(api, "--token-audience", AUDIENCE)
    end = time.monotonic() + 15
    statuses = []

    def guess(_):
        while time.monotonic() < end:
            try:
                statuses.append(get(bridge.address, INSTANCES, {"Authorization": f"Bearer {secrets.token_hex(20)}"})[0])
            except (OSError, http.client.HTTPException):
                statuses.append(0)

    with concurrent.futures.ThreadPoolExecutor(41) as pool:
        guesses = pool.map(guess, range(40))
        time.sleep(5)
        start = time.monotonic()
        status = get(bridge.address, INSTANCES, {"Authorization": f"Bearer {VALID_TOKEN}"}, OTHER)[0]
        waited = 1000 * (time.monotonic() - start)
        list(guesses)
    # One is the review of the valid token.
    reviews = api.control()["counts"]["token reviews"] - 1
    run.record("TokenReviews in 15 s (60 a minute, and a full budget)", reviews, "", 75)
    run.record("another address with a valid token", str(status), "", "200")
    run.record("answer to it", waited, "ms", PROBE_TIME)
    run.record("guesses a second", len(statuses) / 15, "")


@case
def ws_loop(run):
    """Four anonymous clients of one address open /ws and leave, for 5 s."""
    api = run.api(100)
    bridge = run.bridge(api)
    before = api.control()["counts"]["lists"]
    end, opened = time.monotonic() + 5, []

    def loop(_):
        while time.monotonic() < end:
            client, status = upgrade(bridge.address, "/ws")
            client.close()
            opened.append(status)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(loop, range(4)))
    # 50 connections of one caller at once and 50 a minute, two lists each, and an allowance of a tenth.
    run.record("LISTs a second", (api.control()["counts"]["lists"] - before) / 5, "", 24)
    run.record("connections a second", opened.count(101) / 5, "")


@case
def anonymous_ws(run):
    """Anonymous clients open 150 streams of /ws; 100 streams are allowed."""
    key = secrets.token_hex(20)
    bridge = run.bridge(run.api(100), "--max-connections", "100", environment={"BOILERHOUSE_API_KEY": key})
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        opened = list(pool.map(lambda _: upgrade(bridge.address, "/ws"), range(150)))
    keep_open(run, [client for client, _ in opened])
    client, status = upgrade(bridge.address, "/api/websocket", {"Authorization": f"Bearer {key}"}, OTHER)
    keep_open(run, [client])
    run.record("/api/websocket with the key", str(status), "", "101")
    run.record("anonymous streams", sum(status == 101 for _, status in opened), "of 150", 99)


@case
def endless_line(run):
    """The API server sends a watch line without an end to the dedicated watchers of a /ws connection."""
    api = run.api(100)
    bridge = run.bridge(api)
    api.control("endless-line", **{"from": api.control()["next_watch"]})
    before = bridge.reset_peak()
    client, _ = upgrade(bridge.address, "/ws")
    keep_open(run, [client])
    time.sleep(5)
    # Two lines of 4 MiB, each in a buffer that doubles, and what the HTTP client buffers.
    run.record("growth in 5 s", bridge.growth(before, "VmHWM"), "MiB", 32)


@case
def endless_list(run):
    """Lists of the API server do not end: for the dedicated watchers of a /ws connection, then for the hub as well."""
    # The buffers of dedicated watchers hold 128 MiB as charged; the allocator needs more.
    # A list has at most 500,000 objects and 10,000 pages (docs/limits.md#hub).
    for label, fault, is_hub, bound, pages in (("connection, full pages", "endless", False, 256, 1001),
                                               ("connection, empty pages", "empty", False, 32, 10_001),
                                               ("hub and connection, full pages", "endless", True, 400, None)):
        api = run.api(100)
        bridge = run.bridge(api)
        first = 0 if is_hub else api.control()["next_watch"]
        client, _ = upgrade(bridge.address, "/ws")
        keep_open(run, [client])
        before = bridge.reset_peak()
        api.control("list-fault", fault=fault)
        # These watches end with 410, so that their lists start again.
        api.control("expire", **{"from": first})
        start, lists = time.monotonic(), []
        # Each of these lists starts once. Another one shows that the bridge has given one up.
        while time.monotonic() < start + 20 and not bridge.has_ended() and len(lists) <= 1 + is_hub:
            time.sleep(0.2)
            lists = api.control()["endless_lists"]
        run.record(f"{label}: growth", bridge.growth(before, "VmHWM"), "MiB", bound)
        if not is_hub:
            run.record(f"{label}: pages of the list", lists[0]["pages"] if len(lists) > 1 else None, "", pages)
        if bridge.has_ended():
            return


@case
def slow_list(run):
    """The watch ends with 410. Pages of the new list take 10 s each and do not end: heartbeats after 40 s."""
    api = run.api(100)
    bridge = run.bridge(api)
    stream = Events(bridge.address, "/api/sse?snapshot=none", source=OTHER)
    api.control("list-fault", fault="slow")
    start, down, heartbeat = time.monotonic(), None, None
    api.control("expire", **{"from": 0})
    while heartbeat is None:
        event = stream.next(30)[1]
        seconds = time.monotonic() - start
        if event["type"] == "upstream.down" and down is None and event["resource"] == "pods":
            down = seconds
        if event["type"] == "heartbeat" and seconds > 40:
            heartbeat = event["upstream"]
    stream.close()
    run.record("upstream of the first heartbeat after 40 s", heartbeat, "", "down")
    run.record("time until upstream.down", down, "s", 40)


@case
def foreign_pages(run):
    """A page of another site sends 50 GETs without CORS through the browser of a local user."""
    bridge = run.bridge(run.api(100))

    def remaining():
        header = get(bridge.address, STATS)[1]["RateLimit"]
        return int(header.split(";r=")[1].split(";")[0])

    foreign = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    before = remaining()
    statuses = {get(bridge.address, INSTANCES, foreign)[0] for _ in range(50)}
    run.record("status", ", ".join(map(str, sorted(statuses))), "", "403")
    # The second request of the user is one use.
    run.record("uses of the local user's budget", max(before - remaining() - 1, 0), "of 50", 0)


@case
def tiny_frames(run):
    """20 clients send 1-byte WebSocket frames without a pause."""
    api = run.api(100)
    bridge = run.bridge(api)
    quiet = run.helper("observe", bridge.address, api.address)
    time.sleep(2)
    run.record_events("other client's events before", quiet.result(), None)
    observer = run.helper("observe", bridge.address, api.address)
    run.helper("flood", bridge.address, 20)
    before = bridge.processor_ms()
    time.sleep(run.seconds)
    run.record("processor time of the bridge", (bridge.processor_ms() - before) / run.seconds / 10, "% of a core")
    run.record_events("other client's events", observer.result(), EVENT_DELAY)


@case
def filters(run):
    """2,400 streams have different filters that no change concerns."""
    api = run.api(100)
    bridge = run.bridge(api)

    def processor_time():
        before = bridge.processor_ms()
        for n in range(200):
            api.control("modify", pod=n % 100)
            time.sleep(0.01)
        return (bridge.processor_ms() - before) / 200

    alone = processor_time()
    clients = keep_open(run, [])
    for n in range(2400):
        path = with_params("/api/sse", {"instances": {"name": f"none-{n}"}}, snapshot="none", types="instance.state")
        clients.append(send_get(bridge.address, path, small=True))
    bridge.wait_for(lambda: metric(bridge, "bridge_streams") >= 2400)
    run.record("processor time for a change, without streams", alone, "ms")
    run.record("processor time for a change", processor_time(), "ms", 1)


def metric(bridge, name):
    """Returns the sum of a metric over all labels."""
    lines = get(bridge.address, "/metrics", source=OTHER)[2].decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + " ", name + "{")))
