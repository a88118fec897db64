"use strict";
// What every page has: elements made from text alone, texts made visible, numbers, the theme, sortable tables.

/** An element; strings among the children become text nodes, so nothing that a model wrote is ever read as HTML. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** A text with characters that have no shape, or reorder others, named: NUL is ⟨U+0000⟩. */
function visible(text) {
  return text.replace(HIDDEN, (one) => `⟨U+${one.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

/** A text of the data, which may be cut; then it says how long it is. */
function whole(text) {
  if (text === null || text === undefined) return "";
  if (typeof text === "string") return visible(text);
  return `${visible(text.cut)} … [cut here: ${text.cut.length.toLocaleString("en")} of ${text.length.toLocaleString("en")} characters]`;
}

/** Its beginning on one line, for a cell of a table. */
function oneLine(text) {
  if (text === null || text === undefined) return "";
  const start = text.cut ?? text;
  return visible(start.length > 300 || text.cut ? `${start.slice(0, 300)} …` : start).replace(/\n/g, "⏎");
}

function number(value, digits = 2) {
  return value === null || value === undefined ? "—" : value.toFixed(digits);
}

function readData() {
  const holder = document.getElementById("data");
  return holder ? JSON.parse(holder.textContent) : null;
}

/** Light, dark, or as the system is. */
function themeButton() {
  const button = document.getElementById("theme");
  const root = document.documentElement;
  const remembered = () => { try { return localStorage.getItem("semcal-theme"); } catch { return null; } };
  const apply = (theme) => {
    if (theme) root.dataset.theme = theme;
    const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    button.textContent = dark ? "Light" : "Dark";
    button.dataset.next = dark ? "light" : "dark";
  };
  apply(remembered());
  button.hidden = false;
  button.addEventListener("click", () => {
    const theme = button.dataset.next;
    try { localStorage.setItem("semcal-theme", theme); } catch { /* a file may have no storage */ }
    apply(theme);
  });
}

/** Tables of the template with class "sortable": a click on a title sorts by it, in a narrow window a list does. */
function sortableTables() {
  for (const table of document.querySelectorAll("table.sortable")) {
    const titles = [...table.tHead.rows[0].cells];
    const value = (row, at) => row.cells[at].textContent.trim();
    const sort = (at, down) => {
      const rows = [...table.tBodies[0].rows];
      const numeric = titles[at].classList.contains("number");
      const figure = (row) => Number.parseFloat(value(row, at).replace("−", "-").replace("<", ""));
      rows.sort((a, b) => {
        if (!numeric) return value(a, at).localeCompare(value(b, at)) * (down ? -1 : 1);
        const [x, y] = [figure(a), figure(b)];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return (x - y) * (down ? -1 : 1);
      });
      table.tBodies[0].append(...rows);
      titles.forEach((title, each) => title.setAttribute("aria-sort", each !== at ? "none" : down ? "descending" : "ascending"));
    };
    titles.forEach((title, at) => {
      const down = () => title.getAttribute("aria-sort") === "ascending";
      title.replaceChildren(element("button", { type: "button", onclick: () => sort(at, down()) }, title.textContent));
    });
    const list = element("select", { onchange: () => sort(Number(list.value), titles[Number(list.value)].classList.contains("number")) },
      titles.map((title, at) => element("option", { value: at }, title.textContent)));
    table.before(element("div", { class: "tools" }, element("label", { class: "narrow" }, "sort by", list)));
  }
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // an old browser, or a page that may not
    const area = element("textarea", { "aria-label": "text to copy" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
