// A table of any length that keeps only the visible rows in the document, with keyboard use.
//
// The table keeps the focus and names its active row (`aria-activedescendant`), so that a row that leaves the document
// takes no focus with it.
import { Component, createRef, html } from "./html.js";

/** The height of a row in style.css. */
const ROW_PX = 34;
/** Rows before and after the visible ones. */
const OVERSCAN = 8;

export class Grid extends Component {
  scroller = createRef();
  table = createRef();
  state = { top: 0, height: 600, active: undefined };
  #observer;
  /** Where the active row was. */
  #lastIndex = 0;

  /** With `place`, an object, a later grid of the same rows continues at the place where this one was. */
  componentDidMount() {
    this.props.handle.current = this;
    const scroller = this.scroller.current;
    const { top, active } = this.props.place ?? {};
    if (active !== undefined) this.setState({ active });
    if (top) scroller.scrollTop = top;
    const measure = () => {
      if (scroller.clientHeight !== this.state.height) this.setState({ height: scroller.clientHeight });
    };
    this.#observer = new ResizeObserver(measure);
    this.#observer.observe(scroller);
    measure();
  }

  componentWillUnmount() {
    this.#observer.disconnect();
    const { top, active } = this.state;
    if (this.props.place) Object.assign(this.props.place, { top, active });
    if (this.props.handle.current === this) this.props.handle.current = null;
  }

  /** With `anchor`, new rows at the start do not move what the user reads. */
  getSnapshotBeforeUpdate(before) {
    const { anchor, rows, rowKey } = this.props;
    const scroller = this.scroller.current;
    if (!anchor || !scroller || scroller.scrollTop === 0 || before.rows.length === 0) return 0;
    const first = rowKey(before.rows[0]);
    const added = rows.slice(0, 400).findIndex((row) => rowKey(row) === first);
    return added > 0 ? added * ROW_PX : 0;
  }

  componentDidUpdate(before, _state, shift) {
    const { rows, rowKey } = this.props;
    // The neighbour of a row that has gone is active instead.
    if (this.state.active !== undefined && rows !== before.rows) {
      const index = this.#activeIndex();
      if (index >= 0) this.#lastIndex = index;
      else if (rows.length > 0) this.setState({ active: rowKey(rows[Math.min(this.#lastIndex, rows.length - 1)]) });
    }
    if (shift) this.scroller.current.scrollTop += shift;
  }

  focus() {
    this.table.current?.focus();
  }

  #activeIndex() {
    const { rows, rowKey } = this.props;
    const { active } = this.state;
    return active === undefined ? -1 : rows.findIndex((row) => rowKey(row) === active);
  }

  #activate(index) {
    const { rows, rowKey } = this.props;
    if (rows.length === 0) return;
    const at = Math.min(Math.max(index, 0), rows.length - 1);
    this.#lastIndex = at;
    this.setState({ active: rowKey(rows[at]) });
    const scroller = this.scroller.current;
    // The head of the table covers one row.
    const [top, bottom] = [at * ROW_PX, (at + 2) * ROW_PX];
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    else if (bottom > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = bottom - scroller.clientHeight;
  }

  onKeyDown = (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const page = Math.max(1, Math.floor(this.state.height / ROW_PX) - 2);
    const index = this.#activeIndex();
    const moves = {
      ArrowDown: index + 1,
      ArrowUp: index - 1,
      PageDown: index + page,
      PageUp: index - page,
      Home: 0,
      End: Infinity,
    };
    if (event.target.tagName === "BUTTON" && !(event.key in moves)) return;
    if (event.key in moves) this.#activate(moves[event.key]);
    else if (event.key === "Enter" && index >= 0) this.props.onOpen(this.props.rows[index]);
    else return;
    event.preventDefault();
  };

  onFocus = (event) => {
    if (event.target === this.table.current && this.#activeIndex() < 0) {
      this.#activate(Math.floor(this.scroller.current.scrollTop / ROW_PX));
    }
  };

  #head(column) {
    const { sort, onSort } = this.props;
    if (!column.sort) return html`<th scope="col" class=${column.class}>${column.title}</th>`;
    const isSorted = sort.key === column.key;
    const direction = isSorted ? (sort.isDescending ? "descending" : "ascending") : "none";
    const mark = isSorted ? (sort.isDescending ? "▾" : "▴") : "";
    return html`<th scope="col" class=${column.class} aria-sort=${direction}>
      <button type="button" onClick=${() => onSort(column.key)}>
        ${column.title}<span aria-hidden="true" class="mark">${mark}</span>
      </button>
    </th>`;
  }

  render({ label, rows, columns, rowKey, rowProps, onOpen, empty }, { top, height, active }) {
    const first = Math.max(0, Math.min(Math.floor(top / ROW_PX) - OVERSCAN, rows.length));
    const last = Math.min(rows.length, Math.ceil((top + height) / ROW_PX) + OVERSCAN);
    const visible = rows.slice(first, last);
    const activeAt = active === undefined ? -1 : visible.findIndex((row) => rowKey(row) === active);
    const space = (count) => count > 0 && html`<tr aria-hidden="true" style=${{ height: `${count * ROW_PX}px` }}></tr>`;
    return html`<div class="scroller" ref=${this.scroller} onScroll=${({ target }) => this.setState({ top: target.scrollTop })}>
      <table
        ref=${this.table} role="grid" tabindex="0" aria-label=${label} aria-rowcount=${rows.length + 1}
        aria-activedescendant=${activeAt < 0 ? undefined : `row-${first + activeAt}`}
        onKeyDown=${this.onKeyDown} onFocus=${this.onFocus}
      >
        <thead><tr aria-rowindex="1">${columns.map((column) => this.#head(column))}</tr></thead>
        <tbody>
          ${space(first)}
          ${visible.map((row, index) => {
            const { class: name = "", ...attributes } = rowProps?.(row) ?? {};
            const isActive = index === activeAt;
            return html`<tr
              key=${rowKey(row)} id=${`row-${first + index}`} aria-rowindex=${first + index + 2} aria-selected=${isActive}
              class=${isActive ? `${name} active` : name} ...${attributes}
              onClick=${() => {
                this.#lastIndex = first + index;
                this.setState({ active: rowKey(row) });
                onOpen(row);
              }}
            >
              ${columns.map(({ class: cell, render, isHeader }) => {
                const content = render(row);
                const title = typeof content === "string" ? content : undefined;
                return isHeader
                  ? html`<th scope="row" class=${cell} title=${title}>${content}</th>`
                  : html`<td class=${cell} title=${title}>${content}</td>`;
              })}
            </tr>`;
          })}
          ${space(rows.length - last)}
        </tbody>
      </table>
      ${rows.length === 0 && html`<p class="empty">${empty}</p>`}
    </div>`;
  }
}
