"""What an instruction in the reward stream does to answers: how far along the way from plain to instructed.

    python -m benchmarks.quality.instruction_steering --base DIR --prompts koala.jsonl \
        --judge-prompts judge40.jsonl --out instruction_steering.json

Every prompt is answered plainly, with each instruction in the prompt, and under each instruction as
`pad_preference`, at several strengths and guards. With --adapter also under its heads and, at
--learned-betas, its learned prefixes; with --contexts by two contexts in Transformers. **Way**: the mean
log-probability of an answer's tokens under the instructed base, less that under the base; 0 is plain answers'
mean, 1 instructed ones'. Wins are over the plain answers, by a classifier of sentence embeddings that was
fitted on other prompts.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.common import arguments
from benchmarks.common.answer_cache import AnswerCache
from benchmarks.common.independent_judges import percent_with_interval, win_rate_and_interval
from benchmarks.paper.peer_logits_processors import TwoContextsProcessor
from benchmarks.paper.transformers_decoding import TransformersDecoding
from benchmarks.quality.instruction_depth import INSTRUCTIONS
from pad_vllm.adapter.manifest import read_config
from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base
from pad_vllm.evaluation.sentence_embeddings import embed
from pad_vllm.evaluation.win_rates_and_fluency import (
    AnswerLoss,
    mean_repeated,
    perplexity,
    value_and_interval_text,
    wins_by_prompt,
)
from pad_vllm.steering import comparison_conditions
from pad_vllm.steering.comparison_conditions import Condition
from pad_vllm.steering.dimension_judges import (
    DimensionJudges,
    judge_accuracies,
    meaning_judges_from_answers,
)
from pad_vllm.steering.guided_answers import (
    AnswerBatch,
    Conversations,
    DecodingSettings,
    DrawnAnswer,
)
from pad_vllm.steering.way import AnswerReading, way_and_interval
from pad_vllm.text.chat_template import load_chat_tokenizer
from pad_vllm.training.sampling.sample_responses import read_prompts

TOLD = "told"


@dataclass(frozen=True)
class Method:
    """One way to follow an instruction."""

    name: str
    instruction: str
    """Its name in INSTRUCTIONS."""

    condition: Condition
    beta: float = 0.0
    min_p: float = 0.0


def preference_methods(
    method: str, preferences: Mapping[str, str], betas: Sequence[float], min_ps: Sequence[float]
) -> Iterator[Method]:
    """Requests with `pad_preference`, at every strength and guard, and with the opposite sign.

    Args:
        method: what the table calls them.
        preferences: name in INSTRUCTIONS -> `pad_preference`: the sentence, or a learned prefix's name.
        betas: strengths; the opposite sign is asked for at the first. None for no requests.
        min_ps: guards.
    """
    settings = [*itertools.product(betas, min_ps), *((-beta, min_ps[0]) for beta in betas[:1])]
    for (name, preference), (beta, min_p) in itertools.product(preferences.items(), settings):
        requested = {"pad_preference": preference, "pad_beta": beta, "pad_min_p": min_p}
        condition = Condition(f"{method} {name} {beta:g} {min_p:g}", request_arguments=requested)
        yield Method(method, name, condition, beta, min_p)


def learned_methods(adapter: str, args: argparse.Namespace) -> Iterator[Method]:
    """Each of an adapter's learned prefixes that has one of the instructions' names."""
    prefixes = read_config(adapter).prefixes
    names = {n: n for n in args.instructions if prefixes is not None and n in prefixes.digests}
    return preference_methods("learned prefix", names, args.learned_betas, args.min_p)


def heads_methods(dimensions: Sequence[str], args: argparse.Namespace) -> Iterator[Method]:
    """Each of an adapter's dimensions that has one of the instructions' names."""
    names = [name for name in dimensions if name in INSTRUCTIONS]
    for name, (beta, min_p) in itertools.product(
        names, itertools.product(args.head_betas, args.head_min_p)
    ):
        label = f"heads {name} {beta:g} {min_p:g}"
        guard = {"pad_min_p": min_p, "pad_no_repeat": 3}
        condition = Condition(label, {name: 1.0}, beta, request_arguments=guard)
        yield Method("heads only", name, condition, beta, min_p)


class AnswerMeasures:
    """Measures answers under one base, and compares them with plain and instructed ones."""

    def __init__(self, judges: DimensionJudges, prompts: Conversations) -> None:
        """judges: with the base, and a classifier of each instruction."""
        self._judges, self._prompts = judges, prompts
        self._plain: dict[str, _Measured] = {}
        self._told: dict[str, _Measured] = {}
        self._known: dict[Any, list[AnswerLoss]] = {}

    def set_references(
        self, name: str, plain: Sequence[DrawnAnswer], told: Sequence[DrawnAnswer]
    ) -> None:
        """The answers between which the way of instruction `name` is measured."""
        self._plain[name], self._told[name] = self._measure(name, plain), self._measure(name, told)

    def record(self, name: str, answers: Sequence[DrawnAnswer]) -> dict[str, Any]:
        """Plain JSON: what the answers are worth as answers to instruction `name`."""
        plain, told, measured = self._plain[name], self._told[name], self._measure(name, answers)
        wins = wins_by_prompt(measured.scores, plain.scores)
        over_told = wins_by_prompt(measured.scores, told.scores)
        return {
            "way": way_and_interval(plain.reading, told.reading, measured.reading),
            "meaning": win_rate_and_interval(wins),
            "meaning_over_told": win_rate_and_interval(over_told),
            "perplexity": round(measured.perplexity / plain.perplexity, 3),
            "repeated_more": round(measured.repeated - plain.repeated, 4),
            "words": round(measured.words / plain.words, 3),
        }

    def _measure(self, name: str, answers: Sequence[DrawnAnswer]) -> _Measured:
        losses, instructed = self._losses(answers, ""), self._losses(answers, INSTRUCTIONS[name])
        texts = [answer.text for answer in answers]
        return _Measured(
            reading=AnswerReading(losses, instructed),
            scores=self._judges.classifiers[name](embed(texts)),
            perplexity=perplexity(losses),
            repeated=mean_repeated(texts),
            words=statistics.mean(len(text.split()) for text in texts),
        )

    def _losses(self, answers: Sequence[DrawnAnswer], instruction: str) -> list[AnswerLoss]:
        key = instruction, tuple(answer.token_ids for answer in answers)
        if key not in self._known:
            unknown = [replace(answer, loss=None) for answer in answers]
            self._known[key] = self._judges.losses(self._prompts, unknown, "", instruction)
        return self._known[key]


@dataclass(frozen=True)
class _Measured:
    reading: AnswerReading
    scores: list[float]
    perplexity: float
    repeated: float
    words: float


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line a condition, and the means over the instructions."""
    lines = [
        "| method | beta | min_p | instruction | way | meaning % | told % | perplexity | repeated | words |",
        "| --- | ---: | ---: | --- | --- | --- | --- | ---: | ---: | ---: |",
    ]
    for row in [*rows, *_means(rows)]:
        way = value_and_interval_text(row["way"])
        strength = f"{row['beta']:g} | {row['min_p']:g}" if row["method"] != TOLD else " | "
        cells = [row["method"], strength, row["instruction"], way]
        cells += [percent_with_interval(row[key]) for key in ("meaning", "meaning_over_told")]
        cells += [f"{row['perplexity']:.2f}x", f"{100 * row['repeated_more']:+.1f}"]
        lines.append(f"| {' | '.join(cells)} | {row['words']:.2f}x |")
    return lines


