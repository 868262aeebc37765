"""How tests/scripts/documented-commands runs a documented command: what it replaces, what runs beside a document, and
when a command that does not end by itself has done its work. `documented-commands rules` prints the replacements."""

import re

# --- which documents -----------------------------------------------------------------------------------------------

# These run in the repository, or in the folder of the document, because they are commands of developers. All others run
# in an empty folder that shows the files of the repository.
IN_REPOSITORY = {
    "docs/development.md": ".",
    "docs/performance.md": ".",
    "clients/js/README.md": "clients/js",
}
# Commands of these programs need tools or builds that only `tests/run full` has. A document with one of them is run in
# the full form only.
FULL_ONLY = re.compile(r"^(?:\w+=\S+ )*(helm|cargo|go|nginx|node --test|npx|tests/\S+|export KUBEBUILDER_ASSETS)\b")
# Documents about reverse proxies are run in the full form only, too.
FULL_DOCUMENTS = {"docs/how-to/reverse-proxies.md"}
# Commands that need a cluster. A document with one of them gets a real API server.
CLUSTER = re.compile(r"\b(kubectl|helm) |boilerhouse-bridge (serve|doctor)\b")
# The release is installed before these documents, with the manifests of deploy/kustomize/base.
INSTALLED = {
    "docs/runbook.md",
    "docs/how-to/scaling-and-replicas.md",
    "docs/how-to/port-forward.md",
    "docs/how-to/troubleshoot.md",
}

# --- what is replaced ----------------------------------------------------------------------------------------------

# Each documented port becomes a free port of the document, in commands, in saved blocks, and in deploy/proxy.
PORTS = (3000, 3001, 8080, 8443, 9000, 9090, 11234)
PORT = re.compile(rf"(?<![\w.])({'|'.join(map(str, PORTS))})(?![\w.])")

REPLACEMENTS = [
    # The program is built before the test, in the form that the caller has chosen.
    (r"\bcargo run --release -- ", "boilerhouse-bridge "),
    (r"^cargo install --locked --path \.$", "boilerhouse-bridge --version"),
    # The packages of tests/node, with pinned versions.
    (r"\bnpx wscat ", "wscat "),
    (r"^npm install (standardwebhooks|eventsource|ws)$", 'ln -sfn "$REPOSITORY/tests/node/node_modules" node_modules'),
    # No node runs in the test: the bridge runs on this machine as the Pod would, with the ServiceAccount, the Secret and
    # the configuration of the release.
    (r"^kubectl -n (\S+) port-forward (\S+) (\d+):(\d+)$", r"run-as-pod \1 \2 \3 \4"),
    (r"\.\./\.\./target/debug/boilerhouse-bridge", "$BRIDGE_BINARY"),
    (r"<checkout>", "$REPOSITORY"),
    (r"<folder with node_modules/ws>", "$REPOSITORY/tests/node"),
]


def replaced(text):
    for pattern, replacement in REPLACEMENTS:
        text = re.sub(pattern, replacement, text)
    return text


# Document -> placeholder -> what a reader puts there.
PLACEHOLDERS = {
    "docs/development.md": {
        "drain::NAME": "documents::anchors_are_those_of_github",
        "NAME": "anchors_are_those_of_github",
        "<number>": "7",
        "<name>": "replica_model",
    },
    "docs/reference.md": {"https://bridge.example --token-file token": "http://127.0.0.1:3000"},
    "docs/runbook.md": {"SECRET": "mounted", "POD": "deployment/boilerhouse-bridge"},
    "docs/how-to/scaling-and-replicas.md": {"POD": "deployment/boilerhouse-bridge"},
}

# --- commands that do not end by themselves ------------------------------------------------------------------------

