"use strict";
const $ = (id) => document.getElementById(id);
const SAID = { accept: "accepted", reject: "rejected", fix: "fixed" };
let pairs = [];
let current = 0;
let isGrid = false;
let saving = Promise.resolve();

function show(id, text) { $(id).textContent = text; }

function reviewed() { return pairs.filter((pair) => pair.decision).length; }

function pill(element, decision) {
  element.className = "pill" + (decision ? " " + decision.verdict : "");
  element.textContent = decision ? SAID[decision.verdict] : "";
  element.hidden = !decision;
}

function ofFilter(pair) {
  if (!pair.decision || pair.is_kept === null) return "";
  const score = pair.score === null ? "" : `, ITM ${pair.score.toFixed(2)}`;
  if (pair.is_kept) return `The filter keeps this pair${score}.`;
  return `The filter rejects this pair${score}: it is not exported, whatever you decide here.`;
}

function drawSentences(pair) {
  const shown = pair.decision ? pair.sentences : [];
  $("sentences").hidden = !shown.length;
  $("sentences").replaceChildren(...shown.map((sentence) => {
    const item = document.createElement("li");
    item.className = sentence.is_kept ? "" : "gone";
    item.dir = "auto";
    const score = sentence.score === null ? "" : ` (ITM ${sentence.score.toFixed(2)})`;
    item.textContent = `${sentence.is_kept ? "kept" : "dropped"}: ${sentence.text}${score}`;
    return item;
  }));
}

function drawOne() {
  const pair = pairs[current];
  const fixed = pair.decision ? pair.decision.fixed : null;
  const image = $("image");
  if (image.getAttribute("src") !== `images/${current}`) {
    image.hidden = false;
    $("lost").hidden = true;
    image.src = `images/${current}`;
  }
  image.alt = `The image of pair ${current + 1}`;
  show("number", `${current + 1} of ${pairs.length}`);
  show("source", `${pair.source} caption`);
  pill($("verdict"), pair.decision);
  show("caption", pair.shown);
  $("caption").classList.toggle("gone", Boolean(pair.decision && pair.decision.verdict !== "accept"));
  $("fixed").hidden = fixed === null;
  show("fixed", fixed === null ? "" : fixed);
  show("filter", ofFilter(pair));
  drawSentences(pair);
  show("url", pair.url);
  if (current + 1 < pairs.length) new Image().src = `images/${current + 1}`;
}

function makeCell(pair, index) {
  const item = document.createElement("li");
  const cell = document.createElement("button");
  const image = document.createElement("img");
  const text = document.createElement("span");
  cell.type = "button";
  image.loading = "lazy";
  image.alt = `The image of pair ${index + 1}`;
  image.src = `images/${index}`;
  text.className = "text";
  text.dir = "auto";
  text.textContent = pair.shown;
  cell.append(image, text, document.createElement("span"));
  cell.addEventListener("click", () => go(index));
  cell.addEventListener("dblclick", () => view(false));
  item.append(cell);
  return item;
}

function drawCell(index) {
  const cell = $("grid").children[index].firstChild;
  const decision = pairs[index].decision;
  cell.className = "cell" + (decision ? " " + decision.verdict : "");
  cell.setAttribute("aria-current", String(index === current));
  cell.children[1].textContent = decision && decision.fixed !== null ? decision.fixed : pairs[index].shown;
  pill(cell.lastChild, decision);
}

function draw() {
  const number = reviewed();
  $("bar").max = pairs.length;
  $("bar").value = number;
  show("count", `${number} of ${pairs.length} reviewed`);
  $("one").hidden = isGrid;
  $("grid").hidden = !isGrid;
  $("back").disabled = current === 0;
  $("next").disabled = current === pairs.length - 1;
  if (isGrid) pairs.forEach((_, index) => drawCell(index));
  else drawOne();
}

function go(index) {
  current = Math.max(0, Math.min(pairs.length - 1, index));
  closeForm();
  draw();
  if (isGrid) {
    const cell = $("grid").children[current].firstChild;
    cell.focus({ preventScroll: true });
    cell.scrollIntoView({ block: "nearest" });
  }
}

function view(grid) {
  isGrid = grid;
  $("view").setAttribute("aria-pressed", String(grid));
  if (grid && !$("grid").children.length) $("grid").append(...pairs.map(makeCell));
  go(current);
}

