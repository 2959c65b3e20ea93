"""A run that scores teach in one step: training/training_run.py without a loop.

    pad-vllm train BASE --teacher scores --data jsonl=scored.jsonl --out ADAPTER

The answers are BASE's own (`pad-vllm sample`, `pad-vllm score`). Every token gets its credit (critic.py), one
natural policy-gradient step gives heads and constants (step.py), scaled to rewards of one logit's spread over
the candidates. In: Settings with by_credit. Out: the ordinary adapter, heads alone; its card has the shares
of pairs ranked, and how far rewards and credit of held-out answers go together. Beside it, in OUT.run/bias,
the best constants without any state.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pad_vllm.adapter.adapter import Adapter
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
from pad_vllm.training.data.prepare_data import PreparedData
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
from pad_vllm.training.report import held_out_accuracy
from pad_vllm.training.training_run import TrainingRun


class CreditRun(TrainingRun):
    """Run for settings with by_credit."""

    critics: FittedCritic
    solved: PolicyGradientStep

    def _prepared(self) -> PreparedData:
        settings, top = self.settings, self.backbone.num_layers
        if settings.fork_layer not in (None, top):
            raise ValueError(
                f"--fork-layer {settings.fork_layer}: --teacher scores teaches heads alone, {top} here. "
                "Leave it out"
            )
        if settings.text_preferences:
            raise ValueError(
                f"--text-preferences {settings.text_preferences}: --teacher scores learns every dimension "
                "apart, from prompts as they are. Leave it out"
            )
        return super()._prepared()

    def _store(self, cache: Path, identity: str) -> TrainingStore:
        settings = self.settings.without_branches()
        return TrainingStore(self.model, self.tokenizer, settings, cache, identity)

    @torch.no_grad()
    def _learn(self) -> list[HistoryRow]:
        model, recipe = self.model, self.settings.recipe
        count, hidden = len(model.dimensions), model.head_A.shape[-1]
        own = self.prepared.train[self.rank :: self.world]
        with self._timed("critic"):
            before = self._so_far(own)
            critic = CriticStatistics.zeros(count, hidden)
            for group, one in zip(own, before, strict=True):
                critic.add(critic_prompt(group, self.store.responses(group), one))
            self.critics = critic.map_sums(self._everyones).fit()
        with self._timed("step"):
            sums = StepStatistics.zeros(count, hidden)
            for number, (group, one) in enumerate(zip(own, before, strict=True)):
                if number % 50 == 0:
                    self.log.progress("credit", number, len(own))
                responses = self.store.responses(group)
                credit = self._credit_of(group, responses, one)
                sums.add(model, responses, credit, recipe.temperature)
            self.solved = self._chosen(sums.map_sums(self._everyones))
        self._put(self.solved)
        return []

    def _chosen(self, sums: StepStatistics) -> PolicyGradientStep:
        """Of each dimension the step under the penalty that goes best with credit on validation prompts."""
        validation, rank = self.prepared.validation, self.model.head_A.shape[1]
        solved = sums.solve(rank, STATE_PENALTIES)
        credit, found = self._credit(validation), []
        for one in solved:
            self._put(one)
            found.append(self._together(partial(persrm_rewards, self.model), validation, credit))
        return PolicyGradientStep.select(solved, torch.stack(found).argmax(0).tolist())

    def _put(self, solved: PolicyGradientStep) -> None:
        for ours, theirs in zip(self.model.heads, solved.heads, strict=True):
            assert ours is not None
            ours[tuple(map(slice, theirs.shape))] = theirs.to(ours)

    def _credit(self, groups: Sequence[PromptGroup]) -> list[Tensor]:
        """[n, D] of all answers of each."""
        return [
            self._credit_of(group, self.store.responses(group), before)
            for group, before in zip(groups, self._so_far(groups), strict=True)
        ]

    def _credit_of(
        self, group: PromptGroup, responses: Sequence[CachedResponse], before: Sequence[Tensor]
    ) -> Tensor:
        prompt = critic_prompt(group, responses, before)
        return torch.cat(self.critics.credit(prompt, self.settings.recipe.trace))

    def _everyones(self, sums: Tensor) -> Tensor:
        """Those of all workers, added up."""
        return self.accelerator.reduce(sums.to(self.accelerator.device)).cpu()

    def _so_far(self, groups: Sequence[PromptGroup]) -> list[list[Tensor]]:
        found = []
        for number, group in enumerate(groups):
            if number % 50 == 0:
                self.log.progress("scores so far", number, len(groups))
            found.append(scores_so_far(group, self.tokenizer))
        return found

    def _figures(self) -> dict[str, Any]:
        model, held_out = self.model, self.prepared.held_out
        trained = partial(persrm_rewards, model)
        alone = partial(constant_rewards, model, self.solved.constant_only.to(model.head_A))
        credit = self._credit(held_out)
        columns = {
            "critic": self.critics.explained,
            "trained": self._together(trained, held_out, credit),
            "constant": self._together(alone, held_out, credit),
        }
        scale_heads_to_one_logit(
            model, reward_spreads(trained, map(self.store.responses, held_out))
        )
        rows = [
            {"dimension": name} | {k: round(float(c[i]), 4) for k, c in columns.items()}
            for i, name in enumerate(model.dimensions)
        ]
        self.log.write_line(
            "what the critic explains of a score; rewards and credit, correlation on held-out prompts:"
        )
        self._say_row(["dimension", *columns])
        for row in rows:
            self._say_row(list(row.values()))
        pairs = held_out_accuracy.accuracy_rows(self.store, held_out, self.settings.recipe)
        for pair in pairs:
            share = pair["trained"].get("pairs", 0.5)
            self.log.write_line(f"{pair['preference']}: {share:.1%} of the held-out pairs")
        return {"credited": rows, "held_out": pairs}

    def _together(
        self, rewards: RewardFunction, groups: Sequence[PromptGroup], credit: Sequence[Tensor]
    ) -> Tensor:
        """[D] correlation of the rewards of the tokens that answers took with their credit."""
        sums = torch.zeros(3, len(self.model.dimensions), dtype=torch.float64)
        for group, one in zip(groups, credit, strict=True):
            responses = self.store.responses(group)
            temperature = self.settings.recipe.temperature
            paid = (
                taken_reward_advantages(rewards(responses), responses, temperature).cpu().double()
            )
            sums += torch.stack([paid * one, paid * paid, one * one]).sum(1)
        return (sums[0] / (sums[1] * sums[2]).sqrt().clamp_min(1e-12)).float()

    def _write(self, adapter: Adapter, history: list[HistoryRow]) -> None:
        """Beside the adapter the best constants, which need no state."""
        held_out = map(self.store.responses, self.prepared.held_out)
        constant = scale_constants_to_one_logit(self.model, self.solved.constant_only, held_out)
        save_bias_adapter(adapter.config, constant, self.work)
        super()._write(adapter, history)
