/** The dialog that asks for the server's API key. */

import { whenKeyIsNeeded } from "./api.js";
import { byId } from "./dom.js";

let asking = null;

/** Ask once, whichever and however many requests need it. */
function ask(wasRefused) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    byId("key").value = "";
    byId("key-hint").textContent = wasRefused
      ? "The server does not take this key."
      : "It stays in this tab, and goes to this server alone.";
    let key = null;
    byId("key-form").onsubmit = () => (key = byId("key").value.trim() || null);
    byId("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => {
      asking = null;
      resolve(key);
    };
    dialog.showModal();
  });
  return asking;
}

/** Let the dialog answer for requests that are refused without a key. */
export function startKeyDialog() {
  whenKeyIsNeeded(ask);
}
