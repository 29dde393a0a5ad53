"use strict";
const FAULTS = {
  "slow: 2 s": { latency: 2 }, "429 for half": { too_many: { rate: 0.5, retry_after: 1 } },
  "503 for all": { server_error: { rate: 1 } }, "lose the next reply": { lose_reply: { next: 1 } },
  "nonsense next": { malformed: { next: 1 } }, "reject 5 %": { reject: { rate: 0.05 } }, "down": { down: true },
  "daily quota spent": { quota_spent: true },
};
const $ = (id) => document.getElementById(id);
const cell = (kind, text) => { const c = document.createElement(kind); c.textContent = text; c.title = text; return c; };
async function post(faults) {
  await fetch("_demo/faults", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(faults) });
  await refresh();
}
for (const [name, faults] of Object.entries(FAULTS)) {
  const button = cell("button", name); button.type = "button"; button.onclick = () => post(faults); $("faults").append(button);
}
$("heal").onclick = () => post({});
async function refresh() {
  try {
    const [stats, faults] = await Promise.all(["stats", "faults"].map(async (p) => (await fetch("_demo/" + p)).json()));
    const after = Math.max(0, stats.last - 40);
    const changes = (await (await fetch("_demo/journal?after=" + after)).json()).reverse();
    const on = Object.entries(faults.active).filter(([, v]) => v && (typeof v !== "object" || Object.keys(v).length)).map(([k]) => k);
    $("counts").textContent = `${stats.records} records · ${stats.deleted} deleted · ${stats.doubled} doubled · ` +
      `${stats.journal} changes` + (on.length ? ` · faults: ${on.join(", ")}` : "");
    const names = [...new Set(changes.flatMap((c) => Object.keys(c.fields)))].slice(0, 8);
    const head = document.createElement("tr");
    for (const n of ["when", "change", "external id", ...names]) head.append(cell("th", n));
    $("records").tHead.replaceChildren(head);
    $("records").tBodies[0].replaceChildren(...changes.map((c) => {
      const row = document.createElement("tr");
      for (const v of [new Date(c.at * 1000).toLocaleTimeString(), c.action, c.external_id, ...names.map((n) => c.fields[n] ?? "")])
        row.append(cell("td", String(v)));
      return row;
    }));
  } catch { $("counts").textContent = "the simulator can't be reached"; }
}
refresh(); setInterval(refresh, 2000);
