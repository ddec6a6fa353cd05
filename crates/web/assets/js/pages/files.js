// Files in the disks of a snapshot: file systems, then folders, then downloads.

import { h, put } from "/js/dom.js";
import { get, look, may } from "/js/api.js";
import { bytes, short, when } from "/js/format.js";
import { badge, empty, failure, heading, name, table, time } from "/js/ui.js";

// A name that is no text comes as its bytes: it can be shown, and not asked for.
const isText = (raw) => typeof raw === "string";
const shown = (raw) => (isText(raw) ? raw : raw.map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : `\\x${byte.toString(16).padStart(2, "0")}`)).join(""));

export default async function files({ view, params, query, isShown, title }) {
  const id = params.id, disk = query.get("disk"), path = query.get("path") ?? "/", system = query.get("fs");
  const one = await get(`/snapshots/${encodeURIComponent(id)}`);
  title(`Files of ${one.vm}`);
  const here = (fields) => `/snapshots/${id}/files?${new URLSearchParams(Object.entries(fields).filter(([, value]) => value))}`;
  const box = h("div", { "aria-live": "polite" }, h("p", { class: "loading" }, disk ? "Reading the folder…" : "Looking for file systems…",
    h("span", { class: "dim" }, " A small machine starts and reads the disks; that takes some seconds.")));
  put(view, heading(["Files of ", name(one.vm), " ", h("a", { class: "mono", href: `/snapshots/${one.id}` }, short(one.id))]),
    h("p", { class: "lead dim" }, "As they were ", time(one.time)), disk && crumbs(disk, path, (to) => here({ disk, path: to, fs: system }), `/snapshots/${id}/files`), box);
  // The page is there at once; what has to be read comes when it comes.
  const body = disk ? { target: `${id}:${disk}${path}` } : { target: id };
  if (system) body.filesystem = system;
  look("snapshot ls", body).then(
    (found) => isShown() && put(box, disk ? folder(id, found, disk, path, system, here) : systems(found, here)),
    (error) => isShown() && put(box, failure(error)));
}

function crumbs(disk, path, link, start) {
  const parts = path.split("/").filter(Boolean);
  return h("nav", { "aria-label": "Folder" }, h("ol", { class: "crumbs" },
    h("li", {}, h("a", { href: start }, "Disks")), h("li", {}, h("a", { href: link("/") }, name(disk))),
    parts.map((part, index) => h("li", {}, h("a", { href: link(`/${parts.slice(0, index + 1).join("/")}`), "aria-current": index === parts.length - 1 ? "page" : null }, name(part))))));
}

function systems(found, here) {
  if (!found.file_systems.length) {
    return empty("No file systems found", h("p", {}, `The disks ${found.disks.join(", ")} hold none that can be read. A restore gives the whole disks.`));
  }
  return table("File systems", [
    { title: "File system", cell: (one) => (one.problem ? name(one.name) : h("a", { href: here({ disk: one.disks[0], fs: one.name }) }, name(one.label || one.name))) },
    { title: "Name", cell: (one) => h("span", { class: "mono" }, name(one.name)) },
    { title: "Kind", cell: (one) => one.type },
    { title: "Disks", cell: (one) => one.disks.join(", ") },
    { title: "Size", class: "number", cell: (one) => bytes(one.size_bytes) },
    { title: "Can be read", cell: (one) => (one.problem ? [badge("failed"), h("span", { class: "reason" }, one.problem)] : "yes") },
  ], found.file_systems);
}

// A broken file system may tell times that no calendar has.
function changed(seconds) {
  const at = new Date(seconds * 1000);
  return Number.isNaN(at.getTime()) ? "–" : h("time", { datetime: at.toISOString() }, when(at.toISOString()));
}

function folder(id, found, disk, path, system, here) {
  const below = (raw) => `${path === "/" ? "" : path}/${raw}`;
  const link = (entry) => {
    if (!isText(entry.name)) return h("span", { title: "a name that is no text; restore the disk to reach it" }, name(shown(entry.name)));
    if (entry.kind === "folder") return h("a", { href: here({ disk, path: below(entry.name), fs: system }) }, h("b", {}, name(entry.name), "/"));
    if (entry.kind !== "file" || !may("restore")) return name(entry.name);
    const from = `/api/v1/snapshots/${id}/download?${new URLSearchParams({ disk, path: below(entry.name), ...(system && { filesystem: system }) })}`;
    return h("a", { href: from, download: entry.name, title: "Download" }, name(entry.name));
  };
  const entries = found.entries.toSorted((one, other) => (other.kind === "folder") - (one.kind === "folder") || shown(one.name).localeCompare(shown(other.name)));
  const notes = !may("restore") && h("p", { class: "dim" }, "Downloads need a token of scope restore.");
  if (!entries.length) return empty("This folder is empty");
  const filter = h("input", { type: "search", placeholder: "Filter this folder", "aria-label": "Filter this folder", oninput: () => draw() });
  const list = h("div", {});
  const columns = [
    { title: "Name", cell: (entry) => [link(entry), entry.target && h("span", { class: "dim" }, " → ", name(shown(entry.target)))] },
    { title: "Size", class: "number", cell: (entry) => (entry.kind === "file" ? bytes(entry.size_bytes) : "–") },
    { title: "Changed", cell: (entry) => changed(entry.mtime_s) },
    { title: "Mode", class: "mono", cell: (entry) => entry.mode.toString(8).padStart(4, "0") },
    { title: "Owner", class: "mono", cell: (entry) => `${entry.uid}:${entry.gid}` },
  ];
  /** Rows at once; a filter finds the others. */
  const MOST = 1000;
  const draw = () => {
    const wanted = filter.value.trim().toLowerCase();
    const fit = entries.filter((entry) => shown(entry.name).toLowerCase().includes(wanted));
    put(list, fit.length ? table("Files", columns, fit.slice(0, MOST)) : empty("Nothing fits the filter"),
      fit.length > MOST && h("p", { class: "dim" }, `${MOST} of ${fit.length} are shown; filter to find the others.`));
  };
  draw();
  return [h("div", { class: "bar" }, filter), list, notes];
}
