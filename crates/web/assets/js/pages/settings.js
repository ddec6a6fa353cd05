// Settings: who is logged in, the tokens, the state of the host.

import { h, put, toast } from "/js/dom.js";
import { get, look, may, me, post, remove } from "/js/api.js";
import { action, badge, confirm, dialog, facts, failure, field, formDialog, heading, name, select, shell, table, time } from "/js/ui.js";

export default async function settings({ view, reload }) {
  const session = me();
  put(view, heading("Settings"),
    h("section", { class: "card" }, h("h2", {}, "This session"), facts(["Token", name(session.name)], ["Scope", session.scope], ["Ends", time(session.expires_at)])));
  if (may("admin")) view.append(tokens(await get("/tokens"), reload));
  view.append(doctor(), h("section", {}, h("h2", {}, "For programs"), h("p", {}, "All of this is an HTTP API: ", h("a", { href: "/openapi.json", target: "_blank", rel: "noopener" }, "its OpenAPI document"), ".")));
}

function tokens({ items }, reload) {
  const ask = () => formDialog("Add a token", [
    field("Name", h("input", { name: "name", required: true, maxlength: 100, pattern: "[\\w.@\\-]+", autocomplete: "off", autofocus: true }), "Letters, digits and -_.@"),
    field("Scope", select({ name: "scope" }, [["view", "view: look"], ["backup", "backup: also back up and verify"], ["restore", "restore: also restore and download"], ["admin", "admin: everything"]], "view")),
  ], "Add", async (data) => {
    const made = await post("/tokens", { name: data.get("name"), scope: data.get("scope") });
    await reload();
    setTimeout(() => dialog("The token, shown this once", () => [h("p", {}, "Copy it now: only its hash is kept."), shell(made.token)]));
  });
  return h("section", {}, h("div", { class: "heading" }, h("h2", {}, "Tokens"), h("div", { class: "tools" }, h("button", { type: "button", onclick: ask }, "Add a token…"))),
    table("Tokens", [
      { title: "Name", cell: (one) => name(one.name) }, { title: "Scope", cell: (one) => one.scope },
      { title: "Made", cell: (one) => time(one.created_at) }, { title: "Used", cell: (one) => (one.used_at ? time(one.used_at) : "never") }, { title: "Ends", cell: (one) => (one.expires_at ? time(one.expires_at) : "never") },
      { title: "Actions", hidden: true, class: "end", cell: (one) => h("button", { type: "button", "aria-label": `Remove ${one.name}`, onclick: () => confirm(`Remove the token ${one.name}?`, "Who uses it is logged out at once.", "Remove", async () => {
        await remove(`/tokens/${encodeURIComponent(one.name)}`);
        toast(`${one.name} was removed`);
        await reload();
      }) }, "Remove…") },
    ], items));
}

function doctor() {
  const box = h("div", {});
  return h("section", {}, h("h2", {}, "This host"), h("p", {}, "Has it all that backups need?"), action("Examine the host", async () => {
    put(box, h("p", { class: "loading" }, "Looking…"));
    try {
      put(box, table("This host", [
        { title: "What", cell: (one) => one.what },
        { title: "State", cell: (one) => badge(one.state) },
        { title: "Found", class: "wide", cell: (one) => one.found || "–" },
        { title: "How to mend it", class: "wide", cell: (one) => one.mend || "–" },
      ], await look("doctor", {})));
    } catch (error) {
      put(box, failure(error));
    }
  }), box);
}
