// Building the page: every value becomes text or an attribute, never markup.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "rect", "path", "line", "g", "text", "title", "circle"]);

/** Make an element: h("p.soft", {title: "…", onclick: f}, "text", child, [more]). Null and false children are left out. */
export function h(what, props = {}, ...children) {
  if (props === null || typeof props !== "object" || props instanceof Node || Array.isArray(props)) {
    children.unshift(props);
    props = {};
  }
  const [tag, ...classes] = what.split(".");
  const svg = SVG_TAGS.has(tag) && (tag !== "title" || props.svg);
  const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const name of classes) element.classList.add(name);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false || name === "svg") continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") for (const one of value.split(" ")) one && element.classList.add(one);
    else if (name === "width%") element.style.width = `${value}%`;
    else if (name === "left%") element.style.left = `${value}%`;
    else if (!svg && ["value", "checked", "disabled", "hidden", "selected", "open"].includes(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  put(element, children);
  if (tag === "table" && classes.includes("stack")) label(element);
  return element;
}

/** Write the heads of a table's columns on its cells: on a phone a row is a list of them. */
function label(table) {
  const names = [...table.querySelectorAll("thead th")].map((head) => head.textContent);
  for (const row of table.querySelectorAll("tbody tr")) {
    [...row.children].forEach((cell, index) => { if (names[index] && !cell.classList.contains("wide")) cell.dataset.label = names[index]; });
  }
}

function put(element, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    if (Array.isArray(child)) put(element, child);
    else element.append(child instanceof Node ? child : String(child));
  }
}

/** Replace what an element holds. */
export function fill(element, ...children) {
  element.replaceChildren();
  put(element, children);
  return element;
}

/** A number that labels can point to. */
let ids = 0;
export const newId = () => `i${++ids}`;

// -- words for values ------------------------------------------------------------------------------------------------

export const seconds = (from, to) => (Date.parse(to) - Date.parse(from)) / 1000;

export function span(s) {
  if (s === null || s === undefined || Number.isNaN(s)) return "";
  if (s < 0.9995) return `${Math.max(0, Math.round(s * 1000))} ms`;
  if (s < 60) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`.replace(" 0 s", "");
  if (s < 86400 * 2) return `${Math.floor(s / 3600)} h ${Math.round((s % 3600) / 60)} min`.replace(" 0 min", "");
  return `${Math.round(s / 86400)} days`;
}

export function ago(moment) {
  if (!moment) return "";
  const s = (Date.now() - Date.parse(moment)) / 1000;
  if (s < -1) return `in ${span(-s)}`;
  if (s < 5) return "just now";
  if (s < 60) return `${Math.round(s)} s ago`;
  if (s < 3600) return `${Math.round(s / 60)} min ago`;
  if (s < 86400) return `${Math.round(s / 3600)} h ago`;
  return new Date(moment).toLocaleDateString(undefined, { year: "numeric", month: "short", day: "numeric" });
}

export const local = (moment) => (moment ? new Date(moment).toLocaleString() : "");

export function money(usd) {
  if (usd === null || usd === undefined) return "";
  if (usd === 0) return "$0";
  if (usd < 0.01) return `$${usd.toFixed(Math.min(12, 1 - Math.floor(Math.log10(usd)))).replace(/0+$/, "")}`;
  return `$${usd.toLocaleString(undefined, { minimumFractionDigits: 2, maximumFractionDigits: usd < 1 ? 4 : 2 })}`;
}

export const count = (n) => Number(n).toLocaleString();
export const plural = (n, word, many = `${word}s`) => `${count(n)} ${n === 1 ? word : many}`;

/** A moment that says how long ago, and when exactly to who asks. */
export const when = (moment) => (moment ? h("time", { datetime: moment, title: local(moment) }, ago(moment)) : "");

/** A status: its word, with a mark that does not need colour. */
export const pill = (status) => h("span.pill", { class: status }, status);

export const empty = (title, ...more) => h("div.empty", h("b", title), ...more);

// -- saying things ----------------------------------------------------------------------------------------------------

export function toast(text, bad = false) {
  const box = document.getElementById("toasts");
  if (!box) return;
  const one = h("div.toast", { class: bad ? "bad" : "", role: bad ? "alert" : "status" }, text);
  box.append(one);
  setTimeout(() => one.remove(), bad ? 9000 : 4000);
}

/** Ask in a dialog; resolves to what `collect` returns, or null. `collect` may throw an Error, whose text is then shown. */
export function ask({ title, body, action = "OK", danger = false, wide = false, collect = () => true }) {
  return new Promise((resolve) => {
    const said = h("p.bad", { role: "alert", hidden: true });
    const heading = newId();
    const close = (value) => { dialog.close(); dialog.remove(); resolve(value); };
    const submit = async (event) => {
      event.preventDefault();
      try {
        said.hidden = true;
        const value = await collect();
        close(value);
      } catch (error) {
        said.textContent = error.message;
        said.hidden = false;
      }
    };
    const dialog = h("dialog", { class: wide ? "wide" : "", "aria-labelledby": heading, oncancel: (e) => { e.preventDefault(); close(null); } },
      h("form", { onsubmit: submit },
        h("h2", { id: heading }, title), body, said,
        h("div.actions", h("button", { type: "button", onclick: () => close(null) }, "Back"),
          h("button", { type: "submit", class: danger ? "danger" : "main" }, action))));
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** A labelled field around a control. */
export function field(label, control, hint) {
  const id = control.id || (control.id = newId());
  const hinted = hint ? `${id}-hint` : null;
  if (hinted) control.setAttribute("aria-describedby", hinted);
  return h("div.field", h("label", { for: id }, label), control, hint && h("span.hint", { id: hinted }, hint));
}
