// What one run did, in a dialog: its numbers, budget, command, growth path, saturation and widths. Follows page.js.

const NAMED_LINES = 12; // with more groups than this, lines are told apart by a colour bar

function depthColours(count) {
  const stops = dark.matches ? data.colours.depth_on_dark : data.colours.depth;
  return Array.from(
    { length: count },
    (_, index) => stops[Math.round((index / Math.max(count - 1, 1)) * (stops.length - 1))],
  );
}

function roundMarks(run, colour) {
  return run.round_ends.map(([, epoch]) => ({
    type: "line",
    yref: "paper",
    x0: epoch,
    x1: epoch,
    y0: 0,
    y1: 1,
    line: { color: colour, width: 1, dash: "dot" },
  }));
}

function roundNumbers(run, epochs, element) {
  // where there is room
  const apart = (22 * epochs) / Math.max(element.clientWidth - 140, 100);
  let free = -Infinity;
  return run.round_ends
    .filter(([, epoch]) => {
      const fits = epoch >= free;
      if (fits) free = epoch + apart;
      return fits;
    })
    .map(([number, epoch]) => ({
      x: epoch,
      y: 1,
      yref: "paper",
      yanchor: "bottom",
      text: plain(number),
      showarrow: false,
      font: { size: 10, color: css("--soft") },
    }));
}

function widthAxis(widths) {
  // from zero, or, where that would flatten the narrow groups, logarithmic
  const low = smallest(widths);
  const high = largest(widths);
  if (high <= 8 * low) return { range: [0, 1.08 * high], type: "linear", nticks: 7 };
  const ticks = Array.from({ length: 17 }, (_, power) => 2 ** power);
  return {
    range: [Math.log10(low / 1.5), Math.log10(1.25 * high)],
    type: "log",
    tickvals: ticks,
    ticktext: ticks.map(String),
  };
}

function depthAxis(depths) {
  // it grows by ones: from zero
  const most = largest(depths);
  return { range: [0, 1.08 * most], type: "linear", dtick: Math.ceil(most / 10) };
}

function epochAxis(start, end) {
  const steps = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];
  return axis({
    title: "epochs finished",
    range: [start, end],
    dtick: steps.find((step) => (end - start) / step <= 9),
  });
}

const sizeAxis = (run) => (run.deep ? "depth (blocks)" : "width (channels)");

function drawPath(run, element) {
  const { names: lines, epochs, sizes } = run.path;
  const end = Math.max(run.epochs, epochs[epochs.length - 1] + 1);
  const colours = depthColours(lines.length);
  const scale = run.deep ? depthAxis(sizes.flat()) : widthAxis(sizes.flat());
  const traces = lines.map((name, index) => {
    // equal widths lie on each other: the later ones are thinner, so that all can be seen
    const thickness = 1.5 + 1.2 * ((lines.length - 1 - index) % 4);
    const steps = [...sizes[index], sizes[index][epochs.length - 1]];
    return {
      x: [...epochs, end],
      y: steps,
      mode: "lines",
      line: { shape: "hv", color: colours[index], width: thickness },
      text: plain(name),
      customdata: steps.map(plain),
      hovertemplate: `%{text}: ${run.deep ? "depth" : "width"} %{customdata} after %{x} epochs<extra></extra>`,
    };
  });
  const shades = run.phases.map(([phase, x0, x1]) => ({
    type: "rect",
    yref: "paper",
    x0,
    x1,
    y0: 0,
    y1: 1,
    fillcolor: (data.colours.phases[phase] ?? ["", css("--grey")])[1],
    opacity: 0.12,
    line: { width: 0 },
    layer: "below",
  }));
  const names = run.phases
    .filter(([, x0, x1]) => x1 - x0 > 0.2 * end)
    .map(([phase, x0, x1]) => ({
      x: (x0 + x1) / 2,
      y: 0,
      yref: "paper",
      yanchor: "bottom",
      text: (data.colours.phases[phase] ?? [plain(phase)])[0],
      showarrow: false,
      font: { size: 11, color: css("--soft") },
      bgcolor: css("--ground"),
      opacity: 0.85,
      borderpad: 1,
    }));
  draw(element, traces, {
    xaxis: epochAxis(0, end),
    yaxis: axis({ title: sizeAxis(run), ...scale }),
    shapes: [...shades, ...roundMarks(run, css("--grey"))],
    annotations: [...names, ...roundNumbers(run, end, element)],
  });
}

function pathLegend(run) {
  const { names, sizes } = run.path;
  const colours = depthColours(names.length);
  if (names.length <= NAMED_LINES) {
    return names.map((name, index) => key(keySign("line", colours[index]), `${name} ${sizes[index].slice(-1)}`));
  }
  const scale = keySign("scale", `linear-gradient(to right, ${depthColours(16).join(", ")})`);
  const last = names[names.length - 1];
  return [make("span", {}, make("span", { textContent: names[0] }), scale, make("span", { textContent: last }))];
}

