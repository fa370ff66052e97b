// The HTTP API, as the pages call it.

const BASE = "/api/v1";

export class Problem extends Error {
  constructor(status, type, message) {
    super(message);
    this.status = status;
    this.type = type;
  }
}

let csrf = "";
let onLoggedOut = () => {};
export const whenLoggedOut = (call) => { onLoggedOut = call; };
export const useToken = (token) => { csrf = token || ""; };

async function call(method, path, body, options = {}) {
  const headers = {};
  if (body !== undefined && !(body instanceof FormData)) headers["content-type"] = "application/json";
  if (method !== "GET" && csrf) headers["x-csrf-token"] = csrf;
  let answer;
  try {
    answer = await fetch(BASE + path, {
      method, headers, credentials: "same-origin", signal: options.signal,
      body: body === undefined ? undefined : body instanceof FormData ? body : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "Unreachable", "The server does not answer. What was recorded is safe; this page goes on when it is back.");
  }
  if (answer.status === 204) return null;
  const text = await answer.text();
  let json = null;
  try { json = JSON.parse(text); } catch { /* said below */ }
  if (answer.ok && json !== null) return json;
  const error = json && json.error;
  if (answer.status === 401 && !options.login) onLoggedOut();
  throw new Problem(answer.status, error ? error.type : "Unexpected", error ? error.message : `The server answered with status ${answer.status}.`);
}

export const get = (path, options) => call("GET", path, undefined, options);
export const post = (path, body = {}, options) => call("POST", path, body, options);
export const putJson = (path, body) => call("PUT", path, body);
export const del = (path) => call("DELETE", path);
export const part = encodeURIComponent;

/** A query string of what is set; arrays repeat their name. */
export function query(values) {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    if (Array.isArray(value)) for (const one of value) found.append(name, one);
    else if (value !== "" && value !== null && value !== undefined) found.append(name, value);
  }
  const text = found.toString();
  return text ? `?${text}` : "";
}

/**
 * Follow a run's stream. The browser resumes by itself with Last-Event-ID; `on` is called with (kind, data).
 * Returns a function that stops.
 */
export function follow(run, after, on) {
  const source = new EventSource(`${BASE}/runs/${part(run)}/events?after=${after}`);
  for (const kind of ["history", "step", "progress", "status", "end"]) {
    source.addEventListener(kind, (event) => {
      if (kind === "end") source.close();
      on(kind, JSON.parse(event.data));
    });
  }
  source.onerror = () => { if (source.readyState === EventSource.CLOSED) on("closed", {}); };
  return () => source.close();
}
