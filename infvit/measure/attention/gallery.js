// Values are 16-bit logarithms of their share of the largest one: `codes` in gallery.py.
const {models, heat, lowest, strongest, names} = data("content");
const numbers = text => new Uint16Array(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
const decoded = code => code && Math.exp(-Math.log(lowest) / 65534 * (code - 65535));
for (const model of models) {
  model.codes = numbers(model.codes);
  model.near = model.near.map(near => near && {own: near.own, places: numbers(near.places), codes: numbers(near.codes)});
}
const percent = share => (share ? `${(100 * share).toPrecision(3).replace(/e([+-])/, " × 10^$1")} %` : "0");

// A map: its model, and the offset of the selected block in the model's codes.
let block = null; // null: all blocks together
function look(map) {
  const {model: m, method, image} = map.dataset;
  const model = models[m];
  const at = block === null ? model.depth : Math.min(block, model.depth) - 1;
  const [rows, columns] = model.grid;
  const index = (+method * (model.depth + 1) + at) * names.length + +image;
  const codes = model.codes.subarray(index * rows * columns, (index + 1) * rows * columns);
  const where = at === model.depth ? "all blocks" : `block ${at + 1} of ${model.depth}`;
  return {model, rows, columns, codes, at, image: +image, peak: model.peaks[index], where, method: model.methods[method]};
}
const palette = Array.from({length: 256}, (_, i) => {
  const place = i / 255 * (heat.length - 1), k = Math.min(Math.floor(place), heat.length - 2);
  return heat[k].map((low, c) => Math.round(low + (place - k) * (heat[k + 1][c] - low)));
});
function draw(map) {
  const {rows, columns, codes, peak} = look(map);
  const pixels = new ImageData(columns, rows);
  codes.forEach((code, i) => pixels.data.set([...palette[Math.round(255 * decoded(code))], 255], 4 * i));
  map.querySelector("canvas").getContext("2d").putImageData(pixels, 0, 0);
  map.nextElementSibling.textContent = peak ? `largest ${percent(peak)}` : "0 everywhere";
}

// The token under the pointer: outlined in every map of its row, described beside its own.
let at = null; // {map, token}
const token = (columns, i) => `row ${Math.floor(i / columns) + 1}, column ${i % columns + 1}`;
function outline(map, places, kind) {
  const {columns} = look(map);
  const rect = (i, name) => {
    const one = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [key, value] of Object.entries({x: i % columns, y: Math.floor(i / columns), width: 1, height: 1, class: name})) one.setAttribute(key, value);
    return one;
  };
  map.querySelector("svg").append(...places.map(i => rect(i, "halo")), ...places.map(i => rect(i, kind)));
}
function neighbours({model, rows, columns, at: b, image}, i) {
  const near = model.near[b];
  if (!near) return {places: [], facts: [["Neighbours", "none: this attention weighs no tokens"]]};
  const {own} = near, k = Math.min(strongest, rows * columns), start = (own ? image * rows * columns + i : image) * k;
  const found = Array.from({length: k}, (_, j) => [near.places[start + j], near.codes[start + j]]).filter(([, code]) => code);
  const facts = found.map(([place, code]) => ["", `${place === i && own ? "itself" : token(columns, place)}: ${percent(decoded(code))}`]);
  if (!facts.length) facts.push(["Weighs most", "nothing: every head is off"]);
  else if (own) facts[0][0] = "Weighs most";
  else facts.unshift(["Neighbours", "none of its own: one weight a token, for all alike. Heaviest:"]);
  return {places: found.map(([place]) => place), facts};
}
function point(map, i) {
  if (at?.map === map && at.token === i) return;
  clear();
  at = {map, token: i};
  const shown = look(map);
  const {rows, columns, codes, peak, model, where, method} = shown;
  const share = peak * decoded(codes[i]), rank = 1 + codes.reduce((n, code) => n + (code > codes[i]), 0);
  const {places, facts} = neighbours(shown, i);
  for (const other of map.closest("tr").querySelectorAll(".map")) {
    const there = look(other);
    if (there.rows === rows && there.columns === columns && other !== map) outline(other, [i], "here");
  }
  outline(map, places, "near");
  outline(map, [i], "here");
  show(`${model.name}, ${method.replaceAll("_", " ")}, ${where}`, [
    ["Token", token(columns, i)],
    ["Share", codes[i] === 1 ? `less than ${percent(1.01 * peak * lowest)}` : share ? `${percent(share)} = ${(share * codes.length).toPrecision(3)} × an equal share` : "0"],
    ["Rank", `${rank} of ${codes.length}`],
    ...facts,
  ], 0, 0);
  beside(map);
}
// Below the map, or above it if there is no room, so that the row stays visible.
function beside(map) {
  const box = map.getBoundingClientRect(), tall = tip.offsetHeight;
  move(box.left - 18, box.bottom + tall + 20 > innerHeight ? box.top - tall - 22 : box.bottom - 6);
}
function clear() {
  at = null;
  tip.hidden = true;
  for (const svg of all("#gallery svg")) svg.replaceChildren();
}
const largest = map => look(map).codes.reduce((best, code, i, codes) => (code > codes[best] ? i : best), 0);
function under(map, event) {
  const {rows, columns} = look(map), box = map.getBoundingClientRect();
  const place = (from, size, n) => Math.max(0, Math.min(n - 1, Math.floor(from / size * n)));
  return place(event.clientY - box.top, box.height, rows) * columns + place(event.clientX - box.left, box.width, columns);
}
for (const map of all(".map")) {
  map.addEventListener("pointermove", event => {
    if (event.pointerType === "mouse") point(map, under(map, event));
  });
  map.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") clear(); });
  map.addEventListener("click", event => {
    if (event.pointerType === "mouse") return;
    const i = under(map, event);
    if (at?.map === map && at.token === i) clear();
    else point(map, i);
  });
  map.addEventListener("focus", () => {
    if (map.matches(":focus-visible")) point(map, largest(map));
  });
  map.addEventListener("blur", clear);
  map.addEventListener("keydown", event => {
    const step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
    if (!step) return;
    event.preventDefault();
    if (at?.map !== map) return point(map, largest(map));
    const {rows, columns} = look(map);
    const row = Math.floor(at.token / columns) + step[0], column = at.token % columns + step[1];
    if (row >= 0 && row < rows && column >= 0 && column < columns) point(map, row * columns + column);
  });
}
tip.setAttribute("aria-live", "polite");
addEventListener("keydown", event => { if (event.key === "Escape") clear(); });
// Focus scrolls a map into view: the tip moves with it.
const scrolled = () => (at?.map.matches(":focus-visible") ? beside(at.map) : clear());
for (const pane of [window, document.querySelector(".scroll")]) pane.addEventListener("scroll", scrolled, {passive: true});

// The sliders.
const slider = document.getElementById("block"), together = document.getElementById("together"), opacity = document.getElementById("opacity");
function choose() {
  const every = together.getAttribute("aria-pressed") === "true";
  block = every ? null : +slider.value;
  slider.disabled = every;
  document.getElementById("which").textContent = every ? "all" : `${block} of ${slider.max}`;
  document.getElementById("how").textContent = `${opacity.value} %`;
  document.getElementById("gallery").style.setProperty("--opacity", opacity.value / 100);
  clear();
  all(".map").forEach(draw);
}
slider.addEventListener("input", choose);
opacity.addEventListener("input", choose);
together.addEventListener("click", () => {
  together.setAttribute("aria-pressed", together.getAttribute("aria-pressed") !== "true");
  choose();
});
choose();
