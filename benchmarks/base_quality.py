"""How good must the base be? The same adapter over copies of its base whose linear weights are worse.

    python benchmarks/base_quality.py --steering koala.jsonl --judge-prompts J --out base_quality.json

noise S  every weight of the decoder's linear layers plus S times their spread, normally distributed
N bits   they are rounded to N bits: 8 a row of outputs, 4 in groups of 32 inputs, by the largest value

The heads are those of the good base. Wins, judged by who trained nothing, are over a copy's own unguided
answers and over the good base's; `text` is the perplexity that a copy has of the good base's plain answers,
`guided` the perplexity of its guided answers over its unguided ones, both as it sees them.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import arguments
import torch
from jury import Verdict, share, shown, text
from matplotlib.figure import Figure
from setting import Setting
from torch import Tensor, nn

from pad_vllm.adapter.adapter_folder import save_adapter
from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.evaluation.text_measures import perplexity
from pad_vllm.steering import comparison_conditions
from pad_vllm.steering.dimension_judges import DimensionJudges
from pad_vllm.steering.guided_answers import DrawnAnswer
from pad_vllm.text.chat_template import load_chat_tokenizer

Change = Callable[[Tensor], Tensor]
"""Of one linear layer's weight [out, in]."""

AS_IT_IS = "as it is"
_GROUP = 32  # inputs, as the 4-bit formats of llama.cpp have it


def noise(share_of_spread: float, seed: int) -> Change:
    source = torch.Generator().manual_seed(seed)
    return lambda w: w + share_of_spread * w.std() * torch.randn(w.shape, generator=source)


def rounded(bits: int) -> Change:
    """To integers from -(2^(bits-1) - 1) up, times a scale a row or group."""
    most = 2 ** (bits - 1) - 1

    def change(w: Tensor) -> Tensor:
        parts = w.reshape(-1, w.shape[1] if bits > 4 else _GROUP)
        scale = parts.abs().amax(1, keepdim=True).clamp_min(1e-12) / most
        return (scale * (parts / scale).round()).reshape(w.shape)

    return change


def changes(noises: Sequence[float], bits: Sequence[int], seed: int) -> dict[str, Change]:
    found: dict[str, Change] = {AS_IT_IS: lambda w: w}
    found |= {f"{n} bits": rounded(n) for n in bits}
    return found | {f"noise {s:g}": noise(s, seed) for s in noises}


@torch.no_grad()
def worsen(model: Any, change: Change) -> None:
    """In place; the token embedding and lm_head stay, by which heads pay."""
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            module.weight.copy_(change(module.weight))


def write(model: Any, base: str, folder: Path) -> None:
    """The model, with whatever else the base's folder has."""
    model.save_pretrained(folder)
    for file in Path(base).iterdir():
        if file.is_file() and not (folder / file.name).exists() and "safetensors" not in file.name:
            shutil.copy(file, folder)


def answers(setting: Setting, model: Any) -> list[list[DrawnAnswer]]:
    """[unguided and each dimension][prompt], over a copy of the base."""
    guided = comparison_conditions.guided_conditions(
        "PAD", setting.dimensions, [setting.config.beta], (1,)
    )
    with tempfile.TemporaryDirectory() as made:
        base, folder = Path(made) / "base", Path(made) / "adapter"
        write(model, resolve_base(setting.base), base)
        adapter = setting.adapter
        config = dataclasses.replace(adapter.config, backbone=Backbone.from_checkpoint(base))
        save_adapter(dataclasses.replace(adapter, config=config), folder, "# For a worse base\n")
        return setting.answers(
            [comparison_conditions.unguided_condition(), *guided], str(folder), str(base)
        )


def wins(names: Sequence[str], verdicts: Sequence[Verdict]) -> list[float]:
    """`share` over the dimensions, each by its own answers."""
    each = [one.wins[name] for name, one in zip(names, verdicts, strict=True)]
    return share([statistics.mean(column) for column in zip(*each, strict=True)])


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| base | text | wins over its own | over the good base's | guided | repeated |",
        "| --- | ---: | --- | --- | ---: | ---: |",
    ]
    for r in rows:
        cells = [r["base"], f"{r['text']:.2f}x", shown(r["wins"]), shown(r["over_good"])]
        cost = f"{r['perplexity']:.2f}x | {r['repeated_more']:+.1%}"
        lines.append(f"| {' | '.join(cells)} | {cost} |")
    return lines


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for name, label in (("wins", "over its own answers"), ("over_good", "over the good base's")):
        some = sorted(rows, key=lambda r: r["text"])
        mean, low, high = ([100 * r[name][i] for r in some] for i in range(3))
        x = [r["text"] for r in some]
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
    from transformers import AutoModelForCausalLM

    parser = arguments.parser(__doc__)
    arguments.add_question(parser, tokens=48)
    parser.add_argument("--noises", type=float, nargs="*", default=[0.1, 0.2])
    parser.add_argument("--bits", type=int, nargs="*", choices=(8, 4), default=[8, 4])
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    args = parser.parse_args()
    setting = Setting.of(args)
    setting.require_heads()
    good, names = resolve_base(args.base), setting.dimensions
    tokenizer = load_chat_tokenizer(good, args.base, setting.config.chat_template)
    rows: list[dict[str, Any]] = []
    plain: list[DrawnAnswer] = []
    for name, change in changes(args.noises, args.bits, args.seed).items():
        model = AutoModelForCausalLM.from_pretrained(good, dtype=torch.float32).eval()
        worsen(model, change)
        said = answers(setting, model)
        plain = plain or said[0]
        # What an answer knows of its losses is what the good base said.
        heard = [dataclasses.replace(one, loss=None) for one in plain]
        losses = DimensionJudges(model, tokenizer, {}).losses(setting.prompts, heard, "")
        verdicts = setting.jury.verdicts(names, said)[1:]
        over_good = setting.jury.verdicts(names, [plain, *said[1:]])[1:]
        found = {"base": name, "text": perplexity(losses), "wins": wins(names, verdicts)}
        rows.append({**found, "over_good": wins(names, over_good), **text(verdicts)})
    own = rows[0]["text"]
    for r in rows:
        r["text"] = round(r["text"] / own, 3)
    result = {**setting.about(), "rows": rows, "table": table(rows)}
    arguments.tell(args, result, partial(draw, rows))


if __name__ == "__main__":
    main()
