"""The prompts of a distillation: in an order that an unfinished run depends on."""

from __future__ import annotations

from types import SimpleNamespace

from pad_vllm.training.distillation.distillation_prompts import choose_prompts
from pad_vllm.training.settings import DistillationSettings, Settings


def test_the_order_of_the_prompts_never_changes():
    everything_fits = SimpleNamespace(fits=lambda prompt: True)
    distillation = DistillationSettings({"warm": "Be warm."}, answers=2, firsts=1)
    chosen = choose_prompts(Settings("base", (), "out"), distillation, everything_fits)
    assert [prompt[0].content for prompt in chosen.answered] == [
        "What is gravity?",
        "What is a good way to end a meeting?",
    ]
    assert chosen.first_token_only[0][0].content == "What is an algorithm?"
