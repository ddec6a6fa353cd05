// A guest: is it protected, its points in time, and what can be done with each.

import { h, keepingFocus, put, toast } from "/js/dom.js";
import { command, follow, get, may } from "/js/api.js";
import { bytes, CONSISTENCY, consistency, count } from "/js/format.js";
import { badge, confirm, empty, facts, field, formDialog, heading, more, name, promise, select, table, time } from "/js/ui.js";
import { sparkline, timeLine } from "/js/plot.js";
import { points } from "/js/pages/snapshot.js";
import { jobColumns } from "/js/pages/jobs.js";

export default async function vm({ view, params, atEnd, isShown, go, title }) {
  const path = `/vms/${encodeURIComponent(params.name)}`;
  title(params.name);
  const load = () => Promise.all([get(path), get("/snapshots", { vm: params.name, limit: 100 }), get("/jobs", { vm: params.name, limit: 8 })]);
  const draw = ([guest, snapshots, jobs]) => put(view, page(go, guest, snapshots, jobs));
  draw(await load());
  let timer;
  const stop = follow("/events", { job: (job) => {
    if (job.vm !== params.name || (!job.ended_at && job.progress)) return;
    clearTimeout(timer);
    timer = setTimeout(async () => {
      const fresh = await load().catch(() => null);
      // What somebody is about to press stays where it is.
      if (fresh && isShown() && !document.querySelector("dialog")) keepingFocus(view, () => draw(fresh));
    }, 500);
  } });
  atEnd(() => (stop(), clearTimeout(timer)));
}

function page(go, guest, snapshots, jobs) {
  return [
    heading([name(guest.name), " ", badge(guest.state)],
      may("backup") && h("button", { class: "primary", type: "button", onclick: () => askBackUp(guest, go) }, "Back up…"),
      may("restore") && guest.state === "running" && h("button", { type: "button", onclick: () => askTwin(guest, go) }, "Start a twin…"),
      may("admin") && h("button", { type: "button", onclick: () => askRemove(guest, go) }, "Remove…")),
    h("p", { class: "lead" }, badge(guest.protection), " ", guest.reason),
    h("div", { class: "columns" }, protection(guest), machine(guest)),
    h("section", {}, h("h2", {}, "Points in time"), pointList(guest, snapshots, go)),
    h("section", {}, h("h2", {}, "Last jobs"), jobs.items.length
      ? [table("Jobs", jobColumns, jobs.items), jobs.next && h("p", { class: "more" }, h("a", { href: `/jobs?vm=${encodeURIComponent(guest.name)}` }, "All its jobs"))]
      : h("p", { class: "dim" }, "None yet.")),
  ];
}

function protection({ last_good: good, schedules, trend }) {
  const due = (one, index) => [index > 0 && ", ", h("a", { href: "/schedules" }, name(one.name)), one.next && [" (next ", time(one.next), ")"]];
  return h("section", { class: "card" }, h("h2", {}, "Protection"), facts(
    ["Last good backup", good ? h("a", { href: `/snapshots/${good.id}` }, time(good.time)) : "none"],
    good && ["Consistency kept", promise(good.consistency), good.consistency !== good.consistency_asked && ` (asked for: ${consistency(good.consistency_asked)})`],
    good && ["Verified", badge(good.verified ?? "unverified")],
    ["Schedules", schedules.length ? schedules.map(due) : ["none: ", h("a", { href: "/schedules" }, "add one")]],
    good && ["Stored by the last", `${bytes(good.bytes_stored)} of ${bytes(good.bytes_read)} read`],
    trend.length > 1 && ["Stored each time", sparkline(trend.map((one) => one.bytes_stored), `the last ${count(trend.length, "backup")}`)]));
}

