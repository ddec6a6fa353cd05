// Is everything protected? One line for each guest, what needs somebody first.

import { h, keepingFocus, put, toast } from "/js/dom.js";
import { command, follow, get, may } from "/js/api.js";
import { bytes, count, span } from "/js/format.js";
import { action, badge, confirm, empty, field, formDialog, heading, name, promise, shell, table, time, vmLink, select } from "/js/ui.js";
import { sparkline } from "/js/plot.js";

const ORDER = ["failing", "never", "late", "unscheduled", "protected"];

export default async function overview({ view, atEnd, isShown, go }) {
  let data = await get("/overview");
  let chosen = null;
  if (!data.guests.length) return firstSteps(view, go, data);

  const filter = h("input", { type: "search", placeholder: "Filter guests", "aria-label": "Filter guests", oninput: () => rows() });
  const answer = h("div", { class: "answer" });
  const chips = h("div", { class: "chips", role: "group", "aria-label": "Show only" });
  const list = h("div", { class: "list" });
  const foot = h("p", { class: "dim" });
  put(view, heading("Overview",
    may("backup") && h("button", { type: "button", onclick: () => askAll(data.guests, go) }, "Back up all…"),
    may("admin") && h("button", { type: "button", onclick: () => addGuest(go) }, "Add a guest…")), answer,
    h("div", { class: "bar" }, chips, filter), list, foot);

  const draw = () => {
    put(answer, ...verdict(data));
    put(chips, ORDER.filter((word) => data.counts[word]).map((word) =>
      h("button", { type: "button", class: "chip", "data-word": word, "aria-pressed": String(chosen === word), onclick: () => {
        chosen = chosen === word ? null : word;
        draw();
        chips.querySelector(`[data-word=${word}]`)?.focus();
      } }, badge(word), h("b", {}, data.counts[word]))));
    rows();
  };
  const rows = () => {
    const wanted = filter.value.trim().toLowerCase();
    const shown = data.guests
      .filter((guest) => (!chosen || guest.protection === chosen) && [guest.name, guest.node ?? ""].some((word) => word.toLowerCase().includes(wanted)))
      .sort((one, other) => ORDER.indexOf(one.protection) - ORDER.indexOf(other.protection));
    put(list, shown.length ? table("Guests", columns(go), shown) : empty("No guest fits the filter", h("p", {}, "Take the filter back to see them all.")));
    put(foot, `${count(shown.length, "guest")} · ${data.host} · vmtwin ${data.version}`);
  };
  draw();

  // A job that ends changes what is protected; several at once are one look.
  let timer;
  const again = () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      const fresh = await get("/overview").catch(() => null);
      if (fresh && isShown()) keepingFocus(view, () => ((data = fresh), draw()));
    }, 400);
  };
  const stop = follow("/events", { job: (job) => (job.ended_at || !job.progress) && again() });
  const slow = setInterval(again, 60000);
  atEnd(() => (stop(), clearTimeout(timer), clearInterval(slow)));
}

function verdict({ counts, running_jobs: running }) {
  const wrong = counts.guests - counts.protected;
  const going = running > 0 && h("p", {}, h("a", { href: "/jobs?state=running" }, `${count(running, "job")} running`));
  if (!wrong) {
    const all = counts.guests === 1 ? "The guest is protected" : `All ${counts.guests} guests are protected`;
    return [h("p", { class: "verdict good" }, badge("protected"), h("span", {}, all)), going];
  }
  const worst = ORDER.find((word) => counts[word]);
  const tone = counts.failing || counts.never ? "bad" : "warn";
  return [h("p", { class: `verdict ${tone}` }, badge(worst),
    h("span", {}, `${wrong} of ${count(counts.guests, "guest")} ${wrong === 1 ? "is" : "are"} not protected`)), going];
}

