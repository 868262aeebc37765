// A TCP proxy that can cut its connections.
import { once } from "node:events";
import net from "node:net";

export class TcpProxy {
  #sockets = new Set();

  /** Forwards to a port of this machine. `port` is that of the proxy; 0 takes a free one. */
  async open(target, port = 0) {
    this.server = net.createServer((client) => {
      const upstream = net.connect(target, "127.0.0.1");
      for (const [from, to] of [
        [client, upstream],
        [upstream, client],
      ]) {
        this.#sockets.add(from);
        from.on("error", () => to.destroy()).on("close", () => (this.#sockets.delete(from), to.destroy()));
        from.pipe(to);
      }
    });
    this.server.listen(port, "127.0.0.1");
    await once(this.server, "listening");
    this.port = this.server.address().port;
    this.url = `http://127.0.0.1:${this.port}`;
    return this;
  }

  /** Ends all connections. */
  cut() {
    for (const socket of this.#sockets) socket.destroy();
  }

  /** Ends all connections and refuses new ones. */
  async close() {
    this.cut();
    await new Promise((done) => this.server.close(done));
  }
}
