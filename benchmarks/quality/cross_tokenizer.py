"""Does a PersRM guide a base of another family, with another tokenizer? Win rates over unguided answers.

    python -m benchmarks.quality.cross_tokenizer --prompts PROMPTS.json --betas 1.5 3 --out any_base.json

A SmolLM2 PersRM guides Gemma-3-270m (pretrained: it gets a plain chat template here) over HTTP, as
`pad-vllm serve` serves it, once for each rule to score candidates: `exact`, `first`, and `paper`, the rule
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 2))
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")

from benchmarks.common import arguments
from benchmarks.common.vllm_server import vllm_server
from pad_vllm.adapter.manifest import read_config
from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base
from pad_vllm.evaluation.lexical_scorers import LEXICAL_SCORERS, lexical_scores
from pad_vllm.evaluation.win_rates_and_fluency import mean_repeated, win_rate
from pad_vllm.serving.launch.serve_arguments import serve_argv
from pad_vllm.text.token_alignment import AlignedTokens, TokenAligner

RULES = ("exact", "first", "paper")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ 'Question' if m['role'] == 'user' else 'Answer' }}: "
    "{{ m['content'] }}\n\n{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
)
STOP = ["\nQuestion:"]

ConditionTexts = list[list[str]]
"""[condition][prompt] answers."""


class SingleDimension(NamedTuple):
    """One way to answer all prompts."""

    dimension: str  # empty for unguided
    beta: float

    def request_arguments(self, top_k: int) -> dict[str, Any] | None:
        """extra_args of a request; None for an unguided one."""
        if not self.dimension:
            return None
        weights = f"{self.dimension}=1"
        return {"pad_weights": weights, "pad_beta": self.beta, "pad_top_k": top_k}


class PaperTokenAligner(TokenAligner):
    """The paper's cross-tokenizer rule: all text so far without specials, encoded again at each step."""

    def __init__(self, base: Any, persrm: Any, **_: Any) -> None:
        self.same_tokens, self._base, self._persrm = False, base, persrm

    def start(self, prompt_ids: Sequence[int], preference: str = "") -> AlignedTokens:
        """A request whose prompt the base has as these tokens; a stated preference is not used."""
        del preference
        return PaperAlignedTokens(self._base, self._persrm, prompt_ids)


