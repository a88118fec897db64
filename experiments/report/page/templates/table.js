// A table of which only the rows in view are in the document, so that thousands scroll at once; cards in a narrow window.

const NARROW = matchMedia("(max-width: 700px)");
const ROW = 34; // pixels; must be the height of a cell in page.css
const SPARE = 8; // rows drawn beyond the edges
const ORDER = new Intl.Collator("en", { numeric: true });

/**
 * columns: {key, title, kind: "text" | "number", width in %, two: whether it takes two lines of a card, hint,
 * cell(row) -> string or node, value(row) -> what is sorted by}. `open(row)` is called for a click on a row.
 */
class RowTable {
  constructor(host, { columns, label, href, open, sorted }) {
    Object.assign(this, { columns, href, open, sorted });
    this.rows = [];
    this.selected = null;
    this.head = element("tr", { role: "row" });
    this.body = element("tbody", { class: "real", role: "rowgroup" });
    [this.above, this.below] = [0, 1].map(() => element("td", { colspan: columns.length }));
    const space = (cell) => element("tbody", { class: "space", "aria-hidden": "true" }, element("tr", {}, cell));
    this.table = element("table", { role: "table", "aria-label": label },
      element("colgroup", {}, columns.map((column) => element("col", { style: `width: ${column.width}%` }))),
      element("thead", { role: "rowgroup" }, this.head), space(this.above), this.body, space(this.below));
    this.empty = element("p", { class: "none", hidden: true }, "No question is left; Escape clears filters and search.");
    this.view = element("div", { class: "rows", tabindex: 0, role: "region", "aria-label": label }, this.table, this.empty);
    host.append(this.view);
    this.view.addEventListener("scroll", () => requestAnimationFrame(() => this.draw()), { passive: true });
    NARROW.addEventListener("change", () => this.draw(true));
    Object.assign(this, { key: null, down: false, drawn: [] });
  }

  get height() {
    if (!NARROW.matches) return ROW;
    const numbers = this.columns.filter((column) => column.kind === "number").length;
    const lines = this.columns.filter((column) => column.kind === "text").reduce((sum, column) => sum + (column.two ? 2 : 1), 0);
    return Math.round((lines + Math.ceil(numbers / 2)) * 21.6 + 17);
  }

  /** Show these rows, sorted as they are already. */
  show(rows, key, down) {
    Object.assign(this, { rows, key, down });
    this.head.replaceChildren(...this.columns.map((column) => element("th",
      { class: column.kind, scope: "col", role: "columnheader", title: column.hint,
        "aria-sort": column.key !== key ? "none" : down ? "descending" : "ascending" },
      element("button", { type: "button", onclick: () => this.sorted(column.key, column.key === key ? !down : column.kind === "number") }, column.title))));
    this.table.setAttribute("aria-rowcount", rows.length + 1);
    this.empty.hidden = rows.length > 0;
    this.draw(true);
  }

  draw(anew = false) {
    const height = this.height;
    const first = Math.max(0, Math.floor(this.view.scrollTop / height) - SPARE);
    const last = Math.min(this.rows.length, Math.ceil((this.view.scrollTop + this.view.clientHeight) / height) + SPARE);
    if (!anew && first === this.first && last === this.last) return;
    Object.assign(this, { first, last });
    this.above.style.height = `${first * height}px`;
    this.below.style.height = `${(this.rows.length - last) * height}px`;
    const focused = [...this.body.rows].findIndex((line) => line.contains(document.activeElement));
    const kept = focused < 0 ? null : this.drawn[focused];
    this.drawn = this.rows.slice(first, last);
    this.body.replaceChildren(...this.drawn.map((row, at) => this.line(row, first + at, height)));
    if (kept !== null && this.drawn.includes(kept)) this.body.rows[this.drawn.indexOf(kept)].querySelector("a").focus({ preventScroll: true });
  }

  line(row, at, height) {
    const cells = this.columns.map((column, first) => {
      const content = column.cell(row);
      const inner = first === 0 ? element("a", { href: this.href(row) }, content) : content;
      const tip = typeof content === "string" && column.kind === "text" ? content.slice(0, 500) : null;
      return element("td", { role: "cell", class: column.kind + (column.two ? " two" : ""), "data-title": column.title, title: tip }, inner);
    });
    return element("tr", { role: "row", "aria-rowindex": at + 2, "aria-current": row === this.selected ? "true" : null,
      style: `height: ${height}px`, onclick: (event) => { event.preventDefault(); this.open(row); } }, cells);
  }

  /** Mark a row and bring it into view; null marks none. */
  select(row) {
    this.selected = row;
    const at = this.rows.indexOf(row);
    if (at >= 0) {
      const [height, view] = [this.height, this.view];
      const head = NARROW.matches ? 0 : this.head.offsetHeight;
      if (at * height < view.scrollTop) view.scrollTop = at * height;
      else if ((at + 1) * height + head > view.scrollTop + view.clientHeight) view.scrollTop = (at + 1) * height + head - view.clientHeight;
    }
    this.draw(true);
  }
}

/** Rows by a column, empty values last whichever way. */
function sortRows(rows, column, down) {
  const keyed = rows.map((row) => [column.value(row), row]);
  const missing = (value) => value === null || value === undefined || value === "";
  keyed.sort(([a], [b]) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    const order = typeof a === "number" ? a - b : ORDER.compare(a, b);
    return down ? -order : order;
  });
  return keyed.map(([, row]) => row);
}
