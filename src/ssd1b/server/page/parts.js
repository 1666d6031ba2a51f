// Small parts that several others use.
import { imageSource } from "./api.js";
import { useStore } from "./store.js";
import { html, useEffect, useLayoutEffect, useState } from "./vendor/preact.js";

const PATHS = {
  cancel: "M5 5l10 10M15 5 5 15",
  up: "M10 16V4M5 9l5-5 5 5",
  down: "M10 4v12M5 11l5 5 5-5",
  left: "M12 4l-6 6 6 6",
  right: "M8 4l6 6-6 6",
  retry: "M16 10a6 6 0 1 1-2-4.5M14.500 2v4h-4",
  star: "M10 2.500l2.300 4.700 5.200.8-3.700 3.600.9 5.200-4.700-2.500-4.700 2.500.9-5.200L2.500 8l5.200-.8z",
  save: "M10 3v9M6 8.500l4 4 4-4M4 16.500h12",
  trash: "M4 6h12M8 6V4h4v2M5.500 6l.8 11h7.400l.8-11M8.500 9v5M11.500 9v5",
  dice: "M4 4h12v12H4zM7.500 7.500v.01M12.500 12.500v.01M12.500 7.500v.01M7.500 12.500v.01",
  last: "M4 10a6 6 0 1 0 2-4.500M5.500 2v4h4M10 7v3l2 2",
  swap: "M4 7h11M12 4l3 3-3 3M16 13H5M8 10l-3 3 3 3",
  open: "M3 6h5l2 2h7v8H3zM10 10v4M8 12h4",
  table: "M3 4h14v12H3zM3 8h14M8 4v12M3 12h14M13 4v12",
  keys: "M2 6h16v9H2zM5 9v.01M8 9v.01M11 9v.01M14 9v.01M6 12h8",
  light: "M10 6.500a3.500 3.500 0 1 0 0 7 3.500 3.500 0 0 0 0-7M10 2v2M10 16v2M2 10h2M16 10h2M4.500 4.500 6 6M14 14l1.500 1.500M15.500 4.500 14 6M6 14l-1.500 1.500",
  dark: "M15.500 12A6.500 6.500 0 0 1 8 4.500a6.500 6.500 0 1 0 7.500 7.500z",
  auto: "M10 3a7 7 0 1 0 0 14zM10 3a7 7 0 0 1 0 14",
  take: "M4 10h9M9 6l4 4-4 4M16 4v12",
  vary: "M3 3h6v6H3zM11 3h6v6h-6zM3 11h6v6H3zM11 11h6v6h-6z",
  compare: "M3 4h14v12H3zM10 2v16M6 10h1M13 10h1",
  enlarge: "M12 3h5v5M17 3l-6 6M8 17H3v-5M3 17l6-6",
  copy: "M7 7h10v10H7zM4 13V3h10",
  input: "M3 4h14v12H3zM3 13l4-4 3 3 3-3 4 4M13.500 7.500v.01",
  brush: "M16.500 3.500 9 11M9 11c-2-.5-4 .5-4 3 0 1-1 2-2 2 3 1.500 7.500.5 7-3-.1-1-.5-1.700-1-2z",
  eraser: "M8 16.500 3.500 12 12 3.500l5 5-8 8zM8 8l5 5M8 16.500h9",
};

