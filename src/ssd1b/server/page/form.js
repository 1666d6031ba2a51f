// The settings that the user has made: their defaults, presets, and what is sent of them.
import { get, post } from "./api.js";
import { keep, now, recall, set, watch } from "./store.js";
import { styled } from "./styles.js";

export const RANDOM = -1;

/** Settings that the page has controls for. The others travel in `extra`, shown but not edited. */
const SHOWN = [
  "guidance_scale", "guidance_rescale", "guidance_interval", "feature_reuse", "steps", "sampler", "schedule",
  "timesteps", "gamma", "width", "height",
];

/** Settings of the second pass, which it has only with a scale or a size. */
export const HIRES_OFF = {
  hires_scale: null, hires_width: null, hires_height: null, hires_upscaler: null, hires_strength: null, hires_steps: null,
  hires_sampler: null, hires_schedule: null, hires_guidance_scale: null, hires_prompt: null, hires_negative_prompt: null,
};

/** No picture to start from, no networks beside the model, one pass, and the seed's own noise. */
const PLAIN = {
  init_image: null, mask: null, strength: null, strength_steps: "diffusers", resize_mode: "crop", loras: [], controls: [],
  image_prompts: [], embeddings: [],
  variation_strength: 0, variation_seed: RANDOM, seed_resize_width: null, seed_resize_height: null, ...HIRES_OFF,
};

/** Default of each shown setting for a model. */
export function defaults(options, model) {
  const own = options.models[model]?.defaults ?? {};
  const found = {};
  for (const { name, default: fallback } of options.settings) {
    if (SHOWN.includes(name)) found[name] = own[name] ?? fallback;
  }
  return found;
}

/** Load what can be set, and restore what was set when the page was closed. */
export async function loadForm() {
  const options = await get("/v1/settings");
  const kept = recall("form") ?? {};
  const model = options.models[kept.model] ? kept.model : Object.keys(options.models)[0];
  const form = {
    prompt: "", negative_prompt: null, style: "", seed: RANDOM, count: 1, extra: {}, ...PLAIN,
    ...defaults(options, model), ...kept, model,
  };
  set({ options, form });
  watch((state) => state.form, (form) => keep("form", form));
  watch((state) => state.form, checkSoon);
  checkSoon();
}

/** Settings with those that they decide: timesteps set the steps, and steps or a schedule take timesteps back. */
export function whole(values) {
  if (values.timesteps) return { schedule: null, ...values, steps: values.timesteps.split(/[ ,]+/).filter(Boolean).length };
  return "steps" in values || "schedule" in values ? { timesteps: null, ...values } : values;
}

/** Change some settings. */
export const change = (values) => set(({ form }) => ({ form: { ...form, ...whole(values) }, problem: null }));

/** What the first few-step LoRA of those used was made for. */
const fewSteps = (used, loras) =>
  loras.find(({ name, few_steps }) => few_steps && used.some((each) => each.name === name && each.unet !== 0))?.few_steps;

/** What is recommended: for the few-step LoRA that is used, or for the model. */
export const recommended = ({ form, options, loras }) => fewSteps(form.loras, loras) ?? options.models[form.model];

/**
 * Choose a model. Settings that were the old model's defaults become the new one's, and so do those against which
 * the new one advises: 30 steps are too many for a model of 4.
 */
export function chooseModel(model) {
  const { options, form } = now();
  const before = defaults(options, form.model);
  const after = defaults(options, model);
  const { advice, samplers } = options.models[model];
  const unfit = advice.filter(({ setting, low, high }) => form[setting] < low || form[setting] > high).map(({ setting }) => setting);
  if (samplers.length && !samplers.includes(form.sampler)) unfit.push("sampler", "schedule");
  const moved = Object.keys(after).filter((name) => same(form[name], before[name]) || unfit.includes(name));
  change({ model, ...Object.fromEntries(moved.map((name) => [name, after[name]])) });
}

/** Use a LoRA, with the settings that a few-step one was made for. */
export function useLora(lora) {
  const { form } = now();
  change({ loras: [...form.loras, { name: lora.name, unet: 1, text: 1 }], ...lora.few_steps?.settings });
}

