"""Prompts that ship for evaluations: advice, explanations, mail, stories, code, lists, opinions, small talk.

The kinds are mixed, so that the first prompts of a file stand for all of them. None is a prompt that ships
for training (training/distillation/prompts.txt), so an adapter trained on those is evaluated on others.
"""

from __future__ import annotations

from pathlib import Path

STEERING_PROMPTS = Path(__file__).with_name("prompts.txt")
"""60 prompts that are answered and judged."""

JUDGE_PROMPTS = Path(__file__).with_name("judge_prompts.txt")
"""40 others, whose answers the judges of meaning are fitted on."""
