/** "Learn me": questions with two answers each, and the weights that the choices tell. */

import { ServerError, sendJson } from "./api.js";
import { byId, element, leadTitle, say } from "./dom.js";
import { IntervalBars } from "./interval_bars.js";
import { change, settings } from "./settings.js";
import { setProfile } from "./steering.js";

const QUESTIONS = 10;
const ANSWER_TOKENS = 120;
const USER_ITEM = "pad-user";
const KEYS = { a: 0, b: 1, t: "tie" };

const bars = new IntervalBars();
let profileDimensions = new Set();
let question = null;
let asked = 0;
let busy = false;

/**
 * Fill the panel.
 *
 * @param {any} served answer of GET v1/pad/dimensions
 * @param {() => void} onAnswer called when answers should come as this person likes them
 */
export function startLearning(served, onAnswer) {
  const panel = byId("panel-learn");
  if (!served.profiles) {
    const why = "This server keeps no profiles. Start it with pad-vllm play, or with --profiles FILE.db.";
    panel.replaceChildren(leadTitle("Learn me"), element("p", { class: "notice" }, why));
    return;
  }
  profileDimensions = new Set(served.dimensions.map(({ name }) => name));
  change({ user: localStorage.getItem(USER_ITEM) || settings.user });
  panel.replaceChildren(...introduction(), ...questionPart(), profileCard(served, onAnswer));
  document.addEventListener("keydown", (event) => {
    const elsewhere = panel.hidden || event.target.closest("input, textarea, select, dialog");
    if (!elsewhere && !event.ctrlKey && !event.metaKey && event.key.toLowerCase() in KEYS) {
      choose(KEYS[event.key.toLowerCase()]);
    }
  });
  loadProfile();
}

function introduction() {
  const lead =
    "Ten questions, two answers each. Say which one you like better, and the server learns how you want to " +
    "be answered; it remembers you under this name.";
  const name = element("input", { type: "text", id: "user", value: settings.user, maxlength: 128 });
  name.addEventListener("change", () => {
    change({ user: name.value.trim() || "me" });
    name.value = settings.user;
    localStorage.setItem(USER_ITEM, settings.user);
    forgetScreen();
    loadProfile();
  });
  const about = element("input", { type: "text", id: "about", placeholder: "anything, or leave it to the server" });
  return [
    element("div", {}, leadTitle("Learn me"), element("p", { class: "lead" }, lead)),
    element(
      "form",
      { class: "card", id: "learn-form", on: { submit: (event) => { event.preventDefault(); ask(); } } },
      element(
        "div",
        { class: "form-grid" },
        element("div", {}, element("label", { for: "user" }, "Your name"), name),
        element("div", {}, element("label", { for: "about" }, "Ask about"), about),
      ),
      element("div", { class: "form-actions" }, element("button", { class: "primary", id: "ask" }, "Ask me")),
    ),
    element("p", { class: "notice problem", id: "learn-problem", role: "alert", hidden: true }),
  ];
}

function questionPart() {
  const option = (letter) =>
    element(
      "article",
      { class: "card option", "aria-labelledby": `option-${letter}` },
      element("header", { class: "card-head" }, element("h3", { id: `option-${letter}` }, letter)),
      element("div", { class: "answer-text", id: `text-${letter}`, tabindex: "0" }),
    );
  const button = (id, chosen, label, key) =>
    element(
      "button",
      { type: "button", id, "aria-keyshortcuts": key, on: { click: () => choose(chosen) } },
      label,
    );
  return [
    element(
      "section",
      { id: "question", hidden: true, tabindex: "-1", "aria-live": "polite", "aria-label": "Question" },
      element("p", { class: "hint", id: "question-number" }),
      element("p", { class: "question-prompt", id: "question-prompt" }),
      element("progress", { id: "drawing", "aria-label": "Two answers are being written", hidden: true }),
    ),
    element("div", { class: "two-answers", id: "options", hidden: true }, option("A"), option("B")),
    element(
      "div",
      { class: "chooser", id: "chooser", hidden: true },
      button("choose-a", 0, "A is better", "a"),
      button("choose-tie", "tie", "No difference", "t"),
      button("choose-b", 1, "B is better", "b"),
    ),
  ];
}

function profileCard(served, onAnswer) {
  return element(
    "section",
    { class: "card", "aria-labelledby": "profile-title" },
    element(
      "header",
      { class: "card-head" },
      element("h2", { id: "profile-title" }, "What is known of you"),
      element("span", { class: "figures", id: "profile-count", role: "status" }),
    ),
    bars.list,
    element("p", { class: "hint", id: "profile-hint" }, "Nothing yet."),
    element(
      "div",
      { class: "form-actions" },
      element("button", { type: "button", class: "primary", id: "answer-so", disabled: true, on: { click: onAnswer } }, "Answer as I like it"),
      element("button", { type: "button", class: "quiet", id: "forget", disabled: true, on: { click: forget } }, "Forget me"),
    ),
    element(
      "details",
      { class: "more" },
      element("summary", {}, "Say it yourself"),
      served.sentences ? sentenceForm() : null,
      element("p", { class: "hint stated" }, "What you say is where the choices begin: they can still change it."),
      element(
        "div",
        { class: "form-actions" },
        element("button", { type: "button", id: "from-sliders", on: { click: putSliders } }, "Start from the sliders of Compare"),
      ),
    ),
  );
}

