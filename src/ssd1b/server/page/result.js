// The stage: the picture in progress or the one that was chosen, as large as there is room.
import { useAsInput } from "./inputs.js";
import { cancel, progress, queueOf, vary } from "./jobs.js";
import { download, favour, remove, useSettings } from "./pictures.js";
import { duration, Icon, IconButton, Picture, shownValue, useClock } from "./parts.js";
import { attempt, note, now, set, useStore } from "./store.js";
import { html, useEffect } from "./vendor/preact.js";

/** Seconds until a job is done; null if unknown. Counts on from what the server estimated last. */
export const timeLeft = (job, time) => (job.eta === null ? null : Math.max(0, job.eta - (time - job.heard) / 1000));

/** How far a job is, in words. */
export function progressText(job, time, ahead = 0) {
  const left = timeLeft(job, time);
  const nearly = left < 1 && job.state === "running";
  const rest = left === null ? "" : ` · ${nearly ? "nearly done" : `about ${duration(left)} left`}`;
  if (job.state === "queued") return `Waiting${ahead ? ` behind ${ahead}` : ""}${rest}`;
  if (!job.step) return `Starting${rest}`;
  return `Step ${job.step} of ${job.steps}${rest}`;
}

/** Progress of the job that is running. */
function Running({ job }) {
  const time = useClock(true);
  const share = progress(job);
  const text = progressText(job, time);
  useEffect(() => { document.title = `${Math.round(100 * share)}% – ssd1b`; }, [share]);
  useEffect(() => () => { document.title = "ssd1b"; }, []);
  return html`
    <div class="underway">
      <progress max="1" value=${share} aria-label="Progress of the job"></progress>
      <span>${text}</span>
      <button type="button" class="small" onClick=${() => cancel(job)}>Cancel</button>
    </div>`;
}

const Caption = ({ settings, model }) => {
  const { options } = now();
  const facts = [
    `${settings.width} × ${settings.height}`, `${settings.steps} steps`, `guidance ${shownValue(options, "guidance_scale", settings.guidance_scale)}`,
    shownValue(options, "sampler", settings.sampler), `seed ${settings.seed}`, model,
  ];
  return html`<div class="caption"><p class="said" title=${settings.prompt}>${settings.prompt}</p><p class="facts">${facts.join(" · ")}</p></div>`;
};

function use(picture) {
  set({ enlarged: null, pinned: null }); // so that the settings can be seen
  useSettings(picture);
}

/** Start from a picture of the gallery. */
const startFrom = (picture) =>
  attempt(async () => {
    await useAsInput(picture.id);
    set({ enlarged: null, pinned: null });
    note("Images start from this picture.");
  }, "Not used");

/** What can be done with a picture. */
export const Actions = ({ picture, children }) => html`
  <div class="actions">
    <button type="button" onClick=${() => use(picture)}><${Icon} name="take" />Use these settings</button>
    <button type="button" onClick=${() => { use(picture); vary(); }}><${Icon} name="vary" />Vary</button>
    <button type="button" onClick=${() => startFrom(picture)}><${Icon} name="input" />Use as input</button>
    ${children}
    <span class="marks">
    <${IconButton} icon="star" label="Favourite" keys="F" class="icon-button star" pressed=${picture.favourite} onClick=${() => favour(picture)} />
    <${IconButton} icon="save" label="Download" keys="D" onClick=${() => download(picture)} />
    <${IconButton} icon="trash" label="Delete" keys="Delete" onClick=${() => remove(picture)} /></span>
  </div>`;

/** The images of the job that the shown picture belongs to, to choose between them. */
function Siblings({ picture }) {
  const pictures = useStore(({ pictures }) => pictures);
  // They are close in the list, so a look around the picture suffices however long the list is. Pictures of one
  // batch are made at the same time, so their order there says nothing.
  const at = pictures.findIndex((each) => each.id === picture.id);
  const near = pictures.slice(Math.max(0, at - 64), at + 65).filter((each) => each.job === picture.job);
  near.sort((one, other) => one.settings.seed - other.settings.seed);
  if (at < 0 || near.length < 2) return null;
  return html`
    <div class="siblings" role="group" aria-label="Images of this job">
      ${near.map((each) => html`
        <button type="button" key=${each.id} aria-label="Seed ${each.settings.seed}" aria-current=${each.id === picture.id}
          onClick=${() => set({ chosen: each })}><${Picture} path=${each.thumbnail} alt="" width="48" height="48" /></button>`)}
    </div>`;
}

const Empty = () => html`
  <div class="empty">
    <p>Write a prompt and press <kbd>Ctrl</kbd> <kbd>Enter</kbd>.</p>
    <p>Or drop a picture here to use its settings, or to start from it.</p>
  </div>`;

/** The stage. */
export function Result() {
  const job = useStore(({ jobs }) => queueOf(jobs).find((each) => each.state === "running"));
  const preview = useStore(({ previews, jobs }) => previews.get(queueOf(jobs)[0]?.id));
  const chosen = useStore(({ chosen }) => chosen);
  const newest = useStore(({ newest }) => newest);
  const live = chosen === null && job !== undefined;
  const picture = chosen ?? newest;
  const enlarge = () => set({ enlarged: picture });
  const keys = (event) => {
    if (event.key !== "Delete" || !picture || live) return;
    event.preventDefault();
    remove(picture);
  };
  let shown = html`<${Empty} />`;
  if (live && preview) {
    shown = html`<${Picture} path=${preview} class="preview" alt="Preview of the image in progress" width=${job.settings.width} height=${job.settings.height} />`;
  } else if (picture) {
    shown = html`
      <button type="button" class="canvas ${live ? "stale" : ""}" aria-label="Enlarge: ${picture.settings.prompt}" onClick=${enlarge}>
        <${Picture} key="result" path=${picture.url} alt=${picture.settings.prompt} id="result"
          data-id=${picture.id} data-job=${picture.job} width=${picture.settings.width} height=${picture.settings.height} /></button>`;
  }
  return html`
    <section class="stage" aria-label="Result" onKeyDown=${keys}>
      <div class="mat">${shown}</div>
      ${live
        ? html`<div class="about"><${Caption} settings=${job.settings} model=${job.model} /><${Running} job=${job} /></div>`
        : picture && html`
          <div class="about"><${Caption} settings=${picture.settings} model=${picture.model} />
            <${Siblings} picture=${picture} /><${Actions} picture=${picture} />
            ${job && html`<button type="button" class="small" onClick=${() => set({ chosen: null })}>Show what is being generated</button>`}</div>`}
    </section>`;
}
