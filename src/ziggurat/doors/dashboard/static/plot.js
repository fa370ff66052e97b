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

/** Bars, one for each [name, value], as wide as the place that they are for: text keeps its size on every screen. */
export function bars(pairs, label, place) {
  const width = Math.max(260, Math.round(place?.clientWidth || 720)), height = 190, left = 64, bottom = 24, top = 10;
  const most = Math.max(1e-9, ...pairs.map(([, value]) => value));
  const each = (width - left) / Math.max(1, pairs.length);
  const wide = Math.max(1, Math.min(72, each * 0.62));
  const y = (value) => top + (height - top - bottom) * (1 - value / most);
  const every = Math.ceil(pairs.length / Math.max(1, Math.floor((width - left) / 64)));
  return h("svg.bars", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${label}: ${pairs.map(([name, value]) => `${name} ${money(value)}`).join(", ")}` },
    [0, 0.5, 1].map((share) => [h("line", { class: "rule", x1: left, x2: width, y1: y(most * share), y2: y(most * share) }),
      h("text", { x: left - 8, y: y(most * share) + 4, "text-anchor": "end" }, money(most * share))]),
    pairs.map(([name, value], index) => h("rect", { class: "bar", x: left + (index + 0.5) * each - wide / 2, width: wide, y: y(value), height: Math.max(value > 0 ? 1 : 0, height - bottom - y(value)), rx: 3 },
      h("title", { svg: true }, `${name}: ${money(value)}`))),
    pairs.map(([name], index) => index % every === 0 && h("text", { x: left + (index + 0.5) * each, y: height - 7, "text-anchor": "middle" }, name)));
}
