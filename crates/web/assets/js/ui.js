// What pages are made of: badges, times, tables, dialogs, buttons that say what goes on.

import { h, svg, put, toast } from "/js/dom.js";
import { ago, bytes, exact, consistency, CONSISTENCY, short } from "/js/format.js";

// Each state has a word, a colour and a shape of its own: no state is told by its colour alone.
const SHAPES = {
  good: "M3.5 8.5l3 3 6-7",
  warn: "M8 3v6M8 12v.6",
  bad: "M4 4l8 8M12 4l-8 8",
  wait: "M8 4.8V8l2.2 1.6M14.2 8A6.2 6.2 0 1 1 1.8 8a6.2 6.2 0 0 1 12.4 0",
  none: "M4 8h8",
  run: "M5.5 3.5l6 4.5-6 4.5z",
};
const STATES = {
  protected: ["good", "Protected"],
  late: ["warn", "Late"],
  failing: ["bad", "Failing"],
  never: ["bad", "Never backed up"],
  unscheduled: ["none", "No schedule"],
  queued: ["wait", "Queued"],
  running: ["run", "Running"],
  done: ["good", "Done"],
  warnings: ["warn", "Done, with warnings"],
  failed: ["bad", "Failed"],
  cancelled: ["none", "Cancelled"],
  interrupted: ["bad", "Interrupted"],
  missed: ["warn", "Missed"],
  stopped: ["none", "Stopped"],
  paused: ["wait", "Paused"],
  unknown: ["none", "Unknown"],
  up: ["good", "Up"],
  silent: ["bad", "Silent"],
  alone: ["none", "No agent"],
  booted: ["good", "Boot-verified"],
  whole: ["good", "Read whole"],
  unverified: ["none", "Not verified"],
  complete: ["good", "Complete"],
  incomplete: ["warn", "Incomplete"],
  enabled: ["good", "Enabled"],
  disabled: ["none", "Disabled"],
  refused: ["bad", "Refused"],
  forgotten: ["warn", "Forgotten"],
  ok: ["good", "OK"],
  warning: ["warn", "Warning"],
  error: ["bad", "Error"],
};

