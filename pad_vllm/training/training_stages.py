"""The two stages of training by steps: trunk and heads together, then the heads on the frozen trunk.

In: an objective and data for each stage. Out: the history. Used by the methods `pairs` and `prompt`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from pad_vllm.persrm import PersRM
from pad_vllm.training.data.prompt_groups import PromptGroup
from pad_vllm.training.loop.trainer import HistoryRow, StageData, StageTrainer, TrainingStage
from pad_vllm.training.objective.training_store import TrainingStore
from pad_vllm.training.run_context import RunContext
from pad_vllm.training.settings import Recipe

StageInputs = Callable[[], tuple[nn.Module, StageData]]
"""Makes the objective and the data of a stage; called as each stage begins."""


def train_two_stages(
    context: RunContext,
    store: TrainingStore,
    groups: Sequence[PromptGroup],
    make_inputs: StageInputs,
) -> list[HistoryRow]:
    """Train the store's model, or go on where an earlier start of the run stopped.

    Args:
        context: The run.
        store: Has the model and the fork activations of all groups.
        groups: All groups that the stages read; stage 2 needs their trunk activations.
        make_inputs: Makes the objective and the data of each stage.

    Returns:
        The history of both stages. The model holds the weights that were best on the validation prompts.
    """
    recipe = context.settings.recipe
    history = _train_stage(1, context, store.model, make_inputs)
    if recipe.head_epochs:
        with context.timed("trunk"):
            _freeze_trunk(context, store, groups)
        history += _train_stage(2, context, store.model, make_inputs)
    return history


def remove_trunk_activations(context: RunContext) -> None:
    """Delete what stage 2 wrote into the run's folder: of no use to another run, and large."""
    shutil.rmtree(context.folder / "trunk", ignore_errors=True)


def _train_stage(
    number: int, context: RunContext, model: PersRM, make_inputs: StageInputs
) -> list[HistoryRow]:
    objective, data = make_inputs()
    with context.timed(f"stage{number}"):
        return StageTrainer(
            objective,
            data,
            context.settings.recipe,
            _stage(number, model, context.settings.recipe),
            context.accelerator,
            context.folder,
            context.log.write_history_row,
        ).train()


def _stage(number: int, model: PersRM, recipe: Recipe) -> TrainingStage:
    """Stage 1 trains LoRA (where there is one) and heads, stage 2 the heads; checkpoints hold both."""
    lora = model.lora_parameters()
    heads = {"head_A": model.head_A, "head_B": model.head_B}
    if model.head_G is not None:
        heads["head_G"] = model.head_G
    parameter_groups: list[dict[str, Any]] = [
        {"params": list(heads.values()), "lr": recipe.head_lr}
    ]
    if number == 1 and lora:
        parameter_groups.insert(0, {"params": list(lora.values()), "lr": recipe.lora_lr})
    epochs = recipe.epochs if number == 1 else recipe.head_epochs
    return TrainingStage(number, epochs, parameter_groups, {**lora, **heads})


def _freeze_trunk(context: RunContext, store: TrainingStore, groups: Sequence[PromptGroup]) -> None:
    """Train the LoRA no further, and store the trunk's activations, so that stage 2 runs no layer."""
    lora = store.model.lora_parameters()
    for parameter in lora.values():
        parameter.requires_grad = False
    if lora and context.settings.cached:
        folder = context.folder / "trunk"
        store.freeze_trunk(groups, folder, context.rank, context.world_size, context.log.progress)
    context.wait_for_all_workers()
