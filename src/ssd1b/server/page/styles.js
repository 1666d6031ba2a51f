// Styles: words around the prompt, under a name. Those here are this page's own and were not measured; a server may have others.
import { get } from "./api.js";
import { attempt, now, set } from "./store.js";

set({ styles: null });

/** What the names of the server's styles begin with in the form. */
const SERVER = "server:";

/** Ask the server for its styles. */
export const loadStyles = () => attempt(async () => set({ styles: (await get("/v1/styles")).styles }), "Styles cannot be listed");

/** All styles by the names that the form has for them; those of the server last. */
export const allStyles = (own) => ({
  ...STYLES,
  ...Object.fromEntries((own ?? []).map(({ name, prompt, negative_prompt: negative }) => [SERVER + name, { label: name, prompt, negative }])),
});

/** @type {Record<string, {label: string, prompt: string, negative: string}>} */
export const STYLES = {
  photograph: {
    label: "Photograph", prompt: "photograph of {prompt}, 50 mm lens, natural light, sharp focus, fine detail",
    negative: "drawing, painting, illustration, cartoon, render",
  },
  cinematic: {
    label: "Cinematic", prompt: "cinematic still of {prompt}, dramatic light, shallow depth of field, film grain",
    negative: "drawing, painting, illustration, cartoon, flat light",
  },
  monochrome: {
    label: "Black and white", prompt: "black and white photograph of {prompt}, high contrast, film grain",
    negative: "colour, drawing, painting",
  },
  illustration: {
    label: "Illustration", prompt: "digital illustration of {prompt}, clean shapes, rich colours, detailed",
    negative: "photograph, noisy, blurry",
  },
  anime: {
    label: "Anime", prompt: "anime artwork of {prompt}, cel shading, clean line art, vibrant",
    negative: "photograph, render, deformed",
  },
  comic: {
    label: "Comic", prompt: "comic panel of {prompt}, bold ink outlines, flat colours, halftone",
    negative: "photograph, render, blurry",
  },
  watercolour: {
    label: "Watercolour", prompt: "watercolour painting of {prompt}, soft washes, paper texture, loose brushwork",
    negative: "photograph, render, hard outlines",
  },
  oil: {
    label: "Oil painting", prompt: "oil painting of {prompt}, visible brush strokes, canvas texture, rich tones",
    negative: "photograph, render, flat colours",
  },
  pencil: {
    label: "Pencil drawing", prompt: "pencil drawing of {prompt}, fine hatching, white paper, graphite",
    negative: "photograph, colour, render",
  },
  render: {
    label: "3D render", prompt: "3D render of {prompt}, global illumination, physically based materials, studio light",
    negative: "drawing, painting, sketch, flat colours",
  },
  pixel: {
    label: "Pixel art", prompt: "pixel art of {prompt}, low resolution, limited palette, crisp pixels",
    negative: "photograph, blurry, smooth shading, anti-aliasing",
  },
  lowpoly: {
    label: "Low poly", prompt: "low poly artwork of {prompt}, faceted shapes, flat shading, isometric",
    negative: "photograph, noisy, fine texture",
  },
};

/**
 * What is sent for a prompt in a style.
 * @param {{prompt: string, negative_prompt: string | null, style?: string}} form
 */
export function styled({ prompt, negative_prompt: negative, style }) {
  if (style?.startsWith(SERVER)) {
    const name = style.slice(SERVER.length);
    const known = now().styles?.some((each) => each.name === name) ?? true; // until the answer is there
    return { prompt, negative_prompt: negative, ...(known && { styles: [name] }) };
  }
  const words = STYLES[style];
  if (!words || !prompt.trim()) return { prompt, negative_prompt: negative };
  return {
    prompt: words.prompt.replace("{prompt}", () => prompt.trim()),
    negative_prompt: [negative?.trim(), words.negative].filter(Boolean).join(", "),
  };
}
