"use strict";
// The table stands in the page; this sorts it, draws scores against cost from the numbers beside it, and opens runs
// (page_run.js).
// Names are user input: they reach the page as textContent, and Plotly through plain().

const data = JSON.parse(document.getElementById("data").textContent);
const dialog = document.getElementById("run");
const dark = matchMedia("(prefers-color-scheme: dark)");
const SIGNS = { circle: "●", square: "■", diamond: "◆", "triangle-up": "▲", "triangle-down": "▼", cross: "✚" };

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const largest = (values) => values.reduce((most, value) => Math.max(most, value), -Infinity);
const smallest = (values) => values.reduce((least, value) => Math.min(least, value), Infinity);

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Table -----------------------------------------------------------------------------------------------------------

const table = document.querySelector("table");

function cell(row, column) {
  const { dataset, textContent } = row.cells[column];
  return dataset.value === undefined ? textContent : Number(dataset.value);
}

function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === ""); // what is not known stands last either way
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), undefined, { numeric: true });
}

function sortBy(column) {
  const heads = [...table.tHead.rows[0].cells];
  const { first } = heads[column].dataset;
  const other = first === "ascending" ? "descending" : "ascending";
  const order = heads[column].ariaSort === first ? other : first;
  const sign = order === "ascending" ? 1 : -1;
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", order);
  // A body is a configuration, ranked by its mean where it has one; its runs are sorted within it.
  const keyed = [...table.tBodies].map((body) => {
    const runs = [...body.querySelectorAll("tr[data-run]")];
    runs.sort((a, b) => compare(cell(a, column), cell(b, column), sign));
    const mean = body.querySelector("tr.mean");
    body.append(...runs, ...(mean ? [mean] : []));
    const averaged = mean && mean.cells[column].dataset.value !== undefined;
    return [cell(averaged ? mean : runs[0], column), body];
  });
  keyed.sort(([a], [b]) => compare(a, b, sign));
  table.append(...keyed.map(([, body]) => body));
}

table.tHead.addEventListener("click", (event) => {
  const head = event.target.closest("th");
  if (head) sortBy(head.cellIndex);
});
table.addEventListener("click", (event) => {
  const row = event.target.closest("tr[data-run]");
  if (row && !event.target.closest("a") && getSelection().isCollapsed) openRun(row.dataset.run);
});

const words = [...table.querySelectorAll("tr[data-run]")].map((row) => {
  const run = data.runs[row.dataset.run];
  const options = Object.entries(run.options).map(([name, value]) => `${name}=${value}`);
  return [row, [row.textContent, run.name, run.command ?? "", ...options].join(" ").toLowerCase()];
});

let redrawing;

function filterBy(text) {
  const wanted = text.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const [row, known] of words) {
    row.hidden = !wanted.every((word) => known.includes(word));
    shown += !row.hidden;
  }
  for (const body of table.tBodies) {
    const runs = [...body.querySelectorAll("tr[data-run]")];
    const mean = body.querySelector("tr.mean");
    if (mean) mean.hidden = runs.some((row) => row.hidden); // it is of all of them
  }
  document.getElementById("shown").textContent = wanted.length ? `${shown} of ${words.length}` : "";
  clearTimeout(redrawing);
  redrawing = setTimeout(drawComparison, 150); // once for several keys
}

document.getElementById("filter").addEventListener("input", (event) => filterBy(event.target.value));

// The points of a panel of which some run is in the table, or all if none is.
function shownPoints(panel) {
  const hidden = new Set(words.filter(([row]) => row.hidden).map(([row]) => Number(row.dataset.run)));
  const points = panel.points.filter((point) => point.runs.some((index) => !hidden.has(index)));
  return points.length ? points : panel.points;
}

// Figures ---------------------------------------------------------------------------------------------------------

// Plotly, unpacked from the page; null in a browser that cannot. The table and the runs' numbers do not need it.
const plotly = (async () => {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (sign) => sign.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  document.head.append(make("script", { textContent: await new Response(unpacked).text() }));
  return window.Plotly;
})().catch(() => null);

