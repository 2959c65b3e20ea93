/**
 * An explained answer: each token coloured by what it earned, with what the base would have said. Pointing at a
 * token, tapping it, or moving to it with the arrow keys shows a card.
 */

import { byId, element } from "./dom.js";

/** Logits: a reward of this size or more has the full colour, as in `pad-vllm explain`. */
const FULL_COLOUR = 2;

/** What a token is shown as that ends the answer: it earns its reward too, and its text is not the answer's. */
const END = " (end)";

/** Distance of the card from its token and from the window's edge, in px. */
const MARGIN = 12;

/**
 * @typedef {Object} ExplainedToken
 * @property {string} token
 * @property {number|null} reward
 * @property {string|null} base
 * @property {boolean} changed
 */

/**
 * Put an explained answer into an element, in the place of its text.
 *
 * @param {HTMLElement} where
 * @param {ExplainedToken[]} tokens
 */
export function showTokens(where, tokens) {
  const spans = tokens.map(tokenSpan);
  where.replaceChildren(...spans);
  where.tabIndex = 0;
  where.setAttribute("role", "group");
  where.setAttribute("aria-label", "Guided answer; arrow keys move from token to token");
  const show = (index) => showCard(where, spans, tokens, index);
  const indexOf = (target) => spans.indexOf(target.closest?.(".token"));
  where.onpointerover = (event) => show(indexOf(event.target));
  where.onclick = (event) => show(indexOf(event.target));
  where.onpointerleave = () => hideCard(where);
  where.onblur = () => hideCard(where);
  where.onkeydown = (event) => {
    const at = spans.findIndex((span) => span.classList.contains("current"));
    const to = nextIndex(event.key, at, tokens);
    if (event.key === "Escape") hideCard(where);
    if (to === null) return;
    event.preventDefault();
    show(to);
  };
}

/**
 * The tokens as they are shown, for an answer of this text.
 *
 * @param {ExplainedToken[]} tokens
 * @param {string} text
 * @returns {ExplainedToken[]}
 */
export function withReadableEnd(tokens, text) {
  const last = tokens.at(-1);
  const before = tokens.slice(0, -1).map(({ token }) => token);
  if (!last?.token.trim() || before.join("").trimEnd() !== text.trimEnd()) return tokens;
  return [...tokens.slice(0, -1), { ...last, token: END }];
}

/** Make an element plain again, without tokens or a card. */
export function clearTokens(where) {
  hideCard(where);
  where.replaceChildren();
  where.removeAttribute("tabindex");
  where.removeAttribute("role");
  where.removeAttribute("aria-label");
  where.onpointerover = where.onclick = where.onpointerleave = where.onblur = where.onkeydown = null;
}

/** One line on a whole answer: how many tokens guidance changed, and what they earned. */
export function summary(tokens) {
  const changed = tokens.filter((token) => token.changed).length;
  const mean = tokens.reduce((sum, token) => sum + (token.reward ?? 0), 0) / Math.max(tokens.length, 1);
  return `${changed} of ${tokens.length} tokens changed, ${logits(mean)} a token`;
}

function tokenSpan({ token, reward, changed }) {
  const amount = Math.min(Math.abs(reward ?? 0) / FULL_COLOUR, 1);
  const kind = (reward ?? 0) < 0 ? "loss" : "gain";
  const text = token.trimStart();
  const blank = token.slice(0, token.length - text.length);
  const word = text ? element("span", {}, text) : null;
  const span = element("span", { class: `token ${kind}${changed ? " changed" : ""}` }, blank, word);
  span.style.setProperty("--amount", amount.toFixed(3));
  return span;
}

/** Left and right: a token; up and down: a changed one. */
function nextIndex(key, at, tokens) {
  const last = tokens.length - 1;
  if (key === "ArrowRight") return Math.min(at + 1, last);
  if (key === "ArrowLeft") return Math.max(at - 1, 0);
  if (key === "Home") return 0;
  if (key === "End") return last;
  if (key === "ArrowDown") {
    const next = tokens.findIndex((token, index) => index > at && token.changed);
    return next < 0 ? at : next;
  }
  if (key === "ArrowUp") {
    const before = tokens.map((token, index) => (index < at && token.changed ? index : -1));
    return Math.max(...before) < 0 ? at : Math.max(...before);
  }
  return null;
}

function showCard(where, spans, tokens, index) {
  hideCard(where);
  if (index < 0 || index >= tokens.length) return;
  spans[index].classList.add("current");
  const card = byId("token-card");
  card.replaceChildren(...cardLines(tokens[index]));
  card.hidden = false;
  shown = spans[index];
  where.setAttribute("aria-describedby", card.id);
  placeCard(card, spans[index]);
}

function cardLines({ token, reward, base, changed }) {
  const earned = reward === null ? "chosen without a reward" : `earned ${logits(reward)}`;
  const lines = [element("div", {}, element("strong", {}, quoted(token)), ` ${earned}`)];
  if (changed && base !== null) {
    lines.push(element("div", {}, "the base: ", element("strong", {}, quoted(base))));
  } else if (!changed) {
    lines.push(element("div", {}, "also the base's choice"));
  }
  return lines;
}

function placeCard(card, span) {
  const box = [...span.getClientRects()].at(-1) ?? span.getBoundingClientRect();
  const { width, height } = card.getBoundingClientRect();
  const left = box.left + box.width / 2 - width / 2;
  const above = box.top - height - MARGIN / 2;
  card.style.left = `${Math.min(Math.max(left, MARGIN), window.innerWidth - width - MARGIN)}px`;
  card.style.top = `${above < MARGIN ? box.bottom + MARGIN / 2 : above}px`;
}

let shown = null;

window.addEventListener("scroll", () => shown && placeCard(byId("token-card"), shown), { passive: true });

function hideCard(where) {
  shown = null;
  byId("token-card").hidden = true;
  where.removeAttribute("aria-describedby");
  for (const span of where.querySelectorAll(".token.current")) span.classList.remove("current");
}

function logits(value) {
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)} logits`;
}

function quoted(text) {
  return text === "" ? "(no text)" : `“${text.replaceAll("\n", "⏎")}”`;
}
