"""The check that installs the chart into a real API server (control_plane.py).

No controller and no node runs: a Deployment gets no Pods, and no container starts. The check therefore sends the Pods to
the admission of the API server, and starts their containers itself.
"""

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import yaml

from control_plane import free_port

NAMESPACE = "boilerhouse"
RELEASE = "boilerhouse-bridge"


def commands(plane, checks):
    """Returns `kubectl`, `get` for objects of the namespace, and `helm` for the release."""

    def kubectl(*arguments, **options):
        return checks.run(checks.KUBECTL, *arguments, env=plane.environment(), **options)

    def get(*arguments):
        return json.loads(kubectl("-n", NAMESPACE, "get", *arguments, "-o", "json"))

    def helm(action, *arguments, **options):
        chart = [checks.CHART] if action in ("install", "upgrade") else []
        return checks.helm(action, RELEASE, *chart, "-n", NAMESPACE, *arguments, env=plane.environment(), **options)

    return kubectl, get, helm


def check_release(plane, checks):
    """Installs, upgrades, uses and removes the release."""
    steps = []
    kubectl, get, helm = commands(plane, checks)

    def pod_template():
        return get("deployment", RELEASE)["spec"]["template"]

    def test_pod():
        hooks = checks.helm("get", "hooks", RELEASE, "-n", NAMESPACE, env=plane.environment())
        return next(item for item in yaml.safe_load_all(hooks) if item and item["kind"] == "Pod")

    def secret():
        return get("secret", RELEASE)["data"]

    def admit(pod, code=0):
        """Sends a Pod through the admission of the API server, without creating it."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "admitted", **pod.get("metadata", {})},
            "spec": pod["spec"],
        }
        pod["metadata"].update(name="admitted", namespace=NAMESPACE)
        return kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", input=json.dumps(pod), code=code)

    # The tests of the API server have no controller that creates these.
    kubectl("create", "namespace", NAMESPACE)
    kubectl(
        "label",
        "namespace",
        NAMESPACE,
        "pod-security.kubernetes.io/enforce=restricted",
        "pod-security.kubernetes.io/warn=restricted",
    )
    for file in checks.crds():
        # Client-side apply would exceed the size of an annotation.
        kubectl("apply", "--server-side", "-f", file)
    kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")

    # --- the real API server accepts what the chart renders ---------------------------------------------------------
    helm("install", "--dry-run=server", "--set", "crds.install=true")
    for values in checks.VALUES:
        objects = checks.template("--values", values, release="other", namespace=NAMESPACE)
        # Another watched namespace does not exist. Neither does the ServiceAccount of the test, because this is a dry run.
        kept = [item for item in objects if item["metadata"].get("namespace", NAMESPACE) == NAMESPACE]
        kept = [item for item in kept if item["kind"] != "Pod"]
        # As JSON: PyYAML writes a text such as 12e45678 without quotes, and kubectl reads it as a number.
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": kept})
        answer = kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", input=text)
        assert "Warning" not in answer, f"{values.name}: {answer}"
    kubectl("create", "namespace", "platform")
    for folder in ("base", "overlays/example"):
        answer = kubectl(
            "apply", "--dry-run=server", "--validate=strict", "-k", checks.ROOT / "deploy/kustomize" / folder
        )
        assert "Warning" not in answer, f"{folder}: {answer}"
    steps.append(f"{len(checks.VALUES)} values files and kustomize accepted")

    # --- install ----------------------------------------------------------------------------------------------------
    notes = helm("install", "--set", "crds.install=true")
    assert "Warning" not in notes and "WARNING" not in notes, notes
    kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "boilerhouseclaims.boilerhouse.dev")
    for part in (f"port-forward svc/{RELEASE} 3000:3000", "npx wscat -c ws://localhost:3000/ws", "curl -N -H"):
        assert part in notes, notes
    # The command of the notes that reads the API key.
    command = re.search(r"KEY=\$\((kubectl .*)\)", notes)[1].replace("kubectl", checks.KUBECTL, 1)
    key = checks.run("sh", "-c", command, env=plane.environment())
    assert len(key) == 48, key
    before, template = secret(), pod_template()

    # --- PodSecurity `restricted` -----------------------------------------------------------------------------------
    for pod in (template, test_pod()):
        admit(json.loads(json.dumps(pod)))
        # The same Pod without one of the settings is rejected, so the admission is active.
        wrong = json.loads(json.dumps(pod))
        del wrong["spec"]["containers"][0]["securityContext"]["capabilities"]
        assert "violates PodSecurity" in admit(wrong, code=1)
    steps.append("PodSecurity restricted admits both Pods")

    # --- upgrade ----------------------------------------------------------------------------------------------------
    helm("upgrade", "--reuse-values")
    assert (secret(), pod_template()) == (before, template), (
        "an upgrade without a change changes the Secret or rolls the Pods"
    )
    helm("upgrade", "--reuse-values", "--set", "config.heartbeat=30")
    changed = pod_template()["metadata"]["annotations"]
    assert secret() == before, "the upgrade changes the Secret"
    assert changed["checksum/config"] != template["metadata"]["annotations"]["checksum/config"]
    assert changed["checksum/secret"] == template["metadata"]["annotations"]["checksum/secret"]
    # A key that an operator replaces is kept too, and rolls the Pods.
    kubectl("-n", NAMESPACE, "patch", "secret", RELEASE, "-p", json.dumps({"stringData": {"api-key": "n" * 48}}))
    helm("upgrade", "--reuse-values")
    rotated = secret()
    assert rotated["session-key"] == before["session-key"] and rotated["api-key"] != before["api-key"]
    assert pod_template()["metadata"]["annotations"]["checksum/secret"] != changed["checksum/secret"]
    # So does a change of a Secret that the chart does not create.
    kubectl(
        "-n",
        NAMESPACE,
        "create",
        "secret",
        "generic",
        "mine",
        "--from-literal=api-key=a",
        "--from-literal=session-key=b",
    )
    sums = []
    for key in ("a", "b"):
        kubectl("-n", NAMESPACE, "patch", "secret", "mine", "-p", json.dumps({"stringData": {"api-key": key}}))
        helm("upgrade", "--reuse-values", "--set", "auth.existingSecret=mine")
        sums.append(pod_template()["metadata"]["annotations"]["checksum/secret"])
    assert sums[0] != sums[1], sums
    # The generated Secret stays for the way back, and a rollback to the first version does not bring the first key back.
    helm("upgrade", "--reuse-values", "--set", "auth.existingSecret=")
    assert secret() == rotated, "the generated Secret is lost when another one is used meanwhile"
    helm("rollback", "1")
    assert secret() == rotated, "a rollback changes the Secret"
    kubectl("-n", NAMESPACE, "delete", "secret", "mine")
    steps.append("upgrade keeps the Secret, a new key rolls the Pods")

    # --- the bridge as this ServiceAccount --------------------------------------------------------------------------
    steps.append(as_service_account(plane, checks, kubectl, get, test_pod()))
    steps.append(as_pods(plane, checks, kubectl, get, helm, pod_template, test_pod))

    # --- the repair of the runbook ----------------------------------------------------------------------------------
    rules = get("role", RELEASE)["rules"]
    kubectl("-n", NAMESPACE, "patch", "role", RELEASE, "--type=merge", "-p", json.dumps({"rules": rules[:1]}))
    repair = []
    if checks.helm.name == "helm":
        # Helm 4 applies on the server, where the changed rules belong to kubectl.
        assert "conflict" in helm("upgrade", "--reuse-values", code=1)
        repair = ["--server-side=true", "--force-conflicts"]
    helm("upgrade", "--reuse-values", *repair)
    assert get("role", RELEASE)["rules"] == rules
    steps.append("an upgrade restores a changed Role")

    # --- tokens -----------------------------------------------------------------------------------------------------
    helm("upgrade", "--reuse-values", "--set", "auth.tokenAudience=boilerhouse-bridge")
    steps.append(with_tokens(plane, checks, kubectl))

    # --- uninstall --------------------------------------------------------------------------------------------------
    helm("uninstall")
    kinds = "deployment,service,configmap,serviceaccount,role,rolebinding,poddisruptionbudget,secret"
    left = [f"{item['kind']}/{item['metadata']['name']}" for item in get(kinds)["items"]]
    assert left == [f"Secret/{RELEASE}"], left
    assert RELEASE not in kubectl("get", "clusterroles,clusterrolebindings", "-o", "name")
    kubectl("get", "crd", "boilerhouseclaims.boilerhouse.dev")
    # The next installation takes over what has stayed.
    helm("install", "--set", "crds.install=true")
    assert secret() == rotated, "the Secret is replaced by another installation"
    steps.append("uninstall leaves the Secret and the CRD, the next install uses them")

    # Another namespace to watch: the Role is there.
    helm("upgrade", "--set", "watchNamespace=platform")
    names = kubectl(
        "get",
        "roles,rolebindings",
        "-A",
        "-o",
        "custom-columns=KIND:.kind,NAMESPACE:.metadata.namespace,NAME:.metadata.name",
        "--no-headers",
    )
    # With the namespace of the release in the name, because another release may watch the same namespace.
    ours = [line.split()[1] for line in names.splitlines() if line.split()[2] == f"{NAMESPACE}.{RELEASE}"]
    assert ours == ["platform", "platform"], names
    return "; ".join(steps)


@contextlib.contextmanager
def running(plane, checks, kubeconfig, *flags, key=None):
    """Runs the bridge with the configuration of the release, on a free port."""
    settings = yaml.safe_load(
        json.loads(
            checks.run(
                checks.KUBECTL, "-n", NAMESPACE, "get", "configmap", RELEASE, "-o", "json", env=plane.environment()
            )
        )["data"]["config.yaml"]
    )
    settings.update({"listen-host": "127.0.0.1", "port": 0})
    settings.pop("probe-listen")
    (plane.folder / "session-key").write_text("s" * 48)
    settings["session-key-file"] = str(plane.folder / "session-key")
    config = plane.folder / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    environment = plane.environment(kubeconfig)
    if key:
        environment["BOILERHOUSE_API_KEY"] = key
    with checks.bridge("serve", "--config", str(config), *flags, env=environment) as started:
        yield started


def request(url, token=None):
    """Returns the status and the body of a GET."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def wait_for(what, found, seconds=30):
    end = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.1)
    return result


