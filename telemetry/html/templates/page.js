"use strict";
/* What all pages do: tables that sort, readouts of charts, a filter of episodes. */

/* Tables. A click on a head sorts by it, a second one the other way; what is no number comes last. */
function sortKey(row, column) {
  const cell = row.cells[column];
  const text = (cell ? cell.dataset.value ?? cell.textContent : "").trim();
  const number = parseFloat(text.replaceAll(",", ""));
  return { text, number };
}
function compareRows(a, b, column, sign) {
  const left = sortKey(a, column), right = sortKey(b, column);
  const isNumber = [!Number.isNaN(left.number), !Number.isNaN(right.number)];
  if (isNumber[0] && isNumber[1]) return sign * (left.number - right.number);
  if (isNumber[0] !== isNumber[1]) return isNumber[0] ? -1 : 1;
  if (!left.text || !right.text) return left.text ? -1 : right.text ? 1 : 0;
  return sign * left.text.localeCompare(right.text);
}
function sortTable(table) {
  const head = table.querySelector("th[aria-sort]"), body = table.tBodies[0];
  if (!head || !body) return;
  const sign = head.getAttribute("aria-sort") === "descending" ? -1 : 1;
  body.append(...[...body.rows].sort((a, b) => compareRows(a, b, head.cellIndex, sign)));
}
function labelCells(table) {
  const labels = [...table.tHead.rows[0].cells].map(cell => cell.textContent.trim());
  for (const row of table.tBodies[0].rows)
    [...row.cells].forEach((cell, i) => { cell.dataset.label = labels[i]; });
  table.classList.add("labeled");
}
document.addEventListener("click", event => {
  const head = event.target.closest("th");
  if (!head || !event.target.closest("button")) return;
  const descending = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  sortTable(head.closest("table"));
});
document.querySelectorAll("table").forEach(table => { if (table.tHead) labelCells(table); });

/* Charts. Where one points, the values of all lines there. */
const short = x => Math.abs(x) >= 1e4 ? Math.round(x).toLocaleString("en") : String(+x.toPrecision(3));
function nearestPoint(line, x) {
  let nearest = null;
  for (const pair of line.getAttribute("points").split(" ")) {
    const [px, py] = pair.split(",").map(Number);
    if (nearest === null || Math.abs(px - x) < Math.abs(nearest[0] - x)) nearest = [px, py];
  }
  return nearest;
}
function scaled(place, element) {
  const low = Number(element.dataset.low), high = Number(element.dataset.high);
  return low + (high - low) * place / 100;
}
function readOut(figure, clientX) {
  const svg = figure.querySelector(".area svg");
  const axis = [...svg.querySelectorAll("g")].find(group => getComputedStyle(group).display !== "none");
  const lines = axis ? [...axis.querySelectorAll(".line")] : [];
  if (!lines.length) return;
  const box = svg.getBoundingClientRect(), x = 100 * (clientX - box.left) / box.width;
  const points = lines.map(line => nearestPoint(line, x));
  const at = points.map(([px]) => px).reduce((a, b) => Math.abs(b - x) < Math.abs(a - x) ? b : a);
  const words = [];
  points.forEach(([px, py], i) => {
    if (Math.abs(px - at) > 2) return;
    const value = scaled(100 - py, svg);
    const name = lines.length > 1 ? lines[i].dataset.name + " " : "";
    words.push(name + (svg.dataset.share === "1" ? short(100 * value) + " %" : short(value)));
  });
  figure.querySelector(".readout").textContent = axis.dataset.label + " " + short(scaled(at, axis)) + ": " + words.join(" · ");
  let cursor = svg.querySelector(".cursor");
  if (!cursor) {
    cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
    cursor.setAttribute("class", "cursor");
    cursor.setAttribute("y1", 0);
    cursor.setAttribute("y2", 100);
    svg.append(cursor);
  }
  cursor.setAttribute("x1", at);
  cursor.setAttribute("x2", at);
}
document.addEventListener("pointermove", event => {
  const area = event.target.closest?.(".area");
  document.querySelectorAll(".cursor").forEach(cursor => {
    if (cursor.closest(".area") === area) return;
    cursor.closest(".chart").querySelector(".readout").textContent = "";
    cursor.remove();
  });
  if (area) readOut(area.closest(".chart"), event.clientX);
});

/* Episodes: those that have the words, the outcome and, if it is asked for, a decision of control. */
function filterEpisodes() {
  const form = document.getElementById("filter");
  const words = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const outcome = form.elements.outcome.value, decided = form.elements.decided.checked;
  const episodes = [...document.querySelectorAll(".episode")];
  for (const episode of episodes) {
    const text = episode.textContent.toLowerCase();
    const fits = words.every(word => text.includes(word)) && (!outcome || episode.dataset.outcome === outcome)
      && (!decided || episode.dataset.decisions !== "0");
    episode.hidden = !fits;
  }
  const shown = episodes.filter(episode => !episode.hidden).length;
  document.getElementById("shown").textContent = shown + " of " + episodes.length;
}
const filterForm = document.getElementById("filter");
if (filterForm) {
  filterForm.addEventListener("input", filterEpisodes);
  filterForm.addEventListener("submit", event => event.preventDefault());
  filterEpisodes();
}
