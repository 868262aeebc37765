// Runs inside a page of a browser. Opens streams, counts what they do, and sends GETs.
//
// `watchStreams` gets the two code blocks of docs/how-to/clients.md, so that the documented code is what runs here.
window.watchStreams = ({ paths, eventSourceCode, webSocketCode, knownPod }) => {
  const records = [];

  // Counts in a record what the streams of one path do. A client can create several streams one after another.
  const counted = (Base, record) =>
    class extends Base {
      constructor(url) {
        super(url);
        record.created += 1;
        record.current = this;
        this.addEventListener("open", () => (record.opened += 1));
        this.addEventListener("error", () => (record.errors += 1));
        this.addEventListener("close", () => (record.closed += 1));
      }
    };

  // Remembers what the test asks for: whether the first state has arrived, and the names of all instances.
  const handle = (record) => (event) => {
    record.events += 1;
    if (event.type === "state.initial") {
      record.initial += 1;
      for (const { name } of event.instances) record.seen[name] = true;
    } else if (event.type === "instance.state") {
      record.seen[event.name] = true;
    }
    if (record.seen[knownPod]) record.hasState = true;
  };

  for (const path of paths) {
    const record = {
      path,
      created: 0,
      opened: 0,
      errors: 0,
      closed: 0,
      events: 0,
      initial: 0,
      hasState: false,
      seen: {},
    };
    records.push(record);
    if (path === "/api/sse") {
      new Function("EventSource", "handle", eventSourceCode)(counted(EventSource, record), handle(record));
    } else {
      const code = webSocketCode.replace("/api/websocket", path);
      new Function("WebSocket", "handle", code)(counted(WebSocket, record), handle(record));
    }
  }

  // EventSource.OPEN and WebSocket.OPEN are both 1.
  window.report = () =>
    records.map(({ current, seen, ...record }) => ({
      ...record,
      open: current.readyState === 1,
      seen: Object.keys(seen),
    }));
  window.sendGets = (targets) => Promise.all(targets.map(async (target) => [target, (await fetch(target)).status]));
};
