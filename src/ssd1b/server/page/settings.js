// The controls of the settings, with advice beside them.
import { change, chooseModel, HIRES_OFF, isNegative, RANDOM, recommended, reset, same, usePreset } from "./form.js";
import { DraftInput, IconButton, nameOf, Note, shownValue, useAdvice } from "./parts.js";
import { Plot } from "./plot.js";
import { note, now, useStore } from "./store.js";
import { allStyles, loadStyles } from "./styles.js";
import { html, useEffect } from "./vendor/preact.js";

/** Range of a slider where the API's range is too wide to be useful; the number beside it takes the whole range. */
const SLIDERS = {
  steps: [1, 60, 1], guidance_scale: [0, 20, 0.5], guidance_rescale: [0, 1, 0.05], feature_reuse: [0, 1, 0.05], gamma: [0, 1, 0.05],
};

const number = (text) => (text.trim() === "" || Number.isNaN(Number(text)) ? null : Number(text));

const useForm = (name) => useStore(({ form }) => form[name]);

/** Why the server refuses a setting, if it is this one. */
function useWrong(...names) {
  const problem = useStore(({ problem }) => problem);
  const refused = useStore(({ checked }) => checked.error);
  const begins = (text) => names.some((name) => text?.startsWith(`${name} `) || text?.startsWith(`${name}:`));
  return names.includes(problem?.setting) ? problem.text : begins(refused) ? refused : "";
}

function Advice({ advice, value }) {
  if (!advice) return null;
  const { low, high, below, above, source } = advice;
  const range = low === high ? low : `${low} to ${high}`;
  if (value >= low && value <= high) return html`<p class="hint">${range} is recommended. <cite>${source}</cite></p>`;
  return html`<p class="advice" role="status">${value < low ? below : above} <cite>${source}</cite></p>`;
}

/** A slider with a number, its advice, and its curve where one was measured. */
function Slider({ name }) {
  const value = useForm(name);
  const wrong = useWrong(name);
  const { options } = now();
  const { low, high, help, kind } = options.settings.find((each) => each.name === name);
  const [from, to, step] = SLIDERS[name];
  const most = Math.min(to, high);
  const { advice, curves = [] } = useStore(recommended); // nothing was measured with a few-step LoRA
  const advised = advice.find((each) => each.setting === name);
  const share = (at) => `${(100 * (Math.min(Math.max(at, from), most) - from)) / (most - from)}%`;
  const update = (text) => {
    const given = number(text);
    if (given !== null) change({ [name]: given });
  };
  const band = advised ? { "--low": share(advised.low), "--high": share(advised.high) } : {};
  return html`
    <div class="field slider">
      <label for=${name} title=${help}>${nameOf(name)}</label>
      <div class="track ${advised ? "advised" : ""}" style=${band}>
        <input type="range" tabindex="-1" aria-hidden="true" min=${from} max=${most} step=${step} value=${value}
          onInput=${(event) => update(event.currentTarget.value)} />
      </div>
      <${DraftInput} id=${name} type="number" min=${low} max=${high}
        step=${kind === "int" ? 1 : "any"} value=${value} aria-invalid=${Boolean(wrong)} aria-describedby="${name}-note"
        take=${update} onKeyDown=${(event) => nudge(event, name, step, low, high)} />
      <div class="notes" id="${name}-note">
        ${wrong ? html`<p class="wrong">${wrong}</p>` : html`<${Advice} advice=${advised} value=${value} />`}
        ${curves.filter((each) => each.setting === name).map((each) => html`<${Plot} curve=${each} value=${value} />`)}
      </div>
    </div>`;
}

/** The arrow keys move a number by the slider's step, which a browser would not do for "any". */
function nudge(event, name, step, low, high) {
  const way = { ArrowUp: 1, ArrowDown: -1 }[event.key];
  if (!way || event.ctrlKey) return;
  event.preventDefault();
  event.currentTarget.dispatchEvent(new Event("change")); // takes what was typed
  const value = now().form[name];
  const moved = Math.round((value + way * step) * 1000) / 1000;
  change({ [name]: Math.min(Math.max(moved, low), high) });
}