def _means(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each method and strength, over the instructions; intervals are means of the intervals' ends."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["beta"], row["min_p"]), []).append(row)
    means = []
    for (method, beta, min_p), group in groups.items():
        mean: dict[str, Any] = {"method": method, "beta": beta, "min_p": min_p}
        mean["instruction"] = f"mean of {len(group)}"
        for key in ("way", "meaning", "meaning_over_told"):
            ends = zip(*(row[key] for row in group), strict=True)
            mean[key] = [statistics.mean(values) for values in ends]
        for key in ("perplexity", "repeated_more", "words"):
            mean[key] = statistics.mean(row[key] for row in group)
        means.append(mean)
    return means


def _two_contexts(
    decoding: TransformersDecoding, prompts: Conversations, name: str, beta: float
) -> list[DrawnAnswer]:
    """Answers by the difference between the instructed base and the base, each with its own context."""
    condition = Condition(name, instruction=INSTRUCTIONS[name])

    def processor(batch: Conversations) -> TwoContextsProcessor:
        ids, mask = decoding.padded_ids(batch, condition)
        return TwoContextsProcessor(decoding.model, ids, mask, beta)

    return decoding.draw(prompts, comparison_conditions.unguided_condition(), processor=processor)


def _parser() -> argparse.ArgumentParser:
    parser = arguments.make_parser(__doc__, adapter=None)
    arguments.add_judging_options(parser, tokens=100)
    parser.add_argument("--instructions", nargs="+", default=list(INSTRUCTIONS))
    parser.add_argument("--betas", type=float, nargs="*", default=[1.5, 1.0, 2.0])
    parser.add_argument("--min-p", type=float, nargs="+", default=[0.03, 0.0])
    parser.add_argument("--fork-layer", type=int, help="default: the server's")
    parser.add_argument(
        "--adapter",
        help="heads only and learned prefixes, for dimensions of the instructions' names",
    )
    parser.add_argument("--head-betas", type=float, nargs="*", default=[0.8, 1.2])
    parser.add_argument(
        "--learned-betas", type=float, nargs="*", default=[], help="of its prefixes"
    )
    parser.add_argument("--head-min-p", type=float, nargs="+", default=[0.15, 0.03])
    parser.add_argument("--contexts", type=float, nargs="*", default=[], help="their strengths")
    parser.add_argument("--limit", type=int, help="number of prompts (default: all)")
    return parser


def main() -> None:
    """See the module's docstring."""
    args = _parser().parse_args()
    if args.adapter:
        args.adapter = resolve_adapter(args.adapter, args.base)
    cache = AnswerCache(args.kept or args.out.with_suffix(".answers.jsonl"))
    prompts = read_prompts(args.prompts)[: args.limit]
    judge_prompts = read_prompts(args.judge_prompts)
    sentences = {name: INSTRUCTIONS[name] for name in args.instructions}
    told = comparison_conditions.instructed_conditions(sentences)
    methods = list(preference_methods("instruction", sentences, args.betas, args.min_p))
    if args.adapter:
        methods += learned_methods(args.adapter, args)
        methods += heads_methods(read_config(args.adapter).dimensions, args)
    decoding = DecodingSettings(args.temperature, args.tokens, dtype=args.dtype)
    conditions = [comparison_conditions.unguided_condition(), *told]
    settings: dict[str, Any] = {"instructions": True, "max_instruction_tokens": 128}
    if args.fork_layer is not None:
        settings["fork_layer"] = args.fork_layer
    judged = AnswerBatch(args.base, None, judge_prompts, conditions, [decoding])
    (judge_answers,) = cache.draw(judged)
    batch = replace(
        judged,
        adapter=args.adapter,
        prompts=prompts,
        conditions=[*conditions, *(method.condition for method in methods)],
        engine_settings=settings,
    )
    ((plain, *others),) = cache.draw(batch)
    classifiers = meaning_judges_from_answers(sentences, judge_answers)
    folder = resolve_base(args.base)
    dtype = getattr(torch, args.dtype)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    tokenizer = load_chat_tokenizer(folder, args.base, None)
    measures = AnswerMeasures(DimensionJudges(model, tokenizer, {}, classifiers), prompts)
    rows: list[dict[str, Any]] = []

    def add(method: str, name: str, answers: Sequence[DrawnAnswer], **more: float) -> None:
        row = {"method": method, "instruction": name, "beta": 0.0, "min_p": 0.0, **more}
        rows.append({**row, **measures.record(name, answers)})
        print(table(rows[-1:])[2], flush=True)

    for name, condition, answers in zip(args.instructions, told, others, strict=False):
        assert condition.instruction == INSTRUCTIONS[name]
        measures.set_references(name, plain, answers)
        add(TOLD, name, answers)
    for method, answers in zip(methods, others[len(told) :], strict=True):
        add(method.name, method.instruction, answers, beta=method.beta, min_p=method.min_p)
    transformers = TransformersDecoding(model, tokenizer, args.temperature, args.tokens)
    for beta, name in itertools.product(args.contexts, args.instructions):
        add("two contexts", name, _two_contexts(transformers, prompts, name, beta), beta=beta)
    result = {
        "command": arguments.command_line(),
        "prompts": len(prompts),
        "temperature": args.temperature,
        "tokens": args.tokens,
        "dtype": args.dtype,
        "fork_layer": args.fork_layer,
        "judges": judge_accuracies(classifiers),
        "rows": rows,
        "table": table(rows),
        "answers": {
            condition.name: [answer.text for answer in row]
            for condition, row in zip(batch.conditions, (plain, *others), strict=True)
        },
    }
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