function machine(guest) {
  const disk = (one) => h("li", {}, h("span", { class: "mono" }, name(one.disk_id)), ` ${bytes(one.size_bytes)} ${one.format} `,
    !one.included && h("b", {}, "not in backups "), h("span", { class: "dim mono break" }, name(one.address)));
  return h("section", { class: "card" }, h("h2", {}, "Machine"), facts(
    ["Reached by", `${guest.connection.kind} `, h("span", { class: "mono break" }, name(guest.connection.address))],
    guest.node && ["Node", name(guest.node)],
    ["Memory", bytes(guest.memory_bytes)],
    ["Disks", guest.disks.length ? h("ul", { class: "plain" }, guest.disks.map(disk)) : "none"]));
}

function pointList(guest, first, go) {
  if (!first.items.length) {
    return empty("No backup yet", h("p", {}, "Back it up once to see that it works, then give it a schedule."),
      may("backup") && h("p", {}, h("button", { class: "primary", type: "button", onclick: () => askBackUp(guest, go) }, "Back up…")));
  }
  const all = [...first.items];
  let shown = innerWidth < 820 ? 6 : 20;
  const line = h("div", {});
  const list = h("div", {});
  const draw = (next) => {
    put(line, timeLine(all.map((one) => ({ time: one.time, kind: one.verified === "failed" ? "bad" : one.consistency, title: `${consistency(one.consistency)}, ${bytes(one.bytes_stored)} stored`, href: `/snapshots/${one.id}` })),
      `${count(all.length, "point")} in time; the list below has them all`));
    // The line shows them all; the list begins with those of the last days.
    if (all.length > shown) return put(list, table("Points in time", points(), all.slice(0, shown)), more("here", () => ((shown = all.length), draw(next))));
    put(list, table("Points in time", points(), all), more(next, async (cursor) => {
      const part = await get("/snapshots", { vm: guest.name, limit: 200, cursor });
      all.push(...part.items);
      shown = all.length;
      draw(part.next);
    }));
  };
  draw(first.next);
  const kept = Object.keys(CONSISTENCY).filter((word) => all.some((one) => one.consistency === word));
  return [line, h("p", { class: "legend" }, kept.map((word) => h("span", {}, h("i", { class: `mark kept-${word}` }), consistency(word)))), list];
}

function askBackUp(guest, go) {
  const radios = Object.entries(CONSISTENCY).map(([word, [title, text]], index) =>
    h("div", { class: "field tick" }, h("input", { type: "radio", name: "consistency", value: word, id: `c-${word}`, checked: index === 0 }),
      h("label", { for: `c-${word}` }, h("b", {}, title), h("span", { class: "hint" }, text))));
  formDialog(`Back up ${guest.name}`, [h("fieldset", {}, h("legend", {}, "What the backup promises"), radios),
    field("Read everything, even where it is known what changed", h("input", { type: "checkbox", name: "full" }))], "Back up", async (data) => {
    const body = { vms: [guest.name], consistency: data.get("consistency") };
    if (data.get("full")) body.full = true;
    const job = await command("backup", body);
    await go(`/jobs/${job.id}`);
  });
}

function askTwin(guest, go) {
  const mode = select({ name: "mode" }, [["run", "Run it now, cut from the network"], ["standby", "Keep it ready, to take the guest's place when it fails"]], "run");
  formDialog(`Start a twin of ${guest.name}`, [h("p", {}, "A twin is a copy of the running machine of this instant. The guest is paused for milliseconds and goes on."),
    field("What for", mode), field("Name of the twin", h("input", { name: "name", placeholder: `${guest.name}-twin`, autocomplete: "off" }))], "Start the twin", async (data) => {
    const body = { vm: guest.name };
    if (data.get("mode") === "standby") body.standby = true;
    if (data.get("name")) body.name = data.get("name");
    const job = await command("twin start", body);
    await go(`/jobs/${job.id}`);
  });
}

function askRemove(guest, go) {
  confirm(`Remove ${guest.name}?`, "It is taken out of the table and no schedule backs it up any more. Its snapshots stay.", "Remove", async () => {
    const job = await command("vm remove", { name: guest.name }, 60);
    if (job.error) throw new Error(job.error);
    toast(`${guest.name} was removed`);
    await go("/");
  });
}
