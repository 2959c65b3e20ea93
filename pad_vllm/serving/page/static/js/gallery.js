/** Prompts and settings that show something, for the dimensions that are served. */

import { EXAMPLES } from "./gallery_examples.js";
import { byId, element } from "./dom.js";

/**
 * Show the examples that this server can answer.
 *
 * @param {any} served answer of GET v1/pad/dimensions
 * @param {(example: any) => void} onChoose
 */
export function fillGallery(served, onChoose) {
  const names = new Set(served.dimensions.map(({ name }) => name));
  const fits = (example) =>
    Object.keys(example.weights ?? {}).every((name) => names.has(name)) &&
    (example.words === undefined || served.instructions) &&
    (example.models === undefined || example.models.some((model) => served.model.includes(model)));
  const shown = EXAMPLES.filter(fits);
  byId("gallery").hidden = shown.length === 0;
  byId("gallery").querySelector(".gallery-cards").replaceChildren(
    ...shown.map((example) =>
      element(
        "button",
        { type: "button", class: "gallery-card", on: { click: () => onChoose(example) } },
        element("h3", {}, example.prompt),
        element("span", { class: "hint" }, example.note),
        element("span", { class: "settings" }, settingsText(example)),
      ),
    ),
  );
}

function settingsText({ weights = {}, words, beta }) {
  const parts = Object.entries(weights).map(([name, weight]) => `${name} ${weight < 0 ? "−" : "+"}${Math.abs(weight)}`);
  if (words) parts.push(`in words: ${words}`);
  if (beta !== undefined) parts.push(`strength ${beta}`);
  return parts.join(" · ");
}
