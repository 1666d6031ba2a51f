// Jobs: submitted, followed by events, and found again after a lost connection.
import { follow, get, patch, post } from "./api.js";
import { body, change, settingOf } from "./form.js";
import { addPictures, refreshPictures } from "./pictures.js";
import { attempt, keep, note, now, recall, say, set } from "./store.js";

const UNFINISHED = new Set(["queued", "running"]);
const WRONG = new Set(["failed", "cancelled"]);

/** Seconds after which a job that went wrong is not listed any more when the page is loaded. */
const FORGOTTEN = 3600;

export const isOpen = (job) => UNFINISHED.has(job.state);
export const wentWrong = (job) => WRONG.has(job.state);

/** The unfinished jobs, in the order in which they are generated. */
export const queueOf = (jobs) =>
  [...jobs.values()].filter(isOpen).sort(
    (one, other) =>
      (other.state === "running") - (one.state === "running") || other.priority - one.priority || one.created - other.created,
  );

/** Image ids whose pictures were shown, so that each is announced once. */
const shown = new Set();

/** Follow the server's events, for ever. */
export function followJobs() {
  follow("/v1/events?previews=true", hear, (online) => {
    if (online !== now().online) set({ online });
    if (online && now().problem?.offline) set({ problem: null });
  });
}

function hear(event, data) {
  if (event === "ready") attempt(reload);
  else if (event === "job") take(data);
  else if (event === "preview") showPreview(data);
}

/** Find out what happened while nobody listened. */
async function reload() {
  const before = [...now().jobs.values()].filter(isOpen);
  const [queue, recent] = await Promise.all([get("/v1/queue"), get("/v1/jobs?state=failed&state=cancelled&limit=5")]);
  const there = new Set(queue.map((job) => job.id));
  const ended = await Promise.all(before.filter((job) => !there.has(job.id)).map(outcome));
  const young = recent.jobs.filter((job) => Date.now() / 1000 - job.finished < FORGOTTEN && !dismissed.has(job.id));
  for (const job of [...young, ...queue, ...ended]) take(job);
  await refreshPictures();
}

/** What became of a job; another client may have deleted it, which cancels it. */
const outcome = (job) =>
  get(`/v1/jobs/${job.id}`).catch((error) => {
    if (error.status !== 404) throw error;
    return { ...job, state: "cancelled", finished: Date.now() / 1000 };
  });

/** The last state of each job that was heard of, and who wants to know of changes. */
export const heard = new Map();
const listeners = new Set();
export const onJob = (listener) => listeners.add(listener);

/** Share of a job that is done: the images that are, and the steps of those in progress. */
export function progress(job) {
  const done = job.images.filter((image) => image.state !== "waiting").length;
  const share = job.images.length - done ? job.step / job.steps : 0;
  return (done + share * (job.images.length - done)) / job.images.length;
}

/** Note the state of a job, and show the images that it has now. */
export function take(job) {
  const before = heard.get(job.id);
  if (before && !isOpen(before) && isOpen(job)) return; // an answer that was overtaken by an event
  heard.set(job.id, job);
  set(({ jobs, previews }) => {
    jobs = new Map(jobs);
    if (isOpen(job) || (wentWrong(job) && !dismissed.has(job.id))) jobs.set(job.id, { ...job, heard: Date.now() });
    else jobs.delete(job.id);
    if (!isOpen(job) && previews.has(job.id)) {
      previews = new Map(previews);
      previews.delete(job.id);
    }
    return { jobs, previews };
  });
  const fresh = job.images.filter((image) => image.state === "done" && !shown.has(image.id));
  for (const image of fresh) shown.add(image.id);
  if (fresh.length) addPictures(fresh.map((image) => pictureOf(job, image)).reverse());
  if (fresh.length && job.state === "done") say(`Done: ${job.prompt.slice(0, 80)}`);
  if (job.state === "failed" && before && isOpen(before)) say(`Failed: ${job.error}`);
  for (const each of listeners) each(job);
  if (!isOpen(job) && before && isOpen(before)) estimateSoon();
}

let timer;

