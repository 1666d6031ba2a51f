// Prompt and negative prompt: their size in tokens, weights by keyboard, presets.
import { change, isNegative, usePreset } from "./form.js";
import { generate } from "./jobs.js";
import { Note, useAdvice } from "./parts.js";
import { now, useStore } from "./store.js";
import { html } from "./vendor/preact.js";
import { reweight } from "./weights.js";

const STEP = 0.1;

/** Ctrl+Up and Ctrl+Down change the weight of what is selected, Ctrl+Enter generates. */
function keys(event, name) {
  if (!(event.ctrlKey || event.metaKey)) return;
  if (event.key === "Enter") {
    event.preventDefault();
    generate();
  } else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
    event.preventDefault();
    weigh(event.currentTarget, name, event.key === "ArrowUp" ? STEP : -STEP);
  }
}

function weigh(field, name, by) {
  const found = reweight(field.value, field.selectionStart, field.selectionEnd, by);
  if (!found) return;
  field.setSelectionRange(found.from, found.to);
  // Unlike assigning the value, this can be undone with Ctrl+Z.
  if (!document.execCommand("insertText", false, found.put)) field.setRangeText(found.put);
  change({ [name]: found.text });
  field.setSelectionRange(found.start, found.end);
}

function Counter({ checked }) {
  if (checked.tokens === undefined) return html`<span class="counter" id="prompt-size"></span>`;
  const room = checked.chunks * 75;
  const title = "CLIP reads 75 tokens at a time. The picture attends to all chunks.";
  return html`
    <span class="counter" id="prompt-size" title=${title}>
      ${checked.tokens}/${room} tokens · ${checked.chunks} ${checked.chunks === 1 ? "chunk" : "chunks"}</span>`;
}

/** The prompt. */
export function Prompt() {
  const prompt = useStore(({ form }) => form.prompt);
  const checked = useStore(({ checked }) => checked);
  const problem = useStore(({ problem }) => problem);
  const wrong = problem?.setting === "prompt" ? problem.text : checked.error?.startsWith("prompt") ? checked.error : "";
  return html`
    <div class="field">
      <div class="label-row"><label for="prompt">Prompt</label><${Counter} checked=${checked} /></div>
      <textarea id="prompt" class="prompt" rows="4" value=${prompt} placeholder="a small red rubber cube on a green background"
        aria-describedby="prompt-size prompt-wrong" aria-invalid=${Boolean(wrong)} spellcheck="true"
        onInput=${(event) => change({ prompt: event.currentTarget.value })} onKeyDown=${(event) => keys(event, "prompt")}></textarea>
      <p class="wrong" id="prompt-wrong">${wrong}</p>
    </div>`;
}

/** The negative prompt, with its presets. */
export function NegativePrompt() {
  const negative = useStore(({ form }) => form.negative_prompt);
  const presets = now().options.presets.filter(isNegative);
  const advice = useAdvice("negative prompt:");
  const choose = (event) => {
    usePreset(event.currentTarget.value);
    event.currentTarget.value = "";
  };
  return html`
    <div class="field">
      <div class="label-row">
        <label for="negative">Negative prompt</label>
        <select class="quiet" aria-label="Add a negative prompt" onChange=${choose}>
          <option value="">Add…</option>
          ${presets.map((each) => html`<option value=${each.name} title=${each.source}>${each.name}</option>`)}
        </select>
      </div>
      <textarea id="negative" class="prompt" rows="2" value=${negative ?? ""} placeholder="What to keep away from"
        onInput=${(event) => change({ negative_prompt: event.currentTarget.value || null })}
        onKeyDown=${(event) => keys(event, "negative_prompt")}></textarea>
      <${Note} text=${advice} />
      ${negative === "" && html`
        <p class="hint">An empty text, which is not the same as none.${" "}
          <button type="button" class="link" onClick=${() => change({ negative_prompt: null })}>Use none</button></p>`}
    </div>`;
}
