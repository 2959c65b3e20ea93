"""What could heads see more of, and do they know when they are wrong? Forms of heads on the same states.

    python -m benchmarks.quality.head_inputs --base qwen2.5-coder-0.5b --out head_inputs.json

Each form makes a direction d of a base's states, and is fitted to the rewards of the instructed base, as
`pad-vllm train --teacher prompt` fits heads. The table has the share of the teacher's rewards explained on
held-out prompts, weighed by the base's probabilities. The second table looks at one form: by how much its
rewards must be multiplied to come nearest to the teacher's, where a candidate is likely or not, at the
answer's start or later, and where the state lies near the training states or far from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from benchmarks.common import arguments
from benchmarks.common.answer_cache import AnswerCache
from benchmarks.common.prompt_intervals import statistic_and_interval
from benchmarks.quality.instruction_depth import (
    BATCH,
    INSTRUCTIONS,
    NUM_CANDIDATES,
    Text,
    candidate_rewards,
)
from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.evaluation.win_rates_and_fluency import value_and_interval_text
from pad_vllm.steering.comparison_conditions import instructed_conditions, unguided_condition
from pad_vllm.steering.guided_answers import AnswerBatch, DecodingSettings
from pad_vllm.text.chat_template import chat_token_ids, load_chat_tokenizer
from pad_vllm.text.preference_text import with_instruction
from pad_vllm.training.distillation.reward_regression import token_weights
from pad_vllm.training.sampling.sample_responses import read_prompts

MIDDLE = 0.6  # of the layers: where the middle state is taken
EARLY = 4  # tokens of an answer with heads of their own, in one form
HELD_OUT, VALIDATION = 0.2, 0.1  # of the prompts
EPOCHS, TOKENS_AT_ONCE, LEARNING_RATE = 24, 256, 1e-3
PROBABILITIES = (0.5, 0.15, 0.05, 0.03, 0.01, 0.0)  # of a candidate, beside the best one's
QUARTERS = ("nearest", "second", "third", "farthest")

Forward = Callable[["Tokens"], Tensor]
"""Tokens -> directions [n, D, H]."""


@dataclass
class Tokens:
    """Tokens of answers, one after the other: n of them, K candidates, D instructions."""

    last: Tensor  # [n, H] final state, from which the token is predicted
    middle: Tensor  # [n, H] state of a middle layer, scaled to a root mean square of 1
    history: Tensor  # [n, H] mean of the answer's final states so far
    ids: Tensor  # [n, K] int32 candidates
    z: Tensor  # [n, K] their logits
    rewards: Tensor  # [n, K, D] the teacher's, with zero mean under the base
    position: Tensor  # [n] in the answer, from 0
    prompt: Tensor  # [n] number of the prompt

    def __getitem__(self, where: Tensor) -> Tokens:
        return Tokens(**{f.name: getattr(self, f.name)[where] for f in fields(self)})

    @property
    def p(self) -> Tensor:
        """[n, K] probabilities of the candidates."""
        return self.z.softmax(-1)


@torch.no_grad()
def read_tokens(
    model: Any, tokenizer: Any, prompts: Sequence[Any], answers: Sequence[Any], names: Sequence[str]
) -> Tokens:
    """The base's states at the answers' tokens and the rewards of the base with each instruction.

    Args:
        model: the base.
        tokenizer: the base's.
        prompts: of the answers, one for each.
        answers: drawn ones.
        names: in INSTRUCTIONS, D of them.
    """
    order = sorted(range(len(answers)), key=lambda i: len(answers[i].token_ids))
    numbers = {id(prompt): number for number, prompt in enumerate(dict.fromkeys(prompts))}
    parts = []
    for start in range(0, len(order), BATCH):
        batch = [(prompts[i], list(answers[i].token_ids)) for i in order[start : start + BATCH]]
        plain = [Text(chat_token_ids(tokenizer, p.messages()), ids) for p, ids in batch]
        hidden = _read(model, plain)
        told = [
            _read(
                model,
                [
                    Text(chat_token_ids(tokenizer, _told(prompt, name)), ids)
                    for prompt, ids in batch
                ],
            )
            for name in names
        ]
        for row, (prompt, _) in enumerate(batch):
            last, middle = hidden[row]
            parts.append(
                _tokens(model, tokenizer, last, middle, [part[row][0] for part in told])
                | {"prompt": torch.full((len(last),), numbers[id(prompt)])}
            )
        print(f"read {start + len(batch)} of {len(order)} answers", flush=True)
    return Tokens(**{f.name: torch.cat([part[f.name] for part in parts]) for f in fields(Tokens)})


def _told(prompt: Any, name: str) -> list[dict[str, str]]:
    return with_instruction(prompt.messages(), INSTRUCTIONS[name])


def _read(model: Any, texts: Sequence[Text]) -> list[tuple[Tensor, Tensor]]:
    """Final and middle states [n, H] of every answer."""
    ids = pad_sequence([torch.tensor(text.ids()) for text in texts], batch_first=True)
    outputs = model.model(input_ids=ids, use_cache=False, output_hidden_states=True)
    middle = outputs.hidden_states[round(MIDDLE * model.config.num_hidden_layers)]
    return [
        (text.answer_states(last), text.answer_states(between))
        for text, last, between in zip(texts, outputs.last_hidden_state, middle, strict=True)
    ]


def _tokens(
    model: Any, tokenizer: Any, last: Tensor, middle: Tensor, told: Sequence[Tensor]
) -> dict[str, Tensor]:
    embedding = model.lm_head.weight[: len(tokenizer)]
    z, ids = (last.to(embedding.dtype) @ embedding.T).float().topk(NUM_CANDIDATES)
    e, p, position = embedding[ids].float(), z.softmax(-1), torch.arange(len(last))
    rewards = [candidate_rewards(e, p, instructed - last) for instructed in told]
    return {
        "last": last,
        "middle": middle / middle.square().mean(-1, keepdim=True).sqrt(),
        "history": last.cumsum(0) / (position + 1).unsqueeze(-1),
        "ids": ids.int(),
        "z": z,
        "rewards": torch.stack(rewards, -1),
        "position": position,
    }


class Heads(nn.Module):
    """Low-rank maps of some states to one direction an instruction; the form is one of FORMS."""

    def __init__(
        self,
        train: Tokens,
        states: Sequence[str] = ("last",),
        rank: int = 128,
        *,
        constant: bool = False,
        activation: str = "",
        early: bool = False,
    ) -> None:
        """Heads that give no reward yet.

        Args:
            train: the states' scale and the sizes are taken from them.
            states: which of the states are read.
            rank: of each map; 0 for a constant alone.
            constant: whether a direction that no state changes is added.
            activation: "" for none, "gate" (sigmoid of a second map), "gelu".
            early: whether the first EARLY tokens have maps of their own.
        """
        super().__init__()
        D, H = train.rewards.shape[-1], train.last.shape[-1]
        self.states, self.activation, self.early = tuple(states), activation, early
        self.scale = self._inputs(train).square().mean(0).sqrt().clamp_min(1e-6)
        width, groups = len(self.scale), 2 if early else 1
        maps = 2 if activation == "gate" else 1
        self.A = nn.Parameter(torch.randn(groups, maps, D, rank, width) / width**0.5)
        self.B = nn.Parameter(torch.zeros(groups, D, H, rank))
        self.c = nn.Parameter(torch.zeros(groups, D, H), requires_grad=constant)

    def _inputs(self, tokens: Tokens) -> Tensor:
        return torch.cat([getattr(tokens, name) for name in self.states], -1)

    def forward(self, tokens: Tokens) -> Tensor:
        """Directions [n, D, H]."""
        x = self._inputs(tokens) / self.scale
        both = [self._group(group, x) for group in range(len(self.B))]
        if not self.early:
            return both[0]
        return torch.where((tokens.position < EARLY)[:, None, None], both[0], both[1])

    def _group(self, group: int, x: Tensor) -> Tensor:
        low = torch.einsum("mdrx,nx->mndr", self.A[group], x)
        if self.activation == "gate":
            inner = low[0] * low[1].sigmoid()
        else:
            inner = nn.functional.gelu(low[0]) if self.activation == "gelu" else low[0]
        return torch.einsum("dhr,ndr->ndh", self.B[group], inner) + self.c[group]


FORMS: dict[str, dict[str, Any]] = {
    "constant alone": {"rank": 0, "constant": True},
    "last state": {},
    "last state, rank 32": {"rank": 32},
    "last state and constant": {"constant": True},
    "last and middle state": {"states": ("last", "middle"), "constant": True},
    "last state and the answer's mean": {"states": ("last", "history"), "constant": True},
    "last, middle and the answer's mean": {
        "states": ("last", "middle", "history"),
        "constant": True,
    },
    "gate": {"constant": True, "activation": "gate"},
    "gate, rank 64": {"rank": 64, "constant": True, "activation": "gate"},
    "gate, last and middle state": {
        "states": ("last", "middle"),
        "constant": True,
        "activation": "gate",
    },
    "gelu": {"constant": True, "activation": "gelu"},
    f"own heads for the first {EARLY} tokens": {"constant": True, "early": True},
}
"""What the tables call a form -> its arguments of Heads."""


def rewards_of(embedding: Tensor, directions: Tensor, tokens: Tokens) -> Tensor:
    """[n, K, D] of directions [n, D, H], with zero mean under the base."""
    e = nn.functional.embedding(tokens.ids.long(), embedding).float()
    rewards = torch.einsum("nkh,ndh->nkd", e, directions)
    return rewards - torch.einsum("nk,nkd->nd", tokens.p, rewards).unsqueeze(1)


def squared(p: Tensor, rewards: Tensor) -> Tensor:
    """Mean square of rewards [n, K, D] under p [n, K] -> [n, D]."""
    return torch.einsum("nk,nkd->nd", p, rewards.square())


def fit(heads: Heads, embedding: Tensor, train: Tokens, validation: Tokens) -> float:
    """Fit in place, to the epoch that explains most of the validation prompts; returns that share."""
    optimizer = torch.optim.AdamW(
        [p for p in heads.parameters() if p.requires_grad and p.numel()],
        LEARNING_RATE,
        weight_decay=0.01,
    )
    steps = EPOCHS * -(-len(train.z) // TOKENS_AT_ONCE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    variance = squared(train.p, train.rewards).mean(0)
    weights = token_weights(int(train.position.max()) + 1)
    best, kept = -1.0, {n: v.clone() for n, v in heads.state_dict().items()}
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(train.z)).split(TOKENS_AT_ONCE):
            tokens = train[rows]
            error = rewards_of(embedding, heads(tokens), tokens) - tokens.rewards
            loss = (squared(tokens.p, error) / variance).mean(-1) * weights[tokens.position]
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            schedule.step()
        share = float(_share(_products(heads, embedding, validation).sum(0)).mean())
        if share > best:
            best, kept = share, {n: v.clone() for n, v in heads.state_dict().items()}
    heads.load_state_dict(kept)
    return best


@torch.no_grad()
def _products(heads: Heads, embedding: Tensor, tokens: Tokens) -> np.ndarray:
    """[n, D, 2]: squared error and the teacher's square of every token."""
    parts = []
    for rows in torch.arange(len(tokens.z)).split(TOKENS_AT_ONCE):
        part = tokens[rows]
        error = rewards_of(embedding, heads(part), part) - part.rewards
        parts.append(torch.stack([squared(part.p, error), squared(part.p, part.rewards)], -1))
    return torch.cat(parts).numpy()