function drawSaturation(run, element) {
  const { names, epochs, values } = run.saturation;
  const height = Math.min(Math.max(220, 80 + 16 * names.length), 640);
  const step = Math.ceil((names.length * 13) / (height - 80));
  const shown = names.map((_, index) => index).filter((index) => index % step === 0);
  const map = {
    type: "heatmap",
    x: [epochs[0] - 1, ...epochs],
    z: values,
    zmin: 0,
    zmax: 1,
    colorscale: "Cividis",
    hoverongaps: false,
    text: names.map((name) => epochs.map((epoch) => plain(`${name}, epoch ${epoch}`))),
    hovertemplate: "%{text}: %{z:.0%} selected<extra></extra>",
    colorbar: { thickness: 12, outlinewidth: 0, tickformat: ".0%", nticks: 6, x: 1.01, xpad: 2 },
  };
  draw(element, [map], {
    height,
    margin: { l: 48, r: 12, t: 22, b: 40 },
    xaxis: epochAxis(epochs[0] - 1, epochs[epochs.length - 1]),
    yaxis: axis({
      autorange: "reversed",
      ticks: "",
      tickvals: shown,
      ticktext: shown.map((index) => plain(names[index])),
    }),
    shapes: roundMarks(run, "#ffffff"),
    annotations: roundNumbers(run, epochs.length, element),
  });
}

function drawSizes(run, element) {
  const { names } = run.path;
  const { seed, final, full } = run.sizes;
  const x = names.map((_, index) => index);
  const text = names.map((name, index) => {
    const share = full?.[index]
      ? `<br>full backbone ${plain(full[index])} (${((100 * final[index]) / full[index]).toFixed(0)} %)`
      : "";
    const start = run.round_ends.length ? `<br>seed network ${plain(seed[index] ?? "without it")}` : "";
    return `<b>${plain(name)}</b><br>${run.finished ? "final" : "so far"} ${plain(final[index])}${share}${start}`;
  });
  const bars = { type: "bar", x, text, textposition: "none", hovertemplate: "%{text}<extra></extra>" };
  const traces = [{ ...bars, y: final, width: 0.56, marker: { color: data.colours.final } }];
  if (run.round_ends.length) {
    traces.push({
      x: x.flatMap((index) => [index - 0.28, index + 0.28, null]),
      y: seed.flatMap((size) => [size, size, null]),
      mode: "lines",
      line: { color: data.colours.seed, width: 2.5 },
      hoverinfo: "skip",
    });
  }
  if (full) traces.unshift({ ...bars, y: full, width: 0.86, marker: { color: css("--pale") } });
  const room = Math.max(element.clientWidth - 70, 100);
  const turned = names.reduce((sum, name) => sum + name.length + 2, 0) * 7 > room;
  const step = Math.ceil((names.length * 15) / room);
  const shown = x.filter((index) => index % step === 0);
  draw(element, traces, {
    barmode: "overlay",
    height: turned ? 360 : 300,
    xaxis: axis({
      tickvals: shown,
      ticktext: shown.map((index) => plain(names[index])),
      tickangle: turned ? -90 : 0,
      ticks: "",
      range: [-0.6, names.length - 0.4],
    }),
    yaxis: axis({
      title: sizeAxis(run),
      showgrid: true,
      ...(run.deep ? depthAxis([...final, ...(full ?? [])]) : { rangemode: "tozero" }),
    }),
  });
}

function sizesLegend(run) {
  const full = run.sizes.full ? [key(keySign("bar", css("--pale")), "full backbone")] : [];
  const seed = run.round_ends.length ? [key(keySign("line", data.colours.seed), "seed network")] : [];
  return [key(keySign("bar", data.colours.final), run.finished ? "final" : "so far"), ...full, ...seed];
}

function figureSection(title, hint, keys, drawInto, run) {
  const element = make("div", { className: "figure", role: "figure", ariaLabel: `${title} of ${run.name}` });
  const section = make("section", {}, make("h3", { textContent: title }));
  if (hint) section.append(make("p", { className: "hint", textContent: hint }));
  if (keys.length) section.append(make("div", { className: "legend" }, ...keys));
  section.append(element);
  return [section, () => drawInto(run, element)];
}

function facts(run) {
  return make(
    "dl",
    { className: "facts" },
    ...run.facts.map(([name, text]) =>
      make(
        "div",
        { className: name === "Directory" ? "wide" : "" },
        make("dt", { textContent: name }),
        make("dd", { textContent: text }),
      ),
    ),
  );
}

function budgets(run) {
  const bars = run.budgets.flatMap(({ kind, percent, text }) => {
    const used = make("i");
    used.style.width = `${Math.min(percent, 100)}%`;
    used.style.background = percent > 100 ? data.colours.seed : data.colours.final;
    return [
      make("span", { textContent: kind }),
      make("div", { ariaHidden: "true" }, used),
      make("span", { textContent: `${percent.toFixed(2)} % (${text})` }),
    ];
  });
  return make("section", {}, make("h3", { textContent: "Budget used" }), make("div", { className: "budget" }, ...bars));
}

