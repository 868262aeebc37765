"""Runs one client of PyPI, or a command-line client, against the bridge.

Prints one JSON line for each message and each change of the client's state, as tests/clients/run describes.

usage: python client.py CLIENT BASE_URL
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time

NAME, BASE = sys.argv[1:3]
RETRY_SECONDS = 1
SSE_URL = f"{BASE}/api/sse"
WS_BASE = f"{BASE.replace('http', 'ws', 1)}/api/websocket"
last_event_id = ""
_lock = threading.Lock()


def show(**line):
    text = json.dumps({"t": time.time() * 1000, **line})
    with _lock:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def state(kind, detail=None):
    show(state=kind, detail=None if detail is None else str(detail))


def message(text):
    """Prints a message and remembers its cursor."""
    global last_event_id
    if isinstance(text, (bytes, bytearray, memoryview)):
        text = bytes(text).decode()
    show(message=text)
    last_event_id = json.loads(text).get("id", last_event_id)


def ws_url():
    return f"{WS_BASE}?lastEventId={last_event_id}" if last_event_id else WS_BASE


def headers():
    return {"Last-Event-ID": last_event_id} if last_event_id else {}


def error_text(error):
    return f"{type(error).__name__}: {error}"[:200]


def loop(read_one_stream):
    """Connects again after each end, as programs do whose library does not."""
    while True:
        state("connect", last_event_id)
        try:
            # A function that returns a text has already seen the end.
            if read_one_stream() is None:
                state("end")
        except Exception as error:
            state("error", error_text(error))
        time.sleep(RETRY_SECONDS)


def async_loop(read_one_stream):
    async def run():
        while True:
            state("connect", last_event_id)
            try:
                if await read_one_stream() is None:
                    state("end")
            except Exception as error:
                state("error", error_text(error))
            await asyncio.sleep(RETRY_SECONDS)

    asyncio.run(run())


def closed(code, reason=""):
    """Prints the close code of a WebSocket. Returns a text, for `loop`."""
    if isinstance(reason, (bytes, bytearray)):
        reason = reason.decode()
    state("close", f"{1006 if code is None else int(code)} {reason or ''}".strip())
    return "closed"


def data_lines(lines):
    """The parser that most programs write: `data: ` starts the data."""
    for line in lines:
        if isinstance(line, bytes):
            line = line.decode()
        if line.startswith("data: "):
            message(line.rstrip("\r\n")[6:])


# --- SSE ------------------------------------------------------------------------------------------------------------


def requests_iter_lines():
    import requests

    def once():
        response = requests.get(SSE_URL, headers=headers(), stream=True)
        response.raise_for_status()
        state("open")
        data_lines(response.iter_lines())

    loop(once)


def sseclient_py():
    import requests
    import sseclient

    def once():
        response = requests.get(SSE_URL, headers={"Accept": "text/event-stream", **headers()}, stream=True)
        response.raise_for_status()
        state("open")
        for event in sseclient.SSEClient(response).events():
            message(event.data)

    loop(once)


def load_sseclient():
    """sseclient.py of the package sseclient; the package sseclient-py has a folder of the same name."""
    import importlib.util

    folder = next(folder for folder in sys.path if os.path.exists(os.path.join(folder, "sseclient.py")))
    spec = importlib.util.spec_from_file_location("btubbs_sseclient", os.path.join(folder, "sseclient.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # The library prints its errors to stdout. They are changes of its state here.
    module.print = lambda error: state("error", error_text(error))
    return module


def sseclient(skip_empty=False):
    client = load_sseclient().SSEClient

    def once():
        for event in client(SSE_URL, last_id=last_event_id or None):
            if event.data or not skip_empty:
                message(event.data)

    loop(once)


def requests_sse():
    from requests_sse import EventSource

    def once():
        with EventSource(
            SSE_URL, latest_event_id=last_event_id, on_open=lambda: state("open"), on_error=lambda: state("error")
        ) as source:
            for event in source:
                message(event.data)

    loop(once)


def httpx_lines(**options):
    import httpx

    def once():
        with httpx.stream("GET", SSE_URL, headers=headers(), **options) as response:
            response.raise_for_status()
            state("open")
            data_lines(response.iter_lines())

    loop(once)


def httpx_sse(**options):
    import httpx
    from httpx_sse import connect_sse

    def once():
        with httpx.Client(**options) as client, connect_sse(client, "GET", SSE_URL, headers=headers()) as source:
            state("open")
            for event in source.iter_sse():
                message(event.data)

    loop(once)


def aiohttp_lines():
    import aiohttp

    state("setting", f"total timeout {aiohttp.client.DEFAULT_TIMEOUT.total} s")

    async def once():
        async with aiohttp.ClientSession() as session, session.get(SSE_URL, headers=headers()) as response:
            response.raise_for_status()
            state("open")
            async for line in response.content:
                data_lines([line])

    async_loop(once)


def aiohttp_event_source(package):
    def run():
        import importlib

        source_class = importlib.import_module(f"{package}.client").EventSource

        async def once():
            on = {"on_open": lambda: state("open"), "on_error": lambda: state("error")}
            async with source_class(SSE_URL, headers=headers(), **on) as source:
                async for event in source:
                    message(event.data)

        async_loop(once)

    return run


def aiosseclient():
    from aiosseclient import aiosseclient as events

    async def once():
        async for event in events(SSE_URL, last_id=last_event_id or None):
            message(event.data)

    async_loop(once)


def launchdarkly():
    from ld_eventsource import SSEClient
    from ld_eventsource.actions import Event, Fault, Start
    from ld_eventsource.config import ErrorStrategy

    client = SSEClient(SSE_URL, error_strategy=ErrorStrategy.always_continue())
    for action in client.all:
        if isinstance(action, Event):
            message(action.data)
        elif isinstance(action, Start):
            state("open")
        elif isinstance(action, Fault):
            state("error" if action.error else "end", action.error)


def urllib3_lines():
    import io

    import urllib3

    def once():
        response = urllib3.PoolManager().request("GET", SSE_URL, headers=headers(), preload_content=False)
        state("open")
        response.auto_close = False
        data_lines(io.TextIOWrapper(response))

    loop(once)


def urllib3_stream():
    import urllib3

    def once():
        response = urllib3.PoolManager().request("GET", SSE_URL, headers=headers(), preload_content=False)
        state("open")
        rest = b""
        for chunk in response.stream():
            *lines, rest = (rest + chunk).split(b"\n")
            data_lines(lines)

    loop(once)


def standard_library():
    import urllib.request

    def once():
        with urllib.request.urlopen(urllib.request.Request(SSE_URL, headers=headers())) as response:
            state("open")
            data_lines(response)

    loop(once)


def pycurl_lines():
    import pycurl

    def once():
        rest = b""

        def write(chunk):
            nonlocal rest
            *lines, rest = (rest + chunk).split(b"\n")
            data_lines(lines)

        curl = pycurl.Curl()
        curl.setopt(pycurl.URL, SSE_URL)
        curl.setopt(pycurl.HTTPHEADER, [f"{name}: {value}" for name, value in headers().items()])
        curl.setopt(pycurl.WRITEFUNCTION, write)
        curl.perform()

    loop(once)


def tornado_sse(**options):
    from tornado.httpclient import AsyncHTTPClient, HTTPRequest

    state("setting", f"request timeout {HTTPRequest._DEFAULTS['request_timeout']:.0f} s")

    async def once():
        rest = b""

        def write(chunk):
            nonlocal rest
            *lines, rest = (rest + chunk).split(b"\n")
            data_lines(lines)

        request = HTTPRequest(SSE_URL, headers=headers(), streaming_callback=write, **options)
        await AsyncHTTPClient().fetch(request)

    async_loop(once)


# --- WebSocket ------------------------------------------------------------------------------------------------------


def websockets_asyncio():
    import websockets

    async def once():
        async with websockets.connect(ws_url()) as socket:
            state("open")
            try:
                while True:
                    message(await socket.recv())
            except websockets.ConnectionClosed:
                return closed(socket.close_code, socket.close_reason)

    async_loop(once)


def websockets_iterator():
    """`async for` over the connection, which reconnects by itself; the URL is fixed."""
    import websockets

    async def run():
        async for socket in websockets.connect(WS_BASE):
            state("open")
            try:
                async for text in socket:
                    message(text)
            except websockets.ConnectionClosed:
                pass
            closed(socket.close_code, socket.close_reason)

    asyncio.run(run())


def websockets_sync():
    import websockets
    from websockets.sync.client import connect

    def once():
        with connect(ws_url()) as socket:
            state("open")
            try:
                while True:
                    message(socket.recv())
            except websockets.ConnectionClosed:
                return closed(socket.close_code, socket.close_reason)

    loop(once)


def websocket_client():
    import websocket

    def once():
        app = websocket.WebSocketApp(
            ws_url(),
            on_open=lambda _: state("open"),
            on_message=lambda _, text: message(text),
            on_error=lambda _, error: state("error", error_text(error)),
            on_close=lambda _, code, reason: closed(code, reason),
        )
        app.run_forever()
        return "closed"

    loop(once)


def websocket_client_recv():
    import websocket

    def once():
        socket = websocket.create_connection(ws_url())
        state("open")
        while True:
            code, data = socket.recv_data()
            if code == websocket.ABNF.OPCODE_CLOSE:
                return closed(int.from_bytes(data[:2], "big"), data[2:])
            message(data)

    loop(once)


def aiohttp_websocket():
    import aiohttp

    async def once():
        async with aiohttp.ClientSession() as session, session.ws_connect(ws_url()) as socket:
            state("open")
            async for frame in socket:
                if frame.type == aiohttp.WSMsgType.ERROR:
                    raise socket.exception()
                message(frame.data)
            return closed(socket.close_code)

    async_loop(once)


def tornado_websocket():
    from tornado.websocket import websocket_connect

    async def once():
        socket = await websocket_connect(ws_url())
        state("open")
        while (text := await socket.read_message()) is not None:
            message(text)
        return closed(socket.close_code, socket.close_reason)

    async_loop(once)


def autobahn():
    from autobahn.asyncio.websocket import WebSocketClientFactory, WebSocketClientProtocol

    class Protocol(WebSocketClientProtocol):
        def onOpen(self):
            state("open")

        def onMessage(self, payload, isBinary):
            message(payload)

        def onClose(self, wasClean, code, reason):
            closed(code, reason)
            self.factory.ended.set_result("closed")

    async def once():
        factory = WebSocketClientFactory(ws_url())
        factory.protocol = Protocol
        factory.ended = asyncio.get_running_loop().create_future()
        await asyncio.get_running_loop().create_connection(factory, "127.0.0.1", int(BASE.rsplit(":", 1)[1]))
        return await factory.ended

    async_loop(once)


def trio_websocket():
    import trio
    import trio_websocket as library

    async def run():
        while True:
            state("connect", last_event_id)
            try:
                async with library.open_websocket_url(ws_url()) as socket:
                    state("open")
                    while True:
                        try:
                            message(await socket.get_message())
                        except library.ConnectionClosed as end:
                            closed(end.reason and end.reason.code, end.reason and end.reason.reason)
                            break
            except Exception as error:
                state("error", error_text(error))
            await trio.sleep(RETRY_SECONDS)

    trio.run(run)


def picows():
    import picows as library

    class Listener(library.WSListener):
        def on_ws_connected(self, transport):
            state("open")
            self.close = None

        def on_ws_frame(self, transport, frame):
            if frame.msg_type == library.WSMsgType.TEXT:
                message(frame.get_payload_as_bytes())
            elif frame.msg_type == library.WSMsgType.CLOSE:
                self.close = (frame.get_close_code(), frame.get_close_message())
                transport.send_close(self.close[0])
                transport.disconnect()
            elif frame.msg_type == library.WSMsgType.PING:
                transport.send_pong(frame.get_payload_as_bytes())

    async def once():
        transport, listener = await library.ws_connect(Listener, ws_url())
        await transport.wait_disconnected()
        return closed(*(listener.close or (None,)))

    async_loop(once)


def httpx_ws():
    import httpx_ws as library

    def once():
        # The library accepts URLs with http and ws.
        with library.connect_ws(ws_url()) as socket:
            state("open")
            try:
                while True:
                    message(socket.receive_text())
            except library.WebSocketDisconnect as end:
                return closed(end.code, end.reason)

    loop(once)


def simple_websocket():
    import simple_websocket as library

    def once():
        socket = library.Client(ws_url())
        state("open")
        try:
            while True:
                message(socket.receive())
        except library.ConnectionClosed as end:
            return closed(end.reason, end.message)

    loop(once)


def lomond():
    from lomond import WebSocket

    def once():
        close = (None,)
        for event in WebSocket(ws_url()).connect():
            if event.name == "ready":
                state("open")
            elif event.name == "text":
                message(event.text)
            elif event.name == "closing":
                close = (event.code, event.reason)
            elif event.name == "connect_fail":
                raise ConnectionError(event.reason)
        return closed(*close)

    loop(once)


def ws4py(**options):
    from ws4py.client.threadedclient import WebSocketClient

    class Client(WebSocketClient):
        def opened(self):
            state("open")

        def closed(self, code, reason=None):
            closed(code, reason)

        def received_message(self, text):
            message(text.data)

    def once():
        client = Client(ws_url(), **options)
        client.connect()
        client.run_forever()
        return "closed"

    loop(once)


# --- command-line clients -------------------------------------------------------------------------------------------


def command(arguments, hint):
    """Runs a command for each stream and reads its lines. `hint` maps its exit status to what a script sees."""

    def run():
        def once():
            process = subprocess.Popen(
                arguments(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            try:
                for line in process.stdout:
                    if line.startswith("data: "):
                        line = line[6:]
                    if line.startswith("{"):
                        message(line.rstrip("\n"))
                errors = process.stderr.read().strip().splitlines()
            finally:
                process.kill()
                status = process.wait()
            if status in hint:
                return state("end", f"status {status}") or "ended"
            state("error", f"status {status}: {errors[-1] if errors else ''}")
            return "ended"

        loop(once)

    return run


def curl():
    more = [f"-HLast-Event-ID: {last_event_id}"] if last_event_id else []
    return ["curl", "-sSN", *more, SSE_URL]


CLIENTS = {
    "requests": requests_iter_lines,
    "sseclient-py": sseclient_py,
    "sseclient": sseclient,
    "sseclient, skip empty": lambda: sseclient(skip_empty=True),
    "requests-sse": requests_sse,
    "httpx": httpx_lines,
    "httpx, timeout=None": lambda: httpx_lines(timeout=None),
    "httpx-sse": httpx_sse,
    "httpx-sse, timeout=None": lambda: httpx_sse(timeout=None),
    "aiohttp": aiohttp_lines,
    "aiohttp-sse-client": aiohttp_event_source("aiohttp_sse_client"),
    "aiohttp-sse-client2": aiohttp_event_source("aiohttp_sse_client2"),
    "aiosseclient": aiosseclient,
    "launchdarkly-eventsource (Python)": launchdarkly,
    "urllib3": urllib3_stream,
    "urllib3, TextIOWrapper": urllib3_lines,
    "urllib.request": standard_library,
    "pycurl": pycurl_lines,
    "tornado": tornado_sse,
    "tornado, request_timeout=0": lambda: tornado_sse(request_timeout=0),
    "websockets": websockets_asyncio,
    "websockets, async for": websockets_iterator,
    "websockets, sync": websockets_sync,
    "websocket-client": websocket_client,
    "websocket-client, recv": websocket_client_recv,
    "aiohttp, ws_connect": aiohttp_websocket,
    "tornado, websocket_connect": tornado_websocket,
    "autobahn": autobahn,
    "trio-websocket": trio_websocket,
    "picows": picows,
    "httpx-ws": httpx_ws,
    "simple-websocket": simple_websocket,
    "lomond": lomond,
    "ws4py": ws4py,
    "ws4py, exclude_headers": lambda: ws4py(exclude_headers=["Origin"]),
    "curl": command(curl, [0]),
    "wscat": command(lambda: [os.environ["WSCAT"], "-c", ws_url()], [0]),
    "websocat": command(lambda: [os.environ["WEBSOCAT"], "-E", "-B", "65536", ws_url()], [0]),
}

if NAME not in CLIENTS:
    sys.exit(f"unknown client: {NAME}; known: {', '.join(CLIENTS)}")
CLIENTS[NAME]()
