/** Answers that come in pieces: the event stream of /v1/chat/completions. */

import { ServerError, send } from "./api.js";

/**
 * @typedef {Object} Answer
 * @property {string} text
 * @property {any} pad the field of that name, null for an unguided answer
 * @property {string|null} finishReason
 */

/**
 * Ask for an answer.
 *
 * @param {any} body of the request, without `stream`
 * @param {AbortSignal} signal ends the answer
 * @param {(piece: string) => void} onPiece called with each piece of text
 * @returns {Promise<Answer>}
 * @throws {ServerError} the request was refused, or failed in the middle
 */
export async function streamAnswer(body, signal, onPiece) {
  const response = await send("v1/chat/completions", {
    method: "POST",
    body: { ...body, stream: true },
    signal,
  });
  const answer = { text: "", pad: null, finishReason: null };
  for await (const data of eventData(response.body)) {
    if (data === "[DONE]") break;
    const event = JSON.parse(data);
    if (event.error) throw new ServerError(event.error.code ?? 500, event.error.message ?? data);
    const piece = event.choices?.[0]?.delta?.content ?? "";
    answer.text += piece;
    answer.pad = event.pad ?? answer.pad;
    answer.finishReason = event.choices?.[0]?.finish_reason ?? answer.finishReason;
    if (piece) onPiece(piece);
  }
  return answer;
}

/**
 * The data of each server-sent event; pieces of the stream may end anywhere.
 *
 * @param {ReadableStream<Uint8Array>} stream
 */
async function* eventData(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  }
}
