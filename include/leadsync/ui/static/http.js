// Talks to the page's own API and to Airflow's. Addresses are relative, so that a prefix of a proxy does no harm.

const PAGE = new URL("api/", document.baseURI);
const AIRFLOW = new URL("../", document.baseURI);

/** What a server answered instead of what was asked for; `status` 0: it could not be reached. */
export class Failed extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** JSON of the page's API. `parameters` that are empty are left out. */
export async function get(path, parameters = {}, signal = undefined) {
  return (await ask("GET", address(path, parameters), undefined, signal)).json();
}

export async function post(path, body = {}, parameters = {}) {
  return (await ask("POST", address(path, parameters), body)).json();
}

/** A file that only a POST gives: as a download. */
export async function download(path, name, parameters = {}) {
  const reply = await ask("POST", address(path, parameters), {});
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await reply.blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Airflow's public REST API, with the rights of the person's login. */
export async function airflow(method, path, body = undefined) {
  return (await ask(method, new URL(`api/v2/${path}`, AIRFLOW), body)).json();
}

export function address(path, parameters = {}) {
  const url = new URL(path, PAGE);
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  return url;
}

/** Where Airflow shows a run. */
export function runAddress(dag, run) {
  return new URL(`dags/${encodeURIComponent(dag)}/runs/${encodeURIComponent(run)}`, AIRFLOW).href;
}

/** Opens an address outside the frame: its sandbox forbids it to the frame itself. */
export function leave(href, { aside = false } = {}) {
  const where = window.parent.document;
  const link = where.createElement("a");
  link.href = href;
  if (aside) Object.assign(link, { target: "_blank", rel: "noopener noreferrer" });
  where.body.append(link);
  link.click();
  link.remove();
}

async function ask(method, url, body, signal) {
  const headers = { "X-Leadsync": "1", Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let reply;
  try {
    reply = await fetch(url, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failed(0, String(error.message));
  }
  if (!reply.ok) throw new Failed(reply.status, await reason(reply));
  return reply;
}

async function reason(reply) {
  try {
    const { detail } = await reply.json();
    return typeof detail === "string" ? detail : JSON.stringify(detail);
  } catch {
    return `HTTP ${reply.status}`;
  }
}
