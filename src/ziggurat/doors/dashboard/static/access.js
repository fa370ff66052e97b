// API keys and the log of verbs.
import { del, get, part, post, query } from "./api.js";
import { ask, empty, field, fill, h, when } from "./dom.js";

export function accessPage({ main, me, act }) {
  const keys = h("div"), log = h("div"), more = h("div.more", { hidden: true });
  fill(main, h("div.head", h("div", h("h1", "Access"), h("p.lede", "Who may call, and what was asked for.")), h("div.actions", h("button.main", { type: "button", onclick: add }, "Make a key"))),
    h("h2", "API keys"), keys, h("h2", "Audit log"), log, more);
  async function drawKeys() {
    const found = (await get("/keys")).keys;
    fill(keys, found.length ? h("div.panel.flush", h("div.scroll", { tabindex: "0", role: "region", "aria-label": "API keys" }, h("table.stack", h("thead", h("tr", ["Name", "Role", "Namespace", "Made", "Used", "Ends", ""].map((name) => h("th", name)))),
      h("tbody", found.map((one) => h("tr", h("td.wide.break", one.name), h("td", one.role), h("td", one.namespace), h("td.nowrap", when(one.created_at)), h("td.nowrap", when(one.used_at)),
        h("td.nowrap", one.revoked_at ? ["revoked ", when(one.revoked_at)] : when(one.expires_at)), h("td", !one.revoked_at && h("button.danger.small", { type: "button", onclick: () => revoke(one) }, "Revoke"))))))))
      : h("div.panel", empty("No key yet", "On this machine nobody needs one; from elsewhere everybody does.")));
  }
  async function revoke(one) {
    if (await ask({ title: `Revoke ${one.name}?`, action: "Revoke", danger: true, body: h("p", "It is refused from now on, and its logins end.") })) act(() => del(`/keys/${part(one.id)}`), "Revoked").then(drawKeys);
  }
  async function add() {
    const name = h("input", { type: "text", maxlength: 100 }), role = h("select", ["viewer", "operator", "admin"].map((one) => h("option", { value: one }, one)));
    const namespace = h("input", { type: "text", value: me.namespace, disabled: me.namespace !== "*" });
    const made = await ask({ title: "Make a key", action: "Make it", body: h("div", field("Name", name), field("Role", role, "viewers look, operators act, admins also delete and make keys"), field("Namespace", namespace, "* for all of them")),
      collect: () => post("/keys", { name: name.value.trim(), role: role.value, namespace: namespace.value.trim() || null }) });
    if (!made) return;
    await drawKeys();
    await ask({ title: "The new key", action: "I have it", body: h("div", h("p", "It is shown this once; only a hash of it is kept."), h("pre.panel", made.key)) });
  }
  let before = null;
  const rows = h("tbody"), none = h("div.panel", { hidden: true }, empty("No verb yet", "Whatever is asked for over HTTP is written down here, refused verbs too."));
  async function page() {
    const found = await get(`/audit${query({ limit: 50, before })}`);
    for (const one of found.entries) rows.append(h("tr", h("td.nowrap", when(one.at)), h("td", one.actor), h("td", one.action), h("td.break", one.target), h("td.num", one.status ?? "–"), h("td.break.small", one.detail)));
    before = found.next;
    log.hidden = !rows.children.length;
    none.hidden = !log.hidden;
    more.hidden = before === null;
  }
  fill(log, h("div.panel.flush", h("div.scroll", { tabindex: "0", role: "region", "aria-label": "Audit log" }, h("table", h("thead", h("tr", ["When", "Who", "Verb", "Of", "Status", ""].map((name) => h("th", name)))), rows))));
  log.after(none);
  fill(more, h("button", { type: "button", onclick: () => act(page) }, "Show more"));
  act(drawKeys);
  act(page);
}
