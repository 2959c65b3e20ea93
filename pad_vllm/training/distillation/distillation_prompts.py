"""The prompts of a distillation: which of the file's the base answers, and which only teach first tokens.

In: the settings' file of prompts, or the one that ships with the package. Out: `DistillationPrompts`. Knows
no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pad_vllm.text.conversation import Conversation
from pad_vllm.training.data.preference_record import unit_hash
from pad_vllm.training.distillation.distillation_examples import ExampleBuilder
from pad_vllm.training.sampling.sample_responses import read_prompts
from pad_vllm.training.settings import DistillationSettings, Settings

SHIPPED_PROMPTS = Path(__file__).with_name("prompts.txt")
"""160 prompts of many kinds, for users who give none."""


@dataclass(frozen=True)
class DistillationPrompts:
    """The prompts of a run, in random order."""

    file: Path  # where they come from
    answered: list[Conversation]  # the base answers these
    first_token_only: list[Conversation]  # of these only the first answer token counts
    unfit: int  # how many of the file were left out: too long, or rejected by the chat template


def choose_prompts(
    settings: Settings, distillation: DistillationSettings, builder: ExampleBuilder
) -> DistillationPrompts:
    """The first of the shuffled prompts are answered, and as many of the next as wanted teach first tokens.

    Args:
        settings: The run's; the seed decides the order.
        distillation: File and numbers of the prompts.
        builder: Knows which prompts fit.

    Raises:
        ValueError: None of the prompts fits.
    """
    file = Path(distillation.prompts) if distillation.prompts else SHIPPED_PROMPTS
    seed, answers = settings.recipe.seed, distillation.answers
    prompts = sorted(read_prompts(file), key=lambda prompt: unit_hash(f"{seed} {prompt.to_json()}"))
    fitting = [prompt for prompt in prompts if builder.fits(prompt)]
    if not fitting:
        raise ValueError(
            f"--prompts {file}: none of its {len(prompts)} prompts has at most "
            f"{settings.max_prompt} tokens and suits the chat template. Raise --max-prompt, "
            "or give others"
        )
    return DistillationPrompts(
        file=file,
        answered=fitting[:answers],
        first_token_only=fitting[answers : answers + distillation.firsts * answers],
        unfit=len(prompts) - len(fitting),
    )
