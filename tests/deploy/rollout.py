"""The check that rolls the release out: real controllers and a real scheduler, on two nodes that kwok simulates.

It shows what the chart makes the controllers of Kubernetes do: where the Pods are scheduled, in which order they are
replaced, what a failed upgrade leaves, and what a rollback restores. Every change of the Pods is read from a watch.

It does not show that a container starts. kwok writes the status of a Pod: it is ready one second after it is scheduled,
and it is gone one second after its deletion. No image is pulled, no probe is sent, and no preStop hook or SIGTERM reaches
a process. cluster.py starts the containers of the Pods by themselves, and answers these questions.
"""

import contextlib
import json
import os
import queue
import re
import shlex
import subprocess
import threading
import time

from cluster import NAMESPACE, RELEASE, commands, wait_for

# The bound of one rollout: a few seconds on an idle machine.
ROLLOUT_SECONDS = 90
# How long `helm --wait` waits for an upgrade that cannot become ready.
FAILED_UPGRADE_SECONDS = 8
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io%2Finstance%3D{RELEASE}"
PROMISED = 2
# A Pod with this annotation never becomes ready.
NEVER_READY = {"simulated-readiness": "never"}
CONTROLLERS = (
    "deployment-controller",
    "replicaset-controller",
    "disruption-controller",
    "horizontal-pod-autoscaler-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    # Removes the taint that each new node has until it is ready.
    "node-lifecycle-controller",
)
# The scheduler fills the large node first, unless the constraints of the chart spread the Pods. Without its own
# constraints, which would spread them too.
SCHEDULER = {
    "apiVersion": "kubescheduler.config.k8s.io/v1",
    "kind": "KubeSchedulerConfiguration",
    "leaderElection": {"leaderElect": False},
    "profiles": [
        {
            "pluginConfig": [
                {"name": "PodTopologySpread", "args": {"defaultingType": "List", "defaultConstraints": []}},
            ]
        }
    ],
}
NODES = {"large": {"cpu": "64", "memory": "256Gi"}, "small": {"cpu": "2", "memory": "2Gi"}}


def stage(name, kind, conditions, step, delay_ms=0):
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {
                "matchExpressions": [
                    {"jq": {"key": key, "operator": operator, **({"values": values} if values else {})}}
                    for key, operator, *values in conditions
                ]
            },
            "delay": {"durationMilliseconds": delay_ms},
            "steps": [step],
        },
    }


def status(template):
    return {"patch": {"subresource": "status", "root": "status", "type": "strategic", "template": template}}


def conditions(**values):
    return "conditions:\n" + "".join(
        f'- {{type: {name}, status: "{value}", lastTransitionTime: {{{{ Now | Quote }}}}}}\n'
        for name, value in values.items()
    )


READY = '.status.conditions.[] | select( .type == "Ready" ) | .status'
CONTAINERS = """
phase: Running
startTime: {{ .metadata.creationTimestamp | Quote }}
podIP: {{ PodIPWith .spec.nodeName false .metadata.uid .metadata.name .metadata.namespace | Quote }}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name }}
  image: {{ .image | Quote }}
  imageID: ""
  restartCount: 0
  ready: %s
  started: true
  state: {running: {startedAt: {{ Now | Quote }}}}
{{ end }}
"""
EXISTS = (".metadata.deletionTimestamp", "DoesNotExist")
STAGES = [
    stage(
        "node-ready",
        "Node",
        [(READY, "NotIn", "True")],
        status(conditions(Ready=True)),
    ),
    stage(
        "pod-starts",
        "Pod",
        [EXISTS, (".status.phase", "In", "Pending")],
        status(conditions(Initialized=True, ContainersReady=False, Ready=False) + CONTAINERS % "false"),
    ),
    stage(
        "pod-becomes-ready",
        "Pod",
        [
            EXISTS,
            (".status.phase", "In", "Running"),
            (READY, "NotIn", "True"),
            ('.metadata.annotations["simulated-readiness"]', "NotIn", "never"),
        ],
        status(conditions(ContainersReady=True, Ready=True) + CONTAINERS % "true"),
        delay_ms=1000,
    ),
    stage("pod-ends", "Pod", [(".metadata.deletionTimestamp", "Exists")], {"delete": True}, delay_ms=1000),
]