function agreement(found) {
  $("agreement").hidden = !found;
  if (!found) return;
  for (const name of ["both_keep", "only_filter", "only_people", "neither"]) show(name, found[name]);
  const share = found.accuracy === null ? "No pair is reviewed yet." : `Accuracy ${(100 * found.accuracy).toFixed(1)}%. `;
  const kappa = found.kappa === null ? "Cohen's kappa is undefined until you and the filter have both kept and rejected pairs." : `Cohen's kappa ${found.kappa.toFixed(2)}.`;
  show("kappa", found.accuracy === null ? share : share + kappa);
}

async function ask(place, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  const answer = await fetch(place, options);
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error);
  return value;
}

function trouble(error) {
  show("trouble", error ? `Not saved: ${error.message}. Is capfilt review still running?` : "");
  $("trouble").hidden = !error;
}

function decide(verdict, fixed) {
  const index = current;
  const before = pairs[index].decision;
  const mine = verdict === null ? null : { verdict, fixed: fixed === undefined ? null : fixed };
  pairs[index].decision = mine;
  show("status", `Pair ${index + 1} ${verdict === null ? "has no decision now" : SAID[verdict]}.`);
  if (verdict !== null && index + 1 < pairs.length) go(index + 1);
  else go(index);
  if (verdict !== null && reviewed() === pairs.length) {
    show("status", "That was the last pair: Done ends the review.");
  }
  saving = saving.then(() => ask("decide", { pair: index, verdict, fixed })).then((found) => {
    if (pairs[index].decision === mine) pairs[index].decision = found.decision;
    trouble(null);
    agreement(found.agreement);
    draw();
  }, (error) => {
    if (pairs[index].decision === mine) pairs[index].decision = before;
    trouble(error);
    go(index);
  });
}

function openForm() {
  if (isGrid) view(false);
  const pair = pairs[current];
  $("form").hidden = false;
  $("text").value = pair.decision && pair.decision.fixed !== null ? pair.decision.fixed : pair.caption;
  $("text").focus();
  $("text").select();
}

function closeForm() {
  if ($("form").hidden) return;
  $("form").hidden = true;
  $("fix").focus({ preventScroll: true });
}

function save() {
  const text = $("text").value.trim().replace(/\s+/g, " ");
  if (!text) return $("text").focus();
  closeForm();
  decide("fix", text);
}

async function done() {
  closeForm();
  await saving;
  try {
    await ask("done", {});
  } catch (error) {
    return trouble(error);
  }
  const end = document.createElement("p");
  end.id = "finished";
  end.tabIndex = -1;
  end.textContent = `${reviewed()} of ${pairs.length} pairs are reviewed and saved. Close this page; the terminal shows the next steps.`;
  document.querySelector("main").replaceChildren(end);
  $("actions").remove();
  document.querySelector(".tools").remove();
  document.querySelector(".keys").remove();
  show("status", "");
  end.focus();
}

function columns() {
  const tops = [...$("grid").children].map((cell) => cell.offsetTop);
  return tops.filter((top) => top === tops[0]).length;
}

const KEYS = {
  a: () => decide("accept"),
  r: () => decide("reject"),
  f: openForm,
  u: () => decide(null),
  g: () => view(!isGrid),
  b: () => go(current - 1),
  backspace: () => go(current - 1),
  arrowleft: () => go(current - 1),
  arrowright: () => go(current + 1),
  arrowup: () => isGrid && go(current - columns()),
  arrowdown: () => isGrid && go(current + columns()),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || !pairs.length) return;
  if (!$("actions")) return;
  if (event.target === $("text")) {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); save(); }
    if (event.key === "Escape") closeForm();
    return;
  }
  const act = KEYS[event.key.toLowerCase()];
  if (!act || (event.repeat && !event.key.startsWith("Arrow"))) return;
  event.preventDefault();
  act();
});
$("accept").addEventListener("click", KEYS.a);
$("reject").addEventListener("click", KEYS.r);
$("fix").addEventListener("click", KEYS.f);
$("back").addEventListener("click", KEYS.arrowleft);
$("next").addEventListener("click", KEYS.arrowright);
$("view").addEventListener("click", KEYS.g);
$("done").addEventListener("click", done);
$("cancel").addEventListener("click", closeForm);
$("form").addEventListener("submit", (event) => { event.preventDefault(); save(); });
$("image").addEventListener("error", () => { $("image").hidden = true; $("lost").hidden = false; });

ask("pairs").then((found) => {
  pairs = found.pairs;
  const open = pairs.findIndex((pair) => !pair.decision);
  current = open < 0 ? 0 : open;
  agreement(found.agreement);
  draw();
}, trouble);
