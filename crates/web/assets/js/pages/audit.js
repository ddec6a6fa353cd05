// The audit: who asked for what.

import { h, put } from "/js/dom.js";
import { get } from "/js/api.js";
import { badge, empty, heading, more, name, table, time } from "/js/ui.js";

export default async function audit({ view }) {
  const first = await get("/audit", { limit: 100 });
  const all = [...first.items];
  const filter = h("input", { type: "search", placeholder: "Filter what is shown", "aria-label": "Filter what is shown", oninput: () => draw() });
  const list = h("div", {});
  let next = first.next;
  const draw = () => {
    const wanted = filter.value.trim().toLowerCase();
    const fits = all.filter((entry) => `${entry.who} ${entry.action} ${entry.detail} ${entry.outcome} ${entry.origin ?? ""}`.toLowerCase().includes(wanted));
    put(list, fits.length ? table("Audit", columns, fits) : empty(all.length ? "Nothing fits the filter" : "Nothing was asked for yet", h("p", {}, "Each command that a person or a program asks for is noted here.")), more(next, async (cursor) => {
      const part = await get("/audit", { limit: 200, cursor });
      all.push(...part.items);
      next = part.next;
      draw();
    }));
  };
  draw();
  put(view, heading("Audit"), h("div", { class: "bar" }, filter), list);
}

const columns = [
  { title: "Action", cell: (entry) => name(entry.action) },
  { title: "Of", class: "wide", cell: (entry) => (entry.detail ? h("span", { class: "mono break" }, name(entry.detail)) : "–") },
  { title: "Who", cell: (entry) => name(entry.who) },
  { title: "From", class: "mono", cell: (entry) => entry.origin || "–" },
  { title: "Outcome", cell: (entry) => (["done", "refused", "failed"].includes(entry.outcome) ? badge(entry.outcome) : entry.outcome) },
  { title: "Time", cell: (entry) => time(entry.time) },
];
