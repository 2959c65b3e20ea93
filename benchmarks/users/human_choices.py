"""How many choices of people an adapter's dimensions tell, by the number that they are fitted to.

    python -m benchmarks.users.human_choices hh_helpful_test.jsonl.gz hh_harmless_test.jsonl.gz --out F.json

Each file is of many annotators who were asked the same (hh-rlhf), so it stands for one user: the answers were
not guided, only the PersRM's features say what was chosen. Weights are fitted to N of the pairs, in each of
the forms of `choice_form.py`, by the difference of the lengths alone, and in the form that `choose_form`
takes for these N; measured by the share of the other pairs that they tell, over many draws of the N.
Intervals are by bootstrap over the draws: the pairs are the same in all, so they say how much the N matter.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import arguments
from benchmarks.common.base_reader import open_reader
from benchmarks.common.independent_judges import percent_with_interval
from benchmarks.common.prompt_intervals import mean_and_interval
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.choices.candidate_reader import CandidateReader
from pad_vllm.choices.choice_form import FORMS, AnswerPairs, choose_form
from pad_vllm.choices.logistic_posterior import GaussianPrior, weight_posterior
from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.training.data.data_sources import read_source
from pad_vllm.training.data.data_spec import DataSpec
from pad_vllm.training.user_choices import UserChoice, read_answers

LENGTH = "length"
CHOSEN = "chosen"


def short_pairs(path: Path, reader: CandidateReader, pairs: int, tokens: int) -> list[UserChoice]:
    """The first pairs of a file whose prompt and answers are short.

    Args:
        path: of hh-rlhf's form.
        reader: has the tokenizer.
        pairs: how many.
        tokens: most of a prompt with either of its answers.
    """
    records, _ = read_source(DataSpec.parse(f"hh-rlhf:chosen={path}"))

    def choices() -> Iterator[UserChoice]:
        for number, record in enumerate(records, 1):
            ordered = sorted(record.responses, key=lambda r: r.scores["chosen"], reverse=True)
            texts = [one.text for one in ordered[:2]]
            prompt = chat_token_ids(reader.tokenizer, record.prompt.messages())
            longest = max(len(reader.tokenizer(text)["input_ids"]) for text in texts)
            if len(prompt) + longest < tokens:
                yield UserChoice(record.prompt, *texts, number)

    return list(islice(choices(), pairs))


def differences(pairs: AnswerPairs, form: str) -> Tensor:
    """[N, columns], chosen less other, in one of FORMS or by LENGTH."""
    if form == LENGTH:
        return (pairs.lengths[:, 0] - pairs.lengths[:, 1]).double().unsqueeze(-1)
    return pairs.differences(form)


def accuracy(x: Tensor, given: Tensor) -> float:
    """Share of the other choices that weights fitted to the given ones [n] tell; x: [N, columns]."""
    rest = torch.ones(len(x), dtype=torch.bool)
    rest[given] = False
    found = weight_posterior(x[given].unsqueeze(0), GaussianPrior.around_zero(x[given]))
    value = x[rest] @ found.mean[0]
    return float(((value > 0).double() + (value == 0).double() / 2).mean())


def result_row(name: str, pairs: AnswerPairs, count: int, draws: int) -> dict[str, Any]:
    """The result's row of a file and a number of choices.

    Args:
        name: of the file.
        pairs: all of it.
        count: choices that are fitted to.
        draws: of these.
    """
    by_form = {form: differences(pairs, form) for form in (*FORMS, LENGTH)}
    shares: dict[str, list[float]] = {form: [] for form in (*by_form, CHOSEN)}
    taken: Counter[str] = Counter()
    source = torch.Generator().manual_seed(count)
    for _ in range(draws):
        given = torch.randperm(len(pairs.sums), generator=source)[:count]
        for form, x in by_form.items():
            shares[form].append(accuracy(x, given))
        form = choose_form([AnswerPairs(pairs.sums[given], pairs.lengths[given])])
        taken[form] += 1
        shares[CHOSEN].append(shares[form][-1])
    told = {form: mean_and_interval(values) for form, values in shares.items()}
    return {"file": name, "choices": count, "told": told, "taken": dict(taken)}


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line a file and number of choices."""
    forms = list(rows[0]["told"])
    lines = [
        f"| pairs | choices | {' | '.join(forms)} |",
        f"| --- | ---: |{' --- |' * len(forms)}",
    ]
    for row in rows:
        cells = [percent_with_interval(row["told"][form]) for form in forms]
        lines.append(f"| {row['file']} | {row['choices']} | {' | '.join(cells)} |")
    return lines


def read_pairs(args: argparse.Namespace) -> dict[str, AnswerPairs]:
    """File's name -> its pairs as the reward model reads them."""
    adapter = load_adapter(resolve_adapter(args.adapter))
    reader = open_reader(args.base, adapter)
    found = {}
    for path in args.files:
        choices = short_pairs(path, reader, args.pairs, args.tokens)
        found[path.name.split(".")[0]] = read_answers(reader.model, reader.tokenizer, choices)
        print(f"{path.name}: {len(choices)} pairs", flush=True)
    return found


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="of hh-rlhf's form")
    parser.add_argument("--pairs", type=int, default=100, help="of each file")
    parser.add_argument("--tokens", type=int, default=200, help="most of a prompt and an answer")
    parser.add_argument("--choices", type=int, nargs="+", default=[5, 10, 20, 40, 80])
    parser.add_argument("--draws", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pairs = read_pairs(args)
    rows = [
        result_row(name, of_file, count, args.draws)
        for name, of_file in pairs.items()
        for count in args.choices
    ]
    result = {
        "command": arguments.command_line(),
        "pairs": {name: len(of_file.sums) for name, of_file in pairs.items()},
        "rows": rows,
        "table": table(rows),
    }
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
