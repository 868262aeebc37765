"""A fake Kubernetes API server for tests/scripts/abuse: one namespace, lists, watches and reviews, without TLS.

It runs in a process of its own, so that its work does not delay the clients that are measured. A POST to /control
changes objects, starts a fault or returns counts of requests. docs/kubernetes-behavior.md has facts about lists and
watches.

    abuse_api.py PODS    prints its port, then serves until its standard input ends
"""
import asyncio
import collections
import json
import os
import sys
import time
import urllib.parse

NAMESPACE = "boilerhouse"
PODS_PATH = f"/api/v1/namespaces/{NAMESPACE}/pods"
CLAIMS_PATH = f"/apis/boilerhouse.dev/v1alpha1/namespaces/{NAMESPACE}/boilerhouseclaims"
# The token that a TokenReview accepts, and its audience.
VALID_TOKEN, AUDIENCE = "valid-token", "abuse"
# A TokenReview takes this long, in seconds. Real API servers ask webhooks or verify signatures.
REVIEW_SECONDS = 0.05
# Each page of a slow list takes this long.
SLOW_PAGE_SECONDS = 10
ENDLESS_CHUNK = b"x" * (256 << 10)


def pod(n, version, stamp="0"):
    """Returns the JSON of a managed Pod. Its view has about 0.3 KiB."""
    labels = {"boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": f"workload-{n % 50}",
              "boilerhouse.dev/tenant": f"tenant-{n % 500}", "stamp": stamp}
    metadata = {"name": f"pod-{n:05}", "namespace": NAMESPACE, "uid": f"00000000-0000-4000-8000-{n:012}",
                "resourceVersion": str(version), "creationTimestamp": "2026-01-02T03:04:05Z", "labels": labels}
    status = {"phase": "Running", "podIP": f"10.0.{n >> 8 & 255}.{n & 255}"}
    return json.dumps({"metadata": metadata, "status": status}).encode()


# 500 Pods. The page's number makes their names and uids different from those of other pages.
ENDLESS_PAGE = b",".join(pod(n, 1) for n in range(500))
ENDLESS_PAGE = ENDLESS_PAGE.replace(b'"pod-', b'"pod-NUMBER-').replace(b'"000000', b'"NUMBER')


class Watch:
    """An open watch. Ids increase in the order of their starts."""

    def __init__(self, number):
        self.number, self.expired = number, False


