// The linked plots of a run: what is clicked or brushed filters the questions, what is hovered shows its numbers.

const SVG = "http://www.w3.org/2000/svg";
const [WIDE, HIGH, LEFT, RIGHT, TOP, BOTTOM] = [320, 220, 38, 10, 10, 34]; // of a plot and its margins

function shape(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** The Wilson interval of a share at 95 %. */
function wilson(share, n) {
  const z2 = 3.8416;
  const middle = (share + z2 / (2 * n)) / (1 + z2 / n);
  const half = Math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n);
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

/** A frame with axes; x and y are [low, high], ticks are placed on round numbers. */
class Plot {
  constructor(host, title, { x, y, xTitle, yTitle, hint, xTicks = true }) {
    Object.assign(this, { x, y });
    this.svg = shape("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "group", "aria-label": title });
    this.readout = element("p", { class: "readout" }, hint);
    this.hint = hint;
    host.append(element("figure", {}, element("h3", {}, title), this.svg, this.readout));
    const add = (...parts) => this.svg.append(...parts);
    add(shape("line", { class: "axis", x1: LEFT, x2: WIDE - RIGHT, y1: HIGH - BOTTOM, y2: HIGH - BOTTOM }));
    add(shape("line", { class: "axis", x1: LEFT, x2: LEFT, y1: TOP, y2: HIGH - BOTTOM }));
    for (const at of Plot.ticks(y, 5)) add(shape("text", { x: LEFT - 4, y: this.py(at) + 4, "text-anchor": "end" }, Plot.label(at)));
    for (const at of xTicks ? Plot.ticks(x, 6) : []) add(shape("text", { x: this.px(at), y: HIGH - BOTTOM + 14, "text-anchor": "middle" }, Plot.label(at)));
    add(shape("text", { x: (LEFT + WIDE - RIGHT) / 2, y: HIGH - 4, "text-anchor": "middle" }, xTitle));
    add(shape("text", { x: 0, y: 0, transform: `translate(9 ${(TOP + HIGH - BOTTOM) / 2}) rotate(-90)`, "text-anchor": "middle" }, yTitle));
    this.inner = shape("g");
    this.marked = shape("rect", { class: "brush", y: TOP, height: HIGH - BOTTOM - TOP, width: 0 });
    add(this.inner, this.marked);
    this.svg.addEventListener("pointerleave", () => this.say(this.hint));
  }

  px(value) { return LEFT + (value - this.x[0]) / (this.x[1] - this.x[0]) * (WIDE - RIGHT - LEFT); }
  py(value) { return HIGH - BOTTOM - (value - this.y[0]) / (this.y[1] - this.y[0]) * (HIGH - BOTTOM - TOP); }
  say(words) { this.readout.textContent = words; }

  static ticks([low, high], most) {
    const raw = (high - low) / most || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((each) => each >= raw);
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(Math.abs(at) < step * 1e-6 ? 0 : at);
    return found;
  }

  static label(value) { return String(Number(value.toPrecision(3))); }

  /** Areas from edge to edge that say their words when hovered and are chosen by click, by Enter, or several by a drag. */
  areas(edges, words, choose) {
    const spans = edges.slice(1).map((high, at) => [edges[at], high]);
    const layer = shape("g");
    spans.forEach(([low, high], at) => layer.append(shape("rect", {
      class: "hit", x: this.px(low), y: TOP, width: Math.max(0, this.px(high) - this.px(low)), height: HIGH - BOTTOM - TOP,
      tabindex: 0, role: "button", "aria-label": words(at),
      onpointermove: () => this.say(words(at)), onfocus: () => this.say(words(at)),
      onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(low, high, at); } },
    })));
    this.svg.append(layer);
    let start = null;
    const value = (event) => {
      const box = this.svg.getBoundingClientRect();
      const at = (event.clientX - box.left) / box.width * WIDE;
      const raw = this.x[0] + (at - LEFT) / (WIDE - RIGHT - LEFT) * (this.x[1] - this.x[0]);
      return Math.min(this.x[1], Math.max(this.x[0], raw));
    };
    this.svg.addEventListener("pointerdown", (event) => { start = value(event); });
    this.svg.addEventListener("pointermove", (event) => { if (start !== null && event.buttons) this.mark(start, value(event)); });
    this.svg.addEventListener("pointerup", (event) => {
      if (start === null) return;
      const [low, high] = [start, value(event)].sort((a, b) => a - b);
      start = null;
      if (this.px(high) - this.px(low) > 5) return choose(low, high, null);
      const at = spans.findIndex(([from, to], each) => high >= from && (high < to || each === spans.length - 1));
      choose(...spans[Math.max(0, at)], Math.max(0, at));
    });
  }

  /** Show a range as chosen; none without one. */
  mark(low, high) {
    const [from, to] = low === undefined ? [0, 0] : [this.px(Math.max(this.x[0], Math.min(low, high))), this.px(Math.min(this.x[1], Math.max(low, high)))];
    this.marked.setAttribute("x", from);
    this.marked.setAttribute("width", Math.max(0, to - from));
  }
}

