"""What a server's own answers teach a profile that learns from conversations: the gain of the loop.

    python -m benchmarks.users.conversation_loop --out conversation_loop.json

Dialogues of --turns questions, each answered without the ones before it, in three ways: plain; guided by one
dimension with weight 1 at the adapter's strength; told, with the dimension's instruction in the prompt, which
the dialogue does not contain. Each is read as `--learn-from-conversations` reads it, by the first --read
prompts: 0 is what a dialogue of the base's own answers teaches, 1 what the dimension's own instruction does
(`as_read`: before this is measured). An answer that was guided by w teaches gain times
w, so a profile that is guided by what it has read of its own answers ends at w / (1 - gain), and grows
without end from a gain of 1 on. `gain` is what guided dialogues are read as in their own dimension, less what
plain ones are. The row "sentence" is what the instruction itself teaches, by the answered prompts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.common import arguments
from benchmarks.common.answer_cache import AnswerCache
from benchmarks.common.base_reader import open_reader
from benchmarks.users.user_dialogues import Dialogue, dialogue_messages
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.choices.candidate_reader import CandidateReader
from pad_vllm.choices.dialogue_units import DialogueUnits, UnitsReader
from pad_vllm.choices.reward_space import RewardSpace
from pad_vllm.choices.sentence_weights import (
    DIALOGUE_PROMPTS,
    SentenceReader,
    sentence_prompts,
)
from pad_vllm.steering.comparison_conditions import (
    guided_conditions,
    instructed_conditions,
    instructions_of,
    unguided_condition,
)
from pad_vllm.steering.guided_answers import (
    AnswerBatch,
    Conversations,
    DecodingSettings,
    DrawnAnswer,
)
from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.text.preference_text import with_instruction
from pad_vllm.training.sampling.sample_responses import read_prompts

PLAIN, GUIDED, TOLD, SENTENCE = "plain", "guided", "told", "sentence"

Weights = dict[str, float]
"""Dimension -> weight."""


def make_dialogues(
    prompts: Conversations, answers: Sequence[DrawnAnswer], turns: int
) -> list[Dialogue]:
    """Dialogues of consecutive prompts.

    Args:
        prompts: The questions.
        answers: One a prompt.
        turns: Questions of each dialogue.
    """
    pairs = list(zip(prompts, answers, strict=True))
    return [pairs[start : start + turns] for start in range(0, len(pairs) - turns + 1, turns)]


def taught_by_sentences(
    reader: CandidateReader,
    prompts: Conversations,
    answers: Sequence[DrawnAnswer],
    instructions: Mapping[str, str],
) -> dict[str, Weights]:
    """What each dimension's instruction teaches, not scaled.

    Args:
        reader: Of the base, with the adapter's heads.
        prompts: That instructions stand behind.
        answers: The base's plain ones.
        instructions: By dimension.
    """
    space = RewardSpace(reader)
    changes = {name: partial(with_instruction, text=text) for name, text in instructions.items()}
    space.read(prompts, answers, changes)
    return {name: space.project(name, reader.model.dimensions)[0] for name in instructions}


def read_dialogues(
    sentences: SentenceReader, dialogues: Sequence[Dialogue], dimensions: Sequence[str], read: int
) -> tuple[list[Weights], float]:
    """Weights of each dialogue, not scaled, and the CPU seconds that one took on average.

    Args:
        sentences: That has drawn its answers.
        dialogues: To be read.
        dimensions: Of the adapter.
        read: How many prompts they are read by.
    """
    begin = time.process_time()
    found = [
        sentences.dialogue_weights(dialogue_messages(dialogue), read).tolist()
        for dialogue in dialogues
    ]
    seconds = (time.process_time() - begin) / len(dialogues)
    return [dict(zip(dimensions, w, strict=True)) for w in found], seconds


def result_row(
    way: str, name: str, as_read: Sequence[Weights], read: int, units: DialogueUnits
) -> dict[str, Any]:
    """Means over dialogues.

    Args:
        way: How answers were drawn.
        name: The dimension whose weight is `own`.
        as_read: Weights of each dialogue, not scaled.
        read: By how many prompts.
        units: Of dialogues that are read by so many.
    """
    weights = [
        dict(zip(w, units.measure(torch.tensor(list(w.values()))).tolist(), strict=True))
        for w in as_read
    ]
    means = {d: statistics.mean(w[d] for w in weights) for d in weights[0]}
    own = [w[name] for w in weights]
    error = statistics.stdev(own) / len(own) ** 0.5 if len(own) > 1 else 0.0
    other = max((d for d in means if d != name), key=lambda d: abs(means[d]))
    return {
        "way": way,
        "dimension": name,
        "read": read,
        "own": round(means[name], 3),
        "error": round(error, 3),
        "other": round(means[other], 3),
        "other_dimension": other,
        "weights": [_rounded(w) for w in weights],
        "as_read": [_rounded(w) for w in as_read],
    }


def _rounded(w: Weights) -> Weights:
    return {d: round(x, 3) for d, x in w.items()}


def gains(rows: Sequence[Mapping[str, Any]], read: int) -> Weights:
    """Dimension -> gain, of dialogues that were read by so many prompts."""
    own = {(row["way"], row["dimension"]): row["own"] for row in rows if row["read"] == read}
    return {
        name: round(own[GUIDED, name] - own[PLAIN, name], 3) for way, name in own if way == PLAIN
    }


def table(rows: Sequence[Mapping[str, Any]], dimensions: Sequence[str]) -> list[str]:
    """Markdown: a line a way and number of prompts, a column a dimension: own weight, and largest other."""
    lines = [
        f"| dialogue | prompts | {' | '.join(dimensions)} |",
        f"| --- | ---: |{' --- |' * len(dimensions)}",
    ]
    for way, read in dict.fromkeys((row["way"], row["read"]) for row in rows):
        found = {r["dimension"]: r for r in rows if (r["way"], r["read"]) == (way, read)}
        cells = [
            f"{found[d]['own']:.2f} ± {found[d]['error']:.2f}; "
            f"{found[d]['other_dimension']} {found[d]['other']:.2f}"
            for d in dimensions
        ]
        lines.append(f"| {way} | {read} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__)
    arguments.add_prompts_option(parser)
    parser.add_argument("--turns", type=int, default=3, help="questions of a dialogue")
    parser.add_argument("--dialogues", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--read", type=int, nargs="+", default=[DIALOGUE_PROMPTS])
    args = parser.parse_args()
    folder = resolve_adapter(args.adapter)
    adapter = load_adapter(folder)
    instructions = instructions_of(adapter.config)
    prompts = read_prompts(args.prompts)[: args.dialogues * args.turns]
    decoding = DecodingSettings(
        args.temperature,
        args.tokens,
        adapter.config.top_k,
        dtype="float32",
        chat_template=adapter.config.chat_template,
    )
    conditions = [
        unguided_condition(),
        *guided_conditions(GUIDED, list(instructions), [adapter.config.beta], signs=(1,)),
        *instructed_conditions(instructions),
    ]
    batch = AnswerBatch(args.base, folder, prompts, conditions, [decoding])
    (answers,) = AnswerCache(args.out.with_suffix(".answers.jsonl")).draw(batch)

    reader = open_reader(args.base, adapter)
    sentences = SentenceReader(reader, sentence_prompts())
    while sentences.read_ahead():
        pass
    dimensions, names = reader.model.dimensions, list(instructions)
    by_condition = [make_dialogues(prompts, drawn, args.turns) for drawn in answers]
    plain, guided, told = (
        by_condition[0],
        by_condition[1 : 1 + len(names)],
        by_condition[1 + len(names) :],
    )
    rows, seconds, units = [], {}, {}
    for read in args.read:
        units[read] = UnitsReader(sentences, instructions, read).units()
        found, seconds[read] = read_dialogues(sentences, plain, dimensions, read)
        rows += [result_row(PLAIN, name, found, read, units[read]) for name in names]
        for way, of_way in ((GUIDED, guided), (TOLD, told)):
            for name, dialogues in zip(names, of_way, strict=True):
                weights, _ = read_dialogues(sentences, dialogues, dimensions, read)
                rows.append(result_row(way, name, weights, read, units[read]))
    taught = taught_by_sentences(reader, prompts, answers[0], instructions)
    rows += [
        result_row(SENTENCE, name, [taught[name]], len(prompts), units[args.read[0]])
        for name in names
    ]
    lengths = [len(chat_token_ids(reader.tokenizer, dialogue_messages(one))) for one in plain]
    result = {
        "command": arguments.command_line(),
        "beta": adapter.config.beta,
        "gain": {str(read): gains(rows, read) for read in args.read},
        "seconds": {str(read): round(one, 2) for read, one in seconds.items()},
        "units": {
            str(read): {
                kind: _rounded(dict(zip(dimensions, values.tolist(), strict=True)))
                for kind, values in one._asdict().items()
            }
            for read, one in units.items()
        },
        "dialogue_tokens": round(statistics.mean(lengths)),
        "rows": rows,
        "table": table(rows, names),
    }
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
