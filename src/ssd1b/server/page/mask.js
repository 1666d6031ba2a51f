// Painting a mask over a picture, with mouse, pen, finger or keyboard.
import { imageSource } from "./api.js";
import { Dialog } from "./modal.js";
import { Icon, IconButton } from "./parts.js";
import { set, useStore } from "./store.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/preact.js";

/** Sides of the mask in pixels: more would not be seen, as masks are scaled to the picture. */
const MOST = 2048;

/**
 * Open the painter.
 * @param {{picture: string, mask: string | null, save: (file: Blob | null) => void}} masked addresses, and what takes
 *   the mask: a PNG in which white is changed, or null if nothing is painted.
 */
export const editMask = (masked) => set({ masked });

async function load(path) {
  const image = new Image();
  image.src = await imageSource(path);
  await image.decode();
  return image;
}

/** What changes is shown in this colour; only its opacity counts. */
const RED = [224, 32, 32];

const canvasOf = (width, height) => Object.assign(document.createElement("canvas"), { width, height });

/** A mask as a layer that is opaque where it is white. */
function layerOf(image, width, height) {
  const canvas = canvasOf(width, height);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, width, height);
  const data = context.getImageData(0, 0, width, height);
  const levels = data.data;
  for (let at = 0; at < levels.length; at += 4) {
    levels[at + 3] = levels[at];
    [levels[at], levels[at + 1], levels[at + 2]] = RED;
  }
  context.putImageData(data, 0, 0);
  return canvas;
}

/** Do what was done, in order, on an empty layer. Undoing leaves the last out. */
function replay(canvas, base, deeds) {
  const context = canvas.getContext("2d");
  context.globalCompositeOperation = "source-over";
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (base) context.drawImage(base, 0, 0);
  for (const deed of deeds) act(context, deed);
}

function act(context, deed) {
  const { width, height } = context.canvas;
  context.fillStyle = `rgb(${RED})`;
  if (deed.kind === "clear") return context.clearRect(0, 0, width, height);
  if (deed.kind === "invert") {
    context.globalCompositeOperation = "xor"; // opaque with opaque is transparent
    return context.fillRect(0, 0, width, height);
  }
  return strokeFrom(context, deed, 0);
}

/** Draw a stroke, from one of its points on. */
function strokeFrom(context, { points, size, erase }, first) {
  context.globalCompositeOperation = erase ? "destination-out" : "source-over";
  context.strokeStyle = `rgb(${RED})`;
  context.lineCap = context.lineJoin = "round";
  context.lineWidth = size;
  context.beginPath();
  const [x, y] = points[Math.max(first - 1, 0)];
  context.moveTo(x, y);
  context.lineTo(x, y + 0.01); // a line without length would not be drawn
  for (const [x, y] of points.slice(first)) context.lineTo(x, y);
  context.stroke();
}

/** Blur grey levels, as a Gaussian of that deviation: three box blurs each way (Wells, 1986). */
export function feathered(levels, width, height, deviation) {
  const radius = Math.round((Math.sqrt(4 * deviation * deviation + 1) - 1) / 2);
  if (radius < 1) return levels;
  const [one, other] = [new Float32Array(levels), new Float32Array(levels.length)];
  for (let turn = 0; turn < 3; turn++) {
    blurRows(one, other, width, height, radius);
    blurRows(other, one, height, width, radius);
  }
  return new Uint8ClampedArray(one); // rounds
}

/** Average each row over a window of 2 radius + 1, and write it as a column, so that the next call blurs columns. */
function blurRows(from, to, width, height, radius) {
  for (let y = 0; y < height; y++) {
    const row = y * width;
    let sum = (radius + 1) * from[row];
    for (let x = 1; x <= radius; x++) sum += from[row + Math.min(x, width - 1)];
    for (let x = 0; x < width; x++) {
      to[x * height + y] = sum / (2 * radius + 1);
      sum += from[row + Math.min(x + radius + 1, width - 1)] - from[row + Math.max(x - radius, 0)];
    }
  }
}

