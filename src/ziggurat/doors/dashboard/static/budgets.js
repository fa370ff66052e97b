// Budgets: what may be spent, what is, and which runs stand still for it.
import { get, part, post } from "./api.js";
import { ask, count, field, fill, h, local, money, pill, plural, when } from "./dom.js";

const TITLES = { day: () => "All calls of a day", workflow: (name) => `Workflow ${name}, a day`, tenant: (name) => `Tenant ${name}, a day`, call: () => "One call", step: () => "One step of a run" };

/** The section of the costs page; `refresh` draws it anew. */
export function budgetsPanel({ me, act }) {
  const element = h("section", { "aria-labelledby": "budgets" });
  const heading = h("h2.section", { id: "budgets" }, "Budgets");
  async function refresh() {
    const found = await get("/budgets");
    const windows = found.budgets.filter((one) => one.renews_at !== null), single = found.budgets.filter((one) => one.renews_at === null);
    fill(element, heading,
      windows.length + single.length === 0 && h("div.panel", h("p.soft", "No budget is set. Write some under ", h("code", "[inference.budgets]"), ", or give a workflow or a run one of its own.")),
      windows.length > 0 && h("div.grid", windows.map((one) => card(one, found.downgrade))),
      single.length > 0 && h("p.soft.small", single.map((one, index) => [index > 0 && " · ", `${TITLES[one.kind](one.name)}: `, h("b", money(one.limit_usd)), " at most"])),
      found.runs.length > 0 && runs(found.runs));
  }

  function card(one, downgrade) {
    const title = TITLES[one.kind](one.name);
    const taken = one.spent_usd + one.reserved_usd, share = one.limit_usd > 0 ? taken / one.limit_usd : 1;
    const kind = share >= 0.995 ? "over" : taken >= one.soft_usd ? "near" : "";
    return h("section.panel", { "aria-label": title },
      h("div.head", h("h3.break", title), one.parked > 0 && h("a.pill.parked", { href: "#/runs?status=parked" }, `${plural(one.parked, "run")} parked`)),
      h("p.figure", h("span.big", money(one.spent_usd)), h("span.soft", ` of ${money(one.limit_usd)}`)),
      h("div.meter", { class: kind, role: "meter", "aria-label": `${title}: spent`, "aria-valuemin": 0, "aria-valuemax": one.limit_usd, "aria-valuenow": Math.min(taken, one.limit_usd), "aria-valuetext": `${money(one.spent_usd)} of ${money(one.limit_usd)}` },
        h("span", { "width%": Math.min(100, share * 100) }), one.soft_usd < one.limit_usd && h("i", { "left%": (100 * one.soft_usd) / one.limit_usd })),
      h("p.soft.small", one.reserved_usd > 0 && `${money(one.reserved_usd)} reserved by calls under way · `,
        downgrade && taken >= one.soft_usd && share < 0.995 ? [h("span.warn", `past ${money(one.soft_usd)}: ${downgrade} is asked`), " · "] : null, h("span", { title: local(one.renews_at) }, "anew ", when(one.renews_at))));
  }

  const whose = (one) => (!one.budget ? "" : one.budget === `run:${one.run}` ? "its own" : one.budget.startsWith("run:") ? ["of ", h("a", { href: `#/runs/${part(one.budget.slice(4))}` }, one.budget.slice(4))] : one.budget === "unknown" ? "a budget" : one.budget.replace(":", " "));

  function runs(found) {
    return h("div.panel.flush", h("div.head.inset", h("h3", "Runs with a budget")), h("div.scroll", { tabindex: "0", role: "region", "aria-label": "Runs with a budget" }, h("table.stack",
      h("thead", h("tr", ["Run", "Status", "Parked by the budget"].map((name) => h("th", name)), h("th.num", "Spent"), h("th", ""), h("th", ""))),
      h("tbody", found.map((one) => h("tr", h("td.wide", h("a", { href: `#/runs/${part(one.run)}` }, one.run), h("div.soft.small", one.workflow, me.namespace === "*" && one.namespace !== "default" && ` · ${one.namespace}`)),
        h("td", pill(one.status)), h("td.break", { title: one.reason }, whose(one)),
        h("td.num", h("span", money(one.spent_usd), one.budget_usd !== null && h("span.soft", ` of ${money(one.budget_usd)}`))),
        h("td", one.budget_usd !== null && h("div.meter", { class: one.spent_usd >= one.budget_usd ? "over" : one.spent_usd >= 0.8 * one.budget_usd ? "near" : "", "aria-hidden": "true" }, h("span", { "width%": Math.min(100, (100 * one.spent_usd) / Math.max(1e-12, one.budget_usd)) }))),
        h("td.right", one.status === "parked" && me.may("operator") && h("button.small", { type: "button", "aria-label": `Resume ${one.run}`, onclick: () => resume(one) }, "Resume"))))))));
  }

  async function resume(one) {
    const owner = one.budget.startsWith("run:") ? one.budget.slice(4) : one.run;
    const own = one.budget.startsWith("run:");
    const amount = h("input", { type: "text", value: own ? "+$1" : "", placeholder: "$2 or +$1", spellcheck: "false" });
    const done = await ask({ title: `Resume ${owner}`, action: "Resume", body: h("div", h("p.soft", one.reason), field(own ? "Its new budget" : "Its own budget (optional)", amount, "In all, such as $2, or that much more, such as +$1.")),
      collect: () => post(`/runs/${part(owner)}/resume`, { budget: amount.value.trim() || null }) });
    if (done) act(refresh, `${owner} goes on`);
  }
  return { element, refresh };
}