const axis = (more = {}) => ({
  showgrid: false,
  zeroline: false,
  showline: true,
  linecolor: css("--grey"),
  gridcolor: css("--pale"),
  ticks: "outside",
  ticklen: 4,
  tickcolor: css("--grey"),
  automargin: true,
  ...more,
  title: { text: plain(more.title ?? ""), standoff: 8 },
});

async function draw(element, traces, layout) {
  const library = await plotly;
  if (!library) {
    const text = "This browser cannot unpack the figures; one from 2023 or later can.";
    element.replaceChildren(make("p", { className: "empty", textContent: text }));
    return false;
  }
  const touch = matchMedia("(pointer: coarse)").matches; // a finger scrolls the page, a mouse zooms
  const font = { family: "system-ui, 'DejaVu Sans', sans-serif", size: 12, color: css("--ink") };
  const look = {
    height: 320,
    margin: { l: 48, r: 12, t: 22, b: 40 },
    showlegend: false,
    hovermode: "closest",
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    dragmode: touch ? false : "zoom",
    font,
    hoverlabel: { bgcolor: css("--raised"), bordercolor: css("--grey"), font, align: "left", namelength: -1 },
  };
  await library.react(element, traces, { ...look, ...layout }, { displayModeBar: false, responsive: true });
  return true;
}

const seriesColour = (index) => {
  const colour = data.colours.series[index % data.colours.series.length];
  return colour === data.colours.ink ? css("--ink") : colour;
};
const seriesSymbol = (index) => {
  const { series, symbols } = data.colours;
  return symbols[Math.floor(index / series.length) % symbols.length];
};

function key(sign, text) {
  return make("span", {}, sign, make("span", { textContent: text }));
}

function keySign(kind, colour, text = "") {
  const sign = make("i", { className: kind, textContent: text, ariaHidden: "true" });
  sign.style[{ bar: "background", scale: "background", line: "borderColor" }[kind] ?? "color"] = colour;
  return sign;
}

function folded(name, length = 44) {
  // long names would make a hover label wider than the screen
  const lines = [];
  for (let start = 0; start < name.length; start += length) lines.push(plain(name.slice(start, start + length)));
  return lines.join("<br>");
}

function panelTraces(panel, shown) {
  const front = {
    ...panel.front,
    mode: "lines",
    line: { shape: "hv", color: css("--grey"), width: 1.4 },
    hoverinfo: "skip",
  };
  const runs = shown
    .filter((point) => point.runs.length > 1)
    .flatMap((point) =>
      point.runs.map((index) => ({ index, colour: seriesColour(point.colour), run: data.runs[index] })),
    );
  const dots = {
    x: runs.map(({ run }) => run[panel.cost]),
    y: runs.map(({ run }) => run[panel.score]),
    mode: "markers",
    marker: { color: runs.map(({ colour }) => colour), size: 5, opacity: 0.45 },
    customdata: runs.map(({ index }) => index),
    text: runs.map(({ run }) => `${folded(run.name)}<br>${plain(`${panel.score_title} ${run.score}`)}`),
    hovertemplate: "%{text}<extra></extra>",
  };
  const series = [...new Set(shown.map((point) => point.series))];
  const means = series.map((name) => {
    const points = shown.filter((point) => point.series === name);
    const colour = seriesColour(points[0].colour);
    const bars = { color: colour, thickness: 1, width: 3 };
    return {
      x: points.map((point) => point.x),
      y: points.map((point) => point.y),
      mode: "markers",
      cliponaxis: false,
      error_x: { ...bars, array: points.map((point) => point.dx), visible: points.some((point) => point.dx > 0) },
      error_y: { ...bars, array: points.map((point) => point.dy), visible: points.some((point) => point.dy > 0) },
      marker: { color: colour, symbol: seriesSymbol(points[0].colour), size: 9 },
      customdata: points.map((point) => point.runs[0]),
      text: points.map((point) => pointText(panel, point)),
      hovertemplate: "%{text}<extra></extra>",
    };
  });
  return [front, dots, ...means];
}

