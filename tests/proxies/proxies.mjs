// The documented files of deploy/proxy, started with other ports and paths.
//
// Guarantees: only addresses, ports and paths of a file are replaced, by text. A replacement that matches nothing is an
// error, so the file and this test cannot drift apart. An `edit` changes the file on purpose, for a test of a wrong
// one.
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { Process, freePort } from "./processes.mjs";

const FILES = path.join(path.dirname(fileURLToPath(import.meta.url)), "../../deploy/proxy");
/// Where Debian installs the modules of Apache.
const APACHE_MODULES = process.env.APACHE_MODULES ?? "/usr/lib/apache2/modules";

export function replaceAll(text, replacements) {
  for (const [from, to] of replacements) {
    if (!text.includes(from)) throw new Error(`the documented file does not contain '${from}'`);
    text = text.replaceAll(from, to);
  }
  return text;
}

/// The files and how to start each product. Each entry returns the command of the product.
const PRODUCTS = {
  nginx: {
    file: "nginx.conf",
    replacements: (at) => [
      ["listen 8080", `listen 127.0.0.1:${at.http}`],
      ["listen 8443 ssl", `listen 127.0.0.1:${at.https} ssl`],
      ["/etc/ssl/certs/bridge.pem", at.certificate],
      ["/etc/ssl/private/bridge.key", at.key],
      ["127.0.0.1:3000", `127.0.0.1:${at.bridge}`],
    ],
    command: (at) => ["nginx", ["-e", "stderr", "-p", at.folder, "-c", at.config, "-g", nginxGlobals(at)]],
    reload: { signal: "SIGHUP" },
  },
  "nginx-boilerhouse-dashboard": {
    file: "nginx-boilerhouse-dashboard.conf",
    replacements: (at) => [
      ["listen 8080", `listen 127.0.0.1:${at.http}`],
      ["127.0.0.1:3000", `127.0.0.1:${at.bridge}`],
      ["127.0.0.1:3001", `127.0.0.1:${at.boilerhouse}`],
    ],
    command: (at) => ["nginx", ["-e", "stderr", "-p", at.folder, "-c", at.config, "-g", nginxGlobals(at)]],
  },
  haproxy: {
    file: "haproxy.cfg",
    replacements: (at) => [
      ["bind :8080", `bind 127.0.0.1:${at.http}`],
      ["bind :8443", `bind 127.0.0.1:${at.https}`],
      ["/etc/haproxy/bridge.pem", at.both],
      ["127.0.0.1:3000", `127.0.0.1:${at.bridge}`],
    ],
    command: (at) => ["haproxy", ["-W", "-db", "-f", at.config]],
    reload: { signal: "SIGUSR2" },
  },
  caddy: {
    file: "Caddyfile",
    replacements: (at) => [
      ["auto_https off", `auto_https off\n\tdefault_bind 127.0.0.1\n\tadmin unix/${at.folder}/admin.sock`],
      ["http://:8080", `http://:${at.http}`],
      ["localhost:8443", `localhost:${at.https}`],
      ["/etc/ssl/certs/bridge.pem", at.certificate],
      ["/etc/ssl/private/bridge.key", at.key],
      ["127.0.0.1:3000", `127.0.0.1:${at.bridge}`],
    ],
    command: (at) => ["caddy", ["run", "--config", at.config, "--adapter", "caddyfile"]],
    reload: {
      command: (at) => [
        "caddy",
        ["reload", "--force", "--config", at.config, "--adapter", "caddyfile", "--address", `unix/${at.folder}/admin.sock`],
      ],
    },
    env: (at) => ({ HOME: at.folder, XDG_DATA_HOME: at.folder, XDG_CONFIG_HOME: at.folder }),
  },
  apache: {
    file: "apache.conf",
    replacements: (at) => [
      ["Listen 8080", `Listen 127.0.0.1:${at.http}`],
      ["Listen 8443", `Listen 127.0.0.1:${at.https}`],
      ["*:8080", `127.0.0.1:${at.http}`],
      ["*:8443", `127.0.0.1:${at.https}`],
      ["/etc/ssl/certs/bridge.pem", at.certificate],
      ["/etc/ssl/private/bridge.key", at.key],
      ["127.0.0.1:3000", `127.0.0.1:${at.bridge}`],
    ],
    command: (at) => ["apache2", ["-D", "FOREGROUND", "-d", at.folder, "-f", apacheMain(at)]],
    reload: { signal: "SIGUSR1" },
  },
  // A file of Envoy is read at its start only, so that a reload is a restart.
  envoy: {
    file: "envoy.yaml",
    replacements: (at) => [
      ["address: 0.0.0.0, port_value: 8080", `address: 127.0.0.1, port_value: ${at.http}`],
      ["address: 0.0.0.0, port_value: 8443", `address: 127.0.0.1, port_value: ${at.https}`],
      ["/etc/ssl/certs/bridge.pem", at.certificate],
      ["/etc/ssl/private/bridge.key", at.key],
      ["address: 127.0.0.1, port_value: 3000", `address: 127.0.0.1, port_value: ${at.bridge}`],
    ],
    command: (at) => [process.env.ENVOY ?? "envoy", ["-c", at.config, "--disable-hot-restart", "--concurrency", "2"]],
  },
};
export const PROXIES = ["nginx", "haproxy", "caddy", "apache", "envoy"];

