"""What an adapter is worth: the forward passes of the prompted base are kept, but not all of them."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

from pad_vllm.evaluation.win_rates_and_fluency import AnswerLoss
from pad_vllm.training.report import held_out_accuracy


def test_the_losses_of_a_prompt_are_computed_once_and_only_the_last_ones_are_kept(monkeypatch):
    asked = []

    def losses(_backbone, pairs):
        asked.append(pairs)
        return [AnswerLoss(float(sum(ids)), len(ids)) for _, ids in pairs]

    monkeypatch.setattr(held_out_accuracy, "answer_losses", losses)
    monkeypatch.setattr(held_out_accuracy, "CACHED_PROMPTS", 3)
    model = SimpleNamespace(backbone=None, adapter_off=nullcontext, dimensions=())
    words = held_out_accuracy._PromptedBase(model, None)
    for _ in range(2):
        assert words.losses([1, 2], [[3, 4], [5]]).tolist() == [7.0, 5.0]
    assert asked == [[([1, 2], [3, 4]), ([1, 2], [5])]]
    for number in range(3):
        words.losses([number], [[3]])
    words.losses([1, 2], [[3, 4], [5]])
    assert len(asked) == 5
