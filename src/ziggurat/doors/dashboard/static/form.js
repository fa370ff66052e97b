// A form made of a JSON schema (draft 2020-12, as pydantic writes it). What it has no control for is written as JSON.
import { field, fill, h, newId } from "./dom.js";

/**
 * Make the controls of a schema. Returns {element, value}: `value()` returns what was filled in, undefined for what was left out,
 * and throws an Error that names the field otherwise. `given` fills the form.
 */
export function form(schema, given, label = "") {
  return control(schema || {}, schema || {}, given, label, true);
}

function resolved(schema, root) {
  let found = schema;
  for (let hops = 0; found && found.$ref && hops < 20; hops++) {
    const path = found.$ref.replace(/^#\//, "").split("/").map((p) => p.replace(/~1/g, "/").replace(/~0/g, "~"));
    const rest = { ...found };
    delete rest.$ref;
    found = { ...path.reduce((at, key) => (at ? at[key] : undefined), root), ...rest };
  }
  if (found && found.allOf && found.allOf.length === 1) found = { ...resolved(found.allOf[0], root), ...found, allOf: undefined };
  return found || {};
}

function control(schema, root, given, label, required, depth = 0) {
  let found = resolved(schema, root);
  let nullable = false;
  if (found.anyOf) {
    const kinds = found.anyOf.map((one) => resolved(one, root));
    const real = kinds.filter((one) => one.type !== "null");
    nullable = real.length < kinds.length;
    if (real.length === 1) found = { ...real[0], title: found.title || real[0].title, description: found.description || real[0].description, default: found.default };
    else return asJson(found, given, label, required);
  }
  const start = given !== undefined ? given : found.default;
  if (found.enum || found.const !== undefined) return choice(found, start, label, required && !nullable);
  if (found.type === "object" && found.properties && depth < 6) return object(found, root, start, label, depth);
  if (found.type === "array" && found.items && depth < 6) return list(found, root, start, label, depth);
  if (found.type === "boolean") return checkbox(found, start, label, nullable);
  if (found.type === "string") return text(found, start, label, required && !nullable, nullable);
  if (found.type === "number" || found.type === "integer") return number(found, start, label, required && !nullable, nullable);
  return asJson(found, start, label, required && !nullable);
}

const named = (schema, label) => label || schema.title || "Value";

function text(schema, start, label, required, nullable) {
  const long = !schema.format && (schema.maxLength === undefined || schema.maxLength > 200);
  const type = { "date-time": "datetime-local", date: "date", email: "email", uri: "url" }[schema.format] || "text";
  const input = long
    ? h("textarea", { rows: typeof start === "string" && start.length > 80 ? 6 : 2, value: start ?? "" })
    : h("input", { type, value: start ?? "" });
  const needed = required && schema.default === undefined;
  return {
    element: field(named(schema, label) + (needed ? "" : " (optional)"), input, schema.description),
    value() {
      if (input.value === "" && !needed) return start === "" ? "" : nullable && start === null ? null : undefined;
      if (input.value === "" && schema.minLength) throw new Error(`${named(schema, label)} is missing.`);
      return type === "datetime-local" ? new Date(input.value).toISOString() : input.value;
    },
  };
}

function number(schema, start, label, required, nullable) {
  const input = h("input", { type: "number", step: schema.type === "integer" ? "1" : "any", min: schema.minimum, max: schema.maximum, value: start ?? "" });
  return {
    element: field(named(schema, label) + (required && schema.default === undefined ? "" : " (optional)"), input, schema.description),
    value() {
      if (input.value === "") {
        if (required && schema.default === undefined) throw new Error(`${named(schema, label)} is missing.`);
        return nullable && start === null ? null : undefined;
      }
      const found = Number(input.value);
      if (!Number.isFinite(found)) throw new Error(`${named(schema, label)} must be a number.`);
      if (schema.type === "integer" && !Number.isInteger(found)) throw new Error(`${named(schema, label)} must be a whole number.`);
      return found;
    },
  };
}

function checkbox(schema, start, label) {
  const id = newId();
  const input = h("input", { type: "checkbox", id, checked: start === true });
  return {
    element: h("div.field", h("div.check", input, h("label", { for: id }, named(schema, label))), schema.description && h("span.hint", schema.description)),
    value: () => input.checked,
  };
}

function choice(schema, start, label, required) {
  const values = schema.enum || [schema.const];
  const select = h("select", !required && h("option", { value: "" }, "—"), values.map((one, index) => h("option", { value: String(index), selected: one === start }, String(one))));
  return {
    element: field(named(schema, label), select, schema.description),
    value: () => (select.value === "" ? undefined : values[Number(select.value)]),
  };
}

function object(schema, root, start, label, depth) {
  const required = new Set(schema.required || []);
  const parts = Object.entries(schema.properties).map(([name, one]) => {
    const made = control(one, root, start ? start[name] : undefined, name, required.has(name), depth + 1);
    return [name, made];
  });
  const inside = parts.map(([, made]) => made.element);
  return {
    element: depth ? h("fieldset", h("legend", named(schema, label)), schema.description && h("p.hint.soft.small", schema.description), inside) : h("div", inside),
    value() {
      const found = {};
      for (const [name, made] of parts) {
        const value = made.value();
        if (value !== undefined) found[name] = value;
      }
      return found;
    },
  };
}

function list(schema, root, start, label, depth) {
  const items = [];
  const rows = h("div");
  const draw = () => fill(rows, items.map((item) => h("div.field", item.element,
    h("div", h("button.quiet.small", { type: "button", onclick: () => { items.splice(items.indexOf(item), 1); draw(); } }, "Remove")))));
  const add = (value) => items.push(control(schema.items, root, value, `${named(schema, label)} ${items.length + 1}`, true, depth + 1));
  for (const one of Array.isArray(start) ? start : []) add(one);
  draw();
  return {
    element: h("fieldset", h("legend", named(schema, label)), schema.description && h("p.soft.small", schema.description), rows,
      h("div.field", h("div", h("button", { type: "button", onclick: () => { add(undefined); draw(); } }, "Add one")))),
    value: () => items.map((item) => item.value()).filter((one) => one !== undefined),
  };
}

function asJson(schema, start, label, required) {
  const area = h("textarea", { rows: 4, spellcheck: "false", value: start === undefined ? "" : JSON.stringify(start, null, 2) });
  return {
    element: field(`${named(schema, label)} (JSON)`, area, schema.description),
    value() {
      if (area.value.trim() === "") {
        if (required && schema.default === undefined && Object.keys(schema).length) throw new Error(`${named(schema, label)} is missing.`);
        return undefined;
      }
      return parsed(area.value, named(schema, label));
    },
  };
}

/** Parse JSON that a person wrote, or say where it goes wrong. */
export function parsed(text, what) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${what} is not valid JSON: ${error.message}`);
  }
}
