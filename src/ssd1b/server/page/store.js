// What the page knows, in one place, and how its parts hear of changes.
import { useEffect, useState } from "./vendor/preact.js";

let state = {
  /** The answer of /v1/settings; null until it is there. */
  options: null,
  /** What the user has set; see form.js. */
  form: null,
  /** The last answer of /v1/check, or `{error}`. */
  checked: {},
  /** The server's LoRAs, as /v1/loras lists them. */
  loras: [],
  /** Jobs by id: the unfinished ones, and those that went wrong. */
  jobs: new Map(),
  /** Address of the last preview by job. */
  previews: new Map(),
  online: true,
  /** Why the last submission was refused. */
  problem: null,
  /** The picture on the stage; null follows what is being generated. */
  chosen: null,
  /** The newest picture that was finished. */
  newest: null,
  /** The picture in the light box, and the one it is compared with. */
  enlarged: null,
  pinned: null,
  /** Name of the open dialog: "grid", "help", "key" or null. */
  dialog: null,
  /** What was read from a dropped file. */
  read: null,
  /** The picture whose mask is being painted; see mask.js. */
  masked: null,
  grid: null,
  notes: [],
  spoken: "",
};
const listeners = new Set();

export const now = () => state;

/** @param {object | ((state: object) => object)} change what to replace. */
export function set(change) {
  state = { ...state, ...(typeof change === "function" ? change(state) : change) };
  for (const each of [...listeners]) each();
}

/** A part of the state, in a component. What `select` returns must be the same object until it changes. */
export function useStore(select) {
  const [value, update] = useState(() => select(state));
  useEffect(() => {
    const look = () => update(() => select(state));
    look();
    listeners.add(look);
    return () => listeners.delete(look);
  }, []);
  return value;
}

/** Have a function called when a part of the state changes. */
export function watch(select, changed) {
  let before = select(state);
  listeners.add(() => {
    const after = select(state);
    if (after !== before) changed((before = after));
  });
}

/** Read something that was kept in the browser; null if there is nothing. */
export function recall(name) {
  try {
    return JSON.parse(localStorage.getItem(`ssd1b.${name}`));
  } catch {
    return null;
  }
}

/** Keep something in the browser, where it keeps anything. */
export function keep(name, value) {
  try {
    localStorage.setItem(`ssd1b.${name}`, JSON.stringify(value));
  } catch {
    // Full or forbidden: then it lasts until the page is closed.
  }
}

let notes = 0;

/**
 * Show a short message for a while.
 * @param {string} text
 * @param {{undo?: () => void, wrong?: boolean}} options
 */
export function note(text, { undo, wrong = false } = {}) {
  const id = ++notes;
  set(({ notes }) => ({ notes: [...notes.slice(-3), { id, text, undo, wrong }] }));
  setTimeout(() => dropNote(id), undo || wrong ? 10_000 : 4000);
}

export const dropNote = (id) => set(({ notes }) => ({ notes: notes.filter((each) => each.id !== id) }));

/** Take back what the newest message offers to. */
export function undoLast() {
  const last = state.notes.findLast((each) => each.undo);
  if (!last) return;
  dropNote(last.id);
  last.undo();
}

/** Say something to screen readers. */
export const say = (spoken) => set({ spoken });

/** Run something that may be refused, and show why. Returns undefined then. */
export async function attempt(work, what = "") {
  try {
    return await work();
  } catch (error) {
    note(what ? `${what}: ${error.message}` : error.message, { wrong: true });
  }
}
