// Limits in use: how much of each is drawn, and which calls wait at an endpoint, over all processes.
import { get } from "./api.js";
import { count, fill, h, plural, span } from "./dom.js";

const WHAT = { tokens: "tokens a minute", requests: "requests a minute", calls: "calls at a time" };
const LEVELS = { 1: "highest", 2: "high", 3: "normal", 4: "low", 5: "lowest" };

/** The section of the models page; `refresh` draws it anew. */
export function limitsPanel() {
  const element = h("section", { "aria-labelledby": "limits-in-use" });
  const heading = h("h2.section", { id: "limits-in-use" }, "Limits in use");
  async function refresh() {
    const found = await get("/limits");
    const busy = found.endpoints.filter((one) => one.processes > 0 || found.limits.some((limit) => limit.endpoint === one.endpoint));
    const others = found.limits.filter((one) => one.whose === "tenant" || one.whose === "key");
    fill(element, heading,
      found.trouble && h("div.banner.bad", found.trouble),
      busy.length + others.length ? h("div.grid", busy.map((one) => endpoint(one, found.limits.filter((limit) => limit.endpoint === one.endpoint))), others.length > 0 && callers(others))
        : h("div.panel", h("p.soft", "No limit is set, and nobody has called yet. Limits of ", h("code", "[inference.endpoints.NAME.limits]"), " and those that providers report appear here.")));
  }
  return { element, refresh };
}

function endpoint(one, limits) {
  const waits = Object.entries(one.waiting).filter(([, n]) => n > 0);
  const state = one.cooling > 0 ? h("span.small.warn", `left alone for ${span(one.cooling)} after a 429`)
    : h("span.small.soft", one.processes ? `called by ${plural(one.processes, "process", "processes")}` : "not called yet");
  return h("section.panel", { "aria-label": `Limits of ${one.endpoint}` },
    h("div.head", h("h3", one.endpoint), state),
    h("dl.tiles", tile("Under way", count(one.in_flight)), tile("Waiting", count(waits.reduce((sum, [, n]) => sum + n, 0)),
      waits.length > 0 && h("span.levels", waits.map(([level, n]) => h("span.level", { class: `p${level}`, title: `priority ${level}` }, h("b", count(n)), ` ${LEVELS[level] || `priority ${level}`}`)))),
      one.learned !== null && tile("Learned", `≤ ${count(Math.max(1, Math.floor(one.learned)))}`, h("span.small.soft", "at a time, from 429s"))),
    limits.length ? limits.map((limit) => gauge(limit.whose === "model" ? `${limit.name}, ${WHAT[limit.what]}` : WHAT[limit.what], limit)) : h("p.soft.small", "It has no limit of its own."));
}

function callers(limits) {
  return h("section.panel", { "aria-label": "Limits of tenants and keys" }, h("div.head", h("h3", "Tenants and keys"), h("span.small.soft", "over all endpoints")),
    limits.map((limit) => gauge(`${limit.whose === "tenant" ? "tenant" : "key"} ${limit.name}, ${WHAT[limit.what]}`, limit)));
}

const tile = (name, value, more) => h("div", h("dt", name), h("dd", h("span.big", value), more));

/** A bar of what is used, with the figures beside it. */
export function gauge(label, { used, limit, free }) {
  const share = limit > 0 ? used / limit : 0;
  const kind = share >= 0.995 || free <= 0 ? "over" : share >= 0.8 ? "near" : "";
  return h("div.gauge", h("div.row", h("span.break", label), h("span.figures", h("b", count(Math.round(used))), ` of ${count(Math.round(limit))}`)),
    h("div.meter", { class: kind, role: "meter", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": Math.round(limit), "aria-valuenow": Math.min(Math.round(used), Math.round(limit)), "aria-valuetext": `${count(Math.round(used))} of ${count(Math.round(limit))}` },
      h("span", { "width%": Math.min(100, share * 100) })));
}
