// Models: where each alias is served, how its routes are doing, and what they allow and cost.
import { get, part, post, putJson } from "./api.js";
import { limitsPanel } from "./limits.js";
import { ask, count, empty, field, fill, h, local, money, pill, span } from "./dom.js";

// How a breaker stands, in a word.
const HEALTH = { closed: "well", open: "broken", "half-open": "tried" };

const LIMITS = { tokens_per_minute: "tokens a minute", requests_per_minute: "requests a minute", concurrency: "calls at a time" };

export function modelsPage({ main, me, every, act }) {
  const list = h("div"), limits = limitsPanel();
  fill(main, h("div.head", h("div", h("h1", "Models"), h("p.lede", "Aliases that programs name, and their routes in the order in which they are tried."))), list, limits.element);
  async function refresh() {
    const { models } = await get("/models");
    fill(list, models.length ? models.map((model) => one(model, me.may("operator") && repoint, back)) : h("div.panel", empty("No model is configured", "Add one under ", h("code", "[inference.models]"), ".")));
  }
  every(2000, refresh);
  every(2000, limits.refresh);

  const back = (model) => act(() => post(`/models/${part(model.alias)}/rollback`), `${model.alias} is what it was before`).then(refresh);

  async function repoint(model) {
    const past = await act(() => get(`/models/${part(model.alias)}/switches`));
    if (!past) return;
    const share = (weights, index) => (weights.length ? `${Math.round(weights[index] * 1000) / 10}% ` : "");
    const written = (one) => one.routes.map((route, index) => share(one.weights, index) + route);
    const routes = h("textarea", { rows: 4, spellcheck: "false", value: written({ weights: model.weights, routes: model.routes.map((one) => `${one.endpoint}:${one.upstream}`) }).join("\n") });
    const shadow = h("input", { type: "text", spellcheck: "false", value: model.shadow });
    const done = await ask({ title: `Re-point ${model.alias}`, action: "Switch", wide: true,
      body: h("div", h("p.soft", "Workers and gateways follow within seconds. What was before is kept, and can be taken back."),
        field("Routes", routes, "One a line, best first: endpoint:model, or 90% endpoint:model for its share of the calls."),
        field("Shadow (optional)", shadow, "A route that gets a copy of each call, whose answer nobody waits for."),
        past.switches.length > 0 && h("details", h("summary", `${count(past.switches.length)} switches before`), h("ul", past.switches.map((one) => h("li.small", `${local(one.at)}, ${one.by}: ${written(one).join(", ")}`))))),
      collect() {
        const lines = routes.value.split("\n").map((line) => line.trim()).filter(Boolean).map((line) => line.match(/^(?:([\d.]+)%\s*)?(\S+:\S+)$/) || line);
        const wrong = lines.find((line) => typeof line === "string");
        if (wrong || !lines.length) throw new Error(wrong ? `${wrong} cannot be read as a route.` : "A model needs a route.");
        const weights = lines.filter(([, weight]) => weight !== undefined).map(([, weight]) => Number(weight) / 100);
        return putJson(`/models/${part(model.alias)}`, { routes: lines.map(([, , route]) => route), weights, shadow: shadow.value.trim() || null });
      } });
    if (done) act(refresh, `${model.alias} is switched`);
  }
}

/** What holds of an alias beside its routes, and the way back. */
function standing(model, repoint, back) {
  return h("div.head.inset", h("div", h("h2", model.alias), (model.version > 0 || model.shadow) && h("p.lede.small", model.version > 0 && `switched, version ${model.version}`, model.shadow && ` · shadowed by ${model.shadow}`)),
    repoint && h("div.actions", model.version > 0 && h("button", { type: "button", onclick: () => back(model) }, "Roll back"), h("button", { type: "button", onclick: () => repoint(model) }, "Re-point")));
}

function one(model, repoint, back) {
  return h("section.panel.flush", { "aria-label": model.alias }, standing(model, repoint, back),
    h("div.scroll", { tabindex: "0", role: "region", "aria-label": `Routes of ${model.alias}` }, h("table.stack.routes", h("thead", h("tr", ["Route", "Health"].map((name) => h("th", name)), ["In flight", "Waiting"].map((name) => h("th.num", name)), ["Limits", "Per million tokens"].map((name) => h("th", name)))),
      h("tbody", model.routes.map((route, index) => h("tr",
        h("td.wide", h("b.break", `${route.endpoint}:${route.upstream}`), model.weights.length > 0 && h("span.tag.share", `${Math.round(model.weights[index] * 1000) / 10}% of calls`), !route.replicas.length && h("div.soft.small.break", route.base_url), route.replicas.map(replica), about(route)),
        h("td", route.has_key ? pill(HEALTH[route.breaker] || route.breaker) : [pill("failed"), h("div.bad.small", "its key is not set")], route.cooling > 0 && h("div.small.soft", `left alone for ${span(route.cooling)} after a 429`)),
        h("td.num", count(route.in_flight)), h("td.num", count(route.waiting)),
        h("td", Object.keys(LIMITS).some((name) => route.limits[name]) && h("div", Object.entries(LIMITS).filter(([name]) => route.limits[name]).map(([name, words]) => h("div.small", `${count(route.limits[name])} ${route.limits[name] === 1 ? words.replace("calls", "call") : words}`)))),
        h("td.nowrap", route.input_usd_per_million === null ? h("span.soft", "unknown") : `${money(route.input_usd_per_million)} in, ${money(route.output_usd_per_million)} out`, route.usd_per_hour > 0 && h("div.small", `${money(route.usd_per_hour)} an hour`))))))));
}

/** A replica: how it is, where, and what its server says it does. */
function replica(one) {
  const load = one.running === null ? "" : `, ${count(one.running)} running and ${count(one.waiting || 0)} waiting there`;
  return h("div.small.break", { class: one.health === "ill" ? "bad" : "soft" }, `${one.health}: ${one.url}${load}`, one.trouble && h("div", one.trouble));
}

/** What a call may ask of a route: where it is, how good, how much it takes. */
function about(route) {
  const known = [route.region && `region ${route.region}`, route.quality && `quality ${route.quality} of 5`, route.context && `${count(route.context)} tokens of context`].filter(Boolean);
  return known.length > 0 && h("div.soft.small", known.join(" · "));
}