const columns = (go) => [
  { title: "Guest", class: "name", cell: (guest) => [vmLink(guest.name), guest.node && h("span", { class: "dim" }, " on ", name(guest.node)), guest.state !== "running" && [" ", badge(guest.state)]] },
  { title: "Protection", class: "wide why", cell: (guest) => [badge(guest.protection, { title: guest.reason }),
    // What is well needs no reason in the list; the guest's page has it.
    guest.protection !== "protected" && h("span", { class: "reason", title: guest.reason }, guest.reason)] },
  { title: "Last good", cell: ({ last_good: good }) => (good ? h("a", { href: `/snapshots/${good.id}` }, time(good.time)) : "–") },
  { title: "Kept", cell: ({ last_good: good }) => (good ? promise(good.consistency) : "–") },
  { title: "Verified", cell: ({ last_good: good }) => (good ? badge(good.verified ?? "unverified") : "–") },
  { title: "Next", cell: (guest) => next(guest) },
  { title: "Trend", cell: (guest) => sparkline(guest.trend.map((one) => one.bytes_stored), trend(guest)) },
  { title: "Action", hidden: true, class: "end", cell: (guest) => may("backup") && action("Back up", () => backUp([guest.name], go), { label: `Back up ${guest.name}` }) },
];

function next({ schedules }) {
  const due = schedules.filter((one) => one.next).sort((one, other) => one.next.localeCompare(other.next))[0];
  return due ? time(due.next) : "–";
}

function trend({ trend: sizes }) {
  if (!sizes.length) return "no backups";
  const age = (Date.now() - Date.parse(sizes[0].time)) / 1000;
  return `${count(sizes.length, "backup")} in ${span(age)}, the last stored ${bytes(sizes.at(-1).bytes_stored)}`;
}

/** Begins a backup and goes where it can be watched. */
async function backUp(vms, go) {
  const job = await command("backup", { vms });
  await go(`/jobs/${job.id}`);
}

function askAll(guests, go) {
  const text = `One job backs up ${count(guests.length, "guest")}, one after the other.`;
  confirm("Back up all guests?", text, "Back up all", () => backUp(guests.map((guest) => guest.name), go), "primary");
}

function addGuest(go) {
  const kind = select({ name: "kind" }, [["qmp", "QEMU, by its QMP socket"], ["libvirt", "libvirt, by the domain's name"]], "qmp");
  const fields = [
    field("Name", h("input", { name: "name", required: true, autocomplete: "off", autofocus: true })),
    field("Reached by", kind),
    field("Address", h("input", { name: "address", required: true, placeholder: "/run/web01/qmp.sock", autocomplete: "off" }), "A socket's path, or a libvirt connection such as qemu:///system"),
  ];
  formDialog("Add a guest", fields, "Add", async (data) => {
    const job = await command("vm add", { name: data.get("name"), [data.get("kind")]: data.get("address") }, 60);
    if (job.error) throw new Error(job.error);
    toast(`${data.get("name")} was added`);
    await go(`/vms/${encodeURIComponent(data.get("name"))}`);
  });
}

function firstSteps(view, go, data) {
  put(view, heading("Overview"),
    empty("No guests yet",
      h("p", {}, "vmtwin backs up guests that run under QEMU or libvirt. Nothing is installed in them."),
      h("ol", { class: "steps" },
        h("li", {}, h("h3", {}, "Add a guest"), h("p", {}, "By its QMP socket or its libvirt domain. Here, or on the host:"), shell("vmtwin vm add web01 --qmp /run/web01/qmp.sock"),
          may("admin") ? h("p", {}, h("button", { class: "primary", type: "button", onclick: () => addGuest(go) }, "Add a guest…")) : h("p", { class: "dim" }, "Your token may not add guests; that needs the scope admin.")),
        h("li", {}, h("h3", {}, "Back it up"), h("p", {}, "One button on the guest's page; it goes on running.")),
        h("li", {}, h("h3", {}, "Give it a schedule"), h("p", {}, "From then on this page says whether each guest is protected.")))),
    h("p", { class: "dim" }, `${data.host} · vmtwin ${data.version}`));
}
