"""Trains a PersRM on scored groups and writes the adapter: the plain, single-process trainer.

Stage 1 trains trunk (LoRA) and heads together under sampled preferences; stage 2 freezes the trunk
and goes on with the heads alone. In: cached groups. Out: the model's weights and a report.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pad_vllm.persrm import PersRM
from pad_vllm.training import loss as objective
from pad_vllm.training.cache import Response, trunk_hidden
from pad_vllm.training.data import CUTS
from pad_vllm.training.preferences import draw


@dataclass(frozen=True)
class Recipe:
    """What a run is made of; every field goes into the model card."""

    b: float = 0.1  # DPO's inverse temperature
    epochs: int = 1  # stage 1, trunk and heads
    head_epochs: int = 1  # stage 2, heads alone
    groups: int = 4  # prompts a step
    preferences: int = 8  # w drawn for each prompt and step
    lora_lr: float = 2e-4
    head_lr: float = 1e-3
    weight_decay: float = 0.0
    sharpness: float = 1.0  # of the labels, per spread of a score
    branch_b: float = 1.0  # b of pairs that differ in one token
    branch_weight: float = 1.0  # of their loss
    branch_share: float = 0.12  # of the tokens whose alternatives are scored
    least_margin: float = 0.3  # pairs closer than this do not count as held-out pairs
    candidates: int = 20
    clip: float = 1.0
    seed: int = 0


@dataclass
class Example:
    """One prompt: its cached responses and their standardised scores [R, C + 1, D]."""

    responses: list[Response]
    scores: Tensor


@dataclass
class Report:
    """losses a step, seconds."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def sequence_ratios(phi: Tensor, responses: list[Response], w: Tensor) -> Tensor:
    """L_w of every beginning (data.CUTS) and the whole of responses [R].

    phi [n, K, D] of all their tokens, w [R, W, D] -> [C + 1, R, W].
    """
    lengths = torch.tensor([len(r.chosen) for r in responses])
    tokens = objective.log_ratios(
        phi,
        torch.cat([r.z_B for r in responses]),
        w.repeat_interleave(lengths, 0),
        torch.cat([r.chosen for r in responses]),
    )
    owner = torch.arange(len(responses)).repeat_interleave(lengths)
    place = torch.cat([torch.arange(int(n)) for n in lengths])
    segment = torch.bucketize(place, torch.tensor(CUTS), right=True)
    pieces = torch.zeros((len(CUTS) + 1) * len(responses), w.shape[1])
    pieces = pieces.index_add(0, segment * len(responses) + owner, tokens)
    return pieces.view(len(CUTS) + 1, len(responses), -1).cumsum(0)


def all_features(model: PersRM, responses: list[Response]) -> Tensor:
    """phi [n, K, D] of every token of the responses, one after the other."""
    h_T = [r.h_T for r in responses if r.h_T is not None] or trunk_hidden(model, responses)
    return model.features(
        torch.cat([r.h_B for r in responses]), torch.cat(h_T), torch.cat([r.ids for r in responses])
    )


def step_loss(model: PersRM, batch: list[Example], w: Tensor, recipe: Recipe) -> Tensor:
    """Mean DPO loss over the batch's pairs of responses, plus that over pairs of next tokens.

    w [groups, W, D].
    """
    responses = [r for example in batch for r in example.responses]
    sizes = [len(example.responses) for example in batch]
    each_w = w.repeat_interleave(torch.tensor(sizes), 0)
    phi = all_features(model, responses)
    ratios = sequence_ratios(phi, responses, each_w)
    total, count = torch.zeros(()), torch.zeros(())
    for row, (example, part) in enumerate(zip(batch, ratios.split(sizes, 1), strict=True)):
        for cut, beginning in enumerate(part):
            margins = objective.pair_margins(example.scores[:, cut], w[row])
            loss, pairs = objective.pair_loss(beginning, margins, recipe.b, recipe.sharpness)
            total, count = total + loss, count + pairs
    branches, pairs = branch_step(phi, responses, each_w, recipe)
    return total / count.clamp_min(1) + recipe.branch_weight * branches / pairs.clamp_min(1)


