"use strict";
const { axes, cells } = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const make = (tag, text) => { const node = document.createElement(tag); if (text !== undefined) node.textContent = text; return node; };

const varying = axes.map((axis, n) => n).filter((n) => axes[n].values.length > 1);
// Settings come first, because people compare them over prompts and seeds.
const byInterest = [...varying].sort((a, b) => axes[b].interest - axes[a].interest || b - a);
const state = { across: byInterest[0] ?? axes.length - 1, down: byInterest[1] ?? -1, places: axes.map(() => 0), shown: null, pinned: null };

const index = (places) => places.reduce((sum, place, n) => sum * axes[n].values.length + place, 0);
const at = (changes) => { const places = [...state.places]; for (const [n, place] of changes) if (n >= 0) places[n] = place; return places; };

function choices(select, value, change) {
  select.replaceChildren(...[-1, ...varying].map((n) => {
    const option = make("option", n < 0 ? "–" : axes[n].name);
    option.value = n; option.selected = n === value;
    return option;
  }));
  select.onchange = () => { change(Number(select.value)); draw(); };
}

function sliders() {
  find("sliders").replaceChildren(...varying.filter((n) => n !== state.across && n !== state.down).map((n) => {
    const label = make("label", axes[n].name + " "), slider = make("input"), output = make("output", axes[n].values[state.places[n]]);
    Object.assign(slider, { type: "range", min: 0, max: axes[n].values.length - 1, value: state.places[n] });
    slider.oninput = () => { state.places[n] = Number(slider.value); output.textContent = axes[n].values[state.places[n]]; grid(); };
    label.append(slider, " ", output);
    return label;
  }));
}

function cell(places) {
  const td = make("td"), number = index(places), about = cells[number];
  if (!about || !about.picture) {
    const empty = make("div", about ? about.state : "not in this file");
    empty.className = "empty";
    td.append(empty);
    return td;
  }
  const button = make("button"), image = make("img");
  button.type = "button"; button.dataset.cell = number;
  image.src = about.picture; image.alt = about.command; image.loading = "lazy";
  button.classList.toggle("pinned", state.pinned === number);
  button.onclick = () => show(number);
  button.append(image); td.append(button);
  return td;
}

function grid() {
  const along = (n) => (n < 0 ? [null] : axes[n].values);
  const head = make("tr");
  if (state.down >= 0) head.append(make("th"));
  head.append(...along(state.across).map((label) => make("th", label === null ? "" : `${axes[state.across].name} ${label}`)));
  const rows = along(state.down).map((label, row) => {
    const tr = make("tr");
    if (label !== null) tr.append(make("th", `${axes[state.down].name} ${label}`));
    along(state.across).forEach((_, column) => tr.append(cell(at([[state.down, row], [state.across, column]]))));
    return tr;
  });
  find("grid").replaceChildren(head, ...rows);
}

function draw() {
  choices(find("across"), state.across, (n) => { if (n === state.down) state.down = state.across; state.across = n; });
  choices(find("down"), state.down, (n) => { if (n === state.across) state.across = state.down; state.down = n; });
  sliders();
  grid();
}

function show(number) {
  const about = cells[number], pinned = state.pinned === null || state.pinned === number ? null : cells[state.pinned];
  state.shown = number;
  find("one").src = about.picture;
  find("other").hidden = find("wipe").hidden = pinned === null;
  if (pinned) find("other").src = pinned.picture;
  const differing = (one, other) => one.labels.filter((label) => !other.labels.includes(label)).join(", ");
  find("about").textContent = pinned ? `left: ${differing(pinned, about)} · right: ${differing(about, pinned)}` : about.labels.join(", ");
  find("settings").textContent = about.preset;
  const head = pinned ? ["", "pinned", "this"] : ["", ""];
  const lines = Object.entries(about.metrics).map(([name, value]) => (pinned ? [name, pinned.metrics[name] ?? "", value] : [name, value]));
  find("measured").replaceChildren(...[head, ...lines].map((line) => {
    const row = make("tr");
    row.append(...line.map((text) => make("td", text)));
    return row;
  }));
  find("pin").textContent = state.pinned === number ? "Unpin" : "Pin to compare";
  find("copied").textContent = "";
  if (!find("enlarged").open) find("enlarged").showModal();
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    find("copied").textContent = "copied";
  } catch {
    // Browsers may deny clipboard access to local files: select the text so that the user can copy it.
    find("settings").textContent = text;
    getSelection().selectAllChildren(find("settings"));
    find("copied").textContent = "selected: press Ctrl-C";
  }
}

find("wipe").oninput = (event) => find("stage").style.setProperty("--at", event.target.value + "%");
find("copy-command").onclick = () => copy(cells[state.shown].command);
find("copy-settings").onclick = () => copy(cells[state.shown].preset);
find("pin").onclick = () => { state.pinned = state.pinned === state.shown ? null : state.shown; grid(); show(state.shown); };
find("close").onclick = () => find("enlarged").close();
find("enlarged").onkeydown = (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step || event.target === find("wipe")) return;
  const shown = [...document.querySelectorAll("#grid button")].map((button) => Number(button.dataset.cell));
  const next = shown[shown.indexOf(state.shown) + step];
  if (next !== undefined) show(next);
};

document.querySelectorAll(".figures th button").forEach((button, column) => {
  let rising = false;
  button.onclick = () => {
    const body = document.querySelector(".figures tbody"), value = (row) => row.cells[column].dataset.value;
    rising = !rising;
    const order = (a, b) => { const [x, y] = [Number(value(a)), Number(value(b))]; return Number.isNaN(x - y) ? value(a).localeCompare(value(b)) : x - y; };
    body.append(...[...body.rows].sort((a, b) => (rising ? order(a, b) : order(b, a))));
  };
});

draw();
