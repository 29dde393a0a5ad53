// Numbers, times and drawings for people.

import { h } from "./dom.js";
import { locale, t } from "./words.js";

export const number = (value, digits = 0) =>
  value === null || value === undefined
    ? "–"
    : new Intl.NumberFormat(locale(), { maximumFractionDigits: digits }).format(value);

export const percent = (value) =>
  value === null || value === undefined
    ? "–"
    : new Intl.NumberFormat(locale(), { style: "percent", maximumFractionDigits: value < 0.01 ? 2 : 1 }).format(value);

/** A count that ends at a bound: "10,000+". */
export const count = (counted) => (counted ? `${number(counted.count)}${counted.more ? "+" : ""}` : "–");

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return t("{n} s", { n: number(seconds, seconds < 10 ? 1 : 0) });
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return t("{n} min", { n: minutes });
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 ? t("{h} h {n} min", { h: hours, n: minutes % 60 }) : t("{h} h", { h: hours });
  return t("{d} d {h} h", { d: Math.floor(hours / 24), h: hours % 24 });
}

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${number(value, value < 10 ? 1 : 0)} ${units[unit]}`;
}

/** A moment: today only the time; the title has all of it. */
export function when(text) {
  if (!text) return h("span", {}, "–");
  const at = new Date(text);
  const today = at.toDateString() === new Date().toDateString();
  const parts = today ? { timeStyle: "medium" } : { dateStyle: "short", timeStyle: "short" };
  return h("time", { datetime: text, title: at.toISOString() }, new Intl.DateTimeFormat(locale(), parts).format(at));
}

/** A line over the last 24 hours with its area, as inline SVG. */
export function sparkline(values, label) {
  const width = 240;
  const height = 36;
  const top = Math.max(...values, 1e-9);
  const points = values.map((value, place) => {
    const x = (place / (values.length - 1)) * width;
    const y = height - 2 - (value / top) * (height - 4);
    return `${x.toFixed(1)} ${y.toFixed(1)}`;
  });
  const line = `M${points.join("L")}`;
  return h(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, class: "spark", preserveAspectRatio: "none", role: "img", "aria-label": label },
    h("path", { d: `${line}L${width} ${height}L0 ${height}Z`, class: "area" }),
    h("path", { d: line, class: "line" }),
  );
}
