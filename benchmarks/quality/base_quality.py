"""How good must the base be? The same adapter over copies of its base whose linear weights are worse.

    python -m benchmarks.quality.base_quality --prompts koala.jsonl --judge-prompts J --out base_quality.json

noise S  every weight of the decoder's linear layers plus S times their spread, normally distributed
N bits   they are rounded to N bits: 8 a row of outputs, 4 in groups of 32 inputs, by the largest value

The heads are those of the good base. Wins, by judges that trained nothing, are over a copy's own unguided
answers and over the good base's; `text` is the perplexity that a copy has of the good base's plain answers,
`guided` the perplexity of its guided answers over its unguided ones, both as the copy computes them.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.common import arguments
from benchmarks.common.answer_experiment import AnswerExperiment
from benchmarks.common.independent_judges import (
    Verdict,
    mean_by_prompt,
    percent_with_interval,
    text_costs,
    win_rate_and_interval,
)
from pad_vllm.adapter.adapter_folder import save_adapter
from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.evaluation.win_rates_and_fluency import perplexity
from pad_vllm.steering.comparison_conditions import guided_conditions, unguided_condition
from pad_vllm.steering.dimension_judges import DimensionJudges
from pad_vllm.steering.guided_answers import DrawnAnswer
from pad_vllm.text.chat_template import load_chat_tokenizer

WeightChange = Callable[[Tensor], Tensor]
"""A linear layer's weight [out, in] -> the worse one."""

UNCHANGED = "as it is"
_GROUP = 32  # inputs, as the 4-bit formats of llama.cpp have it


def add_noise(share_of_spread: float, seed: int) -> WeightChange:
    """Adds normal noise of this share of the weights' standard deviation."""
    source = torch.Generator().manual_seed(seed)
    return lambda w: w + share_of_spread * w.std() * torch.randn(w.shape, generator=source)


def round_to_bits(bits: int) -> WeightChange:
    """Rounds to integers from -(2^(bits-1) - 1) up, times a scale a row or group."""
    largest = 2 ** (bits - 1) - 1

    def change(w: Tensor) -> Tensor:
        groups = w.reshape(-1, w.shape[1] if bits > 4 else _GROUP)
        scale = groups.abs().amax(1, keepdim=True).clamp_min(1e-12) / largest
        return (scale * (groups / scale).round()).reshape(w.shape)

    return change


def weight_changes(
    noises: Sequence[float], bits: Sequence[int], seed: int
) -> dict[str, WeightChange]:
    """Name of a copy -> how its weights are changed.

    Args:
        noises: Shares of the weights' spread.
        bits: 8 or 4.
        seed: Of the noise.
    """
    changes: dict[str, WeightChange] = {UNCHANGED: lambda w: w}
    changes |= {f"{n} bits": round_to_bits(n) for n in bits}
    return changes | {f"noise {s:g}": add_noise(s, seed) for s in noises}


@torch.no_grad()
def change_linear_weights(model: Any, change: WeightChange) -> None:
    """In place; the token embedding and lm_head, from which rewards are computed, stay as they are."""
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            module.weight.copy_(change(module.weight))


def save_copy(model: Any, base: str, folder: Path) -> None:
    """Save a changed model with the other files of the base's folder.

    Args:
        model: The Transformers model.
        base: Folder of the base.
        folder: Where the copy is written.
    """
    model.save_pretrained(folder)
    for file in Path(base).iterdir():
        if file.is_file() and not (folder / file.name).exists() and "safetensors" not in file.name:
            shutil.copy(file, folder)


def draw_from_copy(experiment: AnswerExperiment, model: Any) -> list[list[DrawnAnswer]]:
    """[unguided and each dimension][prompt], over a changed model with the experiment's heads."""
    config = experiment.config
    guided = guided_conditions("PAD", experiment.dimensions, [config.beta], (1,))
    with tempfile.TemporaryDirectory() as folder:
        base, adapter_folder = Path(folder) / "base", Path(folder) / "adapter"
        save_copy(model, resolve_base(experiment.base), base)
        of_copy = dataclasses.replace(config, backbone=Backbone.from_checkpoint(base))
        adapter = dataclasses.replace(experiment.adapter, config=of_copy)
        save_adapter(adapter, adapter_folder, "# For a worse base\n")
        return experiment.draw([unguided_condition(), *guided], str(adapter_folder), str(base))


