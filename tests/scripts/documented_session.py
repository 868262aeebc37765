"""One document as a session of a reader: its blocks run in order, with the files and variables of the blocks before.

A session has a folder of its own, free ports in place of the documented ones, and, if it needs a cluster, a real API
server. All processes that it starts are ended with it.
"""

import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import documented_blocks as blocks
import documented_rules as rules
from control_plane import ControlPlane, free_port

ROOT = Path(__file__).resolve().parent.parent.parent
READY_SECONDS = 60
COMMAND_SECONDS = 60
# Commands of developers, such as `cargo test`, compile first.
BUILD_SECONDS = 1800
# Control sequences of terminals.
CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
CLAIM = {
    "apiVersion": "boilerhouse.dev/v1alpha1",
    "kind": "BoilerhouseClaim",
    "metadata": {"name": "alice-repl"},
    "spec": {"tenantId": "alice", "workloadRef": "python-repl"},
}
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "name": "python-repl-1",
        "labels": {"boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": "python-repl"},
    },
    "spec": {"containers": [{"name": "main", "image": "none"}]},
}


class Failed(Exception):
    pass


def listens(port):
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_ready(port):
    """Whether a bridge has the state of its cluster."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


class Boilerhouse(BaseHTTPRequestHandler):
    """Stands for the API of Boilerhouse behind a proxy."""

    def do_GET(self):
        body = f"answer of Boilerhouse: {self.path}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Session:
    def __init__(self, document, bridge, binaries, helm):
        self.document, self.bridge, self.binaries, self.helm = document, bridge, binaries, helm
        self.folder = Path(tempfile.mkdtemp(prefix="documented-"))
        self.ports = {port: free_port() for port in rules.PORTS}
        self.processes, self.bridges, self.logs = [], [], 0
        self.plane = self.server = None
        self.commands = 0

    def __enter__(self):
        try:
            self.prepare()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            end(process)
        if self.server:
            self.server.shutdown()
        if self.plane:
            self.plane.__exit__()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- what a reader has before the first block ------------------------------------------------------------------

    def prepare(self):
        path, work, tools = self.document.path, self.folder / "work", self.folder / "bin"
        in_repository = rules.IN_REPOSITORY.get(path)
        self.work = ROOT / in_repository if in_repository else work
        work.mkdir()
        for entry in ROOT.iterdir():
            if entry.name not in (".git", "deploy", "target", "node_modules"):
                (work / entry.name).symlink_to(entry)
        shutil.copytree(ROOT / "deploy", work / "deploy")
        for file in (work / "deploy/proxy").iterdir():
            text = self.with_ports(file.read_text())
            for documented, name in rules.PROXY_FILES:
                text = text.replace(documented, str(work / name))
            file.write_text(text)
        tools.mkdir()
        (tools / "boilerhouse-bridge").symlink_to(self.bridge)
        # A reader sees the answer. Here an answer with an error must fail the command.
        self.wrap("curl", "--fail-with-body --no-progress-meter")
        self.wrap("nginx", f"-e stderr -p {self.folder} -g 'daemon off; pid {self.folder}/nginx.pid;'")
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("BRIDGE_", "EP_", "K8S_")) and name not in ("PORT", "LOG_LEVEL", "RUST_LOG", "KEY")
        }
        modules = ROOT / "tests/node/node_modules/.bin"
        search = [tools, *([self.helm.parent] if self.helm else []), self.binaries, modules]
        self.environment |= {
            "PATH": ":".join([*map(str, search), self.environment["PATH"], "/usr/sbin"]),
            "REPOSITORY": str(ROOT),
            # The documented default ports.
            "PORT": str(self.ports[3000]),
            "BRIDGE_LISTEN": f"127.0.0.1:{self.ports[11234]}",
            # No command can reach a cluster of this machine.
            "KUBECONFIG": str(self.folder / "no-kubeconfig"),
            "TERM": "xterm-256color",
            **rules.ENVIRONMENT.get(path, {}),
        }
        if path in rules.IN_REPOSITORY:
            self.environment |= {"BRIDGE_BINARY": str(self.bridge), "KUBEBUILDER_ASSETS": str(self.binaries)}
        text = "\n".join(block.text for block in self.document.blocks if block.is_shell and not block.not_run)
        if rules.CLUSTER.search(text) and not in_repository:
            self.start_cluster()
        if "8080" in text:
            self.server = ThreadingHTTPServer(("127.0.0.1", self.ports[3001]), Boilerhouse)
            threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def wrap(self, program, arguments):
        path = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin")
        if path:
            script = self.folder / "bin" / program
            script.write_text(f'#!/bin/sh\nexec {path} {arguments} "$@"\n')
            script.chmod(0o755)

    def start_cluster(self):
        self.plane = ControlPlane(self.binaries)
        self.plane.__enter__()
        self.environment |= {
            name: value
            for name, value in self.plane.environment().items()
            if name.startswith(("HELM_", "KUBE")) and name != "KUBEBUILDER_ASSETS"
        }
        # No controller creates the ServiceAccount that a Pod needs.
        for command in (
            "kubectl create namespace boilerhouse",
            "kubectl -n boilerhouse create serviceaccount default",
            f"kubectl apply --server-side -f {ROOT}/crds/boilerhouseclaims.yaml",
            "kubectl wait --for=condition=Established --timeout=60s crd --all",
            f"kubectl -n boilerhouse create -f - <<'EOF'\n{json.dumps(POD)}\nEOF",
            f"kubectl -n boilerhouse create -f - <<'EOF'\n{json.dumps(CLAIM)}\nEOF",
        ):
            self.to_end(command, COMMAND_SECONDS)
        if self.document.path in rules.INSTALLED:
            literals = " ".join(f"--from-literal={name}={'k' * 48}" for name in ("api-key", "session-key"))
            self.to_end(f"kubectl -n boilerhouse create secret generic {rules.RELEASE} {literals}", COMMAND_SECONDS)
            self.to_end("kubectl apply -k deploy/kustomize/base", COMMAND_SECONDS)

    # --- the blocks ------------------------------------------------------------------------------------------------

    def with_ports(self, text):
        return rules.PORT.sub(lambda found: str(self.ports[int(found[1])]), text)

    def run(self):
        for block in self.document.blocks:
            if block.file_name:
                (self.work / block.file_name).write_text(self.with_ports(block.text))
            if not block.is_shell or block.not_run:
                continue
            for command in blocks.commands(block):
                for (document, start), before in rules.BEFORE.items():
                    if document == self.document.path and command.text.startswith(start):
                        for text in before:
                            self.run_command(blocks.Command(text, command.line))
                self.run_command(command)
                self.commands += 1

    def run_command(self, command):
        text = command.text.strip()
        for placeholder, value in rules.PLACEHOLDERS.get(self.document.path, {}).items():
            text = text.replace(placeholder, value)
        text = self.with_ports(rules.replaced(text))
        try:
            self.dispatch(command, text)
        except Failed as error:
            raise Failed(f"{self.document.path}:{command.line}: {command.text.strip()}\n{error}") from None

    def dispatch(self, command, text):
        service = next((ready for pattern, ready in rules.SERVICES if re.search(pattern, text)), None)
        needs_bridge = any(str(self.ports[port]) in text for port in (3000, 8080))
        if service is None and needs_bridge and not listens(self.ports[3000]):
            self.start("boilerhouse-bridge demo", "Ctrl-C ends it")
        if text.startswith("run-as-pod "):
            return self.run_as_pod(*text.split()[1:])
        if rules.BRIDGE.search(text) and self.bridges:
            # A reader ends the bridge before, because both use the same port.
            end(self.bridges.pop())
        if service is not None:
            return self.start(text, service)
        for pattern, seen in rules.WATCHES:
            if re.search(pattern, text):
                return self.until(text, seen)
        needs_build = rules.FULL_ONLY.search(text)
        output = self.to_end(text, BUILD_SECONDS if needs_build else COMMAND_SECONDS, command.must_fail)
        for pattern, expected in rules.EXPECTED:
            if re.search(pattern, command.text) and not re.search(expected, output):
                raise Failed(f"the output does not have '{expected}':\n{tail(output)}")

    # --- processes -------------------------------------------------------------------------------------------------

    def popen(self, text, **options):
        """Starts a command with the variables of the commands before, and keeps its variables."""
        state = self.folder / "variables"
        state.touch()
        code = f"set -ao pipefail\n. {state}\nset +e\n{text}\ncode=$?\nexport -p >{state}\nexit $code\n"
        process = subprocess.Popen(
            ["bash", "-c", code], cwd=self.work, env=self.environment, start_new_session=True, **options
        )
        self.processes.append(process)
        return process

    def to_end(self, text, seconds, must_fail=False):
        process = self.popen(text, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            output = process.communicate(timeout=seconds)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            end(process)
            raise Failed(f"did not end within {seconds} s") from None
        # curl ends with 28 at the time that `--max-time` gives to a stream.
        is_ok = process.returncode == 0 or (process.returncode == 28 and "--max-time" in text)
        if is_ok == must_fail:
            raise Failed(f"ended with {process.returncode}:\n{tail(output)}")
        return output

    def start(self, text, ready, port=None):
        """Starts a command that runs until the end of the session, and waits until it is ready: its output has a text, or
        it listens on a documented port. A bridge, which listens on `port`, has the state of its cluster then."""
        self.logs += 1
        log = self.folder / f"{self.logs}.log"
        with log.open("wb") as file:
            process = self.popen(text, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        if rules.BRIDGE.search(text):
            port = self.ports[3000]
            self.bridges.append(process)
        is_port = isinstance(ready, int)
        self.wait(process, log, lambda output: listens(self.ports[ready]) if is_port else re.search(ready, output))
        if port:
            self.wait(process, log, lambda _: is_ready(port))

    def until(self, text, seen):
        """Runs a command that does not end, until its output has a text."""
        log = self.folder / "watched.log"
        with log.open("wb") as file:
            if rules.TERMINAL.search(text):
                terminal, inner = pty.openpty()
                text = f"stty rows 30 cols 120\n{text}"
                process = self.popen(text, stdin=inner, stdout=inner, stderr=inner)
                os.close(inner)
                threading.Thread(target=copy, args=(terminal, log), daemon=True).start()
            else:
                # An open input: wscat ends at the end of its input.
                process = self.popen(text, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT)
        try:
            self.wait(process, log, lambda output: re.search(seen, output))
        finally:
            end(process)

    def wait(self, process, log, is_done):
        limit = time.monotonic() + READY_SECONDS
        while True:
            ended, output = process.poll(), CONTROL.sub(" ", log.read_text(errors="replace"))
            if is_done(output):
                return
            if ended is not None:
                raise Failed(f"ended with {ended} before the expected output:\n{tail(output)}")
            if time.monotonic() > limit:
                raise Failed(f"no expected output within {READY_SECONDS} s:\n{tail(output)}")
            time.sleep(0.05)

    def run_as_pod(self, namespace, target, local, remote):
        """Runs the bridge with the ServiceAccount, the Secret and the configuration of the release, on a local port."""

        def get(kind):
            return json.loads(self.to_end(f"kubectl -n {namespace} get {kind} -o json", COMMAND_SECONDS))

        if listens(int(local)):
            return
        if target.split("/")[0] not in ("svc", "deployment"):
            raise Failed(f"{target} is no Service and no Deployment")
        self.to_end(f"kubectl -n {namespace} get {target}", COMMAND_SECONDS)
        data = [item.get("data", {}) for item in get("configmaps")["items"]]
        found = [files["config.yaml"] for files in data if "config.yaml" in files]
        if len(found) != 1:
            raise Failed(f"{len(found)} configurations in the namespace")
        (self.folder / "config.yaml").write_text(found[0])
        (self.folder / "session-key").write_text("s" * 48)
        token = self.to_end(f"kubectl -n {namespace} create token {rules.RELEASE}", COMMAND_SECONDS).strip()
        key = f"$(kubectl -n {namespace} get secret {rules.RELEASE} -o jsonpath='{{.data.api-key}}' | base64 -d)"
        ports = [int(local), free_port()]
        if int(remote) == self.ports[9090]:
            ports.reverse()
        self.start(
            f"BOILERHOUSE_API_KEY={key} KUBECONFIG={self.plane.kubeconfig_of(token)} boilerhouse-bridge serve"
            f" --config {self.folder}/config.yaml --listen-host 127.0.0.1 --port {ports[0]}"
            f" --probe-listen 127.0.0.1:{ports[1]} --session-key-file {self.folder}/session-key",
            "listening on",
            int(local),
        )


def copy(terminal, log):
    """Copies what a terminal shows, until its last process ends."""
    with log.open("ab", buffering=0) as file:
        try:
            while data := os.read(terminal, 65536):
                file.write(data)
        except OSError:
            pass
        os.close(terminal)


def end(process):
    """Ends a command and what it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def tail(output):
    return "\n".join(output.rstrip().split("\n")[-25:])[-3000:]