/** Drop a LoRA; settings that came with it become the model's again, or another few-step LoRA's. */
export function dropLora(name) {
  const { form, loras, options } = now();
  const own = loras.find((each) => each.name === name)?.few_steps?.settings ?? {};
  const kept = form.loras.filter((each) => each.name !== name);
  const plain = { ...defaults(options, form.model), ...fewSteps(kept, loras)?.settings };
  const left = Object.keys(own).filter((each) => same(form[each], own[each]));
  change({ loras: kept, ...Object.fromEntries([...left, ...(left.length ? ["timesteps"] : [])].map((each) => [each, plain[each]])) });
}

/** Set everything but prompt, seed and count back. */
export function reset() {
  const { options, form } = now();
  change({ ...defaults(options, form.model), ...PLAIN, negative_prompt: null, style: "", extra: {} });
}

export const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

/**
 * Take over settings, for example those of a picture.
 * @param {object} settings with the API's names; may contain the prompt.
 * @param {string | null} model
 */
export function takeOver(settings, model = null) {
  const { options, form } = now();
  const offered = options.models[model] ? model : form.model;
  // A picture's prompt has the words of its style already.
  const values = { ...defaults(options, offered), ...PLAIN, negative_prompt: null, style: "", extra: {}, ...settings };
  // The server finds those that are called like their files.
  values.embeddings = values.embeddings.filter(({ name, word }) => name.split("/").pop().toLowerCase() !== word.toLowerCase());
  const extra = {};
  const plain = { original_size: [values.height, values.width], target_size: [values.height, values.width], crop_top_left: [0, 0] };
  for (const { name } of options.settings) {
    if (name in plain) {
      if (values[name] && !same(values[name], plain[name])) extra[name] = values[name];
      delete values[name];
    }
  }
  change({ ...values, model: offered, extra });
}

/** The body of POST /v1/jobs. */
export function body(form = now().form) {
  const { extra, schedule, style: _, ...rest } = form;
  for (const name of ["controls", "image_prompts"]) rest[name] = form[name].filter(({ picture }) => picture);
  if (!form.init_image) for (const name of ["mask", "strength", "strength_steps"]) delete rest[name];
  if (!form.init_image && !rest.controls.length) delete rest.resize_mode;
  // null counts as absent in the API, and then a model's own schedule would win.
  return { ...rest, ...styled(form), ...extra, schedule: schedule ?? "automatic" };
}

let timer;
let latest = 0;

function checkSoon() {
  clearTimeout(timer);
  timer = setTimeout(check, 250);
}

/** Ask the server what the settings would give. */
async function check() {
  const { form } = now();
  const number = ++latest;
  if (!form.prompt.trim()) return set({ checked: {} });
  let checked;
  try {
    checked = await post("/v1/check", body(form));
  } catch (error) {
    checked = error.status ? { error: error.message } : {};
  }
  if (number === latest) set({ checked });
}

/** Whether a preset is nothing but a negative prompt. */
export const isNegative = (preset) => same(Object.keys(preset.settings), ["negative_prompt"]);

/** What the last preset set; the next one takes it back. */
let applied = {};

/** Choose a preset: its settings become the form's, where they can be seen and changed. */
export function usePreset(name) {
  const { options, form } = now();
  const preset = options.presets.find((each) => each.name === name);
  if (!isNegative(preset)) {
    const plain = { ...defaults(options, form.model), ...PLAIN, negative_prompt: null };
    const left = Object.keys(applied).filter((each) => same(form[each], applied[each])); // not changed since
    change({ ...Object.fromEntries(left.map((each) => [each, plain[each]])), ...preset.settings });
    applied = preset.settings;
    return;
  }
  const words = preset.settings.negative_prompt;
  const present = form.negative_prompt?.trim();
  if (present?.includes(words)) return;
  change({ negative_prompt: present ? `${present.replace(/,$/, "")}, ${words}` : words });
}

/** The setting that an error names at its beginning, as in "steps is 1000: ...". */
export function settingOf(message) {
  const name = /^(\w+)/.exec(message ?? "")?.[1];
  return { size: "width" }[name] ?? name;
}
