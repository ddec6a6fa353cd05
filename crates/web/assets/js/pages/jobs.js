// Jobs: the list, and one with its progress and log as they come.

import { announce, h, put } from "/js/dom.js";
import { follow, get, may, post } from "/js/api.js";
import { bytes, consistency, took } from "/js/format.js";
import { action, badge, commandOf, empty, facts, heading, more, name, progress, select, snapshotLink, table, tableRow, time, vmLink, wordOf } from "/js/ui.js";

export const jobColumns = [
  { title: "Job", cell: (job) => h("a", { href: `/jobs/${job.id}` }, name(commandOf(job))) },
  { title: "State", cell: (job) => [badge(job.state), job.state === "running" && job.progress && progress(job)] },
  { title: "By", cell: (job) => name(job.by) },
  { title: "Asked", cell: (job) => time(job.created_at) },
  { title: "Took", class: "number", cell: (job) => (job.started_at ? took(job.started_at, job.ended_at) : "–") },
  { title: "Why", class: "wide", cell: (job) => (job.error ? h("span", { class: "reason", title: job.error }, job.error.split("\n")[0]) : "–") },
];
const STATES = ["", "running", "queued", "failed", "warnings", "done", "cancelled", "interrupted"];

export async function jobs({ view, query, atEnd, isShown, go }) {
  const state = query.get("state") ?? "", vm = query.get("vm") ?? "";
  const first = await get("/jobs", { state, vm, limit: 50 });
  const rows = new Map();
  const body = h("tbody", {});
  const add = (job, isNew) => {
    const row = tableRow(jobColumns, job), old = rows.get(job.id);
    if (old) old.replaceWith(row);
    else if (isNew) body.prepend(row);
    else body.append(row);
    rows.set(job.id, row);
  };
  for (const job of first.items) add(job);
  const whole = table("Jobs", jobColumns, []);
  whole.querySelector("tbody").replaceWith(body);
  const list = h("div", {});
  const none = () => (state || vm ? empty("No such job", h("p", {}, "Choose all states and no guest to see the others."))
    : empty("No jobs yet", h("p", {}, "Back up a guest from ", h("a", { href: "/" }, "its page"), ", or let a schedule do it: each run appears here.")));
  const draw = () => put(list, rows.size ? whole : none());
  const turn = (change) => {
    const fields = Object.entries({ state, vm, ...change }).filter(([, value]) => value);
    go(`/jobs${fields.length ? `?${new URLSearchParams(fields)}` : ""}`);
  };
  draw();
  put(view, heading("Jobs"), h("div", { class: "bar" },
    select({ name: "state", "aria-label": "Only in this state", onchange: (event) => turn({ state: event.target.value }) }, STATES.map((word) => [word, word ? wordOf(word) : "All states"]), state),
    h("input", { type: "search", placeholder: "Guest", "aria-label": "Only of this guest", value: vm, onchange: (event) => turn({ vm: event.target.value.trim() }) })), list);
  const next = (cursor) => {
    const button = more(cursor, async (from) => {
      const part = await get("/jobs", { state, vm, limit: 100, cursor: from });
      for (const job of part.items) add(job);
      next(part.next);
    });
    if (button) view.append(button);
  };
  next(first.next);
  const fits = (job) => (!state || job.state === state) && (!vm || job.vm === vm);
  atEnd(follow("/events", { job: (job) => {
    if (!isShown() || (!rows.has(job.id) && !fits(job))) return;
    add(job, true);
    if (rows.size === 1) draw();
  } }));
}

/** Lines of a log that stay on the page. */
const MOST_LINES = 5000;

