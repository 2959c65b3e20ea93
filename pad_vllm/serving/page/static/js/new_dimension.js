/** "New dimension": a sentence becomes a slider, by a job of the server. */

import { sendJson } from "./api.js";
import { byId, element, leadTitle, say } from "./dom.js";

const POLL_MS = 1000;
const EXAMPLES = [
  ["pirate", "Answer like a pirate, with pirate words."],
  ["poetic", "Answer in a poetic, lyrical tone with vivid images."],
  ["dramatic", "Answer with great drama and excitement!"],
  ["blunt", "Answer bluntly, in short sentences, without any politeness."],
];

/**
 * Fill the panel.
 *
 * @param {boolean} hasJobs whether this server makes dimensions
 * @param {(job: any) => void} onDone called with a job that ended well, by this page or before
 */
export function startNewDimensions(hasJobs, onDone) {
  const panel = byId("panel-new");
  if (!hasJobs) {
    const why = "This server makes no dimensions. Start it with pad-vllm play.";
    panel.replaceChildren(leadTitle("New dimension"), element("p", { class: "notice" }, why));
    return;
  }
  panel.replaceChildren(introduction(), form(onDone), progressCard());
  followUnfinished(onDone);
}

function introduction() {
  const lead =
    "Say in a sentence how answers should be. The server learns it from the model itself, told this sentence " +
    "in its prompt; with a small model that takes two or three minutes. Then it is a slider like the others.";
  return element("div", {}, leadTitle("New dimension"), element("p", { class: "lead" }, lead));
}

function form(onDone) {
  const name = element("input", {
    type: "text",
    id: "dimension-name",
    required: true,
    maxlength: 40,
    pattern: "[A-Za-z][A-Za-z0-9_\\-]*",
    title: "A letter, then letters, digits, _ and -",
    placeholder: "pirate",
    autocomplete: "off",
  });
  const sentence = element("input", {
    type: "text",
    id: "dimension-sentence",
    required: true,
    maxlength: 400,
    placeholder: "Answer like a pirate, with pirate words.",
    autocomplete: "off",
  });
  const example = ([short, long]) =>
    element("button", { type: "button", on: { click: () => ([name.value, sentence.value] = [short, long]) } }, long);
  const start = (event) => {
    event.preventDefault();
    startJob(name.value.trim(), sentence.value.trim(), onDone);
  };
  return element(
    "form",
    { class: "card", id: "dimension-form", on: { submit: start } },
    element(
      "div",
      { class: "form-grid" },
      element("div", {}, element("label", { for: "dimension-name" }, "Name"), name),
      element("div", {}, element("label", { for: "dimension-sentence" }, "Sentence"), sentence),
    ),
    element("div", { class: "chips", "aria-label": "Examples" }, ...EXAMPLES.map(example)),
    element("div", { class: "form-actions" }, element("button", { class: "primary", id: "make" }, "Make the slider")),
  );
}

function progressCard() {
  return element(
    "section",
    { class: "card", id: "job", hidden: true, "aria-labelledby": "job-title" },
    element(
      "header",
      { class: "card-head" },
      element("h2", { id: "job-title" }),
      element("span", { class: "figures", id: "job-time" }),
    ),
    element("progress", { id: "job-progress", max: "1", value: "0", "aria-labelledby": "job-title" }),
    element("p", { class: "hint", id: "job-message", role: "status" }),
    element("p", { class: "notice problem", id: "job-problem", role: "alert", hidden: true }),
    element("button", { type: "button", class: "primary", id: "job-use", hidden: true }, "Use it"),
  );
}

async function startJob(name, sentence, onDone) {
  say(byId("job-problem"), "");
  try {
    await follow(await sendJson("v1/pad/jobs", { method: "POST", body: { name, sentence } }), onDone);
  } catch (error) {
    byId("job").hidden = false;
    byId("job-title").textContent = `“${name}” was not started`;
    byId("job-progress").hidden = byId("job-use").hidden = true;
    byId("job-message").textContent = byId("job-time").textContent = "";
    say(byId("job-problem"), error.message);
  }
}

/** A job may have been started before this page was opened. */
async function followUnfinished(onDone) {
  try {
    const { jobs } = await sendJson("v1/pad/jobs");
    const last = jobs.at(-1);
    if (last?.state === "running") await follow(last, onDone);
  } catch (error) {
    say(byId("job-problem"), error.message);
    byId("job").hidden = false;
  }
}

async function follow(job, onDone) {
  byId("make").disabled = true;
  const started = performance.now() - 1000 * (job.seconds ?? 0);
  let state = job;
  try {
    showJob(state, started);
    while (state.state === "running") {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      state = await sendJson(`v1/pad/jobs/${encodeURIComponent(job.job)}`);
      showJob(state, started);
    }
  } finally {
    byId("make").disabled = false;
  }
  if (state.state === "done") byId("job-use").onclick = () => onDone(state);
}

function showJob(job, started) {
  const titles = {
    running: `Learning “${job.name}”`,
    done: `“${job.name}” is a slider now`,
    failed: `“${job.name}” could not be made`,
  };
  const seconds = Math.round(job.state === "running" ? (performance.now() - started) / 1000 : (job.seconds ?? 0));
  byId("job").hidden = false;
  byId("job-title").textContent = titles[job.state];
  byId("job-time").textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  byId("job-progress").hidden = job.state === "failed";
  byId("job-progress").value = job.progress;
  byId("job-message").textContent = job.state === "failed" ? "" : job.message;
  say(byId("job-problem"), job.state === "failed" ? job.message : "");
  byId("job-use").hidden = job.state !== "done";
}