function command(run) {
  // one click selects all of it
  return make("section", {}, make("h3", { textContent: "Command" }), make("pre", { textContent: run.command }));
}

function differences(index) {
  // what another run, which is chosen here, was told and reached otherwise
  if (data.runs.length < 2) return [];
  const run = data.runs[index];
  const choice = make("select", { ariaLabel: "Another run" }, make("option", { value: "", textContent: "choose a run" }));
  data.runs.forEach((other, number) => {
    if (number !== index) choice.append(make("option", { value: number, textContent: other.name }));
  });
  const result = make("div", { className: "scroll" });
  choice.addEventListener("change", () => {
    const other = data.runs[choice.value];
    if (!other) return result.replaceChildren();
    const facts = [Object.fromEntries(run.facts), Object.fromEntries(other.facts)];
    const rows = [[run.options, other.options], facts].flatMap(([ours, theirs]) =>
      [...new Set([...Object.keys(ours), ...Object.keys(theirs)])]
        .filter((name) => ours[name] !== theirs[name])
        .map((name) => [name, ours[name] ?? "", theirs[name] ?? ""]),
    );
    const line = (tag, cells) => make("tr", {}, ...cells.map((textContent) => make(tag, { textContent })));
    const body = make("tbody", {}, ...rows.map((cells) => line("td", cells)));
    return result.replaceChildren(
      make("table", { className: "differences" }, make("thead", {}, line("th", ["", "this run", other.name])), body),
    );
  });
  const title = make("h3", { textContent: "Differences from another run" });
  return [make("section", {}, title, make("p", {}, choice), result)];
}

function drawCurves(curve) {
  return (run, element) => {
    const colours = { training: data.colours.final, validation: data.colours.seed };
    const traces = Object.entries(curve.lines).map(([kind, y]) => ({
      x: run.measured,
      y,
      connectgaps: true,
      mode: y.length < 40 ? "lines+markers" : "lines",
      line: { color: colours[kind], width: 2 },
      marker: { size: 4 },
      hovertemplate: `${kind} %{y} after %{x} epochs<extra></extra>`,
    }));
    const end = Math.max(run.epochs, 1);
    draw(element, traces, { xaxis: epochAxis(0, end), yaxis: axis({ title: curve.title }) });
  };
}

function repetitions(index) {
  const group = data.repetitions.find((members) => members.includes(index));
  if (group.length < 2) return [];
  const links = group.map((member) =>
    member === index
      ? make("b", { textContent: `seed ${data.runs[member].seed}` })
      : make("a", { href: `#run-${member}`, textContent: `seed ${data.runs[member].seed}` }),
  );
  return [
    make("p", { className: "hint" }, "Repetitions: ", ...links.flatMap((link, at) => (at ? [" · ", link] : [link]))),
  ];
}

function showRun(index) {
  const run = data.runs[index];
  document.getElementById("name").textContent = run.name;
  const details = document.getElementById("details");
  const unfinished = run.finished
    ? []
    : [
        make("p", {
          className: "empty",
          textContent: `Unfinished: read after epoch ${run.epochs}; the test set is read at the end.`,
        }),
      ];
  details.replaceChildren(...unfinished, ...repetitions(index), facts(run));
  if (run.budgets.length) details.append(budgets(run));
  if (run.command) details.append(command(run));
  details.append(...differences(index));
  const figures = [];
  run.curves.forEach((curve) => {
    const keys = [
      key(keySign("line", data.colours.final), "training"),
      key(keySign("line", data.colours.seed), "validation"),
    ];
    figures.push(figureSection(`Learning curve: ${curve.title}`, "", keys, drawCurves(curve), run));
  });
  if (run.sizes && run.round_ends.length) {
    figures.push(
      figureSection(
        run.grew ? "Growth path" : "Widths over the epochs",
        "Each line is a width group (a stage, where blocks are added); it steps in the rounds (dotted, numbered above) " +
          "in which it changed.",
        pathLegend(run),
        drawPath,
        run,
      ),
    );
  }
  if (run.saturation) {
    figures.push(
      figureSection(
        "Saturation",
        "The part of a group's filters that is in the support: the brighter, the more of its capacity is used.",
        [],
        drawSaturation,
        run,
      ),
    );
  }
  if (run.sizes) {
    const what = run.deep ? "depths" : "widths";
    const title = run.finished ? `Final ${what}` : `${run.deep ? "Depths" : "Widths"} so far`;
    figures.push(figureSection(title, "", sizesLegend(run), drawSizes, run));
  }
  details.append(...figures.map(([section]) => section));
  if (!run.round_ends.length) {
    const text = run.grew ? "No growth round yet." : "This run did not change its widths: there was no growing phase.";
    details.append(make("p", { className: "empty", textContent: text }));
  }
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  figures.forEach(([, drawFigure]) => drawFigure()); // once they are on the page and have a width
}
