// Models: where each alias is served, how its routes are doing, and what they allow and cost.
import { get } from "./api.js";
import { count, empty, fill, h, money, pill, span } from "./dom.js";

// How a breaker stands, in a word.
const HEALTH = { closed: "well", open: "broken", "half-open": "tried" };

export function modelsPage({ main, every }) {
  const list = h("div");
  fill(main, h("div.head", h("div", h("h1", "Models"), h("p.lede", "Aliases that programs name, and their routes in the order in which they are tried, as this process sees them."))), list);
  every(2000, async () => {
    const { models } = await get("/models");
    fill(list, models.length ? models.map(one) : h("div.panel", empty("No model is configured", "Add one under ", h("code", "[inference.models]"), ".")));
  });
}

function one(model) {
  return h("section.panel.flush", { "aria-label": model.alias }, h("h2.inset", model.alias),
    h("div.scroll", { tabindex: "0", role: "region", "aria-label": `Routes of ${model.alias}` }, h("table.stack", h("thead", h("tr", ["Route", "Health"].map((name) => h("th", name)), ["In flight", "Waiting"].map((name) => h("th.num", name)), ["Limits", "Per million tokens"].map((name) => h("th", name)))),
      h("tbody", model.routes.map((route) => h("tr",
        h("td.wide", h("b.break", `${route.endpoint}:${route.upstream}`), h("div.soft.small.break", route.base_url)),
        h("td", route.has_key ? pill(HEALTH[route.breaker] || route.breaker) : [pill("failed"), h("div.bad.small", "its key is not set")], route.cooling > 0 && h("div.small.soft", `left alone for ${span(route.cooling)} after a 429`)),
        h("td.num", count(route.in_flight)), h("td.num", count(route.waiting)),
        h("td", Object.entries(route.limits).filter(([name]) => name !== "burst").map(([name, n]) => h("div.small", `${count(n)} ${name.replaceAll("_", " ")}`))),
        h("td.nowrap", route.input_usd_per_million === null ? h("span.soft", "unknown") : `${money(route.input_usd_per_million)} in, ${money(route.output_usd_per_million)} out`)))))));
}