def account_kubeconfig(plane, kubectl):
    return plane.kubeconfig_of(kubectl("-n", NAMESPACE, "create", "token", RELEASE).strip())


# Starts the program of a container in its root folder, which is read-only. A build of the bridge that is not static needs
# the libraries of this machine. The mounts end with the process.
START_CONTAINER = """
set -eu
root=$0
mount --bind "$root" "$root"
for folder in /lib /lib64 /usr/lib; do
    if [ -d "$folder" ]; then
        mkdir -p "$root$folder"
        mount --bind "$folder" "$root$folder"
    fi
done
mount -o remount,bind,ro "$root"
exec chroot --userspec="$1:$1" --groups="$1" "$root" /boilerhouse-bridge "${@:2}"
"""


class Container:
    """Runs the container of a Pod without a node: its arguments, variables, files, user and read-only root folder."""

    def __init__(self, plane, checks, kubectl, get, pod, name=None):
        spec = pod["spec"]
        container = next(item for item in spec["containers"] if name in (None, item["name"]))
        user = str(spec["securityContext"]["runAsUser"])
        root = Path(tempfile.mkdtemp(prefix="root-", dir=plane.folder))
        for folder in (plane.folder, root):
            folder.chmod(0o755)
        shutil.copy(checks.BRIDGE, root / "boilerhouse-bridge")

        def write(path, content, mode=0o644):
            file = root / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            file.chmod(mode)
            # The kubelet gives volumes to the group of the Pod.
            os.chown(file, 0, spec["securityContext"]["fsGroup"])

        def new_token(*arguments):
            return kubectl("-n", NAMESPACE, "create", "token", spec["serviceAccountName"], *arguments).strip().encode()

        for mount in container["volumeMounts"]:
            volume = next(volume for volume in spec["volumes"] if volume["name"] == mount["name"])
            if "projected" in volume:
                source = volume["projected"]["sources"][0]["serviceAccountToken"]
                files, mode = (
                    {source["path"]: new_token("--audience", source["audience"])},
                    volume["projected"]["defaultMode"],
                )
            elif "configMap" in volume:
                data = get("configmap", volume["configMap"]["name"])["data"]
                files, mode = {name: text.encode() for name, text in data.items()}, 0o644
            else:
                data = get("secret", volume["secret"]["secretName"])["data"]
                items = volume["secret"].get("items") or [{"key": key, "path": key} for key in data]
                files = {item["path"]: base64.b64decode(data[item["key"]]) for item in items}
                mode = volume["secret"]["defaultMode"]
            for name, content in files.items():
                write(f"{mount['mountPath']}/{name}", content, mode)
        environment = {"PATH": os.environ["PATH"], "KUBERNETES_SERVICE_HOST": "127.0.0.1"}
        environment["KUBERNETES_SERVICE_PORT"] = str(plane.port)
        for variable in container.get("env", []):
            source = variable.get("valueFrom", {}).get("secretKeyRef")
            value = base64.b64decode(get("secret", source["name"])["data"][source["key"]]).decode() if source else None
            environment[variable["name"]] = value or variable["value"]
        if spec["automountServiceAccountToken"]:
            account = "/var/run/secrets/kubernetes.io/serviceaccount"
            write(f"{account}/token", new_token())
            write(f"{account}/ca.crt", (plane.folder / "certificates/apiserver.crt").read_bytes())
            write(f"{account}/namespace", NAMESPACE.encode())
        # In place of the DNS of the cluster.
        write("/etc/hosts", f"127.0.0.1 {RELEASE}.{NAMESPACE}.svc\n".encode())
        write("/etc/nsswitch.conf", b"hosts: files\n")
        self.log = plane.folder / f"{root.name}.log"
        command = ["unshare", "--mount", "bash", "-c", START_CONTAINER, str(root), user, *container["args"]]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        plane.servers.append(self.process)


