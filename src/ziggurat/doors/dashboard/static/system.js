// Queues and workers, with what they did while one looks.
import { get } from "./api.js";
import { count, empty, fill, h, pill, span, when } from "./dom.js";
import { line } from "./plot.js";

const KEPT = 90;

const tile = (name, value) => h("div", h("dt", name), h("dd", h("span.big", value)));
/** A plot with its name and the most that it reached. */
const plotted = (name, values, format) => h("div.plotted", h("div.row", h("span", name), h("span", `at most ${format(Math.max(0, ...values)) || "0"}`)), line(values, name, format));

const perSecond = (n) => `${n.toFixed(n < 10 ? 1 : 0)} a second`;
/** Returns what tells how many a second end, over the last half minute, of counts that each worker keeps for itself: they come and go. */
function rated() {
  const looks = new Map();
  return (name, counts) => {
    const past = looks.get(name) || [];
    const before = past.length ? past.at(-1).counts : counts;
    const more = Object.entries(counts).reduce((sum, [worker, n]) => sum + Math.max(0, n - (before[worker] ?? 0)), 0);
    past.push({ at: Date.now() / 1000, counts, more });
    if (past.length > 15) past.shift();
    looks.set(name, past);
    const seconds = past.at(-1).at - past[0].at;
    return seconds > 0 ? past.slice(1).reduce((sum, look) => sum + look.more, 0) / seconds : 0;
  };
}

export function queuesPage({ main, every }) {
  const list = h("div.grid");
  fill(main, h("div.head", h("div", h("h1", "Queues"), h("p.lede", "What waits for workers, now and over the last minutes that this page was open."))), list);
  const past = new Map();
  const ended = rated();
  every(2000, async () => {
    const { queues } = await get("/queues");
    for (const queue of queues) {
      const samples = past.get(queue.name) || { depth: [], age: [], rate: [] };
      samples.rate.push(ended(queue.name, queue.ended));
      samples.depth.push(queue.ready + queue.leased);
      samples.age.push(queue.oldest_age);
      for (const name of ["depth", "age", "rate"]) if (samples[name].length > KEPT) samples[name].shift();
      past.set(queue.name, samples);
    }
    fill(list, queues.length ? queues.map((queue) => {
      const samples = past.get(queue.name);
      const starved = queue.ready > 0 && queue.workers === 0;
      return h("section.panel", { "aria-label": queue.name },
        h("div.head", h("h2", queue.name), h("span.small", { class: starved ? "bad" : "soft" }, starved ? "no worker serves it" : `${count(queue.workers)} ${queue.workers === 1 ? "worker" : "workers"}`)),
        h("dl.tiles", tile("Ready", count(queue.ready)), tile("Running", count(queue.leased)), queue.delayed > 0 && tile("Delayed", count(queue.delayed)),
          tile("Oldest", queue.ready ? span(queue.oldest_age) : "–"), queue.dead > 0 && tile("Dead", h("a", { href: "#/dead" }, count(queue.dead)))),
        plotted("Ready and running", samples.depth, count), plotted("Age of the oldest", samples.age, span), plotted("Attempts that ended", samples.rate, perSecond));
    }) : h("div.panel", empty("No queue yet", "Queues appear with the first task that names them.")));
  });
}

export function workersPage({ main, every }) {
  const body = h("div"), rate = h("p.lede"), plot = h("div.grid", { hidden: true });
  fill(main, h("div.head", h("div", h("h1", "Workers"), rate)), plot, body);
  const ended = [], rates = [], slotsBusy = [];
  every(2000, async () => {
    const { workers } = await get("/workers");
    ended.push([Date.now() / 1000, workers.reduce((sum, one) => sum + one.ended, 0)]);
    if (ended.length > 15) ended.shift();
    const [first, last] = [ended[0], ended.at(-1)];
    const per = ended.length > 1 && last[0] > first[0] ? Math.max(0, (last[1] - first[1]) / (last[0] - first[0])) : 0;
    const slots = workers.reduce((sum, one) => sum + one.slots, 0), busy = workers.reduce((sum, one) => sum + one.busy, 0);
    for (const [samples, value] of [[rates, per], [slotsBusy, busy]]) { samples.push(value); if (samples.length > KEPT) samples.shift(); }
    plot.hidden = !workers.length;
    fill(plot, h("section.panel", { "aria-label": "Attempts that ended" }, plotted("Attempts that ended", rates, perSecond)), h("section.panel", { "aria-label": "Slots busy" }, plotted("Slots busy", slotsBusy, count)));
    rate.textContent = workers.length ? `${count(busy)} of ${count(slots)} slots busy, ${per.toFixed(per < 10 ? 1 : 0)} attempts a second` : "";
    fill(body, workers.length ? h("div.panel.flush", h("div.scroll", { tabindex: "0", role: "region", "aria-label": "Workers" }, h("table.stack", h("thead", h("tr", ["Worker", "Pool", "State", "Busy", "Running", "Queues", "Since"].map((name) => h("th", name)))),
      h("tbody", workers.map((one) => h("tr", h("td.wide", h("b", one.name), h("div.soft.small", `${one.host}, process ${one.pid}${one.region ? `, ${one.region}` : ""}`)), h("td", one.pool),
        h("td", one.trouble ? [pill("failed"), h("div.bad.small.break", one.trouble)] : pill(one.draining ? "draining" : one.busy ? "busy" : "idle")),
        h("td", h("div.meter", { role: "meter", "aria-label": "Busy slots", "aria-valuenow": one.busy, "aria-valuemin": 0, "aria-valuemax": one.slots }, h("span", { "width%": (100 * one.busy) / Math.max(1, one.slots) })), h("span.small.soft", `${count(one.busy)} of ${count(one.slots)}`)),
        h("td", Object.entries(one.running).map(([task, n]) => h("span.tag", `${task} ${n > 1 ? `× ${n}` : ""}`))), h("td", one.queues.join(", ")), h("td.nowrap", when(one.started_at))))))))
      : h("div.panel", empty("No worker is alive", "Start some with ", h("code", "ziggurat worker"), ", or let ", h("code", "ziggurat up"), " scale them.")));
  });
}
