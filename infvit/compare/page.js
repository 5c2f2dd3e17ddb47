// Sorting: a click on a heading; what is missing stays last in either order.
for (const table of all("table")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const now = head.getAttribute("aria-sort");
    const order = now ? (now === "ascending" ? "descending" : "ascending") : head.dataset.first + "ending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const value = row => row.cells[column].dataset.value;
    const compare = (a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      const numbers = !isNaN(x) && !isNaN(y);
      return sign * (numbers ? x - y : x.localeCompare(y, undefined, {numeric: true}));
    };
    body.append(...[...body.rows].sort(compare));
  }));
}

// Filters: what is ticked in each; nothing ticked is everything. They hold for both tables, every chart and every picture.
const ticked = kind => new Set(all(`[data-filter=${kind}] input:checked`).map(box => box.value));
const shownRows = () => new Set(all("#results tr[data-row]:not([hidden])").map(row => row.dataset.row));
function filter() {
  const kinds = all("[data-filter]").map(box => box.dataset.filter);
  const wanted = kinds.map(kind => [kind, ticked(kind)]).filter(([, values]) => values.size);
  for (const row of all("tr[data-row]")) row.hidden = wanted.some(([kind, values]) => !values.has(row.dataset[kind]));
  const left = shownRows();
  for (const figure of all("figure[data-row]")) figure.hidden = !left.has(figure.dataset.row);
  for (const box of all("[data-filter]")) {
    const n = ticked(box.dataset.filter).size;
    box.classList.toggle("on", n > 0);
    box.querySelector("summary").textContent = box.dataset.words + (n ? `: ${n}` : ": all");
  }
  const rows = all("#results tr[data-row]");
  const shown = document.getElementById("shown");
  shown.hidden = document.getElementById("clear").hidden = !wanted.length;
  shown.textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} shown`;
  drawAll();
}
for (const box of all("[data-filter] input")) box.addEventListener("change", filter);
document.getElementById("clear")?.addEventListener("click", () => {
  all("[data-filter] input:checked").forEach(box => { box.checked = false; });
  filter();
});
document.addEventListener("click", event => {
  for (const box of all("[data-filter][open]")) if (!box.contains(event.target)) box.open = false;
});

// Columns that are rarely read are shown on request.
const rare = document.getElementById("rare");
rare.hidden = !document.querySelector("#results .rare");
rare.addEventListener("click", () => {
  const every = document.getElementById("results").classList.toggle("every");
  rare.setAttribute("aria-pressed", every);
  rare.textContent = every ? "Fewer columns" : "All columns";
  fade();
});

// The configuration of a row: on hover, on focus, and on a tap.
const configs = data("configs");
let shownFor = null;
function showConfig(row, x, y) {
  shownFor = row;
  tip.hidden = !row;
  if (!row) return;
  const facts = row.dataset.run ? configs.runs[row.dataset.run] : configs.rows[row.dataset.row];
  show(row.dataset.row + (row.dataset.run ? `, seed ${row.dataset.seed}` : ""), facts, x, y);
}
for (const row of all("tr[data-row]")) {
  row.addEventListener("pointermove", event => {
    if (event.pointerType !== "mouse") return;
    if (event.target.closest("a")) showConfig(null);
    else if (shownFor === row) move(event.clientX, event.clientY);
    else showConfig(row, event.clientX, event.clientY);
  });
  row.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") showConfig(null); });
  row.addEventListener("click", event => {
    if (!event.target.closest("a") && event.pointerType !== "mouse") showConfig(shownFor === row ? null : row, event.clientX, event.clientY);
  });
  const cell = row.cells[0];
  cell.addEventListener("focus", () => {
    if (!cell.matches(":focus-visible")) return;
    const at = cell.getBoundingClientRect();
    showConfig(row, at.left, at.bottom);
  });
  cell.addEventListener("blur", () => showConfig(null));
}
addEventListener("keydown", event => { if (event.key === "Escape") showConfig(null); });
addEventListener("scroll", () => showConfig(null), {passive: true});

// Charts. A hidden plot has no width to fill: it is drawn when it is first shown.
const specs = data("charts") ?? {};
const themes = data("themes");
const font = getComputedStyle(document.body).fontFamily;
// Only the rows that the filters leave, in the chart and in its legend; colours stay, their scale names every row.
function kept(spec, rows) {
  const ours = {filter: {or: [{field: "row", oneOf: [...rows]}, "!isValid(datum.row)"]}};
  return JSON.parse(JSON.stringify(spec), (key, value) => {
    if (key === "legend" && value?.values) return {...value, values: value.values.filter(name => rows.has(name))};
    return value?.data?.name ? {...value, transform: [ours, ...(value.transform ?? [])]} : value;
  });
}
async function draw(plot) {
  const rows = shownRows();
  const flat = plot.dataset.kind === "rows";
  const narrow = plot.clientWidth < 480;
  plot.style.height = flat ? `${70 + 30 * rows.size}px` : `${320 + 20 * Math.ceil(rows.size / 2)}px`;
  const spec = {...kept(specs[plot.dataset.chart], rows), width: "container", height: "container"};
  const config = {...themes[theme()], font, autosize: {type: "fit", contains: "padding"}};
  config.legend = {...config.legend, columns: narrow ? 2 : 3};
  if (narrow) config.axis = {...config.axis, labelLimit: 110};
  plot.dataset.drawn = theme();
  // Level 1: errors alone. A chart that filters leave empty is not an error.
  await vegaEmbed(plot, spec, {renderer: "svg", actions: false, config, tooltip: {theme: theme()}, logLevel: 1});
}
function drawAll() {
  if (window.vegaEmbed) all(".plot:not([hidden])").forEach(draw);
}
drawAll();
document.addEventListener("worn", drawAll);
for (const button of all("[data-cost]")) {
  button.addEventListener("click", () => {
    for (const other of all("[data-cost]")) {
      other.setAttribute("aria-pressed", other === button);
      document.querySelector(`[data-chart="${other.dataset.cost}"]`).hidden = other !== button;
    }
    draw(document.querySelector(`[data-chart="${button.dataset.cost}"]`));
  });
}