export async function job({ view, params, atEnd, isShown, title }) {
  let now = await get(`/jobs/${encodeURIComponent(params.id)}`);
  title(commandOf(now));
  const state = h("div", { class: "state" });
  const tools = h("div", { class: "tools" });
  const details = h("section", { class: "card" });
  const result = h("div", {});
  const log = h("div", { class: "log", tabindex: "0", role: "log", "aria-label": "Log" });
  const lost = h("p", { class: "dim", hidden: true }, "The connection was lost; trying again…");
  put(view, h("div", { class: "heading" }, h("h1", {}, name(commandOf(now))), tools), state, h("div", { class: "columns" }, details, result), h("section", {}, h("h2", {}, "Log"), lost, log));

  const live = () => {
    put(state, badge(now.state), !now.ended_at && progress(now));
    put(details, h("h2", {}, "Job"), facts(now.vm && ["Guest", vmLink(now.vm)], ["By", name(now.by)], ["Asked", time(now.created_at)],
      ["Took", now.started_at ? took(now.started_at, now.ended_at) : "–"], now.exit_code != null && ["Exit code", String(now.exit_code)]));
  };
  const draw = () => {
    live();
    put(tools, !now.ended_at && may("backup") && action("Cancel", () => post(`/jobs/${now.id}/cancel`)),
      now.ended_at && now.vm && h("a", { class: "button", href: `/vms/${encodeURIComponent(now.vm)}` }, "Go to the guest"));
    put(result, now.error && h("section", { class: `failure ${now.state === "warnings" ? "warn" : ""}` }, h("h2", {}, now.state === "warnings" ? "Warnings" : "Why it failed"), h("p", { class: "said" }, now.error)),
      (now.result != null || now.text) && outcome(now));
  };
  const say = (line) => {
    const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 30;
    log.append(h("div", { class: /^error/.test(line) ? "bad" : /^warning/.test(line) ? "warn" : null }, line));
    if (log.childElementCount > MOST_LINES) log.firstElementChild.remove();
    if (isAtEnd) log.scrollTop = log.scrollHeight;
  };
  for (const line of now.log ?? []) say(line);
  draw();
  if (now.ended_at) return;
  const clock = setInterval(() => now.ended_at || live(), 1000);
  const stop = follow(`/jobs/${now.id}/events`, {
    // Each connection begins with the whole log.
    open: () => (put(log), (lost.hidden = true)),
    lost: () => (lost.hidden = !!now.ended_at),
    log: ({ line }) => say(line),
    job: async (job) => {
      const wasAs = now.state;
      now = { ...now, ...job };
      if (now.state === wasAs) return live();
      draw();
      if (!job.ended_at) return;
      stop();
      lost.hidden = true;
      announce(`${commandOf(now)}: ${wordOf(now.state)}`);
      // What it printed is told only by the whole document.
      now = await get(`/jobs/${now.id}`).catch(() => now);
      if (isShown()) draw();
    },
  });
  atEnd(() => (clearInterval(clock), stop()));
}

/** What a command's document says, by what the command is. */
function outcome({ command, result, text }) {
  const rows = Array.isArray(result) ? result : [result];
  const raw = h("details", {}, h("summary", {}, "The whole report"), h("pre", { tabindex: "0" }, JSON.stringify(result, null, 2)));
  const said = !OUTCOMES[command] && text && h("pre", { tabindex: "0" }, text);
  const of = OUTCOMES[command];
  return h("section", { class: "card" }, h("h2", {}, "Result"), of && rows.filter((row) => row && typeof row === "object").map(of), said, result != null && raw);
}

const backupOf = (report) => report.snapshot && facts(
  ["Snapshot", snapshotLink(report.snapshot), " ", h("a", { href: `/restore/${report.snapshot}` }, "Restore"), " · ", h("a", { href: `/snapshots/${report.snapshot}/files` }, "Files")],
  report.vm && ["Guest", vmLink(report.vm)],
  report.pause_ms != null && ["Pause of the guest", `${report.pause_ms.toFixed(1)} ms`],
  report.consistency && ["Consistency kept", consistency(report.consistency)],
  ["Stored", `${bytes(report.bytes_stored)} of ${bytes(report.bytes_read)} read`],
  report.warnings?.length && ["Warnings", report.warnings.join("; ")]);

const restoreOf = (report) => report.dir && facts(
  ["Folder", h("span", { class: "mono break" }, name(report.dir))],
  ...(report.disks ?? []).map((disk) => [`Disk ${disk.id}`, h("span", { class: "mono break" }, name(disk.path)), ` ${bytes(disk.written_bytes)} of ${bytes(disk.size_bytes)} written`]),
  report.running && ["Machine", `process ${report.running.pid}, ${report.running.run_state}`],
  report.warnings?.length && ["Warnings", report.warnings.join("; ")]);

const OUTCOMES = { backup: backupOf, settle: backupOf, restore: restoreOf };
