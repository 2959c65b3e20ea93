/** Starts the page: asks the server what it serves, and fills the panels. */

import { sendJson } from "./api.js";
import { startKeyDialog } from "./api_key.js";
import { answerBothWays, startCompare } from "./compare.js";
import { byId, moveByArrowKeys, say } from "./dom.js";
import { fillGallery } from "./gallery.js";
import { startLearning } from "./learn.js";
import { startNewDimensions } from "./new_dimension.js";
import { startRequestCode } from "./request_code.js";
import { change, settings } from "./settings.js";
import { fillSteering } from "./steering.js";

const TABS = ["compare", "learn", "new"];

function showTab(name) {
  for (const other of TABS) {
    const isShown = other === name;
    byId(`tab-${other}`).setAttribute("aria-selected", String(isShown));
    byId(`tab-${other}`).tabIndex = isShown ? 0 : -1;
    byId(`panel-${other}`).hidden = !isShown;
  }
}

function startTabs() {
  const buttons = TABS.map((name) => byId(`tab-${name}`));
  const open = (button) => (location.hash = button.id.replace("tab-", ""));
  for (const button of buttons) button.addEventListener("click", () => open(button));
  moveByArrowKeys(buttons[0].parentElement, buttons, open);
  const follow = () => showTab(TABS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "compare");
  window.addEventListener("hashchange", follow);
  follow();
}

/** Answer with these settings, in the first tab. */
function answerWith(values) {
  change(values);
  location.hash = "compare";
  showTab("compare");
  byId("prompt").focus();
  if (settings.prompt.trim()) answerBothWays();
}

function useExample({ prompt, weights = {}, words = "", beta = null }) {
  const all = new Map([...settings.weights.keys()].map((name) => [name, weights[name] ?? 0]));
  answerWith({ prompt, weights: all, words, beta, steerBy: "sliders" });
  byId("panel-compare").scrollIntoView({ block: "start" });
}

async function useNewDimension(job) {
  fillSteering(await sendJson("v1/pad/dimensions"), { adapter: job.adapter, fresh: job.name });
  answerWith({ steerBy: "sliders" });
}

function showServed(served) {
  const guidedBy = served.adapter ?? "preferences in words";
  byId("served").textContent = `${served.model} · ${guidedBy}`;
}

async function start() {
  startKeyDialog();
  startTabs();
  startCompare();
  startRequestCode();
  try {
    const served = await sendJson("v1/pad/dimensions");
    showServed(served);
    fillSteering(served);
    fillGallery(served, useExample);
    startLearning(served, () => answerWith({ steerBy: "user" }));
    startNewDimensions(served.jobs, useNewDimension);
  } catch (error) {
    say(byId("page-problem"), error.message);
  }
}

start();
