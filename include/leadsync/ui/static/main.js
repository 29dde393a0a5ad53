// Which view is shown, in which language and light, and whether the server answers.

import { fill, h } from "./dom.js";
import { Failed } from "./http.js";
import * as letters from "./letters.js";
import * as lead from "./lead.js";
import * as operations from "./operations.js";
import * as overview from "./overview.js";
import * as recovery from "./recovery.js";
import { choose, language, t } from "./words.js";

const VIEWS = {
  overview: ["Overview", overview],
  operations: ["Operations", operations],
  letters: ["Dead letters", letters],
  lead: ["Lead", lead],
  recovery: ["Recovery log", recovery],
};
const main = document.getElementById("view");
const connection = document.getElementById("connection");
let shown = null; // what is on the screen: view, parameters, and how to stop its questions
let answered = null; // when the server answered last
let timer = 0;

/** The view and its parameters, from the address: #letters?destination=hubspot */
function place() {
  const [name, query] = location.hash.slice(1).split("?");
  return [VIEWS[name] ? name : "overview", Object.fromEntries(new URLSearchParams(query ?? ""))];
}

/** Goes to another place; the browser's way back leads here again. */
export function go(name, parameters = {}) {
  const wanted = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const query = new URLSearchParams(wanted).toString();
  location.hash = query ? `${name}?${query}` : name;
}

async function show({ moved = false } = {}) {
  const [name, parameters] = place();
  clearTimeout(timer);
  shown?.stop.abort();
  const stop = new AbortController();
  const mine = { name, stop };
  shown = mine;
  frame(name);
  const [, view] = VIEWS[name];
  if (moved) {
    main.replaceChildren(h("p", { class: "empty" }, t("Loading…")));
    main.focus({ preventScroll: true });
  }
  try {
    const content = await view.content(parameters, { go, again: () => show(), signal: stop.signal });
    if (shown !== mine) return;
    answered = new Date();
    fill(main, content);
    reach(null);
  } catch (error) {
    if (shown !== mine || error.name === "AbortError") return;
    if (!(error instanceof Failed)) throw error;
    if (moved) main.replaceChildren();
    reach(error);
  } finally {
    const seconds = view.refresh?.(parameters);
    if (shown === mine && seconds) timer = setTimeout(refresh, seconds * 1000);
  }
}

/** Asks again, unless nobody looks or somebody is in the middle of something. */
function refresh() {
  const busy = document.hidden || document.getElementById("dialog").open;
  if (busy) timer = setTimeout(refresh, 2000);
  else show();
}

/** Says when the server can't be reached, and of when is what is on the screen. */
function reach(error) {
  if (error === null) {
    connection.className = "";
    fill(connection);
    return;
  }
  const since = answered ? t("What you see is of {time}.", { time: answered.toLocaleTimeString() }) : "";
  const told =
    error.status === 0
      ? t("The server can't be reached; trying again.")
      : error.status === 401
        ? t("Your login has ended: reload the page.")
        : error.message;
  connection.className = "bad";
  fill(connection, `${told} ${since}`);
}

function frame(name) {
  document.documentElement.lang = language() === "zh" ? "zh-CN" : "en";
  document.title = `${t(VIEWS[name][0])} · Leadsync`;
  const views = document.getElementById("views");
  views.setAttribute("aria-label", t("Views"));
  fill(
    views,
    Object.entries(VIEWS).map(([key, [title]]) =>
      h("a", { href: `#${key}`, "aria-current": key === name ? "page" : null }, t(title)),
    ),
  );
  const other = language() === "zh" ? "en" : "zh";
  const change = document.getElementById("language");
  change.lang = other === "zh" ? "zh-CN" : "en";
  change.textContent = other === "zh" ? "中文" : "English";
  change.onclick = () => {
    choose(other);
    show({ moved: true });
  };
}

/** Airflow's page around the frame says whether it is dark, and in which language it is. */
function follow() {
  const outer = window.parent === window ? null : window.parent.document.documentElement;
  const light = () => {
    if (outer) document.documentElement.dataset.theme = outer.classList.contains("dark") ? "dark" : "light";
  };
  light();
  if (outer) {
    new MutationObserver(light).observe(outer, { attributes: true, attributeFilter: ["class"] });
    window.addEventListener("storage", (event) => event.key === "i18nextLng" && show());
  }
}

follow();
window.addEventListener("hashchange", () => show({ moved: true }));
show({ moved: true });
