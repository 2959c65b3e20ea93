"""Does a PersRM guide a base of another family, with another tokenizer? Win rates over unguided answers.

    python benchmarks/any_base.py --prompts PROMPTS.json --betas 1.5 3 --out any_base.json

A SmolLM2 PersRM guides Gemma-3-270m (pretrained: it gets a plain chat template here) over HTTP, as
`pad-vllm serve` serves it, once for each way to score candidates: `exact`, `first`, and `paper`, the rule
of the paper's code (template lost, everything encoded again, a candidate's own first token), in this process.
PROMPTS.json is a list of {"prompt": text}: the paper's are the 50 Koala prompts of P-Soups. Greedy. Prints a
table, then writes JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 2))
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")

import arguments
from served import served

from pad_vllm.adapter.manifest import read_config
from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base
from pad_vllm.evaluation.lexical_scorers import LEXICAL_SCORERS, lexical_scores
from pad_vllm.evaluation.text_measures import repeated_ngram_share, win_rate
from pad_vllm.serving.launch.serve_arguments import serve_argv
from pad_vllm.text.token_alignment import AlignedTokens, TokenAligner

RULES = ("exact", "first", "paper")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ 'Question' if m['role'] == 'user' else 'Answer' }}: "
    "{{ m['content'] }}\n\n{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
)
STOP = ["\nQuestion:"]


class PaperReader(TokenAligner):
    """The paper's cross-tokenizer rule: all text so far without specials, encoded again at each step."""

    def __init__(self, base: Any, persrm: Any, **_: Any) -> None:
        self.same_tokens, self._base, self._persrm = False, base, persrm

    def start(self, prompt_ids: Sequence[int], preference: str = "") -> AlignedTokens:
        del preference
        return PaperReading(self._base, self._persrm, prompt_ids)


