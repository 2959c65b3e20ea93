"""The table of training methods: name in `Settings.method` (and `--teacher`) -> class."""

from __future__ import annotations

from pad_vllm.training.credit.credit_method import CreditMethod
from pad_vllm.training.distillation.distillation_method import DistillationMethod
from pad_vllm.training.pairs_method import PairsMethod
from pad_vllm.training.settings import MethodName
from pad_vllm.training.training_method import TrainingMethod

METHODS: dict[MethodName, type[TrainingMethod]] = {
    "pairs": PairsMethod,  # which of two responses is preferred: a loop over pairs
    "scores": CreditMethod,  # scores of the base's own responses: one step in closed form
    "prompt": DistillationMethod,  # instructions: the base with them in its prompt is the teacher
}
