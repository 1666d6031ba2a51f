// ControlNets and T2I-Adapters: which are used, the pictures that they follow, and how much they count.
import { get, upload } from "./api.js";
import { change } from "./form.js";
import { addressOf } from "./inputs.js";
import { DraftInput, Icon, IconButton, Picture } from "./parts.js";
import { attempt, now, set, useStore } from "./store.js";
import { html, useEffect } from "./vendor/preact.js";

set({ networks: [], preprocessors: [] });

/** Ask the server which there are; files may have come since. */
const load = () =>
  attempt(async () => {
    const { controls, preprocessors } = await get("/v1/controls");
    set({ networks: controls, preprocessors });
  }, "ControlNets cannot be listed");

/** Change the control at a place; null drops it. One network may be used several times. */
const update = (at, values) =>
  change({ controls: now().form.controls.flatMap((each, place) => (place !== at ? [each] : values ? [{ ...each, ...values }] : [])) });

/** Have the user choose a picture for a control. */
const choose = (at) => {
  const input = document.createElement("input");
  input.type = "file";
  input.accept = "image/png,image/jpeg,image/webp";
  input.addEventListener("change", () =>
    input.files[0] && attempt(async () => update(at, { picture: (await upload("/v1/uploads", input.files[0])).id }), "Not used"));
  input.click();
};

function Used({ control, at, preprocessors }) {
  const { model, picture, preprocess } = control;
  const number = (name, label, most, step) => html`
    <label class="tool">${label}
      <${DraftInput} type="number" min="0" max=${most} step=${step} value=${control[name]} aria-label="${label} of ${model}"
        take=${(text) => text.trim() !== "" && Number.isFinite(Number(text)) && update(at, { [name]: Number(text) })} /></label>`;
  return html`
    <li class="lora">
      <div class="label-row"><b title=${model}>${model}</b>
        <${IconButton} icon="cancel" label="Drop ${model}" onClick=${() => update(at, null)} /></div>
      <div class="source">
        ${picture && html`<span class="stack"><${Picture} key=${picture} path=${addressOf(picture)} alt="The picture that ${model} follows" /></span>`}
        <div class="actions"><button type="button" class="small" onClick=${() => choose(at)}>
          <${Icon} name="input" />${picture ? "Other picture…" : "Choose its picture…"}</button>
          <label class="tool">Reads <select aria-label="What ${model} reads" value=${preprocess}
            onChange=${(event) => update(at, { preprocess: event.currentTarget.value })}>
            ${preprocessors.map((each) => html`<option value=${each} selected=${each === preprocess}>${each === "none" ? "the picture" : each}</option>`)}
          </select></label></div>
      </div>
      <div class="trio">${number("scale", "Scale", 10, 0.05)}${number("start", "Start", 1, 0.05)}${number("end", "End", 1, 0.05)}</div>
      ${!picture && html`<p class="hint">It counts when it has a picture.</p>`}
    </li>`;
}

/** The picker. It is hidden where nothing fits the model. */
export function ControlNets() {
  const networks = useStore(({ networks }) => networks);
  const preprocessors = useStore(({ preprocessors }) => preprocessors);
  const used = useStore(({ form }) => form.controls);
  const model = useStore(({ form }) => form.model);
  const refused = useStore(({ checked }) => checked.error);
  useEffect(() => { load(); }, []);
  if (!used.length && !networks.some((each) => each.models.includes(model))) return null;
  const add = (event) => {
    const name = event.currentTarget.value;
    event.currentTarget.value = "";
    const edges = name === "mini-control" || /canny/i.test(name);
    const picture = now().form.init_image;
    if (name) change({ controls: [...used, { model: name, picture, scale: 1, start: 0, end: 1, preprocess: edges ? "canny" : "none" }] });
  };
  const label = ({ name, models, error }) => (error ? `${name} (damaged)` : models.includes(model) ? name : `${name} (does not fit ${model})`);
  return html`
    <div class="field" id="controls">
      <label for="control">Controls</label>
      <select id="control" onChange=${add} onFocus=${load}>
        <option value="">Add…</option>
        ${networks.map((each) => html`<option value=${each.name} disabled=${!each.models.includes(model)}>${label(each)}</option>`)}
      </select>
      <ul>${used.map((each, at) => html`<${Used} key=${at} control=${each} at=${at} preprocessors=${preprocessors} />`)}</ul>
      ${/control|^(scale|start|end) is/.test(refused ?? "") && html`<p class="wrong" role="alert">${refused}</p>`}
    </div>`;
}
