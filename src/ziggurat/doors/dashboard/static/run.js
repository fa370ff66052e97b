// One run: how it stands, what each step took and cost, what it was given and gave, and every verb.
import { del, follow, get, part, post } from "./api.js";
import { ask, count, field, fill, h, local, money, pill, seconds, span, toast, when } from "./dom.js";
import { form, parsed } from "./form.js";
import { json } from "./json.js";
import { failure, Steps, Timeline } from "./timeline.js";

const ENDED = ["completed", "failed", "cancelled"];

export function runPage({ main, me, id, act, onLeave }) {
  const steps = new Steps();
  const timeline = new Timeline();
  const head = h("div"), facts = h("div.panel"), problem = h("div"), result = h("div"), shown = h("div"), live = h("div");
  fill(main, h("p.small", h("a", { href: "#/runs" }, "← Runs")), head, problem, live,
    h("div.panel", h("h2", "Timeline"), timeline.element), h("div.split", shown, result), facts);
  let run = null, workflow = null, stop = () => {}, drawing = 0, gone = false, seq = 0;
  onLeave(() => { gone = true; stop(); cancelAnimationFrame(drawing); });

  const redraw = () => {
    cancelAnimationFrame(drawing);
    drawing = requestAnimationFrame(() => {
      if (gone || !run) return;
      const focused = document.activeElement?.dataset?.step;
      timeline.draw(steps, run);
      drawLive();
      if (focused) timeline.element.querySelector(`[data-step="${focused}"]`)?.focus();
    });
  };

  async function refresh() {
    run = await get(`/runs/${part(id)}`);
    drawRun();
    redraw();
  }

  async function begin() {
    await refresh();
    let after = 0;
    for (let pages = 0; after !== null && pages < 20; pages++) {
      const page = await get(`/runs/${part(id)}/history?after=${after}&limit=500`);
      for (const event of page.events) { steps.event(event); seq = event.seq; }
      after = page.next;
    }
    for (const view of (await get(`/runs/${part(id)}/steps`)).steps) steps.view(view);
    redraw();
    get(`/workflows/${part(run.workflow)}`).then((found) => { workflow = found; drawRun(); }).catch(() => {});
    if (!gone && !ENDED.includes(run.status)) listen();
  }

  function listen() {
    stop();
    stop = follow(id, seq, (kind, data) => {
      if (kind === "history") { steps.event(data); seq = Math.max(seq, data.seq); if (data.kind.startsWith("run_")) act(refresh); }
      else if (kind === "step") steps.view(data);
      else if (kind === "progress") steps.progress(data);
      else if (kind === "status" || kind === "end" || kind === "closed") act(refresh);
      redraw();
    });
  }

  const again = () => act(async () => { await refresh(); if (!ENDED.includes(run.status)) listen(); });
  const verb = (path, body, said) => act(() => post(`/runs/${part(id)}/${path}`, body), said).then((done) => { if (done) again(); });

  function drawRun() {
    const r = run;
    const can = me.may("operator");
    const ended = ENDED.includes(r.status);
    const button = (label, onclick, kind = "") => h("button", { type: "button", class: kind, onclick }, label);
    fill(head, h("div.head", h("div", h("h1", r.id), h("p.lede", r.workflow, " · ", pill(r.status), " ", r.reason && r.status !== "parked" && h("span.break", r.reason))),
      can && h("div.actions",
        !ended && r.status !== "parked" && button("Send a signal", sendSignal),
        !ended && !["paused", "parked"].includes(r.status) && button("Pause", () => verb("pause", {}, "Paused")),
        ["paused", "parked"].includes(r.status) && button("Resume", resume, "main"),
        r.status === "failed" && button("Retry", () => verb("retry", undefined, "Taken up again"), "main"),
        button("Fork", fork),
        !ended && button("Cancel", cancel, "danger"),
        ended && me.may("admin") && button("Delete", remove, "danger"))));
    fill(problem, r.error && r.status === "failed" && h("div.banner.bad", failure(r.error),
      r.error.run_id && h("p", "In the child run ", h("a", { href: `#/runs/${part(r.error.run_id)}` }, r.error.run_id))),
    r.status === "parked" && h("div.banner", h("p", h("b", "Parked. "), r.reason)));
    const fact = (name, value) => value !== null && value !== undefined && value !== "" && value !== false && h("div", h("dt", name), h("dd", value));
    const link = (run_) => run_ && h("a", { href: `#/runs/${part(run_)}` }, run_);
    fill(facts, h("h2", "About"), h("dl.pairs",
      fact("Created", r.created_at && h("span", when(r.created_at), h("span.soft", ` · ${local(r.created_at)}`))),
      fact("Took", r.started_at && span(r.ended_at ? seconds(r.started_at, r.ended_at) : seconds(r.started_at, new Date().toISOString()))),
      fact("Wakes", r.wake_at && when(r.wake_at)),
      fact("Cost", `${money(r.usage.cost_usd)}${r.budget_usd !== null ? ` of ${money(r.budget_usd)}` : ""}`),
      fact("Model calls", r.usage.calls ? `${count(r.usage.calls)}: ${count(r.usage.input_tokens)} tokens in, ${count(r.usage.output_tokens)} out` : null),
      fact("Tags", Object.keys(r.tags).length ? Object.entries(r.tags).map(([key, value]) => h("span.tag", `${key}: ${value}`)) : null),
      fact("Namespace", r.namespace), fact("Priority", r.priority), fact("Generation", r.generation || null),
      Object.entries(r.links).filter(([, url]) => /^https?:\/\//.test(url)).map(([name, url]) =>
        fact("Elsewhere", h("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, name === "temporal" ? "Temporal's Web UI" : name))),
      fact("Parent", link(r.parent)), fact("Forked from", link(r.forked_from)), fact("Events", count(r.events))));
    fill(shown, h("div.panel", h("h2", "Input"), json(r.input)));
    fill(result, r.result !== null && h("div.panel", h("h2", "Result"), json(r.result)), r.state !== null && h("div.panel", h("h2", "State"), json(r.state)));
  }

  function drawLive() {
    const talking = steps.all().filter((step) => step.tokens !== null && !["completed", "failed"].includes(step.status));
    fill(live, talking.map((step) => {
      const box = h("div.tokens.live", { tabindex: "0", role: "log", "aria-label": `What step ${step.number} writes` }, step.tokens);
      requestAnimationFrame(() => { box.scrollTop = box.scrollHeight; });
      return h("div.panel", h("h2", `${step.name} writes`), box);
    }));
  }

  // -- verbs that ask first --------------------------------------------------------------------------------------------

  async function cancel() {
    const reason = h("input", { type: "text", maxlength: 1000 });
    const given = await ask({ title: "Cancel this run?", action: "Cancel the run", danger: true, body: h("div", h("p", "Its workflow may clean up; running tasks are told to stop."), field("Why (optional)", reason)), collect: () => ({ reason: reason.value }) });
    if (given) verb("cancel", given, "Cancellation asked for");
  }

  async function resume() {
    const budget = h("input", { type: "text", placeholder: "+$1" });
    const given = run.status === "paused" && run.budget_usd === null ? {} : await ask({ title: "Resume this run?", action: "Resume", body: h("div", h("p", run.reason), field("Budget (optional)", budget, "What it may spend in all, such as $2, or how much more, such as +$1.")),
      collect: () => (budget.value.trim() ? { budget: budget.value.trim() } : {}) });
    if (given) verb("resume", given, "Resumed");
  }

  async function remove() {
    if (!(await ask({ title: "Delete this run?", action: "Delete", danger: true, body: h("p", "It goes with its history, for good.") }))) return;
    if (await act(() => del(`/runs/${part(id)}`), "Deleted")) location.hash = "#/runs";
  }

  async function sendSignal() {
    const waiting = steps.all().find((step) => step.kind === "signal" && step.status === "waiting");
    const name = h("input", { type: "text", value: waiting ? waiting.name : "", required: true });
    const value = h("textarea", { rows: 5, spellcheck: "false", value: "null" });
    const given = await ask({ title: "Send a signal", action: "Send", body: h("div", field("Name", name), field("Value (JSON)", value)),
      collect() { if (!name.value.trim()) throw new Error("The signal needs a name."); return { name: name.value.trim(), value: parsed(value.value, "The value"), signal_id: crypto.randomUUID() }; } });
    if (given) verb("signal", given, "Signal sent");
  }

  async function fork() {
    workflow ||= await get(`/workflows/${part(run.workflow)}`).catch(() => null); // Its code may be gone; JSON will do then.
    const all = steps.all();
    const from = h("select", h("option", { value: "1" }, "from the start"), all.filter((one) => one.number > 1).map((one) => h("option", { value: one.number }, `from step ${one.number}, ${one.name || one.kind}`)));
    const properties = workflow?.input_schema?.properties;
    const edit = properties ? form(workflow.input_schema, run.input) : null;
    const raw = h("textarea", { rows: 10, spellcheck: "false", value: JSON.stringify(run.input, null, 2), "aria-label": "Input as JSON" });
    const name = h("input", { type: "text", maxlength: 200, pattern: "[A-Za-z0-9._~:@+=\\-]*" });
    const before = JSON.stringify(run.input);
    const given = await ask({ title: "Fork this run", action: "Start the fork", wide: true,
      body: h("div", h("p.soft", "A new run that shares every recorded step before the one you choose, optionally with other input. Shared steps cost nothing again."),
        field("Run anew", from), h("h3", "Input"), edit ? edit.element : raw, field("Id (optional)", name)),
      collect() {
        const input = edit ? edit.value() : parsed(raw.value, "The input");
        return { step: Number(from.value), id: name.value.trim(), ...(JSON.stringify(input) === before ? {} : { input }) };
      } });
    if (!given) return;
    const made = await act(() => post(`/runs/${part(id)}/fork`, given), "Forked");
    if (made) location.hash = `#/runs/${part(made.id)}`;
  }

  begin().catch((error) => {
    if (gone) return;
    fill(main, h("p.small", h("a", { href: "#/runs" }, "← Runs")), h("h1", id), h("div.banner.bad", h("p", error.message)));
    if (error.status !== 404) toast(error.message, true);
  });
  // What is under way grows while one looks.
  const tick = setInterval(() => { if (!document.hidden && run && !ENDED.includes(run.status)) redraw(); }, 1000);
  onLeave(() => clearInterval(tick));
}
