/** The guided request as a command of curl and as Python with the OpenAI client, to copy. */

import { address, hasKey } from "./api.js";
import { byId, fillChoiceRow } from "./dom.js";
import { guidedRequest, whenChanged } from "./settings.js";

const WRITERS = { curl: curlCommand, python: pythonProgram };

let language = "curl";

/** A command for a POSIX shell. */
export function curlCommand(body) {
  const lines = [`curl ${shellQuoted(address("v1/chat/completions"))}`];
  if (hasKey()) lines.push('-H "Authorization: Bearer $PAD_API_KEY"');
  lines.push("-H 'Content-Type: application/json'");
  lines.push(`-d ${shellQuoted(JSON.stringify(body, null, 2))}`);
  return lines.join(" \\\n  ");
}

/** A program for Python 3 with the package openai. */
export function pythonProgram(body) {
  const { vllm_xargs, ...named } = body;
  const key = hasKey() ? 'os.environ["PAD_API_KEY"]' : '"none"';
  const fields = Object.entries(named).map(([name, value]) => `    ${name}=${pythonLiteral(value)},`);
  return [
    ...(hasKey() ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${pythonLiteral(address("v1"))}, api_key=${key})`,
    "answer = client.chat.completions.create(",
    ...fields,
    `    extra_body={"vllm_xargs": ${pythonLiteral(vllm_xargs)}},`,
    ")",
    "print(answer.choices[0].message.content)",
  ].join("\n");
}

function shellQuoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** A text of JSON is one of Python's too. */
function pythonLiteral(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (Array.isArray(value)) return `[${value.map(pythonLiteral).join(", ")}]`;
  if (typeof value === "object") {
    const pairs = Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${pythonLiteral(one)}`);
    return `{${pairs.join(", ")}}`;
  }
  return JSON.stringify(value);
}

function showCode() {
  byId("code").textContent = WRITERS[language](guidedRequest());
  byId("copied").textContent = "";
}

async function copyCode() {
  try {
    await navigator.clipboard.writeText(byId("code").textContent);
    byId("copied").textContent = "Copied.";
  } catch {
    // Pages of plain http from another machine have no clipboard.
    getSelection().selectAllChildren(byId("code"));
    byId("copied").textContent = "Selected: copy it with Ctrl C.";
  }
}

/** Keep the code in line with the settings. */
export function startRequestCode() {
  const languages = [
    { value: "curl", label: "curl" },
    { value: "python", label: "Python" },
  ];
  fillChoiceRow(byId("code-language"), languages, language, (chosen) => {
    language = chosen;
    showCode();
  });
  byId("copy").addEventListener("click", copyCode);
  whenChanged(showCode);
}
