// The question for the API key, and the list of shortcuts.
import { onUnauthorized } from "./api.js";
import { Dialog } from "./modal.js";
import { IconButton } from "./parts.js";
import { set, useStore } from "./store.js";
import { html, useRef } from "./vendor/preact.js";

let answerKey = () => {};

onUnauthorized((wrong) => new Promise((resolve) => {
  answerKey = (key) => {
    set({ key: null });
    resolve(key);
  };
  set({ key: { wrong } });
}));

/** The question for the API key. */
export function KeyDialog() {
  const asked = useStore(({ key }) => key);
  const input = useRef();
  if (!asked) return null;
  const send = (event) => {
    event.preventDefault();
    if (input.current.value.trim()) answerKey(input.current.value.trim());
  };
  return html`
    <${Dialog} label="API key" class="small-dialog" close=${() => {}}>
      <form onSubmit=${send}>
        <h2>API key</h2>
        <p class="hint">This server wants a key. It is kept until this tab is closed.</p>
        <div class="field"><label for="key">Key</label>
          <input id="key" ref=${input} type="password" autocomplete="off" aria-invalid=${asked.wrong} aria-describedby="key-wrong" /></div>
        <p class="wrong" id="key-wrong" role="alert">${asked.wrong && "The server does not accept this key."}</p>
        <button class="primary">Continue</button>
      </form>
    </${Dialog}>`;
}

const SHORTCUTS = [
  ["Ctrl Enter", "Generate"], ["Ctrl ↑ ↓", "Weight of the selected words"], ["/", "Search the gallery"],
  ["G", "Grid"], ["Alt ↑ ↓", "Move a job in the queue"], ["← → ↑ ↓", "Move in the gallery"], ["Enter", "Open the picture"],
  ["← →", "Newer and older picture in the light box"], ["C", "Compare in the light box"], ["B", "Before and after in the light box"], ["F", "Favourite"], ["D", "Download"],
  ["Delete", "Delete"], ["Z", "Undo the deletion"], ["Escape", "Close"], ["?", "This list"],
];

/** The list of shortcuts. */
export function Help() {
  const open = useStore(({ dialog }) => dialog === "help");
  const close = () => set({ dialog: null });
  return open && html`
    <${Dialog} label="Keyboard shortcuts" class="small-dialog" close=${close}>
      <header><h2>Keyboard shortcuts</h2><${IconButton} icon="cancel" label="Close" onClick=${close} /></header>
      <dl class="shortcuts">
        ${SHORTCUTS.map(([keys, text]) => html`<div><dt>${keys.split(" ").map((key) => html`<kbd>${key}</kbd> `)}</dt><dd>${text}</dd></div>`)}
      </dl>
    </${Dialog}>`;
}