def _share(products: np.ndarray) -> np.ndarray:
    """Of sums [..., 2] of errors and squares -> [...] explained."""
    return 1 - products[..., 0] / products[..., 1]


def held_out_shares(products: np.ndarray, tokens: Tokens, names: Sequence[str]) -> dict[str, Any]:
    """Instruction -> [share, low, high], and of the answers' first tokens; products [n, D, 2]."""
    prompts, first, shares = tokens.prompt.numpy(), tokens.position.numpy() == 0, {}
    for d, name in enumerate(names):
        for label, counted in ((name, np.ones_like(first)), (f"{name}, first", first)):
            by_prompt = [
                products[counted & (prompts == prompt), d].sum(0) for prompt in np.unique(prompts)
            ]
            shares[label] = statistic_and_interval(by_prompt, _share)
    return shares


@torch.no_grad()
def trust(heads: Heads, embedding: Tensor, train: Tokens, held_out: Tokens) -> list[dict[str, Any]]:
    """Where rewards are right: the factor that brings them nearest to the teacher's, by groups of candidates.

    Distance of a state: squared length after whitening by the training states.
    """
    own = torch.cat(
        [
            rewards_of(embedding, heads(held_out[rows]), held_out[rows])
            for rows in torch.arange(len(held_out.z)).split(TOKENS_AT_ONCE)
        ]
    )
    distance = _distance(train.last, held_out.last)
    quarter = torch.bucketize(distance, distance.quantile(torch.tensor([0.25, 0.5, 0.75])))
    relative = (held_out.z - held_out.z[:, :1]).exp()
    bins = zip(PROBABILITIES, (2.0, *PROBABILITIES), strict=False)
    groups: dict[str, Tensor] = {
        f"{low:g} to {min(high, 1):g} of the best": (relative >= low) & (relative < high)
        for low, high in bins
    }
    everyone = torch.ones_like(relative, dtype=torch.bool)
    for label, chosen in (
        ("first token", held_out.position == 0),
        ("tokens 2 to 4", (held_out.position > 0) & (held_out.position < EARLY)),
        ("later tokens", held_out.position >= EARLY),
        *((f"state: {name}", quarter == i) for i, name in enumerate(QUARTERS)),
    ):
        groups[label] = everyone & chosen.unsqueeze(-1)
    return [{"group": name, **_factor(held_out, own, chosen)} for name, chosen in groups.items()]