export const Icon = ({ name }) => html`
  <svg class="icon" viewBox="0 0 20 20" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;

/** A button that is an icon, with its name for screen readers and as a tool tip. */
export const IconButton = ({ icon, label, pressed, keys, ...rest }) => html`
  <button type="button" class="icon-button" aria-label=${label} title=${keys ? `${label} (${keys})` : label}
    aria-pressed=${pressed === undefined ? undefined : String(pressed)} ...${rest}><${Icon} name=${icon} /></button>`;

/** An image of the server, with or without a key. */
export function Picture({ path, ...rest }) {
  const [source, update] = useState(path?.startsWith("data:") ? path : undefined);
  useLayoutEffect(() => {
    let current = true;
    const found = imageSource(path);
    found.then((url) => current && update(url), () => current && update(undefined));
    return () => { current = false; };
  }, [path]);
  return html`<img src=${path?.startsWith("data:") ? path : source} draggable=${false} ...${rest} />`;
}

/** A field whose value counts when it is left. Until then it is a draft, which no rendering may overwrite. */
export function DraftInput({ value, take, ...rest }) {
  const [draft, write] = useState(null);
  const leave = (event) => {
    if (draft !== null) take(event.currentTarget.value);
    write(null); // what is no value is replaced by the one that holds
  };
  return html`<input ...${rest} value=${draft ?? value} onInput=${(event) => write(event.currentTarget.value)}
    onChange=${leave} onBlur=${leave} />`;
}

/** What the server advises about something: the line that begins with it or contains it. */
export const useAdvice = (about) =>
  useStore(({ checked }) => checked.advice?.find((each) => each.includes(about))?.replace(/^[^:]*: */, "") ?? "");

export const Note = ({ text }) => text && html`<p class="advice">${text}</p>`;

/** The time, told again every second as long as it is wanted. */
export function useClock(running) {
  const [time, tell] = useState(Date.now());
  useEffect(() => {
    if (!running) return undefined;
    const timer = setInterval(() => tell(Date.now()), 1000);
    return () => clearInterval(timer);
  }, [running]);
  return time;
}

/** "12 s", "3 min", "2 h". */
export function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

const NAMES = {
  negative_prompt: "Negative prompt", guidance_scale: "Guidance", guidance_rescale: "Guidance rescale",
  guidance_interval: "Guidance interval", feature_reuse: "Feature reuse", steps: "Steps", sampler: "Sampler",
  schedule: "Schedule", timesteps: "Timesteps", gamma: "Gamma", seed: "Seed", width: "Width", height: "Height", original_size: "Original size",
  crop_top_left: "Crop", target_size: "Target size", model: "Model", count: "Count", prompt: "Prompt",
  style: "Style", init_image: "Picture", mask: "Mask", strength: "Strength", strength_steps: "Steps as in",
  resize_mode: "Other shapes", loras: "LoRAs", controls: "Controls", image_prompts: "Image prompts",
  embeddings: "Embeddings", hires_scale: "Hires scale", hires_width: "Hires width",
  hires_height: "Hires height", hires_strength: "Hires strength", hires_upscaler: "Upscaler", hires_steps: "Hires steps",
  variation_seed: "Variation seed", variation_strength: "Variation strength",
  seed_resize_width: "Width of the noise", seed_resize_height: "Height of the noise",
};

/** What a setting is called on the page. */
export const nameOf = (setting) => NAMES[setting] ?? setting;

/** A value as text. */
export function shownValue(options, setting, value) {
  if (setting === "sampler") return options.samplers.find((each) => each.name === value)?.label ?? value;
  if (setting === "schedule") return options.schedules.find((each) => each.name === (value ?? "automatic"))?.label ?? value;
  if (setting === "loras") return value.map(({ name, unet, text }) => `${name} ${unet}${text === unet ? "" : ` (text ${text})`}`).join(", ");
  if (setting === "embeddings") return value.map(({ word }) => word).join(", ");
  if (setting === "image_prompts") return value.map(({ adapter, scale }) => `${adapter} ${scale}`).join(", ");
  if (setting === "controls") return value.map(({ model, scale }) => `${model} ${scale}`).join(", ");
  if (setting === "init_image" || setting === "mask") return value.slice(0, 8);
  if (Array.isArray(value)) return value.join(setting === "guidance_interval" ? " to " : ", ");
  if (value === "") return "(empty text)";
  return typeof value === "number" ? String(Math.round(value * 1000) / 1000) : String(value);
}
