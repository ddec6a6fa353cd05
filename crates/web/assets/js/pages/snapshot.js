// Snapshots: the list of all, and one with what can be done with it.

import { h, put } from "/js/dom.js";
import { command, get, may } from "/js/api.js";
import { bytes, CONSISTENCY, consistency, short } from "/js/format.js";
import { action, badge, confirm, empty, facts, heading, more, name, promise, snapshotLink, table, time, vmLink } from "/js/ui.js";

const tools = (one) => [
  may("restore") && h("a", { class: "button", href: `/restore/${one.id}`, "aria-label": `Restore ${short(one.id)}` }, "Restore"), " ",
  h("a", { class: "button", href: `/snapshots/${one.id}/files`, "aria-label": `Files of ${short(one.id)}` }, "Files"),
];

/** Columns of a list of points in time. */
export const points = ({ withVm = false } = {}) => [
  { title: "Snapshot", cell: (one) => snapshotLink(one.id) },
  withVm && { title: "Guest", cell: (one) => vmLink(one.vm) },
  { title: "Time", cell: (one) => time(one.time) },
  { title: "Kept", cell: (one) => promise(one.consistency) },
  { title: "Memory", cell: (one) => (one.has_memory ? "yes" : "no") },
  { title: "Verified", cell: (one) => badge(one.verified ?? "unverified") },
  { title: "Read", class: "number", cell: (one) => bytes(one.bytes_read) },
  { title: "Stored", class: "number", cell: (one) => bytes(one.bytes_stored) },
  { title: "Actions", hidden: true, class: "end", cell: tools },
].filter(Boolean);

export async function snapshots({ view, query, go }) {
  const vm = query.get("vm") ?? "";
  const first = await get("/snapshots", { vm, limit: 100 });
  const filter = h("input", { type: "search", placeholder: "Guest", "aria-label": "Only of this guest", value: vm, onchange: (event) => {
    const wanted = event.target.value.trim();
    go(wanted ? `/snapshots?vm=${encodeURIComponent(wanted)}` : "/snapshots");
  } });
  put(view, heading("Snapshots"), await removals(go), h("div", { class: "bar" }, filter));
  if (!first.items.length) {
    view.append(vm ? empty("No snapshot of such a guest", h("p", {}, "Names must fit wholly."))
      : empty("No snapshots yet", h("p", {}, "Back up a guest from ", h("a", { href: "/" }, "its page"), ": each backup is a snapshot, a point in time to go back to.")));
    return;
  }
  const all = [...first.items];
  const list = h("div", {});
  const draw = (next) => put(list, table("Snapshots", points({ withVm: true }), all), more(next, async (cursor) => {
    const part = await get("/snapshots", { vm, limit: 200, cursor });
    all.push(...part.items);
    draw(part.next);
  }));
  draw(first.next);
  view.append(list);
}

/** What was forgotten and is still there; the first to go comes first. */
async function removals(go) {
  const [first, ...others] = await get("/deletions");
  if (!first) return null;
  const count = others.length + 1;
  return h("section", { class: "card" },
    h("p", {}, `${count} snapshot${count > 1 ? "s are" : " is"} to be removed; the first, `, snapshotLink(first.snapshot), ", ", time(first.removed_after), "."),
    may("backup") && h("p", {}, action("Keep all", async () => {
      await command("snapshot keep", { all: true }, 30);
      go("/snapshots");
    })));
}

export async function snapshot({ view, params, title, go }) {
  const one = await get(`/snapshots/${encodeURIComponent(params.id)}`);
  const removal = (await get("/deletions")).find((waiting) => waiting.snapshot === one.id);
  title(`${one.vm} ${short(one.id)}`);
  const start = async (words, body) => go(`/jobs/${(await command(words, body)).id}`);
  put(view,
    heading([name(one.vm), " ", h("span", { class: "mono dim" }, short(one.id))],
      may("restore") && h("a", { class: "button primary", href: `/restore/${one.id}` }, "Restore…"),
      h("a", { class: "button", href: `/snapshots/${one.id}/files` }, "Files"),
      may("backup") && action("Verify by boot", () => start("snapshot verify", { id: one.id, boot: true })),
      may("backup") && action("Verify by reading", () => start("snapshot verify", { id: one.id })),
      may("backup") && one.has_memory && action("Settle", () => start("settle", { id: one.id })),
      removal && may("backup") && action("Keep", async () => {
        await command("snapshot keep", { ids: [one.id] }, 30);
        go(`/snapshots/${one.id}`);
      }),
      !removal && may("admin") && h("button", { type: "button", onclick: () => askForget(one, start) }, "Forget…")),
    removal && h("p", { class: "lead" }, badge("forgotten"), " It is removed ", time(removal.removed_after), "."),
    h("p", { class: "lead" }, badge(one.verified ?? "unverified"), ` ${consistency(one.consistency)}. `, h("span", { class: "dim" }, CONSISTENCY[one.consistency]?.[1] ?? "")),
    h("div", { class: "columns" },
      h("section", { class: "card" }, h("h2", {}, "Point in time"), facts(
        ["Taken", time(one.time)], ["Guest", vmLink(one.vm)],
        ["Asked for", promise(one.consistency_asked)],
        one.pause_ms != null && ["Pause of the guest", `${one.pause_ms.toFixed(1)} ms`],
        ["Memory", one.has_memory ? "stored: the machine can go on from here" : "not stored"],
        one.parent && ["Follows", snapshotLink(one.parent)])),
      h("section", { class: "card" }, h("h2", {}, "Size"), facts(
        ["Read", bytes(one.bytes_read)], ["New", bytes(one.bytes_new)], ["Stored", bytes(one.bytes_stored)],
        ["Repository", h("span", { class: "mono" }, one.repository ? short(one.repository) : "–")], ["Id", h("span", { class: "mono break" }, one.id)]))),
    one.has_memory && h("p", { class: "dim" }, "Settle runs the stored machine in a twin, shuts it down cleanly, and stores disks that every application finds closed."),
    one.report && h("details", {}, h("summary", {}, "What the backup reported"), h("pre", { tabindex: "0" }, JSON.stringify(one.report, null, 2))));
}

function askForget(one, start) {
  confirm("Forget this snapshot?", `The point ${short(one.id)} of ${one.vm} cannot be restored any more, at once or when this host's deletion delay is over. Its space is free after a prune.`, "Forget",
    () => start("snapshot forget", { ids: [one.id] }));
}