/** Numbers of the rows whose value lies in each span; the last span holds its upper edge. */
function binned(rows, value, edges) {
  const bins = edges.slice(1).map(() => []);
  for (const row of rows) {
    const at = value(row);
    if (at === null || at === undefined) continue;
    let bin = edges.findIndex((edge, each) => each > 0 && at < edge) - 1;
    if (bin < 0) bin = bins.length - 1;
    bins[bin].push(row);
  }
  return bins;
}

const mean = (values) => values.reduce((sum, one) => sum + one, 0) / values.length;
const evenly = (parts) => Array.from({ length: parts + 1 }, (_, at) => at / parts);
const ask = (n) => `${n} question${n === 1 ? "" : "s"}`;

/** Accuracy of the rows of each bin against the mean of their x, with intervals. */
function drawAccuracies(plot, rows, bins, value, correct) {
  plot.inner.append(...bins.filter((bin) => bin.length).flatMap((bin) => {
    const [x, y] = [mean(bin.map(value)), mean(bin.map(correct))];
    const [low, high] = wilson(y, bin.length);
    return [shape("line", { class: "bar", x1: plot.px(x), x2: plot.px(x), y1: plot.py(low), y2: plot.py(high) }),
      shape("circle", { class: "right", cx: plot.px(x), cy: plot.py(y), r: 2 + 5 * Math.sqrt(bin.length / rows.length) })];
  }));
}

function reliabilityPlot(host, { rows, q, curve, choose }) {
  const plot = new Plot(host, "Reliability", { x: [0, 1], y: [0, 1], xTitle: "confidence", yTitle: "accuracy",
    hint: "Circles: tenths of confidence with 95 % intervals. Line: smoothed. Click or drag to filter." });
  const [value, correct] = [(row) => q.confidence[row], (row) => q.correct[row]];
  plot.inner.append(shape("line", { class: "dashed", x1: plot.px(0), y1: plot.py(0), x2: plot.px(1), y2: plot.py(1) }));
  const known = curve.filter(([, y]) => y !== null);
  plot.inner.append(shape("polyline", { class: "curve", points: known.map(([x, y]) => `${plot.px(x)},${plot.py(y)}`).join(" ") }));
  const edges = evenly(10);
  const bins = binned(rows, value, edges);
  drawAccuracies(plot, rows, bins, value, correct);
  plot.areas(edges, (at) => {
    const said = `confidence ${number(edges[at], 1)} to ${number(edges[at + 1], 1)}: ${ask(bins[at].length)}`;
    return bins[at].length ? `${said}, mean confidence ${number(mean(bins[at].map(value)), 3)}, accuracy ${number(mean(bins[at].map(correct)), 3)}` : said;
  }, (low, high) => choose("confidence", low, high));
  return plot;
}

/** Of M samples a bar for each share k / M, so that no edge splits one; else 25 even bins. */
function histogram(host, { rows, q, m, choose }) {
  const edges = m && m <= 60 ? Array.from({ length: m + 2 }, (_, k) => (k - 0.5) / m) : evenly(25);
  const named = (at) => (m && m <= 60 ? number(at / m) : `${number(edges[at])} to ${number(edges[at + 1])}`);
  const value = (row) => q.confidence[row];
  const bins = binned(rows, value, edges);
  const most = Math.max(1, ...bins.map((bin) => bin.length));
  const plot = new Plot(host, "Confidence", { x: [edges[0], edges[edges.length - 1]], y: [0, most], xTitle: "confidence", yTitle: "questions",
    hint: "Blue: right, orange: wrong, of the questions listed below; grey: all others. Click or drag to filter." });
  plot.areas(edges, (at) => {
    const right = bins[at].filter((row) => q.correct[row] >= 0.5).length;
    return `confidence ${named(at)}: ${ask(bins[at].length)}, ${right} right, ${bins[at].length - right} wrong`;
  }, (low, high) => choose("confidence", low, high));
  const width = Math.max(1, plot.px(edges[1]) - plot.px(edges[0]) - 1);
  /** Draw the shares of the listed rows anew. */
  plot.update = (listed) => {
    plot.inner.replaceChildren(...binned(listed, value, edges).flatMap((bin, at) => {
      const right = bin.filter((row) => q.correct[row] >= 0.5).length;
      const block = (kind, from, to) => shape("rect", { class: kind, x: plot.px(edges[at]) + 0.5, width, y: plot.py(to), height: plot.py(from) - plot.py(to) });
      return [block("all", 0, bins[at].length), block("right", 0, right), block("wrong", right, bin.length)];
    }));
  };
  plot.update(rows);
  return plot;
}

