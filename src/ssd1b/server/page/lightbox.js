// The light box: one picture as large as the window, its recipe, and a wipe between two.
import { download, favour, neighbour, remove } from "./pictures.js";
import { addressOf } from "./inputs.js";
import { Dialog } from "./modal.js";
import { Icon, IconButton, nameOf, Picture, shownValue } from "./parts.js";
import { Actions } from "./result.js";
import { note, now, set, undoLast, useStore } from "./store.js";
import { html, useRef, useState } from "./vendor/preact.js";

const ORDER = [
  "negative_prompt", "seed", "steps", "guidance_scale", "guidance_rescale", "guidance_interval", "feature_reuse", "sampler",
  "schedule", "timesteps", "gamma", "init_image", "mask", "strength", "strength_steps", "loras",
  "controls", "image_prompts", "embeddings", "variation_seed", "variation_strength",
  "seed_resize_width", "seed_resize_height", "hires_scale", "hires_width", "hires_height", "hires_strength", "hires_steps",
  "hires_upscaler",
];

/** A picture's settings as pairs of name and text; what is at its neutral value is left out. */
export function recipe(options, { settings, model, made }) {
  const neutral = {
    negative_prompt: null, guidance_rescale: 0, feature_reuse: 0, guidance_interval: [0, 1], init_image: null, mask: null,
    strength: null, strength_steps: "diffusers", loras: [], controls: [], image_prompts: [], embeddings: [],
    variation_seed: 0, variation_strength: 0, seed_resize_width: null, seed_resize_height: null, hires_scale: null, hires_width: null, hires_height: null, hires_strength: null,
    hires_steps: null, hires_upscaler: null, timesteps: null, gamma: 0.3,
  };
  const rows = [["Model", model], ["Size", `${settings.width} × ${settings.height}`]];
  for (const name of ORDER) {
    if (name in neutral && JSON.stringify(settings[name] ?? neutral[name]) === JSON.stringify(neutral[name])) continue;
    rows.push([nameOf(name), shownValue(options, name, settings[name])]);
  }
  rows.push(["Made", new Date(made * 1000).toLocaleString()]);
  return rows;
}

/**
 * A wipe between two pictures.
 * @param {{fit: string | undefined}} props `fit` lays the left picture over the right one as the engine fitted it: "cover" or
 *   "fill"; without it each is shown as it is.
 */
function Wipe({ left, right, fit }) {
  const stage = useRef();
  const at = (share) => stage.current.style.setProperty("--at", `${share}%`);
  const slide = useRef();
  const drag = (event) => {
    if (!event.buttons && event.type === "pointermove") return;
    const box = stage.current.getBoundingClientRect();
    slide.current.value = (100 * (event.clientX - box.left)) / box.width;
    at(slide.current.value);
  };
  return html`
    <div class="wiping">
      <div class="wipe ${fit ? "fitted" : ""}" ref=${stage} onPointerDown=${drag} onPointerMove=${drag}
        style=${{ "--at": "50%", ...(fit ? { "--ratio": right.settings.width / right.settings.height, "--fit": fit } : {}) }}>
        <${Picture} path=${right.url} alt="Right: ${right.settings.prompt}, seed ${right.settings.seed}" />
        <${Picture} path=${left.url} class="over" alt=${left.settings ? `Left: ${left.settings.prompt}, seed ${left.settings.seed}` : "Left: the picture before"} />
        <span class="edge" aria-hidden="true"></span>
      </div>
      <input ref=${slide} type="range" min="0" max="100" defaultValue="50" aria-label="Position of the wipe"
        onInput=${(event) => at(event.currentTarget.value)} />
      <p class="differences">${left.settings ? differences(left, right) : "Left the picture before, right the image made from it."}</p>
    </div>`;
}

