// What the page can do beyond showing itself: charts tell their values under pointer, finger and
// arrow keys, and a legend hides its series. Without it every mark still has its <title>.
"use strict";
for (const chart of document.querySelectorAll("svg.chart")) {
  const marks = [...chart.querySelectorAll("g.mark")];
  const figure = chart.closest("figure");
  if (!marks.length || !figure) continue;
  const told = document.createElement("output");
  told.className = "told";
  told.setAttribute("aria-live", "polite");
  told.textContent = "\u00a0";
  chart.after(told);
  chart.setAttribute("tabindex", "0");
  let at = -1;
  const tell = (index) => {
    if (at >= 0) marks[at].classList.remove("at");
    at = index;
    if (at >= 0) marks[at].classList.add("at");
    told.textContent = at >= 0 ? marks[at].querySelector("title").textContent : "\u00a0";
  };
  marks.forEach((mark, index) => mark.addEventListener("pointerenter", () => tell(index)));
  chart.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") tell(-1);
  });
  chart.addEventListener("blur", () => tell(-1));
  chart.addEventListener("keydown", (event) => {
    const last = marks.length - 1;
    const to = {
      ArrowRight: Math.min(at + 1, last), ArrowLeft: at < 0 ? last : Math.max(at - 1, 0),
      Home: 0, End: last, Escape: -1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    tell(to);
  });
}
for (const entry of document.querySelectorAll("figure .legend li[data-series]")) {
  const series = entry.closest("figure").querySelectorAll(`svg.chart > .line, svg.chart .mark > rect`);
  const own = [...series].filter((mark) => mark.getAttribute("class").replace(/^line /, "") === entry.dataset.series);
  if (!own.length) continue;
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-pressed", "true");
  button.append(...entry.childNodes);
  entry.append(button);
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(shown));
    for (const mark of own) mark.classList.toggle("off", !shown);
  });
}