class PaperReading(AlignedTokens):
    """One request under that rule."""

    def __init__(self, base: Any, persrm: Any, prompt: Sequence[int]) -> None:
        self._base, self._persrm, self._ids = base, persrm, list(prompt)
        self._first: dict[int, tuple[int, ...]] = {}
        self.extend([])

    def extend(self, ids: Sequence[int]) -> None:
        self._ids += ids
        self.tokens = self._persrm(self._base.decode(self._ids, skip_special_tokens=True))[
            "input_ids"
        ]

    def candidate_changes(self, ids: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
        return [(len(self.tokens), self._alone(token)) for token in ids]

    def _alone(self, token: int) -> tuple[int, ...]:
        if token not in self._first:
            text = self._base.decode([token], skip_special_tokens=True)
            found = self._persrm(text, add_special_tokens=False)["input_ids"]
            self._first[token] = tuple(found[:1])
        return self._first[token]


def conditions(dimensions: Sequence[str], betas: Sequence[float]) -> list[tuple[str, float]]:
    """("", 0) is unguided."""
    return [("", 0.0), *((name, beta) for name in dimensions for beta in betas)]


def xargs(condition: tuple[str, float], top_k: int) -> dict[str, Any] | None:
    name, beta = condition
    return {"pad_weights": f"{name}=1", "pad_beta": beta, "pad_top_k": top_k} if name else None


def flags(rule: str, template: Path) -> list[str]:
    """Of `pad-vllm serve` with the resident engine."""
    return [
        *("--chat-template", str(template), "--max-model-len", "1024"),
        *("--max-num-seqs", "64", "--enforce-eager", "--served-model-name", "base"),
        *("--additional-config.pad.candidates", rule, "--disable-uvicorn-access-log"),
        *("--additional-config.pad.chat_template", str(template)),
    ]


async def ask(url: str, prompts: list[str], rows: list[Any], args: argparse.Namespace) -> list[Any]:
    """Texts [condition][prompt], every request open at once."""
    from openai import AsyncOpenAI

    async def one(client: AsyncOpenAI, prompt: str, row: Any) -> str:
        extra = xargs(row, args.top_k)
        answer = await client.chat.completions.create(
            model="base",
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            max_tokens=args.max_tokens,
            stop=STOP,
            extra_body={"vllm_xargs": extra} if extra else {},
        )
        return answer.choices[0].message.content or ""

    async with AsyncOpenAI(base_url=url, api_key="none", timeout=7200) as client:
        answers = (one(client, prompt, row) for row in rows for prompt in prompts)
        texts = await asyncio.gather(*answers)
    return [texts[at : at + len(prompts)] for at in range(0, len(texts), len(prompts))]


def in_process(
    base: str, adapter: str, prompts: list[str], rows: list[Any], args: argparse.Namespace
) -> list[Any]:
    """The same under the paper's rule: vLLM here, its reader replaced."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    from pad_vllm.serving.start import config_checks

    config_checks.TokenAligner = PaperReader  # type: ignore[misc]
    llm = LLM(
        base,
        load_format="pad",
        logits_processors=["pad_vllm:PADLogitsProcessor"],
        additional_config={
            "pad": {"adapter": adapter, "engine": "resident", "candidates": "first"}
        },
        max_model_len=1024,
        max_num_seqs=64,
        enforce_eager=True,
    )
    chats, params = [], []
    for row in rows:
        for prompt in prompts:
            chats.append([{"role": "user", "content": prompt}])
            extra = xargs(row, args.top_k)
            params.append(
                SamplingParams(
                    temperature=0, max_tokens=args.max_tokens, stop=STOP, extra_args=extra
                )
            )
    outputs = llm.chat(chats, params, chat_template=TEMPLATE, use_tqdm=False)
    texts = [output.outputs[0].text for output in outputs]
    del llm
    gc.collect()
    return [texts[at : at + len(prompts)] for at in range(0, len(texts), len(prompts))]


def measure(rows: list[Any], texts: list[Any], dimensions: Sequence[str]) -> list[dict[str, Any]]:
    """One record a condition."""
    plain = [lexical_scores(text, dimensions) for text in texts[0]]
    empty = [not text.strip() for text in texts[0]]
    records = []
    for (name, beta), said in zip(rows, texts, strict=True):
        scores = [lexical_scores(text, dimensions) for text in said]
        wins = {
            one: round(win_rate([s[d] for s in scores], [s[d] for s in plain]), 4)
            for d, one in enumerate(dimensions)
        }
        repeated = sum(map(repeated_ngram_share, said)) / len(said)
        records.append(
            {
                "dimension": name,
                "beta": beta,
                "win_rate": wins,
                "repeated": round(repeated, 4),
                "words": round(sum(len(text.split()) for text in said) / len(said), 1),
                "empty": sum(not text.strip() for text in said),
                "empty_unguided": sum(empty),
            }
        )
    return records


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Win rate of each dimension's own condition, a column for each rule."""
    rules = list(found)
    lines = [
        f"| dimension | beta | {' | '.join(rules)} |",
        "| --- " * (2 + len(rules)) + "|",
    ]
    for place, record in enumerate(found[rules[0]]):
        if name := record["dimension"]:
            cells = [
                f"{100 * found[rule][place]['win_rate'][name]:.0f}% "
                f"({found[rule][place]['words']:.0f} words, {found[rule][place]['empty']} empty)"
                for rule in rules
            ]
            lines.append(f"| {name} | {record['beta']:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = arguments.parser(__doc__, base="gemma3-270m", out="benchmarks/results/any_base.json")
    arguments.add_answers(parser, top_k=20, betas=(1.5, 3.0))
    parser.add_argument("--count", type=int, default=None, help="only the first so many prompts")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--dimensions", nargs="+", default=None)
    return parser.parse_args()


def main() -> None:
    args = parse()
    base, adapter = resolve_base(args.base), resolve_adapter(args.adapter)
    prompts = arguments.read_prompts(args.prompts)[: args.count]
    config = read_config(adapter)
    dimensions = args.dimensions or [name for name in config.dimensions if name in LEXICAL_SCORERS]
    rows = conditions(dimensions, args.betas)
    found, texts, seconds = {}, {}, {}
    for rule in args.rules:
        begin = time.monotonic()
        if rule == "paper":
            texts[rule] = in_process(base, adapter, prompts, rows, args)
        else:
            with tempfile.TemporaryDirectory() as folder:
                template = Path(folder) / "chat_template.jinja"
                template.write_text(TEMPLATE, "utf-8")
                argv = serve_argv(base, adapter, flags(rule, template), engine="resident")
                with served(argv) as url:
                    texts[rule] = asyncio.run(ask(f"{url}/v1", prompts, rows, args))
        seconds[rule] = round(time.monotonic() - begin, 1)
        found[rule] = measure(rows, texts[rule], dimensions)
    result = {
        "command": arguments.command(),
        "base": args.base,
        "persrm": config.backbone.name,
        "prompts": len(prompts),
        "seconds": seconds,
        "records": found,
    }
    print(table(found))
    print(json.dumps(result))
    arguments.report(args.out, result)
    if args.texts:
        args.texts.write_text(json.dumps(texts, ensure_ascii=False, indent=1), "utf-8")


if __name__ == "__main__":
    main()