def mean_wins(names: Sequence[str], verdicts: Sequence[Verdict]) -> list[float]:
    """Mean over the dimensions, with its interval; verdicts: one a dimension, on its own answers."""
    wins = [verdict.wins[name] for name, verdict in zip(names, verdicts, strict=True)]
    return win_rate_and_interval(mean_by_prompt(wins))


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line a copy."""
    lines = [
        "| base | text | wins over its own | over the good base's | guided | repeated |",
        "| --- | ---: | --- | --- | ---: | ---: |",
    ]
    for r in rows:
        wins, over_good = (percent_with_interval(r[name]) for name in ("wins", "over_good"))
        cells = [r["base"], f"{r['text']:.2f}x", wins, over_good]
        cost = f"{r['perplexity']:.2f}x | {r['repeated_more']:+.1%}"
        lines.append(f"| {' | '.join(cells)} | {cost} |")
    return lines


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Wins against the copies' perplexity."""
    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    by_text = sorted(rows, key=lambda r: r["text"])
    for name, label in (("wins", "over its own answers"), ("over_good", "over the good base's")):
        mean, low, high = ([100 * r[name][i] for r in by_text] for i in range(3))
        x = [r["text"] for r in by_text]
        axes.fill_between(x, low, high, alpha=0.15)
        axes.plot(x, mean, "o-", markersize=4, label=label)
    for r in rows:
        axes.annotate(r["base"], (r["text"], 100 * r["wins"][0]), fontsize=7, rotation=30)
    axes.set_xscale("log")
    axes.set_xlabel("perplexity of the good base's answers, times its own")
    axes.set_ylabel("wins of guided answers, %")
    axes.legend(fontsize=8)
    figure.savefig(path)


def main() -> None:
    """See the module's docstring."""
    from transformers import AutoModelForCausalLM

    parser = arguments.make_parser(__doc__)
    arguments.add_judging_options(parser, tokens=48)
    parser.add_argument("--noises", type=float, nargs="*", default=[0.1, 0.2])
    parser.add_argument("--bits", type=int, nargs="*", choices=(8, 4), default=[8, 4])
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    args = parser.parse_args()
    experiment = AnswerExperiment.from_arguments(args)
    experiment.require_heads_only()
    judges, names = experiment.judges, experiment.dimensions
    good_base = resolve_base(args.base)
    tokenizer = load_chat_tokenizer(good_base, args.base, experiment.config.chat_template)
    rows: list[dict[str, Any]] = []
    good_answers: list[DrawnAnswer] = []
    for name, change in weight_changes(args.noises, args.bits, args.seed).items():
        model = AutoModelForCausalLM.from_pretrained(good_base, dtype=torch.float32).eval()
        change_linear_weights(model, change)
        answers = draw_from_copy(experiment, model)
        good_answers = good_answers or answers[0]
        # An answer's stored loss is the good base's: the copy computes its own.
        without_losses = [dataclasses.replace(answer, loss=None) for answer in good_answers]
        copy_judges = DimensionJudges(model, tokenizer, {})
        losses = copy_judges.losses(experiment.prompts, without_losses, "")
        over_own = judges.verdicts(names, answers)[1:]
        over_good = judges.verdicts(names, [good_answers, *answers[1:]])[1:]
        row = {"base": name, "text": perplexity(losses), "wins": mean_wins(names, over_own)}
        rows.append({**row, "over_good": mean_wins(names, over_good), **text_costs(over_own)})
    text_of_good_base = rows[0]["text"]
    for row in rows:
        row["text"] = round(row["text"] / text_of_good_base, 3)
    result = {**experiment.result_entries(), "rows": rows, "table": table(rows)}
    arguments.print_and_write(args, result, partial(draw, rows))


if __name__ == "__main__":
    main()