/** The server tells of jobs that change. When one ends, the others wait shorter, which it does not tell. */
function estimateSoon() {
  clearTimeout(timer);
  timer = setTimeout(async () => {
    if (![...now().jobs.values()].some((job) => job.state === "queued")) return;
    const queue = await get("/v1/queue").catch(() => []); // if it is lost, the next events set it right
    for (const job of queue) if (job.state === "queued" && heard.get(job.id)?.state === "queued") take(job);
  }, 500);
}

/** The entry of the gallery that GET /v1/pictures would have, so that it need not be asked. */
export const pictureOf = (job, image) => ({
  id: image.id, job: job.id, model: job.model, made: job.finished ?? Date.now() / 1000, favourite: false, deleted: false,
  url: image.url, thumbnail: `${image.url}/thumbnail`, settings: { ...job.settings, seed: image.seed },
});

function showPreview({ job, jpeg }) {
  if (!now().jobs.has(job)) return; // the job was cancelled meanwhile
  set(({ previews }) => ({ previews: new Map(previews).set(job, `data:image/jpeg;base64,${jpeg}`) }));
}

/** Generate with the form's settings. */
export async function generate(form = now().form) {
  if (!form.prompt.trim()) {
    set({ problem: { text: "Write what to generate first.", setting: "prompt" } });
    document.querySelector("#prompt")?.focus();
    return;
  }
  const before = now().form;
  try {
    const job = await post("/v1/jobs", body(form));
    set({ problem: null, chosen: null });
    take(job);
    // On phones the result is below the settings.
    document.querySelector(".stage")?.scrollIntoView({ block: "nearest" });
    say(job.position ? `Queued behind ${job.position} jobs` : "Queued");
  } catch (error) {
    // A message stays until the form is changed. If it was changed meanwhile, the message goes by itself.
    if (now().form !== before) note(error.message, { wrong: true });
    else set({ problem: { text: error.message, setting: settingOf(error.message), offline: error.status === 0 } });
  }
}

/** Submit one job without the form; its error is the caller's. */
export async function submit(settings) {
  const job = await post("/v1/jobs", settings);
  take(job);
  return job;
}

/** Generate four variants: the same settings, other seeds. The form's count stays. */
export function vary() {
  change({ seed: -1 });
  return generate({ ...now().form, count: 4 });
}

export const cancel = (job) => attempt(async () => take(await post(`/v1/jobs/${job.id}/cancel`)));

export const retry = (job) =>
  attempt(async () => {
    const again = await post(`/v1/jobs/${job.id}/retry`);
    dismiss(job);
    take(again);
  });

/** Jobs that went wrong and are not to be listed again, also after the page was loaded anew. */
const dismissed = new Set(recall("dismissed") ?? []);

/** List a job no more that went wrong. */
export function dismiss(job) {
  dismissed.add(job.id);
  keep("dismissed", [...dismissed].slice(-100));
  set(({ jobs }) => {
    jobs = new Map(jobs);
    jobs.delete(job.id);
    return { jobs };
  });
}

/** Cancel everything that waits; the list offers to retry it. */
export async function cancelAll() {
  await Promise.all(queueOf(now().jobs).map(cancel));
  say("All jobs are cancelled");
}

/**
 * The priorities by which queued jobs get a new order. Jobs of the same priority go in the order of arrival, so
 * whatever came later and is to go before needs a higher one.
 * @param {{id: string, priority: number, created: number}[]} wanted in the new order.
 * @returns {Map<string, number>} of the jobs whose priority changes.
 */
export function priorities(wanted) {
  const changed = new Map();
  let below = null;
  for (const job of [...wanted].reverse()) {
    let priority = job.priority;
    if (below) priority = Math.max(priority, below.priority + (job.created > below.created ? 1 : 0));
    if (priority !== job.priority) changed.set(job.id, priority);
    below = { priority, created: job.created };
  }
  return changed;
}

/** Move a queued job up (-1) or down (1). */
export async function move(job, by) {
  const waiting = queueOf(now().jobs).filter((each) => each.state === "queued");
  const at = waiting.findIndex((each) => each.id === job.id);
  const to = at + by;
  if (at < 0 || to < 0 || to >= waiting.length) return;
  waiting.splice(to, 0, ...waiting.splice(at, 1));
  await attempt(async () => {
    for (const [id, priority] of priorities(waiting)) {
      if (priority > 10) throw new Error("These jobs have the highest priority already");
      take(await patch(`/v1/jobs/${id}`, { priority }));
    }
  }, "Not moved");
}
