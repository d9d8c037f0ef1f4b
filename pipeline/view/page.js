// Asks for the rows that the form describes, and shows them. The address keeps the question, so a
// reload or a link shows the same rows.
"use strict";
const form = document.getElementById("query");
const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
let facts = null;
let page = 0;
let asked = 0;

const make = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};
// The text of a URL or a path; its lines break after a slash, and elsewhere only if need be.
const breakable = (made, text) => {
  text.split(/(?<=[^/]\/)(?=[^/])|(?<=[?&=])/).forEach((part, index) => made.append(...(index ? [make("wbr"), part] : [part])));
  return made;
};
const number = (value) => value.toLocaleString("en", { maximumFractionDigits: 4 });
const words = (text) => text.replaceAll("_", " ");
// A column of numbers; one named after a threshold holds what the threshold is compared with.
const measureName = (name) => {
  const { limit } = facts.columns.find((one) => one.name === name);
  return limit === null ? words(name) : `${words(name)} (threshold ${number(limit)})`;
};

const asking = () => {
  const query = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (value !== "") query.set(name, value);
  return query;
};

const choose = (name, entries) => {
  const select = form.elements[name];
  const value = select.value;
  select.length = 1;
  for (const [key, label] of entries) select.add(new Option(label, key));
  select.value = [...select.options].some((option) => option.value === value) ? value : "";
};

const fillReasons = () => {
  const stage = form.elements.stage.value;
  const found = facts.reasons.filter((one) => !stage || one.stage === stage);
  choose("reason", found.map((one) => [one.reason, `${words(one.reason)} (${number(one.rows)})`]));
};

const link = (url) => {
  if (!/^https?:/i.test(url)) return breakable(make("span", "mono"), url);
  const made = breakable(make("a", "mono"), `${url} \u2197`);
  made.href = url;
  made.rel = "noreferrer noopener";
  made.target = "_blank";
  made.title = "opens another website";
  return made;
};

const bodyOf = (row) => {
  const body = make("div", "body");
  const isKept = row.stage === "kept";
  const verdict = row.reason === null ? row.stage : `${row.stage}: ${words(row.reason)}`;
  body.append(make("p", `verdict ${isKept ? "good" : row.reason === null ? "" : "bad"}`, verdict));
  const score = (value) => (value === null ? "" : ` \u00b7 ITM ${value.toFixed(3)}`);
  if (row.web !== null) {
    body.append(make("p", "soft", `web${score(row.itm_web)}`));
    const caption = make("p", "caption", row.web);
    caption.dir = "auto";
    body.append(caption);
  }
  row.synthetic.forEach((text, index) => {
    body.append(make("p", "soft", `synthetic${index ? "" : score(row.itm_synthetic)}`));
    const caption = make("p", "caption", text);
    caption.dir = "auto";
    body.append(caption);
  });
  body.append(link(row.url), make("p", "mono", row.uid));
  body.append(breakable(make("p", "mono soft command"), `capfilt show ${facts.run} ${row.uid.slice(0, 12)}`));
  return body;
};

const measuresOf = (row, names) => {
  const list = make("dl");
  for (const name of names.filter((one) => one in row.numbers)) {
    list.append(make("dt", "", measureName(name)), make("dd", "", number(row.numbers[name])));
  }
  return list;
};

const enlarge = (row) => {
  at("large-image").src = `images/${row.index}`;
  at("large-image").alt = row.web ?? "an image without a caption";
  const body = bodyOf(row);
  body.append(measuresOf(row, Object.keys(row.numbers)));
  at("large-row").replaceChildren(body);
  at("large").showModal();
};

const cardOf = (row) => {
  const card = make("article", "row");
  const picture = make("button", "picture");
  picture.type = "button";
  picture.setAttribute("aria-label", "show the image large, with all that was measured");
  const image = make("img");
  image.loading = "lazy";
  image.alt = row.web ?? "an image without a caption";
  image.src = `thumbs/${row.index}`;
  image.addEventListener("error", () => image.replaceWith(make("span", "soft", "no image")));
  picture.append(image);
  picture.addEventListener("click", () => enlarge(row));
  const body = bodyOf(row);
  const column = form.elements.column.value;
  if (column) body.append(measuresOf(row, [column]));
  card.append(picture, body);
  return card;
};

