// A small grid: one or two settings with several values each, a job for each cell, and the pictures as a table.
import { get, post } from "./api.js";
import { body, whole } from "./form.js";
import { heard, onJob, pictureOf, submit, take } from "./jobs.js";
import { Dialog } from "./modal.js";
import { nameOf, Picture, shownValue } from "./parts.js";
import { keep, now, recall, set, useStore } from "./store.js";
import { html, useEffect, useState } from "./vendor/preact.js";

const MOST = 100;

// A grid is found again after the page was loaded anew. This is before anything is rendered, so that the dialog
// finds it however soon it is opened.
set({ grid: recall("grid") });

/** Settings that can be an axis, with an example. */
const AXES = {
  guidance_scale: "2, 5, 9", steps: "10-30 (+10)", sampler: "euler, unipc", schedule: "karras, normal", seed: "1-4",
  guidance_rescale: "0, 0.35, 0.7", feature_reuse: "0, 0.1, 0.2", size: "1024x1024, 1152x896",
};
const TEXTS = new Set(["sampler", "schedule", "size"]);

const label = (setting) => (setting === "size" ? "Size" : nameOf(setting));

/**
 * The values of "2, 5, 9", "1-4" and "10-30 (+10)".
 * @throws {Error} says what is wrong.
 */
export function parseValues(setting, text) {
  const parts = text.split(",").map((each) => each.trim()).filter(Boolean);
  if (!parts.length) throw new Error(`${label(setting)}: give values, for example ${AXES[setting]}`);
  if (TEXTS.has(setting)) return parts;
  return parts.flatMap((part) => {
    const range = /^(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?)(?:\s*\(\+(\d*\.?\d+)\))?$/.exec(part);
    if (!range) {
      if (Number.isNaN(Number(part))) throw new Error(`${label(setting)}: ${part} is no number`);
      return [Number(part)];
    }
    const [from, to, step] = [Number(range[1]), Number(range[2]), Number(range[3] ?? 1)];
    const count = step > 0 ? Math.floor((to - from) / step + 1e-9) + 1 : 0;
    if (count < 1 || count > MOST) throw new Error(`${label(setting)}: ${part} is no range of at most ${MOST} values`);
    return Array.from({ length: count }, (_, index) => Math.round((from + index * step) * 1e6) / 1e6);
  });
}

const given = (setting, value) => {
  if (setting !== "size") return { [setting]: value };
  const [width, height = width] = value.toLowerCase().split("x").map(Number);
  return { width, height };
};

/** Submit a grid's jobs, behind everything that a person waits for. */
async function start(across, down, base) {
  const cells = [];
  for (const row of down?.values ?? [null]) {
    for (const column of across.values) {
      cells.push({ ...given(across.setting, column), ...(down && given(down.setting, row)) });
    }
  }
  if (cells.length > MOST) throw new Error(`That is ${cells.length} images: at most ${MOST} fit into a grid`);
  // Everything is checked first, so that no half of a grid is generated.
  const jobs = cells.map((cell) => ({ ...base, ...whole(cell), count: 1, priority: -1 }));
  for (const settings of jobs) await post("/v1/check", settings);
  const grid = { across, down, prompt: base.prompt, ids: [] };
  for (const settings of jobs) {
    grid.ids.push((await submit(settings)).id);
    set({ grid: { ...grid, ids: [...grid.ids] } });
    keep("grid", grid);
  }
}

/** Keep the table up to date. */
export function followGrid() {
  onJob((job) => set(({ grid }) => (grid?.ids.includes(job.id) ? { grid: { ...grid } } : {})));
}

async function loadJobs(grid) {
  const missing = grid?.ids.filter((id) => !heard.has(id)) ?? [];
  const found = await Promise.allSettled(missing.map((id) => get(`/v1/jobs/${id}`)));
  for (const each of found) if (each.status === "fulfilled") take(each.value);
}

