// Markup as tagged templates: htm reads it, Preact renders it. Whatever stands in a `${…}` is text, never markup.

import { h } from "/vendor/preact.js";
import htm from "/vendor/htm.js";

export const html = htm.bind(h);

const PATHS = {
  mark: "M5 2.5v11M5 10c4.5 0 6-1.6 6-4.5M3.5 2.5h3M3.5 13.5h3M9.5 5h3",
  alert: "M8 5.3v3.2M8 11.2v.1M7.1 2.3 1.5 12.1a1 1 0 0 0 .9 1.5h11.2a1 1 0 0 0 .9-1.5L8.9 2.3a1 1 0 0 0-1.8 0Z",
  bell: "M4 11V7a4 4 0 0 1 8 0v4l1 1.5H3ZM6.8 14.3h2.4",
  branch: "M4.5 5.5v5M4.5 8.5h4a3 3 0 0 0 3-3M4.5 2.3a1.6 1.6 0 1 0 0 3.2 1.6 1.6 0 0 0 0-3.2ZM4.5 10.5a1.6 1.6 0 1 0 0 3.2 1.6 1.6 0 0 0 0-3.2ZM11.5 2.3a1.6 1.6 0 1 0 0 3.2 1.6 1.6 0 0 0 0-3.2Z",
  check: "m3 8.5 3.2 3.2L13 4.8",
  clock: "M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2ZM8 4.8V8l2.2 1.5",
  close: "m4 4 8 8m0-8-8 8",
  conflict: "M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2ZM5.8 5.8l4.4 4.4m0-4.4-4.4 4.4",
  cross: "m4.5 4.5 7 7m0-7-7 7",
  eye: "M1.5 8S4 3.5 8 3.5 14.5 8 14.5 8 12 12.5 8 12.5 1.5 8 1.5 8ZM8 6a2 2 0 1 0 0 4 2 2 0 0 0 0-4Z",
  folder: "M2 4.5a1 1 0 0 1 1-1h3l1.5 1.7H13a1 1 0 0 1 1 1V12a1 1 0 0 1-1 1H3a1 1 0 0 1-1-1Z",
  help: "M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2ZM6.2 6.3a1.9 1.9 0 1 1 2.7 1.9c-.6.3-.9.6-.9 1.3M8 11.4v.1",
  key: "M5.2 5.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 0 0 0-5ZM7.7 8H14v2M11.3 8v1.6",
  loop: "M13 8a5 5 0 0 1-8.7 3.4L3 10M3 8a5 5 0 0 1 8.7-3.4L13 6M3 13v-3h3M13 3v3h-3",
  merge: "M4.5 5.5v5M4.5 5.5c0 3 3 4 5.4 4M4.5 2.3a1.6 1.6 0 1 0 0 3.2 1.6 1.6 0 0 0 0-3.2ZM4.5 10.5a1.6 1.6 0 1 0 0 3.2 1.6 1.6 0 0 0 0-3.2ZM11.5 8a1.6 1.6 0 1 0 0 3.2 1.6 1.6 0 0 0 0-3.2Z",
  plan: "M6 4h7.5M6 8h7.5M6 12h7.5M2.6 4h.1M2.6 8h.1M2.6 12h.1",
  play: "M5 3.2v9.6L12.5 8Z",
  pr: "M4.5 5.5v5M11.5 10.5V6.5a2 2 0 0 0-2-2H7.5M9.3 2.5l-2 2 2 2M4.5 2.3a1.6 1.6 0 1 0 0 3.2 1.6 1.6 0 0 0 0-3.2ZM4.5 10.5a1.6 1.6 0 1 0 0 3.2 1.6 1.6 0 0 0 0-3.2ZM11.5 10.5a1.6 1.6 0 1 0 0 3.2 1.6 1.6 0 0 0 0-3.2Z",
  question: "M3 3.5h10a1 1 0 0 1 1 1v6a1 1 0 0 1-1 1H8l-3.5 2.5V11.5H3a1 1 0 0 1-1-1v-6a1 1 0 0 1 1-1Z",
  search: "M7 2.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9ZM10.3 10.3l3.4 3.4",
  shield: "M8 2 3 4v4c0 3 2.2 5 5 6 2.8-1 5-3 5-6V4Z",
  theme: "M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2ZM8 2v12M8 5h4.8M8 8h6M8 11h4.8",
};

/** A drawing beside words: it says nothing of its own, so nobody needs to hear of it. */
export function icon(name) {
  return html`<svg class="icon" viewBox="0 0 16 16" aria-hidden="true" focusable="false"><path d=${PATHS[name]} /></svg>`;
}
