/**
 * Requests to the server that this page came from: JSON in and out, errors in the server's own words, the API
 * key where it asks for one. Knows nothing of what is on the page.
 */

const KEY_ITEM = "pad-api-key";

/** Addresses are relative to the page's, so that it also works behind a path of a proxy. */
const ROOT = new URL("../", document.baseURI);

let askForKey = async () => null;

/** An answer that is no success, or none at all (status 0). */
export class ServerError extends Error {
  /**
   * @param {number} status
   * @param {string} message
   */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Address of a route, such as "v1/models". */
export function address(path) {
  return new URL(path, ROOT).href;
}

/** Whether requests carry an API key. */
export function hasKey() {
  return sessionStorage.getItem(KEY_ITEM) !== null;
}

/**
 * Say how a key is asked for.
 *
 * @param {(wasRefused: boolean) => Promise<string|null>} ask gives the key, or null if the user has none
 */
export function whenKeyIsNeeded(ask) {
  askForKey = ask;
}

/**
 * Send a request. Asks for a key as often as the server answers 401 and the user gives one.
 *
 * @param {string} path relative to the server's root
 * @param {{method?: string, body?: any, signal?: AbortSignal}} [options] body: becomes JSON
 * @returns {Promise<Response>} of status 2xx
 * @throws {ServerError} any other; an AbortError where the signal says so
 */
export async function send(path, options = {}) {
  for (;;) {
    const response = await fetched(path, options);
    if (response.ok) return response;
    if (response.status === 401) {
      const key = await askForKey(hasKey());
      if (key !== null) {
        sessionStorage.setItem(KEY_ITEM, key);
        continue;
      }
      throw new ServerError(401, "This server asks for an API key; reload the page to give one.");
    }
    throw new ServerError(response.status, await errorMessage(response));
  }
}

/** The same, and what the answer says: JSON, or null for an empty one. */
export async function sendJson(path, options = {}) {
  const response = await send(path, options);
  const text = await response.text();
  return text ? JSON.parse(text) : null;
}

async function fetched(path, { method = "GET", body, signal }) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (hasKey()) headers.Authorization = `Bearer ${sessionStorage.getItem(KEY_ITEM)}`;
  try {
    return await fetch(address(path), {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server does not answer. Is it still running?");
  }
}

async function errorMessage(response) {
  const text = await response.text();
  try {
    const said = JSON.parse(text);
    return said.error?.message ?? said.error ?? said.message ?? said.detail?.toString() ?? text;
  } catch {
    return text || `The server answered ${response.status} ${response.statusText}.`;
  }
}
