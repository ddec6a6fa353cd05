// Plots: SVG made by hand. Each has its numbers in words too, for who does not see it.

import { h, svg } from "/js/dom.js";
import { bytes, exact, when } from "/js/format.js";

/** A small line of bars, the last ones of something. */
export function sparkline(values, label) {
  if (values.length < 2) return h("span", { class: "dim" }, values.length ? "one so far" : "–");
  const width = 96, height = 22, most = Math.max(...values, 1);
  const step = width / values.length;
  const bars = values.map((value, index) => {
    const high = Math.max(1.5, (value / most) * (height - 1));
    return svg("rect", { x: (index * step).toFixed(2), y: (height - high).toFixed(2), width: Math.max(1, step - 1).toFixed(2), height: high.toFixed(2) });
  });
  return svg("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label }, bars);
}

function scale(most) {
  if (most <= 0) return [1, [0, 1]];
  const unit = 1024 ** Math.floor(Math.log(most) / Math.log(1024));
  const parts = most / unit;
  const step = [1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500].find((one) => parts / one <= 4) ?? 500;
  const top = Math.ceil(parts / step) * step;
  return [top * unit, Array.from({ length: Math.round(top / step) + 1 }, (_, index) => index * step * unit)];
}

/** Bytes by day as an area (`line`) or bars; points: {time: ms, value, title}. */
export function plot(points, { label, kind = "bars", height = 190 }) {
  const width = innerWidth < 820 ? 400 : 720, left = 70, bottom = 24, high = height - bottom - 10;
  const [top, ticks] = scale(Math.max(...points.map((point) => point.value), 0));
  const from = points[0].time, until = points.at(-1).time;
  const day = 86400000, slots = Math.max(1, Math.round((until - from) / day) + 1);
  const slot = (width - left - 8) / slots;
  const x = (time) => left + ((time - from) / day + 0.5) * slot;
  const y = (value) => 10 + high - (value / top) * high;
  const grid = ticks.map((tick) => [
    svg("line", { class: "grid", x1: left, x2: width - 8, y1: y(tick), y2: y(tick) }),
    svg("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, bytes(tick)),
  ]);
  const dates = [points[0], points[Math.floor(points.length / 2)], points.at(-1)].filter((point, index, all) => all.indexOf(point) === index);
  const axis = dates.map((point, index) => svg("text", {
    x: x(point.time), y: height - 6, "text-anchor": index === 0 && dates.length > 1 ? "start" : index === dates.length - 1 && dates.length > 1 ? "end" : "middle",
  }, new Date(point.time).toISOString().slice(0, 10)));
  const path = points.map((point, index) => `${index ? "L" : "M"}${x(point.time).toFixed(1)} ${y(point.value).toFixed(1)}`).join("");
  const marks = kind === "line"
    ? [svg("path", { class: "area", d: `${path}L${x(until).toFixed(1)} ${y(0)}L${x(from).toFixed(1)} ${y(0)}Z` }), svg("path", { class: "line", d: path }),
       points.length < 60 && points.map((point) => svg("circle", { class: "dot", cx: x(point.time), cy: y(point.value), r: 2.5 }, svg("title", {}, point.title)))]
    : points.map((point) => svg("rect", { class: "bar", x: (x(point.time) - Math.min(slot * 0.4, 18)).toFixed(2), width: Math.max(1, Math.min(slot * 0.8, 36)).toFixed(2), y: y(point.value).toFixed(2), height: Math.max(0, y(0) - y(point.value)).toFixed(2) }, svg("title", {}, point.title)));
  return svg("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, grid, axis, marks);
}

/** Snapshots along time; items: {time, kind, title, href}. The list below it says the same. */
export function timeLine(items, label) {
  const width = Math.max(300, Math.min(1240, innerWidth - 40)), height = 52, left = 12, right = width - 12;
  const until = Date.now(), from = Math.min(...items.map((item) => Date.parse(item.time)), until - 3600000);
  const x = (time) => left + ((Date.parse(time) - from) / (until - from)) * (right - left);
  const dots = items.toReversed().map((item) =>
    svg("circle", { class: `dot kept-${item.kind}`, "data-href": item.href, cx: x(item.time).toFixed(1), cy: 26, r: 6 }, svg("title", {}, `${item.title}\n${exact(item.time)}`)));
  const line = svg("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    svg("line", { class: "axis", x1: left, x2: right, y1: 26, y2: 26 }),
    svg("line", { class: "axis", x1: right, x2: right, y1: 16, y2: 36 }), dots);
  return h("div", { class: "time-line" }, line, h("div", { class: "ends dim" }, h("span", {}, when(new Date(from).toISOString())), h("span", {}, "now")));
}