function Choice({ name, choices, label = nameOf(name), value, update, note }) {
  return html`
    <div class="field">
      <label for=${name}>${label}</label>
      <select id=${name} value=${value} onChange=${(event) => update(event.currentTarget.value)}>
        ${choices.map(([key, text]) => html`<option value=${key} selected=${key === value}>${text}</option>`)}
      </select>
      ${note && html`<p class="advice">${note}</p>`}
    </div>`;
}

function Model() {
  const [model, style] = [useForm("model"), useForm("style")];
  const { options } = now();
  const presets = options.presets.filter((each) => !isNegative(each));
  const known = allStyles(useStore(({ styles }) => styles));
  useEffect(() => { loadStyles(); }, []);
  const styles = Object.entries(known).map(([name, { label }]) => [name, label]);
  const words = known[style];
  return html`
    <${Choice} name="model" value=${model} update=${chooseModel} choices=${Object.keys(options.models).map((each) => [each, each])} />
    <div class="pair">
      <${Choice} name="style" value=${words ? style : ""} update=${(style) => change({ style })} choices=${[["", "None"], ...styles]} />
      <div class="field">
        <label for="preset">Preset</label>
        <select id="preset" onChange=${(event) => { usePreset(event.currentTarget.value); event.currentTarget.value = ""; }}>
          <option value="">Apply…</option>
          ${presets.map((each) => html`<option value=${each.name} title=${each.source}>${each.name}</option>`)}
        </select>
      </div>
    </div>
    ${words && html`<p class="hint" id="style-words">Sent as “${shownStyle(words.prompt)}”${words.negative && `, away from “${words.negative}”`}.</p>`}`;
}

/** A style's words with a gap for the prompt; without a place for it, they follow it. */
const shownStyle = (words) => (words.includes("{prompt}") ? words : `{prompt}, ${words}`).replace("{prompt}", "…");

function Sampler() {
  const [sampler, schedule] = [useForm("sampler"), useForm("schedule")];
  const { samplers, schedules } = now().options;
  const named = (all) => all.map((each) => [each.name, each.label]);
  return html`
    <div class="pair">
      <${Choice} name="sampler" choices=${named(samplers)} value=${sampler} update=${(value) => change({ sampler: value })} />
      <${Choice} name="schedule" choices=${named(schedules)} value=${schedule ?? "automatic"}
        update=${(value) => change({ schedule: value === "automatic" ? null : value })} />
    </div>
    <${Note} text=${useAdvice("sampler ")} /><${Note} text=${useAdvice("schedule ")} />
    ${sampler === "tcd" && html`<${Slider} name="gamma" />`}`;
}

function Size() {
  const [width, height, model] = [useForm("width"), useForm("height"), useForm("model")];
  const advice = useAdvice("size ");
  const wrong = useWrong("width", "height", "size");
  const { models, settings } = now().options;
  const { sizes } = models[model];
  const { low, high, multiple_of: step } = settings.find((each) => each.name === "width");
  const current = `${width}x${height}`;
  const listed = sizes.map((each) => each.join("x"));
  const choose = (text) => {
    const [width, height] = text.split("x").map(Number);
    change({ width, height });
  };
  const side = (name, value) => html`
    <${DraftInput} type="number" aria-label=${nameOf(name)} min=${low} max=${high} step=${step} value=${value} aria-invalid=${Boolean(wrong)}
      take=${(text) => number(text) !== null && change({ [name]: number(text) })} />`;
  return html`
    <div class="field" role="group" aria-label="Size">
      <label for="size">Size</label>
      <div class="size">
        <select id="size" value=${listed.includes(current) ? current : ""} onChange=${(event) => choose(event.currentTarget.value)}>
          ${!listed.includes(current) && html`<option value="" selected disabled>Other</option>`}
          ${listed.map((each) => html`<option value=${each} selected=${each === current}>${each.replace("x", " × ")}</option>`)}
        </select>
        ${side("width", width)}
        <${IconButton} icon="swap" label="Swap width and height" onClick=${() => change({ width: height, height: width })} />
        ${side("height", height)}
      </div>
      ${wrong ? html`<p class="wrong">${wrong}</p>` : html`<${Note} text=${advice} />`}
    </div>`;
}

