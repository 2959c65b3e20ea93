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
from pad_vllm.training.data.preference_record import Record, fold
from pad_vllm.training.data.prepare_data import Prepared
from pad_vllm.training.data.prompt_groups import DataReport, Group
from pad_vllm.training.distillation.distillation_dataset import Course
from pad_vllm.training.distillation.distillation_examples import Lesson, Lessons, Parts
from pad_vllm.training.distillation.instructed_answers import Told, draw_apart
from pad_vllm.training.distillation.instructions import wishes
from pad_vllm.training.distillation.prompted_teacher import LessonStore
from pad_vllm.training.distillation.reward_regression import Regression, shares
from pad_vllm.training.distillation.ridge_statistics import RIDGES, Moments
from pad_vllm.training.loop.trainer import Data, HistoryRow
from pad_vllm.training.objective.candidate_rewards import (
    Rewards,
    constant_rewards,
    head_rewards,
    map_rewards,
    of_one_logit,
    spreads,
    trained_rewards,
)
from pad_vllm.training.objective.fork_cache import CachedResponse
from pad_vllm.training.objective.training_model import save_bias, to_one_logit
from pad_vllm.training.objective.training_store import Store
from pad_vllm.training.report.training_curves import SHARES
from pad_vllm.training.sampling.sample_responses import read_prompts
from pad_vllm.training.sampling.vllm_sampler import Sampling
from pad_vllm.training.settings import Teacher
from pad_vllm.training.training_run import Run

SHIPPED = Path(__file__).with_name("prompts.txt")
"""Prompts of many kinds, for those who have none of their own."""

_FIRST = 1  # tokens


