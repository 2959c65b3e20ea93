"""A run whose dimensions are taught by sentences: training/training_run.py with another teacher.

    pad-vllm train BASE --teacher prompt --prompts prompts.jsonl --out ADAPTER \
        --dimension friendly="Answer in a warm and casual tone."

The base answers each prompt twice, and, told the sentences, says token by token what it would have chosen
instead. Heads start at the closed form, then trunk and heads learn the rest. In: Settings with a Teacher.
Out: the ordinary adapter; its card has the sentences and the shares of the teacher's rewards explained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.training.data import jsonl
from pad_vllm.training.data.conversation import Conversation
from pad_vllm.training.data.data_report import DataReport
from pad_vllm.training.data.preference_record import PreferenceRecord, unit_hash
from pad_vllm.training.data.prepare_data import PreparedData
from pad_vllm.training.data.prompt_groups import PromptGroup
from pad_vllm.training.distillation.distillation_dataset import DistillationDataset
from pad_vllm.training.distillation.distillation_examples import (
    DistillationExample,
    DistillationSplit,
    ExampleBuilder,
)
from pad_vllm.training.distillation.instructed_answers import InstructedBuild, draw_in_subprocess
from pad_vllm.training.distillation.instructions import instructions_of
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
from pad_vllm.training.objective.training_store import TrainingStore
from pad_vllm.training.report.training_curves import SHARE_EXPLAINED
from pad_vllm.training.sampling.sample_responses import read_prompts
from pad_vllm.training.sampling.vllm_sampler import SamplingOptions
from pad_vllm.training.settings import DistillationSettings
from pad_vllm.training.training_run import TrainingRun

SHIPPED_PROMPTS = Path(__file__).with_name("prompts.txt")
"""Prompts of many kinds, for those who have none of their own."""

_FIRST = 1  # tokens


class DistillationRun(TrainingRun):
    """Run for settings with a teacher."""

    measured = "validation shares"
    shown = SHARE_EXPLAINED
    store: DistillationStore
    moments: RidgeStatistics

    def _prepared(self) -> PreparedData:
        self.asked = instructions_of(self._teacher)
        self.lessons = ExampleBuilder(self.tokenizer, self.settings, self.asked)
        self.parts = DistillationSplit([], [], [], [], [])  # until there are answers
        self.answered, self.others = self._prompts()
        dimensions = tuple(wish.dimension for wish in self.asked)
        return PreparedData(dimensions, [], [], [], DataReport({}, {}, {}))

    @property
    def _teacher(self) -> DistillationSettings:
        assert self.settings.teacher is not None
        return self.settings.teacher

    @property
    def _file(self) -> Path:
        return Path(self._teacher.prompts) if self._teacher.prompts else SHIPPED_PROMPTS

    def _prompts(self) -> tuple[list[Conversation], list[Conversation]]:
        """Those that are answered, and others of which the first token is taught, in random order."""
        teacher, seed = self._teacher, self.settings.recipe.seed
        read = sorted(read_prompts(self._file), key=lambda p: unit_hash(f"{seed} {p.to_json()}"))
        fit = [prompt for prompt in read if self.lessons.fits(prompt)]
        self.unfit = len(read) - len(fit)
        if not fit:
            raise ValueError(
                f"--prompts {self._file}: none of its {len(read)} prompts has at most "
                f"{self.settings.max_prompt} tokens and suits the chat template. Raise --max-prompt, "
                "or give others"
            )
        most = teacher.answers
        return fit[:most], fit[most : most + teacher.firsts * most]

    def _store(self, cache: Path, identity: str) -> TrainingStore:
        return DistillationStore(self.model, self.tokenizer, self.settings, cache, identity)

    def _gather(self) -> list[PromptGroup]:
        with self._timed("answers"):
            records = self._answers()
        self.parts = self.lessons.split(records, self.others)
        for name, count in self.parts.counts().items():
            self.log.write_line(f"{name:>22} {count:>6}")
        with self._timed("cache"):
            self._build(self.parts.all(), scored=False)
        with self._timed("teacher"):
            self.moments = self._taught()
        self._start()
        return [*self.parts.all()]

    def _answers(self) -> list[PreferenceRecord]:
        """Drawn by worker 0; the run's folder has them, also those of an earlier start."""
        out, settings = self.work / "answers.jsonl", self.settings
        if self.rank == 0:
            sampling = SamplingOptions(
                n=2,
                max_tokens=settings.max_response,
                seed=settings.recipe.seed,
                max_model_len=settings.max_prompt + settings.max_response,
                chat_template=settings.chat_template,
                dtype=settings.dtype,  # as the teacher reads them
                enforce_eager=True,
            )
            build = InstructedBuild(tuple(one for wish in self.asked for one in wish.sentences))
            draw_in_subprocess(settings.base, self.answered, out, sampling, build)
        self.accelerator.wait_for_everyone()
        return list(jsonl.read_lines(out, PreferenceRecord.model_validate_json))

    def _taught(self) -> RidgeStatistics:
        """The teacher's rewards of every lesson are in the store; the sums over the training answers."""
        parts, rank, world, progress = self.parts, self.rank, self.world, self.log.progress
        paths = [self.work / f"moments-{r}-of-{world}.safetensors" for r in range(world)]
        sizes = len(self.asked), self.model.head_A.shape[-1]
        own = RidgeStatistics.load(paths[rank])
        if own is None or not self.store.has_rewards(parts.train[rank::world][: int(own.lessons)]):
            own = RidgeStatistics.zeros(*sizes)
        self.store.collect_rewards(parts.train[rank::world], progress, own, paths[rank])
        own.save(paths[rank])
        rest = [*parts.validation, *parts.held_out, *parts.firsts, *parts.held_out_firsts]
        self.store.collect_rewards(rest[rank::world], progress, RidgeStatistics.zeros(*sizes), None)
        self.accelerator.wait_for_everyone()
        every = [RidgeStatistics.load(path) or RidgeStatistics.zeros(*sizes) for path in paths]
        total = every[0]
        for one in every[1:]:
            total = total + one
        return total

    @torch.no_grad()
    def _start(self) -> None:
        """The heads at the closed form; how well a constant direction and these heads do."""
        model = self.model
        self.ridges = self._ridges()
        A, B = self.moments.low_rank_heads(model.head_A.shape[1], self.ridges)
        model.head_B.zero_()
        model.head_A[:, : A.shape[1]] = A.to(model.head_A)
        model.head_B[..., : B.shape[-1]] = B.to(model.head_B)
        constant = self.moments.mean_direction().to(model.head_A)
        self.before = {
            "constant": self._shares(
                partial(constant_rewards, model, constant), self.parts.held_out
            ),
            "heads": self._shares(partial(head_rewards, model), self.parts.held_out),
        }

    def _ridges(self) -> list[float]:
        """Of each dimension the penalty whose map explains most of the validation prompts."""
        watched = list(self._read(self.parts.validation))
        found = torch.stack(
            [
                explained_shares(
                    partial(
                        linear_map_rewards,
                        self.model,
                        self.moments.ridge_maps(ridge).to(self.model.head_A),
                    ),
                    watched,
                )
                for ridge in RIDGE_PENALTIES
            ]
        )
        return [RIDGE_PENALTIES[best] for best in found.argmax(0)]

    def _shares(
        self, rewards: RewardFunction, lessons: Sequence[DistillationExample], most: int = 10**9
    ) -> Tensor:
        return explained_shares(rewards, self._read(lessons), most)

    def _spreads(self, rewards: RewardFunction) -> Tensor:
        return reward_spreads(rewards, self._read(self.parts.held_out))

    def _read(self, lessons: Sequence[DistillationExample]) -> Iterator[list[CachedResponse]]:
        return map(partial(self.store.responses, with_targets=True), lessons)

    def _lessons(self) -> tuple[nn.Module, StageData]:
        course = DistillationDataset(self.store, self.parts, self.settings, self._teacher.firsts)
        return RewardRegression(
            self.model, self.moments.teacher_variance(), course.mean_weight_per_prompt()
        ), course

    def _figures(self) -> dict[str, Any]:
        trained, held_out = partial(persrm_rewards, self.model), self.parts.held_out
        firsts = [*held_out, *self.parts.held_out_firsts]
        columns = {
            "trained": self._shares(trained, held_out),
            "first": self._shares(trained, firsts, _FIRST),
            **self.before,
            "penalty": torch.tensor(self.ridges),
            "variance": self.moments.teacher_variance(),
            "spread": self._spreads(trained),
        }
        if self.model.heads_only:  # a trunk is all dimensions' own, and cannot be scaled so
            scale_heads_to_one_logit(self.model, columns["spread"])
        rows = [
            {"dimension": wish.dimension, "sentences": list(wish.sentences)}
            | {name: round(float(column[i]), 4) for name, column in columns.items()}
            for i, wish in enumerate(self.asked)
        ]
        self.log.write_line("share of the teacher's rewards explained on held-out prompts:")
        self._say_row(["dimension", *columns])
        for row in rows:
            self._say_row([str(row["dimension"]), *(f"{row[name]:.2f}" for name in columns)])
        return {"taught": rows}

    def _write(self, adapter: Adapter, history: list[HistoryRow]) -> None:
        """Beside the adapter the mean of d*, which needs no state."""
        held_out = self._read(self.parts.held_out)
        constant = scale_constants_to_one_logit(self.model, self.moments.mean_direction(), held_out)
        save_bias_adapter(adapter.config, constant, self.work)
        super()._write(adapter, history)

    def _told(self) -> dict[str, Any]:
        described = (
            f"Prompts of {self._file.name}; the base answered each as it is, and told "
            f"one of the sentences. {self.unfit} prompts were too long or refused by the template."
        )
        return {"described": described, "prompts": self.parts.counts()}
