"""What does the same way cost by each method? Guidance beside its peers, taught by the same sentences.

    python -m benchmarks.paper.equal_way --base BASE --adapter ADAPTER --learn learn.txt --out equal_way.json
    python -m benchmarks.paper.equal_way --results instruction_steering.json ... --out equal_way_known.json

ADAPTER's heads and learned prefixes, the sentence untrained (`pad_preference`), an adapter with a trunk
(--trunk), a bias over the vocabulary and the peers of `peer_methods.py`, at several strengths each; --learn:
prompts that the bias and steering vectors are made from. Strengths have no common unit. So perplexity,
repetition and relevance are compared where the way (`pad_vllm/steering/way.py`: 0 is plain answers, 1 is
asking in the prompt) is --way, and ways where perplexity is --perplexity, both on the line between two
strengths. Step times are those of results that exist, on other bases; what none has is not guessed. With
--results nothing is drawn: the points are those of `quality/instruction_steering.py`, which has no relevance.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from benchmarks.common import arguments
from benchmarks.common.answer_cache import AnswerCache
from benchmarks.paper.activation_steering import (
    learning_answers,
    mean_directions,
    steering_vectors,
)
from benchmarks.paper.peer_logits_processors import CombinedValuesProcessor, even_weights
from benchmarks.paper.peer_methods import UNGUIDED, draw_untrained_methods
from benchmarks.paper.transformers_decoding import TransformersDecoding
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.manifest import PrefixConfig
from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base
from pad_vllm.persrm import PersRM
from pad_vllm.steering.comparison_conditions import (
    Condition,
    guided_conditions,
    instructions_of,
    prefix_conditions,
)
from pad_vllm.steering.dimension_judges import DimensionJudges
from pad_vllm.steering.guided_answers import (
    AnswerBatch,
    Conversations,
    DecodingSettings,
    DrawnAnswer,
)
from pad_vllm.steering.steering_metrics import ConditionMetrics, metrics_table
from pad_vllm.text.chat_template import load_chat_tokenizer
from pad_vllm.training.objective.training_model import save_bias_adapter
from pad_vllm.training.sampling.sample_responses import read_prompts

RESULTS = Path(__file__).parents[1] / "results"
GUARD = {"pad_min_p": 0.03, "pad_no_repeat": 3}

Drawn = tuple[Condition, list[DrawnAnswer]]


class Point(NamedTuple):
    """A method at one strength, beside the plain answers."""

    way: float
    perplexity: float  # over the plain answers'
    repeated: float  # share of repeated 4-grams, less the plain answers'
    relevance: float  # over the plain answers'
    strength: float


PLAIN = Point(0.0, 1.0, 0.0, 1.0, 0.0)
"""Where every method begins."""

STEP_TIMES: dict[str, tuple[str, int, int]] = {
    "heads": ("forks_h100", 32, 16),
    "prefix": ("forks_instructions_cpu", 12, 16),
    "sentence": ("forks_instructions_cpu", 12, 16),
    "trunk": ("forks_instructions_cpu", 12, 16),
}
"""Method -> result, fork layer and batch whose step time is cited; the last three fork at 0.4."""


def guided_batches(args: argparse.Namespace, adapter: str, prefixes: PrefixConfig | None) -> Any:
    """(adapter's folder or None, engine settings, conditions) of each engine.

    Args:
        args: With the strengths.
        adapter: Folder of heads and prefixes.
        prefixes: The adapter's, if any.
    """
    heads = [_guarded(c) for c in guided_conditions("heads", args.dimensions, args.heads, (1,))]
    learned: list[Condition] = []
    if prefixes is not None:
        found = prefix_conditions(prefixes, args.dimensions, args.prefix)
        learned = [condition for condition in found if 1 in condition.aims.values()]
    reading = {"instructions": True, "max_instruction_tokens": 128}
    yield adapter, reading if learned else {}, [*heads, *learned]
    if args.sentence:
        yield None, reading, list(_sentence_conditions(args, adapter))
    if args.trunk:
        trunk = guided_conditions("trunk", args.dimensions, args.trunk_betas, (1,))
        yield args.trunk, {}, [_guarded(condition) for condition in trunk]


def _guarded(condition: Condition) -> Condition:
    return replace(condition, request_arguments=GUARD)


def _sentence_conditions(args: argparse.Namespace, adapter: str) -> Iterator[Condition]:
    sentences = instructions_of(load_adapter(adapter).config)
    for name, beta in itertools.product(args.dimensions, args.sentence):
        requested = {"pad_preference": sentences[name], "pad_beta": beta, "pad_min_p": 0.03}
        yield Condition(f"sentence +{name}", beta=beta, aims={name: 1}, request_arguments=requested)


def draw_constants(
    decoding: TransformersDecoding, prompts: Conversations, folder: Path, args: argparse.Namespace
) -> Iterator[Drawn]:
    """Answers under a bias over the vocabulary, by PAD's own rule and guard.

    Args:
        decoding: Of the base.
        prompts: That are answered.
        folder: Of an adapter that has constants alone.
        args: With their strengths.
    """
    adapter = load_adapter(str(folder))
    value = PersRM.from_adapter(decoding.model, adapter)
    for condition in guided_conditions("bias", args.dimensions, args.bias, (1,)):
        settings = replace(adapter.config, beta=condition.beta, min_p=GUARD["pad_min_p"])
        w = even_weights(value, *condition.weights)
        ends = [decoding.tokenizer.eos_token_id]
        with CombinedValuesProcessor(
            decoding.model, [value], w, lambda rewards: rewards[0], settings, ends
        ) as processor:
            yield condition, decoding.draw(prompts, UNGUIDED, processor=lambda _, p=processor: p)


def lines_by_method(records: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Point]]:
    """(method, dimension) -> its points, plain answers first, by rising strength."""
    lines: dict[tuple[str, str], list[Point]] = defaultdict(lambda: [PLAIN])
    for record in sorted(records, key=lambda record: float(record["beta"])):
        method, plus, dimension = record["name"].partition(" +")
        if plus:
            way = record["way"][dimension][0]
            lines[method, dimension].append(
                Point(
                    way,
                    record["perplexity"],
                    record["repeated_more"],
                    record.get("relevance", math.nan),
                    record["beta"],
                )
            )
    return dict(lines)


_NAMES = {"heads only": "heads", "learned prefix": "prefix", "instruction": "sentence"}
"""What `instruction_steering.py` calls a method -> its name here."""


def known_records(
    results: Sequence[Mapping[str, Any]], dimensions: Sequence[str]
) -> list[dict[str, Any]]:
    """Records for `lines_by_method` of results of `instruction_steering.py`; each guard is a method.

    Args:
        results: As their files have them; a method is that of the first that has it.
        dimensions: Those that are compared; rows of others are left out.
    """
    first: dict[str, int] = {}
    records = []
    for number, result in enumerate(results):
        for row in result["rows"]:
            if (
                row["method"] not in _NAMES
                or row["beta"] <= 0
                or row["instruction"] not in dimensions
            ):
                continue
            method = f"{_NAMES[row['method']]}, min_p {row['min_p']:g}"
            if first.setdefault(method, number) == number:
                costs = {key: row[key] for key in ("beta", "perplexity", "repeated_more")}
                way = {row["instruction"]: row["way"]}
                records.append({"name": f"{method} +{row['instruction']}", "way": way, **costs})
    return records


def point_where(points: Sequence[Point], coordinate: str, value: float) -> Point | None:
    """The method where a coordinate first is a value, between two strengths; None where no two enclose it.

    Args:
        points: Of one method, the plain answers' first.
        coordinate: "way" or "perplexity".
        value: Of the coordinate.
    """
    for low, high in itertools.pairwise(points):
        begin, end = getattr(low, coordinate), getattr(high, coordinate)
        if begin <= value <= end and begin < end:
            share = (value - begin) / (end - begin)
            return Point(*(a + share * (b - a) for a, b in zip(low, high, strict=True)))
    return None


def comparison(
    lines: Mapping[tuple[str, str], Sequence[Point]], way: float, perplexity: float
) -> list[dict[str, Any]]:
    """A row a method: its means over the dimensions, and what each gave.

    Args:
        lines: Of `lines_by_method`.
        way: At which the costs are compared.
        perplexity: At which the ways are compared.
    """
    by_method: dict[str, dict[str, Sequence[Point]]] = defaultdict(dict)
    for (method, dimension), points in lines.items():
        by_method[method][dimension] = points
    rows = []
    for method, dimensions in by_method.items():
        at_way = {d: point_where(points, "way", way) for d, points in dimensions.items()}
        at_cost = {
            d: point_where(points, "perplexity", perplexity) for d, points in dimensions.items()
        }
        found = [point for point in at_way.values() if point is not None]
        row: dict[str, Any] = {"method": method, "reached": len(found), "of": len(dimensions)}
        row["furthest"] = {d: max(p.way for p in points) for d, points in dimensions.items()}
        row["at_way"] = {d: _rounded(point) for d, point in at_way.items()}
        row["at_perplexity"] = {d: _rounded(point) for d, point in at_cost.items()}
        if len(found) == len(dimensions):
            row["perplexity"] = math.exp(statistics.mean(math.log(p.perplexity) for p in found))
            row["repeated"] = statistics.mean(p.repeated for p in found)
            relevance = statistics.mean(p.relevance for p in found)
            row["relevance"] = None if math.isnan(relevance) else relevance
        costs = [point.way for point in at_cost.values() if point is not None]
        row["way"] = statistics.mean(costs) if len(costs) == len(dimensions) else None
        rows.append(row)
    return rows


def _rounded(point: Point | None) -> dict[str, float | None] | None:
    if point is None:
        return None
    return {k: None if math.isnan(v) else round(v, 3) for k, v in point._asdict().items()}


def step_time_text(method: str) -> str:
    """The cited step time of a method over plain vLLM's; "not measured" where no result has it."""
    method = method.partition(",")[0]
    if method not in STEP_TIMES:
        return "not measured"
    name, fork_layer, batch = STEP_TIMES[method]
    result = json.loads((RESULTS / f"{name}.json").read_text())
    (record,) = (
        r for r in result["records"] if (r["fork_layer"], r["batch"]) == (fork_layer, batch)
    )
    return f"{record['ratio']:.2f}x ({name}, {result['base']}, batch {batch})"


def table(rows: Sequence[Mapping[str, Any]], way: float, perplexity: float) -> list[str]:
    """Markdown, a line a method; a dash where it does not get there with every dimension."""
    lines = [
        (
            f"| method | strength at way {way:g} | perplexity | repeated | relevance "
            f"| way at {perplexity:g}x perplexity | furthest way | step time, cited |"
        ),
        "| --- | --- | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for row in rows:
        at_way, furthest = row["at_way"], row["furthest"]
        strengths = ", ".join(
            f"{d} {point['strength']:.2f}" if point else f"{d} -" for d, point in at_way.items()
        )
        costs = ["-"] * 3
        if "perplexity" in row:
            costs = [f"{row['perplexity']:.2f}x", f"{100 * row['repeated']:+.1f}"]
            costs.append("-" if row["relevance"] is None else f"{row['relevance']:.2f}x")
        reached = "-" if row["way"] is None else f"{row['way']:.2f}"
        most = ", ".join(f"{d} {value:.2f}" for d, value in furthest.items())
        cells = [row["method"], strengths, *costs, reached, most, step_time_text(row["method"])]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments.make_parser(__doc__)
    strengths = partial(parser.add_argument, type=float, nargs="*")
    parser.add_argument("--dimensions", nargs="+", default=["friendly", "funny"])
    parser.add_argument("--trunk", help="folder of an adapter with a trunk")
    parser.add_argument("--learn", type=Path, help="prompts of steering vectors; to draw answers")
    parser.add_argument("--results", type=Path, nargs="+", help="files to take the points from")
    arguments.add_prompts_option(parser)
    parser.add_argument("--limit", type=int, help="number of prompts (default: all)")
    strengths("--heads", default=[0.4, 0.8])
    strengths("--prefix", default=[0.8, 1.1])
    strengths("--sentence", default=[1.0, 2.0])
    strengths("--trunk-betas", default=[0.5, 1.0])
    strengths("--bias", default=[1.0, 2.0])
    strengths("--activation", default=[0.1, 0.2, 0.4])
    strengths("--contexts", default=[0.5, 1.0])
    strengths("--filter", default=[-1.0, 0.0])
    parser.add_argument("--way", type=float, default=0.5)
    parser.add_argument("--perplexity", type=float, default=1.25)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--kept", type=Path, help="file of drawn answers (default: beside --out)")
    return parser.parse_args()


def read_points(args: argparse.Namespace) -> dict[str, Any]:
    """Records of results that exist; args: with --results."""
    results = [json.loads(path.read_text()) for path in args.results]
    return {
        "results": [path.name for path in args.results],
        "records": known_records(results, args.dimensions),
    }


@torch.no_grad()
def draw_and_measure(args: argparse.Namespace) -> dict[str, Any]:
    """Records of answers by every method; args: of `parse`."""
    base, folder = resolve_base(args.base), resolve_adapter(args.adapter, args.base)
    adapter = load_adapter(folder)
    instructions = {d: instructions_of(adapter.config)[d] for d in args.dimensions}
    prompts = read_prompts(args.prompts)[: args.limit]
    cache = AnswerCache(args.kept or args.out.with_suffix(".answers.jsonl"))
    settings = DecodingSettings(args.temperature, args.tokens, dtype=args.dtype)
    drawn: list[Drawn] = []
    for one, engine, conditions in guided_batches(args, folder, adapter.config.prefixes):
        batch = AnswerBatch(args.base, one, prompts, conditions, [settings], engine)
        drawn += zip(conditions, cache.draw(batch)[0], strict=True)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, args.dtype)).eval()
    tokenizer = load_chat_tokenizer(base, args.base, None)
    decoding = TransformersDecoding(model, tokenizer, args.temperature, args.tokens)
    learned = learning_answers(decoding, read_prompts(args.learn), instructions)
    vectors = steering_vectors(decoding, learned, instructions)
    value = PersRM.from_adapter(model, adapter)
    peers = list(draw_untrained_methods(decoding, prompts, vectors, value, args, instructions))
    run = args.out.with_suffix(".run")
    config = replace(adapter.config, dimensions=tuple(instructions), prefixes=None)
    save_bias_adapter(config, mean_directions(decoding, learned, instructions).float(), run)
    peers += draw_constants(decoding, prompts, run / "bias", args)
    drawn = [*peers, *drawn]  # the first are the unguided answers
    judges = DimensionJudges(model, tokenizer, instructions)
    conditions, answers = zip(*drawn, strict=True)
    records = ConditionMetrics(judges, prompts).records(conditions, answers)
    return {
        "prompts": len(prompts),
        "temperature": args.temperature,
        "tokens": args.tokens,
        "dtype": args.dtype,
        "records": records,
        "strengths": metrics_table(records),
        "answers": {
            f"{condition.name} @{condition.beta:g}": [answer.text for answer in texts]
            for condition, texts in drawn
        },
    }


def main() -> None:
    """See the module's docstring."""
    args = parse()
    if not args.results and not args.learn:
        raise SystemExit("neither --learn nor --results: give prompts to learn from, or results")
    found = read_points(args) if args.results else draw_and_measure(args)
    rows = comparison(lines_by_method(found["records"]), args.way, args.perplexity)
    facts = {"command": arguments.command_line(), "rows": rows, **found}
    result = {**facts, "table": table(rows, args.way, args.perplexity)}
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
