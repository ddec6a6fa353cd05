// The log-in: a token once, then a session.

import { h, put } from "/js/dom.js";
import { logIn } from "/js/api.js";
import { field, form, shell } from "/js/ui.js";

export default async function login({ view, go }) {
  const token = h("input", { name: "token", type: "password", autocomplete: "current-password", required: true, autofocus: true, spellcheck: "false" });
  put(view, h("div", { class: "login" },
    h("img", { src: "/icon.svg", alt: "", width: 44, height: 44 }),
    h("h1", {}, "vmtwin"),
    h("p", { class: "dim" }, "Log in with an access token."),
    form([field("Token", token, "It begins with vmtwin_ and is shown once, when it is made.")], "Log in", async (data) => {
      await logIn(data.get("token").trim());
      // The page that was asked for first is shown now.
      await go(location.pathname === "/login" ? "/" : location.pathname + location.search, { replace: true });
    }),
    h("details", {}, h("summary", {}, "First visit? Make a token"),
      h("p", {}, "On the host that runs vmtwin serve, as its user:"),
      shell("vmtwin token add my-name --scope admin"),
      h("p", { class: "dim" }, "A scope is view, backup, restore or admin; each may do what those before it may."))));
}