def as_pods(plane, checks, kubectl, get, helm, pod_template, test_pod):
    """The containers of the Deployment and of `helm test` run as their Pods say: with the API key, tokens, and TLS."""
    if os.geteuid() != 0:
        return "containers are not run: root is needed"
    create_certificate(plane, kubectl)
    audience = "boilerhouse-bridge"
    seconds = [
        run_pods(plane, checks, kubectl, get, helm, pod_template, test_pod, *settings)
        for settings in (
            [],
            ["--set", f"auth.apiKey=false,auth.tokenAudience={audience}"],
            ["--set", "tls.existingSecret=certificate"],
        )
    ]
    kubectl("-n", NAMESPACE, "delete", "secret", "certificate")
    return f"the containers run as their Pods say, with key, token and TLS; drains take {max(seconds):.0f} s"


def create_certificate(plane, kubectl):
    """Creates a Secret like that of cert-manager, for the name of the Service."""

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], check=True, cwd=plane.folder, stderr=subprocess.DEVNULL)

    name = f"subjectAltName=DNS:{RELEASE}.{NAMESPACE}.svc"
    for file in ("ca", "tls"):
        openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", f"{file}.key")
    openssl("req", "-x509", "-key", "ca.key", "-subj", "/CN=test", "-days", "1", "-out", "ca.crt")
    openssl("req", "-new", "-key", "tls.key", "-subj", "/CN=bridge", "-out", "tls.csr")
    (plane.folder / "extensions").write_text(f"{name}\nbasicConstraints=CA:FALSE\n")
    openssl(
        *("x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-set_serial", "1", "-days", "1"),
        *("-extfile", "extensions", "-out", "tls.crt"),
    )
    files = [f"--from-file={plane.folder}/{file}" for file in ("tls.crt", "tls.key", "ca.crt")]
    kubectl("-n", NAMESPACE, "create", "secret", "generic", "certificate", *files)


