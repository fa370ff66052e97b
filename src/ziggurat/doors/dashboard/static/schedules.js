// Workflows that start by themselves.
import { del, get, part, post, putJson } from "./api.js";
import { ask, empty, field, fill, h, local, newId, pill, plural, span, when } from "./dom.js";
import { form } from "./form.js";

const fact = (name, ...value) => h("div", h("dt", name), h("dd", value));

export function schedulesPage({ main, me, every, act }) {
  const list = h("div");
  fill(main, h("div.head", h("div", h("h1", "Schedules"), h("p.lede", "Workflows that start by themselves.")),
    h("div.actions", me.may("operator") && h("button.main", { type: "button", onclick: add }, "Add a schedule"))), list);
  async function refresh() {
    const { schedules } = await get("/schedules");
    fill(list, schedules.length ? schedules.map(card) : h("div.panel", empty("No schedule yet", "Add one here, or write ", h("code", "[schedules.NAME]"), " into ziggurat.toml.")));
  }
  const verb = (name, path, body, said) => act(() => post(`/schedules/${part(name)}/${path}`, body), said).then((done) => { refresh(); return done; });

  function card(one) {
    const times = [one.every !== null && `every ${span(one.every)}`, ...one.cron.map((text) => `${text} (${one.timezone})`)].filter(Boolean).join(", ");
    const button = (label, onclick, kind = "") => h("button", { type: "button", class: kind, onclick }, label);
    return h("article.panel", { "aria-label": one.name }, h("div.head",
      h("div", h("h2", one.name), h("p.lede", one.workflow, " · ", h("span.mono", times), " ", one.paused && pill("paused"))),
      me.may("operator") && h("div.actions",
        button("Run now", async () => { const run = await verb(one.name, "trigger", undefined); if (run) location.hash = `#/runs/${part(run.id)}`; }),
        one.paused ? button("Resume", () => verb(one.name, "resume", undefined, "Resumed"), "main") : button("Pause", () => verb(one.name, "pause", {}, "Paused")),
        button("Backfill", () => backfill(one)), one.origin === "hand" && button("Remove", () => remove(one), "danger"))),
    h("dl.pairs",
      one.next.length > 0 && fact("Next", when(one.next[0]), h("span.soft", { title: one.next.map(local).join("\n") }, ` · ${local(one.next[0])}`)),
      one.paused && fact("Paused", one.reason),
      one.last_run && fact("Last run", h("a", { href: `#/runs/${part(one.last_run)}` }, one.last_run)),
      one.waiting && fact("Waiting", `the moment ${local(one.waiting)} waits for the last run to end`),
      one.skipped > 0 && fact("Passed over", plural(one.skipped, "moment")),
      one.error && fact("Trouble", h("span.bad", one.error)),
      fact("Overlap", one.overlap), one.origin === "settings" && fact("From", "ziggurat.toml")));
  }

  async function remove(one) {
    if (await ask({ title: `Remove ${one.name}?`, action: "Remove", danger: true, body: h("p", "Its runs go on.") })) act(() => del(`/schedules/${part(one.name)}`).then(() => true), "Removed").then(refresh);
  }

  async function backfill(one) {
    const from = h("input", { type: "datetime-local", required: true }), to = h("input", { type: "datetime-local", required: true });
    const given = await ask({ title: `Backfill ${one.name}`, action: "Start the runs", body: h("div", h("p", "A run for each past moment that has none."), field("From", from), field("Until", to)),
      collect() { if (!from.value || !to.value) throw new Error("Say from when until when."); return { since: new Date(from.value).toISOString(), until: new Date(to.value).toISOString() }; } });
    if (given) verb(one.name, "backfill", given, (done) => `${plural(done.count, "moment")} have their runs`);
  }

  async function add() {
    const found = await act(() => get("/workflows"));
    if (!found) return;
    const name = h("input", { type: "text", required: true, pattern: "[A-Za-z0-9][A-Za-z0-9_.\\-]*" });
    const workflow = h("select", found.workflows.map((one) => h("option", { value: one.name }, one.name)));
    const cron = h("input", { type: "text", placeholder: "0 3 * * 1-5", spellcheck: "false" }), each = h("input", { type: "text", placeholder: "15m" });
    const zone = h("input", { type: "text", value: Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC" });
    const overlap = h("select", { id: newId() }, ["skip", "queue", "allow", "cancel"].map((one) => h("option", { value: one }, one)));
    const place = h("div");
    let made = null;
    const draw = () => { made = form(found.workflows.find((one) => one.name === workflow.value)?.input_schema || {}); fill(place, h("h3", "Input of each run"), made.element); };
    workflow.addEventListener("change", draw);
    draw();
    const done = await ask({ title: "Add a schedule", action: "Add", wide: true,
      body: h("div", field("Name", name), field("Workflow", workflow), field("Cron", cron, "minute hour day month weekday"), field("Or every", each), field("Time zone", zone), field("While the run before goes on", overlap), place),
      async collect() {
        if (!name.value.trim()) throw new Error("The schedule needs a name.");
        return putJson(`/schedules/${part(name.value.trim())}`, { workflow: workflow.value, input: made.value() || {}, cron: cron.value.trim() ? [cron.value.trim()] : [], every: each.value.trim() || null, timezone: zone.value.trim(), overlap: overlap.value });
      } });
    if (done) refresh();
  }
  every(4000, refresh);
}
