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
from pad_vllm.training.preferences import draw


@dataclass(frozen=True)
class Recipe:
    """What a run is made of; every field goes into the model card."""

    b: float = 0.1  # DPO's inverse temperature
    epochs: int = 2  # stage 1, trunk and heads
    head_epochs: int = 3  # stage 2, heads alone
    groups: int = 4  # prompts a step
    preferences: int = 8  # w drawn for each prompt and step
    lora_lr: float = 5e-4
    head_lr: float = 2e-3
    weight_decay: float = 0.0
    least_margin: float = 0.3  # pairs closer than this are noise, in spreads of a score
    candidates: int = 20
    clip: float = 1.0
    seed: int = 0


@dataclass
class Example:
    """One prompt: its cached responses and their standardised scores [R, D]."""

    responses: list[Response]
    scores: Tensor


@dataclass
class Report:
    """losses a step, accuracy a preference name, seconds."""

    losses: list[float] = field(default_factory=list)
    accuracy: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def sequence_ratios(model: PersRM, responses: list[Response], h_T: list[Tensor], w: Tensor) -> Tensor:
    """L_w of responses [R] under w [R, W, D] -> [R, W]."""
    lengths = torch.tensor([len(r.chosen) for r in responses])
    phi = model.features(
        torch.cat([r.h_B for r in responses]), torch.cat(h_T), torch.cat([r.ids for r in responses])
    )
    tokens = objective.log_ratios(
        phi,
        torch.cat([r.z_B for r in responses]),
        w.repeat_interleave(lengths, 0),
        torch.cat([r.chosen for r in responses]),
    )
    owner = torch.arange(len(responses)).repeat_interleave(lengths)
    return torch.zeros(len(responses), w.shape[1]).index_add(0, owner, tokens)


def step_loss(model: PersRM, batch: list[Example], w: Tensor, recipe: Recipe) -> Tensor:
    """Mean DPO loss over the batch's pairs; w [groups, W, D]."""
    responses = [r for example in batch for r in example.responses]
    sizes = [len(example.responses) for example in batch]
    h_T = [r.h_T for r in responses if r.h_T is not None] or trunk_hidden(model, responses)
    ratios = sequence_ratios(model, responses, h_T, w.repeat_interleave(torch.tensor(sizes), 0))
    total, count = torch.zeros(()), torch.zeros(())
    for row, (example, part) in enumerate(zip(batch, ratios.split(sizes), strict=True)):
        margins = objective.pair_margins(example.scores, w[row])
        loss, pairs = objective.pair_loss(part, margins, recipe.b, recipe.least_margin)
        total, count = total + loss, count + pairs
    return total / count.clamp_min(1)


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
        (recipe.epochs, [{"params": lora, "lr": recipe.lora_lr}, {"params": heads, "lr": recipe.head_lr}]),
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
                print(f"stage {stage + 1} epoch {epoch + 1} step {number} loss {mean:.4f}", flush=True)


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
        h_T = [r.h_T for r in responses if r.h_T is not None] or trunk_hidden(model, responses)
        ratios = sequence_ratios(model, responses, h_T, w.expand(len(responses), -1, -1))
        margins = objective.pair_margins(example.scores, w)
        hit, seen = objective.pair_hits(ratios, margins, recipe.least_margin)
        hits, pairs = hits + hit, pairs + seen
    rates = hits / pairs.clamp_min(1)
    named = {name: round(rates[i].item(), 4) for i, name in enumerate(model.dimensions)}
    return {**named, "mixes": round((hits[count:].sum() / pairs[count:].sum()).item(), 4)}
