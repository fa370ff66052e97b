// The frame: who is logged in, where we are, and the keys that go anywhere.
import { get, del, useToken, whenLoggedOut, post } from "./api.js";
import { ask, fill, h, toast } from "./dom.js";
import { runsPage } from "./runs.js";
import { runPage } from "./run.js";
import { startPage } from "./start.js";
import { inboxPage } from "./inbox.js";
import { queuesPage, workersPage } from "./system.js";
import { modelsPage } from "./models.js";
import { costsPage } from "./costs.js";
import { deadPage } from "./dead.js";
import { schedulesPage } from "./schedules.js";
import { accessPage } from "./access.js";

// name, title, key after g, page, who may see it.
const PAGES = [
  ["runs", "Runs", "r", runsPage],
  ["start", "Start", "n", startPage, (me) => me.may("operator")],
  ["inbox", "Inbox", "i", inboxPage],
  ["schedules", "Schedules", "s", schedulesPage],
  ["queues", "Queues", "q", queuesPage, (me) => me.whole],
  ["workers", "Workers", "w", workersPage, (me) => me.whole],
  ["models", "Models", "m", modelsPage, (me) => me.whole],
  ["costs", "Costs", "c", costsPage],
  ["dead", "Dead letters", "d", deadPage],
  ["access", "Access", "a", accessPage, (me) => me.may("admin")],
];
const ROLES = ["viewer", "operator", "admin"];

const shell = document.getElementById("shell");
let leave = null; // Ends what the page before had going on.
let main = null;
let me = null;
const badges = {};
let looking = false;

function begin(session) {
  useToken(session.csrf_token);
  me = {
    ...session, whole: session.whole_system,
    may: (role) => ROLES.indexOf(session.role) >= ROLES.indexOf(role),
  };
  const seen = PAGES.filter(([, , , , may]) => !may || may(me));
  main = h("main", { id: "main", tabindex: "-1" });
  fill(shell,
    h("div.frame",
      h("header.side",
        h("a.brand", { href: "#/runs", "aria-label": "Ziggurat, runs" }, h("img", { src: "/static/mark.svg", alt: "" }), h("span", "Ziggurat")),
        h("nav", { "aria-label": "Pages" }, seen.map(([name, title]) => {
          badges[name] = h("span.badge", { hidden: true });
          return h("a.item", { href: `#/${name}`, "data-page": name }, h("span", title), badges[name]);
        })),
        h("div.foot", h("div.who", `${me.name}, ${me.role}`, me.namespace !== "*" && h("div", `namespace ${me.namespace}`)),
          h("div.row", h("button.quiet.small", { type: "button", onclick: turnTheme, "aria-label": "Change between light and dark" }, "Theme"),
            h("button.quiet.small", { type: "button", onclick: showKeys, "aria-label": "Keys" }, "Keys"),
            me.via === "session" && h("button.quiet.small", { type: "button", onclick: logOut }, "Log out")))),
      main),
    h("div", { id: "toasts" }));
  go();
  // One look goes on for as long as the page is open, whoever logs in and out meanwhile.
  if (!looking) lookAround();
  looking = true;
}

function here() {
  const [path, rest] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...parts] = path.split("/");
  return { name: name || "runs", id: parts.map(decodeURIComponent).join("/"), params: new URLSearchParams(rest || "") };
}

function go() {
  if (!me) return;
  const { name, id, params } = here();
  if (leave) leave();
  const page = PAGES.find(([one, , , , may]) => one === name && (!may || may(me)));
  for (const item of shell.querySelectorAll("a.item")) {
    if (item.dataset.page === name) {
      item.setAttribute("aria-current", "page");
      item.scrollIntoView({ block: "nearest", inline: "center" });
    }
    else item.removeAttribute("aria-current");
  }
  const stops = [];
  const context = {
    main, me, id, params,
    /** Call when the page is left. */
    onLeave: (stop) => stops.push(stop),
    /** Call now, and every so many ms while the page is looked at. */
    every(ms, look) {
      let timer = null, gone = false, failed = false;
      const again = async () => {
        if (gone) return;
        if (!document.hidden) {
          try {
            await look();
            failed = false;
          } catch (error) {
            if (error.name !== "AbortError" && !failed) toast(error.message, true);
            failed = true;
          }
        }
        if (!gone) timer = setTimeout(again, failed ? Math.max(ms, 3000) : ms);
      };
      stops.push(() => { gone = true; clearTimeout(timer); });
      return again();
    },
    /** Do what a button asks for, and say how it went. */
    async act(what, said) {
      try {
        const done = await what();
        if (said) toast(typeof said === "function" ? said(done) : said);
        return done;
      } catch (error) {
        toast(error.message, true);
        return null;
      }
    },
  };
  leave = () => { for (const stop of stops) stop(); };
  const title = page ? page[1] : "Not found";
  document.title = `${id || title} · Ziggurat`;
  if (name === "runs" && id) runPage(context);
  else if (page) page[3](context);
  else fill(main, h("h1", "There is no such page"), h("p", h("a", { href: "#/runs" }, "All runs")));
}

