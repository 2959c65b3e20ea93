"""How much of the way can guidance go, by how many candidates it has and how unlikely they may be?

    python -m benchmarks.quality.reachable_way --dtype bfloat16 --out reachable_way.json

Guidance chooses among the base's K best tokens and, with a min-p guard, pays none that is far less likely
than the best. What a base that was told an instruction writes lies partly outside. So its answers are read:
the gap, log p under the told base less that under the base, summed over the tokens that are within a limit,
and the way (`pad_vllm/steering/way.py`) that this sum is: what rewards that are all known could reach at
most, along these answers. Without a limit it is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.common import arguments
from benchmarks.common.answer_cache import AnswerCache
from benchmarks.common.prompt_intervals import statistic_and_interval
from benchmarks.quality.instruction_depth import INSTRUCTIONS
from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.evaluation.win_rates_and_fluency import value_and_interval_text
from pad_vllm.steering.comparison_conditions import instructed_conditions, unguided_condition
from pad_vllm.steering.guided_answers import AnswerBatch, DecodingSettings, DrawnAnswer
from pad_vllm.text.chat_template import chat_token_ids, load_chat_tokenizer
from pad_vllm.text.conversation import Conversation
from pad_vllm.text.preference_text import with_instruction
from pad_vllm.training.sampling.sample_responses import read_prompts

CANDIDATES = (10, 20, 32, 50, 100)
GUARDS = (0.15, 0.06, 0.03, 0.01)


class TokenGaps(NamedTuple):
    """Of the n tokens of an answer."""

    gap: Tensor
    """[n] log p under the told base less that under the base, in nats."""

    rank: Tensor
    """[n] tokens that the base finds likelier."""

    share: Tensor
    """[n] probability under the base, over its best token's."""


Limit = Callable[[TokenGaps], Tensor]
"""[n], whether a token is within the limit."""

LIMITS: Mapping[str, Limit] = {
    **{f"{k} candidates": lambda tokens, k=k: tokens.rank < k for k in CANDIDATES},
    **{f"min-p {p:g}": lambda tokens, p=p: tokens.share >= p for p in GUARDS},
}


class GapReader:
    """Reads answers with a base, with and without an instruction in the prompt."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer

    @torch.no_grad()
    def read(self, prompt: Conversation, answer: DrawnAnswer, instruction: str) -> TokenGaps:
        """The gaps of an answer's tokens, whoever drew it."""
        plain = self._log_p(prompt.messages(), answer)
        told = self._log_p(with_instruction(prompt.messages(), instruction), answer)
        ids = torch.tensor(answer.token_ids)[:, None]
        chosen = plain.gather(1, ids)
        return TokenGaps(
            (told.gather(1, ids) - chosen)[:, 0],
            (plain > chosen).sum(1),
            (chosen[:, 0] - plain.max(1).values).exp(),
        )

    def _log_p(self, messages: list[dict[str, str]], answer: DrawnAnswer) -> Tensor:
        prompt = chat_token_ids(self._tokenizer, messages)
        ids = torch.tensor([[*prompt, *answer.token_ids][:-1]])
        count = len(answer.token_ids)
        logits = self._model(ids, logits_to_keep=count).logits[0]
        return logits.float().log_softmax(-1)


def reachable_way(plain: Sequence[TokenGaps], told: Sequence[TokenGaps], limit: Limit) -> Any:
    """[way, low, high] of what told answers keep within the limit, with its 95% interval over the prompts."""
    sums = [
        (float(p.gap.mean()), float(t.gap.mean()), float((t.gap * limit(t)).mean()))
        for p, t in zip(plain, told, strict=True)
    ]
    return statistic_and_interval(sums, _way)


def _way(means: np.ndarray) -> np.ndarray:
    plain, told, within = np.moveaxis(means, -1, 0)
    return (within - plain) / (told - plain)


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Markdown, a row a limit."""
    lines = [
        f"| limit | {' | '.join(rows)} |",
        f"| --- |{' ---: |' * len(rows)}",
    ]
    for limit in LIMITS:
        cells = [value_and_interval_text(row["way"][limit]) for row in rows.values()]
        lines.append(f"| {limit} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__, base="qwen2.5-coder-0.5b", adapter=None)
    arguments.add_prompts_option(parser)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--limit", type=int, help="number of prompts (default: all)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--dimensions", nargs="+", default=["friendly", "funny", "brief", "formal"])
    args = parser.parse_args()
    instructions = {name: INSTRUCTIONS[name] for name in args.dimensions}
    prompts = read_prompts(args.prompts)[: args.limit]
    conditions = [unguided_condition(), *instructed_conditions(instructions)]
    decoding = DecodingSettings(0.7, args.tokens, dtype=args.dtype)
    batch = AnswerBatch(args.base, None, prompts, conditions, [decoding])
    cache = AnswerCache(args.out.with_suffix(".answers.jsonl"))
    ((plain, *told),) = cache.draw(batch)
    folder = resolve_base(args.base)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, args.dtype)).eval()
    reader = GapReader(model, load_chat_tokenizer(folder, args.base, None))
    rows: dict[str, Any] = {}
    for (name, instruction), answers in zip(instructions.items(), told, strict=True):
        read = [
            [reader.read(p, a, instruction) for p, a in zip(prompts, some, strict=True)]
            for some in (plain, answers)
        ]
        way = {name: reachable_way(*read, limit) for name, limit in LIMITS.items()}
        rows[name] = {"instruction": instruction, "way": way}
    result = {
        "command": arguments.command_line(),
        "prompts": len(prompts),
        "tokens": args.tokens,
        "dtype": args.dtype,
        "rows": rows,
        "table": table(rows),
    }
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