function sentenceForm() {
  const sentence = element("input", { type: "text", id: "own-sentence", placeholder: "short and a bit ironic, please", maxlength: 500 });
  const start = (event) => {
    event.preventDefault();
    if (sentence.value.trim()) putStated({ sentence: sentence.value.trim() });
  };
  return element(
    "form",
    { class: "stated", on: { submit: start } },
    element("label", { for: "own-sentence" }, "How should answers be?"),
    sentence,
    element("div", { class: "form-actions" }, element("button", {}, "Start from this sentence")),
  );
}

const route = () => `v1/pad/users/${encodeURIComponent(settings.user)}`;

/** Run a step unless one is running; its error is shown. */
async function step(work) {
  if (busy) return;
  busy = true;
  say(byId("learn-problem"), "");
  showBusy(true);
  try {
    await work();
  } catch (error) {
    say(byId("learn-problem"), error.message);
  }
  busy = false;
  showBusy(false);
}

function showBusy(isBusy) {
  for (const id of ["ask", "choose-a", "choose-tie", "choose-b"]) byId(id).disabled = isBusy;
  byId("options").setAttribute("aria-busy", String(isBusy));
}

async function loadProfile() {
  try {
    showProfile(await sendJson(route()));
  } catch (error) {
    if (error instanceof ServerError && error.status === 404) showProfile(null);
    else say(byId("learn-problem"), error.message);
  }
}

function ask() {
  return step(askNext);
}

async function askNext() {
  question = null;
  showQuestionText(`Question ${asked + 1} of ${Math.max(QUESTIONS, asked + 1)}`, "Two answers are being written…");
  byId("options").hidden = byId("chooser").hidden = true;
  byId("question").hidden = false;
  const about = byId("about").value.trim();
  const body = { max_tokens: ANSWER_TOKENS, ...(about ? { prompt: about } : {}) };
  byId("drawing").hidden = false;
  try {
    question = await sendJson(`${route()}/question`, { method: "POST", body });
  } catch (error) {
    byId("question").hidden = true;
    throw error;
  } finally {
    byId("drawing").hidden = true;
  }
  const last = question.messages.at(-1);
  showQuestionText(byId("question-number").textContent, last.content);
  byId("text-A").textContent = question.answers[0].text;
  byId("text-B").textContent = question.answers[1].text;
  byId("options").hidden = byId("chooser").hidden = false;
  // The button that was pressed is disabled meanwhile, which loses the focus.
  if (document.activeElement === document.body) byId("question").focus({ preventScroll: true });
  byId("ask").textContent = "Ask another";
}

function showQuestionText(number, prompt) {
  byId("question-number").textContent = number;
  byId("question-prompt").textContent = prompt;
}

function choose(chosen) {
  if (question === null) return null;
  return step(async () => {
    const body = { question: question.question, chosen };
    showProfile(await sendJson(`${route()}/choices`, { method: "POST", body }));
    asked += 1;
    if (asked < QUESTIONS) return askNext();
    question = null;
    byId("options").hidden = byId("chooser").hidden = true;
    showQuestionText("That was ten.", "Answers can now come as you like them. You can also go on.");
    byId("answer-so").focus();
    return null;
  });
}

function putStated(stated) {
  return step(async () => showProfile(await sendJson(route(), { method: "PUT", body: stated })));
}

/** The sliders of the adapter that profiles belong to; a dimension that was made later is not among them. */
function putSliders() {
  const weights = Object.fromEntries([...settings.weights].filter(([name]) => profileDimensions.has(name)));
  return putStated({ weights });
}

function forget() {
  if (!confirm(`Delete the profile of ${settings.user}, with all choices?`)) return null;
  return step(async () => {
    await sendJson(route(), { method: "DELETE" });
    forgetScreen();
  });
}

function forgetScreen() {
  question = null;
  asked = 0;
  for (const id of ["question", "options", "chooser"]) byId(id).hidden = true;
  byId("ask").textContent = "Ask me";
  showProfile(null);
}

function profileHint(profile) {
  if (profile === null) return "Nothing yet.";
  if (profile.choices === 0) return "Line: the weight; the middle is 0. Choices will say how certain it is.";
  return "Line: the weight. Bar: where it lies with 95% certainty; the middle is 0.";
}

function showProfile(profile) {
  const count = profile?.choices ?? 0;
  byId("profile-count").textContent = profile === null ? "" : `${count} choice${count === 1 ? "" : "s"}`;
  byId("profile-hint").textContent = profileHint(profile);
  byId("answer-so").disabled = byId("forget").disabled = profile === null;
  bars.list.hidden = profile === null;
  if (profile !== null) bars.show(profile.weights, profile.intervals ?? {});
  setProfile(profile);
}