/** Take what was typed as a seed. What is no number is reported, because an empty field means another seed each time. */
function takeSeed(name, text) {
  const seed = text.trim() === "" ? RANDOM : number(text);
  if (Number.isInteger(seed)) change({ [name]: seed });
  else note(`“${text}” is no seed: write a whole number, or nothing for a random one.`, { wrong: true });
}

function Seed() {
  const [seed, count] = [useForm("seed"), useForm("count")];
  const last = useStore(({ newest, chosen }) => (chosen ?? newest)?.settings.seed);
  const wrong = useWrong("seed", "count");
  return html`
    <div class="field">
      <div class="seed">
        <div class="field">
          <label for="seed">Seed</label>
          <${DraftInput} id="seed" inputmode="numeric" autocomplete="off" placeholder="random" value=${seed === RANDOM ? "" : seed}
            take=${(text) => takeSeed("seed", text)} />
        </div>
        <${IconButton} icon="dice" label="Random seed" pressed=${seed === RANDOM} onClick=${() => change({ seed: RANDOM })} />
        <${IconButton} icon="last" label="Use the last seed" disabled=${last === undefined} onClick=${() => change({ seed: last })} />
        <div class="field count">
          <label for="count">Count</label>
          <${DraftInput} id="count" type="number" min="1" max=${now().options.max_count} value=${count}
            take=${(text) => change({ count: number(text) ?? count })} />
        </div>
      </div>
      ${wrong && html`<p class="wrong">${wrong}</p>`}
    </div>`;
}

function Interval() {
  const [begin, end] = useForm("guidance_interval");
  const wrong = useWrong("guidance_interval");
  const bound = (label, value, update) => html`
    <${DraftInput} type="number" aria-label=${label} min="0" max="1" step="0.05" value=${value}
      take=${(text) => number(text) !== null && update(number(text))} />`;
  return html`
    <div class="field" role="group" aria-label="Guidance interval">
      <div class="interval"><span>Guide from</span>
        ${bound("Begin of guidance", begin, (value) => change({ guidance_interval: [value, end] }))}<span>to</span>
        ${bound("End of guidance", end, (value) => change({ guidance_interval: [begin, value] }))}</div>
      <p class=${wrong ? "wrong" : "hint"}>${wrong || "Parts of the way from noise (0) to picture (1)."}</p>
    </div>`;
}

/** The model's own timesteps, which few-step models were trained on. */
function Timesteps() {
  const timesteps = useForm("timesteps");
  const wrong = useWrong("timesteps");
  return html`
    <div class="field">
      <label for="timesteps">Timesteps</label>
      <${DraftInput} id="timesteps" autocomplete="off" placeholder="the schedule's" value=${timesteps ?? ""} aria-invalid=${Boolean(wrong)}
        take=${(text) => change({ timesteps: text.trim() || null })} />
      ${wrong && html`<p class="wrong">${wrong}</p>`}
    </div>`;
}

/** A number that may be left out. */
const Amount = ({ name, label, value, update, ...rest }) => html`
  <div class="field"><label for=${name}>${label}</label>
    <${DraftInput} id=${name} type="number" value=${value ?? ""} ...${rest}
      take=${(text) => update(text.trim() === "" ? null : number(text) ?? value)} /></div>`;

