// The page of a run: its questions listed, filtered and opened, and the plots that go with them.

const [GOLD, UNPARSED] = [1, 2]; // flags of a class
const FIRST = 12; // answers shown before "all"
const LONG = 240; // characters of an answer that is folded

class Browser {
  constructor(host, data) {
    Object.assign(this, { data, q: data.questions });
    this.rows = this.q.id.map((_, at) => at);
    this.at = new Map(this.q.id.map((id, row) => [id, row]));
    this.scored = this.q.confidence !== undefined;
    this.layer = data.layers ? Math.max(data.layers.findLastIndex((layer) => !layer.whole), 0) : null;
    this.state = { filter: "all", search: "", group: "", range: null, key: "order", down: false, selected: null };
    this.sure = this.scored ? this.usualThreshold() : 0.5;
    this.filters = this.filtersThere();
    this.build(host);
    this.refresh();
    addEventListener("hashchange", () => this.follow());
    addEventListener("keydown", (event) => this.press(event));
    this.follow();
  }

  /** 0.5; where that leaves fewer than ten wrong answers, the upper quartile of confidence. */
  usualThreshold() {
    const wrong = this.rows.filter((row) => this.q.correct[row] === 0 && this.q.confidence[row] >= 0.5);
    if (wrong.length >= 10) return 0.5;
    const sorted = [...this.q.confidence].sort((a, b) => a - b);
    return Math.min(0.5, sorted[Math.floor(0.75 * (sorted.length - 1))]);
  }

  /** Each filter: [name, whether a row passes, column to sort by, descending, what it means]. */
  filtersThere() {
    const q = this.q;
    const found = [["all", () => true, "order", false, "every question, in the order asked"]];
    if (!this.scored) {
      found.push(["answered", (row) => this.data.samples[row].length > 0, "order", false, "questions that have samples by now"]);
      return found;
    }
    found.push(
      ["wrong and sure", (row) => q.correct[row] === 0 && q.confidence[row] >= this.sure, "confidence", true, "the top answer is wrong, with at least the confidence set under \"sure from\""],
      ["right and unsure", (row) => q.correct[row] === 1 && q.confidence[row] < this.sure, "confidence", false, "the top answer is right, with less confidence than that"],
      ["unparsed", (row) => q.unparsed[row] > 0, "unparsed", true, "some answers could not be parsed"],
      ["tied", (row) => q.tied[row] === 1, "confidence", true, "two classes or more are the most frequent"],
    );
    return found;
  }

  columns() {
    const { q, data, scored } = this;
    const text = (key, title, width, hint, two = false) => ({ key, title, width, hint, two, kind: "text", cell: (row) => oneLine(q[key][row]), value: (row) => oneLine(q[key][row]) });
    const figure = (key, title, hint, digits = 2) => ({ key, title, width: 7, hint, kind: "number", cell: (row) => number(q[key][row], digits), value: (row) => q[key][row] });
    const right = { key: "correct", title: "right", width: 5.5, hint: "whether the top class is right; a share where classes are tied", kind: "number",
      value: (row) => q.correct[row], cell: (row) => element("span", { class: q.correct[row] >= 0.5 ? "right-text" : "wrong-text" }, q.correct[row] === 1 ? "right" : q.correct[row] === 0 ? "wrong" : number(q.correct[row])) };
    const gap = { key: "gap", title: "KL gap", width: 7, hint: "nats that the probe of the layer chosen in the plot misses of this question's class distribution", kind: "number",
      cell: (row) => number(data.layers[this.layer].gaps[row]), value: (row) => data.layers[this.layer].gaps[row] };
    const unparsed = { ...figure("unparsed", "un\u00adparsed", "share of the samples without an answer"), cell: (row) => q.unparsed[row] ? number(q.unparsed[row]) : "0" };
    const answered = { key: "answered", title: "distinct answers", width: 12, kind: "number", cell: (row) => String(data.samples[row].length), value: (row) => data.samples[row].length };
    return [
      text("text", "question", 30, "what was asked", true), text("gold", "gold", 11, "the gold answer"),
      ...(scored ? [text("answer", "answer", 11, "the most frequent class"), figure("confidence", "confi\u00addence", "share of the samples in the top class (plug-in)")] : [answered]),
      ...(q.by_mass ? [figure("by_mass", "by mass", "confidence by the log-probabilities of the samples")] : []),
      ...(scored ? [right, unparsed] : []),
      ...(data.layers ? [gap] : []),
      ...(q.probe_answer ? [text("probe_answer", "probe", 9, "the class that the probe predicts, read before the first token"),
        figure("probe_confidence", "probe confi\u00addence", "what the probe gives its class"), figure("probe_sampled", "its share", "the share of the samples in the probe's class")] : []),
    ];
  }

