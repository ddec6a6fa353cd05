// The HTTP API: requests, errors, events. The session is a cookie that no script reads; what changes
// something also needs the word that came with it.

export class ApiError extends Error {
  constructor(status, problem) {
    super(problem?.detail || problem?.title || `the server answered with ${status}`);
    this.status = status;
  }
}

let session = null;
let onLoggedOut = () => {};
export const me = () => session;
export const whenLoggedOut = (then) => (onLoggedOut = then);

const ORDER = ["view", "backup", "restore", "admin"];
/** Whether who is logged in may do what needs this scope. */
export const may = (scope) => !!session && ORDER.indexOf(session.scope) >= ORDER.indexOf(scope);

async function ask(method, path, body, headers = {}) {
  const options = { method, headers: { accept: "application/json", ...headers } };
  if (method !== "GET" && session) options.headers["x-csrf-token"] = session.csrf;
  if (body !== undefined) {
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(`/api/v1${path}`, options);
  } catch {
    throw new ApiError(0, { detail: "vmtwin serve cannot be reached; is it running?" });
  }
  const text = await answer.text();
  let document = null;
  try {
    document = text ? JSON.parse(text) : null;
  } catch { /* not JSON: the status says enough */ }
  if (answer.ok) return document;
  if (answer.status === 401 && session && path !== "/session") {
    session = null;
    onLoggedOut();
  }
  throw new ApiError(answer.status, document);
}

const query = (fields) => {
  const given = Object.entries(fields ?? {}).filter(([, value]) => value != null && value !== "");
  return given.length ? `?${new URLSearchParams(given)}` : "";
};

export const get = (path, fields) => ask("GET", path + query(fields));
export const post = (path, body) => ask("POST", path, body);
export const remove = (path) => ask("DELETE", path);

/** Asks for a command. What only looks answers with its result; else a job was begun. */
export const command = (words, body = {}, wait) =>
  ask("POST", `/commands/${words.replaceAll(" ", "/")}${query({ wait })}`, body, { "idempotency-key": key() });

/** A look: its result, or the error that the command ended with. */
export async function look(words, body) {
  const job = await command(words, body);
  if (job.error) throw new ApiError(422, { detail: job.error });
  return job.result;
}

// A key for each press: a request that the network repeats starts nothing twice.
const key = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export async function resume() {
  try {
    session = await get("/session");
  } catch (error) {
    if (error.status !== 401) throw error;
    session = null;
  }
  return session;
}

export const logIn = async (token) => (session = await post("/session", { token }));

export async function logOut() {
  await remove("/session");
  session = null;
}

/** Follows events until `stop` is called; browsers connect again by themselves, we do where they give up. */
export function follow(path, handlers) {
  let source, timer, wait = 1000, stopped = false;
  const open = () => {
    source = new EventSource(`/api/v1${path}`);
    source.onopen = () => ((wait = 1000), handlers.open?.());
    for (const [name, handler] of Object.entries(handlers)) {
      if (name === "open" || name === "lost") continue;
      source.addEventListener(name, (event) => {
        if (!stopped) handler(JSON.parse(event.data));
      });
    }
    source.onerror = () => {
      if (stopped) return;
      handlers.lost?.();
      if (source.readyState !== EventSource.CLOSED) return;
      timer = setTimeout(open, wait);
      wait = Math.min(wait * 2, 30000);
    };
  };
  open();
  return () => {
    stopped = true;
    clearTimeout(timer);
    source.close();
  };
}
