// Schedules: when guests are backed up by themselves, what comes next, how the last runs went.

import { h, put, toast } from "/js/dom.js";
import { command, get, may } from "/js/api.js";
import { action, badge, confirm, empty, facts, field, formDialog, heading, name, select, table, time } from "/js/ui.js";
import { CONSISTENCY, consistency } from "/js/format.js";

export default async function schedules(context) {
  const { view, go, reload } = context;
  const { items } = await get("/schedules");
  const add = may("admin") && h("button", { class: "primary", type: "button", onclick: () => askAdd(reload) }, "Add a schedule…");
  put(view, heading("Schedules", add));
  if (!items.length) {
    view.append(empty("No schedules yet", h("p", {}, "A schedule backs guests up by itself. Begin with one for all guests, each night; guests that come later are in it too."),
      !may("admin") && h("p", { class: "dim" }, "Your token may not add schedules; that needs the scope admin.")));
    return;
  }
  for (const item of items) view.append(card(item, go, reload));
}

function card(item, go, reload) {
  const done = async (words, text) => {
    const job = await command(words, { name: item.name }, 60);
    if (job.error) throw new Error(job.error);
    toast(text);
    await reload();
  };
  const keep = Object.entries(item.spec.keep ?? {}).filter(([, number]) => number > 0 && number !== true).map(([what, number]) => `${number} ${what}`).join(", ");
  return h("section", { class: "card" },
    h("div", { class: "heading" }, h("h2", {}, name(item.name), " ", badge(item.enabled ? "enabled" : "disabled")), h("div", { class: "tools" },
      may("backup") && action("Run now", async () => go(`/jobs/${(await command("schedule run", { name: item.name })).id}`), { label: `Run now: ${item.name}` }),
      may("admin") && (item.enabled ? action("Disable", () => done("schedule disable", `${item.name} is disabled`), { label: `Disable ${item.name}` }) : action("Enable", () => done("schedule enable", `${item.name} is enabled`), { label: `Enable ${item.name}` })),
      may("admin") && h("button", { type: "button", "aria-label": `Remove ${item.name}`, onclick: () => confirm(`Remove ${item.name}?`, "It is followed no more. Snapshots stay.", "Remove", () => done("schedule remove", `${item.name} was removed`)) }, "Remove…"))),
    facts(["When", item.when], ["What", item.what], ["Promise", consistency(item.spec.consistency), item.spec.or_crash && " or crash"], ["Keeps", keep || "all snapshots"], item.host && ["Followed on", name(item.host)],
      ["Next", item.enabled && item.next.length ? item.next.map((due, index) => [index > 0 && ", ", time(due)]) : "–"]),
    item.last.length ? h("details", { open: item.last.some((run) => run.outcome && run.outcome !== "done") }, h("summary", {}, "Last runs"), table(`Last runs of ${item.name}`, [
      { title: "Due", cell: (run) => time(run.due_at) },
      { title: "Guest", cell: (run) => name(run.subject) },
      { title: "Outcome", cell: (run) => badge(run.outcome ?? "running") },
      { title: "Note", class: "wide", cell: (run) => (run.note ? name(run.note) : "–") },
    ], item.last)) : h("p", { class: "dim" }, "It has not run yet."));
}

function askAdd(reload) {
  const how = select({ name: "how" }, [["on", "At times of the calendar"], ["every", "Each time this long after the last"]], "on");
  const when = h("input", { name: "when", required: true, value: "*-*-* 02:00", autocomplete: "off", spellcheck: "false" });
  how.addEventListener("change", () => (when.value = how.value === "on" ? "*-*-* 02:00" : "6h"));
  formDialog("Add a schedule", [
    field("Name", h("input", { name: "name", required: true, value: "nightly", autocomplete: "off", autofocus: true })),
    field("When", how), field("Time", when, "A calendar event as systemd writes them, such as Mon..Fri 22:30; or a span such as 30m, 6h, 1d."),
    field("Guests", h("input", { name: "vms", placeholder: "all", autocomplete: "off" }), "Names with commas between, or group:NAME; empty: all, also those that come later."),
    field("Promise", select({ name: "consistency" }, Object.entries(CONSISTENCY).map(([word, [text]]) => [word, text]), "application")),
    field("Fall back to crash if the promise cannot be kept", h("input", { type: "checkbox", name: "or" })),
    h("fieldset", {}, h("legend", {}, "Snapshots that stay of each guest"), h("div", { class: "row" },
      ["daily", "weekly", "monthly"].map((what, index) => field(what, h("input", { type: "number", min: "0", max: "1000", name: `keep_${what}`, value: [7, 4, 6][index] }))))),
  ], "Add", async (data) => {
    const body = { name: data.get("name"), [data.get("how")]: data.get("when"), consistency: data.get("consistency") };
    const vms = data.get("vms").split(",").map((one) => one.trim()).filter(Boolean);
    const groups = vms.filter((one) => one.startsWith("group:")).map((one) => one.slice(6));
    if (groups.length && groups.length < vms.length) throw new Error("Names of guests, or groups: not both");
    if (groups.length) body.group = groups;
    else if (vms.length) body.vm = vms;
    else body.all = true;
    if (data.get("or")) body.or = "crash";
    for (const what of ["daily", "weekly", "monthly"]) if (Number(data.get(`keep_${what}`))) body[`keep_${what}`] = Number(data.get(`keep_${what}`));
    const job = await command("schedule add", body, 60);
    if (job.error) throw new Error(job.error);
    toast(`${body.name} was added`);
    await reload();
  });
}
