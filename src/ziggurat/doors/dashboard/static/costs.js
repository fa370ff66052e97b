// What model calls cost: by day, workflow, model and tenant.
import { get, query } from "./api.js";
import { count, empty, fill, h, money } from "./dom.js";
import { bars } from "./plot.js";
import { budgetsPanel } from "./budgets.js";

const SPANS = [["1", "24 hours"], ["7", "7 days"], ["30", "30 days"], ["", "all time"]];
const GROUPS = [["workflow", "Workflow"], ["model", "Model"], ["endpoint", "Endpoint"], ["tenant", "Tenant"]];

// A year of days is drawn day by day; what is older is in the table.
const DAYS_MOST = 366;

/** Every day from the first on, those without calls too, so that time runs evenly: [day as people write it, cost]. */
function daily(costs, since) {
  const known = new Map(costs.map((one) => [one.group.day, one.cost_usd]));
  const first = [...known.keys(), ...(since ? [since.slice(0, 10)] : [])].sort()[0];
  const today = new Date().toISOString().slice(0, 10);
  const days = [];
  for (let at = Date.parse(`${first}T00:00:00Z`); at <= Date.parse(`${today}T00:00:00Z`); at += 86400000) days.push(new Date(at).toISOString().slice(0, 10));
  const shown = (day) => new Date(`${day}T00:00:00Z`).toLocaleDateString(undefined, { day: "numeric", month: "short", timeZone: "UTC" });
  return days.slice(-DAYS_MOST).map((day) => [shown(day), known.get(day) || 0]);
}

export function costsPage({ main, me, params, act, every }) {
  let days = params.get("days") ?? "7";
  let by = params.get("by") || "workflow";
  const budgets = budgetsPanel({ me, act });
  const chips = h("div.chips", { role: "group", "aria-label": "Time" });
  const total = h("div.big"), plot = h("div"), table = h("div"), groups = h("div.chips", { role: "group", "aria-label": "Group by" });
  fill(main, h("div.head", h("div", h("h1", "Costs"), h("p.lede", "Model calls of runs and of the gateway, from the ledger."))), chips,
    h("div.panel", h("p.soft.small", "In all"), total, plot), groups, table, budgets.element);
  const chip = (label, on, choose) => h("button.chip", { type: "button", "aria-pressed": String(on), onclick: choose }, label);
  const change = () => { history.replaceState(null, "", `#/costs${query({ days, by })}`); act(refresh); };

  async function refresh() {
    fill(chips, SPANS.map(([value, label]) => chip(label, value === days, () => { days = value; change(); })));
    fill(groups, GROUPS.map(([value, label]) => chip(label, value === by, () => { by = value; change(); })));
    const since = days ? new Date(Date.now() - Number(days) * 86400000).toISOString() : "";
    const [byDay, grouped] = await Promise.all([get(`/costs${query({ by: "day", since })}`), get(`/costs${query({ by, since })}`)]);
    const held = grouped.costs.reduce((sum, one) => sum + one.held_usd, 0);
    fill(total, money(byDay.total_usd), held > 0 && h("span.small.soft", ` and up to ${money(held)} for calls that were sent and never answered`));
    fill(plot, byDay.costs.length > 0 && bars(daily(byDay.costs, since), "Cost by day", plot));
    const most = Math.max(1e-12, ...grouped.costs.map((one) => one.cost_usd));
    fill(table, grouped.costs.length ? h("div.panel.flush", h("div.scroll", { tabindex: "0", role: "region", "aria-label": "Costs" }, h("table.stack",
      h("thead", h("tr", h("th", GROUPS.find(([value]) => value === by)[1]), h("th.num", "Cost"), h("th", ""), ["Calls", "Tokens in", "Cached", "Tokens out", "Unanswered"].map((name) => h("th.num", name)))),
      h("tbody", grouped.costs.map((one) => h("tr", h("td.wide.break", one.group[by] || h("span.soft", "none")), h("td.num", money(one.cost_usd)),
        h("td", h("div.meter", { "aria-hidden": "true" }, h("span", { "width%": (100 * one.cost_usd) / most }))),
        [one.calls, one.input_tokens, one.cached_tokens, one.output_tokens, one.unanswered].map((n) => h("td.num", count(n))))))))) : h("div.panel", empty("No model call yet", "Calls appear here as soon as they are recorded.")));
  }
  every(10000, refresh);
  every(5000, budgets.refresh);
}
