// What waits for a person: a form for the value of each signal, and all that is known to decide on it.
import { get, part, post } from "./api.js";
import { empty, fill, h, when } from "./dom.js";
import { form } from "./form.js";
import { json } from "./json.js";

export function inboxPage({ main, me, every, act }) {
  const list = h("div");
  fill(main, h("div.head", h("div", h("h1", "Inbox"), h("p.lede", "Runs that wait for somebody's word."))), list);
  const known = new Map();
  every(3000, async () => {
    const { approvals } = await get("/approvals?limit=100");
    const keys = approvals.map((one) => `${one.run}/${one.step}`);
    for (const key of known.keys()) if (!keys.includes(key)) { known.get(key).remove(); known.delete(key); }
    approvals.forEach((one, index) => {
      if (!known.has(keys[index])) known.set(keys[index], card(one));
      const element = known.get(keys[index]);
      // A form that somebody is filling in is left where it is.
      if (list.children[index] !== element && !element.contains(document.activeElement)) list.insertBefore(element, list.children[index] || null);
    });
    if (!approvals.length) fill(list, h("div.panel", empty("Nothing waits for you", "Runs that call ", h("code", "signal()"), " show up here.")));
    else list.querySelector(".empty")?.parentElement.remove();
  });

  function card(one) {
    const made = form(Object.keys(one.value_schema).length ? one.value_schema : {}, undefined, one.value_schema.title || "Answer");
    const said = h("p.bad", { role: "alert" });
    const key = crypto.randomUUID();
    const submit = async (event) => {
      event.preventDefault();
      said.textContent = "";
      try {
        const value = made.value();
        const done = await act(() => post(`/runs/${part(one.run)}/signal`, { name: one.signal, value: value === undefined ? null : value, signal_id: key }), `Sent to ${one.run}`);
        if (done) element.remove();
      } catch (error) {
        said.textContent = error.message;
      }
    };
    const element = h("article.panel", { "aria-label": `${one.signal} of ${one.run}` },
      h("div.head", h("div", h("h2", one.signal), h("p.lede", one.workflow, " · ", h("a", { href: `#/runs/${part(one.run)}` }, one.run), " · waiting since ", when(one.since)))),
      h("div.split", h("div", h("h3", "What it knows"), one.state !== null && json(one.state), h("details", { open: one.state === null }, h("summary", "Input"), json(one.input))),
        me.may("operator") ? h("form", { onsubmit: submit }, made.element, said, h("button.main", { type: "submit" }, "Send")) : h("p.soft", "Answering needs the role operator.")));
    return element;
  }
}
