// Networks with pictures: ControlNets and T2I-Adapters, which follow theirs, and IP-Adapters, which make an image like theirs.
import { get, upload } from "./api.js";
import { change } from "./form.js";
import { addressOf } from "./inputs.js";
import { DraftInput, Icon, IconButton, Picture } from "./parts.js";
import { attempt, now, set, useStore } from "./store.js";
import { html, useEffect } from "./vendor/preact.js";

set({ networks: [], preprocessors: [], adapters: [] });

/**
 * What differs between both kinds: the setting, its field with the network's name, where in the store the networks are, how they
 * are asked for, the field that is chosen from names beside the numbers, and the words for all that.
 */
const CONTROLS = {
  setting: "controls", named: "model", stored: "networks", id: "control", label: "Controls", what: "follows", chosen: "Reads",
  load: async () => {
    const { controls, preprocessors } = await get("/v1/controls");
    set({ networks: controls, preprocessors });
  },
  choices: () => now().preprocessors.map((each) => [each, each === "none" ? "the picture" : each]),
  value: ({ preprocess }) => preprocess,
  choose: (preprocess) => ({ preprocess }),
  fresh: (name) => ({ preprocess: name === "mini-control" || /canny/i.test(name) ? "canny" : "none" }),
  wrong: /control|^(scale|start|end) is/,
};

const IMAGE_PROMPTS = {
  setting: "image_prompts", named: "adapter", stored: "adapters", id: "image-prompt", label: "Image prompts", what: "shows",
  chosen: "Counts in",
  load: async () => set({ adapters: (await get("/v1/ip-adapters")).ip_adapters }),
  choices: ({ layers }) => {
    const other = layers.join(", ");
    const known = [["", "all parts"], ["style", "style"], ["layout", "layout"]];
    return known.some(([each]) => each === other) ? known : [...known, [other, other]];
  },
  value: ({ layers }) => layers.join(", "),
  choose: (part) => ({ layers: part ? part.split(", ") : [] }),
  fresh: () => ({ layers: [] }),
  wrong: /ip-adapter|image_prompts/,
};

/** Ask the server which there are; files may have come since. */
const load = (kind) => attempt(kind.load, `${kind.label} cannot be listed`);

/** Change the item at a place; null drops it. One network may be used several times. */
const update = ({ setting }, at, values) =>
  change({ [setting]: now().form[setting].flatMap((each, place) => (place !== at ? [each] : values ? [{ ...each, ...values }] : [])) });

/** Have the user choose a picture. */
const choose = (kind, at) => {
  const input = document.createElement("input");
  input.type = "file";
  input.accept = "image/png,image/jpeg,image/webp";
  input.addEventListener("change", () =>
    input.files[0] && attempt(async () => update(kind, at, { picture: (await upload("/v1/uploads", input.files[0])).id }), "Not used"));
  input.click();
};

function Used({ kind, item, at }) {
  const { [kind.named]: name, picture } = item;
  const number = (field, label, most) => html`
    <label class="tool">${label}
      <${DraftInput} type="number" min="0" max=${most} step="0.05" value=${item[field]} aria-label="${label} of ${name}"
        take=${(text) => text.trim() !== "" && Number.isFinite(Number(text)) && update(kind, at, { [field]: Number(text) })} /></label>`;
  return html`
    <li class="lora">
      <div class="label-row"><b title=${name}>${name}</b>
        <${IconButton} icon="cancel" label="Drop ${name}" onClick=${() => update(kind, at, null)} /></div>
      <div class="source">
        ${picture && html`<span class="stack"><${Picture} key=${picture} path=${addressOf(picture)} alt="The picture that ${name} ${kind.what}" /></span>`}
        <div class="actions"><button type="button" class="small" onClick=${() => choose(kind, at)}>
          <${Icon} name="input" />${picture ? "Other picture…" : "Choose its picture…"}</button>
          <label class="tool">${kind.chosen} <select aria-label="What ${name} ${kind.chosen.toLowerCase()}" value=${kind.value(item)}
            onChange=${(event) => update(kind, at, kind.choose(event.currentTarget.value))}>
            ${kind.choices(item).map(([key, text]) => html`<option value=${key} selected=${key === kind.value(item)}>${text}</option>`)}
          </select></label></div>
      </div>
      <div class="trio">${number("scale", "Scale", 10)}${number("start", "Start", 1)}${number("end", "End", 1)}</div>
      ${!picture && html`<p class="hint">It counts when it has a picture.</p>`}
    </li>`;
}

/** A picker. It is hidden where nothing fits the model. */
function Picker({ kind }) {
  const networks = useStore((state) => state[kind.stored]);
  const used = useStore(({ form }) => form[kind.setting]);
  const model = useStore(({ form }) => form.model);
  const refused = useStore(({ checked }) => checked.error);
  useEffect(() => { load(kind); }, []);
  if (!used.length && !networks.some((each) => each.models.includes(model))) return null;
  const add = (event) => {
    const name = event.currentTarget.value;
    event.currentTarget.value = "";
    const picture = now().form.init_image;
    if (name) change({ [kind.setting]: [...used, { [kind.named]: name, picture, scale: 1, start: 0, end: 1, ...kind.fresh(name) }] });
  };
  const label = ({ name, models, error }) => (error ? `${name} (damaged)` : models.includes(model) ? name : `${name} (does not fit ${model})`);
  return html`
    <div class="field" id="${kind.id}s">
      <label for=${kind.id}>${kind.label}</label>
      <select id=${kind.id} onChange=${add} onFocus=${() => load(kind)}>
        <option value="">Add…</option>
        ${networks.map((each) => html`<option value=${each.name} disabled=${!each.models.includes(model)}>${label(each)}</option>`)}
      </select>
      <ul>${used.map((each, at) => html`<${Used} key=${at} kind=${kind} item=${each} at=${at} />`)}</ul>
      ${kind.wrong.test(refused ?? "") && html`<p class="wrong" role="alert">${refused}</p>`}
    </div>`;
}

export const ControlNets = () => html`<${Picker} kind=${CONTROLS} />`;
export const ImagePrompts = () => html`<${Picker} kind=${IMAGE_PROMPTS} />`;
