"""The checks of tests/deploy/run, which builds the tools that they need.

usage: checks.py OUT [full] [word ...]

OUT is the folder with the tools. Each function whose name starts with `check_` is one check.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

import cluster
import control_plane
import rollout

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "deploy/chart"
MONITORING = ROOT / "deploy/monitoring"
VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
OUT = Path(sys.argv[1])
IS_FULL = "full" in sys.argv[2:]
# The bound of each command. The slowest ones wait for a rollout or hash an image, and take seconds.
COMMAND_SECONDS = 300
BRIDGE = os.environ["BRIDGE_BINARY"]
KUBECTL = str(Path(os.environ["KUBEBUILDER_ASSETS"], "kubectl"))
# Metrics of other programs that the alerts and the dashboard use.
OTHER_METRICS = {"up", "kube_pod_container_resource_limits"}


def run(*command, code=0, **options):
    """Runs a command and returns its output, standard error included. It must end with this code (None: not with 0)."""
    ended = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMMAND_SECONDS,
        **options,
    )
    if ended.returncode != code if code is not None else ended.returncode == 0:
        raise AssertionError(f"{' '.join(map(str, command))}: ended with {ended.returncode}:\n{ended.stdout}")
    return ended.stdout


def tool(name):
    return OUT / "bin" / name


def helm(*arguments, **options):
    return run(tool(helm.name), *arguments, **options)


# `helm` is Helm 4, `helm3` is Helm 3.
helm.name = "helm"


@contextlib.contextmanager
def helm3():
    helm.name = "helm3"
    try:
        yield
    finally:
        helm.name = "helm"


def template(*arguments, release="bridge", namespace="boilerhouse"):
    """Returns the rendered objects."""
    text = helm("template", release, CHART, "--namespace", namespace, *arguments)
    return [item for item in yaml.safe_load_all(text) if item]


def of_kind(objects, kind):
    return [item for item in objects if item["kind"] == kind]


def one(objects, kind):
    found = of_kind(objects, kind)
    assert len(found) == 1, f"expected one {kind}, found {len(found)}"
    return found[0]


def kubeconform(version, text, code=0):
    schemas = OUT / "schemas"
    locations = [f"{schemas}/{folder}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json" for folder in (version, "custom")]
    arguments = [part for location in locations for part in ("-schema-location", location)]
    return run(tool("kubeconform"), "-strict", "-summary", *arguments, "-", input=text, code=code)


def crds():
    """Returns the files with the CustomResourceDefinitions of the Gateway API and the Prometheus Operator."""
    decoder, text, found = json.JSONDecoder(), (OUT / "schema-modules.json").read_text(), []
    while text := text.lstrip():
        module, end = decoder.raw_decode(text)
        found.append(Path(module["Dir"]))
        text = text[end:]
    files = [
        file
        for folder in found
        for pattern in (
            "config/crd/standard/*_httproutes.yaml",
            "example/prometheus-operator-crd/*_servicemonitors.yaml",
            "example/prometheus-operator-crd/*_prometheusrules.yaml",
        )
        for file in folder.glob(pattern)
    ]
    assert len(files) == 3, files
    return files


# --- the chart, without a cluster -----------------------------------------------------------------------------------


def check_lint_accepts_every_ci_values_file():
    for values in VALUES:
        helm("lint", "--strict", "--quiet", CHART, "--values", values)
    return f"{len(VALUES)} files"


def check_helm_3_renders_the_same_objects():
    if not IS_FULL:
        return "only in the full form"
    for values in VALUES:
        # Without random keys.
        arguments = ("--values", values, "--set", "auth.existingSecret=mine")
        new = template(*arguments)
        with helm3():
            helm("lint", "--strict", "--quiet", CHART, "--values", values)
            old = template(*arguments)
        new, old = ({(item["kind"], item["metadata"]["name"]): item for item in objects} for objects in (new, old))
        assert new == old, values.name
    return f"{len(VALUES)} files"


def check_rendered_objects_match_the_schemas_of_kubernetes():
    wheel = next((OUT / "python/packages").glob("kubernetes_validate-*.whl"))
    run(sys.executable, ROOT / "tests/deploy/schemas.py", OUT / "schemas", wheel, *crds())
    rendered = [helm("template", "bridge", CHART, "-n", "boilerhouse", "--values", values) for values in VALUES]
    for folder in ("base", "overlays/example"):
        rendered.append(run(KUBECTL, "kustomize", ROOT / "deploy/kustomize" / folder))
    text = "\n---\n".join(rendered)
    results = [kubeconform(version, text).strip() for version in ("1.33", "1.34", "1.35", "1.36")]
    assert len(set(results)) == 1, results
    # The schemas reject a field that does not exist, also in custom resources.
    for kind, field in (("Deployment", "spec"), ("HTTPRoute", "spec"), ("ServiceMonitor", "spec"), ("Service", "spec")):
        item = next(item for item in yaml.safe_load_all(text) if item and item["kind"] == kind)
        item[field]["noSuchField"] = 1
        answer = kubeconform("1.36", yaml.safe_dump(item), code=1)
        assert "noSuchField" in answer, answer
    return f"1.33, 1.34, 1.35, 1.36: {results[0].splitlines()[-1]}"


def check_wrong_values_are_refused_with_a_clear_error():
    cases = [
        ("replicas=3", ["additional properties 'replicas' not allowed"]),
        ("replicaCount=0", ["/replicaCount", "minimum"]),
        ("config.hearbeat=30", ["/config", "additional properties 'hearbeat' not allowed"]),
        ("config.heartbeat=1", ["/config/heartbeat", "minimum"]),
        ("config.namespace=x", ["/config", "'namespace' not allowed"]),
        ("auth.ws=closed", ["/auth/ws", "'required', 'open'"]),
        ("auth.apiKey=false", ["no credential is configured"]),
        ("auth.allowAnonymous=true", ["a credential is configured too"]),
        ("image.digest=latest", ["/image/digest"]),
        ("ingress.enabled=true", ["ingress.hosts", "at least one host name is needed"]),
        ("ingress.enabled=true,ingress.hosts={*.example}", ["complete host names only"]),
        ("ingress.hosts={https://x.example}", ["/ingress/hosts/0"]),
        ("httpRoute.enabled=true", ["httpRoute.parentRefs", "name the Gateway"]),
        ("httpRoute.enabled=true,httpRoute.parentRefs[0].name=public", ["httpRoute.hostnames"]),
        ("autoscaling.enabled=true,autoscaling.maxReplicas=1", ["larger than autoscaling.maxReplicas"]),
        # Each Pod would have the same client id, and the broker ends the connection of the other one.
        ("config.mqtt-client-id=x", ["/config", "'mqtt-client-id' not allowed"]),
        ("config.response-memory=100000", ["/config/response-memory", "maximum"]),
        ("ingress.hosts={Bridge.Example}", ["/ingress/hosts/0"]),
        ("ingress.tls[0].hosts={Bridge.Example}", ["/ingress/tls/0/hosts/0"]),
        ("httpRoute.hostnames={Bridge.Example}", ["/httpRoute/hostnames/0"]),
        ("httpRoute.timeouts.request=0", ["/httpRoute/timeouts/request"]),
        ("monitoring.serviceMonitor.interval=30x", ["/monitoring/serviceMonitor/interval"]),
        ("networkPolicy.apiServerCIDRs={10.0.0.1/33}", ["/networkPolicy/apiServerCIDRs/0"]),
        ("podDisruptionBudget.maxUnavailable=0%", ["/podDisruptionBudget/maxUnavailable"]),
        ("monitoring.serviceMonitor.apiKeySecret.name=x", ["/monitoring/serviceMonitor/apiKeySecret", "key"]),
        ("trustedProxies={10.0.0.1}", ["/trustedProxies/0"]),
        ("trustedProxies={10.0.0.0/99}", ["/trustedProxies/0"]),
        ("corsOrigins={https://*.example}", ["/corsOrigins/0"]),
        ("tls.existingSecret=x,monitoring.serviceMonitor.enabled=true", ["monitoring.serviceMonitor.tlsConfig"]),
        ("monitoring.prometheusRule.runbookBaseURL=https://git.example/x", ["runbookBaseURL"]),
    ]
    for values, expected in cases:
        answer = helm("template", "bridge", CHART, "--set", values, code=None)
        missing = [text for text in expected if text not in answer]
        assert not missing, f"--set {values}: expected {missing} in:\n{answer}"
    return f"{len(cases)} values"


def check_names_that_look_like_numbers_stay_text():
    """YAML reads 123 and 1e3 as numbers, which the API server refuses as names."""

    def other_types(value, path=()):
        if isinstance(value, dict):
            for key, child in value.items():
                yield from other_types(child, (*path, key))
        elif isinstance(value, list):
            for index, child in enumerate(value):
                yield from other_types(child, (*path, index))
        elif isinstance(value, (int, float, bool)) and str(path[-1]).endswith(("ame", "amespace", "instance")):
            yield path, value

    names = "fullnameOverride=1e3,watchNamespace=77,serviceAccount.name=12,ingress.className=5,priorityClassName=6"
    numbers = ("--set-string", names)
    for values in VALUES:
        objects = template("--values", values, *numbers, release="123", namespace="2024")
        wrong = [(item["kind"], *found) for item in objects for found in other_types(item)]
        assert not wrong, f"{values.name}: {wrong}"


def check_two_releases_of_one_name_can_watch_one_namespace():
    roles = {
        one(template("--set", "watchNamespace=w", namespace=namespace), kind)["metadata"]["name"]
        for namespace in "abw"
        for kind in ("Role", "RoleBinding")
    }
    assert len(roles) == 3, roles
    # The hyphens of both names must not make one name of two.
    dashes = {
        one(template("--set", f"watchNamespace=w,fullnameOverride={name}", namespace=namespace), "Role")["metadata"]["name"]
        for namespace, name in (("a", "b-c"), ("a-b", "c"))
    }
    assert len(dashes) == 2, dashes


def check_a_parent_chart_can_switch_the_chart_off():
    template("--set", "enabled=true")


def check_the_pod_of_the_test_can_be_scheduled_like_the_others():
    values = "nodeSelector.a=b,tolerations[0].key=c,tolerations[0].operator=Exists,affinity.nodeAffinity.x=y"
    objects = template("--set", values)
    test, bridge = one(objects, "Pod")["spec"], one(objects, "Deployment")["spec"]["template"]["spec"]
    for key in ("nodeSelector", "tolerations", "affinity"):
        assert test[key] == bridge[key], f"{key}: {test.get(key)}"


def check_a_budget_protects_more_than_one_pod():
    autoscaling = "autoscaling.enabled=true,autoscaling.minReplicas=1"
    for values, expected in (("replicaCount=1", 0), ("replicaCount=2", 1), (f"replicaCount=1,{autoscaling}", 1)):
        assert len(of_kind(template("--set", values), "PodDisruptionBudget")) == expected, values


def check_a_rule_of_a_route_has_at_most_8_matches():
    """Gateway API 1.1 allows no more."""
    documented = yaml.safe_load((ROOT / "deploy/proxy/httproute-boilerhouse-dashboard.yaml").read_text())
    for route in (documented, one(template("--values", CHART / "ci/gateway-values.yaml"), "HTTPRoute")):
        assert max(len(rule["matches"]) for rule in route["spec"]["rules"]) <= 8, route


def check_roles_have_exactly_the_permissions_of_the_manifest():
    manifest = list(yaml.safe_load_all((ROOT / "deploy/rbac.yaml").read_text()))
    expected, expected_reviews = one(manifest, "Role")["rules"], one(manifest, "ClusterRole")["rules"]
    for values in VALUES:
        objects = template("--values", values)
        settings = yaml.safe_load(
            one([x for x in objects if "config.yaml" in x.get("data", {})], "ConfigMap")["data"]["config.yaml"]
        )
        watched = settings["namespace"]
        role, binding = one(objects, "Role"), one(objects, "RoleBinding")
        found = json.loads(json.dumps(role["rules"]).replace(f'["{watched}"]', '["boilerhouse"]'))
        assert found == expected, f"{values.name}: {found}"
        pod = one(objects, "Deployment")["spec"]["template"]["spec"]
        account = {"kind": "ServiceAccount", "name": pod["serviceAccountName"], "namespace": "boilerhouse"}
        for item in (role, binding):
            assert item["metadata"]["namespace"] == watched, f"{values.name}: {item['metadata']}"
        assert binding["roleRef"]["name"] == role["metadata"]["name"]
        assert binding["subjects"] == [account], f"{values.name}: {binding['subjects']}"
        cluster_roles = of_kind(objects, "ClusterRole")
        assert len(cluster_roles) == (1 if "token-audience" in settings else 0), f"{values.name}: {cluster_roles}"
        for item in cluster_roles:
            assert item["rules"] == expected_reviews, item
            assert one(objects, "ClusterRoleBinding")["subjects"] == [account]
    none = template("--set", "rbac.create=false,auth.tokenAudience=x")
    assert not [item for item in none if "Role" in item["kind"]]
    # Releases in two namespaces can exist at once.
    names = {
        one(template("--set", "auth.tokenAudience=x", namespace=name), "ClusterRole")["metadata"]["name"]
        for name in "ab"
    }
    assert len(names) == 2
    return f"{len(VALUES)} files"


def check_pods_select_mount_and_end_as_intended():
    for values in VALUES:
        objects = template("--values", values)
        deployment, service = one(objects, "Deployment"), one(objects, "Service")
        labels = deployment["spec"]["template"]["metadata"]["labels"].items()
        assert (
            service["spec"]["selector"].items() <= labels
            and deployment["spec"]["selector"]["matchLabels"].items() <= labels
        )
        assert service["metadata"]["labels"]["app.kubernetes.io/name"] == "boilerhouse-bridge"
        assert service["spec"]["ports"][0]["name"] == "http"
        pod = deployment["spec"]["template"]["spec"]
        settings = yaml.safe_load(
            next(x for x in of_kind(objects, "ConfigMap") if "config.yaml" in x["data"])["data"]["config.yaml"]
        )
        container = pod["containers"][0]
        sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert pod["terminationGracePeriodSeconds"] >= settings.get("drain", 10) + sleep + 10
        # Each file that the configuration names is below a mount.
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        for key in ("keys-file", "session-key-file", "tls-cert", "tls-key"):
            assert key not in settings or str(Path(settings[key]).parent) in mounts, f"{values.name}: {key}"
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        for test in of_kind(objects, "Pod"):
            assert not service["spec"]["selector"].items() <= test["metadata"]["labels"].items(), (
                "the Service selects the test"
            )
        # No object outside the namespace of the release except those that say so.
        for item in objects:
            if item["kind"] not in ("ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"):
                assert item["metadata"]["namespace"] in ("boilerhouse", settings["namespace"]), item["metadata"]
    return f"{len(VALUES)} files"


def check_a_changed_configuration_rolls_the_pods():
    def annotations(*arguments):
        return one(template("--set", "auth.existingSecret=x", *arguments), "Deployment")["spec"]["template"][
            "metadata"
        ]["annotations"]

    first = annotations()
    assert annotations() == first
    for change in ("config.heartbeat=30", "allowedHosts={a.example}", "auth.ws=open", "watchNamespace=other"):
        assert annotations("--set", change)["checksum/config"] != first["checksum/config"], change
    # The version of the chart alone does not.
    labels = one(template(), "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert not [name for name in labels if "chart" in name or "version" in name], labels


def check_random_keys_are_long_and_differ():
    keys = set()
    for _ in range(2):
        data = one(template(), "Secret")["data"]
        assert set(data) == {"api-key", "session-key"}
        keys |= set(data.values())
    assert len(keys) == 4 and all(len(key) == 64 for key in keys), "expected 48 random characters as base64"


def check_hosts_of_the_ingress_and_the_route_are_allowed():
    for name, expected in (
        ("ingress", ["bridge.internal.example", "bridge.example"]),
        ("gateway", ["boilerhouse.example"]),
    ):
        objects = template("--values", CHART / f"ci/{name}-values.yaml")
        settings = yaml.safe_load(one(objects, "ConfigMap")["data"]["config.yaml"])
        assert settings["allowed-hosts"] == expected, settings


def check_the_routes_beside_boilerhouse_match_the_documented_file():
    """The file of deploy/proxy routes /ws and the state; the chart routes the streams and the sessions too."""
    documented = yaml.safe_load((ROOT / "deploy/proxy/httproute-boilerhouse-dashboard.yaml").read_text())
    rendered = one(template("--values", CHART / "ci/gateway-values.yaml"), "HTTPRoute")

    def routes(route, server):
        return {
            (match.get("method"), match["path"]["type"], match["path"]["value"])
            for rule in route["spec"]["rules"]
            if server in rule["backendRefs"][0]["name"]
            for match in rule["matches"]
        }

    more = {
        (None, "Exact", path)
        for path in ("/api/websocket", "/api/sse", "/api/events/stream", "/api/v1/session", "/api/v1/tickets")
    }
    assert routes(rendered, "bridge") == routes(documented, "bridge") | more
    assert routes(rendered, "boilerhouse-api") == routes(documented, "boilerhouse-api")


def check_the_documented_commands_and_values_work():
    """Each `helm` command of the how-tos has valid arguments, and each block of values is accepted."""
    commands = blocks = 0
    with tempfile.TemporaryDirectory() as folder:
        for page in ("helm", "mqtt-and-replicas", "scaling-and-replicas"):
            text = (ROOT / f"docs/how-to/{page}.md").read_text()
            for block in re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S):
                if block.startswith("rules:"):
                    continue  # The configuration of prometheus-adapter.
                file = Path(folder, "values.yaml")
                file.write_text(block)
                template("--values", file)
                blocks += 1
            for line in re.findall(r"^helm (.*)$", text, re.M):
                action, release, *arguments = shlex.split(line)
                if "OWNER" in line:
                    continue  # The chart of a release.
                # The same arguments, without a cluster.
                if action in ("install", "upgrade"):
                    kept = [word for word in arguments if word not in ("--create-namespace", "--reuse-values")]
                    kept = [str(CHART) if word == "deploy/chart" else word for word in kept]
                    helm("template", release, *kept, cwd=folder)
                else:
                    assert action in ("test", "uninstall") and release == "boilerhouse-bridge", line
                commands += 1
    assert commands > 5 and blocks > 4
    return f"{commands} commands, {blocks} blocks"


def check_the_bridge_accepts_every_rendered_configuration():
    """`config` takes the flags of `serve` that the chart does not set itself, and the binary accepts the file."""
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["config"]["properties"]
    flags = set(re.findall(r"^ +(?:-\w, )?--([a-z-]+)", run(BRIDGE, "serve", "--help"), re.M))
    of_chart = {
        "config", "port", "listen-host", "probe-listen", "allow-anonymous", "keys-file", "token-audience", "ws-auth",
        "session-key-file", "cors-origin", "allowed-hosts", "trusted-proxies", "tls-cert", "tls-key", "namespace",
        # They make no sense in a Pod, or in several.
        "kubeconfig", "context", "help", "version", "mqtt-client-id",
    }  # fmt: skip
    assert set(schema) <= flags, f"the schema allows flags that do not exist: {set(schema) - flags}"
    missing = flags - of_chart - set(schema)
    assert not missing, (
        f"add these flags of serve to values.schema.json, or to the values of the chart: {sorted(missing)}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for values in VALUES:
            objects = template("--values", values)
            text = next(x for x in of_kind(objects, "ConfigMap") if "config.yaml" in x["data"])["data"]["config.yaml"]
            config = with_files(yaml.safe_load(text), folder)
            # Other programs of this machine may use the ports of a Pod.
            config |= {"port": 0, "probe-listen": "127.0.0.1:0"}
            Path(folder, "config.yaml").write_text(json.dumps(config))
            # It ends when it reads the kubeconfig, which comes after the configuration and its files.
            environment = {**os.environ, "BOILERHOUSE_API_KEY": "x" * 32, "KUBECONFIG": f"{folder}/missing"}
            answer = run(BRIDGE, "serve", "--config", f"{folder}/config.yaml", env=environment, code=5)
            assert f"{folder}/missing" in answer, f"{values.name}: {answer}"
    return f"{len(schema)} flags in config"


def with_files(config, folder):
    """Returns the configuration with files in this folder in place of those of the Pod."""
    pack = {"version": "1", "name": "p", "entities": {"Telemetry": {"required": ["requests"]}}}
    contents = {
        "session-key-file": "s" * 48,
        "keys-file": f"keys: [{{name: a, sha256: {1:064}}}]",
        "schema-pack": json.dumps(pack),
        "nats-credentials-file": (ROOT / "tests/nats-server/bridge.creds").read_text(),
        "mqtt-username-file": "user",
        "mqtt-password-file": "password",
    }
    key, certificate = f"{folder}/tls.key", f"{folder}/tls.crt"
    if not os.path.exists(certificate):
        subject = ("-subj", "/CN=bridge", "-addext", "subjectAltName=DNS:bridge")
        run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, *subject)
    for name, value in config.items():
        if isinstance(value, str) and value.startswith("/"):
            config[name] = key if name == "tls-key" else certificate
            if name in contents:
                config[name] = f"{folder}/{name}"
                Path(folder, name).write_text(contents[name])
    return config


# --- files that are made from others --------------------------------------------------------------------------------


def check_rendered_files_are_up_to_date():
    run(sys.executable, ROOT / "deploy/render", "--check", env={**os.environ, "HELM": str(tool("helm"))})
    # Each value has a description: the table lists every value that has no values below it.
    documented = set(re.findall(r"^\| `([^`]+)` \|", (CHART / "README.md").read_text(), re.M))

    def leaves(value, path=()):
        if isinstance(value, dict) and value and ".".join(path) not in documented:
            for key, child in value.items():
                yield from leaves(child, (*path, key))
        else:
            yield ".".join(path)

    missing = set(leaves(yaml.safe_load((CHART / "values.yaml").read_text()))) - documented
    assert not missing, f"values without a comment that starts with `# -- `: {sorted(missing)}"
    return f"{len(documented)} rows of README.md"


def check_kustomize_overlay_moves_to_another_namespace():
    objects = list(yaml.safe_load_all(run(KUBECTL, "kustomize", ROOT / "deploy/kustomize/overlays/example")))
    role = one(objects, "Role")
    assert role["rules"][2]["resourceNames"] == ["platform"], role
    assert one(objects, "RoleBinding")["subjects"][0]["namespace"] == "platform"
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    config = one(objects, "ConfigMap")["metadata"]["name"]
    assert re.fullmatch(r"boilerhouse-bridge-[a-z0-9]+", config)
    assert config in json.dumps(pod["volumes"])
    assert "boilerhouse.svc" not in json.dumps(objects) and '"namespace": "boilerhouse"' not in json.dumps(objects)


# --- monitoring -----------------------------------------------------------------------------------------------------


def known_metrics():
    rows = re.findall(
        r"^\| `((?:bridge|process)_[a-z_]+)` \| (counter|gauge|histogram) \|",
        (ROOT / "docs/metrics.md").read_text(),
        re.M,
    )
    names = {name for name, _ in rows}
    return (
        names
        | {f"{name}_{part}" for name, kind in rows if kind == "histogram" for part in ("bucket", "sum", "count")}
        | OTHER_METRICS
    )


def metrics_of(expression):
    """Returns the names of the metrics in an expression: words that are no function, label, keyword, value or unit."""
    text = re.sub(r'"[^"]*"', "", expression)
    text = re.sub(r"\b(by|on|without|group_left|group_right|ignoring)\s*\([^)]*\)", "", text)
    text = re.sub(r"\{[^}]*\}", "", text)
    text = re.sub(r"\[[^]]*\]", "", text)
    words = set(re.findall(r"\b[a-z_][a-z0-9_]*\b(?!\s*\()", text))
    return words - {"and", "or", "unless", "bool", "offset"}


def alerts():
    return [
        rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
    ]


def check_alerts_and_dashboard_name_only_metrics_that_exist():
    known = known_metrics()
    assert len(known) > 60, len(known)
    for rule in alerts():
        unknown = metrics_of(rule["expr"]) - known
        assert not unknown, f"{rule['alert']}: {unknown}"
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    queries = dashboard_queries()
    variables = [variable.get("definition", "") for variable in dashboard["templating"]["list"]]
    queries += [found[1] for text in variables if (found := re.fullmatch(r"label_values\((.+), \w+\)", text))]
    for query in queries:
        names = metrics_of(query)
        assert names and names <= known, f"{query}: {names - known}"
    # Each connection of the bridge has an alert and a panel. A relay is no Pod of this job.
    for name in {name for name in known if name.endswith("_up")} - {"bridge_relay_upstream_up"}:
        for texts in (queries, [rule["expr"] for rule in alerts()]):
            assert any(name in metrics_of(text) for text in texts), f"{name} has no alert or no panel"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    # The labels that they use exist on the metrics too.
    page = (ROOT / "docs/metrics.md").read_text()
    for reason in re.findall(r'reason(?:=~|!~|=|!=)"([^"]+)"', "\n".join(rule["expr"] for rule in alerts())):
        for word in reason.split("|"):
            source = (ROOT / "src/source/error.rs").read_text()
            assert f"`{word}`" in page or f'"{word}"' in source, f"unknown reason {word}"
    return f"{len(alerts())} alerts, {len(queries)} queries"


def check_each_alert_has_texts_a_runbook_paragraph_and_a_test():
    runbook = (ROOT / "docs/runbook.md").read_text()
    tests = (MONITORING / "tests/alerts_test.yaml").read_text()
    names = set()
    for rule in alerts():
        name = rule["alert"]
        names.add(name)
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, name
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}", name
        paragraph = runbook.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for part in ("**What:**", "**For whom:**", "**Since when:**"):
            assert part in paragraph, f"docs/runbook.md: {name} has no {part}"
        assert f'alertname="{name}"' in tests, f"{name} has no unit test"
    extra = set(re.findall(r"^## (Bridge\w+)", runbook, re.M)) - names
    assert not extra, f"docs/runbook.md has paragraphs without an alert: {extra}"
    rule = one(template("--values", CHART / "ci/monitoring-values.yaml"), "PrometheusRule")
    links = {item["annotations"]["runbook_url"] for item in rule["spec"]["groups"][0]["rules"]}
    base = "https://git.example/boilerhouse-bridge/"
    assert all(link.removeprefix(base).startswith("docs/runbook.md#") for link in links), links


def dashboard_queries():
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def check_promtool_accepts_the_alerts_the_queries_and_the_metrics_page():
    promtool = tool("promtool")
    # A query of the dashboard is checked as a recording rule, with a value for each variable.
    queries = [query.replace("$__rate_interval", "5m") for query in dashboard_queries()]
    rules = [{"record": f"query_{index}", "expr": query} for index, query in enumerate(queries)]
    file = OUT / "dashboard-rules.yaml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    run(promtool, "check", "rules", file)
    run(promtool, "check", "rules", MONITORING / "alerts.yaml")
    tests = run(promtool, "test", "rules", MONITORING / "tests/alerts_test.yaml")
    with bridge("demo", "--port", "0") as (_, address):
        page = cluster.request(f"{address}/metrics")[1]
    # It can read the page: 3 means that the linter found something. The linter knows the older text format only, in which
    # the help text of a counter has the name with `_total`.
    found = run(promtool, "check", "metrics", input=page, code=3).splitlines()
    other = [line for line in found if line and not re.fullmatch(r"(bridge|process)_\w+_total no help text", line)]
    assert not other, other
    return tests.strip().splitlines()[-1].strip()


# --- the image and the workflows ------------------------------------------------------------------------------------


def check_image_layout_and_sbom():
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    build, check, sbom = (ROOT / "deploy/image" / name for name in ("build", "check", "sbom"))
    image = OUT / "image"
    document = run(sbom, env=environment)
    assert document == run(sbom, env=environment), "the SBOM differs from run to run"
    (OUT / "bridge.cdx.json").write_text(document)
    components = {item["name"]: item for item in json.loads(document)["components"]}
    assert {"kube", "hyper", "tokio", "rustls", "ring"} <= set(components) and "proptest" not in components
    assert all("licenses" in item and "hashes" in item for item in components.values())
    # A small binary keeps the check fast; Go builds static ones.
    static = tool("kubeconform")
    digests = {
        run(build, "--output", image, "--sbom", OUT / "bridge.cdx.json", f"linux/amd64={static}", env=environment)
        for _ in range(2)
    }
    assert len(digests) == 1, "the image differs from run to run"
    lines = run(check, *(["--run=-v"] if os.geteuid() == 0 else []), image)
    # Each fault is found.
    blob = max((image / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "digest of a blob" in run(check, image, code=1)
    blob.write_bytes(content)
    (image / "blobs/sha256/unused").write_bytes(b"")
    assert "nothing refers to" in run(check, image, code=1)
    nothing = run(build, "--output", image, "--ca-certificates", os.devnull, f"linux/amd64={static}", code=1)
    assert "no certificate" in nothing, nothing
    run(build, "--output", image, f"linux/arm64={static}", env=environment)
    assert "expected 'arm64'" in run(check, image, code=1)
    if IS_FULL:
        # BRIDGE_STATIC_BINARY is a build for a musl target. Without it, the binary of the tests shows the layout only.
        static, binary = "BRIDGE_STATIC_BINARY" in os.environ, os.environ.get("BRIDGE_STATIC_BINARY", BRIDGE)
        run(build, "--output", image, "--sbom", OUT / "bridge.cdx.json", f"linux/amd64={binary}", env=environment)
        lines += run(check, *(["--run=--version"] if static else ["--dynamic"]), image)
        lines += "" if static else "the last binary is a stand-in that is not static"
    return f"{len(components)} components; {lines.strip()}"


def check_workflows():
    run(tool("actionlint"), *sorted((ROOT / ".github/workflows").glob("*.yml")))
    text = (ROOT / ".github/workflows/release.yml").read_text()
    assert "\npermissions: {}\n" in text
    # The release changes these lines of values.yaml.
    values = (CHART / "values.yaml").read_text()
    for line in ("  repository: boilerhouse-bridge\n", '    runbookBaseURL: ""\n'):
        assert values.count(line) == 1, line
    # One version everywhere.
    version = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version), chart
    toolchain = re.search(r'^channel = "(.+)"$', (ROOT / "rust-toolchain.toml").read_text(), re.M)[1]
    assert f"FROM --platform=$BUILDPLATFORM rust:{toolchain}-" in (ROOT / "deploy/Dockerfile").read_text()


def check_dockerfile_copies_what_the_build_reads():
    """No engine builds the Dockerfile here, so its files are compared with those that the sources include."""
    lines = (ROOT / "deploy/Dockerfile").read_text().splitlines()
    words = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    copied = {path for sources in words for path in sources}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    permitted = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert copied == permitted, f"deploy/Dockerfile and .dockerignore differ: {copied ^ permitted}"
    included = set()
    for source in (ROOT / "src").rglob("*.rs"):
        # The modules of tests stand at the end of a file, and are not part of the image.
        code = source.read_text().split("#[cfg(test)]\nmod tests")[0]
        for path in re.findall(r'include(?:_str|_bytes)?!\(\s*"([^"]+)"', code):
            included.add((source.parent / path).resolve().relative_to(ROOT))
    assert included, "no file is included"
    missing = {str(path) for path in included if not any(path.is_relative_to(folder) for folder in copied)}
    assert not missing, f"deploy/Dockerfile does not copy {sorted(missing)}"
    return f"{len(included)} included files"


# --- the bridge and a cluster ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def bridge(*arguments, env=None):
    """Runs the bridge until the end of the block. Gives its log file and, once it listens, its address."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with log.open("w") as file:
            process = subprocess.Popen([BRIDGE, *arguments], stdout=file, stderr=file, env=env)
        try:
            end = time.monotonic() + 30
            while not (
                found := re.search(r"http://(127\.0\.0\.1|0\.0\.0\.0):(\d+)|listening.*?:(\d+)", log.read_text())
            ):
                assert process.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.05)
            yield log, f"http://127.0.0.1:{found[2] or found[3]}"
        finally:
            process.kill()
            process.wait()


