// The picture that images start from: chosen, dropped or taken from the gallery, with its mask and strength.
import { post, upload } from "./api.js";
import { change, HIRES_OFF } from "./form.js";
import { DraftInput, Icon, IconButton, Picture } from "./parts.js";
import { editMask } from "./mask.js";
import { attempt, now, say, useStore } from "./store.js";
import { html, useState } from "./vendor/preact.js";

/** The server's default. */
const STRENGTH = 0.6;

/** Where an input is, by its id. */
export const addressOf = (id) => `/v1/uploads/${id}`;

/**
 * Start from a picture, by the id of an upload or of a picture in the gallery. The image gets the picture's size, as far
 * as the server allows, and no second pass, which only images from text have.
 */
export async function useAsInput(id) {
  const { settings } = await post("/v1/check", { prompt: "-", model: now().form.model, init_image: id });
  const { init_image, width, height } = settings;
  change({ init_image, mask: null, width, height, ...HIRES_OFF });
  say("Images start from this picture");
}

/** Send a file, and start from it. */
export const uploadInput = async (file) => useAsInput((await upload("/v1/uploads", file)).id);

const choose = () => {
  const input = document.createElement("input");
  input.type = "file";
  input.accept = "image/png,image/jpeg,image/webp";
  input.addEventListener("change", () => input.files[0] && attempt(() => uploadInput(input.files[0]), "Not used"));
  input.click();
};

/** Paint the mask of the picture. */
const paint = () => {
  const { init_image, mask } = now().form;
  editMask({
    picture: addressOf(init_image),
    mask: mask && addressOf(mask),
    save: (file) => attempt(async () => change({ mask: file && (await upload("/v1/uploads", file)).id }), "Mask not kept"),
  });
};

/** How much of the picture changes, and how many steps that means. */
function Strength() {
  const given = useStore(({ form }) => form.strength);
  const checked = useStore(({ checked }) => checked);
  const value = given ?? STRENGTH;
  const take = (text) => {
    const share = Number(text);
    if (text.trim() !== "" && share >= 0 && share <= 1) change({ strength: share });
  };
  const wrong = checked.error?.startsWith("strength") ? checked.error : "";
  return html`
    <div class="field slider">
      <label for="strength" title="0 to 1: how much of the picture is changed; 1 keeps nothing.">Strength</label>
      <div class="track">
        <input type="range" tabindex="-1" aria-hidden="true" min="0" max="1" step="0.05" value=${value}
          onInput=${(event) => take(event.currentTarget.value)} />
      </div>
      <${DraftInput} id="strength" type="number" min="0" max="1" step="0.05" value=${value} take=${take}
        aria-invalid=${Boolean(wrong)} aria-describedby="strength-note" />
      <div class="notes" id="strength-note">
        ${wrong ? html`<p class="wrong">${wrong}</p>`
          : checked.settings && html`<p class="hint">${checked.steps} of ${scheduled(checked)} steps are run.</p>`}
      </div>
    </div>`;
}

/** Steps of the whole schedule: ComfyUI's rule runs all steps, the last ones of a longer schedule. */
const scheduled = ({ settings }) =>
  settings.strength_steps === "comfyui" && settings.strength > 0 ? Math.floor(settings.steps / settings.strength) : settings.steps;

function Rules() {
  const [rule, mode] = [useStore(({ form }) => form.strength_steps), useStore(({ form }) => form.resize_mode)];
  const select = (id, label, value, choices, update) => html`
    <div class="field"><label for=${id}>${label}</label>
      <select id=${id} value=${value} onChange=${(event) => update(event.currentTarget.value)}>
        ${choices.map(([key, text]) => html`<option value=${key} selected=${key === value}>${text}</option>`)}
      </select></div>`;
  return html`
    <div class="pair">
      ${select("strength_steps", "Steps as in", rule ?? "diffusers",
        [["diffusers", "diffusers"], ["a1111", "AUTOMATIC1111"], ["comfyui", "ComfyUI"]], (value) => change({ strength_steps: value }))}
      ${select("resize_mode", "Other shapes", mode ?? "crop", [["crop", "Cut off"], ["stretch", "Stretch"]], (value) => change({ resize_mode: value }))}
    </div>`;
}

/** The picture to start from. Files that are dropped here are used as they are, and not for their settings. */
export function Input() {
  const id = useStore(({ form }) => form.init_image);
  const mask = useStore(({ form }) => form.mask);
  const refused = useStore(({ checked }) => checked.error);
  const [over, update] = useState(false);
  const files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const drop = (event) => {
    if (!files(event)) return;
    event.preventDefault(); // so that it is not read for its settings
    update(false);
    const [file] = event.dataTransfer.files;
    if (file) attempt(() => uploadInput(file), "Not used");
  };
  const wrong = /^(there is no (upload|image)|init_image|mask)/.test(refused ?? "");
  const remove = () => change({ init_image: null, mask: null });
  return html`
    <section class="input ${over ? "over" : ""}" aria-label="Picture to start from" onDrop=${drop}
      onDragOver=${(event) => files(event) && (event.preventDefault(), update(true))} onDragLeave=${() => update(false)}>
      ${!id
        ? html`<button type="button" class="small" onClick=${choose}><${Icon} name="input" />Start from a picture…</button>`
        : html`
          <div class="source">
            <span class="stack"><${Picture} key=${id} path=${addressOf(id)} alt="The picture to start from" id="source" />
              ${mask && html`<${Picture} key=${mask} path=${addressOf(mask)} class="veil" alt="The mask" />`}</span>
            <div class="actions">
              <button type="button" class="small" onClick=${paint}><${Icon} name="brush" />${mask ? "Change mask" : "Paint mask"}</button>
              ${mask && html`<button type="button" class="small" onClick=${() => change({ mask: null })}>Drop mask</button>`}
              <button type="button" class="small" onClick=${choose}>Other picture…</button>
              <${IconButton} icon="cancel" label="Do not start from a picture" onClick=${remove} />
            </div>
          </div>
          ${wrong && html`<p class="wrong" role="alert">${refused}</p>`}
          <${Strength} /><${Rules} />`}
    </section>`;
}
