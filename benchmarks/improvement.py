"""Does a preference gain from the best of several policies' value functions?

    python benchmarks/improvement.py --of plain=A --of positive=B --steering P --judge-prompts J --out O

psi_i is what each dimension may expect once policy i goes on: an adapter of heads alone that scores taught
from answers of that policy, plain ones or guided ones (`pad-vllm sample --adapter demo --weights W`). All
have the same dimensions. A wish w, of one dimension or of all at once, is paid by

  NAME   r(a) = w^T psi_i(a), of one policy
  mean   the mean over the policies
  most   max_i w^T psi_i(a): generalised policy improvement (Barreto et al. 2017), as in PAD's Theorem 1

each psi less its mean over the candidates under the base, at --times the strength and under the guard of
--adapter, whose sentences the judges are fitted on. Answers come from Transformers' `generate`, since a
maximum is no reward that is linear in w, and no engine has it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import arguments
import numpy as np
import torch
from jury import Verdict, share, shown, text
from matplotlib.figure import Figure
from peer_rules import ManyValues
from peers import Loop, weights
from setting import Setting
from torch import Tensor
from transformers import AutoModelForCausalLM

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base
from pad_vllm.persrm import PersRM
from pad_vllm.steering import comparison_conditions
from pad_vllm.steering.dimension_judges import DimensionJudges
from pad_vllm.steering.guided_answers import DrawnAnswer
from pad_vllm.text.chat_template import load_chat_tokenizer

Paid = Callable[[Tensor], Tensor]
"""[M, N, K] -> [N, K]."""

Wish = tuple[str, ...]
"""Of these dimensions, as much of each."""


def rules(policies: Sequence[str]) -> dict[str, Paid]:
    def of(place: int) -> Paid:
        return lambda each: each[place]

    alone = {name: of(place) for place, name in enumerate(policies)}
    return {**alone, "mean": lambda each: each.mean(0), "most": lambda each: each.amax(0)}


def wishes(dimensions: Sequence[str]) -> list[Wish]:
    return [*((name,) for name in dimensions), tuple(dimensions)]


def answers(
    setting: Setting, loop: Loop, values: Mapping[str, PersRM], by: Mapping[str, Paid], times: float
) -> Iterator[tuple[Wish, str, list[DrawnAnswer]]]:
    """By wish and rule; unguided ones, of no wish, first."""
    plain, judge = (
        comparison_conditions.unguided_condition(),
        DimensionJudges(loop.model, loop.tokenizer, {}),
    )

    def known(said: list[DrawnAnswer]) -> list[DrawnAnswer]:
        found = judge.losses(setting.prompts, said, plain.instruction)
        return [replace(one, loss=loss) for one, (loss, _) in zip(said, found, strict=True)]

    yield (), "unguided", known(loop.answers(setting.prompts, plain))
    some, ends = [*values.values()], [loop.tokenizer.eos_token_id]
    for wish, (name, paid) in itertools.product(wishes(some[0].dimensions), by.items()):
        w = times * weights(some[0], *wish)
        with ManyValues(loop.model, some, w, paid, setting.config, ends) as rule:
            said = loop.answers(setting.prompts, plain, rule=lambda _, rule=rule: rule)
        yield wish, name, known(said)


def row(wish: Wish, name: str, verdict: Verdict) -> dict[str, Any]:
    """wins: of the wish's dimensions; each: of every one."""
    won = [sum(column) / len(column) for column in zip(*map(verdict.wins.get, wish), strict=True)]
    each = {dimension: share(verdict.wins[dimension]) for dimension in verdict.wins}
    return {"wish": list(wish), "by": name, "wins": share(won), "each": each, **text([verdict])}


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    dimensions = [*rows[0]["each"]]
    lines = [
        f"| wish | paid by | wins | {' | '.join(dimensions)} | perplexity | repeated |",
        "| --- | --- | --- |" + " ---: |" * (len(dimensions) + 2),
    ]
    for r in rows:
        cells = [" and ".join(r["wish"]), r["by"], shown(r["wins"])]
        cells += [f"{100 * r['each'][name][0]:.0f}" for name in dimensions]
        cells += [f"{r['perplexity']:.2f}x", f"{100 * r['repeated_more']:+.1f}%"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A group of bars a wish."""
    names = list(dict.fromkeys(" and ".join(r["wish"]) for r in rows))
    by = list(dict.fromkeys(r["by"] for r in rows))
    figure = Figure(figsize=(7, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for place, one in enumerate(by):
        some = {" and ".join(r["wish"]): r["wins"] for r in rows if r["by"] == one}
        x = np.arange(len(names)) + 0.8 * ((place + 0.5) / len(by) - 0.5)
        mean, low, high = (np.array([100 * some[name][i] for name in names]) for i in range(3))
        error = [mean - low, high - mean]
        axes.bar(x, mean, 0.8 / len(by), yerr=error, label=one, error_kw={"lw": 0.8})
    axes.axhline(50, color="0.5", linewidth=0.8)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("wins by the wish's judges that trained nothing, %")
    axes.legend(fontsize=8)
    figure.savefig(path)


@torch.no_grad()
def main() -> None:
    parser = arguments.parser(__doc__)
    arguments.add_question(parser, tokens=48)
    parser.add_argument(
        "--of", type=arguments.pair, action="append", required=True, help="POLICY=ADAPTER"
    )
    parser.add_argument("--by", nargs="+", help="of POLICY, mean, most (default: all)")
    parser.add_argument("--times", type=float, default=1.0, help="of the adapter's strength")
    args = parser.parse_args()
    by = rules([name for name, _ in args.of])
    if unknown := [name for name in args.by or () if name not in by]:
        raise SystemExit(f"--by {unknown[0]}: accepted are {', '.join(by)}")
    adapters = {name: load_adapter(resolve_adapter(folder)) for name, folder in args.of}
    known = [one.config.dimensions for one in adapters.values()]
    for (name, folder), adapter in zip(args.of, adapters.values(), strict=True):
        config = adapter.config
        if not config.heads_only or config.dimensions != known[0]:
            raise SystemExit(f"--of {name}={folder}: heads alone for {known[0]} are accepted")
    setting = Setting.of(args)
    base = resolve_base(args.base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer = load_chat_tokenizer(Path(base), args.base, setting.config.chat_template)
    loop = Loop(model, tokenizer, args.temperature, args.tokens)
    values = {name: PersRM.from_adapter(model, adapter) for name, adapter in adapters.items()}
    asked = {name: by[name] for name in args.by or by}
    made = list(answers(setting, loop, values, asked, args.times))
    verdicts = setting.jury.verdicts(known[0], [said for *_, said in made])
    rows = [row(w, name, v) for (w, name, _), v in zip(made, verdicts, strict=True) if w]
    texts = {" ".join([*w, name]): [one.text for one in said] for w, name, said in made}
    result = {"rows": rows, "texts": texts, "table": table(rows), **setting.about()}
    arguments.tell(args, result, partial(draw, rows))


if __name__ == "__main__":
    main()
