// The steps of a run over time: how long each waited on its queue, ran, and was inside a model; attempts that failed; what it cost.
import { count, fill, h, local, money, newId, pill, span } from "./dom.js";
import { json } from "./json.js";

const at = (moment) => (moment ? Date.parse(moment) / 1000 : null);

/** What is known of a run's steps, gathered from its history, its steps under way and its stream. */
export class Steps {
  constructor() {
    this.clear();
  }

  clear() {
    this.steps = new Map();
  }

  of(number) {
    if (!this.steps.has(number)) this.steps.set(number, { number, kind: "", name: "", status: "scheduled", attempts: [], cost: 0, tokens: null, emitted: [], requested: null });
    return this.steps.get(number);
  }

  /** Take an event of the history. */
  event(event) {
    if (event.kind === "run_continued") { this.clear(); return; }
    if (!event.step) return;
    const step = this.of(event.step);
    step.kind = event.step_kind || step.kind;
    step.name = event.name || step.name;
    step.requested = at(event.requested_at) ?? step.requested ?? at(event.at);
    if (event.input !== null) step.input = event.input;
    if (event.detail) step.detail = event.detail;
    const ended = ["step_completed", "step_failed", "attempt_failed", "timer_fired"].includes(event.kind);
    if (!ended) return;
    const cost = event.calls.reduce((sum, one) => sum + one.usage.cost_usd, 0);
    step.cost += cost;
    step.attempts = step.attempts.filter((one) => one.live !== true);
    step.attempts.push({
      number: event.attempt, sent: at(event.sent_at) ?? step.requested, started: at(event.started_at), ended: at(event.ended_at) ?? at(event.at),
      failed: event.kind === "attempt_failed" || event.kind === "step_failed", calls: event.calls, error: event.error, worker: event.worker, cost,
    });
    if (event.kind === "attempt_failed") { step.status = "retrying"; step.tokens = null; return; }
    step.status = event.kind === "step_failed" ? "failed" : "completed";
    step.ended = at(event.ended_at) ?? at(event.at);
    if (event.kind === "step_completed") step.result = event.result;
    step.error = event.error;
  }

  /** Take a step under way. */
  view(view) {
    const step = this.of(view.step);
    if (["completed", "failed"].includes(step.status) && view.status !== step.status) return;
    Object.assign(step, { kind: view.kind, name: view.name, status: view.status, requested: at(view.requested_at) ?? step.requested });
    if (view.detail) step.detail = view.detail;
    if (view.error) step.error = view.error;
    if (["scheduled", "running"].includes(view.status)) {
      step.attempts = step.attempts.filter((one) => !one.live);
      step.attempts.push({ number: view.attempt, sent: at(view.requested_at), started: at(view.started_at), ended: null, live: true, calls: [], failed: false });
    }
  }

  /** Take progress; of each step only the newest delivery's is shown, so a failed attempt's tokens are taken back. */
  progress(one) {
    if (!one.step) return;
    const step = this.of(one.step);
    const fence = [one.attempt, one.delivery || 0];
    const known = step.fence || [0, 0];
    if (fence[0] < known[0] || (fence[0] === known[0] && fence[1] < known[1])) return;
    if (fence[0] !== known[0] || fence[1] !== known[1]) { step.tokens = null; step.emitted = []; }
    step.fence = fence;
    if (one.kind === "token") step.tokens = (step.tokens || "") + (typeof one.data === "string" ? one.data : JSON.stringify(one.data));
    else step.emitted.push(one);
    if (step.emitted.length > 200) step.emitted.shift();
  }

  all() {
    return [...this.steps.values()].sort((a, b) => a.number - b.number);
  }
}

const MOST = 400;

/** Draws the steps of a run, and the details of those that are opened. */
export class Timeline {
  constructor() {
    this.element = h("div");
    this.open = new Set();
    this.rows = new Map();
  }

  draw(steps, run) {
    const all = steps.all();
    const shown = all.slice(-MOST);
    const begin = Math.min(...shown.map((s) => s.requested ?? Infinity), at(run.started_at) ?? Infinity);
    const now = Date.now() / 1000;
    const end = Math.max(begin + 0.001, // Never empty.
      at(run.ended_at) ?? 0, ...shown.map((s) => s.ended ?? (run.ended_at ? 0 : s.requested ?? 0)), run.ended_at ? 0 : Math.min(now, this._lively(shown) ? now : 0));
    if (!shown.length) {
      fill(this.element, h("p.soft", "No step yet."));
      return;
    }
    // What waits for a signal or a timer reaches to the edge; how long it will wait is not known.
    const waiting = !run.ended_at && shown.some((step) => step.kind !== "task" && !step.ended);
    const total = (end - begin) * (waiting ? 1.15 : 1);
    const marks = [0, 0.25, 0.5, 0.75, 1].map((share) => h("span", span(share * total)));
    fill(this.element,
      all.length > MOST && h("p.soft.small", `The last ${MOST} of ${count(all.length)} steps.`),
      h("div.axis", { "aria-hidden": "true" }, h("span.pad"), h("div.marks", marks), h("span.pad")),
      h("div.timeline", shown.map((step) => this._row(step, begin, total))),
      h("div.legend", legend("k-wait", "waiting on the queue"), legend("k-run", "running"), legend("k-model", "in a model"), legend("k-bad", "failed attempt")));
  }

  _lively(steps) {
    return steps.some((s) => s.status === "running" || s.status === "scheduled");
  }

