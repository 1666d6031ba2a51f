// Picture files that are dropped, pasted or chosen: their settings become the form's.
import { post, upload } from "./api.js";
import { takeOver } from "./form.js";
import { uploadInput } from "./inputs.js";
import { IconButton } from "./parts.js";
import { attempt, now, say, set, useStore } from "./store.js";
import { html, useEffect, useState } from "./vendor/preact.js";

/** Read a file's settings into the form. */
export async function readFile(file) {
  set({ read: { busy: true, name: file.name } });
  try {
    const found = await upload("/v1/read", file);
    const [names, unavailable] = await canonical(found.settings);
    takeOver({ ...found.settings, ...names, prompt: found.prompt, count: 1 }, found.model);
    set({ read: { ...found, unreproduced: [...unavailable, ...found.unreproduced], name: file.name, file } });
    say(`Settings of ${file.name} taken over`);
  } catch (error) {
    if (await startFrom(file)) set({ read: { plain: true, name: file.name } });
    else set({ read: { error: error.message, name: file.name } });
  }
}

/** Start from a picture that has no settings. Returns whether it is one. */
const startFrom = (file) => uploadInput(file).then(() => true, () => false);

/**
 * The sampler and schedule of a picture by the names that the form has. Other programs have their own, as in
 * "DPM++ 2M Karras".
 * @returns {Promise<[object, string[]]>} the names, and what there is no name for. Then the form keeps its own.
 */
async function canonical({ sampler, schedule }) {
  const { form } = now();
  try {
    const { settings } = await post("/v1/check", { prompt: "-", ...(sampler && { sampler }), ...(schedule && { schedule }) });
    return [{ ...(sampler && { sampler: settings.sampler }), ...((sampler || schedule) && { schedule: settings.schedule }) }, []];
  } catch (error) {
    if (!error.status) throw error;
    return [{ sampler: form.sampler, schedule: form.schedule }, [error.message]];
  }
}

/** Let the user choose a file. */
export function chooseFile() {
  const input = document.createElement("input");
  input.type = "file";
  input.accept = "image/png,image/jpeg,image/webp";
  input.addEventListener("change", () => input.files[0] && readFile(input.files[0]));
  input.click();
}

const fileOf = (transfer) => [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/") || file.name);

/** Where files may be dropped: everywhere. Shown while one is dragged over the page. */
export function DropZone() {
  const [over, update] = useState(false);
  useEffect(() => {
    const files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    const listeners = {
      dragover: (event) => files(event) && (event.preventDefault(), update(true)),
      dragleave: (event) => event.relatedTarget === null && update(false),
      drop: (event) => {
        update(false);
        if (!files(event) || event.defaultPrevented) return;
        event.preventDefault();
        const file = fileOf(event.dataTransfer);
        if (file) readFile(file);
      },
      paste: (event) => {
        // Text of an office program comes with a picture of it.
        if (event.clipboardData?.types.includes("text/plain")) return;
        const file = fileOf(event.clipboardData);
        if (file) readFile(file);
      },
    };
    for (const [name, listener] of Object.entries(listeners)) addEventListener(name, listener);
    return () => Object.entries(listeners).forEach(([name, listener]) => removeEventListener(name, listener));
  }, []);
  return over && html`<div class="drop"><p>Drop a picture to use its settings, or to start from it if it has none</p></div>`;
}

/** What came of reading a file. */
export function Reading() {
  const read = useStore(({ read }) => read);
  if (!read) return null;
  const close = html`<${IconButton} icon="cancel" label="Dismiss" onClick=${() => set({ read: null })} />`;
  if (read.busy) return html`<div class="reading" role="status"><p>Reading ${read.name}…</p></div>`;
  if (read.error) return html`<div class="reading" role="alert"><p class="wrong">${read.name}: ${read.error}</p>${close}</div>`;
  if (read.plain) return html`<div class="reading" role="status"><p>${read.name} has no settings: images start from it.</p>${close}</div>`;
  const missing = read.model && !now().options.models[read.model];
  const unreproduced = [...(missing ? [`its model, ${read.model}, which is not offered here`] : []), ...read.unreproduced];
  return html`
    <div class="reading" role="status">
      <div><p>Settings from ${read.name} (${read.program}).</p>
        ${unreproduced.length > 0 && html`
          <p class="advice">Cannot be reproduced:</p><ul>${unreproduced.map((each) => html`<li>${each}</li>`)}</ul>`}
        <button type="button" class="small" onClick=${() => attempt(() => uploadInput(read.file), "Not used")}>Use as input</button></div>
      ${close}
    </div>`;
}
