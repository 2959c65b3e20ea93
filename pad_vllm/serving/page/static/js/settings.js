/**
 * What the page asks for: one object that all of it reads and writes, and tells its changes. It ends as the
 * bodies of two chat requests. Knows no element.
 */

/** @typedef {"sliders"|"user"} SteerBy */

export const settings = {
  model: "",
  prompt: "",
  /** @type {SteerBy} */
  steerBy: "sliders",
  /** @type {Map<string, number>} dimension -> weight */
  weights: new Map(),
  /** @type {number|null} null: the server's default */
  beta: null,
  words: "",
  user: "me",
  /** @type {string|null} null: the adapter that the server was started with */
  adapter: null,
  maxTokens: 140,
  temperature: 0,
};

const listeners = [];

/** Call a function after every change. */
export function whenChanged(listener) {
  listeners.push(listener);
}

/** Change some of the settings. */
export function change(values) {
  Object.assign(settings, values);
  for (const listener of listeners) listener();
}

/** Whether anything would tell the guided answer from the unguided one. */
export function guides() {
  const { steerBy, weights, words, beta } = settings;
  if (beta === 0) return false;
  return steerBy === "user" || words.trim() !== "" || [...weights.values()].some((w) => w !== 0);
}

/** Body of the request without guidance. */
export function unguidedRequest() {
  return {
    model: settings.model,
    messages: [{ role: "user", content: settings.prompt }],
    max_tokens: settings.maxTokens,
    temperature: settings.temperature,
    ...(settings.temperature > 0 ? { seed: 1 } : {}),
  };
}

/** Body of the guided request. */
export function guidedRequest() {
  return { ...unguidedRequest(), vllm_xargs: guidance() };
}

function guidance() {
  const { steerBy, weights, words, beta, adapter, user } = settings;
  const given = {};
  if (steerBy === "user") given.pad_user = user;
  else if (weights.size && (weightsText(weights) || !words.trim())) {
    given.pad_weights = weightsText(weights) || `${[...weights.keys()][0]}=0`;
  }
  if (words.trim()) given.pad_preference = words.trim();
  if (beta !== null) given.pad_beta = beta;
  // A profile has weights of the server's own adapter.
  if (adapter !== null && steerBy !== "user") given.pad_adapter = adapter;
  return given;
}

function weightsText(weights) {
  const set = [...weights].filter(([, weight]) => weight !== 0);
  return set.map(([name, weight]) => `${name}=${weight}`).join(",");
}
