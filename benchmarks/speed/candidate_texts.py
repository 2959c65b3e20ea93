"""What another tokenizer costs on the host: the reward model's tokens of every candidate, row by row.

    python -m benchmarks.speed.candidate_texts --out candidate_texts.json

No engine. Each base answers --rows prompts with Transformers, sampled from its 20 best tokens, which are the
candidates. Then each step's rows are translated for a reward model with the other's tokenizer, twice, in an
order that alternates: with starts of words and remembered candidates, and as it was before, each candidate
encoded again in a window of six tokens. Milliseconds of CPU time a row and step, on one thread:
candidates, the tree of their tokens, the token that was taken. Medians over the steps, as is the ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.common import arguments
from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.engines.reward_model.scoring_request import build_candidate_tree
from pad_vllm.steering.evaluation_prompts import STEERING_PROMPTS
from pad_vllm.text.token_alignment import AlignedTokens, TokenAligner
from pad_vllm.text.word_starts import WordStarts

K = 20


class Answers(NamedTuple):
    """Of --rows prompts."""

    taken: list[list[int]]  # [steps][rows] tokens
    candidates: list[list[list[int]]]  # [steps][rows][K] tokens, best first


@torch.inference_mode()
def answers_of(folder: str, tokenizer: Any, num_rows: int, num_steps: int) -> Answers:
    """The base's answers at temperature 1."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    lines = STEERING_PROMPTS.read_text().splitlines()
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    texts = [lines[row % len(lines)] for row in range(num_rows)]
    inputs: Any = tokenizer(texts, padding=True, return_tensors="pt")
    mask, cache = inputs["attention_mask"], None
    fed: Tensor = inputs["input_ids"]
    answers = Answers([], [])
    source = torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        output = model(
            fed, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        z, ids = output.logits[:, -1].topk(K)
        fed = ids.gather(1, torch.multinomial(z.softmax(-1), 1, generator=source))
        cache, mask = output.past_key_values, torch.cat((mask, torch.ones_like(mask[:, :1])), 1)
        answers.taken.append(fed[:, 0].tolist())
        answers.candidates.append(ids.tolist())
    return answers


class Variant(NamedTuple):
    """One of the two ways to follow the rows."""

    rows: list[AlignedTokens]
    from_words: bool
    """Whether starts of words are known; without them no candidate is remembered."""

    def step_ms(self, candidates: Sequence[Sequence[int]], taken: Sequence[int]) -> float:
        """Milliseconds a row of one step."""
        unknown = {"last": lambda *_, **__: None, "ends_before_blank": lambda *_: False}
        with patch.multiple(WordStarts, **unknown) if not self.from_words else nullcontext():
            started = time.process_time()
            for row, ids, token in zip(self.rows, candidates, taken, strict=True):
                build_candidate_tree(row.tokens, row.candidate_changes(ids), exact=True)
                row.extend([token])
            return (time.process_time() - started) * 1e3 / len(self.rows)


def measure(base: Any, persrm: Any, answers: Answers) -> dict[str, float]:
    """Medians over the steps, of all rows at once."""
    prompt = base.encode("What should I know before I get a dog?")
    variants = []
    for from_words in (True, False):
        aligner = TokenAligner(base, persrm)
        variants.append(Variant([aligner.start(prompt) for _ in answers.taken[0]], from_words))
    after, before = [], []
    for number, step in enumerate(zip(answers.candidates, answers.taken, strict=True)):
        order = (0, 1) if number % 2 else (1, 0)
        ms = {which: variants[which].step_ms(*step) for which in order}
        after.append(ms[0])
        before.append(ms[1])
    now, then = ([row.tokens for row in variant.rows] for variant in variants)
    assert now == then
    ratios = [b / a for a, b in zip(after, before, strict=True)]
    return {
        "before_ms": round(statistics.median(before), 3),
        "after_ms": round(statistics.median(after), 3),
        "first_step_ms": round(after[0], 3),
        "ratio": round(statistics.median(ratios), 2),
    }


def table(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """The result as Markdown lines."""
    lines = [
        "| base | tokenizer of the reward model | rows | before, ms a row and step | now | before / now |",
        "| --- | --- |" + " --: |" * 4,
    ]
    for one in measured:
        times = f"{one['before_ms']:.2f} | {one['after_ms']:.2f} | {one['ratio']:.1f}"
        lines.append(f"| {one['base']} | {one['persrm']} | {one['rows']} | {times} |")
    return lines


def main() -> None:
    """Run the command line in the module's docstring."""
    parser = arguments.make_parser(__doc__, base=None, adapter=None)
    parser.add_argument("--bases", nargs=2, default=["smollm2-135m", "gemma3-270m"])
    parser.add_argument("--rows", type=int, nargs="+", default=[16])
    parser.add_argument("--steps", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folders = {name: resolve_base(name) for name in args.bases}
    tokenizers = {name: AutoTokenizer.from_pretrained(folder) for name, folder in folders.items()}
    measured = []
    for base, persrm in (args.bases, args.bases[::-1]):
        for num_rows in args.rows:
            answers = answers_of(folders[base], tokenizers[base], num_rows, args.steps)
            numbers = measure(tokenizers[base], tokenizers[persrm], answers)
            measured.append({"base": base, "persrm": persrm, "rows": num_rows, **numbers})
    result = {"command": arguments.command_line(), "measured": measured, "table": table(measured)}
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
