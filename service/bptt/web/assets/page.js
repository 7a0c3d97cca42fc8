// The page: a list of all models at #/, and one model at #/model/NAME. It asks the server for what is
// new and draws with Plotly. Every text comes from the server as text, never as HTML.
"use strict";

const LIST_SECONDS = 2;
const SAMPLES_MAX = 450;
const HINTS = {
  diverged: "Updates were not finite, so the model does not learn. Lower the learning rate or restore a checkpoint, then resume it.",
  failed: "An internal error ended learning. The server's log has the error; the model is loaded again by itself a few times.",
  read_only: "The journal is damaged. The model predicts and refuses chunks until it is repaired.",
  stalled: "The journal cannot be written. The model continues by itself once it can.",
  recovering: "The model is being recovered from its checkpoint and journal.",
  paused: "The model reads and predicts, and learns nothing until it is resumed.",
};
const WAITING = ["paused", "recovering", "restoring", "rolling_back", "draining", "stopped"];
const CHARTS = [
  { title: "Loss", about: "mean of all updates; below the naive forecast is better", log: true,
    lines: { loss: "model", baseline_loss: "naive forecast" } },
  { title: "Error relative to the naive forecast", about: "below 1 the model is better", level: 1,
    lines: { skill_ratio: "error ratio" } },
  { title: "Gradient norm", about: "a steep rise before clipping: gradients explode", log: true,
    lines: { gradient_norm: "before clipping", clipped_gradient_norm: "after clipping" } },
  { title: "Share of updates that were clipped", about: "above one half, clipping sets the step size", range: [0, 1],
    lines: { clipped_share: "clipped" } },
  { title: "Gradient flow", about: "share of a gradient's norm that is left, by steps back", heat: true },
  { title: "Memory horizon", about: "largest lag at which 1 % of a gradient is left", zero: true,
    lines: { memory_horizon_steps: "steps" } },
  { title: "Steps learned a second", about: "", zero: true, lines: { steps_per_second: "steps" } },
  { title: "Chunks in the queue", about: "chunks that wait to be learned", zero: true,
    lines: { queue_chunks: "chunks" } },
];
const COLOURS = ["#0072b2", "#d55e00", "#009e73"]; // Okabe and Ito
const DASHES = ["solid", "dash", "dot"]; // lines differ in more than colour

const main = document.getElementById("main");
let view = null; // {name, samples, newest, drawn} of the model that is shown; null: the list
let timer = 0;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function number(value) {
  if (value === null || value === undefined) return "–";
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

function state(name) {
  const kind = name === "running" ? "" : WAITING.includes(name) ? " waiting" : " attention";
  return element("span", { className: "state" + kind, textContent: name.replace("_", " ") });
}

function told(text) {
  const status = document.getElementById("connection");
  if (status.textContent !== text) status.textContent = text;
}

function note(title, ...texts) {
  main.replaceChildren(element("h1", { textContent: title }), element("p", { className: "note" }, ...texts));
}

function list(models) {
  if (!models.length) {
    note("No models yet", "Create one with ", element("code", { textContent: "bptt learn MODEL FILE.csv" }), ".");
    return;
  }
  const focused = document.activeElement?.getAttribute("href");
  const heads = ["model", "state", "error ratio", "loss", "steps/s", "steps"].map((each) =>
    element("th", { scope: "col", textContent: each }));
  const rows = models.map((each) => element("tr", {},
    element("td", {}, element("a", { href: "#/model/" + encodeURIComponent(each.model), textContent: each.model })),
    element("td", {}, state(each.state)),
    ...["skill_ratio", "loss", "steps_per_second", "steps"].map((key) =>
      element("td", { textContent: number(each[key]) }))));
  main.replaceChildren(element("h1", { textContent: "Models" }), element("div", { className: "scroll" },
    element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows))));
  [...main.querySelectorAll("a")].find((each) => each.getAttribute("href") === focused)?.focus();
}

function frame(name) {
  main.replaceChildren(
    element("h1", { textContent: name }), element("p", { className: "note", id: "hint" }), element("dl", { id: "figures" }),
    element("div", { className: "charts" }, ...CHARTS.map((each, index) => element("figure", {},
      element("figcaption", { textContent: each.title }, element("span", { textContent: each.about })),
      element("div", { className: "chart", id: "chart" + index })))));
}

