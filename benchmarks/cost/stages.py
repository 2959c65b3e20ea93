"""The stages of training and judging as their commands run them, on made-up tokens of given lengths.

In: a PersRM, lengths, and what to do around each part: count its memory (device_memory.py), or nothing. Used
on real models, and on ones that have shapes only. Each part holds the largest batch that its command makes of
such lengths. Not here: answers that vLLM draws, whose memory is what the engine is told to take.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

import torch

from pad_vllm.choices.feature_sums import feature_sums
from pad_vllm.evaluation.win_rates_and_fluency import answer_losses
from pad_vllm.instruction import InstructionTokens
from pad_vllm.instruction_prefix import InstructedBackbone
from pad_vllm.persrm import PersRM
from pad_vllm.text.conversation import Conversation
from pad_vllm.training.credit.policy_gradient_step import (
    STATE_PENALTIES,
    StepStatistics,
    taken_reward_advantages,
)
from pad_vllm.training.credit.token_credit import CriticStatistics, critic_prompt
from pad_vllm.training.data.prompt_groups import PREFIX_LENGTHS
from pad_vllm.training.distillation.distillation_examples import DistillationExample
from pad_vllm.training.distillation.prefix_training import (
    PrefixText,
    PrefixTexts,
    sentence_prefix,
    train_prefix,
)
from pad_vllm.training.distillation.prompted_teacher import (
    teacher_candidate_rewards,
    teacher_directions,
)
from pad_vllm.training.distillation.reward_regression import (
    RegressionExample,
    RewardRegression,
    explained_shares,
)
from pad_vllm.training.distillation.ridge_statistics import RidgeStatistics
from pad_vllm.training.objective.candidate_rewards import (
    base_mean_square,
    head_rewards,
    linear_map_rewards,
    persrm_rewards,
    reward_spreads,
)
from pad_vllm.training.objective.fork_cache import CachedResponse, compute_responses
from pad_vllm.training.objective.loss_module import PairExample, PreferenceObjective, trunk_hidden
from pad_vllm.training.settings import PrefixSettings, Recipe

Part = Callable[[str], AbstractContextManager[object]]
"""Name of a part -> what its work is done within."""


class Lengths(NamedTuple):
    """In tokens, but for the numbers of prompts."""

    prompt: int
    answer: int
    instruction: int = 12
    prompts: int = 8
    """Of a batch that is read: two answers each, so 16 sequences."""

    micro_groups: int = Recipe.micro_groups
    candidates: int = Recipe.candidates
    rank: int = 16


def examples(model: PersRM, lengths: Lengths) -> list[DistillationExample]:
    """Prompts of two answers, with scores and an instruction for each dimension."""
    D, text = len(model.dimensions), [5] * lengths.prompt
    scores = torch.linspace(0, 1, 2 * D).view(2, 1, D)
    return [
        DistillationExample(
            prompt_key=str(number),
            source="made up",
            prompt_ids=text,
            response_ids=[[7 + answer] * lengths.answer for answer in (0, 1)],
            scores=scores.repeat(1, len(PREFIX_LENGTHS) + 1, 1),
            prefix_scorers=(None,) * D,
            conversation=Conversation.model_validate("hello"),
            instructed_ids=(([3] * lengths.instruction + text,),) * D,
        )
        for number in range(lengths.prompts)
    ]


def pairs(model: PersRM, lengths: Lengths, part: Part) -> None:
    """The cache, a step of stage 1 with the optimiser's, the frozen trunk."""
    read, device = examples(model, lengths), model.head_A.device
    with part("cache"):
        rows = compute_responses(model, read, lengths.candidates)
    rows, read = rows[: lengths.micro_groups], read[: lengths.micro_groups]
    w = torch.eye(len(model.dimensions)).to(device)
    batch = [
        PairExample(row, one.scores.to(device), w) for row, one in zip(rows, read, strict=True)
    ]
    with part("step"):
        PreferenceObjective(model, Recipe())(batch, len(batch)).backward()
        _step_of_optimiser(model)
    model.zero_grad()
    if not model.heads_only:
        again = [
            dataclasses.replace(response, token_ids=_token_ids(one, ids).to(device))
            for one, row in zip(read, rows, strict=True)
            for ids, response in zip(one.response_ids, row, strict=True)
        ]
        with part("step, layers below the fork again"):
            trunk_hidden(model, again)[0].sum().backward()
        model.zero_grad()
        with part("trunk"), torch.no_grad():
            trunk_hidden(model, rows[0])