  build(host) {
    const change = (values) => () => { Object.assign(this.state, values); this.refresh(); };
    this.plots = {};
    if (this.scored) {
      this.plotHost = element("div", { class: "plots" });
      this.drawPlots();
      host.append(this.plotHost);
    }
    this.search = element("input", { type: "search", placeholder: "search questions and answers", "aria-label": "search questions and answers", oninput: () => { this.state.search = this.search.value; this.refresh(); } });
    this.buttons = this.filters.map(([name, , key, down, hint]) => element("button", { type: "button", title: hint, onclick: change({ filter: name, key, down }) }, name));
    const tools = element("div", { class: "tools", role: "group", "aria-label": "filters" }, this.search, this.buttons);
    if (this.scored) {
      this.threshold = element("input", { type: "number", min: 0, max: 1, step: 0.05, value: Number(this.sure.toFixed(3)), oninput: () => { this.sure = Number(this.threshold.value); this.refresh(); } });
      tools.append(element("label", {}, "sure from", this.threshold));
    }
    const counts = new Map();
    for (const group of this.q.group) counts.set(group, (counts.get(group) ?? 0) + 1);
    const groups = [...counts].filter(([, n]) => n > 1).sort(([, a], [, b]) => b - a);
    if (groups.length) {
      const list = element("select", { onchange: () => { this.state.group = list.value; this.refresh(); } }, element("option", { value: "" }, "all groups"),
        groups.map(([group, n]) => element("option", { value: group }, `${oneLine(group)} (${n})`)));
      this.groups = list;
      tools.append(element("label", {}, "group", list));
    }
    this.table = new RowTable(host.appendChild(element("div")), {
      columns: this.columns(), label: "questions", href: (row) => `#q=${encodeURIComponent(this.q.id[row])}`,
      open: (row) => this.open(row, true), sorted: (key, down) => change({ key, down })(),
    });
    const sorts = element("select", { "aria-label": "sort by", onchange: () => change({ key: sorts.value, down: this.state.down })() },
      element("option", { value: "order" }, "order asked"), this.table.columns.map(({ key, title }) => element("option", { value: key }, title)));
    this.sorts = sorts;
    tools.append(element("label", { class: "narrow" }, "sort", sorts), element("button", { type: "button", class: "narrow", onclick: () => change({ down: !this.state.down })() }, "reverse"));
    this.chip = element("button", { type: "button", hidden: true, title: "remove this filter", onclick: change({ range: null }) });
    this.count = element("p", { class: "note", role: "status" });
    tools.append(this.chip);
    this.table.view.parentNode.before(tools, this.count);
    this.detail = element("section", { class: "detail", id: "question", "aria-label": "the question chosen", hidden: true });
    host.append(element("p", { class: "note" }, element("kbd", {}, "j"), " ", element("kbd", {}, "k"), " next and previous question · ", element("kbd", {}, "/"), " search · ", element("kbd", {}, "Esc"), " clear"), this.detail);
  }

