// Small parts that several views share.
import { Component, html } from "./html.js";

/** The phases of an instance and of a claim (docs/protocol.md#objects), in the order of a life. */
export const PHASES = ["Pending", "Running", "Succeeded", "Failed", "Unknown"];
export const CLAIM_PHASES = ["Pending", "Active", "Releasing", "Released", "ReleaseFailed", "Error"];

/** The number of objects in each phase: first those of the contract, then others that objects have. */
export function byPhase(contract, numbers) {
  const others = [...numbers.keys()].filter((phase) => !contract.includes(phase)).sort();
  return new Map([...contract, ...others].map((phase) => [phase, numbers.get(phase) ?? 0]));
}

/** A word with a colour and a shape. The colour never stands alone. */
export function Phase({ value }) {
  const tones = {
    Running: "good",
    Active: "good",
    ready: "good",
    Pending: "wait",
    warming: "wait",
    Releasing: "wait",
    Failed: "bad",
    Error: "bad",
    ReleaseFailed: "bad",
    Unknown: "bad",
    Deleted: "gone",
    Released: "gone",
    Succeeded: "gone",
    acquired: "used",
  };
  if (!value) return html`<span class="none">–</span>`;
  return html`<span class="phase" data-tone=${Object.hasOwn(tones, value) ? tones[value] : "other"}>${value}</span>`;
}

/** A name that is shortened in its middle where it does not fit: its end tells similar names apart. */
export function Name({ value }) {
  const [, start, end] = /^(.{6,})(.{6})$/su.exec(value) ?? [];
  if (!start) return value;
  return html`<span class="middle" title=${value}><span>${start}</span>${end}</span>`;
}

/** The search and the filters of a view. In a narrow window a button shows the filters. */
export class Tools extends Component {
  state = { isOpen: false };

  render({ address, names, search, children }, { isOpen }) {
    const active = names.filter((name) => name !== "q" && address.current.params[name]).length;
    return html`<div class=${isOpen ? "tools open" : "tools"}>
      <${Search} address=${address} label="Search" placeholder=${search} />
      <button type="button" class="toggle" aria-expanded=${isOpen} onClick=${() => this.setState({ isOpen: !isOpen })}>
        Filters${active > 0 && ` (${active})`}
      </button>
      ${children}
    </div>`;
  }
}

/** The search field of a view. The key / leads to it. */
export function Search({ address, label, placeholder }) {
  const { params } = address.current;
  return html`<label class="field search">
    <span>${label}</span>
    <input
      id="search" type="search" value=${params.q ?? ""} placeholder=${placeholder} autocomplete="off" spellcheck=${false}
      onInput=${({ target }) => address.set({ q: target.value })}
    />
  </label>`;
}

export function Text({ address, name, label }) {
  return html`<label class="field">
    <span>${label}</span>
    <input
      type="text" value=${address.current.params[name] ?? ""} placeholder="any" autocomplete="off" spellcheck=${false}
      onInput=${({ target }) => address.set({ [name]: target.value })}
    />
  </label>`;
}

/** Selects one of `values`: the numbers of objects by value. */
export function Choice({ address, name, label, values }) {
  const value = address.current.params[name] ?? "";
  // A value of the address that no object has is still shown.
  const all = value && !values.has(value) ? [[value, 0], ...values] : [...values];
  return html`<label class="field">
    <span>${label}</span>
    <select value=${value} onChange=${({ target }) => address.set({ [name]: target.value })}>
      <option value="">any</option>
      ${all.map(([item, number]) => html`<option key=${item} value=${item}>${`${item} (${number.toLocaleString("en")})`}</option>`)}
    </select>
  </label>`;
}

/** Removes the filters of a view, if there are any. */
export function Clear({ address, names }) {
  const isFiltered = names.some((name) => address.current.params[name]);
  const clear = () => address.set(Object.fromEntries(names.map((name) => [name, ""])));
  return isFiltered && html`<button type="button" class="plain" onClick=${clear}>Clear filters</button>`;
}

/** What a list shows, and of when it is. */
export function Summary({ text, status, store, children }) {
  const when = store.stateTime?.toLocaleTimeString("en-GB");
  return html`<p class="summary">
    <span>${text}</span>
    ${!status.isLive && html`<strong class="old">${when ? `Not live: as of ${when}` : "Not live"}</strong>`}
    ${children}
  </p>`;
}

/** The sort order of a view in the address: `name`, or `-name` for descending. */
export function sortOf(address, initial) {
  const text = address.current.params.sort || initial;
  const isDescending = text.startsWith("-");
  const key = isDescending ? text.slice(1) : text;
  const onSort = (next) => address.set({ sort: next === key && !isDescending ? `-${next}` : next });
  return { key, isDescending, onSort };
}

/** Orders two values. Missing ones are last in both directions. Comparing code units is fast, and names are ASCII. */
export function compare(a, b, isDescending) {
  if (a === b) return 0;
  if (a === undefined || a === "") return 1;
  if (b === undefined || b === "") return -1;
  return a < b === isDescending ? 1 : -1;
}

/** A computation over all objects pauses for so many times its own duration, unless the user asks for something else. */
const PAUSE_FACTOR = 15;

/**
 * Keeps the result of a computation until its inputs or the version of the state change. A new version alone does not make
 * it run all the time: with 5,000 objects and 200 events a second it uses a fixed part of the time. The page renders at
 * least once a second, so a result is never older than that.
 */
export function cached() {
  let inputs;
  let version;
  let result;
  let notBefore = 0;
  return (newVersion, newInputs, compute) => {
    const isSame = inputs !== undefined && newInputs.every((input, index) => input === inputs[index]);
    const start = performance.now();
    if (isSame && (newVersion === version || start < notBefore)) return result;
    [inputs, version, result] = [newInputs, newVersion, compute()];
    const end = performance.now();
    notBefore = end + Math.min((end - start) * PAUSE_FACTOR, 900);
    return result;
  };
}