def run_pods(plane, checks, kubectl, get, helm, pod_template, test_pod, *settings):
    port, probe = free_port(), free_port()
    # The ports of this machine. The test then reaches the bridge under the name and the port of the Service.
    flags = [f"--port={port}", f"--probe-listen=127.0.0.1:{probe}"]
    helm(
        "upgrade",
        "--reset-values",
        "--set",
        f"service.port={port}",
        "--set-json",
        f"extraArgs={json.dumps(flags)}",
        *settings,
    )
    template = pod_template()
    hooks = test_pod()
    bridge = Container(plane, checks, kubectl, get, template)

    def probe_status(name):
        return request(f"http://127.0.0.1:{probe}{template['spec']['containers'][0][name]['httpGet']['path']}")[0]

    def is_ready():
        assert bridge.process.poll() is None, bridge.log.read_text()
        with contextlib.suppress(OSError):
            return probe_status("readinessProbe") == 200

    wait_for("the container is ready", is_ready)
    assert probe_status("livenessProbe") == 200
    test = Container(plane, checks, kubectl, get, hooks)
    assert test.process.wait(60) == 0, test.log.read_text()
    assert "state.initial" in test.log.read_text()
    doctor = Container(plane, checks, kubectl, get, hooks, "doctor")
    assert doctor.process.wait(60) == 0, doctor.log.read_text()
    report = doctor.log.read_text()
    for check in ("kubeconfig", "rbac-pods-watch", "crd", "list", "watch", "credentials", "bridge-ready", "bridge-streams"):
        assert re.search(rf"^  ok    {check} ", report, re.MULTILINE), report
    scheme = re.search(r"--url=(\w+)://", " ".join(hooks["spec"]["containers"][0]["args"]))[1]
    assert f"listening on {scheme}://" in bridge.log.read_text(), bridge.log.read_text()
    assert scheme == ("https" if "tls.existingSecret=certificate" in settings else "http")
    # SIGTERM, as the kubelet sends it: not ready at once, and the end within the grace period.
    arguments = [
        word for word in hooks["spec"]["containers"][0]["args"] if not word.startswith(("--count", "--timeout"))
    ]
    hooks["spec"]["containers"][0]["args"] = arguments
    stream = Container(plane, checks, kubectl, get, hooks)
    wait_for("a stream is open", lambda: "state.initial" in stream.log.read_text())
    started = time.monotonic()
    bridge.process.terminate()
    wait_for("the container is not ready", lambda: probe_status("readinessProbe") == 503, 2)
    wait_for("the stream is closed in order", lambda: "stream.closing" in stream.log.read_text())
    assert bridge.process.wait(template["spec"]["terminationGracePeriodSeconds"]) == 0, bridge.log.read_text()
    drained = time.monotonic() - started
    stream.process.kill()
    helm("upgrade", "--reset-values", "--set", "crds.install=true")
    return drained


