"""One stage of training, resumable at any step, on one process or many (Accelerate).

In: an objective, and data that yields its examples and measures accuracy on validation prompts. Out: the best
trained tensors and a history. What happens in step s is a function of (seed, stage, s) and the weights before
it, so a run that was killed and started again ends with the same numbers as one that was not.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pad_vllm.training.loop import training_checkpoint
from pad_vllm.training.settings import Recipe

HistoryRow = dict[str, Any]
"""{"stage", "step"}, "loss" of the step, "accuracy" by dimension after an evaluation."""

_BEST = "best.safetensors"


class StageData(Protocol):
    """The prompts of a stage."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of the longest sequence of each training prompt, for batches with little padding.

        A prompt is there once for every time that an epoch sees it.
        """

    def example(self, index: int, stage: int, step: int) -> Any:
        """What the objective takes of a prompt: a function of the arguments and the run's seed.

        Args:
            index: into `lengths`.
            stage: number of the stage.
            step: number of the step, which seeds what is drawn for it.

        Returns:
            An example, on the model's device.
        """

    def accuracy(self) -> dict[str, float]:
        """Dimension, or "mixes" -> how well the model as it is now does the validation prompts: more is
        better.
        """


@dataclass
class TrainingStage:
    """What is trained in a stage, at what rate, for how long."""

    number: int
    """From 1; names the folder and seeds the batches."""

    epochs: int
    """0: the stage does nothing."""

    parameter_groups: list[dict[str, Any]]
    """AdamW's: params, lr."""

    checkpointed: dict[str, Tensor] = field(default_factory=dict)
    """Name -> parameter of all that a checkpoint holds: both stages' parameters, so that either stage can be
    resumed."""


def epoch_batches(
    lengths: Sequence[int], size: int, seed: int, stage: int, epoch: int
) -> list[list[int]]:
    """The epoch's batches of prompts of about equal length, in random order.

    Args:
        lengths: tokens of each prompt.
        size: prompts of a batch; the last one may have fewer.
        seed: the run's.
        stage: number of the stage.
        epoch: from 0.

    Returns:
        Indices into `lengths`, by batch. They depend on the arguments alone.
    """
    rng = random.Random(f"{seed} {stage} {epoch}")
    # 5% of noise on the lengths, so that batches differ from epoch to epoch.
    order = sorted(range(len(lengths)), key=lambda i: lengths[i] * rng.uniform(0.95, 1.05))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    rng.shuffle(batches)
    return batches