def is_ready(pod):
    found = pod["status"].get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in found)


def is_deleted(pod):
    return "deletionTimestamp" in pod["metadata"]


class Rollout:
    """Reads every change of the Pods of the release, from the start of the block until `read`."""

    def __init__(self, plane, checks):
        self.plane, self.checks, self.lines = plane, checks, queue.Queue()

    def __enter__(self):
        found = self.list()
        self.pods = {pod["metadata"]["uid"]: pod for pod in found["items"]}
        self.fewest = self.available()
        # The server ends the watch, should this program not do it.
        path = f"{PODS}&watch=true&timeoutSeconds=600&resourceVersion={found['metadata']['resourceVersion']}"
        self.process = subprocess.Popen(
            [self.checks.KUBECTL, "get", "--raw", path],
            env=self.plane.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.reader = threading.Thread(target=self.read_lines, daemon=True)
        self.reader.start()
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.reader.join(10)

    def read_lines(self):
        for line in self.process.stdout:
            self.lines.put(line)

    def list(self):
        return json.loads(self.checks.run(self.checks.KUBECTL, "get", "--raw", PODS, env=self.plane.environment()))

    def available(self):
        return sum(is_ready(pod) and not is_deleted(pod) for pod in self.pods.values())

    def read(self):
        """Reads all changes until now. Returns the Pods that are not deleted, and the fewest that were available."""
        versions = {pod["metadata"]["uid"]: int(pod["metadata"]["resourceVersion"]) for pod in self.list()["items"]}
        end = time.monotonic() + ROLLOUT_SECONDS

        def is_behind():
            known = {uid: int(pod["metadata"]["resourceVersion"]) for uid, pod in self.pods.items()}
            return any(known.get(uid, 0) < version for uid, version in versions.items()) or known.keys() - versions.keys()

        while is_behind():
            try:
                event = json.loads(self.lines.get(timeout=max(0, end - time.monotonic())))
            except queue.Empty:
                raise AssertionError(f"the watch does not show all Pods within {ROLLOUT_SECONDS} s") from None
            pod, uid = event["object"], event["object"]["metadata"].get("uid")
            assert event["type"] in ("ADDED", "MODIFIED", "DELETED"), event
            if event["type"] == "DELETED":
                del self.pods[uid]
                # A Pod that the list has can be gone meanwhile.
                versions.pop(uid, None)
            else:
                self.pods[uid] = pod
                if uid not in versions:
                    # Newer than the list.
                    versions[uid] = 0
            self.fewest = min(self.fewest, self.available())
        return [pod for pod in self.pods.values() if not is_deleted(pod)], self.fewest


def start_nodes(plane, checks, kubectl):
    """Starts the controllers, the scheduler and kwok, and returns when both nodes are ready."""
    controllers, folder = os.environ["CONTROLLER_ASSETS"], plane.folder
    (folder / "scheduler.yaml").write_text(
        json.dumps({**SCHEDULER, "clientConnection": {"kubeconfig": str(plane.kubeconfig)}})
    )
    (folder / "stages.yaml").write_text("\n---\n".join(json.dumps(item) for item in STAGES))
    for name, capacity in NODES.items():
        labels = {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": f"zone-{name}"}
        capacity = {**capacity, "pods": "100"}
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels},
            "status": {"capacity": capacity, "allocatable": capacity},
        }
        kubectl("create", "-f", "-", input=json.dumps(node))
    # Neither of them listens.
    plane.serve(
        "kube-controller-manager",
        f"--kubeconfig={plane.kubeconfig}",
        f"--controllers={','.join(CONTROLLERS)}",
        "--leader-elect=false",
        "--secure-port=0",
        "--horizontal-pod-autoscaler-sync-period=1s",
        binaries=controllers,
    )
    plane.serve("kube-scheduler", f"--config={folder}/scheduler.yaml", "--secure-port=0", binaries=controllers)
    plane.serve(
        "kwok",
        f"--kubeconfig={plane.kubeconfig}",
        f"--config={folder}/stages.yaml",
        "--manage-all-nodes",
        "--node-lease-duration-seconds=40",
        "--node-port=0",
        binaries=checks.OUT / "bin",
    )
    kubectl("wait", "--for=condition=Ready", f"--timeout={ROLLOUT_SECONDS}s", "node", "--all")


