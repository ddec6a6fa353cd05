// The cluster: its nodes, and the backups of its configuration.

import { h, put } from "/js/dom.js";
import { command, get, look, may } from "/js/api.js";
import { bytes } from "/js/format.js";
import { action, badge, dialog, empty, failure, heading, name, shell, table, time } from "/js/ui.js";

export default async function cluster({ view, go, title }) {
  const data = await get("/cluster");
  title(data.cluster ? `Cluster ${data.cluster}` : "Cluster");
  const back = may("backup") && action("Back up the configuration", async () => go(`/jobs/${(await command("cluster backup")).id}`), { kind: "primary" });
  put(view, heading(data.cluster ? ["Cluster ", name(data.cluster)] : "Cluster", back),
    h("section", {}, h("h2", {}, "Nodes"), data.nodes.length ? table("Nodes", [
      { title: "Node", cell: (node) => h("b", {}, name(node.name)) },
      { title: "State", cell: (node) => badge(node.state) },
      { title: "Address", class: "mono", cell: (node) => node.address ?? "–" },
      { title: "Version", cell: (node) => node.version },
      { title: "Heard of", cell: (node) => time(node.seen_at) },
    ], data.nodes) : empty("This host is in no cluster", h("p", {}, "A cluster shares one catalog, and its configuration is backed up as one file. Make one on the first node, then let the others join:"), shell("vmtwin cluster create lab"), shell("vmtwin cluster token"))),
    h("section", {}, h("h2", {}, "Backups of the configuration"), data.backups.length ? table("Backups of the configuration", [
      { title: "File", cell: (one) => h("span", { class: "mono break" }, name(one.file.split("/").at(-1))) },
      { title: "Time", cell: (one) => time(one.time) },
      { title: "Nodes", cell: (one) => [`${one.collected} of ${one.nodes} answered `, one.collected < one.nodes && badge("incomplete")] },
      { title: "Size", class: "number", cell: (one) => bytes(one.bytes) },
      { title: "Actions", hidden: true, class: "end", cell: (one) => [
        h("button", { type: "button", "aria-label": `View ${one.file.split("/").at(-1)}`, onclick: () => open("View", "cluster view", one) }, "View"), " ",
        h("button", { type: "button", "aria-label": `Validate ${one.file.split("/").at(-1)}`, onclick: () => open("Validate", "cluster validate", one) }, "Validate")] },
    ], data.backups) : empty("No backup of the configuration yet", h("p", {}, "It holds the devices, networks, storage and guests of each node, and the catalog: what a host needs to come back after it was lost."))));
}

function open(label, words, one) {
  const box = h("div", {}, h("p", { class: "loading" }, "Reading the file…"));
  dialog(`${label}: ${one.file.split("/").at(-1)}`, () => box);
  look(words, { file: one.file }).then(
    (found) => put(box, h("pre", { tabindex: "0" }, JSON.stringify(found, null, 2))),
    (error) => put(box, failure(error)));
}