  _row(step, begin, total) {
    const body = newId();
    const opened = this.open.has(step.number);
    const holder = h("div", { id: body, hidden: !opened });
    const last = step.attempts.at(-1);
    const took = step.ended ? span(step.ended - (step.requested ?? step.ended)) : last && last.started ? span(Date.now() / 1000 - last.started) : "";
    const button = h("button.lane", {
      type: "button", "aria-expanded": String(opened), "aria-controls": body, "data-step": step.number,
      onclick: () => {
        const open = !this.open.has(step.number);
        open ? this.open.add(step.number) : this.open.delete(step.number);
        button.setAttribute("aria-expanded", String(open));
        holder.hidden = !open;
        if (open) fill(holder, details(step));
      },
    },
    h("span.what", { title: `${step.name} — ${step.status}` }, h("span.no", step.number), step.name || step.kind, " ", step.status !== "completed" && pill(step.status)),
    h("span.bar", bar(step, begin, total)),
    h("span.took", took, step.cost ? h("span.visually-hidden", `, ${money(step.cost)}`) : null, step.cost ? ` · ${money(step.cost)}` : null));
    if (opened) fill(holder, details(step));
    return h("div", button, holder);
  }
}

const legend = (kind, text) => h("span", h("i", { class: kind }), text);

function bar(step, begin, total) {
  const share = (moment) => `${(Math.max(0, Math.min(1, (moment - begin) / total)) * 100).toFixed(3)}%`;
  const wide = (from, to) => `${(Math.max(0.0025, Math.min(1, (to - from) / total)) * 100).toFixed(3)}%`;
  const parts = [];
  const now = Date.now() / 1000;
  const rect = (kind, from, to, y = 0, height = 17, rx = 3) => parts.push(h("rect", { class: kind, x: share(from), width: wide(from, to), y, height, rx }));
  if (step.kind !== "task" && step.requested) {
    const to = step.ended ?? begin + total;
    parts.push(h("line", { class: "b-sleep", x1: share(step.requested), x2: share(Math.max(to, step.requested + total * 0.003)), y1: 8.5, y2: 8.5 }));
  }
  for (const one of step.kind === "task" ? step.attempts : []) {
    const started = one.started ?? one.ended ?? now;
    if (one.sent && started > one.sent) rect("b-wait", one.sent, started, 5, 7, 2);
    if (one.started) rect(one.failed ? "b-bad" : "b-run", one.started, one.ended ?? now);
    for (const call of one.calls) if (call.started_at) rect("b-model", at(call.started_at), at(call.started_at) + call.latency, 5, 7, 2);
  }
  return h("svg", { "aria-hidden": "true", preserveAspectRatio: "none" }, parts);
}

function details(step) {
  const last = step.attempts.at(-1);
  const facts = [];
  const fact = (name, value) => value && facts.push(h("div", h("dt", name), h("dd", value)));
  fact("Status", pill(step.status));
  fact("Kind", step.kind);
  fact("Worker", last && last.worker);
  if (step.requested) fact("Asked for", local(step.requested * 1000));
  if (last && last.started && last.sent) fact("Waited", span(last.started - last.sent));
  if (last && last.started && last.ended) fact("Ran", span(last.ended - last.started));
  const calls = step.attempts.flatMap((one) => one.calls);
  if (calls.length) fact("In models", span(calls.reduce((sum, one) => sum + one.latency, 0)));
  if (step.cost) fact("Cost", money(step.cost));
  if (step.detail !== step.status) fact("Note", step.detail);
  return h("div.step", { "data-details": step.number },
    h("dl.pairs", facts),
    step.tokens !== null && h("div", h("h3", "What the model writes"), h("div.tokens", { class: step.status === "running" ? "live" : "", tabindex: "0" }, step.tokens)),
    step.emitted.length > 0 && h("details", h("summary", `${count(step.emitted.length)} values shown while it ran`), json(step.emitted.map((one) => ({ kind: one.kind, data: one.data })))),
    step.input !== undefined && h("div", h("h3", "Arguments"), json(step.input)),
    step.result !== undefined && h("div", h("h3", "Result"), json(step.result)),
    step.error && failure(step.error),
    step.attempts.filter((one) => one.failed && one.error && one.error !== step.error && !(one === last && step.error && one.error.message === step.error.message)).map((one) => h("div", h("h3", `Attempt ${one.number} failed`), failure(one.error))),
    calls.length > 0 && h("div.scroll", { tabindex: "0", role: "region", "aria-label": "Model calls" }, h("table.stack", h("thead", h("tr", ["Model", "Served by"].map((name) => h("th", name)), ["Tokens in", "Tokens out", "First token", "Took", "Cost"].map((name) => h("th.num", name)), h("th", ""))),
      h("tbody", calls.map((one) => h("tr", h("td", one.model), h("td", `${one.endpoint}:${one.upstream}`, one.switch > 0 && h("span.tag", `switch ${one.switch}`), one.hedge && h("span.tag", { title: "A second request, because the first one took long" }, "hedge"), one.replica && h("div.small.soft.break", one.replica)), h("td.num", count(one.usage.input_tokens)), h("td.num", count(one.usage.output_tokens)),
        h("td.num", span(one.first_token)), h("td.num", span(one.latency)), h("td.num", money(one.usage.cost_usd), one.held_usd > 0 && h("div.small.soft", `perhaps ${money(one.held_usd)}`)), h("td", one.status === "ok" ? "" : one.status)))))));
}

/** A recorded failure with its traceback. */
export function failure(error) {
  return h("div", h("p.bad.break", h("b", error.type), ": ", error.message), error.traceback && h("details", h("summary", "Traceback"), h("pre", error.traceback)));
}
