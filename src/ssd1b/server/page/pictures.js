// Finished pictures: the list that the gallery shows, loaded page by page, and what can be done to one.
import { get, imageSource, patch } from "./api.js";
import { change, takeOver } from "./form.js";
import { attempt, note, now, set } from "./store.js";

/** Pictures that are asked for at once: few at first, so that they are there soon. */
const [FIRST, MORE] = [200, 500];

export const ALL = { q: "", model: "", show: "all" };

set({ filter: ALL, pictures: [], more: true, loading: false });

let search = 0;

/** Whether the first page was there. Pictures of jobs may be in the list before it. */
let loaded = false;

const address = (filter, before) => {
  const query = new URLSearchParams({ limit: before ? MORE : FIRST });
  if (filter.q) query.set("q", filter.q);
  if (filter.model) query.set("model", filter.model);
  if (filter.show === "favourites") query.set("favourite", "true");
  if (filter.show === "deleted") query.set("deleted", "true");
  if (before) query.set("before", before);
  return `/v1/pictures?${query}`;
};

let timer;

/**
 * Change the search. The state has it at once, as what is typed must not be lost when the page is rendered meanwhile.
 * @param {object} values
 * @param {number} delay milliseconds until the server is asked.
 */
export function searchPictures(values, delay = 0) {
  search += 1; // answers to the search before do not count any more
  set(({ filter }) => ({ filter: { ...filter, ...values }, more: true, loading: true }));
  clearTimeout(timer);
  timer = setTimeout(firstPage, delay);
}

async function firstPage() {
  const number = ++search;
  const { filter } = now();
  set({ loading: true });
  const page = await attempt(() => get(address(filter)), "The gallery cannot be loaded");
  if (number !== search) return; // the user typed on
  loaded ||= page !== undefined;
  set({ loading: false, ...(page && { pictures: page.pictures, before: page.next, more: page.next !== null }) });
}

/** Load the next older pictures, if there are any. */
export async function morePictures() {
  const { filter, before, more, loading } = now();
  if (!more || loading || !before) return;
  const number = search;
  set({ loading: true });
  const page = await attempt(() => get(address(filter, before)), "Older pictures cannot be loaded");
  if (number !== search) return;
  set(({ pictures }) => ({
    loading: false,
    ...(page && { pictures: merged(pictures, page.pictures), before: page.next, more: page.next !== null }),
  }));
}

/** Look what came while nobody listened. Keeps what was loaded, so that scrolling stays where it is. */
export async function refreshPictures() {
  const number = search;
  if (!loaded) {
    await firstPage();
  } else {
    const page = await get(address(now().filter));
    if (number === search) set(({ pictures }) => ({ pictures: merged(page.pictures, pictures) }));
  }
  const [newest] = now().pictures;
  if (newest && !now().newest && !newest.deleted) set({ newest });
}

const merged = (first, second) => {
  const known = new Set(first.map((each) => each.id));
  return [...first, ...second.filter((each) => !known.has(each.id))];
};

const matches = (picture, filter) => {
  const prompt = picture.settings.prompt.toLowerCase();
  const words = filter.q.toLowerCase().split(/\s+/).filter(Boolean);
  return filter.show === "all" && (!filter.model || picture.model === filter.model) && words.every((word) => prompt.includes(word));
};

/** Show pictures that were just finished, the newest first. */
export function addPictures(fresh) {
  set(({ pictures, filter }) => ({
    pictures: merged(fresh.filter((each) => matches(each, filter)).filter((each) => !pictures.some(({ id }) => id === each.id)), pictures),
    newest: fresh[0],
  }));
}

const replaced = (picture) => (state) => ({
  pictures: state.pictures.map((each) => (each.id === picture.id ? picture : each)),
  ...Object.fromEntries(
    ["newest", "chosen", "enlarged", "pinned"].filter((name) => state[name]?.id === picture.id).map((name) => [name, picture]),
  ),
});

const mark = (picture, marks) => patch(`/v1/pictures/${picture.id}`, marks);

export const favour = (picture) =>
  attempt(async () => set(replaced(await mark(picture, { favourite: !picture.favourite }))));

/** Delete a picture, and offer to take that back. */
export const remove = (picture) =>
  attempt(async () => {
    const at = now().pictures.findIndex((each) => each.id === picture.id);
    const next = neighbour(picture, 1) ?? neighbour(picture, -1);
    await mark(picture, { deleted: true });
    set((state) => ({
      pictures: state.pictures.filter((each) => each.id !== picture.id),
      ...(state.chosen?.id === picture.id && { chosen: null }),
      ...(state.newest?.id === picture.id && { newest: next }),
      ...(state.pinned?.id === picture.id && { pinned: null }),
      ...(state.enlarged?.id === picture.id && { enlarged: next }),
    }));
    note("Picture deleted.", { undo: () => restore(picture, at) });
  }, "Not deleted");

/** Undo a deletion. */
export const restore = (picture, at = -1) =>
  attempt(async () => {
    const back = await mark(picture, { deleted: false });
    set(({ pictures, filter, newest }) => {
      pictures = pictures.filter((each) => each.id !== picture.id);
      if (filter.show !== "deleted") pictures.splice(Math.max(at, 0), 0, back);
      return { pictures, newest: at === 0 || !newest ? back : newest };
    });
    note("Picture restored.");
  }, "Not restored");

/** The picture before (-1) or after (1) one in the gallery; undefined at its ends. */
export function neighbour(picture, by) {
  const { pictures } = now();
  const at = pictures.findIndex((each) => each.id === picture.id);
  if (by > 0 && at > pictures.length - 10) morePictures();
  return at < 0 ? undefined : pictures[at + by];
}

/** Set the form to a picture's settings. */
export function useSettings(picture) {
  takeOver(picture.settings, picture.model);
  change({ count: 1 });
  const { options } = now();
  note(options.models[picture.model] ? "Settings taken over." : `Settings taken over; ${picture.model} is not offered here.`);
}

/** Save a picture's file, which contains its recipe. */
export const download = (picture) =>
  attempt(async () => {
    const link = document.createElement("a");
    link.href = await imageSource(picture.url);
    const { prompt, seed } = picture.settings;
    // As the server calls it; with a key the browser has a copy in memory, which has no name.
    link.download = `${seed}-${prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40)}.png`;
    link.click();
  }, "Not saved");
