// A real etcd and kube-apiserver on loopback, and the bridge on it.
//
// The flags are those of tests/it/support/control_plane/flags.rs. No controller runs: Pods keep the status that a test
// writes.
import { generateKeyPairSync } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { Process, freePort, waitFor } from "./processes.mjs";

const ROOT = path.join(path.dirname(fileURLToPath(import.meta.url)), "../..");
const TOKEN = "admin-token";
const agent = new https.Agent({ keepAlive: true, rejectUnauthorized: false });

export class ControlPlane {
  static async start(folder, binaries) {
    const plane = new ControlPlane();
    plane.folder = path.join(folder, "control-plane");
    mkdirSync(plane.folder, { recursive: true });
    const file = (name) => path.join(plane.folder, name);
    writeFileSync(file("users.csv"), `${TOKEN},admin,1,"system:masters"\n`);
    const { privateKey, publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
    writeFileSync(file("service-account.key"), privateKey.export({ type: "pkcs8", format: "pem" }));
    writeFileSync(file("service-account.pub"), publicKey.export({ type: "spki", format: "pem" }));
    const [client, peer] = [await freePort(), await freePort()].map((port) => `http://127.0.0.1:${port}`);
    new Process(folder, "etcd", path.join(binaries, "etcd"), [
      `--data-dir=${file("etcd")}`,
      "--name=test",
      `--initial-cluster=test=${peer}`,
      `--listen-peer-urls=${peer}`,
      `--initial-advertise-peer-urls=${peer}`,
      `--listen-client-urls=${client}`,
      `--advertise-client-urls=${client}`,
      "--unsafe-no-fsync",
    ]);
    plane.serverFlags = [
      `--etcd-servers=${client}`,
      "--bind-address=127.0.0.1",
      `--cert-dir=${file("certificates")}`,
      "--advertise-address=10.0.0.1",
      "--service-cluster-ip-range=10.0.0.0/24",
      `--token-auth-file=${file("users.csv")}`,
      "--authorization-mode=RBAC",
      "--service-account-issuer=https://kubernetes.default.svc",
      `--service-account-signing-key-file=${file("service-account.key")}`,
      `--service-account-key-file=${file("service-account.pub")}`,
      "--disable-admission-plugins=ServiceAccount",
    ];
    Object.assign(plane, { root: folder, serverBinary: path.join(binaries, "kube-apiserver") });
    await plane.startServer();
    const crd = readFileSync(path.join(ROOT, "crds/boilerhouseclaims.yaml"), "utf8");
    await plane.call("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd, "application/yaml");
    await waitFor("the API server serves claims", 30_000, () =>
      plane.call("GET", "/apis/boilerhouse.dev/v1alpha1/boilerhouseclaims"),
    );
    plane.kubeconfig = file("kubeconfig");
    writeFileSync(
      plane.kubeconfig,
      JSON.stringify({
        apiVersion: "v1",
        kind: "Config",
        "current-context": "test",
        clusters: [
          {
            name: "test",
            cluster: {
              server: `https://127.0.0.1:${plane.port}`,
              "certificate-authority": file("certificates/apiserver.crt"),
            },
          },
        ],
        users: [{ name: "test", user: { token: TOKEN } }],
        contexts: [{ name: "test", context: { cluster: "test", user: "test" } }],
      }),
    );
    return plane;
  }

  /// Starts kube-apiserver on a free port, which is `port` from then on. The file `kubeconfig` keeps the first port.
  async startServer() {
    this.port = await freePort();
    const flags = [`--secure-port=${this.port}`, ...this.serverFlags];
    this.server = new Process(this.root, "kube-apiserver", this.serverBinary, flags);
    await this.server.until("is ready", 90_000, async () => (await this.request("GET", "/readyz")).status === 200);
  }

  request(method, target, body, type = "application/json") {
    return new Promise((done, failed) => {
      const bytes = body && typeof body !== "string" ? JSON.stringify(body) : (body ?? "");
      // Node sends the body of a DELETE without its length by default.
      const headers = {
        authorization: `Bearer ${TOKEN}`,
        "content-type": type,
        "content-length": Buffer.byteLength(bytes),
      };
      const options = { host: "127.0.0.1", port: this.port, path: target, method, headers, agent, timeout: 20_000 };
      const request = https.request(options, (response) => {
        let text = "";
        response.on("data", (bytes) => (text += bytes));
        response.on("end", () => done({ status: response.statusCode, text }));
        response.on("error", failed);
      });
      request.on("timeout", () => request.destroy(new Error(`${method} ${target}: no answer`)));
      request.on("error", failed);
      request.end(bytes);
    });
  }

  /// Sends a request and returns the object of the answer. Every status but 2xx is an error.
  async call(method, target, body, type) {
    const { status, text } = await this.request(method, target, body, type);
    if (status < 200 || status > 299) throw new Error(`${method} ${target}: ${status}: ${text}`);
    return JSON.parse(text);
  }

  async namespace(name) {
    await this.call("POST", "/api/v1/namespaces", { metadata: { name } });
    return new Namespace(this, name);
  }
}

/// One Namespace with instances and claims.
export class Namespace {
  constructor(plane, name) {
    Object.assign(this, { plane, name });
    this.pods = `/api/v1/namespaces/${name}/pods`;
    this.claims = `/apis/boilerhouse.dev/v1alpha1/namespaces/${name}/boilerhouseclaims`;
  }

  createPod(name, workload = "counter") {
    const labels = { "boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": workload };
    const spec = { containers: [{ name: "main", image: "none" }] };
    return this.plane.call("POST", this.pods, { metadata: { name, labels }, spec });
  }

  setPodPhase(name, phase) {
    return this.#merge(`${this.pods}/${name}/status`, { status: { phase } });
  }

  /// Changes an annotation, which no view has.
  touchPod(name, value) {
    return this.#merge(`${this.pods}/${name}`, { metadata: { annotations: { "example.com/touched": value } } });
  }

  deletePod(name) {
    return this.plane.call("DELETE", `${this.pods}/${name}`, { gracePeriodSeconds: 0 });
  }

  createClaim(name, tenantId, workloadRef = "counter") {
    const kind = { apiVersion: "boilerhouse.dev/v1alpha1", kind: "BoilerhouseClaim" };
    return this.plane.call("POST", this.claims, { ...kind, metadata: { name }, spec: { tenantId, workloadRef } });
  }

  setClaimPhase(name, phase) {
    return this.#merge(`${this.claims}/${name}/status`, { status: { phase } });
  }

  deleteClaim(name) {
    return this.plane.call("DELETE", `${this.claims}/${name}`);
  }

  #merge(target, patch) {
    return this.plane.call("PATCH", target, patch, "application/merge-patch+json");
  }

  /// Returns name and phase of all objects: what the API server has now.
  async phases() {
    const [pods, claims] = await Promise.all([this.pods, this.claims].map((target) => this.plane.call("GET", target)));
    const phases = ({ items }) =>
      Object.fromEntries(items.map(({ metadata, status }) => [metadata.name, status?.phase ?? "Pending"]));
    return { instances: phases(pods), claims: phases(claims) };
  }
}

/// The bridge on a Namespace, always on the same port.
export class Bridge {
  constructor(folder, binary, namespace, label, flags = []) {
    Object.assign(this, { folder, binary, namespace, label, flags });
  }

