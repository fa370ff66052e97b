// A JSON value for people: folded where it is large, always as text.
import { h } from "./dom.js";

// Characters of a text, and entries of a list, that are shown at first.
const LONG = 4000, MOST = 500;

export function json(value) {
  return h("div.json", node(value, 0, null));
}

/** One value, behind its key if it has one. */
function node(value, depth, key) {
  const name = key === null ? null : h("span.key", `${key}: `);
  if (value === null || typeof value !== "object" || !Object.keys(value).length) {
    return h("div", { class: key === null ? "" : "pair" }, name, plain(value));
  }
  const [open, close] = Array.isArray(value) ? ["[", "]"] : ["{", "}"];
  const pairs = Array.isArray(value) ? value.map((one, index) => [index, one]) : Object.entries(value);
  const details = h("details", { open: depth < 2 && pairs.length <= 30 }, h("summary", name, h("span.soft", `${open} ${pairs.length} ${close}`)));
  // Drawn when it is opened: a result may hold thousands of rows that nobody looks at.
  const draw = () => {
    if (!details.open || details.childElementCount > 1) return;
    for (const [inner, one] of pairs.slice(0, MOST)) details.append(node(one, depth + 1, inner));
    if (pairs.length > MOST) details.append(h("div.pair.soft", `… ${pairs.length - MOST} more`));
  };
  details.addEventListener("toggle", draw);
  draw();
  return details;
}

function plain(value) {
  if (typeof value === "string") return text(value);
  return h("span.lit", value !== null && typeof value === "object" ? (Array.isArray(value) ? "[ ]" : "{ }") : String(value));
}

function text(value) {
  if (value.length <= LONG) return h("span.str", value);
  const whole = h("span.str", value.slice(0, LONG));
  const button = h("button.quiet", { type: "button", onclick: () => { whole.textContent = value; button.remove(); } }, `Show all ${value.length.toLocaleString()} characters`);
  return h("span", whole, button);
}
