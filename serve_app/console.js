// The state of the replica that answers, and a form to try a recommendation. Everything that comes
// from the service is put in as text, never as markup.
"use strict";

const byId = (id) => document.getElementById(id);

async function call(path, options) {
  const answer = await fetch(path, options);
  const body = await answer.json();
  if (!answer.ok) throw new Error(`${body.status} ${body.title}: ${body.detail}`);
  return body;
}

function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  return call(path, { method: "POST", headers, body: JSON.stringify(body) });
}

async function guarded(work) {
  try {
    await work();
    byId("trouble").hidden = true;
  } catch (error) {
    byId("trouble").textContent = error.message;
    byId("trouble").hidden = false;
  }
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

async function showState() {
  const model = await call("/v1/model");
  const lines = {
    "Model version": model.model_version,
    "Trained through": model.trained_through.join(", "),
    "Counted through": model.counters_through.join(", "),
    "Staleness": `${(model.staleness_ms / 1000).toFixed(1)} s`,
    "Items": model.num_items,
    "Events counted": model.counted_events,
    "Answered by": model.replica,
  };
  const rows = Object.entries(lines).flatMap(([name, value]) => [
    element("dt", name),
    element("dd", String(value)),
  ]);
  byId("state").replaceChildren(...rows);
}

async function recommend() {
  const user = byId("user").value;
  const answer = await post("/v1/recommend", { user_id: user, k: Number(byId("k").value) });
  byId("about").textContent =
    answer.reason ??
    `Version ${answer.model_version}, served by ${answer.served}, ` +
      `from ${answer.history_length} items of this user's history.`;
  byId("items").replaceChildren(...answer.items.map((item) => row(user, item, answer.request_id)));
}

function row(user, item, requestId) {
  const why = Object.entries(item.shares)
    .filter(([, share]) => share >= 0.005)
    .sort((one, other) => other[1] - one[1])
    .map(([name, share]) => `${name} ${Math.round(100 * share)} %`);
  const click = element("button", "Click it");
  click.addEventListener("click", () =>
    guarded(async () => {
      await post("/v1/events", {
        event_id: crypto.randomUUID(),
        user_id: user,
        item_id: item.item_id,
        event_type: "click",
        request_id: requestId,
      });
      await recommend();
    }),
  );
  const action = document.createElement("td");
  action.append(click);
  const made = document.createElement("tr");
  made.append(
    element("td", item.title ?? item.item_id),
    element("td", item.score.toFixed(3)),
    element("td", why.join(", ")),
    action,
  );
  return made;
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  guarded(recommend);
});
guarded(showState);
setInterval(() => guarded(showState), 2000);
