"""One stage of training, resumable at any step, on one process or many (Accelerate).

In: an objective, a dataset that yields its examples and validation figures. Out: the best trained tensors
and a history. What happens in step s is a function of (seed, stage, s) and the weights before it, so a run
that was killed and started again ends with the same numbers as one that was not.
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


class StageData(Protocol):
    """The training prompts of a stage."""

    @property
    def lengths(self) -> Sequence[int]:
        """Longest sequence of each prompt, for batches with little padding; a prompt is there once
        for every time that an epoch sees it.
        """

    def example(self, index: int, stage: int, step: int) -> Any:
        """Prompt `index`, with what is drawn for this step, as the objective takes it."""

    def accuracy(self) -> dict[str, float]:
        """Per dimension how well the validation prompts are done as of now: more is better."""


@dataclass
class TrainingStage:
    """What is trained in a stage, at what rate, for how long."""

    number: int
    epochs: int
    parameter_groups: list[dict[str, Any]]
    """AdamW's parameter groups: params, lr."""

    checkpointed: dict[str, Tensor] = field(default_factory=dict)
    """Name -> parameter of all that a checkpoint holds: both stages', so that any can be resumed."""


def epoch_batches(
    lengths: Sequence[int], size: int, seed: int, stage: int, epoch: int
) -> list[list[int]]:
    """The epoch's batches of about equal lengths, in random order: a function of its arguments."""
    rng = random.Random(f"{seed} {stage} {epoch}")
    # 5% of noise on the lengths, so that batches differ from epoch to epoch.
    order = sorted(range(len(lengths)), key=lambda i: lengths[i] * rng.uniform(0.95, 1.05))
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    rng.shuffle(chunks)
    return chunks


class StageTrainer:
    """One stage: `run` trains it, or goes on where it stopped.

    objective: (examples of a micro-batch, prompts of the whole batch) -> the loss, a sum over the examples
    divided by those prompts.
    report is called with every new row of the history and the stage's number of steps, by the main
    process alone.
    """

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
        self.data, self.recipe, self.stage = data, recipe, stage
        self.accelerator, self.report = accelerator, on_history_row
        self.folder = run_folder / f"stage{stage.number}"
        self.per_epoch = -(-len(data.lengths) // recipe.groups)
        self.steps = stage.epochs * self.per_epoch
        optimiser = torch.optim.AdamW(stage.parameter_groups, weight_decay=recipe.weight_decay)
        self.rates = [group["lr"] for group in optimiser.param_groups]
        self.module, self.optimiser = accelerator.prepare(objective, optimiser)
        self.history: list[HistoryRow] = []
        self.step, self.best, self.waited, self.done = 0, -math.inf, 0, False

    def train(self) -> list[HistoryRow]:
        """The history; the model then holds the weights that were best on the validation prompts, those
        it began with among them. A stage that is done is loaded, one without epochs left as it is.
        """
        if not self.stage.epochs:
            return self.history
        self._resume()
        if not self.history:
            self._note({"stage": self.stage.number, "step": 0, "accuracy": self.data.accuracy()})
            self._keep(self.history[-1]["accuracy"])
        for batch in self._ahead():
            self._step(batch)
            if "accuracy" in self.history[-1]:
                self._keep(self.history[-1]["accuracy"])
            if self.done:
                break
        self._load(load_file(self.folder / "best.safetensors"))
        return self.history

    def _ahead(self) -> Iterator[list[int]]:
        """The batches from the present step to the last; none for a stage that is done."""
        recipe, first = self.recipe, self.step // self.per_epoch
        for epoch in range(first, self.stage.epochs if not self.done else 0):
            lengths, number = self.data.lengths, self.stage.number
            order = epoch_batches(lengths, recipe.groups, recipe.seed, number, epoch)
            yield from order[self.step - epoch * self.per_epoch :]

    def _step(self, batch: list[int]) -> None:
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * learning_rate_share(self.step, self.steps, self.recipe.warmup)
        value = sum(self._backward(*micro, len(batch)) for micro in self._micros(batch))
        for group in self.stage.parameter_groups:
            nn.utils.clip_grad_norm_(group["params"], self.recipe.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        # Each worker's loss is over the whole batch's prompts times the number of workers.
        own = torch.tensor(value, device=self.accelerator.device)
        total = self.accelerator.reduce(own, "mean").item()
        row: HistoryRow = {"stage": self.stage.number, "step": self.step, "loss": total}
        if self.step % self.recipe.evaluate_every == 0 or self.step == self.steps:
            row["accuracy"] = self.data.accuracy()
        self._note(row)

    def _micros(self, batch: list[int]) -> Iterator[tuple[list[int], bool]]:
        """This worker's part of the batch in micro-batches, each with whether it is the last."""
        mine = batch[self.accelerator.process_index :: self.accelerator.num_processes]
        size = self.recipe.micro_groups
        starts = range(0, max(len(mine), 1), size)
        for start in starts:
            yield mine[start : start + size], start == starts[-1]

    def _backward(self, micro: list[int], last: bool, whole: int) -> float:
        gradient_sync = nullcontext() if last else self.accelerator.no_sync(self.module)
        with gradient_sync:
            number = self.stage.number
            examples = [self.data.example(i, number, self.step) for i in micro]
            loss = self.module(examples, whole) * self.accelerator.num_processes
            self.accelerator.backward(loss)
        return loss.item()

    def _keep(self, accuracy: dict[str, float]) -> None:
        """Save the weights if they are the best and a checkpoint; count looks without improvement."""
        mean = sum(accuracy.values()) / max(len(accuracy), 1)
        better = mean > self.best
        self.best, self.waited = (mean, 0) if better else (self.best, self.waited + 1)
        self.done = self.waited >= self.recipe.patience
        if self.accelerator.is_main_process:
            if better:
                training_checkpoint.save_tensors(
                    self.folder / "best.safetensors", self.stage.checkpointed
                )
            state = {
                "step": self.step,
                "best": self.best,
                "waited": self.waited,
                "done": self.done,
                "history": self.history,
            }
            optimiser = self.optimiser.state_dict()
            training_checkpoint.save_checkpoint(
                self.folder, self.step, self.stage.checkpointed, optimiser, state
            )
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        newest = training_checkpoint.load_newest_checkpoint(self.folder)
        if newest is None:
            return
        tensors, optimiser, state = newest
        self._load(tensors)
        self.optimiser.load_state_dict(optimiser)
        self.step, self.best, self.waited = state["step"], state["best"], state["waited"]
        self.done, self.history = state["done"], state["history"]

    @torch.no_grad()
    def _load(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self.stage.checkpointed.items():
            parameter.copy_(tensors[name])

    def _note(self, row: HistoryRow) -> None:
        self.history.append(row)
        if self.accelerator.is_main_process:
            self.report(row, self.steps)


def learning_rate_share(step: int, steps: int, warmup: float) -> float:
    """Share of the full learning rate at a step: linear warm-up, then linear decay to zero."""
    first = max(int(warmup * steps), 1)
    if step < first:
        return (step + 1) / first
    return (steps - step) / max(steps - first, 1)
