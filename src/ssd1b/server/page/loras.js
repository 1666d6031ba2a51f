// LoRAs of the server: which are used, how strongly, and the words that they were trained with.
import { get } from "./api.js";
import { change, dropLora, useLora } from "./form.js";
import { DraftInput, IconButton, Note, useAdvice } from "./parts.js";
import { attempt, now, set, useStore } from "./store.js";
import { html, useEffect } from "./vendor/preact.js";

/** Ask the server which there are; files may have come since. */
export const loadLoras = () => attempt(async () => set({ loras: (await get("/v1/loras")).loras }), "LoRAs cannot be listed");

const same = (one, other) => one.name === other.name;

/** Append words to the prompt, unless they are there. */
function mention(words) {
  const { prompt } = now().form;
  if (prompt.toLowerCase().includes(words.toLowerCase())) return;
  change({ prompt: prompt.trim() ? `${prompt.trim().replace(/,$/, "")}, ${words}` : words });
}

function Used({ lora, known }) {
  const update = (values) => change({ loras: now().form.loras.map((each) => (same(each, lora) ? { ...each, ...values } : each)) });
  const strength = (part, label) => html`
    <label class="tool">${label}
      <${DraftInput} type="number" min="-100" max="100" step="0.05" value=${lora[part]} aria-label="${label} of ${lora.name}"
        take=${(text) => text.trim() !== "" && Number.isFinite(Number(text)) && update({ [part]: Number(text) })} /></label>`;
  return html`
    <li class="lora">
      <div class="label-row"><b title=${lora.name}>${lora.name}</b>
        <${IconButton} icon="cancel" label="Drop ${lora.name}" onClick=${() => dropLora(lora.name)} /></div>
      <div class="pair">${strength("unet", "Strength")}${strength("text", "In the text")}</div>
      ${known?.few_steps && html`<p class="hint">A few-step LoRA (${known.few_steps.kind}): its settings were set.</p>`}
      ${known?.trigger_words.length > 0 && html`
        <p class="words" role="group" aria-label="Trigger words of ${lora.name}">${known.trigger_words.map((words) => html`
          <button type="button" class="small" title="Add to the prompt" onClick=${() => mention(words)}>${words}</button>`)}</p>`}
      ${known?.error && html`<p class="wrong">${known.error}</p>`}
    </li>`;
}

/** The picker. It is hidden on a server without LoRAs. */
export function Loras() {
  const all = useStore(({ loras }) => loras);
  const used = useStore(({ form }) => form.loras);
  const model = useStore(({ form }) => form.model);
  const refused = useStore(({ checked }) => checked.error);
  useEffect(() => { loadLoras(); }, []);
  if (!all.length && !used.length) return null;
  const left = all.filter((each) => !used.some((other) => same(each, other)));
  const choose = (event) => {
    const name = event.currentTarget.value;
    event.currentTarget.value = "";
    if (name) useLora(all.find((each) => each.name === name));
  };
  const twice = useAdvice("each makes a model a few-step one");
  const label = ({ name, families, error }) =>
    error ? `${name} (damaged)` : families[model] ? name : `${name} (does not fit ${model})`;
  return html`
    <div class="field" id="loras">
      <label for="lora">LoRAs</label>
      <select id="lora" onChange=${choose} onFocus=${loadLoras}>
        <option value="">Add…</option>
        ${left.map((each) => html`<option value=${each.name} disabled=${Boolean(each.error) || !each.families[model]}>${label(each)}</option>`)}
      </select>
      <ul>${used.map((each) => html`<${Used} key=${each.name} lora=${each} known=${all.find((other) => same(each, other))} />`)}</ul>
      <${Note} text=${twice} />
      ${refused?.includes("lora") && html`<p class="wrong" role="alert">${refused}</p>`}
    </div>`;
}