class Api:
    def __init__(self, pods):
        # Each Pod's versions, oldest first. Lists and watches before `floor` are answered with 410.
        self.pods = [[(n + 1, pod(n, n + 1))] for n in range(pods)]
        self.floor, self.version = pods + 10, pods + 1000
        self.changes = []
        self.changed = asyncio.Event()
        self.counts = collections.Counter()
        self.watches, self.next_watch = set(), 0
        # Faults: the first watch with an endless line; lists without an end that are `endless`, `empty` or `slow`.
        self.endless_line_from, self.list_fault = None, None
        # Of each endless list: pages, and the times of its first and last request.
        self.endless_lists = []

    def modify(self, n):
        """Modifies a Pod and returns the time, which is also its label `stamp`."""
        self.version += 1
        stamp = f"{time.monotonic():.6f}"
        body = pod(n, self.version, stamp)
        self.pods[n].append((self.version, body))
        self.changes.append((self.version, b'{"type":"MODIFIED","object":' + body + b"}\n"))
        self.wake()
        return stamp

    def wake(self):
        self.changed.set()
        self.changed = asyncio.Event()

    def control(self, request):
        match request["do"]:
            case "modify":
                return {"stamp": self.modify(request["pod"]), "version": self.version}
            case "expire":
                for watch in self.watches:
                    watch.expired |= watch.number >= request["from"]
                self.wake()
            case "endless-line":
                self.endless_line_from = request["from"]
                self.wake()
            case "list-fault":
                self.list_fault = request["fault"]
        return {"counts": self.counts, "next_watch": self.next_watch, "endless_lists": self.endless_lists,
                "open_watches": len(self.watches), "floor": self.floor, "now": time.monotonic()}

    async def serve(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, target, _ = head[0].split(" ")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                url = urllib.parse.urlsplit(target)
                query = dict(urllib.parse.parse_qsl(url.query))
                await self.answer(method, url.path, query, body, reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, method, path, query, body, reader, writer):
        match (method, path):
            case ("POST", "/control"):
                reply(writer, 200, json.dumps(self.control(json.loads(body))).encode())
            case ("GET", _) if path == f"/api/v1/namespaces/{NAMESPACE}":
                self.counts["namespace"] += 1
                reply(writer, 200, json.dumps({"metadata": {"name": NAMESPACE, "uid": "abuse-namespace"}}).encode())
            case ("GET", _) if path in (PODS_PATH, CLAIMS_PATH) and query.get("watch") in ("true", "1"):
                self.counts["watches"] += 1
                await self.watch(path == PODS_PATH, query, reader, writer)
            case ("GET", _) if path in (PODS_PATH, CLAIMS_PATH):
                await self.list(path == PODS_PATH, query, writer)
            case ("POST", "/apis/authentication.k8s.io/v1/tokenreviews"):
                self.counts["token reviews"] += 1
                await asyncio.sleep(REVIEW_SECONDS)
                accepted = json.loads(body)["spec"]["token"] == VALID_TOKEN
                user = {"username": "user", "uid": "1", "groups": ["system:authenticated"]}
                status = {"authenticated": True, "audiences": [AUDIENCE], "user": user} if accepted else {}
                reply(writer, 201, json.dumps({"status": status}).encode())
            case ("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews"):
                self.counts["access reviews"] += 1
                reply(writer, 201, json.dumps({"status": {"allowed": True}}).encode())
            case _:
                reply(writer, 404, status_object(404, "NotFound"))

    async def list(self, is_pods, query, writer):
        token, limit = query.get("continue", ""), int(query.get("limit", 0) or 1 << 30)
        kind = "pages" if token else "probes" if limit == 1 else "lists"
        self.counts[kind] += 1
        if self.list_fault and is_pods and limit != 1:
            if self.list_fault == "slow":
                await asyncio.sleep(SLOW_PAGE_SECONDS)
            return self.endless_page(token, writer)
        version, start = self.version, 0
        if token:
            version, start = map(int, token.split("."))
        elif query.get("resourceVersionMatch") == "Exact":
            version = int(query["resourceVersion"])
        if version < self.floor:
            return reply(writer, 410, status_object(410, "Expired"))
        pods = self.pods if is_pods else []
        page = [newest_at(versions, version) for versions in pods[start:start + limit]]
        more = f"{version}.{start + limit}" if start + limit < len(pods) else ""
        reply(writer, 200, list_object(version, more, page))

    def endless_page(self, token, writer):
        """Answers with another page of an endless list: 500 more Pods, or nothing."""
        number = int(token) if token.isdigit() else len(self.endless_lists)
        if number == len(self.endless_lists):
            self.endless_lists.append({"pages": 0, "first": time.monotonic(), "last": 0})
        record = self.endless_lists[number]
        page = ENDLESS_PAGE.replace(b"NUMBER", b"%06x" % (number << 16 | record["pages"]))
        record["pages"] += 1
        record["last"] = time.monotonic()
        reply(writer, 200, list_object(self.version, str(number), [page] if self.list_fault == "endless" else []))

    async def watch(self, is_pods, query, reader, writer):
        version = int(query["resourceVersion"])
        end = time.monotonic() + float(query.get("timeoutSeconds", 1800))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        watch = Watch(self.next_watch)
        self.next_watch += 1
        self.watches.add(watch)
        watch.expired = version < self.floor
        position = sum(1 for changed, _ in self.changes if changed <= version)
        try:
            while (now := time.monotonic()) < end and not watch.expired:
                changed = self.changed
                while is_pods and position < len(self.changes):
                    chunk(writer, self.changes[position][1])
                    position += 1
                if self.endless_line_from is not None and watch.number >= self.endless_line_from:
                    chunk(writer, b'{"type":"MODIFIED","object":{"metadata":{"name":"' + ENDLESS_CHUNK)
                    while True:
                        chunk(writer, ENDLESS_CHUNK)
                        await writer.drain()
                await writer.drain()
                try:
                    await asyncio.wait_for(changed.wait(), min(end - now, 1))
                except asyncio.TimeoutError:
                    if reader.at_eof():
                        raise ConnectionResetError from None
            if watch.expired:
                chunk(writer, b'{"type":"ERROR","object":' + status_object(410, "Expired") + b"}\n")
            elif query.get("allowWatchBookmarks") == "true":
                chunk(writer, b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"%d"}}}\n' % self.version)
            writer.write(b"0\r\n\r\n")
        finally:
            self.watches.discard(watch)


def newest_at(versions, version):
    return next(body for changed, body in reversed(versions) if changed <= version)


def list_object(version, more, items):
    metadata = json.dumps({"resourceVersion": str(version), "continue": more}).encode()
    return b'{"kind":"List","metadata":' + metadata + b',"items":[' + b",".join(items) + b"]}"


def status_object(code, reason):
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason}
    return json.dumps({**status, "code": code}).encode()


def reply(writer, status, body):
    head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


def chunk(writer, data):
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


async def main():
    api = Api(int(sys.argv[1]))
    server = await asyncio.start_server(api.serve, "127.0.0.1", 0, limit=1 << 20, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    # Open watches need not end in order.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