def check_rollout(plane, checks):
    steps = []
    kubectl, get, release = commands(plane, checks)

    def helm(action, *arguments, seconds=ROLLOUT_SECONDS, **options):
        kept = ["--reuse-values"] if action == "upgrade" else []
        waits = ["--wait", f"--timeout={seconds}s"] if action != "status" else []
        return release(action, *kept, *waits, *arguments, **options)

    def checksum(item):
        return item["metadata"]["annotations"]["checksum/config"]

    def template():
        return get("deployment", RELEASE)["spec"]["template"]

    def nodes_of(pods):
        return sorted(pod["spec"].get("nodeName", "none") for pod in pods)

    def names_of(pods):
        return {pod["metadata"]["name"] for pod in pods}

    def replica_sets():
        """Returns the desired and the actual number of Pods by the checksum of the configuration."""
        found = get("replicasets", "-l", f"app.kubernetes.io/instance={RELEASE}")["items"]
        return {item["metadata"]["uid"]: (item["spec"]["replicas"], item["status"]["replicas"]) for item in found}

    def change(*arguments, action="upgrade", promised=PROMISED):
        """Changes the release and waits. Returns its Pods. At no moment were fewer available than promised."""
        with Rollout(plane, checks) as rollout:
            helm(action, *arguments)
            pods, fewest = rollout.read()
        assert fewest >= promised, f"{action} {arguments}: only {fewest} Pods were available meanwhile"
        assert all(is_ready(pod) for pod in pods), pods
        return pods

    kubectl("create", "namespace", NAMESPACE)
    kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    start_nodes(plane, checks, kubectl)

    # --- install ----------------------------------------------------------------------------------------------------
    helm("install")
    with Rollout(plane, checks) as rollout:
        first, available = rollout.read()
    found = get("deployment", RELEASE)["status"]
    assert (available, found["replicas"], found["availableReplicas"]) == (2, 2, 2), found
    assert nodes_of(first) == ["large", "small"], nodes_of(first)

    def budget_allows_one():
        found = get("poddisruptionbudget", RELEASE).get("status", {})
        numbers = [found.get(key) for key in ("expectedPods", "currentHealthy", "desiredHealthy", "disruptionsAllowed")]
        return numbers == [2, 2, 1, 1]

    wait_for("the PodDisruptionBudget allows one of two Pods", budget_allows_one)

    def endpoints():
        slices = get("endpointslices", "-l", f"kubernetes.io/service-name={RELEASE}")["items"]
        found = [endpoint for item in slices for endpoint in item["endpoints"] or []]
        return {endpoint["targetRef"]["name"] for endpoint in found if endpoint["conditions"]["ready"]}

    wait_for("the Service has both Pods", lambda: endpoints() == names_of(first))
    steps.append("both Pods are available on different nodes")

    # --- a changed configuration ------------------------------------------------------------------------------------
    before, sets = template(), replica_sets()
    pods = change("--set", "config.heartbeat=30")
    assert len(pods) == 2 and not names_of(pods) & names_of(first), names_of(pods)
    assert {checksum(pod) for pod in pods} == {checksum(template())} != {checksum(before)}
    assert nodes_of(pods) == ["large", "small"], nodes_of(pods)
    after = replica_sets()
    assert [after[uid] for uid in sets] == [(0, 0)] and len(after) == 2, after
    wait_for("the Service has the new Pods", lambda: endpoints() == names_of(pods))
    # A change of the Service alone does not roll the Pods.
    assert names_of(change("--set", "service.sessionAffinity=ClientIP")) == names_of(pods)
    steps.append("a changed configuration replaces them one by one")

    # --- upgrades that cannot become ready --------------------------------------------------------------------------
    def is_unready(pod):
        return pod["status"]["phase"] == "Running" and not is_ready(pod)

    def is_unschedulable(pod):
        return "Unschedulable" in [condition.get("reason") for condition in pod["status"].get("conditions", [])]

    for name, values, is_stuck in (
        ("not ready", {"podAnnotations": NEVER_READY}, is_unready),
        ("unschedulable", {"nodeSelector": {"kubernetes.io/hostname": "missing"}}, is_unschedulable),
    ):
        settings = [part for key, value in values.items() for part in ("--set-json", f"{key}={json.dumps(value)}")]
        with Rollout(plane, checks) as rollout:
            helm("upgrade", *settings, seconds=FAILED_UPGRADE_SECONDS, code=None)

            def stuck():
                left, fewest = rollout.read()
                new = [pod for pod in left if pod["metadata"]["name"] not in names_of(pods)]
                return (left, fewest) if len(new) == 1 and is_stuck(new[0]) else None

            left, fewest = wait_for(f"{name}: there is one new Pod", stuck)
        assert fewest >= PROMISED, f"{name}: only {fewest} Pods were available meanwhile"
        assert names_of(pods) < names_of(left), (name, left)
        assert json.loads(helm("status", "-o", "json"))["info"]["status"] == "failed"
        healed = change(action="rollback")
        assert names_of(healed) == names_of(pods), f"{name}: the rollback replaces Pods that were available"
        assert json.loads(helm("status", "-o", "json"))["info"]["status"] == "deployed"
        steps.append(f"an upgrade that is {name} leaves them, a rollback heals it")

    # --- HorizontalPodAutoscaler ------------------------------------------------------------------------------------
    # docs/how-to/scaling-and-replicas.md has this command. Without it, the number is 1 once Helm no longer sets it.
    text = (checks.ROOT / "docs/how-to/scaling-and-replicas.md").read_text()
    command, manifest = re.search(r"^kubectl (apply .*) <<END\n(.*?)^END$", text, re.M | re.S).groups()
    kubectl(*shlex.split(command), input=manifest)
    scaled = change("--set", "autoscaling.enabled=true")
    assert names_of(scaled) == names_of(pods), "the HorizontalPodAutoscaler replaces Pods"

    def autoscaler(**expected):
        found = get("horizontalpodautoscaler", RELEASE)["status"].get("conditions", [])
        return {item["type"]: item["reason"] for item in found}.items() >= expected.items()

    # Its target exists. No adapter serves the metric here.
    wait_for(
        "the HorizontalPodAutoscaler reads the scale of the Deployment and no metric",
        lambda: autoscaler(AbleToScale="SucceededGetScale", ScalingActive="FailedGetPodsMetric"),
    )
    change("--set", "autoscaling.minReplicas=3")
    kubectl(
        "-n", NAMESPACE, "wait", "deployment", RELEASE, "--for=jsonpath={.status.availableReplicas}=3",
        f"--timeout={ROLLOUT_SECONDS}s",
    )  # fmt: skip
    # An upgrade keeps the number that the HorizontalPodAutoscaler has set.
    assert len(change("--set", "config.heartbeat=20", promised=3)) == 3
    steps.append("the HorizontalPodAutoscaler scales the Deployment, upgrades keep its number")

    # --- the check itself: without the rules of the chart, it finds what it looks for -------------------------------
    constraint = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"app": "other"}},
    }
    together = change("--set-json", f"topologySpreadConstraints={json.dumps([constraint])}")
    assert set(nodes_of(together)) == {"large"}, f"the scheduler spreads the Pods by itself: {nodes_of(together)}"
    strategy = {"rollingUpdate": {"maxUnavailable": 2, "maxSurge": 0}}
    with Rollout(plane, checks) as rollout:
        deployment = ("-n", NAMESPACE, "patch", "deployment", RELEASE, "-p")
        kubectl(*deployment, json.dumps({"spec": {"strategy": strategy}}))
        kubectl("-n", NAMESPACE, "rollout", "restart", f"deployment/{RELEASE}")
        kubectl("-n", NAMESPACE, "rollout", "status", f"deployment/{RELEASE}", f"--timeout={ROLLOUT_SECONDS}s")
        _, fewest = rollout.read()
    assert fewest < PROMISED, "a rollout with two unavailable Pods is not found"

    with Rollout(plane, checks) as rollout:
        helm("uninstall")
        kubectl("-n", NAMESPACE, "wait", "pods", "--all", "--for=delete", f"--timeout={ROLLOUT_SECONDS}s")
        assert rollout.read()[0] == []
    return "; ".join(steps)
