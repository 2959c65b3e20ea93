"""Does a preference depend on how it is worded? The told base's rewards under several wordings of each wish.

    python benchmarks/paraphrases.py --steering prompts.jsonl --out benchmarks/results/paraphrases.json

Plain answers are read by the base under every wording; two wordings agree as far as what they pay to the
candidates correlates, under the base. Beside the wordings of one wish stand those of different ones: a
direction says the wish, and not the words, where the first agree and the second do not.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import arguments
import torch
from candidates import Reader
from torch import Tensor

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.catalog.name_resolution import resolve_adapter
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


def correlations(
    reader: Reader, prompts: Conversations, said: Sequence[DrawnAnswer], sentences: Sequence[str]
) -> Tensor:
    """[S, S] of the rewards of S sentences."""
    products = torch.zeros(len(sentences), len(sentences), dtype=torch.float64)
    for prompt, answer in zip(prompts, said, strict=True):
        seen = reader.plain(prompt, answer)
        paid = torch.stack([reader.told(prompt, answer, one, seen) for one in sentences])
        products += torch.einsum("nk,ink,jnk->ij", seen.p, paid, paid)
    size = products.diagonal().sqrt()
    return products / (size[:, None] * size)


def agreement(
    found: Tensor, wordings: Mapping[str, Sequence[str]]
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row a wish: its wordings among themselves and against all others'; mean and range."""
    owner = [name for name, some in wordings.items() for _ in some]
    same: dict[str, list[float]] = {name: [] for name in wordings}
    other: dict[str, list[float]] = {name: [] for name in wordings}
    for i, one in enumerate(owner):
        for j, two in enumerate(owner):
            if i < j:
                value = float(found[i, j])
                for name in {one, two}:
                    (same if one == two else other)[name].append(value)
    rows = [
        {"wish": name, "same": _range(same[name]), "other": _range(other[name])}
        for name in wordings
    ]
    means = {
        "same": round(statistics.mean(v for some in same.values() for v in some), 3),
        "other": round(statistics.mean(v for some in other.values() for v in some), 3),
    }
    return rows, means


def _range(values: Sequence[float]) -> list[float]:
    return [round(v, 3) for v in (statistics.mean(values), min(values), max(values))]


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| wish | its wordings agree | with other wishes' |", "| --- | --- | --- |"]
    for row in rows:
        cells = ["{:.2f} ({:.2f} to {:.2f})".format(*row[name]) for name in ("same", "other")]
        lines.append(f"| {row['wish']} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = arguments.parser(__doc__)
    parser.add_argument("--steering", type=Path, required=True, help="prompts of the answers")
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    adapter = load_adapter(resolve_adapter(args.adapter))
    prompts = read_prompts(args.steering)
    drawn = DecodingSettings(0.7, args.tokens, adapter.config.top_k, dtype="float32")
    (said,) = draw_answers(AnswerBatch(args.base, None, prompts, [unguided_condition()], [drawn]))[
        0
    ]
    sentences = [one for some in WORDINGS.values() for one in some]
    found = correlations(Reader.of(args.base, adapter), prompts, said, sentences)
    rows, means = agreement(found, WORDINGS)
    print("\n".join(table(rows)))
    arguments.report(
        args.out,
        {
            "command": arguments.command(),
            "prompts": len(prompts),
            "wordings": WORDINGS,
            "rows": rows,
            "means": means,
            "correlations": [[round(v, 3) for v in row] for row in found.tolist()],
        },
    )


if __name__ == "__main__":
    main()
