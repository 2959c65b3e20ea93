/** The unguided and the guided answer to one prompt, side by side. */

import { streamAnswer } from "./chat_stream.js";
import { byId, say } from "./dom.js";
import { change, guidedRequest, guides, settings, unguidedRequest, whenChanged } from "./settings.js";
import { clearTokens, showTokens, summary, withReadableEnd } from "./token_view.js";

let running = null;

/** Answer the prompt both ways; answers that are still on their way end. */
export async function answerBothWays() {
  running?.abort();
  showRunning(false);
  say(byId("compare-problem"), problemBefore());
  if (!byId("compare-problem").hidden) return;
  const own = new AbortController();
  running = own;
  showRunning(true);
  showOnScreen(byId("unguided"));
  const guided = { ...guidedRequest(), vllm_xargs: { ...guidedRequest().vllm_xargs, pad_explain: true } };
  await Promise.all([
    showAnswer(byId("unguided"), unguidedRequest(), own.signal),
    showAnswer(byId("guided"), guided, own.signal),
  ]);
  if (running === own) showRunning(false);
}

function problemBefore() {
  if (!settings.prompt.trim()) return "Write something to answer first.";
  if (!guides() && settings.weights.size === 0) return "Say in words what the answer should be like.";
  return "";
}

async function showAnswer(card, body, signal) {
  const where = card.querySelector(".answer-text");
  const figures = card.querySelector(".figures");
  const legend = card.querySelector(".legend");
  clearTokens(where);
  where.classList.remove("empty");
  if (legend) legend.hidden = true;
  figures.textContent = "";
  card.setAttribute("aria-busy", "true");
  const start = performance.now();
  try {
    const answer = await streamAnswer(body, signal, (piece) => where.append(piece));
    const explained = withReadableEnd(answer.pad?.explained?.[0] ?? [], answer.text);
    if (explained.length) showTokens(where, explained);
    if (legend) legend.hidden = explained.length === 0;
    figures.textContent = figuresText(answer, explained, performance.now() - start);
    if (!answer.text) showNothing(where, "The answer is empty.");
  } catch (error) {
    if (error.name !== "AbortError") say(byId("compare-problem"), error.message);
    else if (!where.textContent && !running) showNothing(where, "Stopped.");
  }
  if (!signal.aborted || !running || running.signal === signal) card.setAttribute("aria-busy", "false");
}

function figuresText(answer, explained, milliseconds) {
  const parts = [`${(milliseconds / 1000).toFixed(1)} s`];
  if (explained.length) parts.unshift(summary(explained));
  if (answer.pad?.unguided_tokens) parts.push(`${answer.pad.unguided_tokens} tokens unguided`);
  if (answer.finishReason === "length") parts.push("cut at the length");
  return parts.join(" · ");
}

function showNothing(where, text) {
  where.textContent = text;
  where.classList.add("empty");
}

function showRunning(isRunning) {
  byId("stop").hidden = !isRunning;
  if (!isRunning) running = null;
}

/** On a phone the answers are below the sliders. */
function showOnScreen(card) {
  if (card.getBoundingClientRect().top > window.innerHeight - 120) card.scrollIntoView({ block: "start" });
}

/** Say below the heading what guides the guided answer, or that nothing does. */
function showHint() {
  const hint = guides() ? "Nothing asked yet." : "Nothing steers yet: move a slider.";
  const where = byId("guided").querySelector(".answer-text");
  if (where.classList.contains("empty") && !running) where.textContent = hint;
}

/** Make the form answer. */
export function startCompare() {
  const prompt = byId("prompt");
  prompt.addEventListener("input", () => change({ prompt: prompt.value }));
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("prompt-form").requestSubmit();
  });
  byId("prompt-form").addEventListener("submit", (event) => {
    event.preventDefault();
    answerBothWays();
  });
  byId("stop").addEventListener("click", () => {
    const stopped = running;
    showRunning(false);
    stopped?.abort();
  });
  for (const id of ["unguided", "guided"]) {
    showNothing(byId(id).querySelector(".answer-text"), "Nothing asked yet.");
  }
  whenChanged(() => {
    if (prompt.value !== settings.prompt) prompt.value = settings.prompt;
    showHint();
  });
}
