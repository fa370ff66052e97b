// Messages that their queue gave up, and what to do with them.
import { get, part, post } from "./api.js";
import { ask, empty, fill, h, plural, when } from "./dom.js";
import { json } from "./json.js";

export function deadPage({ main, me, every, act }) {
  const body = h("div"), actions = h("div.actions");
  fill(main, h("div.head", h("div", h("h1", "Dead letters"), h("p.lede", "Messages that were given up after their last delivery. Their runs have failed; redriving takes them up again.")), actions), body);
  let drawn = "";
  async function refresh() {
    const { dead_letters: letters } = await get("/deadletters?limit=500");
    const mark = letters.map((one) => one.id).join("\n");
    if (mark === drawn && body.childElementCount) return;
    drawn = mark;
    const can = me.may("operator");
    const redrive = (order) => act(() => post("/deadletters/redrive", order), (done) => `${plural(done.count, "run")} taken up again`).then(refresh);
    const discard = async (order, what) => {
      if (await ask({ title: `Discard ${what}?`, action: "Discard", danger: true, body: h("p", "The runs stay failed.") })) act(() => post("/deadletters/discard", order), "Discarded").then(refresh);
    };
    fill(actions, can && letters.length > 1 && [h("button", { type: "button", onclick: () => redrive({ all: true }) }, "Redrive all"), h("button.danger", { type: "button", onclick: () => discard({ all: true }, `all ${letters.length}`) }, "Discard all")]);
    fill(body, letters.length ? letters.map((one) => h("article.panel", { "aria-label": one.id },
      h("div.head", h("div", h("h2", one.task), h("p.lede", one.workflow, " · ", h("a", { href: `#/runs/${part(one.run)}` }, one.run), ` · step ${one.step} · `, when(one.died_at))),
        can && h("div.actions", h("button.main", { type: "button", onclick: () => redrive({ ids: [one.id] }) }, "Redrive"), h("button.danger", { type: "button", onclick: () => discard({ ids: [one.id] }, "this one") }, "Discard"))),
      h("p.bad.break", one.reason), h("p.soft.small", `${plural(one.deliveries, "delivery", "deliveries")} from the queue ${one.queue}`),
      one.input !== null && h("details", h("summary", "Arguments"), json(one.input)))) : h("div.panel", empty("No dead letters", "Every message found a worker that could finish it.")));
  }
  every(4000, refresh);
}