def branch_step(
    phi: Tensor, responses: list[Response], w: Tensor, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """Summed branch loss and pairs of responses with scored branches; w [R, W, D]."""
    starts = torch.tensor([0, *(len(r.chosen) for r in responses)]).cumsum(0)
    scored = [
        (start + r.branch_at, w[row].expand(len(r.branch_at), -1, -1), r.branch_scores)
        for row, (start, r) in enumerate(zip(starts, responses, strict=False))
        if r.branch_at is not None and r.branch_scores is not None
    ]
    if not scored:
        return torch.zeros(()), torch.zeros(())
    at, each_w, scores = (torch.cat(parts) for parts in zip(*scored, strict=True))
    return objective.branch_loss(phi[at], each_w, scores, recipe.branch_b, recipe.sharpness)


def batches(examples: list[Example], size: int, rng: random.Random) -> Iterator[list[Example]]:
    """Random batches of alike length, so that little is padding."""
    order = sorted(examples, key=lambda e: (max(len(r.forked) for r in e.responses), rng.random()))
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    rng.shuffle(chunks)
    yield from chunks


def train(model: PersRM, examples: list[Example], recipe: Recipe) -> Report:
    """Both stages; the model is changed in place."""
    report, start = Report(), time.monotonic()
    lora = [p for n, p in model.lora.named_parameters() if p.requires_grad]
    heads = [model.head_A, model.head_B]
    stages = [
        (
            recipe.epochs,
            [{"params": lora, "lr": recipe.lora_lr}, {"params": heads, "lr": recipe.head_lr}],
        ),
        (recipe.head_epochs, [{"params": heads, "lr": recipe.head_lr}]),
    ]
    for number, (epochs, parameters) in enumerate(stages):
        if number == 1:
            freeze_trunk(model, examples)
        run_stage(model, examples, recipe, epochs, parameters, number, report)
    report.seconds = time.monotonic() - start
    return report


def run_stage(
    model: PersRM,
    examples: list[Example],
    recipe: Recipe,
    epochs: int,
    parameters: list[dict[str, object]],
    stage: int,
    report: Report,
) -> None:
    """AdamW with a short warm-up and a cosine to zero over `epochs`."""
    steps = epochs * -(-len(examples) // recipe.groups)
    if not steps:
        return
    optimiser = torch.optim.AdamW(parameters, weight_decay=recipe.weight_decay)
    rates = [group["lr"] for group in optimiser.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rates, total_steps=steps + 1, pct_start=0.1, cycle_momentum=False
    )
    rng = random.Random(recipe.seed + stage)
    generator = torch.Generator().manual_seed(recipe.seed + stage)
    count = len(model.dimensions)
    for epoch in range(epochs):
        for number, batch in enumerate(batches(examples, recipe.groups, rng)):
            shape = (len(batch), recipe.preferences, count)
            w = draw(len(batch) * recipe.preferences, count, generator).view(shape)
            loss = step_loss(model, batch, w, recipe)
            optimiser.zero_grad()
            loss.backward()
            for group in optimiser.param_groups:
                torch.nn.utils.clip_grad_norm_(group["params"], recipe.clip)
            optimiser.step()
            schedule.step()
            report.losses.append(loss.item())
            if number % 20 == 0:
                mean = sum(report.losses[-20:]) / len(report.losses[-20:])
                print(
                    f"stage {stage + 1} epoch {epoch + 1} step {number} loss {mean:.4f}", flush=True
                )


@torch.no_grad()
def freeze_trunk(model: PersRM, examples: list[Example]) -> None:
    """Keep h_T of every response; the fork's activations are not needed after this."""
    for example in examples:
        for response, hidden in zip(
            example.responses, trunk_hidden(model, example.responses), strict=True
        ):
            response.h_T = hidden.clone()


@torch.no_grad()
def accuracy(model: PersRM, examples: list[Example], recipe: Recipe) -> dict[str, float]:
    """Held-out pair accuracy of L_w: each dimension alone, and 32 unseen mixes ("mixes")."""
    count = len(model.dimensions)
    mixes = draw(256, count, torch.Generator().manual_seed(recipe.seed + 99))
    mixes = mixes[(mixes != 0).sum(-1) > 1][:32]
    w = torch.cat([torch.eye(count), mixes])
    hits, pairs = torch.zeros(len(w)), torch.zeros(len(w))
    for example in examples:
        responses = example.responses
        phi = all_features(model, responses)
        ratios = sequence_ratios(phi, responses, w.expand(len(responses), -1, -1))[-1]
        margins = objective.pair_margins(example.scores[:, -1], w)
        hit, seen = objective.pair_hits(ratios, margins, recipe.least_margin)
        hits, pairs = hits + hit, pairs + seen
    rates = hits / pairs.clamp_min(1)
    named = {name: round(rates[i].item(), 4) for i, name in enumerate(model.dimensions)}
    return {**named, "mixes": round((hits[count:].sum() / pairs[count:].sum()).item(), 4)}
