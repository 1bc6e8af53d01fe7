/* The dashboard: every event is the state of now; curves are fetched when there is a new point. */
const at = id => document.getElementById(id);
function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}
const number = x => x === null || x === undefined ? "–" : short(x);
const percent = x => x === null || x === undefined ? "–" : (100 * x).toFixed(1) + " %";
function fillTable(id, lines) {
  const table = at(id), heads = table.tHead.rows[0].cells;
  table.tBodies[0].replaceChildren(...lines.map(cells => {
    const row = element("tr");
    row.append(...cells.map((cell, i) => element("td", cell, heads[i].className)));
    return row;
  }));
  labelCells(table);
  sortTable(table);
}
function turnView(turn) {
  const box = element("div", undefined, "turn"), tokens = element("div", undefined, "tokens");
  turn.tokens.forEach((text, i) => {
    const token = element("span", text), m = turn.uncertainty[i];
    token.style.setProperty("--m", m ?? 0);
    token.title = m === null ? "no signal" : "M " + m.toFixed(3);
    tokens.append(token);
  });
  box.append(element("div", turn.name, "facts"), tokens);
  return box;
}
function tile(name, value, help) {
  const box = element("div", name, "tile");
  box.title = help;
  box.prepend(element("b", value));
  return box;
}
function showNumbers(state) {
  const last = state.last, gauges = state.gauges;
  at("tiles").replaceChildren(
    tile("held-out success", percent(state.evaluation.success), "Share of held-out tasks that were solved in the last evaluation"),
    tile("training success", percent(last.success), "Share of the last update's episodes that reached their goal"),
    tile("version in the engines", state.version < 0 ? "–" : number(state.version), "Update whose weights all engines run"),
    tile("tokens generated", number(gauges.generated_tokens), "Since the start, rejected responses and evaluations included"),
    tile("tokens/s generated", number(last.generated_tokens_per_second), "Over the last update"),
    tile("turns under way", number(gauges.turns_in_flight), "Responses that engines generate now"),
    tile("episodes to hand out", number(gauges.queue_leases), "Admitted episodes that no actor plays yet"),
    tile("weights to load", number(gauges.queue_weights), "Versions that the learner has published and engines do not run yet"),
    tile("thinking cut", number(gauges.interventions), "Thoughts that control ended, since the start"),
    tile("sampled again", number(gauges.resamples), "Responses that control rejected, since the start"),
    tile("turns cut off", percent(last.truncated_share), "Share of the last update's turns that hit sampling.max_tokens"),
    tile("token age, versions", number(last.token_age_mean), "Mean, over the last update, of versions between sampling and training"),
    tile("engines idle", percent(gauges.idle_share_engine), "Share of the time without a turn in any engine"));
}
function showHeadline(state) {
  const headline = state.headline;
  document.title = state.run + " · " + headline.words;
  at("run").textContent = state.run;
  at("about").textContent = state.about;
  at("directory").textContent = state.directory;
  at("state").textContent = headline.state;
  at("state").className = "state " + headline.state;
  at("words").textContent = headline.words;
  at("next").textContent = "Next: " + headline.next_step;
  const warnings = Object.entries(state.status.warnings || {});
  at("warnings").replaceChildren(...warnings.map(([name, words]) => element("li", name + ": " + words)));
  const dropped = Object.entries(state.status.dropped || {}).filter(([, n]) => n);
  at("dropped").textContent = dropped.length ? "Dropped episodes: " + dropped.map(([why, n]) => n + " " + why).join(", ") : "";
}
let drawn = null;
function drawCurves(state) {
  const key = (state.last.update || 0) + "/" + (state.evaluation.update ?? "");
  if (key === drawn) return;
  drawn = key;
  fetch("charts").then(answer => answer.text()).then(html => {
    at("charts").innerHTML = html;
    at("no-curves").hidden = html !== "";
  }).catch(() => { drawn = null; });
}
function show(state) {
  at("lost").hidden = true;
  showHeadline(state);
  showNumbers(state);
  const watched = state.turns.length ? state.turns.map(turnView) : [element("p", "none of which the signals are watched", "facts")];
  at("turns").replaceChildren(...watched);
  fillTable("decisions", state.decisions.map(d => [d.turn, d.what, d.why, number(d.value), number(d.threshold)]));
  fillTable("engines", state.engines.map(e => [e.url, e.health, number(e.turns)]));
  fillTable("actors", state.actors.map(a => [a.name, number(a.episodes), number(a.silent)]));
  const waits = state.status.waits || [];
  at("waiting").hidden = !waits.length;
  fillTable("waits", waits.map(w => [w.process, w.what, number(w.seconds)]));
  drawCurves(state);
}
const events = new EventSource("events");
events.onmessage = event => show(JSON.parse(event.data));
events.onerror = () => {
  at("lost").hidden = false;
  at("state").textContent = "unreachable";
  at("state").className = "state unreachable";
  at("next").textContent = "";
};
