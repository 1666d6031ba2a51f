// The page: its parts put together, shortcuts of the whole page, and the start.
import { ControlNets, ImagePrompts } from "./controls.js";
import { Help, KeyDialog } from "./dialogs.js";
import { Embeddings } from "./embeddings.js";
import { loadForm } from "./form.js";
import { Gallery } from "./gallery.js";
import { followGrid, Grid } from "./grid.js";
import { Input } from "./inputs.js";
import { followJobs, generate } from "./jobs.js";
import { LightBox } from "./lightbox.js";
import { Loras } from "./loras.js";
import { MaskPainter } from "./mask.js";
import { Notes } from "./modal.js";
import { Icon, IconButton } from "./parts.js";
import { download, favour } from "./pictures.js";
import { NegativePrompt, Prompt } from "./prompt.js";
import { Queue } from "./queue.js";
import { chooseFile, DropZone, Reading } from "./reading.js";
import { Result } from "./result.js";
import { Settings } from "./settings.js";
import { keep, now, recall, set, undoLast, useStore } from "./store.js";
import { html, render, useEffect, useState } from "./vendor/preact.js";

const THEMES = ["auto", "light", "dark"];

function Theme() {
  const [theme, choose] = useState(THEMES.includes(recall("theme")) ? recall("theme") : "auto");
  const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  const change = () => {
    keep("theme", next);
    choose(next);
    if (next === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
  };
  return html`<${IconButton} icon=${theme} label="Theme: ${theme}. Change to ${next}" onClick=${change} />`;
}

function Bar() {
  const online = useStore(({ online }) => online);
  return html`
    <header class="bar">
      <a class="skip" href="#prompt">To the prompt</a>
      <h1 class="brand">ssd1b</h1>
      <p class="connection" role="status">${online ? "" : "Connection lost. Trying again…"}</p>
      <button type="button" class="plain" aria-label="Read a picture" onClick=${chooseFile}><${Icon} name="open" /><span>Read a picture</span></button>
      <button type="button" class="plain" aria-label="Grid" onClick=${() => set({ dialog: "grid" })}><${Icon} name="table" /><span>Grid</span></button>
      <${IconButton} icon="keys" label="Keyboard shortcuts" keys="?" onClick=${() => set({ dialog: "help" })} />
      <${Theme} />
    </header>`;
}

function Generate() {
  const problem = useStore(({ problem }) => problem);
  const refused = useStore(({ checked }) => checked.error);
  const passes = useStore(({ checked }) => checked.passes);
  const count = useStore(({ form }) => form.count);
  return html`
    <div class="generate">
      ${(problem || refused) && html`<p class="wrong" role="alert">${problem?.text ?? refused}</p>`}
      <button type="button" class="primary" onClick=${() => generate()} title="Ctrl+Enter">
        Generate${count > 1 ? ` ${count} images` : ""}</button>
      ${passes > 0 && html`<span class="unseen">${passes * count} passes of the model</span>`}
    </div>`;
}

function Controls() {
  const phone = matchMedia("(max-width: 699px)").matches;
  return html`
    <section class="panel controls" aria-label="Settings">
      <div class="scrolling">
        <${Reading} />
        <${Prompt} />
        <${NegativePrompt} />
        <${Input} />
        <${Loras} /><${Embeddings} /><${ControlNets} /><${ImagePrompts} />
        <details class="settings" open=${!phone}><summary>Settings</summary><${Settings} /></details>
      </div>
      <${Generate} />
    </section>`;
}

function keys(event) {
  const typing = event.target.matches?.("input:not([type=range]), textarea, select");
  const modal = document.querySelector("dialog[open]");
  if (modal || event.defaultPrevented) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    // A number that is being typed counts only when its field is left.
    const field = document.activeElement;
    field?.blur?.();
    field?.focus?.();
    generate();
    return;
  }
  if (event.key === "Escape") {
    if (typing) event.target.blur();
    else set({ chosen: null });
    return;
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const picture = document.querySelector("#result") && (now().chosen ?? now().newest); // the one on the stage
  const work = {
    "?": () => set({ dialog: "help" }), g: () => set({ dialog: "grid" }), "/": () => document.querySelector("#search")?.focus(),
    z: undoLast, ...(picture && { f: () => favour(picture), d: () => download(picture) }),
  }[event.key];
  if (!work) return;
  event.preventDefault();
  work();
}

function App() {
  const ready = useStore(({ form }) => form !== null);
  const failed = useStore(({ failed }) => failed);
  const modal = useStore(({ enlarged, dialog, key, masked }) => Boolean(enlarged || dialog || key || masked));
  useEffect(() => {
    addEventListener("keydown", keys);
    return () => removeEventListener("keydown", keys);
  }, []);
  return html`
    <${Bar} />
    <main class="columns">
      ${ready
        ? html`<${Controls} /><div class="work"><div class="top"><${Result} /><${Queue} /></div><${Gallery} /></div>`
        : html`<section class="panel controls">${failed && html`<p class="wrong" role="alert">${failed}</p>`}</section><div class="work"></div>`}
    </main>
    <${LightBox} /><${MaskPainter} /><${Grid} /><${Help} /><${KeyDialog} /><${DropZone} />
    ${!modal && html`<${Notes} />`}`;
}

async function start() {
  const root = document.querySelector("#app");
  root.replaceChildren();
  render(html`<${App} />`, root);
  for (;;) {
    try {
      await loadForm();
      break;
    } catch (error) {
      set({ failed: `${error.message} Trying again…` });
      await new Promise((resolve) => setTimeout(resolve, 2000));
    }
  }
  set({ failed: null });
  followGrid();
  followJobs();
  if (!now().form.prompt) document.querySelector("#prompt")?.focus({ preventScroll: true });
}

start();
