"""Do answers follow a preference better by the best of several policies' value functions?

    python -m benchmarks.paper.policy_improvement --of plain=A --of B=B --prompts P --judge-prompts J --out O

psi_i is the score of each dimension that is expected once policy i goes on: heads only, trained by `--teacher
scores` on answers of that policy, plain ones or guided ones (`pad-vllm sample --adapter demo --weights W`).
All adapters have the same dimensions. A preference w, for one dimension or for all at once, gets the rewards

  NAME   r(a) = w^T psi_i(a), of one policy
  mean   the mean over the policies
  most   max_i w^T psi_i(a): generalised policy improvement (Barreto et al. 2017), as in PAD's Theorem 1

each psi less its mean over the candidates under the base, at --times the strength and under the guard of
--adapter, whose instructions the judges are fitted on. Answers come from Transformers' `generate`, since a
maximum is no reward that is linear in w, and no engine has it.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.common import arguments
from benchmarks.common.answer_experiment import AnswerExperiment
from benchmarks.common.independent_judges import (
    Verdict,
    mean_by_prompt,
    percent_with_interval,
    text_costs,
    win_rate_and_interval,
)
from benchmarks.paper.peer_logits_processors import CombinedValuesProcessor, even_weights
from benchmarks.paper.transformers_decoding import TransformersDecoding
from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base
from pad_vllm.persrm import PersRM
from pad_vllm.steering.comparison_conditions import unguided_condition
from pad_vllm.steering.dimension_judges import DimensionJudges
from pad_vllm.steering.guided_answers import DrawnAnswer
from pad_vllm.text.chat_template import load_chat_tokenizer

CombineRewards = Callable[[Tensor], Tensor]
"""[M, N, K] rewards of M policies -> [N, K]."""

RequestedDimensions = tuple[str, ...]
"""A preference for these dimensions, as much of each."""


def combination_rules(policies: Sequence[str]) -> dict[str, CombineRewards]:
    """Name -> rule: each policy alone, the mean, the maximum."""

    def policy_alone(index: int) -> CombineRewards:
        return lambda rewards: rewards[index]

    alone = {name: policy_alone(index) for index, name in enumerate(policies)}
    return {
        **alone,
        "mean": lambda rewards: rewards.mean(0),
        "most": lambda rewards: rewards.amax(0),
    }


def preferences(dimensions: Sequence[str]) -> list[RequestedDimensions]:
    """Each dimension, and all at once."""
    return [*((name,) for name in dimensions), tuple(dimensions)]


def draw_by_rule(
    experiment: AnswerExperiment,
    decoding: TransformersDecoding,
    values: Mapping[str, PersRM],
    rules: Mapping[str, CombineRewards],
    times: float,
) -> Iterator[tuple[RequestedDimensions, str, list[DrawnAnswer]]]:
    """Answers by preference and rule; unguided ones, of no preference, first.

    Args:
        experiment: Its prompts and adapter.
        decoding: Of the base.
        values: Policy -> its reward model.
        rules: How their rewards are combined.
        times: Factor of the weights.
    """
    unguided, prompts = unguided_condition(), experiment.prompts
    base_judges = DimensionJudges(decoding.model, decoding.tokenizer, {})

    def with_losses(answers: list[DrawnAnswer]) -> list[DrawnAnswer]:
        losses = base_judges.losses(prompts, answers, unguided.instruction)
        return [replace(a, loss=loss.nats) for a, loss in zip(answers, losses, strict=True)]

    yield (), "unguided", with_losses(decoding.draw(prompts, unguided))
    models, eos_token_ids = [*values.values()], [decoding.tokenizer.eos_token_id]
    for preference, (name, combine) in itertools.product(
        preferences(models[0].dimensions), rules.items()
    ):
        w = times * even_weights(models[0], *preference)
        with CombinedValuesProcessor(
            decoding.model, models, w, combine, experiment.config, eos_token_ids
        ) as processor:
            answers = decoding.draw(prompts, unguided, processor=lambda _, this=processor: this)
        yield preference, name, with_losses(answers)


def result_row(preference: RequestedDimensions, rule: str, verdict: Verdict) -> dict[str, Any]:
    """The result's row of a preference under a rule.

    Args:
        preference: Its dimensions; "wins" are the mean over them.
        rule: Name of the rule.
        verdict: On its answers; "each" has the wins of every dimension.
    """
    wins = mean_by_prompt([verdict.wins[name] for name in preference])
    by_dimension = {name: win_rate_and_interval(values) for name, values in verdict.wins.items()}
    row = {"wish": list(preference), "by": rule, "wins": win_rate_and_interval(wins)}
    return {**row, "each": by_dimension, **text_costs([verdict])}


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line a preference and rule."""
    dimensions = [*rows[0]["each"]]
    lines = [
        f"| preference | rule | wins | {' | '.join(dimensions)} | perplexity | repeated |",
        "| --- | --- | --- |" + " ---: |" * (len(dimensions) + 2),
    ]
    for r in rows:
        cells = [" and ".join(r["wish"]), r["by"], percent_with_interval(r["wins"])]
        cells += [f"{100 * r['each'][name][0]:.0f}" for name in dimensions]
        cells += [f"{r['perplexity']:.2f}x", f"{100 * r['repeated_more']:+.1f}%"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A group of bars a preference."""
    names = list(dict.fromkeys(" and ".join(r["wish"]) for r in rows))
    rules = list(dict.fromkeys(r["by"] for r in rows))
    figure = Figure(figsize=(7, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for index, rule in enumerate(rules):
        wins = {" and ".join(r["wish"]): r["wins"] for r in rows if r["by"] == rule}
        x = np.arange(len(names)) + 0.8 * ((index + 0.5) / len(rules) - 0.5)
        mean, low, high = (np.array([100 * wins[name][i] for name in names]) for i in range(3))
        error = [mean - low, high - mean]
        axes.bar(x, mean, 0.8 / len(rules), yerr=error, label=rule, error_kw={"lw": 0.8})
    axes.axhline(50, color="0.5", linewidth=0.8)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("wins of the preference by judges that trained nothing, %")
    axes.legend(fontsize=8)
    figure.savefig(path)


def load_adapters(folders: Sequence[tuple[str, str]]) -> dict[str, Adapter]:
    """Policy -> adapter, of the same dimensions; folders: --of. Raises SystemExit for other adapters."""
    adapters = {name: load_adapter(resolve_adapter(folder)) for name, folder in folders}
    dimensions = next(iter(adapters.values())).config.dimensions
    for name, folder in folders:
        config = adapters[name].config
        if not config.heads_only or config.dimensions != dimensions:
            raise SystemExit(f"--of {name}={folder}: heads only for {dimensions} are accepted")
    return adapters


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments.make_parser(__doc__)
    arguments.add_judging_options(parser, tokens=48)
    parser.add_argument(
        "--of",
        type=arguments.name_and_value,
        action="append",
        required=True,
        help="POLICY=ADAPTER",
    )
    parser.add_argument("--by", nargs="+", help="of POLICY, mean, most (default: all)")
    parser.add_argument("--times", type=float, default=1.0, help="of the adapter's strength")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    """See the module's docstring."""
    args = parse()
    rules = combination_rules([name for name, _ in args.of])
    if unknown := [name for name in args.by or () if name not in rules]:
        raise SystemExit(f"--by {unknown[0]}: accepted are {', '.join(rules)}")
    adapters = load_adapters(args.of)
    experiment = AnswerExperiment.from_arguments(args)
    base = resolve_base(args.base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer = load_chat_tokenizer(Path(base), args.base, experiment.config.chat_template)
    decoding = TransformersDecoding(model, tokenizer, args.temperature, args.tokens)
    values = {name: PersRM.from_adapter(model, adapter) for name, adapter in adapters.items()}
    requested = {name: rules[name] for name in args.by or rules}
    drawn = list(draw_by_rule(experiment, decoding, values, requested, args.times))
    dimensions = next(iter(values.values())).dimensions
    verdicts = experiment.judges.verdicts(dimensions, [answers for *_, answers in drawn])
    rows = [
        result_row(preference, rule, verdict)
        for (preference, rule, _), verdict in zip(drawn, verdicts, strict=True)
        if preference
    ]
    texts = {
        " ".join([*preference, rule]): [answer.text for answer in answers]
        for preference, rule, answers in drawn
    }
    result = {"rows": rows, "texts": texts, "table": table(rows), **experiment.result_entries()}
    arguments.print_and_write(args, result, partial(draw, rows))


if __name__ == "__main__":
    main()