  drawPlots() {
    const { q, rows, data } = this;
    const choose = (field, low, high) => { this.state.range = { field, low, high }; this.refresh(); };
    this.plotHost.replaceChildren();
    this.plots = { confidence: [reliabilityPlot(this.plotHost, { rows, q, curve: data.reliability, choose })] };
    this.bars = histogram(this.plotHost, { rows, q, m: data.enumerated ? null : data.m, choose });
    this.plots.confidence.push(this.bars);
    if (!data.layers) return;
    const layer = data.layers[this.layer];
    this.plots.gap = [gapPlot(this.plotHost, { rows, q, layer, choose })].filter(Boolean);
    layerPlot(this.plotHost, { layers: data.layers, references: data.references, chosen: this.layer, choose: (at) => {
      this.layer = at;
      if (this.state.range?.field === "gap") this.state.range = null;
      this.drawPlots();
      this.refresh();
      if (this.state.selected !== null) this.show(this.state.selected);
    } });
  }

  /** What a search looks into, in small letters; made when it is first needed. */
  haystack(row) {
    this.haystacks ??= [];
    const raw = (text) => (text === null || text === undefined ? "" : text.cut ?? text);
    return this.haystacks[row] ??= [this.q.id[row], raw(this.q.text[row]), raw(this.q.accepted[row]), raw(this.q.probe_answer?.[row]),
      ...(this.data.classes?.[row] ?? []).map(([label]) => raw(label)), ...this.data.samples[row].map(([text]) => raw(text))].join("\n").toLowerCase();
  }

  value(field, row) { return field === "gap" ? this.data.layers[this.layer].gaps[row] : this.q[field][row]; }

  refresh() {
    const { filter, search, group, range, key, down } = this.state;
    const words = search.toLowerCase().trim();
    const pass = this.filters.find(([name]) => name === filter)[1];
    const inside = (row) => { const at = this.value(range.field, row); return at !== null && at >= range.low && (at < range.high || range.high >= 1 && at === range.high || at === range.high && range.field === "gap"); };
    const kept = this.rows.filter((row) => pass(row) && (!group || this.q.group[row] === group) && (!range || inside(row)) && (!words || this.haystack(row).includes(words)));
    const column = this.table.columns.find((one) => one.key === key);
    this.listed = column ? sortRows(kept, column, down) : down ? kept.reverse() : kept;
    this.table.show(this.listed, key, down);
    this.sorts.value = key;
    this.buttons.forEach((button, at) => {
      const [name, passes] = this.filters[at];
      button.setAttribute("aria-pressed", name === filter);
      button.textContent = `${name} ${this.rows.filter(passes).length}`;
    });
    this.chip.hidden = !range;
    if (range) this.chip.textContent = `${range.field === "gap" ? `KL gap, ${layerName(this.data.layers[this.layer])},` : range.field} ${number(range.low)} to ${number(range.high)} ✕`;
    this.count.textContent = `${this.listed.length.toLocaleString("en")} of ${ask(this.rows.length)}`;
    for (const [field, plots] of Object.entries(this.plots)) {
      for (const plot of plots) range?.field === field ? plot.mark(range.low, range.high) : plot.mark();
    }
    this.bars?.update(this.listed);
  }

  /** Show the question that the address names. */
  follow() {
    if (!location.hash.startsWith("#q=")) return;
    let id = location.hash.slice(3);
    try { id = decodeURIComponent(id); } catch { /* as it is */ }
    const row = this.at.get(id);
    if (row === undefined) {
      this.detail.hidden = false;
      this.detail.replaceChildren(element("p", {}, `This run has no question ${visible(id)}.`));
    } else if (row !== this.state.selected) {
      if (!this.listed.includes(row)) this.clear();
      this.show(row);
      this.table.select(row);
      this.table.view.scrollIntoView({ block: "center" });
    }
  }

  open(row, byHand = false) {
    this.show(row);
    history.replaceState(null, "", `#q=${encodeURIComponent(this.q.id[row])}`);
    this.table.select(row);
    if (byHand && NARROW.matches) this.detail.scrollIntoView();
  }

