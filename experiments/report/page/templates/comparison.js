// The page of a study: runs that answered the same questions side by side, and the questions on which they differ.

const MOST = 4; // runs shown at first

class Comparison {
  constructor(host, data) {
    Object.assign(this, { data, host });
    this.state = { filter: "all", search: "", range: null, key: "spread", down: true };
    const list = element("select", { class: "broad", onchange: () => this.take(Number(list.value)) },
      data.sets.map(({ name, varied }, at) => element("option", { value: at }, `${varied}: ${name}`)));
    this.search = element("input", { type: "search", placeholder: "search questions and answers", "aria-label": "search questions and answers", oninput: () => { this.state.search = this.search.value; this.refresh(); } });
    this.runs = element("div", { class: "tools", role: "group", "aria-label": "runs shown" });
    this.plotHost = element("div", { class: "plots" });
    this.filters = element("div", { class: "tools", role: "group", "aria-label": "filters" });
    this.count = element("p", { class: "note", role: "status" });
    this.tableHost = element("div");
    this.detail = element("section", { class: "detail", "aria-label": "the question chosen", hidden: true });
    host.append(element("div", { class: "tools" }, element("label", {}, "compare", list)), this.runs, this.plotHost, this.filters, this.count, this.tableHost, this.detail);
    this.take(0);
  }

  /** Compare the runs of a set: all of a small one, else the first, the last and some between. */
  take(at) {
    this.set = this.data.sets[at];
    const n = this.set.runs.length;
    const even = Array.from({ length: Math.min(MOST, n) }, (_, each) => Math.round(each * (n - 1) / (Math.min(MOST, n) - 1)));
    this.shown = new Set(even);
    this.q = this.data.questions[this.data.runs[this.set.runs[0]].dataset];
    const box = (each) => element("input", { type: "checkbox", checked: this.shown.has(each), onchange: (event) => {
      if (event.target.checked) this.shown.add(each);
      else if (this.shown.size > 2) this.shown.delete(each);
      else event.target.checked = true; // two at least
      this.build();
    } });
    this.runs.replaceChildren(...this.set.called.map((name, each) => element("label", {}, box(each), visible(name))));
    this.build();
  }

  /** [name, run] of what is shown, in the order of the set. */
  get sides() { return [...this.shown].sort((a, b) => a - b).map((at) => [visible(this.set.called[at]), this.data.runs[this.set.runs[at]]]); }

  build() {
    const sides = this.sides;
    this.rows = this.q.id.map((_, row) => row).filter((row) => sides.every(([, run]) => run.confidence[row] !== null));
    const spread = (row) => Math.max(...sides.map(([, run]) => run.confidence[row])) - Math.min(...sides.map(([, run]) => run.confidence[row]));
    const text = (key, title, width, two) => ({ key, title, width, two, kind: "text", cell: (row) => oneLine(this.q[key][row]), value: (row) => oneLine(this.q[key][row]) });
    const each = 58 / sides.length;
    this.columns = [text("text", "question", 25, true), text("gold", "gold", 10, false),
      ...sides.map(([name, run], at) => ({ key: `run ${at}`, title: name, width: each, kind: "text", hint: `answer and confidence of ${name}`, value: (row) => run.confidence[row], cell: (row) => this.answer(run, row) })),
      { key: "spread", title: "spread", width: 7, kind: "number", hint: "largest minus smallest confidence", value: spread, cell: (row) => number(spread(row)) }];
    this.tableHost.replaceChildren();
    this.table = new RowTable(this.tableHost, { columns: this.columns, label: "questions of these runs", open: (row) => this.open(row),
      href: (row) => `${sides[0][1].link}#q=${encodeURIComponent(this.q.id[row])}`, sorted: (key, down) => { Object.assign(this.state, { key, down }); this.refresh(); } });
    Object.assign(this.state, { key: "spread", down: true, range: null });
    this.detail.hidden = true;
    this.buildFilters();
    this.drawPlots();
    this.refresh();
  }

