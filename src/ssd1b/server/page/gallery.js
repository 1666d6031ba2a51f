// The gallery: all finished pictures. Only the rows that are in sight exist, so ten thousand are as fast as ten.
import { ALL, download, favour, morePictures, remove, restore, searchPictures } from "./pictures.js";
import { Icon, IconButton, Picture } from "./parts.js";
import { now, set, useStore } from "./store.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/preact.js";

const GAP = 6;
const LEAST = 112; // pixels of a tile
const AHEAD = 3; // rows beyond the window, above and below

function Filter() {
  const filter = useStore(({ filter }) => filter);
  const models = Object.keys(now().options.models);
  return html`
    <form class="filter" role="search" onSubmit=${(event) => event.preventDefault()}>
      <input id="search" type="search" placeholder="Search prompts" aria-label="Search prompts" value=${filter.q}
        onInput=${(event) => searchPictures({ q: event.currentTarget.value }, 200)} />
      <select id="filter-show" aria-label="Show" value=${filter.show} onChange=${(event) => searchPictures({ show: event.currentTarget.value })}>
        <option value="all">All</option><option value="favourites">Favourites</option><option value="deleted">Deleted</option>
      </select>
      ${models.length > 1 && html`
        <select id="filter-model" aria-label="Model of the pictures" value=${filter.model} onChange=${(event) => searchPictures({ model: event.currentTarget.value })}>
          <option value="">Any model</option>${models.map((each) => html`<option value=${each}>${each}</option>`)}
        </select>`}
    </form>`;
}

/** What is in sight: first and last row, and how many fit in a row. */
function useWindow(frame, count) {
  const [view, update] = useState({ columns: 1, size: LEAST, first: 0, last: 0 });
  const look = () => {
    const box = frame.current?.getBoundingClientRect();
    if (!box) return;
    const columns = Math.max(2, Math.floor((box.width + GAP) / (LEAST + GAP)));
    const size = (box.width - GAP * (columns - 1)) / columns;
    const pitch = size + GAP;
    const first = Math.max(0, Math.floor(-box.top / pitch) - AHEAD);
    // At least one row, also while the gallery is far below the window: Tab must find a tile.
    const last = Math.max(first + 1, Math.ceil((innerHeight - box.top) / pitch) + AHEAD);
    update((view) => {
      const next = { columns, size, first, last };
      return Object.keys(next).every((name) => next[name] === view[name]) ? view : next;
    });
    if (last * columns >= count) morePictures();
  };
  useLayoutEffect(look);
  useEffect(() => {
    // The work column scrolls on desktops, the page on phones; scroll events do not bubble, but can be captured.
    document.addEventListener("scroll", look, { capture: true, passive: true });
    const resized = new ResizeObserver(look);
    // What is above the gallery moves it.
    for (const each of [frame.current, document.body, document.querySelector(".top")]) resized.observe(each);
    return () => {
      document.removeEventListener("scroll", look, { capture: true });
      resized.disconnect();
    };
  }, [count]);
  return view;
}

/** Show a picture on the stage, or in the light box if the stage is out of sight. */
function choose(picture) {
  const stage = document.querySelector(".mat")?.getBoundingClientRect();
  set({ chosen: picture, ...(!(stage?.bottom > 120) && { enlarged: picture }) });
}

function Tile({ picture, focusable, chosen, style, focus, deleted }) {
  const { prompt, seed } = picture.settings;
  return html`
    <li style=${style} class=${chosen ? "tile chosen" : "tile"}>
      <button type="button" class="thumb" data-id=${picture.id} tabindex=${focusable ? 0 : -1} aria-label="${prompt}, seed ${seed}"
        title=${prompt} onFocus=${focus} onClick=${() => choose(picture)} onDblClick=${() => set({ enlarged: picture })}>
        <${Picture} path=${picture.thumbnail} alt="" decoding="async" />
      </button>
      ${deleted
        ? html`<${IconButton} icon="retry" label="Restore" tabindex=${focusable ? 0 : -1} onClick=${() => restore(picture)} />`
        : html`<${IconButton} icon="star" label="Favourite" class="icon-button star" pressed=${picture.favourite}
            tabindex=${focusable ? 0 : -1} onClick=${() => favour(picture)} />`}
    </li>`;
}