class PaperAlignedTokens(AlignedTokens):
    """One request's tokens under that rule."""

    def __init__(self, base: Any, persrm: Any, prompt: Sequence[int]) -> None:
        """Of a request.

        Args:
            base: Tokenizer of the base.
            persrm: Tokenizer of the PersRM.
            prompt: The base's token ids.
        """
        super().__init__(())
        self._base, self._persrm, self._ids = base, persrm, list(prompt)
        self._first_tokens: dict[int, tuple[int, ...]] = {}
        self.extend([])

    def extend(self, ids: Sequence[int]) -> None:
        """Append tokens that the base generated."""
        self._ids += ids
        text = self._base.decode(self._ids, skip_special_tokens=True)
        self.tokens, self.num_unchanged = self._persrm(text)["input_ids"], 0

    def candidate_changes(self, ids: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
        """For each base token what `tokens` would be if it came next: (tokens kept, tokens added)."""
        return [(len(self.tokens), self._first_token(token)) for token in ids]

    def _first_token(self, token: int) -> tuple[int, ...]:
        """Of the token's own text; none where it has no text."""
        if token not in self._first_tokens:
            text = self._base.decode([token], skip_special_tokens=True)
            encoded = self._persrm(text, add_special_tokens=False)["input_ids"]
            self._first_tokens[token] = tuple(encoded[:1])
        return self._first_tokens[token]


def all_conditions(dimensions: Sequence[str], betas: Sequence[float]) -> list[SingleDimension]:
    """Unguided, then every dimension at every strength."""
    guided = [SingleDimension(name, beta) for name in dimensions for beta in betas]
    return [SingleDimension("", 0.0), *guided]


def serve_flags(rule: str, template: Path) -> list[str]:
    """Flags of `pad-vllm serve` with the resident engine; template: the chat template's file."""
    return [
        *("--chat-template", str(template), "--max-model-len", "1024"),
        *("--max-num-seqs", "64", "--enforce-eager", "--served-model-name", "base"),
        *("--additional-config.pad.candidates", rule, "--disable-uvicorn-access-log"),
        *("--additional-config.pad.chat_template", str(template)),
    ]


async def ask_server(
    url: str, prompts: list[str], conditions: list[SingleDimension], args: argparse.Namespace
) -> ConditionTexts:
    """Answers of a server, every request open at once.

    Args:
        url: Of its OpenAI API.
        prompts: Texts.
        conditions: Each answers every prompt.
        args: With --top-k and --max-tokens.
    """
    from openai import AsyncOpenAI

    async def ask(client: AsyncOpenAI, prompt: str, condition: SingleDimension) -> str:
        request = condition.request_arguments(args.top_k)
        response = await client.chat.completions.create(
            model="base",
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            max_tokens=args.max_tokens,
            stop=STOP,
            extra_body={"vllm_xargs": request} if request else {},
        )
        return response.choices[0].message.content or ""

    async with AsyncOpenAI(base_url=url, api_key="none", timeout=7200) as client:
        texts = await asyncio.gather(
            *(ask(client, prompt, condition) for condition in conditions for prompt in prompts)
        )
    return _by_condition(texts, len(prompts))


def answer_with_paper_rule(
    base: str,
    adapter: str,
    prompts: list[str],
    conditions: list[SingleDimension],
    args: argparse.Namespace,
) -> ConditionTexts:
    """The same answers under the paper's rule: vLLM in this process, with PaperTokenAligner.

    Args:
        base: Folder of the base.
        adapter: Folder of the adapter.
        prompts: Texts.
        conditions: Each answers every prompt.
        args: With --top-k and --max-tokens.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    from pad_vllm.serving.start import config_checks

    config_checks.TokenAligner = PaperTokenAligner  # type: ignore[misc]
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
    for condition in conditions:
        for prompt in prompts:
            chats.append([{"role": "user", "content": prompt}])
            params.append(
                SamplingParams(
                    temperature=0,
                    max_tokens=args.max_tokens,
                    stop=STOP,
                    extra_args=condition.request_arguments(args.top_k),
                )
            )
    outputs = llm.chat(chats, params, chat_template=TEMPLATE, use_tqdm=False)
    texts = [output.outputs[0].text for output in outputs]
    del llm
    gc.collect()
    return _by_condition(texts, len(prompts))


def _by_condition(texts: Sequence[str], count: int) -> ConditionTexts:
    """count: of the prompts."""
    return [list(texts[start : start + count]) for start in range(0, len(texts), count)]


def measure_conditions(
    conditions: Sequence[SingleDimension], texts: ConditionTexts, dimensions: Sequence[str]
) -> list[dict[str, Any]]:
    """One record a condition.

    Args:
        conditions: Unguided first.
        texts: Their answers.
        dimensions: Whose scorers judge.
    """
    unguided = [lexical_scores(text, dimensions) for text in texts[0]]
    unguided_empty = sum(not text.strip() for text in texts[0])
    records = []
    for condition, answers in zip(conditions, texts, strict=True):
        scores = [lexical_scores(text, dimensions) for text in answers]
        wins = {
            name: round(win_rate([s[d] for s in scores], [s[d] for s in unguided]), 4)
            for d, name in enumerate(dimensions)
        }
        records.append(
            {
                "dimension": condition.dimension,
                "beta": condition.beta,
                "win_rate": wins,
                "repeated": round(mean_repeated(answers), 4),
                "words": round(sum(len(text.split()) for text in answers) / len(answers), 1),
                "empty": sum(not text.strip() for text in answers),
                "empty_unguided": unguided_empty,
            }
        )
    return records


def table(records_by_rule: Mapping[str, list[dict[str, Any]]]) -> str:
    """Markdown: the win rate of each dimension's own condition, a column a rule."""
    rules = list(records_by_rule)
    lines = [
        f"| dimension | beta | {' | '.join(rules)} |",
        "| --- " * (2 + len(rules)) + "|",
    ]
    for row in zip(*records_by_rule.values(), strict=True):
        if name := row[0]["dimension"]:
            cells = [
                f"{100 * r['win_rate'][name]:.0f}% ({r['words']:.0f} words, {r['empty']} empty)"
                for r in row
            ]
            lines.append(f"| {name} | {row[0]['beta']:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments.make_parser(
        __doc__, base="gemma3-270m", out="benchmarks/results/any_base.json"
    )
    prompts_help = 'JSON: [{"prompt": text}, ...]'
    parser.add_argument("--prompts", type=Path, required=True, help=prompts_help)
    parser.add_argument("--betas", type=float, nargs="+", default=[1.5, 3.0])
    parser.add_argument("--top-k", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=100)
    parser.add_argument("--texts", type=Path, help="also write every answer here")
    parser.add_argument("--count", type=int, default=None, help="only the first so many prompts")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--dimensions", nargs="+", default=None)
    return parser.parse_args()


def main() -> None:
    """See the module's docstring."""
    args = parse()
    base, adapter = resolve_base(args.base), resolve_adapter(args.adapter)
    prompts = [record["prompt"] for record in json.loads(args.prompts.read_text("utf-8"))]
    prompts = prompts[: args.count]
    config = read_config(adapter)
    dimensions = args.dimensions or [name for name in config.dimensions if name in LEXICAL_SCORERS]
    conditions = all_conditions(dimensions, args.betas)
    records, texts, seconds = {}, {}, {}
    for rule in args.rules:
        start = time.monotonic()
        if rule == "paper":
            texts[rule] = answer_with_paper_rule(base, adapter, prompts, conditions, args)
        else:
            with tempfile.TemporaryDirectory() as folder:
                template = Path(folder) / "chat_template.jinja"
                template.write_text(TEMPLATE, "utf-8")
                flags = serve_flags(rule, template)
                with vllm_server(serve_argv(base, adapter, flags, engine="resident")) as url:
                    texts[rule] = asyncio.run(ask_server(f"{url}/v1", prompts, conditions, args))
        seconds[rule] = round(time.monotonic() - start, 1)
        records[rule] = measure_conditions(conditions, texts[rule], dimensions)
    result = {
        "command": arguments.command_line(),
        "base": args.base,
        "persrm": config.backbone.name,
        "prompts": len(prompts),
        "seconds": seconds,
        "records": records,
    }
    print(table(records))
    print(json.dumps(result))
    arguments.write_result(args.out, result)
    if args.texts:
        args.texts.write_text(json.dumps(texts, ensure_ascii=False, indent=1), "utf-8")


if __name__ == "__main__":
    main()