function pointText(panel, point) {
  const many = point.runs.length > 1;
  const seeds = many ? ` (${point.runs.length} seeds)` : "";
  return (
    `<b>${folded(data.runs[point.runs[0]].name)}</b>${many ? "<br>and its repetitions" : ""}<br>` +
    `${plain(point.series)}<br>${plain(`${panel.score_title} ${point.score}`)}${seeds}<br>` +
    plain(`${panel.label} ${point.cost}`)
  );
}

function costRange(values) {
  // wide enough that at least two of its ticks are labelled
  const low = smallest(values) / 1.3;
  const high = largest(values) * 1.3;
  const widen = Math.max(1, Math.sqrt(5 / (high / low)));
  return [Math.log10(low / widen), Math.log10(high * widen)];
}

function scoreRange(points) {
  // room around the points and their bars, also around a single one
  const known = points.filter((point) => point.y !== null);
  const low = Math.min(...known.map((point) => point.y - point.dy));
  const high = Math.max(...known.map((point) => point.y + point.dy));
  const room = 0.08 * (high - low) || 0.02 * Math.abs(high) || 1;
  return [low - room, high + room];
}

function drawComparison() {
  const legend = document.getElementById("legend");
  const panels = document.getElementById("panels");
  legend.replaceChildren();
  if (!data.panels.length) {
    panels.replaceChildren(
      make("p", { className: "empty", textContent: "No finished run yet: the test set is read at the end of a run." }),
    );
    return false;
  }
  const series = new Map(data.panels.flatMap((panel) => panel.points).map((point) => [point.series, point.colour]));
  series.forEach((index, name) =>
    legend.append(key(keySign("point", seriesColour(index), SIGNS[seriesSymbol(index)]), name)),
  );
  legend.append(key(keySign("line", css("--grey")), "Pareto front"));
  if (!panels.querySelector(".figure")) layPanels(panels);
  panels.querySelectorAll(".figure").forEach(async (element, index) => {
    const panel = data.panels[index];
    const shown = shownPoints(panel);
    const range = costRange(shown.map((point) => point.x));
    const few = range[1] - range[0] < Math.log10(60);
    const fitted = shown.length < panel.points.length ? { range: scoreRange(shown) } : {};
    const drawn = await draw(element, panelTraces(panel, shown), {
      xaxis: axis({ title: panel.label, type: "log", range, tickformat: "~s", dtick: few ? "D2" : 1 }),
      yaxis: axis({ title: panel.score_label, showgrid: true, ...fitted }),
    });
    if (!drawn) return;
    element.removeAllListeners("plotly_click");
    element.on("plotly_click", ({ points }) => openRun(points[0].customdata));
  });
}

function layPanels(panels) {
  const headings = [...new Set(data.panels.map((panel) => panel.heading))];
  panels.replaceChildren(
    ...headings.flatMap((heading) => {
      const figures = data.panels
        .filter((panel) => panel.heading === heading)
        .map((panel) =>
          make("div", {
            className: "figure",
            role: "figure",
            ariaLabel: `${panel.score_title} against ${panel.label}, ${heading}`,
          }),
        );
      const title = headings.length > 1 ? [make("h3", { textContent: heading })] : [];
      return [...title, make("div", { className: "panels" }, ...figures)];
    }),
  );
}

// Start -------------------------------------------------------------------------------------------------------------

// The address names the open run, so that it can be linked to and the browser's way back closes it.
function openRun(index) {
  location.hash = `run-${index}`;
}

function followAddress() {
  const index = Number(/^#run-(\d+)$/.exec(location.hash)?.[1] ?? NaN);
  if (data.runs[index]) showRun(index);
  else if (dialog.open) dialog.close();
}

addEventListener("hashchange", followAddress);
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
dialog.addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));
dark.addEventListener("change", () => {
  drawComparison();
  if (dialog.open) followAddress();
});
addEventListener("DOMContentLoaded", () => {
  drawComparison();
  followAddress();
});
