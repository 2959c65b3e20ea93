"""How often do judges of human preference pairs agree with the people on pairs that they were not fitted on?

    python -m benchmarks.paper.human_pairs --base BASE --pairs harmless=hh_harmless.jsonl.gz \
        --pairs helpful=hh_helpful.jsonl.gz --training FOLDER --out human_pair_judges.json

Files of Anthropic/hh-rlhf's form. One half of the prompts is for training: FOLDER/NAME.jsonl has those pairs
that are short enough, for `pad-vllm train --teacher pairs --data jsonl=...` and `dpo_policy.py`. Of the other
half three quarters fit a judge, a logistic regression on the difference of two answers' features (FEATURES;
which of them, and how firmly, is chosen by cross-validation there). Its accuracy is measured on the last
quarter, whose prompts `paper_dimensions.py` has answered. No judge has seen the base's states, or a text that
anything was trained on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import arguments
from benchmarks.common.independent_judges import percent_with_interval, win_rate_and_interval
from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.evaluation.sentence_embeddings import embed
from pad_vllm.text.chat_template import chat_token_ids, load_chat_tokenizer
from pad_vllm.text.conversation import Conversation, prompt_key
from pad_vllm.training.data.data_sources import read_source
from pad_vllm.training.data.data_spec import DataSpec
from pad_vllm.training.data.preference_record import PreferenceRecord, unit_hash

WORDS = 40
"""Of an answer that a judge reads: drawn answers are no longer, and length would decide."""

_PROMPT_END = 400  # characters of the user's last turn that a judge reads
_FIRMNESS = (0.1, 1.0, 10.0)  # scikit-learn's C
_FOLDS = 5


class HumanPair(NamedTuple):
    """A prompt with the answer that a person preferred, and the other one."""

    prompt: Conversation
    chosen: str
    rejected: str


@dataclass(frozen=True)
class PairParts:
    """One dimension's pairs, apart by prompt."""

    training: list[PreferenceRecord]
    judge: list[HumanPair]
    held_out: list[HumanPair]


def read_parts(dimension: str, path: Path) -> PairParts:
    """The pairs of a file; the same prompt is in the same part of every file."""
    records, _ = read_source(DataSpec.parse(f"hh-rlhf:{dimension}={path}"))
    parts = PairParts([], [], [])
    for record in records:
        position = unit_hash(f"half\0{prompt_key(record.prompt)}")
        if position < 0.5:
            parts.training.append(record)
        else:
            ranked = sorted(record.responses, key=lambda response: response.scores[dimension])
            pair = HumanPair(record.prompt, ranked[-1].text, ranked[0].text)
            (parts.judge if position < 0.875 else parts.held_out).append(pair)
    return parts


def _shortened(text: str) -> str:
    return " ".join(text.split()[:WORDS])


def answer_features(_: Sequence[Conversation], texts: Sequence[str]) -> np.ndarray:
    """[n, 384] embeddings of the answers alone."""
    return embed([_shortened(text) for text in texts])


def exchange_features(prompts: Sequence[Conversation], texts: Sequence[str]) -> np.ndarray:
    """[n, 384] embeddings of the user's last turn with the answer."""
    pairs = zip(prompts, texts, strict=True)
    return embed([f"{p[-1].content[-_PROMPT_END:]}\n{_shortened(t)}" for p, t in pairs])


def both_features(prompts: Sequence[Conversation], texts: Sequence[str]) -> np.ndarray:
    """[n, 769] both embeddings, and the logarithm of the answer's words."""
    words = [[math.log1p(len(_shortened(text).split()))] for text in texts]
    parts = (answer_features(prompts, texts), exchange_features(prompts, texts), np.array(words))
    return np.concatenate(parts, axis=1)


Features = Callable[[Sequence[Conversation], Sequence[str]], np.ndarray]

FEATURES: dict[str, Features] = {
    "answer": answer_features,
    "question and answer": exchange_features,
    "both, and length": both_features,
}
"""What a judge may read of an answer to a prompt, by the name that results have for it."""


@dataclass(frozen=True)
class PairJudge:
    """Scores answers as the people of some pairs would; higher is better."""

    features: str
    """Name in FEATURES."""

    coefficients: list[float]  # of the regression, one a feature; it has no intercept
    agreement: list[float]
    """[share, low, high] of held-out pairs whose preferred answer scores higher."""

    pairs: tuple[int, int]
    """Number of those it was fitted on, and of the held-out ones."""

    def __call__(self, prompts: Sequence[Conversation], texts: Sequence[str]) -> list[float]:
        """The score of each answer."""
        scores: list[float] = (FEATURES[self.features](prompts, texts) @ self.coefficients).tolist()
        return scores

    @classmethod
    def read_all(cls, path: Path) -> dict[str, PairJudge]:
        """Dimension -> judge, from this script's result."""
        judges = json.loads(path.read_text())["judges"]
        return {name: cls(**fields) for name, fields in judges.items()}


