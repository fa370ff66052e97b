// Small plots, drawn as SVG.
import { h, money } from "./dom.js";

/** A line over time, of numbers that came one after the other. */
export function line(values, label, format = String) {
  const most = Math.max(1e-9, ...values);
  const width = 120;
  const points = values.map((value, index) => `${((index / Math.max(1, values.length - 1)) * width).toFixed(2)},${(38 - (value / most) * 34).toFixed(2)}`);
  const last = values.at(-1) ?? 0;
  return h("svg.plot", { viewBox: `0 0 ${width} 40`, preserveAspectRatio: "none", role: "img", "aria-label": `${label}: now ${format(last)}, at most ${format(Math.max(0, ...values))}` },
    points.length > 1 && h("path", { class: "area", d: `M0,40 L${points.join(" L")} L${width},40 Z` }),
    points.length > 1 && h("path", { class: "stroke", d: `M${points.join(" L")}` }));
}

/** Bars, one for each [name, value]. */
export function bars(pairs, label) {
  const width = 720, height = 190, left = 58, bottom = 24, top = 10;
  const most = Math.max(1e-9, ...pairs.map(([, value]) => value));
  const each = (width - left) / Math.max(1, pairs.length);
  const y = (value) => top + (height - top - bottom) * (1 - value / most);
  const every = Math.ceil(pairs.length / 8);
  return h("svg.bars", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${label}: ${pairs.map(([name, value]) => `${name} ${money(value)}`).join(", ")}` },
    [0, 0.5, 1].map((share) => [h("line", { class: "rule", x1: left, x2: width, y1: y(most * share), y2: y(most * share) }),
      h("text", { x: left - 6, y: y(most * share) + 4, "text-anchor": "end" }, money(most * share))]),
    pairs.map(([name, value], index) => h("rect", { class: "bar", x: left + index * each + each * 0.15, width: Math.max(1, Math.min(60, each * 0.7)), y: y(value), height: Math.max(value > 0 ? 1 : 0, height - bottom - y(value)), rx: 2 },
      h("title", { svg: true }, `${name}: ${money(value)}`))),
    pairs.map(([name], index) => index % every === 0 && h("text", { x: left + index * each + Math.min(60, each * 0.7) / 2 + each * 0.15, y: height - 8, "text-anchor": "middle" }, name)));
}