function Axis({ name, axis, update, optional }) {
  return html`
    <div class="axis-row">
      <div class="field"><label for="${name}-setting">${name === "across" ? "Across" : "Down"}</label>
        <select id="${name}-setting" value=${axis.setting} onChange=${(event) => update({ setting: event.currentTarget.value, text: "" })}>
          ${optional && html`<option value="">–</option>`}
          ${Object.keys(AXES).map((each) => html`<option value=${each} selected=${each === axis.setting}>${label(each)}</option>`)}
        </select></div>
      <div class="field"><label for="${name}-values">Values</label>
        <input id="${name}-values" disabled=${!axis.setting} placeholder=${AXES[axis.setting] ?? ""} value=${axis.text}
          onInput=${(event) => update({ ...axis, text: event.currentTarget.value })} /></div>
    </div>`;
}

/** The dialog of the grid. */
export function Grid() {
  const open = useStore(({ dialog, form }) => dialog === "grid" && form !== null);
  return open && html`<${GridDialog} />`;
}

function GridDialog() {
  const grid = useStore(({ grid }) => grid);
  const [across, setAcross] = useState({ setting: "guidance_scale", text: "" });
  const [down, setDown] = useState({ setting: "", text: "" });
  const [wrong, tell] = useState("");
  const [busy, work] = useState(false);
  useEffect(() => { loadJobs(grid); }, []);
  const axis = ({ setting, text }) => ({ setting, values: parseValues(setting, text) });
  const go = async (event) => {
    event.preventDefault();
    const base = body();
    if (base.seed < 0) base.seed = Math.floor(Math.random() * 2 ** 32); // one for all, so that only the axes differ
    tell("");
    work(true);
    try {
      if (!base.prompt.trim()) throw new Error("Write a prompt first.");
      if (across.setting === down.setting) throw new Error("Choose two different settings.");
      await start(axis(across), down.setting ? axis(down) : null, base);
    } catch (error) {
      tell(error.message);
    }
    work(false);
  };
  return html`
    <${Dialog} label="Grid" class="grid-dialog" close=${() => set({ dialog: null })}>
      <header><h2>Grid</h2><button type="button" class="small" onClick=${() => set({ dialog: null })}>Close</button></header>
      <p class="hint">The current settings, with one or two of them varied. Jobs of a grid go behind all others.</p>
      <form class="axes" onSubmit=${go}>
        <${Axis} name="across" axis=${across} update=${setAcross} />
        <${Axis} name="down" axis=${down} update=${setDown} optional />
        <button class="primary" disabled=${busy}>Generate grid</button>
      </form>
      <p class="wrong" role="alert">${wrong}</p>
      ${grid && html`<${Table} grid=${grid} />`}
    </${Dialog}>`;
}

function Table({ grid: { across, down, ids, prompt } }) {
  const { options } = now();
  const value = (axis, each) => shownValue(options, axis.setting, each);
  const columns = across.values;
  return html`
    <div class="scroll" tabindex="0" role="region" aria-label="Pictures of the grid">
      <table>
        <caption>${prompt}</caption>
        <thead><tr><th scope="col">${down ? `${label(down.setting)} ↓ ${label(across.setting)} →` : `${label(across.setting)} →`}</th>
          ${columns.map((each) => html`<th scope="col">${value(across, each)}</th>`)}</tr></thead>
        <tbody>${(down?.values ?? [null]).map((row, at) => html`
          <tr><th scope="row">${down ? value(down, row) : ""}</th>
            ${columns.map((_, index) => html`<td><${Cell} id=${ids[at * columns.length + index]} /></td>`)}</tr>`)}
        </tbody>
      </table>
    </div>`;
}

function Cell({ id }) {
  const preview = useStore(({ previews }) => previews.get(id));
  const job = heard.get(id);
  const image = job?.images[0];
  if (image?.state === "done") {
    const picture = pictureOf(job, image);
    return html`<button type="button" class="thumb" aria-label="Enlarge: seed ${image.seed}" onClick=${() => set({ enlarged: picture })}>
      <${Picture} path=${picture.thumbnail} alt="" /></button>`;
  }
  if (preview) return html`<${Picture} path=${preview} class="thumb" alt="Preview" />`;
  const words = { failed: job?.error, cancelled: "Cancelled", running: "Running", queued: "Waiting" };
  return html`<span class="cell ${job?.state === "failed" ? "wrong" : ""}">${words[job?.state] ?? ""}</span>`;
}