  answer(run, row) {
    const right = run.correct[row] >= 0.5;
    return element("span", {}, element("span", { class: right ? "right-text" : "wrong-text" }, `${right ? "✓" : "✗"} ${number(run.confidence[row])} `), element("span", { class: "answer" }, oneLine(run.answer[row])));
  }

  buildFilters() {
    const sides = this.sides;
    const [[first, a], [last, b]] = [sides[0], sides[sides.length - 1]];
    const right = (run, row) => run.correct[row] >= 0.5;
    this.choices = [
      ["all", () => true], [`${first} right, ${last} wrong`, (row) => right(a, row) && !right(b, row)],
      [`${first} wrong, ${last} right`, (row) => !right(a, row) && right(b, row)],
      ["other answers", (row) => new Set(sides.map(([, run]) => oneLine(run.answer[row]))).size > 1],
      ["all wrong", (row) => sides.every(([, run]) => !right(run, row))],
    ];
    this.state.filter = "all";
    this.buttons = this.choices.map(([name]) => element("button", { type: "button", onclick: () => { this.state.filter = name; this.refresh(); } }, name));
    this.chip = element("button", { type: "button", hidden: true, title: "remove this filter", onclick: () => { this.state.range = null; this.refresh(); } });
    const sorts = element("select", { onchange: () => { this.state.key = sorts.value; this.refresh(); } }, this.columns.map(({ key, title }) => element("option", { value: key }, title)));
    this.sorts = sorts;
    this.filters.replaceChildren(this.search, ...this.buttons, this.chip, element("label", { class: "narrow" }, "sort", sorts));
  }

  drawPlots() {
    const sides = this.sides;
    const [[first, a], [last, b]] = [sides[0], sides[sides.length - 1]];
    this.plotHost.replaceChildren();
    const edges = evenly(10);
    const bins = binned(this.rows, (row) => a.confidence[row], edges);
    this.scatter = new Plot(this.plotHost, `Confidence: ${last} against ${first}`, { x: [0, 1], y: [0, 1], xTitle: first, yTitle: last,
      hint: `A dot a question; blue: right in ${last}, orange: wrong. Click or drag to filter by confidence in ${first}.` });
    this.scatter.inner.append(shape("line", { class: "dashed", x1: this.scatter.px(0), y1: this.scatter.py(0), x2: this.scatter.px(1), y2: this.scatter.py(1) }),
      ...this.rows.map((row) => shape("circle", { class: b.correct[row] >= 0.5 ? "right" : "wrong", opacity: 0.45, r: 2.2, cx: this.scatter.px(a.confidence[row]), cy: this.scatter.py(b.confidence[row]) })));
    this.scatter.areas(edges, (at) => `${first}, confidence ${number(edges[at], 1)} to ${number(edges[at + 1], 1)}: ${ask(bins[at].length)}` +
      (bins[at].length ? `, mean confidence of ${last} ${number(mean(bins[at].map((row) => b.confidence[row])))}` : ""),
    (low, high) => { this.state.range = { low, high }; this.refresh(); });
    if (this.rows.length) this.trend();
  }

  /** Mean confidence and accuracy of every run of the set, in its order: checkpoints along training among them. */
  trend() {
    const runs = this.set.runs.map((at) => this.data.runs[at]);
    const asked = this.q.id.map((_, row) => row).filter((row) => runs.every((run) => run.confidence[row] !== null));
    if (!asked.length) return;
    const plot = new Plot(this.plotHost, "Mean confidence and accuracy", { x: [-0.5, runs.length - 0.5], y: [0, 1], xTitle: this.set.varied === "checkpoints" ? "training step" : this.set.varied, yTitle: "", xTicks: false,
      hint: `Blue line: accuracy; dashed: confidence; on the ${ask(asked.length)} that all of them were asked.` });
    const figures = runs.map((run) => ["confidence", "correct"].map((key) => mean(asked.map((row) => run[key][row]))));
    const line = (which) => figures.map((pair, at) => `${plot.px(at)},${plot.py(pair[which])}`).join(" ");
    plot.inner.append(shape("polyline", { class: "dashed", points: line(0) }), shape("polyline", { class: "curve", points: line(1) }),
      ...figures.flatMap(([confidence, accuracy], at) => [shape("circle", { class: "all", r: 3, cx: plot.px(at), cy: plot.py(confidence) }), shape("circle", { class: "right", r: 3.5, cx: plot.px(at), cy: plot.py(accuracy) })]));
    const name = (at) => (this.set.varied === "checkpoints" ? String(runs[at].step) : visible(this.set.called[at]));
    const room = Math.max(3, Math.floor(46 / runs.length));
    const every = Math.ceil(runs.length / 8);
    runs.forEach((_, at) => { if (at % every === 0) plot.svg.append(shape("text", { x: plot.px(at), y: HIGH - BOTTOM + 14, "text-anchor": "middle" }, name(at).length > room ? `${name(at).slice(0, room)}…` : name(at))); });
    plot.areas(runs.map((_, at) => at - 0.5).concat(runs.length - 0.5), (at) => `${name(at)}: mean confidence ${number(figures[at][0], 3)}, accuracy ${number(figures[at][1], 3)}`, () => {});
  }