  step(by) {
    const at = this.listed.indexOf(this.state.selected);
    const next = this.listed[at < 0 ? 0 : Math.min(this.listed.length - 1, Math.max(0, at + by))];
    if (next !== undefined) this.open(next);
  }

  clear() {
    Object.assign(this.state, { filter: "all", search: "", group: "", range: null });
    this.search.value = "";
    if (this.groups) this.groups.value = "";
    this.refresh();
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest?.("input, select, textarea");
    if (event.key === "Escape") {
      this.clear();
      this.search.blur();
    } else if (!typing && (event.key === "j" || event.key === "k")) {
      this.step(event.key === "j" ? 1 : -1);
    } else if (!typing && event.key === "/") {
      event.preventDefault();
      this.search.focus();
      this.search.scrollIntoView({ block: "nearest" });
    }
  }

  // ---- one question ---------------------------------------------------------------------------------------------------

  prompt(row) {
    const parts = this.data.prompts[row].map((at) => whole(this.data.paragraphs[at]));
    return whole(this.data.prefix) + parts.join("\n\n");
  }

  /** All that the page holds of a question. */
  record(row) {
    const raw = (text) => (text && typeof text === "object" ? `${text.cut}…` : text);
    const figures = Object.fromEntries(Object.entries(this.q).map(([name, column]) => [name, raw(column[row])]));
    const paragraphs = this.data.prompts[row].map((at) => raw(this.data.paragraphs[at]));
    const gaps = this.data.layers && Object.fromEntries(this.data.layers.map((layer) => [layer.whole ? `${layer.layer} (LoRA)` : layer.layer, layer.gaps[row]]));
    return {
      ...figures, ...(gaps ? { kl_gap_nats: gaps } : {}), prompt: raw(this.data.prefix) + paragraphs.join("\n\n"),
      ...(this.data.classes ? { classes: this.data.classes[row].map(([label, count, mass, flags = 0]) => ({ class: raw(label), count, mass, gold: Boolean(flags & GOLD), unparsed: Boolean(flags & UNPARSED) })) } : {}),
      samples: this.data.samples[row].map(([text, count, logprob, cutOff]) => ({ text: raw(text), count, logprob, finish: cutOff ? "length" : "stop" })),
    };
  }

  show(row) {
    const { q, data } = this;
    this.state.selected = row;
    const said = element("span", { role: "status", class: "note" });
    const copied = async () => { await copy(JSON.stringify(this.record(row), null, 1)); said.textContent = " copied"; };
    const fact = (title, ...content) => element("div", {}, element("dt", {}, title), element("dd", {}, ...content));
    const facts = [fact("gold, as accepted", element("span", { class: "answer" }, whole(q.accepted[row]) || "—"))];
    if (this.scored) {
      const word = q.correct[row] === 1 ? "right" : q.correct[row] === 0 ? "wrong" : `right by ${number(q.correct[row])}, tied`;
      facts.push(fact("answer", element("span", { class: "answer" }, whole(q.answer[row])), element("span", { class: `tag ${q.correct[row] >= 0.5 ? "right-text" : "wrong-text"}` }, word)),
        fact("confidence", number(q.confidence[row], 3), q.by_mass ? ` · by mass ${number(q.by_mass[row], 3)}` : ""));
      if (q.seen_mass) facts.push(fact("probability of the answers seen", number(q.seen_mass[row], 3)));
      if (q.unparsed[row]) facts.push(fact("unparsed", number(q.unparsed[row], 3)));
    }
    if (data.layers) facts.push(fact(`KL gap, ${layerName(data.layers[this.layer])}`, `${number(data.layers[this.layer].gaps[row], 3)} nats`));
    if (q.probe_answer) facts.push(fact("probe, before the first token", element("span", { class: "answer" }, whole(q.probe_answer[row])), ` ${number(q.probe_confidence[row], 3)} · sampled ${number(q.probe_sampled[row], 3)}`));
    facts.push(fact("group", visible(q.group[row])));
    this.detail.hidden = false;
    this.detail.replaceChildren(
      element("div", { class: "tools" },
        element("button", { type: "button", onclick: () => this.step(-1) }, "previous"), element("button", { type: "button", onclick: () => this.step(1) }, "next"),
        element("button", { type: "button", onclick: copied }, "copy as JSON"), element("a", { href: `#q=${encodeURIComponent(q.id[row])}` }, "link"), said),
      element("h3", {}, visible(q.id[row])), element("p", { class: "ask answer" }, whole(q.text[row])), element("dl", {}, facts),
      element("div", { class: "pair" }, this.scored ? this.classesOf(row) : null, this.samplesOf(row)),
      element("details", {}, element("summary", {}, `Prompt, ${q.tokens[row].toLocaleString("en")} tokens`), element("pre", {}, this.prompt(row))));
  }