class StageTrainer:
    """Trains one stage, or goes on where an earlier run of it stopped."""

    def __init__(
        self,
        objective: nn.Module,
        data: StageData,
        recipe: Recipe,
        stage: TrainingStage,
        accelerator: Any,
        run_folder: Path,
        on_history_row: Callable[[HistoryRow, int], None],
    ) -> None:
        """Prepare module and optimiser.

        Args:
            objective: (examples of a micro-batch, prompts of the whole step) -> the examples' losses, summed
                and divided by those prompts.
            data: the prompts.
            recipe: batch sizes, schedule, early stopping.
            stage: what is trained.
            accelerator: Accelerate's.
            run_folder: gets the subfolder "stage<number>" with checkpoints and the best weights.
            on_history_row: called by the main process with every new row of the history and the stage's
                number of steps.
        """
        self.data, self.recipe, self.stage = data, recipe, stage
        self.accelerator, self.on_history_row = accelerator, on_history_row
        self.folder = run_folder / f"stage{stage.number}"
        self.steps_per_epoch = -(-len(data.lengths) // recipe.groups)
        self.steps = stage.epochs * self.steps_per_epoch
        optimiser = torch.optim.AdamW(stage.parameter_groups, weight_decay=recipe.weight_decay)
        self.full_rates = [group["lr"] for group in optimiser.param_groups]
        self.module, self.optimiser = accelerator.prepare(objective, optimiser)
        self.history: list[HistoryRow] = []
        self.step, self.done = 0, False
        self.best_accuracy, self.evaluations_without_improvement = -math.inf, 0

    def train(self) -> list[HistoryRow]:
        """Train the stage and return its history.

        The model then has the weights that were best on the validation prompts; those that the stage began
        with count, too. A stage that was done before is loaded; one without epochs changes nothing.
        """
        if not self.stage.epochs:
            return self.history
        self._resume()
        if not self.history:
            row: HistoryRow = {"stage": self.stage.number, "step": 0}
            row["accuracy"] = self.data.accuracy()
            self._add_history_row(row)
            self._save(row["accuracy"])
        for batch in self._remaining_batches():
            self._take_step(batch)
            if "accuracy" in self.history[-1]:
                self._save(self.history[-1]["accuracy"])
            if self.done:
                break
        self._set_parameters(load_file(self.folder / _BEST))
        return self.history

    def _remaining_batches(self) -> Iterator[list[int]]:
        """The batches from the present step to the last; none for a stage that is done."""
        recipe, first_epoch = self.recipe, self.step // self.steps_per_epoch
        for epoch in range(first_epoch, self.stage.epochs if not self.done else 0):
            batches = epoch_batches(
                self.data.lengths, recipe.groups, recipe.seed, self.stage.number, epoch
            )
            yield from batches[self.step - epoch * self.steps_per_epoch :]

    def _take_step(self, batch: list[int]) -> None:
        """One step of the optimiser; evaluates where the recipe says so."""
        share = learning_rate_share(self.step, self.steps, self.recipe.warmup)
        for group, full_rate in zip(self.optimiser.param_groups, self.full_rates, strict=True):
            group["lr"] = full_rate * share
        loss = sum(
            self._backward(indices, is_last=is_last, prompts_in_step=len(batch))
            for indices, is_last in self._micro_batches(batch)
        )
        for group in self.stage.parameter_groups:
            nn.utils.clip_grad_norm_(group["params"], self.recipe.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        # Each worker's loss is over the whole batch's prompts times the number of workers.
        own = torch.tensor(loss, device=self.accelerator.device)
        total = self.accelerator.reduce(own, "mean").item()
        row: HistoryRow = {"stage": self.stage.number, "step": self.step, "loss": total}
        if self.step % self.recipe.evaluate_every == 0 or self.step == self.steps:
            row["accuracy"] = self.data.accuracy()
        self._add_history_row(row)

    def _micro_batches(self, batch: list[int]) -> Iterator[tuple[list[int], bool]]:
        """This worker's part of the batch in micro-batches, each with whether it is the last."""
        own = batch[self.accelerator.process_index :: self.accelerator.num_processes]
        size = self.recipe.micro_groups
        starts = range(0, max(len(own), 1), size)
        for start in starts:
            yield own[start : start + size], start == starts[-1]

    def _backward(self, indices: list[int], *, is_last: bool, prompts_in_step: int) -> float:
        """Add a micro-batch's gradient. Workers exchange gradients in the last one alone."""
        gradient_sync = nullcontext() if is_last else self.accelerator.no_sync(self.module)
        with gradient_sync:
            number = self.stage.number
            examples = [self.data.example(i, number, self.step) for i in indices]
            loss = self.module(examples, prompts_in_step) * self.accelerator.num_processes
            self.accelerator.backward(loss)
        return loss.item()

    def _save(self, accuracy: dict[str, float]) -> None:
        """Save a checkpoint, and the weights if they are the best; decide whether the stage is done."""
        mean = sum(accuracy.values()) / max(len(accuracy), 1)
        is_best = mean > self.best_accuracy
        if is_best:
            self.best_accuracy, self.evaluations_without_improvement = mean, 0
        else:
            self.evaluations_without_improvement += 1
        self.done = self.evaluations_without_improvement >= self.recipe.patience
        if self.accelerator.is_main_process:
            if is_best:
                training_checkpoint.save_tensors(self.folder / _BEST, self.stage.checkpointed)
            state = {
                "step": self.step,
                "best": self.best_accuracy,
                "waited": self.evaluations_without_improvement,
                "done": self.done,
                "history": self.history,
            }
            training_checkpoint.save_checkpoint(
                self.folder,
                step=self.step,
                tensors=self.stage.checkpointed,
                optimiser=self.optimiser.state_dict(),
                state=state,
            )
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        checkpoint = training_checkpoint.load_newest_checkpoint(self.folder)
        if checkpoint is None:
            return
        tensors, optimiser, state = checkpoint
        self._set_parameters(tensors)
        self.optimiser.load_state_dict(optimiser)
        self.step, self.done, self.history = state["step"], state["done"], state["history"]
        self.best_accuracy = state["best"]
        self.evaluations_without_improvement = state["waited"]

    @torch.no_grad()
    def _set_parameters(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self.stage.checkpointed.items():
            parameter.copy_(tensors[name])

    def _add_history_row(self, row: HistoryRow) -> None:
        self.history.append(row)
        if self.accelerator.is_main_process:
            self.on_history_row(row, self.steps)


def learning_rate_share(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up, then linear decay to zero.

    Args:
        step: from 0.
        steps: of the stage.
        warmup: share of the steps.

    Returns:
        The share of the full learning rate, 0 to 1.
    """
    warmup_steps = max(int(warmup * steps), 1)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return (steps - step) / max(steps - warmup_steps, 1)
