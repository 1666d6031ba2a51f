// The server's HTTP API: requests with the key, errors as words, the stream of events.

const KEY = "ssd1b.key";

/** An answer that is an error. */
export class Problem extends Error {
  /** @param {number} status 0 if there was no answer. */
  constructor(message, status, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let key = read();
let askForKey = null;
let asking = null;

function read() {
  try {
    return sessionStorage.getItem(KEY) || "";
  } catch {
    return "";
  }
}

/** Whether requests carry a key. Then an `<img>` cannot load from the server, because it sends no headers. */
export const hasKey = () => key !== "";

/**
 * Set who is asked for the key when the server wants one.
 * @param {(wrong: boolean) => Promise<string>} ask
 */
export function onUnauthorized(ask) {
  askForKey = ask;
}

/** Ask once, however many requests were refused. */
function renewKey(refused) {
  if (refused !== key) return Promise.resolve(); // another request has renewed it meanwhile
  asking ??= askForKey(refused !== "").then((given) => {
    key = given;
    asking = null;
    try {
      sessionStorage.setItem(KEY, given);
    } catch {
      // Then it is kept until the page is reloaded.
    }
  });
  return asking;
}

/** `fetch` with the key; asks for another key as long as the server refuses. */
export async function request(path, options = {}) {
  for (;;) {
    const used = key;
    const headers = { ...options.headers, ...(used && { authorization: `Bearer ${used}` }) };
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The server does not answer. Is it running?", 0);
    }
    if (answer.status === 401 && askForKey) {
      await renewKey(used);
      continue;
    }
    if (!answer.ok) throw await problem(answer);
    return answer;
  }
}

async function problem(answer) {
  let said = {};
  try {
    said = await answer.json();
  } catch {
    // Not ours, perhaps a proxy's: only the status is known.
  }
  const message = said.error || `The server answered ${answer.status} ${answer.statusText}`.trim();
  return new Problem(message, answer.status, said.code);
}

const json = async (path, options) => (await request(path, options)).json();

const send = (method) => (path, body, options = {}) =>
  json(path, { method, body: JSON.stringify(body), ...options, headers: { "content-type": "application/json" } });

export const get = json;
export const post = send("POST");
export const patch = send("PATCH");

/** Send a file as it is. */
export const upload = (path, file) =>
  json(path, { method: "POST", body: file, headers: { "content-type": "application/octet-stream" } });

/** Milliseconds of silence after which the connection counts as lost; the server says something every 15 s. */
const SILENCE = 40_000;

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/**
 * Follow server-sent events for ever, and connect again whenever the connection ends.
 * A stream of `fetch` and not an EventSource, which cannot send the key.
 * @param {(event: string, data: any) => void} hear
 * @param {(online: boolean) => void} status
 */
export async function follow(path, hear, status) {
  for (let failures = 0; ; failures++) {
    const stop = new AbortController();
    let silence;
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(() => stop.abort(), SILENCE);
    };
    try {
      heard();
      const answer = await request(path, { signal: stop.signal, headers: { accept: "text/event-stream" } });
      for await (const [event, data] of events(answer.body, heard)) {
        failures = 0;
        status(true);
        hear(event, data);
      }
    } catch (error) {
      if (!(error instanceof Problem || error.name === "AbortError" || error instanceof TypeError)) throw error;
    }
    clearTimeout(silence);
    status(false);
    await wait(Math.min(250 * 2 ** failures, 4000));
  }
}

/** Split a stream into events. */
async function* events(body, heard) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    heard();
    text += value.replaceAll("\r", "");
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const fields = { event: "message", data: "" };
      for (const line of block.split("\n")) {
        const [, name, content] = /^(\w+): ?(.*)$/.exec(line) ?? [];
        if (name === "event") fields.event = content;
        else if (name === "data") fields.data += content;
      }
      if (fields.data) yield [fields.event, JSON.parse(fields.data)];
    }
  }
}

const blobs = new Map();
const MOST_BLOBS = 400;

/** The address of an image for an `<img>`: its path, or with a key the address of a copy in memory. */
export async function imageSource(path) {
  if (!key || !path.startsWith("/")) return path;
  if (!blobs.has(path)) {
    blobs.set(path, request(path).then((answer) => answer.blob()).then((blob) => URL.createObjectURL(blob)));
    if (blobs.size > MOST_BLOBS) {
      const [oldest, source] = blobs.entries().next().value;
      blobs.delete(oldest);
      source.then((url) => URL.revokeObjectURL(url), () => {});
    }
    blobs.get(path).catch(() => blobs.delete(path));
  }
  return blobs.get(path);
}
