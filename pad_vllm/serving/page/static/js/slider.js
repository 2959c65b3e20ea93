/** A labelled slider whose fill starts at zero. */

import { element } from "./dom.js";

/**
 * @param {Object} given
 * @param {string} given.id
 * @param {string} given.label
 * @param {string|null} [given.hint] a line below it
 * @param {number} given.min
 * @param {number} given.max
 * @param {number} given.step
 * @param {(value: number) => string} [given.shown] the value as text
 * @param {(value: number) => void} given.onInput called when the user moves it
 * @returns {{row: HTMLElement, set: (value: number, said?: string) => void, disable: (off: boolean) => void}}
 *   said: text in the place of the value
 */
export function makeSlider({ id, label, hint = null, min, max, step, shown = signed, onInput }) {
  const hintId = `${id}-hint`;
  const range = element("input", {
    type: "range",
    id,
    min,
    max,
    step,
    "aria-describedby": hint ? hintId : null,
  });
  const output = element("output", { for: id });
  const row = element(
    "div",
    { class: "slider" },
    element("div", { class: "slider-head" }, element("label", { for: id }, label), output),
    range,
    hint ? element("p", { class: "hint", id: hintId, title: hint }, hint) : null,
  );
  const share = (value) => (value - min) / (max - min);
  // The middle of the thumb, which is 18 px wide, is not at the end of the track.
  const place = (value) => `calc(${100 * share(value)}% + ${9 - 18 * share(value)}px)`;
  const set = (value, said) => {
    range.value = String(value);
    output.textContent = said ?? shown(value);
    const zero = Math.min(Math.max(0, min), max);
    range.style.setProperty("--from", zero === min ? "0%" : place(Math.min(zero, value)));
    range.style.setProperty("--to", place(Math.max(zero, value)));
    row.classList.toggle("set", value !== 0 && said === undefined);
    range.setAttribute("aria-valuetext", output.textContent);
  };
  range.addEventListener("input", () => {
    set(Number(range.value));
    onInput(Number(range.value));
  });
  return { row, set, disable: (off) => (range.disabled = off) };
}

function signed(value) {
  return value === 0 ? "0" : `${value > 0 ? "+" : "−"}${Math.abs(value).toFixed(2)}`;
}
