"""Method `prompt`: dimensions from instructions, distilled from the base with them in its prompt.

    pad-vllm train BASE --teacher prompt --prompts prompts.jsonl --out ADAPTER \
        --dimension friendly="Answer in a warm and casual tone."

The base answers each prompt twice. With the instructions in its prompt it is the teacher: it reads the same
answers, and its logits say token by token what it would have preferred. The heads start at the closed form,
their gates at a factor of 1; then trunk and heads are trained on the teacher's rewards. Out: an ordinary
adapter whose card has the instructions and the share of the teacher's rewards that it explains. OUT.run/bias
holds the control: the mean direction, without any state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.manifest import AdapterConfig
from pad_vllm.persrm import PersRM
from pad_vllm.text.prompt_digests import digest_prompts
from pad_vllm.training.data import jsonl
from pad_vllm.training.data.content_digest import file_digest
from pad_vllm.training.data.preference_record import PreferenceRecord
from pad_vllm.training.distillation.distillation_dataset import DistillationDataset
from pad_vllm.training.distillation.distillation_examples import (
    DistillationExample,
    DistillationSplit,
    ExampleBuilder,
)
from pad_vllm.training.distillation.distillation_prompts import choose_prompts
from pad_vllm.training.distillation.instructed_answers import InstructedBuild, draw_in_subprocess
from pad_vllm.training.distillation.instructions import instructions_from_settings
from pad_vllm.training.distillation.learned_prefix_stage import (
    AnswersWithRewards,
    LearnedPrefixStage,
)
from pad_vllm.training.distillation.prefix_training import PrefixText
from pad_vllm.training.distillation.prompted_teacher import DistillationStore
from pad_vllm.training.distillation.reward_regression import RewardRegression, explained_shares
from pad_vllm.training.distillation.ridge_statistics import RIDGE_PENALTIES, RidgeStatistics
from pad_vllm.training.loop.trainer import HistoryRow, StageData
from pad_vllm.training.objective.candidate_rewards import (
    RewardFunction,
    constant_rewards,
    head_rewards,
    linear_map_rewards,
    persrm_rewards,
    reward_spreads,
    scale_constants_to_one_logit,
)
from pad_vllm.training.objective.fork_cache import CachedResponse
from pad_vllm.training.objective.training_model import save_bias_adapter, scale_heads_to_one_logit
from pad_vllm.training.report.training_curves import SHARE_EXPLAINED, CurveLabels
from pad_vllm.training.run_context import RunContext
from pad_vllm.training.sampling.sample_responses import failed_prompts_path, remaining_prompts
from pad_vllm.training.sampling.vllm_sampler import SamplingOptions
from pad_vllm.training.training_stages import train_two_stages

_NUM_FIRST_TOKENS = 1  # tokens of an answer that count
_DRAWN_BY = ("n", "max_tokens", "temperature", "top_k", "seed", "dtype")
"""Sampling options on which the answers depend; the chat template is the tokenizer's."""


