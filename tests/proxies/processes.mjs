// Processes, ports and bounded waits of these tests.
//
// Guarantees: every process is a child of this one, is in `running` until it ends, and is ended by its id. Every wait
// has a bound and waits for a state.
import { spawn } from "node:child_process";
import { createWriteStream, readFileSync } from "node:fs";
import net from "node:net";
import path from "node:path";

export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/// Waits until `check` returns a value that is not false, and returns the value. An error of `check` counts as false.
export async function waitFor(what, boundMs, check, pauseMs = 100) {
  const end = Date.now() + boundMs;
  let last;
  for (;;) {
    try {
      last = undefined;
      const found = await check();
      if (found) return found;
    } catch (error) {
      last = error;
    }
    if (Date.now() > end) throw new Error(`${what}: not within ${boundMs / 1000} s${last ? `: ${last.message}` : ""}`);
    await sleep(pauseMs);
  }
}

/// Returns a port of loopback that no socket uses now.
export async function freePort() {
  const server = net.createServer();
  await new Promise((done, failed) => server.once("error", failed).listen(0, "127.0.0.1", done));
  const { port } = server.address();
  await new Promise((done) => server.close(done));
  return port;
}

const running = new Set();

function kill(group) {
  try {
    process.kill(group, "SIGKILL");
  } catch (error) {
    if (error.code !== "ESRCH") throw error;
  }
}

/// One child process. Its output goes to `<folder>/<name>.log`.
export class Process {
  constructor(folder, name, command, args, env = {}) {
    this.name = name;
    this.log = path.join(folder, `${name}.log`);
    const log = createWriteStream(this.log, { flags: "a" });
    // A group of its own, so that Ctrl-C in a terminal does not end it before its clients.
    this.child = spawn(command, args, {
      env: { ...process.env, ...env },
      stdio: ["ignore", "pipe", "pipe"],
      detached: true,
    });
    this.child.stdout.pipe(log, { end: false });
    this.child.stderr.pipe(log, { end: false });
    this.ended = new Promise((done) => {
      this.child.once("error", (error) => (log.end(`${error}\n`), done(error)));
      this.child.once("close", (code, signal) => (log.end(), running.delete(this), done(code ?? signal)));
    });
    running.add(this);
  }

  logText() {
    return readFileSync(this.log, "utf8");
  }

  /// Waits until a condition holds. Fails as soon as the process ends. The error has the last lines of the log.
  async until(what, boundMs, check) {
    let isEnded = false;
    this.ended.then(() => (isEnded = true));
    const found = await waitFor(`${this.name} ${what}`, boundMs, () => isEnded || check(), 50).catch((error) => error);
    if (!isEnded && !(found instanceof Error)) return;
    const reason = isEnded ? `${this.name} has ended` : found.message;
    throw new Error(`${reason}:\n${this.logText().split("\n").slice(-20).join("\n")}`);
  }

  /// Waits until a TCP connection to a port of loopback succeeds.
  untilListening(port) {
    return this.until(
      `listens on port ${port}`,
      30_000,
      () =>
        new Promise((done, failed) => {
          const socket = net.connect(port, "127.0.0.1", () => (socket.destroy(), done(true)));
          socket.once("error", failed);
        }),
    );
  }

  /// Sends a signal and waits for the end. Kills the process and what it has started after the bound.
  async stop(signal = "SIGTERM", boundMs = 15_000) {
    if (!running.has(this)) return;
    this.child.kill(signal);
    // The group too: a worker of Apache can outlive the process that has started it, and holds the output open.
    const timer = setTimeout(() => kill(-this.child.pid), boundMs);
    await this.ended;
    clearTimeout(timer);
  }
}

/// Ends all processes that are still running, at once.
export async function stopAll() {
  await Promise.all([...running].map((process) => process.stop("SIGTERM", 3000)));
}
