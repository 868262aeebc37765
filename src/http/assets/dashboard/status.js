// What the page says about its connection. A pure function of what the client knows.
//
// Guarantees: `isLive` is true only while the state on the page is the current one.
import { clock, duration } from "./format.js";

/** A longer difference between the clocks is shown. */
const CLOCK_TOLERANCE_MS = 60_000;

/** Words for an error that ended a connection. */
export function because(error) {
  if (!error) return "";
  const { kind, status, reason, detail, message } = error;
  if (reason === "draining") return "The bridge is shutting down.";
  if (reason === "not ready" || error.code === "NOT_READY") {
    const what = detail ? `cannot read the cluster yet (${detail})` : "is still reading the cluster (first sync)";
    return `The bridge ${what}. The page continues by itself.`;
  }
  if (kind === "not-a-stream") {
    return "The server answered with another page instead of the stream. A proxy may want you to sign in: reload the page.";
  }
  if (kind === "redirect") return "A proxy before the bridge redirects. It may want you to sign in: reload the page.";
  if (kind === "upgrade") {
    return "The WebSocket did not open: the bridge is not ready, or a proxy does not let WebSockets through. The page tries server-sent events.";
  }
  if (kind === "connect" || kind === "lost") return "The bridge cannot be reached.";
  if (kind === "silent") return `The connection was silent: ${message}.`;
  if (status === 403) return `The bridge refuses this access. ${message}`;
  if ([502, 503, 504].includes(status) && !error.code) return `A proxy cannot reach the bridge (HTTP ${status}).`;
  return `${message}.`;
}

/** The clock of the computer, if it is wrong. */
export function clockNotice(offsetMs) {
  if (offsetMs === undefined || Math.abs(offsetMs) < CLOCK_TOLERANCE_MS) return "";
  const direction = offsetMs > 0 ? "behind" : "ahead of";
  const amount = duration(Math.abs(offsetMs));
  return `The clock of this computer is ${amount} ${direction} that of the bridge. Ages are computed with the bridge's clock.`;
}

/**
 * @param {{ connection, freshness, upstream, hasState: boolean, hasOpened: boolean, lastError, isDown: boolean, now: number }} input
 *   `isDown`: the GET of the connections says that the API server cannot be reached. `now`: of `performance.now()`.
 * @returns {{ state: string, isLive: boolean, chip: string, text: string, isAlert: boolean, canRetry: boolean }}
 */
export function describe({ connection, freshness, upstream, hasState, hasOpened, lastError, isDown, now }) {
  const { status, error, retryAt } = connection;
  const say = (state, chip, text, more = {}) => ({
    state,
    isLive: false,
    chip,
    text,
    isAlert: false,
    canRetry: false,
    ...more,
  });
  if (status === "closed" && error?.status === 401) return say("signed-out", "Signed out", "");
  if (status === "closed") {
    const text = `${because(error) || "The page is closed."} The page has stopped trying.`;
    return say("reconnecting", "Stopped", text, { isAlert: true, canRetry: true });
  }
  if (status === "paused")
    return say("stale", "Paused", "The page was in the background and paused. It continues now.");
  if (status === "waiting") {
    const chip = `Reconnecting in ${Math.max(1, Math.ceil((retryAt - now) / 1000))} s`;
    const text = hasOpened ? `Connection lost. ${because(error)}` : because(error);
    return say("reconnecting", chip, text, { canRetry: true });
  }
  if (status !== "open") {
    const isFirst = !hasOpened && !lastError;
    // A bridge that is not ready answers after 10 s. Until then the last answer counts.
    return say("reconnecting", "Connecting", isFirst ? "Connecting to the bridge…" : `${because(lastError)} Connecting again…`.trim());
  }
  const down = [...upstream.down.values()];
  if (upstream.status === "down" || (isDown && upstream.status !== "live")) {
    const since = down
      .map((event) => event.since)
      .filter(Boolean)
      .sort()[0];
    const reason = down.find((event) => event.reason)?.reason;
    const when = since ? ` since ${clock(since)}` : "";
    const text = `The bridge gets no changes from the API server${when}${reason ? ` (${reason})` : ""}. What you see may be old.`;
    return say("down", "No changes", text, { isAlert: true });
  }
  if (!hasState) return say("reconnecting", "Loading", "Loading the current state…");
  if (freshness.reason === "silent") {
    return say("stale", "Stale", `Nothing has arrived for ${duration(freshness.ageMs)}. What you see may be old.`, {
      isAlert: true,
    });
  }
  if (freshness.reason === "upstream") {
    return say("stale", "Catching up", "The bridge is reading changes that were missed. What you see may be old.");
  }
  return { state: "live", isLive: true, chip: "Live", text: "", isAlert: false, canRetry: false };
}