/** Accuracy against the KL gap of the questions at the layer shown, in tenths of the questions. */
function gapPlot(host, { rows, q, layer, choose }) {
  const [value, correct] = [(row) => layer.gaps[row], (row) => q.correct[row]];
  const known = rows.filter((row) => value(row) !== null).sort((a, b) => value(a) - value(b));
  const cuts = Array.from({ length: 11 }, (_, at) => value(known[Math.min(known.length - 1, Math.round(at * known.length / 10))]));
  const edges = cuts.filter((edge, at) => at === 0 || edge > cuts[at - 1]);
  if (edges.length < 2) return null;
  const [low, high] = [edges[0], edges[edges.length - 1]];
  const pad = (high - low) * 0.03;
  const plot = new Plot(host, `Correctness by KL gap, ${layerName(layer)}`, { x: [low - pad, high + pad], y: [0, 1], xTitle: "KL gap of the question, nats", yTitle: "accuracy",
    hint: "Circles: tenths of the questions with 95 % intervals. Ticks: right answers above, wrong ones below. Click or drag to filter." });
  plot.inner.append(...known.map((row) => {
    const [x, right] = [plot.px(value(row)), correct(row) >= 0.5];
    return shape("rect", { class: right ? "right" : "wrong", x: x - 0.4, width: 0.8, y: right ? TOP : HIGH - BOTTOM - 7, height: 7, opacity: 0.45 });
  }));
  const bins = binned(known, value, edges);
  drawAccuracies(plot, rows, bins, value, correct);
  plot.areas(edges, (at) => `KL gap ${number(edges[at])} to ${number(edges[at + 1])} nats: ${ask(bins[at].length)}` +
    (bins[at].length ? `, accuracy ${number(mean(bins[at].map(correct)), 3)}` : ""), (from, to) => choose("gap", from, to));
  return plot;
}

function layerName(layer) { return layer.whole ? "LoRA" : layer.name === "emb." ? "embedding" : `layer ${layer.name}`; }

function layerPlot(host, { layers, references, chosen, choose }) {
  const figures = layers.flatMap(({ gap, low, high }) => [gap, low, high]).concat(references.map(([, gap]) => gap)).filter((one) => one !== null);
  const top = Math.max(0.02, ...figures) * 1.06;
  const plot = new Plot(host, "KL gap by layer", { x: [-0.5, layers.length - 0.5], y: [Math.min(0, ...figures), top],
    xTitle: `${layers[0].rung} probe of layer`, yTitle: "KL gap, nats", xTicks: false,
    hint: `What the probe of a layer misses of the class distribution; dashed: ${references.map(([name, gap]) => `${name} ${number(gap)}`).join(", ")}. A click shows that layer's gaps in the table.` });
  const every = Math.ceil(layers.length / 9);
  layers.forEach((layer, at) => {
    if (at % every === 0) plot.svg.append(shape("text", { x: plot.px(at), y: HIGH - BOTTOM + 14, "text-anchor": "middle" }, layer.name));
  });
  plot.inner.append(...references.map(([, gap]) => shape("line", { class: "dashed", x1: LEFT, x2: WIDE - RIGHT, y1: plot.py(gap), y2: plot.py(gap) })));
  const own = layers.filter((layer) => !layer.whole);
  const point = (key) => (layer) => `${plot.px(layers.indexOf(layer))},${plot.py(layer[key])}`;
  const bounded = own.filter((layer) => layer.low !== null && layer.high !== null);
  plot.inner.append(shape("polygon", { class: "band", points: [...bounded.map(point("high")), ...bounded.map(point("low")).reverse()].join(" ") }));
  plot.inner.append(shape("polyline", { class: "curve", points: own.map(point("gap")).join(" ") }));
  const marks = layers.map((layer, at) => shape("circle", { class: "right", cx: plot.px(at), cy: plot.py(layer.gap), r: 3.5 }));
  plot.inner.append(...marks);
  plot.areas(layers.map((_, at) => at - 0.5).concat(layers.length - 0.5),
    (at) => `${layerName(layers[at])}: KL gap ${number(layers[at].gap, 3)} nats [${number(layers[at].low, 3)}, ${number(layers[at].high, 3)}]`,
    (low, high, at) => choose(at === null ? Math.round((low + high) / 2) : at));
  plot.choose = (at) => marks.forEach((mark, each) => mark.setAttribute("class", each === at ? "right chosen" : "right"));
  plot.choose(chosen);
  return plot;
}
