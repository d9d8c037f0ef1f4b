// Draws the plots, which show values under the pointer, a finger or the arrow keys; lets a legend
// hide its series; and opens a reason that a link points to. Without this script, the numbers of
// every plot are shown in a table.
"use strict";
const root = document.documentElement;
const variable = (name) => getComputedStyle(root).getPropertyValue(name).trim();

// Escape texts, because Plotly would interpret tags in them.
const shown = (value, key) => {
  if (Array.isArray(value)) return value.map((one) => shown(one, key));
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, shown(one, name)]));
  }
  if (typeof value !== "string") return value;
  if (key === "color") return variable(value);
  return value.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("\n", "<br>");
};

const axisOf = (own, isAlong) => ({
  automargin: true, gridcolor: variable("--line"), linecolor: variable("--soft"), nticks: 6,
  showline: false, showspikes: isAlong, spikecolor: variable("--soft"), spikethickness: 1,
  zeroline: false, ...own,
});

const layoutOf = ({ xaxis, yaxis, ...own }) => ({
  paper_bgcolor: "transparent", plot_bgcolor: variable("--card"), showlegend: false, bargap: 0,
  margin: { l: 44, r: 12, t: own.shapes?.length ? 20 : 6, b: 44 },
  font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: variable("--soft") },
  hoverlabel: {
    align: "left", bgcolor: variable("--card"), bordercolor: variable("--line"),
    font: { color: variable("--ink") },
  },
  // Dragging with a finger scrolls the page instead of zooming.
  dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
  uirevision: "kept",
  xaxis: {
    ...axisOf(xaxis, own.hovermode === "x unified"), showline: true,
    showgrid: own.hovermode !== "x unified",
    title: { ...xaxis.title, font: { size: 12 }, standoff: 8 },
    ...(!xaxis.categoryarray && { unifiedhovertitle: { text: `${xaxis.title.text} %{x:,}` } }),
  },
  yaxis: axisOf(yaxis, own.hovermode === "y unified"), ...own,
});

class Plot {
  constructor(box) {
    const { data, layout } = JSON.parse(box.nextElementSibling.textContent);
    Object.assign(this, { box, data, layout, isDrawn: false, at: -1 });
    this.along = layout.hovermode[0];
    this.status = document.createElement("output");
    this.status.className = "hidden";
    this.status.setAttribute("aria-live", "polite");
    box.after(this.status);
    box.setAttribute("tabindex", "0");
    box.addEventListener("focus", () => this.isDrawn || this.draw());
    box.addEventListener("blur", () => this.announce(-1));
    box.addEventListener("keydown", (event) => this.press(event));
    this.legend();
  }

  draw() {
    this.isDrawn = true;
    const traces = this.data.map((trace) => ({
      ...shown(trace), ...(trace.hovertext && { hovertemplate: "%{hovertext}<extra></extra>" }),
    }));
    const options = { displayModeBar: false, doubleClick: "reset", responsive: true };
    Plotly.react(this.box, traces, layoutOf(shown(this.layout)), options);
  }

  // The points with values, in order: [category or number, hover texts of its visible series].
  get points() {
    const values = new Map();
    for (const trace of this.data) {
      if (trace.visible === false || !trace.hovertext) continue;
      trace[this.along].forEach((at, index) => {
        values.set(at, [...(values.get(at) ?? []), trace.hovertext[index]]);
      });
    }
    return [...values].sort(([one], [other]) => this.value(one) - this.value(other));
  }

  value(at) {
    return this.layout[`${this.along}axis`].categoryarray?.indexOf(at) ?? at;
  }

  announce(to) {
    this.at = to;
    const point = this.points[to];
    if (!point) {
      this.status.textContent = "";
      if (this.isDrawn) Plotly.Fx.unhover(this.box);
      return;
    }
    const [at, texts] = point;
    const name = typeof at === "number"
      ? `${this.layout.xaxis.title.text} ${at.toLocaleString("en")}` : at.replaceAll("\n", " ");
    this.status.textContent = `${name}: ${texts.join(", ")}`;
    const value = this.value(at);
    Plotly.Fx.hover(this.box, this.along === "x" ? { xval: value, yval: 0 } : { xval: 0, yval: value }, "xy");
  }

  press(event) {
    const last = this.points.length - 1;
    const to = {
      ArrowRight: Math.min(this.at + 1, last), ArrowLeft: this.at < 0 ? last : Math.max(this.at - 1, 0),
      PageDown: Math.min(this.at + 10, last), PageUp: Math.max(this.at - 10, 0),
      Home: 0, End: last, Escape: -1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.announce(to);
  }

  legend() {
    this.box.closest("figure").querySelectorAll(".legend li").forEach((entry, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      button.append(...entry.childNodes);
      entry.append(button);
      button.addEventListener("click", () => {
        const trace = this.data[index];
        trace.visible = trace.visible === false;
        button.setAttribute("aria-pressed", String(trace.visible));
        this.draw();
      });
    });
  }
}

const plots = new Map([...document.querySelectorAll(".plot")].map((box) => [box, new Plot(box)]));
const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    plots.get(target).draw();
  }
}, { rootMargin: "600px" });
for (const box of plots.keys()) near.observe(box);
const redraw = (which) => [...plots.values()].filter(which).forEach((plot) => plot.draw());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw((plot) => plot.isDrawn));

// On paper, all that the page can show is open, but the tables of plots, which are drawn.
const folded = () => [...document.querySelectorAll("details:not([open], .numbers)")];
let opened = [];
addEventListener("beforeprint", () => {
  opened = folded();
  for (const one of opened) one.open = true;
  for (const image of document.images) image.loading = "eager";
  redraw((plot) => !plot.isDrawn);
});
addEventListener("afterprint", () => {
  for (const one of opened) one.open = false;
});

// An image of a row by itself, as large as the window lets it be; the page holds small ones only.
const large = document.createElement("dialog");
large.className = "large";
document.body.append(large);
large.addEventListener("click", () => large.close());
for (const image of document.querySelectorAll(".frame img")) {
  image.tabIndex = 0;
  const open = () => {
    const copy = image.cloneNode();
    copy.removeAttribute("tabindex");
    large.replaceChildren(copy);
    large.showModal();
  };
  image.addEventListener("click", open);
  image.addEventListener("keydown", (event) => event.key === "Enter" && open());
}

const reveal = () => {
  const named = document.getElementById(location.hash.slice(1));
  if (named instanceof HTMLDetailsElement) named.open = true;
};
addEventListener("hashchange", reveal);
reveal();