/** The second pass at a larger size. Without a scale or a size there is none, and the other settings mean nothing. */
function Hires() {
  const form = useStore(({ form }) => form);
  const wrong = useWrong("hires_scale", "hires_strength", "hires_steps", "second pass", "the");
  const { upscalers } = now().options;
  const sized = Boolean(form.hires_width || form.hires_height);
  const on = Boolean(form.hires_scale) || sized;
  const scale = (value) => change(value ? { hires_scale: value, hires_width: null, hires_height: null } : HIRES_OFF);
  return html`
    <details class="more" id="hires" open=${on}>
      <summary>Hires fix</summary>
      <div class="pair">
        <${Amount} name="hires_scale" label="Scale" min="1" max="16" step="0.25" placeholder=${sized ? "by size" : "off"}
          disabled=${Boolean(form.init_image) && !on} value=${form.hires_scale} update=${scale} />
        <${Amount} name="hires_strength" label="Strength" min="0" max="1" step="0.05" placeholder="0.5" disabled=${!on}
          value=${form.hires_strength} update=${(value) => change({ hires_strength: value })} />
        <${Amount} name="hires_steps" label="Steps" min="1" max="1000" step="1" placeholder=${form.steps} disabled=${!on}
          value=${form.hires_steps} update=${(value) => change({ hires_steps: value })} />
        <div class="field"><label for="hires_upscaler">Upscaler</label>
          <select id="hires_upscaler" disabled=${!on} onChange=${(event) => change({ hires_upscaler: event.currentTarget.value || null })}>
            <option value="">Default</option>
            ${upscalers.map((each) => html`<option value=${each.name} selected=${each.name === form.hires_upscaler}>${each.label}</option>`)}
          </select></div>
      </div>
      ${sized && html`<p class="hint">To ${form.hires_width ?? "…"} × ${form.hires_height ?? "…"}.</p>`}
      <p class=${wrong ? "wrong" : "hint"}>${wrong || (form.init_image ? "Only for images from text." : "Enlarges the finished image and draws over it in a second pass.")}</p>
    </details>`;
}

/** Images near the one of a seed. */
function Variation() {
  const [seed, strength] = [useForm("variation_seed"), useForm("variation_strength")];
  const [width, height] = [useForm("seed_resize_width"), useForm("seed_resize_height")];
  const wrong = useWrong("variation_seed", "variation_strength");
  const resizeWrong = useWrong("seed_resize_width", "seed_resize_height");
  return html`
    <details class="more" id="variation" open=${strength > 0 || width !== null}>
      <summary>Variation seed</summary>
      <div class="pair">
        <div class="field"><label for="variation_seed">Seed of the variation</label>
          <${DraftInput} id="variation_seed" inputmode="numeric" autocomplete="off" placeholder="random"
            value=${seed === RANDOM ? "" : seed} take=${(text) => takeSeed("variation_seed", text)} /></div>
        <${Amount} name="variation_strength" label="Strength" min="0" max="1" step="0.05"
          value=${strength} update=${(value) => change({ variation_strength: value ?? 0 })} />
      </div>
      <p class=${wrong ? "wrong" : "hint"}>${wrong || "0 is the image of the seed, 1 that of the variation."}</p>
      <div class="pair">
        <${Amount} name="seed_resize_width" label="Width of the noise" min="64" max="4096" step="8" placeholder="image's"
          value=${width} update=${(value) => change({ seed_resize_width: value })} />
        <${Amount} name="seed_resize_height" label="Height of the noise" min="64" max="4096" step="8" placeholder="image's"
          value=${height} update=${(value) => change({ seed_resize_height: value })} />
      </div>
      <p class=${resizeWrong ? "wrong" : "hint"}>${resizeWrong || "The noise of an image of that size, in the middle: another size gives a similar image."}</p>
    </details>`;
}

/** Settings without a control, which came with a picture. */
function Extra() {
  const extra = useForm("extra");
  const drop = (name) => change({ extra: Object.fromEntries(Object.entries(extra).filter(([each]) => each !== name)) });
  return html`${Object.entries(extra).map(([name, value]) => html`
    <p class="chip">${nameOf(name)} ${shownValue(now().options, name, value)}
      <${IconButton} icon="cancel" label="Drop ${nameOf(name)}" onClick=${() => drop(name)} /></p>`)}`;
}

/** All settings but the prompts. */
export function Settings() {
  const changed = useStore(({ form }) => !same(form.guidance_interval, [0, 1]) || form.feature_reuse > 0 || form.timesteps !== null);
  return html`
    <${Model} /><${Size} /><${Seed} />
    <${Sampler} />
    <${Slider} name="steps" /><${Slider} name="guidance_scale" /><${Slider} name="guidance_rescale" />
    <details class="more" open=${changed}>
      <summary>More</summary>
      <${Interval} /><${Timesteps} /><${Slider} name="feature_reuse" />
    </details>
    <${Hires} /><${Variation} />
    <${Extra} />
    <button type="button" class="link" onClick=${reset}>Back to the model's defaults</button>`;
}
