"""Does a preference depend on how it is worded? Rewards of several wordings of each instruction.

    python -m benchmarks.quality.paraphrases --prompts prompts.jsonl --out paraphrases.json

The base reads plain answers with every wording in the prompt; two wordings agree as far as their rewards of
the candidates correlate, under the base. Beside the wordings of one instruction stand those of different
ones: where the first agree and the second do not, rewards follow the meaning of an instruction and not its
words.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import arguments
from benchmarks.common.base_reader import open_reader
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.choices.candidate_reader import CandidateReader
from pad_vllm.evaluation.win_rates_and_fluency import value_and_interval_text
from pad_vllm.steering.comparison_conditions import unguided_condition
from pad_vllm.steering.guided_answers import (
    AnswerBatch,
    Conversations,
    DecodingSettings,
    DrawnAnswer,
    draw_answers,
)
from pad_vllm.training.sampling.sample_responses import read_prompts

WORDINGS = {
    "positive": (
        "Answer in a very positive, upbeat and optimistic way.",
        "Be cheerful and hopeful in your answer.",
        "Please look on the bright side when you answer.",
        "Write with enthusiasm and good spirits.",
        "I would like an encouraging, sunny answer.",
    ),
    "simple": (
        "Use plain, simple words and short sentences, as if explaining to a five-year-old child.",
        "Explain it so that a small child understands.",
        "Use easy words only.",
        "Keep the language basic and the sentences short.",
        "I am not good at reading, please write as simply as you can.",
    ),
    "friendly": (
        "Answer in a warm, friendly and casual tone, as if talking to a good friend.",
        "Talk to me like a close friend.",
        "Be relaxed and kind in how you answer.",
        "Use a chatty, informal tone.",
        "Answer warmly, the way a good neighbour would.",
    ),
    "formal": (
        "Answer in a formal, professional and academic style.",
        "Write as for a scholarly journal.",
        "Keep a serious, official tone.",
        "Use the language of a business report.",
        "Please be formal and precise in your answer.",
    ),
}
"""Name of an instruction -> five wordings of it."""


def correlate_rewards(
    reader: CandidateReader,
    prompts: Conversations,
    answers: Sequence[DrawnAnswer],
    instructions: Sequence[str],
) -> Tensor:
    """Correlations of the rewards that instructions give to the base's candidates.

    Args:
        reader: Of the base.
        prompts: One an answer.
        answers: The base's plain answers.
        instructions: S texts.

    Returns:
        [S, S] float64.
    """
    products = torch.zeros(len(instructions), len(instructions), dtype=torch.float64)
    for prompt, answer in zip(prompts, answers, strict=True):
        candidates = reader.candidates(prompt, answer)
        rewards = torch.stack(
            [
                reader.instruction_rewards(prompt, answer, instruction, candidates)
                for instruction in instructions
            ]
        )
        products += torch.einsum("nk,ink,jnk->ij", candidates.p, rewards, rewards)
    size = products.diagonal().sqrt()
    return products / (size[:, None] * size)


def agreement(
    correlations: Tensor, wordings: Mapping[str, Sequence[str]]
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """How far the wordings of one instruction agree, and those of different ones.

    Returns:
        A row an instruction, with mean and range of both; and the means over all.
    """
    owners = [name for name, texts in wordings.items() for _ in texts]
    same: dict[str, list[float]] = {name: [] for name in wordings}
    other: dict[str, list[float]] = {name: [] for name in wordings}
    for i, first in enumerate(owners):
        for j, second in enumerate(owners):
            if i < j:
                for name in {first, second}:
                    (same if first == second else other)[name].append(float(correlations[i, j]))
    rows = [
        {"wish": name, "same": _mean_and_range(same[name]), "other": _mean_and_range(other[name])}
        for name in wordings
    ]
    means = {
        "same": round(statistics.mean(v for values in same.values() for v in values), 3),
        "other": round(statistics.mean(v for values in other.values() for v in values), 3),
    }
    return rows, means


def _mean_and_range(values: Sequence[float]) -> list[float]:
    return [round(v, 3) for v in (statistics.mean(values), min(values), max(values))]


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line an instruction."""
    lines = [
        "| instruction | its wordings agree | with other instructions' |",
        "| --- | --- | --- |",
    ]
    for row in rows:
        cells = [value_and_interval_text(row[name]) for name in ("same", "other")]
        lines.append(f"| {row['wish']} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__)
    arguments.add_prompts_option(parser)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    adapter = load_adapter(resolve_adapter(args.adapter))
    prompts = read_prompts(args.prompts)
    decoding = DecodingSettings(0.7, args.tokens, adapter.config.top_k, dtype="float32")
    batch = AnswerBatch(args.base, None, prompts, [unguided_condition()], [decoding])
    ((answers,),) = draw_answers(batch)
    instructions = [text for texts in WORDINGS.values() for text in texts]
    reader = open_reader(args.base, adapter)
    correlations = correlate_rewards(reader, prompts, answers, instructions)
    rows, means = agreement(correlations, WORDINGS)
    print("\n".join(table(rows)))
    result = {
        "command": arguments.command_line(),
        "prompts": len(prompts),
        "wordings": WORDINGS,
        "rows": rows,
        "means": means,
        "correlations": [[round(v, 3) for v in row] for row in correlations.tolist()],
    }
    arguments.write_result(args.out, result)


if __name__ == "__main__":
    main()
