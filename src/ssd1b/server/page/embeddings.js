// Embeddings of the server, which prompts use by their words.
import { get } from "./api.js";
import { change } from "./form.js";
import { attempt, now, set, useStore } from "./store.js";
import { html, useEffect } from "./vendor/preact.js";

set({ embeddings: [] });

/** Ask the server which there are; files may have come since. */
const load = () => attempt(async () => set({ embeddings: (await get("/v1/embeddings")).embeddings }), "Embeddings cannot be listed");

const FIELDS = { prompt: "To the prompt", negative_prompt: "To the negative prompt" };

/** Append a word to a text of the form. */
function append(field, word) {
  const text = (now().form[field] ?? "").trim().replace(/,$/, "");
  change({ [field]: text ? `${text}, ${word}` : word });
}

/** The picker. It is hidden on a server without embeddings. */
export function Embeddings() {
  const all = useStore(({ embeddings }) => embeddings);
  const refused = useStore(({ checked }) => checked.error);
  useEffect(() => { load(); }, []);
  if (!all.length) return null;
  const choose = (event) => {
    const [field, ...word] = event.currentTarget.value.split(" ");
    event.currentTarget.value = "";
    if (field) append(field, word.join(" "));
  };
  const label = ({ name, word, vectors, error }) =>
    error ? `${name} (damaged)` : `${word} (${vectors} ${vectors === 1 ? "token" : "tokens"})`;
  return html`
    <div class="field" id="embeddings">
      <label for="embedding">Embeddings</label>
      <select id="embedding" onChange=${choose} onFocus=${load}>
        <option value="">Add…</option>
        ${Object.entries(FIELDS).map(([field, text]) => html`
          <optgroup label=${text}>
            ${all.map((each) => html`<option value="${field} ${each.word}" disabled=${Boolean(each.error)}>${label(each)}</option>`)}
          </optgroup>`)}
      </select>
      ${/embedding|text encoder/.test(refused ?? "") && html`<p class="wrong" role="alert">${refused}</p>`}
    </div>`;
}
