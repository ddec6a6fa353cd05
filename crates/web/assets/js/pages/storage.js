// The repository: how it grows, and its upkeep.

import { h, put } from "/js/dom.js";
import { command, get, look, may } from "/js/api.js";
import { bytes, count } from "/js/format.js";
import { action, empty, facts, field, formDialog, heading, name, select, table } from "/js/ui.js";
import { plot } from "/js/plot.js";

export default async function storage({ view, go, isShown }) {
  const days = await get("/growth");
  const start = async (words, body) => go(`/jobs/${(await command(words, body)).id}`);
  put(view, heading("Storage",
    may("backup") && h("button", { type: "button", onclick: () => askCheck(start) }, "Check…"),
    may("admin") && action("Prune: show what it would do", () => start("prune", { dry_run: true })),
    may("admin") && h("button", { type: "button", onclick: () => askPrune(start) }, "Prune…")));
  if (!days.length) view.append(empty("Nothing stored yet", h("p", {}, "Plots of how the repository grows appear with the first backup. ", h("a", { href: "/" }, "Back up a guest"))));
  else view.append(growth(days));
  const repos = h("section", {}, h("h2", {}, "Repositories"), h("p", { class: "loading" }, "Reading…"));
  view.append(repos);
  look("repo list", {}).then((list) => isShown() && put(repos, h("h2", {}, "Repositories"), table("Repositories", [
    { title: "Name", cell: (one) => name(one.name) },
    { title: "Place", class: "mono", cell: (one) => h("span", { class: "break" }, name(one.location)) },
  ], list)), (error) => isShown() && put(repos, h("h2", {}, "Repositories"), h("p", { class: "problem" }, error.message)));
}

function growth(days) {
  const chosen = days.slice(-365);
  const last = days.at(-1);
  const sum = (list, key) => list.reduce((total, day) => total + day[key], 0);
  const month = days.filter((day) => Date.now() - Date.parse(day.day) < 30 * 86400000);
  const all = sum(days, "bytes_read"), stored = last.total_stored;
  const at = (key, text) => chosen.map((day) => ({ time: Date.parse(day.day), value: day[key], title: `${day.day}: ${bytes(day[key])} ${text}` }));
  return h("div", {},
    facts(["Stored by all snapshots", h("b", {}, bytes(stored))], ["Of data read", bytes(all), stored > 0 && ` (${(all / stored).toFixed(1)} : 1)`], ["Last 30 days", `${bytes(sum(month, "bytes_stored"))} by ${count(sum(month, "snapshots"), "snapshot")}`]),
    h("div", { class: "columns" },
      h("figure", { class: "card" }, h("figcaption", {}, h("h2", {}, "Stored, in all")), plot(at("total_stored", "stored in all"), { kind: "line", label: `Stored bytes in all over ${count(chosen.length, "day")}; now ${bytes(stored)}` })),
      h("figure", { class: "card" }, h("figcaption", {}, h("h2", {}, "Stored each day")), plot(at("bytes_stored", "stored"), { label: `Stored bytes each day; the last, ${last.day}: ${bytes(last.bytes_stored)}` }))),
    h("details", {}, h("summary", {}, "The numbers"), table("Growth", [
      { title: "Day", cell: (day) => day.day }, { title: "Snapshots", class: "number", cell: (day) => day.snapshots }, { title: "Read", class: "number", cell: (day) => bytes(day.bytes_read) },
      { title: "New", class: "number", cell: (day) => bytes(day.bytes_new) }, { title: "Stored", class: "number", cell: (day) => bytes(day.bytes_stored) }, { title: "In all", class: "number", cell: (day) => bytes(day.total_stored) },
    ], days.toReversed().slice(0, 90))));
}

function askCheck(start) {
  const much = select({ name: "much" }, [["", "The structure only (fast)"], ["10%", "And a tenth of the data"], ["100%", "And all of the data (slow)"]], "");
  formDialog("Check the repository", field("How much is read", much), "Check", (data) => start("check", data.get("much") ? { read_data: data.get("much") } : {}));
}

function askPrune(start) {
  formDialog("Prune the repository", h("p", {}, "What no snapshot needs is removed, and its space is free. Snapshots are not touched."), "Prune", () => start("prune", {}));
}
