// Modal dialogs, and the messages that appear above everything.
import { IconButton } from "./parts.js";
import { dropNote, useStore } from "./store.js";
import { html, useLayoutEffect, useRef } from "./vendor/preact.js";

/** A modal dialog that is open as long as it is rendered; Escape and a click outside close it. */
export function Dialog({ label, close, children, ...rest }) {
  const dialog = useRef();
  useLayoutEffect(() => {
    const box = dialog.current;
    box.showModal();
    // Closing gives the focus back to where it was, which removing the element would not.
    return () => box.close();
  }, []);
  return html`
    <dialog ref=${dialog} aria-label=${label} ...${rest}
      onCancel=${(event) => { event.preventDefault(); close(); }}
      onMouseDown=${(event) => event.target === dialog.current && close()}>${children}<${Notes} /></dialog>`;
}

/**
 * Short messages at the edge of the window, some with an undo, and what is said to screen readers. A modal dialog
 * disables everything outside of it, so each dialog contains its own.
 */
export function Notes() {
  const notes = useStore(({ notes }) => notes);
  const spoken = useStore(({ spoken }) => spoken);
  return html`
    <div class="notes-layer">
      <p class="unseen" role="status">${spoken}</p>
      ${notes.map(({ id, text, undo, wrong }) => html`
        <div key=${id} class="note ${wrong ? "is-wrong" : ""}" role=${wrong ? "alert" : "status"}>
          <span>${text}</span>
          ${undo && html`<button type="button" class="small" onClick=${() => { dropNote(id); undo(); }}>Undo</button>`}
          <${IconButton} icon="cancel" label="Dismiss message" onClick=${() => dropNote(id)} />
        </div>`)}
    </div>`;
}
