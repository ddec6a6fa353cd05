// The shell: paths to pages, navigation, keys, the session.

import { h, put, announce } from "/js/dom.js";
import { logOut, may, me, resume, whenLoggedOut } from "/js/api.js";
import { ago } from "/js/format.js";
import { dialog, failure } from "/js/ui.js";
import login from "/js/pages/login.js";
import overview from "/js/pages/overview.js";
import vm from "/js/pages/vm.js";
import { job, jobs } from "/js/pages/jobs.js";
import { snapshot, snapshots } from "/js/pages/snapshot.js";
import files from "/js/pages/files.js";
import restore from "/js/pages/restore.js";
import schedules from "/js/pages/schedules.js";
import cluster from "/js/pages/cluster.js";
import storage from "/js/pages/storage.js";
import audit from "/js/pages/audit.js";
import settings from "/js/pages/settings.js";

const ROUTES = [
  ["/", overview, "Overview"],
  ["/vms", overview, "Overview"],
  ["/vms/:name", vm, "Guest"],
  ["/jobs", jobs, "Jobs"],
  ["/jobs/:id", job, "Job"],
  ["/snapshots", snapshots, "Snapshots"],
  ["/snapshots/:id", snapshot, "Snapshot"],
  ["/snapshots/:id/files", files, "Files"],
  ["/restore/:id", restore, "Restore"],
  ["/schedules", schedules, "Schedules"],
  ["/cluster", cluster, "Cluster"],
  ["/storage", storage, "Storage"],
  ["/audit", audit, "Audit"],
  ["/settings", settings, "Settings"],
];
// Path, name, key after `g`, scope.
const PLACES = [
  ["/", "Overview", "o"],
  ["/jobs", "Jobs", "j"],
  ["/snapshots", "Snapshots", "n"],
  ["/schedules", "Schedules", "s"],
  ["/cluster", "Cluster", "c"],
  ["/storage", "Storage", "t"],
  ["/audit", "Audit", "a", "admin"],
  ["/settings", "Settings", "e"],
];

const main = document.getElementById("main");
const top = document.getElementById("top");
let ends = [];
let turn = 0;

function match(path) {
  const parts = path.split("/").filter(Boolean);
  for (const [pattern, page, title] of ROUTES) {
    const wanted = pattern.split("/").filter(Boolean);
    if (wanted.length !== parts.length) continue;
    const params = {};
    const fits = wanted.every((part, index) => {
      if (!part.startsWith(":")) return part === parts[index];
      try {
        params[part.slice(1)] = decodeURIComponent(parts[index]);
        return true;
      } catch {
        return false;
      }
    });
    if (fits) return { page, params, title };
  }
  return null;
}

/** Goes to a page of ours. */
export function go(path, { replace = false } = {}) {
  history[replace ? "replaceState" : "pushState"](null, "", path);
  return show();
}

function leave() {
  for (const end of ends) end();
  ends = [];
}

async function show({ isBack = false } = {}) {
  leave();
  const mine = ++turn;
  const found = me() ? match(location.pathname) : { page: login, params: {}, title: "Log in" };
  drawTop();
  const view = h("div", { class: "view" });
  const context = {
    view,
    params: found?.params ?? {},
    query: new URLSearchParams(location.search),
    /** Called when the page is left. */
    atEnd: (end) => (mine === turn ? ends.push(end) : end()),
    isShown: () => mine === turn,
    go,
    title: (text) => mine === turn && (document.title = `${text} · vmtwin`),
    reload: () => mine === turn && show({ isBack: true }),
  };
  context.title(found?.title ?? "Not found");
  const waiting = setTimeout(() => put(main, h("p", { class: "loading", role: "status" }, "Loading…")), 250);
  try {
    if (!found) put(view, h("h1", {}, "There is no such page"), h("p", {}, h("a", { href: "/" }, "Go to the overview")));
    else await found.page(context);
  } catch (error) {
    if (mine === turn) put(view, failure(error, context.reload));
  } finally {
    clearTimeout(waiting);
  }
  if (mine !== turn) return;
  put(main, view);
  if (isBack) return;
  scrollTo(0, 0);
  announce(document.title);
  (view.querySelector("[autofocus]") ?? main).focus({ preventScroll: true });
}

function drawTop() {
  const session = me();
  top.hidden = !session;
  if (!session) return;
  const here = location.pathname;
  const isHere = (path) => (path === "/" ? here === "/" || here.startsWith("/vms") : here.startsWith(path) || (path === "/snapshots" && here.startsWith("/restore")));
  const links = PLACES.filter(([, , , scope]) => !scope || may(scope)).map(([path, name]) =>
    h("li", {}, h("a", { href: path, "aria-current": isHere(path) ? "page" : null }, name)));
  const list = h("ul", { id: "places" }, links);
  const menu = h("button", { class: "menu", type: "button", "aria-expanded": "false", "aria-controls": "places", onclick: () => {
    const isOpen = list.classList.toggle("open");
    menu.setAttribute("aria-expanded", String(isOpen));
  } }, "Menu");
  put(top,
    h("a", { class: "brand", href: "/" }, h("img", { src: "/icon.svg", alt: "", width: 22, height: 22 }), "vmtwin"),
    h("nav", { "aria-label": "Main" }, menu, list),
    h("button", { class: "quiet keys", type: "button", "aria-label": "Keyboard shortcuts", title: "Keyboard shortcuts (?)", onclick: keys }, "?"),
    h("span", { class: "who", title: `scope: ${session.scope}` }, session.name),
    h("button", { class: "quiet", type: "button", onclick: end }, "Log out"));
}

async function end() {
  await logOut().catch(() => {});
  go("/");
}

function keys() {
  const rows = [["/", "Go to the filter"], ["?", "Show this list"], ["Esc", "Close what is open"], ["r", "Load the page again"],
    ...PLACES.map(([, name, letter]) => [`g ${letter}`, name])];
  dialog("Keyboard shortcuts", () => h("dl", { class: "keys" }, rows.map(([key, what]) =>
    h("div", {}, h("dt", {}, key.split(" ").map((one) => h("kbd", {}, one))), h("dd", {}, what)))));
}

let wentAt = 0;
function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !me()) return;
  if (event.target.closest("input, textarea, select, dialog")) {
    if (event.key === "Escape" && event.target.matches("[type=search]")) event.target.blur();
    return;
  }
  if (event.key === "/") {
    const filter = main.querySelector("[type=search]");
    if (filter) event.preventDefault(), filter.focus();
  } else if (event.key === "?") keys();
  else if (event.key === "r") show({ isBack: true });
  else if (event.key === "g") wentAt = Date.now();
  else if (Date.now() - wentAt < 1500) {
    wentAt = 0;
    const place = PLACES.find(([, , letter]) => letter === event.key);
    if (place) go(place[0]);
  }
}

document.addEventListener("keydown", onKey);
document.addEventListener("click", (event) => {
  const mark = event.target.closest("[data-href]");
  if (mark) return go(mark.dataset.href);
  const link = event.target.closest("a");
  const isOurs = link && link.origin === location.origin && !link.hasAttribute("download") && !link.target;
  if (!isOurs || link.hash || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(link.pathname + link.search);
});
addEventListener("popstate", () => show());
whenLoggedOut(() => show());
// Times that say how long ago go on.
setInterval(() => {
  for (const time of document.querySelectorAll("time.ago")) time.textContent = ago(time.dateTime);
}, 20000);

resume().then(() => show(), (error) => put(main, failure(error, () => location.reload())));
