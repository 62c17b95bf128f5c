// Tables. All text goes into text nodes, so that a file's name or an error's text never becomes markup.

// A cell with a number, shown as `text`. Tests find it by `key` and compare `value` with /metrics.
export const number = (text, key, value) => ({ text, key, value, className: "number" });

// A cell with text or a node.
export const cell = (text, className) => ({ text, className });

// An element with `children`: texts and nodes.
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// `content` (a text or a node) after a colour.
export function swatch(content, color) {
  const mark = element("span", { className: "swatch" });
  mark.style.background = `var(--${color})`;
  return { node: element("span", {}, mark, content) };
}

// A row; `labels` are the texts of the head, which a narrow window shows beside each cell.
function line(tag, cells, labels = []) {
  const tr = document.createElement("tr");
  cells.forEach((content, i) => {
    const td = document.createElement(i === 0 && tag === "td" ? "th" : tag);
    if (td.tagName === "TH") td.scope = tag === "th" ? "col" : "row";
    const { text, node, key, value, className } = typeof content === "object" ? content : { text: content };
    td.append(node ?? text);
    if (className) td.className = className;
    if (i > 0 && labels[i]) td.dataset.label = labels[i];
    if (key) { td.dataset.key = key; td.dataset.value = String(value); }
    tr.append(td);
  });
  return tr;
}

// Gives `host` the children that `fresh` has. What is the same stays, and with it the focus of a
// keyboard, a selection and the place of a screen reader.
export function update(host, fresh) {
  const nodes = [...fresh];
  while (host.childNodes.length > nodes.length) host.lastChild.remove();
  nodes.forEach((node, i) => {
    const old = host.childNodes[i];
    if (!old) host.append(node);
    else if (old.isEqualNode(node)) return;
    else if (old.tagName === node.tagName && ["THEAD", "TBODY", "TR"].includes(node.tagName)) update(old, node.childNodes);
    else old.replaceWith(node);
  });
}

// Sets a text unless it is there, since a screen reader reads what is set.
export function setText(host, text) {
  if (host.textContent !== text) host.textContent = text;
}

// Gives a table its rows. Without rows it shows `none`.
export function fill(id, head, rows, none = "nothing so far") {
  const table = document.getElementById(id);
  const parts = [];
  if (head && rows.length > 0) {
    // A head has the alignment of the cells in its column.
    const classes = rows[0].map((content) => (content?.className === "number" ? "number" : undefined));
    const heads = head.map((content, i) => ({ ...(content.node ? content : { text: content }), className: classes[i] }));
    parts.push(element("thead", {}, line("th", heads)));
  }
  const labels = head?.map((content) => content.node?.textContent ?? content);
  const body = rows.map((row) => line("td", row, labels));
  if (rows.length === 0) {
    const empty = element("td", { className: "none" }, none);
    body.push(element("tr", {}, empty));
  }
  parts.push(element("tbody", {}, ...body));
  update(table, parts);
  // What is wider than its card can be scrolled by keys, too.
  const { parentElement: scroller } = table;
  if (scroller.scrollWidth > scroller.clientWidth) {
    scroller.tabIndex = 0;
    scroller.setAttribute("role", "region");
    scroller.setAttribute("aria-label", table.closest("section").querySelector("h2").textContent);
  } else {
    for (const name of ["tabindex", "role", "aria-label"]) scroller.removeAttribute(name);
  }
}

// A bar with `parts` of `all`, each with a colour and a title.
export function bar(parts, all) {
  const host = element("div", { className: "bar" });
  host.setAttribute("role", "img");
  host.setAttribute("aria-label", parts.map((part) => part.title).join(", "));
  for (const { value, color, title } of parts) {
    const part = element("span", { title });
    part.style.width = `${all > 0 ? Math.min(100, (100 * value) / all) : 0}%`;
    part.style.background = `var(--${color})`;
    host.append(part);
  }
  return host;
}