export function badge(state, { title } = {}) {
  const [kind, word] = STATES[state] ?? ["none", state];
  return h("span", { class: `badge ${kind}`, title },
    svg("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, svg("path", { d: SHAPES[kind] })), word);
}
export const kindOf = (state) => STATES[state]?.[0] ?? "none";
export const wordOf = (state) => STATES[state]?.[1] ?? state;

export const time = (text) => (text ? h("time", { class: "ago", datetime: text, title: exact(text) }, ago(text)) : "–");
export const promise = (word) => h("span", { title: CONSISTENCY[word]?.[1] }, consistency(word));
/** A name from outside: whatever directions its letters have, they turn nothing around it. */
export const name = (text) => h("bdi", {}, text);
export const vmPath = (text) => `/vms/${encodeURIComponent(text)}`;
export const vmLink = (text) => h("a", { href: vmPath(text) }, name(text));
export const snapshotLink = (id) => h("a", { class: "mono", href: `/snapshots/${id}`, title: id }, short(id));

/** What went wrong, and a way to try again. */
export function failure(error, again) {
  return h("div", { class: "failure", role: "alert" },
    h("h1", {}, error.status === 404 ? "Not found" : error.status === 403 ? "Not allowed" : "That did not work"),
    h("p", {}, error.message),
    again && h("p", {}, h("button", { type: "button", onclick: again }, "Try again"), " ", h("a", { href: "/" }, "Overview")));
}

/** An empty state: what is missing, and what to do first. */
export const empty = (title, ...what) => h("div", { class: "empty" }, h("h2", {}, title), ...what);

/** A command line to copy. */
export function shell(line) {
  const copy = h("button", { class: "quiet", type: "button", "aria-label": `Copy: ${line}`, onclick: async () => {
    await navigator.clipboard?.writeText(line).catch(() => {});
    toast("Copied");
  } }, "Copy");
  return h("div", { class: "shell" }, h("code", {}, line), copy);
}

export const heading = (title, ...tools) => h("div", { class: "heading" }, h("h1", {}, title), h("div", { class: "tools" }, ...tools));

/** A table whose rows become cards where it is narrow. Columns: {title, cell(row), class}. */
export function table(label, columns, rows, rowAttributes = () => ({})) {
  const head = h("tr", {}, columns.map((column) => h("th", { scope: "col", class: column.class }, column.hidden ? h("span", { class: "unseen" }, column.title) : column.title)));
  const body = h("tbody", {}, rows.map((row) => tableRow(columns, row, rowAttributes)));
  return h("table", {}, h("caption", { class: "unseen" }, label), h("thead", {}, head), body);
}

export const tableRow = (columns, row, rowAttributes = () => ({})) =>
  h("tr", rowAttributes(row), columns.map((column, index) => {
    const cell = column.cell(row);
    if (index === 0) return h("th", { scope: "row", class: column.class }, cell);
    // What is not there takes no line of a card.
    const kind = cell === "–" || cell === false ? `${column.class ?? ""} void` : column.class;
    return h("td", { class: kind, "data-label": column.hidden ? null : column.title }, cell);
  }));

/** "Show more" below a list that comes in parts. */
export function more(next, load) {
  if (!next) return null;
  const button = action("Show more", async () => {
    await load(next);
    box.remove();
  });
  const box = h("p", { class: "more" }, button);
  return box;
}

export const facts = (...pairs) =>
  h("dl", { class: "facts" }, pairs.filter(Boolean).map(([term, ...what]) => h("div", {}, h("dt", {}, term), h("dd", {}, ...what))));

/** A button that does something: busy while it does, and it says what went wrong. */
export function action(label, run, { kind = "", label: spoken, disabled } = {}) {
  const button = h("button", { type: "button", class: kind, "aria-label": spoken, disabled, onclick: async () => {
    button.disabled = true;
    button.setAttribute("aria-busy", "true");
    try {
      await run();
    } catch (error) {
      toast(error.message, "error");
    } finally {
      button.disabled = false;
      button.removeAttribute("aria-busy");
    }
  } }, label);
  return button;
}

/** A field of a form with its label, a hint, and its name. */
export function field(label, control, hint) {
  const id = `f-${control.name}`;
  control.id = id;
  if (hint) control.setAttribute("aria-describedby", `${id}-hint`);
  const isTick = control.type === "checkbox" || control.type === "radio";
  const text = h("label", { for: id }, label);
  return h("div", { class: isTick ? "field tick" : "field" }, isTick ? [control, text] : [text, control],
    hint && h("p", { class: "hint", id: `${id}-hint` }, hint));
}

export const select = (attributes, options, chosen) =>
  h("select", attributes, options.map(([value, text]) => h("option", { value, selected: value === chosen }, text)));

/** A dialog; `content(close)` makes what is in it. */
export function dialog(title, content) {
  const before = document.activeElement;
  const box = h("dialog", { "aria-labelledby": "dialog-title" });
  const close = () => box.close();
  put(box, h("div", { class: "heading" }, h("h2", { id: "dialog-title" }, title),
    h("button", { class: "quiet", type: "button", "aria-label": "Close", onclick: close }, "×")), content(close));
  box.addEventListener("close", () => {
    box.remove();
    before?.focus?.();
  });
  box.addEventListener("click", (event) => event.target === box && close());
  document.body.append(box);
  box.showModal();
  return box;
}

/** A form in a dialog: `send(data)` may throw, which is shown where the form is. */
export function formDialog(title, fields, label, send, kind = "primary") {
  return dialog(title, (close) => form(fields, label, async (data) => {
    await send(data);
    close();
  }, { cancel: close, kind }));
}

export function form(fields, label, send, { cancel, cancelLabel = "Cancel", kind = "primary" } = {}) {
  const problem = h("p", { class: "problem", role: "alert" });
  const button = h("button", { class: kind, type: "submit" }, label);
  return h("form", { onsubmit: async (event) => {
    event.preventDefault();
    put(problem);
    button.disabled = true;
    try {
      await send(new FormData(event.target));
    } catch (error) {
      put(problem, error.message);
    } finally {
      button.disabled = false;
    }
  } }, fields, problem, h("div", { class: "buttons" }, button, cancel && h("button", { type: "button", onclick: cancel }, cancelLabel)));
}

export const confirm = (title, text, label, run, kind = "danger") =>
  formDialog(title, h("p", {}, text), label, run, kind);

/** How far a job is. */
export function progress(job) {
  const now = job.progress;
  if (!now) return h("div", { class: "progress" }, h("progress", { "aria-label": "Progress" }), h("span", {}, job.state === "queued" ? "Waits for its turn" : "Begins"));
  const isBytes = (now.total ?? now.done) > 10000;
  const show = isBytes ? bytes : String;
  const attributes = { "aria-label": now.label || "Progress" };
  if (now.total) Object.assign(attributes, { max: now.total, value: Math.min(now.done, now.total) });
  const percent = now.total ? ` · ${Math.floor((100 * now.done) / now.total)} %` : "";
  return h("div", { class: "progress" }, h("progress", attributes),
    h("span", {}, `${now.label} · ${show(now.done)}${now.total ? ` of ${show(now.total)}` : ""}${percent}`));
}

/** A job as people would type it: what it is about first, and ids short. */
export function commandOf({ command, arguments: given }) {
  const at = given.indexOf("--");
  const words = at < 0 ? given : [...given.slice(at + 1), ...given.slice(0, at)];
  return [command, ...words.map((word) => (/^[0-9a-f]{64}$/.test(word) ? short(word) : word))].join(" ");
}