def as_service_account(plane, checks, kubectl, get, test_pod):
    """The bridge works with exactly the Role of the chart. Without one of its permissions, it names this permission."""
    kubeconfig = account_kubeconfig(plane, kubectl)
    key = "k" * 48
    with running(plane, checks, kubeconfig, key=key) as (log, address):
        wait_for("the bridge is ready", lambda: request(f"{address}/readyz")[0] == 200)
        assert request(f"{address}/api/v1/instances", key)[0] == 200
        assert request(f"{address}/api/v1/instances")[0] == 401
        # The arguments of the Pod of `helm test`, with the address of this bridge.
        (plane.folder / "token").write_text(key)
        arguments = [
            re.sub(r"^--url=.*", f"--url={address}", argument).replace(
                "/etc/boilerhouse-bridge/token", str(plane.folder)
            )
            for argument in test_pod["spec"]["containers"][0]["args"]
        ]
        event = checks.run(checks.BRIDGE, *arguments)
        assert "state.initial" in event, event
        # It fails when the key is wrong.
        (plane.folder / "token").write_text("wrong")
        checks.run(checks.BRIDGE, *arguments, code=4)
    role = get("role", RELEASE)
    named = []
    for resource, group in (("pods", ""), ("boilerhouseclaims", "boilerhouse.dev"), ("namespaces", "")):
        rules = [rule for rule in role["rules"] if resource in rule["resources"] and group in rule["apiGroups"]]
        for verb in rules[0]["verbs"]:
            fewer = json.loads(json.dumps(role["rules"]))
            next(rule for rule in fewer if resource in rule["resources"])["verbs"].remove(verb)
            fewer = [rule for rule in fewer if rule["verbs"]]
            kubectl("-n", NAMESPACE, "patch", "role", RELEASE, "--type=merge", "-p", json.dumps({"rules": fewer}))
            try:
                with running(plane, checks, kubeconfig, key=key) as (log, address):
                    message = f"cannot {verb} {resource}"
                    wait_for(f"the log has `{message}`", lambda: message in log.read_text())  # noqa: B023
                    named.append(f"{verb} {resource}")
                names = {"pods": "pods", "boilerhouseclaims": "claims", "namespaces": "namespace"}
                check = f"rbac-{names[resource]}-{verb}"
                doctor = ("doctor", "--kubeconfig", kubeconfig, "-n", NAMESPACE, "-o", "json", "--port", "0")
                report = json.loads(checks.run(checks.BRIDGE, *doctor, code=1))
                failed = [found["id"] for found in report["checks"] if found["status"] == "failed"]
                assert failed == [check], (check, report)
            finally:
                kubectl(
                    "-n",
                    NAMESPACE,
                    "patch",
                    "role",
                    RELEASE,
                    "--type=merge",
                    "-p",
                    json.dumps({"rules": role["rules"]}),
                )
    assert len(named) == 5, named
    return f"works with exactly its Role, names each missing permission ({', '.join(named)})"


def with_tokens(plane, checks, kubectl):
    """A Kubernetes token is accepted with the ClusterRole of the chart. Without it, the log names the review."""
    kubeconfig = account_kubeconfig(plane, kubectl)
    token = kubectl("-n", NAMESPACE, "create", "token", RELEASE, "--audience", "boilerhouse-bridge").strip()
    with running(plane, checks, kubeconfig) as (log, address):
        wait_for("the bridge is ready", lambda: request(f"{address}/readyz")[0] == 200)
        wait_for("the token is accepted", lambda: request(f"{address}/api/v1/instances", token)[0] == 200)
    kubectl("delete", "clusterrolebinding", f"{NAMESPACE}.{RELEASE}.token-review")
    with running(plane, checks, kubeconfig) as (log, address):
        wait_for("the bridge is ready", lambda: request(f"{address}/readyz")[0] == 200)
        wait_for("the token is refused", lambda: request(f"{address}/api/v1/instances", token)[0] == 503)
        wait_for("the log names the review", lambda: "TokenReview" in log.read_text())
    return "tokens work with the ClusterRole and the log names it when it is missing"