class TaughtRun(Run):
    """Run for settings with a teacher."""

    measured = "validation shares"
    shown = SHARES
    store: LessonStore
    moments: Moments

    def _prepared(self) -> Prepared:
        self.asked = wishes(self._teacher)
        self.lessons = Lessons(self.tokenizer, self.settings, self.asked)
        self.parts = Parts([], [], [], [], [])  # until there are answers
        self.answered, self.others = self._prompts()
        dimensions = tuple(wish.dimension for wish in self.asked)
        return Prepared(dimensions, [], [], [], {}, DataReport({}, {}, {}))

    @property
    def _teacher(self) -> Teacher:
        assert self.settings.teacher is not None
        return self.settings.teacher

    @property
    def _file(self) -> Path:
        return Path(self._teacher.prompts) if self._teacher.prompts else SHIPPED

    def _prompts(self) -> tuple[list[str], list[str]]:
        """Those that are answered, and others of which the first token is taught, in random order."""
        teacher, seed = self._teacher, self.settings.recipe.seed
        read = sorted(read_prompts(self._file), key=lambda p: fold(f"{seed} {p}"))
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

    def _store(self, cache: Path, identity: str) -> Store:
        return LessonStore(self.model, self.tokenizer, self.settings, cache, identity)

    def _gather(self) -> list[Group]:
        with self._timed("answers"):
            records = self._answers()
        self.parts = self.lessons.parts(records, self.others)
        for name, count in self.parts.counts().items():
            self.log.say(f"{name:>22} {count:>6}")
        with self._timed("cache"):
            self._build(self.parts.all(), scored=False)
        with self._timed("teacher"):
            self.moments = self._taught()
        self._start()
        return [*self.parts.all()]

    def _answers(self) -> list[Record]:
        """Drawn by worker 0; the run's folder has them, also those of an earlier start."""
        out, settings = self.work / "answers.jsonl", self.settings
        if self.rank == 0:
            sampling = Sampling(
                n=2,
                max_tokens=settings.max_response,
                seed=settings.recipe.seed,
                max_model_len=settings.max_prompt + settings.max_response,
                chat_template=settings.chat_template,
                dtype=settings.dtype,  # as the teacher reads them
                eager=True,
            )
            build = Told(tuple(one for wish in self.asked for one in wish.sentences))
            draw_apart(settings.base, self.answered, out, sampling, build)
        self.accelerator.wait_for_everyone()
        return list(jsonl.read(out, Record.model_validate_json))

    def _taught(self) -> Moments:
        """The teacher's rewards of every lesson are in the store; the sums over the training answers."""
        parts, rank, world, progress = self.parts, self.rank, self.world, self.log.progress
        paths = [self.work / f"moments-{r}-of-{world}.safetensors" for r in range(world)]
        sizes = len(self.asked), self.model.head_A.shape[-1]
        own = Moments.load(paths[rank])
        if own is None or not self.store.knows(parts.train[rank::world][: int(own.lessons)]):
            own = Moments.none(*sizes)
        self.store.teach(parts.train[rank::world], progress, own, paths[rank])
        own.save(paths[rank])
        rest = [*parts.validation, *parts.held_out, *parts.firsts, *parts.held_out_firsts]
        self.store.teach(rest[rank::world], progress, Moments.none(*sizes), None)
        self.accelerator.wait_for_everyone()
        every = [Moments.load(path) or Moments.none(*sizes) for path in paths]
        total = every[0]
        for one in every[1:]:
            total = total + one
        return total

    @torch.no_grad()
    def _start(self) -> None:
        """The heads at the closed form; how well a constant direction and these heads do."""
        model = self.model
        self.ridges = self._ridges()
        A, B = self.moments.heads(model.head_A.shape[1], self.ridges)
        model.head_B.zero_()
        model.head_A[:, : A.shape[1]] = A.to(model.head_A)
        model.head_B[..., : B.shape[-1]] = B.to(model.head_B)
        constant = self.moments.constant().to(model.head_A)
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
                shares(
                    partial(map_rewards, self.model, self.moments.map(ridge).to(self.model.head_A)),
                    watched,
                )
                for ridge in RIDGES
            ]
        )
        return [RIDGES[best] for best in found.argmax(0)]

    def _shares(self, rewards: Rewards, lessons: Sequence[Lesson], most: int = 10**9) -> Tensor:
        return shares(rewards, self._read(lessons), most)

    def _spreads(self, rewards: Rewards) -> Tensor:
        return spreads(rewards, self._read(self.parts.held_out))

    def _read(self, lessons: Sequence[Lesson]) -> Iterator[list[CachedResponse]]:
        return map(partial(self.store.responses, scored=True), lessons)

    def _lessons(self) -> tuple[nn.Module, Data]:
        course = Course(self.store, self.parts, self.settings, self._teacher.firsts)
        return Regression(self.model, self.moments.variance(), course.typical()), course

    def _figures(self) -> dict[str, Any]:
        trained, held_out = partial(trained_rewards, self.model), self.parts.held_out
        firsts = [*held_out, *self.parts.held_out_firsts]
        columns = {
            "trained": self._shares(trained, held_out),
            "first": self._shares(trained, firsts, _FIRST),
            **self.before,
            "penalty": torch.tensor(self.ridges),
            "variance": self.moments.variance(),
            "spread": self._spreads(trained),
        }
        if self.model.heads_only:  # a trunk is all dimensions' own, and cannot be scaled so
            to_one_logit(self.model, columns["spread"])
        rows = [
            {"dimension": wish.dimension, "sentences": list(wish.sentences)}
            | {name: round(float(column[i]), 4) for name, column in columns.items()}
            for i, wish in enumerate(self.asked)
        ]
        self.log.say("share of the teacher's rewards explained on held-out prompts:")
        self._say_row(["dimension", *columns])
        for row in rows:
            self._say_row([str(row["dimension"]), *(f"{row[name]:.2f}" for name in columns)])
        return {"taught": rows}

    def _write(self, adapter: Adapter, history: list[HistoryRow]) -> None:
        """Beside the adapter the mean of d*, which needs no state."""
        held_out = self._read(self.parts.held_out)
        constant = of_one_logit(self.model, self.moments.constant(), held_out)
        save_bias(adapter.config, constant, self.work)
        super()._write(adapter, history)

    def _told(self) -> dict[str, Any]:
        described = (
            f"Prompts of {self._file.name}; the base answered each as it is, and told "
            f"one of the sentences. {self.unfit} prompts were too long or refused by the template."
        )
        return {"described": described, "prompts": self.parts.counts()}
