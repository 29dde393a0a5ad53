// English is written where it is used; this holds the Chinese for it, and which of them is wanted.

import { CHINESE } from "./chinese.js";

const OWN = "leadsync-language";
const AIRFLOW = "i18nextLng"; // where Airflow's page keeps its language

/** "en" or "zh": what the person chose here, else Airflow's language. */
export function language() {
  const wanted = stored(OWN) ?? stored(AIRFLOW) ?? navigator.language;
  return wanted.toLowerCase().startsWith("zh") ? "zh" : "en";
}

export const locale = () => (language() === "zh" ? "zh-CN" : "en-GB");

export function choose(name) {
  try {
    localStorage.setItem(OWN, name);
  } catch {
    // Without storage the choice lasts as long as the page.
  }
}

/** The text in the person's language, {name} replaced. */
export function t(text, values = {}) {
  const found = language() === "zh" ? (CHINESE[text] ?? text) : text;
  return found.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

function stored(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}
