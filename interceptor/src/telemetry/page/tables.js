// Tables. All text goes into text nodes, so that a file's name or an error's text never becomes markup.

// A cell with a number, shown as `text`. Tests find it by `key` and compare `value` with /metrics.
export const number = (text, key, value) => ({ text, key, value, className: "number" });

// A cell with text or a node.
export const cell = (text, className) => ({ text, className });

// The name of a source after its colour.
export function swatch(text, color) {
  const host = document.createElement("span");
  const mark = document.createElement("span");
  mark.className = "swatch";
  mark.style.background = `var(--${color})`;
  host.append(mark, text);
  return { node: host };
}

function line(tag, cells) {
  const tr = document.createElement("tr");
  cells.forEach((content, i) => {
    const td = document.createElement(i === 0 && tag === "td" ? "th" : tag);
    const { text, node, key, value, className } = typeof content === "object" ? content : { text: content };
    if (node) td.append(node); else td.textContent = text;
    if (className) td.className = className;
    if (key) { td.dataset.key = key; td.dataset.value = String(value); }
    tr.append(td);
  });
  return tr;
}

// Replaces the rows of a table. Without rows it shows `none`.
export function fill(id, head, rows, none = "nothing so far") {
  const parts = [];
  if (head && rows.length > 0) {
    const thead = document.createElement("thead");
    // A head has the alignment of the cells in its column.
    const classes = rows[0].map((content) => (content.className === "number" ? "number" : ""));
    thead.append(line("th", head.map((text, i) => cell(text, classes[i]))));
    parts.push(thead);
  }
  const body = document.createElement("tbody");
  body.append(...(rows.length > 0 ? rows.map((row) => line("td", row)) : [line("td", [cell(none, "note")])]));
  document.getElementById(id).replaceChildren(...parts, body);
}

// A bar with `parts` of `all`, each with a colour and a title.
export function bar(parts, all) {
  const host = document.createElement("div");
  host.className = "bar";
  for (const { value, color, title } of parts) {
    const part = document.createElement("span");
    part.style.width = `${all > 0 ? Math.min(100, (100 * value) / all) : 0}%`;
    part.style.background = `var(--${color})`;
    part.title = title;
    host.append(part);
  }
  return host;
}
