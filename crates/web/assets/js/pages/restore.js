// A restore in three steps: what is wanted, the plan, then the job.

import { h, put } from "/js/dom.js";
import { command, get, look, may } from "/js/api.js";
import { bytes, consistency, quoted, short } from "/js/format.js";
import { badge, facts, field, form, heading, name, select, shell, time } from "/js/ui.js";

export default async function restore({ view, params, title, go }) {
  const one = await get(`/snapshots/${encodeURIComponent(params.id)}`);
  title(`Restore ${one.vm}`);
  // The disks' sizes are in the snapshot itself; the plan is shown without them where it cannot be read now.
  const shownOf = look("snapshot show", { id: one.id }).catch(() => null);
  const wanted = { mode: "disks", to: `${one.vm.replace(/[^\w.-]+/g, "_").replace(/^\.+/, "")}-${short(one.id)}`, network: "none", format: "", as: "" };
  const steps = h("ol", { class: "path" });
  const box = h("div", {});
  put(view, heading(["Restore ", name(one.vm)]),
    facts(["Point in time", time(one.time), " ", h("a", { class: "mono", href: `/snapshots/${one.id}` }, short(one.id))], ["Consistency kept", consistency(one.consistency)], ["Verified", badge(one.verified ?? "unverified")]), steps, box);

  const show = (step) => {
    put(steps, ["What to restore", "The plan", "The restore"].map((text, index) => h("li", { "aria-current": index === step ? "step" : null, class: index < step ? "past" : null }, text)));
    put(box, step === 0 ? choose() : h("p", { class: "loading" }, "Making the plan…"));
    if (step === 1) shownOf.then((found) => put(box, plan(found)));
  };

  const choose = () => {
    const radio = (value, text, hint, disabled) => {
      const control = h("input", { type: "radio", name: "mode", value, id: `m-${value}`, checked: wanted.mode === value, disabled });
      return h("div", { class: "field tick" }, control, h("label", { for: `m-${value}` }, h("b", {}, text), h("span", { class: "hint" }, hint)));
    };
    const boot = one.has_memory ? "Machine and memory go on from the very instant of the backup." : "This snapshot has no memory: the machine boots from its disks.";
    return form([
      h("fieldset", {}, h("legend", {}, "What to restore"),
        radio("disks", "The disks, as files", "Nothing is started. For copying data out, or for another hypervisor."),
        radio("run", "The disks, and start the guest on them", boot),
        radio("instant", "Start the guest at once", "It runs within seconds, while its disks come in behind it.")),
      field("Folder", h("input", { name: "to", value: wanted.to, required: true, autocomplete: "off", spellcheck: "false" }), "Below the host's folder for restores. Elsewhere with an absolute path, which needs the scope admin."),
      h("details", {}, h("summary", {}, "More"),
        field("New name of the guest", h("input", { name: "as", value: wanted.as, autocomplete: "off" }), "Only if it is to run beside the old one under another name."),
        field("Network of the started guest", select({ name: "network" }, [["none", "None: it can disturb nobody"], ["user", "User network: it reaches out, nobody reaches it"], ["original", "As it was; stop the old guest first"]], wanted.network)),
        field("Format of the disks", select({ name: "format" }, [["", "As they were"], ["qcow2", "qcow2"], ["raw", "raw"]], wanted.format), "Not for a start at once.")),
    ], "Show the plan", async (data) => {
      for (const key of Object.keys(wanted)) wanted[key] = data.get(key)?.trim() ?? "";
      if (wanted.mode === "instant") wanted.format = "";
      show(1);
      view.querySelector("h2")?.focus();
    });
  };

  const body = () => {
    const given = { id: one.id, to: wanted.to };
    if (wanted.as) given.as = wanted.as;
    if (wanted.format) given.format = wanted.format;
    if (wanted.mode === "run") given.run = true;
    if (wanted.mode === "instant") Object.assign(given, { instant: true, detach: true });
    if (wanted.mode !== "disks") given.network = wanted.network;
    return given;
  };

  const plan = (found) => {
    const disks = found?.content?.disks ?? [];
    const all = disks.reduce((sum, disk) => sum + (disk.size_bytes ?? 0), 0);
    const runs = wanted.mode !== "disks";
    const does = [
      ["Make the folder ", h("span", { class: "mono break" }, name(wanted.to)), wanted.to.startsWith("/") ? "" : " below the host's folder for restores", ". If files of these names are there, the restore refuses and nothing is replaced."],
      disks.length ? [`Write ${disks.length === 1 ? "the disk" : `${disks.length} disks`} `, disks.map((disk, index) => [index > 0 && ", ", h("span", { class: "mono" }, name(disk.id)), ` (${bytes(disk.size_bytes)})`]), wanted.format ? ` as ${wanted.format}.` : " in the format they had."] : ["Write all disks of the snapshot."],
      wanted.mode === "run" && [one.has_memory ? "Start the machine and let it go on from the instant of the backup." : "Boot the machine from the restored disks."],
      wanted.mode === "instant" && ["Start the machine at once; its disks come in while it runs."],
      runs && [{ none: "Give it no network.", user: "Give it a network on which nobody reaches it.", original: "Give it the network it had. The old guest must not run." }[wanted.network]],
    ].filter(Boolean);
    const line = ["vmtwin restore", short(one.id)];
    for (const [key, value] of Object.entries(body())) {
      if (key === "id") continue;
      line.push(`--${key}`, ...(value === true ? [] : [quoted(value)]));
    }
    return [h("section", { class: "card" }, h("h2", { tabindex: "-1" }, "The plan"), h("ol", { class: "plan" }, does.map((text) => h("li", {}, text))),
      h("p", {}, h("b", {}, "What stays as it is: "), "the guest ", name(one.vm), " and its disks, and the snapshot."),
      all > 0 && h("p", { class: "dim" }, `Up to ${bytes(all)} of the host's disk are used; blocks of zeros take none.`),
      h("p", { class: "dim" }, "The same on the command line:"), shell(line.join(" "))),
      may("restore") ? form([], "Restore now", async () => go(`/jobs/${(await command("restore", body())).id}`), { cancel: () => show(0), cancelLabel: "Back" })
        : h("p", { class: "problem" }, "Your token may not restore; that needs the scope restore.")];
  };
  show(0);
}