/// The paths that Debian's nginx has outside of the prefix.
function nginxGlobals(at) {
  return `daemon off; pid ${path.join(at.folder, "nginx.pid")};`;
}

/// The main file of Apache: the modules that `a2enmod` in the documented file names, and those of Debian's default.
function apacheMain(at) {
  const named = /a2enmod (.*)/.exec(readFileSync(at.config, "utf8"))[1].trim().split(" ");
  const modules = ["mpm_event", "authz_core", "reqtimeout", ...named];
  // a2enmod enables the modules that these depend on.
  if (named.includes("ssl")) modules.unshift("socache_shmcb");
  const lines = [
    ...modules.map((name) => `LoadModule ${name}_module ${APACHE_MODULES}/mod_${name}.so`),
    "ServerName localhost",
    `PidFile ${at.folder}/apache.pid`,
    `DefaultRuntimeDir ${at.folder}`,
    `ErrorLog ${at.folder}/error.log`,
    "RequestReadTimeout header=20-40,minrate=500 body=10,minrate=500",
    // Apache does not run requests as root.
    ...(process.getuid() === 0 ? ["User www-data", "Group www-data"] : []),
    `Include ${at.config}`,
  ];
  const main = path.join(at.folder, "apache-main.conf");
  writeFileSync(main, `${lines.join("\n")}\n`);
  return main;
}

/// A running proxy with a documented file.
export class Proxy {
  static async start(name, { folder, tls, bridge, boilerhouse, edit = (text) => text, label = name }) {
    const product = PRODUCTS[name];
    const at = { folder: path.join(folder, label), bridge, boilerhouse, ...tls };
    at.http = await freePort();
    at.https = await freePort();
    at.config = path.join(at.folder, product.file);
    mkdirSync(path.join(at.folder, "logs"), { recursive: true });
    const documented = readFileSync(path.join(FILES, product.file), "utf8");
    writeFileSync(at.config, replaceAll(edit(documented), product.replacements(at)));
    const proxy = new Proxy();
    Object.assign(proxy, { name, product, at, folder, label });
    proxy.http = `http://localhost:${at.http}`;
    proxy.https = `https://localhost:${at.https}`;
    proxy.port = at.http;
    await proxy.#spawn();
    return proxy;
  }

  #spawn() {
    const [command, args] = this.product.command(this.at);
    this.process = new Process(this.folder, this.label, command, args, this.product.env?.(this.at));
    return this.process.untilListening(this.at.http);
  }

  /// Reads the file again, as an operator does it. Returns false if the product cannot.
  async reload() {
    const { reload, env } = this.product;
    if (!reload) return false;
    if (reload.signal) this.process.child.kill(reload.signal);
    else {
      const [command, args] = reload.command(this.at);
      execFileSync(command, args, { stdio: "ignore", env: { ...process.env, ...env?.(this.at) } });
    }
    return true;
  }

  /// Ends all its connections and starts on the same port.
  async restart() {
    await this.stop();
    await this.#spawn();
  }

  stop() {
    return this.process.stop("SIGTERM", 5000);
  }
}