function traces(chart, samples) {
  const x = samples.time.map((each) => new Date(each * 1000));
  if (chart.heat) {
    const lags = Object.keys(samples).filter((each) => each.startsWith("flow_") && samples[each].some((value) => value !== null));
    return [{ type: "heatmap", x, y: lags.map((each) => each.slice(5)), z: lags.map((each) => samples[each]), zmin: 0, zmax: 1,
      colorscale: "Cividis", hovertemplate: "%{y} steps back: %{z}<extra></extra>" }];
  }
  return Object.entries(chart.lines).map(([column, label], index) => ({
    type: "scatter", mode: "lines", name: label, x, y: samples[column], connectgaps: false,
    line: { color: COLOURS[index], dash: DASHES[index], width: 2 } }));
}

function layout(chart) {
  const style = getComputedStyle(document.documentElement);
  const [text, line] = ["--text", "--line"].map((each) => style.getPropertyValue(each).trim());
  const y = { gridcolor: line, zeroline: false, automargin: true, exponentformat: "power" };
  if (chart.log) y.type = "log";
  if (chart.zero) y.rangemode = "tozero";
  if (chart.range) y.range = chart.range;
  if (chart.heat) Object.assign(y, { type: "category", title: { text: "steps back" } });
  return {
    margin: { l: 48, r: 12, t: 8, b: 48 }, paper_bgcolor: "transparent", plot_bgcolor: "transparent", font: { color: text },
    xaxis: { gridcolor: line, type: "date" }, yaxis: y, legend: { orientation: "h", y: -0.2 },
    showlegend: Object.keys(chart.lines ?? {}).length > 1,
    shapes: chart.level === undefined ? [] : [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: chart.level, y1: chart.level,
      line: { color: text, width: 1, dash: "dot" } }],
  };
}

function draw(answer) {
  if (!view.drawn) frame(view.name);
  document.getElementById("hint").textContent = HINTS[answer.state] ?? "";
  const figures = [["state", state(answer.state)], ["error ratio", number(answer.skill_ratio)], ["loss", number(answer.loss)],
    ["steps", number(answer.steps)], ["steps/s", number(answer.steps_per_second)]];
  document.getElementById("figures").replaceChildren(...figures.map(([label, value]) =>
    element("div", {}, element("dt", { textContent: label }), element("dd", {}, value))));
  const fresh = answer.samples;
  if (view.drawn && !fresh.time.length) return;
  for (const column of Object.keys(fresh)) {
    view.samples[column] = [...(view.samples[column] ?? []), ...fresh[column]].slice(-SAMPLES_MAX);
  }
  view.newest = view.samples.time.at(-1) ?? 0;
  view.drawn = true;
  CHARTS.forEach((chart, index) => Plotly.react("chart" + index, traces(chart, view.samples), layout(chart),
    { responsive: true, displayModeBar: false }));
}

async function look() {
  clearTimeout(timer);
  const shown = view;
  try {
    if (shown === null) {
      const answer = await fetch("api/models");
      if (!answer.ok) throw new Error(answer.status);
      const models = await answer.json();
      if (view === shown) list(models);
    } else {
      const answer = await fetch(`api/models/${encodeURIComponent(shown.name)}?after=${shown.newest}`);
      if (answer.status === 404) {
        shown.drawn = false;
        if (view === shown) note("No model of this name", shown.name, " does not exist, or was deleted.");
      } else if (!answer.ok) {
        throw new Error(answer.status);
      } else {
        const model = await answer.json();
        if (view === shown) draw(model);
      }
    }
    told("live");
  } catch (error) {
    told("the server does not answer; trying again");
  }
  if (view === shown) timer = setTimeout(look, LIST_SECONDS * 1000);
}

function go() {
  const found = location.hash.match(/^#\/model\/(.+)$/);
  view = found ? { name: decodeURIComponent(found[1]), samples: {}, newest: 0, drawn: false } : null;
  document.title = found ? `${view.name} · bptt` : "bptt";
  main.replaceChildren();
  look();
}

addEventListener("hashchange", () => { go(); main.focus(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", go);
go();