const drawMeasure = (column, { edges, rows, kept }, total, among, isMoved) => {
  at("measure").hidden = false;
  at("measure-name").textContent = words(column);
  const most = Math.max(...rows, 1);
  const [least, greatest] = [edges[0], edges.at(-1)];
  const parts = rows.flatMap((count, index) => [["all", count], ["kept", kept[index]]].map(([name, value]) => {
    const bar = document.createElementNS(SVG, "rect");
    const height = (110 * value) / most;
    const place = { x: (800 * index) / rows.length, y: 120 - height, width: 800 / rows.length - 1, height };
    for (const [key, one] of Object.entries(place)) bar.setAttribute(key, one);
    bar.setAttribute("class", name);
    const title = document.createElementNS(SVG, "title");
    title.textContent = `${number(edges[index])} to ${number(edges[index + 1])}: ${number(count)} rows, ${number(kept[index])} kept`;
    bar.append(title);
    return bar;
  }));
  const { limit } = facts.columns.find((one) => one.name === column);
  if (limit !== null && limit >= least && limit <= greatest) {
    const line = document.createElementNS(SVG, "line");
    const x = (800 * (limit - least)) / (greatest - least || 1);
    for (const [key, one] of Object.entries({ x1: x, x2: x, y1: 0, y2: 120, class: "limit" })) line.setAttribute(key, one);
    parts.push(line);
  }
  at("histogram").replaceChildren(...parts);
  at("histogram").setAttribute("aria-label", `Histogram of ${words(column)}: ${number(rows.reduce((a, b) => a + b, 0))} rows`);
  at("least").textContent = number(least);
  at("most").textContent = number(greatest);
  at("limits").textContent = limit === null ? "" : `the threshold is ${number(limit)}`;
  const within = rows.reduce((a, b) => a + b, 0);
  const fates = [`${number(among.kept)} kept now`];
  if (among.reason !== null) fates.push(`${number(among.rejected)} rejected as ${words(among.reason)}`);
  at("would").textContent = isMoved
    ? `${number(total)} of ${number(within)} rows are within: ${fates.join(", ")}` : `${number(within)} rows`;
};

const show = async () => {
  const mine = ++asked;
  const query = asking();
  location.hash = new URLSearchParams([...query, ...(page ? [["page", page]] : [])]).toString();
  query.set("page", page);
  const answer = await fetch(`rows?${query}`);
  const found = await answer.json();
  if (mine !== asked) return;
  if (!answer.ok) {
    at("told").textContent = found.error;
    return;
  }
  const column = query.get("column");
  if (column) drawMeasure(column, found.histogram, found.total, found.within, query.has("low") || query.has("high"));
  else at("measure").hidden = true;
  at("told").textContent = `${number(found.total)} of ${number(facts.rows)} rows`;
  at("rows").replaceChildren(...found.rows.map(cardOf));
  at("page").textContent = found.pages ? `${number(page + 1)} of ${number(found.pages)}` : "no rows";
  at("before").disabled = page === 0;
  at("after").disabled = page + 1 >= found.pages;
  document.body.dataset.shown = mine;
};

const again = () => {
  page = 0;
  show();
};

const restore = () => {
  const query = new URLSearchParams(location.hash.slice(1));
  page = Number(query.get("page") ?? 0);
  for (const element of form.elements) {
    if (element.name && query.has(element.name)) element.value = query.get(element.name);
  }
};

const begin = async () => {
  facts = await (await fetch("facts")).json();
  const stages = [...new Set(facts.reasons.map((one) => one.stage))];
  choose("stage", stages.map((one) => [one, one]));
  fillReasons();
  for (const name of ["source", "language"]) {
    choose(name, facts[`${name}s`].map((one) => [one.name, `${one.name} (${number(one.rows)})`]));
  }
  choose("column", facts.columns.map((one) => [one.name, measureName(one.name)]));
  restore();
  fillReasons();
  restore();
  show();
};

let waiting = 0;
document.addEventListener("input", (event) => {  // also of fields that lie outside of the form
  if (event.target.form !== form) return;
  if (event.target.name === "stage") fillReasons();
  if (event.target.name === "column") form.elements.low.value = form.elements.high.value = "";
  clearTimeout(waiting);
  waiting = setTimeout(again, event.target.type === "search" || event.target.type === "number" ? 250 : 0);
});
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(() => { fillReasons(); again(); }));
at("before").addEventListener("click", () => { page -= 1; show(); scrollTo(0, 0); });
at("after").addEventListener("click", () => { page += 1; show(); scrollTo(0, 0); });
at("done").addEventListener("click", async () => {
  await fetch("done", { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" });
  document.body.replaceChildren(make("p", "soft", "The server has stopped; this page can be closed."));
});
begin();
