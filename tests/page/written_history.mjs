// Writes Pods and claims at random, and knows the keys of the events that every client must receive for the writes. It
// shares no code with the client: uids and resourceVersions come from the answers of the API server.
import { check, sleep } from "./browser.mjs";

const LABEL = "boilerhouse.dev/";
const PATCH = "application/merge-patch+json";
const PODS = 8;
const CLAIMS = 5;
/** The time between two writes. */
const PAUSE_MS = 40;

/** Random numbers that a seed repeats (xorshift32). */
export class Random {
  constructor(seed) {
    this.state = seed;
  }

  /** From 0 to `bound` - 1. */
  below(bound) {
    this.state ^= this.state << 13;
    this.state ^= this.state >>> 17;
    this.state ^= this.state << 5;
    return (this.state >>> 0) % bound;
  }

  pick(...values) {
    return values[this.below(values.length)];
  }
}

/** The view of an object, as far as the writer changes it. */
const view = ({ metadata, status }) => JSON.stringify([metadata.labels, status?.phase, status?.instanceId]);

const isReady = ({ metadata }) => metadata.labels?.[`${LABEL}pool-status`] === "ready";

/** The only writer of a Namespace. */
export class Writer {
  /** The number of writes so far. Each write has the next number. */
  count = 0;
  /** The numbers of the writes, by uid and resourceVersion. Deletions are missing: their answers have no version. */
  #versions = new Map();
  /** The number of the write that deleted a uid. */
  #deletions = new Map();
  /** The objects that exist, by kind and name. */
  #existing = new Map();
  /** The keys that every client must receive: the number of the write and the kind of the object. */
  expected = new Map();
  #stopped = true;
  hasFailed = false;

  constructor(namespace, seed) {
    this.namespace = namespace;
    this.random = new Random(seed);
  }

  /** Writes until `stop`. */
  start() {
    check(this.#stopped, "the writer has stopped");
    this.#stopped = false;
    this.writing = (async () => {
      while (!this.#stopped) {
        await this.write();
        await sleep(PAUSE_MS);
      }
    })();
    // `stop` reports it.
    this.writing.catch(() => (this.hasFailed = true));
  }

  /** Returns when the last write is complete. */
  async stop() {
    this.#stopped = true;
    await this.writing;
  }

  write() {
    return this.random.below(3) === 0 ? this.#writeClaim() : this.#writePod();
  }

  async #writePod() {
    const { random } = this;
    const number = random.below(PODS);
    const name = `pod-${number}`;
    const choice = random.below(8);
    if (!this.#existing.has(`instance/${name}`)) return this.createPod(name, `w${number % 3}`);
    if (choice === 0) return this.#delete("instance", name);
    if (choice < 4) {
      const phase = random.pick("Pending", "Running", "Failed");
      return this.#patch("instance", name, "/status", { status: { phase } });
    }
    const labels = {
      [`${LABEL}pool-status`]: random.pick("warming", "ready", "ready", "acquired"),
      [`${LABEL}tenant`]: random.pick("alice", "bob"),
    };
    return this.#patch("instance", name, "", { metadata: { labels } });
  }

  async #writeClaim() {
    const { random } = this;
    const name = `claim-${random.below(CLAIMS)}`;
    if (!this.#existing.has(`claim/${name}`)) return this.createClaim(name, random.pick("alice", "bob"));
    if (random.below(6) === 0) return this.#delete("claim", name);
    const phase = random.pick("Pending", "Active", "Active", "Releasing", "Released");
    const status = { phase, instanceId: `pod-${random.below(PODS)}`, source: "pool" };
    return this.#patch("claim", name, "/status", { status });
  }

  async createPod(name, workload) {
    const labels = {
      [`${LABEL}managed`]: "true",
      [`${LABEL}workload`]: workload,
      [`${LABEL}pool-status`]: "warming",
    };
    const spec = { containers: [{ name: "main", image: "none" }] };
    this.#add("instance", await this.#call("POST", this.namespace.pods, { metadata: { name, labels }, spec }));
  }

  async createClaim(name, tenantId) {
    this.#add("claim", await this.namespace.createClaim(name, tenantId, "w0"));
  }

  #path(kind, name) {
    return `${kind === "claim" ? this.namespace.claims : this.namespace.pods}/${name}`;
  }

  #call(...request) {
    return this.namespace.plane.call(...request);
  }

  async #patch(kind, name, part, patch) {
    this.#add(kind, await this.#call("PATCH", this.#path(kind, name) + part, patch, PATCH));
  }

  async #delete(kind, name) {
    await this.#call("DELETE", this.#path(kind, name), { gracePeriodSeconds: 0 });
    const before = this.#existing.get(`${kind}/${name}`);
    this.#existing.delete(`${kind}/${name}`);
    this.count += 1;
    this.#deletions.set(before.metadata.uid, this.count);
    this.#expect(kind, `${before.metadata.uid}.deletion.${kind}.state`);
    if (kind === "instance" || before.status?.phase === "Released") return;
    this.#expect(kind, `${before.metadata.uid}.deletion.tenant.released`);
  }

  #expect(kind, key) {
    this.expected.set(key, { kind, number: this.count });
  }

  /** Adds an object that was created or changed. */
  #add(kind, after) {
    const { name, uid, resourceVersion } = after.metadata;
    const before = this.#existing.get(`${kind}/${name}`);
    this.#existing.set(`${kind}/${name}`, after);
    // A patch that changes nothing is no write.
    if (before?.metadata.resourceVersion === resourceVersion) return;
    this.count += 1;
    const version = `${uid}.${resourceVersion}`;
    this.#versions.set(version, this.count);
    if (!before || view(before) !== view(after)) this.#expect(kind, `${version}.${kind}.state`);
    if (kind === "instance") {
      if (isReady(after) && !(before && isReady(before))) this.#expect(kind, `${version}.pool.instance.ready`);
      return;
    }
    const [old, now] = [before?.status?.phase, after.status?.phase];
    if (before && old !== "Released" && now === "Released") this.#expect(kind, `${version}.tenant.released`);
    if (now === "Active" && old !== "Active") this.#expect(kind, `${version}.tenant.claimed`);
  }

  /**
   * Returns the key in the form of `expected`, and the number of the write, for the key of an event. A deletion is
   * `<uid>.deletion.<type>`. There is no number if no write has this key.
   */
  find(key) {
    const [, uid, version, type] = /^([^.]+)\.([^.]+)\.(.+)$/.exec(key);
    const number = this.#versions.get(`${uid}.${version}`);
    if (number !== undefined) return { key, number };
    return { key: `${uid}.deletion.${type}`, number: this.#deletions.get(uid) };
  }
}
