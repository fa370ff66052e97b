// All runs, newest first: found by status, workflow, tag or a part of the id, and kept up to date while one looks.
import { get, part, post, query } from "./api.js";
import { ask, count, empty, fill, h, money, pill, plural, seconds, span, when } from "./dom.js";

const STATUSES = ["running", "waiting", "pending", "paused", "parked", "completed", "failed", "cancelled"];
const PAGE = 100;

export function runsPage({ main, me, params, every, act, onLeave }) {
  const filter = { search: params.get("search") || "", workflow: params.get("workflow") || "", tag: params.getAll("tag"), status: params.getAll("status"), since: params.get("since") || "" };
  const picked = new Set();
  let rows = [], next = null, fetching = false;

  const search = h("input", { type: "search", placeholder: "Part of an id", "aria-label": "Search by id", value: filter.search });
  const tag = h("input", { type: "text", placeholder: "key=value", "aria-label": "Tag", value: filter.tag.join(" "), size: 14 });
  const workflow = h("select", { "aria-label": "Workflow" }, h("option", { value: "" }, "All workflows"));
  const chips = h("div.chips", { role: "group", "aria-label": "Status" });
  const body = h("tbody");
  const bulk = h("div.banner", { hidden: true });
  const table = h("div.panel.flush", h("div.scroll", { tabindex: "0", role: "region", "aria-label": "Runs" }, h("table.runs",
    h("thead", h("tr", me.may("operator") && h("th", h("span.visually-hidden", "Pick")), ["Run", "Workflow", "Status", "Started"].map((name) => h("th", name)), h("th.num", "Took"), h("th.num", "Cost"))), body)));
  const nothing = h("div");
  const more = h("div.more", { hidden: true }, h("button", { type: "button", onclick: () => load() }, "Show more"));
  fill(main,
    h("div.head", h("div", h("h1", "Runs")), h("div.actions", me.may("operator") && h("a.button.main", { href: "#/start" }, "Start a run"))),
    h("div.filters", h("div.search", search), workflow, tag), chips, bulk, table, nothing, more);

  const where = (extra = {}) => query({ search: filter.search, workflow: filter.workflow, tag: filter.tag, status: filter.status, since: filter.since, ...extra });

  function changed() {
    history.replaceState(null, "", `#/runs${where()}`);
    picked.clear();
    rows = [];
    act(refresh);
  }
  let typing = null;
  search.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => { filter.search = search.value.trim(); changed(); }, 200); });
  tag.addEventListener("change", () => { filter.tag = tag.value.split(/\s+/).filter((one) => one.includes("=")); changed(); });
  workflow.addEventListener("change", () => { filter.workflow = workflow.value; changed(); });
  onLeave(() => clearTimeout(typing));

  async function refresh() {
    const [page, counted] = await Promise.all([get(`/runs${where({ limit: PAGE })}`), get(`/runs/counts${where({ status: [] })}`)]);
    drawChips(counted.counts);
    // What was loaded further down stays; the head is new.
    const known = new Set(page.runs.map((run) => run.id));
    const tail = rows.length > PAGE ? rows.slice(PAGE).filter((run) => !known.has(run.id)) : [];
    if (!tail.length) next = page.next;
    rows = [...page.runs, ...tail];
    draw();
  }

  async function load() {
    if (fetching || !next) return;
    fetching = true;
    more.firstChild.disabled = true;
    try {
      const page = await get(`/runs${where({ limit: PAGE, after: next })}`);
      const known = new Set(rows.map((run) => run.id));
      rows.push(...page.runs.filter((run) => !known.has(run.id)));
      next = page.next;
      draw();
    } finally {
      fetching = false;
      more.firstChild.disabled = false;
    }
  }

  function drawChips(counts) {
    const total = Object.values(counts).reduce((sum, n) => sum + n, 0);
    const chip = (label, n, on, choose) => h("button.chip", { type: "button", "aria-pressed": String(on), onclick: choose }, label, " ", h("b", count(n)));
    const active = document.activeElement?.textContent;
    fill(chips, chip("all", total, !filter.status.length, () => { filter.status = []; changed(); }),
      STATUSES.filter((status) => counts[status] || filter.status.includes(status)).map((status) => chip(status, counts[status] || 0, filter.status.includes(status), () => {
        filter.status = filter.status.includes(status) ? filter.status.filter((one) => one !== status) : [...filter.status, status];
        changed();
      })));
    if (active) [...chips.children].find((one) => one.textContent === active)?.focus();
  }

  const drawn = new Map();
  function draw() {
    const wanted = rows.map((run) => {
      const mark = `${run.status}|${run.ended_at}|${run.usage.cost_usd}|${run.events}|${picked.has(run.id)}`;
      const old = drawn.get(run.id);
      if (old && old.mark === mark) return old.row;
      const row = one(run);
      drawn.set(run.id, { mark, row });
      return row;
    });
    // Only what changed is touched, so that a selection or a focus stays.
    wanted.forEach((row, index) => { if (body.children[index] !== row) body.insertBefore(row, body.children[index] || null); });
    while (body.children.length > wanted.length) body.lastChild.remove();
    table.hidden = !rows.length;
    fill(nothing, !rows.length && h("div.panel", filtered() ? empty("No run matches", h("button", { type: "button", onclick: clear }, "Show all"))
      : empty("No run yet", "Start one here, with ", h("code", "ziggurat start"), ", or over HTTP.")));
    more.hidden = !next;
    drawBulk();
  }

  const filtered = () => filter.search || filter.workflow || filter.tag.length || filter.status.length || filter.since;
  function clear() {
    Object.assign(filter, { search: "", workflow: "", tag: [], status: [], since: "" });
    search.value = tag.value = workflow.value = "";
    changed();
  }

  function one(run) {
    const open = (event) => { if (!event.target.closest("a, input")) location.hash = `#/runs/${part(run.id)}`; };
    const took = run.started_at ? span(run.ended_at ? seconds(run.started_at, run.ended_at) : seconds(run.started_at, new Date().toISOString())) : "";
    return h("tr.link", { onclick: open },
      me.may("operator") && h("td.c-pick", h("input", { type: "checkbox", "aria-label": `Pick ${run.id}`, checked: picked.has(run.id), onchange: (event) => { event.target.checked ? picked.add(run.id) : picked.delete(run.id); drawBulk(); } })),
      h("td.c-id", h("a", { href: `#/runs/${part(run.id)}` }, run.id), h("div", Object.entries(run.tags).slice(0, 4).map(([key, value]) => h("span.tag", `${key}: ${value}`)))),
      h("td.c-workflow", run.workflow, me.namespace === "*" && run.namespace !== "default" && h("div.soft.small", run.namespace)),
      h("td.c-status", pill(run.status), why(run)),
      h("td.nowrap.c-when", when(run.created_at)), h("td.num.c-took", took), h("td.num.c-cost", run.usage.calls ? money(run.usage.cost_usd) : h("span.soft", "–")));
  }

  // One line of why it stands as it does; the whole of it is on its page.
  function why(run) {
    const text = run.status === "parked" ? run.reason : run.error ? `${run.error.type.split(".").at(-1)}: ${run.error.message}` : run.reason;
    return text && h("div.soft.small.why", { title: text }, text);
  }

  function drawBulk() {
    bulk.hidden = !picked.size;
    if (!picked.size) return;
    const verb = (name, danger) => h("button", { type: "button", class: danger ? "danger" : "", onclick: () => order(name) }, name === "purge" ? "delete" : name);
    fill(bulk, h("div.head", h("span", `${plural(picked.size, "run")} picked`), h("div.actions", ["pause", "resume", "retry", "cancel"].map((name) => verb(name)), me.may("admin") && verb("purge", true),
      h("button.quiet", { type: "button", onclick: () => { picked.clear(); drawn.clear(); draw(); } }, "none"))));
  }

  async function order(verb) {
    const runs = [...picked];
    const word = verb === "purge" ? "Delete" : verb[0].toUpperCase() + verb.slice(1);
    const sure = await ask({ title: `${word} ${plural(runs.length, "run")}?`, action: word, danger: verb === "purge" || verb === "cancel",
      body: h("p", verb === "purge" ? "Runs that have ended go with their histories, for good. Others are left alone." : "Runs to which it does not apply are left alone, and counted.") });
    if (!sure) return;
    const made = await act(() => post("/bulk", { verb, ids: runs }));
    if (!made) return;
    picked.clear();
    drawn.clear();
    await act(async () => {
      let now = made;
      while (!now.ended_at) { await new Promise((wake) => setTimeout(wake, 200)); now = await get(`/bulk/${part(made.id)}`); }
      await refresh();
      return now;
    }, (now) => `${word}: ${count(now.done)} done${now.refused ? `, ${count(now.refused)} to which it did not apply` : ""}`);
  }

  get("/workflows").then(({ workflows }) => {
    for (const { name } of workflows) workflow.append(h("option", { value: name, selected: name === filter.workflow }, name));
  }).catch(() => {});
  const watcher = new IntersectionObserver(([seen]) => { if (seen.isIntersecting) act(load); }, { rootMargin: "400px" });
  watcher.observe(more);
  onLeave(() => watcher.disconnect());
  every(2000, refresh);
}