def fit_judge(parts: PairParts) -> PairJudge:
    """The judge that does best in cross-validation over the pairs that judges are fitted on."""
    choices = []
    for name, features in FEATURES.items():
        differences = _differences(features, parts.judge)
        choices += [(_crossed_accuracy(differences, C), name, C, differences) for C in _FIRMNESS]
    _, name, C, differences = max(choices, key=lambda choice: choice[0])
    coefficients = _fit(differences, C)
    right = _differences(FEATURES[name], parts.held_out) @ coefficients > 0
    agreement = win_rate_and_interval([float(one) for one in right])
    counts = (len(parts.judge), len(parts.held_out))
    return PairJudge(name, [round(float(x), 4) for x in coefficients], agreement, counts)


def _differences(features: Features, pairs: Sequence[HumanPair]) -> np.ndarray:
    """[n, F] features of the preferred answers less those of the others."""
    prompts = [pair.prompt for pair in pairs]
    better, worse = (
        features(prompts, texts)
        for texts in ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
    )
    return better - worse


def _fit(differences: np.ndarray, C: float) -> np.ndarray:
    """[F] coefficients of a logistic regression."""
    from sklearn.linear_model import LogisticRegression

    samples = np.concatenate((differences, -differences))
    labels = np.repeat((1, 0), len(differences))
    regression = LogisticRegression(C=C, fit_intercept=False, max_iter=2000).fit(samples, labels)
    coefficients: np.ndarray = regression.coef_[0]
    return coefficients


def _crossed_accuracy(differences: np.ndarray, C: float) -> float:
    order = np.random.default_rng(0).permutation(len(differences))
    right = []
    for left_out in np.array_split(order, _FOLDS):
        coefficients = _fit(differences[np.setdiff1d(order, left_out)], C)
        right.append(differences[left_out] @ coefficients > 0)
    return float(np.concatenate(right).mean())


class ShortPairs:
    """Which records are trained on: a long one takes the time of several short ones."""

    def __init__(self, tokenizer: Any, max_prompt: int, max_response: int) -> None:
        """Of one base.

        Args:
            tokenizer: The base's, with its chat template.
            max_prompt: Most tokens of a prompt.
            max_response: Most tokens of either answer.
        """
        self.tokenizer, self.max_prompt, self.max_response = tokenizer, max_prompt, max_response

    def __call__(self, record: PreferenceRecord) -> bool:
        """Whether the record is short enough."""
        lengths = [len(self.tokenizer.encode(response.text)) for response in record.responses]
        return self.has_room(record.prompt) and max(lengths) < self.max_response

    def has_room(self, prompt: Conversation) -> bool:
        """Whether the prompt is short enough."""
        return len(chat_token_ids(self.tokenizer, prompt.messages())) <= self.max_prompt


def write_training_half(records: Sequence[PreferenceRecord], path: Path) -> None:
    """PreferenceRecords as lines: 1 for the preferred answer, 0 for the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(record.model_dump_json() + "\n" for record in records), "utf-8")


def judge_table(judges: Mapping[str, PairJudge]) -> list[str]:
    """Markdown, a line a judge."""
    lines = [
        "| judge | reads | pairs it was fitted on | held-out pairs | agrees with people in % of these |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for name, judge in judges.items():
        fitted, held_out = judge.pairs
        cells = [name, judge.features, f"{fitted}", f"{held_out}"]
        lines.append(f"| {' | '.join(cells)} | {percent_with_interval(judge.agreement)} |")
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__, adapter=None)
    parser.add_argument(
        "--pairs", type=arguments.name_and_value, action="append", required=True, help="NAME=FILE"
    )
    parser.add_argument("--training", type=Path, required=True, help="folder of the other halves")
    parser.add_argument("--max-prompt", type=int, default=128, help="tokens, to be trained on")
    parser.add_argument("--max-response", type=int, default=96, help="tokens, to be trained on")
    parser.add_argument("--most", type=int, default=300, help="pairs of a dimension to train on")
    args = parser.parse_args()
    tokenizer = load_chat_tokenizer(Path(resolve_base(args.base)), args.base, None)
    short = ShortPairs(tokenizer, args.max_prompt, args.max_response)
    judges, num_training = {}, {}
    for name, path in args.pairs:
        parts = read_parts(name, Path(path))
        training = list(filter(short, parts.training))[: args.most]
        write_training_half(training, args.training / f"{name}.jsonl")
        judges[name], num_training[name] = fit_judge(parts), len(training)
    result = {
        "command": arguments.command_line(),
        "words": WORDS,
        "training_pairs": num_training,
        "judges": {name: asdict(judge) for name, judge in judges.items()},
        "table": judge_table(judges),
    }
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