def _distance(train: Tensor, states: Tensor) -> Tensor:
    mean, covariance = train.mean(0), torch.cov(train.T)
    ridge = 1e-3 * covariance.diagonal().mean() * torch.eye(len(covariance))
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(covariance + ridge), (states - mean).T, upper=False
    )
    return white.square().sum(0)


def _factor(tokens: Tokens, own: Tensor, chosen: Tensor) -> dict[str, float]:
    """Of candidates [n, K] bool, over all instructions; each candidate counts alike."""
    mine, teacher = own[chosen], tokens.rewards[chosen]
    both, square, wanted = (
        (a * b).sum() for a, b in ((mine, teacher), (mine, mine), (teacher,) * 2)
    )
    return {
        "candidates": int(chosen.sum()),
        "factor": round(float(both / square), 3),
        "share": round(float(1 - (mine - teacher).square().sum() / wanted), 3),
        "best_share": round(float(both**2 / (square * wanted)), 3),
        "teacher": round(float((wanted / teacher.numel()).sqrt()), 3),
    }


def tables(names: Sequence[str], forms: Mapping[str, Any], rows: Sequence[Any]) -> list[str]:
    """Markdown: a line a form, then a line a group of candidates."""
    lines = [
        f"| heads | {' | '.join(names)} | mean | first tokens |",
        f"| --- |{' --- |' * (len(names) + 2)}",
    ]
    for form, shares in forms.items():
        cells = [value_and_interval_text(shares[name]) for name in names]
        means = [np.mean([shares[name + end][0] for name in names]) for end in ("", ", first")]
        lines.append(f"| {form} | {' | '.join(cells)} | {means[0]:.3f} | {means[1]:.3f} |")
    lines += [
        "",
        (
            "| candidates | number | teacher's rewards, root mean square | best factor "
            "| share explained, with factor 1 | with the best |"
        ),
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = [row["group"], f"{row['candidates']:,}"]
        cells += [f"{row[key]:.2f}" for key in ("teacher", "factor", "share", "best_share")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__, adapter=None)
    arguments.add_prompts_option(parser)
    parser.add_argument(
        "--instructions", nargs="+", default=["friendly", "funny", "brief", "formal"]
    )
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--limit", type=int, help="number of prompts (default: all)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--kept", type=Path, help="file of drawn answers (default: beside --out)")
    args = parser.parse_args()
    torch.manual_seed(0)
    cache = AnswerCache(args.kept or args.out.with_suffix(".answers.jsonl"))
    prompts, names = read_prompts(args.prompts)[: args.limit], args.instructions
    sentences = {name: INSTRUCTIONS[name] for name in names}
    conditions = [unguided_condition(), *instructed_conditions(sentences)]
    decoding = DecodingSettings(0.7, args.tokens, dtype=args.dtype)
    (answers,) = cache.draw(AnswerBatch(args.base, None, prompts, conditions, [decoding]))
    folder = resolve_base(args.base)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, args.dtype)).eval()
    tokenizer = load_chat_tokenizer(folder, args.base, None)
    tokens = read_tokens(
        model, tokenizer, prompts * len(conditions), [a for row in answers for a in row], names
    )
    embedding = model.lm_head.weight.detach()
    held_out = int(HELD_OUT * len(prompts))
    validation = held_out + max(1, int(VALIDATION * len(prompts)))
    parts = [
        tokens[(tokens.prompt >= low) & (tokens.prompt < high)]
        for low, high in ((validation, len(prompts)), (held_out, validation), (0, held_out))
    ]
    train, chosen, measured = parts
    forms: dict[str, Any] = {}
    trusted: list[dict[str, Any]] = []
    for form, options in FORMS.items():
        heads = Heads(train, **options)
        fit(heads, embedding, train, chosen)
        forms[form] = held_out_shares(_products(heads, embedding, measured), measured, names)
        print(form, forms[form], flush=True)
        if form == "last state and constant":
            trusted = trust(heads, embedding, train, measured)
    result = {
        "command": arguments.command_line(),
        "prompts": {"train": len(prompts) - validation, "held out": held_out},
        "tokens": {"train": len(train.z), "held out": len(measured.z)},
        "dtype": args.dtype,
        "forms": forms,
        "trust": trusted,
        "table": tables(names, forms, trusted),
    }
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
