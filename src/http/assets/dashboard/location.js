// View, filters and the shown object in the hash of the address: `#instances?phase=Running&show=instance/name`.
// A hash works below every path, and the bridge never sees it.

export const VIEWS = ["instances", "tenants", "pools", "events"];
/** Characters of one value that are kept. */
const MAX_CHARS = 300;

export function parse(hash) {
  const [name, query = ""] = hash.replace(/^#/, "").split(/\?(.*)/s);
  const view = VIEWS.includes(name) ? name : VIEWS[0];
  const params = Object.create(null);
  for (const [key, value] of new URLSearchParams(query)) params[key] = value.slice(0, MAX_CHARS);
  return { view, params };
}

export function format({ view, params }) {
  const query = new URLSearchParams(Object.entries(params).filter(([, value]) => value));
  const text = query.toString();
  return text ? `#${view}?${text}` : `#${view}`;
}

/** The object of `show`: its kind and name. */
export function shown(params) {
  const found = /^(instance|claim|tenant|event)\/(.+)$/s.exec(params.show ?? "");
  return found && { kind: found[1], name: found[2] };
}

/** The address of the page, with `onChange` after each change. */
export class Address {
  constructor(onChange) {
    this.onChange = onChange;
    this.#keep(parse(location.hash));
    addEventListener("hashchange", () => this.#read());
  }

  /** Filters that a view had last, without the shown object. */
  #last = Object.create(null);

  #keep(next) {
    this.current = next;
    this.#last[next.view] = { ...next.params, show: "" };
  }

  /** The address of a view with its last filters. */
  of(view) {
    return format({ view, params: this.#last[view] ?? {} });
  }

  #read() {
    this.#keep(parse(location.hash));
    this.onChange();
  }

  /** Changes filters. Typing makes no history. */
  set(changes) {
    this.#keep({ ...this.current, params: { ...this.current.params, ...changes } });
    history.replaceState(null, "", format(this.current));
    this.onChange();
  }

  /** Without `params`, the view has its last filters. */
  go(view, params = this.#last[view] ?? {}) {
    this.#push({ view, params });
  }

  /** Opens the detail of an object. The back button closes it. */
  show(kind, name) {
    const { view, params } = this.current;
    this.#push({ view, params: { ...params, show: `${kind}/${name}` } });
  }

  hide() {
    this.set({ show: "" });
  }

  #push(next) {
    history.pushState(null, "", format(next));
    this.#keep(next);
    this.onChange();
  }
}
