"""Method `scores`: one policy-gradient step in closed form from scores of the base's own answers.

    pad-vllm train BASE --teacher scores --data jsonl=scored.jsonl --out ADAPTER

The answers come from `pad-vllm sample`, the scores from `pad-vllm score`. Every token gets its credit
(token_credit.py); one natural policy-gradient step makes heads and constants of it
(policy_gradient_step.py), scaled to rewards with a spread of one logit over the candidates. Out: an adapter
with heads only. Its card has the share of held-out pairs that it ranks as their scores do, and the
correlation of rewards and credit on held-out answers. OUT.run/bias holds the control: the best constants,
without any state.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.manifest import AdapterConfig
from pad_vllm.persrm import PersRM
from pad_vllm.training.credit.policy_gradient_step import (
    STATE_PENALTIES,
    PolicyGradientStep,
    StepStatistics,
    taken_reward_advantages,
)
from pad_vllm.training.credit.token_credit import (
    CriticStatistics,
    FittedCritic,
    critic_prompt,
    scores_so_far,
)
from pad_vllm.training.data.prompt_groups import PromptGroup
from pad_vllm.training.loop.trainer import HistoryRow
from pad_vllm.training.objective.candidate_rewards import (
    RewardFunction,
    constant_rewards,
    persrm_rewards,
    reward_spreads,
    scale_constants_to_one_logit,
)
from pad_vllm.training.objective.fork_cache import CachedResponse
from pad_vllm.training.objective.training_model import save_bias_adapter, scale_heads_to_one_logit
from pad_vllm.training.objective.training_store import TrainingStore
from pad_vllm.training.report.held_out_accuracy import AccuracyRow, accuracy_rows
from pad_vllm.training.report.training_curves import PAIR_ACCURACY, CurveLabels
from pad_vllm.training.run_context import RunContext
from pad_vllm.training.scored_data import fill_store_with, read_scored_data, sources_read
from pad_vllm.training.settings import Settings


class CreditMethod:
    """A TrainingMethod: heads and constants from the credit of each token, in one step."""

    accuracy_label: ClassVar[str] = "validation pairs"
    curve_labels: ClassVar[CurveLabels] = PAIR_ACCURACY
    model: PersRM
    store: TrainingStore
    critic: FittedCritic
    step: PolicyGradientStep

    def __init__(self, context: RunContext) -> None:
        _require_trainable(context.settings, context.backbone.num_layers)
        self.context = context
        self.prepared = read_scored_data(context)
        self.dimensions = self.prepared.dimensions

    def attach_model(self, model: PersRM) -> None:
        """Open the store of the model's activations, without scores of alternative next tokens."""
        context, settings = self.context, self.context.settings.without_branches()
        self.model = model
        self.store = TrainingStore(
            model, context.tokenizer, settings, context.cache, context.backbone_identity
        )
        context.plan_cache(self.store, self.prepared.groups())

    def draw(self) -> None:
        """The responses are the data's."""

    def gather(self) -> None:
        """Compute the final hidden states and candidates of all responses."""
        fill_store_with(self.prepared, self.store, self.context)

    @torch.no_grad()
    def learn(self) -> list[HistoryRow]:
        """Fit the critic, then take the step. There is no history: nothing is done step by step."""
        groups = self.context.share_of(self.prepared.train)
        with self.context.timed("critic"):
            scores_before = self._scores_so_far(groups)
            self.critic = self._fit_critic(groups, scores_before)
        with self.context.timed("step"):
            statistics = self._step_statistics(groups, scores_before)
            self.step = self._best_step(statistics)
        self._set_heads(self.step)
        return []

    def evaluate(self) -> dict[str, Any]:
        """Correlation of rewards and credit, accuracy on pairs. Scales the heads to a spread of one logit."""
        held_out = self.prepared.held_out
        trained = partial(persrm_rewards, self.model)
        correlations = self._held_out_correlations(trained)
        spreads = reward_spreads(trained, map(self.store.responses, held_out))
        scale_heads_to_one_logit(self.model, spreads)
        rows = [
            {"dimension": name} | {k: round(float(c[i]), 4) for k, c in correlations.items()}
            for i, name in enumerate(self.dimensions)
        ]
        pairs = accuracy_rows(self.store, held_out, self.context.settings.recipe)
        self._log_results(rows, pairs)
        return {"credited": rows, "held_out": pairs}

    def describe_data(self) -> dict[str, Any]:
        """Records, groups and prompts of each source."""
        return self.prepared.report.as_dict()

    def made_from(self) -> dict[str, Any]:
        """Digests of the files of each source."""
        return sources_read(self.prepared)

    def complete(self, adapter: Adapter) -> Adapter:
        """The adapter has all that was learned."""
        return adapter

    def save_control(self, config: AdapterConfig) -> None:
        """Save the best constants, which need no state, in OUT.run/bias."""
        held_out = map(self.store.responses, self.prepared.held_out)
        constants = scale_constants_to_one_logit(self.model, self.step.constant_only, held_out)
        save_bias_adapter(config, constants, self.context.folder)

    def _fit_critic(
        self, groups: Sequence[PromptGroup], scores_before: Sequence[Sequence[Tensor]]
    ) -> FittedCritic:
        """The critic of all workers' groups; each worker adds its own."""
        head_A = self.model.head_A
        statistics = CriticStatistics.zeros(len(self.dimensions), head_A.shape[-1], head_A.device)
        for group, scores in zip(groups, scores_before, strict=True):
            statistics.add(critic_prompt(group, self.store.responses(group), scores))
        return statistics.map_sums(self.context.sum_over_workers).fit()

    def _step_statistics(
        self, groups: Sequence[PromptGroup], scores_before: Sequence[Sequence[Tensor]]
    ) -> StepStatistics:
        """The sums over the tokens of all workers' groups; each worker adds its own."""
        head_A = self.model.head_A
        statistics = StepStatistics.zeros(len(self.dimensions), head_A.shape[-1], head_A.device)
        for number, (group, scores) in enumerate(zip(groups, scores_before, strict=True)):
            if number % 50 == 0:
                self.context.log.progress("credit", number, len(groups))
            responses = self.store.responses(group)
            credit = self._credit_of_group(group, responses, scores)
            temperature = self.context.settings.recipe.temperature
            statistics.add(self.model, responses, credit, temperature)
        return statistics.map_sums(self.context.sum_over_workers)

    def _best_step(self, statistics: StepStatistics) -> PolicyGradientStep:
        """For each dimension the penalty whose rewards correlate most with credit on validation prompts."""
        validation, rank = self.prepared.validation, self.model.head_A.shape[1]
        steps = statistics.solve(rank, STATE_PENALTIES)
        credit, correlations = self._credit(validation), []
        for step in steps:
            self._set_heads(step)
            rewards = partial(persrm_rewards, self.model)
            correlations.append(self._correlation(rewards, validation, credit))
        return PolicyGradientStep.select(steps, torch.stack(correlations).argmax(0).tolist())

    def _set_heads(self, step: PolicyGradientStep) -> None:
        """Copy the step's tensors into the model's heads; of a smaller rank, into the first rows."""
        for ours, theirs in zip(self.model.heads, step.heads, strict=True):
            if ours is not None and theirs is not None:
                ours[tuple(map(slice, theirs.shape))] = theirs.to(ours)

    def _credit(self, groups: Sequence[PromptGroup]) -> list[Tensor]:
        """For each group the credit [n, D] of the n tokens of all its answers."""
        return [
            self._credit_of_group(group, self.store.responses(group), scores)
            for group, scores in zip(groups, self._scores_so_far(groups), strict=True)
        ]

    def _credit_of_group(
        self,
        group: PromptGroup,
        responses: Sequence[CachedResponse],
        scores_before: Sequence[Tensor],
    ) -> Tensor:
        prompt = critic_prompt(group, responses, scores_before)
        return torch.cat(self.critic.credit(prompt, self.context.settings.recipe.trace))

    def _scores_so_far(self, groups: Sequence[PromptGroup]) -> list[list[Tensor]]:
        """For each group what `scores_so_far` returns of it; takes most of the time of the method."""
        scores = []
        for number, group in enumerate(groups):
            if number % 50 == 0:
                self.context.log.progress("scores so far", number, len(groups))
            scores.append(scores_so_far(group, self.context.tokenizer))
        return scores

    def _held_out_correlations(self, trained: RewardFunction) -> dict[str, Tensor]:
        """[D] each: what the critic explains; rewards with credit, of the model and of the constants."""
        held_out = self.prepared.held_out
        constants = self.step.constant_only.to(self.model.head_A)
        constant_only = partial(constant_rewards, self.model, constants)
        credit = self._credit(held_out)
        return {
            "critic": self.critic.explained,
            "trained": self._correlation(trained, held_out, credit),
            "constant": self._correlation(constant_only, held_out, credit),
        }

    def _correlation(
        self, rewards: RewardFunction, groups: Sequence[PromptGroup], credit: Sequence[Tensor]
    ) -> Tensor:
        """[D] correlation over all tokens of the rewards of the tokens taken with their credit."""
        sums = torch.zeros(3, len(self.dimensions), dtype=torch.float64)
        temperature = self.context.settings.recipe.temperature
        for group, tokens_credit in zip(groups, credit, strict=True):
            responses = self.store.responses(group)
            taken = taken_reward_advantages(rewards(responses), responses, temperature)
            taken = taken.cpu().double()
            products = [taken * tokens_credit, taken * taken, tokens_credit * tokens_credit]
            sums += torch.stack(products).sum(1)
        return (sums[0] / (sums[1] * sums[2]).sqrt().clamp_min(1e-12)).float()

    def _log_results(self, rows: Sequence[dict[str, Any]], pairs: Sequence[AccuracyRow]) -> None:
        log = self.context.log
        log.write_line(
            "share of a score that the critic explains; correlation of rewards and credit on held-out "
            "prompts:"
        )
        self.context.log_table_row(list(rows[0]))
        for row in rows:
            self.context.log_table_row(list(row.values()))
        for pair in pairs:
            share = pair["trained"].get("pairs", 0.5)
            log.write_line(f"{pair['preference']}: {share:.1%} of the held-out pairs")


def _require_trainable(settings: Settings, num_layers: int) -> None:
    """Raise ValueError for settings that one step cannot train with."""
    if settings.fork_layer not in (None, num_layers):
        raise ValueError(
            f"--fork-layer {settings.fork_layer}: --teacher scores trains heads only, --fork-layer "
            f"{num_layers} with this base. Leave it out"
        )
    if settings.text_preferences:
        raise ValueError(
            f"--text-preferences {settings.text_preferences}: --teacher scores learns every dimension "
            "apart, from prompts as they are. Leave it out"
        )