/** The layer as a PNG in which white is changed; null if nothing is painted. */
async function fileOf(layer, feather) {
  const { width, height } = layer;
  const data = layer.getContext("2d").getImageData(0, 0, width, height);
  const alpha = new Uint8ClampedArray(width * height);
  for (let at = 0; at < alpha.length; at++) alpha[at] = data.data[4 * at + 3];
  if (!alpha.some((level) => level > 0)) return null;
  const levels = feathered(alpha, width, height, feather);
  for (let at = 0; at < levels.length; at++) {
    data.data[4 * at] = data.data[4 * at + 1] = data.data[4 * at + 2] = levels[at];
    data.data[4 * at + 3] = 255;
  }
  const canvas = canvasOf(width, height);
  canvas.getContext("2d").putImageData(data, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/** The painter, while it is open. */
export function MaskPainter() {
  const masked = useStore(({ masked }) => masked);
  return masked && html`<${Painter} key=${masked.picture} masked=${masked} />`;
}

function Painter({ masked }) {
  const [image, loaded] = useState(null);
  const [wrong, tell] = useState("");
  const [size, resize] = useState(0.12); // of the picture's longer side
  const [erase, rub] = useState(false);
  const [feather, soften] = useState(0);
  const [deeds, did] = useState([]);
  const [cursor, point] = useState(null);
  const layer = useRef();
  const base = useRef(null);
  const stroke = useRef(null);
  const close = () => set({ masked: null });

  useEffect(() => {
    let current = true;
    Promise.all([load(masked.picture), masked.mask && load(masked.mask)]).then(([picture, mask]) => {
      if (!current) return;
      const scale = Math.min(1, MOST / Math.max(picture.naturalWidth, picture.naturalHeight));
      const [width, height] = [picture.naturalWidth, picture.naturalHeight].map((side) => Math.max(1, Math.round(side * scale)));
      base.current = mask && layerOf(mask, width, height);
      loaded({ source: picture.src, width, height });
    }, () => current && tell("The picture cannot be loaded."));
    return () => { current = false; };
  }, []);
  useLayoutEffect(() => { if (image) replay(layer.current, base.current, deeds); }, [image, deeds]);

  const brush = () => size * Math.max(image.width, image.height);
  const add = (deed) => did((before) => [...before, deed]);
  const undo = () => did((before) => before.slice(0, -1));
  const step = (by) => resize((before) => Math.min(Math.max(before * by, 0.005), 0.6));
  const place = (event) => {
    const box = layer.current.getBoundingClientRect();
    return [((event.clientX - box.left) * image.width) / box.width, ((event.clientY - box.top) * image.height) / box.height];
  };
  const begin = (event) => {
    if (event.button > 0 || stroke.current) return; // a second finger does not draw
    event.preventDefault();
    layer.current.setPointerCapture(event.pointerId);
    // The other end of a pen, and the right button of a mouse, rub out.
    stroke.current = { kind: "stroke", points: [place(event)], size: brush(), erase: erase || event.buttons === 32, pointer: event.pointerId };
    strokeFrom(layer.current.getContext("2d"), stroke.current, 0);
  };
  const go = (event) => {
    point(place(event));
    const now = stroke.current;
    if (!now || now.pointer !== event.pointerId) return;
    const first = now.points.length;
    now.points.push(...(event.getCoalescedEvents?.() ?? [event]).map(place));
    strokeFrom(layer.current.getContext("2d"), now, first);
  };
  const end = (event) => {
    if (stroke.current?.pointer !== event.pointerId) return;
    add(stroke.current);
    stroke.current = null;
  };
  const save = async () => {
    const file = await fileOf(layer.current, feather);
    close();
    masked.save(file);
  };
  const keys = (event) => {
    if (!image || event.target.matches("input")) return;
    const undoing = event.key === "z" && !event.altKey;
    if (!undoing && (event.ctrlKey || event.metaKey || event.altKey)) return;
    const work = {
      "[": () => step(1 / 1.25), "]": () => step(1.25), e: () => rub((before) => !before),
      i: () => add({ kind: "invert" }), z: undo,
    }[event.key];
    if (!work) return;
    event.preventDefault();
    event.stopPropagation();
    work();
  };
  /** On the picture, arrows move the brush and the space bar paints. */
  const paintByKey = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const [x, y] = cursor ?? [image.width / 2, image.height / 2];
    const by = brush() / (event.shiftKey ? 8 : 2);
    const way = { ArrowLeft: [-by, 0], ArrowRight: [by, 0], ArrowUp: [0, -by], ArrowDown: [0, by] }[event.key];
    if (way) point([Math.min(Math.max(x + way[0], 0), image.width), Math.min(Math.max(y + way[1], 0), image.height)]);
    else if (event.key === " ") add({ kind: "stroke", points: [[x, y]], size: brush(), erase });
    else return;
    event.preventDefault();
  };
  // Shown as it will be, in pixels of the window.
  const softness = ((layer.current?.clientWidth ?? 0) / (image?.width ?? 1)) * feather;
  const share = (value, side) => `${(100 * value) / side}%`;
  return html`
    <${Dialog} label="Mask" class="painter" close=${close} onKeyDown=${keys}>
      <header><h2>Paint what is to change</h2>
        <${IconButton} icon="cancel" label="Close without the mask" keys="Escape" onClick=${close} /></header>
      <div class="easel">
        ${wrong && html`<p class="wrong" role="alert">${wrong}</p>`}
        ${image && html`
          <div class="board" style=${{ "--ratio": image.width / image.height }}>
            <img src=${image.source} alt="The picture to start from" draggable=${false} />
            <canvas ref=${layer} width=${image.width} height=${image.height} tabindex="0" role="application"
              aria-label="Mask. Arrow keys move the brush, the space bar paints." aria-describedby="painting" style=${{ filter: softness ? `blur(${softness}px)` : "none" }}
              onPointerDown=${begin} onPointerMove=${go} onPointerUp=${end} onPointerCancel=${end}
              onPointerLeave=${() => !stroke.current && point(null)} onKeyDown=${paintByKey}></canvas>
            ${cursor && html`<span class="cursor" aria-hidden="true" style=${{
              left: share(cursor[0], image.width), top: share(cursor[1], image.height),
              width: share(brush(), image.width), height: share(brush(), image.height),
            }}></span>`}
          </div>`}
      </div>
      <div class="tools" role="group" aria-label="Tools">
        <button type="button" aria-pressed=${String(!erase)} onClick=${() => rub(false)}><${Icon} name="brush" />Brush</button>
        <button type="button" aria-pressed=${String(erase)} title="Eraser (E)" onClick=${() => rub(true)}><${Icon} name="eraser" />Eraser</button>
        <label class="tool">Size<input type="range" min="0.005" max="0.6" step="0.005" value=${size} id="brush-size"
          onInput=${(event) => resize(Number(event.currentTarget.value))} /></label>
        <label class="tool">Feather<input type="range" min="0" max="64" step="1" value=${feather} id="feather"
          onInput=${(event) => soften(Number(event.currentTarget.value))} /><output>${feather} px</output></label>
        <button type="button" title="Invert (I)" onClick=${() => add({ kind: "invert" })}>Invert</button>
        <button type="button" title="Undo (Ctrl+Z)" disabled=${!deeds.length} onClick=${undo}>Undo</button>
        <button type="button" onClick=${() => add({ kind: "clear" })}>Clear</button>
        <button type="button" class="primary" disabled=${!image} onClick=${save}>Use mask</button>
      </div>
      <p class="hint" id="painting">What is red changes. <kbd>[</kbd> <kbd>]</kbd> brush size, <kbd>E</kbd> eraser, <kbd>I</kbd> invert,
        ${" "}<kbd>Ctrl</kbd> <kbd>Z</kbd> undo.</p>
    </${Dialog}>`;
}