def check_release_in_a_cluster():
    with control_plane.ControlPlane(os.environ["KUBEBUILDER_ASSETS"]) as plane:
        return cluster.check_release(plane, sys.modules[__name__])


def check_release_in_a_cluster_with_helm_3():
    if not IS_FULL:
        return "only in the full form"
    with helm3():
        return check_release_in_a_cluster()


def check_rollout_on_simulated_nodes():
    if not IS_FULL and "rollout" not in sys.argv[2:]:
        return "only in the full form, and with the word rollout"
    with control_plane.ControlPlane(os.environ["KUBEBUILDER_ASSETS"]) as plane:
        return rollout.check_rollout(plane, sys.modules[__name__])


def main():
    # As an interrupt, so that all servers end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    started, failed = time.monotonic(), []
    names = [name for name in globals() if name.startswith("check_")]
    if wanted := [name for name in sys.argv[2:] if name != "full"]:
        names = [name for name in names if any(word in name for word in wanted)]
    for name in names:
        title, start = name.removeprefix("check_").replace("_", " "), time.monotonic()
        try:
            detail = globals()[name]()
        except (AssertionError, subprocess.SubprocessError, OSError, KeyError, ValueError) as error:
            failed.append(title)
            print(f"FAILED  {title}\n{type(error).__name__}: {error}", flush=True)
        else:
            print(f"ok      {title} ({time.monotonic() - start:.1f} s){f': {detail}' if detail else ''}", flush=True)
    print(f"{len(failed)} failed, {len(names) - len(failed)} passed in {time.monotonic() - started:.0f} s", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