/** The gallery. */
export function Gallery() {
  const { pictures, more, loading } = useStore(gallery);
  const chosen = useStore(({ chosen }) => chosen?.id);
  const filter = useStore(({ filter }) => filter);
  const [focused, focus] = useState(0);
  const frame = useRef();
  const { columns, size, first, last } = useWindow(frame, pictures.length);
  const rows = Math.ceil(pictures.length / columns);
  const pitch = size + GAP;
  const visible = pictures.slice(first * columns, last * columns);
  // Exactly one tile can be reached by Tab, and it must be one that exists.
  const active = focused >= first * columns && focused < first * columns + visible.length ? focused : first * columns;

  const go = (index) => {
    const { pictures } = now(); // one may have been deleted since this was rendered
    const to = Math.min(Math.max(index, 0), pictures.length - 1);
    if (to < 0) return;
    focus(to);
    const top = Math.floor(to / columns) * pitch;
    reveal(frame.current, top, size);
    // The tile exists after the next rendering.
    setTimeout(() => frame.current?.querySelector(`[data-id="${pictures[to].id}"]`)?.focus({ preventScroll: true }), 30);
  };
  const keys = (event) => {
    const at = pictures.findIndex((each) => each.id === event.target.dataset?.id);
    const picture = pictures[at];
    const page = columns * Math.max(1, Math.floor(innerHeight / pitch) - 1);
    if (!picture || event.ctrlKey || event.altKey || event.metaKey) return;
    const work = {
      ArrowRight: () => go(at + 1), ArrowLeft: () => go(at - 1), ArrowDown: () => go(at + columns), ArrowUp: () => go(at - columns),
      PageDown: () => go(at + page), PageUp: () => go(at - page),
      Home: () => go(0), End: () => go(pictures.length - 1), Enter: () => set({ enlarged: picture }),
      f: () => favour(picture), d: () => download(picture), Delete: () => remove(picture).then(() => go(at)),
    }[event.key];
    if (!work) return;
    event.preventDefault();
    work();
  };
  const searched = filter.q !== ALL.q || filter.model !== ALL.model || filter.show !== ALL.show;
  return html`
    <section class="gallery" aria-label="Gallery">
      <header><h2>Gallery</h2><${Filter} /></header>
      ${!pictures.length && !loading && html`<p class="hint">${searched ? "No picture matches." : "Finished pictures appear here."}</p>`}
      <ul ref=${frame} class="tiles" style=${{ height: `${rows * pitch}px` }} onKeyDown=${keys}>
        ${visible.map((picture, index) => {
          const at = first * columns + index;
          const place = { width: `${size}px`, height: `${size}px`, transform: `translate(${(at % columns) * pitch}px, ${Math.floor(at / columns) * pitch}px)` };
          return html`<${Tile} key=${picture.id} picture=${picture} style=${place} chosen=${picture.id === chosen}
            focusable=${at === active} focus=${() => focus(at)} deleted=${filter.show === "deleted"} />`;
        })}
      </ul>
      ${more && loading && html`<p class="hint" aria-busy="true">Loading…</p>`}
    </section>`;
}

let before;
const gallery = ({ pictures, more, loading }) => {
  if (before?.pictures !== pictures || before.more !== more || before.loading !== loading) before = { pictures, more, loading };
  return before;
};

/** Scroll so that a row of the gallery is in sight. */
function reveal(frame, top, size) {
  let scroller = frame.parentElement;
  while (scroller.parentElement && getComputedStyle(scroller).overflowY !== "auto") scroller = scroller.parentElement;
  const at = frame.getBoundingClientRect().top + top;
  if (at < 60) scroller.scrollBy(0, at - 60);
  else if (at + size > innerHeight - 20) scroller.scrollBy(0, at + size - innerHeight + 20);
}
