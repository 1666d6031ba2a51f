// A measured curve: its mean, its 95% confidence band, and where the setting is now.
import { html } from "./vendor/preact.js";

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [320, 96, 30, 8, 8, 18];

/** Mean at a value, between the measured points; null outside. */
export function meanAt(points, value) {
  const after = points.findIndex((point) => point.value >= value);
  if (after < 0 || value < points[0].value) return null;
  if (after === 0) return points[0].mean;
  const [a, b] = [points[after - 1], points[after]];
  return a.mean + ((b.mean - a.mean) * (value - a.value)) / (b.value - a.value);
}

/**
 * @param {{curve: {setting: string, metric: string, source: string, points: object[]}, value: number}} props
 */
export function Plot({ curve, value }) {
  const { points } = curve;
  const [low, high] = [points[0].value, points.at(-1).value];
  const most = Math.max(...points.map((point) => point.high));
  const least = Math.min(0, ...points.map((point) => point.low));
  const x = (at) => LEFT + ((at - low) / (high - low)) * (WIDTH - LEFT - RIGHT);
  const y = (at) => HEIGHT - BOTTOM - ((at - least) / (most - least || 1)) * (HEIGHT - TOP - BOTTOM);
  const line = (name) => points.map((point) => `${x(point.value).toFixed(1)},${y(point[name]).toFixed(1)}`);
  const mean = meanAt(points, value);
  const percent = (share) => `${Math.round(share * 100)}%`;
  const now = mean === null ? `${value} is outside of what was measured (${low} to ${high})` : `about ${percent(mean)} at ${value}`;
  const at = Math.min(Math.max(value, low), high);
  return html`
    <figure class="plot">
      <svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${curve.metric} by ${curve.setting}: ${now}">
        ${[least, most].map((each) => html`
          <line class="axis" x1=${LEFT} x2=${WIDTH - RIGHT} y1=${y(each)} y2=${y(each)} />
          <text x=${LEFT - 4} y=${y(each) + 3} text-anchor="end">${percent(each)}</text>`)}
        ${[low, high].map((each) => html`<text x=${x(each)} y=${HEIGHT - 4} text-anchor="middle">${each}</text>`)}
        <polygon class="band" points=${[...line("high"), ...line("low").reverse()].join(" ")} />
        <polyline class="mean" points=${line("mean").join(" ")} />
        ${points.map((point) => html`<circle class="point" cx=${x(point.value)} cy=${y(point.mean)} r="1.8" />`)}
        <line class="today" x1=${x(at)} x2=${x(at)} y1=${TOP - 4} y2=${HEIGHT - BOTTOM} />
        ${mean !== null && html`<circle class="today" cx=${x(at)} cy=${y(mean)} r="4" />`}
      </svg>
      <figcaption><b>${curve.metric}</b>: ${now}. Band: 95% confidence. <cite>${curve.source}</cite></figcaption>
    </figure>`;
}