/** What the navigation says of other pages: how many things wait for a person. */
async function lookAround() {
  const look = async () => {
    if (!document.hidden && me) {
      try {
        const [waiting, dead] = await Promise.all([get("/approvals?limit=100"), get("/deadletters?limit=100")]);
        for (const [name, n] of [["inbox", waiting.approvals.length], ["dead", dead.dead_letters.length]]) {
          badges[name].hidden = n === 0;
          badges[name].textContent = n >= 100 ? "99+" : n;
          badges[name].setAttribute("aria-label", `${n} waiting`);
        }
      } catch { /* The page itself says when the server is gone. */ }
    }
    setTimeout(look, 5000);
  };
  look();
}

// -- logging in -------------------------------------------------------------------------------------------------------

function logInPage() {
  if (leave) leave();
  leave = null;
  me = null;
  document.title = "Log in · Ziggurat";
  const key = h("input", { type: "password", id: "key", autocomplete: "current-password", required: true, spellcheck: "false" });
  const said = h("p.bad", { role: "alert" });
  const submit = async (event) => {
    event.preventDefault();
    try {
      said.textContent = "";
      begin(await post("/session", { key: key.value }, { login: true }));
    } catch (error) {
      said.textContent = error.message;
      key.select();
    }
  };
  fill(shell, h("main.login", { id: "main" }, h("form.panel", { onsubmit: submit },
    h("div.brand", h("img", { src: "/static/mark.svg", alt: "" }), h("h1", "Ziggurat")),
    h("div.field", h("label", { for: "key" }, "API key"), key, h("span.hint", "Made with `ziggurat keys create NAME --role operator`.")),
    said, h("button.main", { type: "submit" }, "Log in"))));
  key.focus();
}

async function logOut() {
  await del("/session");
  logInPage();
}

// -- theme and keys ---------------------------------------------------------------------------------------------------

function turnTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
}

function showKeys() {
  const rows = [["/", "search"], ["j  k", "next and previous row"], ["Enter", "open the row"], ["t", "light or dark"], ["?", "this list"],
    ...PAGES.filter(([, , , , may]) => !may || may(me)).map(([, title, key]) => [`g ${key}`, title.toLowerCase()])];
  ask({ title: "Keys", action: "Fine", body: h("dl.facts", rows.map(([keys, what]) => [h("dt", keys.split(/\s+/).map((key) => [h("kbd", key), " "])), h("dd", what)])) });
}

let pending = "", forget = 0;
addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select, dialog");
  if (!me || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (pending === "g") {
    pending = "";
    const page = PAGES.find(([, , key, , may]) => key === event.key && (!may || may(me)));
    if (page) { event.preventDefault(); location.hash = `#/${page[0]}`; }
    return;
  }
  const search = main.querySelector("input[type=search]");
  if (event.key === "g") { pending = "g"; clearTimeout(forget); forget = setTimeout(() => { pending = ""; }, 1500); }
  else if (event.key === "/" && search) { event.preventDefault(); search.focus(); }
  else if (event.key === "t") turnTheme();
  else if (event.key === "?") showKeys();
  else if (event.key === "j" || event.key === "k") {
    const rows = [...main.querySelectorAll("tr.link")];
    const at = rows.findIndex((row) => row.classList.contains("picked"));
    const next = rows[Math.max(0, Math.min(rows.length - 1, at + (event.key === "j" ? 1 : -1)))];
    if (next) {
      rows[at]?.classList.remove("picked");
      next.classList.add("picked");
      next.querySelector("a")?.focus();
      next.scrollIntoView({ block: "nearest" });
    }
  }
});

const theme = localStorage.getItem("theme");
if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
whenLoggedOut(() => { if (me) logInPage(); });
addEventListener("hashchange", () => { go(); main?.focus({ preventScroll: true }); scrollTo(0, 0); });
try {
  begin(await get("/session", { login: true }));
} catch (error) {
  if (error.status === 401) logInPage();
  else fill(shell, h("main.login", { id: "main" }, h("div.panel", h("h1", "Ziggurat"), h("p.bad", error.message), h("button", { onclick: () => location.reload() }, "Try again"))));
}