  async start() {
    this.port ??= await freePort();
    const args = ["serve", "--port", `${this.port}`, "-n", this.namespace.name, "--drain", "1", ...this.flags];
    this.process = new Process(this.folder, this.label, this.binary, args, {
      KUBECONFIG: this.namespace.plane.kubeconfig,
    });
    await this.process.until("is ready", 30_000, async () => (await get(this.port, "/readyz")).status === 200);
    return this;
  }

  stop(signal = "SIGTERM") {
    return this.process.stop(signal);
  }
}

/// Sends a GET to a port of loopback and returns status, headers and text. `headers` can set Host and Origin.
export function get(port, target, { headers = {}, method = "GET" } = {}) {
  return new Promise((done, failed) => {
    const options = { host: "127.0.0.1", port, path: target, method, headers, agent: false, timeout: 15_000 };
    const request = http.request(options, (response) => {
      let text = "";
      response.on("data", (bytes) => (text += bytes));
      response.on("end", () => done({ status: response.statusCode, headers: response.headers, text }));
      response.on("error", failed);
    });
    request.on(
      "upgrade",
      (response, socket) => (socket.destroy(), done({ status: 101, headers: response.headers, text: "" })),
    );
    request.on("timeout", () => request.destroy(new Error(`GET ${target}: no answer`)));
    request.on("error", failed);
    request.end();
  });
}

/// Finds the programs of the control plane.
export function controlPlaneBinaries(target) {
  const folder = process.env.KUBEBUILDER_ASSETS ?? path.join(target, "control-plane/bin");
  for (const name of ["etcd", "kube-apiserver"]) {
    if (!existsSync(path.join(folder, name)))
      throw new Error(`${path.join(folder, name)} is missing; run tests/control-plane/build`);
  }
  return folder;
}
