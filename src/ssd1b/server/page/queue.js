// The queue: what is generated next, in which order, and what went wrong.
import { cancel, cancelAll, dismiss, move, progress, queueOf, retry, wentWrong } from "./jobs.js";
import { IconButton, useClock } from "./parts.js";
import { progressText } from "./result.js";
import { useStore } from "./store.js";
import { html } from "./vendor/preact.js";

function Open({ job, time, ahead, first, last }) {
  const keys = (event) => {
    if (!event.altKey || !["ArrowUp", "ArrowDown"].includes(event.key)) return;
    event.preventDefault();
    move(job, event.key === "ArrowUp" ? -1 : 1);
  };
  const many = job.images.length > 1 ? `${job.images.length} images · ` : "";
  return html`
    <li class="job ${job.state} ${first && last ? "only" : ""}" onKeyDown=${keys}>
      <p class="said" title=${job.prompt}>${job.prompt}</p>
      <p class="facts">${many}${progressText(job, time, ahead)}</p>
      ${job.state === "running" && html`<progress max="1" value=${progress(job)} aria-label="Progress of ${job.prompt}"></progress>`}
      <div class="buttons">
        ${job.state === "queued" && !(first && last) && html`
          <${IconButton} icon="up" label="Earlier" keys="Alt+Up" disabled=${first} onClick=${() => move(job, -1)} />
          <${IconButton} icon="down" label="Later" keys="Alt+Down" disabled=${last} onClick=${() => move(job, 1)} />`}
        <${IconButton} icon="cancel" label="Cancel" onClick=${() => cancel(job)} />
      </div>
    </li>`;
}

const Wrong = ({ job }) => html`
  <li class="job ${job.state}">
    <p class="said" title=${job.prompt}>${job.prompt}</p>
    <p class=${job.state === "failed" ? "wrong" : "facts"}>${job.state === "failed" ? `Failed: ${job.error}` : "Cancelled"}</p>
    <div class="buttons">
      <${IconButton} icon="retry" label="Retry" onClick=${() => retry(job)} />
      <${IconButton} icon="cancel" label="Dismiss" onClick=${() => dismiss(job)} />
    </div>
  </li>`;

/** Most jobs that are listed; the number of the others is told. */
const MOST = 50;

/** The queue. */
export function Queue() {
  const jobs = useStore(({ jobs }) => jobs);
  const open = queueOf(jobs);
  const wrong = [...jobs.values()].filter(wentWrong).sort((one, other) => other.finished - one.finished);
  const time = useClock(open.length > 0);
  const waiting = open.filter((job) => job.state === "queued");
  return html`
    <section class="queue" aria-label="Queue">
      <header><h2>Queue</h2>${open.length > 0 && html`<span class="facts">${open.length}</span>`}
        ${open.length > 1 && html`<button type="button" class="link" onClick=${cancelAll}>Cancel all</button>`}
        ${wrong.length > 1 && html`<button type="button" class="link" onClick=${() => wrong.forEach(dismiss)}>Clear</button>`}</header>
      ${!open.length && !wrong.length && html`<p class="hint">Nothing is waiting.</p>`}
      <ol>
        ${open.slice(0, MOST).map((job, ahead) => html`
          <${Open} key=${job.id} job=${job} time=${time} ahead=${ahead} first=${job === waiting[0]} last=${job === waiting.at(-1)} />`)}
        ${wrong.map((job) => html`<${Wrong} key=${job.id} job=${job} />`)}
      </ol>
      ${open.length > MOST && html`<p class="hint">and ${open.length - MOST} more</p>`}
    </section>`;
}