# These run until the end of the document: (command, ready). A command is ready when its output matches `ready`, or when
# something listens on the port `ready`.
SERVICES = [
    (r"^(?:\w+=\S+ )*boilerhouse-bridge demo\b", "Ctrl-C ends it"),
    (r"^(?:\w+=\S+ )*boilerhouse-bridge serve\b", "listening on"),
    (r"^(?:\w+=\S+ )*boilerhouse-bridge relay\b", "listening on"),
    (r"^boilerhouse-bridge dashboard\b", "http://"),
    (r"^boilerhouse-bridge events .*--forward-to", r"deliveries to \d receiver"),
    (r"^run-as-pod\b", "upstream live|ready"),
    (r"^nginx (?!-t)", 8080),
    (r"\b(node receiver.mjs|python3 receiver.py)$", 9000),
]
# These listen on port 3000.
BRIDGE = re.compile(r"^(?:\w+=\S+ )*boilerhouse-bridge (demo|serve)\b")
# These are ended as soon as their output matches the second pattern.
WATCHES = [
    (r"^boilerhouse-bridge events\b(?!.*--(count|timeout))", r'"type":"|(instance|claim|tenant|pool)\.'),
    (r"^boilerhouse-bridge top\b", r"connected|upstream live"),
    (r"^curl .*-N\b(?!.*--max-time)", r"(?m)^(data|id|event|retry):"),
    (r"^wscat\b", r'"type"'),
    (r"^kubectl .*( -w\b|--watch\b)", r"."),
    (r"^(\w+=\S+ )*(python3|node|go run) ", r"instance|state|heartbeat|tenant"),
]
# These get a pseudo terminal.
TERMINAL = re.compile(r"^boilerhouse-bridge top\b")

# What the output of a command must match. Without it, these commands also end with 0 when they do not show what the
# document says.
EXPECTED = [
    (r"-o /dev/null -D -", "101 Switching Protocols"),
    (r"curl -N --max-time", r"(?m)^data:"),
    (r"^curl \S+/api/v1/(instances|tenants|pools)$", r"^\["),
    (r"^curl \S+/api/v1/workloads", "answer of Boilerhouse"),
    (r"http_code.*\|\| true$", "401"),
    (r"http_code.*Bearer", "200"),
    (r"auth can-i create", "yes"),
    (r"/readyz\?verbose", "pods"),
    (r"auth can-i --list", "boilerhouseclaims"),
    (r"grep '\^bridge_streams", "bridge_streams"),
]

# --- preparations --------------------------------------------------------------------------------------------------

RELEASE = "boilerhouse-bridge"
KUBECTL = "kubectl -n boilerhouse "
CERTIFICATE = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    " -keyout tls.key -out tls.crt 2>/dev/null"
)
KEYS = "printf 'keys:\\n  - name: all\\n    sha256: %s\\n' \"$(printf k | sha256sum | cut -d' ' -f1)\" > keys.yaml"
# (document, start of a documented command) -> commands that run before it. They create what the reader already has there.
BEFORE = {
    ("docs/how-to/helm.md", "helm install boilerhouse-bridge deploy/chart --namespace bridge"): [
        "helm uninstall boilerhouse-bridge --namespace boilerhouse",
    ],
    ("docs/how-to/helm.md", "kubectl -n boilerhouse create secret generic my-secret"): [
        "helm uninstall boilerhouse-bridge --namespace bridge",
        "helm install boilerhouse-bridge deploy/chart --namespace boilerhouse",
        KEYS,
    ],
    ("docs/runbook.md", "kubectl -n boilerhouse get secret SECRET -o jsonpath='{.data.tls"): [
        CERTIFICATE,
        KEYS,
        KUBECTL + "create secret generic mounted --from-file=tls.crt --from-file=keys.yaml",
    ],
    ("docs/runbook.md", "kubectl auth can-i create tokenreviews"): [
        "kubectl create clusterrolebinding reviews --clusterrole=system:auth-delegator"
        " --serviceaccount=boilerhouse:boilerhouse-bridge",
    ],
    ("clients/go/README.md", "go mod edit"): [
        "go mod init example",
        "printf 'package main\\n\\nimport _ \"github.com/boilerhouse/boilerhouse-bridge/clients/go\"\\n\\nfunc main() {}\\n' >main.go",
    ],
    ("docs/how-to/reverse-proxies.md", "curl -i -N"): [CERTIFICATE, 'nginx -c "$PWD/deploy/proxy/nginx.conf"'],
}
# Variables that a reader has set.
ENVIRONMENT = {
    "docs/how-to/clients.md": {"KEY": "any"},
    "docs/how-to/reverse-proxies.md": {"KEY": "a-key-of-the-test-with-32-characters"},
}
# Certificate files that deploy/proxy names -> the files of the test.
PROXY_FILES = [
    ("/etc/ssl/certs/bridge.pem", "tls.crt"),
    ("/etc/ssl/private/bridge.key", "tls.key"),
]