  folded(rows, titles) {
    const table = element("table", {}, element("thead", {}, element("tr", {}, titles.map(([title, kind]) => element("th", { class: kind, scope: "col" }, title)))));
    const body = table.appendChild(element("tbody", {}, rows.slice(0, FIRST)));
    if (rows.length <= FIRST) return [table];
    const more = element("button", { type: "button", onclick: () => { body.append(...rows.slice(FIRST)); more.remove(); } }, `show all ${rows.length}`);
    return [table, more];
  }

  classesOf(row) {
    const { q, data } = this;
    const total = data.classes[row].reduce((sum, [, count, mass]) => sum + (data.enumerated ? mass : count), 0);
    const probe = q.probe_answer && oneLine(q.probe_answer[row]);
    const rows = data.classes[row].map(([label, count, mass, flags = 0]) => {
      const share = (data.enumerated ? mass : count) / total;
      const predicted = probe === oneLine(label);
      const tags = [[flags & GOLD, "gold"], [flags & UNPARSED, "unparsed"], [predicted, "probe"]].filter(([is]) => is).map(([, word]) => element("span", { class: "tag" }, word));
      return element("tr", {}, element("td", { class: "text" }, element("span", { class: "answer" }, whole(label)), tags,
        element("span", { class: `share${flags & GOLD ? " gold" : ""}`, style: `width: ${100 * share}%` }),
        predicted ? element("span", { class: "share probe", title: "what the probe predicts", style: `width: ${100 * q.probe_confidence[row]}%` }) : null),
      element("td", { class: "number" }, count === null ? "—" : String(count)), element("td", { class: "number" }, number(share, 3)), element("td", { class: "number" }, number(mass, 3)));
    });
    return element("div", {}, element("h4", {}, `Classes (${rows.length})`), this.folded(rows, [["class", "text"], ["count", "number"], ["share", "number"], ["mass", "number"]]));
  }

  samplesOf(row) {
    const { data } = this;
    const rows = data.samples[row].map(([text, count, logprob, cutOff]) => {
      const shown = whole(text);
      const answer = element("span", { class: "answer" }, shown === "" ? "(empty)" : shown);
      const held = shown.length <= LONG ? answer : element("details", {}, element("summary", {}, `${shown.slice(0, LONG / 2)} …`), answer);
      return element("tr", {}, element("td", { class: "text" }, held, cutOff ? element("span", { class: "tag" }, "cut at the limit of tokens") : null),
        element("td", { class: "number" }, count === null ? "—" : String(count)), element("td", { class: "number" }, number(logprob, 2)));
    });
    const note = data.samples_left_out ? ` The page keeps the ${data.samples_kept} most frequent of each question.` : "";
    return element("div", {}, element("h4", {}, `Distinct answers (${rows.length})`), note ? element("p", { class: "note" }, note) : null,
      rows.length ? this.folded(rows, [["answer", "text"], ["count", "number"], ["log p", "number"]]) : element("p", {}, "not sampled yet"));
  }
}

themeButton();
sortableTables();
{
  const [host, data] = [document.getElementById("browser"), readData()];
  if (host && data) new Browser(host, data);
}