@torch.no_grad()
def scores(model: PersRM, lengths: Lengths, part: Part) -> None:
    """The cache, the critic, the closed form."""
    read, head_A, D = examples(model, lengths), model.head_A, len(model.dimensions)
    with part("cache"):
        rows = compute_responses(model, read, lengths.candidates)
    rows, read = rows[:1], read[:1]
    before = [torch.zeros(len(ids), D) for ids in read[0].response_ids]
    prompt = critic_prompt(read[0], rows[0], before)
    with part("critic"):
        critic = CriticStatistics.zeros(D, head_A.shape[-1], head_A.device)
        critic.add(prompt)
        fitted = critic.fit()
    del critic
    with part("closed form"):
        step = StepStatistics.zeros(D, head_A.shape[-1], head_A.device)
        step.add(model, rows[0], torch.cat(fitted.credit(prompt, 0.8)), 0.8)
        step.solve(lengths.rank, STATE_PENALTIES)
    del step
    taken_reward_advantages(persrm_rewards(model, rows[0]), rows[0], 0.8)
    reward_spreads(partial(persrm_rewards, model), rows)


def prompt(model: PersRM, lengths: Lengths, part: Part) -> None:
    """The cache, the teacher, the closed form, a step of the regression with the optimiser's."""
    read, head_A, D = examples(model, lengths), model.head_A, len(model.dimensions)
    with part("cache"):
        rows = compute_responses(model, read, lengths.candidates)
    statistics = RidgeStatistics.zeros(D, head_A.shape[-1], head_A.device)
    with part("teacher"), torch.no_grad():
        taught = _taught(model, read, rows, statistics)
    with part("closed form"), torch.no_grad():
        statistics.low_rank_heads(lengths.rank, [1.0] * D)
        maps = statistics.ridge_maps(1.0).to(head_A)
        explained_shares(partial(linear_map_rewards, model, maps), [taught[:2]])
        explained_shares(partial(head_rewards, model), [taught[:2]])
        del maps
    variance = statistics.teacher_variance()
    batch = [
        RegressionExample(taught[i : i + 2], []) for i in range(0, 2 * lengths.micro_groups, 2)
    ]
    with part("step"):
        RewardRegression(model, variance, 4.0)(batch, len(batch)).backward()
        _step_of_optimiser(model)
    model.zero_grad()


def prefixes(model: PersRM, lengths: Lengths, part: Part) -> None:
    """A step of a learned prefix that half of the layers read."""
    backbone = InstructedBackbone(model.backbone, len(model.backbone.model.layers) // 2)
    read = examples(model, lengths)[: lengths.micro_groups]
    rows = [one for row in compute_responses(model, read, lengths.candidates) for one in row]
    ids = [_token_ids(one, ids).tolist() for one in read for ids in one.response_ids]
    texts = [PrefixText(i, r.h_B, r.ids, r.z_B) for i, r in zip(ids, rows, strict=True)]
    rewards = [torch.zeros(r.ids.shape, device=r.h_B.device) for r in rows]
    sentence = InstructionTokens((3, 4), tuple(range(5, 5 + lengths.instruction)))
    start = sentence_prefix(backbone, sentence, 2 * lengths.instruction)
    settings = PrefixSettings(epochs=1)
    with part("prefix"):
        known = PrefixTexts(backbone, model.embeddings, texts)
        train_prefix(known, rewards, start, settings, seed=0, log=lambda *_: None)


@torch.no_grad()
def judging(model: PersRM, lengths: Lengths, part: Part) -> None:
    """Perplexities of 16 answers, sums of features, guided scores."""
    sequences = [([5] * lengths.prompt, [7] * lengths.answer)] * (2 * lengths.prompts)
    with part("perplexities"), model.adapter_off():
        answer_losses(model.backbone, sequences)
    with part("features"):
        feature_sums(model, sequences)
    ids = torch.tensor([[5, 6, 7]], device=model.head_A.device)
    w = torch.ones(1, 3, len(model.dimensions), device=model.head_A.device)
    model.scores(*model.hidden(ids), w, 1.0, 5)


def _taught(
    model: PersRM,
    read: Sequence[DistillationExample],
    rows: Sequence[Sequence[CachedResponse]],
    statistics: RidgeStatistics,
) -> list[CachedResponse]:
    """The answers with the teacher's rewards, and their sums in the statistics."""
    h_B = [response.h_B for row in rows for response in row]
    directions = iter(teacher_directions(model, read, h_B))
    taught = []
    for row in rows:
        for response in row:
            d = next(directions)
            rewards = teacher_candidate_rewards(model, response, d)
            statistics.add(response.h_B.float(), d, base_mean_square(rewards, response.z_B))
            taught.append(dataclasses.replace(response, teacher_rewards=rewards.float()))
    return taught


def _token_ids(one: DistillationExample, answer: list[int]) -> torch.Tensor:
    return torch.tensor([*one.prompt_ids, *answer][:-1])


def _step_of_optimiser(model: PersRM) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    if trained:
        torch.optim.AdamW(trained, foreach=False).step()
