/** The panel "Steer": sliders of the dimensions, words, strength, length and temperature. */

import { byId, element, fillChoiceRow } from "./dom.js";
import { change, settings, whenChanged } from "./settings.js";
import { makeSlider } from "./slider.js";

const LARGEST_BETA = 3;
const OWN_ADAPTER = "";

let served = null;
let sliders = new Map();
let profile = null;
let strength = null;

/**
 * Fill the panel from what the server says of itself.
 *
 * @param {any} dimensions answer of GET v1/pad/dimensions
 * @param {{adapter?: string|null, fresh?: string|null}} [chosen] adapter: to choose; fresh: a dimension to
 *   point out, which is set to 1
 */
export function fillSteering(dimensions, { adapter = settings.adapter, fresh = null } = {}) {
  served = dimensions;
  const known = served.adapters.some(({ name }) => name === adapter);
  const weights = new Map(dimensionsOf(known ? adapter : null).map(({ name }) => [name, 0]));
  for (const [name, weight] of settings.weights) if (weights.has(name)) weights.set(name, weight);
  if (fresh !== null && weights.has(fresh)) {
    for (const name of weights.keys()) weights.set(name, 0);
    weights.set(fresh, 1);
  }
  change({ model: served.model, adapter: known ? adapter : null, weights });
  fillAdapters();
  fillSliders(fresh);
  fillWords();
  fillStrength();
  fillSampling();
  fillSteerBy();
  showSettings();
}

/** Show a person's profile, by which answers may be steered; null for nobody's. */
export function setProfile(known) {
  profile = known;
  if (profile === null && settings.steerBy === "user") change({ steerBy: "sliders" });
  fillSteerBy();
  showSettings();
}

/** The default strength of the server. */
export function defaultBeta() {
  return served?.defaults?.beta ?? 1;
}

function dimensionsOf(adapter) {
  const other = served.adapters.find(({ name }) => name === adapter);
  const own = new Map(served.dimensions.map((dimension) => [dimension.name, dimension]));
  const named = other ? other.dimensions : served.dimensions;
  return named.map((one) => (typeof one === "string" ? (own.get(one) ?? { name: one }) : one));
}

function fillAdapters() {
  const select = byId("adapter");
  const names = served.adapters.map(({ name }) => name);
  byId("adapter-row").hidden = names.length === 0;
  select.replaceChildren(
    element("option", { value: OWN_ADAPTER }, "as the server was started"),
    ...names.map((name) => element("option", { value: name }, name)),
  );
  select.value = settings.adapter ?? OWN_ADAPTER;
  select.onchange = () => fillSteering(served, { adapter: select.value || null });
}

function fillSliders(fresh) {
  sliders = new Map();
  for (const { name, instruction } of dimensionsOf(settings.adapter)) {
    const slider = makeSlider({
      id: `weight-${name}`,
      label: name,
      hint: instruction ?? null,
      min: -1,
      max: 1,
      step: 0.05,
      onInput: (weight) => change({ weights: new Map(settings.weights).set(name, weight) }),
    });
    slider.row.classList.toggle("fresh", name === fresh);
    sliders.set(name, slider);
  }
  byId("sliders").replaceChildren(...[...sliders.values()].map((slider) => slider.row));
}

function fillWords() {
  byId("words-row").hidden = !served.instructions;
  const words = byId("words");
  words.oninput = () => change({ words: words.value });
  const chip = (name) =>
    element("button", { type: "button", on: { click: () => change({ words: name }) } }, name);
  byId("prefixes").replaceChildren(...(served.instructions ? served.prefixes : []).map(chip));
}

function fillStrength() {
  const max = Math.min(served.max_beta ?? LARGEST_BETA, LARGEST_BETA);
  strength = makeSlider({
    id: "beta",
    label: "Strength",
    min: 0,
    max,
    step: 0.05,
    shown: (value) => value.toFixed(2),
    onInput: (beta) => change({ beta }),
  });
  byId("strength").replaceChildren(strength.row);
}

function fillSampling() {
  const length = makeSlider({
    id: "max-tokens",
    label: "Most tokens",
    min: 20,
    max: 400,
    step: 20,
    shown: String,
    onInput: (maxTokens) => change({ maxTokens }),
  });
  const temperature = makeSlider({
    id: "temperature",
    label: "Temperature",
    min: 0,
    max: 1.2,
    step: 0.1,
    shown: (value) => value.toFixed(1),
    onInput: (value) => change({ temperature: value }),
  });
  length.set(settings.maxTokens);
  temperature.set(settings.temperature);
  byId("sampling").replaceChildren(length.row, temperature.row);
}

function fillSteerBy() {
  const row = byId("steer-by");
  row.hidden = profile === null;
  const options = [
    { value: "sliders", label: "Sliders" },
    { value: "user", label: "My profile" },
  ];
  fillChoiceRow(row, options, settings.steerBy, (steerBy) => change({ steerBy }));
}

/** Bring what is shown in line with the settings. */
function showSettings() {
  if (strength === null) return;
  const byUser = settings.steerBy === "user" && profile !== null;
  for (const [name, slider] of sliders) {
    const weight = byUser ? (profile.weights[name] ?? 0) : (settings.weights.get(name) ?? 0);
    slider.set(Math.min(Math.max(weight, -1), 1));
    slider.disable(byUser);
  }
  const usual = settings.beta === null;
  strength.set(settings.beta ?? defaultBeta(), usual ? usualStrength() : undefined);
  if (byId("words").value !== settings.words) byId("words").value = settings.words;
  for (const button of byId("steer-by").children) {
    button.setAttribute("aria-checked", String(button.dataset.value === settings.steerBy));
    button.tabIndex = button.dataset.value === settings.steerBy ? 0 : -1;
  }
}

/** A learned prefix and a sentence have default strengths of their own, which the server knows. */
function usualStrength() {
  return settings.words.trim() ? "default" : `${defaultBeta().toFixed(2)}, the default`;
}

whenChanged(showSettings);

byId("reset").addEventListener("click", () => {
  const weights = new Map([...settings.weights.keys()].map((name) => [name, 0]));
  change({ weights, words: "", beta: null, steerBy: "sliders" });
});
