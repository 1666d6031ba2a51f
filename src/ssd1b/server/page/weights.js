// Attention weights in AUTOMATIC1111's syntax: "(words:1.1)".

const WEIGHTED = /^\(([^()]*):\s*(\d*\.?\d+)\)$/;

/**
 * Change the weight of a part of a prompt.
 * @param {string} text the prompt.
 * @param {number} start of the part; with `end` equal, the brackets or the word there.
 * @param {number} end
 * @param {number} by is added to the weight.
 * @returns {{text: string, start: number, end: number, from: number, to: number, put: string} | null}
 *   the prompt, where the part is now, and which of the old text was replaced by what; null if there is no word.
 */
export function reweight(text, start, end, by) {
  [start, end] = start === end ? around(text, start) : trimmed(text, start, end);
  if (start === end) return null;
  const whole = WEIGHTED.exec(text.slice(start, end));
  if (whole) {
    end = start + 1 + whole[1].length;
    start += 1;
  }
  let from = start;
  let to = end;
  let weight = 1;
  const behind = /^:\s*(\d*\.?\d+)\)/.exec(text.slice(end));
  if (behind && text[start - 1] === "(") {
    weight = Number(behind[1]);
    from -= 1;
    to += behind[0].length;
  }
  weight = Math.max(0, Math.round((weight + by) * 100) / 100);
  const part = text.slice(start, end);
  const put = weight === 1 ? part : `(${part}:${weight})`;
  const begin = from + (weight === 1 ? 0 : 1);
  return {
    text: text.slice(0, from) + put + text.slice(to), start: begin, end: begin + part.length, from, to, put,
  };
}

/** Without the space at both ends. */
function trimmed(text, start, end) {
  while (start < end && /\s/.test(text[start])) start += 1;
  while (end > start && /\s/.test(text[end - 1])) end -= 1;
  return [start, end];
}

/** The weighted brackets around a place, else the word. */
function around(text, at) {
  const open = text.lastIndexOf("(", at - 1);
  const close = text.indexOf(")", at);
  if (open >= 0 && close >= 0) {
    const inside = text.slice(open, close + 1);
    if (WEIGHTED.test(inside)) return [open + 1, open + inside.lastIndexOf(":")];
  }
  const ends = /[\s,.;:()[\]{}|]/;
  let [start, end] = [at, at];
  while (start > 0 && !ends.test(text[start - 1])) start -= 1;
  while (end < text.length && !ends.test(text[end])) end += 1;
  return [start, end];
}
