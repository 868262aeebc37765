// Values as people read them. Pure functions.

const pad = (number) => String(number).padStart(2, "0");

/** `12:03:04` of the local time zone, or an empty text. */
export function clock(time) {
  const date = new Date(time);
  if (Number.isNaN(date.getTime())) return "";
  return `${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`;
}

/** A duration in one or two units: `4 s`, `3 min`, `2 h 5 min`, `3 d 4 h`. */
export function duration(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  const days = Math.floor(hours / 24);
  return hours % 24 ? `${days} d ${hours % 24} h` : `${days} d`;
}

/** How long ago a time is, by the clock of the bridge. */
export function age(time, now) {
  const at = Date.parse(time ?? "");
  return Number.isNaN(at) ? "–" : duration(now - at);
}

export function ago(time, now) {
  const text = age(time, now);
  return text === "–" ? text : `${text} ago`;
}

export function rate(perSecond) {
  return perSecond >= 10 ? String(Math.round(perSecond)) : perSecond.toFixed(1);
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

/** `155 events`, or `28 of 155 events`. */
export function some(number, total, one) {
  return number === total ? count(total, one) : `${number.toLocaleString("en")} of ${count(total, one)}`;
}

/** Whether a text is in one of the values. `text` is in lower case. */
export function includes(text, ...values) {
  return values.some((value) => value !== undefined && String(value).toLowerCase().includes(text));
}

/** Whether a search text matches: `key=value` for a label, else a part of one of the values. */
export function matches(text, values, labels) {
  if (text === "") return true;
  if (includes(text, ...values)) return true;
  if (!text.includes("=") || !labels) return false;
  return Object.entries(labels).some(([key, value]) => `${key}=${value}`.toLowerCase().includes(text));
}
