/** Weights of a profile with their 95% intervals, as bars that narrow. */

import { element } from "./dom.js";

/** Rows by the name of a dimension: the same elements, so that a change is seen as one. */
export class IntervalBars {
  constructor() {
    this.list = element("div", { class: "intervals", role: "list", "aria-label": "Weights and their intervals" });
    this.rows = new Map();
  }

  /**
   * @param {Object<string, number>} weights by dimension
   * @param {Object<string, [number, number]>} intervals by dimension; without choices there are none
   */
  show(weights, intervals) {
    for (const [name, weight] of Object.entries(weights)) {
      const row = this.rows.get(name) ?? this.addRow(name);
      const range = row.querySelector(".range");
      range.hidden = !(name in intervals);
      let value = short(weight);
      if (name in intervals) {
        const [low, high] = intervals[name];
        range.style.setProperty("--low", place(low));
        range.style.setProperty("--high", place(high));
        value += `  (${short(low)} to ${short(high)})`;
      }
      row.querySelector(".mean").style.setProperty("--mean", place(weight));
      row.querySelector(".value").textContent = value;
    }
  }

  addRow(name) {
    const row = element(
      "div",
      { class: "interval", role: "listitem" },
      element("span", { class: "name" }, name),
      element(
        "span",
        { class: "bar", "aria-hidden": "true" },
        element("span", { class: "range" }),
        element("span", { class: "mean" }),
      ),
      element("span", { class: "value" }),
    );
    this.rows.set(name, row);
    this.list.append(row);
    return row;
  }
}

/** Where a number is on a bar, 0 in the middle: ever denser towards the ends, so that any interval fits. */
function place(value) {
  return `${(50 + (50 * value) / (1 + Math.abs(value))).toFixed(2)}%`;
}

function short(value) {
  const digits = Math.abs(value) >= 10 ? 0 : Math.abs(value) >= 1 ? 1 : 2;
  return `${value < 0 ? "−" : ""}${Math.abs(value).toFixed(digits)}`;
}
