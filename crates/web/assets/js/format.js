// Numbers, times and words as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(count) {
  if (count == null) return "–";
  let unit = 0;
  while (count >= 1024 && unit < UNITS.length - 1) (count /= 1024), unit++;
  return `${count >= 100 || unit === 0 ? Math.round(count) : count.toFixed(1)} ${UNITS[unit]}`;
}

export const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

const STEPS = [["day", 86400], ["h", 3600], ["min", 60], ["s", 1]];

/** "3 min", "2 h", "5 days" of seconds. */
export function span(seconds) {
  for (const [name, step] of STEPS) {
    if (seconds < step && name !== "s") continue;
    const number = Math.floor(seconds / step);
    return name === "day" ? count(number, "day") : `${number} ${name}`;
  }
}

/** How long ago, or in how long. */
export function ago(text) {
  const seconds = (Date.now() - Date.parse(text)) / 1000;
  if (Math.abs(seconds) < 5) return "now";
  return seconds > 0 ? `${span(seconds)} ago` : `in ${span(-seconds)}`;
}

/** "1 min 5 s" between two times; until now where there is no second one. */
export function took(from, until) {
  if (!from) return "–";
  const all = Math.max(0, ((until ? Date.parse(until) : Date.now()) - Date.parse(from)) / 1000);
  if (all < 10) return `${all.toFixed(1)} s`;
  if (all < 60) return `${Math.round(all)} s`;
  if (all < 3600) return `${Math.floor(all / 60)} min ${Math.floor(all % 60)} s`;
  return `${Math.floor(all / 3600)} h ${Math.floor((all % 3600) / 60)} min`;
}

const EXACT = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
export const exact = (text) => `${EXACT.format(new Date(text))} (${text})`;
const SHORT = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
export const when = (text) => SHORT.format(new Date(text));

export const short = (id) => id.slice(0, 8);

/** What each consistency promises, in a sentence. */
export const CONSISTENCY = {
  application: ["Application", "A copy of the running machine was shut down cleanly: its disks are as applications leave them."],
  state: ["Running state", "Memory, processors and disks of one instant: the machine can go on from there."],
  filesystem: ["File system", "File systems were frozen by the guest's agent: they are clean."],
  crash: ["Crash", "Disks of one instant, as after a power cut."],
};
export const consistency = (word) => CONSISTENCY[word]?.[0] ?? word;

/** A word for a command line, quoted where a shell would take it apart. */
export const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
