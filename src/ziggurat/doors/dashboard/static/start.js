// Start a run from a form made of the workflow's input, or one run for each dropped file.
import { get, part, post, query } from "./api.js";
import { count, empty, field, fill, h, pill, plural, toast } from "./dom.js";
import { form, parsed } from "./form.js";

export async function startPage({ main, params, act }) {
  fill(main, h("div.head", h("h1", "Start a run")));
  const found = await act(() => get("/workflows"));
  if (!found) return;
  if (!found.workflows.length) {
    main.append(h("div.panel", empty("No workflow is known here", "Name the modules that define them in ", h("code", "[app] modules"), " of ziggurat.toml.")));
    return;
  }
  const select = h("select", found.workflows.map(({ name }) => h("option", { value: name, selected: name === params.get("workflow") }, name)));
  const place = h("div");
  main.append(h("div.panel", field("Workflow", select)), place);
  const draw = () => {
    history.replaceState(null, "", `#/start${query({ workflow: select.value })}`);
    const workflow = found.workflows.find((one) => one.name === select.value);
    fill(place, one(workflow, act));
  };
  select.addEventListener("change", draw);
  draw();
}

function one(workflow, act) {
  const takesFiles = workflow.file_parameters.length > 0;
  return h("div", workflow.description && h("p.soft", workflow.description), takesFiles ? files(workflow, act) : byForm(workflow, act));
}

function byForm(workflow, act) {
  const schema = workflow.input_schema;
  const made = schema && schema.properties ? form(schema) : null;
  const raw = h("textarea", { rows: 8, spellcheck: "false", value: "{}", "aria-label": "Input as JSON" });
  const id = h("input", { type: "text", maxlength: 200, pattern: "[A-Za-z0-9._~:@+=\\-]*" });
  const tags = h("input", { type: "text", placeholder: "team=night" });
  const budget = h("input", { type: "text", placeholder: workflow.budget_usd ? `$${workflow.budget_usd}` : "$0.05" });
  const said = h("p.bad", { role: "alert" });
  const submit = async (event) => {
    event.preventDefault();
    said.textContent = "";
    try {
      const input = made ? made.value() : parsed(raw.value, "The input");
      const order = { workflow: workflow.name, input, id: id.value.trim(), tags: tagsOf(tags.value) };
      if (budget.value.trim()) order.budget = budget.value.trim();
      const run = await post("/runs", order);
      location.hash = `#/runs/${part(run.id)}`;
    } catch (error) {
      said.textContent = error.message;
    }
  };
  return h("form.panel", { onsubmit: submit }, h("h2", "Input"),
    made ? (Object.keys(schema.properties).length ? made.element : h("p.soft", "It takes no input.")) : raw,
    h("details", h("summary", "Id, tags, budget"), h("div.field"), field("Id", id, "Starting an id twice starts once."), field("Tags", tags, "key=value, separated by spaces."), field("Budget", budget, "What the run may spend on models.")),
    said, h("button.main", { type: "submit" }, "Start"));
}

function files(workflow, act) {
  const picker = h("input", { type: "file", multiple: true, class: "visually-hidden", "aria-label": "Files", onchange: () => send([...picker.files]) });
  // What else it takes is filled in once, and goes to every run.
  const { properties = {}, required = [], ...rest } = workflow.input_schema;
  const others = Object.fromEntries(Object.entries(properties).filter(([name]) => name !== workflow.file_parameters[0]));
  const made = Object.keys(others).length ? form({ ...rest, type: "object", properties: others, required: required.filter((name) => name in others) }) : null;
  const progress = h("p.soft", { role: "status" });
  const list = h("div");
  const drop = h("div.drop", {
    ondragover: (event) => { event.preventDefault(); drop.classList.add("over"); },
    ondragleave: () => drop.classList.remove("over"),
    ondrop: (event) => { event.preventDefault(); drop.classList.remove("over"); send([...event.dataTransfer.files]); },
  }, h("p", "Drop files here; each starts a run."), picker, h("button", { type: "button", onclick: () => picker.click() }, "Choose files"), progress);
  // Sent in parts, so that a thousand files show how far they are, under one batch: a part that is sent again starts nothing twice.
  async function send(chosen) {
    if (!chosen.length) return;
    let input = null;
    try {
      input = made && made.value();
    } catch (error) {
      toast(error.message, true);
      return;
    }
    const batch = `${workflow.name}-${Date.now().toString(36)}${Math.floor(Math.random() * 1e6).toString(36)}`.replace(/[^A-Za-z0-9._~:@+=-]/g, "-");
    const all = [];
    for (let at = 0; at < chosen.length; at += 10) {
      progress.textContent = `${count(at)} of ${plural(chosen.length, "file")} sent`;
      const body = new FormData();
      if (input) body.append("input", JSON.stringify(input));
      for (const file of chosen.slice(at, at + 10)) body.append("files", file, file.name);
      const answer = await act(() => post(`/workflows/${part(workflow.name)}/files${query({ batch, parameter: workflow.file_parameters[0] })}`, body));
      if (!answer) { progress.textContent = `Stopped after ${count(at)} of ${plural(chosen.length, "file")}; what was sent goes on.`; break; }
      all.push(...answer.files);
      draw(all);
      progress.textContent = `${plural(all.length, "file")} sent`;
    }
    picker.value = "";
    const refused = all.filter((one) => one.error).length;
    if (all.length) toast(`${plural(all.length - refused, "run")} started${refused ? `, ${count(refused)} refused` : ""}`, refused > 0);
  }
  const draw = (all) => fill(list, h("div.scroll", { tabindex: "0", role: "region", "aria-label": "Uploaded files" }, h("table", h("thead", h("tr", h("th", "File"), h("th", "Run"), h("th", ""))),
    h("tbody", all.map((one) => h("tr", h("td.break", one.file), h("td", one.run ? h("a", { href: `#/runs/${part(one.run)}` }, one.run) : h("span.bad", one.error)), h("td", one.run && pill(one.status))))))));
  return h("div.panel", made && [h("h2", "Input of every run"), made.element], h("h2", "Files"), drop, list);
}

function tagsOf(text) {
  const tags = {};
  for (const one of text.trim().split(/\s+/).filter(Boolean)) {
    const [key, ...value] = one.split("=");
    if (!key || !value.length) throw new Error(`The tag ${one} must be written as key=value.`);
    tags[key] = value.join("=");
  }
  return tags;
}