  refresh() {
    const { filter, search, range, key, down } = this.state;
    const words = search.toLowerCase().trim();
    const pass = this.choices.find(([name]) => name === filter)[1];
    const [, first] = this.sides[0];
    const raw = (text) => (text?.cut ?? text ?? "").toLowerCase();
    const found = (row) => [this.q.id[row], this.q.text[row], this.q.gold[row], ...this.sides.map(([, run]) => run.answer[row])].some((text) => raw(text).includes(words));
    const inside = (row) => first.confidence[row] >= range.low && (first.confidence[row] < range.high || range.high >= 1);
    const kept = this.rows.filter((row) => pass(row) && (!range || inside(row)) && (!words || found(row)));
    this.table.show(sortRows(kept, this.columns.find((column) => column.key === key), down), key, down);
    this.sorts.value = key;
    this.buttons.forEach((button, at) => {
      const [name, passes] = this.choices[at];
      button.setAttribute("aria-pressed", name === filter);
      button.textContent = `${name} ${this.rows.filter(passes).length}`;
    });
    this.chip.hidden = !range;
    if (range) this.chip.textContent = `${this.sides[0][0]} ${number(range.low)} to ${number(range.high)} ✕`;
    range ? this.scatter.mark(range.low, range.high) : this.scatter.mark();
    this.count.textContent = `${kept.length.toLocaleString("en")} of ${ask(this.rows.length)} that all of them were asked`;
  }

  open(row) {
    this.table.select(row);
    this.detail.hidden = false;
    const lines = this.sides.map(([name, run]) => element("tr", {},
      element("td", { class: "text" }, element("a", { href: `${run.link}#q=${encodeURIComponent(this.q.id[row])}` }, name)),
      element("td", { class: "text" }, element("span", { class: "answer" }, whole(run.answer[row]))), element("td", { class: "number" }, number(run.confidence[row], 3)),
      element("td", { class: run.correct[row] >= 0.5 ? "right-text" : "wrong-text" }, run.correct[row] === 1 ? "right" : run.correct[row] === 0 ? "wrong" : number(run.correct[row]))));
    this.detail.replaceChildren(element("h3", {}, visible(this.q.id[row])), element("p", { class: "ask answer" }, whole(this.q.text[row])),
      element("p", { class: "note" }, "gold: ", element("span", { class: "answer" }, whole(this.q.gold[row]))),
      element("div", { class: "pair" }, element("div", {}, element("table", {}, element("thead", {}, element("tr", {}, [["run", "text"], ["answer", "text"], ["confidence", ""], ["", ""]].map(([title, kind]) => element("th", { class: kind, scope: "col" }, title)))), element("tbody", {}, lines)))));
    if (NARROW.matches) this.detail.scrollIntoView();
  }
}

/** The address may name a verdict, which is then opened. */
function openVerdict() {
  const named = location.hash.startsWith("#verdict-") && document.getElementById(location.hash.slice(1));
  if (named) named.open = true;
}

themeButton();
sortableTables();
openVerdict();
addEventListener("hashchange", openVerdict);
{
  const [host, data] = [document.getElementById("comparison"), readData()];
  if (host && data) new Comparison(host, data);
}