class DistillationMethod:
    """A TrainingMethod: a regression on the rewards of the instructed base."""

    accuracy_label: ClassVar[str] = "validation shares"
    curve_labels: ClassVar[CurveLabels] = SHARE_EXPLAINED
    model: PersRM
    store: DistillationStore
    statistics: RidgeStatistics  # over the training answers of all workers
    prefixes: LearnedPrefixStage  # where settings ask for prefixes
    penalties: list[float]  # [D] chosen ridge penalties
    shares_before_training: dict[str, Tensor]  # [D] each, on the held-out prompts

    def __init__(self, context: RunContext) -> None:
        teacher = context.settings.teacher
        assert teacher is not None  # Settings require it of this method
        self.context, self.distillation = context, teacher
        self.instructions = instructions_from_settings(teacher)
        self.dimensions = tuple(instruction.dimension for instruction in self.instructions)
        self.builder = ExampleBuilder(context.tokenizer, context.settings, self.instructions)
        self.prompts = choose_prompts(context.settings, teacher, self.builder)
        self.parts = DistillationSplit([], [], [], [], [])  # until the prompts are answered

    def attach_model(self, model: PersRM) -> None:
        """Open the store of the model's activations and the teacher's rewards."""
        context = self.context
        self.model = model
        self.store = DistillationStore(
            model, context.tokenizer, context.settings, context.cache, context.backbone_identity
        )
        context.plan_cache(self.store, self.parts.all())  # none before the prompts are answered
        if self.distillation.prefix is not None:
            self.prefixes = LearnedPrefixStage(
                context, model, self.instructions, self.distillation.prefix
            )

    def draw(self) -> None:
        """Have the base answer the prompts, plainly and with an instruction."""
        context = self.context
        with context.timed("answers"):
            records = self._draw_answers()
        self.parts = self.builder.split(records, self.prompts.first_token_only)
        for name, count in self.parts.counts().items():
            context.log.write_line(f"{name:>22} {count:>6}")

    def gather(self) -> None:
        """Compute fork activations and the teacher's rewards, then the heads' closed form."""
        context = self.context
        with context.timed("cache"):
            context.fill_store(self.store, self.parts.all(), with_targets=False)
        context.announce("teacher", self.store.teacher_work(self.parts.all()))
        with context.timed("teacher"):
            self.statistics = self._collect_teacher_rewards()
        self.set_heads_to_closed_form()

    def learn(self) -> list[HistoryRow]:
        """Train trunk and heads, then the heads, from the closed form on; returns the history."""
        history = train_two_stages(self.context, self.store, self.parts.all(), self.stage_inputs)
        if self.distillation.prefix is not None:
            with self.context.timed("prefixes"):
                self.prefixes.train(partial(self._answers_with_rewards, self.parts.train))
        return history

    def stage_inputs(self) -> tuple[nn.Module, StageData]:
        """The regression loss and the examples that it is trained and validated on."""
        data = DistillationDataset(
            self.store, self.parts, self.context.settings, self.distillation.firsts
        )
        variance = self.statistics.teacher_variance()
        return RewardRegression(self.model, variance, data.mean_weight_per_prompt()), data

    def evaluate(self) -> dict[str, Any]:
        """Share explained of each dimension. Without a trunk, scales the heads to a spread of one logit."""
        trained, held_out = partial(persrm_rewards, self.model), self.parts.held_out
        first_tokens = [*held_out, *self.parts.held_out_first_tokens]
        columns = {
            "trained": self.shares(trained, held_out),
            "first": self.shares(trained, first_tokens, _NUM_FIRST_TOKENS),
            **self.shares_before_training,
            "penalty": torch.tensor(self.penalties),
            "variance": self.statistics.teacher_variance(),
            "spread": self.held_out_spreads(trained),
        }
        if self.distillation.prefix is not None:
            columns |= self.prefixes.shares(
                self._answers_with_rewards(held_out), self._answers_with_rewards(first_tokens)
            )
        # A trunk is shared by all dimensions, so their rewards cannot be scaled one by one.
        if self.model.heads_only:
            scale_heads_to_one_logit(self.model, columns["spread"])
        rows = [
            {"dimension": instruction.dimension, "sentences": list(instruction.sentences)}
            | {name: round(float(column[i]), 4) for name, column in columns.items()}
            for i, instruction in enumerate(self.instructions)
        ]
        self._log_results(rows, list(columns))
        return {"taught": rows}

    def describe_data(self) -> dict[str, Any]:
        """Where the prompts come from, and how many there are of each part."""
        described = (
            f"Prompts of {self.prompts.file.name}; the base answered each as it is, and with one of the "
            f"instructions in its prompt. {self.prompts.unfit} prompts were too long or rejected by the chat "
            "template."
        )
        parts = self.parts
        trained = [*parts.train, *parts.validation, *parts.first_tokens]
        return {
            "described": described,
            "prompts": parts.counts(),
            "trained_prompts": digest_prompts(example.prompt_key for example in trained),
        }

    def made_from(self) -> dict[str, Any]:
        """A digest of the prompts, and how their answers are drawn."""
        drawn = asdict(self._sampling())
        file = self.prompts.file
        # As typed; a record of those that ship names no folder of this machine.
        name = self.distillation.prompts or file.name
        return {
            "prompts": {name: file_digest(file)},
            "sampling": {name: drawn[name] for name in _DRAWN_BY},
        }

    def complete(self, adapter: Adapter) -> Adapter:
        """The adapter with the learned prefixes, if the run has any."""
        if self.distillation.prefix is None:
            return adapter
        return self.prefixes.added_to(adapter)

    def save_control(self, config: AdapterConfig) -> None:
        """Save the mean of d*, which needs no state, in OUT.run/bias."""
        held_out = self._read(self.parts.held_out)
        direction = self.statistics.mean_direction()
        constants = scale_constants_to_one_logit(self.model, direction, held_out)
        save_bias_adapter(config, constants, self.context.folder)

    @torch.no_grad()
    def set_heads_to_closed_form(self) -> None:
        """Set the heads to the ridge regression; measure them and the mean direction on held-out prompts."""
        model, held_out = self.model, self.parts.held_out
        self.penalties = self._best_penalties()
        A, B = self.statistics.low_rank_heads(model.head_A.shape[1], self.penalties)
        model.head_B.zero_()
        model.head_A[:, : A.shape[1]] = A.to(model.head_A)
        model.head_B[..., : B.shape[-1]] = B.to(model.head_B)
        if model.head_G is not None:
            model.head_G.zero_()
        direction = self.statistics.mean_direction().to(model.head_A)
        self.shares_before_training = {
            "constant": self.shares(partial(constant_rewards, model, direction), held_out),
            "heads": self.shares(partial(head_rewards, model), held_out),
        }

    def shares(
        self,
        rewards: RewardFunction,
        examples: Sequence[DistillationExample],
        max_tokens: int = 10**9,
    ) -> Tensor:
        """[D] share of the teacher's rewards that a reward function explains.

        Args:
            rewards: The function.
            examples: Those to measure on.
            max_tokens: How many tokens of every answer count, from the first.
        """
        return explained_shares(rewards, self._read(examples), max_tokens)

    def held_out_spreads(self, rewards: RewardFunction) -> Tensor:
        """[D] spread of rewards over the candidates of the held-out answers, in logits."""
        return reward_spreads(rewards, self._read(self.parts.held_out))

    def _answers_with_rewards(self, examples: Sequence[DistillationExample]) -> AnswersWithRewards:
        """All answers of the examples, for the training of prefixes."""
        texts, rewards = [], []
        for example in examples:
            responses = self.store.responses(example, with_targets=True)
            for ids, response in zip(example.response_ids, responses, strict=True):
                assert response.teacher_rewards is not None
                token_ids = [*example.prompt_ids, *ids][:-1]
                texts.append(PrefixText(token_ids, response.h_B, response.ids, response.z_B))
                rewards.append(response.teacher_rewards)
        return AnswersWithRewards(texts, rewards)

    def _draw_answers(self) -> list[PreferenceRecord]:
        """The base's answers, drawn by worker 0; the run's folder keeps them for a resumed run."""
        file, settings = self.context.folder / "answers.jsonl", self.context.settings
        missing = remaining_prompts(self.prompts.answered, file)
        if self.context.rank == 0 and missing:
            self.context.log.write_line(
                f"answers: {2 * len(missing):,} to draw, of at most {settings.drawn_tokens} tokens"
            )
            build = InstructedBuild(
                tuple(text for instruction in self.instructions for text in instruction.sentences)
            )
            draw_in_subprocess(settings.base, self.prompts.answered, file, self._sampling(), build)
        self.context.wait_for_all_workers()
        records = list(jsonl.read_lines(file, PreferenceRecord.model_validate_json))
        if not records:
            failed = failed_prompts_path(file)
            raise ValueError(
                f"the base gave no prompt of {self.prompts.file} two different answers; the reasons are in "
                f"{failed}. Correct what they name, and remove that file to try again"
            )
        return records

    def _sampling(self) -> SamplingOptions:
        """How the answers are drawn."""
        settings = self.context.settings
        return SamplingOptions(
            n=2,
            max_tokens=settings.drawn_tokens,
            seed=settings.recipe.seed,
            max_model_len=settings.max_prompt + settings.drawn_tokens,
            chat_template=settings.chat_template,
            dtype=settings.dtype,  # in which the teacher reads them
            enforce_eager=True,
            engine_arguments=settings.vllm,
        )

    def _collect_teacher_rewards(self) -> RidgeStatistics:
        """Put the teacher's rewards of all examples into the store.

        Returns the statistics over the training answers of all workers. Each worker saves its own in the
        run's folder, and goes on from there if the rewards of the examples in them are still stored.
        """
        context, parts, progress = self.context, self.parts, self.context.log.progress
        world_size = context.world_size
        files = [
            context.folder / f"moments-{rank}-of-{world_size}.safetensors"
            for rank in range(world_size)
        ]
        file, train = files[context.rank], context.share_of(parts.train)
        statistics = RidgeStatistics.load(file)
        if statistics is None or not self.store.has_rewards(train[: int(statistics.examples)]):
            statistics = self._no_statistics()
        statistics = statistics.to(self.model.head_A.device)
        self.store.collect_rewards(train, progress, statistics, file)
        statistics.save(file)
        others = [
            *parts.validation,
            *parts.held_out,
            *parts.first_tokens,
            *parts.held_out_first_tokens,
        ]
        self.store.collect_rewards(
            context.share_of(others), progress, self._no_statistics(), path=None
        )
        context.wait_for_all_workers()
        every = [RidgeStatistics.load(path) for path in files]
        known = [one.to(self.model.head_A.device) for one in every if one is not None]
        return sum(known, start=self._no_statistics())

    def _no_statistics(self) -> RidgeStatistics:
        head_A = self.model.head_A
        return RidgeStatistics.zeros(len(self.dimensions), head_A.shape[-1], head_A.device)

    def _best_penalties(self) -> list[float]:
        """For each dimension the ridge penalty whose map explains most on the validation prompts."""
        responses = list(self._read(self.parts.validation))
        shares = []
        for penalty in RIDGE_PENALTIES:
            maps = self.statistics.ridge_maps(penalty).to(self.model.head_A)
            rewards = partial(linear_map_rewards, self.model, maps)
            shares.append(explained_shares(rewards, responses))
        return [RIDGE_PENALTIES[best] for best in torch.stack(shares).argmax(0)]

    def _read(self, examples: Sequence[DistillationExample]) -> Iterator[list[CachedResponse]]:
        return map(partial(self.store.responses, with_targets=True), examples)

    def _log_results(self, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
        context = self.context
        context.log.write_line("share of the teacher's rewards explained on held-out prompts:")
        context.log_table_row(["dimension", *columns])
        for row in rows:
            context.log_table_row([row["dimension"], *(f"{row[name]:.2f}" for name in columns)])