/** In what two pictures differ. */
function differences(left, right) {
  const { options } = now();
  const [one, other] = [left, right].map((each) => new Map([["Prompt", each.settings.prompt], ...recipe(options, each)]));
  const names = [...new Set([...one.keys(), ...other.keys()])].filter((name) => name !== "Made" && one.get(name) !== other.get(name));
  if (!names.length) return "Same settings.";
  return names.map((name) => html`<span><b>${name}</b> ${one.get(name) ?? "none"} → ${other.get(name) ?? "none"}</span>`);
}

/** The light box, while a picture is enlarged. */
export function LightBox() {
  const picture = useStore(({ enlarged }) => enlarged);
  return picture && html`<${Enlarged} picture=${picture} />`;
}

function Enlarged({ picture }) {
  const [before, compare] = useState(false);
  const { init_image: source, resize_mode: mode } = picture.settings;
  const pinned = useStore(({ pinned }) => pinned);
  useStore(({ pictures }) => pictures); // more of them may have been loaded
  const { options } = now();
  const close = () => set({ enlarged: null, pinned: null });
  const go = (by) => {
    const next = neighbour(picture, by);
    if (next) set({ enlarged: next });
  };
  const pin = () => set({ pinned: pinned ? null : picture });
  const keys = (event) => {
    const { target, key } = event;
    if (event.ctrlKey || event.altKey || event.metaKey || target.matches("input:not([type=range])")) return;
    if (target.type === "range" && key.startsWith("Arrow")) return;
    const work = {
      ArrowLeft: () => go(-1), ArrowRight: () => go(1), f: () => favour(picture), d: () => download(picture), c: pin, b: () => compare(!before),
      Delete: () => remove(picture), z: undoLast,
    }[key];
    if (!work) return;
    event.preventDefault();
    work();
  };
  const copy = async () => {
    const text = [picture.settings.prompt, ...recipe(options, picture).map(([name, value]) => `${name}: ${value}`)].join("\n");
    try {
      await navigator.clipboard.writeText(text);
      note("Recipe copied.");
    } catch {
      note("The browser does not allow copying here.", { wrong: true });
    }
  };
  return html`
    <${Dialog} label="Picture" class="lightbox" close=${close} onKeyDown=${keys}>
      <div class="view">
        ${before && source
          ? html`<${Wipe} left=${{ url: addressOf(source) }} right=${picture} fit=${mode === "stretch" ? "fill" : "cover"} />`
          : pinned && pinned.id !== picture.id
          ? html`<${Wipe} left=${pinned} right=${picture} />`
          : html`<${Picture} path=${picture.url} class="large" id="enlarged" data-id=${picture.id} alt=${picture.settings.prompt}
              width=${picture.settings.width} height=${picture.settings.height} />`}
        <${IconButton} icon="left" label="Newer picture" keys="Left" class="icon-button step previous" disabled=${!neighbour(picture, -1)} onClick=${() => go(-1)} />
        <${IconButton} icon="right" label="Older picture" keys="Right" class="icon-button step next" disabled=${!neighbour(picture, 1)} onClick=${() => go(1)} />
      </div>
      <aside aria-label="Recipe">
        <header><h2>Recipe</h2><${IconButton} icon="copy" label="Copy recipe" onClick=${copy} />
          <${IconButton} icon="cancel" label="Close" keys="Escape" onClick=${close} /></header>
        <${Actions} picture=${picture}>
          <button type="button" aria-pressed=${String(Boolean(pinned))} title="Compare (C)" onClick=${pin}><${Icon} name="compare" />Compare</button>
          ${source && html`<button type="button" aria-pressed=${String(before)} title="Before and after (B)" onClick=${() => compare(!before)}>
            <${Icon} name="input" />Before and after</button>`}
        </${Actions}>
        ${pinned && pinned.id === picture.id && html`<p class="hint" role="status">Now go to another picture with the arrow keys.</p>`}
        <p class="whole">${picture.settings.prompt}</p>
        <dl>${recipe(options, picture).map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
      </aside>
    </${Dialog}>`;
}
